"""The memory that a run will take, known before a pixel is read, and what waits on disk so that it keeps to a limit.

It is planned from the headers of an image, and again from the preprocessed image. All figures are bytes of resident memory.
They come from shapes and from one batch of windows that was run. The factors that stand here as numbers were measured by
`benchmarks/memory.py`, which also measures that a run takes no more than its plan says. No value of a result depends on a plan.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray

from dicom_io.read import ReadOptions
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.config import PredictConfig
from monai_unet_app.errors import InputRefusedError, NoRoomError
from monai_unet_app.gathering import Keep
from monai_unet_app.inference.blend import rows_together, sum_bytes
from monai_unet_app.inference.halo import halo_voxels
from monai_unet_app.inference.pieces import PIECE_BYTES, piece_sides
from monai_unet_app.inference.spool import IN_MEMORY_BYTES
from monai_unet_app.inference.windows import WindowPlan, WindowSettings
from monai_unet_app.machine_memory import (
    ever_resident_bytes,
    large_blocks_go_back,
    most_resident_bytes,
    resident_bytes,
    taken_by,
)

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from monai_unet_app.inference.engines import Engine
    from monai_unet_app.inference.pieces import ResultSteps

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
        preparing: Bytes that its preprocessing takes beside two copies of the image and its answer.
    """

    source: tuple[int, ...]
    working: tuple[int, ...]
    image_channels: int
    channels: int
    kept: int
    halo: float = math.inf
    preparing: float = 0.0

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
    plan = windows.plan(work.working)
    voxels = math.prod(work.source)
    image, prepared = 4.0 * work.image_channels * voxels, 4.0 * work.image_channels * math.prod(plan.padded_shape)
    evidence = _EVIDENCE_BYTES * voxels if _EVIDENCE_BYTES * voxels <= IN_MEMORY_BYTES else 0
    result = voxels * work.kept + evidence
    # Read and turned; then resampled slab by slab, or, on the grid that it has, copied before it is turned
    before = 2 * image + (prepared if work.source != work.working else image) + work.preparing
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


def prepared_shape(shape: tuple[int, ...], affine: NDArray[np.float64], bundle: Bundle) -> tuple[int, ...]:
    """The shape of an image of a bundle, as `working_shape`; a transform that lays its own grid is asked."""
    from monai.transforms import Orientationd

    axes, order = nibabel.orientations.io_orientation(affine)[:, 0].astype(int), [0, 1, 2]
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    for step in getattr(bundle.preprocessing, "transforms", ()):
        if isinstance(step, Orientationd):  # which of the image's axes each axis then is
            turned = nibabel.orientations.axcodes2ornt(step.ornt_transform.axcodes)[:, 0].astype(int)
            order = [axes.tolist().index(to) for to in turned]
        if hasattr(step, "working_shape"):
            return tuple(step.working_shape([shape[axis] for axis in order], sizes[order]))
    return working_shape(shape, affine, bundle.grid_spacing)


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


class MemoryPlanner:
    """The memory plan of one run.

    Args:
        bundle: The bundle that will segment the image.
        run: The settings of the run; `on_plan` is called once, and only where there is a plan.
        result: The transforms that will turn logits into the result.
        keep: What is kept of the probabilities, as in `segment_case`.
    """

    def __init__(self, bundle: Bundle, run: PredictConfig, result: "ResultSteps", keep: Keep) -> None:
        self._bundle, self._run, self._result, self._keep = bundle, run, result, keep
        # Without a limit, as in an evaluation, no case is left out because of the machine: the run ends for want of room
        self._ever = min(run.memory_limit, ever_resident_bytes()) if run.memory_limit else math.inf
        self._limit = min(self._ever, most_resident_bytes())
        self._process: Process | None = None

    @property
    def engine(self) -> "Engine":
        """The engine of the run."""
        return self._bundle.engine(self._run.settings)

    @property
    def reading(self) -> ReadOptions:
        """How the image is read: planned for before its pixels are."""
        return replace(self._run.reading, before_pixels=self.before_pixels)

    def before_pixels(self, shape: tuple[int, ...], affine: NDArray[np.float64]) -> None:
        """Plans for an image whose headers are known.

        Args:
            shape: (I, J, K) of the image in voxels, channels last if there are several.
            affine: Shape (4, 4): voxel to LPS mm.

        Raises:
            InputRefusedError: The image does not fit.
        """
        if np.linalg.matrix_rank(affine[:3, :3]) == 3:  # else the reader refuses it
            self._plan(shape[:3], prepared_shape(shape[:3], affine, self._bundle), math.prod(shape[3:]))

    def windows(self, image: "MetaTensor", volume: Volume) -> WindowSettings:
        """The sliding window for a preprocessed image, shape (C, *spatial) in voxels, with what of its sums waits on disk.

        Raises:
            InputRefusedError: The image does not fit.
        """
        settings = replace(self._bundle.windows, mirror_axes=self._bundle.mirror_axes if self._run.settings.tta else ())
        in_pieces = self._result.way_back(image) is not None
        in_memory = volume.array.nbytes + image.nbytes
        plan = self._plan(
            volume.shape, tuple(image.shape[1:]), image.shape[0], in_pieces=in_pieces, in_memory=in_memory
        )
        return settings if plan is None else replace(settings, most_bytes=plan.sums)

    def memory(self) -> AbstractContextManager[None]:
        """To compute in: a large image leaves no freed memory with the process."""
        return nullcontext() if self._process is None else large_blocks_go_back()

    def _plan(
        self,
        source: tuple[int, ...],
        working: tuple[int, ...],
        channels: int,
        *,
        in_pieces: bool = True,
        in_memory: int = 0,
    ) -> MemoryPlan | None:
        """The plan; `in_memory`: bytes of the image that this process holds already."""
        labels = len(self._bundle.labels)
        for step in self._result.tidy:
            if hasattr(step, "check_size"):
                step.check_size(labels, source)
        steps = getattr(self._bundle.preprocessing, "transforms", ())
        preparing = sum(step.extra_bytes(source, working, channels) for step in steps if hasattr(step, "extra_bytes"))
        kept = self._bundle.outputs.result_bytes(labels)
        work = Work(source, working, channels, labels, kept, preparing=preparing)
        if work.is_small and self._limit - resident_bytes() > AMPLE_BYTES:
            return None
        if in_pieces and self._result.named:
            work = replace(work, halo=self._halo)
        is_first = self._process is None
        self._process = self._process or self._measured(work, in_memory)
        plan = memory_plan(work, self._bundle.windows, self._process)
        if self._run.on_plan is not None and is_first:
            self._run.on_plan(str(plan))
        return plan

    @cached_property
    def _halo(self) -> float:
        dims = len(self._bundle.windows.window)
        return max(halo_voxels(self._result.probabilities, len(self._bundle.labels), dims))

    def _measured(self, work: Work, in_memory: int) -> Process:
        """What this process holds beside the image, and what a batch of windows takes, by running one of zeros."""
        settings, engine = self._bundle.windows, self.engine
        window = settings.plan(work.working).window
        empty = torch.zeros(settings.batch, _input_channels(self._bundle, work), *window, device=engine.device)
        kept = 0 if self._keep == "evidence" else min(IN_MEMORY_BYTES, 4 * work.channels * math.prod(work.source))
        held = resident_bytes() - in_memory + kept
        return Process(held, taken_by(lambda: engine(empty)), self._limit, self._ever)


def _input_channels(bundle: Bundle, work: Work) -> int:
    """Channels of the network's input; preprocessing may have changed those of the image."""
    weights = (parameter.shape for parameter in bundle.network.parameters() if parameter.ndim > 3)
    return next((shape[1] for shape in weights), work.image_channels)
