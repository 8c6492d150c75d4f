"""Curves while a run goes on: TensorBoard, or MLflow.

Nothing leaves the machine, unless the environment variable MLFLOW_TRACKING_URI names an MLflow server.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from monai_unet_app.errors import UsageError
from monai_unet_app.training.checkpoints import Checkpoints

KINDS = ("tensorboard", "mlflow", "none")


class Tracking:
    """Ignite handler: loss and metric after each epoch; MLflow gets the run's parameters from `run.json` too.

    Args:
        kind: "tensorboard", "mlflow" (needs the extra `mlflow`) or "none".
        folder: The run's folder; gets `tensorboard/` or `mlflow/`.
        checkpoints: Told the history; must stand before this handler in the list.

    Raises:
        UsageError: Another kind, or MLflow is not installed.
    """

    def __init__(self, kind: str, folder: str | Path, checkpoints: Checkpoints) -> None:
        if kind not in KINDS:
            raise UsageError(f"tracking is {kind!r}; one of {', '.join(KINDS)} is needed")
        self.kind = kind
        self.folder = Path(folder)
        self.checkpoints = checkpoints
        self.sink: Any = None

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's trainer."""
        if self.kind != "none":
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.log)
            engine.add_event_handler(Events.COMPLETED, self.stop)

    def start(self, engine: Engine) -> None:
        """Opens the log; a resumed run goes on in its own."""
        self.sink = (
            _TensorBoard(self.folder, engine.state.epoch) if self.kind == "tensorboard" else _MLflow(self.folder)
        )

    def log(self, engine: Engine) -> None:
        """One point on each curve."""
        record = self.folder / "run.json"  # written by RunRecord, which stands before this handler
        if isinstance(self.sink, _MLflow) and record.is_file():
            self.sink.describe(_parameters(json.loads(record.read_text())))
        entry = self.checkpoints.history[-1]
        values = {"train/loss": entry["loss"], "selection/mean_dice": entry["metric"]}
        for name, value in values.items():
            if value is not None:
                self.sink.add(name, value, entry["epoch"])

    def stop(self, engine: Engine) -> None:
        """Closes the log."""
        self.sink.close()


def _parameters(record: Mapping[str, Any]) -> dict[str, str]:
    """What decides a run, by name: settings, digests, numbers of cases, device, versions; the name of no case."""
    session = record["sessions"][-1]
    parts = [case["partition"] for case in record["cases"].values()]
    found = {
        **record["settings"],
        **{name: record[name] for name in ("data_sha256", "recipe_sha256")},
        **{f"cases.{part}": parts.count(part) for part in sorted(set(parts))},
        **{name: session[name] for name in ("device", "precision", "git_commit")},
        **{f"version.{name}": number for name, number in session["versions"].items()},
    }
    return {name: str(value) for name, value in found.items()}


class _TensorBoard:
    def __init__(self, folder: Path, epochs_done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1)

    def add(self, name: str, value: float, epoch: int) -> None:
        self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _MLflow:
    def __init__(self, folder: Path) -> None:
        # MLflow asks for a database by default; a plain folder needs no server and no SQL, and is asked for by this variable
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would report to its makers
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise UsageError("MLflow is not installed; run: pip install 'monai-unet-app[mlflow]'") from error
        uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
        if not uri:
            home = (folder / "mlflow").resolve()
            home.mkdir(parents=True, exist_ok=True)
            uri = home.as_uri()
        self.client = MlflowClient(tracking_uri=uri)
        self.run = self._run(folder.resolve(), uri)
        self.described = set(self.client.get_run(self.run).data.params)

    def _run(self, folder: Path, uri: str) -> str:
        """The id of this run: a resumed one goes on in its own, which a file in its folder names; else a new one."""
        note, place = (
            folder / "mlflow_run.txt",
            hashlib.sha256(uri.encode()).hexdigest()[:16],
        )  # a URI may hold a password
        known = note.read_text(encoding="utf-8").split() if note.is_file() else []
        if len(known) == 2 and known[1] == place:
            return known[0]
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "training"
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        run: str = self.client.create_run(experiment, run_name=folder.parent.name).info.run_id
        note.write_text(f"{run} {place}\n", encoding="utf-8")
        return run

    def describe(self, parameters: Mapping[str, str]) -> None:
        """Parameters that the run has not got yet; MLflow does not let them change."""
        for name in parameters.keys() - self.described:
            self.client.log_param(self.run, name, parameters[name])
            self.described.add(name)

    def add(self, name: str, value: float, epoch: int) -> None:
        self.client.log_metric(self.run, name, value, step=epoch)

    def close(self) -> None:
        self.client.set_terminated(self.run)
