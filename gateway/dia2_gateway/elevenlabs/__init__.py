"""ElevenLabs' API, as its clients use it: speech over HTTP, and two WebSockets for text that is still being written."""

from starlette.routing import BaseRoute, WebSocketRoute

from . import http
from .http import SPEAK, list_models
from .multi_stream_input import multi_stream_input
from .stream_input import stream_input

__all__ = ["list_models", "routes"]

routes: list[BaseRoute] = [
    *http.routes,
    WebSocketRoute(f"{SPEAK}/stream-input", stream_input),
    WebSocketRoute(f"{SPEAK}/multi-stream-input", multi_stream_input),
]
