"""Fits the statements of `configs/confidence.json`, on subjects that neither trained nor selected the bundle.

The statements are intervals for sizes, masks of bounded risk, the quality gate, and the images that the bundle knows. They
are fitted with calibrated probabilities: calibrate the bundle first.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.bundle_folder import CONFIDENCE, unchanged_on_failure
from monai_unet_app.calibration.calibrate_bundle import Step
from monai_unet_app.calibration.corruptions import corrupted, corruptions_of, crop_around, dice_of_whole, truncated
from monai_unet_app.confidence import statements
from monai_unet_app.confidence.border import BorderContact, BorderStatement
from monai_unet_app.confidence.conformal import subjects_needed
from monai_unet_app.confidence.features import Described, describe_structures, on_border
from monai_unet_app.confidence.fitted_to import SCHEMA_VERSION, fitted_to
from monai_unet_app.confidence.quality import SOUND, QualityGate, Sample
from monai_unet_app.confidence.shift import ShiftDetector
from monai_unet_app.confidence.statements import Confidence, SizeStatement, StructureMeasurement
from monai_unet_app.config import InferenceSetting, PredictConfig, ResultSettings
from monai_unet_app.data.case_files import CaseFiles, Row, find_data
from monai_unet_app.data.cases import data_row
from monai_unet_app.data.inspect import check_cases
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.rules import least_shape
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import InputRefusedError, NoRoomError
from monai_unet_app.evaluate.case_selection import Networks, seen_case
from monai_unet_app.evaluate.reference import read_reference
from monai_unet_app.gathering import on_grid, on_volume
from monai_unet_app.pipeline import Case, finished, segment_case

COVERAGE, RISK = 0.9, 0.1
MOST_CORRUPTED = 240
"""Largest number of predictions on corrupted images; with more cases, each case has a share of the corruptions."""

LARGE_VOXELS, CROP_VOXELS = 1 << 22, 1 << 21
"""In the windows of an image. With more than the first it is corrupted as a crop, of at most the second or of one window."""


@dataclass(frozen=True)
class StatementConfig:
    """What the statements promise, and for which predictions.

    Attributes:
        settings: "plain", and "tta" for averages over mirror images; or an engine in fewer bits alone, beside which the other
            statements stay.
        coverage: Of intervals and of the gate's bound, 0 to 1.
        risk: Part of the truth that a mask of bounded risk may miss, 0 to 1.
    """

    settings: Sequence[InferenceSetting] = ("plain",)
    coverage: float = COVERAGE
    risk: float = RISK


def state_confidence(
    bundle: Bundle,
    rows: Sequence[Row],
    known: Sequence[Row] = (),
    config: StatementConfig = StatementConfig(),
    *,
    folds: Mapping[str, int] | None = None,
    step: Step = lambda case_id: None,
) -> dict[InferenceSetting, Confidence]:
    """Fits the bundle's statements for each setting and writes them into its `configs/confidence.json`.

    Args:
        bundle: Calibrated. It is loaded anew from its files.
        rows: Calibration cases, {"id", "subject", "image", "label"}; of those with ignored voxels only the images count.
        known: Cases whose images the bundle trained or selected with. With `rows`, they are the usual images of its shift
            detector.
        config: The promises.
        folds: As `folds` of `LabelledCases`. The shift detector is about the bundle's own network, and then knows `known` only.
        step: Called with each case's id when the case is done, once for each setting.

    Raises:
        InputRefusedError: A case cannot be used.
    """
    # From its files: the calibration that was written a moment ago belongs to the statements.
    bundle = load_bundle(bundle.root, bundle.device)
    # True sizes and Dice are not known where some voxels have no class: of such a case only the image counts
    unlabelled = {case.id for case in check_cases(rows, bundle).cases if case.ignored}
    known = [*known, *(row for row in rows if row["id"] in unlabelled and row["id"] not in (folds or {}))]
    rows = [row for row in rows if row["id"] not in unlabelled]
    stated: dict[InferenceSetting, Confidence] = {}
    before = {} if "plain" in config.settings else bundle.confidence_document or {}
    entries: dict[InferenceSetting, dict[str, Any]] = {**before.get("settings", {})}
    for setting in config.settings:
        observations = _Observations(Networks(bundle, folds or {}), PredictConfig(ResultSettings.of_key(setting)))
        observations.collect(rows, known, subjects_needed(config.coverage), step)
        stated[setting] = confidence = observations.fitted(config)
        entries[setting] = {**confidence.document(), **observations.crops, "fitted_to": fitted_to(bundle, setting)}
    document = {"schema_version": SCHEMA_VERSION, "structures": list(bundle.structure_names), "settings": entries}
    # On one line: a gate has hundreds of numbers that nobody edits (decision 17).
    write_json(document, bundle.root / CONFIDENCE, "confidence", indent=None)
    return stated


class _Observations:
    """Measurements of the cases by one bundle in one setting, to which the statements are fitted."""

    def __init__(self, networks: Networks, run: PredictConfig) -> None:
        self.networks, self.bundle, self.run = networks, networks.bundle, run
        self.measured: list[StructureMeasurement] = []
        self.samples: list[Sample] = []
        self.changed: list[
            tuple[list[StructureMeasurement], list[Sample]]
        ] = []  # of each corrupted image that is whole
        self.images: list[NDArray[np.float64]] = []
        self.subjects: list[str] = []
        self.touching: list[BorderContact] = []
        self.cropped = 0  # number of cases whose corrupted images are crops

    @property
    def crops(self) -> dict[str, Any]:
        """What confidence.json says of crops; nothing where there is none."""
        return {"crops": {"cases": self.cropped, "voxels": CROP_VOXELS}} if self.cropped else {}

    def collect(self, rows: Sequence[Row], known: Sequence[Row], fewest: int, step: Step) -> None:
        """Segments all cases; with fewer than `fewest` subjects there is no gate, and no image is corrupted."""
        has_gate = len({row["subject"] for row in rows}) >= fewest
        for number, row in enumerate(rows):
            volume = read_volume(row["image"])
            truth = read_reference(row, volume, self.bundle)
            self._add_sound(row, truth)
            if has_gate:
                self._add_all_corrupted(row, truth, number, len(rows))
            step(row["id"])
        for row in known:
            self._usual(row["subject"], segment_case(row["image"], self.bundle, self.run, fitting=True))
            step(row["id"])

    def _add_sound(self, row: Row, truth: Segmentation) -> None:
        """Adds the measurements of a sound image, whole; `truth` is the reference on it."""
        network, subject = self.networks.of(row), row["subject"]
        case = segment_case(truth.image, network, self.run, keep="logits", fitting=True)
        if network is self.bundle:  # features of another network mean nothing to it
            self._usual(subject, case)
        logits = case.logits
        assert logits is not None
        # As `Case.second_look`, but for the uncalibrated probabilities, which would take as long again
        pieces = finished(logits.rows, logits.item, logits.result)
        slabs = ((on_grid(piece.box), on_volume(piece.probabilities, case.image)) for piece in pieces)
        self.measured += statements.measure_structures(subject, case.segmentation, truth, slabs)
        self.samples += samples_of(subject, SOUND, case.segmentation, truth, describe_structures(case.segmentation))
        self.touching += contacts_of(subject, case.segmentation)

    def _usual(self, subject: str, case: Case) -> None:
        """Lets an image count as usual."""
        if case.image_features is not None:
            self.images.append(case.image_features)
            self.subjects.append(subject)

    def _add_all_corrupted(self, row: Row, truth: Segmentation, number: int, cases: int) -> None:
        """Adds the samples of the corrupted images of a case, this number of so many cases."""
        part = near_structures(truth, self.bundle, number)
        if part is not truth:
            self.cropped += 1
            # A crop cuts structures off. If only corrupted images did, the gate would take that for their fault.
            self._add_changed(row, SOUND, part, part)
        for corruption, moved in _corrupted(part, number, cases):
            self._add_changed(row, corruption, part, moved, whole=part is truth)

    def _add_changed(
        self, row: Row, kind: str, truth: Segmentation, moved: Segmentation, *, whole: bool = False
    ) -> None:
        """Adds the samples of a crop or of a corrupted image; `moved` is the truth on it. Of a `whole` image the sizes, too."""
        try:
            # Features of such an image must not count as usual.
            result = segment_case(moved.image, self.networks.of(row), self.run, fitting=True).segmentation
        except NoRoomError:  # what a machine has free decides nothing that a bundle states
            raise
        except InputRefusedError:  # an image that is refused needs no gate
            return
        pairs = zip(truth.structures, moved.structures, strict=True)
        lost = [before.voxels - after.voxels for before, after in pairs]
        is_smaller = moved.image.shape != truth.image.shape  # the part that was cut away is missing in the result
        features = describe_structures(result)
        samples = samples_of(row["subject"], kind, result, moved, features, lost if is_smaller else ())
        self.samples += samples
        if whole and not is_smaller:
            measured = statements.measure_structures(row["subject"], result, moved, slabs=())
            self.changed.append((measured, samples))

    def fitted(self, config: StatementConfig) -> Confidence:
        """The fitted statements."""
        sized, wholes, coverage = self.measured, self.bundle.wholes, config.coverage
        why_not: dict[str, str] = {}
        sizes, of_wholes, of_counts = None, None, None
        subjects = {row.subject for row in sized}
        if len(subjects) < subjects_needed(coverage):
            why_not["sizes"] = f"{len(subjects)} calibration subject(s); {statements.too_few_subjects(coverage)}"
        else:
            sizes = SizeStatement.fit(sized, coverage)
            of_wholes = SizeStatement.fit(statements.measure_wholes(sized, wholes), coverage) if wholes else None
            if counts := statements.measure_counts(sized):
                of_counts = SizeStatement.fit(counts, coverage)
        risk = statements.RiskStatement.fit(self.measured, config.risk) if self.measured else None
        fits: dict[str, Callable[[], Any]] = {
            "gate": lambda: QualityGate.fit(self.samples, coverage),
            "shift": lambda: ShiftDetector.fit(self.images, self.subjects),
            "border": lambda: BorderStatement.fit(self.touching),
        }
        fitted = fit_each(fits, why_not)
        if sizes and fitted.get("gate"):
            try:
                fitted |= self._elsewhere(sizes, of_wholes, fitted["gate"])
            except ValueError as error:
                why_not["sizes_elsewhere"] = str(error)
        return Confidence(sizes, of_wholes, of_counts, risk, why_not=why_not, **fitted)

    def _elsewhere(
        self, sizes: SizeStatement, wholes: SizeStatement | None, gate: QualityGate
    ) -> dict[str, SizeStatement]:
        """Intervals for images from elsewhere: those of corrupted images whose results look fine all the same.

        Raises:
            ValueError: There are such images of too few subjects.
        """
        rows = [
            row
            for measured, samples in self.changed
            if len(samples) == len(measured)
            and all(gate.looks_fine(sample.structure, sample.features) for sample in samples)
            for row in measured
        ]
        subjects = len({row.subject for row in rows})
        if subjects < subjects_needed(sizes.coverage):
            raise ValueError(
                f"of {subjects} calibration subject(s) a corrupted image, not a crop of it, has a result that looks fine; "
                f"{statements.too_few_subjects(sizes.coverage)}"
            )
        stated = {"sizes_elsewhere": SizeStatement.fit(rows, sizes.coverage).not_narrower_than(sizes)}
        if wholes:
            of_wholes = SizeStatement.fit(statements.measure_wholes(rows, self.bundle.wholes), wholes.coverage)
            stated["wholes_elsewhere"] = of_wholes.not_narrower_than(wholes)
        return stated


def fit_each(fits: Mapping[str, Callable[[], Any]], why_not: dict[str, str]) -> dict[str, Any]:
    """The statements that can be fitted; of the others `why_not` gets the reason, and they are left out (decision 17)."""
    fitted: dict[str, Any] = {}
    for name, fit in fits.items():
        try:
            fitted[name] = fit()
        except ValueError as error:
            why_not[name] = str(error)
    return fitted


def share_of(names: Sequence[str], number: int, cases: int) -> list[str]:
    """The faults that a case is shown with: all, or as many as MOST_CORRUPTED allows for each; cases take them in turn.

    Args:
        names: Of the faults.
        number: Of the case, from 0.
        cases: Number of cases.
    """
    share = max(1, min(len(names), MOST_CORRUPTED // max(cases, 1)))
    return [names[(number * share + n) % len(names)] for n in range(share)]


def known_rows(bundle: Bundle, cases: Sequence[CaseFiles], most: int = 100) -> list[Row]:
    """Cases that the bundle trained or selected with, evenly chosen: the usual images of its shift detector.

    Args:
        bundle: Whose records say what it has seen.
        cases: The cases to choose from.
        most: Largest number of chosen cases.
    """
    pairs = [(case, seen_case(bundle, case)) for case in cases]
    known: list[Row] = [
        data_row(case, record.subject)
        for case, record in pairs
        if record and record.partition in ("train", "selection")
    ]
    # The step is rounded up; rounded down it could choose almost twice as many.
    return known[:: -(-len(known) // most)] if known else []


@dataclass(eq=False)
class StatementFit:
    """Ignite handler for `calibrate.yaml`, after `CalibrationFit`: the same statements as `monai-unet calibrate` fits.

    If they cannot be fitted, all files of the bundle are restored, its calibration too.

    Args:
        bundle_root: The bundle; its `configs/confidence.json` is written when the evaluator has completed.
        cases: Calibration cases, {"id", "subject", "image", "label"}.
        dataset_dir: Folder with the calibration cases and the cases that the bundle trained with.
        labels_dir: Folder with their labels, if they lie apart.
        label_suffix: End of the names of label files in the same folder.
        coverage: As in `StatementConfig`.
        risk: As in `StatementConfig`.
    """

    bundle_root: str
    cases: Sequence[Row]
    dataset_dir: str
    labels_dir: str | None = None
    label_suffix: str = ""
    coverage: float = COVERAGE
    risk: float = RISK

    def __post_init__(self) -> None:
        self.data = find_data(self.dataset_dir, self.labels_dir, self.label_suffix)

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's evaluator."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _begin(self, engine: Engine) -> None:
        check_cases(self.cases, load_bundle(self.bundle_root))  # before the first case is predicted
        # Entered by hand, since ignite calls different handlers at the start and at the end. It begins before
        # `CalibrationFit` writes, so that a failure here takes back the new calibration, too.
        self.unchanged = unchanged_on_failure(Path(self.bundle_root))
        self.unchanged.__enter__()

    def _finish(self, engine: Engine) -> None:
        with ExitStack() as all_or_nothing:
            all_or_nothing.push(self.unchanged)
            bundle = load_bundle(self.bundle_root)
            config = StatementConfig(coverage=self.coverage, risk=self.risk)
            state_confidence(bundle, self.cases, known_rows(bundle, self.data), config)


def near_structures(truth: Segmentation, bundle: Bundle, seed: int) -> Segmentation:
    """What of a case is corrupted: a crop of a large image, with its truth; else the same object.

    The crop lies around a voxel of a structure; each structure is as likely as any other.

    Args:
        truth: The reference on the whole image.
        bundle: Its windows say what is large, and the crop is at least as large as its rules ask for.
        seed: Draws structure and voxel.
    """
    image = truth.image
    if math.prod(_windows(image.shape, image, bundle)) <= LARGE_VOXELS:
        return truth
    generator = np.random.default_rng([seed, CROP_VOXELS])
    present = [structure for structure in truth.structures if structure.voxels]
    centre = [n // 2 for n in image.shape]
    if present:
        structure = present[generator.integers(len(present))]
        inside = np.flatnonzero(structure.mask)
        place = np.unravel_index(inside[generator.integers(len(inside))], structure.mask.shape)
        centre = [side.start + int(n) for side, n in zip(structure.box, place, strict=True)]
    labels = truth.label_volume.array
    for axis, side in enumerate(crop_around(image, centre, _crop_sizes(image, bundle))):
        image, labels = truncated(image, labels, axis, side)
    return _on(image, labels, truth)


def _crop_sizes(image: Volume, bundle: Bundle) -> tuple[int, ...]:
    """Voxels along I, J, K of the largest crop with CROP_VOXELS in its windows, as long in mm along every axis."""
    spacing, least = (*image.axis_spacing, 1.0)[:3], least_shape(image, bundle.rules)
    sizes: tuple[int, ...] = image.shape
    edge = max(map(math.prod, zip(sizes, spacing, strict=True)))
    while edge > min(spacing):
        windows, voxels = _windows(sizes, image, bundle)
        if windows == 1 or windows * voxels <= CROP_VOXELS:
            break
        edge *= 0.95
        sides = zip(image.shape, spacing, least, strict=True)
        sizes = tuple(min(n, max(round(edge / step), fewest)) for n, step, fewest in sides)
    return sizes


def _windows(shape: tuple[int, ...], image: Volume, bundle: Bundle) -> tuple[int, int]:
    """How many windows an image of this shape has, with the voxels of another, and the voxels of each."""
    from monai_unet_app.memory_planner import prepared_shape

    settings = bundle.windows
    working = shape[:2] if image.planar else prepared_shape(shape, image.affine_lps, bundle)
    plan = settings.plan(working)
    return plan.count, math.prod(plan.window)


def _on(image: Volume, labels: NDArray[Any], truth: Segmentation) -> Segmentation:
    """These labels, (I, J, K) or (I, J, K, S), on this image, with the segments of the truth."""
    array = labels if labels.ndim == 3 else np.moveaxis(labels, -1, 0)
    array = array.reshape(*truth.labels.shape[:-3], *image.shape).astype(truth.labels.dtype, copy=False)
    return Segmentation(image, array, truth.segments)


def _corrupted(truth: Segmentation, number: int, cases: int) -> Iterator[tuple[str, Segmentation]]:
    """(corruption, truth on the corrupted image) of a case: every corruption, or as many as MOST_CORRUPTED allows for a case.

    Args:
        truth: The reference on the sound image.
        number: Of the case, from 0; cases take the corruptions in turn.
        cases: Number of cases.
    """
    for name in share_of(corruptions_of(truth.image), number, cases):
        # The number of the case is the seed: each case has its own noise and cuts, the same in every run.
        image, moved = corrupted(truth.image, truth.label_volume.array, name, seed=number)
        yield name, _on(image, moved, truth)


def contacts_of(subject: str, result: Segmentation) -> list[BorderContact]:
    """How far each structure with voxels lies on the border of the image."""
    present = [structure for structure in result.structures if structure.voxels]
    return [BorderContact(subject, structure.number, float(on_border(structure).sum())) for structure in present]


def samples_of(
    subject: str,
    kind: str,
    result: Segmentation,
    truth: Segmentation,
    features: Sequence[Described | None],
    lost: Sequence[int] = (),
) -> list[Sample]:
    """A sample for each structure that has features; `lost`: voxels of each structure that lie outside the image."""
    samples, lost = [], lost or [0] * len(features)
    for structure, values, true, n in zip(result.structures, features, truth.structures, lost, strict=True):
        if values is not None:
            box = true.box_with(structure)
            true_dice = dice_of_whole(true.mask_in(box), structure.mask_in(box), n)
            samples.append(Sample(subject, kind, structure.number, values, true_dice))
    return samples


def summary(stated: dict[InferenceSetting, Confidence], bundle: Bundle) -> dict[str, Any]:
    """The fitted statements, for people: widths, thresholds and margins by structure."""
    labels = {segment.number: segment.label for segment in bundle.segments}
    wholes = {n: whole.name for n, whole in enumerate(bundle.wholes, start=1)}
    return {setting: summary_of(confidence, labels, wholes) for setting, confidence in stated.items()}


def summary_of(confidence: Confidence, labels: Mapping[int, str], wholes: Mapping[int, str] = {}) -> dict[str, Any]:
    """As `summary`, of one setting: `labels` of structures, and `wholes`, by their numbers."""
    summary: dict[str, Any] = {"not_stated": dict(confidence.why_not)}
    if confidence.sizes:
        of_counts = Confidence(confidence.counts) if confidence.counts else None
        statements_of = {"sizes_off": confidence, "sizes_off_elsewhere": confidence.elsewhere, "counts_off": of_counts}
        for key, of in statements_of.items():
            if of is not None:
                stated = [(sizes, names) for sizes, names in ((of.sizes, labels), (of.wholes, wholes)) if sizes]
                summary[key] = {
                    "coverage": confidence.sizes.coverage,
                    # How far true sizes may be off: exp(r) - 1 of a logarithm of a ratio is a relative deviation.
                    "relative": {
                        names[n]: [round(float(np.expm1(end)), 4) for end in ends]
                        for sizes, names in stated
                        for n, ends in sizes.log_ratios.items()
                        if ends
                    },
                    "kept": {
                        names[n]: round(part, 4) for sizes, names in stated for n, part in (sizes.kept or {}).items()
                    },
                }
    if confidence.risk:
        summary["mask_from"] = {
            "risk": confidence.risk.risk,
            **{labels[n]: p for n, p in confidence.risk.thresholds.items()},
        }
    if confidence.gate:
        summary["gate"] = {
            "margins_of_dice": [round(m, 4) for m in confidence.gate.margins],
            "results": confidence.gate.samples,
            **({"skill": [round(end, 3) for end in confidence.gate.skill]} if confidence.gate.skill else {}),
            **({"left_out": list(confidence.gate.left_out)} if confidence.gate.left_out else {}),
            **(
                {"rank_correlation": round(fine.rank_correlation, 3)}
                if (fine := confidence.gate.fine) and fine.features
                else {}
            ),
        }
    if confidence.border:
        parts = {labels[n]: round(limit, 4) for n, limit in confidence.border.limits.items()}
        summary["border"] = {"subjects": confidence.border.subjects, "usual_part_of_surface": parts}
    if confidence.shift:
        summary["shift"] = {"flagged_above": round(confidence.shift.limit, 3), "subjects": confidence.shift.subjects}
    return summary
