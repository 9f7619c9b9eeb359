"""API keys, over every road on which they come."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from dia2_gateway.keys import digest, new_key
from websockets.exceptions import InvalidStatus

from .conftest import Gateway
from .talk import in_loop, talking

pytestmark = pytest.mark.server

TEXT = "One two three four."


def test_keys_differ_and_hashes_are_theirs_alone() -> None:
    keys = {new_key() for _ in range(100)}
    assert len({digest(key) for key in keys}) == len(keys) == 100
    assert all(key.startswith("dia2_") and len(key) > 40 for key in keys)


@in_loop
async def test_only_who_has_a_key_may_speak(make_gateway: Callable[..., Gateway]) -> None:
    one, two, unknown = new_key(), new_key(), new_key()
    gateway = make_gateway(keys={"one": {"sha256": digest(one)}, "two": {"sha256": digest(two)}})

    for headers in ({}, {"Authorization": f"Bearer {unknown}"}, {"Authorization": one[:-1]}, {"xi_api_key": "\xe9"}):
        answer = gateway.speak(TEXT, **headers)
        assert answer.status == 401
        assert answer.error["code"] == "unauthorized"
    for headers in ({"Authorization": f"Bearer {one}"}, {"authorization": f"bearer {two}"}, {"xi_api_key": one}):
        assert gateway.speak(TEXT, **headers).status == 200
    assert gateway.call(f"/v1/audio/voices?api_key={one}").status == 401  # a query ends in logs; only a browser must
    assert gateway.call("/v1/audio/voices", Authorization=f"Bearer {one}").status == 200
    for path in ("/healthz", "/readyz", "/metrics", "/"):
        assert gateway.call(path).status == 200

    for headers in ({}, {"xi-api-key": unknown}):
        with pytest.raises(InvalidStatus) as refused:
            async with talking(gateway.ws_url, additional_headers=headers):
                raise AssertionError("connected")
        assert refused.value.response.status_code == 401
        assert b"unauthorized" in (refused.value.response.body or b"")
    async with talking(gateway.ws_url, additional_headers={"Authorization": f"Bearer {two}"}) as talk:
        assert (await talk.say(TEXT)).last["type"] == "done"
    for query in (f"?api_key={one}", f"?authorization=Bearer%20{one}"):
        async with talking(gateway.ws_url, query) as talk:
            assert (await talk.say(TEXT)).last["type"] == "done"

    spoken = [line["key"] for line in gateway.log() if line["event"] == "utterance"]
    assert spoken == ["one", "two", "one", "two", "one", "one"]
    log = gateway.log_file.read_text()
    for secret in (one, two, unknown, "api_key=", TEXT):
        assert secret not in log
    assert one not in gateway.call("/metrics").body.decode()
