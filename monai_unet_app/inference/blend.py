"""The accumulation of window results, weighted, into one image. Rows leave it as soon as no window can touch them any more.

This is the only place where the weight of a window is made. Its `mode` and `sigma_scale` are those of `inferer` in a bundle's
`inference.yaml`: `Bundle.windows` reads them into a `WindowSettings`, and `predict_rows` passes them on.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from monai.data.utils import compute_importance_map

from monai_unet_app.inference.nnunet.window import mean_of_networks, window_weights
from monai_unet_app.inference.spool import Rows, Spool
from monai_unet_app.inference.windows import Window, WindowPlan, WindowSettings

Cell = tuple[int, int]

MOST_ROWS, MOST_ROW_BYTES = 16, 1 << 26
"""Rows that leave together: as many as take no more memory than this, at least one."""


class Blend:
    """Weighted mean of overlapping window results, as MONAI's SlidingWindowInferer or nnU-Net computes it.

    The image is divided where windows begin and end along its first two axes. The sums of such a cell exist from the first
    window that touches it to the last one, and those that will be needed last wait on disk where memory does not hold them all:
    of a large image and many classes, all sums together are tens of gigabytes.

    Args:
        plan: Positions of the windows, in the order in which they are added.
        settings: The form of a window's weights, and how much memory their sums may take.
        device: Device of the sums.
        channels: Of the results: those of all networks whose sums are apart.
        networks: How many are apart; their mean is given.
    """

    def __init__(
        self, plan: WindowPlan, settings: WindowSettings, device: torch.device, channels: int, networks: int = 1
    ) -> None:
        self.plan, self.device, self.most_bytes, self._spool = plan, device, settings.most_bytes, Spool()
        self._channels, self._networks = channels, networks
        if settings.of_nnunet:
            self.window_weight = window_weights(plan.window).to(device)
        else:
            self.window_weight = compute_importance_map(
                plan.window, mode=settings.mode, sigma_scale=settings.sigma_scale, device=device, dtype=torch.float32
            )
        first, stop = plan.inside[0].start, plan.inside[0].stop
        self._edges = _edges(plan, 0, range(first, stop, rows_together(plan, channels))), _edges(plan, 1)
        self._added = 0
        # For each cell the numbers of the windows that will still touch it; for each row the number of its last window
        self._uses: dict[Cell, deque[int]] = {}
        self._ends = [0] * (len(self._edges[0]) - 1)
        for number, window in enumerate(plan.windows):
            for cell in self._cells(window):
                self._uses.setdefault(cell, deque()).append(number)
                self._ends[cell[0]] = number
        self._next_row = 0
        self._held: dict[Cell, torch.Tensor] = {}
        self._waiting: dict[Cell, int] = {}  # cell -> its place on disk

    def add(self, windows: Sequence[Window], results: torch.Tensor) -> None:
        """Adds `results`, shape (len(windows), C, *window) in voxels, where their windows stand; `results` is used up."""
        weighted = results.mul_(self.window_weight)
        for window, result in zip(windows, weighted, strict=True):
            if window.mirrored:  # an empty flip would be a copy
                result = result.flip([axis + 1 for axis in window.mirrored])
            for cell in self._cells(window):
                # The part of the window in the cell, and the part of the cell in the window
                sides = zip(self._edges, cell, window.place, strict=False)
                part = tuple(slice(edges[n] - side.start, edges[n + 1] - side.start) for edges, n, side in sides)
                place = (slice(None), slice(None), *window.place[2:])
                sums = self._cell(cell)
                sums[:-1][(slice(None), *place)] += result[(slice(None), *part)]
                sums[-1][place] += self.window_weight[part]
                self._uses[cell].popleft()
                self._make_room(cell)
            self._added += 1

    def finished(self) -> Iterator[Rows]:
        """The rows, without the padding, to which no window will be added any more; each is given once, in their order."""
        first, stop = self.plan.inside[0].start, self.plan.inside[0].stop
        while self._next_row < len(self._ends) and self._ends[self._next_row] < self._added:
            row, self._next_row = self._next_row, self._next_row + 1
            begin, end = max(first, self._edges[0][row]), min(stop, self._edges[0][row + 1])
            cells = [self._taken((row, column)) for column in range(len(self._edges[1]) - 1)]
            if begin < end:
                # No weight is 0: windows cover every voxel; MONAI clamps their weights to 0.001 or more, nnU-Net as it can
                means = [sums[:-1].div_(sums[-1]) for sums in cells]
                rows = means[0] if len(means) == 1 else torch.cat(means, 2)
                own = slice(begin - self._edges[0][row], end - self._edges[0][row])
                del cells, means
                rows = rows[(slice(None), own, *self.plan.inside[1:])]
                yield begin - first, mean_of_networks(rows, self._networks).float()

    def _cells(self, window: Window) -> Iterator[Cell]:
        """The cells that a window touches; each lies inside the window along both axes."""
        rows, columns = (
            range(edges.index(side.start), edges.index(side.stop))
            for edges, side in zip(self._edges, window.place, strict=False)
        )
        return ((i, j) for i in rows for j in columns)

    def _cell(self, cell: Cell) -> torch.Tensor:
        """Shape (C + 1, *cell): the sums, and the summed weights behind them."""
        if cell in self._waiting:
            self._held[cell] = self._taken(cell)
        elif cell not in self._held:
            self._held[cell] = torch.zeros(self._shape(cell), device=self.device, dtype=self.window_weight.dtype)
        return self._held[cell]

    def _taken(self, cell: Cell) -> torch.Tensor:
        """The sums of a cell, which is forgotten."""
        if cell in self._waiting:
            waiting = self._spool.take(self._waiting.pop(cell), self._shape(cell))
            return waiting.to(self.device, self.window_weight.dtype)
        return self._held.pop(cell)

    def _make_room(self, newest: Cell) -> None:
        """Writes cells to disk until the others take no more memory than allowed, those that will be needed last first."""
        over = sum(sums.nbytes for sums in self._held.values()) - self.most_bytes
        if over <= 0:
            return
        for cell in sorted(self._held, key=self._next_use, reverse=True):
            if over <= 0:
                break
            if cell != newest:  # so that there is always one
                sums = self._held.pop(cell)
                over -= sums.nbytes
                self._waiting[cell] = self._spool.put(sums.float())

    def _next_use(self, cell: Cell) -> int:
        """The number of the window that will touch a cell next, or of the last window of its row."""
        uses = self._uses[cell]
        return uses[0] if uses else self._ends[cell[0]]

    def _shape(self, cell: Cell) -> tuple[int, ...]:
        sides = (edges[n + 1] - edges[n] for edges, n in zip(self._edges, cell, strict=True))
        return (self._channels + 1, *sides, *self.plan.padded_shape[2:])


def sum_bytes(plan: WindowPlan, channels: int) -> int:
    """Bytes of the sums of windows that live at a time: rows leave with the last window that touches them."""
    return 4 * (channels + 1) * plan.window[0] * math.prod(plan.padded_shape[1:])


def rows_together(plan: WindowPlan, channels: int) -> int:
    """How many rows leave together at most."""
    return max(1, min(MOST_ROWS, MOST_ROW_BYTES // (4 * channels * math.prod(plan.padded_shape[1:]))))


def _edges(plan: WindowPlan, axis: int, more: Sequence[int] = ()) -> list[int]:
    """Where an axis is divided: where windows begin and end, and at these positions."""
    sides = {end for window in plan.windows for end in (window.place[axis].start, window.place[axis].stop)}
    return sorted({0, plan.padded_shape[axis], *sides, *more})
