"""Curves and pictures of a run in progress, for TensorBoard or MLflow.

Nothing leaves the machine, unless the environment variable MLFLOW_TRACKING_URI names an MLflow server. Why MONAI's
handlers do not write these files: docs/decisions/0007.
"""

import hashlib
import io
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from PIL import Image

from monai_unet_app.data.schemas import json_of
from monai_unet_app.errors import UsageError, needing
from monai_unet_app.training import ranks
from monai_unet_app.training.checkpoints import Checkpoints
from monai_unet_app.training.pictures import WorstCases
from monai_unet_app.training.watch_dog import WatchDog

KINDS = ("tensorboard", "mlflow", "none")


class Tracking:
    """Ignite handler: logs loss and metric after each epoch; MLflow gets the run's parameters from `run.json` too.

    Args:
        kind: "tensorboard", "mlflow" (needs the extra `mlflow`) or "none".
        folder: The run's folder; gets `tensorboard/` or `mlflow/`.
        checkpoints: Holds the history; must stand before this handler in the list.
        watch_dog: Knows the Dice of each structure; None draws no curves of structures.
        worst_cases: Drawn at the last validation and at each that is the best so far; None draws none. An MLflow server gets
            no pictures (docs/decisions/0050).

    Raises:
        UsageError: Another kind, or MLflow is not installed.
    """

    def __init__(
        self,
        kind: str,
        folder: str | Path,
        checkpoints: Checkpoints,
        watch_dog: WatchDog | None = None,
        worst_cases: WorstCases | None = None,
    ) -> None:
        if kind not in KINDS:
            raise UsageError(f"tracking is {kind!r}; one of {', '.join(KINDS)} is needed")
        self.kind = kind
        self.folder = Path(folder)
        self.checkpoints, self.watch_dog, self.worst_cases = checkpoints, watch_dog, worst_cases
        self.log: _TensorBoard | _MLflow

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's trainer."""
        if self.kind != "none" and ranks.is_first():
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.add_epoch)
            engine.add_event_handler(Events.COMPLETED, lambda: self.log.close())
            if self.worst_cases:
                self.worst_cases.attach()

    def start(self, engine: Engine) -> None:
        """Opens the log; a resumed run goes on in its earlier log."""
        self.log = _TensorBoard(self.folder, engine.state.epoch) if self.kind == "tensorboard" else _MLflow(self.folder)

    def add_epoch(self, engine: Engine) -> None:
        """Adds one point to each curve."""
        record = self.folder / "run.json"  # written by RunRecord, which stands before this handler
        if isinstance(self.log, _MLflow) and record.is_file():
            self.log.add_parameters(_parameters(json_of(record)))
        entry = self.checkpoints.history[-1]
        curves = {"train/loss": entry["loss"], "selection/mean_dice": entry["metric"]}
        curves |= {f"selection/dice/{name}": value for name, value in self._of_structures().items()}
        for name, value in curves.items():
            if value is not None:
                self.log.add(name, value, entry["epoch"])
        if self.worst_cases and self.log.takes_pictures and self._is_shown(engine):
            for rank, png in enumerate(self.worst_cases.drawn(), 1):
                self.log.add_picture(f"selection/worst_{rank}", png, entry["epoch"])

    def _is_shown(self, engine: Engine) -> bool:
        """Whether this epoch was validated, and either found the best metric so far or is the last."""
        metrics = [entry["metric"] for entry in self.checkpoints.history]
        if metrics[-1] is None:
            return False
        is_last = engine.state.epoch == engine.state.max_epochs or bool(engine.should_terminate)
        return is_last or metrics[-1] >= max(metric for metric in metrics if metric is not None)

    def _of_structures(self) -> dict[str, float]:
        return {
            # MLflow takes no other signs in a name
            re.sub(r"[^\w. -]", "_", name): value
            for name, value in (self.watch_dog.per_class if self.watch_dog else {}).items()
            if not math.isnan(value)
        }


def _parameters(record: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that decide a run: settings, digests, numbers of cases, device, versions; no case is named."""
    session = record["sessions"][-1]
    partitions = [case["partition"] for case in record["cases"].values()]
    parameters = {
        **record["settings"],
        **{name: record[name] for name in ("data_sha256", "recipe_sha256")},
        **{f"cases.{partition}": partitions.count(partition) for partition in sorted(set(partitions))},
        **{name: session[name] for name in ("device", "precision", "git_commit")},
        **{f"version.{name}": number for name, number in session["versions"].items()},
    }
    return {name: str(value) for name, value in parameters.items()}


def _opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


class _TensorBoard:
    takes_pictures = True

    def __init__(self, folder: Path, epochs_done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A killed run may have logged an epoch that the resumed run repeats; purge_step hides the points from there on
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1)

    def add(self, name: str, value: float, epoch: int) -> None:
        self.writer.add_scalar(name, value, epoch)
        # Else a point waits in memory, up to two minutes by default, and a killed run loses it
        self.writer.flush()

    def add_picture(self, name: str, png: bytes, epoch: int) -> None:
        self.writer.add_image(name, np.asarray(_opened(png)), epoch, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _MLflow:
    def __init__(self, folder: Path) -> None:
        # By default MLflow wants a database. A plain folder needs no server and no SQL; this variable permits it.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow would report to its makers
        with needing("mlflow", "the tracking"):
            from mlflow.tracking import MlflowClient
        uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
        if not uri:
            store = (folder / "mlflow").resolve()
            store.mkdir(parents=True, exist_ok=True)
            uri = store.as_uri()
        self.takes_pictures = uri.startswith("file:")
        self.client = MlflowClient(tracking_uri=uri)
        self.run = self._run_id(folder.resolve(), uri)
        self.logged = set(self.client.get_run(self.run).data.params)

    def _run_id(self, folder: Path, uri: str) -> str:
        """The id in `mlflow_run.txt` if a run at this address is resumed; else the id of a new run."""
        note = folder / "mlflow_run.txt"
        address = hashlib.sha256(uri.encode()).hexdigest()[:16]  # a digest, because a URI may hold a password
        known = note.read_text(encoding="utf-8").split() if note.is_file() else []
        if len(known) == 2 and known[1] == address:
            return known[0]
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "training"
        run: str = self.client.create_run(self._experiment_id(name), run_name=folder.parent.name).info.run_id
        note.write_text(f"{run} {address}\n", encoding="utf-8")
        return run

    def _experiment_id(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        existing = self.client.get_experiment_by_name(name)
        if existing is None:
            try:
                return self.client.create_experiment(name)
            except MlflowException:  # another training, which began at the same time, may have made it
                existing = self.client.get_experiment_by_name(name)
                if existing is None:
                    raise
        return existing.experiment_id

    def add_parameters(self, parameters: Mapping[str, str]) -> None:
        """Logs the parameters that the run has not got yet; MLflow does not let them change."""
        for name in parameters.keys() - self.logged:
            self.client.log_param(self.run, name, parameters[name])
            self.logged.add(name)

    def add(self, name: str, value: float, epoch: int) -> None:
        self.client.log_metric(self.run, name, value, step=epoch)

    def add_picture(self, name: str, png: bytes, epoch: int) -> None:
        self.client.log_image(self.run, _opened(png), f"{name}_epoch_{epoch:03d}.png")

    def close(self) -> None:
        self.client.set_terminated(self.run)
