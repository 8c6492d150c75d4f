"""`monai-unet calibrate`: fits a bundle's calibration and its statements, and shows both."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_unet_app.cli import common, flags, show
from monai_unet_app.cli.common import EXIT_DONE, Answer
from monai_unet_app.cli.results_of_others import calibrate_results, given, with_network
from monai_unet_app.errors import UsageError

if TYPE_CHECKING:
    from monai_unet_app.bundle import Bundle
    from monai_unet_app.calibration import Fitted
    from monai_unet_app.confidence.statements import Confidence
    from monai_unet_app.config import InferenceSetting
    from monai_unet_app.data.case_files import CaseFiles
    from monai_unet_app.evaluate.case_selection import LabelledCases


def calibrate(options: flags.Calibrate) -> Answer:
    """Fit a bundle's calibration on cases that did not train it; write it into the bundle.

    Example: monai-unet calibrate --bundle my_bundle --data DATA
    """
    from monai_unet_app.bundle_folder import unchanged_on_failure
    from monai_unet_app.calibration.fitted import begin_fitted

    if options.results is not None:
        return calibrate_results(options, options.results)
    bundle = with_network(options, "unseen", "output")
    common.check_folds_alone(options)
    own = _own_settings(options)
    root = common.trained_bundle(bundle, by_folds=options.folds).root
    common.check_bundle_folder(bundle, "its models/fitted.json is written")
    for folder in ("configs", "models"):
        common.check_writable(Path(bundle) / folder)
    data = common.labelled_cases(options)
    with unchanged_on_failure(root):
        begin_fitted(root)
        done = _calibrate_engine(root, data, options, own) if own else _calibrate(root, data, options)
    if (root / "models/parity.json").is_file():  # what it found of earlier numbers is no longer true
        common.put_certificate(common.loaded_bundle(root, options.device, by_folds=options.folds))
    return done


def _own_settings(options: flags.Calibrate) -> "InferenceSetting | None":
    """What --engine and --precision name; None for float32, in which every engine answers as torch does."""
    from monai_unet_app.config import ResultSettings

    settings = ResultSettings(engine=options.engine, precision=options.precision)
    if settings.own_key is None and options.engine != "torch":
        raise UsageError(
            f"{options.engine} in {options.precision} is held against torch whenever it is loaded, so what was fitted holds "
            "for it; leave --engine out, or give --precision bfloat16"
        )
    beside = given(options, ("folds", "tta"))
    if settings.own_key and beside:
        raise UsageError(
            f"--precision {options.precision} fits the numbers of the form that the bundle has, for its own network; leave "
            f"--{' and --'.join(beside)} out"
        )
    return settings.own_key


def _calibrate_engine(
    root: Path, data: "Sequence[CaseFiles]", options: flags.Calibrate, own: "InferenceSetting"
) -> Answer:
    """Fits calibration and statements for results of an engine in fewer bits, beside what the bundle has."""
    from monai_unet_app.bundle_folder import bundle_files
    from monai_unet_app.calibration.calibrate_bundle import calibrate_bundle, check_calibrated_on
    from monai_unet_app.calibration.statement_fit import StatementConfig, known_rows, state_confidence, summary
    from monai_unet_app.config import ResultSettings
    from monai_unet_app.evaluate import choose_cases

    bundle = common.loaded_bundle(root, options.device)
    chosen = choose_cases(bundle, data, options.partition or "calibration", options.splits)
    check_calibrated_on(bundle, chosen.rows)
    common.with_engine(ResultSettings.of_key(own), bundle, options)
    show.say(chosen.note)
    with show.Steps(f"calibrating {own}", len(chosen.rows)) as step:
        fitted = calibrate_bundle(bundle, chosen.rows, step, own, unchecked=options.unchecked)
    known, config = known_rows(bundle, data), StatementConfig((own,), options.coverage, options.risk)
    with show.Steps("stating", len(chosen.rows) + len(known)) as step:
        stated = summary(state_confidence(bundle, chosen.rows, known, config, step=step), bundle)
    _calibration_lines(fitted, stated, bundle)
    show.line(
        common.next_command("evaluate", root, options, ["--engine", options.engine, "--precision", options.precision])
    )
    answer = {"parameters": fitted.parameters, "nll_before": fitted.nll_before, "nll_after": fitted.nll_after}
    return answer | {"cases": fitted.cases, "statements": stated, "sha256": bundle_files(root).sha256}, EXIT_DONE


def _calibrate(root: Path, data: "Sequence[CaseFiles]", options: flags.Calibrate) -> Answer:
    from monai_unet_app.bundle_folder import bundle_files
    from monai_unet_app.calibration.statement_fit import summary
    from monai_unet_app.evaluate import choose_cases, choose_out_of_fold

    bundle = common.loaded_bundle(root, options.device, by_folds=options.folds)
    if options.folds or (bundle.folds and not options.partition and not _set_aside(bundle)):
        chosen = choose_out_of_fold(bundle, data)
    else:
        chosen = choose_cases(bundle, data, options.partition or "calibration", options.splits)
    show.say(chosen.note)
    if chosen.folds and bundle.is_ensemble:
        show.say(
            "the calibration is fitted to the networks of the folds, one by one; the bundle answers with their mean, whose "
            "probabilities differ; calibrate, or at least evaluate, on cases that no fold has seen"
        )
    fitted = _fit(bundle, chosen, options)
    # Statements are about calibrated probabilities, so they are fitted after the calibration.
    statements = summary(_state(bundle, data, chosen, options), bundle)
    _calibration_lines(fitted, statements, bundle)
    show.line(_next(common.loaded_bundle(bundle.root), data, chosen, options))
    return {
        "parameters": fitted.parameters,
        "nll_before": fitted.nll_before,
        "nll_after": fitted.nll_after,
        "cases": fitted.cases,
        "check": fitted.check.document() if fitted.check else None,
        "sample": fitted.drawn.document() if fitted.drawn else None,
        "statements": statements,
        "sha256": bundle_files(bundle.root).sha256,
    }, EXIT_DONE


def _next(bundle: "Bundle", data: "Sequence[CaseFiles]", chosen: "LabelledCases", options: flags.Calibrate) -> str:
    """The command that measures the calibrated bundle, or what it lacks for that."""
    made_with = {case.id for case in bundle.seen if case.partition != "test"}
    if chosen.folds or (bundle.folds and made_with.issuperset(case.id for case in data)):
        return common.next_command("evaluate", bundle.root, options, by_folds=True)
    if made_with.issuperset(case.id for case in data):
        return "next: evaluate it on labelled cases that it has not seen; each of these has trained, selected or calibrated it"
    return common.next_command("evaluate", bundle.root, options)


def _set_aside(bundle: "Bundle") -> bool:
    """Whether its training left cases for its calibration."""
    return any(entry["partition"] == "calibration" for entry in bundle.run_record.get("cases", {}).values())


def _fit(bundle: "Bundle", chosen: "LabelledCases", options: flags.Calibrate) -> "Fitted":
    """The calibration, fitted on these cases; with --tta averages are calibrated too."""
    from monai_unet_app.calibration.calibrate_bundle import calibrate_bundle

    with show.Steps("calibrating", len(chosen.rows)) as step:
        fitted = calibrate_bundle(bundle, chosen.rows, step, folds=chosen.folds, unchecked=options.unchecked)
    if options.tta and not bundle.mirror_axes:
        show.say(
            f"{bundle.name} has no mirror axes: --tta changes no result, and the statements without it are also valid"
        )
    elif options.tta:
        with show.Steps("calibrating averages", len(chosen.rows)) as step:
            calibrate_bundle(bundle, chosen.rows, step, "tta", folds=chosen.folds, unchecked=options.unchecked)
    return fitted


def _state(
    bundle: "Bundle", data: "Sequence[CaseFiles]", chosen: "LabelledCases", options: flags.Calibrate
) -> "dict[InferenceSetting, Confidence]":
    """The statements of the bundle about its results, for each setting; fitted on these cases and written."""
    from monai_unet_app.calibration.statement_fit import StatementConfig, known_rows, state_confidence

    settings: list[InferenceSetting] = ["plain", "tta"] if options.tta and bundle.mirror_axes else ["plain"]
    known = known_rows(bundle, data)
    with show.Steps("stating", len(settings) * (len(chosen.rows) + len(known))) as step:
        config = StatementConfig(settings, options.coverage, options.risk)
        return state_confidence(bundle, chosen.rows, known, config, folds=chosen.folds, step=step)


def _calibration_lines(fitted: "Fitted", statements: dict[str, Any], bundle: "Bundle") -> None:
    values = ", ".join(f"{name} {value}" for name, value in fitted.parameters.items())
    show.line(f"calibration: {values}, fitted on {fitted.cases} case(s)")
    if fitted.drawn:
        show.line(fitted.drawn.sentence)
    if fitted.check:
        show.line(fitted.check.sentence)
    show.line(f"negative log likelihood a voxel: {fitted.nll_before:.5f} before, {fitted.nll_after:.5f} after")
    show.statements_table(statements)
    show.wrote(bundle.root / name for name in ("models/fitted.json", "configs/confidence.json"))
