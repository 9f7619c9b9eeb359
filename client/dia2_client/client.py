"""The blocking client: `for chunk in client.stream("Hello."): ...`"""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Self, Unpack

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ._wire import (
    CHANNEL_ARGS,
    MODEL,
    SESSION_MODEL,
    build_request,
    build_voices_request,
    read_sample_rate,
    read_voices,
)
from .errors import Unavailable, from_call
from .streams import Session, Stream
from .types import Options, SessionOptions, Speech, VoiceInfo, join


class Client:
    """Speaks through one Triton server. Safe to share between threads; every stream is its own gRPC stream.

    `url` is HOST:PORT of the server's gRPC endpoint. `connect_timeout_s` bounds the first contact, which
    happens at the first use; `timeout_s` the wait for each chunk, the first one (it may queue) included.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        model: str = MODEL,
        session_model: str = SESSION_MODEL,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 30.0,
    ) -> None:
        self.url = url
        self.model = model
        self.session_model = session_model
        self.connect_timeout_s = connect_timeout_s
        self.timeout_s = timeout_s
        self._channel = grpc.insecure_channel(url, CHANNEL_ARGS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._sample_rates: dict[str, int] = {}  # by model, of those that have been contacted
        self._streams: weakref.WeakSet[Stream | Session] = weakref.WeakSet()

    @property
    def sample_rate(self) -> int:
        """Samples per second of every stream; connects if need be. Raises ConnectionFailed or Unavailable."""
        return self._contact(self.model)

    def voices(self) -> tuple[VoiceInfo, ...]:
        """The server's voices. Raises ConnectionFailed, Unavailable, and ServerError for a server that cannot tell."""
        model = self.model
        try:
            self._contact(model)
        except Unavailable:  # it may have sessions only
            model = self.session_model
            self._contact(model)
        request = build_voices_request(model, in_session=model == self.session_model)
        try:
            (response,) = self._stub.ModelStreamInfer(iter([request]), timeout=self.timeout_s)
        except grpc.RpcError as error:
            raise from_call(error, self.url) from None
        return read_voices(response)

    def stream(self, text: str, **options: Unpack[Options]) -> Stream:
        """Sends the request and returns at once; iterate over the result for the audio.

        Raises InvalidArgument for what cannot be sent, ConnectionFailed or Unavailable at the first contact;
        what the server objects to is raised by the iteration.
        """
        request = build_request(text, options, self.model)
        stream = Stream(self, request, self.sample_rate)
        self._streams.add(stream)
        return stream

    def say(self, text: str, **options: Unpack[Options]) -> Speech:
        """The whole utterance as one piece; raises what the iteration over `stream()` raises."""
        with self.stream(text, **options) as stream:
            chunks = list(stream)
        return join(chunks, stream.sample_rate, stream.finish_reason)

    def session(self, **options: Unpack[SessionOptions]) -> Session:
        """Begins a session and returns at once: send text into the result, and iterate over it for the audio.

        Raises InvalidArgument for what cannot be sent, ConnectionFailed at the first contact, and Unavailable if the
        server has no sessions; what it objects to is raised by `send()` and by the iteration.
        """
        session = Session(self, options)
        self._streams.add(session)
        return session

    def close(self) -> None:
        """Cancels what still streams, and disconnects."""
        for stream in list(self._streams):
            stream.cancel()
        self._channel.close()

    def _contact(self, model: str) -> int:
        """Makes first contact with a model, once; returns its sample rate."""
        if model not in self._sample_rates:
            try:
                ready = service_pb2.ModelReadyRequest(name=model)
                if not self._stub.ModelReady(ready, timeout=self.connect_timeout_s).ready:
                    raise Unavailable(f"{self.url} has no model {model} ready")
                config = service_pb2.ModelConfigRequest(name=model)
                answer = self._stub.ModelConfig(config, timeout=self.connect_timeout_s)
            except grpc.RpcError as error:
                raise from_call(error, self.url) from None
            self._sample_rates[model] = read_sample_rate(answer)
        return self._sample_rates[model]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
