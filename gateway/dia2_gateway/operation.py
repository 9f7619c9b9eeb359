"""For whoever runs it: /healthz, /readyz, /metrics. No key is needed, and no secret is told."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from .speech import Speech


async def health(request: Request) -> Response:
    """The process runs. Restart it if this does not answer."""
    return PlainTextResponse("ok\n")


async def readiness(request: Request) -> Response:
    """Whether to send callers here: 200, or 503 while no back end is ready or the gateway closes."""
    speech: Speech = request.app.state.speech
    ready, known = len(speech.backends.ready), len(speech.backends.all)
    usable = ready > 0 and not speech.draining
    state = {"ready": usable, "draining": speech.draining, "backends_ready": ready, "backends": known}
    return JSONResponse(state, 200 if usable else 503)


async def metrics(request: Request) -> Response:
    """For Prometheus."""
    speech: Speech = request.app.state.speech
    return Response(generate_latest(speech.metrics.registry), media_type=CONTENT_TYPE_LATEST)


routes: list[BaseRoute] = [
    Route("/healthz", health),
    Route("/readyz", readiness),
    Route("/metrics", metrics),
]
