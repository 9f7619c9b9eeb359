"""Sessions against a gRPC server in this process: the blocking and the asyncio one alike."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dia2_client import (
    AsyncClient,
    Client,
    InvalidArgument,
    Unavailable,
    Word,
)

from .peer import Call, Peer, echo, ends, serving, text_of
from .sessions import Begin, heard, played, requests_of, run


def test_what_is_said_is_spoken_in_order(begin: Begin) -> None:
    async def main(peer: Peer) -> None:
        async with begin(peer.url, voice="anna", seed=7) as session:
            for piece in ("hel", "lo ", "there"):
                await session.send(piece)
            await session.flush()
            await session.send("bye", flush=True)
            await session.close()
            chunks = await heard(session)
            assert played(chunks) == [0.01, 0.02, 0.03, 0.04]
            assert [chunk.audio.size for chunk in chunks] == [100] * 4
            assert session.words == tuple(word for chunk in chunks for word in chunk.words)
            assert [word.text for word in session.words] == ["hel", "lo ", "there", "bye"]
            assert (session.sample_rate, session.finish_reason) == (1000, "stop")

    with serving(echo) as peer:
        run(main(peer))
        requests = requests_of(peer, 7)
        assert peer.received.empty()
    assert [text_of(request) for request in requests] == ["", "hel", "lo ", "there", "", "bye", ""]
    assert [request.parameters["sequence_start"].bool_param for request in requests] == [True] + [False] * 6
    assert [ends(request) for request in requests] == [False] * 6 + [True]
    assert len({request.id for request in requests}) == 7
    assert len({request.parameters["sequence_id"].string_param for request in requests}) == 1
    names = [[tensor.name for tensor in request.inputs] for request in requests]
    text, flush = ["TEXT"], ["TEXT", "FLUSH"]
    assert names == [["TEXT", "VOICE", "SEED"], text, text, text, flush, flush, text]
    assert {request.model_name for request in requests} == {"dia2_session"}


def test_one_task_sends_while_another_listens(begin: Begin) -> None:
    async def main(peer: Peer) -> None:
        async with begin(peer.url) as session:
            listener = asyncio.create_task(heard(session))
            for piece in "abc":
                await session.send(piece)
            await session.close()
            assert played(await listener) == [0.01, 0.02, 0.03]

    with serving(echo) as peer:
        run(main(peer))


def test_every_session_is_a_sequence_of_its_own(begin: Begin) -> None:
    async def main(peer: Peer) -> None:
        for _ in range(2):
            async with begin(peer.url) as session:
                await session.close()

    with serving(echo) as peer:
        run(main(peer))
        ids = {request.parameters["sequence_id"].string_param for request in requests_of(peer, 4)}
    assert sorted(map(len, ids)) == [32, 32]


def test_spoken_is_what_has_begun_to_be_heard(begin: Begin) -> None:
    async def main(peer: Peer) -> None:
        async with begin(peer.url) as session:
            for piece in "abc":
                await session.send(piece)
            assert session.words == ()  # what nobody has taken cannot have been heard
            await anext(session)
            await anext(session)
            a, b = Word("a", 0.0), Word("b", 0.1)
            assert session.words == (a, b)
            assert session.spoken(0.0) == ()
            assert session.spoken(0.1) == (a,)  # the sample at 0.1 s comes next
            assert session.spoken(0.101) == session.spoken(9.9) == (a, b)
            assert await session.cancel(0.05) == (a,)
            assert await session.cancel() == (a, b)
            assert session.finish_reason == "cancelled"

    with serving(echo) as peer:
        run(main(peer))


def test_answers_go_to_who_is_waiting_for_them(begin: Begin) -> None:
    def script(call: Call) -> None:
        requests = iter(call)
        opening = next(requests)
        good, bad = sorted([next(requests), next(requests)], key=text_of, reverse=True)
        call.audio(opening, 0.5)
        call.error(bad, "INVALID_ARG: TEXT is too long")
        call.final(good)
        call.final(next(requests))
        call.final(opening)

    async def main(peer: Peer) -> None:
        async with begin(peer.url) as session:
            answers = await asyncio.gather(session.send("good"), session.send("bad"), return_exceptions=True)
            assert answers[0] is None
            assert isinstance(answers[1], InvalidArgument)
            assert str(answers[1]) == "TEXT is too long"
            await session.close()
            assert played(await heard(session)) == [0.5]  # the session has not noticed

    with serving(script) as peer:
        run(main(peer))


@pytest.mark.parametrize("text", ["\ud800", None])
def test_what_cannot_be_sent_changes_nothing(begin: Begin, text: Any) -> None:
    async def main(peer: Peer) -> None:
        async with begin(peer.url) as session:
            with pytest.raises(InvalidArgument, match=r"^text: "):
                await session.send(text)
            await session.send("a")
            await session.close()
            assert played(await heard(session)) == [0.01]

    with serving(echo) as peer:
        run(main(peer))


def test_options_that_cannot_be_sent_are_refused_before_anything_is(begin: Begin) -> None:
    async def main() -> None:
        for options, kind in (({"seed": 2**70}, InvalidArgument), ({"max_seconds": 1}, TypeError)):
            with pytest.raises(kind):
                await begin("127.0.0.1:1", **options).__aenter__()

    run(main())


def test_a_server_without_sessions_is_unavailable(begin: Begin) -> None:
    async def main(peer: Peer) -> None:
        with pytest.raises(Unavailable, match="no model dia2_session ready"):
            async with begin(peer.url):
                pass

    with serving(echo, "dia2_stream") as peer:
        run(main(peer))


def test_sessions_have_a_model_of_their_own() -> None:
    with serving(echo, "mine") as peer, Client(peer.url, session_model="mine") as client:
        with client.session() as session:
            session.close()
            assert list(session) == []
        assert peer.next().model_name == "mine"
        with pytest.raises(Unavailable, match="no model dia2_stream ready"):
            client.stream("hello")


def test_an_asyncio_session_begins_with_its_context() -> None:
    async def main() -> None:
        session = AsyncClient("127.0.0.1:1").session()
        for use in (session.send("a"), session.close(), heard(session)):
            with pytest.raises(RuntimeError, match="async with"):
                await use

    run(main())
