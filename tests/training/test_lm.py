"""The training of the language model, on shapes that take milliseconds, against the engine that will run it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dia2_engine import Engine, EngineConfig, Request
from dia2_engine.model.checkpoint import CheckpointFiles, load_dia2
from dia2_engine.model.config import load_model_config
from dia2_engine.voice.plan import TimedWord, plan_prefix
from dia2_engine.voice.voice import PreparedVoice
from training import tokens
from training.codec.export import save_codec
from training.codec.model import Codec
from training.codec.shape import Shape as CodecShape
from training.lm import export
from training.lm.conversation import Conversation, Corpus, read_corpus
from training.lm.model import LanguageModel
from training.lm.pool import IGNORED, Batch, Pool
from training.lm.rows import FORCED, Builder
from training.lm.shape import FRAME_RATE
from training.lm.state import load_average
from training.lm.train import Settings, Trainer, main, new_run

from ..support import speak, tokens_of, words_of
from .test_lm_rows import SHAPE, utterances, write_run

CPU = torch.device("cpu")
CODEC = CodecShape(
    hidden=24, filters=4, layers=1, heads=2, mlp=32, window=6, codebooks=4, codebook_size=16, codebook_dim=8
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def builder(run_folder: Path) -> Builder:
    return Builder(run_folder, Corpus(utterances()))


@pytest.fixture(scope="module")
def pool(builder: Builder) -> Pool:
    pool = Pool(builder.config, CPU, rows=24)
    pool.put(builder.rows(range(24)))
    return pool


@pytest.fixture(scope="module")
def mimi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mimi")
    save_codec(folder, CODEC, Codec(CODEC).state_dict(), step=0)
    return folder


def new_trainer(builder: Builder, settings: Settings) -> Trainer:
    torch.manual_seed(1)
    return Trainer(new_run(LanguageModel(builder.config, settings.dropout), settings, CPU), settings, CPU)


def test_logits_are_those_of_the_engine(run_folder: Path, pool: Pool, tmp_path: Path) -> None:
    """Of both branches of guidance, over whole rows, from the exported weights of 8 bits."""
    torch.manual_seed(2)
    config = load_model_config(run_folder / "config.json")
    export.save_checkpoint(tmp_path, run_folder, LanguageModel(config).state_dict(), step=7)
    ours, step = export.load_checkpoint(tmp_path)
    assert step == 7
    assert all(parameter.requires_grad for parameter in ours.parameters())
    files = CheckpointFiles(config, tmp_path / export.WEIGHTS, tmp_path, tmp_path)
    engine = load_dia2(files, device=CPU, dtype=torch.float32)

    whole, bare = pool.draw(0, 1, depth=1.0), pool.draw(0, 1, depth=1.0, textless=1.0)
    batch = Batch(*(torch.cat(parts) for parts in zip(whole, bare, strict=True)))
    assert not torch.equal(whole.columns, bare.columns)
    following = batch.audio.clamp(min=0)
    steps = torch.arange(config.max_context_steps)
    frames = steps[::3].repeat(2) + config.max_context_steps * torch.tensor([0, 1]).repeat_interleave(len(steps[::3]))
    with torch.no_grad():
        logits = ours(batch.columns, following, frames)
        stack = config.decoder
        keys = torch.zeros(stack.layers, 2, stack.kv_heads, len(steps), stack.head_dim)
        at = steps.repeat(2, 1)
        mask = (steps <= steps[:, None]).expand(2, 1, -1, -1)
        hidden = engine.transformer(batch.columns, at, [0], at, mask, [len(steps)], keys, torch.zeros_like(keys))
        codes, found = following.flatten(0, 1)[frames], []

        def pick(codebook: int, stage: torch.Tensor) -> torch.Tensor:
            found.append(stage)
            return codes[:, codebook]

        engine.depformer(hidden.flatten(0, 1)[frames], codes[:, :2], codes[:, 0], pick)
        torch.testing.assert_close(logits.action, engine.transformer.action_logits(hidden), rtol=1e-4, atol=1e-4)
        cb0 = engine.transformer.cb0_logits(hidden)[..., : config.codec_vocab]
        torch.testing.assert_close(logits.first, cb0, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits.others, torch.stack(found), rtol=1e-4, atol=1e-4)
    assert logits.others.std() > 0.05


def test_a_step_sees_nothing_of_what_it_makes(builder: Builder, pool: Pool) -> None:
    torch.manual_seed(3)
    model, batch, at = LanguageModel(builder.config), pool.draw(1, 2, depth=1.0), 50
    columns, following = batch.columns.clone(), batch.audio.clamp(min=0)
    frames, changed = torch.tensor([at]), following.clone()
    with torch.no_grad():
        before = model(columns, following, frames)
        columns[:, at + 1 :] = 3
        changed[:, at + 1 :] = 5
        after = model(columns, changed, frames)
        assert torch.equal(before.first[:, : at + 1], after.first[:, : at + 1])
        assert torch.equal(before.others, after.others)
        changed[:, at, 2] = (changed[:, at, 2] + 1) % 16  # of codebook 2: it is stage 1 that makes it
        after = model(columns, changed, frames)
        assert torch.equal(before.others[:2], after.others[:2])
        assert not torch.equal(before.others[2], after.others[2])


def test_batches_hold_the_rows_and_what_is_sampled_of_them(builder: Builder) -> None:
    rows, config = builder.rows([4]), builder.config
    pool = Pool(config, CPU, rows=2)
    pool.put(rows)
    batch = pool.draw(0, 3, depth=0.25)
    columns = torch.from_numpy(rows.columns).long().expand(3, -1, -1)
    assert torch.equal(batch.columns, columns[:, :-1])
    heard = int(rows.heard[0])
    for codebook, delay in enumerate(config.delays):
        own = batch.audio[0, :, codebook]
        assert torch.equal(own[delay - 1 : heard], columns[0, delay : heard + 1, 2 + codebook])
        assert (own[: delay - 1] == IGNORED).all()
        assert (own[heard:] == IGNORED).all()
    assert ((batch.actions == IGNORED) == (torch.from_numpy(rows.actions) == FORCED)).all()
    assert len(set(batch.frames.tolist())) == round(0.25 * batch.actions.numel())

    bare = pool.draw(0, 3, depth=1.0, textless=1.0, blanks=0.5)
    assert (bare.columns[..., 0] == config.text_zero).all()
    assert (bare.columns[..., 1] == config.text_pad).all()
    assert (bare.actions == IGNORED).all()
    assert torch.equal(bare.audio, batch.audio)
    same = bare.columns[..., 2:] == batch.columns[..., 2:]
    assert (bare.columns[..., 2:][~same] == config.audio_pad).all()
    assert 0.3 < same.float().mean() < 0.7

    for seed in (5, 6):
        pool.put(builder.rows([seed]))
    assert pool.taken == 3
    drawn = pool.draw(0, 16, depth=1.0).columns
    assert {tuple(row.flatten().tolist()) for row in drawn} == {
        tuple(row[:-1].flatten().tolist()) for row in builder.rows([5, 6]).columns.astype(np.int64)
    }


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(builder: Builder, pool: Pool, tmp_path: Path) -> None:
    settings = Settings(20, batch=2, depth=0.3)
    whole, first, second = (new_trainer(builder, settings) for _ in range(3))
    expected = [whole.step(whole.draw(pool)) for _ in range(6)]
    found = [first.step(first.draw(pool)) for _ in range(3)]
    first.run.save(tmp_path)
    second.run.load(tmp_path)
    second.resumed()
    assert second.rate() > first.rate()  # the first piece's warm-up is over for the second: give both the same rate
    second._began_at = 0
    found += [second.step(second.draw(pool)) for _ in range(3)]
    assert expected == found
    for (name, tensor), (_, other) in zip(whole.run.tensors(), second.run.tensors(), strict=True):
        assert torch.equal(tensor, other), name
    average, step = load_average(tmp_path)
    assert step == 3
    assert average.keys() == LanguageModel(builder.config).state_dict().keys()


def test_a_corpus_is_all_the_files_of_a_set(tmp_path: Path) -> None:
    said = utterances()
    tokens.write(tmp_path / "train-00000-00000.safetensors", said[:8])
    tokens.write(tmp_path / "train-00001-00001.safetensors", said[8:])
    with pytest.raises(FileNotFoundError, match="no test-"):
        read_corpus(tmp_path, "test")
    corpus = read_corpus(tmp_path, "train")
    assert sum(map(len, corpus.speakers.values())) == len(said)
    assert corpus.names == sorted({utterance.speaker for utterance in said})


def test_the_command_trains_in_pieces_and_exports_what_the_engine_speaks(mimi: Path, tmp_path: Path) -> None:
    data, run, out = tmp_path / "data", write_run(tmp_path / "run"), tmp_path / "out"
    said = utterances()
    tokens.write(data / "tokens" / "train-00000-00000.safetensors", said[:8])
    tokens.write(data / "tokens" / "test-00000-00000.safetensors", said[:5])
    common = [str(data), str(run), "--batch=2", "--processes=1", "--device=cpu"]
    main([*common, "--steps=100", "--minutes=0"])
    assert load_average(run)[1] == 0
    main([*common, "--steps=50"])
    assert load_average(run)[1] == 50
    history = json.loads((run / "curves.json").read_text("utf-8"))
    assert history[-1]["step"] == 50
    assert {"action", "cb0", "cb3", "steps_per_s"} <= history[-1].keys()

    export.main([str(run), str(out), "--mimi", str(mimi)])
    engine = Engine(EngineConfig(str(out), device="cpu", debug=True))
    stream, _ = speak(engine, Request("Hello there, how are you?", seed=1, max_seconds=2.0))
    assert tokens_of(stream).shape[0] == 4
    engine.close()

    other = tmp_path / "other"
    main([str(data), str(other), *common[2:], "--steps=50", "--minutes=0", "--start", str(out)])
    assert load_average(other)[1] == 50


def test_what_is_learned_by_heart_is_what_the_engine_speaks(mimi: Path, tmp_path: Path) -> None:
    """The proof that training and serving agree: of text, delays, voice, kick and end.

    The model learns one row, the engine is given its voice and its script, and speaks its audio code by code.
    """
    shape = replace(SHAPE, steps=100, decoder=replace(SHAPE.decoder, width=64, mlp=128, head=16))
    run = write_run(tmp_path / "run", shape)
    builder = Builder(run, Corpus(utterances()))
    clip = [TimedWord("Hello", 0.1, 0.4), TimedWord("there,", 0.4, 0.8), TimedWord("today!", 0.9, 1.4)]
    plan = plan_prefix([(clip, 18)], builder.encode, FRAME_RATE, cooldown_frames=6)
    begin = plan.frames
    codes = np.random.default_rng(0).integers(16, size=(4, shape.steps + 1)).astype(np.int16)
    said = Conversation(
        plan,
        codes,
        '[S1] So be it. <break time="0.80s"/> [S2] I\'m there,',
        [begin, begin + 4, begin + 10, begin + 15, begin + 25, begin + 30],
        begin + 34,
        kick=True,
    )
    row = builder.lay_out(said)
    assert row.heard[0] < shape.steps
    pool = Pool(builder.config, CPU, rows=1)
    pool.put(row)
    settings = Settings(400, batch=1, rate=3e-3, dropout=0.0, depth=1.0, textless=0.0, blanks=0.0)
    trainer = new_trainer(builder, settings)
    trainer._began_at = -200
    found: list[float] = []
    while not found or max(found) > 0.02:
        assert trainer.run.step < settings.steps, f"not learned: {found}"
        found = [float(loss) for loss in trainer.step(trainer.draw(pool)).values()]
    checkpoint, voices = tmp_path / "checkpoint", tmp_path / "voices"
    trainer.run.average.load_state_dict(trainer.run.model.state_dict())
    trainer.run.save(run)
    export.main([str(run), str(checkpoint), "--mimi", str(mimi)])
    voices.mkdir()
    voice = PreparedVoice("own", codes[:, :begin].astype(np.int64), (tuple(clip),), plan.clip_frames, {})
    voice.save(voices / "own.safetensors")
    engine = Engine(EngineConfig(str(checkpoint), voices=str(voices), device="cpu", debug=True))
    stream, events = speak(engine, Request(said.script, temperature=0.0, cfg_scale=1.0))
    spoken = tokens_of(stream)
    assert spoken.shape[1] == said.end + 7 - begin
    assert (spoken == codes[:, begin : said.end + 7]).mean() > 0.95
    starts = [0, 4, 10, 25, 30]
    assert [round(start_s * FRAME_RATE) for _, start_s in words_of(events)] == starts
    engine.close()
