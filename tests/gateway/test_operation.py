"""What an operator relies on: health, metrics, logs, and an end that cuts nobody off."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest
from websockets.exceptions import ConnectionClosed

from tests.server.conftest import SETTLE_S, Server

from .conftest import LINE, LONG, SEED, Gateway, eventually
from .talk import directly, in_loop, talking

pytestmark = pytest.mark.server

TEXT = "One two three four."


def test_health_and_readiness(gateway: Gateway) -> None:
    assert gateway.call("/healthz").status == 200
    answer = gateway.call("/readyz")
    assert answer.status == 200
    assert json.loads(answer.body) == {"ready": True, "draining": False, "backends_ready": 1, "backends": 1}


def test_every_answer_has_a_request_id_which_the_log_has_too(gateway: Gateway) -> None:
    given = gateway.speak(TEXT, X_Request_Id="call-4711")
    assert given.headers["X-Request-Id"] == "call-4711"
    made = [gateway.call("/v1/nothing", X_Request_Id=bad).headers["X-Request-Id"] for bad in ("a b", "x" * 65, "")]
    assert len(set(made)) == 3
    assert all(len(request_id) == 32 for request_id in made)
    eventually(lambda: {*made, "call-4711"} <= {line.get("request") for line in gateway.log()})
    (request,) = [line for line in gateway.log() if line.get("request") == "call-4711"]
    assert (request["method"], request["path"], request["status"]) == ("POST", "/v1/audio/speech", 200)
    (spoken,) = [line for line in gateway.log() if line.get("utterance") == "call-4711"]
    assert (spoken["outcome"], spoken["characters"]) == ("stop", len(TEXT))
    assert spoken["audio_s"] == round(len(given.body) / 48000, 2)
    assert spoken["first_audio_ms"] > 0


@in_loop
async def test_metrics_count_what_happens(make_gateway: Callable[..., Gateway], triton: Server) -> None:
    gateway = make_gateway()
    answer = gateway.speak(TEXT)
    gateway.call("/v1/nothing")
    async with talking(gateway.ws_url) as talk:
        await talk.send("tts", text=LONG)
        await talk.hear_audio()
        during = gateway.metrics()
        assert during["websockets"] == 1
        assert during[f'live_streams{{backend="{triton.grpc_url}"}}'] == 1
        await talk.send("cancel")
        heard = await talk.hear()
        assert (await talk.say(TEXT, temperature=-1.0)).last["type"] == "error"
    eventually(lambda: gateway.metrics()["websockets"] == 0)
    seen = gateway.metrics()
    outcomes = {outcome: seen[f'utterances_total{{outcome="{outcome}"}}'] for outcome in ("stop", "cancelled")}
    assert outcomes == {"stop": 1, "cancelled": 1}
    assert seen['utterances_total{outcome="invalid_request"}'] == 1
    assert seen['requests_total{route="/v1/audio/speech",status="200"}'] == 1
    assert seen['requests_total{route="none",status="404"}'] == 1
    assert seen['requests_total{route="/v1/stream",status="101"}'] == 1
    assert seen["first_audio_seconds_count"] == 2
    assert seen["characters_total"] >= len(TEXT) + len(LONG)
    assert seen["audio_seconds_total"] >= len(answer.body) / 48000 + heard.last["seconds"] - 0.001
    assert seen["process_cpu_seconds_total"] > 0


def test_other_origins_are_off_unless_allowed(gateway: Gateway, make_gateway: Callable[..., Gateway]) -> None:
    page = "https://page.example"
    assert gateway.speak(TEXT, Origin=page).status == 403
    assert gateway.speak(TEXT, Origin=gateway.url).status == 200
    assert "Access-Control-Allow-Origin" not in gateway.speak(TEXT, Origin=gateway.url).headers

    open_one = make_gateway(cors_origins=[page])
    answer = open_one.speak(TEXT, Origin=page)
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == page
    assert open_one.speak(TEXT, Origin="https://other.example").status == 403


def test_a_body_that_is_too_long(make_gateway: Callable[..., Gateway]) -> None:
    gateway = make_gateway(max_body_bytes=1000)
    answer = gateway.speak("a" * 1000)
    assert (answer.status, answer.error["code"]) == (413, "too_large")
    assert gateway.speak(TEXT).status == 200


@in_loop
async def test_the_end_waits_for_the_live_and_refuses_the_new(
    make_gateway: Callable[..., Gateway], triton: Server
) -> None:
    audio, _ = await directly(triton, LINE, seed=SEED)
    gateway = make_gateway()
    async with talking(gateway.ws_url) as live, talking(gateway.ws_url) as idle:
        await live.send("start", seed=SEED)
        await live.send("text", text=LINE[:20])
        assert (await live.event())["type"] == "started"
        gateway.process.send_signal(signal.SIGTERM)
        eventually(lambda: gateway.call("/readyz").status == 503)
        answer = gateway.speak(TEXT)
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert "Retry-After" in answer.headers
        assert "shutting down" in (await idle.say(TEXT)).last["message"]
        assert gateway.call("/healthz").status == 200

        await live.send("text", text=LINE[20:])
        await live.send("close")
        heard = await live.hear()
        assert heard.audio == audio
        assert heard.last["type"] == "done"
        for talk in (live, idle):
            with pytest.raises(ConnectionClosed) as closed:
                await talk.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
    assert gateway.process.wait(SETTLE_S) == 0


@pytest.mark.parametrize("hurried", [False, True])
@in_loop
async def test_the_end_waits_only_so_long(make_gateway: Callable[..., Gateway], triton: Server, hurried: bool) -> None:
    """As `drain_s` says, or until a second signal."""
    gateway = make_gateway(drain_s=3600.0 if hurried else 0.1)
    async with talking(gateway.ws_url) as talk:
        await talk.send("text", text="This will not be ")
        assert (await talk.event())["type"] == "started"
        gateway.process.send_signal(signal.SIGTERM)
        if hurried:
            eventually(lambda: gateway.call("/readyz").status == 503)
            gateway.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            await talk.hear()
    assert gateway.process.wait(SETTLE_S) == 0
    triton.settle(live_streams=0, queued_streams=0)
