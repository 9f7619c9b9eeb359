"""A gRPC server with Triton's service whose side of each call is written by the test."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

WAIT_S = 30  # for what must come; only a failing test waits so long


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


def text_of(request: service_pb2.ModelInferRequest) -> str:
    names = [tensor.name for tensor in request.inputs]
    return str(deserialize_bytes_tensor(request.raw_input_contents[names.index("TEXT")])[0].decode())


def ends(request: service_pb2.ModelInferRequest) -> bool:
    return bool(request.parameters["sequence_end"].bool_param)


class Call:
    """The server's side of one gRPC stream: iterate for the requests."""

    def __init__(self, requests: Iterator[service_pb2.ModelInferRequest]) -> None:
        self.replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.over = threading.Event()  # cancelled by the client, or ended by the script
        self._requests = requests

    def __iter__(self) -> Iterator[service_pb2.ModelInferRequest]:
        return self._requests

    def audio(self, request: service_pb2.ModelInferRequest, value: float, *words: tuple[str, float]) -> None:
        """A chunk of 100 equal samples, and its words with their starts in seconds."""
        entries = [json.dumps({"text": text, "start": start_s}).encode() for text, start_s in words]
        self._reply(request.id, response(np.full(100, value, np.float32), entries))

    def final(self, request: service_pb2.ModelInferRequest, finish_reason: str = "") -> None:
        ended = response(final=True, finish_reason=finish_reason) if finish_reason else response(final=True)
        self._reply(request.id, ended)

    def error(self, request: service_pb2.ModelInferRequest | None, message: str) -> None:
        """As Triton does: with the id of the request, and final."""
        failed = response(final=True)
        failed.error_message = message
        self._reply(request.id if request else "", failed)

    def abort(self) -> None:
        """Breaks the call."""
        self.replies.put("abort")

    def _reply(self, request_id: str, message: service_pb2.ModelStreamInferResponse) -> None:
        message.infer_response.id = request_id
        self.replies.put(message)


class Peer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves `models`. `script` runs for each call; the call ends with it."""

    def __init__(self, script: Callable[[Call], None], models: tuple[str, ...]) -> None:
        self.url = ""
        self.received: queue.SimpleQueue[service_pb2.ModelInferRequest] = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self._script = script
        self._models = models

    def next(self) -> service_pb2.ModelInferRequest:
        """The next request that the script has taken."""
        return self.received.get(timeout=WAIT_S)

    def ModelReady(self, request: Any, context: Any) -> service_pb2.ModelReadyResponse:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name in self._models)

    def ModelConfig(self, request: Any, context: Any) -> service_pb2.ModelConfigResponse:  # noqa: N802
        answer = service_pb2.ModelConfigResponse()
        answer.config.parameters["sample_rate"].string_value = "1000"
        return answer

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[service_pb2.ModelStreamInferResponse]:  # noqa: N802
        call = Call(self._noted(requests))
        finished = threading.Event()

        def run() -> None:
            try:
                self._script(call)
            finally:
                finished.set()
                call.replies.put(None)

        def leave() -> None:
            if not finished.is_set():
                self.cancelled.set()
            call.over.set()
            call.replies.put(None)

        context.add_callback(leave)
        threading.Thread(target=run).start()
        for reply in iter(call.replies.get, None):
            if reply == "abort":
                context.abort(grpc.StatusCode.UNAVAILABLE, "the server has gone")
            yield reply

    def _noted(self, requests: Any) -> Iterator[service_pb2.ModelInferRequest]:
        try:
            for request in requests:
                self.received.put(request)
                yield request
        except Exception:  # gRPC's, of no particular class: the call was cancelled
            return


@contextmanager
def serving(script: Callable[[Call], None], *models: str) -> Iterator[Peer]:
    """A peer on a free port."""
    peer = Peer(script, models or ("dia2_stream", "dia2_session"))
    server = grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(peer, server)
    peer.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield peer
    finally:
        server.stop(None).wait()


def echo(call: Call) -> None:
    """A session whose every piece of text is a word and a chunk of 0.1 s; and a stream of one chunk."""
    opening, chunks = None, 0
    for request in call:
        opening = opening or request
        if text_of(request):
            chunks += 1
            call.audio(opening, chunks / 100, (text_of(request), (chunks - 1) / 10))
        if request is not opening:
            call.final(request)
        if ends(request):
            break
    if opening is not None:
        call.final(opening, finish_reason="stop")
