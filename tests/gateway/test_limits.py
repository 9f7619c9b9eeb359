"""What one key may use, and what happens when the back ends are full."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from dia2_gateway.config import Limits
from dia2_gateway.errors import ApiError, BadRequest, TooMany
from dia2_gateway.keys import digest
from dia2_gateway.limits import Allowance

from .conftest import LONG, Gateway, eventually
from .talk import in_loop, talking

pytestmark = pytest.mark.server

TEXT = "One two three four."
KEYS = {"small": "a-key", "other": "b-key"}
SMALL, OTHER = ({"Authorization": f"Bearer {key}"} for key in KEYS.values())


def test_a_minute_holds_so_many_requests() -> None:
    allowance = Allowance(Limits(requests_per_minute=3))
    for _ in range(3):
        allowance.take()
        allowance.give_back()
    with pytest.raises(TooMany) as refused:
        allowance.take()
    assert refused.value.retry_after_s is not None
    assert 0 < refused.value.retry_after_s <= 20  # one of three comes back in 20 s
    assert allowance.live == 0


def test_no_limit_is_no_limit() -> None:
    allowance = Allowance(Limits(characters_per_request=0))
    for _ in range(1000):
        allowance.take()
    allowance.check_characters(10**9)
    with pytest.raises(BadRequest, match="2 characters; allowed: 1"):
        Allowance(Limits(characters_per_request=1)).check_characters(2)


def test_retry_after_is_in_whole_seconds() -> None:
    for seconds, told in ((0.01, "1"), (1.0, "1"), (1.2, "2"), (20, "20")):
        assert TooMany("", retry_after_s=seconds).headers == {"Retry-After": told}
    assert ApiError("").headers == {}


@in_loop
async def test_the_limits_of_a_key(make_gateway: Callable[..., Gateway]) -> None:
    """Those of one key do not touch another."""
    small = {"sha256": digest(KEYS["small"]), "requests_per_minute": 4, "concurrent_streams": 1}
    gateway = make_gateway(
        keys={"small": {**small, "characters_per_request": 2000}, "other": {"sha256": digest(KEYS["other"])}}
    )
    async with talking(gateway.ws_url, additional_headers=SMALL) as talk:
        await talk.send("tts", text=LONG)
        await talk.hear_audio()

        answer = gateway.speak(TEXT, **SMALL)
        assert (answer.status, answer.error["code"]) == (429, "too_many_requests")
        assert answer.headers["Retry-After"] == "1"
        async with talking(gateway.ws_url, additional_headers=SMALL) as second:
            refused = (await second.say(TEXT)).last
            assert (refused["code"], refused["retry_after_s"]) == ("too_many_requests", 1.0)
        assert gateway.speak(TEXT, **OTHER).status == 200

        await talk.send("cancel")
        assert (await talk.hear()).last["type"] == "cancelled"
        await talk.send("start")
        await talk.send("text", text="a" * 1500)
        await talk.send("text", text="b" * 501)  # with what went before, it is too long
        events = [await talk.event(), await talk.event()]
        (refused,) = [event for event in events if event["type"] == "error"]
        assert refused["field"] == "text"
        assert "allowed: 2000" in refused["message"]
        await talk.send("cancel")
        last = (await talk.hear()).last
        assert last["type"] == "cancelled", last

    for _ in range(2):  # the third and the fourth; refused ones are not counted
        assert gateway.speak(TEXT, **SMALL).status == 200
    answer = gateway.speak(TEXT, **SMALL)
    assert answer.status == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 15
    assert gateway.speak(TEXT, **OTHER).status == 200


@in_loop
async def test_a_full_gateway_queues_some_and_refuses_the_rest(make_gateway: Callable[..., Gateway]) -> None:
    gateway = make_gateway(streams_per_backend=1, queue=1)
    async with talking(gateway.ws_url) as first, talking(gateway.ws_url) as second, talking(gateway.ws_url) as third:
        await first.send("tts", text=LONG)
        await first.hear_audio()
        await second.send("tts", text=TEXT)
        eventually(lambda: gateway.metrics()["waiting"] == 1)
        refused = (await third.say(TEXT)).last
        assert refused["code"] == "overloaded"
        assert "the queue is full" in refused["message"]
        answer = gateway.speak(TEXT)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")

        await second.send("cancel")  # who waits may leave
        assert (await second.hear()).last == {"type": "cancelled", "spoken": [], "seconds": 0.0}
        eventually(lambda: gateway.metrics()["waiting"] == 0)
        await third.send("tts", text=TEXT)
        eventually(lambda: gateway.metrics()["waiting"] == 1)
        await first.send("cancel")
        await first.hear()
        assert (await third.hear()).last["type"] == "done"
    gateway.settle()


@in_loop
async def test_nobody_waits_for_ever(make_gateway: Callable[..., Gateway]) -> None:
    gateway = make_gateway(streams_per_backend=1, queue_timeout_s=0.3)
    async with talking(gateway.ws_url) as first:
        await first.send("tts", text=LONG)
        await first.hear_audio()
        answer = gateway.speak(TEXT)
    assert answer.status == 503
    assert "no place was free within 0.3 s" in answer.error["message"]
    gateway.settle()


@in_loop
async def test_who_leaves_the_queue_leaves_no_place_behind(make_gateway: Callable[..., Gateway]) -> None:
    """A caller who disconnects while it waits, and one whose place comes at the moment of leaving."""
    gateway = make_gateway(streams_per_backend=1)
    for _ in range(3):
        async with talking(gateway.ws_url) as first:
            await first.send("tts", text=LONG)
            await first.hear_audio()
            async with talking(gateway.ws_url) as second:
                await second.send("tts", text=LONG)
                eventually(lambda: gateway.metrics()["waiting"] == 1)
        gateway.settle()
    assert gateway.speak(TEXT).status == 200
