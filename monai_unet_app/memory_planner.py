"""The memory plan of one run: made from the headers of an image, and again from the preprocessed image."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.config import PredictConfig
from monai_unet_app.gathering import Keep
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
    from monai_unet_app.inference.memory_plan import MemoryPlan, Process, Work
    from monai_unet_app.inference.pieces import ResultSteps
    from monai_unet_app.inference.windows import WindowSettings


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

    def before_pixels(self, shape: tuple[int, ...], affine: NDArray[np.float64]) -> None:
        """Plans for an image whose headers are known.

        Args:
            shape: (I, J, K) of the image in voxels, channels last if there are several.
            affine: Shape (4, 4): voxel to LPS mm.

        Raises:
            InputRefusedError: The image does not fit.
        """
        from monai_unet_app.inference.memory_plan import working_shape

        if np.linalg.matrix_rank(affine[:3, :3]) == 3:  # else the reader refuses it
            self._plan(shape[:3], working_shape(shape[:3], affine, self._bundle.grid_spacing), math.prod(shape[3:]))

    def windows(self, image: "MetaTensor", volume: Volume) -> "WindowSettings":
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
    ) -> "MemoryPlan | None":
        """The plan; `in_memory`: bytes of the image that this process holds already."""
        from monai_unet_app.inference.memory_plan import AMPLE_BYTES, Work, memory_plan

        labels = len(self._bundle.labels)
        for step in self._result.tidy:
            if hasattr(step, "check_size"):
                step.check_size(labels, source)
        work = Work(source, working, channels, labels, self._bundle.outputs.result_bytes(labels))
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
        from monai_unet_app.inference.halo import halo_voxels

        dims = len(self._bundle.windows.window)
        return max(halo_voxels(self._result.probabilities, len(self._bundle.labels), dims))

    def _measured(self, work: "Work", in_memory: int) -> "Process":
        """What this process holds beside the image, and what a batch of windows takes, by running one of zeros."""
        import torch

        from monai_unet_app.inference.memory_plan import Process
        from monai_unet_app.inference.spool import IN_MEMORY_BYTES
        from monai_unet_app.inference.windows import plan_windows

        settings, engine = self._bundle.windows, self.engine
        window = plan_windows(work.working, settings.window, settings.overlap).window
        empty = torch.zeros(settings.batch, _input_channels(self._bundle, work), *window, device=engine.device)
        kept = 0 if self._keep == "evidence" else min(IN_MEMORY_BYTES, 4 * work.channels * math.prod(work.source))
        held = resident_bytes() - in_memory + kept
        return Process(held, taken_by(lambda: engine(empty)), self._limit, self._ever)


def _input_channels(bundle: Bundle, work: "Work") -> int:
    """Channels of the network's input; preprocessing may have changed those of the image."""
    weights = (parameter.shape for parameter in bundle.network.parameters() if parameter.ndim > 3)
    return next((shape[1] for shape in weights), work.image_channels)
