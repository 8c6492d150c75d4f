"""Fits what a bundle says about its own results, on subjects that neither trained nor selected it.

First the calibration of its probabilities, then, with calibrated probabilities, the statements of `configs/confidence.json`:
intervals for sizes, masks of bounded risk, the quality gate, and what images it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from dicom_io.coding import Whole
from dicom_io.segmentation import Segmentation
from monai_unet_app.bundle import Bundle, check_unseen, load_bundle
from monai_unet_app.bundle_folder import CONFIDENCE, unchanged_on_failure
from monai_unet_app.calibration import CalibrationFit, Fitted
from monai_unet_app.calibration.corruptions import dice_of_whole, spoil, ways_for
from monai_unet_app.calibration.fit import KeptLogits
from monai_unet_app.calibration.forms import (
    FormScore,
    FormTrial,
    count_case,
    forms_for,
    labels_changed,
    with_choice,
    write_choice,
)
from monai_unet_app.calibration.halo import halo_voxels, in_mm
from monai_unet_app.confidence.border import BorderContact, BorderStatement
from monai_unet_app.confidence.conformal import subjects_needed
from monai_unet_app.confidence.features import describe_structures, on_border
from monai_unet_app.confidence.fitted_to import SCHEMA_VERSION, InferenceSetting, fitted_to
from monai_unet_app.confidence.quality import SOUND, QualityGate, Sample
from monai_unet_app.confidence.shift import ShiftDetector
from monai_unet_app.confidence.statements import (
    Confidence,
    RiskStatement,
    SizeStatement,
    StructureMeasurement,
    measure_structures,
    measure_wholes,
    too_few_subjects,
)
from monai_unet_app.config import PredictConfig
from monai_unet_app.data.cases import CaseFiles, data_row, find_data
from monai_unet_app.data.inspect import check_cases
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.monai_bridge import to_metatensor
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.evaluate.case_selection import Row, choose_cases, seen_case
from monai_unet_app.evaluate.reference import counted_voxels, read_reference
from monai_unet_app.metrics import EvaluationPlan
from monai_unet_app.pipeline import Case, finish, predict, preprocess, segment_case

COVERAGE, RISK = 0.9, 0.1
MOST_SPOILED = 240
"""Predictions on spoiled images; beyond, each case is spoiled in some of the ways only."""

if TYPE_CHECKING:
    import torch

Step = Callable[[str], None]


def calibrate_bundle(
    bundle: Bundle,
    rows: Sequence[Row],
    step: Step = lambda case_id: None,
    setting: InferenceSetting = "plain",
    *,
    unchecked: bool = False,
) -> Fitted:
    """Fits the bundle's calibration on these cases and writes it into its `inference.yaml`.

    Args:
        bundle: Its `calibration` is fitted, or its `calibration_tta` for the setting "tta".
        rows: {"id", "subject", "image", "label"} of each case.
        step: Told each case's id when it is done.
        setting: Whether logits are taken plain or averaged over mirror images.
        unchecked: Keep the fit on few subjects without a look at what it does for subjects left out.

    Raises:
        InputRefusedError: A case cannot be used, or all are of one subject.
    """
    check_cases(rows, bundle)
    fit = CalibrationFit(
        bundle.part("calibrate"),
        bundle.part("calibration"),
        bundle.exclusive,
        bundle.root,
        rows,
        setting,
        unchecked=unchecked,
    )
    for row in rows:
        fit.add(*_logits_and_label(row, bundle, PredictConfig(tta=setting == "tta")))
        step(row["id"])
    return fit.finish()


def _logits_and_label(row: Row, bundle: Bundle, run: PredictConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (C, *spatial) and label (1, *spatial) of a case on the working grid."""
    volume = read_volume(row["image"])
    labels = read_labels(Path(row["label"]), volume)
    item = bundle.preprocessing({"image": to_metatensor(volume), "label": to_metatensor(labels)}, start=1)
    return predict(item["image"], bundle, run), item["label"]


def compare_forms(
    bundle: Bundle,
    calibration: Sequence[Row],
    selection: Sequence[Row],
    *,
    choose_form: bool = False,
    step: Step = lambda case_id: None,
) -> list[FormScore]:
    """Fits every known form of calibration on some cases and scores it on others; one of them is chosen.

    Args:
        bundle: Whose network it is. What its `inference.yaml` holds as calibration does not count.
        calibration: Cases to fit on, {"id", "subject", "image", "label"}.
        selection: Cases of other subjects to compare on.
        choose_form: Write the chosen form, its numbers and the record of the cases into the bundle, to be loaded anew.
        step: Told each case's id when it is done.

    Returns:
        A score for each of `forms.known_forms`, in their order.

    Raises:
        InputRefusedError: A case cannot be used, or the two lists share a subject, or the network finds nothing anywhere.
    """
    _check_apart(bundle, calibration, selection)
    kept = KeptLogits(bundle.exclusive)
    for row in calibration:
        kept.add(*_logits_and_label(row, bundle, PredictConfig()))
        step(row["id"])
    trials = [FormTrial.fit(form, kept) for form in forms_for(bundle)]
    plan = EvaluationPlan(bundle.structure_names, bundle.exclusive, bundle.rules.planar)
    for row in selection:
        spacing_mm = _try_forms(trials, row, bundle, plan)
        step(row["id"])
    reaches = [
        halo_voxels(trial.calibrated, plan.channels, exclusive=plan.exclusive, spatial_dims=len(spacing_mm))
        for trial in trials
    ]
    scores = with_choice(
        [trial.score(plan, in_mm(reach, spacing_mm)) for trial, reach in zip(trials, reaches, strict=True)]
    )
    if choose_form:
        write_choice(bundle, scores, calibration, selection)
    return scores


def _check_apart(bundle: Bundle, calibration: Sequence[Row], selection: Sequence[Row]) -> None:
    shared = {row["subject"] for row in calibration} & {row["subject"] for row in selection}
    if shared or not calibration or not selection:
        raise InputRefusedError(
            f"{len(calibration)} calibration and {len(selection)} selection case(s), {len(shared)} subject(s) in both; some of "
            "different subjects are needed for each: a form is fitted on some and judged on others; give other cases"
        )
    check_cases([*calibration, *selection], bundle)
    check_unseen(bundle, calibration, ("train", "selection", "test"))
    check_unseen(bundle, selection, ("train", "calibration", "test"))


def _try_forms(trials: Sequence[FormTrial], row: Row, bundle: Bundle, plan: EvaluationPlan) -> tuple[float, ...]:
    """Counts every form on one case, on its source grid; gives the spacing of its working grid, pixels for pictures."""
    volume = read_volume(row["image"])
    item = preprocess(volume, bundle)
    logits = predict(item["image"], bundle, PredictConfig())
    truth, valid = read_reference(row, volume, bundle).labels, counted_voxels(row, volume, bundle)
    decided = finish(item, logits, bundle.uncalibrated_result, volume)[1]
    foreground = np.asarray((decided > 0.5).any(axis=0))
    for trial in trials:
        calibrated = trial.calibrated(logits)
        probabilities = finish(item, calibrated, bundle.uncalibrated_result, volume)[0]
        counts = count_case(truth, probabilities, foreground, volume.spacing_mm, plan, valid)
        trial.add(labels_changed(logits, calibrated, exclusive=bundle.exclusive), counts)
    return volume.axis_spacing if volume.planar else tuple(map(float, item["image"].pixdim))


def state_confidence(
    bundle: Bundle,
    rows: Sequence[Row],
    known: Sequence[Row] = (),
    *,
    settings: Sequence[InferenceSetting] = ("plain",),
    coverage: float = COVERAGE,
    risk: float = RISK,
    elsewhere: Mapping[InferenceSetting, Sequence[StructureMeasurement]] | None = None,
    step: Step = lambda case_id: None,
) -> dict[InferenceSetting, Confidence]:
    """Fits the bundle's statements for each setting and writes them into its `configs/confidence.json`.

    Args:
        bundle: Calibrated. It is loaded anew, so that what its files say counts.
        rows: Calibration cases, {"id", "subject", "image", "label"}.
        known: Cases whose images the bundle trained or selected with: what its shift detector takes for usual, with `rows`.
        settings: "plain", and "tta" where mirror images are to be averaged.
        coverage: Of intervals and of the gate's bound.
        risk: Part of the truth that a mask of bounded risk may miss.
        elsewhere: Cases that say how far sizes are off, in place of `rows`: those of `out_of_fold`, which are more.
        step: Told each case's id when it is done, once a setting.

    Raises:
        InputRefusedError: A case cannot be used.
    """
    bundle = load_bundle(bundle.root, bundle.device)
    check_cases(rows, bundle)
    found = {
        setting: _state(bundle, rows, known, setting, (coverage, risk), (elsewhere or {}).get(setting, ()), step)
        for setting in settings
    }
    document = {
        "schema_version": SCHEMA_VERSION,
        "structures": list(bundle.structure_names),
        "settings": {
            setting: {**statements.document(), "fitted_to": fitted_to(bundle, setting)}
            for setting, statements in found.items()
        },
    }
    write_json(document, bundle.root / CONFIDENCE, "confidence", indent=None)
    return found


def out_of_fold(
    folds: Sequence[Bundle],
    cases: Sequence[CaseFiles],
    bundle: Bundle,
    setting: InferenceSetting = "plain",
    step: Step = lambda case_id: None,
) -> list[StructureMeasurement]:
    """How far sizes are off in cross-validation: what each fold's bundle says of its own test cases.

    The folds stand in for the bundle, which was trained in the same way on about as many cases. Test cases of the
    bundle are left out, so that it can be measured on them.

    Args:
        folds: Bundles trained with `--fold`, each calibrated on its own calibration cases.
        cases: All cases.
        bundle: The one that is to make the statements.
        setting: How the folds predict.
        step: Told each case's id when it is done.

    Raises:
        InputRefusedError: A fold is not calibrated, or none has a test case among these.
    """
    reserved = {row["id"] for row in _chosen(bundle, cases, "test")}
    found: list[StructureMeasurement] = []
    for fold in folds:
        if fold.part("calibration") == fold.no_calibration:
            raise InputRefusedError(
                f"{fold.name} is not calibrated; sizes come from calibrated probabilities; calibrate it first"
            )
        for row in _chosen(fold, cases, "test"):
            if row["id"] not in reserved:
                volume = read_volume(row["image"])
                case = segment_case(volume, fold, PredictConfig(tta=setting == "tta"))
                found += measure_structures(row["subject"], case.segmentation, read_reference(row, volume, fold))
                step(row["id"])
    if not found:
        raise InputRefusedError(
            "no fold has a test case among these; bundles trained with --fold on this data are needed"
        )
    return found


def known_rows(bundle: Bundle, cases: Sequence[CaseFiles], most: int = 100) -> list[Row]:
    """Those of the cases that the bundle trained or selected with, evenly chosen: what its shift detector takes for usual."""
    pairs = [(case, seen_case(bundle, case)) for case in cases]
    known: list[Row] = [
        data_row(case, seen.subject) for case, seen in pairs if seen and seen.partition in ("train", "selection")
    ]
    return known[:: -(-len(known) // most)] if known else []


class StatementFit:
    """Ignite handler for `calibrate.yaml`, after `CalibrationFit`: the same statements as `monai-unet calibrate` fits.

    If they cannot be fitted, the bundle's files are put back as they were, its calibration too.

    Args:
        bundle_root: The bundle; its `configs/confidence.json` is written when the evaluator has completed.
        cases: Calibration cases, {"id", "subject", "image", "label"}.
        dataset_dir, labels_dir, label_suffix: Where the cases come from, and those that the bundle trained with.
        coverage, risk: As `state_confidence`.
    """

    def __init__(
        self,
        bundle_root: str,
        cases: Sequence[Row],
        dataset_dir: str,
        labels_dir: str | None = None,
        label_suffix: str = "",
        coverage: float = COVERAGE,
        risk: float = RISK,
    ) -> None:
        self.bundle_root, self.cases = bundle_root, list(cases)
        self.everything = find_data(dataset_dir, labels_dir, label_suffix)
        self.coverage, self.risk = coverage, risk

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's evaluator."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.COMPLETED, self._state)

    def _begin(self, engine: Engine) -> None:
        self.as_it_was = unchanged_on_failure(Path(self.bundle_root))
        self.as_it_was.__enter__()

    def _state(self, engine: Engine) -> None:
        with ExitStack() as all_or_nothing:
            all_or_nothing.push(self.as_it_was)
            bundle = load_bundle(self.bundle_root)
            known = known_rows(bundle, self.everything)
            state_confidence(bundle, self.cases, known, coverage=self.coverage, risk=self.risk)


def _chosen(bundle: Bundle, cases: Sequence[CaseFiles], partition: str) -> list[Row]:
    """The cases of a partition; none where there are none."""
    try:
        return choose_cases(bundle, cases, partition).rows
    except InputRefusedError:
        return []


@dataclass
class _Gathered:
    """What the cases have said so far."""

    measured: list[StructureMeasurement]
    samples: list[Sample]
    images: list[NDArray[np.float64]]
    subjects: list[str]
    touching: list[BorderContact]


def _state(
    bundle: Bundle,
    rows: Sequence[Row],
    known: Sequence[Row],
    setting: InferenceSetting,
    wanted: tuple[float, float],
    elsewhere: Sequence[StructureMeasurement],
    step: Step,
) -> Confidence:
    run, got = PredictConfig(tta=setting == "tta"), _Gathered([], [], [], [], [])
    gate = len({row["subject"] for row in rows}) >= subjects_needed(wanted[0])  # else there is none to be taught
    for number, row in enumerate(rows):
        volume = read_volume(row["image"])
        truth = read_reference(row, volume, bundle)
        case = _take(got, row["subject"], segment_case(volume, bundle, run, fitting=True))
        got.measured += measure_structures(row["subject"], case.segmentation, truth)
        got.samples += _samples(row["subject"], SOUND, case, truth)
        got.touching += _touching(row["subject"], case)
        for how, spoiled in _spoiled(truth, number, len(rows)) if gate else ():
            try:
                result = segment_case(spoiled.image, bundle, run, fitting=True)
            except InputRefusedError:  # an image that is refused needs no gate
                continue
            before_and_after = zip(truth.structures, spoiled.structures, strict=True)
            lost = [before.voxels - after.voxels for before, after in before_and_after]
            is_smaller = spoiled.image.shape != volume.shape  # what is cut away is missing in the result
            got.samples += _samples(row["subject"], how, result, spoiled, lost if is_smaller else ())
        step(row["id"])
    for row in known:
        _take(got, row["subject"], segment_case(row["image"], bundle, run, fitting=True))
        step(row["id"])
    return _fitted(got, elsewhere or got.measured, bundle.wholes, *wanted)


def _take(got: _Gathered, subject: str, case: Case) -> Case:
    if case.image_features is not None:
        got.images.append(case.image_features)
        got.subjects.append(subject)
    return case


def _touching(subject: str, case: Case) -> list[BorderContact]:
    """How much of the surface of each structure lies on the border of the image; structures without voxels are left out."""
    return [
        BorderContact(subject, structure.number, float(part.sum()))
        for structure in case.segmentation.structures
        if structure.voxels
        for part in [on_border(structure.grid.without_flat_axis(structure.mask_on_grid), structure.grid.axis_spacing)]
    ]


def _fitted(
    got: _Gathered, sized: Sequence[StructureMeasurement], wholes: Sequence[Whole], coverage: float, risk: float
) -> Confidence:
    why_not: dict[str, str] = {}
    subjects = {one.subject for one in sized}
    enough = len(subjects) >= subjects_needed(coverage)
    sizes = SizeStatement.fit(sized, coverage) if enough else None
    of_wholes = SizeStatement.fit(measure_wholes(sized, wholes), coverage) if enough and wholes else None
    bounded = RiskStatement.fit(got.measured, risk) if got.measured else None
    if sizes is None:
        why_not["sizes"] = f"{len(subjects)} calibration subject(s); {too_few_subjects(coverage)}"
    gate, shift, border = None, None, None
    try:
        gate = QualityGate.fit(got.samples, coverage)
    except ValueError as error:
        why_not["gate"] = str(error)
    try:
        shift = ShiftDetector.fit(got.images, got.subjects)
    except ValueError as error:
        why_not["shift"] = str(error)
    try:
        border = BorderStatement.fit(got.touching)
    except ValueError as error:
        why_not["border"] = str(error)
    return Confidence(sizes, of_wholes, bounded, gate, shift, border, why_not=why_not)


def _spoiled(truth: Segmentation, number: int, cases: int) -> Iterator[tuple[str, Segmentation]]:
    """(corruption, truth on the spoiled image) of one case: every corruption, or as many as MOST_SPOILED allows for a case.

    Args:
        truth: The reference on the sound image.
        number: Of the case, from 0; cases take the corruptions in turn.
        cases: How many there are.
    """
    ways = ways_for(truth.image)
    share = max(1, min(len(ways), MOST_SPOILED // max(cases, 1)))
    for n in range(share):
        how = ways[(number * share + n) % len(ways)]
        image, moved = spoil(truth.image, truth.label_volume.array, how, seed=number)
        yield how, replace(Segmentation.of_volume(image.with_array(moved), truth.segments), image=image)


def _samples(subject: str, kind: str, case: Case, truth: Segmentation, lost: Sequence[int] = ()) -> list[Sample]:
    """A sample for each structure with voxels; `lost`: voxels of each structure that lie outside the image."""
    structures = case.segmentation.structures
    rows = zip(
        structures, describe_structures(case.segmentation), truth.structures, lost or [0] * len(structures), strict=True
    )
    return [
        Sample(
            subject,
            kind,
            structure.number,
            features,
            dice_of_whole(true.mask_on_grid, structure.mask_on_grid, missing),
        )
        for structure, features, true, missing in rows
        if features is not None
    ]


def summary(found: dict[InferenceSetting, Confidence], bundle: Bundle) -> dict[str, Any]:
    """What was fitted, for people: widths, thresholds and margins by structure."""
    return {setting: _summary(statements, bundle) for setting, statements in found.items()}


def _summary(statements: Confidence, bundle: Bundle) -> dict[str, Any]:
    labels = {segment.number: segment.label for segment in bundle.segments}
    said: dict[str, Any] = {"not_stated": dict(statements.why_not)}
    if statements.sizes:
        ends = _sizes_off(statements.sizes, labels)
        if statements.wholes:
            ends |= _sizes_off(statements.wholes, {n: whole.name for n, whole in enumerate(bundle.wholes, start=1)})
        said["sizes_off"] = {"coverage": statements.sizes.coverage, "relative": ends}
    if statements.risk:
        said["mask_from"] = {
            "risk": statements.risk.risk,
            **{labels[n]: p for n, p in statements.risk.thresholds.items()},
        }
    if statements.gate:
        said["gate"] = {
            "margins_of_dice": [round(m, 4) for m in statements.gate.margins],
            "results": statements.gate.samples,
        }
    if statements.border:
        parts = {labels[n]: round(limit, 4) for n, limit in statements.border.limits.items()}
        said["border"] = {"subjects": statements.border.subjects, "usual_part_of_surface": parts}
    if statements.shift:
        said["shift"] = {"flagged_above": round(statements.shift.limit, 3), "subjects": statements.shift.subjects}
    return said


def _sizes_off(stated: SizeStatement, labels: Mapping[int, str]) -> dict[str, list[float]]:
    """How far true sizes may be off, as parts of the expected ones, by label."""
    ratios = stated.log_ratios.items()
    return {labels[n]: [round(float(np.expm1(end)), 4) for end in found] for n, found in ratios if found}
