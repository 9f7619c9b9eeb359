"""The way back to one caller: the engine's events as responses of Triton's."""

from __future__ import annotations

import base64
import json
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from dia2_engine.errors import InvalidArgument
from dia2_engine.types import AudioChunk, Event, Failed

OUTPUTS = frozenset({"AUDIO", "AUDIO_PCM16", "WORDS"})
VOICES = frozenset({"VOICES"})  # asked for alone, instead of audio


class Reply:
    """The ordered way back to one caller: the sink of a stream, called from any thread."""

    def __init__(self, reply_id: int, request: Any) -> None:
        self.id = reply_id
        self.closed = False
        self._outputs: frozenset[str] = OUTPUTS
        self._base64 = False
        self._sender = request.get_response_sender()
        # FINAL frees the server's side, and `is_cancelled` asks it from another thread: never afterwards.
        self._lock = threading.Lock()
        self._broken = False

    def choose_outputs(self, request: Any) -> None:
        """Send only the outputs that the caller asks for. Raises InvalidArgument.

        A gRPC caller names its outputs. `/generate_stream` cannot, so it asks for all, or uses the parameter `outputs`.
        Then PCM must be base64 text, because its JSON cannot hold bytes.
        """
        chosen = json.loads(request.parameters() or "{}").get("outputs")
        named = request.requested_output_names() if chosen is None else str(chosen).replace(" ", "").split(",")
        if not (OUTPUTS | VOICES).issuperset(named):
            raise InvalidArgument(f"outputs is {chosen!r}; allowed: {', '.join(sorted(OUTPUTS))}, or VOICES")
        self._outputs, self._base64 = frozenset(named), chosen is not None or OUTPUTS.issubset(named)

    @property
    def asks_for_voices(self) -> bool:
        """Whether the caller wants to know the voices, and to hear nothing."""
        return self._outputs == VOICES

    def tell_voices(self, names: Sequence[str], default: str) -> None:
        """Answer with the voices, and with nothing else."""
        voices = _strings("VOICES", [{"name": name, "default": name == default} for name in names])
        with self._lock:
            self.closed = True
            final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            self._sender.send(pb_utils.InferenceResponse([voices]), flags=final)

    def is_cancelled(self) -> bool:
        """Whether nobody wants more of it (30-50 us: a round trip to the server process)."""
        with self._lock:
            return self.closed or self._broken or bool(self._sender.is_cancelled())

    def __call__(self, event: Event | None) -> None:
        """Send one event, or the end alone; after the end, nothing.

        Never raises; a stream that has lost a chunk is cancelled rather than heard with a gap.
        """
        with self._lock:
            if self.closed or (self._broken and isinstance(event, AudioChunk)):
                return
            self.closed = not isinstance(event, AudioChunk)
            try:
                self._send(event)
            except Exception:
                self._broken = True
                pb_utils.Logger.log_error(f"stream {self.id}: {traceback.format_exc()}")

    def _send(self, event: Event | None) -> None:
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if isinstance(event, AudioChunk):
            parameters = _parameters(first_frame=event.first_frame)
            self._sender.send(pb_utils.InferenceResponse(self._tensors(event), **parameters))
        elif isinstance(event, Failed):
            code, message = event.error.code, f"{event.error.code}: {event.error}"  # a plain gRPC stream drops codes
            log = pb_utils.Logger.log_error if code == "INTERNAL" else pb_utils.Logger.log_verbose
            log(f"stream {self.id}: {message}")
            error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
            # Not FINAL by itself: for callers that set the header `triton_grpc_error` an error ends the gRPC stream,
            # and what comes after it crashes server 2.51 as a whole.
            self._sender.send(pb_utils.InferenceResponse(error=error), flags=final)
        elif event and (parameters := _parameters(finish_reason=event.reason, frames=event.frames)):
            self._sender.send(pb_utils.InferenceResponse([], **parameters), flags=final)
        else:
            self._sender.send(flags=final)

    def _tensors(self, chunk: AudioChunk) -> list[Any]:
        tensors = []
        if "AUDIO" in self._outputs:
            # Through torch: numpy's own capsule crashes the stub of server 2.51, which also misreads numpy 2 arrays.
            tensors.append(pb_utils.Tensor.from_dlpack("AUDIO", torch.tensor(chunk.audio)))
        if "AUDIO_PCM16" in self._outputs:
            pcm = np.rint(np.clip(chunk.audio, -1, 1) * 32767).astype("<i2").tobytes()
            pcm = base64.b64encode(pcm) if self._base64 else pcm
            tensors.append(pb_utils.Tensor("AUDIO_PCM16", np.array([pcm], dtype=object)))
        if "WORDS" in self._outputs:
            words = [{"text": word.text, "start": round(word.start_s, 3)} for word in chunk.words]
            tensors.append(_strings("WORDS", words))
        return tensors


def _strings(name: str, values: Sequence[Any]) -> Any:
    """A tensor of JSON texts, one for each value."""
    encoded = [json.dumps(value, ensure_ascii=False).encode() for value in values]
    return pb_utils.Tensor(name, np.array(encoded, dtype=object))


def _parameters(**values: int | str) -> dict[str, Any]:
    """What hands parameters to an InferenceResponse: nothing before 24.11, whose responses carry none."""
    return {"parameters": values} if "parameters" in (pb_utils.InferenceResponse.__init__.__doc__ or "") else {}
