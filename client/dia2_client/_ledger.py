"""Both directions of one session, without I/O: what was sent, what is unanswered, and whose answer has come."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future

from tritonclient.grpc import service_pb2

from ._wire import FINAL_PARAMETER, build_piece, is_final
from .errors import Dia2ClientError, ServerError, SessionEnded, from_message
from .types import SessionOptions, UserSpeech

# When it came, and what: a response, the error that ended the call, or None at its end.
Arrival = tuple[float, service_pb2.ModelStreamInferResponse | Dia2ClientError | None]

# How long a cancellation waits for `Ledger.parted`.
PARTING_S = 0.5

# Wakes who waits for audio, without being any.
_NO_AUDIO = service_pb2.ModelStreamInferResponse()
_NO_AUDIO.infer_response.parameters[FINAL_PARAMETER].bool_param = True


class Ledger:
    """Numbers the requests of a session and hands every answer to whom it belongs. Any thread may use it.

    `send` takes the requests, then None: nothing follows. `receive` takes what concerns the audio: responses, then
    None at its end, or the error that ended the session. Both must return at once.
    """

    def __init__(
        self,
        model: str,
        options: SessionOptions,
        send: Callable[[service_pb2.ModelInferRequest | None], None],
        receive: Callable[[Arrival], None],
    ) -> None:
        """Begins the session. Raises InvalidArgument for options that cannot be sent."""
        self.closed = False  # no more text follows
        # Done when the server knows that no more text follows, or the call has ended. A call that is cancelled earlier
        # leaves its sequence behind: Triton keeps it, and counts it as in flight, until it has been idle for long.
        self.parted: Future[None] = Future()
        self._model = model
        self._send = send
        self._receive = receive
        self._sequence_id = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._unanswered: dict[str, Future[None]] = {}  # by the id of the request
        self._closing_id = ""
        self._over: Dia2ClientError | None = None  # what a sender is told once the session has ended
        self._sent = 0
        # Without text: the answer to this request is the audio, so a text in it could not be acknowledged.
        self._opening_id = self._next("", options).id

    def say(self, text: str, *, flush: bool = False, end: bool = False, user: UserSpeech | None = None) -> Future[None]:
        """Sends a piece. The answer is the server's: taken, the error of this piece, or that of the whole session.

        Raises what `build_piece` raises; SessionEnded, or the error that ended the session, if it is over.
        """
        answer: Future[None] = Future()
        answer.set_running_or_notify_cancel()  # who stops waiting for it must not break who answers it
        with self._lock:
            if self._over is not None:
                raise _again(self._over)
            if self.closed:
                raise SessionEnded("the session is closed and takes no more text")
            request = self._next(text, SessionOptions(), flush=flush, end=end, user=user)
            self._unanswered[request.id] = answer
            if end:
                self._receive((time.monotonic(), _NO_AUDIO))  # from now on, silence is not for lack of text
        return answer

    def deliver(self, arrival: Arrival) -> None:
        """Takes everything that the call brings, its end included."""
        _, response = arrival
        if response is None or isinstance(response, Dia2ClientError):
            self.end(response or ServerError("the server ended the call before the audio"))
            self._part()
            return
        # Triton gives errors their request's id, too. One without an id can only be about the whole.
        request_id = response.infer_response.id or self._opening_id
        if request_id != self._opening_id:
            self._acknowledge(request_id, response)
        elif response.error_message:
            self.end(from_message(response.error_message))
        else:
            self._receive(arrival)
            if is_final(response):
                # What is unanswered still gets its answer: that to `close()` may well come behind the audio.
                self._finish(SessionEnded("the audio of the session has ended"))

    def end(self, cause: Dia2ClientError) -> bool:
        """Ends the session where it has not ended yet, which is returned, and leaves no sender without an answer."""
        ended = self._finish(cause)
        with self._lock:
            unanswered = list(self._unanswered.values())
            self._unanswered.clear()
        for answer in unanswered:
            answer.set_exception(_again(self._over or cause))
        return ended

    def _finish(self, cause: Dia2ClientError) -> bool:
        """No more text and no more audio; the first cause stands."""
        with self._lock:
            if self._over is not None:
                return False
            self._over = cause
            if not self.closed:
                self._next("", SessionOptions(), end=True)
            self._receive((time.monotonic(), None if isinstance(cause, SessionEnded) else cause))
            return True

    def _acknowledge(self, request_id: str, response: service_pb2.ModelStreamInferResponse) -> None:
        failed = bool(response.error_message)
        if not failed and not is_final(response):
            return
        if request_id == self._closing_id:
            self._part()
        with self._lock:
            answer = self._unanswered.pop(request_id, None)
        if answer is None:
            return
        if failed:
            answer.set_exception(from_message(response.error_message))
        else:
            answer.set_result(None)

    def _part(self) -> None:
        if not self.parted.done():
            self.parted.set_result(None)

    def _next(
        self,
        text: str,
        options: SessionOptions,
        *,
        flush: bool = False,
        end: bool = False,
        user: UserSpeech | None = None,
    ) -> service_pb2.ModelInferRequest:
        request = build_piece(
            text, options, self._sequence_id, self._sent, flush=flush, end=end, user=user, model=self._model
        )
        self._sent += 1
        if end:
            self.closed, self._closing_id = True, request.id
        self._send(request)
        if end:
            self._send(None)
        return request


def _again(error: Dia2ClientError) -> Dia2ClientError:
    """The same error for one more reader: each raises, and so changes, its own."""
    return type(error)(*error.args)
