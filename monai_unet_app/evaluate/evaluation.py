"""Measures a bundle on labelled cases: for `monai-unet evaluate`, or as a handler in a bundle's `evaluate.yaml`."""

import gzip
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from dicom_io.coding import Segment
from monai_unet_app.bundle import Bundle, check_unseen, load_bundle
from monai_unet_app.confidence.results_bundle import ResultsBundle
from monai_unet_app.confidence.statement_audit import Outcome, StructureTruth, missed_parts, summarise_statements
from monai_unet_app.confidence.statements import read_confidence
from monai_unet_app.config import PredictConfig, ResultSettings
from monai_unet_app.data.case_files import Row
from monai_unet_app.data.coding import named_segment, structure_named
from monai_unet_app.data.digest import dataset_sha256
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import BundleError, InputRefusedError, NoRoomError
from monai_unet_app.gathering import decided, on_volume
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.summary import Evaluation
from monai_unet_app.pipeline import segment_case, settings_of
from monai_unet_app.report.evaluation_report import CasePicture, EvaluationReport, MeasuredOn, Target, exemplary_cases
from monai_unet_app.report.evaluation_writer import write_evaluation
from monai_unet_app.report.targets import USUAL, Bounds, as_targets, checked

from .case_selection import LabelledCases, Networks
from .counted_case import WHOLE_GRID, CountedCase
from .inference_cost import InferenceCost
from .label_folders import LabelFolders
from .reference import counted_voxels, evaluation_plan, read_reference, reference_segmentation


@dataclass(frozen=True)
class Evaluated:
    """Figures and files of an evaluation.

    Attributes:
        metrics: Figures as in metrics.json.
        files: metrics.json, cases.csv, report.html and report.pdf.
        problems: Cases that could not be measured, a sentence for each case.
        seconds: Case id -> duration of its segmentation, for the cases that were measured.
        outcomes: Case id -> what the bundle stated of it, and what is true; empty where it states nothing.
    """

    metrics: Mapping[str, Any]
    files: tuple[Path, ...]
    problems: tuple[str, ...]
    seconds: Mapping[str, float]
    outcomes: Mapping[str, Outcome]


class StoredLabels:
    """Truth and prediction of cases, compressed in a temporary file, so that memory holds one case at a time.

    Which cases a report shows is known at the end only. The file has no name: nothing is left of it however the process ends.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="monai-unet-labels-")  # noqa: SIM115 - `finalize` closes it
        weakref.finalize(self, self._file.close)
        self._starts: dict[str, int] = {}

    def add(self, case_id: str, truth: NDArray[Any], predicted: NDArray[Any]) -> None:
        """Adds the labels of a case, whole numbers or boolean, of any shape.

        Raises:
            OSError: The disk is full.
        """
        self._starts[case_id] = self._file.seek(0, os.SEEK_END)
        # Even the fastest level makes labels small.
        with gzip.GzipFile(fileobj=self._file, mode="wb", compresslevel=1) as stream:
            for labels in (truth, predicted):
                np.lib.format.write_array(stream, labels, allow_pickle=False)

    def read(self, case_id: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Truth and prediction of a case."""
        self._file.seek(self._starts[case_id])
        with gzip.GzipFile(fileobj=self._file) as stream:
            truth, predicted = (np.lib.format.read_array(stream, allow_pickle=False) for _ in range(2))
        return truth, predicted


@dataclass(frozen=True)
class ResultsOf:
    """Whose results are measured, and how.

    Attributes:
        name: Of the bundle, or of another program.
        version: Its version.
        sha256: Of what the results, and what is stated of them, follow from.
        segments: The meaning of the structures, in the order of their numbers.
        plan: What is measured.
        targets: Its own; may be empty.
        settings: What its results were computed with.
    """

    name: str
    version: str
    sha256: str
    segments: tuple[Segment, ...]
    plan: EvaluationPlan
    targets: tuple[Target, ...] = ()
    settings: ResultSettings = field(default_factory=ResultSettings)

    @classmethod
    def of(cls, bundle: Bundle, run: PredictConfig | None = None) -> "ResultsOf":
        """Of the network of a bundle. Raises BundleError as `targets_of`."""
        plan, settings = evaluation_plan(bundle), settings_of(run or PredictConfig(), bundle)
        known = bundle.name, bundle.version, bundle.sha256, bundle.segments
        return cls(*known, plan, targets_of(bundle), settings)


class CaseLog:
    """Scores of the cases so far, and the labels of each for the report's pictures.

    `targets` are those of a file; None takes its own targets or, if there are none, the usual targets.
    """

    def __init__(self, results_of: ResultsOf, targets: Bounds | None = None) -> None:
        self.results_of = results_of
        self.targets, self.targets_from = _targets(results_of, targets)
        self.evaluation = Evaluation(results_of.plan)
        self.rows: list[Row] = []
        self.labels = StoredLabels()
        self.outcomes: dict[str, Outcome] = {}

    def add(self, case: CountedCase) -> float:
        """Scores a case, holds what was stated about it against the truth, and gives its mean Dice."""
        row, scores = case.row, self.evaluation.add_counted(case.counter)
        self.rows.append(row)
        self.labels.add(row["id"], case.truth.drawn, case.predicted.drawn)
        if case.assessment and case.missed:
            missed = missed_parts(case.assessment, case.missed)
            true = [
                StructureTruth(entry.dice, entry.truth_size if case.complete else None, part, true.objects)
                for entry, part, true in zip(scores.classes, missed, case.truth.structures, strict=True)
            ]
            self.outcomes[row["id"]] = Outcome(row["subject"], case.assessment, true)
        return scores.mean("dice")

    def _statements(self) -> Mapping[str, Any] | None:
        if not self.outcomes:
            return None
        labels = {segment.number: segment.label for segment in self.results_of.segments}
        outcomes = list(self.outcomes.values())
        return summarise_statements(outcomes, outcomes[-1].assessment.confidence, labels)

    def write(
        self,
        folder: Path,
        data: LabelledCases,
        not_measured: tuple[str, ...] = (),
        inference: Mapping[str, Any] | None = None,
    ) -> tuple[Mapping[str, Any], tuple[Path, ...]]:
        """Writes metrics.json, cases.csv, report.html and report.pdf; gives the summary and the files.

        Args:
            folder: Gets the files.
            data: What was measured.
            not_measured: Cases that could not be measured.
            inference: From `InferenceCost.document`, if it was measured.
        """
        measured = self.results_of
        report = EvaluationReport(
            self.evaluation,
            MeasuredOn(
                measured.name,
                measured.version,
                measured.sha256,
                data.name,
                dataset_sha256(self.rows),
                data.note,
                not_measured,
                data.seen,
                data.folds,
                settings=measured.settings,
            ),
            pictures=self._pictures(),
            targets=self.targets,
            statements=self._statements(),
            targets_from=self.targets_from,
            inference=inference,
        )
        return report.summary, write_evaluation(report, folder)

    def _pictures(self) -> list[CasePicture]:
        images = {row["id"]: row["image"] for row in self.rows}
        return [
            CasePicture.of(case_id, role, read_volume(images[case_id]), *self.labels.read(case_id))
            for role, case_id in exemplary_cases(self.evaluation.cases).items()
        ]


def targets_of(bundle: Bundle) -> tuple[Target, ...]:
    """The targets in the bundle's metadata, such as {"dice": {"at_least": 0.8}, "ece": {"at_most": 0.005}}.

    Raises:
        BundleError: A figure is unknown to `report.targets`, or a bound is neither at_least nor at_most.
    """
    bounds = bundle.metadata.get("targets", {})
    try:
        return as_targets(checked(bounds), bundle.structure_names) if bounds else ()
    except ValueError as error:
        raise BundleError(f"{bundle.name}: `targets` in metadata.json cannot be used: {error}") from error


def _targets(results_of: ResultsOf, bounds: Bounds | None) -> tuple[tuple[Target, ...], str]:
    """The targets, and where they come from."""
    plan = results_of.plan
    if bounds is not None:
        return as_targets(bounds, plan.class_names), "the targets given for this evaluation"
    if results_of.targets:
        return results_of.targets, "the bundle's own"
    usual = {name: ends for name, ends in USUAL.items() if plan.probabilities or name not in ("ece", "ece_band")}
    return as_targets(usual, plan.class_names), "the usual targets; the bundle has no targets of its own"


def evaluate_cases(
    bundle: Bundle,
    data: LabelledCases,
    output: Path,
    *,
    run: PredictConfig | None = None,
    targets: Bounds | None = None,
    each: Callable[[str, float | None], None] = lambda case_id, dice: None,
) -> Evaluated:
    """Segments and measures every case; cases that cannot be measured are listed.

    Args:
        bundle: The bundle that is measured.
        data: The cases.
        output: Gets metrics.json, cases.csv, report.html and report.pdf.
        run: Flags of the prediction.
        targets: The targets, as `report.targets.read_targets` gives them; None for the bundle's own.
        each: Called with the id and the mean Dice of every case; the Dice is None for a case that was refused.

    Raises:
        InputRefusedError: No case could be measured; or as `read_confidence`.
        NoRoomError: Memory or disk are short for a case.
    """
    log, problems, networks = (
        CaseLog(ResultsOf.of(bundle, run), targets),
        dict[str, str](),
        Networks(bundle, data.folds),
    )
    if log.results_of.settings.elsewhere:
        read_confidence(bundle, log.results_of.settings)  # raises before an image is read
    cost = InferenceCost()
    for row in data.rows:
        try:
            volume = read_volume(row["image"])
            truth = read_reference(row, volume, bundle)
            # What the bundle states is about its own network, and was fitted on the cases of its folds
            case = segment_case(volume, networks.of(row), run, keep="logits", fitting=row["id"] in data.folds)
        except NoRoomError:  # what a machine has free decides nothing that is measured
            raise
        # Only a refusal lets the evaluation go on; the case is named in the report. Any other error ends it.
        except InputRefusedError as error:
            problems[row["id"]] = str(error)
            each(row["id"], None)
            continue
        cost.add(row["id"], case)
        voxels = counted_voxels(row, volume, bundle)
        counted = CountedCase(row, truth, case.segmentation, log.results_of.plan, case.assessment, voxels)
        for box, probabilities, uncalibrated in case.second_look():
            counted.add(box, probabilities, uncalibrated)
        each(row["id"], log.add(counted))
    inference = cost.document(networks.of(log.rows[0])) if log.rows else None
    return _written(log, data, output, problems, cost.seconds, inference)


def evaluate_results(
    folders: LabelFolders,
    chosen: LabelledCases,
    model: ResultsBundle | None,
    output: Path,
    *,
    targets: Bounds | None = None,
    each: Callable[[str, float | None], None] = lambda case_id, dice: None,
) -> Evaluated:
    """Measures the label files of another program, and what is stated of them; cases that cannot be measured are listed.

    Args:
        folders: The files.
        chosen: The cases of `folders` to measure.
        model: What the files are worth; it also says what their values mean. None measures them alone.
        output: As in `evaluate_cases`.
        targets: As in `evaluate_cases`.
        each: As in `evaluate_cases`.

    Raises:
        InputRefusedError: No case could be measured, or nothing says what the values mean.
        BundleError: As `ResultsBundle.confidence_about`.
    """
    program, problems = folders.program, dict[str, str]()
    names = dict(zip(model.values, model.structure_names, strict=True)) if model else folders.names()
    own = tuple(named_segment(n, structure_named(name, program.name)) for n, name in enumerate(names.values(), 1))
    segments = model.segments if model else own
    folders = replace(folders, named=names) if model else folders  # it knows some values, and others are left out
    planar = read_volume(chosen.rows[0]["image"]).planar
    given = folders.probabilities is not None
    plan = EvaluationPlan(tuple(segment.label for segment in segments), planar=planar, probabilities=given)
    log = CaseLog(ResultsOf(program.name, program.version, (model or program).sha256, segments, plan), targets)
    for row in chosen.rows:
        try:
            case = folders.read(row, segments, list(names))
            if case.result.image.planar != planar:
                raise InputRefusedError(
                    "one of the images is a picture and another a volume; cases of one kind are needed"
                )
            result = model.calibrated(case.result, program) if model else case.result
        except InputRefusedError as error:  # as in `evaluate_cases`
            problems[row["id"]] = str(error)
            each(row["id"], None)
            continue
        assessment = model.assessed(result, program) if model else None
        counted = CountedCase(row, case.truth, result, plan, assessment)
        if given:
            final, raw = (np.asarray(one.probabilities) for one in (result, case.result))
            counted.add(WHOLE_GRID, final, raw if model else None)
        each(row["id"], log.add(counted))
    return _written(log, chosen, output, problems)


def _written(
    log: CaseLog,
    data: LabelledCases,
    output: Path,
    problems: Mapping[str, str],
    seconds: Mapping[str, float] = {},
    inference: Mapping[str, Any] | None = None,
) -> Evaluated:
    """The files of an evaluation. Raises InputRefusedError if no case was measured."""
    sentences = tuple(f"{case}: {problem}" for case, problem in problems.items())
    if not log.rows:
        raise InputRefusedError("no case could be measured:\n  " + "\n  ".join(sentences))
    metrics, files = log.write(output, data, tuple(problems), inference)
    return Evaluated(metrics, files, sentences, seconds, log.outcomes)


class EvaluationHandler:
    """Ignite handler for `evaluate.yaml`: the same figures and report from MONAI's evaluator.

    The evaluator's output must hold "pred" and "prob", its batch "truth", all on the source grid.

    Args:
        bundle_root: The bundle that is evaluated.
        cases: Its data list, in the order of the evaluator's data: {"id", "subject", "image", "label"}.
        output: Gets metrics.json, cases.csv, report.html and report.pdf.
        data_name: For the report.
        partition: For the report; the bundle may have seen cases of this partition.

    Raises:
        InputRefusedError: The bundle has seen one of the cases in another partition.
    """

    def __init__(
        self, bundle_root: str, cases: Sequence[Row], output: str | Path, data_name: str = "", partition: str = ""
    ) -> None:
        bundle = load_bundle(bundle_root)
        check_unseen(bundle, cases, [part for part in ("train", "selection", "calibration") if part != partition])
        self.bundle, self.log = bundle, CaseLog(ResultsOf.of(bundle))
        self.data = LabelledCases(cases, data_name, partition)
        self.output = Path(output)

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.COMPLETED, lambda engine: self.log.write(self.output, self.data))

    def _add(self, engine: Engine) -> None:
        outputs: Any = engine.state.output
        batch: Any = engine.state.batch
        bundle, plan = self.bundle, self.log.results_of.plan
        for output, inputs in zip(outputs, batch, strict=True):
            # The batch carries no id: the evaluator keeps the order of its data, so the next row belongs to this case.
            row = self.data.rows[len(self.log.rows)]
            volume = read_volume(row["image"])
            channels = inputs["truth"], output["pred"], output["prob"]
            numbers, pred, prob = (on_volume(array, volume) for array in channels)
            labels = numbers[0] if len(numbers) == 1 else np.moveaxis(numbers, 0, -1)
            truth = reference_segmentation(labels, volume, bundle)
            voxels = counted_voxels(row, volume, bundle)
            counted = CountedCase(row, truth, decided(volume, prob, pred, bundle), plan, counted=voxels)
            counted.add(WHOLE_GRID, prob)
            self.log.add(counted)
