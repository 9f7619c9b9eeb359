"""One request on one gRPC stream, as the wire has it: what came back, in order, until the server had its last word."""

from __future__ import annotations

import json
import queue
import time
import urllib.request
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

MODEL = "dia2_stream"
TIMEOUT_S = 60.0
TYPES: dict[str, tuple[str, Any]] = {
    "TEXT": ("BYTES", object),
    "VOICE": ("BYTES", object),
    "SEED": ("INT64", np.int64),
    "TEMPERATURE": ("FP32", np.float32),
    "TOP_K": ("INT32", np.int32),
    "CFG_SCALE": ("FP32", np.float32),
    "MAX_SECONDS": ("FP32", np.float32),
}
SESSION_TYPES = {name: kind for name, kind in TYPES.items() if name != "MAX_SECONDS"} | {
    "FLUSH": ("BOOL", np.bool_),
    "USER_AUDIO": ("FP32", np.float32),
    "USER_WORDS": ("BYTES", np.object_),
}


def tensor(name: str, value: Any, triton_type: str | None = None) -> InferInput:
    """A tensor of one value, or of a given array; strings become bytes."""
    declared, dtype = (TYPES | SESSION_TYPES)[name]
    if not isinstance(value, np.ndarray):
        value = np.array([value.encode() if isinstance(value, str) else value], dtype)
    return InferInput(name, list(value.shape), triton_type or declared).set_data_from_numpy(value)


class Call:
    """A request in flight. Use as a context manager, or call `wait`."""

    def __init__(
        self,
        url: str,
        inputs: Sequence[InferInput],
        outputs: Sequence[str] = ("AUDIO",),
        headers: dict[str, str] | None = None,
        model: str = MODEL,
        **sequence: Any,
    ) -> None:
        self.responses: list[InferResult] = []
        self.error: InferenceServerException | None = None
        self.finals = 0
        self._inbox: queue.SimpleQueue[tuple[InferResult | None, InferenceServerException | None]] = queue.SimpleQueue()
        self._client = InferenceServerClient(url)
        self._client.start_stream(lambda result, error: self._inbox.put((result, error)), headers=headers)
        named = [InferRequestedOutput(name) for name in outputs] or None
        self._client.async_stream_infer(model, inputs, outputs=named, enable_empty_final_response=True, **sequence)

    def next(self) -> bool:
        """Take one message; False if it was the last one."""
        result, self.error = self._inbox.get(timeout=TIMEOUT_S)
        if result is None:
            return False
        if result.get_response().outputs:
            self.responses.append(result)
        self.finals += result.get_response().parameters["triton_final_response"].bool_param
        return not self.finals

    def drain(self) -> bool:
        """Take what is there, without waiting; False if that was the last."""
        while not self._inbox.empty():
            if not self.next():
                return False
        return True

    def wait(self) -> Self:
        """Take everything until the end, hang up, and insist that nothing comes after the end."""
        while self.next():
            pass
        self._client.stop_stream()  # returns when the server has closed its side
        self._client.close()
        assert self._inbox.empty(), "a message after the last"
        return self

    def cancel(self) -> None:
        """Cancel and hang up."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()

    def strings(self, name: str) -> list[bytes]:
        """All elements of a string output, over all responses."""
        return [element for response in self.responses for element in response.as_numpy(name).ravel()]

    @property
    def audio(self) -> NDArray[np.float32]:
        """All samples so far."""
        return np.concatenate([np.zeros(0, np.float32), *(response.as_numpy("AUDIO") for response in self.responses)])

    @property
    def message(self) -> str:
        """The error's message, or "" if there was none."""
        return "" if self.error is None else str(self.error.message())


def speak(url: str, text: str, outputs: Sequence[str] = ("AUDIO",), **options: Any) -> Call:
    """Send a request with options by their input names; does not wait."""
    return Call(url, [tensor("TEXT", text), *(tensor(name, value) for name, value in options.items())], outputs)


def generate(url: str, body: bytes) -> list[dict[str, Any]]:
    """The events of `/generate_stream`, which must all be JSON. Raises HTTPError for a status that is not 200.

    Triton writes a tensor of one element without its brackets; WORDS gets them back.
    """
    request = urllib.request.Request(f"http://{url}/v2/models/{MODEL}/generate_stream", body)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        lines = answer.read().split(b"\n\n")
    events = [json.loads(line.removeprefix(b"data: ").decode("utf-8")) for line in lines if line]
    for event in events:
        if isinstance(event.get("WORDS"), str):
            event["WORDS"] = [event["WORDS"]]
    return events


def eventually(condition: Any, timeout_s: float = TIMEOUT_S) -> None:
    """Wait until a condition holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.01)
