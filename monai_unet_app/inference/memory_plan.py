"""The memory that a run will take, known before a pixel is read, and what waits on disk so that it keeps to a limit.

All figures are bytes of resident memory. They come from shapes and from one batch of windows that was run. The factors that
stand here as numbers were measured by `benchmarks/memory.py`, which also measures that a run takes no more than its plan says.
No value of a result depends on a plan.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel
import numpy as np
from numpy.typing import NDArray

from monai_unet_app.errors import InputRefusedError, NoRoomError
from monai_unet_app.inference.blend import rows_together, sum_bytes
from monai_unet_app.inference.pieces import PIECE_BYTES, piece_sides
from monai_unet_app.inference.spool import IN_MEMORY_BYTES
from monai_unet_app.inference.windows import WindowPlan, WindowSettings, plan_windows

SMALL_BYTES = 1 << 28
AMPLE_BYTES = 8 * SMALL_BYTES
"""An image whose probabilities take less than the one is not planned where a process may grow by the other."""

_PIECE_COPIES = 6  # of the probabilities of a piece, while it is made and gathered
_MONAI_COPIES = 3.6  # of all probabilities on the source grid, where MONAI undoes the preprocessing of the whole image
_WRITER_BYTES = 9  # a voxel of the source, beside image and result, for statements, SEG and SR
_EVIDENCE_BYTES = 8  # a voxel of the source: top probability and entropy, on disk where they are large
_ROOM_BYTES = 1 << 27  # for everything that is not counted


@dataclass(frozen=True)
class Work:
    """An image and what is computed of it.

    Attributes:
        source: Shape of the image in voxels.
        working: Its shape on the grid of the network.
        image_channels: Channels of the image.
        channels: Probabilities of a voxel.
        kept: Bytes of a voxel of the result, as `Outputs.result_bytes`.
        halo: Voxels around a voxel that its calibration looks at; infinite where the result is made of the whole image at once.
    """

    source: tuple[int, ...]
    working: tuple[int, ...]
    image_channels: int
    channels: int
    kept: int
    halo: float = math.inf

    @property
    def is_small(self) -> bool:
        """Whether it fits wherever AMPLE_BYTES are free."""
        voxels = max(math.prod(self.source), math.prod(self.working))
        return 4 * voxels * max(self.channels, self.image_channels) <= SMALL_BYTES


@dataclass(frozen=True)
class Process:
    """The process of a run.

    Attributes:
        held: Bytes that it holds before the image is read.
        batch: Bytes that a batch of windows takes beside them.
        limit: Bytes that it may take now.
        ever: The same if nothing else took memory.
    """

    held: float
    batch: float
    limit: float
    ever: float = math.inf


@dataclass(frozen=True)
class MemoryPlan:
    """What a run will take.

    Attributes:
        peak: Expected at the largest.
        sums: Of the sums of windows in memory at a time; those beyond wait on disk.
        on_disk: Of the sums of windows that will wait on disk at a time.
        limit: What the run may take.
    """

    peak: float
    sums: float
    on_disk: float
    limit: float

    def __str__(self) -> str:
        waits = f", beside {gb(self.on_disk)} on disk" if self.on_disk else ""
        return f"memory: {gb(self.peak)} expected, {gb(self.limit)} allowed; sums of windows {gb(self.sums)}{waits}"


def memory_plan(work: Work, windows: WindowSettings, process: Process) -> MemoryPlan:
    """The plan for an image.

    Args:
        work: The image, and what is computed of it.
        windows: The sliding window of the bundle.
        process: The process that will do it.

    Raises:
        InputRefusedError: The image does not fit, even if every sum of windows that can waits on disk.
        NoRoomError: It would, if other processes left it more memory.
    """
    plan = plan_windows(work.working, windows.window, windows.overlap)
    voxels = math.prod(work.source)
    image, prepared = 4.0 * work.image_channels * voxels, 4.0 * work.image_channels * math.prod(plan.padded_shape)
    evidence = _EVIDENCE_BYTES * voxels if _EVIDENCE_BYTES * voxels <= IN_MEMORY_BYTES else 0
    result = voxels * work.kept + evidence
    # Read and turned; then resampled slab by slab, or, on the grid that it has, copied before it is turned
    before = 2 * image + (prepared if work.source != work.working else image)
    rows, pieces = _rows_and_pieces(work, plan)
    # Windows run and pieces are made in turns
    during = image + prepared + result + rows + max(process.batch, pieces)
    after = image + result + _WRITER_BYTES * voxels
    live = float(sum_bytes(plan, work.channels))
    # Rows that leave together are all in memory for a moment; while windows are added, less would do
    least = live / plan.window[0] * rows_together(plan, work.channels)
    fixed, limit = process.held + _ROOM_BYTES, process.limit
    needed = fixed + max(before, process.batch, after, during + least)
    if needed > limit:
        # Rounded up, so that a limit of this figure does
        raise (NoRoomError if needed <= process.ever else InputRefusedError)(
            f"it needs {gb(needed + 5e6)} of memory ({_by(work.source)} voxels, {work.channels} classes, windows of "
            f"{_by(plan.window)}) and {gb(limit)} are allowed; raise --memory-limit, or take a machine with more"
        )
    sums = min(live, limit - fixed - during)
    return MemoryPlan(fixed + max(before, process.batch, after, during + sums), sums, live - sums, limit)


def _rows_and_pieces(work: Work, plan: WindowPlan) -> tuple[float, float]:
    """Bytes of the logits that wait for their piece, and of the pieces that are made of them."""
    one_row = 4.0 * work.channels * math.prod(work.working[1:])
    whole = 4.0 * work.channels * math.prod(work.source)
    if math.isinf(work.halo):
        return one_row * work.working[0], one_row * work.working[0] + _MONAI_COPIES * whole
    if whole <= PIECE_BYTES:
        return one_row * work.working[0], _PIECE_COPIES * whole
    _, height, _ = piece_sides(work.source, 0, work.channels, PIECE_BYTES)
    needed = height * max(w / s for s, w in zip(work.source, work.working, strict=True)) + 2 * work.halo + 2
    rows = needed + 3 * rows_together(plan, work.channels)  # those that leave together exist twice for a moment
    return one_row * min(rows, work.working[0]), _PIECE_COPIES * PIECE_BYTES


def working_shape(
    shape: Sequence[int], affine: NDArray[np.float64], spacing: Sequence[float] | None
) -> tuple[int, ...]:
    """The shape of an image on the grid of the network, as far as it is known before preprocessing, within a voxel.

    Args:
        shape: Of the image, three axes, in voxels.
        affine: Voxel to LPS, mm.
        spacing: Voxel size in mm along the axes R, A and S of the grid; None if the image keeps its own.
    """
    axes = nibabel.orientations.io_orientation(affine)[:, 0].astype(int)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    lengths = [0] * 3
    for axis, to in enumerate(axes):
        step = sizes[axis] if spacing is None else spacing[to]
        lengths[to] = max(1, round((shape[axis] - 1) * sizes[axis] / step) + 1)
    return tuple(lengths)


def gb(size: float) -> str:
    """A number of bytes for a reader."""
    return f"{size / 1e9:.2f} GB"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
