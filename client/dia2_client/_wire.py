"""The server's contract, seen from the client: a request as tensors, a response as a `Chunk`. No I/O here."""

from __future__ import annotations

import json
import operator
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from .errors import Dia2ClientError, InvalidArgument, ServerError, from_message, from_status
from .types import Chunk, FinishReason, Options, Word

MODEL = "dia2_stream"
SAMPLE_RATE = 24_000  # unless the model's configuration has a parameter `sample_rate`
FRAME_PARAMETER = "first_frame"
FINISH_PARAMETER = "finish_reason"

CHANNEL_ARGS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 1000),  # see a restarted server within a second, not within two minutes
]

# option: (tensor, Triton type, its format in struct and numpy, what a Python value must pass through)
_INPUTS: dict[str, tuple[str, str, str, Callable[[Any], Any]]] = {
    "seed": ("SEED", "INT64", "<q", operator.index),
    "temperature": ("TEMPERATURE", "FP32", "<f", float),
    "top_k": ("TOP_K", "INT32", "<i", operator.index),
    "cfg_scale": ("CFG_SCALE", "FP32", "<f", float),
    "max_seconds": ("MAX_SECONDS", "FP32", "<f", float),
}


@dataclass(frozen=True)
class Reply:
    """One response: a chunk (none in the empty last response), and whether the stream ends with it."""

    chunk: Chunk | None
    final: bool
    finish_reason: FinishReason | None


def build_request(text: str, options: Options, model: str = MODEL) -> dict[str, Any]:
    """The arguments of tritonclient's stream calls. Raises InvalidArgument for what the wire cannot carry.

    Ranges and names are the server's to judge: it knows its voices and limits, and says so in its message.
    """
    unknown = set(options) - Options.__optional_keys__
    if unknown:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}")
    inputs = [_string("TEXT", "text", text)]
    voice = options.get("voice")
    if voice is not None:
        inputs.append(_string("VOICE", "voice", voice))
    for option, (name, triton_type, layout, convert) in _INPUTS.items():
        value = options.get(option)
        if value is None:
            continue
        try:
            data = struct.pack(layout, convert(value))  # numpy 1 would wrap what does not fit
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            raise InvalidArgument(f"{option}: {value!r} is not a valid {triton_type}: {error}") from None
        inputs.append(_tensor(name, triton_type, np.frombuffer(data, layout)))
    outputs = [InferRequestedOutput("AUDIO")]
    if options.get("words", True):
        outputs.append(InferRequestedOutput("WORDS"))
    return {"model_name": model, "inputs": inputs, "outputs": outputs}


def read_reply(result: InferResult, arrived_s: float) -> Reply:
    """Translates one response. Raises ServerError when it is not what the contract says."""
    parameters = result.get_response().parameters
    final = "triton_final_response" in parameters and parameters["triton_final_response"].bool_param
    reason: FinishReason | None = None
    if FINISH_PARAMETER in parameters:
        reason = cast(FinishReason, parameters[FINISH_PARAMETER].string_param)
    audio = result.as_numpy("AUDIO")
    if audio is None:
        if not final:
            raise ServerError("a response without AUDIO; is this a dia2_stream model?")
        return Reply(None, True, reason)
    if audio.dtype != np.float32 or audio.ndim != 1:
        raise ServerError(f"AUDIO is {audio.dtype} of shape {list(audio.shape)}, not float32 [n]")
    frame = int(parameters[FRAME_PARAMETER].int64_param) if FRAME_PARAMETER in parameters else None
    words = _words(result.as_numpy("WORDS"))
    if not audio.size and not words:
        return Reply(None, final, reason)
    return Reply(Chunk(audio.copy(), words, frame, arrived_s), final, reason)


def read_sample_rate(config: Any) -> int:
    """The audio's rate in Hz, from the answer to `get_model_config`."""
    parameters = config.config.parameters
    if "sample_rate" not in parameters:
        return SAMPLE_RATE
    return int(parameters["sample_rate"].string_value)


def translate(error: InferenceServerException, url: str) -> Dia2ClientError:
    """tritonclient's exception as ours: with a status it came from gRPC, without one as a response."""
    message = error.message() or ""
    if error.status() is None:
        return from_message(message)
    return from_status(error.status().removeprefix("StatusCode."), message, url)


def _string(name: str, option: str, value: str) -> InferInput:
    if not isinstance(value, str):
        raise InvalidArgument(f"{option}: {value!r} is not a string")
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{option}: not encodable as UTF-8: {error}") from None
    return _tensor(name, "BYTES", np.array([data], object))


def _tensor(name: str, triton_type: str, data: np.ndarray[Any, Any]) -> InferInput:
    return InferInput(name, list(data.shape), triton_type).set_data_from_numpy(data)


def _words(tensor: np.ndarray[Any, Any] | None) -> tuple[Word, ...]:
    """WORDS [n]: one JSON object per word."""
    if tensor is None:
        return ()
    try:
        entries = [json.loads(entry) for entry in tensor.ravel().tolist()]
        return tuple(Word(str(entry["text"]), float(entry["start"])) for entry in entries)
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(f"WORDS is not JSON objects with text and start: {error!r}") from None
