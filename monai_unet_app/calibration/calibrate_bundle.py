"""Fits the calibration of a bundle's probabilities, on subjects that neither trained nor selected it, and compares forms."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monai_unet_app.bundle import Bundle, check_unseen
from monai_unet_app.calibration import CalibrationFit, Fitted
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
from monai_unet_app.confidence.fitted_to import InferenceSetting
from monai_unet_app.config import PredictConfig
from monai_unet_app.data.inspect import check_cases
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.monai_bridge import to_metatensor
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.evaluate.case_selection import Row
from monai_unet_app.evaluate.reference import counted_voxels, evaluation_plan, read_reference
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.pipeline import finish, predict, preprocess

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


def _logits_and_label(row: Row, bundle: Bundle, run: PredictConfig) -> "tuple[torch.Tensor, torch.Tensor]":
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
    plan = evaluation_plan(bundle)
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
    flat = volume.without_flat_axis
    truth, counted = flat(read_reference(row, volume, bundle).labels), counted_voxels(row, volume, bundle)
    valid = None if counted is None else flat(counted)
    decided = finish(item, logits, bundle.uncalibrated_result, volume)[1]
    foreground = flat(np.asarray((decided > 0.5).any(axis=0)))
    for trial in trials:
        calibrated = trial.calibrated(logits)
        probabilities = flat(finish(item, calibrated, bundle.uncalibrated_result, volume)[0])
        counts = count_case(truth, probabilities, foreground, volume.axis_spacing, plan, valid)
        trial.add(labels_changed(logits, calibrated, exclusive=bundle.exclusive), counts)
    return volume.axis_spacing if volume.planar else tuple(map(float, item["image"].pixdim))
