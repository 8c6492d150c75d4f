"""`run.json`: everything that is needed to explain a trained model, or to train it again."""

import hashlib
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from monai_unet_app.data.case_files import Row
from monai_unet_app.data.digest import dataset_sha256, seen_entry
from monai_unet_app.data.schemas import json_of, write_json
from monai_unet_app.data.splits import Partition
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.training import ranks
from monai_unet_app.training.checkpoints import Checkpoints
from monai_unet_app.training.update import resolve_precision

SCHEMA_VERSION = "1.0"
PACKAGES = ("monai-unet-app", "torch", "monai", "pytorch-ignite", "numpy", "pydicom", "highdicom", "nibabel")
Cases = Mapping[Partition, Sequence[Row]]

MUCH_WAITING = 0.05
"""Of a training's seconds: from here on more processes that augment are worth a word."""

_PARTS = {
    "waiting_seconds": (Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED),
    "step_seconds": (Events.ITERATION_STARTED, Events.ITERATION_COMPLETED),
}
"""Parts of a session's seconds, with the events between which each passes; the rest validates and writes."""


def versions() -> dict[str, str]:
    """The versions of Python and of the main packages."""
    numbers = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = "not installed"
    return numbers


def git_commit() -> str | None:
    """The commit of the running code, with "-dirty" after it if a tracked file was changed since.

    None if this file is not tracked by a repository, for instance in an installation inside another project's repository.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # In an installation inside another repository, git would answer with the commit of that repository
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def command_line() -> list[str]:
    """The command without the folders of this machine: only the last part of an absolute path is kept."""
    return [_without_folders(word) for word in sys.argv]


def _without_folders(word: str) -> str:
    flag, sign, value = word.partition("=") if word.startswith("-") else ("", "", word)
    if Path(value).is_absolute():
        return flag + sign + Path(value).name
    return flag + sign + re.sub(r"(?<![\w.])/([^/\s'\"]+/)*", "", value)  # paths in a list


def recipe_sha256(configs: Sequence[str | Path], *, comments: bool = True) -> str:
    """Hex digest over the config files.

    Args:
        configs: The files in their order.
        comments: Whether lines that are comments count.
    """
    recipe = "".join(Path(file).read_text(encoding="utf-8") for file in configs)
    if not comments:
        recipe = re.sub(r"^ *#.*\n", "", recipe, flags=re.MULTILINE)
    return hashlib.sha256(recipe.encode()).hexdigest()


def waiting_share(record: Mapping[str, Any]) -> float:
    """The part of a training's seconds, 0 to 1, that it waited for data; 0 where a record of an older version does not say."""
    sessions = record["sessions"]
    waited, seconds = (sum(float(one.get(name, 0.0)) for one in sessions) for name in ("waiting_seconds", "seconds"))
    return waited / max(seconds, 1e-9)


def identity_of_data(cases: Cases) -> dict[str, Any]:
    """The entries of `run.json` about data: a digest, and the partition, the subject and the fingerprint of each case."""
    return {
        "data_sha256": dataset_sha256(row for rows in cases.values() for row in rows),
        "cases": {row["id"]: {"partition": part, **seen_entry(row)} for part, rows in cases.items() for row in rows},
    }


class RunRecord:
    """Ignite handler: writes `run.json` after every epoch.

    Only the same run can be resumed: if data, split, recipe, seed or length differ from the record, the run is refused.

    Args:
        path: Where `run.json` goes.
        cases: Data lists by partition.
        settings: Seed, epochs and every other flag that decides the result.
        configs: The files that hold the recipe.
        precision: As given by the user; the record holds the precision that was used on this device.
        checkpoints: Holds the history.
    """

    def __init__(
        self,
        path: str | Path,
        cases: Cases,
        settings: Mapping[str, Any],
        configs: Sequence[str | Path],
        precision: str,
        checkpoints: Checkpoints,
    ) -> None:
        self.path = Path(path)
        self.checkpoints = checkpoints
        self.precision = precision
        self.identity = {**identity_of_data(cases), "settings": dict(settings), "recipe_sha256": recipe_sha256(configs)}
        self.sessions: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        for name, (begins, ends) in _PARTS.items():
            engine.add_event_handler(begins, self._begin)
            engine.add_event_handler(ends, self._end, name)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def start(self, engine: Engine) -> None:
        """Refuses to resume another run; adds a session with its time, command, versions and device to the record.

        Raises:
            UsageError: The folder holds another run.
            InputRefusedError: The processes of this training have other data, settings or recipes.
        """
        if any(other != self.identity for other in ranks.gathered([self.identity])):
            raise InputRefusedError(
                "the processes of this training have other data, settings or configs; the same are needed on all machines; "
                "compare their dataset_dir and the bundle's configs"
            )
        if self.path.exists():
            earlier = json_of(self.path)
            # Data, split, settings and recipe decide the result; machine and versions may differ
            differing = [key for key, value in self.identity.items() if earlier.get(key) != value]
            if differing:
                raise UsageError(
                    f"{self.path.parent.name}/ holds a run with other {' and '.join(differing)}; only the same run can be "
                    "resumed; give another output folder"
                )
            self.sessions = earlier["sessions"]
        state: Any = engine.state
        device = state.device
        self.sessions.append(
            {
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "from_epoch": engine.state.epoch,
                "command": command_line(),
                "git_commit": git_commit(),
                "versions": versions(),
                "device": str(device),
                "precision": resolve_precision(self.precision, device, getattr(engine, "network", None)),
                "threads": torch.get_num_threads(),
                "processes": ranks.count(),
                "seconds": 0.0,
                **dict.fromkeys(_PARTS, 0.0),
            }
        )
        # The clock of the computer may be set while a training of hours runs
        self.begin, self.parts = time.monotonic(), dict.fromkeys(_PARTS, 0.0)

    def _begin(self) -> None:
        self.part_began = time.monotonic()

    def _end(self, name: str) -> None:
        self.parts[name] += time.monotonic() - self.part_began

    def save(self, engine: Engine) -> None:
        """Writes the record after an epoch."""
        if not ranks.is_first():
            return
        seconds = {"seconds": time.monotonic() - self.begin, **self.parts}
        self.sessions[-1].update({name: round(value, 3) for name, value in seconds.items()})
        document = {
            "schema_version": SCHEMA_VERSION,
            **self.identity,
            "epochs_done": engine.state.epoch,
            "best": {
                "epoch": self.checkpoints.best_epoch,  # 0 and null before the first validation: JSON has no infinity
                "metric": self.checkpoints.best_metric if isfinite(self.checkpoints.best_metric) else None,
            },
            "history": self.checkpoints.history,
            "sessions": self.sessions,
        }
        write_json(document, self.path, "run")
