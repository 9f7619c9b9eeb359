"""ElevenLabs' two WebSockets, message by message."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from dia2_client import pcm16
from dia2_client.types import Speech
from websockets.exceptions import ConnectionClosed

from tests.gateway.conftest import Gateway
from tests.gateway.elevenlabs_calls import LONG, RATE, SHORT, engine_speech, samples, talk
from tests.gateway.test_openai import band_levels_db, decoded
from tests.server.conftest import Server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def short(triton: Server) -> Speech:
    return engine_speech(triton.grpc_url, SHORT)


def test_stream_input_speaks_what_is_written_bit_by_bit(gateway: Gateway, short: Speech) -> None:
    with talk(gateway.ws_url, "stream-input", seed=7) as talking:
        talking.say(text=" ", voice_settings={"stability": 0.5, "speed": 1}, xi_api_key="whatever",
                    generation_config={"chunk_length_schedule": [50, 120]})  # fmt: skip
        for word in SHORT.split():
            talking.say(text=f"{word} ", try_trigger_generation=True)
        talking.say(text="")
        assert talking.until_closed() == 1000
        heard = talking.heard[None]
    assert heard.audio == pcm16(short.audio)
    assert (heard.text.split(), heard.text[-1]) == (SHORT.split(), " ")  # a chunk of silence brings a space of its own
    assert heard.final
    assert "contextId" not in heard.messages[0]


def test_formats(gateway: Gateway, short: Speech) -> None:
    """Each format at least as the engine's audio lasts, and with its spectrum."""
    for name, rate in [("mp3_44100_128", 44100), ("opus_48000_64", 48000), ("wav_22050", 22050)]:
        with talk(gateway.ws_url, output_format=name, seed=7) as talking:
            talking.say(context_id="a", text=f"{SHORT} ", flush=True)
            talking.say(context_id="a", close_context=True)
            heard, heard_rate = decoded(talking.until_final("a").audio)
        assert heard_rate == rate
        assert len(heard) / rate == pytest.approx(len(short.audio) / RATE, abs=0.06)
        assert np.abs(band_levels_db(heard, rate) - band_levels_db(short.audio, RATE)).max() < 3
    with talk(gateway.ws_url, output_format="ulaw_8000", seed=7) as talking:
        talking.say(context_id="a", text=f"{SHORT} ", flush=True)
        talking.say(context_id="a", close_context=True)
        assert len(talking.until_final("a").audio) == len(short.audio) // 3


def test_alignment_lies_over_the_audio(gateway: Gateway, short: Speech) -> None:
    """Laid end to end, message by message, the characters are where the engine's words begin."""
    with talk(gateway.ws_url, "stream-input", seed=7, sync_alignment="true") as talking:
        talking.say(text=f"{SHORT} ")
        talking.say(text="")
        messages = talking.until_final().messages
    onsets_ms, before, bytes_before = [], " ", 0
    span_ms = 0
    for message in messages[:-1]:
        relative, absolute = message["alignment"], message["normalizedAlignment"]
        start_ms = round(bytes_before / 2 / RATE * 1000)
        assert span_ms == start_ms
        assert [start_ms + ms for ms in relative["charStartTimesMs"]] == absolute["charStartTimesMs"]
        assert relative["charDurationsMs"] == absolute["charDurationsMs"]
        for character, ms in zip(absolute["chars"], absolute["charStartTimesMs"], strict=True):
            if before == " " and character != " ":
                onsets_ms.append(ms)
            before = character
        span_ms += relative["charStartTimesMs"][-1] + relative["charDurationsMs"][-1]
        bytes_before += len(message["audio"]) * 3 // 4 - message["audio"].count("=")
    assert onsets_ms == [round(word.start_s * 1000) for word in short.words]


def test_flush_speaks_the_last_words_at_once(gateway: Gateway, short: Speech) -> None:
    with talk(gateway.ws_url, "stream-input", seed=7) as talking:
        talking.say(text=f"{SHORT} ", flush=True)
        heard = talking.heard[None]
        talking.until(lambda: len(heard.audio) == 2 * len(short.audio))  # the connection stays open
        assert np.array_equal(samples(heard.audio), samples(pcm16(short.audio)))
        talking.say(text="Bye.")
        talking.say(text="")
        assert talking.until_closed() == 1000
    assert heard.text.split() == [*SHORT.split(), "Bye."]
    assert heard.final


def test_auto_mode_takes_each_message_as_a_phrase(gateway: Gateway) -> None:
    """Pipecat sends sentences without a space behind them and without a flush."""
    with talk(gateway.ws_url, auto_mode="true") as talking:
        talking.say(context_id="a", text="Wait.")
        talking.until_heard("a")  # a flush of our own: two further words would be needed otherwise
        talking.say(context_id="a", text='"Done,')
        talking.say(context_id="a", text='I say."')
        talking.until(lambda: talking.heard["a"].text.endswith('say." '))
    assert talking.heard["a"].text.split() == ["Wait.", '"Done,', "I", 'say."']


def test_contexts_do_not_mix(gateway: Gateway, triton: Server, short: Speech) -> None:
    texts = {"a": SHORT, "b": "Another one speaks.", "c": "And so on and on."}
    expected = {name: pcm16(engine_speech(triton.grpc_url, text).audio) for name, text in texts.items()}
    with talk(gateway.ws_url, seed=7) as talking:
        for name in texts:
            talking.say(context_id=name, text=" ")
        for name, text in texts.items():
            talking.say(context_id=name, text=f"{text} ", flush=True)
            talking.say(context_id=name, close_context=True)
        for name, audio in expected.items():
            heard = talking.until_final(name)
            assert heard.audio == audio
            assert heard.text.split() == texts[name].split()
            assert {message["contextId"] for message in heard.messages} == {name}
        talking.say(close_socket=True)
        assert talking.until_closed() == 1000


def test_close_without_a_flush_stops_at_once(gateway: Gateway, triton: Server) -> None:
    with talk(gateway.ws_url) as talking:
        talking.say(context_id="a", text=LONG)
        talking.until_heard("a")
        talking.say(context_id="a", close_context=True)
        heard = talking.until_final("a")
        triton.settle(live_streams=0, queued_streams=0)  # while the connection is still open
    assert len(heard.text.split()) < len(LONG.split())


def test_close_after_a_flush_speaks_to_the_end_and_a_second_stops(
    gateway: Gateway, triton: Server, short: Speech
) -> None:
    with talk(gateway.ws_url, seed=7) as talking:
        talking.say(context_id="a", text=f"{SHORT} ", flush=True)
        talking.say(context_id="a", close_context=True)
        assert talking.until_final("a").audio == pcm16(short.audio)
        talking.say(context_id="b", text=LONG, flush=True)
        talking.until_heard("b")
        talking.say(context_id="b", close_context=True)
        talking.say(context_id="b", close_context=True)
        heard = talking.until_final("b")
        triton.settle(live_streams=0, queued_streams=0)
    assert len(heard.text.split()) < len(LONG.split())


def test_id_of_a_closed_context_begins_a_new_one(gateway: Gateway, short: Speech) -> None:
    with talk(gateway.ws_url, seed=7) as talking:
        for _ in range(2):
            talking.heard.clear()
            talking.say(contextId="a", text=f"{SHORT} ", flush=True)
            talking.say(contextId="a", close_context=True)
            assert talking.until_final("a").audio == pcm16(short.audio)


def test_close_socket_waits_for_what_was_flushed(gateway: Gateway, short: Speech) -> None:
    with talk(gateway.ws_url, seed=7) as talking:
        talking.say(context_id="unflushed", text=LONG)
        talking.until_heard("unflushed")
        talking.say(context_id="flushed", text=f"{SHORT} ", flush=True)
        talking.say(close_socket=True)
        assert talking.until_closed() == 1000
    assert talking.heard["flushed"].audio == pcm16(short.audio)
    assert talking.heard["flushed"].final
    assert talking.heard["unflushed"].final


def test_empty_text_keeps_a_context_alive_and_opens_none(gateway: Gateway) -> None:
    with talk(gateway.ws_url, inactivity_timeout=1) as talking:
        talking.say(text="")
        talking.say(context_id="a", text="")
        talking.say(context_id="b", text="Hello ")
        heard = talking.until_final("b")  # nothing came for a second
        assert heard.errors() == ["input_timeout_exceeded"]
        assert heard.audio == b""
        assert set(talking.heard) == {"b"}
        talking.heard.clear()
        talking.say(context_id="b", text=f"{SHORT} ", flush=True)  # the connection goes on
        talking.until_heard("b")


def test_silent_stream_input_is_closed(gateway: Gateway) -> None:
    with talk(gateway.ws_url, "stream-input", inactivity_timeout=1) as talking:
        talking.say(text="Hello ")
        assert talking.until_closed() == 1008
        assert talking.heard[None].errors() == ["input_timeout_exceeded"]


def test_too_many_contexts(gateway: Gateway) -> None:
    with talk(gateway.ws_url) as talking:
        for name in "abcde":
            talking.say(context_id=name, text=" ")
        talking.say(context_id="f", text=" ")
        assert talking.until_final("f").errors() == ["max_active_conversations"]
        talking.say(context_id="a", close_context=True)
        talking.until_final("a")
        talking.heard.clear()
        talking.say(context_id="f", text=f"{SHORT} ", flush=True)
        talking.until_heard("f")


def test_context_without_words_ends_without_audio(gateway: Gateway) -> None:
    with talk(gateway.ws_url) as talking:
        talking.say(context_id="a", text=" ")
        talking.say(context_id="a", text="", flush=True)
        talking.say(context_id="a", close_context=True)
        heard = talking.until_final("a")
        assert (heard.audio, heard.errors()) == (b"", [])


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ({"context_id": "a", "text": 3}, "text"),
        ({"context_id": "a"}, "text"),
        ({"context_id": "a", "text": "Hi ", "flush": "yes"}, "flush"),
        ({"context_id": "a", "text": "Hi ", "voice_settings": {"speed": 1.1}}, "voice_settings.speed"),
        ({"context_id": "a", "text": "Hi ", "voice_settings": {"stability": "high"}}, "stability"),
        ({"context_id": "a", "text": "Hi ", "generation_config": {"chunk_length_schedule": [5]}}, "chunk_length"),
    ],
)
def test_wrong_field_ends_its_context_alone(gateway: Gateway, message: dict[str, Any], names: str) -> None:
    with talk(gateway.ws_url) as talking:
        talking.say(context_id="a", text=" ")
        talking.say(**message)
        heard = talking.until_final("a")
        assert heard.errors() == ["invalid_request"]
        assert names in heard.messages[-2]["message"]
        talking.say(context_id="b", text=f"{SHORT} ", flush=True)
        talking.until_heard("b")


@pytest.mark.parametrize("path", ["stream-input", "multi-stream-input"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("message", ["{", "[]", '"text"', b"\0", '{"text": [], "context_id": 1}'])
def test_what_cannot_be_read_closes_the_connection(
    gateway: Gateway, path: str, first: bool, message: str | bytes
) -> None:
    with talk(gateway.ws_url, path) as talking:
        if not first:
            talking.say(text=LONG)
            talking.until_heard()
        talking.socket.send(message)
        assert talking.until_closed() == 1008
        assert talking.heard[None].errors() == ["invalid_request"]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"output_format": "mp3_1_2"}, "invalid_request"),
        ({"language_code": "de"}, "invalid_request"),
        ({"inactivity_timeout": "999"}, "invalid_request"),
        ({"auto_mode": "perhaps"}, "invalid_request"),
        ({"seed": "-1"}, "invalid_request"),
        ({"voice": "nobody"}, "voice_not_found"),
    ],
)
@pytest.mark.parametrize("path", ["stream-input", "multi-stream-input"])
def test_wrong_query_is_told_on_the_open_connection(gateway: Gateway, path: str, query: Any, error: str) -> None:
    with talk(gateway.ws_url, path, **query) as talking:
        with suppress(ConnectionClosed):  # it may have been told already
            talking.say(text=" ")
        assert talking.until_closed() == 1008
        assert talking.heard[None].errors() == [error]
        assert next(iter({"voice", *query} - {"voice"}), "voice_id") in talking.heard[None].messages[0]["message"]


def test_oversize_message_closes_the_connection(gateway: Gateway) -> None:
    with talk(gateway.ws_url) as talking:
        talking.say(context_id="a", text=LONG)
        talking.until_heard("a")
        talking.say(context_id="a", text="word " * 100_000)
        with pytest.raises(ConnectionClosed):
            talking.until(lambda: False)
        assert talking.socket.close_code == 1009


@pytest.mark.parametrize("path", ["stream-input", "multi-stream-input"])
def test_drop_in_the_middle_frees_the_slot(gateway: Gateway, path: str) -> None:
    with talk(gateway.ws_url, path) as talking:
        talking.say(text=LONG)
        talking.until_heard()
        talking.socket.socket.close()  # no closing handshake
