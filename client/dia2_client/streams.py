"""What the blocking client returns: a `Stream` speaks a text, a `Session` a text that is still being written."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
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
from .errors import SessionEnded, from_call
from .types import Chunk, SessionOptions, TimedWord, Transcript, UserSpeech, Word

if TYPE_CHECKING:
    from .client import Client


class Incoming(Arrivals, Iterator[Chunk]):
    """The audio of one gRPC stream: an iterator of chunks, and a context manager that cancels on leaving.

    Dropped unfinished, it is cancelled when it is garbage collected, at the latest when Python exits.
    """

    _client: Client

    def __init__(
        self,
        client: Client,
        sample_rate: int,
        requests: Iterator[service_pb2.ModelInferRequest],
        inbox: queue.SimpleQueue[Arrival],
        deliver: Callable[[Arrival], None],
    ) -> None:
        super().__init__(client, sample_rate)
        self._inbox = inbox
        self._call = client._stub.ModelStreamInfer(requests)
        # The thread must not hold self, or a dropped stream would never be collected (and so cancelled).
        threading.Thread(
            target=_receive, args=(self._call, client.url, deliver), name="dia2-stream", daemon=True
        ).start()
        weakref.finalize(self, self._call.cancel)

    def __next__(self) -> Chunk:
        """The next chunk as soon as it is there.

        Raises InvalidArgument, Unavailable, Cancelled or ServerError as the server says, ConnectionFailed,
        and Timeout after `timeout_s` without one. Ends quietly after `cancel()`.
        """
        while self._open:
            try:
                chunk = self._read(self._inbox.get(timeout=self._patience_s()))
            except queue.Empty:
                self._shut()
                raise self._silence() from None
            except Exception:
                self._shut()
                raise
            if chunk is not None:
                return chunk
        raise StopIteration

    def _patience_s(self) -> float | None:
        return min(self._client.timeout_s, threading.TIMEOUT_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()


class Stream(Incoming):
    """One utterance on its way: an iterator of chunks, and a context manager that cancels on leaving.

    Dropped unfinished, it is cancelled when it is garbage collected, at the latest when Python exits.
    """

    def __init__(self, client: Client, request: service_pb2.ModelInferRequest, sample_rate: int) -> None:
        inbox: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        # Nothing follows the request, so the server ends the call after its last response.
        super().__init__(client, sample_rate, iter([request]), inbox, inbox.put)

    def cancel(self) -> None:
        """Stops the stream, on the server too, from any thread. The iteration ends without an error."""
        self._cancel()


class Session(Incoming, Transcript):
    """Text in while audio comes out: an iterator of chunks, and a context manager that cancels on leaving.

    Text may be sent from one thread while another iterates. Pieces are spoken in the order in which they are sent;
    words, tags and breaks may be split over them. Until `close()` the iteration waits without a limit, since silence
    may mean that there is nothing to say. Like a `Stream` it is cancelled when it is dropped.
    """

    def __init__(self, client: Client, options: SessionOptions) -> None:
        Transcript.__init__(self)
        inbox: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        outbox: queue.SimpleQueue[service_pb2.ModelInferRequest | None] = queue.SimpleQueue()
        self._ledger = Ledger(client.session_model, options, outbox.put, inbox.put)
        sample_rate = client._contact(client.session_model)
        super().__init__(client, sample_rate, iter(outbox.get, None), inbox, self._ledger.deliver)

    def __next__(self) -> Chunk:
        """The next chunk as soon as it is there; raises what `Stream` raises, Timeout only after `close()`."""
        chunk = super().__next__()
        self._words += chunk.words
        return chunk

    def send(self, text: str, *, flush: bool = False) -> None:
        """Adds text, and returns when the server has taken it; that does not wait for audio.

        The server waits for more words before it speaks the last ones, unless `flush` is set. An InvalidArgument is
        about this text alone (too long, for instance): none of it is spoken, and the session goes on. Raises
        SessionEnded after `close()`, `cancel()` or the end of the audio; the error that has ended the session; and
        Timeout after `timeout_s` without an answer, which ends it.
        """
        self._wait(self._ledger.say(text, flush=flush))

    def flush(self) -> None:
        """Has the text so far spoken to its end, without waiting for more. Raises what `send()` raises."""
        self.send("", flush=True)

    def hear(self, audio: NDArray[np.float32], words: Sequence[TimedWord]) -> None:
        """Gives the session what its user has said: `audio` [samples], mono at `sample_rate`, and its words, in order.

        All text before is spoken to its end, as after a flush, and the text that follows answers the user. None of
        `audio` is heard. Raises what `send()` raises; its InvalidArgument is about the recording.
        """
        self._wait(self._ledger.say("", user=UserSpeech(audio, words)))

    def close(self) -> None:
        """No more text. The audio of what was sent still comes. Raises what `send()` raises, but SessionEnded."""
        with suppress(SessionEnded):  # there is nothing left to close
            self._wait(self._ledger.say("", end=True))

    def cancel(self, played_s: float | None = None) -> tuple[Word, ...]:
        """Stops the session, on the server too, from any thread. The iteration ends without an error, at once.

        Waits until the server knows that no text follows, half a second at most; leaving the context does so, too.
        Returns `spoken(played_s)`, or all `words` where the playback position is not given.
        """
        self._cancel()
        return self.words if played_s is None else self.spoken(played_s)

    def _wait(self, answer: Future[None]) -> None:
        try:
            answer.result(min(self._client.timeout_s, threading.TIMEOUT_MAX))
        except TimeoutError:
            if self._ledger.end(self._silence()):
                self._call.cancel()
            raise self._silence() from None

    def _patience_s(self) -> float | None:
        return super()._patience_s() if self._ledger.closed else None

    def _shut(self) -> None:
        self._open = False
        # If the server has ended it, the call ends by itself, once the server knows that no text follows.
        if self._ledger.end(SessionEnded("the session was cancelled")):
            with suppress(TimeoutError):
                self._ledger.parted.result(PARTING_S)
            self._call.cancel()


def _receive(call: Any, url: str, deliver: Callable[[Arrival], None]) -> None:
    """Notes every response as it arrives, however busy the caller is; ends with the call."""
    try:
        for response in call:
            deliver((time.monotonic(), response))
        deliver((time.monotonic(), None))
    except grpc.RpcError as error:
        deliver((time.monotonic(), from_call(error, url)))
