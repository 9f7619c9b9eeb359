"""Threads around the engine: callers submit and are answered through an ordered outbox.

The *engine* thread owns the device, the slots and the queue's end. The *delivery* threads call the sinks, each stream's
always from the same one and so in order: a slow receiver never holds up a frame, and to hand a chunk over may mean to
wait for another process, which many streams must not do one after another. The *watch* thread polls `is_cancelled` of
every live or queued stream, off the engine thread.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from .config import EngineConfig
from .engine import Engine
from .errors import Cancelled, Dia2Error, InternalError, InvalidArgument, Unavailable
from .stream import Stream, Text
from .telemetry import Telemetry
from .types import Event, Failed, Finished, Request, UserSpeech
from .voice.voice import NO_VOICE

log = logging.getLogger(__name__)

Sink = Callable[[Event], None]
IsCancelled = Callable[[], bool]
_Outbox = queue.SimpleQueue[tuple[Sink, Event] | None]
_T = TypeVar("_T")
DELIVERY_THREADS = 8
_POLL_S = 0.02
_POLLED_AT_ONCE = 64  # more streams than this are polled less often: at 256 once a frame
# While a stream waits that has sent nothing yet, others take a step only if one of them has less than this in hand, ...
_LEAST_LEAD_S = 0.16
_SAFE_LEAD_S = 0.5  # ... and then all that have less than this, since a step of many costs little more than one of few


@dataclass(frozen=True)
class _Caller:
    """Who waits for a stream, and the way there."""

    sink: Sink
    poll: IsCancelled | None
    outbox: _Outbox


class Worker:
    """Serves requests from any thread. Construction loads everything and raises ConfigError if it cannot serve."""

    def __init__(self, config: EngineConfig, telemetry: Telemetry | None = None) -> None:
        self.telemetry = telemetry or Telemetry()
        self.engine = Engine(config, self.telemetry)
        self.sample_rate = self.engine.sample_rate
        self.frame_samples = self.engine.frame_samples
        self.voices = (*self.engine.voices, NO_VOICE)
        self.default_voice = self.engine.default_voice
        self._capacity = config.slots + config.queue
        self._run_ahead_s = config.run_ahead_s
        self._session_idle_s = config.session_idle_s
        self._stop_file = config.stop_file
        self._wake = threading.Condition()
        self._queued: deque[Stream] = deque()
        self._open: dict[Stream, _Caller] = {}
        self._closing = False
        self._outboxes: list[_Outbox] = [queue.SimpleQueue() for _ in range(DELIVERY_THREADS)]
        self._next_outbox = itertools.cycle(self._outboxes)
        targets = {"engine": self._run, "watch": self._watch}
        targets |= {f"delivery-{i}": partial(self._deliver, outbox) for i, outbox in enumerate(self._outboxes)}
        self._threads = [
            threading.Thread(target=target, name=f"dia2-{name}", daemon=True) for name, target in targets.items()
        ]
        self._report()
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, sink: Sink, is_cancelled: IsCancelled | None = None) -> Stream:
        """Validate, queue and return at once.

        `sink` then gets the stream's events in order, from a delivery thread, ending with exactly one `Finished`
        or `Failed`. `is_cancelled` is polled from the watch thread until then. Raises InvalidArgument or
        Unavailable, in which case the sink is never called.
        """
        return self._admit(self._checked(lambda: self.engine.parse(request)), sink, is_cancelled)

    def prepare_sessions(self) -> None:
        """Load what only sessions need, before the first one. Raises ConfigError, also where there can be none."""
        self.engine.prepare_sessions()

    def open(
        self, request: Request, sink: Sink, is_cancelled: IsCancelled | None = None, *, user: UserSpeech | None = None
    ) -> Stream:
        """Like `submit`, for a session: it begins with the request's text, which may be empty, and `say` adds more.

        It takes a slot when there are words enough to begin with, and keeps it, whether it speaks or waits for text.
        """
        stream = self._checked(lambda: self.engine.open(request))
        pieces = self._checked(lambda: self.engine.read(stream, request.text, user=user))
        stream.inbox.extend(pieces)
        self._admit(stream, sink, is_cancelled)
        self._watch_encoding(pieces)
        return stream

    def say(
        self, stream: Stream, text: str, *, flush: bool = False, close: bool = False, user: UserSpeech | None = None
    ) -> None:
        """More text for a session, which may end anywhere, in a word or a tag; from one thread at a time.

        flush: speak what is there to its end without waiting for the words behind it. close: no more text will come;
        the session ends when all is spoken. user: what the other side has said before this text, and behind what came
        before, which is spoken to its end. Raises InvalidArgument, and then the piece changes nothing, or Cancelled if
        the session has ended.
        """
        pieces = self._checked(lambda: self.engine.read(stream, text, flush=flush, close=close, user=user))
        with self._wake:
            if stream not in self._open or stream.closed:
                raise Cancelled("the session was closed" if stream.closed else "the session has ended")
            stream.text_s, stream.closed = time.monotonic(), close
            stream.inbox.extend(pieces)
            self._wake.notify_all()
        self._watch_encoding(pieces)

    def _watch_encoding(self, pieces: Iterable[Text]) -> None:
        """Have the engine's thread look again when what a user said is encoded."""

        def wake(_: object) -> None:
            with self._wake:
                self._wake.notify_all()

        for piece in pieces:
            if piece.heard is not None:
                piece.heard.add_done_callback(wake)

    def _checked(self, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except InvalidArgument:
            self.telemetry.count("invalid")
            raise

    def _admit(self, stream: Stream, sink: Sink, is_cancelled: IsCancelled | None) -> Stream:
        with self._wake:
            if self._closing or len(self._open) >= self._capacity:
                self.telemetry.count("rejected")
                full = f"all slots are busy and the queue is full ({len(self._open)} streams); try again"
                raise Unavailable("the server is shutting down" if self._closing else full)
            self._open[stream] = _Caller(sink, is_cancelled, next(self._next_outbox))
            if stream.reader is None:
                self._queued.append(stream)
            self._wake.notify_all()
        self._report()
        return stream

    def close(self, deadline_s: float = 10.0) -> None:
        """Cancel every stream, deliver their last events and join the threads within the deadline."""
        end = time.monotonic() + deadline_s
        self._end_streams()
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                log.warning("thread %s did not end within %.1f s", thread.name, deadline_s)
        self.engine.close()

    def _end_streams(self) -> None:
        """Take no more streams, and cancel those that are open."""
        with self._wake:
            self._closing = True
            for stream in self._open:
                stream.cancel()
            self._wake.notify_all()

    # ---- engine thread

    def _run(self) -> None:
        while True:
            with self._wake:
                self._take_text()
                self._reap()
                if self._closing and not self._open:
                    break
                enters = self._queued and self.engine.has_room_for(self._queued[0])
                entering = self._queued.popleft() if enters else None
                due, wait_s = self._due(entering)
                if not due and entering is None and not self.engine.unfinished:
                    self._wake.wait(wait_s)
                    continue
            try:
                # One new stream between frames, so that a burst of arrivals does not stall those that play.
                if entering is not None:
                    self._start(entering)
                    due.append(entering)
                self.engine.step([stream for stream in due if stream.slot >= 0], self._emit)
            except Exception as error:
                log.exception("a step failed; its streams end")
                for stream in [s for s in {*due, *self.engine.unfinished} if not s.ended]:
                    self.engine.fail(stream, InternalError(f"{type(error).__name__}: {error}"), self._emit)
        for outbox in self._outboxes:
            outbox.put(None)

    def _take_text(self) -> None:
        """Hand sessions what was said to them. One that may begin waits for a slot from then on."""
        for stream in [s for s in self._open if s.inbox]:
            try:
                stream.take_text()
            except Exception as error:
                log.exception("what a user said could not be encoded")
                self.engine.fail(stream, InternalError(f"{type(error).__name__}: {error}"), self._emit)
                continue
            if stream.slot >= 0 or stream in self._queued:
                continue
            if stream.boundary.may_start:
                self._queued.append(stream)
                self._report()
            elif stream.closed and not stream.inbox:
                self._emit(stream, Finished("stop", 0))  # without a word

    def _start(self, stream: Stream) -> None:
        try:
            self.engine.start(stream)
        except Exception as error:
            log.exception("a stream failed to start")
            failure = error if isinstance(error, Dia2Error) else InternalError(f"{type(error).__name__}: {error}")
            self.engine.fail(stream, failure, self._emit)
        self._report()

    def _reap(self) -> None:
        for stream in [s for s in self._open if s.cancelled]:
            if stream in self._queued:
                self._queued.remove(stream)
            reason = "the server is shutting down" if self._closing else stream.cancelled
            self.engine.fail(stream, Cancelled(reason), self._emit)

    def _due(self, entering: Stream | None) -> tuple[list[Stream], float | None]:
        """Live streams that should advance now, and how long until the next one may.

        A stream that nobody hears yet goes first: steps without the depformer are short. The others leave it the device
        while all of them are ahead of their listeners. Sessions that lack text take no step.
        """
        now_s, bound_s = time.monotonic(), self._run_ahead_s or math.inf
        live, unfinished = self.engine.live, self.engine.unfinished
        over = [stream for stream in live if stream.boundary.end is not None and stream not in unfinished]
        going = [stream for stream in live if stream.boundary.end is None and not stream.boundary.waits]
        leads_s = {stream: stream.dry_s - now_s for stream in going}
        made_s = {s: lead_s + len(s.audio) * self.engine.frame_s for s, lead_s in leads_s.items()}  # sent or not
        due = [stream for stream in leads_s if made_s[stream] <= bound_s]
        new = [stream for stream in due if stream.dry_s == -math.inf]
        if new or entering is not None:
            others = [stream for stream in due if stream.dry_s != -math.inf]
            urgent = any(leads_s[stream] < _LEAST_LEAD_S for stream in others)
            due = new + [stream for stream in others if urgent and leads_s[stream] < _SAFE_LEAD_S]
        return over + due, min((ahead_s - bound_s for ahead_s in made_s.values() if ahead_s > bound_s), default=None)

    def _emit(self, stream: Stream, event: Event) -> None:
        """Put an event into the outbox; after a terminal one the stream is gone and says nothing more."""
        if stream.ended:
            return
        with self._wake:
            caller = self._open[stream]
            if isinstance(event, Finished | Failed):
                stream.ended = True
                del self._open[stream]
        caller.outbox.put((caller.sink, event))
        if isinstance(event, Finished):
            self.telemetry.count("finished")
        elif isinstance(event, Failed):
            self.telemetry.count("cancelled" if isinstance(event.error, Cancelled) else "failed")
        if stream.ended:
            self.engine.release(stream)
            self._report()

    def _report(self) -> None:
        with self._wake:  # so that no thread sets an older count after a newer one
            self.telemetry.gauge("live", len(self.engine.live))
            self.telemetry.gauge("queued", len(self._queued))

    # ---- the other threads

    @staticmethod
    def _deliver(outbox: _Outbox) -> None:
        while (item := outbox.get()) is not None:
            sink, event = item
            try:
                sink(event)
            except Exception:
                log.exception("a sink raised; the event is lost")

    def _watch(self) -> None:
        while True:
            with self._wake:
                if self._closing:
                    return
                polled = [(stream, caller.poll) for stream, caller in self._open.items() if caller.poll is not None]
            if self._stop_file and os.path.exists(self._stop_file):
                self._end_streams()
                return
            self._cancel_idle()
            for stream, poll in polled:
                if not stream.cancelled and self._is_gone(poll):
                    stream.cancel()
            with self._wake:
                if any(stream.cancelled for stream in self._open):  # whoever has cancelled it
                    self._wake.notify_all()
                self._wake.wait_for(lambda: self._closing, _POLL_S * max(1.0, len(polled) / _POLLED_AT_ONCE))

    def _cancel_idle(self) -> None:
        """End sessions whose text has stayed away for too long."""
        limit_s, now_s = self._session_idle_s, time.monotonic()
        with self._wake:
            late = [s for s in self._open if s.reader is not None and not s.closed and now_s - s.text_s > limit_s]
            idle = [s for s in late if s.boundary.waits or (s.slot < 0 and s not in self._queued)]
        for stream in idle:
            stream.cancel(f"the session was idle for {limit_s:g} s")

    @staticmethod
    def _is_gone(poll: IsCancelled) -> bool:
        try:
            return poll()
        except Exception:
            log.exception("is_cancelled raised; the stream goes on")
            return False
