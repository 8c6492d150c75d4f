"""The segmentation of one image with one bundle, from reading to the assessed result. Every command comes through here.

torch and MONAI take seconds to import. They are imported where they are used, so that wrong flags are refused at once.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.boxes import Box, Channels
from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.confidence.assessment import Assessment, assess
from monai_unet_app.confidence.shift import LayerMeans, image_features
from monai_unet_app.confidence.statements import Confidence, read_confidence, stated_key
from monai_unet_app.config import EngineWish, PredictConfig, ResultSettings, Sides, applied_repairs, box_text
from monai_unet_app.data.read import ImageFiles, read_volume, volume_of_array
from monai_unet_app.data.rules import check_rules
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.gathering import Gathered, Keep, around, on_grid, on_volume

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from monai_unet_app.inference.pieces import Piece, ResultSteps
    from monai_unet_app.inference.predict import Progress
    from monai_unet_app.inference.spool import Rows, StoredRows


@dataclass(frozen=True)
class Case:
    """A segmented image, with the bundle and the settings that segmented it.

    Attributes:
        segmentation: The image, its labels and what is kept of its calibrated probabilities, on the source grid.
        bundle: The bundle that segmented it.
        run: The settings that it was segmented with.
        seconds: Duration of each stage.
        assessment: The bundle's statements about this result; None while they are fitted.
        image_features: Shape (F,), the input of the shift detector; None if nothing uses it.
        logits: What a second look at the probabilities is made of; None if it was not requested.
        cautious: Shape (S, I, J, K), boolean: the cautious masks; None if they were not requested.
    """

    segmentation: Segmentation
    bundle: Bundle
    run: PredictConfig = field(default_factory=PredictConfig)
    seconds: Mapping[str, float] = field(default_factory=dict)
    assessment: Assessment | None = None
    image_features: NDArray[np.float64] | None = None
    logits: "CaseLogits | None" = None
    cautious: Channels | None = None

    @property
    def settings(self) -> ResultSettings:
        """What the result was computed with: the repairs and the wider intervals that were applied."""
        return replace(
            settings_of(self.run, self.bundle),
            elsewhere=self.assessment is not None and self.assessment.confidence.is_elsewhere,
            repairs=applied_repairs(self.run.reading, self.image.provenance),
        )

    @property
    def image(self) -> Volume:
        """The image as it was read."""
        return self.segmentation.image

    @property
    def uncertainty(self) -> NDArray[np.float32]:
        """Shape (I, J, K), 0 sure to 1 undecided: entropy of the calibrated probabilities."""
        return self.segmentation.uncertainty

    def second_look(self) -> Iterator[tuple[Box, NDArray[np.float32], NDArray[np.float32]]]:
        """All probabilities once more, without the network: boxes that fill the image, calibrated and uncalibrated (C, *box).

        Raises:
            ValueError: `segment_case` was not asked to keep the logits.
        """
        if self.logits is None:
            raise ValueError("the logits were not kept; segment the case with keep='logits'")
        for piece in self.logits.pieces():
            assert piece.uncalibrated is not None
            calibrated, raw = (on_volume(part, self.image) for part in (piece.probabilities, piece.uncalibrated))
            yield on_grid(piece.box), calibrated, raw


@dataclass(frozen=True)
class CaseLogits:
    """The logits of a case, and what turns them into probabilities.

    Attributes:
        rows: The logits.
        item: The preprocessed image.
        result: The transforms of the bundle's `result`.
        uncalibrated: The same without calibration.
    """

    rows: "StoredRows"
    item: "dict[str, MetaTensor]"
    result: "ResultSteps"
    uncalibrated: "ResultSteps"

    def pieces(self) -> "Iterator[Piece]":
        """The result, calibrated and uncalibrated."""
        return finished(self.rows, self.item, self.result, self.uncalibrated)


def segment_case(
    source: ImageFiles | Volume,
    bundle: Bundle,
    run: PredictConfig | None = None,
    progress: "Progress | None" = None,
    *,
    keep: Keep = "evidence",
    fitting: bool = False,
) -> Case:
    """Segments one case with one bundle.

    Args:
        source: As `read_volume` takes it, or a volume already read.
        bundle: The bundle, loaded on the device of the network.
        run: Settings of this run.
        progress: Called with (windows done, number of windows).
        keep: What of the probabilities is kept: "evidence" is what `Evidence` holds; "cautious" the cautious masks as well;
            "probabilities" all of them, (C, I, J, K); "logits" makes `Case.second_look` possible. What is large is on disk.
        fitting: True while statements are fitted: the features of the image are computed and nothing is assessed.

    Raises:
        InputRefusedError: The image cannot be read, breaks the rules of the bundle, or does not fit into memory or on disk;
            or as `read_confidence`.
        UsageError: Cautious masks are asked for, and the bundle states no threshold for them; or as `choose_engine`.
    """
    from monai_unet_app.inference.predict import predict_rows
    from monai_unet_app.memory_planner import MemoryPlanner

    run, seconds = run or PredictConfig(), dict[str, float]()
    settings, statements = settings_of(run, bundle), None if fitting else _statements(bundle, run)
    result = bundle.result_of(settings)
    planner = MemoryPlanner(bundle, run, result, keep)
    with timed(seconds, "read"):
        whole = source if isinstance(source, Volume) else read_volume(source, planner.reading)
        box = None if settings.box is None else box_in(settings.box, whole)
        volume = whole if box is None else whole.cropped(box)
        # Before preprocessing, which would hide a wrong modality or spacing behind a plausible tensor
        check_rules(volume, bundle.rules)
        features = _image_features(volume, bundle, statements)
    with timed(seconds, "preprocess"):
        item = preprocess(volume, bundle)
        windows = planner.windows(item["image"], volume)
    cuts, layer = statements.cautious_cuts(bundle.segments) if statements and keep == "cautious" else (), LayerMeans()
    with timed(seconds, "predict"), planner.memory():
        rows: Iterable[Rows] = predict_rows(item["image"], planner.engine, windows, progress, layer.add)
        logits = None
        if keep == "logits":
            from monai_unet_app.inference.spool import StoredRows

            logits = CaseLogits(StoredRows(), item, result, bundle.uncalibrated_result)
            rows = logits.rows.kept(rows)
        gathered = Gathered.of(volume, bundle, finished(rows, item, result), keep, cuts)
    preprocessed = item["image"] if result.needs_image else None
    del item, rows  # what follows needs the memory
    with timed(seconds, "postprocess"):
        segmentation = gathered.segmentation(result.tidy, preprocessed)
    with timed(seconds, "assess"):
        features = features if features is None or not bundle.feature_layer else layer.behind(features)
        case = assessed(Case(segmentation, bundle, run, seconds, None, features, logits, gathered.cautious), statements)
    return case if box is None else on_whole_image(case, whole, box)


class Predictor:
    """A bundle that stays loaded, for arrays that are in memory.

    Args:
        bundle: A name, a folder or a zip.
        device: As in `resolve_device`.
        engine: Of `ResultSettings`, or "auto" as on the command line.
        settings: The others; None for the usual ones.

    Raises:
        UsageError, BundleError: As `load_bundle` and `Bundle.engine`.
    """

    def __init__(
        self,
        bundle: str | Path,
        device: str = "auto",
        engine: EngineWish = "auto",
        settings: ResultSettings | None = None,
    ) -> None:
        from monai_unet_app.inference.engines.chooser import with_engine

        self.bundle = load_bundle(bundle, device)
        self.run = PredictConfig(with_engine(settings or ResultSettings(), self.bundle, engine)[0])
        self.bundle.engine(self.run.settings)

    def __call__(self, image: Volume | NDArray[Any], *, affine_ras: NDArray[np.float64] | None = None) -> Case:
        """The segmented image; its labels are `segmentation.labels`.

        Args:
            image: A volume, for instance of `dicom_io.read_series`; or an array (I, J, K) or (I, J, K, C) with its affine; or
                a picture (I, J) or (I, J, C), with I along its width.
            affine_ras: Shape (4, 4): array index to RAS mm, as nibabel gives it; of an array that is not a picture.

        Raises:
            TypeError: A volume and an affine.
            InputRefusedError: As `segment_case`.
        """
        if not isinstance(image, Volume):
            image = volume_of_array(image, affine_ras)
        elif affine_ras is not None:
            raise TypeError("a volume has an affine of its own; give affine_ras with an array only")
        return segment_case(image, self.bundle, self.run)


def _statements(bundle: Bundle, run: PredictConfig) -> Confidence:
    settings = settings_of(run, bundle)
    inherited = run.certifying and stated_key(bundle, settings) == settings.key
    return read_confidence(bundle, replace(settings, precision="float32") if inherited else settings)


def _image_features(volume: Volume, bundle: Bundle, statements: Confidence | None) -> NDArray[np.float64] | None:
    """The features of an image that tell unusual images from usual ones; None where nothing needs them.

    Args:
        volume: The image.
        bundle: Names its channels.
        statements: Of the bundle; None while they are fitted.

    Raises:
        InputRefusedError: Its channels, in another order, are much more like those that the detector was fitted on.
    """
    detector = statements.shift if statements else None
    if statements and detector is None:
        return None
    features = image_features(volume.array, (*volume.axis_spacing, 1.0)[:3])
    names = bundle.rules.channel_names
    order = detector.order_of(features, len(names)) if names and detector else ()
    if list(order) != sorted(order):
        pairs = [(names[given], name) for given, name in zip(order, names, strict=True) if names[given] != name]
        looks = " and ".join(f"what is given as {given} looks like {name}" for given, name in pairs)
        raise InputRefusedError(
            f"its channels look exchanged: {looks}, by the images that the bundle was calibrated on; {', '.join(names)} are "
            "needed, in this order; give the files so"
        )
    return features


def settings_of(run: PredictConfig, bundle: Bundle) -> ResultSettings:
    """The settings of a run with a bundle: on its device, with its overrides, and no averages if it has no mirror axes."""
    asked = run.settings
    tta = asked.tta and bool(bundle.mirror_axes)
    return replace(asked, device=bundle.device.type, tta=tta, overrides=bundle.replaced)


def box_in(sides: Sides, image: Volume) -> Box:
    """The box of an image. Raises InputRefusedError if it does not lie in the image, or has no voxel."""
    sizes = image.shape[:2] if image.planar and len(sides) == 2 else image.shape
    if len(sides) != len(sizes) or not all(
        0 <= first < end <= size for (first, end), size in zip(sides, sizes, strict=True)
    ):
        raise InputRefusedError(
            f"--box {box_text(sides)}: the image has {' x '.join(map(str, sizes))} voxels; for each axis the first voxel, "
            f"counted from 0, and the end inside them are needed, such as {box_text(tuple((0, size) for size in sizes))}"
        )
    i, j, k = (slice(*side) for side in (*sides, (0, 1))[:3])
    return i, j, k


def on_whole_image(case: Case, image: Volume, box: Box) -> Case:
    """The case of a box of an image on the whole image: background outside, for certain. What was stated stays as it is."""
    own, none = case.segmentation, case.bundle.outputs.background  # 1 where the background has a channel
    labels = np.zeros((*own.labels.shape[:-3], *image.shape), own.labels.dtype)
    labels[(..., *box)] = own.labels
    evidence, kept, cautious = own.known, own.probabilities, case.cautious
    assert evidence is not None
    certainty = around(evidence.certainty, box, image.shape, [none])
    evidence = replace(evidence, certainty=certainty, uncertainty=around(evidence.uncertainty, box, image.shape, [0]))
    if kept is not None:
        kept = around(kept, box, image.shape, [none, *[0] * (len(kept) - 1)])
    if cautious is not None:
        cautious = around(cautious, box, image.shape, [False])
    whole = replace(own, image=image, labels=labels, probabilities=kept, evidence=evidence)
    return replace(case, segmentation=whole, cautious=cautious, logits=None)


def assessed(case: Case, statements: Confidence | None) -> Case:
    """The case with the assessment by these statements; unchanged while statements are fitted (None)."""
    if statements is None:
        return case
    stated = assess(statements, case.segmentation, case.image_features)
    return replace(case, assessment=replace(stated, overridden=bool(case.bundle.overrides)))


def preprocess(volume: Volume, bundle: Bundle) -> "dict[str, MetaTensor]":
    """{"image": tensor (C, *spatial)}: the input of the network, made by the bundle's own transforms."""
    from monai_unet_app.data.monai_bridge import to_metatensor
    from monai_unet_app.inference.slabs import resampled, resampling_in_slabs

    compose = bundle.preprocessing
    with resampling_in_slabs():
        # 1: the first transform loads, and the volume is in memory
        item, start = resampled(compose, {"image": to_metatensor(volume, copied=False)}) or (
            {"image": to_metatensor(volume)},
            1,
        )
        # Step by step, so that no step's input outlives it; transforms that MONAI joins into one stay together
        steps = [(start, None)] if compose.lazy else [(n, n + 1) for n in range(start, len(compose.transforms))]
        for start, end in steps:
            item = compose(item, start=start, end=end)
    return item


def finished(
    rows: "Iterable[Rows]", item: "dict[str, MetaTensor]", result: "ResultSteps", raw: "ResultSteps | None" = None
) -> "Iterator[Piece]":
    """The result on the source grid, in pieces where the bundle allows it, else as one piece.

    Args:
        rows: Logits, from `predict_rows`.
        item: The preprocessed image.
        result: The bundle's `result`.
        raw: The same without calibration, if its probabilities are asked for.
    """
    import torch

    from monai_unet_app.inference.pieces import pieces, whole_piece

    way = result.way_back(item["image"])
    if way is None:
        return iter([whole_piece(torch.cat([values for _, values in rows], 1), item, result, raw)])
    return pieces(rows, way, result, raw)


@contextmanager
def timed(seconds: dict[str, float], stage: str, digits: int = 4) -> Iterator[None]:
    """Notes under the name of the stage how many seconds the block took; a block that fails is not noted."""
    begin = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - begin, digits)
