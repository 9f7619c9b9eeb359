"""What the asyncio client returns: an `AsyncStream` speaks a text, an `AsyncSession` one still being written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from ._arrivals import Arrivals
from ._ledger import PARTING_S, Arrival, Ledger
from .errors import Cancelled, SessionEnded, from_call
from .types import Chunk, SessionOptions, TimedWord, Transcript, UserSpeech, Word

if TYPE_CHECKING:
    from .aio import AsyncClient


class AsyncIncoming(Arrivals, AsyncIterator[Chunk]):
    """The audio of one gRPC stream: an async iterator of chunks, and a context manager that cancels on leaving."""

    _client: AsyncClient

    def __init__(self, client: AsyncClient) -> None:
        super().__init__(client)  # its sample rate is known from the first chunk (or `async with`) on

    async def __anext__(self) -> Chunk:
        """The next chunk as soon as it is there; raises what `Stream.__next__` raises."""
        while self._open:
            try:
                await self._start()
                async with asyncio.timeout(self._patience_s()):
                    arrival = await self._arrival()
                chunk = self._read(arrival)
            except TimeoutError:
                self._shut()
                raise self._silence() from None
            except grpc.RpcError as error:
                self._shut()
                raise from_call(error, self._client.url) from None
            except asyncio.CancelledError:
                self._cancel()
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                break  # gRPC raises this too when the call, not the task, was cancelled
            except BaseException:
                self._shut()
                raise
            if chunk is not None:
                return chunk
        raise StopAsyncIteration

    async def _start(self) -> None:
        raise NotImplementedError

    async def _arrival(self) -> Arrival:
        raise NotImplementedError

    def _patience_s(self) -> float | None:
        return self._client.timeout_s

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()


class AsyncStream(AsyncIncoming):
    """One utterance on its way: an async iterator of chunks, and a context manager that cancels on leaving.

    Cancelling the task that waits for a chunk cancels the stream too. Also when dropped, it is cancelled.
    """

    def __init__(self, client: AsyncClient, request: service_pb2.ModelInferRequest) -> None:
        super().__init__(client)
        self._request = request

    def cancel(self) -> None:
        """Stops the stream, on the server too. The iteration ends without an error."""
        self._cancel()

    async def _start(self) -> None:
        if self._call is None:
            self.sample_rate = await self._client.connect()
            self._started_s = time.monotonic()
            # Nothing follows the request, so the server ends the call after its last response.
            self._call = self._client._stub.ModelStreamInfer(iter([self._request]))

    async def _arrival(self) -> Arrival:
        response = await self._call.read()
        return time.monotonic(), None if response is grpc.aio.EOF else response


class AsyncSession(AsyncIncoming, Transcript):
    """`Session` for asyncio. `async with` begins it; leaving cancels what has not ended.

    Text may be sent from one task while another iterates. Cancelling a task that sends leaves the session as it is
    (the text may be spoken); cancelling the one that waits for a chunk cancels the session.
    """

    def __init__(self, client: AsyncClient, options: SessionOptions) -> None:
        super().__init__(client)
        Transcript.__init__(self)
        self._inbox: asyncio.Queue[Arrival] = asyncio.Queue()
        self._outbox: asyncio.Queue[service_pb2.ModelInferRequest | None] = asyncio.Queue()
        self._ledger = Ledger(client.session_model, options, self._outbox.put_nowait, self._inbox.put_nowait)
        self._reader: asyncio.Task[None] | None = None

    async def __anext__(self) -> Chunk:
        """The next chunk as soon as it is there; raises what `Session.__next__` raises."""
        self._check_begun()
        chunk = await super().__anext__()
        self._words += chunk.words
        return chunk

    async def send(self, text: str, *, flush: bool = False) -> None:
        """Adds text, and returns when the server has taken it; raises what `Session.send` raises."""
        await self._wait(text, flush=flush)

    async def flush(self) -> None:
        """Has the text so far spoken to its end, without waiting for more. Raises what `send()` raises."""
        await self.send("", flush=True)

    async def hear(self, audio: NDArray[np.float32], words: Sequence[TimedWord]) -> None:
        """Gives the session what its user has said; see `Session.hear`, and raises what that raises."""
        await self._wait("", user=UserSpeech(audio, words))

    async def close(self) -> None:
        """No more text. The audio of what was sent still comes. Raises what `send()` raises, but SessionEnded."""
        with suppress(SessionEnded):  # there is nothing left to close
            await self._wait("", end=True)

    async def cancel(self, played_s: float | None = None) -> tuple[Word, ...]:
        """Stops the session, on the server too. The iteration ends without an error.

        Returns `spoken(played_s)`, or all `words` where the playback position is not given.
        """
        self._cancel()
        return self.words if played_s is None else self.spoken(played_s)

    async def _wait(self, text: str, *, flush: bool = False, end: bool = False, user: UserSpeech | None = None) -> None:
        self._check_begun()
        answer: Future[None] = self._ledger.say(text, flush=flush, end=end, user=user)
        try:
            async with asyncio.timeout(self._client.timeout_s):
                await asyncio.wrap_future(answer)
        except TimeoutError:
            if self._ledger.end(self._silence()):
                self._call.cancel()
            raise self._silence() from None

    async def _start(self) -> None:
        if self._call is None:
            self.sample_rate = await self._client._contact(self._client.session_model)
            self._started_s = time.monotonic()
            self._call = self._client._stub.ModelStreamInfer(_until_none(self._outbox))
            # Answers to what is sent must arrive also while nobody waits for audio.
            self._reader = asyncio.create_task(_receive(self._call, self._client.url, self._ledger.deliver))

    async def _arrival(self) -> Arrival:
        return await self._inbox.get()

    def _patience_s(self) -> float | None:
        return super()._patience_s() if self._ledger.closed else None

    def _shut(self) -> None:
        self._open = False
        # If the server has ended it, the call ends by itself, once the server knows that no text follows.
        if self._ledger.end(SessionEnded("the session was cancelled")) and self._call is not None:
            call = self._call
            self._ledger.parted.add_done_callback(lambda _: call.cancel())
            asyncio.get_running_loop().call_later(PARTING_S, call.cancel)

    def _check_begun(self) -> None:
        if self._call is None:
            raise RuntimeError("a session begins with `async with`")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()
        try:
            if self._reader is not None:  # the server ends the call once it has read that nothing follows
                await asyncio.wait([self._reader], timeout=self._client.connect_timeout_s)
        finally:
            self._call.cancel()


async def _receive(call: Any, url: str, deliver: Callable[[Arrival], None]) -> None:
    """Notes every response as it arrives; ends with the call."""
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            deliver((time.monotonic(), response))
        deliver((time.monotonic(), None))
    except grpc.RpcError as error:
        deliver((time.monotonic(), from_call(error, url)))
    except asyncio.CancelledError:  # the call was cancelled, or the event loop ends
        deliver((time.monotonic(), Cancelled("the call was cancelled")))
        raise


async def _until_none(
    outbox: asyncio.Queue[service_pb2.ModelInferRequest | None],
) -> AsyncIterator[service_pb2.ModelInferRequest]:
    while (request := await outbox.get()) is not None:
        yield request
