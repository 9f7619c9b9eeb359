"""How a WebSocket begins: what the query asks for, and a key, at the latest in the first message."""

from __future__ import annotations

from starlette.websockets import WebSocket

from ..errors import Unauthorized
from ..fields import Fields
from ..keys import read_key
from ..speech import Caller, Speech
from .contexts import Manner
from .socket import Socket
from .wanted import StreamOptions, check_voice, read

KEY_TIMEOUT_S = 10.0  # a caller without a key in the request has this long for the first message
KEY_FIELDS = ("xi_api_key", "xi-api-key", "authorization")


async def greet(websocket: WebSocket, socket: Socket) -> tuple[Manner, Fields] | None:
    """Accepts, and waits for the first message; None if none comes for so long that the connection is idle.

    Raises Gone, and ApiError: the connection is open then, and should tell it.
    """
    speech: Speech = websocket.app.state.speech
    await websocket.accept()
    caller = _caller(speech, websocket)
    options = StreamOptions.from_query(websocket.query_params)
    idle_timeout_s = websocket.app.state.config.idle_timeout_s
    try:
        first = read(await socket.receive(min(KEY_TIMEOUT_S, idle_timeout_s) if caller is None else idle_timeout_s))
    except TimeoutError:
        return None
    if caller is None:
        caller = speech.caller(websocket, _key(first))
    voice_id = websocket.path_params["voice_id"]
    check_voice(speech, voice_id)
    return Manner(speech, caller, voice_id, options), first


def _caller(speech: Speech, websocket: WebSocket) -> Caller | None:
    """Who asks, or None if that is not yet known. Raises Unauthorized for a wrong key."""
    key = read_key(websocket)
    try:
        return speech.caller(websocket, key)
    except Unauthorized:
        if key is not None:
            raise
        return None


def _key(message: Fields) -> str | None:
    for name in KEY_FIELDS:
        if given := message.text(name):
            scheme, space, rest = given.partition(" ")
            return rest.strip() if space and scheme.lower() == "bearer" else given
    return None
