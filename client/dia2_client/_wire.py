"""The server's contract, seen from the client: a request as a message, a response as a `Chunk`. No I/O here."""

from __future__ import annotations

import json
import operator
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import serialize_byte_tensor

from .errors import InvalidArgument, ServerError, from_message
from .types import Chunk, FinishReason, Options, SessionOptions, UserSpeech, VoiceInfo, Word

MODEL = "dia2_stream"
SESSION_MODEL = "dia2_session"
SAMPLE_RATE = 24_000  # unless the model's configuration has a parameter `sample_rate`
FRAME_PARAMETER = "first_frame"
FINISH_PARAMETER = "finish_reason"
FINAL_PARAMETER = "triton_final_response"

CHANNEL_ARGS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 1000),  # see a restarted server within a second, not within two minutes
]

# option: (tensor, Triton type, its layout for struct, what a Python value must pass through)
_INPUTS: dict[str, tuple[str, str, str, Callable[[Any], Any]]] = {
    "seed": ("SEED", "INT64", "<q", operator.index),
    "temperature": ("TEMPERATURE", "FP32", "<f", float),
    "top_k": ("TOP_K", "INT32", "<i", operator.index),
    "cfg_scale": ("CFG_SCALE", "FP32", "<f", float),
    "max_seconds": ("MAX_SECONDS", "FP32", "<f", float),
}


@dataclass(frozen=True)
class Reply:
    """One response: its chunk (none in the empty last response), and why the stream ends, once that is told."""

    chunk: Chunk | None
    finish_reason: FinishReason | None


def build_request(text: str, options: Options, model: str = MODEL) -> service_pb2.ModelInferRequest:
    """One utterance as the message to send. Raises InvalidArgument for what the wire cannot carry.

    Ranges and names are the server's to judge: it knows its voices and limits, and says so in its message.
    """
    request = _request(model, text, options, Options.__optional_keys__)
    request.outputs.add(name="AUDIO")
    if options.get("words", True):
        request.outputs.add(name="WORDS")
    return request


def build_piece(
    text: str,
    options: SessionOptions,
    sequence_id: str,
    number: int,
    *,
    flush: bool = False,
    end: bool = False,
    user: UserSpeech | None = None,
    model: str = SESSION_MODEL,
) -> service_pb2.ModelInferRequest:
    """The `number`th request of a session, from 0: the one that begins it, and has its options. Raises InvalidArgument.

    The audio comes with the id of request 0. The others are answered under their own ids, hence the empty final
    responses, which Triton sends only if asked.
    """
    request = _request(model, text, options, SessionOptions.__optional_keys__)
    if flush:
        _add_input(request, "FLUSH", "BOOL", struct.pack("<?", True))
    if user is not None:
        _add_user_speech(request, user)
    request.id = f"{sequence_id}-{number}"
    request.parameters["sequence_id"].string_param = sequence_id
    request.parameters["sequence_start"].bool_param = number == 0
    request.parameters["sequence_end"].bool_param = end
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.outputs.add(name="AUDIO")
    request.outputs.add(name="WORDS")
    return request


def build_voices_request(model: str, *, in_session: bool) -> service_pb2.ModelInferRequest:
    """Asks for the server's voices, of a model that takes sessions or of one that does not."""
    request = _request(model, "", {}, frozenset())
    request.outputs.add(name="VOICES")
    if in_session:
        request.parameters["sequence_id"].string_param = uuid.uuid4().hex
        for edge in ("sequence_start", "sequence_end"):
            request.parameters[edge].bool_param = True
    return request


def is_final(response: service_pb2.ModelStreamInferResponse) -> bool:
    """Whether nothing follows it for its request."""
    parameters = response.infer_response.parameters
    return FINAL_PARAMETER in parameters and bool(parameters[FINAL_PARAMETER].bool_param)


def read_reply(response: service_pb2.ModelStreamInferResponse, arrived_s: float) -> Reply:
    """Translates one response. Raises what it reports, or ServerError when it is not what the contract says."""
    if response.error_message:
        raise from_message(response.error_message)
    parameters = response.infer_response.parameters
    reason: FinishReason | None = None
    if FINISH_PARAMETER in parameters:
        reason = cast(FinishReason, parameters[FINISH_PARAMETER].string_param)
    result = InferResult(response.infer_response)
    audio = result.as_numpy("AUDIO")
    if audio is None:
        if reason is None and not is_final(response):
            raise ServerError("a response without AUDIO; is this a dia2_stream model?")
        return Reply(None, reason)
    if audio.dtype != np.float32 or audio.ndim != 1:
        raise ServerError(f"AUDIO is {audio.dtype} of shape {list(audio.shape)}, not float32 [n]")
    frame = int(parameters[FRAME_PARAMETER].int64_param) if FRAME_PARAMETER in parameters else None
    words = _words(result.as_numpy("WORDS"))
    if not audio.size and not words:
        return Reply(None, reason)
    return Reply(Chunk(audio.copy(), words, frame, arrived_s), reason)


def read_voices(response: service_pb2.ModelStreamInferResponse) -> tuple[VoiceInfo, ...]:
    """Translates the answer to `build_voices_request`; raises like `read_reply`."""
    if response.error_message:
        raise from_message(response.error_message)
    found = _objects("VOICES", InferResult(response.infer_response).as_numpy("VOICES"))
    try:
        return tuple(VoiceInfo(str(voice["name"]), bool(voice["default"])) for voice in found)
    except (KeyError, TypeError) as error:
        raise ServerError(f"VOICES is not JSON objects with name and default: {error!r}") from None


def read_sample_rate(config: service_pb2.ModelConfigResponse) -> int:
    """The audio's rate in Hz, from the server's answer to ModelConfig."""
    parameters = config.config.parameters
    if "sample_rate" not in parameters:
        return SAMPLE_RATE
    return int(parameters["sample_rate"].string_value)


def _request(
    model: str, text: str, options: Options | SessionOptions, known: frozenset[str]
) -> service_pb2.ModelInferRequest:
    """A message with the inputs that a text and its options make."""
    unknown = set(options) - known
    if unknown:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}")
    request = service_pb2.ModelInferRequest(model_name=model)
    _add_input(request, "TEXT", "BYTES", _string("text", text))
    voice = options.get("voice")
    if voice is not None:
        _add_input(request, "VOICE", "BYTES", _string("voice", voice))
    for option, (name, triton_type, layout, convert) in _INPUTS.items():
        value = options.get(option)
        if value is None:
            continue
        try:
            data = struct.pack(layout, convert(value))
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            raise InvalidArgument(f"{option}: {value!r} is not a valid {triton_type}") from error
        _add_input(request, name, triton_type, data)
    return request


def _string(option: str, value: str) -> bytes:
    """One element of a BYTES tensor."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{option}: {value!r} is not a string")
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{option}: not encodable as UTF-8: {error}") from None
    return bytes(serialize_byte_tensor(np.array([data], object)).item())


def _add_user_speech(request: service_pb2.ModelInferRequest, user: UserSpeech) -> None:
    try:
        audio = np.ascontiguousarray(user.audio, "<f4")
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"audio: not an array of numbers: {error}") from None
    if audio.ndim != 1 or not audio.size:
        raise InvalidArgument(f"audio: its shape is {list(audio.shape)}; allowed: mono samples, [n >= 1]")
    if not user.words:
        raise InvalidArgument("words: there are none; allowed: at least one")
    words = [json.dumps({"text": word.text, "start": word.start_s, "end": word.end_s}).encode() for word in user.words]
    _add_input(request, "USER_AUDIO", "FP32", audio.tobytes(), len(audio))
    _add_input(request, "USER_WORDS", "BYTES", serialize_byte_tensor(np.array(words, object)).item(), len(words))


def _add_input(
    request: service_pb2.ModelInferRequest, name: str, triton_type: str, data: bytes, elements: int = 1
) -> None:
    request.inputs.add(name=name, datatype=triton_type, shape=[elements])
    request.raw_input_contents.append(data)


def _words(tensor: np.ndarray[Any, Any] | None) -> tuple[Word, ...]:
    """WORDS [n]: one JSON object per word."""
    try:
        return tuple(Word(str(entry["text"]), float(entry["start"])) for entry in _objects("WORDS", tensor))
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(f"WORDS is not JSON objects with text and start: {error!r}") from None


def _objects(name: str, tensor: np.ndarray[Any, Any] | None) -> list[Any]:
    """A tensor [n] of JSON texts; none at all is an empty one."""
    try:
        return [] if tensor is None else [json.loads(entry) for entry in tensor.ravel().tolist()]
    except (ValueError, TypeError) as error:
        raise ServerError(f"{name} is not JSON: {error!r}") from None
