"""`monai-unet train`: a copy of a bundle, trained on a folder of cases by the bundle's own `train.yaml`."""

import shutil
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_unet_app.bundle import Bundle, load_bundle, run_overlay
from monai_unet_app.bundle_folder import NEEDED_FILES
from monai_unet_app.config import resolve_device
from monai_unet_app.data.cases import by_partition
from monai_unet_app.data.inspect import check_cases
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.training.checkpoints import forget_figures
from monai_unet_app.training.identity import forget_template
from monai_unet_app.training.record import recipe_sha256

COPIED = ("configs", "docs", "LICENSE")
ENOUGH_TO_CHECK = 2
"""Number of subjects that a check needs: a calibration is fitted on some and checked on another."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        data: Folder with images/ and labels/, with both mixed, or with DICOM series and their SEG or RTSTRUCT.
        output: Folder of the new bundle; an unfinished run in it goes on.
        labels: Folder of labels, if `data` holds images only.
        splits: A `splits.json`, or None as in `monai_unet_app.data.cases.plan_of`.
        label_suffix: End of a label's name that its image's name lacks.
        fold: For cross-validation: this fold of the plan tests, and all other test cases train; None takes the partitions.
        device: "auto" or a torch device.
        overrides: Values of `train.yaml` by id, for instance {"epochs": 5}.
        name: Name of the new bundle in its card and metadata; None takes the name of its folder.
    """

    data: Path
    output: Path
    labels: Path | None = None
    splits: Path | None = None
    label_suffix: str = ""
    fold: int | None = None
    device: str = "auto"
    overrides: dict[str, Any] = field(default_factory=dict)
    name: str | None = None


Step = Callable[[str], None]
Watch = Callable[[str, int], AbstractContextManager[Step]]
"""Takes a text and a number of steps, and gives a context manager with a function that is called after each step."""


def _unwatched(text: str, total: int) -> AbstractContextManager[Step]:
    return nullcontext(lambda case_id: None)


def train_bundle(
    template: Bundle, run: TrainConfig, say: Callable[[str], None] = lambda line: None, watch: Watch = _unwatched
) -> Bundle:
    """The trained bundle at `run.output`.

    Every case is read and checked before the first step. The run writes `run/run.json`, `run/last.pt` and its curves
    beside the bundle's own files; `models/model.pt` appears when it has completed.

    Raises:
        InputRefusedError: Cases cannot be used; the message lists all of them.
        UsageError: The output folder holds something else.
        BundleError: The configs of the template contradict each other, or its network does not fit them.
    """
    # Checks in the order of their cost, and nothing is written before all have passed: configs and network, the plan
    # of the cases, then every image and label
    template.check_network()
    cases = by_partition(run.data, run.splits, run.label_suffix, run.labels, run.fold)
    say(", ".join(f"{len(rows)} to {_VERBS[part]}" for part, rows in cases.items() if rows))
    if few := few_to_calibrate({row["subject"] for row in cases["calibration"]}):
        say(few)
    for part in ("train", "selection"):
        if not cases[part]:
            raise InputRefusedError(
                f"{run.data.name} has no case to {_VERBS[part]}"
                f"{'' if run.fold is None else f' beside fold {run.fold}'}; at least one is needed; give another --splits or "
                "--fold, or leave them out"
            )
    everything = [row for rows in cases.values() for row in rows]
    say(f"reading and checking {len(everything)} case(s)")
    with watch("checking", len(everything)) as step:
        check_cases(everything, template, step)
    _copy(template, run.output, run.name)
    overrides = {
        "dataset_dir": str(run.data),
        "splits": str(run.splits) if run.splits else None,
        "label_suffix": run.label_suffix,
        "labels_dir": str(run.labels) if run.labels else None,
        "fold": run.fold,
        "device": resolve_device(run.device),
        **run.overrides,
    }
    say(f"preprocessing {len(cases['train']) + len(cases['selection'])} case(s), which stay in memory while it trains")
    run_overlay(run.output, "train", overrides)
    return load_bundle(run.output, template.device)


def few_to_calibrate(subjects: Collection[str]) -> str | None:
    """A warning about too few subjects to calibrate; None if they are enough to check a calibration."""
    if len(subjects) >= ENOUGH_TO_CHECK:
        return None
    return (
        f"{len(subjects)} subject(s) to calibrate: monai-unet calibrate needs {ENOUGH_TO_CHECK} or more to check that what it "
        "fits helps others, and 9 or more for a quality gate; give another --splits, calibrate on other data, or "
        f"{'calibrate --unchecked' if subjects else 'leave the bundle without calibration'}"
    )


_VERBS = {"train": "train on", "selection": "select the best model", "calibration": "calibrate", "test": "test"}


def _copy(template: Bundle, output: Path, name: str | None) -> None:
    """Copies configs and docs of the template without its facts; an unfinished run of the same bundle stays as it is."""
    if output.exists() and any(output.iterdir()):
        if not all((output / name).is_file() for name in NEEDED_FILES):
            raise UsageError(
                f"{output} holds something that is no bundle; a new or empty folder is needed; choose another"
            )
        recipes = [recipe_sha256(_configs(root), comments=False) for root in (output, template.root)]
        if recipes[0] != recipes[1]:  # comments may differ: a copy describes itself
            raise UsageError(
                f"{output} holds a run with another recipe than {template.name}; choose another output folder"
            )
        if (output / "models/model.pt").exists() and not (output / "run/last.pt").exists():
            raise UsageError(
                f"{output} holds trained weights without a run to resume; they would be lost; choose another folder"
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    for part in COPIED:
        source = template.root / part
        if source.is_dir():
            shutil.copytree(source, output / part, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy2(source, output / part)
    forget_figures(output)
    forget_template(output, template.root, name)


def _configs(root: Path) -> list[Path]:
    return [root / "configs" / f"{name}.yaml" for name in ("inference", "train")]
