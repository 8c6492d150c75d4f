"""Compares the forms of calibration that a bundle offers: fits each on some cases, scores it on others, chooses the best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from monai_unet_app.bundle import Bundle, check_unseen
from monai_unet_app.calibration.calibrate_bundle import Step, planned_rows, rows_and_label
from monai_unet_app.calibration.fit import Fitted, StoredLogits, fit_parameters, write_record
from monai_unet_app.calibration.fitted import Form, Parameters, forms_of, write_calibration
from monai_unet_app.calibration.sample import wide_boxes
from monai_unet_app.config import PredictConfig
from monai_unet_app.data.case_files import Row
from monai_unet_app.data.inspect import check_cases
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import BundleError, InputRefusedError
from monai_unet_app.evaluate.reference import counted_voxels, evaluation_plan, read_reference
from monai_unet_app.gathering import Gathered
from monai_unet_app.inference.halo import halo_voxels
from monai_unet_app.inference.kernels import OurKernels
from monai_unet_app.inference.pieces import ResultSteps, RowStore
from monai_unet_app.inference.spool import StoredRows
from monai_unet_app.memory_planner import MemoryPlanner
from monai_unet_app.metrics.boundary import surface_band
from monai_unet_app.metrics.case_scores import merged
from monai_unet_app.metrics.outputs import Outputs
from monai_unet_app.metrics.plan import WHOLE, EvaluationPlan
from monai_unet_app.metrics.reliability import ReliabilityCounts, count_populations, negative_log_likelihood
from monai_unet_app.metrics.reliability import expected_calibration_error as ece
from monai_unet_app.pipeline import finished, preprocess

EQUAL_DECIMALS = 4
"""Calibration errors that are equal to so many decimals are taken as equal; the form with fewer numbers is then chosen."""

_EDGE = 64  # of the boxes in which changed labels are counted, in voxels


@dataclass(frozen=True)
class FormScore:
    """The figures of a form, over all voxels of the selection cases on their source grids, pooled.

    Attributes:
        form: Its name.
        parameters: Its numbers as they were fitted on the calibration cases.
        numbers: How many of them were fitted.
        halo_mm: How far along each axis of the working grid a probability depends on logits; pixels for pictures.
        nll: Negative log likelihood, nats a decision. NaN, as `ece` and `ece_band`, where the fit failed.
        ece: Of the top label over the whole image, 15 equal bins.
        ece_band: The same in the band of 2 mm (pixels) around the surface predicted without calibration.
        changed: Voxels of the working grids whose label the form changes; labels that may overlap are counted separately.
        fitted: The result of the fit; None where it failed.
        why_not: Why the form may not be chosen; None where it may.
        chosen: Whether it is the best of those that may be chosen.
    """

    form: str
    parameters: Parameters
    numbers: int
    halo_mm: tuple[float, ...]
    nll: float = math.nan
    ece: float = math.nan
    ece_band: float = math.nan
    changed: int = 0
    fitted: Fitted | None = None
    why_not: str | None = None
    chosen: bool = False


@dataclass
class FormTrial:
    """A fitted form, with its counts on the selection cases so far.

    Attributes:
        form: The form.
        outputs: What the logits mean.
        fitted: On the calibration cases; None where that failed.
        failure: Why it failed.
        counts: By population.
        changed: How many labels differ from those without calibration.
        halo: How far along each axis a probability depends on logits, in voxels.
    """

    form: Form
    outputs: Outputs
    fitted: Fitted | None
    failure: str | None = None
    counts: dict[str, ReliabilityCounts] = field(default_factory=dict)
    changed: int = 0
    halo: tuple[float, ...] = ()

    @classmethod
    def fit(cls, form: Form, cases: StoredLogits) -> "FormTrial":
        """The form with the numbers that suit these cases best."""
        try:
            return cls(form, cases.outputs, fit_parameters(form.function, form.start, cases))
        except InputRefusedError as error:
            return cls(form, cases.outputs, None, str(error))

    def calibrated(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits (C, *spatial) as the fitted form gives them; unchanged where the fit failed."""
        if self.fitted is None:
            return logits
        with OurKernels():
            return self.form.function(logits, self.fitted.parameters)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Calibrated probabilities, shape (C, *spatial), of logits of the same shape."""
        return self.outputs.probabilities(self.calibrated(logits))

    def score(self, plan: EvaluationPlan, spacing: tuple[float, ...]) -> FormScore:
        """Its figures, with the spacing of the working grid in mm, 1 for pictures.

        It may be chosen if it was fitted and changes no label.
        """
        halo_mm = tuple(n * size for n, size in zip(self.halo, spacing, strict=True))
        if self.fitted is None:
            return FormScore(self.form.name, self.form.start, self.form.count, halo_mm, why_not=self.failure)
        return FormScore(
            form=self.form.name,
            parameters=self.fitted.parameters,
            numbers=self.form.count,
            halo_mm=halo_mm,
            nll=negative_log_likelihood(self.counts[WHOLE]),
            ece=ece(self.counts[WHOLE]),
            ece_band=ece(self.counts[plan.band]),
            changed=self.changed,
            fitted=self.fitted,
            why_not=f"it changes {self.changed} label(s)" if self.changed else None,
        )


def compare_forms(
    bundle: Bundle,
    calibration: Sequence[Row],
    selection: Sequence[Row],
    *,
    choose_form: bool = False,
    step: Step = lambda case_id: None,
) -> list[FormScore]:
    """Fits every form of calibration that a bundle offers on some cases and scores it on others; the best is chosen.

    Args:
        bundle: Whose network it is. What is fitted already does not count.
        calibration: Cases to fit on, {"id", "subject", "image", "label"}.
        selection: Cases of other subjects to compare on.
        choose_form: Write the chosen form, its numbers and the record of the cases into the bundle; load it again afterwards.
        step: Called with each case's id when the case is done.

    Returns:
        A score for each form, in their order.

    Raises:
        BundleError: The bundle offers no forms, or not `none`.
        InputRefusedError: A case cannot be used, or the two lists share a subject, or the network finds nothing anywhere.
    """
    _check_apart(bundle, calibration, selection)
    forms, plan = forms_of(bundle), evaluation_plan(bundle)
    if "none" not in {form.name for form in forms}:
        raise BundleError(
            f"{bundle.name}: `forms` has no `none`, by which the others are judged; add "
            'none: {numbers: {}, function: "$lambda z, c: z"}'
        )
    stored = StoredLogits(bundle.outputs, [(form.function, form.start) for form in forms], bundle.ignore_label)
    for row in calibration:
        stored.add(*rows_and_label(row, bundle, PredictConfig()))
        step(row["id"])
    # The network has run once for each case; all forms are fitted to the same logits.
    trials = [FormTrial.fit(form, stored) for form in forms]
    for trial in trials:
        trial.halo = halo_voxels(trial.probabilities, plan.channels, bundle.rules.axes)
    for row in selection:
        spacing = _try_forms(trials, row, bundle, plan)
        step(row["id"])
    scores = with_choice([trial.score(plan, spacing) for trial in trials])
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
    # Test cases have no part in the choice of a form (decision 20), so that they can measure it afterwards.
    check_unseen(bundle, calibration, ("train", "selection", "test"))
    check_unseen(bundle, selection, ("train", "calibration", "test"))


def _try_forms(trials: Sequence[FormTrial], row: Row, bundle: Bundle, plan: EvaluationPlan) -> tuple[float, ...]:
    """Counts every form on one case, on its source grid; gives the spacing of its working grid, pixels for pictures."""
    volume = read_volume(row["image"])
    rows, raw = StoredRows(), bundle.uncalibrated_result
    planner = MemoryPlanner(bundle, PredictConfig(), raw, "logits")
    item = preprocess(volume, bundle)
    predicted = finished(rows.kept(planned_rows(planner, item["image"], volume)), item, raw)
    flat = volume.without_flat_axis
    truth = flat(read_reference(row, volume, bundle).classes)
    # What is predicted without calibration, so that all forms share one band.
    foreground = flat(Gathered.of(volume, bundle, predicted).segmentation(bundle.result.tidy).foreground)
    band = surface_band(foreground, volume.axis_spacing, plan.band_width)
    labelled = counted_voxels(row, volume, bundle)
    if labelled is not None:
        labelled = flat(labelled)
        band = band & labelled
    for trial in trials:
        # Errors are counted on the source grid, where results are delivered; changed labels on the working grid, where
        # forms act.
        for piece in finished(rows, item, _with_form(raw, trial)):
            box: tuple[Any, ...] = (..., *piece.box)
            within = {WHOLE: None if labelled is None else labelled[piece.box], plan.band: band[piece.box]}
            probabilities = piece.probabilities.cpu().numpy()
            counts = count_populations(truth[box], probabilities, within, outputs=plan.outputs, bins=plan.bins)
            trial.counts = merged(trial.counts, counts)
        trial.changed += _labels_changed_by(trial, rows, tuple(item["image"].shape[1:]))
    return volume.axis_spacing if volume.planar else tuple(map(float, item["image"].pixdim))


def _with_form(raw: ResultSteps, trial: FormTrial) -> ResultSteps:
    """The result without calibration, after the fitted form."""

    def calibrate(item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "pred": trial.calibrated(item["pred"])}

    return replace(raw, probable=[calibrate, *raw.probable])


def _labels_changed_by(trial: FormTrial, rows: StoredRows, shape: tuple[int, ...]) -> int:
    """How many labels of the working grid a form changes."""
    changed = 0
    for _, inside, logits in wide_boxes(RowStore(rows), shape, _EDGE, trial.halo):
        box = (slice(None), *inside)
        changed += labels_changed(logits[box], trial.calibrated(logits)[box], trial.outputs)
    return changed


def labels_changed(before: torch.Tensor, after: torch.Tensor, outputs: Outputs) -> int:
    """How many labels differ between two sets of logits, both (C, *spatial)."""
    return int((outputs.labels(before) != outputs.labels(after)).sum())


def with_choice(scores: Sequence[FormScore]) -> list[FormScore]:
    """The same scores, of which one is chosen; scores that may not be chosen have the reason in `why_not`.

    A form may be chosen if it changes no label and its error over the whole image is not larger than that of `none`. Of
    these, the form with the least error in the band is chosen; errors that are equal to 4 decimals are a tie, which the form
    with fewer numbers wins.

    Raises:
        InputRefusedError: No selection case has a predicted surface, so there is no band.
    """
    none = next(score for score in scores if score.form == "none")
    if not math.isfinite(none.ece_band):
        raise InputRefusedError(
            "no selection case has a predicted surface, so there is no band to judge forms of calibration in; cases in which "
            "the network finds something are needed; train longer or give other cases"
        )
    judged = [
        replace(score, why_not=f"over the whole image its error is {score.ece:.5f}, without it {none.ece:.5f}")
        if score.why_not is None and score.ece > none.ece
        else score
        for score in scores
    ]
    best = min(
        (score for score in judged if score.why_not is None),
        key=lambda score: (round(score.ece_band, EQUAL_DECIMALS), score.numbers),
    )
    return [replace(score, chosen=score is best) for score in judged]


def write_choice(
    bundle: Bundle,
    scores: Sequence[FormScore],
    calibration: Sequence[Mapping[str, str]],
    selection: Sequence[Mapping[str, str]],
) -> None:
    """Writes the chosen form and its numbers into the bundle, and on which cases it was fitted and chosen.

    Args:
        bundle: Its `models/fitted.json` and `models/calibration.json` are written; load it again to use them.
        scores: The scores of all forms; one score is chosen.
        calibration: {"id", "subject", "image"} of the cases that the form was fitted on.
        selection: The same of the cases that it was chosen on; those that a record of the bundle names already are left out.
    """
    score = next(score for score in scores if score.chosen)
    assert score.fitted is not None
    unknown = [row for row in selection if bundle.seen_as(read_volume(row["image"])) is None]
    write_record(bundle, score.fitted, [*calibration, *unknown])
    why = f"chosen of {', '.join(other.form for other in scores)}; {score.fitted.sentence}"
    write_calibration(bundle, score.parameters, why, form=score.form)
