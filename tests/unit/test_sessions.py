"""Sessions on the golden checkpoints: text in while audio comes out, through the engine and through its threads."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dia2_engine import AudioChunk, Cancelled, Engine, Event, Failed, Finished, InvalidArgument, Request, Worker
from dia2_engine.errors import ConfigError
from dia2_engine.grid import Ids
from dia2_engine.prefix import build_prefix
from dia2_engine.stream import Voice
from dia2_engine.types import UserSpeech
from tests.support import (
    LINE,
    Collector,
    Talk,
    audio_of,
    make_config,
    make_engine,
    speak,
    user_speech,
    words_of,
    write_voices,
)

WAIT_S = 60.0
CONTEXT = 180
TEXT = 'Hello there, how are you? [S2] I am <break time="0.4s"/> fine, thanks. [S1] Good to hear that, really.'


@pytest.fixture(scope="module", params=["small", "lowrank", "textdep"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    voices = write_voices(tmp_path_factory.mktemp("voices"), request.param)
    return make_engine(request.param, slots=4, voices=str(voices))


def shorten(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have streams leave their context early, so that they do so often."""
    monkeypatch.setattr(engine._admission, "model", replace(engine._admission.model, max_context_steps=CONTEXT))


@pytest.mark.parametrize("voice", ["duo", "none"])
def test_word_by_word_equals_the_whole(engine: Engine, voice: str) -> None:
    """The same samples, up to a batch's rounding, beside another stream, however the text is cut, whenever it comes."""
    _, whole = speak(engine, Request(TEXT, voice=voice, seed=1))
    rng, other = random.Random(1), engine.parse(Request(LINE, seed=9))
    talk = Talk(engine, [other], voice=voice)
    places = sorted(rng.sample(range(len(TEXT)), 12))
    for start, end in zip([0, *places], [*places, len(TEXT)], strict=True):
        talk.say(TEXT[start:end])
        talk.run(rng.choice([0, 4, 10_000]))
    talk.say("", close=True)
    talk.run()
    assert talk.events[-1] == whole[-1]
    np.testing.assert_allclose(audio_of(talk.events), audio_of(whole), atol=1e-4)
    assert words_of(talk.events) == words_of(whole)
    engine.release(other)


def test_a_flush_equals_the_request_so_far_and_the_session_goes_on(engine: Engine) -> None:
    _, whole = speak(engine, Request("Hello there, how are you?", voice="duo", seed=1))
    talk = Talk(engine)
    talk.say("Hello there, how are ")
    talk.run()
    talk.say("you?", flush=True)
    talk.run()
    np.testing.assert_allclose(audio_of(talk.events), audio_of(whole), atol=1e-4)
    assert not talk.ended
    talk.say("I am fine.", flush=True)
    talk.run()
    talk.say("", close=True)
    talk.run()
    assert [text for text, _ in words_of(talk.events)] == ["Hello", "there,", "how", "are", "you?", "I", "am", "fine."]
    said = audio_of(talk.events)
    np.testing.assert_array_equal(said[: len(audio_of(whole))], audio_of(talk.events)[: len(audio_of(whole))])
    assert talk.events[-1] == Finished("stop", len(said) // engine.frame_samples)
    starts = [start for _, start in words_of(talk.events)]
    pause_s = starts[5] - starts[4]
    assert pause_s < 0.08 * (len("you?") + 2 * 6 + 2), "the next word follows the pause that ends a text, and no other"


@pytest.mark.parametrize("engine", ["textdep"], indirect=True)
def test_reading_a_step_late_changes_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: text comes, and a context ends, while the last step is still to be read."""
    heard = []
    for late in (False, True):
        monkeypatch.setattr(engine, "_overlaps", late)
        monkeypatch.setattr(engine.guard, "debug", False)
        shorten(engine, monkeypatch)
        talk = Talk(engine, voice="solo")
        for index in range(4):
            talk.say("Hello there, how are you? I am fine, thanks. ", flush=index % 2 == 1)
            talk.run()
        talk.say("", close=True)
        talk.run()
        frames = engine.voices["solo"].prefix.frames + len(audio_of(talk.events)) // engine.frame_samples
        assert talk.stream.boundary.step < CONTEXT < frames
        heard.append(talk.events)
    assert words_of(heard[0]) == words_of(heard[1])
    assert len(words_of(heard[0])) == 36
    np.testing.assert_array_equal(audio_of(heard[0]), audio_of(heard[1]))


def test_the_codec_hears_every_frame_once_across_contexts_and_flushes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waveform is that of one decoding of all frames that were made: no gap, no click, no repetition."""
    voices = write_voices(tmp_path / "voices", "small")
    engine = make_engine("small", slots=2, voices=str(voices))
    shorten(engine, monkeypatch)
    frames: list[Ids] = []
    decode = engine.runner.decode

    def listen(slots: list[int], codes: Ids) -> NDArray[np.float32]:
        frames.extend(codes[0].T)
        return decode(slots, codes)

    engine.runner.decode = listen  # type: ignore[method-assign]
    talk = Talk(engine, voice="solo")
    said: list[str] = []
    while len(frames) < 1.5 * CONTEXT:
        words = [f"word{len(said) + index}" for index in range(20)]
        said += words
        talk.say(" ".join(words) + ". ", flush=len(said) % 60 == 0)
        talk.run()
    talk.say("", close=True)
    talk.run()
    assert [text.strip(".") for text, _ in words_of(talk.events)] == said
    starts = [start for _, start in words_of(talk.events)]
    assert starts == sorted(set(starts))
    codes = np.concatenate([engine.voices["solo"].prefix.tokens, np.stack(frames, axis=1)], axis=1)
    engine.runner.restore(1, None)
    whole = decode([1], codes[None])[0][engine.voices["solo"].prefix.frames * engine.frame_samples :]
    np.testing.assert_allclose(audio_of(talk.events), whole, atol=1e-3)
    assert len(talk.stream.boundary._begun) < CONTEXT, "what a session remembers does not grow with its length"


def test_a_user_is_heard_like_the_second_speaker_of_a_voice(engine: Engine, tmp_path: Path) -> None:
    """A session behind one clip, whose user then speaks the other, is the request behind both: the same samples."""
    variant = Path(engine.config.checkpoint).parent.name
    user = user_speech(variant)
    talk = Talk(engine, voice="solo")
    talk.say(LINE, close=True, user=user)
    talk.run()
    solo, heard = engine.voices["solo"].prefix, engine.workshop.hear(user, 1000)()
    tokens = np.concatenate([solo.tokens, heard.tokens], axis=1)
    plan = engine.workshop.lay_out(engine.workshop.load(Path(engine.config.voices) / "solo")).plan
    machine = engine.workshop.machine.copy()
    machine.entries.extend([*plan.entries, *heard.entries])
    steps = [*plan.new_word_steps, *(solo.frames + step for step in heard.steps)]
    model = engine.model_config
    prefix = build_prefix(machine, tokens, steps, model.delays, model.audio_bos)
    engine.runner.open(0, prefix.frames)
    engine.runner.restore(0, None)
    engine.runner.extend(0, prefix.columns, 0)
    engine.runner.decode([0], tokens[None])
    both = Voice("both", prefix, engine.runner.snapshot(0, prefix.cut, codec=True))
    engine.runner.close(0)
    engine.voices["both"] = both
    try:
        _, events = speak(engine, Request(LINE, voice="both", seed=1))
    finally:
        del engine.voices["both"]
    assert talk.events[-1] == events[-1]
    assert words_of(talk.events) == words_of(events)
    np.testing.assert_allclose(audio_of(talk.events), audio_of(events), atol=1e-4)


def test_a_user_is_heard_between_turns_and_before_the_first(engine: Engine) -> None:
    """Their words are not the session's, and what comes behind them begins at once, without a gap in the samples."""
    user = user_speech(Path(engine.config.checkpoint).parent.name)
    talk = Talk(engine, voice="solo")
    for _ in range(3):
        talk.say("Hello there, how are you? ", user=user)
        talk.run()
    talk.say("", close=True)
    talk.run()
    assert [text for text, _ in words_of(talk.events)] == ["Hello", "there,", "how", "are", "you?"] * 3
    assert talk.events[-1] == Finished("stop", len(audio_of(talk.events)) // engine.frame_samples)
    starts = [start for _, start in words_of(talk.events)]
    assert starts == sorted(starts)
    assert starts[0] == 0.0


USER_WORDS = [{"text": "Yes.", "start": 0.1, "end": 0.4}]


@pytest.mark.parametrize(
    ("audio", "words", "message"),
    [
        ([], USER_WORDS, "USER_AUDIO must be samples"),
        ([float("nan")] * 9000, USER_WORDS, "USER_AUDIO must be samples"),
        ([0.0] * 9000, [], "USER_WORDS: the list needs 'words'"),
        ([0.0] * 9000, [{"text": "Yes."}], r"USER_WORDS: the list: words\[0\] is"),
        ([0.0] * 9000, ["Yes."], r"USER_WORDS: the list: words\[0\] is 'Yes.'"),
        ([0.0] * 2000, USER_WORDS, "USER_WORDS has 'Yes.' at 0.1 s, and USER_AUDIO lasts 0.0833333 s"),
        ([0.0] * 24_000 * 60, USER_WORDS, r"USER_AUDIO takes 60.5 s with the pause behind it; allowed: \d+.\d s"),
    ],
)
def test_what_is_no_recording_of_its_words_is_refused(
    worker: Worker, audio: list[float], words: list[Any], message: str
) -> None:
    sink = Heard()
    session = worker.open(Request("Hello ", seed=3), sink)
    with pytest.raises(InvalidArgument, match=message):
        worker.say(session, "not this, ", user=UserSpeech(np.array(audio, np.float32), words))
    worker.say(session, "there, friend.", close=True)
    sink.wait()
    assert [text for text, _ in words_of(sink.events)] == ["Hello", "there,", "friend."]


def test_a_user_may_speak_first_and_more_than_once(worker: Worker) -> None:
    sink, user = Heard(), user_speech()
    session = worker.open(Request("Hello there, friend.", seed=3), sink, user=user)
    worker.say(session, "Bye now.", user=user)
    worker.say(session, "", close=True, user=user)
    assert isinstance(sink.wait()[-1], Finished)
    assert [text for text, _ in words_of(sink.events)] == ["Hello", "there,", "friend.", "Bye", "now."]


def test_more_that_users_say_waits_only_so_long(worker: Worker) -> None:
    session, user = worker.open(Request("Hello there, friend. " * 20, seed=3), Heard()), user_speech()
    for _ in range(4):
        worker.say(session, "", user=user)
    with pytest.raises(InvalidArgument, match="USER_AUDIO came while 4 others wait for their turn; allowed: at most 4"):
        worker.say(session, "", user=user)
    session.cancel()


def test_a_server_that_cannot_have_sessions_says_so_at_once() -> None:
    engine = make_engine(carry_over_s=0.0)
    with pytest.raises(ConfigError, match="carry_over_s is 0; sessions need"):
        engine.prepare_sessions()


# ---- through the threads


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(make_config(slots=2, queue=2))
    yield worker
    worker.close(WAIT_S)


class Heard(Collector):
    """A sink that lets a test wait for audio."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        with self._changed:
            self._changed.notify_all()

    def wait_for_words(self, count: int) -> None:
        with self._changed:
            heard = self._changed.wait_for(lambda: len(words_of(self.events)) >= count, WAIT_S)
        assert heard, words_of(self.events)


def test_a_session_equals_the_request(worker: Worker) -> None:
    sink, whole = Heard(), Collector()
    session = worker.open(Request("", seed=3), sink)
    for word in LINE.split():
        worker.say(session, word + " ")
    worker.say(session, "", close=True)
    worker.submit(Request(LINE, seed=3), whole)
    assert sink.wait()[-1] == whole.wait()[-1]
    np.testing.assert_array_equal(audio_of(sink.events), audio_of(whole.events))
    with pytest.raises(Cancelled, match="the session"):
        worker.say(session, "more")


def test_flushed_words_are_heard_while_the_session_stays_open(worker: Worker) -> None:
    sink = Heard()
    session = worker.open(Request("Hello there, ", seed=3), sink)
    worker.say(session, "friend.", flush=True)
    sink.wait_for_words(3)
    worker.say(session, "Bye now.", flush=True)
    sink.wait_for_words(5)
    worker.say(session, "", close=True)
    assert isinstance(sink.wait()[-1], Finished)
    assert [text for text, _ in words_of(sink.events)] == ["Hello", "there,", "friend.", "Bye", "now."]


def test_a_piece_that_is_refused_changes_nothing(worker: Worker) -> None:
    sink = Heard()
    session = worker.open(Request("Hello ", seed=3), sink)
    with pytest.raises(InvalidArgument, match="TEXT has 20000 characters"):
        worker.say(session, "x" * 20_000)
    worker.say(session, "there, friend.", close=True)
    sink.wait()
    assert [text for text, _ in words_of(sink.events)] == ["Hello", "there,", "friend."]


@pytest.mark.parametrize("text", ["", "Hello ", "Hello there, how are you today my friend "])
def test_an_idle_session_ends_and_leaves_its_slot(text: str) -> None:
    worker = Worker(make_config(slots=1, queue=2, session_idle_s=0.05))
    try:
        sink = Collector()
        worker.open(Request(text, seed=1), sink)
        end = sink.wait()[-1]
        assert isinstance(end, Failed)
        assert isinstance(end.error, Cancelled)
        assert str(end.error) == "the session was idle for 0.05 s"
        again = Collector()
        worker.submit(Request(LINE, seed=1), again)
        assert isinstance(again.wait()[-1], Finished)
    finally:
        worker.close(WAIT_S)


def test_a_session_closed_without_a_word_ends_at_once(worker: Worker) -> None:
    sink = Collector()
    session = worker.open(Request("", seed=1), sink)
    worker.say(session, " [S1] ", close=True)
    assert sink.wait() == [Finished("stop", 0)]


def test_cancelling_a_session_that_waits(worker: Worker) -> None:
    """It holds a slot while it waits, and others go on beside it."""
    sink, other = Heard(), Collector()
    session = worker.open(Request("Hello there, friend. ", seed=1), sink)
    worker.say(session, "", flush=True)
    sink.wait_for_words(3)
    worker.submit(Request(LINE, seed=1), other)
    assert isinstance(other.wait()[-1], Finished)
    session.cancel()
    end = sink.wait()[-1]
    assert isinstance(end, Failed)
    assert isinstance(end.error, Cancelled)
    assert any(isinstance(event, AudioChunk) for event in sink.events)


def test_sessions_side_by_side_do_not_mix(worker: Worker) -> None:
    sinks = [Heard() for _ in range(2)]
    texts = ["Hello there, how are you today?", "I am fine, thanks for asking me."]
    alone = [speak(make_engine(slots=1), Request(text, seed=5))[1] for text in texts]
    sessions = [worker.open(Request("", seed=5), sink) for sink in sinks]
    for words in zip(*(text.split() for text in texts), strict=False):
        for session, word in zip(sessions, words, strict=True):
            worker.say(session, word + " ")
    for session, text in zip(sessions, texts, strict=True):
        worker.say(session, " ".join(text.split()[min(len(t.split()) for t in texts) :]), close=True)
    for sink, events in zip(sinks, alone, strict=True):
        assert sink.wait()[-1] == events[-1]
        np.testing.assert_array_equal(audio_of(sink.events), audio_of(events))
