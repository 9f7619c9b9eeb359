"""What is laid out for the codec's kernels, and how their products are cut into blocks: none of it needs a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from dia2_engine.model.kernels.codec import choose_tile, choose_unit, normed, rounded
from dia2_engine.model.mimi.fused import MOST_SPLIT_TILES

# outputs, channels, taps: the published layers, and odd ones
LAYERS = [
    (1536, 512, 1),
    (512, 2048, 1),
    (1024, 512, 7),
    (4096, 1024, 2),
    (256, 512, 3),
    (1, 64, 3),
    (6, 24, 2),
    (5, 9, 4),
]


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 34, 128, 512, 4096, 491520])
def test_tiles_are_powers_of_two_and_fit(rows: int, layer: tuple[int, int, int], precision: str) -> None:
    outputs, channels, taps = layer
    tile = choose_tile(rows, outputs, channels, taps, precision)
    assert all(size & (size - 1) == 0 for size in (tile.m, tile.n, tile.k, tile.splits))
    assert tile.m < 2 * max(16, rows)
    if tile.dot:
        assert min(tile.m, tile.n, tile.k) >= 16
        assert (tile.m + tile.n) * tile.k * 4 * tile.stages <= 128 << 10
    if tile.splits > 1:
        blocks = -(-rows // tile.m) * -(-outputs // tile.n)
        assert blocks <= MOST_SPLIT_TILES
        assert tile.splits * tile.k <= taps * channels


@pytest.mark.parametrize("channels", [4, 6, 64, 128])
def test_a_unit_holds_all_channels(channels: int) -> None:
    for rows in (1, 480, 1920, 491520):
        tile = choose_unit(rows, channels, "tf32")
        assert channels <= tile.n <= 128


def test_a_norm_becomes_weights_and_a_factor_of_each_row() -> None:
    x, matrix, gain, bias = torch.randn(5, 24) + 0.5, torch.randn(24, 7), torch.rand(24), torch.randn(24)
    weight, offset = normed(matrix, gain, bias)
    factor = torch.rsqrt(x.var(dim=1, correction=0, keepdim=True) + 1e-5)
    expected = F.layer_norm(x, (24,), gain, bias, 1e-5) @ matrix
    torch.testing.assert_close(x @ weight.t() * factor + offset, expected, rtol=1e-5, atol=1e-5)


def test_weights_are_rounded_to_the_nearest_of_matrix_units() -> None:
    step = 2.0**-10  # between the TF32 numbers from 1 to 2
    weight = torch.tensor([1.0, -1.0 - 0.4 * step, 1.0 + 0.6 * step, 0.0])
    assert rounded(weight, "tf32").tolist() == [1.0, -1.0, 1.0 + step, 0.0]
    assert rounded(weight, "ieee") is weight
