"""Every kind of golden case, against the engine's own code paths."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dia2_engine import Engine, Finished, Request
from dia2_engine.audio.io import load_clip
from dia2_engine.model.encoder import MimiEncoder
from dia2_engine.model.sampling import SamplingRows, distribution
from dia2_engine.text.parser import parse_script
from dia2_engine.text.state_machine import Entry, TextMachine
from dia2_engine.voice.plan import TimedWord, plan_prefix
from dia2_engine.voice.voice import PreparedVoice, parse_words
from tests.support import audio_of, speak, tokens_of, words_of

from .conftest import Vectors

LOGIT_TOLERANCE = 1e-4
# Below this gap between the two best candidates, a different but correct order of float operations may flip a token.
DECISIVE_MARGIN = 2e-4


def over(kind: str) -> Callable[[Any], Any]:
    """Run a test for every case of a kind: it gets `vectors` and the case's index."""

    def mark(function: Any) -> Any:
        function.kind = kind
        return function

    return mark


def require(vectors: Vectors, name: str) -> None:
    """Skip where a folder of vectors leaves a kind of case out."""
    if name not in vectors.cases and name not in vectors.tensors:
        pytest.skip(f"{vectors.folder.name} has no {name}")


@pytest.fixture(scope="module")
def engines() -> dict[Any, Engine]:
    return {}


def engine_for(engines: dict[Any, Engine], vectors: Vectors, device: str, **settings: Any) -> Engine:
    key = (vectors.folder, device, *sorted(settings.items()))
    if key not in engines:
        engines[key] = vectors.engine(device, **settings)
    return engines[key]


def entries_as_json(entries: list[Entry]) -> list[dict[str, Any]]:
    return [{"tokens": list(e.tokens), "text": e.text, "padding": e.padding} for e in entries]


def clips(vectors: Vectors, name: str) -> list[tuple[str, tuple[TimedWord, ...]]]:
    words = json.loads((vectors.folder / "prefix_words.json").read_text("utf-8"))
    files = [f"prefix_{speaker}.wav" for speaker in re.findall(r"s\d+", name)]  # "s1s2": two clips
    return [(file, parse_words(file, words[file])) for file in files]


def voice(vectors: Vectors, name: str, tokens: torch.Tensor, engine: Engine, cooldown_frames: int) -> PreparedVoice:
    """A prepared voice from a case's own prefix tokens."""
    frame_samples, rate = engine.frame_samples, engine.sample_rate
    found = clips(vectors, name)
    lengths = [-(-len(load_clip(vectors.folder / file, rate)) // frame_samples) for file, _ in found]
    lengths[-1] += cooldown_frames
    assert sum(lengths) == tokens.shape[1]
    return PreparedVoice(name, tokens.numpy(), tuple(words for _, words in found), tuple(lengths), {})


def assert_words(got: list[tuple[str, float]], want: Sequence[tuple[str, float]]) -> None:
    assert [text for text, _ in got] == [text for text, _ in want]
    assert [start for _, start in got] == pytest.approx([start for _, start in want])


def same_tokens(got: np.ndarray[Any, Any], want: torch.Tensor, margin: float) -> bool:
    """Equal; or, where the case is not decisive, equal up to the first difference."""
    expected = want.numpy()
    if got.shape == expected.shape and np.array_equal(got, expected):
        return True
    if margin >= DECISIVE_MARGIN:
        return False
    pytest.skip(f"margin {margin:.1e} is below {DECISIVE_MARGIN:.0e}: another order of float operations may differ")


# ---- text


def parse(engine: Engine, lines: Sequence[str]) -> list[Entry]:
    shop = engine.workshop
    return parse_script(lines, shop.encode, shop.machine.tokens, shop.frame_rate)


@over("parse")
def test_entries(vectors: Vectors, case: int, engines: dict[Any, Engine]) -> None:
    engine, golden = engine_for(engines, vectors, "cpu"), vectors.cases["parse"][case]
    entries = parse(engine, [golden["script"]])
    assert entries_as_json(entries) == golden["entries"]


@over("parse_lines")
def test_entries_of_lines(vectors: Vectors, case: int, engines: dict[Any, Engine]) -> None:
    engine, golden = engine_for(engines, vectors, "cpu"), vectors.cases["parse_lines"][case]
    entries = parse(engine, golden["lines"])
    assert entries_as_json(entries) == golden["entries"]


@over("machine")
def test_state_machine(vectors: Vectors, case: int, engines: dict[Any, Engine]) -> None:
    engine, golden = engine_for(engines, vectors, "cpu"), vectors.cases["machine"][case]
    entries = parse(engine, [golden["script"]])
    machine = TextMachine(
        engine.workshop.machine.tokens,
        entries,
        lookahead_words=golden["ahead"],
        max_padding=engine.workshop.machine.max_padding,
        initial_padding=golden["initial_padding"],
    )
    trace, transcript = [], []
    for step, (action, *_) in enumerate(golden["steps"]):
        made = machine.step(step, action == 1)
        trace.append([action, made.main, made.second, made.started is not None])
        if made.started is not None and made.started.tokens:
            transcript.append([made.started.text, step])
    assert trace == golden["steps"]
    assert transcript == golden["transcript"]
    assert machine.end_step == golden["end_step"]


def test_token_ids(vectors: Vectors, engines: dict[Any, Engine]) -> None:
    require(vectors, "token_ids")
    engine, golden = engine_for(engines, vectors, "cpu"), vectors.cases["token_ids"]
    got = {
        name: getattr(engine.workshop.machine.tokens, name)
        for name in ("new_word", "pad", "bos", "zero", "spk1", "spk2")
    }
    got |= {"audio_pad": engine.model_config.audio_pad, "audio_bos": engine.model_config.audio_bos}
    assert got == golden


# ---- voices


def test_plans(vectors: Vectors, engines: dict[Any, Engine]) -> None:
    require(vectors, "plans")
    engine = engine_for(engines, vectors, "cpu")
    encoder = MimiEncoder.load(vectors.folder / "checkpoint" / "mimi", codebooks=engine.model_config.codebooks)
    for name, golden in vectors.cases["plans"].items():
        found = clips(vectors, name)
        tokens = [encoder.encode(load_clip(vectors.folder / file, engine.sample_rate)) for file, _ in found]
        lengths = [clip.shape[1] for clip in tokens]
        timed = [(clip_words, frames) for (_, clip_words), frames in zip(found, lengths, strict=True)]
        plan = plan_prefix(timed, engine.workshop.encode, 1 / engine.frame_s, fit=False)
        assert plan.frames == golden["frames"]
        assert list(plan.new_word_steps) == golden["new_word_steps"]
        assert entries_as_json(list(plan.entries)) == golden["entries"]
        expected = vectors.tensors[f"plan.{name}.audio_tokens"].numpy()
        np.testing.assert_array_equal(np.concatenate(tokens, axis=1), expected)


# ---- model


def test_forward(vectors: Vectors, device: str, engines: dict[Any, Engine]) -> None:
    require(vectors, "forward.columns")
    engine, golden = engine_for(engines, vectors, device), vectors.tensors
    model, stack = engine.runner.model, engine.model_config.decoder
    columns = golden["forward.columns"].to(device).permute(1, 0, 2)  # [2, T, 2 + C]
    steps = columns.shape[1]
    positions = torch.arange(steps, device=device)
    mask = (positions[None] <= positions[:, None])[None, None].expand(2, -1, -1, -1)
    rows = positions[None].expand(2, -1)
    keys = torch.zeros((stack.layers, 2, stack.kv_heads, steps, stack.head_dim), device=device)
    with torch.inference_mode():
        hidden = model.transformer(columns, rows, [0], rows, mask, [steps], keys, torch.zeros_like(keys))
        logits = {
            "hidden": hidden,
            "action": model.transformer.action_logits(hidden),
            "cb0": model.transformer.cb0_logits(hidden),
        }
        previous = golden["forward.prev_audio"].to(device)  # [T, 2, C - 1]
        stages = [[] for _ in range(steps)]  # type: list[list[torch.Tensor]]
        for step in range(steps):

            def pick(codebook: int, stage: torch.Tensor, step: int = step) -> torch.Tensor:
                stages[step].append(stage)
                return previous[step, :, min(codebook, previous.shape[-1] - 1)]

            model.depformer(hidden[:, step], columns[:, step, :2], previous[step, :, 0], pick)
    if device == "cuda":
        del logits["hidden"]  # the last norm's weight is part of the products behind it there
    for name, value in logits.items():
        torch.testing.assert_close(
            value.permute(1, 0, 2).cpu(), golden[f"forward.{name}"], rtol=0, atol=LOGIT_TOLERANCE
        )
    depth = torch.stack([torch.stack(stage, dim=1) for stage in stages]).cpu()
    torch.testing.assert_close(depth, golden["forward.dep"], rtol=0, atol=LOGIT_TOLERANCE)


@over("sampling")
def test_sampling_distribution(vectors: Vectors, device: str, case: int) -> None:
    golden, tensors = vectors.cases["sampling"][case], vectors.tensors
    rows = SamplingRows(
        cfg_scale=torch.tensor([golden["cfg_scale"]], device=device),
        temperature=torch.tensor([golden["temperature"]], device=device),
        top_k=torch.tensor([golden["top_k"]], device=device),
        filter_k=golden["cfg_filter_k"],
    )
    weights = distribution(tensors[f"sampling.{case}.logits"].to(device)[None], rows)[0].cpu()
    torch.testing.assert_close(weights / weights.sum(), tensors[f"sampling.{case}.probs"], rtol=1e-4, atol=1e-6)


# ---- whole generations


@over("generations")
def test_generation(vectors: Vectors, device: str, case: int, engines: dict[Any, Engine]) -> None:
    """The reference's own behaviour, token for token."""
    golden, tensors = vectors.cases["generations"][case], vectors.tensors
    engine = engine_for(
        engines, vectors, device, boundary="reference", cfg_filter_k=golden["cfg_filter_k"], cooldown_frames=0
    )
    name = golden["prefix"]
    if name and name not in engine.voices:
        tokens = tensors[f"plan.{name}.audio_tokens"]
        engine.voices[name] = engine.add_voice(voice(vectors, name, tokens, engine, 0))
    stream, events = speak(
        engine, Request(golden["script"], voice=name or "none", seed=1, cfg_scale=golden["cfg_scale"])
    )
    assert same_tokens(tokens_of(stream), tensors[f"gen.{case}.aligned_tokens"], golden["min_margin"])
    delayed = tensors[f"gen.{case}.delayed_tokens"].numpy()
    grid = stream.boundary.grid
    for codebook, delay in enumerate(grid.delays):  # cells before a codebook's first frame are noise nobody reads
        got = grid.cells[codebook, delay : delayed.shape[1]]
        np.testing.assert_array_equal(got, delayed[codebook, delay:])
    assert (stream.boundary.first_frame or 0) == golden["first_word_frame"]
    assert_words(words_of(events), golden["timestamps"])
    if f"gen.{case}.waveform" in tensors:
        waveform = tensors[f"gen.{case}.waveform"].numpy()
        np.testing.assert_allclose(audio_of(events), waveform, rtol=0, atol=LOGIT_TOLERANCE)


@over("seamless")
def test_seamless(vectors: Vectors, device: str, case: int, engines: dict[Any, Engine]) -> None:
    """The safe boundary protocol, from the case's own prefix tokens."""
    golden, tensors = vectors.cases["seamless"][case], vectors.tensors
    engine = engine_for(engines, vectors, device, kick=golden["kick"], cfg_filter_k=golden["cfg_filter_k"], debug=True)
    tokens = tensors[f"seamless.{case}.prefix_tokens"]
    name = f"{golden['prefix']}-{case}"
    prepared = voice(vectors, golden["prefix"], tokens, engine, golden["cooldown_frames"])
    engine.voices[name] = engine.add_voice(prepared)
    stream, events = speak(engine, Request(golden["script"], voice=name, seed=1, cfg_scale=golden["cfg_scale"]))
    assert same_tokens(tokens_of(stream), tensors[f"seamless.{case}.aligned_tokens"], golden["min_margin"])
    assert stream.boundary.first_frame == tokens.shape[1]
    assert events[-1] == Finished("stop", golden["frames"])
    assert_words(words_of(events), [(text, frame * engine.frame_s) for text, frame in golden["words"]])


# ---- codec


@pytest.mark.parametrize("chunks", [(1,), (2,), (5,), (1, 2, 5, 3)], ids=["1", "2", "5", "mixed"])
def test_codec_streams(vectors: Vectors, device: str, chunks: tuple[int, ...], engines: dict[Any, Engine]) -> None:
    """Streaming in any chunking equals the whole-sequence decode."""
    require(vectors, "mimi.codes")
    engine, golden = engine_for(engines, vectors, device), vectors.tensors
    codes = golden["mimi.codes"].numpy()
    engine.runner.restore(0, None)
    out, start, turn = [], 0, 0
    while start < codes.shape[1]:
        chunk = codes[None, :, start : start + chunks[turn % len(chunks)]]
        out.append(engine.runner.decode([0], chunk)[0])
        start, turn = start + chunk.shape[2], turn + 1
    whole = golden["mimi.waveform"].numpy().clip(-1, 1)  # recorded before the reference clamps
    np.testing.assert_allclose(np.concatenate(out), whole, rtol=0, atol=LOGIT_TOLERANCE)


def test_vectors_are_documented_files(vectors: Vectors) -> None:
    missing = [
        f for f in ("cases.json", "cases.safetensors", "prefix_words.json") if not Path(vectors.folder, f).exists()
    ]
    assert not missing
