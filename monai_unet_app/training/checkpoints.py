"""Everything a killed run needs to go on as if nothing had happened, and the best model so far."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from monai_unet_app.bundle import Bundle
from monai_unet_app.bundle_folder import CALIBRATION_RECORD, CARD_FIGURES, CONFIDENCE
from monai_unet_app.calibration.fit import write_parameters
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import UsageError
from monai_unet_app.training.replay import ReplayLoader

OUT_OF_FOLD = "docs/out_of_fold.csv"


def save_atomically(payload: object, path: Path) -> None:
    """`torch.save` that leaves either the old file or the new one, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        torch.save(payload, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def half_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The network's weights with floating-point tensors as float16, which halves the file; loading casts back.

    Weights that stand under two names (DynUNet's skip layers) stay shared, so that they are stored once.
    """
    halved: dict[int, torch.Tensor] = {}
    weights: dict[str, torch.Tensor] = {}
    for name, value in network.state_dict().items():
        place = value.data_ptr()
        if place not in halved or halved[place].shape != value.shape:
            value = value.detach().cpu()
            halved[place] = value.half() if value.is_floating_point() else value
        weights[name] = halved[place]
    return weights


class Checkpoints:
    """Ignite handler: resumes at the start, saves after every epoch, keeps the best model, delivers it at the end.

    `last.pt` holds the states, the step and the best metric with its epoch, so that a resumed process knows what there is
    to beat; MONAI's CheckpointSaver forgets it and lets the first model after a restart win.

    Args:
        folder: Holds `last.pt` and `best.pt`.
        state: Objects with `state_dict` and `load_state_dict`, by name.
        loader: Told where its stream of windows goes on.
        best: The network whose weights are kept when `validator`'s key metric rises.
        validator: MONAI evaluator that has run before this handler is called.
        deliver_to: Where the best weights go when training has completed (float16).
    """

    def __init__(
        self,
        folder: str | Path,
        state: Mapping[str, Any],
        loader: ReplayLoader,
        best: torch.nn.Module,
        validator: Any,
        deliver_to: str | Path,
    ) -> None:
        self.folder = Path(folder)
        self.state = dict(state)
        self.loader = loader
        self.best = best
        self.validator = validator
        self.deliver_to = Path(deliver_to)
        self.best_metric = float("-inf")
        self.best_epoch = 0
        self.history: list[dict[str, Any]] = []
        self.losses: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's trainer. Must stand after the validation handler in the list of handlers."""
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.deliver)

    def resume(self, engine: Engine) -> None:
        """Loads `last.pt`, if there is one."""
        path = self.folder / "last.pt"
        if not path.exists():
            return
        saved = torch.load(path, map_location="cpu", weights_only=False)
        try:
            for name, target in self.state.items():
                target.load_state_dict(saved["state"][name])
        except (KeyError, RuntimeError, ValueError) as error:  # of a network or optimizer of another shape
            raise UsageError(
                f"{self.folder.name}/last.pt was left by a run with another recipe ({type(error).__name__}); only the same run "
                "can be resumed; give another output folder"
            ) from error
        self.best_metric, self.best_epoch = saved["best_metric"], saved["best_epoch"]
        self.history = saved["history"]
        engine.state.epoch, engine.state.iteration = saved["epoch"], saved["iteration"]
        self.loader.begin_at(saved["iteration"])

    def note_loss(self, engine: Engine) -> None:
        """Keeps the step's loss for the epoch's mean."""
        output: Any = engine.state.output
        self.losses.append(float(output["loss"]))

    def save(self, engine: Engine) -> None:
        """After an epoch: the best model if it is one, then the state of everything."""
        validated = self.validator.state.epoch == engine.state.epoch and self.validator.state.metrics
        metric = float(self.validator.state.metrics[self.validator.state.key_metric_name]) if validated else None
        loss = sum(self.losses) / max(1, len(self.losses))
        self.losses.clear()
        self.history.append({"epoch": engine.state.epoch, "loss": loss, "metric": metric})
        if metric is not None and metric > self.best_metric:
            self.best_metric, self.best_epoch = metric, engine.state.epoch
            save_atomically(half_weights(self.best), self.folder / "best.pt")
        save_atomically(
            {
                "state": {name: target.state_dict() for name, target in self.state.items()},
                "epoch": engine.state.epoch,
                "iteration": engine.state.iteration,
                "best_metric": self.best_metric,
                "best_epoch": self.best_epoch,
                "history": self.history,
            },
            self.folder / "last.pt",
        )

    def deliver(self, engine: Engine) -> None:
        """At the end: the best weights become the bundle's `models/model.pt`, the run's record stands beside them.

        What was fitted to and measured with other weights before goes. A run that ended before its first validation has no
        best weights and delivers its last.
        """
        if self.best_epoch:
            best = torch.load(self.folder / "best.pt", map_location="cpu", weights_only=True)
        else:
            best = half_weights(self.best)
        if not _holds(self.deliver_to, best):
            forget_figures(self.deliver_to.parents[1])
            save_atomically(best, self.deliver_to)
        record = self.folder / "run.json"
        if record.exists():
            shutil.copy2(record, self.deliver_to.with_name("run.json"))


def _holds(path: Path, weights: Mapping[str, torch.Tensor]) -> bool:
    try:
        there = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # absent or broken in any way: not these weights
        return False
    return there.keys() == weights.keys() and all(torch.equal(there[name], weights[name]) for name in weights)


def forget_figures(root: Path) -> None:
    """What a bundle's earlier weights measured is not true of new ones: calibration and figures go."""
    bundle = Bundle(root)
    for name in ("calibration", "calibration_tta"):
        if name in bundle.parser.get():
            write_parameters(root / "configs/inference.yaml", bundle.no_calibration, name)
    for stale in (root / "models" / CALIBRATION_RECORD, root / CONFIDENCE, root / OUT_OF_FOLD):
        stale.unlink(missing_ok=True)
    metadata = json.loads((root / "configs/metadata.json").read_text())
    if metadata.get("eval_metrics"):
        write_json({**metadata, "eval_metrics": {}}, root / "configs/metadata.json")
    card = root / "docs/README.md"
    if card.is_file():
        card.write_text(CARD_FIGURES.sub(lambda match: match[1] + "Not measured yet.\n" + match[2], card.read_text()))
