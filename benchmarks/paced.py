"""A stand-in for Triton that makes audio at the pace of playback: it shows what a gateway carries, without a GPU.

It answers dia2_session's calls as a server does whose engine is never late: one frame, then as large chunks as the
engine's, each at the moment at which a listener who plays from the first chunk on needs it.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

SAMPLE_RATE, FRAME_SAMPLES, FRAME_S = 24_000, 1920, 0.08
CHUNK_FRAMES = (1, 1, 1, 1, 2, 3)  # and then always MOST
MOST_FRAMES = 4
START_DEADLINE_S = 60.0


class Paced(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Every session is `audio_s` long, whatever its text."""

    def __init__(self, audio_s: float) -> None:
        self._frames = round(audio_s / FRAME_S)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelConfigResponse()

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        replies: asyncio.Queue[Any] = asyncio.Queue()

        async def read() -> None:
            speaking = None
            async for request in requests:
                if request.parameters["sequence_start"].bool_param:
                    names = [output.name for output in request.outputs]
                    audio = self._voices if names == ["VOICES"] else self._speak
                    speaking = asyncio.create_task(audio(request.id, replies))
                else:
                    replies.put_nowait(_reply(request.id, final=True))
            if speaking is not None:
                await speaking
            replies.put_nowait(None)

        reading = asyncio.create_task(read())
        try:
            while (reply := await replies.get()) is not None:
                yield reply
        finally:
            reading.cancel()

    async def _voices(self, request_id: str, replies: asyncio.Queue[Any]) -> None:
        reply = _reply(request_id, final=True)
        _add_strings(reply, "VOICES", [json.dumps({"name": "none", "default": True})])
        replies.put_nowait(reply)

    async def _speak(self, request_id: str, replies: asyncio.Queue[Any]) -> None:
        due_s, left, sizes = time.monotonic(), self._frames, iter(CHUNK_FRAMES)
        while left:
            frames = min(left, next(sizes, MOST_FRAMES))
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            audio = np.zeros(frames * FRAME_SAMPLES, np.float32)
            reply = _reply(request_id, final=False)
            reply.infer_response.outputs.add(name="AUDIO", datatype="FP32", shape=audio.shape)
            reply.infer_response.raw_output_contents.append(audio.tobytes())
            _add_strings(reply, "WORDS", [json.dumps({"text": "word", "start": 0.0})] * (frames == MOST_FRAMES))
            replies.put_nowait(reply)
            left -= frames
            due_s += frames * FRAME_S
        replies.put_nowait(_reply(request_id, final=True))


def _reply(request_id: str, *, final: bool) -> Any:
    reply = service_pb2.ModelStreamInferResponse()
    reply.infer_response.id = request_id
    reply.infer_response.parameters["triton_final_response"].bool_param = final
    return reply


def _add_strings(reply: Any, name: str, values: list[str]) -> None:
    reply.infer_response.outputs.add(name=name, datatype="BYTES", shape=[len(values)])
    packed = serialize_byte_tensor(np.array([value.encode() for value in values], object))
    reply.infer_response.raw_output_contents.append(packed.item() if packed.size else b"")


async def _serve(audio_s: float, told: Connection) -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Paced(audio_s), server)
    told.send(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    await server.wait_for_termination()


def _run(audio_s: float, told: Connection) -> None:
    asyncio.run(_serve(audio_s, told))


@contextmanager
def paced_servers(count: int, audio_s: float) -> Iterator[list[str]]:
    """So many processes of it; gives their addresses."""
    spawn = multiprocessing.get_context("spawn")
    processes, addresses = [], []
    try:
        for _ in range(count):
            here, there = spawn.Pipe()
            processes.append(spawn.Process(target=_run, args=(audio_s, there), daemon=True))
            processes[-1].start()
            if not here.poll(START_DEADLINE_S):
                raise SystemExit("a paced server did not start")
            addresses.append(here.recv())
        yield addresses
    finally:
        for process in processes:
            process.terminate()
            process.join()
