"""The display of a training: one bar with the time that is left, and one line for each epoch."""

import sys
from typing import Any

from ignite.engine import Engine, Events
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from monai_unet_app.training.checkpoints import Checkpoints


class ProgressBar:
    """Ignite handler: draws a bar on stderr; into a file it writes one line for each epoch.

    Args:
        checkpoints: Holds the history and the best metric; must stand before this handler in the list.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.console = Console(file=sys.stderr)
        self.bar: Progress | None = None

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.print_epoch)
        engine.add_event_handler(Events.COMPLETED, self.stop)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def start(self, engine: Engine) -> None:
        """Opens the bar at the step from which a resumed run goes on."""
        length, epochs = engine.state.epoch_length or 1, engine.state.max_epochs or 1
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps · {task.description}"),
            TimeElapsedColumn(),
            TextColumn("· left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("loss -", total=length * epochs, completed=engine.state.iteration)
        self.bar.start()
        if engine.state.epoch:
            self.console.print(f"resumed after epoch {engine.state.epoch} of {epochs}")

    def step(self, engine: Engine) -> None:
        """Moves the bar."""
        output: Any = engine.state.output
        if self.bar is not None:
            self.bar.update(self.task, completed=engine.state.iteration, description=f"loss {output['loss']:.3f}")

    def print_epoch(self, engine: Engine) -> None:
        """Prints one line: mean loss, metric on the validated cases, and the best metric so far if it selects the weights."""
        entry, metric = self.checkpoints.history[-1], ""
        if entry["metric"] is not None and self.checkpoints.select:
            metric = f" · Dice on selection cases {entry['metric']:.4f} (best {self.checkpoints.best_metric:.4f})"
        elif entry["metric"] is not None:  # nothing is selected by it
            metric = f" · Dice on watched cases {entry['metric']:.4f}"
        self.console.print(
            f"epoch {engine.state.epoch:>3}/{engine.state.max_epochs} · loss {entry['loss']:.4f}{metric}",
            highlight=False,
        )

    def stop(self, engine: Engine) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.stop()

    def fail(self, engine: Engine, error: Exception) -> None:
        """Closes the bar and raises the error again."""
        # ignite raises an error itself only if no handler takes EXCEPTION_RAISED
        self.stop(engine)
        raise error
