"""`monai-unet train`: a copy of a bundle, trained on a folder of cases by the bundle's own `train.yaml`."""

import logging
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.bundle_folder import BUILT_TO_SEGMENT, FITTED, NEEDED_FILES, BundleFiles
from monai_unet_app.calibration.fitted import begin_fitted
from monai_unet_app.config import resolve_device
from monai_unet_app.consent import carry_consent
from monai_unet_app.data.cases import ALL, Fold, PlannedCases, places_of
from monai_unet_app.data.fingerprint import Fingerprint
from monai_unet_app.data.inspect import check_cases
from monai_unet_app.data.schemas import json_of, write_json
from monai_unet_app.data.splits import ENOUGH_TO_CHECK, VERBS, folds_of, trains_by_folds
from monai_unet_app.errors import BundleError, InputRefusedError, UsageError, innermost, of_surroundings, refusal_in
from monai_unet_app.processes import Send, run_in_processes
from monai_unet_app.progress_bars import Display, no_display, say_nothing
from monai_unet_app.training.checkpoints import forget_figures
from monai_unet_app.training.ensemble import check_takes_ensemble, deliver_ensemble, forget_ensemble
from monai_unet_app.training.identity import forget_template
from monai_unet_app.training.progress import DISPLAY_ELSEWHERE, NamedBars
from monai_unet_app.training.record import recipe_sha256
from monai_unet_app.training.transfer import Donor, check_donor, check_unseen, overrides_of, record_donor
from monai_unet_app.weights import load_checkpoint
from monai_unet_app.written_config import check_config, references, yaml_of

COPIED = ("configs", "docs", "LICENSE")

Delivery = Literal["all-data", "ensemble"]
"""The bundle's own network beside its folds: trained on all but the test cases, or the mean of the networks of the folds."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        data: Folder with images/ and labels/, with both mixed, or with DICOM series and their SEG or RTSTRUCT.
        output: Folder of the new bundle; an unfinished run in it goes on.
        labels: Folder of labels, if `data` holds images only.
        splits: A `splits.json`; None takes the template's own, as `monai_unet_app.data.cases.plan_of` does.
        label_suffix: End of a label's name that its image's name lacks.
        fold: As in `by_partition`.
        device: "auto" or a torch device.
        overrides: Values of `train.yaml` by id, for instance {"epochs": 5}.
        name: Name of the new bundle in its card and metadata; None takes the name of its folder.
        parallel: Number of folds that `train_folds` trains at the same time, at least 1. With more than one, each has a process
            of its own and its share of the threads of this one (`torch.get_num_threads`), at least one thread.
        donor: Weights to begin with; None begins at random.
        say: Takes a line of text for the user.
        display: Shows how much of a check or of an evaluation is done.
    """

    data: Path
    output: Path
    labels: Path | None = None
    splits: Path | None = None
    label_suffix: str = ""
    fold: Fold = None
    device: str = "auto"
    overrides: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    parallel: int = 1
    donor: Donor | None = None
    say: Callable[[str], None] = field(default=say_nothing, compare=False)
    display: Display = field(default=no_display, compare=False)


def train_bundle(template: Bundle, run: TrainConfig) -> Bundle:
    """The trained bundle at `run.output`; for a fold the same with the weights of the fold, which lie in `folds/`.

    Every case is read and checked before the first step. The run writes `run/run.json`, `run/last.pt` and its curves
    beside the bundle's own files; `models/model.pt` appears when it has completed.

    Raises:
        InputRefusedError: Cases cannot be used; the message lists all of them.
        UsageError: The output folder holds something else.
        BundleError: The configs of the template contradict each other, or its network does not fit them.
    """
    check_output(template, run.output)
    _check_settings(template, run)
    template.check_network()
    planned = planned_cases(template, run)
    _check(template, run, planned)
    _copy(template, run)
    forget_ensemble(run.output)
    trained = _trained(_with_label_values(run, planned), template.device)
    _forget_cache(run)
    return trained


def train_folds(
    template: Bundle, run: TrainConfig, folds: Sequence[int] = (), *, deliver: Delivery | None = "all-data"
) -> Bundle:
    """The bundle at `run.output` with a network for each fold in `folds/`, for figures of cases that a network has not seen.

    What is trained already is not trained again. The test cases of the plan are seen by no fold. When one of several that are
    trained at the same time fails, the others go on to their end, no other is begun, and its error is raised.

    Args:
        template: As in `train_bundle`.
        run: As in `train_bundle`, without a fold.
        folds: Some of the plan's folds; by default all.
        deliver: The bundle's own network; None leaves it without one.

    Raises:
        As `train_bundle`; InputRefusedError: a fold has no case, or no case is left to train on.
    """
    wanted, _ = check_folds(template, run, folds, deliver)
    train_checked_folds(template, run, [*wanted, ALL] if deliver == "all-data" else wanted)
    if deliver == "ensemble":
        deliver_network(template, run, wanted, deliver)
    return load_bundle(run.output, template.device)


def check_folds(
    template: Bundle, run: TrainConfig, folds: Sequence[int], deliver: Delivery | None
) -> tuple[Sequence[int], Fingerprint]:
    """The folds to train and what was measured of the cases, when everything has been checked that `train_folds` needs.

    Nothing is written. Errors as there.
    """
    if run.parallel < 1:
        raise UsageError(f"parallel is {run.parallel}; at least 1 is needed")
    if "@weights_dir" not in (template.root / "configs/train.yaml").read_text(encoding="utf-8"):
        raise BundleError(
            f"{template.name}: its train.yaml does not deliver to `weights_dir`, so each fold would overwrite the others; "
            "`deliver_to`, `select` and the cases of `validate` as in a planned bundle are needed; take them over from one"
        )
    template.check_network()
    planned = planned_cases(template, run)
    wanted = folds or folds_of(planned.plan.values())
    _check_plan(run, planned, wanted)
    if deliver == "ensemble":
        check_takes_ensemble(template)
    check_output(template, run.output)
    for fold in wanted:
        _check_settings(template, replace(run, fold=fold))
    measured = _check(template, replace(run, fold=ALL), planned)
    for fold in wanted:
        check_classes(template, replace(run, fold=fold), planned, measured)
        if run.donor:
            check_unseen(run.donor, planned.rows(fold))
    return wanted, measured


def train_checked_folds(template: Bundle, run: TrainConfig, folds: Sequence[Fold]) -> None:
    """Trains these folds, and the bundle's own network if ALL is among them, after `check_folds`."""
    _copy(template, run)
    run = _with_label_values(run, planned_cases(template, run))
    if ALL in folds:
        forget_ensemble(run.output)  # before any fold reads the configs
    runs = {"all data" if fold == ALL else f"fold {fold}": replace(run, fold=fold) for fold in folds}
    at_once = min(run.parallel, len(runs))
    if at_once > 1:
        threads = max(1, torch.get_num_threads() // at_once)
        run.say(f"training {len(runs)} networks, {at_once} at the same time with {threads} thread(s) each")
        with NamedBars() as bars:
            # `say` and `display` may be functions that cannot be pickled; the process has its own
            alone = partial(replace, say=say_nothing, display=no_display)
            work = {name: partial(_train_apart, alone(one), template.device, threads) for name, one in runs.items()}
            run_in_processes(work, at_once, bars.hear)
    else:
        for name, one in runs.items():
            run.say(name)
            _trained(one, template.device)
    _forget_cache(run)


def deliver_network(template: Bundle, run: TrainConfig, folds: Sequence[int], deliver: Delivery) -> None:
    """Gives the bundle at `run.output`, whose folds are trained, its own network."""
    if deliver == "ensemble":
        run.say(f"the mean of {len(folds)} networks")
        deliver_ensemble(load_bundle(run.output), folds, planned_cases(template, run).rows(ALL))
    else:
        train_checked_folds(template, run, [ALL])


def planned_cases(template: Bundle, run: TrainConfig) -> PlannedCases:
    """The cases of a training with the place of each."""
    planned = PlannedCases.find(run.data, run.labels, run.label_suffix, run.splits, template.own_splits)
    return replace(planned, cases=template.named(planned.cases))


def _with_label_values(run: TrainConfig, planned: PlannedCases) -> TrainConfig:
    """The run with the label values of cases that have others than the bundle."""
    own = {case.id: list(case.label_values) for case in planned.cases if case.label_values}
    return replace(run, overrides={"reader::label_values": own, **run.overrides}) if own else run


def _check(template: Bundle, run: TrainConfig, planned: PlannedCases) -> Fingerprint:
    """Checks the plan of the cases, then every image and label."""
    cases = planned.rows(run.fold)
    _check_plan(run, planned, [run.fold])
    run.say(", ".join(f"{len(rows)} to {VERBS[part]}" for part, rows in cases.items() if rows))
    if run.fold is None and (few := few_to_calibrate({row["subject"] for row in cases["calibration"]})):
        run.say(few)
    if run.donor:
        run.say(check_donor(run.donor, template.part("network_def"), cases))
    everything = [row for rows in cases.values() for row in rows]
    run.say(f"reading and checking {len(everything)} case(s)")
    with run.display("checking", len(everything)) as step:
        places = places_of(planned.plan.values(), by_folds=run.fold is not None)
        measured = check_cases(everything, template, step, places)
    _check_leaves_out(template, measured)
    _check_constant(template, measured)
    for line in measured.to_look_at():
        run.say(line)
    check_classes(template, run, planned, measured)
    return measured


def _check_constant(template: Bundle, measured: Fingerprint) -> None:
    """Raises InputRefusedError if `input_rules` allow a channel without content, and no case has it so."""
    rules = template.rules
    for number, name in enumerate(rules.channel_names):
        of_cases = (case.intensity[number] for case in measured.cases)
        if name in rules.constant_channels and all(least < most for least, _, most in of_cases):
            raise InputRefusedError(
                f"`constant_channels` in input_rules allows channel {name} to be the same everywhere, which is so in no case; "
                "add such cases, from which the network learns it, or take the name out"
            )


def _check_leaves_out(template: Bundle, measured: Fingerprint) -> None:
    """Raises BundleError if cases have voxels without a class, and the bundle's training would learn from them."""
    config = template.root / "configs/train.yaml"
    if any(case.ignored for case in measured.cases) and "@ignore_label" not in config.read_text(encoding="utf-8"):
        raise BundleError(
            f"{template.name}: labels hold its ignore_label, and its train.yaml counts every voxel; put the loss into "
            '{_target_: monai_unet_app.training.losses.OfLabelled, ignored: "@ignore_label", loss: ...}, and give '
            'VolumeReader and ValidationStep ignored: "@ignore_label"; or plan the bundle anew'
        )


def check_classes(template: Bundle, run: TrainConfig, planned: PlannedCases, measured: Fingerprint) -> None:
    """Raises InputRefusedError if a structure is in no case that trains."""
    training = {row["id"] for row in planned.rows(run.fold)["train"]}
    found = {number for case in measured.cases if case.id in training for number in case.class_size}
    absent = [segment.label for segment in template.segments if segment.number not in found]
    if absent:
        where = f"fold {run.fold}" if isinstance(run.fold, int) else run.data.name
        raise InputRefusedError(
            f"{where}: no case to train on has {', '.join(absent)}; a class that no training case has cannot be learnt; "
            "add cases with it, or "
            "give a --splits in which some of its cases train"
        )


def _check_plan(run: TrainConfig, planned: PlannedCases, folds: Sequence[Fold]) -> None:
    """Raises InputRefusedError if the plan has no cases for the trainings of these folds."""
    known = folds_of(planned.plan.values())
    trains_by_folds(planned.plan.values(), run.data.name, folds != [None])
    if absent := [fold for fold in folds if isinstance(fold, int) and fold not in known]:
        raise InputRefusedError(
            f"{run.data.name} has no case to test in fold {absent[0]}; one of {', '.join(map(str, known))} is needed; correct "
            "--folds, or give --folds all"
        )


def _train_apart(run: TrainConfig, device: torch.device, threads: int, send: Send) -> None:
    """`_trained` in a process of its own."""
    torch.set_num_threads(threads)
    DISPLAY_ELSEWHERE.set(send)
    _trained(replace(run, say=send), device)


def _trained(run: TrainConfig, device: torch.device) -> Bundle:
    """Runs `train.yaml` of the bundle at `run.output`, until it is done."""
    bundle = load_bundle(run.output, device)
    if isinstance(run.fold, int):
        bundle = bundle.of_fold(run.fold)
    overrides = {
        "dataset_dir": str(run.data),
        "splits": str(run.splits) if run.splits else None,
        "label_suffix": run.label_suffix,
        "labels_dir": str(run.labels) if run.labels else None,
        "fold": run.fold,
        "run_dir": str(bundle.weights_dir.parent / "run"),
        "weights_dir": str(bundle.weights_dir),
        "device": resolve_device(run.device),
        **bundle.values_of_fold,
        **overrides_of(run.donor, yaml_of(run.output / "configs/train.yaml")),
        **run.overrides,
    }
    run.say("training")
    run_overlay(run.output, "train", overrides)
    return replace(bundle)  # reads the new weights


_LOUD = ("ignite", "monai.engines", "dev_collate")


def run_overlay(root: Path, overlay: str, overrides: Mapping[str, Any]) -> None:
    """Runs `configs/<overlay>.yaml` on top of `inference.yaml`, as `python -m monai.bundle run` does.

    Args:
        root: The bundle's folder.
        overlay: "train", "calibrate" or "evaluate".
        overrides: Values by id.

    Raises:
        AppError: The refusal of a part of the config, without the errors that MONAI wraps around it.
    """
    from monai.bundle import ConfigWorkflow

    configs = [str(root / "configs" / f"{name}.yaml") for name in ("inference", overlay)]
    for name in _LOUD:  # they print the traceback of an error that is raised here anyway
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = ConfigWorkflow(
            config_file=configs,
            meta_file=str(root / "configs/metadata.json"),
            logging_file=False,
            workflow_type="train" if overlay == "train" else "inference",
        )
        # Not as arguments: ConfigWorkflow has parameters whose names a config may use as ids, such as `tracking`
        workflow.parser.set({**BundleFiles(root).config_with(overlay), "_meta_": workflow.parser.get("_meta_")})
        workflow.parser.update({"bundle_root": str(root), **overrides})
        is_built = False
        try:
            workflow.initialize()
            for name in references(workflow.parser, "run"):
                if not name.startswith("run::"):  # an expression that runs what is built here
                    workflow.parser.get_parsed_content(name)
            is_built = True
            workflow.run()
            workflow.finalize()
        except Exception as error:
            if (refusal := refusal_in(error)) is None:
                if sentence := of_surroundings(error):
                    raise InputRefusedError(sentence + _kept(Path(overrides.get("run_dir", root / "run")))) from error
                if not is_built:
                    raise BundleError(f"{root.name}: {overlay}.yaml does not give `run`: {innermost(error)}") from error
                raise
            # MONAI wraps errors in "failed to instantiate"; the user needs the refusal itself
            raise refusal from refusal.__cause__


def _kept(folder: Path) -> str:
    """The end of a message that says where a training that has ended early goes on; empty before its first whole epoch."""
    last = folder / "last.pt"
    return f"; {last} keeps epoch {load_checkpoint(last)['epoch']}, from which it goes on" if last.is_file() else ""


def _forget_cache(run: TrainConfig) -> None:
    """Removes what was done once for each case, which all folds share: nothing trains any more."""
    shutil.rmtree(run.output / "cache", ignore_errors=True)


def few_to_calibrate(subjects: Collection[str]) -> str | None:
    """A warning about too few subjects to calibrate; None if they are enough to check a calibration."""
    if len(subjects) >= ENOUGH_TO_CHECK:
        return None
    return (
        f"{len(subjects)} subject(s) to calibrate: monai-unet calibrate needs {ENOUGH_TO_CHECK} or more to check that its fit "
        "helps others, and 9 or more for a quality gate; train with --folds all, by which cases of all folds calibrate, "
        "give another --splits, calibrate on other data, or "
        f"{'calibrate --unchecked' if subjects else 'leave the bundle without calibration'}"
    )


def check_output(template: Bundle, output: Path) -> None:
    """Raises UsageError if the folder holds anything but an unfinished or finished run of the same bundle."""
    if _is_new(output):
        return
    if not output.is_dir() or not all((output / name).is_file() for name in NEEDED_FILES):
        raise UsageError(
            f"{output} holds something that is not a bundle; a new or empty folder is needed; choose another"
        )
    recipes = [recipe_sha256(_configs(root), comments=False) for root in (output, template.root)]
    if recipes[0] != recipes[1]:  # comments may differ: a copy describes itself
        raise UsageError(f"{output} holds a run with another recipe than {template.name}; choose another output folder")
    if (
        (output / "models/model.pt").exists()
        and not (output / "run/last.pt").exists()
        and not BundleFiles(output).is_ensemble
    ):
        raise UsageError(
            f"{output} holds trained weights without a run to resume; they would be lost; choose another folder"
        )


def _check_settings(template: Bundle, run: TrainConfig) -> None:
    """Raises UsageError if the training that would be resumed had other settings; no case has been read by then."""
    root = run.output / f"folds/{run.fold}" if isinstance(run.fold, int) else run.output
    held = json_of(root / "run/run.json")["settings"] if (root / "run/run.json").is_file() else {}
    config = _checked_config(template, run.overrides)
    asked = config | overrides_of(run.donor, config) | run.overrides
    # A value that is an expression is compared when it is known, by RunRecord
    other = [
        f"{name} {value} (now {asked[name]})"
        for name, value in held.items()
        if type(asked.get(name)) is type(value) and asked[name] != value
    ]
    if other:
        raise UsageError(
            f"{root} holds a run with {', '.join(other)}; only the same run can be resumed; give the same values, or another "
            "output folder (make demo OUTPUT=FOLDER)"
        )


def _checked_config(template: Bundle, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`train.yaml`. Raises BundleError if it cannot be built on `inference.yaml`, as far as this can be seen unbuilt."""
    own = yaml_of(template.root / "configs/train.yaml")
    together = template.config_with("train")
    parser = replace(template, overrides=tuple({"dataset_dir": None, **together, **overrides}.items())).parser
    stated = {f"{template.name}: inference.yaml": template.inference_document, f"{template.name}: train.yaml": own}
    check_config(parser, stated, {*BUILT_TO_SEGMENT, *overrides})
    return own


def _is_new(output: Path) -> bool:
    return not output.exists() or (output.is_dir() and not any(output.iterdir()))


def _copy(template: Bundle, run: TrainConfig) -> None:
    """Copies configs and docs of the template without its facts; an unfinished run of the same bundle stays as it is."""
    output = run.output
    if not _is_new(output):
        record_donor(run.donor, output)
        return
    output.mkdir(parents=True, exist_ok=True)
    try:
        for part in COPIED:
            source = template.root / part
            if source.is_dir():
                shutil.copytree(source, output / part, dirs_exist_ok=True)
            elif source.is_file():
                shutil.copy2(source, output / part)
        if template.fitted is not None:
            write_json(template.fitted, output / FITTED)
        elif "fitted" in template.inference_document:
            begin_fitted(output)
        forget_figures(output)
        forget_template(output, template.root, run.name)
        carry_consent(template.root, output)
        record_donor(run.donor, output)
    except BaseException:  # a part of a bundle could not be trained further, nor be written again
        shutil.rmtree(output, ignore_errors=True)
        raise


def _configs(root: Path) -> list[Path]:
    return [root / "configs" / f"{name}.yaml" for name in ("inference", "train")]
