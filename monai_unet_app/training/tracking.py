"""Curves while a run goes on: TensorBoard, or MLflow in a local folder. Nothing leaves the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from monai_unet_app.errors import UsageError
from monai_unet_app.training.checkpoints import Checkpoints

KINDS = ("tensorboard", "mlflow", "none")


class Tracking:
    """Ignite handler: loss and metric after each epoch.

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
        entry = self.checkpoints.history[-1]
        values = {"train/loss": entry["loss"], "selection/mean_dice": entry["metric"]}
        for name, value in values.items():
            if value is not None:
                self.sink.add(name, value, entry["epoch"])

    def stop(self, engine: Engine) -> None:
        """Closes the log."""
        self.sink.close()


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
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise UsageError("MLflow is not installed; run: pip install 'monai-unet-app[mlflow]'") from error
        home = (folder / "mlflow").resolve()
        home.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(tracking_uri=home.as_uri())
        found = self.client.get_experiment_by_name("training")
        experiment = found.experiment_id if found else self.client.create_experiment("training")
        runs = self.client.search_runs([experiment])
        self.run = runs[0].info.run_id if runs else self.client.create_run(experiment).info.run_id

    def add(self, name: str, value: float, epoch: int) -> None:
        self.client.log_metric(self.run, name, value, step=epoch)

    def close(self) -> None:
        self.client.set_terminated(self.run)
