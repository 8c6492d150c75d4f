"""The segmentation of one image with one bundle, from reading to the assessed result. Every command comes through here.

torch and MONAI take seconds to import. They are imported where they are used, so that wrong flags are refused at once.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.confidence.assessment import Assessment, assess
from monai_unet_app.confidence.fitted_to import InferenceSetting
from monai_unet_app.confidence.shift import LayerWatch, image_features
from monai_unet_app.confidence.statements import Confidence, read_confidence
from monai_unet_app.config import PredictConfig
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.rules import check_rules
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.uncertainty import normalised_entropy

if TYPE_CHECKING:
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Compose

    from monai_unet_app.inference.predict import Progress


@dataclass(frozen=True)
class Case:
    """A segmented image, with the bundle and the settings that segmented it.

    Attributes:
        segmentation: The image, its labels (uint8) and its calibrated probabilities, on the source grid.
        bundle: The bundle that segmented it.
        run: The settings that it was segmented with.
        seconds: Duration of each stage.
        uncalibrated: Shape (C, I, J, K): the probabilities without calibration; None if they were not requested.
        assessment: The bundle's statements about this result; None while they are fitted.
        image_features: Shape (F,), the input of the shift detector; None if nothing uses it.
    """

    segmentation: Segmentation
    bundle: Bundle
    run: PredictConfig = field(default_factory=PredictConfig)
    seconds: Mapping[str, float] = field(default_factory=dict)
    uncalibrated: NDArray[np.float32] | None = None
    assessment: Assessment | None = None
    image_features: NDArray[np.float64] | None = None

    @property
    def image(self) -> Volume:
        """The image as it was read."""
        return self.segmentation.image

    @property
    def uncertainty(self) -> NDArray[np.float32]:
        """Shape (I, J, K), 0 sure to 1 undecided: entropy of the calibrated probabilities."""
        assert self.segmentation.probabilities is not None
        return normalised_entropy(self.segmentation.probabilities, exclusive=self.segmentation.exclusive)


def segment_case(
    source: str | Path | Volume,
    bundle: Bundle,
    run: PredictConfig | None = None,
    progress: "Progress | None" = None,
    *,
    uncalibrated: bool = False,
    fitting: bool = False,
) -> Case:
    """Segments one case with one bundle.

    Args:
        source: NIfTI file, DICOM folder or file, 2D picture, or a volume already read.
        bundle: The bundle, loaded on the device of the network.
        run: Settings of this run.
        progress: Called with (windows done, number of windows).
        uncalibrated: Also give the probabilities without calibration, to compare.
        fitting: True while statements are fitted: the features of the image are computed and nothing is assessed.

    Raises:
        InputRefusedError: The image cannot be read, or breaks the input rules of the bundle.
    """
    run = run or PredictConfig()
    seconds: dict[str, float] = {}
    with timed(seconds, "read"):
        volume = source if isinstance(source, Volume) else read_volume(source, run.reading)
        # Before preprocessing, which would hide a wrong modality or spacing behind a plausible tensor
        check_rules(volume, bundle.rules)
    with timed(seconds, "preprocess"):
        item = preprocess(volume, bundle)
    setting = setting_of(run, bundle)
    statements = None if fitting else read_confidence(bundle, setting)
    watched = fitting or (statements is not None and statements.shift is not None)
    with timed(seconds, "predict"), _watch(bundle, watched) as watch:
        logits = predict(item["image"], bundle, run, progress)
    with timed(seconds, "postprocess"):
        result = bundle.mirrored_result if setting == "tta" else bundle.result
        segmentation = decided(volume, *finish(item, logits, result, volume), bundle)
    raw = finish(item, logits, bundle.uncalibrated_result, volume)[0] if uncalibrated else None
    features = _image_features(volume, watch) if watched else None
    with timed(seconds, "assess"):
        case = Case(segmentation, bundle, run, seconds, raw, image_features=features)
        return assessed(case, statements)


def decided(
    image: Volume, probabilities: NDArray[np.float32], decision: NDArray[np.float32], bundle: Bundle
) -> Segmentation:
    """The segmentation from the output of a bundle's `result`.

    Args:
        image: The image.
        probabilities: Shape (C, I, J, K), the channels of the bundle's `labels`.
        decision: "pred" of the bundle: shape (1, I, J, K) with label values, or of overlapping labels (S, I, J, K), 0 or 1.
        bundle: The bundle that decided.
    """
    labels = np.rint(decision[0] if bundle.exclusive else decision).astype(np.uint8)
    return Segmentation(image, labels, bundle.segments, probabilities, bundle.wholes)


def setting_of(run: PredictConfig, bundle: Bundle) -> InferenceSetting:
    """The statements that hold for a run: "tta" if it averages over mirror images, else "plain"."""
    return "tta" if run.tta and bundle.mirror_axes else "plain"


def assessed(case: Case, statements: Confidence | None) -> Case:
    """The case with the assessment by these statements; unchanged while statements are fitted (None)."""
    if statements is None:
        return case
    return replace(case, assessment=assess(statements, case.segmentation, case.image_features))


def _watch(bundle: Bundle, watched: bool) -> AbstractContextManager[LayerWatch | None]:
    """Collects the features of the bundle's `feature_layer` during the `with` block, if it names one and they are used."""
    return LayerWatch(bundle.network, bundle.feature_layer) if watched and bundle.feature_layer else nullcontext()


def _image_features(volume: Volume, watch: LayerWatch | None) -> NDArray[np.float64]:
    image = image_features(volume.array, (*volume.axis_spacing, 1.0)[:3])
    return image if watch is None else np.concatenate([image, watch.features()])


def preprocess(volume: Volume, bundle: Bundle) -> "dict[str, MetaTensor]":
    """{"image": tensor (C, *spatial)}: the input of the network, made by the bundle's own transforms."""
    from monai_unet_app.data.monai_bridge import to_metatensor

    # start=1 skips the transform that loads; the volume is in memory
    item: dict[str, MetaTensor] = bundle.preprocessing({"image": to_metatensor(volume)}, start=1)
    return item


def predict(
    image: "MetaTensor", bundle: Bundle, run: PredictConfig, progress: "Progress | None" = None
) -> "torch.Tensor":
    """Logits on the grid of the preprocessed image, shape (C, *spatial).

    Raises:
        InputRefusedError: A logit is infinite or NaN.
    """
    import torch

    from monai_unet_app.inference.engines.torch_engine import TorchEngine
    from monai_unet_app.inference.predict import predict_logits, predict_mirrored

    engine = TorchEngine(bundle.network, bundle.device, bundle.slice_axis)
    tensor = image.as_tensor()
    if run.tta:
        logits = predict_mirrored(tensor, engine, bundle.windows, bundle.mirror_axes, progress)
    else:
        logits = predict_logits(tensor, engine, bundle.windows, progress)
    if not torch.isfinite(logits).all():
        raise InputRefusedError(
            "the network's answer to it is not finite; look at its intensities with monai-unet inspect"
        )
    return logits


def finish(
    item: "dict[str, MetaTensor]", logits: "torch.Tensor", result: "Compose", volume: Volume
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Probabilities and labels on the source grid, both (C, I, J, K), by the bundle's `result`."""
    # A copy, because transforms may write into their input and the logits are used twice
    output = result({**item, "pred": logits.clone()})
    return on_volume(output["prob"], volume), on_volume(output["pred"], volume)


def on_volume(tensor: "torch.Tensor", volume: Volume) -> NDArray[np.float32]:
    """The values of a tensor (C, *spatial) as (C, I, J, K); a picture gets its third axis back."""
    import torch

    array = torch.as_tensor(tensor).cpu().numpy().astype(np.float32)
    return array[..., None] if volume.planar else array


@contextmanager
def timed(seconds: dict[str, float], stage: str, digits: int = 4) -> Iterator[None]:
    """Notes under the name of the stage how many seconds the block took; a block that fails is not noted."""
    begin = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - begin, digits)
