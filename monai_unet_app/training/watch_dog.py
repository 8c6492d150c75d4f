"""Looks after a training: says loudly what goes wrong, and ends what cannot come right or is good enough."""

import sys
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from rich.console import Console

from monai_unet_app.errors import AppError
from monai_unet_app.metrics.bootstrap import finite_mean
from monai_unet_app.training import ranks

APART = 0.02
"""Dice below the best from which on training and validation have parted, if the loss went on falling."""


@dataclass(eq=False)
class WatchDog:
    """Ignite handler; stands after the validation handler and before `Checkpoints`, which keeps its state.

    Args:
        validator: MONAI evaluator whose output has "pred" and "label", shape (C, *spatial) of 0 and 1.
        labels: Names of the structures, which are the last channels.
        patience: Validations in a row after which a finding is told.
        stop_after: Validations in a row without a voxel of some structure after which the training ends; 0: it goes on.
        stop_at: Value of the key metric with which the training is good enough; None: it goes on to its end.
        stop_patience: Validations in a row without a better key metric after which the training ends; 0: it goes on.
    """

    validator: Any
    labels: Sequence[str]
    patience: int = 3
    stop_after: int = 6
    stop_at: float | None = None
    stop_patience: int = 0
    cases: list[list[float]] = field(default_factory=list, init=False)
    """Dice of each structure of each case of the last validation, in its order; NaN where neither mask has a voxel."""
    per_class: dict[str, float] = field(default_factory=dict, init=False)
    """Mean Dice of each structure in the last validation; NaN where no case has it."""

    def __post_init__(self) -> None:
        self.nowhere = dict.fromkeys(self.labels, 0)
        self.best: tuple[float, float] | None = None  # metric and loss
        self.worse = self.waited = 0
        self.ended = False
        self._losses: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's trainer."""
        self.validator.add_event_handler(Events.STARTED, self._begin)
        self.validator.add_event_handler(Events.ITERATION_COMPLETED, self._add_case)
        engine.add_event_handler(Events.EPOCH_STARTED, self._stay_ended)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._judge)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        names = ("nowhere", "best", "worse", "waited", "ended")
        return {name: copy(getattr(self, name)) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        for name, value in state.items():
            setattr(self, name, copy(value))

    def _stay_ended(self, engine: Engine) -> None:
        """A training that was ended early and is started again has nothing left to do."""
        if self.ended:
            engine.terminate()

    def _begin(self) -> None:
        self._found = np.zeros(len(self.labels))
        self.cases.clear()

    def _add_case(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            pred, label = (item[key].flatten(1)[-len(self.labels) :] > 0.5 for key in ("pred", "label"))
            both, found, true = ((mask.sum(1).cpu().numpy()) for mask in (pred & label, pred, label))
            self._found += found
            with np.errstate(invalid="ignore"):
                self.cases.append((2 * both / (found + true)).tolist())

    def _add_loss(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self._losses.append(float(output["loss"]))

    def _judge(self, engine: Engine) -> None:
        loss = finite_mean(self._losses)
        self._losses.clear()
        state = self.validator.state
        if state.epoch != engine.state.epoch or not state.metrics:  # this epoch was not validated
            self.per_class = {}
            return
        columns = zip(self.labels, np.array(self.cases).T, strict=True)
        self.per_class = {name: finite_mean(column) for name, column in columns}
        self._judge_classes()
        self._judge_metric(float(state.metrics[state.key_metric_name]), loss, engine)

    def _judge_classes(self) -> None:
        for name, found in zip(self.labels, self._found, strict=True):
            self.nowhere[name] = 0 if found else self.nowhere[name] + 1
        for count, act in ((self.stop_after, _end), (self.patience, _warn)):
            missing = [name for name, times in self.nowhere.items() if count and times >= count]
            if missing:
                act(
                    f"{', '.join(missing)}: predicted nowhere in {self.nowhere[missing[0]]} validations in a row; check "
                    "whether "
                    "its labels are correct and often enough in the windows (`ratios` in train.yaml), or lower the "
                    "learning rate"
                )
                return

    def _judge_metric(self, metric: float, loss: float, engine: Engine) -> None:
        if self.best is None or metric > self.best[0]:
            self.best, self.worse, self.waited = (metric, loss), 0, 0
        else:
            self.waited += 1
        if metric < self.best[0] - APART and loss < self.best[1]:
            self.worse += 1
        if self.worse >= self.patience:
            _warn(
                f"training and validation have diverged: the loss fell from {self.best[1]:.4f} to {loss:.4f}, the metric from "
                f"{self.best[0]:.4f} to {metric:.4f}; more cases, more augmentation or fewer epochs are needed"
            )
        if self.stop_at is not None and metric >= self.stop_at:
            self._end_early(f"good enough: the metric is {metric:.4f}, and {self.stop_at} was requested", engine)
        elif self.stop_patience and self.waited >= self.stop_patience:
            best = f"the best metric, {self.best[0]:.4f}, is {self.waited} validations old"
            self._end_early(f"no gain: {best}, and the patience is {self.stop_patience}", engine)

    def _end_early(self, text: str, engine: Engine) -> None:
        say(text)
        self.ended = True
        engine.terminate()


def say(text: str, style: str = "") -> None:
    """Prints a line beside the progress bar; of several processes the first does."""
    if ranks.is_first():
        Console(file=sys.stderr).print(text, style=style, highlight=False, soft_wrap=True)


def _warn(text: str) -> None:
    say(f"warning: {text}", "bold yellow")


def _end(text: str) -> None:
    raise AppError(text)
