"""The streaming codec against the golden waveforms and against `transformers`, which decodes a whole only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MimiConfig, MimiModel

from dia2_engine.errors import ConfigError
from dia2_engine.model.mimi import MimiDecoder, MimiState

PARITY = Path(__file__).parents[1] / "data" / "parity"
GOLDEN = PARITY / "small" / "checkpoint" / "mimi"
TOLERANCE = 1e-5

CHUNKINGS = {"ones": [1], "twos": [2], "fives": [5], "mixed": [1, 7, 3, 12, 2], "whole": [1000]}

# Shapes beside the published one, each different in something that streaming depends on.
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window_of_one": {"sliding_window": 1},
    "grouped_heads": {"num_attention_heads": 4, "head_dim": 6, "num_key_value_heads": 2},
    "dilated": {"num_residual_layers": 3, "dilation_growth_rate": 3, "residual_kernel_size": 4},
    "other_ratios": {"upsampling_ratios": [5, 2], "kernel_size": 5, "last_kernel_size": 1},
    "unprojected": {"codebook_dim": 24, "vector_quantization_hidden_dimension": 24},
    "two_semantic": {
        "num_semantic_quantizers": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
}


def write_codec(folder: Path, **shape: Any) -> MimiModel:
    """A random codec in the published format, and `transformers`' model of it."""
    values = {
        "hidden_size": 24,
        "num_filters": 4,
        "codebook_size": 32,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "num_quantizers": 5,
        "upsample_groups": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "sliding_window": 7,
    }
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(**(values | shape))).eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("embed_sum"):
                tensor.normal_()
            elif name.endswith("cluster_usage"):
                tensor.uniform_(0.0, 2.0)[0] = 0.0  # an entry that was never used
            elif name.endswith(".scale"):
                tensor.uniform_(0.5, 1.0)
    model.save_pretrained(folder)
    quieten(folder, model)
    return model


def quieten(folder: Path, model: MimiModel) -> None:
    """Scale the last convolution so that a random codec's output neither clips nor vanishes."""
    codes = torch.randint(0, model.config.codebook_size, (1, model.config.num_quantizers, 50))
    peak = whole(model, codes).abs().max()
    tensors = load_file(folder / "model.safetensors")
    last = max((k for k in tensors if k.startswith("decoder.layers.")), key=lambda k: int(k.split(".")[2]))
    # The module's names differ between versions of transformers, those on disk do not.
    parameters = {name.replace(".decoder_seanet.", "."): value for name, value in model.named_parameters()}
    for name in (f"{last.rsplit('.', 1)[0]}.weight", f"{last.rsplit('.', 1)[0]}.bias"):
        tensors[name] *= 0.25 / peak
        parameters[name].data.copy_(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@torch.inference_mode()
def whole(model: MimiModel, codes: Tensor) -> Tensor:
    audio: Tensor = model.decode(codes).audio_values[:, 0]
    return audio


def random_codes(decoder: MimiDecoder, rows: int, frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = (rows, decoder.codebooks, frames)
    return torch.randint(0, decoder.config.codebook_size, size, generator=generator)


def stream(decoder: MimiDecoder, state: MimiState, slot: int, codes: Tensor, chunks: Iterable[int] = (1,)) -> Tensor:
    """Decode codes [K, T] in one slot, cycling through the chunk sizes: samples [T * frame_samples]."""
    sizes, parts = list(chunks), []
    rest, turn = codes, 0
    while rest.shape[1]:
        part, rest = rest[:, : sizes[turn % len(sizes)]], rest[:, sizes[turn % len(sizes)] :]
        parts.append(decoder.decode(part[None], state, torch.tensor([slot]))[0])
        turn += 1
    return torch.cat(parts)


@pytest.fixture(scope="module")
def golden() -> MimiDecoder:
    return MimiDecoder.load(GOLDEN, codebooks=8)


@pytest.mark.parametrize("chunks", CHUNKINGS.values(), ids=CHUNKINGS)
@pytest.mark.parametrize("variant", ["small", "lowrank", "textdep"])
def test_golden_waveform_in_any_chunking(variant: str, chunks: list[int]) -> None:
    cases = load_file(PARITY / variant / "cases.safetensors")
    codes, waveform = cases["mimi.codes"], cases["mimi.waveform"]
    decoder = MimiDecoder.load(PARITY / variant / "checkpoint" / "mimi", codebooks=codes.shape[0])
    audio = stream(decoder, decoder.new_state(2), 1, codes, chunks)
    torch.testing.assert_close(audio, waveform.clamp(-1, 1), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_streams_as_transformers_decodes_far_beyond_the_window(shape: dict[str, Any], tmp_path: Path) -> None:
    model = write_codec(tmp_path, **shape)
    decoder = MimiDecoder.load(tmp_path, codebooks=model.config.num_quantizers)
    codes = random_codes(decoder, 1, 60)
    expected = whole(model, codes)[0]
    assert expected.abs().max() < 1
    assert expected.std() > 0.01
    assert len(expected) == 60 * decoder.config.frame_samples
    for name, chunks in CHUNKINGS.items():
        audio = stream(decoder, decoder.new_state(1), 0, codes[0], chunks)
        assert (audio - expected).abs().max() < TOLERANCE, name


@pytest.mark.parametrize("codebooks", [1, 2, 4])
def test_fewer_codebooks_than_the_codec_has(codebooks: int, tmp_path: Path) -> None:
    model = write_codec(tmp_path, num_semantic_quantizers=2)
    decoder = MimiDecoder.load(tmp_path, codebooks=codebooks)
    codes = random_codes(decoder, 1, 12)
    audio = stream(decoder, decoder.new_state(1), 0, codes[0])
    torch.testing.assert_close(audio, whole(model, codes)[0], rtol=0, atol=TOLERANCE)


def test_a_stream_of_months_sounds_as_a_new_one(golden: MimiDecoder) -> None:
    """RoPE is relative: positions far beyond any table, and beyond float32, change nothing once the start is
    out of reach."""
    codes = random_codes(golden, 1, 60)[0]
    state = golden.new_state(2)
    state.positions[1] = 10**9
    audio = [stream(golden, state, slot, codes) for slot in (0, 1)]
    settled = 35 * golden.config.frame_samples
    assert audio[0][settled:].std() > 0.01
    torch.testing.assert_close(audio[1][settled:], audio[0][settled:], rtol=0, atol=TOLERANCE)


def test_neighbours_change_nothing_to_the_last_bit(golden: MimiDecoder) -> None:
    """Streams that start and end at different frames, in slots and row orders that change every frame."""
    streams = random_codes(golden, 4, 30)
    starts = (0, 3, 11, 12)
    state, generator = golden.new_state(6), torch.Generator().manual_seed(1)
    slots = (4, 0, 5, 2)
    parts: list[list[Tensor]] = [[], [], [], []]
    for frame in range(42):
        live = [i for i in torch.randperm(4, generator=generator).tolist() if 0 <= frame - starts[i] < 30]
        codes = torch.stack([streams[i, :, frame - starts[i] : frame - starts[i] + 1] for i in live])
        for i, audio in zip(live, golden.decode(codes, state, torch.tensor([slots[i] for i in live])), strict=True):
            parts[i].append(audio)
    for i in range(4):
        alone = stream(golden, golden.new_state(1), 0, streams[i])
        assert torch.equal(torch.cat(parts[i]), alone), f"stream {i} heard its neighbours"


def test_slots_that_are_not_named_stay_untouched(golden: MimiDecoder) -> None:
    state = golden.new_state(3)
    golden.decode(random_codes(golden, 3, 4), state, torch.tensor([0, 1, 2]))
    before = state.snapshot(1)
    golden.decode(random_codes(golden, 2, 3), state, torch.tensor([2, 0]))
    assert all(torch.equal(before[name], part) for name, part in state.snapshot(1).items())


def test_the_state_is_updated_in_place(golden: MimiDecoder) -> None:
    state = golden.new_state(2)
    tensors = (state.history, state.rings, state.positions)
    addresses = [tensor.data_ptr() for tensor in tensors]
    stream(golden, state, 1, random_codes(golden, 1, 20)[0], [3])
    state.reset(1)
    state.restore(0, state.snapshot(1))
    assert [tensor.data_ptr() for tensor in tensors] == addresses


def test_a_snapshot_continues_in_any_slot(golden: MimiDecoder, tmp_path: Path) -> None:
    codes = random_codes(golden, 1, 50)[0]
    frame_samples = golden.config.frame_samples
    state = golden.new_state(3)
    expected = stream(golden, state, 0, codes)[25 * frame_samples :]

    state.reset(0)
    stream(golden, state, 0, codes[:, :25])
    save_file(state.snapshot(0), tmp_path / "voice.safetensors")
    stream(golden, state, 2, random_codes(golden, 1, 40, seed=7)[0])  # what the slot was used for before
    stored = load_file(tmp_path / "voice.safetensors")
    for slot in (2, 0, 2):
        state.restore(slot, stored)
        assert torch.equal(stream(golden, state, slot, codes[:, 25:]), expected)


def test_reset_is_a_new_stream(golden: MimiDecoder) -> None:
    codes = random_codes(golden, 1, 30)[0]
    state = golden.new_state(2)
    first = stream(golden, state, 1, codes)
    assert not torch.equal(stream(golden, state, 1, codes), first)
    state.reset(1)
    assert torch.equal(stream(golden, state, 1, codes), first)


def test_a_snapshot_of_another_codec_is_refused(golden: MimiDecoder, tmp_path: Path) -> None:
    write_codec(tmp_path)
    other = MimiDecoder.load(tmp_path, codebooks=5).new_state(1)
    with pytest.raises(ValueError, match="snapshot of another codec"):
        golden.new_state(1).restore(0, other.snapshot(0))


@pytest.mark.parametrize("slot", [-1, 2])
def test_a_slot_out_of_range_is_refused(golden: MimiDecoder, slot: int) -> None:
    with pytest.raises(ValueError, match=rf"slot {slot} is outside 0\.\.1"):
        golden.new_state(2).reset(slot)


@pytest.mark.parametrize(
    ("codes", "rows", "message"),
    [
        (torch.zeros(8, 3, dtype=torch.int64), torch.tensor([0]), "codes must be"),
        (
            torch.zeros(1, 7, 3, dtype=torch.int64),
            torch.tensor([0]),
            r"codes must be int64 \[B >= 1, 8, T >= 1\]",
        ),
        (torch.zeros(1, 8, 0, dtype=torch.int64), torch.tensor([0]), "codes must be"),
        (torch.zeros(0, 8, 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), "codes must be"),
        (torch.zeros(1, 8, 1), torch.tensor([0]), "codes must be int64"),
        (torch.zeros(2, 8, 1, dtype=torch.int64), torch.tensor([0]), r"rows must be int64 \[2\]"),
        (torch.zeros(1, 8, 1, dtype=torch.int64), torch.tensor(0), "rows must be"),
        (torch.zeros(1, 8, 1, dtype=torch.int64), torch.tensor([0.0]), "rows must be int64"),
    ],
)
def test_wrong_shapes_are_refused(golden: MimiDecoder, codes: Tensor, rows: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        golden.decode(codes, golden.new_state(1), rows)


def test_samples_stay_within_full_scale(golden: MimiDecoder) -> None:
    waveform = load_file(PARITY / "small" / "cases.safetensors")["mimi.waveform"]
    assert waveform.abs().max() > 1, "the golden waveform no longer clips: this test needs another"
    codes = load_file(PARITY / "small" / "cases.safetensors")["mimi.codes"]
    assert stream(golden, golden.new_state(1), 0, codes).abs().max() == 1


def test_bfloat16_is_close(golden: MimiDecoder) -> None:
    codes = random_codes(golden, 1, 40)[0]
    half = MimiDecoder.load(GOLDEN, codebooks=8, dtype=torch.bfloat16)
    audio = stream(half, half.new_state(1), 0, codes)
    assert audio.dtype == torch.float32
    error = audio - stream(golden, golden.new_state(1), 0, codes)
    assert error.std() < 0.02


def test_the_config_says_sizes_and_rates(golden: MimiDecoder) -> None:
    config = golden.config
    assert (config.sample_rate, config.frame_samples, config.frame_rate) == (24000, 1920, 12.5)
    assert (config.codebooks, config.codebook_size) == (8, 2048)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_streams_alike_eagerly_and_from_a_graph(golden: MimiDecoder) -> None:
    """Three slots of four; a captured pass is replayed with other codes and other rows."""
    streams, frame_samples = random_codes(golden, 3, 40), golden.config.frame_samples
    expected = torch.stack([stream(golden, golden.new_state(1), 0, codes) for codes in streams])
    decoder = MimiDecoder.load(GOLDEN, codebooks=8, device="cuda")
    state, rows = decoder.new_state(4), torch.tensor([3, 0, 2], device="cuda")
    eager = decoder.decode(streams[:, :, :20].cuda(), state, rows)
    assert (eager.cpu() - expected[:, : 20 * frame_samples]).abs().max() < 1e-4

    codes, voices = streams[:, :, 20:21].cuda(), [state.snapshot(int(slot)) for slot in rows]
    decoder.decode(codes, state, rows)  # warms up: capturing must not be the first use of these shapes
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        audio = decoder.decode(codes, state, rows)
    rows.copy_(torch.tensor([1, 3, 0]))
    for slot, voice in zip(rows.tolist(), voices, strict=True):
        state.restore(slot, voice)
    parts = []
    for frame in range(20, 40):
        codes.copy_(streams[:, :, frame : frame + 1])
        graph.replay()
        parts.append(audio.cpu())
    assert (torch.cat(parts, dim=1) - expected[:, 20 * frame_samples :]).abs().max() < 1e-4


# --- loading ---


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "mimi"
    shutil.copytree(PARITY / "lowrank" / "checkpoint" / "mimi", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    return folder


def edit_config(folder: Path, **fields: Any) -> None:
    """Set fields of the codec's config.json; None removes one."""
    values = json.loads((folder / "config.json").read_text("utf-8")) | fields
    kept = {name: value for name, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept), "utf-8")


def edit_tensors(folder: Path, *, drop: str = r"", **tensors: Tensor) -> None:
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not drop or not name.startswith(drop)}
    save_file(kept | tensors, path)


def test_the_style_of_older_configs(copied: Path) -> None:
    """Before transformers 5: a frame rate, RoPE's base as a field of its own, no head size."""
    codes = random_codes(MimiDecoder.load(copied, codebooks=8), 1, 20)[0]
    newer = MimiDecoder.load(copied, codebooks=8)
    edit_config(copied, rope_parameters=None, rope_theta=10000.0, frame_rate=12.5, head_dim=None, normalize=False)
    older = MimiDecoder.load(copied, codebooks=8)
    assert older.config == newer.config
    audio = [stream(decoder, decoder.new_state(1), 0, codes) for decoder in (newer, older)]
    assert torch.equal(audio[0], audio[1])


def test_a_frame_rate_other_than_the_published_one(tmp_path: Path) -> None:
    model = write_codec(tmp_path, frame_rate=6.25)
    decoder = MimiDecoder.load(tmp_path, codebooks=5)
    assert (decoder.config.frame_rate, decoder.config.frame_samples) == (6.25, 3840)
    codes = random_codes(decoder, 1, 30)
    audio = stream(decoder, decoder.new_state(1), 0, codes[0], [1, 9])
    torch.testing.assert_close(audio, whole(model, codes)[0], rtol=0, atol=TOLERANCE)


def test_a_codec_without_its_encoder_loads(copied: Path) -> None:
    edit_tensors(copied, drop="encoder")
    edit_tensors(copied, drop="downsample")
    MimiDecoder.load(copied, codebooks=8)


def test_faulty_tensors_are_all_named(copied: Path) -> None:
    edit_tensors(
        copied,
        drop="decoder.layers.2.",
        **{"upsample.conv.weight": torch.zeros(32, 1, 6), "decoder.layers.2.conv.scale": torch.zeros(1)},
    )
    with pytest.raises(ConfigError) as refused:
        MimiDecoder.load(copied, codebooks=8)
    message = str(refused.value)
    assert "model.safetensors: missing: decoder.layers.2.conv.weight, decoder.layers.2.conv.bias;" in message
    assert "mis-shaped: upsample.conv.weight [32, 1, 6] instead of [32, 1, 4];" in message
    assert message.endswith("unexpected: decoder.layers.2.conv.scale")


def test_a_long_list_of_faults_is_cut(copied: Path) -> None:
    edit_tensors(copied, drop="decoder")
    with pytest.raises(ConfigError, match=r"missing: decoder_transformer\.layers\.0.* and \d+ more$"):
        MimiDecoder.load(copied, codebooks=8)


def test_files_that_are_not_there_or_not_readable(copied: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/config\.json: cannot be read as JSON"):
        MimiDecoder.load(copied / "nowhere", codebooks=8)
    (copied / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read as safetensors"):
        MimiDecoder.load(copied, codebooks=8)
    (copied / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read as safetensors"):
        MimiDecoder.load(copied, codebooks=8)
    (copied / "config.json").write_text("[]", "utf-8")
    with pytest.raises(ConfigError, match="must hold a JSON object"):
        MimiDecoder.load(copied, codebooks=8)


@pytest.mark.parametrize("codebooks", [0, 9])
def test_codebooks_that_the_codec_lacks(codebooks: int) -> None:
    with pytest.raises(ConfigError, match=rf"needs {codebooks} codebooks, the codec has 8"):
        MimiDecoder.load(GOLDEN, codebooks=codebooks)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("model_type", "encodec", "'mimi'"),
        ("audio_channels", 2, "1 "),
        ("use_causal_conv", False, "True"),
        ("pad_mode", "reflect", "'constant'"),
        ("trim_right_ratio", 0.5, "1.0"),
        ("use_conv_shortcut", True, "False"),
        ("attention_bias", True, "False"),
        ("hidden_act", "relu", "'gelu'"),
        ("hidden_size", "32", "an integer >= 1"),
        ("num_hidden_layers", True, "an integer >= 1"),
        ("sliding_window", 0, "an integer >= 1"),
        ("upsampling_ratios", [8, 0], "a list of integers >= 1"),
        ("norm_eps", -1e-5, "a number > 0"),
        ("head_dim", 15, "even"),
        ("num_key_value_heads", 3, "a divisor of 2"),
        ("num_semantic_quantizers", 8, "less than 8"),
        ("vector_quantization_hidden_dimension", 8, "16 (codebook_dim)"),
        ("upsample_groups", 1, "32 (hidden_size)"),
        ("compress", 8, "at most 4"),
        ("frame_rate", 10.0, "25 divided by an integer >= 2"),
        ("rope_parameters", {"rope_type": "yarn"}, "'default'"),
    ],
)
def test_an_unsupported_config_is_refused_by_name(copied: Path, field: str, value: Any, allowed: str) -> None:
    edit_config(copied, **{field: value})
    with pytest.raises(ConfigError) as refused:
        MimiDecoder.load(copied, codebooks=8)
    assert f"config.json: '{field}' is {value!r}; it must be " in str(refused.value)
    assert allowed in str(refused.value)
