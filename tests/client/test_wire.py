"""Requests and responses as messages: what would be on the wire."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import pytest
from dia2_client import InvalidArgument, Options, ServerError, Word
from dia2_client._wire import build_request, read_reply, read_sample_rate
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor


def sent(text: str, **options: Any) -> dict[str, tuple[str, list[int], bytes]]:
    """Input name -> (type, shape, bytes on the wire)."""
    request = build_request(text, cast(Options, options))
    return {
        tensor.name: (tensor.datatype, list(tensor.shape), data)
        for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def requested(**options: Any) -> list[str]:
    return [output.name for output in build_request("x", cast(Options, options)).outputs]


def response(
    audio: np.ndarray[Any, Any] | None = None,
    words: list[bytes] | None = None,
    final: bool = False,
    **parameters: int | str,
) -> service_pb2.ModelStreamInferResponse:
    stream_response = service_pb2.ModelStreamInferResponse()
    message = stream_response.infer_response
    if audio is not None:
        kind = {"float32": "FP32", "int16": "INT16"}[audio.dtype.name]
        message.outputs.add(name="AUDIO", datatype=kind, shape=audio.shape)
        message.raw_output_contents.append(audio.tobytes())
    if words is not None:
        message.outputs.add(name="WORDS", datatype="BYTES", shape=[len(words)])
        packed = serialize_byte_tensor(np.array(words, object))
        message.raw_output_contents.append(packed.item() if packed.size else b"")
    message.parameters["triton_final_response"].bool_param = final
    for name, value in parameters.items():
        if isinstance(value, str):
            message.parameters[name].string_param = value
        else:
            message.parameters[name].int64_param = value
    return stream_response


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
