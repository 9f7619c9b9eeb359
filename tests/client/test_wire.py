"""Requests and responses as messages: what would be on the wire."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import pytest
from dia2_client import InvalidArgument, Options, ServerError, SessionOptions, TimedWord, UserSpeech, Word
from dia2_client._wire import build_piece, build_request, read_reply, read_sample_rate
from tritonclient.grpc import _utils as grpc_utils
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from .peer import response


def sent(text: str, **options: Any) -> dict[str, tuple[str, list[int], bytes]]:
    """Input name -> (type, shape, bytes on the wire)."""
    request = build_request(text, cast(Options, options))
    return {
        tensor.name: (tensor.datatype, list(tensor.shape), data)
        for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def requested(**options: Any) -> list[str]:
    return [output.name for output in build_request("x", cast(Options, options)).outputs]


def test_only_the_text_is_sent_when_nothing_else_is_asked_for() -> None:
    assert sent("Zoë 🙂") == {"TEXT": ("BYTES", [1], b"\x09\x00\x00\x00" + "Zoë 🙂".encode())}
    assert sent("x", voice=None, seed=None, temperature=None) == sent("x")


def test_every_option_is_one_element_of_the_contracts_type() -> None:
    tensors = sent("x", voice="é", seed=-1, temperature=0.5, top_k=np.int64(3), cfg_scale=2, max_seconds=1.5)
    del tensors["TEXT"]
    assert tensors == {
        "VOICE": ("BYTES", [1], b"\x02\x00\x00\x00" + "é".encode()),
        "SEED": ("INT64", [1], np.int64(-1).tobytes()),
        "TEMPERATURE": ("FP32", [1], np.float32(0.5).tobytes()),
        "TOP_K": ("INT32", [1], np.int32(3).tobytes()),
        "CFG_SCALE": ("FP32", [1], np.float32(2).tobytes()),
        "MAX_SECONDS": ("FP32", [1], np.float32(1.5).tobytes()),
    }


def test_words_are_requested_unless_declined() -> None:
    assert requested() == ["AUDIO", "WORDS"]
    assert requested(words=False) == ["AUDIO"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"top_k": 2**31}, "top_k"),
        ({"temperature": "hot"}, "temperature"),
        ({"cfg_scale": 1e39}, "cfg_scale"),
        ({"voice": b"bytes"}, "voice"),
        ({"voice": "\ud800"}, "voice"),
    ],
)
def test_what_the_wire_cannot_carry_is_an_invalid_argument_that_names_it(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{named}: "):
        build_request("x", cast(Options, options))


@pytest.mark.parametrize("text", ["\ud800", b"bytes", None])
def test_text_must_be_encodable_text(text: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^text: "):
        build_request(text, Options())


def test_a_misspelt_option_is_the_callers_mistake() -> None:
    with pytest.raises(TypeError, match="sead"):
        build_request("x", {"sead": 1})  # type: ignore[typeddict-unknown-key]


def piece_parameters(number: int, end: bool = False) -> dict[str, Any]:
    request = build_piece("x", SessionOptions(), "abc", number, end=end)
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in request.parameters.items()}


def test_the_requests_of_a_session_are_a_sequence_of_tritons() -> None:
    common = {"sequence_id": "abc", "triton_enable_empty_final_response": True}
    assert piece_parameters(0) == {**common, "sequence_start": True, "sequence_end": False}
    assert piece_parameters(1) == {**common, "sequence_start": False, "sequence_end": False}
    assert piece_parameters(2, end=True) == {**common, "sequence_start": False, "sequence_end": True}


def test_sequence_parameters_are_those_of_tritonclient() -> None:
    theirs = grpc_utils._get_inference_request(
        "m",
        [],
        "",
        "1",
        None,
        "abc",
        sequence_start=True,
        sequence_end=False,
        priority=0,
        timeout=None,
        parameters=None,
    )
    ours = build_piece("", SessionOptions(), "abc", 0)
    for name, value in theirs.parameters.items():
        assert ours.parameters[name] == value
    assert len(theirs.parameters) == 3


def test_a_piece_on_the_wire() -> None:
    request = build_piece("Zoë", SessionOptions(), "abc", 3, flush=True, model="m")
    assert (request.model_name, request.id) == ("m", "abc-3")
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in request.inputs] == [
        ("TEXT", "BYTES", [1]),
        ("FLUSH", "BOOL", [1]),
    ]
    assert list(request.raw_input_contents) == [b"\x04\x00\x00\x00" + "Zoë".encode(), b"\x01"]
    assert [output.name for output in request.outputs] == ["AUDIO", "WORDS"]


def test_what_a_user_has_said_on_the_wire() -> None:
    user = UserSpeech(np.array([0.5, -1.0]), [TimedWord("Yes.", 0.1, 0.4), TimedWord("No.", 0.5, 0.75)])
    request = build_piece("", SessionOptions(), "abc", 3, user=user)
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in request.inputs] == [
        ("TEXT", "BYTES", [1]),
        ("USER_AUDIO", "FP32", [2]),
        ("USER_WORDS", "BYTES", [2]),
    ]
    _, audio, words = request.raw_input_contents
    assert np.frombuffer(audio, "<f4").tolist() == [0.5, -1.0]
    assert [json.loads(word) for word in deserialize_bytes_tensor(words)] == [
        {"text": "Yes.", "start": 0.1, "end": 0.4},
        {"text": "No.", "start": 0.5, "end": 0.75},
    ]


@pytest.mark.parametrize(
    ("audio", "words", "message"),
    [
        (np.zeros((2, 9)), [TimedWord("Yes.", 0, 1)], r"audio: its shape is \[2, 9\]"),
        (np.zeros(0), [TimedWord("Yes.", 0, 1)], r"audio: its shape is \[0\]"),
        (["x"], [TimedWord("Yes.", 0, 1)], "audio: not an array of numbers"),
        (np.zeros(9), [], "words: there are none"),
    ],
)
def test_what_cannot_be_a_users_speech_is_not_sent(audio: Any, words: list[TimedWord], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        build_piece("", SessionOptions(), "abc", 3, user=UserSpeech(audio, words))


def test_a_piece_without_anything_still_has_a_text() -> None:
    request = build_piece("", SessionOptions(), "abc", 0)
    assert request.model_name == "dia2_session"
    assert [tensor.name for tensor in request.inputs] == ["TEXT"]
    assert list(request.raw_input_contents) == [b"\x00\x00\x00\x00"]


def test_a_session_takes_the_options_of_an_utterance_but_those_of_its_end() -> None:
    options = SessionOptions(voice="anna", seed=7, temperature=0.5, top_k=3, cfg_scale=2.0)
    one_shot = build_request("x", cast(Options, options))
    session = build_piece("x", options, "abc", 0)
    assert list(session.inputs) == list(one_shot.inputs)
    assert list(session.raw_input_contents) == list(one_shot.raw_input_contents)
    for option in ("max_seconds", "words"):
        with pytest.raises(TypeError, match=option):
            build_piece("x", cast(SessionOptions, {option: 1}), "abc", 0)


def test_values_that_the_server_must_judge_are_passed_on() -> None:
    assert sent("", temperature=float("nan"), top_k=-1)["TOP_K"][2] == np.int32(-1).tobytes()


def test_a_response_becomes_a_chunk() -> None:
    audio = np.linspace(-1, 1, 5, dtype=np.float32)
    words = [json.dumps({"text": "schön", "start": 0.16}, ensure_ascii=False).encode()]
    reply = read_reply(response(audio, words, first_frame=2), 0.25)
    assert reply.chunk is not None
    assert reply.finish_reason is None
    np.testing.assert_array_equal(reply.chunk.audio, audio)
    assert reply.chunk.audio.flags.writeable  # the caller's own, not a view of the message
    assert reply.chunk.words == (Word("schön", 0.16),)
    assert (reply.chunk.first_frame, reply.chunk.arrived_s) == (2, 0.25)


def test_a_server_may_leave_out_words_and_frame() -> None:
    chunk = read_reply(response(np.zeros(3, np.float32)), 0).chunk
    assert chunk is not None
    assert (chunk.words, chunk.first_frame) == ((), None)
    assert read_reply(response(np.zeros(3, np.float32), words=[]), 0).chunk is not None


@pytest.mark.parametrize("audio", [None, np.zeros(0, np.float32)])
def test_the_last_response_may_be_empty(audio: np.ndarray[Any, Any] | None) -> None:
    reply = read_reply(response(audio, final=True, finish_reason="length"), 0)
    assert (reply.chunk, reply.finish_reason) == (None, "length")
    assert read_reply(response(audio, final=True), 0).finish_reason is None


def test_audio_may_come_with_the_end() -> None:
    reply = read_reply(response(np.ones(2, np.float32), final=True, finish_reason="stop"), 0)
    assert reply.chunk is not None
    assert reply.finish_reason == "stop"


def test_a_reported_failure_is_raised() -> None:
    failed = service_pb2.ModelStreamInferResponse(error_message="INVALID_ARG: TEXT: no words")
    with pytest.raises(InvalidArgument, match=r"^TEXT: no words$"):
        read_reply(failed, 0)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (response(), "without AUDIO"),
        (response(np.zeros(2, np.int16)), "int16"),
        (response(np.zeros((1, 2), np.float32)), r"\[1, 2\]"),
        (response(np.zeros(2, np.float32), [b"{"]), "WORDS"),
        (response(np.zeros(2, np.float32), [b'{"text": "x"}']), "WORDS"),
        (response(np.zeros(2, np.float32), [b"[1]"]), "WORDS"),
        (response(np.zeros(2, np.float32), [b"\xff"]), "WORDS"),
    ],
)
def test_what_breaks_the_contract_is_a_server_error(result: service_pb2.ModelStreamInferResponse, message: str) -> None:
    with pytest.raises(ServerError, match=message):
        read_reply(result, 0)


def test_the_sample_rate_comes_from_the_models_configuration() -> None:
    answer = service_pb2.ModelConfigResponse()
    assert read_sample_rate(answer) == 24_000
    answer.config.parameters["sample_rate"].string_value = "16000"
    assert read_sample_rate(answer) == 16_000
