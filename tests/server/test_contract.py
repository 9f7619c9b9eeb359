"""The Triton contract (docs/protocol.md) on a real server: what goes in, what comes out, and every way to go wrong."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient

from dia2_engine import EngineConfig, Request, Worker
from tests.support import Collector, audio_of, words_of

from .calls import TYPES, Call, eventually, generate, speak, tensor
from .conftest import DEMO, ROOT, Server, launched

pytestmark = pytest.mark.server

LINE = "[S1] Hello there, how can I help you today?"
LONG = "[S1] " + "This goes on and on and on. " * 40


@pytest.fixture(scope="session")
def worker(server: Server) -> Iterator[Worker]:
    """The same engine in this process."""
    config = EngineConfig(str(DEMO), voices=str(ROOT / "voices"), device="cpu", run_ahead_s=0.0)
    worker = Worker(config)
    yield worker
    worker.close()


def alone(worker: Worker, text: str = LINE, **options: Any) -> tuple[NDArray[np.float32], list[tuple[str, float]]]:
    """The worker's own audio and words for a request."""
    collector = Collector()
    worker.submit(Request(text, **options), collector)
    events = collector.wait()
    return audio_of(events), words_of(events)


# ---- what comes out


def test_the_model_declares_the_contract(server: Server) -> None:
    client = InferenceServerClient(server.grpc_url)
    config = client.get_model_config("dia2_stream", as_json=True)["config"]
    client.close()
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert config.get("max_batch_size", 0) == 0
    declared = {entry["name"]: (entry["data_type"], entry.get("optional", False)) for entry in config["input"]}
    names = {"BYTES": "TYPE_STRING"}
    expected = {name: names.get(kind, f"TYPE_{kind}") for name, (kind, _) in TYPES.items()}
    assert declared == {name: (kind, name != "TEXT") for name, kind in expected.items()}
    assert {entry["name"]: (entry["data_type"], entry["dims"]) for entry in config["output"]} == {
        "AUDIO": ("TYPE_FP32", ["-1"]),
        "AUDIO_PCM16": ("TYPE_STRING", ["1"]),
        "WORDS": ("TYPE_STRING", ["-1"]),
        "VOICES": ("TYPE_STRING", ["-1"]),
    }


@pytest.mark.parametrize("voice", ["anna", "anna-and-ben"])
def test_grpc_audio_is_the_engines_own(server: Server, worker: Worker, voice: str) -> None:
    call = speak(server.grpc_url, LINE, ("AUDIO", "WORDS"), SEED=5, VOICE=voice).wait()
    audio, words = alone(worker, seed=5, voice=voice)
    assert call.error is None
    assert call.finals == 1
    np.testing.assert_array_equal(call.audio, audio)
    sent = [json.loads(word) for word in call.strings("WORDS")]
    assert [(word["text"], word["start"]) for word in sent] == [(text, round(start_s, 3)) for text, start_s in words]


def test_http_audio_is_the_engines_own(server: Server, worker: Worker) -> None:
    events = generate(server.http_url, json.dumps({"TEXT": LINE, "SEED": 5}).encode())
    audio, words = alone(worker, seed=5)
    sent = np.array([sample for event in events for sample in event["AUDIO"]], np.float32)
    np.testing.assert_array_equal(sent, audio)
    assert [json.loads(word)["text"] for event in events for word in event["WORDS"]] == [text for text, _ in words]
    pcm = b"".join(base64.b64decode(event["AUDIO_PCM16"], validate=True) for event in events)
    assert pcm == pcm16(audio)


def test_http_callers_choose_outputs_by_parameter(server: Server, worker: Worker) -> None:
    body = {"TEXT": LINE, "SEED": 5, "outputs": "AUDIO_PCM16"}
    events = generate(server.http_url, json.dumps(body).encode())
    assert all(event.keys() == {"AUDIO_PCM16", "model_name", "model_version"} for event in events)
    assert b"".join(base64.b64decode(event["AUDIO_PCM16"]) for event in events) == pcm16(alone(worker, seed=5)[0])


def test_grpc_callers_get_the_outputs_they_name(server: Server, worker: Worker) -> None:
    call = speak(server.grpc_url, LINE, ("AUDIO_PCM16",), SEED=5).wait()
    assert b"".join(call.strings("AUDIO_PCM16")) == pcm16(alone(worker, seed=5)[0])
    assert all(response.as_numpy("AUDIO") is None for response in call.responses)


def test_a_request_for_voices_alone_names_them_and_speaks_nothing(server: Server) -> None:
    names = ("anna", "anna-and-ben", "ben", "carla", "david", "none")
    expected = [{"name": name, "default": name == "anna"} for name in names]
    call = speak(server.grpc_url, "", ("VOICES",)).wait()
    assert [json.loads(voice) for voice in call.strings("VOICES")] == expected
    assert [response.as_numpy("AUDIO") for response in call.responses] == [None]
    (event,) = generate(server.http_url, b'{"TEXT": "", "outputs": "VOICES"}')
    assert [json.loads(voice) for voice in event["VOICES"]] == expected
    server.settle(live_streams=0, queued_streams=0)


def pcm16(audio: NDArray[np.float32]) -> bytes:
    return bytes(np.rint(np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes())


def test_eight_streams_at_once_are_each_their_own(server: Server, worker: Worker) -> None:
    voices = ("anna", "ben", "anna-and-ben", "none")
    options: list[dict[str, Any]] = [
        {"seed": i, "voice": voices[i % 4], "cfg_scale": 1.0 + i % 3, "max_seconds": 4.0} for i in range(8)
    ]
    texts = [LINE + " And so it goes." * i for i in range(8)]
    named: list[Any] = [{name.upper(): value for name, value in option.items()} for option in options]
    calls = [speak(server.grpc_url, text, **option) for text, option in zip(texts, named, strict=True)]
    for call, text, option in zip(calls, texts, options, strict=True):
        np.testing.assert_array_equal(call.wait().audio, alone(worker, text, **option)[0])


# ---- what goes wrong


@pytest.fixture(scope="class")
def running(server: Server, worker: Worker) -> Iterator[Call]:
    """A stream that runs, not faster than a listener plays it, while others get their errors; it must not notice."""
    call = speak(server.grpc_url, LONG, SEED=99)
    assert call.next()
    yield call
    call.drain()
    call.cancel()
    heard_s = call.audio.size / worker.sample_rate
    np.testing.assert_array_equal(call.audio, alone(worker, LONG, seed=99, max_seconds=heard_s)[0])


@pytest.fixture
def bystander(running: Call) -> Iterator[None]:
    """Insists that the stream runs, before the error and after it."""
    assert running.drain(), running.message
    yield
    assert running.drain(), running.message


BAD_INPUTS: list[tuple[str, list[Any], str]] = [
    # name, inputs, what the message must contain. CODE: is ours; the rest is Triton's own check, before the model.
    ("missing", [("SEED", 1)], "INVALID_ARG: TEXT is missing"),
    ("no inputs", [], "missing required input"),
    ("empty", [("TEXT", "")], "INVALID_ARG: TEXT has no words"),
    ("blank", [("TEXT", " \n\t ")], "INVALID_ARG: TEXT has no words"),
    ("only tags", [("TEXT", "[S1] [S2]")], "INVALID_ARG: TEXT has no words"),
    ("too long", [("TEXT", "a" * 2001)], "INVALID_ARG: TEXT has 2001 characters; allowed: 1 to 2000"),
    ("far too long", [("TEXT", "a" * 100_000)], "INVALID_ARG: TEXT has 100000 bytes; allowed: at most 8000"),
    ("not UTF-8", [("TEXT", b"abc\xff")], "INVALID_ARG: TEXT is not UTF-8 (invalid start byte at byte 3)"),
    ("half a character", [("TEXT", "é".encode()[:1])], "INVALID_ARG: TEXT is not UTF-8"),
    ("wrong type", [("TEXT", np.array([1], np.int32), "INT32")], "'TEXT' data-type is 'INT32'"),
    ("no element", [("TEXT", np.array([], object))], "unexpected shape for input 'TEXT'"),
    ("two elements", [("TEXT", np.array([b"a", b"b"], object))], "unexpected shape for input 'TEXT'"),
    ("a matrix", [("TEXT", np.array([[b"a"]], object))], "unexpected shape for input 'TEXT'"),
    ("unknown voice", [("TEXT", LINE), ("VOICE", "carl")], "known voices: anna, anna-and-ben, ben, carla, david"),
    ("voice is not UTF-8", [("TEXT", LINE), ("VOICE", b"\xc3")], "INVALID_ARG: VOICE is not UTF-8"),
    ("voice is a novel", [("TEXT", LINE), ("VOICE", "x" * 300)], "INVALID_ARG: VOICE has 300 bytes"),
    ("voice is a path", [("TEXT", LINE), ("VOICE", "../anna")], "INVALID_ARG: VOICE is '../anna'"),
    ("negative seed", [("TEXT", LINE), ("SEED", -1)], "INVALID_ARG: SEED is -1"),
    ("seed of a wrong type", [("TEXT", LINE), ("SEED", np.array([1], np.int32), "INT32")], "'SEED' data-type"),
    ("seed of a wrong shape", [("TEXT", LINE), ("SEED", np.array([1, 2]))], "unexpected shape for input 'SEED'"),
    ("temperature is NaN", [("TEXT", LINE), ("TEMPERATURE", np.nan)], "INVALID_ARG: TEMPERATURE is nan"),
    ("temperature too high", [("TEXT", LINE), ("TEMPERATURE", 99.0)], "INVALID_ARG: TEMPERATURE is 99"),
    ("temperature below zero", [("TEXT", LINE), ("TEMPERATURE", -0.1)], "INVALID_ARG: TEMPERATURE is -0.1"),
    ("top k below zero", [("TEXT", LINE), ("TOP_K", -1)], "INVALID_ARG: TOP_K is -1"),
    ("infinite guidance", [("TEXT", LINE), ("CFG_SCALE", np.inf)], "INVALID_ARG: CFG_SCALE is inf"),
    ("no time at all", [("TEXT", LINE), ("MAX_SECONDS", 0.0)], "INVALID_ARG: MAX_SECONDS is 0"),
    ("a day", [("TEXT", LINE), ("MAX_SECONDS", 86_400.0)], "INVALID_ARG: MAX_SECONDS is 86400"),
]


BAD_BODIES: list[tuple[str, bytes, str]] = [
    ("no JSON", b"hello", "failed to parse"),
    ("no text", b"{}", "missing required input"),
    ("text is a number", b'{"TEXT": 5}', "Unable to parse"),
    ("two texts", b'{"TEXT": ["a", "b"]}', "proper shape"),
    ("not UTF-8", b'{"TEXT": "\xff"}', "INVALID_ARG: TEXT is not UTF-8"),
    ("no words", b'{"TEXT": "[S1]"}', "INVALID_ARG: TEXT has no words"),
    ("NaN", b'{"TEXT": "a", "TEMPERATURE": NaN}', "INVALID_ARG: TEMPERATURE is nan"),
    ("unknown output", b'{"TEXT": "a", "outputs": "VIDEO"}', "INVALID_ARG: outputs is 'VIDEO'"),
]


class TestBadRequestsAreRefused:
    """While another stream runs on."""

    @pytest.mark.parametrize(("inputs", "message"), [pytest.param(i, m, id=n) for n, i, m in BAD_INPUTS])
    def test_inputs(self, server: Server, bystander: None, inputs: list[Any], message: str) -> None:
        call = Call(server.grpc_url, [tensor(*given) for given in inputs]).wait()
        assert message in call.message
        assert call.responses == []

    @pytest.mark.parametrize(("body", "message"), [pytest.param(b, m, id=n) for n, b, m in BAD_BODIES])
    def test_bodies(self, server: Server, bystander: None, body: bytes, message: str) -> None:
        with pytest.raises(HTTPError) as caught:
            generate(server.http_url, body)
        assert 400 <= caught.value.code < 600
        assert message in caught.value.read().decode()
        caught.value.close()


def test_an_error_is_a_grpc_status_for_those_who_ask_for_it(server: Server, tmp_path: Path) -> None:
    # On a server of its own: beside a live stream, 2.51 may crash on such an error (docs/protocol.md).
    with launched(tmp_path) as idle:
        for _ in range(20):  # a FINAL after such an error crashes it
            call = Call(idle.grpc_url, [tensor("TEXT", "")], headers={"triton_grpc_error": "true"})
            assert not call.next()
            assert call.error is not None
            assert call.error.status() == "StatusCode.INVALID_ARGUMENT"
            call.cancel()
        assert speak(idle.grpc_url, LINE, SEED=1, MAX_SECONDS=0.5).wait().error is None


# ---- who leaves early, and who finds no room


def test_cancel_in_mid_stream_frees_the_slot(small_server: Server) -> None:
    before = small_server.metrics()
    call = speak(small_server.grpc_url, LONG)
    assert call.next()
    small_server.settle(live_streams=1)
    call.cancel()
    small_server.settle(live_streams=0, cancelled_total=before["cancelled_total"] + 1)


def test_cancel_before_first_audio_frees_the_slot(small_server: Server) -> None:
    for _ in range(5):  # while it is on its way, starting, or taking its first steps
        before = small_server.metrics()
        call = speak(small_server.grpc_url, LONG)
        small_server.settle(live_streams=1)
        call.cancel()
        small_server.settle(live_streams=0, queued_streams=0, cancelled_total=before["cancelled_total"] + 1)
    assert speak(small_server.grpc_url, LINE, SEED=1, MAX_SECONDS=0.5).wait().error is None


def test_cancel_in_the_queue_frees_the_place(small_server: Server) -> None:
    before = small_server.metrics()
    first = speak(small_server.grpc_url, LONG)
    assert first.next()
    waiting = speak(small_server.grpc_url, LONG)
    small_server.settle(live_streams=1, queued_streams=1)
    waiting.cancel()
    small_server.settle(live_streams=1, queued_streams=0, cancelled_total=before["cancelled_total"] + 1)
    first.cancel()
    small_server.settle(live_streams=0)


def test_cancel_at_the_end_is_harmless(small_server: Server) -> None:
    for seed in range(10):
        call = speak(small_server.grpc_url, "[S1] Yes.", SEED=seed, MAX_SECONDS=0.4)
        for _ in range(seed % 5):
            if not call.next():
                break
        call.cancel()
    small_server.settle(live_streams=0, queued_streams=0)
    assert speak(small_server.grpc_url, LINE, SEED=1, MAX_SECONDS=0.5).wait().error is None


def test_a_lost_http_caller_frees_the_slot(small_server: Server) -> None:
    host, port = small_server.http_url.split(":")
    body = json.dumps({"TEXT": LONG}).encode()
    head = f"POST /v2/models/dia2_stream/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        assert connection.recv(1)
        small_server.settle(live_streams=1)
    small_server.settle(live_streams=0)


def test_a_full_server_refuses_at_once_and_recovers(small_server: Server) -> None:
    before = small_server.metrics()
    calls = [speak(small_server.grpc_url, LONG) for _ in range(2)]
    small_server.settle(live_streams=1, queued_streams=1)
    refused = speak(small_server.grpc_url, LINE).wait()
    assert refused.message.startswith("UNAVAILABLE: ")
    with pytest.raises(HTTPError) as caught:
        generate(small_server.http_url, json.dumps({"TEXT": LINE}).encode())
    assert "UNAVAILABLE: " in caught.value.read().decode()  # Triton gives every first-event error the status 400
    caught.value.close()
    assert small_server.metrics()["rejected_total"] == before["rejected_total"] + 2
    for call in calls:
        call.cancel()
    small_server.settle(live_streams=0, queued_streams=0)
    assert speak(small_server.grpc_url, LINE, MAX_SECONDS=0.5).wait().error is None


def test_metrics_tell_what_happened(server: Server) -> None:
    before = server.metrics()
    call = speak(server.grpc_url, LINE, SEED=1).wait()
    eventually(lambda: server.metrics()["finished_total"] == before["finished_total"] + 1)
    after = server.metrics()
    assert after["first_audio_seconds_count"] == before["first_audio_seconds_count"] + 1
    assert after["frames_total"] - before["frames_total"] >= call.audio.size / 1920
    assert after["illegal_ids_total"] == 0
