"""The training of the codec, on a shape that takes milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dia2_engine.model.encoder import MimiEncoder
from dia2_engine.model.mimi import MimiDecoder
from training import tokens
from training.codec.batches import Batch, Crops
from training.codec.export import load_codec, save_codec
from training.codec.model import Codec
from training.codec.quantizer import Codebook
from training.codec.shape import FRAME_SAMPLES, Shape
from training.codec.state import load_average
from training.codec.train import Settings, Trainer, new_run, train
from training.data.clips import CLIP_RATE, read_shard, shards

from .conftest import write_tones

CPU = torch.device("cpu")
TINY = Shape(hidden=24, filters=4, layers=1, heads=2, mlp=32, window=6, codebooks=3, codebook_size=16, codebook_dim=8)


def trainer(*, judges_from: float = 1.0, steps: int = 100) -> Trainer:
    torch.manual_seed(1)
    settings = Settings(steps, batch=3, frames=3, rate=3e-3, judges_from=judges_from)
    return Trainer(new_run(Codec(TINY), CPU), settings, CPU)


def batch(data: Path, step: int) -> Batch:
    crops = Crops(data, "train", CPU)
    crops.refresh()
    return crops.draw(step, TINY, batch=3, frames=3, dropout=0.5)


@pytest.fixture(scope="module")
def codec_folder(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec after some steps, exported; its codebooks have been used."""
    training, folder = trainer(), tmp_path_factory.mktemp("codec")
    for step in range(5):
        training.step(batch(tones, step))
    save_codec(folder, TINY, training.run.codec.state_dict(), step=5)
    return folder


def test_training_brings_the_sound_nearer(tones: Path) -> None:
    training, same = trainer(), batch(tones, 0)
    losses = [float(training.step(same)["mel"]) for _ in range(40)]
    assert losses[-1] < 0.9 * losses[0]
    average = list(training.run.average.parameters())
    assert not any(parameter.requires_grad for parameter in average)
    assert not all(map(torch.equal, average, training.run.codec.parameters()))


def test_what_is_said_teaches_the_encoder_through_the_first_codebook_alone(tones: Path) -> None:
    run, same = trainer().run, batch(tones, 0)
    made = run.codec(same.audio, same.used, same.candidates)
    run.head(made.semantic, same.labels).backward()
    taught = {name for name, parameter in run.codec.named_parameters() if parameter.grad is not None}
    assert "encoder.layers.0.conv.weight" in taught
    assert "quantizer.semantic_residual_vector_quantizer.input_proj.weight" in taught
    assert "quantizer.acoustic_residual_vector_quantizer.input_proj.weight" not in taught


def test_discriminators_come_at_their_time_and_teach(tones: Path) -> None:
    training = trainer(judges_from=0.02)
    before = [parameter.clone() for parameter in training.run.judges.parameters()]
    assert "features" not in training.step(batch(tones, 0))
    training.step(batch(tones, 1))
    assert all(map(torch.equal, before, training.run.judges.parameters()))
    losses = training.step(batch(tones, 2))
    assert {"adversarial", "features", "judges"} <= losses.keys()
    assert not any(map(torch.equal, before, training.run.judges.parameters()))


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tones: Path, tmp_path: Path) -> None:
    whole, first = trainer(judges_from=0.02), trainer(judges_from=0.02)
    for step in range(6):
        whole.step(batch(tones, step))
    for step in range(3):
        first.step(batch(tones, step))
    first.run.save(tmp_path)
    second = trainer(judges_from=0.02)
    second.run.load(tmp_path)
    second.resumed()
    # The warm-up of the first piece is over as far as the second is concerned: give both the same rate.
    assert second.rate() > first.rate()
    second._began_at = 0
    for step in range(3, 6):
        second.step(batch(tones, step))
    assert second.run.step == 6
    for (name, expected), (_, found) in zip(whole.run.tensors(), second.run.tensors(), strict=True):
        assert torch.equal(expected, found), name


def test_pieces_end_in_time_and_leave_curves(tones: Path, tmp_path: Path) -> None:
    train(trainer(steps=1000), tones, tmp_path, minutes=0)
    assert load_average(tmp_path)[2] == 0
    training = trainer(steps=50)
    train(training, tones, tmp_path, minutes=10)
    assert load_average(tmp_path)[2] == 50
    assert training.run.history[-1]["step"] == 50
    assert "mel" in (tmp_path / "curves.json").read_text("utf-8")


def test_transformers_and_the_engine_read_the_export_alike(codec_folder: Path) -> None:
    codec, step = load_codec(codec_folder)
    assert step == 5
    audio = torch.randn(1, 20 * FRAME_SAMPLES) * 0.1  # 40 positions: several windows
    with torch.no_grad():
        ours = codec(audio, torch.tensor([3]))
    codes = torch.from_numpy(MimiEncoder.load(codec_folder, codebooks=3).encode(audio[0].numpy()))
    assert torch.equal(codes, ours.codes[:, 0])

    from transformers import MimiModel

    published = MimiModel.from_pretrained(str(codec_folder), dtype=torch.float32).eval()
    with torch.no_grad():
        decoded = published.decode(codes[None]).audio_values[0]
    torch.testing.assert_close(decoded, ours.audio, rtol=1e-4, atol=1e-5)

    decoder, rows = MimiDecoder.load(codec_folder, codebooks=3), torch.tensor([0])
    whole = decoder.decode(codes[None], decoder.new_state(1), rows)
    state = decoder.new_state(1)
    streamed = torch.cat([decoder.decode(frame, state, rows) for frame in torch.split(codes[None], 1, dim=2)], dim=1)
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(streamed, ours.audio.clamp(-1, 1), rtol=1e-4, atol=1e-5)


def test_fewer_codebooks_reach_the_decoder_where_some_are_dropped(codec_folder: Path) -> None:
    codec, _ = load_codec(codec_folder)
    audio = torch.randn(1, 4 * FRAME_SAMPLES).repeat(2, 1) * 0.1
    with torch.no_grad():
        fewer = codec(audio, torch.tensor([2, 3]))
    decoder = MimiDecoder.load(codec_folder, codebooks=2)
    expected = decoder.decode(fewer.codes[:2, :1].transpose(0, 1), decoder.new_state(1), torch.tensor([0]))
    torch.testing.assert_close(fewer.audio[:1].clamp(-1, 1), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(fewer.audio[0], fewer.audio[1], atol=1e-5)


def test_entries_that_nobody_chooses_are_moved_to_where_vectors_are() -> None:
    book, vectors = Codebook(4, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0], [6.0, 6.0]])
    book.revive(vectors, torch.tensor([0, 1, 0, 1]))  # the beginning: all are dead
    torch.testing.assert_close(book.entries(), vectors[[0, 1, 0, 1]])
    book.cluster_usage[3] = 0.0
    book.revive(vectors, torch.tensor([2, 2, 2, 2]))
    torch.testing.assert_close(book.entries()[3], vectors[2])
    torch.testing.assert_close(book.entries()[:3], vectors[:2][[0, 1, 0]])


def test_crops_have_the_phonemes_of_their_place(tones: Path) -> None:
    crops = Crops(tones, "train", CPU)
    crops.refresh()
    assert crops.hours * 3600 == pytest.approx(4 * 1.4, abs=0.2)  # with 0.4 s of silence behind each
    drawn = crops.draw(3, TINY, batch=64, frames=3, dropout=0.0)
    assert set(drawn.labels.flatten().tolist()) == {0, 10, 20}
    silent = drawn.audio.view(64, -1, 960).abs().amax(2) == 0
    assert (drawn.labels[silent] == 0).all()
    assert silent.any()
    loud = drawn.audio.view(64, -1, 960).abs().amax(2) / drawn.audio.abs().amax(1, keepdim=True)
    assert float(loud[drawn.labels == 20].mean()) > float(loud[drawn.labels == 10].mean())
    assert (drawn.used == 3).all()
    again = crops.draw(3, TINY, batch=64, frames=3, dropout=0.0)
    assert torch.equal(drawn.audio, again.audio)


def test_a_shape_that_breaks_the_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="960"):
        Shape(ratios=(4, 4, 4, 4))


def test_tokens_are_what_the_encoder_of_the_product_gives(tones: Path, codec_folder: Path, tmp_path: Path) -> None:
    codec, _ = load_codec(codec_folder)
    assert tokens.encode_all(tones, codec, tmp_path, CPU) == {"test": 2, "train": 4}
    utterances = tokens.read(tmp_path / "train-00000-00001.safetensors")
    encoder = MimiEncoder.load(codec_folder, codebooks=3)
    found = [pair for index in shards(tones, "train") for pair in read_shard(index)]
    leads = [lead for shard in (0, 1) for lead in tokens.leads(shard, 2, 0)]
    assert len(set(leads)) > 1
    for utterance, (clip, samples), lead in zip(utterances, found, leads, strict=True):
        assert utterance.onsets_s == pytest.approx([onset + lead / CLIP_RATE for onset in clip.onsets_s], abs=1e-4)
        assert (utterance.text, utterance.speaker) == (clip.text, clip.speaker)
        assert utterance.end_s == pytest.approx((lead + len(samples)) / CLIP_RATE, abs=1e-4)
        silence = np.zeros(tokens.SILENCE_FRAMES * FRAME_SAMPLES, np.float32)
        audio = np.concatenate([np.zeros(lead, np.float32), samples.astype(np.float32) / 32768, silence])
        expected = encoder.encode(audio)
        assert (utterance.codes == expected[:, : utterance.codes.shape[1]]).all()
        assert utterance.codes.shape[1] >= utterance.end_s * CLIP_RATE / FRAME_SAMPLES + tokens.SILENCE_FRAMES


def test_tokens_go_on_with_the_shards_that_came_later(codec_folder: Path, tmp_path: Path) -> None:
    codec, data, out = load_codec(codec_folder)[0], tmp_path / "data", tmp_path / "tokens"
    write_tones(data, "train", 0, [200])
    write_tones(data, "train", 2, [300])  # shard 1 is still being made
    assert tokens.encode_all(data, codec, out, CPU) == {"test": 0, "train": 1}
    assert tokens.encode_all(data, codec, out, CPU) == {"test": 0, "train": 0}
    write_tones(data, "train", 1, [400, 500])
    assert tokens.encode_all(data, codec, out, CPU) == {"test": 0, "train": 3}
    assert sorted(path.name for path in out.iterdir()) == [
        "train-00000-00000.safetensors",
        "train-00001-00002.safetensors",
    ]


def test_each_phase_is_other_codes_of_the_same_speech(tones: Path, codec_folder: Path, tmp_path: Path) -> None:
    codec = load_codec(codec_folder)[0]
    assert tokens.encode_all(tones, codec, tmp_path, CPU, phases=2) == {"test": 2, "train": 8}
    said = tokens.read(tmp_path / "train-00000-00001.safetensors")
    for one, other in zip([*said[:2], *said[4:6]], [*said[2:4], *said[6:]], strict=True):
        assert (one.text, one.speaker) == (other.text, other.speaker)
        shift_s = other.end_s - one.end_s
        assert 0 < abs(shift_s) < FRAME_SAMPLES / CLIP_RATE
        assert other.onsets_s == pytest.approx([onset_s + shift_s for onset_s in one.onsets_s], abs=2e-4)
        frames = min(one.codes.shape[1], other.codes.shape[1])
        assert (one.codes[:, :frames] != other.codes[:, :frames]).any()


def test_tokens_are_packed_without_loss(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    written = [
        tokens.Utterance("Hi.", "s1", [0.25], 0.5, chance.integers(1024, size=(8, frames)).astype(np.int16))
        for frames in (5, 3, 6)
    ]
    tokens.write(tmp_path / "x.safetensors", written)
    for wanted, found in zip(written, tokens.read(tmp_path / "x.safetensors"), strict=True):
        assert (wanted.text, wanted.onsets_s, wanted.end_s) == (found.text, found.onsets_s, found.end_s)
        assert (wanted.codes == found.codes).all()


def test_padding_a_clip_to_the_length_of_its_neighbours_changes_no_token(tones: Path, codec_folder: Path) -> None:
    codec, _ = load_codec(codec_folder)
    (clip, samples), (other, longer) = read_shard(shards(tones, "train")[0])
    shorter = samples[:9000]
    (together, _), (alone,) = (
        tokens.encode_shard(codec, clips, [7] * len(clips), CPU)
        for clips in ([(clip, shorter), (other, longer)], [(clip, shorter)])
    )
    assert together.codes.shape == (3, 5 + tokens.SILENCE_FRAMES)
    assert (together.codes == alone.codes).all()
