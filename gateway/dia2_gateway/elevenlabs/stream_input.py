"""WebSocket /v1/text-to-speech/{voice_id}/stream-input: one context, which lives as long as the connection.

caller   {"text": " ", settings}   {"text": "Hello "}   {"text": "there. ", "flush": true}   {"text": ""}
gateway                                        {"audio", "alignment", ...} ...   {"isFinal": true}   close
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.websockets import WebSocket

from ..errors import ApiError, BadRequest
from ..fields import Fields
from . import shapes
from .contexts import Context
from .handshake import greet
from .socket import Gone, Socket
from .wanted import check_manner, read


async def stream_input(websocket: WebSocket) -> None:
    socket = Socket(websocket)
    with suppress(Gone):
        try:
            greeting = await greet(websocket, socket)
            if greeting is None:
                await socket.close()
                return
            manner, first = greeting
            error = await _converse(socket, Context(manner, socket.send), first)
        except ApiError as refusal:
            error = refusal
        if error is not None:
            await socket.send(shapes.error_message(error))
            await socket.close(shapes.close_code(error), error.message)
        else:
            await socket.send(shapes.final_message())
            await socket.close()


async def _converse(socket: Socket, context: Context, first: Fields) -> ApiError | None:
    """Runs the context while it is told what comes in. Returns why it failed; raises Gone."""
    running = asyncio.create_task(context.run())
    listening = asyncio.create_task(_listen(socket, context, first))
    try:
        await asyncio.wait([running, listening], return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            listening.result()  # it ends first only if the caller has gone
        return await running
    finally:
        for task in (running, listening):
            task.cancel()
        await asyncio.gather(running, listening, return_exceptions=True)


async def _listen(socket: Socket, context: Context, message: Fields) -> None:
    """Tells the context what is said, then waits until the caller goes: raises Gone."""
    try:
        while _tell(context, message):
            message = read(await socket.receive())
    except ApiError as error:
        context.abort(error)
    await socket.until_gone()


def _tell(context: Context, message: Fields) -> bool:
    """Passes a message on; whether more may follow. Raises BadRequest."""
    check_manner(message)
    text, flush = message.text("text"), message.boolean("flush") or False
    if text is None and not flush:
        raise BadRequest("text is required", field="text")
    if text == "":
        context.close()
        return False
    context.say(text or "", flush=flush)
    return True
