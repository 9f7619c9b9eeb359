"""The boundary laboratory: that it measures the product, and that its wrong protocols are wrong in the way they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import boundary
from benchmarks.common import ROOT
from benchmarks.laboratory.generate import Case, choose_voices, pair, read_requests, speak
from benchmarks.laboratory.outputs import CLIP, Heard, Output, Run
from benchmarks.laboratory.plant import COOLDOWN_FRAMES, FRAME, STUTTER_FRAMES, Said, faults
from benchmarks.laboratory.protocols import PROTOCOLS
from benchmarks.laboratory.report import print_report, summarise
from benchmarks.laboratory.score import Codec
from dia2_engine import ConfigError, Engine, Request
from dia2_engine.boundary import BoundaryStream
from dia2_engine.grid import UNFILLED
from dia2_engine.stream import Stream
from dia2_engine.voice.voice import load_voice_folder
from tests.support import VECTORS, audio_of, make_engine, tokens_of, write_voices
from tests.support import speak as speak_alone
from training.recogniser import normalise

CHECKPOINT = VECTORS / "small" / "checkpoint"
CASES = [
    Case(0, "Hello there, how can I help you today?", "duo", 11),
    Case(1, "Please hold for a moment.", "solo", 12),
    Case(2, "The train leaves at ten.", "duo", 13),
]
Codes = NDArray[np.int64]
RATE = 24_000


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voices(tmp_path_factory.mktemp("voices"))


@pytest.fixture(scope="module")
def engine(voices: Path) -> Engine:
    return make_engine(slots=2, voices=str(voices))


class Kept:
    """Keeps the streams that `speak` drives."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.boundaries: dict[int, BoundaryStream] = {}
        protocol = PROTOCOLS[name]
        seeds = {case.seed: case.request for case in CASES}
        parse = engine.parse

        def parsed(request: Request) -> Stream:
            stream = parse(request)
            self.boundaries[seeds[stream.seed]] = stream.boundary
            return stream

        engine.parse = parsed  # type: ignore[method-assign]
        try:
            self.outputs = {output.request: output for output in speak(engine, name, protocol, CASES)}
            assert not any((self.codes(case.request) == UNFILLED).any() for case in CASES)
        finally:
            engine.parse = parse  # type: ignore[method-assign]

    def codes(self, request: int) -> Codes:
        return np.array(self.outputs[request].codes)

    def grid(self, request: int) -> Codes:
        """All cells that the stream knows, [C, columns]."""
        stream = self.boundaries[request]
        return stream.grid.cells[:, : stream.step + 1]


@pytest.fixture(scope="module")
def seamless(engine: Engine) -> Kept:
    return Kept(engine, "seamless")


def test_seamless_is_the_engine_token_for_token(engine: Engine, seamless: Kept) -> None:
    for case in CASES:
        stream, events = speak_alone(engine, Request(case.text, voice=case.voice, seed=case.seed))
        output = seamless.outputs[case.request]
        np.testing.assert_array_equal(seamless.codes(case.request), tokens_of(stream))
        assert (output.reason, output.text, output.voice) == ("stop", case.text, case.voice)
        assert output.first_word_s == 0.0, "kicked"
        prefix = engine.voices[case.voice].prefix.tokens.tolist()
        audio = Codec(str(CHECKPOINT), "").decode(output.codes or [], prefix)
        np.testing.assert_allclose(audio, audio_of(events), atol=1e-4)


def test_undelayed_is_the_same_grid_read_by_columns(engine: Engine, seamless: Kept) -> None:
    kept = Kept(engine, "undelayed")
    for case in CASES:
        codes, prefix = kept.codes(case.request), engine.voices[case.voice].prefix.tokens
        np.testing.assert_array_equal(kept.grid(case.request), seamless.grid(case.request))
        assert codes.shape[1] == seamless.codes(case.request).shape[1] + max(engine.model_config.delays)
        for codebook, delay in enumerate(engine.model_config.delays):
            np.testing.assert_array_equal(codes[codebook, :delay], prefix[codebook, -delay:], "the voice's tail")
            own = seamless.codes(case.request)[codebook]
            np.testing.assert_array_equal(codes[codebook, delay : delay + len(own)], own)


def test_clamp_puts_the_largest_id_in_front_of_the_same_frames(engine: Engine, seamless: Kept) -> None:
    kept = Kept(engine, "clamp")
    for case in CASES:
        codes, early = kept.codes(case.request), max(engine.model_config.delays)
        assert (codes[:, :early] == engine.model_config.codec_vocab - 1).all()
        np.testing.assert_array_equal(codes[:, early:], seamless.codes(case.request))


def test_bos_cooldown_feeds_bos_and_is_seamless_elsewhere(engine: Engine, seamless: Kept) -> None:
    kept, model, count = Kept(engine, "bos-cooldown"), engine.model_config, engine.config.cooldown_frames
    for case in CASES:
        frames = engine.voices[case.voice].prefix.frames
        cells, right = kept.grid(case.request), seamless.grid(case.request)
        assert (cells[:, frames - count : frames] == model.audio_bos).all()
        np.testing.assert_array_equal(cells[:, : frames - count], right[:, : frames - count])
        for codebook, delay in enumerate(model.delays):
            known = slice(frames, frames - count + delay)  # behind them the true voice, up to its last sound
            np.testing.assert_array_equal(cells[codebook, known], right[codebook, known])
        made = cells[:, frames + max(model.delays) - count :]
        assert ((made >= 0) & (made < model.codec_vocab)).all()
        assert kept.codes(case.request).shape[0] == model.codebooks
        assert kept.outputs[case.request].first_word_s == 0.0
    assert any(not np.array_equal(kept.codes(case.request), seamless.codes(case.request)) for case in CASES)


def test_no_prefix_is_the_models_own_voice(engine: Engine) -> None:
    kept = Kept(engine, "no-prefix")
    stream, _ = speak_alone(engine, Request(CASES[0].text, voice="none", seed=CASES[0].seed))
    np.testing.assert_array_equal(kept.codes(0), tokens_of(stream))


# ---- a run


def options(stage: str, run: Path, voices: Path, *more: str) -> list[str]:
    texts = run.parent / "texts.txt"
    texts.write_text("Hello there.\nPlease hold.\n")
    given = ["--checkpoint", str(CHECKPOINT), "--device", "cpu", "--requests", str(texts), "--count", "2"]
    return [stage, str(run), *given, "--voices", str(voices), "--voice", "solo", "duo", *more]


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path, voices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert boundary.main(options("generate", folder, voices, "--protocols", "no-prefix", "seamless")) == 0
    file = folder / "outputs.jsonl"
    whole = file.read_bytes()
    first = Run(folder).outputs()
    assert {key[0] for key in first} == {CLIP, "seamless", "no-prefix"}
    file.write_bytes(whole[:-20])  # stopped within the last line
    wanted = ("no-prefix", "seamless", "clamp", "reference", "no-cooldown", "no-fade")
    assert boundary.main(options("generate", folder, voices, "--protocols", *wanted)) == 0
    outputs = Run(folder).outputs()
    assert {name: sum(key[0] == name for key in outputs) for name in wanted} == dict.fromkeys(wanted, 2)
    assert first.items() <= outputs.items(), "what was there stays, and the same comes again"
    assert len({output.seed for output in outputs.values() if output.protocol != CLIP}) == 2, "the same noise for all"

    prefixes = {name: codes for (name, voice), codes in Run(folder).prefixes().items() if voice == "solo"}
    assert prefixes.keys() == set(wanted) - {"no-prefix", "reference"}, "the others begin with nothing before them"
    frames = {name: len(codes[0]) for name, codes in prefixes.items()}
    assert frames["no-cooldown"] < frames["seamless"] == frames["no-fade"]
    assert prefixes["clamp"] == prefixes["seamless"] != prefixes["no-fade"]

    assert boundary.main(options("generate", folder, voices, "--seed", "2")) == 1
    assert "another seed" in capsys.readouterr().err


def test_voices_and_requests_are_paired_by_turns() -> None:
    cases = pair(["a", "b", "c"], ["x", "y"], 1, every_voice=False)
    assert [(case.text, case.voice) for case in cases] == [("a", "x"), ("b", "y"), ("c", "x")]
    every = pair(["a", "b"], ["x", "y"], 1, every_voice=True)
    assert [(case.text, case.voice) for case in every] == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    assert len({case.seed for case in every}) == 2


def test_voices_of_two_speakers_are_left_out_unless_named(tmp_path: Path, voices: Path) -> None:
    assert set(choose_voices(voices, [])) == {"solo"}
    assert len(choose_voices(voices, ["duo"])["duo"].clips) == 2
    with pytest.raises(ConfigError, match="no voice nobody"):
        choose_voices(voices, ["nobody"])


def test_cut_voices_end_in_a_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert boundary.main(["cut", str(tmp_path), "--voices", str(ROOT / "voices")]) == 0
    for line in capsys.readouterr().out.splitlines():
        cut, whole = (load_voice_folder(folder, RATE) for folder in (Path(line), ROOT / "voices" / Path(line).name))
        for after, before in zip(cut.clips, whole.clips, strict=True):
            assert [word.text for word in after.words] == [word.text for word in before.words]
            assert after.words[-1].start < len(after.audio) / RATE < before.words[-1].end
            np.testing.assert_array_equal(after.audio, before.audio[: len(after.audio)])
            assert loudness(after.audio[-RATE // 100 :]) > loudness(before.audio)
            assert loudness(before.audio[-RATE // 100 :]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (ROOT / "voices").iterdir()}


def loudness(audio: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(audio**2)))


def test_the_requests_are_fit_for_a_recogniser() -> None:
    texts = read_requests(boundary.REQUESTS, 200)
    assert len(set(texts)) == 200
    with pytest.raises(ValueError, match="are asked for"):
        read_requests(boundary.REQUESTS, 10_000)
    example_voices = choose_voices(ROOT / "voices", ["anna", "ben"]).values()
    prefixes = [normalise(text) for voice in example_voices for text in voice.clips]
    theirs = {tuple(words[at : at + 3]) for words in prefixes for at in range(len(words) - 2)}
    for text in texts:
        words = normalise(text)
        assert 4 <= len(words) <= 14, text
        assert not any(character.isdigit() for character in text), text
        assert not theirs & {tuple(words[at : at + 3]) for at in range(len(words) - 2)}, text


# ---- what is made of it


def heard(protocol: str, request: int, voice: str, words: str, speaker: list[float], start: float = 1.0) -> Heard:
    rest = [[1.0 + 0.1 * (index % 5), 8.0, 0.0] for index in range(20)]
    return Heard(protocol, request, voice, words, speaker, [start, 8.0, 0.0], rest, 80.0 * request, 3.0)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    run.begin({"seed": 1, "transcripts": {"x": ["Good morning, it is Ben."], "y": ["Hello from Anna."]}})
    for voice, speaker in (("x", [1.0, 0.0]), ("y", [0.0, 1.0])):
        run.add(Output(CLIP, -1, voice, "..."))
        run.add_heard(heard(CLIP, -1, voice, "...", speaker))
    for request, voice in enumerate("xyxy"):
        run.add(Output("seamless", request, voice, "The train leaves at ten."))
        run.add(Output("clamp", request, voice, "The train leaves at ten."))
    return run


def test_the_report_counts_what_was_heard(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for request, voice in enumerate("xyxy"):
        own = [1.0, 0.0] if voice == "x" else [0.0, 1.0]
        run.add_heard(heard("seamless", request, voice, "The train leaves at 10.", own))
    run.add_heard(heard("clamp", 0, "x", "It is Ben. The train leaves at ten", [0.4, 0.6], start=9.0))
    run.add_heard(heard("clamp", 1, "y", "It is Ben. The train leaves", [0.4, 0.6]))
    report = summarise(run)
    clean, wrong = report["rows"]
    assert [row["protocol"] for row in report["rows"]] == ["seamless", "clamp"]
    assert report["unheard"] == 2
    assert clean["word_error_rate"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert [clean[name]["hits"] for name in ("prefix_repeat", "other_prefix", "voice_match", "bursts")] == [0, 0, 4, 0]
    assert clean["first_audible_ms"]["p50"] == 120
    assert wrong["word_error_rate"]["value"] == pytest.approx((3 + 5) / 10)
    assert clean["against_seamless"] is None
    assert wrong["against_seamless"]["value"] == pytest.approx((3 + 5) / 10)
    assert wrong["repeated"] == [{"request": 0, "voice": "x", "words": "it is ben"}]
    assert wrong["other_prefix"]["hits"] == 1, "request 1 has them too, in the voice that has never said them"
    assert wrong["burst"] == [{"request": 0, "voice": "x", "by": ["level"]}]
    assert (wrong["voice_match"]["hits"], wrong["voice_match"]["of"]) == (1, 2)
    print_report(report)
    printed = capsys.readouterr().out
    assert "| seamless | 4 | 0 of 4 (0.0 to 49.0 %) |" in printed
    assert json.loads(json.dumps(report)) == report


def test_the_planted_faults_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    said, other, clip = (rng.standard_normal(48_000).astype(np.float32) * 0.05 for _ in range(3))
    made = faults(said, other, Said(clip, last_word=40_000), rng)
    assert made["as it is"] is said
    assert made["other voice"] is other
    for name in ("clip's tail", "clip's last word", "stutter", "puffs of noise", "1 s late"):
        np.testing.assert_array_equal(made[name][-len(said) :], said, name)
    tail = made["clip's tail"][: -len(said)]
    silence = COOLDOWN_FRAMES * FRAME
    np.testing.assert_array_equal(tail[:-silence], clip[-(len(tail) - silence) :])
    assert not tail[-silence:].any()
    stutter = made["stutter"][: STUTTER_FRAMES * FRAME].reshape(STUTTER_FRAMES, FRAME)
    assert (stutter == stutter[0]).all()
    assert made["8 dB louder"].shape == said.shape


def test_a_source_is_heard_too(tmp_path: Path, voices: Path) -> None:
    import soundfile

    recordings, folder = tmp_path / "sources", tmp_path / "run"
    recordings.mkdir()
    soundfile.write(recordings / "0001-duo.wav", np.zeros(24_000, np.float32), 24_000)
    more = ["--protocols", "no-prefix", "--sources", str(recordings)]
    assert boundary.main(options("generate", folder, voices, *more)) == 0
    outputs = Run(folder).outputs()
    source, coded = outputs["source", 1, "duo"], outputs["codec", 1, "duo"]
    assert coded == replace(source, protocol="codec", codes=coded.codes, wav="")
    assert np.array(coded.codes).shape == (8, 13)
