"""Several Tritons: the load is shared, text that has not been heard yet moves on, and what is lost is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dia2_client import Client

from scripts.supervisor import free_ports
from tests.server.conftest import Server, launched

from .conftest import LINE, LONG, SEED, Gateway, eventually
from .talk import directly, in_loop, talking

pytestmark = pytest.mark.server

SESSIONS = ("--models", "dia2_session")


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Server]:
    """A Triton that may be killed, with one slot and no queue."""
    with launched(tmp_path, *SESSIONS, "--set", "slots=1", "--set", "queue=0") as server:
        yield server


def kill(server: Server) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.launcher.wait(30)


def live(gateway: Gateway, server: Server) -> float:
    return gateway.metrics()[f'live_streams{{backend="{server.grpc_url}"}}']


def ready(gateway: Gateway, server: Server) -> bool:
    return gateway.metrics()[f'backend_ready{{backend="{server.grpc_url}"}}'] == 1


@in_loop
async def test_text_moves_until_it_is_heard(
    mortal: Server, triton: Server, make_gateway: Callable[..., Gateway], tmp_path: Path
) -> None:
    """From a full back end, from one that dies before its first audio; and not from one that dies later."""
    gateway = make_gateway(backends=[mortal.grpc_url, triton.grpc_url])
    audio, _ = await directly(triton, LINE, seed=SEED)

    async with talking(gateway.ws_url) as one, talking(gateway.ws_url) as two:  # the load is shared
        for talk in (one, two):
            await talk.send("tts", text=LONG)
            await talk.hear_audio()
        assert (live(gateway, mortal), live(gateway, triton)) == (1, 1)
    gateway.settle()
    mortal.settle(live_streams=0)

    with Client(mortal.grpc_url) as client, client.session() as session:  # another caller has filled it
        session.send(LONG)
        next(session)
        async with talking(gateway.ws_url) as talk:
            heard = await talk.say(LINE, seed=SEED)
        assert heard.audio == audio
        assert gateway.metrics()["failovers_total"] == 1
    mortal.settle(live_streams=0)

    async with talking(gateway.ws_url) as talk:  # it is frozen before the text, and dies before its first audio
        os.killpg(mortal.pid, signal.SIGSTOP)
        await talk.send("start", seed=SEED)
        for word in LINE.split(" "):
            await talk.send("text", text=word + " ")
        eventually(lambda: live(gateway, mortal) + live(gateway, triton) == 1)
        assert live(gateway, mortal) == 1
        kill(mortal)
        await talk.send("close")
        heard = await talk.hear()
    assert heard.audio == (await directly(triton, LINE + " ", seed=SEED))[0]
    assert [event["type"] for event in heard.events].count("started") == 1
    assert gateway.metrics()["failovers_total"] == 2
    assert not ready(gateway, mortal)
    for _ in range(3):  # nothing goes there
        async with talking(gateway.ws_url) as talk:
            assert (await talk.say("One two three four.")).last["type"] == "done"
    assert gateway.metrics()["failovers_total"] == 2

    port = mortal.grpc_url.rpartition(":")[2]
    (tmp_path / "again").mkdir()
    with launched(tmp_path / "again", *SESSIONS, "--grpc-port", port) as again:  # it comes back, and is used
        eventually(lambda: ready(gateway, again))
        async with talking(gateway.ws_url) as one, talking(gateway.ws_url) as two:
            for talk in (one, two):
                await talk.send("tts", text=LONG)
                await talk.hear_audio()
            kill(again)  # in the middle of one of the two
            heard = await one.hear()
            assert heard.last["type"] == "error"
            assert heard.last["code"] == "backend_failed"
            assert "id" in heard.last
            assert again.grpc_url not in heard.last["message"]
            assert (await one.say("One two three four.")).last["type"] == "done"  # the connection goes on
            await two.send("cancel")
            assert (await two.hear()).last["type"] == "cancelled"
    gateway.settle()


@in_loop
async def test_without_a_back_end(make_gateway: Callable[..., Gateway]) -> None:
    """The gateway runs, and tells everybody."""
    gateway = make_gateway(backends=[f"127.0.0.1:{free_ports(1)[0]}"])
    assert gateway.call("/healthz").status == 200
    answer = gateway.call("/readyz")
    assert answer.status == 503
    assert b'"backends_ready":0' in answer.body
    answer = gateway.speak("One two three four.")
    assert (answer.status, answer.error["code"]) == (503, "overloaded")
    assert int(answer.headers["Retry-After"]) >= 1
    async with talking(gateway.ws_url) as talk:
        assert (await talk.say("One two three four.")).last["code"] == "overloaded"


@in_loop
async def test_the_only_back_end_is_full(mortal: Server, make_gateway: Callable[..., Gateway]) -> None:
    gateway = make_gateway(backends=[mortal.grpc_url])
    with Client(mortal.grpc_url) as client, client.session() as session:
        session.send(LONG)
        next(session)
        answer = gateway.speak("One two three four.")
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert answer.headers["Retry-After"] == "1"
    mortal.settle(live_streams=0)
    assert gateway.speak("One two three four.").status == 200
