"""One utterance: a session on some back end, within its caller's limits; a second chance before the first audio."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from dia2_client import (
    AsyncSession,
    Cancelled,
    Chunk,
    ConnectionFailed,
    Dia2ClientError,
    FinishReason,
    ServerError,
    SessionOptions,
    Timeout,
    Unavailable,
    Word,
)

from .backends import Backend
from .errors import ApiError, BackendFailed, BadRequest, from_client

if TYPE_CHECKING:
    from .speech import Caller, Speech

log = logging.getLogger(__name__)

Piece = tuple[str, bool, bool]  # text, flush, close


class Utterance(AsyncIterator[Chunk]):
    """Text in while audio comes out. An async context manager, and an async iterator of its chunks.

    Text may be sent from one task while another iterates. Leaving the context, on whatever path, cancels what has not
    ended and gives the place back. Until the first chunk has come, the text moves to another back end when this one is
    full, or lost.
    """

    def __init__(self, speech: Speech, caller: Caller, options: SessionOptions) -> None:
        self.id = caller.next_id()  # in logs and answers
        self.samples = 0  # of audio so far
        self.characters = 0  # of text so far
        self._speech = speech
        self._caller = caller
        self._options = options
        self._pieces: list[Piece] = []  # what another back end would have to be told
        self._tried: list[Backend] = []
        self._sending = asyncio.Lock()  # pieces go in order, and none while the text moves
        self._session: AsyncSession
        self._begun = False  # whether the back end has heard of it
        self._leaving: asyncio.Task[None] | None = None
        self._closed = False  # no more text
        self._cancelled = False
        self._ended = False
        self._failure: ApiError | None = None
        self._began_s = time.monotonic()
        self._first_audio_s: float | None = None

    async def __aenter__(self) -> Self:
        """Takes a place and opens the session. Raises TooMany, Overloaded, BackendFailed and BadRequest."""
        self._began_s = time.monotonic()
        taken = False
        try:
            self._speech.check_open()
            self._caller.allowance.take()
            taken = True
            self._tried.append(await self._speech.backends.take())
            await self._open()
        except BaseException as error:
            if self._leaving is None:  # else that does the rest
                if taken:
                    self._caller.allowance.give_back()
                self._failure = error if isinstance(error, ApiError) else None
                self._report()
            raise
        return self

    async def send(self, text: str, *, flush: bool = False, close: bool = False) -> None:
        """Adds text, and returns when the back end has taken it. `close` says at once that it was the last.

        Raises BadRequest if it is too long for the key, or comes too late; and what the iteration raises.
        """
        async with self._sending:
            if self._failure is not None:
                raise _again(self._failure)
            if self._closed or self._cancelled or self._ended:
                raise BadRequest("the utterance has ended and takes no more text", field="text")
            self._caller.allowance.check_characters(self.characters + len(text))
            piece = (text, flush, close)
            if self._first_audio_s is None:
                self._pieces.append(piece)
            session = self._session
            try:
                await _tell(session, piece)
            except Dia2ClientError as error:
                refusal = from_client(error)
                if self._cancelled:
                    raise refusal from None
                if isinstance(refusal, BadRequest) and refusal.field == "text":  # it alone was refused
                    self._pieces = self._pieces[:-1]  # where they are still kept, it is the last
                    self._closed = close
                    raise refusal from None
                await self._recover(session, error)
            self._closed = close
            self.characters += len(text)
            self._speech.metrics.characters.inc(len(text))

    async def flush(self) -> None:
        """Has the text so far spoken to its end, without waiting for more."""
        await self.send("", flush=True)

    async def close(self) -> None:
        """No more text; the audio of what was sent still comes. Does nothing where that is so already."""
        if not (self._closed or self._cancelled or self._ended):
            await self.send("", close=True)

    async def cancel(self, played_s: float | None = None) -> tuple[Word, ...]:
        """Stops at once, and the iteration ends. Returns `spoken(played_s)`, or all `words` if that is None."""
        self._cancelled = True
        return await self._session.cancel(played_s)

    @property
    def failure(self) -> ApiError | None:
        """What has ended it, if an error has: what every method raises from then on."""
        return self._failure

    @property
    def words(self) -> tuple[Word, ...]:
        """Every word of the chunks so far."""
        return self._session.words

    def spoken(self, played_s: float) -> tuple[Word, ...]:
        """Those that a listener who has heard so many seconds of the audio has begun to hear."""
        return self._session.spoken(played_s)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the audio ended, where it has and the back end tells."""
        return self._session.finish_reason

    @property
    def seconds(self) -> float:
        """Of audio so far."""
        return self.samples / self._speech.sample_rate

    async def __anext__(self) -> Chunk:
        """The next chunk as soon as it is there. Raises BadRequest for options that the back end refuses, Overloaded,
        and BackendFailed."""
        while True:
            if self._failure is not None:
                raise _again(self._failure)
            session = self._session
            try:
                chunk = await anext(session)
            except Dia2ClientError as error:
                async with self._sending:
                    await self._recover(session, error)
            except StopAsyncIteration:
                async with self._sending:  # it may have been left behind
                    if session is self._session and self._failure is None:
                        self._ended = True
                        raise
            else:
                self._note(chunk)
                return chunk

    def _note(self, chunk: Chunk) -> None:
        if self._first_audio_s is None:
            self._first_audio_s = time.monotonic() - self._began_s
            self._speech.metrics.first_audio_s.observe(self._first_audio_s)
            self._pieces = []  # the text moves no more
        self.samples += len(chunk.audio)
        self._speech.metrics.audio_s.inc(len(chunk.audio) / self._speech.sample_rate)

    async def _open(self) -> None:
        """Opens the session on the back end tried last; if it is full or gone, on one that was not tried."""
        while True:
            self._begun = False
            try:
                session = self._session = self._tried[-1].client.session(**self._options)
                await session.__aenter__()
                self._begun = True
                for piece in self._pieces:
                    await _tell(session, piece)
            except Dia2ClientError as error:
                self._move(error)
            except BaseException:
                self._leave()
                raise
            else:
                if self._cancelled:
                    await session.cancel()
                return

    async def _recover(self, session: AsyncSession, error: Dia2ClientError) -> None:
        """After an error of a session: nothing if the text has moved since, else move it. Raises what cannot be helped.

        Whoever calls this holds `_sending`.
        """
        if self._failure is not None:
            raise _again(self._failure)
        if session is self._session:
            self._move(error)
            await self._open()

    def _move(self, error: Dia2ClientError) -> None:
        """Gives up this back end and takes a place on another. Raises the error if there is none, or it is too late."""
        backend = self._tried[-1]
        if isinstance(error, ConnectionFailed):
            backend.lost()
        another = None
        if _is_movable(error) and self._first_audio_s is None and not self._cancelled:
            another = self._speech.backends.take_another(self._tried)
        if another is None:
            self._failure = from_client(error)
            self._leave()
            raise _again(self._failure) from None
        log.warning("utterance moves", extra={"utterance": self.id, "backend": backend.address, "reason": str(error)})
        self._speech.metrics.failovers.inc()
        self._speech.leave(self._session if self._begun else None, backend)
        self._tried.append(another)

    def _leave(self) -> asyncio.Task[None]:
        """Ends the session and gives the place back, once; goes on when whoever waits for it is cancelled."""
        if self._leaving is None:
            session = self._session if self._begun else None
            self._leaving = self._speech.leave(session, self._tried[-1], self._caller.allowance)
            self._report()
        return self._leaving

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(self._leave())

    def _report(self) -> None:
        """One line in the log, and in the metrics, for each utterance."""
        if self._failure is not None:
            outcome = self._failure.code
        elif self._ended and not self._cancelled:
            outcome = self.finish_reason or "stop"
        else:
            outcome = "cancelled"
        self._speech.metrics.utterances.labels(outcome).inc()
        told = {
            "utterance": self.id,
            "key": self._caller.name,
            "outcome": outcome,
            "backend": self._tried[-1].address if self._tried else None,
            "voice": self._options.get("voice"),
            "characters": self.characters,
            "audio_s": round(self.samples / self._speech.sample_rate, 2),
            "first_audio_ms": None if self._first_audio_s is None else round(1000 * self._first_audio_s),
            "duration_s": round(time.monotonic() - self._began_s, 3),
        }
        if self._failure is not None:
            told["reason"] = self._failure.message
        level = logging.ERROR if isinstance(self._failure, BackendFailed) else logging.INFO
        log.log(level, "utterance", extra=told)


async def _tell(session: AsyncSession, piece: Piece) -> None:
    """Hands a piece to the session. An end does not wait for the answer to the text before it."""
    text, flush, close = piece
    if not close:
        await session.send(text, flush=flush)
        return
    told = [session.send(text, flush=flush)] if text else []
    for answer in await asyncio.gather(*told, session.close(), return_exceptions=True):
        if isinstance(answer, BaseException):
            raise answer


def _is_movable(error: Dia2ClientError) -> bool:
    """Whether another back end may do better."""
    leaving = isinstance(error, Cancelled) and "shutting down" in str(error)
    return leaving or isinstance(error, ConnectionFailed | ServerError | Timeout | Unavailable)


def _again(error: ApiError) -> ApiError:
    """The same error for one more reader: each raises, and so changes, its own."""
    return type(error)(error.message, field=error.field, retry_after_s=error.retry_after_s)
