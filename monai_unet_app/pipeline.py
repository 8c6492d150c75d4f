"""The whole story on one page: a source and a bundle in, a segmented case out. Every door walks through here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.config import PredictConfig
from monai_unet_app.data.monai_bridge import to_metatensor
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.rules import check_rules
from monai_unet_app.inference.engines.torch_engine import TorchEngine
from monai_unet_app.inference.predict import Progress, predict_logits, predict_mirrored


@dataclass(frozen=True)
class Case:
    """A segmented case on its source grid.

    Attributes:
        volume: The image as it was read.
        probabilities: Shape (C, I, J, K), float32, calibrated, 0 to 1; exclusive classes sum to 1.
        labels: Exclusive classes: shape (I, J, K), uint8, 0 is background. Overlapping: (C, I, J, K), 0 or 1.
        seconds: Time per stage.
    """

    volume: Volume
    probabilities: NDArray[np.float32]
    labels: NDArray[np.uint8]
    seconds: dict[str, float]


def segment_case(
    source: str | Path | Volume, bundle: Bundle, run: PredictConfig | None = None, progress: Progress | None = None
) -> Case:
    """Segments one case with one bundle.

    Args:
        source: NIfTI file, DICOM folder or file, 2D picture, or a volume already read.
        bundle: Loaded on the device it shall run on.
        run: Flags of this run.
        progress: Called with (windows done, windows in all).

    Raises:
        InputRefusedError: The image cannot be read or is not what the bundle was made for.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        volume = source if isinstance(source, Volume) else read_volume(source)
        check_rules(volume, bundle.rules, "the image" if isinstance(source, Volume) else Path(source).name)
    with _timed(seconds, "preprocess"):
        item = preprocess(volume, bundle)
    with _timed(seconds, "predict"):
        item["pred"] = predict(item["image"], bundle, run or PredictConfig(), progress)
    with _timed(seconds, "postprocess"):
        item = bundle.result(item)
        probabilities, labels = _on_volume(item["prob"], volume), _on_volume(item["pred"], volume)
    labels = labels[0] if bundle.exclusive else labels
    return Case(volume, probabilities, np.rint(labels).astype(np.uint8), seconds)


def preprocess(volume: Volume, bundle: Bundle) -> dict[str, MetaTensor]:
    """{"image": tensor}: the volume as the network wants it, by the bundle's own transforms."""
    return bundle.preprocessing({"image": to_metatensor(volume)}, start=1)


def predict(image: MetaTensor, bundle: Bundle, run: PredictConfig, progress: Progress | None = None) -> torch.Tensor:
    """Logits on the preprocessed image's grid, shape (C, *spatial)."""
    engine = TorchEngine(bundle.network, bundle.device, bundle.slice_axis)
    tensor = image.as_tensor()
    if run.tta:
        return predict_mirrored(tensor, engine, bundle.windows, bundle.mirror_axes, progress)
    return predict_logits(tensor, engine, bundle.windows, progress)


def _on_volume(tensor: torch.Tensor, volume: Volume) -> NDArray[np.float32]:
    """Shape (C, I, J, K): the last axis comes back for a picture."""
    array = torch.as_tensor(tensor).cpu().numpy().astype(np.float32)
    return array[..., None] if volume.planar else array


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - begin, 4)


