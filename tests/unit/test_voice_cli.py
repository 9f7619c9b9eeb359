"""`dia2-voice`, run as its users run it, on the golden clips and a golden checkpoint."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from dia2_engine import Request
from dia2_engine.voice.cli import main
from dia2_engine.voice.voice import load_prepared, load_voice_folder
from tests.support import VECTORS, audio_of, make_engine, speak, write_voices

GOLDEN = VECTORS / "small"
CHECKPOINT = str(GOLDEN / "checkpoint")
RATE = 24_000
WORDS: dict[str, list[dict[str, Any]]] = json.loads((GOLDEN / "prefix_words.json").read_text("utf-8"))
TEXTS = [word["text"] for word in WORDS["prefix_s1.wav"]]
ONE, TWO = str(GOLDEN / "prefix_s1.wav"), str(GOLDEN / "prefix_s2.wav")


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


class Bench:
    """A scratch folder to run the command in."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self.voices, self._capture = folder, folder / "voices", capture
        self.words = [self.write(f"{i + 1}.json", WORDS[f"prefix_s{i + 1}.wav"]) for i in range(2)]

    def write(self, name: str, value: Any) -> str:
        (self.folder / name).write_text(json.dumps(value), "utf-8")
        return str(self.folder / name)

    def run(self, *arguments: str) -> Result:
        self._capture.readouterr()
        status = main([*arguments, "--checkpoint", CHECKPOINT])
        return Result(status, *self._capture.readouterr())

    def prepare(self, *arguments: str) -> Result:
        return self.run("prepare", *arguments, "--out", str(self.voices))

    def wav(self, name: str, audio: NDArray[Any], rate: int = RATE) -> str:
        soundfile.write(self.folder / name, audio, rate, subtype="PCM_16")
        return str(self.folder / name)


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)


def recorded() -> NDArray[np.float32]:
    audio: NDArray[np.float32] = soundfile.read(ONE, dtype="float32")[0]
    return audio


# ---- prepare


def test_a_clip_and_its_words_become_a_voice_that_an_engine_speaks_in(bench: Bench) -> None:
    result = bench.prepare(ONE, "--words", bench.words[0], "--name", "anna")
    assert (result.status, result.err) == (0, "")
    assert result.out.endswith(f"wrote {bench.voices / 'anna.safetensors'}\n")
    assert [path.name for path in bench.voices.iterdir()] == ["anna.safetensors"]
    engine = make_engine(voices=str(bench.voices))
    voice = engine.voices["anna"]
    assert f"length: {voice.prefix.frames} frames (P)" in result.out
    assert f"cut: frame {voice.prefix.cut};" in result.out
    shown = [int(frame) for frame in re.findall(r"frame +(\d+) +[\d.]+ s", result.out)]
    assert shown == sorted(voice.prefix.word_steps)
    _, events = speak(engine, Request("[S1] Hello.", voice="anna", seed=1))
    assert audio_of(events).size


def test_it_is_what_the_server_makes_of_the_same_folder(bench: Bench) -> None:
    """The defaults are the server's own, so preparing ahead changes nothing that is heard."""
    write_voices(bench.folder / "folders")
    for name in ("solo", "duo"):
        assert bench.prepare(str(bench.folder / "folders" / name)).status == 0
    slow, fast = make_engine(voices=str(bench.folder / "folders")), make_engine(voices=str(bench.voices))
    for name in ("solo", "duo"):
        assert np.array_equal(slow.voices[name].prefix.columns, fast.voices[name].prefix.columns)


def test_two_clips_are_two_speakers(bench: Bench) -> None:
    result = bench.prepare(ONE, TWO, "--words", *bench.words, "--name", "both")
    assert result.status == 0
    voice = load_prepared(bench.voices / "both.safetensors", 8, 2048)
    assert [[word.text for word in clip] for clip in voice.words] == [TEXTS, ["Sure,", "thanks."]]


def test_one_clip_is_both_speakers_unless_solo(bench: Bench) -> None:
    bench.prepare(ONE, "--words", bench.words[0], "--name", "both")
    bench.prepare(ONE, "--words", bench.words[0], "--name", "one", "--solo")
    assert len(load_prepared(bench.voices / "both.safetensors", 8, 2048).words) == 2
    assert len(load_prepared(bench.voices / "one.safetensors", 8, 2048).words) == 1


def test_cooldown_and_fade_are_recorded_and_made(bench: Bench) -> None:
    arguments = [ONE, "--words", bench.words[0], "--solo"]
    bench.prepare(*arguments, "--name", "default")
    bench.prepare(*arguments, "--name", "long", "--cooldown-frames", "12", "--fade-ms", "5")
    default = load_prepared(bench.voices / "default.safetensors", 8, 2048)
    long = load_prepared(bench.voices / "long.safetensors", 8, 2048)
    assert (default.provenance["cooldown_frames"], default.provenance["fade_ms"]) == ("6", "20.0")
    assert (long.provenance["cooldown_frames"], long.provenance["fade_ms"]) == ("12", "5.0")
    assert long.tokens.shape[1] == default.tokens.shape[1] + 6
    assert len(long.provenance["codec_sha256"]) == 64


@pytest.mark.parametrize("form", ["segments", "words", "list"])
def test_words_as_recognisers_write_them(bench: Bench, form: str) -> None:
    heard = [{"word": f" {w['text']}", "start": w["start"], "end": w["end"], "probability": 0.9} for w in
             WORDS["prefix_s1.wav"]]  # fmt: skip
    forms = {
        "segments": {"text": "...", "segments": [{"id": 0, "words": heard[:3]}, {"id": 1, "words": heard[3:]}]},
        "words": {"language": "en", "words": heard},
        "list": WORDS["prefix_s1.wav"],
    }
    path = bench.write("heard.json", forms[form])
    assert bench.prepare(ONE, "--words", path, "--name", "anna").status == 0
    voice = load_prepared(bench.voices / "anna.safetensors", 8, 2048)
    assert [word.text for word in voice.words[0]] == TEXTS


def test_a_folder_can_be_written_edited_and_prepared(bench: Bench) -> None:
    result = bench.prepare(ONE, TWO, "--words", *bench.words, "--name", "both", "--folder")
    assert result.status == 0
    folder = bench.voices / "both"
    assert sorted(path.name for path in folder.iterdir()) == ["speaker_1.wav", "speaker_2.wav", "voice.json"]
    assert (folder / "speaker_1.wav").read_bytes() == Path(ONE).read_bytes()
    manifest = json.loads((folder / "voice.json").read_text("utf-8"))
    manifest["speakers"][0]["words"][0]["text"] = "Market,"
    (folder / "voice.json").write_text(json.dumps(manifest), "utf-8")
    assert bench.prepare(str(folder)).status == 0
    voice = load_prepared(bench.voices / "both.safetensors", 8, 2048)
    assert voice.words[0][0].text == "Market,"


@pytest.mark.parametrize("solo", [False, True])
def test_a_written_folder_says_who_speaker_2_is(bench: Bench, solo: bool) -> None:
    flags = ["--solo"] if solo else []
    assert bench.prepare(ONE, "--words", bench.words[0], "--name", "v", "--folder", *flags).status == 0
    assert len(load_voice_folder(bench.voices / "v", RATE).clips) == (1 if solo else 2)


def test_nothing_is_replaced_without_force(bench: Bench) -> None:
    for extra, out in (([], "anna.safetensors"), (["--folder"], "anna/voice.json")):
        arguments = [ONE, "--words", bench.words[0], "--name", "anna", *extra]
        assert bench.prepare(*arguments).status == 0
        before = (bench.voices / out).read_bytes()
        again = bench.prepare(TWO, "--words", bench.words[1], "--name", "anna", *extra)
        assert again.status == 1
        assert "exists; --force replaces it" in again.err
        assert (bench.voices / out).read_bytes() == before
        assert bench.prepare(TWO, "--words", bench.words[1], "--name", "anna", "--force", *extra).status == 0
        assert (bench.voices / out).read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([ONE], "from one of two places: --words FILE.json for each clip, or --whisper MODEL"),
        ([ONE, "--words", "{1}", "--whisper", "tiny"], "from one of two places"),
        ([ONE, TWO, "--words", "{1}"], "--words needs one file per clip: 2 clips, 1 files"),
        ([ONE, TWO, "--words", "{1}", "{2}", "--solo"], "--solo is for one clip, and two are given"),
        ([ONE, TWO, ONE, "--words", "{1}"], "a voice has one or two clips, not 3"),
        ([ONE, "--words", "{1}", "--name", "none"], "'none' is reserved"),
        ([ONE, "--words", "{1}", "--name", "../anna"], "--name is '../anna'; it must be a plain file name"),
        ([ONE, "--words", "{1}", "--name", ".anna"], "it must be a plain file name"),
        ([ONE, "--words", "{1}", "--cooldown-frames", "-1"], "cooldown_frames is -1; allowed: 0 to 250"),
        ([ONE, "--words", "{1}", "--fade-ms", "nan"], "fade_ms is nan; allowed: 0 to 1000"),
        (["gone.wav", "--words", "{1}"], "gone.wav: there is no such file"),
        (["{folder}", "--words", "{1}"], "--words cannot be used with a voice folder"),
        (["{folder}", ONE], "a voice folder brings both of its clips"),
        (["{folder}"], "is no voice folder; it holds no voice.json"),
        ([ONE, "--words", "gone.json"], "gone.json: cannot be read as JSON"),
        (["{1}", "--words", "{1}"], "1.json: cannot be read as audio"),
    ],
)
def test_mistakes_are_explained_and_nothing_is_written(bench: Bench, arguments: list[str], message: str) -> None:
    (bench.folder / "empty").mkdir()
    places = {"{1}": bench.words[0], "{2}": bench.words[1], "{folder}": str(bench.folder / "empty")}
    result = bench.prepare(*(places.get(argument, argument) for argument in arguments))
    assert result.status == 1
    assert result.err.startswith("dia2-voice: error: ")
    assert message in result.err
    assert not bench.voices.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"text": "Hello"}, "holds neither a list of words, nor 'words', nor 'segments'"),
        ({"segments": [{"text": "Hello"}]}, "segments[0] has no 'words'; ask Whisper for word timestamps"),
        ({"segments": [{"words": [{"word": "2"}]}]}, "words[0] is {'word': '2', 'text': '2'}; it needs text, start"),
        ({"segments": []}, "needs 'words', a list"),
        ([{"text": "b", "start": 1, "end": 2}, {"text": "a", "start": 0, "end": 1}], "words[1] starts at 0.0 s"),
    ],
)
def test_words_that_cannot_be_used(bench: Bench, words: Any, message: str) -> None:
    path = bench.write("bad.json", words)
    result = bench.prepare(ONE, "--words", path)
    assert result.status == 1
    assert f"{path}" in result.err
    assert message in result.err


def test_a_checkpoint_that_is_not_there(capsys: pytest.CaptureFixture[str], bench: Bench) -> None:
    assert main(["check", str(bench.folder), "--checkpoint", str(bench.folder / "gone")]) == 1
    assert "is neither a folder nor a repository" in capsys.readouterr().err


# ---- what is wrong with a recording


def spoil(name: str) -> tuple[NDArray[Any], int]:
    audio, silence = recorded(), np.zeros(round(1.5 * RATE), np.float32)
    second = np.arange(len(audio)) / RATE
    return {
        "clipped": (np.clip(audio * 50, -1, 1), RATE),
        "quiet": (audio * (0.01 / np.abs(audio).max()), RATE),
        "silent": (np.full(len(audio), 1e-4, np.float32), RATE),
        "late end": (np.concatenate([audio, silence]), RATE),
        "telephone": (audio[::3], RATE // 3),
        "short": (audio[: 2 * RATE], RATE),
        "cut": (audio[: round(2.6 * RATE)], RATE),
        "hole": (np.where((second > 1.85) & (second < 2.13), 0, audio), RATE),
    }[name]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("clipped", r"warning: clip\.wav: [\d.]+% of its samples are at full scale; it is clipped"),
        ("quiet", r"warning: clip\.wav: is very quiet \(peak -40 dBFS\)"),
        ("silent", r"error: clip\.wav: is silent \(peak -8\d dBFS\)"),
        ("late end", r"warning: clip\.wav: ends with 1\.\d s of silence"),
        ("telephone", r"warning: clip\.wav: has 8000 Hz"),
        ("short", r"error: clip\.wav: lasts 2\.00 s but 'can' starts at 2\.15 s"),
        ("cut", r"warning: clip\.wav: lasts 2\.60 s but 'help\?' ends at 2\.90 s"),
        ("hole", r"warning: clip\.wav: is silent where 'How' should be, at 1\.90 s"),
    ],
)
def test_what_is_wrong_with_a_recording_is_said(bench: Bench, name: str, complaint: str) -> None:
    result = bench.prepare(bench.wav("clip.wav", *spoil(name)), "--words", bench.words[0])
    assert re.search(complaint, result.out), result.out
    wrong = complaint.startswith("error")
    assert result.status == int(wrong)
    assert (bench.voices / "clip.safetensors").exists() != wrong
    assert "no complaints" not in result.out


def test_a_lead_in_of_silence_is_said(bench: Bench) -> None:
    audio = np.concatenate([np.zeros(2 * RATE, np.float32), recorded()])
    words = [{**w, "start": w["start"] + 2, "end": w["end"] + 2} for w in WORDS["prefix_s1.wav"]]
    result = bench.prepare(bench.wav("clip.wav", audio), "--words", bench.write("later.json", words))
    assert re.search(r"warning: clip\.wav: begins with 2\.\d s of silence; cut it", result.out)


def test_one_complaint_for_a_clip_that_serves_twice(bench: Bench) -> None:
    result = bench.prepare(bench.wav("clip.wav", *spoil("quiet")), "--words", bench.words[0])
    assert result.out.count("very quiet") == 1


def test_a_voice_has_to_leave_room_in_the_context(bench: Bench) -> None:
    """400 steps at 12.5 a second are 32 s, the delay's 18 and the tail included."""
    for seconds, status, complaint in ((20, 0, r"warning: it takes 6\d% of the model's context"), (31, 1, "no room")):
        audio = np.tile(recorded(), 10)[: seconds * RATE]
        clip = bench.wav(f"{seconds}.wav", audio)
        result = bench.prepare(clip, "--words", bench.words[0], "--solo")
        assert result.status == status
        assert re.search(complaint, result.out + result.err)
        assert (bench.voices / f"{seconds}.safetensors").exists() == (status == 0)


# ---- check


def test_check_reports_every_voice_and_fails_if_one_is_bad(bench: Bench) -> None:
    write_voices(bench.voices)
    bench.prepare(ONE, "--words", bench.words[0], "--name", "ready")
    good = bench.run("check", str(bench.voices))
    assert good.status == 0
    assert re.findall(r"^(\w+):$", good.out, re.M) == ["duo", "ready", "solo"]
    assert good.out.count("no complaints") == 3
    assert "left for speech: 26.4 s" in good.out  # 400 steps, less 46 of the voice `solo`, 18 of delay and 6 of tail

    (bench.voices / "broken.safetensors").write_text("no")
    shutil.copytree(bench.voices / "solo", bench.voices / "none")
    bad = bench.run("check", str(bench.voices))
    assert bad.status == 1
    assert "broken.safetensors: not a prepared voice" in bad.out
    assert "the voice name 'none' is reserved" in bad.out
    assert bad.out.count("no complaints") == 3, "the others are still reported"


def test_check_takes_single_voices(bench: Bench) -> None:
    write_voices(bench.voices)
    bench.prepare(ONE, "--words", bench.words[0], "--name", "ready")
    result = bench.run("check", str(bench.voices / "solo"), str(bench.voices / "ready.safetensors"))
    assert result.status == 0
    assert re.findall(r"^(\w+):$", result.out, re.M) == ["solo", "ready"]


def test_check_warns_of_a_folders_recordings(bench: Bench) -> None:
    write_voices(bench.voices)
    soundfile.write(bench.voices / "solo" / "prefix_s1.wav", *spoil("clipped"))
    result = bench.run("check", str(bench.voices / "solo"))
    assert result.status == 0
    assert "full scale" in result.out


def test_check_tells_a_voice_of_another_codec(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.prepare(ONE, "--words", bench.words[0], "--name", "anna")
    assert main(["check", str(bench.voices), "--checkpoint", str(VECTORS / "textdep" / "checkpoint")]) == 1
    assert "was prepared with another codec" in capsys.readouterr().out


def test_check_of_a_folder_without_voices(bench: Bench) -> None:
    result = bench.run("check", str(bench.folder))
    assert result.status == 1
    assert "holds no voice.json" in result.err


# ---- Whisper


def test_without_faster_whisper_the_way_to_get_it_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    result = bench.prepare(ONE, "--whisper", "small.en")
    assert result.status == 1
    assert "pip install faster-whisper" in result.err


def test_words_that_whisper_hears(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the recogniser (its weights are a download), with the shape of its answers."""
    heard = [SimpleNamespace(word=f" {w['text']}", start=np.float64(w["start"]), end=np.float64(w["end"])) for w in
             WORDS["prefix_s1.wav"]]  # fmt: skip

    class Recogniser:
        def __init__(self, model: str) -> None:
            if model != "small.en":
                raise ValueError(f"Invalid model size '{model}'")

        def transcribe(self, audio: str, *, language: str, word_timestamps: bool) -> Any:
            assert (audio, language, word_timestamps) == (ONE, "en", True)
            segments = [SimpleNamespace(words=heard[:2]), SimpleNamespace(words=None), SimpleNamespace(words=heard[2:])]
            return iter(segments), SimpleNamespace(language="en")

    module = ModuleType("faster_whisper")
    module.WhisperModel = Recogniser  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "faster_whisper", module)
    assert bench.prepare(ONE, "--whisper", "small.en", "--name", "anna").status == 0
    voice = load_prepared(bench.voices / "anna.safetensors", 8, 2048)
    assert [word.text for word in voice.words[0]] == TEXTS
    refused = bench.prepare(ONE, "--whisper", "smal.en", "--name", "ben")
    assert refused.status == 1
    assert "Whisper 'smal.en' cannot transcribe" in refused.err


# ---- the command itself


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("prepare", "check"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"dia2-voice {command}" in capsys.readouterr().out.partition("examples:")[2]


def test_it_runs_without_the_models_weights_and_without_a_gpu(bench: Bench) -> None:
    checkpoint = shutil.copytree(CHECKPOINT, bench.folder / "checkpoint")
    (checkpoint / "model.safetensors").unlink()
    command = [sys.executable, "-m", "dia2_engine.voice.cli", "prepare", ONE, "--words", bench.words[0]]
    result = subprocess.run(
        [*command, "--name", "anna", "--checkpoint", str(checkpoint), "--out", str(bench.voices)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error"},
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert (bench.voices / "anna.safetensors").exists()
