"""Checkpoints: the state that a killed run needs to go on as if it had never stopped, and the best model so far."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from dicom_io.files import replace_when_whole, write_whole
from monai_unet_app.bundle_folder import CALIBRATION_RECORD, CARD_FIGURES, CONFIDENCE
from monai_unet_app.calibration.fitted import forget_fitted
from monai_unet_app.data.digest import file_sha256
from monai_unet_app.data.schemas import json_of, write_json
from monai_unet_app.errors import UsageError
from monai_unet_app.training import ranks
from monai_unet_app.training.replay import ReplayLoader
from monai_unet_app.training.watch_dog import say
from monai_unet_app.weights import load_checkpoint

OUT_OF_FOLD = "docs/out_of_fold.csv"
INFERENCE = "configs/inference.yaml"


def save_atomically(payload: object, path: Path) -> None:
    """`torch.save` that leaves either the old file or the new one, even after a crash or a power failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_whole(path, sync=True) as part, part.open("wb") as stream:
        torch.save(payload, stream)


def half_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The network's weights with floating-point tensors as float16, which halves the file; loading casts back.

    Weights with two names (DynUNet's skip layers) stay shared, so that the file holds them once.
    """
    halved: dict[int, torch.Tensor] = {}
    weights: dict[str, torch.Tensor] = {}
    for name, value in network.state_dict().items():
        # Equal address and shape: one tensor under two names. A view of another shape may begin at the same address.
        address = value.data_ptr()
        if address not in halved or halved[address].shape != value.shape:
            value = value.detach().cpu()
            halved[address] = value.half() if value.is_floating_point() else value
        weights[name] = halved[address]
    return weights


@dataclass(eq=False)
class Checkpoints:
    """Ignite handler: resumes at the start, saves after every epoch, keeps the best model and delivers it at the end.

    `last.pt` holds the states, the step, and the best metric with its epoch, so that a resumed run knows which metric to
    beat. MONAI's CheckpointSaver forgets that metric, and the first model after a restart wins.

    Args:
        folder: Holds `last.pt` and `best.pt`.
        state: Objects with `state_dict` and `load_state_dict`, by name.
        loader: Its stream of windows is set to the step at which a resumed run goes on; it seeds dropout before each step.
        best: The network whose weights are kept when `validator`'s key metric rises.
        validator: MONAI evaluator that has run before this handler is called.
        deliver_to: Path of the best weights (float16) when training has completed.
        select: Whether the key metric chooses the weights; otherwise the last are delivered.
        donor: Name of the weights that a new training begins with; they are validated first, and delivered if none are better.
    """

    folder: Path
    state: Mapping[str, Any]
    loader: ReplayLoader
    best: torch.nn.Module
    validator: Any
    deliver_to: Path
    select: bool = True
    donor: str = ""

    def __post_init__(self) -> None:
        self.folder, self.deliver_to = Path(self.folder), Path(self.deliver_to)
        if self.loader.losses is not None:
            self.state = {**self.state, "case_losses": self.loader.losses}
        self.best_metric = float("-inf")
        self.best_epoch = 0
        self.history: list[dict[str, Any]] = []
        self.losses: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's trainer. This handler must stand after the validation handler in the list of handlers."""
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.ITERATION_STARTED, lambda: self.loader.seed_step(engine.state.iteration))
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.deliver)

    def resume(self, engine: Engine) -> None:
        """Loads `last.pt` if it exists; otherwise validates the weights of a donor."""
        path = self.folder / "last.pt"
        if not path.exists():
            if self.donor and self.select:
                self._judge_donor()
            return
        for left_over in self.folder.glob(".part-*"):  # of a process that was killed while it saved
            shutil.rmtree(left_over)
        saved = load_checkpoint(path)
        try:
            for name, target in self.state.items():
                target.load_state_dict(saved["state"][name])
        except (KeyError, RuntimeError, ValueError) as error:  # a network or optimizer of another shape
            raise UsageError(
                f"{self.folder.name}/last.pt was left by a run with another recipe ({type(error).__name__}); only the same run "
                "can be resumed; give another output folder"
            ) from error
        self.best_metric, self.best_epoch = saved["best_metric"], saved["best_epoch"]
        self.history = saved["history"]
        engine.state.epoch, engine.state.iteration = saved["epoch"], saved["iteration"]
        self.loader.begin_at(saved["iteration"])

    def _judge_donor(self) -> None:
        self.validator.run(0)
        self.best_metric = float(self.validator.state.metrics[self.validator.state.key_metric_name])
        say(f"{self.donor} before training: {self.best_metric:.4f}, the metric that selects the best weights")
        if ranks.is_first():
            save_atomically(half_weights(self.best), self.folder / "best.pt")

    def add_loss(self, engine: Engine) -> None:
        """Adds the loss of a step to those of its epoch."""
        output: Any = engine.state.output
        self.losses.append(float(output["loss"]))

    def save(self, engine: Engine) -> None:
        """After an epoch: saves the model if it is the best so far, then the state of everything."""
        # MONAI's validation handler runs the evaluator under the trainer's epoch number, so equal numbers mean that
        # this epoch was validated; the evaluator keeps the metrics of earlier epochs.
        validated = self.validator.state.epoch == engine.state.epoch and self.validator.state.metrics
        metric = float(self.validator.state.metrics[self.validator.state.key_metric_name]) if validated else None
        loss = ranks.mean(sum(self.losses) / max(1, len(self.losses)))
        self.losses.clear()
        self.history.append({"epoch": engine.state.epoch, "loss": loss, "metric": metric})
        is_best = self.select and metric is not None and metric > self.best_metric
        if is_best and metric is not None:
            self.best_metric, self.best_epoch = metric, engine.state.epoch
        if not ranks.is_first():
            return
        # best.pt before last.pt: after a crash between the two, the epoch is repeated from the old last.pt and writes
        # the same best.pt again. The other order could name a best metric whose weights were never saved.
        if is_best:
            save_atomically(half_weights(self.best), self.folder / "best.pt")
        saved = {
            "state": {name: target.state_dict() for name, target in self.state.items()},
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "best_metric": self.best_metric,
            "best_epoch": self.best_epoch,
            "history": self.history,
        }
        save_atomically(saved, self.folder / "last.pt")

    def deliver(self, engine: Engine) -> None:
        """At the end: the best weights become the bundle's `models/model.pt`, with a copy of the run's record beside them.

        A calibration and figures of other weights are removed. A run without selection, or one that ended before its
        first validation, delivers its last weights.
        """
        if not ranks.is_first():
            return
        if self.best_metric > float("-inf"):
            if not self.best_epoch:
                say(f"no epoch was better than {self.donor}, whose weights are delivered")
            best = load_checkpoint(self.folder / "best.pt")
        else:
            best = half_weights(self.best)
        # A finished run that is started again delivers the same weights; their calibration and figures are still true
        if not has_weights(self.deliver_to, best):
            # Figures first: a crash between the two leaves weights without figures, never figures of other weights
            if (self.deliver_to.parents[1] / INFERENCE).is_file():  # the weights of a fold have no configs of their own
                forget_figures(self.deliver_to.parents[1])
            save_atomically(best, self.deliver_to)
        record = self.folder / "run.json"
        if record.exists():
            known = {**json_of(record), "weights_sha256": file_sha256(self.deliver_to)}
            write_json(known, self.deliver_to.with_name("run.json"), "run")


def has_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether the file holds these weights and no others."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a file that is absent, or broken in any way, does not hold these weights
        return False
    return stored.keys() == weights.keys() and all(torch.equal(stored[name], weights[name]) for name in weights)


def forget_figures(root: Path) -> None:
    """Takes a bundle's calibration and chosen post-processing back, and removes its figures: they are of earlier weights."""
    forget_fitted(root)
    for stale in (root / "models" / CALIBRATION_RECORD, root / CONFIDENCE, root / OUT_OF_FOLD):
        stale.unlink(missing_ok=True)
    metadata = json_of(root / "configs/metadata.json")
    if metadata.get("eval_metrics"):
        write_json({**metadata, "eval_metrics": {}}, root / "configs/metadata.json")
    card = root / "docs/README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        write_whole(card, CARD_FIGURES.sub(lambda match: match[1] + "Not measured yet.\n" + match[2], text))
