"""How long a bundle's network takes here, by each engine and precision that it can be had in."""

import platform
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_unet_app.bundle import Bundle
from monai_unet_app.config import EngineName, Precision, ResultSettings
from monai_unet_app.errors import AppError
from monai_unet_app.inference.engines.chooser import ENGINES, check_device
from monai_unet_app.inference.engines.runtimes import RUNTIMES, export_files
from monai_unet_app.inference.predict import predict_rows
from monai_unet_app.machine_memory import taken_by


@dataclass(frozen=True)
class Pace:
    """What one engine takes for one image.

    Attributes:
        engine, precision: As in `ResultSettings`.
        seconds: Of each round; empty where `why_not` says why.
        memory_mb: Resident memory that loading it and the first round add.
        file_mb: Size of the weights, or of the export.
        why_not: Why it cannot be had.
    """

    engine: str
    precision: str
    seconds: tuple[float, ...] = ()
    memory_mb: float = 0.0
    file_mb: float = 0.0
    why_not: str | None = None

    def document(self) -> dict[str, Any]:
        """Ready for JSON, with the median and the 95th percentile of the seconds."""
        p50, p95 = np.percentile(self.seconds, (50, 95)) if self.seconds else (None, None)
        return {**asdict(self), "p50_s": p50, "p95_s": p95}


def processor(device: torch.device) -> str:
    """The name of what computes, with the threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = (line.partition(":")[2].strip() for line in told if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {torch.get_num_threads()} threads"


def paces(bundle: Bundle, size: tuple[int, ...], rounds: int) -> list[Pace]:
    """Each engine with each precision on one made image, by sliding window, after one round that does not count.

    Args:
        bundle: On the device of the engines.
        size: Of the image, in voxels of the working grid.
        rounds: Of each engine; all take turns.
    """
    shape = (bundle.rules.channels, *size)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, runs = dict[tuple[EngineName, Precision], Pace](), {}
    for engine, precision in ENGINES:
        run = partial(_run, bundle, image, ResultSettings(engine=engine, precision=precision))
        try:
            memory = taken_by(run)
        except AppError as error:
            found[engine, precision] = Pace(engine, precision, why_not=str(error))
            continue
        exported = export_files(engine, precision) if engine in RUNTIMES else ()
        files = [bundle.root / name for name in exported] or [bundle.weights]
        size_mb = sum(file.stat().st_size for file in files) / 1e6
        found[engine, precision] = Pace(engine, precision, (), memory / 1e6, size_mb)
        runs[engine, precision] = run
    seconds = {key: list[float]() for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - began)
    return [replace(one, seconds=tuple(seconds[key])) if key in seconds else one for key, one in found.items()]


def _run(bundle: Bundle, image: torch.Tensor, settings: ResultSettings) -> None:
    check_device(settings, bundle.device.type)
    for _ in predict_rows(image, bundle.engine(settings), bundle.windows):
        pass
