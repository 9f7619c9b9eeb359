"""Eight sessions at once on a real server: abandoned, cancelled, starved and well-behaved ones, and no cross-talk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from dia2_client import AsyncClient, Cancelled, Client
from dia2_client.aio_streams import AsyncSession
from numpy.typing import NDArray

from .calls import speak
from .conftest import Server, launched

pytestmark = pytest.mark.server

TEXTS = [
    "Hello there, how can I help you today? I am here for you.",
    "One two three four five six seven eight nine ten eleven.",
    'Please hold. <break time="0.4s"/> Thanks for waiting, here I am again.',
    "[S1] Are you still there? [S2] Yes, I am, and I have time. [S1] Good.",
    "It is ten o'clock: time to go home, my friend, is it not?",
    "This goes on and on, and it does not end before all of it was heard.",
    "This goes on and on, and then its listener has left for good.",
    "This goes on and on, and then somebody interrupts it at last.",
]
STARVED, ABANDONED, CANCELLED = 5, 6, 7


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with both models, so that sessions can be compared with requests."""
    models = ("--models", "dia2_stream", "dia2_session")
    with launched(tmp_path_factory.mktemp("both"), *models, "--set", "slots=8", "--set", "session_idle_s=3600") as one:
        yield one


async def hear(session: AsyncSession) -> NDArray[np.float32]:
    return np.concatenate([np.zeros(0, np.float32), *[chunk.audio async for chunk in session]])


async def talk(url: str) -> list[NDArray[np.float32]]:
    """All sessions, a word of each in turn; returns the audio of those that end by themselves."""
    async with AsyncClient(url, timeout_s=120.0) as client:
        sessions = [client.session(seed=seed) for seed in range(len(TEXTS))]
        for session in sessions:
            await session.__aenter__()
        heard = [asyncio.create_task(hear(session)) for session in sessions[:ABANDONED]]
        words = [text.split(" ") for text in TEXTS]
        for place in range(max(map(len, words))):
            for number, session in enumerate(sessions[:STARVED]):
                if place < len(words[number]):
                    await session.send(words[number][place] + " ")
            for number in (STARVED, ABANDONED, CANCELLED):
                if place < len(words[number]) - 2:
                    await sessions[number].send(words[number][place] + " ")
        await anext(sessions[ABANDONED])
        sessions[ABANDONED]._call.cancel()  # without a word to the server, as a caller that breaks down
        await anext(sessions[CANCELLED])
        spoken = await sessions[CANCELLED].cancel(played_s=3600.0)
        assert [word.text for word in spoken] == words[CANCELLED][: len(spoken)]
        with pytest.raises(Cancelled):
            await hear(sessions[ABANDONED])
        for session in sessions[:STARVED]:
            await session.close()
        audio = await asyncio.gather(*heard[:STARVED])
        assert not heard[STARVED].done(), "it lacks its last words"
        await sessions[STARVED].send(" ".join(words[STARVED][-2:]))
        await sessions[STARVED].close()
        audio.append(await heard[STARVED])
        for session in sessions:
            await session.__aexit__(None, None, None)
        return audio


async def alone(url: str) -> list[NDArray[np.float32]]:
    async with AsyncClient(url, timeout_s=120.0) as client:
        return [(await client.say(text, seed=seed)).audio for seed, text in enumerate(TEXTS[:ABANDONED])]


def test_eight_sessions_at_once(both: Server) -> None:
    """Each sounds like its text in one request, the starved one too, and every slot is free afterwards."""
    wanted = asyncio.run(alone(both.grpc_url))
    audio = asyncio.run(talk(both.grpc_url))
    for got, want in zip(audio, wanted, strict=True):
        np.testing.assert_array_equal(got, want)
    both.settle(live_streams=0, queued_streams=0)


def test_both_models_on_one_server(both: Server) -> None:
    """At the same time, and each as the other and as alone."""
    one_shot = speak(both.grpc_url, TEXTS[0], SEED=0).wait()
    assert one_shot.error is None
    call = speak(both.grpc_url, TEXTS[0], SEED=0)
    with Client(both.grpc_url) as client, client.session(seed=0) as session:
        session.send(TEXTS[0])
        session.close()
        heard = np.concatenate([chunk.audio for chunk in session])
    np.testing.assert_array_equal(heard, one_shot.audio)
    np.testing.assert_array_equal(call.wait().audio, one_shot.audio)
