"""How sessions end: errors, cancellation, silence, and what is left behind; blocking and asyncio alike."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from dia2_client import (
    AsyncClient,
    AsyncSession,
    Client,
    ConnectionFailed,
    InvalidArgument,
    ServerError,
    SessionEnded,
    Timeout,
    Unavailable,
)

from .peer import WAIT_S, Call, Peer, echo, ends, serving
from .sessions import Begin, asynchronous, heard, played, requests_of, run, unanswering


def refusing(call: Call) -> None:
    """Lets the session begin, waits for a piece, and fails as a whole without answering it."""
    requests = iter(call)
    opening = next(requests)
    next(requests)
    call.error(opening, "UNAVAILABLE: all slots are busy")
    for _ in requests:
        pass


def test_an_error_of_the_first_request_ends_the_session_for_everyone(begin: Begin) -> None:
    async def main(peer: Peer) -> None:
        async with begin(peer.url) as session:
            for use in (session.send("a"), session.send("b"), session.close(), heard(session)):
                with pytest.raises(Unavailable, match=r"^all slots are busy$"):
                    await use
            assert await heard(session) == []  # over, and stays over
            closing = (await asyncio.to_thread(requests_of, peer, 3))[-1]
            assert ends(closing)  # Triton is told that nothing follows

    with serving(refusing) as peer:
        run(main(peer))


def test_an_error_without_an_id_ends_the_session(begin: Begin) -> None:
    def script(call: Call) -> None:
        for _ in call:
            call.error(None, "INTERNAL: broken")
            return

    async def main(peer: Peer) -> None:
        async with begin(peer.url) as session:
            with pytest.raises(ServerError, match="broken"):
                await heard(session)

    with serving(script) as peer:
        run(main(peer))


def test_audio_may_end_before_the_text(begin: Begin) -> None:
    def script(call: Call) -> None:
        requests = iter(call)
        opening = next(requests)
        call.audio(opening, 0.5)
        call.final(opening, finish_reason="length")
        for _ in requests:
            pass

    async def main(peer: Peer) -> None:
        async with begin(peer.url) as session:
            assert played(await heard(session)) == [0.5]
            assert session.finish_reason == "length"
            with pytest.raises(SessionEnded, match="the audio of the session has ended"):
                await session.send("more")
            await session.close()  # nothing to do, and so no error
            await session.cancel()
            assert session.finish_reason == "length"
            assert [ends(request) for request in await asyncio.to_thread(requests_of, peer, 2)] == [False, True]

    with serving(script) as peer:
        run(main(peer))


def test_the_answer_to_close_may_come_behind_the_audio(begin: Begin) -> None:
    def script(call: Call) -> None:
        requests = iter(call)
        opening, closing = next(requests), next(requests)
        call.final(opening, finish_reason="stop")
        call.final(closing)

    async def main(peer: Peer) -> None:
        async with begin(peer.url) as session:
            await session.close()
            await session.close()  # once more changes nothing
            with pytest.raises(SessionEnded):
                await session.send("more")
            assert (await heard(session), session.finish_reason) == ([], "stop")

    with serving(script) as peer:
        run(main(peer))


def test_cancel_stops_the_server_and_releases_everyone(begin: Begin) -> None:
    async def main(peer: Peer) -> None:
        async with begin(peer.url) as session:
            listener, sender = asyncio.create_task(heard(session)), asyncio.create_task(session.send("a"))
            await asyncio.to_thread(requests_of, peer, 2)
            await session.cancel()
            assert await listener == []
            with pytest.raises(SessionEnded):
                await sender
            with pytest.raises(SessionEnded):
                await session.send("b")
            assert session.finish_reason == "cancelled"
            assert await asyncio.to_thread(peer.cancelled.wait, WAIT_S)

    with serving(unanswering) as peer:
        run(main(peer))


def test_the_server_learns_that_no_text_follows_before_the_call_is_cancelled(begin: Begin) -> None:
    def script(call: Call) -> None:
        for request in call:
            if ends(request):
                call.final(request)
        call.over.wait(WAIT_S)

    async def main(peer: Peer) -> None:
        async with begin(peer.url) as session:
            await session.cancel()

    with serving(script) as peer:
        run(main(peer))
        assert peer.cancelled.wait(WAIT_S)
        assert [ends(request) for request in requests_of(peer, 2)] == [False, True]


def test_leaving_early_cancels(begin: Begin) -> None:
    async def main(peer: Peer) -> None:
        async with begin(peer.url) as session:
            await session.send("a")
            async for _ in session:
                break
        assert (await heard(session), session.finish_reason) == ([], "cancelled")

    with serving(echo) as peer:
        run(main(peer))


def test_a_broken_connection_is_told_to_both_sides(begin: Begin) -> None:
    def script(call: Call) -> None:
        requests = iter(call)
        next(requests), next(requests)
        call.abort()

    async def main(peer: Peer) -> None:
        async with begin(peer.url) as session:
            for use in (session.send("a"), heard(session)):
                with pytest.raises(ConnectionFailed, match="the server has gone"):
                    await use

    with serving(script) as peer:
        run(main(peer))


def test_a_call_that_ends_without_the_audios_end_is_a_server_error(begin: Begin) -> None:
    def script(call: Call) -> None:
        next(iter(call))

    async def main(peer: Peer) -> None:
        async with begin(peer.url) as session:
            with pytest.raises(ServerError, match="before the audio"):
                await heard(session)

    with serving(script) as peer:
        run(main(peer))


def test_a_piece_without_an_answer_is_a_timeout_for_both_sides(begin: Begin) -> None:
    async def main(peer: Peer) -> None:
        async with begin(peer.url, timeout_s=0.01) as session:
            for use in (session.send("a"), heard(session)):
                with pytest.raises(Timeout):
                    await use

    with serving(unanswering) as peer:
        run(main(peer))


def test_silence_is_a_timeout_once_the_text_is_closed(begin: Begin) -> None:
    def script(call: Call) -> None:
        requests = iter(call)
        next(requests)
        for request in requests:
            call.final(request)
            if ends(request):
                released.wait(WAIT_S)

    async def main(peer: Peer) -> None:
        async with begin(peer.url, timeout_s=1.0) as session:
            listener = asyncio.create_task(heard(session))  # waits already when the text is closed
            await session.send("a")
            await session.close()
            with pytest.raises(Timeout):
                await listener
            released.set()

    released = threading.Event()
    with serving(script) as peer:
        run(main(peer))


def test_the_clients_end_cancels() -> None:
    async def main(url: str) -> None:
        async with AsyncClient(url) as client:
            session = client.session()
            await session.__aenter__()
        assert (await heard(session), session.finish_reason) == ([], "cancelled")
        await session.__aexit__(None, None, None)

    with serving(unanswering) as peer:
        run(main(peer.url))
        with Client(peer.url) as client:
            left = client.session()
        assert (list(left), left.finish_reason) == ([], "cancelled")


def test_a_dropped_session_is_cancelled() -> None:
    with serving(unanswering) as peer, Client(peer.url) as client:
        session = client.session()
        peer.next()
        del session
        gc.collect()
        assert peer.cancelled.wait(WAIT_S)
        for thread in threading.enumerate():
            if thread.name == "dia2-stream":
                thread.join(WAIT_S)
                assert not thread.is_alive()


def test_cancelling_a_task_that_sends_leaves_the_session() -> None:
    def script(call: Call) -> None:
        requests = iter(call)
        opening, first = next(requests), next(requests)
        second = next(requests)
        call.final(first)  # nobody waits for it any more
        call.final(second)
        call.final(next(requests))
        call.audio(opening, 0.5)
        call.final(opening)

    async def main(peer: Peer) -> None:
        async with asynchronous(peer.url) as session:
            sender = asyncio.create_task(session.send("a"))
            await asyncio.to_thread(requests_of, peer, 2)
            sender.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sender
            await session.send("b")
            await session.close()
            assert played(await heard(session)) == [0.5]

    with serving(script) as peer:
        run(main(peer))


def test_cancelling_the_task_that_listens_cancels_the_session() -> None:
    async def main(peer: Peer) -> None:
        async with asynchronous(peer.url) as session:
            listener = asyncio.create_task(heard(session))
            await asyncio.to_thread(peer.next)
            listener.cancel()
            with pytest.raises(asyncio.CancelledError):
                await listener
            assert session.finish_reason == "cancelled"

    with serving(unanswering) as peer:
        run(main(peer))


def test_a_writer_that_fails_in_a_task_group_ends_the_session() -> None:
    async def main(peer: Peer) -> None:
        async def write(session: AsyncSession) -> None:
            await session.send("a")
            await session.send(None)  # type: ignore[arg-type]

        async def speak() -> None:
            async with asynchronous(peer.url) as session, asyncio.TaskGroup() as tasks:
                tasks.create_task(write(session))
                await heard(session)

        with pytest.raises(ExceptionGroup) as caught:
            await speak()
        assert caught.group_contains(InvalidArgument)

    with serving(echo) as peer:
        run(main(peer))
