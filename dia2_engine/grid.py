"""The delay grid: what is known of a stream's audio ids. Codebook c of column t belongs to frame t - delay[c]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

UNFILLED = -2  # "not generated": legal nowhere, so that reading such a cell is caught by every guard


class DelayGrid:
    """Audio ids of one stream on the delayed grid: BOS before a codebook's first frame, then prefix, then samples."""

    def __init__(
        self, delays: Sequence[int] | Ids, bos: int, prefix: Ids, sample_from: Sequence[int] | Ids, columns: int
    ) -> None:
        """`prefix` is aligned [C, P]; cell c is sampled from column `sample_from[c]` on, but not before its delay."""
        self.delays = np.asarray(delays, np.int64)  # [C]
        self.sample_from = np.maximum(sample_from, self.delays)  # [C]
        self._bos, self._codebooks = bos, np.arange(len(delays))
        self.cells = np.full((len(delays), columns), UNFILLED, np.int64)  # [C, columns]
        self._count()
        for c, (delay, end) in enumerate(zip(self.delays, self.sample_from, strict=True)):
            self.cells[c, :end] = bos
            known = min(end, columns) - delay
            if known > 0 and prefix.shape[1]:
                self.cells[c, delay : delay + known] = prefix[c, :known]

    def _count(self) -> None:
        self.all_sampled_from = int(self.sample_from.max())  # from this column on every cell is
        self.depformer_from = int(min(self.sample_from[1:], default=self.cells.shape[1]))

    def forget(self, column: int, frame: int) -> None:
        """Sample again from `column` on, but for cells of aligned frames below `frame`."""
        self.sample_from = np.maximum(column, frame + self.delays)
        self._count()

    def put(self, first: int, frames: Ids) -> None:
        """Fill in aligned `frames` [C, n] from frame `first` on."""
        for c, delay in enumerate(self.delays):
            self.cells[c, first + delay : first + delay + frames.shape[1]] = frames[c]

    def moved(self, prefix: Ids, first: int, column: int, known: int) -> DelayGrid:
        """A grid with this one's aligned frames from `first` on behind another `prefix`.

        It is sampled behind `column`, but for cells of frames below `known`.
        """
        frames = int(prefix.shape[1])
        grid = DelayGrid(self.delays, self._bos, prefix, frames + self.delays, self.cells.shape[1])
        shift = frames - first
        for c, delay in enumerate(self.delays):
            end = max(column + 1, known + delay)
            own = self.cells[c, first + delay : end]
            grid.cells[c, end + shift - len(own) : end + shift] = own
            grid.cells[c, end + shift :] = UNFILLED
        grid.forget(column + 1 + shift, known + shift)
        return grid

    def sampled(self, column: int) -> NDArray[np.bool_]:
        """Which codebooks of a column are sampled, [C]."""
        return column >= self.sample_from

    def write(self, column: int, ids: Ids) -> None:
        """Store sampled ids [C]; cells that are not sampled keep what they are."""
        if column >= self.all_sampled_from:
            self.cells[:, column] = ids
        else:
            mask = self.sampled(column)
            self.cells[mask, column] = ids[mask]

    def frame(self, index: int) -> Ids:
        """Aligned frame `index`, [C]."""
        ids: Ids = self.cells[self._codebooks, index + self.delays]
        return ids
