"""Assembles the gateway: an ASGI application for one configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.staticfiles import StaticFiles

from . import elevenlabs, native, openai, openapi, operation
from .config import Config
from .errors import ApiError, BadRequest, NotFound
from .metrics import Metrics
from .middleware import REQUEST_ID, Bounds, Context, SameOrigin
from .speech import Speech

routes: list[BaseRoute] = [
    *operation.routes,
    *native.routes,
    *openai.routes,
    *elevenlabs.routes,
    *openapi.routes,
]
PAGE = Path(__file__).parent / "web"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # but the ETag stays: a page must not run with the modules of another version
}


class Page(StaticFiles):
    """The web page."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(PAGE_HEADERS)
        return response


def create_app(config: Config) -> Starlette:
    """The application. `app.state` has `config` and `speech`."""
    metrics = Metrics()
    speech = Speech(config, metrics)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await speech.start()
        yield
        await speech.close()

    middleware = [
        Middleware(Context, metrics),
        Middleware(SameOrigin, config.cors_origins, not config.keys, openai.error_response),
        Middleware(Bounds, config.max_body_bytes, config.send_timeout_s),
    ]
    if config.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "xi-api-key"],
            expose_headers=[REQUEST_ID, "Retry-After"],
        )
        middleware.insert(1, cors)
    page = Page(directory=PAGE, html=True)
    handlers = {ApiError: refuse, HTTPException: refuse_path, ClientDisconnect: part, Exception: confess}
    app = Starlette(
        routes=[*routes, Route("/", page), Route("/{file}", page)],
        middleware=middleware,
        exception_handlers=handlers,
        lifespan=lifespan,
    )
    app.state.config = config
    app.state.speech = speech
    return app


async def refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return openai.error_response(error)


async def refuse_path(request: Request, error: Exception) -> Response:
    """An unknown path, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    told = NotFound if error.status_code == 404 else BadRequest
    response = openai.error_response(told(f"{request.method} {request.url.path}: {error.detail}"))
    response.status_code = error.status_code
    response.headers.update(error.headers or {})
    return response


async def part(request: Request, error: Exception) -> Response:
    """The caller has left before its request was complete. Nobody hears the answer, but the log has its status."""
    return Response(status_code=499)


async def confess(request: Request, error: Exception) -> Response:
    """A defect of ours; the log has it."""
    return openai.error_response(ApiError("internal error; the gateway's log has the details"))
