"""The verbs about bundles and results: each reads its flags, calls one function of the layers below and shows the result."""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from monai_unet_app.cli import common, flags, show
from monai_unet_app.cli.common import EXIT_DONE, EXIT_FAILED, EXIT_REFUSED, Answer
from monai_unet_app.cli.dicom_verbs import destination_of_site
from monai_unet_app.cli.results_of_others import evaluate_results, given, predict_by_program, with_network
from monai_unet_app.config import resolve_device
from monai_unet_app.errors import InputRefusedError, UsageError, absence, needing
from monai_unet_app.processes import load_monai

if TYPE_CHECKING:
    from monai_unet_app.bundle import Bundle
    from monai_unet_app.planning.plan import BundlePlan
    from monai_unet_app.report.stored_evaluation import StoredEvaluation
    from monai_unet_app.report.targets import Bounds
    from monai_unet_app.training.ranking import Ranking
    from monai_unet_app.training.run import TrainConfig


def plan(options: flags.Plan) -> Answer:
    """Measure labelled images and write a bundle for them; ready to be trained, each value with its reason.

    Example: monai-unet plan DATA --output my_bundle
    """
    common.check_writable(options.output.parent)
    load_monai()
    from dicom_io.coding import load_segments, uncoded
    from monai_unet_app.planning.decisions import PlanConfig
    from monai_unet_app.planning.family import NetworkChoice
    from monai_unet_app.planning.plan import plan_configurations
    from monai_unet_app.planning.speed import seconds_of_a_window
    from monai_unet_app.planning.write import check_new, write_plan, write_plans

    check_new(options.output)
    resolve_device(options.device)
    if options.objects and options.structure:
        raise UsageError(
            "--objects and --structure both say what label values mean; only one is allowed; leave the other out"
        )
    said = common.set_fields(options, PlanConfig) | {"configuration": None}
    said["network"] = common.network_of(options) or NetworkChoice()
    regions = common.regions(options.structure)
    structures = {} if regions else common.structures(options.structure)
    config = PlanConfig(**said, structures=structures, regions=regions, time_s=options.time)
    names = list(dict.fromkeys(options.configuration))
    speed = partial(seconds_of_a_window, choice=config.network, device=options.device, tell=show.say)
    made = plan_configurations(config, names or [None], speed, show.Steps)
    if len(made) == 1:
        bundles = {options.output: made[0]}
        write_plan(made[0], options.output)
    else:
        bundles = {options.output / name: own for name, own in zip(names, made, strict=True)}
        write_plans({bundle.name: own for bundle, own in bundles.items()}, options.output)
    for odd in made[0].fingerprint.to_look_at():
        show.say(odd)
    by_folds = len(made) > 1 or made[0].by_folds
    for bundle, own in bundles.items():
        rows = [*own.overview(by_folds=by_folds), *own.decided()]
        show.print_table(("what", show.folded("value"), show.folded("why")), rows)
        show.wrote([bundle])
        if options.show:
            _draw_windows(bundle, own, options, 0 if by_folds else None)
    if problem := uncoded(load_segments(next(iter(bundles)) / "configs/segments.json")):
        show.say(problem)
    if made[0].values["planar"]:
        show.say(
            "results of pictures are PNG files and result.json; DICOM results need DICOM images, since a picture has no "
            "millimetres and no place in a patient"
        )
    more = ["--output", f"{options.output}_trained", *(["--folds", "all"] if by_folds else [])]
    show.line(common.next_command("train", options.output, options, more))
    answers = [{"bundle": str(path), "values": own.values, "reasons": own.reasons} for path, own in bundles.items()]
    return answers[0] if len(answers) == 1 else {"bundles": answers}, EXIT_DONE


def _draw_windows(bundle: "Path", plan: "BundlePlan", options: flags.Plan, fold: int | None) -> None:
    from monai_unet_app.training.pictures import draw_windows

    spacing, axis = list(plan.values["spacing_mm"] or (1.0, 1.0)), plan.values["slice_axis"]
    kept = spacing if axis is None else [*spacing[:axis], *spacing[axis + 1 :]]
    cases = {"dataset_dir": options.data, "labels_dir": options.labels, "splits": options.splits}
    values = {name: str(place) for name, place in cases.items() if place} | {"fold": fold}
    show.wrote(draw_windows(bundle, values, kept, options.show or 0, bundle / "windows"))


def train(options: flags.Train) -> Answer:
    """Train a copy of a bundle on a folder of cases; the same command resumes.

    Example: monai-unet train --bundle hippocampus_mri_unet3d --data DATA --output my_bundle
    """
    from monai_unet_app.bundle_folder import bundle_files, bundles_in

    if options.deliver and "all" not in options.folds:
        raise UsageError(
            f"--deliver {options.deliver} needs the networks of all folds; give --folds all, or leave it out"
        )
    if options.parallel and not options.folds:
        raise UsageError(
            f"--parallel {options.parallel} trains folds at the same time, but no fold is named; give --folds all, or "
            "leave it out"
        )
    if not options.donor and (options.freeze or options.first_rate is not None):
        raise UsageError("--freeze and --first-rate are about the weights of --from; give it, or leave them out")
    several = bundles_in(Path(options.bundle))
    if several and (len(several) < 2 or not options.folds):
        raise UsageError(
            f"--bundle {options.bundle} holds the bundle(s) {', '.join(several)}; to rank them two or more and --folds are "
            f"needed; give --folds all, or one of them, such as --bundle {next(iter(several.values()))}"
        )
    templates = {name: bundle_files(path) for name, path in several.items()} or {"": bundle_files(options.bundle)}
    if untaught := [files.name for files in templates.values() if not (files.root / "configs/train.yaml").is_file()]:
        raise UsageError(
            f"{', '.join(untaught)} has no configs/train.yaml, as networks of other programs; a bundle that says how it learns "
            "is needed; make one with monai-unet plan"
        )
    if not options.data.exists():
        raise InputRefusedError(f"--data {options.data} {absence(options.data)}; a folder of cases is needed; check it")
    common.check_writable(options.output)
    if options.tracking == "mlflow":
        with needing("mlflow", "--tracking mlflow"):
            import mlflow  # noqa: F401
    network = common.network_of(options)
    # this import takes seconds, since it brings torch; the checks that need none of it come first
    load_monai()
    from monai_unet_app.planning.family import with_network
    from monai_unet_app.training.run import TrainConfig
    from monai_unet_app.training.transfer import find_donor

    names = ("epochs", "seed", "learning_rate", "precision", "workers")
    overrides = {**{name: getattr(options, name) for name in names}, "tracker": options.tracking}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    resolve_device(options.device)  # refused before the cases are read
    donor = find_donor(options.donor, options.freeze, options.first_rate or 1.0) if options.donor else None
    said = common.set_fields(options, TrainConfig) | {"donor": donor}
    run = TrainConfig(**said, overrides=overrides, say=show.say, display=show.Steps)
    show.say("loading torch and MONAI")
    loaded = {name: common.loaded_bundle(template.root) for name, template in templates.items()}
    if network is None:
        return _trained_from(loaded, run, options)
    with TemporaryDirectory() as place:
        own = {name: with_network(bundle, network, Path(place) / bundle.name) for name, bundle in loaded.items()}
        return _trained_from(own, run, options)


def _trained_from(templates: "Mapping[str, Bundle]", run: "TrainConfig", options: flags.Train) -> Answer:
    """Trains one template, whose name is "", or several, which are ranked."""
    from monai_unet_app.training.ranking import train_ranked
    from monai_unet_app.training.run import train_bundle, train_folds

    if not options.folds:
        return _trained(train_bundle(templates[""], run), options)
    whole = "all" in options.folds
    folds = [] if whole else sorted({int(fold) for fold in options.folds})
    deliver = (options.deliver or "all-data") if whole else None
    if "" in templates:
        return _trained(train_folds(templates[""], run, folds, deliver=deliver), options)
    return _ranked(train_ranked(templates, run, folds, deliver=deliver), options, bool(deliver))


def _ranked(ranking: "Ranking", options: flags.Train, delivered: bool) -> Answer:
    from monai_unet_app.training.ranking import COLUMNS, RANKING, TABLE

    best = options.output / ranking.chosen.name
    show.print_table(COLUMNS, ranking.rows())
    show.wrote([*(options.output / name for name in (RANKING, TABLE)), *[best] * delivered])
    show.line(f"best: {best}: {ranking.reason}")
    if delivered:
        show.line(common.next_command("calibrate", best, options))
    else:
        show.line("the same command with --folds all trains the other folds and the network of the best")
    return {"bundle": str(best), "ranking": ranking.document()}, EXIT_DONE


def _trained(bundle: "Bundle", options: flags.Train) -> Answer:
    from monai_unet_app.training.record import MUCH_WAITING, waiting_share
    from monai_unet_app.training.run import few_to_calibrate

    best = bundle.run_record.get("best")
    if best and best["epoch"]:
        show.line(f"Dice on the selection cases: {best['metric']:.4f} (epoch {best['epoch']})")
    folds = [fold.fold for fold in bundle.folds]
    if folds:
        show.line(f"folds: {', '.join(map(str, folds))}")
    answer = {"bundle": str(bundle.root), "best": best, "folds": folds}
    if not bundle.run_record:  # folds alone, without a network of its own
        show.line(common.next_command("evaluate", bundle.root, options, by_folds=True))
        return answer, EXIT_DONE
    show.wrote([bundle.root])
    if (waited := waiting_share(bundle.run_record)) > MUCH_WAITING:
        show.line(
            f"it waited for data {waited:.0%} of the time; if a core is free, --workers 1 prepares data at the same time"
        )
    few = few_to_calibrate({case.subject for case in bundle.seen if case.partition == "calibration"})
    if few and not folds:
        show.line(few)
    if folds or not few:
        show.line(common.next_command("calibrate", bundle.root, options))
    elif any(case.partition == "test" for case in bundle.seen):
        show.line(common.next_command("evaluate", bundle.root, options))
    else:
        more = [f"--splits={options.splits}"] if options.splits else []
        more += ["--output", f"{options.output}_folds", "--folds", "all"]
        show.line(common.next_command("train", Path(options.bundle), options, more))
    return answer | {"sha256": bundle.sha256}, EXIT_DONE


def evaluate(options: flags.Evaluate) -> Answer:
    """Measure a bundle on labelled cases; write metrics.json, cases.csv, report.html and report.pdf. With --into-bundle the
    figures go into the metadata and the card of the bundle, too; with --evaluation those of an evaluation that is done.

    Example: monai-unet evaluate --bundle my_bundle --images DIR --labels DIR --output OUT --into-bundle
    """
    from monai_unet_app.config import PredictConfig, ResultSettings

    if options.results is not None:
        return evaluate_results(options, options.results)
    named_bundle = with_network(options)
    if options.evaluation:
        return _store_evaluation(options.evaluation, named_bundle, options)
    assert options.output  # the parser requires --evaluation or --output
    common.check_folds_alone(options)
    common.check_elsewhere(options)
    own, data = common.trained_bundle(named_bundle, by_folds=options.folds), common.labelled_cases(options)
    overrides = common.cheaper(options, own)
    if options.into_bundle:
        _check_takes_figures(named_bundle, options)
    common.check_writable(options.output)
    targets = _targets(options)  # before torch is imported
    from monai_unet_app.evaluate import choose_cases, choose_out_of_fold, evaluate_cases
    from monai_unet_app.report.card import check_held_out, read_measured

    bundle = common.loaded_bundle(own.root, options.device, by_folds=options.folds, overrides=overrides)
    asked = ResultSettings(tta=options.tta, elsewhere=options.elsewhere)
    settings = common.with_engine(asked, bundle.of_fold(0) if options.folds else bundle, options)
    named = options.partition, options.splits
    chosen = choose_out_of_fold(bundle, data) if options.folds else choose_cases(bundle, data, *named)
    subjects = {row["id"]: row["subject"] for row in chosen.rows}
    if options.into_bundle:
        check_held_out(subjects, chosen.folds, bundle, options.source)  # now, since to segment the cases may take hours
    show.say(chosen.note)
    with show.Steps("evaluating", len(chosen.rows)) as step:
        evaluated = evaluate_cases(
            bundle,
            replace(chosen, name=options.source.resolve().name),
            options.output,
            run=PredictConfig(settings),
            targets=targets,
            each=step.measured,
        )
    answer = show.evaluation(evaluated)
    if options.into_bundle:
        stored = _write_into(bundle, read_measured(options.output, bundle))
        answer |= stored | {"files": answer["files"] + stored["files"]}
    elif Path(named_bundle).is_dir():
        with suppress(InputRefusedError):
            check_held_out(subjects, chosen.folds, bundle, options.source)
            read_measured(options.output, bundle)
            words = ["--bundle", str(bundle.root), "--evaluation", str(options.output), "--into-bundle"]
            show.line(f"next: monai-unet evaluate {shlex.join(words)}")
    if bundle.untrained is None:
        show.line(_predict_command(bundle, chosen.rows[0]["image"], options))
    return answer, EXIT_REFUSED if evaluated.problems else EXIT_DONE


def _targets(options: flags.Evaluate) -> "Bounds | None":
    from monai_unet_app.report.targets import read_targets

    return read_targets(options.targets) if options.targets else None


def _predict_command(bundle: "Bundle", files: str | list[str], options: flags.Evaluate) -> str:
    """The command that makes a result of one of the images; of all where a list of cases names their channels."""
    from dicom_io.coding import uncoded
    from monai_unet_app.data.datalist import is_datalist
    from monai_unet_app.data.read import PICTURE_ENDINGS, VOLUME_ENDINGS, has_ending
    from monai_unet_app.dicom_results import can_be_converted

    image = Path(files if isinstance(files, str) else files[0])
    is_file = has_ending(image, VOLUME_ENDINGS)
    if has_ending(image, PICTURE_ENDINGS):
        formats = "png"
    elif bundle.rules.planar:  # a DICOM picture has no patient space, which an SR needs
        formats = "seg"
    else:
        formats = "nifti" if is_file and not can_be_converted(bundle) else "seg,sr"
    source = options.source if is_datalist(options.source) and not isinstance(files, str) else image
    more = ["--input", str(source), "--output", f"{bundle.root.resolve().name}_results", "--format", formats]
    if "seg" in formats:
        more += ["--dicomize"] * is_file + ["--uncoded"] * bool(uncoded(bundle.segments))
    return common.next_command("predict", bundle.root, options, more)


def _store_evaluation(evaluation: Path, bundle_name: str, options: flags.Evaluate) -> Answer:
    """Writes the figures of an evaluation that is done into the bundle that it measured."""
    from monai_unet_app.bundle_folder import bundle_files

    names = {entry.name for entry in fields(options)} - {"json", "bundle", "evaluation", "into_bundle"}
    idle = sorted(f"--{name}" for name in given(options, sorted(names)))
    if idle or not options.into_bundle:
        raise UsageError(
            f"--evaluation {evaluation} is measured already; it needs --into-bundle, and nothing more than --bundle; "
            + (f"leave {', '.join(idle)} out" if idle else "give --into-bundle")
        )
    files = bundle_files(bundle_name)
    _ = files.sha256  # without any weights there are no figures of it
    _check_takes_figures(bundle_name, options)
    from monai_unet_app.report.card import check_held_out, read_measured

    stored = read_measured(evaluation, files)
    bundle = common.loaded_bundle(files.root)
    check_held_out(stored.table.subjects, stored.document["data"].get("folds", {}), bundle, evaluation)
    return _write_into(bundle, stored), EXIT_DONE


def _check_takes_figures(bundle_name: str, options: flags.Evaluate) -> None:
    common.check_bundle_folder(bundle_name, "its metadata and card are rewritten")
    if options.precision != "float32" or options.overlap is not None or options.fast:
        raise UsageError(
            "--into-bundle writes what a bundle does as it is, in float32; leave it out, or --precision, --overlap and --fast"
        )
    for folder in ("configs", "docs"):
        common.check_writable(Path(bundle_name) / folder)


def _write_into(bundle: "Bundle", evaluation: "StoredEvaluation") -> dict[str, Any]:
    """Writes the figures of an evaluation into the measured bundle, its metadata and card, and shows what they replace."""
    from monai_unet_app.report.card import summary, write_figures

    before, figures = bundle.eval_metrics, summary(evaluation, bundle)
    written = write_figures(figures, bundle)
    removed = [name for name in before if name not in figures]
    show.figures_table(before, figures)
    if removed:
        show.line(f"removed, because the evaluation does not contain it: {', '.join(removed)}")
    show.wrote(written)
    return {"eval_metrics": figures, "gone": removed, "files": [str(file) for file in written]}


def predict(options: flags.Predict) -> Answer:
    """Segment an image, a DICOM series, or a folder of cases.

    Example: monai-unet predict --bundle hippocampus_mri_unet3d --input SERIES --output OUT --format
    nifti,seg,sr,rtstruct
    """
    from monai_unet_app.cohort import check_flags, predict_cases
    from monai_unet_app.config import OutputConfig, PredictConfig, ResultSettings
    from monai_unet_app.data.case_files import find_images, named_series
    from monai_unet_app.external import external_bundle

    if program := external_bundle(options.bundle):
        return predict_by_program(options, program)
    formats, left_out = _formats(options, planar=False)
    outputs = OutputConfig(**common.set_fields(options, OutputConfig) | formats)
    settings = ResultSettings(tta=options.tta, elsewhere=options.elsewhere, box=options.box)
    run = PredictConfig(settings, common.read_options(options), options.memory_limit, show.say)
    if options.output.resolve() == options.input.resolve():
        raise UsageError(
            f"--output {options.output} is the input; its results would be cases the next time; name another folder"
        )
    own = common.trained_bundle(options.bundle)
    overrides = common.cheaper(options, own)
    cases = find_images(options.input, named_series(run.reading), own.channel_names)
    # What can be refused without the network is refused before it is loaded, which takes seconds.
    check_flags(cases, run, outputs)
    if options.dicomize:
        common.say_plain_ids(cases)
    common.check_writable(options.output)
    load_monai(to_segment=own.only_segments)
    bundle = common.loaded_bundle(own.root, options.device, overrides=overrides)
    if options.destination is not None and bundle.rules.planar:  # known only now: rules come with the loaded bundle
        formats, left_out = _formats(options, planar=True)
        outputs = replace(outputs, **formats)
    if left_out:
        show.say(
            f"left out, although {options.destination} takes them: {', '.join(left_out)}; a picture has no patient space"
        )
    run = replace(run, settings=common.with_engine(run.settings, bundle, options))
    if options.tta and not bundle.mirror_axes:
        show.say(f"{bundle.name} has no mirror axes, so --tta changes nothing; its statements are valid as without it")
    with show.Steps("segmenting", len(cases)) as step, show.Cost() as cost:
        done, problems = predict_cases(cases, bundle, run, outputs, options.output, step)
    show.structures_table(done)
    show.reasons_list(done)
    show.notes_list(done)
    show.problems_list(problems)
    rejected = sum((case["assessment"] or {}).get("verdict") == "reject" for case in done)
    # Of a rejected result only the record is written, unless the user asks for the files.
    withheld = 0 if options.deliver_rejected else rejected
    if done:
        records = f"; for {withheld} rejected case(s) only the record" if withheld else ""
        show.line(f"wrote {len(done) - withheld} case(s) to {options.output}{records}")
        show.line(cost.told(done))
    answer = {"cases": done, "problems": problems, "left_out": left_out, "cost": cost.document}
    return answer, EXIT_REFUSED if problems else EXIT_DONE


def _formats(options: flags.Predict, *, planar: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Formats and encodings of the destination that --for names, or those of the command line.

    Returns:
        Fields of `OutputConfig`, and the formats of the destination that a picture (`planar`) cannot have.
    """
    from monai_unet_app.results import formats_for

    if options.destination is None:
        names = ("nifti" if options.format is None else options.format).split(",")
        formats = tuple(name.strip() for name in names if name.strip())
        return {"formats": formats, "seg_encoding": options.seg_encoding or "binary"}, ()
    if options.format is not None or options.seg_encoding:
        raise UsageError("--for sets the formats, as --format and --seg-encoding do; give one or the other")
    profile = destination_of_site(options.destination, options.site).profile
    formats, left_out = formats_for(profile.objects, planar=planar)
    encoding = (profile.seg_encoding if {"seg", "sr"} & set(formats) else None) or "binary"
    return {"formats": formats, "seg_encoding": encoding, "empty_frames": profile.empty_frames}, left_out


def demo(options: flags.Demo) -> Answer:
    """Train, calibrate, evaluate and apply a U-Net on the example cases.

    Example: monai-unet demo --output demo
    """
    load_monai()
    from monai_unet_app.demo import run_demo

    common.check_writable(options.output)
    answer = run_demo(options.output, options.epochs, show.say, show.Steps)
    show.metrics_table(answer["metrics"])
    show.print_table(("what to open", show.folded("where")), answer["open"].items())
    show.print_table(("check", "result"), answer["checks"].items())
    return answer, EXIT_DONE if answer["passed"] else EXIT_FAILED
