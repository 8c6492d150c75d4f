"""Results of another program instead of a network's: `calibrate --results`, `evaluate --results`, `predict --trust`."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from monai_unet_app.cli import common, data_flags, flags, show
from monai_unet_app.cli.common import EXIT_DONE, EXIT_REFUSED, Answer
from monai_unet_app.cli.dataclass_parser import Options
from monai_unet_app.errors import UsageError

if TYPE_CHECKING:
    from monai_unet_app.confidence.results_bundle import ResultsBundle
    from monai_unet_app.evaluate import LabelFolders
    from monai_unet_app.external import ExternalBundle
    from monai_unet_app.label_results import LabelRequest

_OF_RESULTS = ("algorithm", "structure", "probabilities")
_OF_FOLDERS = ("labels", "images", "results", *_OF_RESULTS, "output", "json")
_OF_CALIBRATION = (*_OF_FOLDERS, "unseen", "coverage")
_OF_EVALUATION = (*_OF_FOLDERS, "bundle", "partition", "targets")
_OF_PROGRAM = (
    "bundle", "input", "output", "format", "seg_encoding", "uncoded", "deliver_rejected", "trust", "series", "time_point",
    "directions", "resample_gaps", "resample_tilt", "accept_incomplete", "json", "memory_limit",
)  # fmt: skip


def given(options: Options, names: Sequence[str]) -> list[str]:
    """Those of these flags that differ from their default, without the dashes."""
    defaults = {
        entry.name: entry.default if entry.default_factory is MISSING else entry.default_factory()
        for entry in fields(options)
    }
    return [name.replace("_", "-") for name in names if getattr(options, name) != defaults[name]]


def with_network(options: flags.Calibrate | flags.Evaluate, *of_results: str) -> str:
    """The bundle with a network that a verb is about. Raises UsageError without one, or beside flags of --results."""
    if options.bundle is None:
        raise UsageError("a --bundle with a network, or --results of another program, is needed; give one")
    if beside := given(options, (*_OF_RESULTS, *of_results)):
        raise UsageError(f"--{beside[0]} is only used with --results; leave it out")
    return options.bundle


def _folders(options: flags.Calibrate | flags.Evaluate, results: Path, taken: Sequence[str]) -> "LabelFolders":
    """The label files. Raises UsageError without --labels and --output, or beside flags of a network."""
    from monai_unet_app.evaluate import LabelFolders
    from monai_unet_app.label_results import Maker

    others = [entry.name for entry in fields(options) if entry.name not in taken]
    if beside := given(options, others):
        raise UsageError(f"--{beside[0]} is about a bundle with a network; --results has none; leave it out")
    if options.labels is None or options.output is None:
        raise UsageError("--results needs --labels, the folder of the true label maps, and --output; give both")
    if options.algorithm is None:
        raise UsageError(
            "--results needs --algorithm, the program and its version, such as 'TotalSegmentator 2.18'; give it"
        )
    maker, named = Maker.parse(options.algorithm, manual=False), common.structures(options.structure)
    return LabelFolders(results, options.labels, options.images, maker, named, options.probabilities)


def calibrate_results(options: flags.Calibrate, results: Path) -> Answer:
    """`calibrate --results`: a bundle that says what label files of another program are worth."""
    from monai_unet_app.calibration.statement_fit import summary_of
    from monai_unet_app.planning.results_of_others import bundle_of_results

    if not options.unseen:
        raise UsageError(
            "results of cases that trained the program say nothing about new ones; take cases that it has not seen, and say so "
            "by --unseen, which the card of the bundle repeats"
        )
    folders = _folders(options, results, _OF_CALIBRATION)
    assert options.output is not None
    with show.Steps("measuring", len(folders.cases)) as step:
        bundle, stated = bundle_of_results(folders, options.output, options.coverage, step)
    labels = {segment.number: segment.label for segment in bundle.segments}
    statements = {str(folders.program): summary_of(stated, labels)}
    show.statements_table(statements)
    show.wrote([options.output])
    show.line(
        f"next: monai-unet dicomize --labels LABELS --source SERIES --algorithm {shlex.quote(str(folders.program))} --bundle "
        f"{shlex.quote(str(options.output))} --output OUT"
        + " --probabilities FILE"
        * (folders.probabilities is not None)
    )
    return {"bundle": str(options.output), "sha256": bundle.sha256, "statements": statements}, EXIT_DONE


def evaluate_results(options: flags.Evaluate, results: Path) -> Answer:
    """`evaluate --results`: how good label files of another program are, and whether what is stated of them is true."""
    model = _model(options)
    if model and options.algorithm is None:
        options = replace(options, algorithm=str(model.program))
    folders = _folders(options, results, _OF_EVALUATION)
    if options.partition not in (None, "all"):
        raise UsageError(
            f"--partition {options.partition} is about a bundle with a network; all also takes results that --bundle was "
            "fitted to"
        )
    assert options.output is not None
    common.check_writable(options.output)
    from monai_unet_app import evaluate
    from monai_unet_app.data.case_files import first_names
    from monai_unet_app.report.targets import read_targets

    targets = read_targets(options.targets) if options.targets else None
    chosen = evaluate.choose_results(folders, model, seen=options.partition == "all")
    show.say(chosen.note)
    chosen = replace(chosen, name=folders.labels.resolve().name)
    for table in folders.overridden:
        show.say(f"--structure counts, although {table}")
    with show.Steps("evaluating", len(chosen.rows)) as step:
        done = evaluate.evaluate_results(folders, chosen, model, options.output, targets=targets, each=step.measured)
    if other := folders.resampled:
        show.say(
            f"{len(other)} label file(s) lie on another grid than their image, and were compared on that of the image, by the "
            f"nearest voxel: {first_names(other)}"
        )
    answer = show.evaluation(done)
    show.line(f"next: monai-unet compare --first {shlex.quote(str(options.output))} --second OTHER_EVALUATION")
    return answer, EXIT_REFUSED if done.problems else EXIT_DONE


def _model(options: flags.Evaluate) -> "ResultsBundle | None":
    """What --bundle says of the label files; None without it. Raises UsageError for a bundle with a network."""
    if options.bundle is None:
        return None
    from monai_unet_app.confidence.results_bundle import results_bundle

    model = results_bundle(options.bundle)
    if model is None:
        raise UsageError(
            f"{options.bundle} is a bundle with a network, and --results are label files of another program; leave one out"
        )
    if options.structure:
        raise UsageError(f"{model.name} says what the label values mean; leave --structure out")
    return model


def predict_by_program(options: flags.Predict, bundle: "ExternalBundle") -> Answer:
    """`predict --trust`: a program segments a series, and what it is worth is stated."""
    from monai_unet_app.data.case_files import case_id
    from monai_unet_app.data.read import read_volume
    from monai_unet_app.external import Surroundings, check_version, labels_of

    command, program = bundle.command, bundle.program
    if not options.trust:
        raise UsageError(
            f"{bundle.name} starts a program on this machine: {' '.join(command.words)}; give --trust if whoever made the "
            "bundle is known to you and this is meant"
        )
    taken = [entry.name for entry in fields(options) if entry.name not in _OF_PROGRAM]
    if beside := given(options, taken):
        raise UsageError(f"--{beside[0]} is about a bundle with a network; leave it out")
    common.check_writable(options.output)
    where = Surroundings(
        os.environ.get("PATH", os.defpath), os.environ.get("HOME", "/"), os.cpu_count() or 1,
        memory_bytes=options.memory_limit or float("inf"),
    )  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    check_version(bundle, where, options.output)
    image = read_volume(options.input, common.read_options(options))
    show.say(f"{program} is running, for {command.seconds:g} s at most")
    with labels_of(image, bundle, where, options.output) as labels:
        return write_labels(replace(labels, stem=case_id(options.input)), options, options.input)


def write_labels(request: "LabelRequest", options: data_flags.Dicomize | flags.Predict, source: Path) -> Answer:
    """Writes labels in the form that the flags ask for, and shows them; of rejected ones nothing but the record is written."""
    from monai_unet_app.data.case_files import first_names
    from monai_unet_app.label_results import write_label_results

    request = replace(
        request, formats=tuple(filter(None, (options.format or "seg").split(","))), uncoded=options.uncoded,
        encoding=options.seg_encoding or "binary", reading=common.read_options(options),
        deliver_rejected=options.deliver_rejected,
    )  # fmt: skip
    made = write_label_results(request)
    result, judged = made["result"], made["result"]["assessment"] is not None
    gates = [[show.gate(row)] if judged else [] for row in result["structures"]]
    cells = [(row["number"], row["label"], show.size(row)) for row in result["structures"]]
    rows = [(*own, *gate) for own, gate in zip(cells, gates, strict=True)]
    rows += [("", "result", "", show.verdict(result))] * judged
    show.print_table(("number", show.folded("structure"), "size", *(["gate"] if judged else [])), rows)
    show.reasons_list([result])
    if made["empty"]:
        show.line(f"{len(made['empty'])} structure(s) without a voxel are not written: {first_names(made['empty'])}")
    if made["unknown"]:
        show.line(
            f"{len(made['unknown'])} value(s) are left out, of which --bundle says nothing: {first_names(made['unknown'])}"
        )
    checked = (
        "they follow the edges of the image" if made["edges"] == "follow" else "edges of the image could not check them"
    )
    show.line(f"labels {made['placed']}; {checked}; a label file does not say of whom it is: look at the result")
    show.wrote(options.output / name for name in (*result["files"].values(), f"{result['case']}_result.json"))
    if judged and result["assessment"]["verdict"] == "reject":
        show.line(f"rejected: {'; '.join(result['assessment']['reasons'])}")
        if not options.deliver_rejected:
            show.line("only the record was written; --deliver-rejected writes the objects all the same")
            return made, EXIT_REFUSED
    place = f"{options.output}/{result['case']}_result.json"
    show.line(
        f"next: monai-unet review --result {shlex.quote(place)} --input {shlex.quote(str(source))} --output review"
    )
    return made, EXIT_DONE
