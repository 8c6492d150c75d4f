"""A bundle over labelled cases, measured: by `monai-unet evaluate`, or as a handler in a bundle's `evaluate.yaml`."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle, SeenCase, check_unseen, load_bundle
from monai_unet_app.confidence.assessment import Assessment
from monai_unet_app.confidence.statement_audit import (
    StructureOutcome,
    WholeOutcome,
    audit_statements,
    audit_wholes,
    summarise_statements,
)
from monai_unet_app.config import PredictConfig
from monai_unet_app.data.cases import CaseFiles, data_row, find_data, subjects_of
from monai_unet_app.data.digest import dataset_sha256
from monai_unet_app.data.labels import check_values, read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.splits import SplitCase, read_splits
from monai_unet_app.errors import BundleError, InputRefusedError
from monai_unet_app.metrics import CaseArrays, Evaluation, EvaluationPlan
from monai_unet_app.pipeline import Case, decided, on_volume, segment_case
from monai_unet_app.report import CasePicture, EvaluationReport, MeasuredOn, Target, exemplary_cases, write_evaluation
from monai_unet_app.report.targets import USUAL, Bounds, as_targets, checked
from monai_unet_app.shipped import shipped

Row = Mapping[str, str]


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation left behind.

    Attributes:
        metrics: Figures as in metrics.json.
        files: metrics.json, cases.csv, report.html and report.pdf.
        problems: Cases that could not be measured, one sentence each.
    """

    metrics: Mapping[str, Any]
    files: tuple[Path, ...]
    problems: tuple[str, ...]


class CaseLog:
    """Scores of the cases so far, and what the report's pictures need of each: its masks, compressed.

    `targets` are those of a file; without them the bundle's own are asked for, or if it has none, the usual ones.
    """

    def __init__(self, bundle: Bundle, targets: Bounds | None = None) -> None:
        self.bundle = bundle
        self.targets, self.targets_from = _targets(bundle, targets)
        plan = EvaluationPlan(
            bundle.structure_names, bundle.exclusive, bundle.rules.planar, centreline=bundle.centreline
        )
        self.evaluation = Evaluation(plan)
        self.rows: list[Row] = []
        self.masks: dict[str, tuple[bytes, bytes, tuple[int, ...]]] = {}
        self.outcomes: list[StructureOutcome] = []
        self.whole_outcomes: list[WholeOutcome] = []
        self.assessed: Assessment | None = None

    def add(
        self,
        row: Row,
        truth: Segmentation,
        predicted: Segmentation,
        uncalibrated: NDArray[np.float32] | None = None,
    ) -> float:
        """Scores a case and gives its mean Dice.

        Args:
            row: The case, {"id", "subject", "image", "label"}.
            truth: The reference.
            predicted: The result on the same image, with probabilities.
            uncalibrated: Shape (C, I, J, K): the probabilities without calibration, to compare.
        """
        image = truth.image
        assert predicted.probabilities is not None
        scores = self.evaluation.add(
            CaseArrays(
                row["id"],
                row["subject"],
                truth.classes,
                predicted.classes,
                predicted.probabilities,
                image.spacing_mm,
                image.voxel_ml,
                uncalibrated,
                counted_of(row, image, self.bundle),
            )
        )
        self.rows.append(row)
        self.masks[row["id"]] = (_packed(truth.labels), _packed(predicted.labels), truth.labels.shape)
        return scores.mean("dice")

    def audit(self, row: Row, case: Case, truth: Segmentation) -> None:
        """Counts which statements of the bundle about a case came true; nothing where it made none."""
        if case.assessment is None:
            return
        self.assessed = case.assessment
        self.outcomes += audit_statements(row["subject"], case.assessment, case.segmentation, truth)
        self.whole_outcomes += audit_wholes(row["subject"], case.assessment, truth)

    def _statements(self) -> Mapping[str, Any] | None:
        labels = {segment.number: segment.label for segment in self.bundle.segments}
        if self.assessed is None:
            return None
        return summarise_statements(self.outcomes, self.assessed, labels, self.whole_outcomes)

    def write(
        self,
        folder: Path,
        data_name: str,
        partition: str,
        not_measured: tuple[str, ...] = (),
        seen: Mapping[str, int] | None = None,
    ) -> tuple[Mapping[str, Any], tuple[Path, ...]]:
        """Writes metrics.json, cases.csv, report.html and report.pdf; gives the summary and the files."""
        bundle = self.bundle
        measured = dataset_sha256(self.rows)
        report = EvaluationReport.of(
            self.evaluation,
            MeasuredOn(
                bundle.name, bundle.version, bundle.sha256, data_name, measured, partition, not_measured, seen or {}
            ),
            pictures=self._pictures(),
            targets=self.targets,
            statements=self._statements(),
            targets_from=self.targets_from,
        )
        return report.summary, write_evaluation(report, folder)

    def _pictures(self) -> list[CasePicture]:
        images = {row["id"]: row["image"] for row in self.rows}
        pictures = []
        for role, case_id in exemplary_cases(self.evaluation.cases).items():
            truth, predicted, shape = self.masks[case_id]
            volume = read_volume(images[case_id])
            masks = [np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape) for packed in (truth, predicted)]
            if not self.bundle.exclusive:
                masks = [mask.astype(bool) for mask in masks]
            pictures.append(CasePicture.of(case_id, role, volume, masks[0], masks[1]))
        return pictures


def targets_of(bundle: Bundle) -> tuple[Target, ...]:
    """What the bundle's metadata say that it should reach: {"dice": {"at_least": 0.8}, "ece": {"at_most": 0.005}}.

    Raises:
        BundleError: A figure that is unknown to `report.targets`, or a bound that is neither at_least nor at_most.
    """
    found = bundle.metadata.get("targets", {})
    try:
        return as_targets(checked(found), bundle.structure_names) if found else ()
    except ValueError as error:
        raise BundleError(f"{bundle.name}: `targets` in metadata.json cannot be used: {error}") from error


def _targets(bundle: Bundle, given: Bounds | None) -> tuple[tuple[Target, ...], str]:
    """The targets, and who set them."""
    if given is not None:
        return as_targets(given, bundle.structure_names), "those that were given for this evaluation"
    if own := targets_of(bundle):
        return own, "the bundle's own"
    return as_targets(USUAL, bundle.structure_names), "the usual ones; the bundle has none of its own"


@dataclass(frozen=True)
class Chosen:
    """Cases of a data set that may be used for a purpose.

    Attributes:
        rows: The cases.
        note: How they were chosen, in words.
        made_with: Those of them that the bundle was made with, by id, with their partition; none of test.
    """

    rows: list[Row]
    note: str
    made_with: Mapping[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """Of the cases."""
        return [row["id"] for row in self.rows]

    @property
    def seen(self) -> dict[str, int]:
        """Partition -> how many of them the bundle was made with in it."""
        return _by_partition(self.made_with)

    def only(self, ids: Collection[str]) -> Chosen:
        """Those of them that have one of these ids."""
        made_with = {case: part for case, part in self.made_with.items() if case in ids}
        return Chosen([row for row in self.rows if row["id"] in ids], self.note, made_with)


def choose_cases(
    bundle: Bundle, cases: Sequence[CaseFiles], partition: str | None = None, splits: Path | None = None
) -> Chosen:
    """The cases to measure or calibrate on: never silently those that the bundle was trained with.

    Args:
        bundle: Its `models/run.json` and `calibration.json` say what it has seen, whatever any plan says.
        cases: What the user gave.
        partition: One of the plan's partitions (if the plan knows none of the cases: all of them), "all", or None for every
            case that the bundle has not seen.
        splits: A plan of the user's for the cases that the bundle has not seen.

    Raises:
        InputRefusedError: No case is left.
    """
    plan = read_splits(splits) if splits else read_splits(shipped("examples") / "splits.json")
    rows: list[Row] = []
    left: dict[str, list[str]] = {}
    made_with: dict[str, str] = {}
    places = [plan.get(case.id) for case in cases]
    subjects = {**subjects_of(cases), **{place.id: place.subject for place in places if place}}
    kin = _kin(bundle, plan)
    seen = [seen_case(bundle, case) or kin.get(subjects[case.id]) for case in cases]
    planned = [place.partition if splits and place else None for place in places]
    partitions = [known.partition if known else part for known, part in zip(seen, planned, strict=True)]
    accepted = {None, "test"} if partition is None else {partition if any(partitions) else None}
    for case, known, part in zip(cases, seen, partitions, strict=True):
        if partition == "all" or part in accepted:
            rows.append(data_row(case, known.subject if known else subjects[case.id]))
            if known and known.partition != "test":
                made_with[case.id] = known.partition
        else:
            left.setdefault(part or "cases that the plan does not know", []).append(case.id)
    note = f"{len(rows)} of {len(cases)} case(s)" + (f", partition {partition}" if partition else "")
    if made_with:
        counts = _by_partition(made_with).items()
        note += "; seen by the bundle: " + ", ".join(f"{count} in {part}" for part, count in counts)
    elif bundle.seen:
        note += "; none of them seen by the bundle"
    if left:
        note += "; left out: " + ", ".join(f"{len(ids)} of {name} ({_some(ids)})" for name, ids in sorted(left.items()))
    if not rows:
        raise InputRefusedError(
            f"{note}: no case is left to work on; give other cases, or --partition all to take them as well"
        )
    return Chosen(rows, note, made_with)


def _by_partition(made_with: Mapping[str, str]) -> dict[str, int]:
    """Partition -> how many cases."""
    return dict(sorted(Counter(made_with.values()).items()))


def _some(ids: Sequence[str], most: int = 3) -> str:
    return ", ".join(ids[:most]) + (", ..." if len(ids) > most else "")


def _kin(bundle: Bundle, plan: Mapping[str, SplitCase]) -> dict[str, SeenCase]:
    """A seen case of each subject whom the bundle's plan and this one call alike: the other eye of a child that trained."""
    alike = (case for case in bundle.seen if case.id in plan and plan[case.id].subject == case.subject)
    return {case.subject: case for case in reversed(list(alike))}


def seen_case(bundle: Bundle, case: CaseFiles) -> SeenCase | None:
    """What the case is to the bundle; one that cannot be read is nothing yet, who works on it says why."""
    if not bundle.seen:
        return None
    try:
        return bundle.seen_as(read_volume(case.image))
    except InputRefusedError:
        return None


def chosen_rows(
    bundle_root: str,
    dataset_dir: str,
    partition: str | None,
    splits: str | None = None,
    label_suffix: str = "",
    labels_dir: str | None = None,
) -> list[Row]:
    """`choose_cases` of a data folder as MONAI's data list, for `evaluate.yaml` and `calibrate.yaml`."""
    cases = find_data(dataset_dir, labels_dir, label_suffix)
    return choose_cases(load_bundle(bundle_root), cases, partition, Path(splits) if splits else None).rows


def _packed(labels: NDArray[Any]) -> bytes:
    return zlib.compress(np.ascontiguousarray(labels, dtype=np.uint8).tobytes(), 1)


def truth_of(row: Row, volume: Volume, bundle: Bundle) -> Segmentation:
    """The reference of a case on its image, without probabilities.

    Raises:
        InputRefusedError: The label does not lie on the image, or holds values that the bundle does not know.
    """
    labels = read_labels(Path(row["label"]), volume)
    ignored = () if bundle.ignore_label is None else (bundle.ignore_label,)
    check_values(labels, (*bundle.label_values, *ignored), Path(row["label"]).name)
    return _truth(labels.array, volume, bundle)


def counted_of(row: Row, volume: Volume, bundle: Bundle) -> NDArray[np.bool_] | None:
    """Shape (I, J, K): voxels that count, those without the bundle's `ignore_label`; None where all do."""
    if bundle.ignore_label is None:
        return None
    return read_labels(Path(row["label"]), volume).array != bundle.ignore_label


def _truth(numbers: NDArray[Any], image: Volume, bundle: Bundle) -> Segmentation:
    """Label values, shape (I, J, K), as a segmentation by the bundle's segments; the ignored value becomes background."""
    numbers = numbers if bundle.ignore_label is None else np.where(numbers == bundle.ignore_label, 0, numbers)
    labels = (
        numbers.astype(np.uint8)
        if bundle.exclusive
        else np.stack([numbers == number for number in bundle.label_values[1:]])
    )
    return Segmentation(image, labels, bundle.segments)


def evaluate_cases(
    bundle: Bundle,
    rows: Sequence[Row],
    output: Path,
    *,
    run: PredictConfig | None = None,
    data_name: str = "",
    partition: str = "",
    seen: Mapping[str, int] | None = None,
    targets: Bounds | None = None,
    each: Callable[[str, float | None], None] = lambda case_id, dice: None,
) -> Evaluated:
    """Segments and measures every case; the good ones are done, the bad ones are listed.

    Args:
        bundle: What is measured.
        rows: {"id", "subject", "image", "label"} for each case.
        output: Gets metrics.json, cases.csv, report.html and report.pdf.
        run: Flags of the prediction.
        data_name: For the report.
        partition: For the report: who these cases are to this bundle.
        seen: For the report, as in `Chosen`.
        targets: What should be reached, as `report.targets.read_targets` gives it; None for the bundle's own.
        each: Told every case's id and mean Dice, None where it was refused.

    Raises:
        InputRefusedError: Not one case could be measured.
    """
    log, problems = CaseLog(bundle, targets), dict[str, str]()
    for row in rows:
        try:
            volume = read_volume(row["image"])
            truth = truth_of(row, volume, bundle)
            case = segment_case(volume, bundle, run, uncalibrated=True)
        except InputRefusedError as error:
            problems[row["id"]] = str(error)
            each(row["id"], None)
            continue
        each(row["id"], log.add(row, truth, case.segmentation, case.uncalibrated))
        log.audit(row, case, truth)
    told = tuple(f"{case}: {why}" for case, why in problems.items())
    if not log.rows:
        raise InputRefusedError("no case could be measured:\n  " + "\n  ".join(told))
    metrics, files = log.write(output, data_name, partition, tuple(problems), seen)
    return Evaluated(metrics, files, told)


class EvaluationHandler:
    """Ignite handler for `evaluate.yaml`: the same figures and report from MONAI's evaluator.

    The evaluator's output must hold "pred" and "prob", its batch "truth", all on the source grid.

    Args:
        bundle_root: The bundle that is evaluated.
        cases: Its data list, in the order of the evaluator's data: {"id", "subject", "image", "label"}.
        output: Gets metrics.json, cases.csv, report.html and report.pdf.
        data_name: For the report.
        partition: For the report, and the one in which the bundle may have seen the cases.

    Raises:
        InputRefusedError: The bundle has seen one of the cases in another partition.
    """

    def __init__(
        self, bundle_root: str, cases: Sequence[Row], output: str | Path, data_name: str = "", partition: str = ""
    ) -> None:
        bundle = load_bundle(bundle_root)
        check_unseen(bundle, cases, [part for part in ("train", "selection", "calibration") if part != partition])
        self.log = CaseLog(bundle)
        self.cases = list(cases)
        self.output = Path(output)
        self.data_name = data_name
        self.partition = partition

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _add(self, engine: Engine) -> None:
        outputs: Any = engine.state.output
        batch: Any = engine.state.batch
        bundle = self.log.bundle
        for output, inputs in zip(outputs, batch, strict=True):
            item = {"truth": inputs["truth"], "pred": output["pred"], "prob": output["prob"]}
            row = self.cases[len(self.log.rows)]
            volume = read_volume(row["image"])
            arrays = {key: on_volume(item[key], volume) for key in ("pred", "prob", "truth")}
            truth = _truth(arrays["truth"][0], volume, bundle)
            self.log.add(row, truth, decided(volume, arrays["prob"], arrays["pred"], bundle))

    def _write(self, engine: Engine) -> None:
        self.log.write(self.output, self.data_name, self.partition)
