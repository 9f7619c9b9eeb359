"""Sessions (docs/protocol.md) on a real server: text in, piece by piece, while audio comes out."""

from __future__ import annotations

import asyncio
import json
import queue
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dia2_client import AsyncClient, Client, InvalidArgument, TimedWord
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput, InferResult

from .calls import SESSION_TYPES, TIMEOUT_S, Call, speak, tensor
from .conftest import VOICES, Server, launched

pytestmark = pytest.mark.server

MODEL = "dia2_session"
SEED = 5
LINE = "[S1] Hello there, how can I help you today? [S2] I would like a table for two, please."
LONG = "[S1] " + "This goes on and on and on. " * 40  # more than the server runs ahead of playback


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of sessions alone, with one slot and room for one more in the queue."""
    options = ("--set", "slots=1", "--set", "queue=1", "--set", "max_text_chars=2000")
    with launched(tmp_path_factory.mktemp("sessions"), "--models", MODEL, *options, voices=VOICES) as server:
        yield server


@pytest.fixture(scope="module")
def one_shot(server: Server) -> NDArray[np.float32]:
    """What `dia2_stream` makes of the line."""
    return speak(server.grpc_url, LINE, SEED=SEED).wait().audio


class Session:
    """A session on a gRPC stream of its own, so that its requests arrive in order."""

    def __init__(self, url: str, text: str = "", sequence_id: str = "", end: bool = False, **options: Any) -> None:
        self.id = sequence_id or uuid.uuid4().hex
        self.words: list[str] = []
        self._chunks: list[NDArray[np.float32]] = []
        self._finals: Counter[str] = Counter()  # by request
        self._sent = 0
        self._inbox: queue.SimpleQueue[tuple[InferResult | None, Any]] = queue.SimpleQueue()
        self._client = InferenceServerClient(url)
        self._client.start_stream(lambda result, error: self._inbox.put((result, error)))
        self.send(text, end, start=True, **{"SEED": SEED, **options})

    def send(self, text: str | bytes = "", end: bool = False, start: bool = False, **options: Any) -> str:
        """Send one request; does not wait."""
        request_id = str(self._sent)
        self._sent += 1
        self._client.async_stream_infer(
            MODEL,
            [tensor("TEXT", text), *(tensor(name, value) for name, value in options.items())],
            outputs=[InferRequestedOutput("AUDIO"), InferRequestedOutput("WORDS")],
            request_id=request_id,
            sequence_id=self.id,
            sequence_start=start,
            sequence_end=end,
            enable_empty_final_response=True,
        )
        return request_id

    def say(self, text: str | bytes = "", end: bool = False, **options: Any) -> str:
        """Send one request and wait for its answer: the error's message, or nothing."""
        return self._until_final(self.send(text, end, **options))

    def hear(self) -> None:
        """Wait for the next audio."""
        heard = len(self._chunks)
        while len(self._chunks) == heard:
            assert self._take() == ""

    def wait(self) -> str:
        """Wait for the end of the session: the error's message, or nothing. Insists that nothing comes after it."""
        message = self._until_final("0")
        self._client.stop_stream()  # returns when the server has closed its side
        self._client.close()
        while not self._inbox.empty():
            self._take()
        assert self._finals.total() + bool(message) <= self._sent
        assert max(self._finals.values(), default=0) <= 1
        return message

    def cancel(self) -> None:
        """Cancel and hang up."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()

    @property
    def audio(self) -> NDArray[np.float32]:
        """All samples so far."""
        return np.concatenate([np.zeros(0, np.float32), *self._chunks])

    @property
    def finals(self) -> list[int]:
        """How many final responses each request has had, but for errors."""
        return [self._finals[str(i)] for i in range(self._sent)]

    def _until_final(self, request_id: str) -> str:
        message = ""
        while not message and not self._finals[request_id]:
            message = self._take()
        return message

    def _take(self) -> str:
        """Take one message; the error's message if it is one, which does not say whose it is."""
        result, error = self._inbox.get(timeout=TIMEOUT_S)
        if result is None:
            return str(error.message())
        response = result.get_response()
        self._finals[response.id] += response.parameters["triton_final_response"].bool_param
        if response.outputs:
            assert response.id == "0", "audio for a further piece"
            assert not self._finals["0"], "audio after the end"
            self._chunks.append(result.as_numpy("AUDIO"))
            self.words += [json.loads(word)["text"] for word in result.as_numpy("WORDS")]
        return ""


def say_to(url: str, sequence_id: str, text: str = "Hello.") -> str:
    """A further piece on another gRPC stream: the error's message, or nothing."""
    return Call(url, [tensor("TEXT", text)], ("AUDIO",), None, MODEL, sequence_id=sequence_id).wait().message


def test_the_model_declares_the_contract(sessions: Server) -> None:
    client = InferenceServerClient(sessions.grpc_url)
    config = client.get_model_config(MODEL, as_json=True)["config"]
    client.close()
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert "oldest" in config["sequence_batching"]
    declared = {entry["name"]: (entry["data_type"], entry.get("optional", False)) for entry in config["input"]}
    types = {name: "TYPE_STRING" if kind == "BYTES" else f"TYPE_{kind}" for name, (kind, _) in SESSION_TYPES.items()}
    assert declared == {name: (kind, name != "TEXT") for name, kind in types.items()}


# ---- what is said is what is heard


def test_a_whole_text_sounds_as_in_one_shot(sessions: Server, one_shot: NDArray[np.float32]) -> None:
    session = Session(sessions.grpc_url, LINE, end=True)
    assert session.wait() == ""
    assert session.finals == [1]
    np.testing.assert_array_equal(session.audio, one_shot)


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "each when the last was taken"])
def test_word_by_word_sounds_as_in_one_shot(sessions: Server, one_shot: NDArray[np.float32], waits: bool) -> None:
    session = Session(sessions.grpc_url)
    for word in LINE.split():
        if waits:
            assert session.say(f"{word} ") == ""
        else:
            session.send(f"{word} ")
    session.send(end=True)
    assert session.wait() == ""
    assert session.finals == [1] * (len(LINE.split()) + 2)
    np.testing.assert_array_equal(session.audio, one_shot)
    assert session.words == [word for word in LINE.split() if not word.startswith("[")]


def test_a_piece_may_end_anywhere(sessions: Server, one_shot: NDArray[np.float32]) -> None:
    session = Session(sessions.grpc_url)
    for i in range(0, len(LINE), 7):  # in words and in tags
        session.send(LINE[i : i + 7], end=i + 7 >= len(LINE))
    assert session.wait() == ""
    np.testing.assert_array_equal(session.audio, one_shot)


def test_flush_speaks_what_is_there_and_more_may_follow(sessions: Server) -> None:
    session = Session(sessions.grpc_url, "[S1] Yes")  # too little to begin with, and perhaps not the whole word
    assert session.say(FLUSH=True) == ""
    session.hear()
    assert session.say(" and no", end=True, FLUSH=True) == ""
    assert session.wait() == ""
    assert session.finals == [1, 1, 1]
    assert session.words == ["Yes", "and", "no"]


def test_options_count_on_the_first_request_only(sessions: Server, one_shot: NDArray[np.float32]) -> None:
    session = Session(sessions.grpc_url, LINE)
    assert session.say(SEED=SEED + 1, VOICE="nobody", TEMPERATURE=99.0) == ""
    assert session.say(end=True) == ""
    assert session.wait() == ""
    np.testing.assert_array_equal(session.audio, one_shot)


def test_a_session_without_a_word(sessions: Server) -> None:
    session = Session(sessions.grpc_url)
    assert session.say("[S1]", end=True) == ""
    assert session.wait() == ""
    assert session.finals == [1, 1]
    assert session.audio.size == 0


# ---- what is refused


REFUSED: list[tuple[str, str | bytes, str]] = [
    ("too long", "a" * 2001, "characters; allowed: 1 to 2000"),
    ("far too long", "a" * 100_000, "INVALID_ARG: TEXT has 100000 bytes; allowed: at most 8000"),
    ("not UTF-8", b"abc\xff", "INVALID_ARG: TEXT is not UTF-8"),
]


@pytest.mark.parametrize(("piece", "message"), [pytest.param(p, m, id=n) for n, p, m in REFUSED])
@pytest.mark.parametrize("end", [False, True], ids=["in between", "as the last"])
def test_a_refused_piece_leaves_the_session_as_it_is(
    sessions: Server, one_shot: NDArray[np.float32], piece: str | bytes, message: str, end: bool
) -> None:
    session = Session(sessions.grpc_url, LINE)
    assert message in session.say(piece, end=end)
    if not end:  # as the last piece it closes the session all the same
        assert session.say(end=True) == ""
    assert session.wait() == ""
    assert session.finals == ([1, 0] if end else [1, 0, 1])
    np.testing.assert_array_equal(session.audio, one_shot)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a" * 2001, {}, "characters; allowed: 1 to 2000"),
        ("", {"VOICE": "nobody"}, "INVALID_ARG: VOICE is 'nobody'"),
        ("", {"TEMPERATURE": 99.0}, "INVALID_ARG: TEMPERATURE is 99"),
    ],
)
def test_a_session_that_is_refused_never_begins(
    sessions: Server, text: str, options: dict[str, Any], message: str
) -> None:
    session = Session(sessions.grpc_url, text, **options)
    assert message in session.wait()
    assert f"INVALID_ARG: sequence_id is '{session.id}'" in say_to(sessions.grpc_url, session.id)


def test_a_piece_of_a_session_that_never_began(sessions: Server) -> None:
    message = say_to(sessions.grpc_url, "never-begun")
    assert "never-begun" in message  # Triton's own words: it knows no such sequence
    assert "START" in message


def test_a_full_server_refuses_a_session(sessions: Server) -> None:
    open_ones = [Session(sessions.grpc_url) for _ in range(2)]
    for session in open_ones:
        assert session.say(LONG) == ""
    sessions.settle(live_streams=1, queued_streams=1)
    assert Session(sessions.grpc_url, LINE).wait().startswith("UNAVAILABLE: ")
    for session in open_ones:
        session.cancel()
    sessions.settle(live_streams=0, queued_streams=0)


def test_the_user_is_heard_between_turns(server: Server, sessions: Server) -> None:
    """It changes what comes behind it, is not heard itself, and is refused where it is no recording of its words."""
    with Client(server.grpc_url) as client:
        user = client.say("[S1] Yes, please do so.", voice="ben", seed=1)
    words = [TimedWord(word.text, word.start_s, word.start_s + 0.1) for word in user.words]

    async def talk(*, hears: bool) -> tuple[NDArray[np.float32], list[str]]:
        async with AsyncClient(sessions.grpc_url) as client, client.session(voice="anna", seed=SEED) as session:
            await session.send("Shall I do it now?", flush=True)
            if hears:
                await session.hear(user.audio, words)
                with pytest.raises(InvalidArgument, match="USER_AUDIO takes"):
                    await session.hear(np.zeros(24_000 * 60, np.float32), words)
            await session.send("Done. Anything else?", flush=True)
            await session.close()
            audio = [chunk.audio async for chunk in session]
            return np.concatenate(audio), [word.text for word in session.words]

    (alone, said), (answer, answered) = (asyncio.run(talk(hears=hears)) for hears in (False, True))
    assert said == answered == ["Shall", "I", "do", "it", "now?", "Done.", "Anything", "else?"]
    assert not np.array_equal(alone, answer)
    sessions.settle(live_streams=0, queued_streams=0)


def test_a_server_of_sessions_alone_names_its_voices(sessions: Server) -> None:
    with Client(sessions.grpc_url) as client:
        assert [voice.name for voice in client.voices()] == ["anna", "anna-and-ben", "ben", "carla", "david", "none"]
    sessions.settle(live_streams=0, queued_streams=0)


# ---- who leaves


@pytest.mark.parametrize(("text", "live"), [(LONG, 1), ("[S1] Yes", 0)], ids=["speaking", "waiting for words"])
def test_cancel_frees_the_slot_and_ends_the_session(sessions: Server, text: str, live: int) -> None:
    before = sessions.metrics()
    session = Session(sessions.grpc_url)
    assert session.say(text) == ""
    sessions.settle(live_streams=live)
    session.cancel()
    sessions.settle(live_streams=0, cancelled_total=before["cancelled_total"] + 1)
    assert f"INVALID_ARG: sequence_id is '{session.id}'" in say_to(sessions.grpc_url, session.id)


def test_an_idle_session_is_ended(server: Server, tmp_path: Path) -> None:
    with launched(tmp_path, "--models", MODEL, "--set", "session_idle_s=0.2") as impatient:
        for text in ("[S1] Yes", LINE):  # too little to begin with; enough
            session = Session(impatient.grpc_url, text)
            assert session.wait() == "CANCELLED: the session was idle for 0.2 s"
            assert f"INVALID_ARG: sequence_id is '{session.id}'" in say_to(impatient.grpc_url, session.id)
            impatient.settle(live_streams=0)


def test_a_new_session_with_a_live_id_takes_its_place(sessions: Server, one_shot: NDArray[np.float32]) -> None:
    before = sessions.metrics()
    old = Session(sessions.grpc_url, LONG)
    old.hear()
    new = Session(sessions.grpc_url, sequence_id=old.id)
    assert old.wait() == f"CANCELLED: another session has begun with the sequence_id '{old.id}'"
    sessions.settle(live_streams=0, cancelled_total=before["cancelled_total"] + 1)
    assert new.say(LINE, end=True) == ""
    assert new.wait() == ""
    np.testing.assert_array_equal(new.audio, one_shot)


def test_an_id_may_be_used_again_while_its_last_session_is_still_heard(sessions: Server) -> None:
    first = Session(sessions.grpc_url, LONG, end=True)
    first.hear()
    again = Session(sessions.grpc_url, sequence_id=first.id)
    assert again.say(LINE) == ""
    first.hear()
    for session in (first, again):
        session.cancel()
    sessions.settle(live_streams=0, queued_streams=0)
