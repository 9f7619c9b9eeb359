"""WebSocket /v1/text-to-speech/{voice_id}/multi-stream-input: several contexts, each with an id, at the same time.

    caller   {"context_id": "a", "text": " ", settings}   {"context_id": "a", "text": "Hello. ", "flush": true}
             {"context_id": "a", "text": ""}              keeps it alive
             {"context_id": "a", "close_context": true}   {"close_socket": true}
    gateway  {"contextId": "a", "audio", "alignment", ...} ...   {"contextId": "a", "isFinal": true}

What goes wrong in a context ends that context alone; what belongs to none ends the connection.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, ClassVar

from starlette.websockets import WebSocket

from ..errors import ApiError, BadRequest
from ..fields import Fields
from . import shapes
from .contexts import Context, Manner
from .handshake import greet
from .socket import Gone, Socket
from .wanted import check_manner, read

MAX_CONTEXTS = 5  # open at the same time, as with ElevenLabs
MAX_SPEAKING = 20  # open, or closed and still speaking


class TooManyContexts(ApiError):
    """The connection has as many open contexts as it may."""

    status: ClassVar[int] = 429
    code: ClassVar[str] = "max_active_conversations"


async def multi_stream_input(websocket: WebSocket) -> None:
    socket = Socket(websocket)
    with suppress(Gone):
        try:
            greeting = await greet(websocket, socket)
            if greeting is not None:
                await _Conversation(socket, greeting[0], websocket.app.state.config.idle_timeout_s).hold(greeting[1])
        except ApiError as error:
            await socket.send(shapes.error_message(error))
            await socket.close(shapes.close_code(error), error.message)
        else:
            await socket.close()


class _Conversation:
    """What is going on over one connection."""

    def __init__(self, socket: Socket, manner: Manner, idle_timeout_s: float) -> None:
        self._socket = socket
        self._manner = manner
        self._idle_timeout_s = idle_timeout_s
        self._open: dict[str | None, Context] = {}  # by id; None: that of messages without one
        self._closing: dict[str | None, Context] = {}  # those that still speak their last text; the latest of each id
        self._running: set[asyncio.Task[None]] = set()

    async def hold(self, first: Fields) -> None:
        """Until the caller closes the connection, or does nothing for long. Raises ApiError and Gone."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._listen(tasks, first)
                for context_id in list(self._open):
                    self._close(context_id)
                watching = tasks.create_task(self._socket.until_gone())
                while self._running:
                    await asyncio.wait(self._running)
                watching.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _listen(self, tasks: asyncio.TaskGroup, message: Fields) -> None:
        """Follows what the caller says until there is no more of it. Raises ApiError and Gone."""
        while not message.boolean("close_socket"):
            await self._follow(tasks, message)
            while True:
                try:
                    message = read(await self._socket.receive(self._idle_timeout_s))
                    break
                except TimeoutError:
                    if not self._running:
                        return

    async def _follow(self, tasks: asyncio.TaskGroup, message: Fields) -> None:
        """Raises BadRequest if it is not even clear which context the message is for; and Gone."""
        context_id = message.text("context_id")
        if context_id is None:
            context_id = message.text("contextId")
        try:
            if message.boolean("close_context"):
                self._close(context_id)
            else:
                self._say(tasks, context_id, message)
        except ApiError as error:
            if context := self._open.pop(context_id, None):
                context.abort(error)
            else:
                await self._end(context_id, error)

    def _say(self, tasks: asyncio.TaskGroup, context_id: str | None, message: Fields) -> None:
        check_manner(message)
        text, flush = message.text("text"), message.boolean("flush") or False
        if text is None and not flush:
            raise BadRequest("text is required", field="text")
        context = self._open.get(context_id)
        if context is None:
            if not text:
                return  # keeps a context alive that is no more, or the connection
            if len(self._open) >= MAX_CONTEXTS:
                raise TooManyContexts(f"{MAX_CONTEXTS} contexts are open; close one before you open another")
            if len(self._running) >= MAX_SPEAKING:
                raise TooManyContexts(f"{MAX_SPEAKING} contexts still speak; wait, or close them once more")
            context = self._open[context_id] = Context(self._manner, lambda answer: self._answer(context_id, answer))
            task = tasks.create_task(self._carry(context_id, context))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        if text or flush:
            context.say(text or "", flush=flush)
        else:
            context.touch()

    def _close(self, context_id: str | None) -> None:
        """The first time after a flush, what was said is still spoken; else it stops at once."""
        context = self._open.pop(context_id, None)
        if context is not None and context.flushed:
            context.close()
            self._closing[context_id] = context
        elif context is not None:
            context.abort()
        elif context_id in self._closing:
            self._closing.pop(context_id).abort()

    async def _carry(self, context_id: str | None, context: Context) -> None:
        """The life of a context. Raises Gone."""
        error = await context.run()
        for contexts in (self._open, self._closing):
            if contexts.get(context_id) is context:
                del contexts[context_id]
        await self._end(context_id, error)

    async def _end(self, context_id: str | None, error: ApiError | None) -> None:
        if error is not None:
            await self._answer(context_id, shapes.error_message(error))
        await self._answer(context_id, shapes.final_message())

    async def _answer(self, context_id: str | None, message: dict[str, Any]) -> None:
        await self._socket.send({**message, "contextId": context_id})
