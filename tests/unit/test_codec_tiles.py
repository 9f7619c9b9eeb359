"""How the codec's products are cut into blocks, which needs no GPU to decide."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from dia2_engine.model.kernels.codec import choose_tile, choose_unit
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
