"""Translates between Triton's Python backend and `dia2_engine.Worker`; nothing is decided here.

The only file that imports `triton_python_backend_utils`. `execute()` hands each request to the worker and returns at
once; audio follows from the worker's delivery threads. Every request gets exactly one FINAL, on every path.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import threading
import traceback
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from dia2_engine.config import EngineConfig
from dia2_engine.errors import Dia2Error, InternalError, InvalidArgument
from dia2_engine.telemetry import Telemetry
from dia2_engine.types import AudioChunk, Event, Failed, Request
from dia2_engine.worker import Worker

OUTPUTS = frozenset({"AUDIO", "AUDIO_PCM16", "WORDS"})


class TritonPythonModel:
    """One engine per model instance, which is one process per GPU (or one on the CPU)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load everything. An error keeps the model from becoming ready and shows in the server's log."""
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")  # progress, into the server's log
        parameters = json.loads(args["model_config"])["parameters"]
        config = EngineConfig.from_mapping({name: value["string_value"] for name, value in parameters.items()})
        if args["model_instance_kind"] == "GPU" and config.device in ("auto", "cuda"):
            config = replace(config, device=f"cuda:{args['model_instance_device_id']}")
        self._max_text_bytes = 4 * config.max_text_chars  # no UTF-8 character is longer than 4 bytes
        self._ids = itertools.count(1)  # ours: a client's request id may repeat and must never be a key
        self._worker = Worker(config, Metrics(args["model_instance_name"]))

    def execute(self, requests: list[Any]) -> None:
        """Submit and return; never raises, because that would answer requests that are already streaming."""
        for request in requests:
            reply = Reply(next(self._ids), request)
            try:
                reply.outputs, reply.base64 = _outputs(request)
                self._worker.submit(_request(request, self._max_text_bytes), reply, reply.is_cancelled)
            except Dia2Error as error:
                reply(Failed(error))
            except Exception:
                pb_utils.Logger.log_error(f"stream {reply.id}: {traceback.format_exc()}")
                reply(Failed(InternalError("internal error; the server's log has the details")))

    def finalize(self) -> None:
        """Cancel what is left and join the worker's threads."""
        self._worker.close(deadline_s=5.0)


class Reply:
    """The ordered way back to one caller: the sink of a stream, called from one thread at a time."""

    def __init__(self, reply_id: int, request: Any) -> None:
        self.id = reply_id
        self.outputs: frozenset[str] = OUTPUTS
        self.base64 = False
        self._sender = request.get_response_sender()
        # FINAL frees the server's side, and `is_cancelled` asks it from another thread: never afterwards.
        self._lock = threading.Lock()
        self._closed = self._broken = False

    def is_cancelled(self) -> bool:
        """Whether nobody wants more of it (30-50 us: a round trip to the server process)."""
        with self._lock:
            return not self._closed and (self._broken or bool(self._sender.is_cancelled()))

    def __call__(self, event: Event) -> None:
        """Send one event. Never raises; a stream that has lost a chunk is cancelled rather than heard with a gap."""
        with self._lock:
            if self._closed or (self._broken and isinstance(event, AudioChunk)):
                return
            self._closed = not isinstance(event, AudioChunk)
            try:
                self._send(event)
            except Exception:
                self._broken = True
                pb_utils.Logger.log_error(f"stream {self.id}: {traceback.format_exc()}")

    def _send(self, event: Event) -> None:
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
        elif parameters := _parameters(finish_reason=event.reason, frames=event.frames):
            self._sender.send(pb_utils.InferenceResponse([], **parameters), flags=final)
        else:
            self._sender.send(flags=final)

    def _tensors(self, chunk: AudioChunk) -> list[Any]:
        tensors = []
        if "AUDIO" in self.outputs:
            # Through torch: numpy's own capsule crashes the stub of server 2.51, which also misreads numpy 2 arrays.
            tensors.append(pb_utils.Tensor.from_dlpack("AUDIO", torch.tensor(chunk.audio)))
        if "AUDIO_PCM16" in self.outputs:
            pcm = np.rint(np.clip(chunk.audio, -1, 1) * 32767).astype("<i2").tobytes()
            pcm = base64.b64encode(pcm) if self.base64 else pcm
            tensors.append(pb_utils.Tensor("AUDIO_PCM16", np.array([pcm], dtype=object)))
        if "WORDS" in self.outputs:
            words = [{"text": word.text, "start": round(word.start_s, 3)} for word in chunk.words]
            encoded = [json.dumps(word, ensure_ascii=False).encode() for word in words]
            tensors.append(pb_utils.Tensor("WORDS", np.array(encoded, dtype=object)))
        return tensors


class Metrics(Telemetry):
    """The engine's numbers on the server's `/metrics`, labelled with the instance."""

    FAMILIES = (
        ("live", "GAUGE", "dia2_live_streams", "Streams that are producing audio"),
        ("queued", "GAUGE", "dia2_queued_streams", "Streams that wait for a slot"),
        ("invalid", "COUNTER", "dia2_invalid_total", "Requests refused because they can never succeed as written"),
        ("rejected", "COUNTER", "dia2_rejected_total", "Requests refused because the server was full or closing"),
        ("cancelled", "COUNTER", "dia2_cancelled_total", "Streams ended by their caller"),
        ("failed", "COUNTER", "dia2_failed_total", "Streams ended by an internal error"),
        ("finished", "COUNTER", "dia2_finished_total", "Streams that ran to their end"),
        ("frames", "COUNTER", "dia2_frames_total", "Frames of audio generated"),
        ("illegal_ids", "COUNTER", "dia2_illegal_ids_total", "Token ids caught outside their vocabulary; always 0"),
        ("first_audio_s", "HISTOGRAM", "dia2_first_audio_seconds", "Submission to first audio"),
    )
    BUCKETS_S = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)

    def __init__(self, instance: str) -> None:
        self._metrics: dict[str, tuple[Any, Any]] = {}  # with its family, because a metric dies with that
        for name, kind, metric_name, description in self.FAMILIES:
            if hasattr(pb_utils.MetricFamily, kind):  # histograms came with 24.09
                family = pb_utils.MetricFamily(metric_name, description, getattr(pb_utils.MetricFamily, kind))
                extra = {"buckets": list(self.BUCKETS_S)} if kind == "HISTOGRAM" else {}
                self._metrics[name] = (family.Metric(labels={"instance": instance}, **extra), family)

    def gauge(self, name: str, value: float) -> None:
        self._metrics[name][0].set(value)

    def count(self, name: str, n: int = 1) -> None:
        self._metrics[name][0].increment(n)

    def observe(self, name: str, value: float) -> None:
        if name in self._metrics:
            self._metrics[name][0].observe(value)


def _request(request: Any, max_text_bytes: int) -> Request:
    """The engine's view of a request; only what Triton and the engine cannot check is checked here."""
    text = _text(request, "TEXT", max_text_bytes)
    if text is None:
        raise InvalidArgument("TEXT is missing; it is required")
    options = {n: _scalar(request, n.upper()) for n in ("seed", "temperature", "top_k", "cfg_scale", "max_seconds")}
    return Request(text, _text(request, "VOICE", 256), **options)


def _scalar(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().item()


def _text(request: Any, name: str, limit_bytes: int) -> str | None:
    value = _scalar(request, name)
    if value is not None and len(value) > limit_bytes:
        raise InvalidArgument(f"{name} has {len(value)} bytes; allowed: at most {limit_bytes}")
    try:
        return None if value is None else str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{name} is not UTF-8 ({error.reason} at byte {error.start})") from None


def _outputs(request: Any) -> tuple[frozenset[str], bool]:
    """The outputs to send, and whether PCM must be base64 text: the JSON of `/generate_stream` cannot hold bytes.

    A gRPC caller names its outputs. `/generate_stream` cannot, so it asks for all, or uses the parameter `outputs`."""
    chosen = json.loads(request.parameters() or "{}").get("outputs")
    named = request.requested_output_names() if chosen is None else str(chosen).replace(" ", "").split(",")
    if not OUTPUTS.issuperset(named):
        raise InvalidArgument(f"outputs is {chosen!r}; allowed: {', '.join(sorted(OUTPUTS))}")
    return frozenset(named), chosen is not None or OUTPUTS.issubset(named)


def _parameters(**values: int | str) -> dict[str, Any]:
    """What hands parameters to an InferenceResponse: nothing before 24.11, whose responses carry none."""
    return {"parameters": values} if "parameters" in (pb_utils.InferenceResponse.__init__.__doc__ or "") else {}
