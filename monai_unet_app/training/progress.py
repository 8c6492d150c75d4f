"""The display of a training: a bar, or dated lines, with the time that is left, and one line for each epoch."""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Self

from ignite.engine import Engine, Events
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from monai_unet_app.progress_bars import Bars
from monai_unet_app.training import ranks
from monai_unet_app.training.checkpoints import Checkpoints

StepsDone = tuple[int, int, str]
"""StepsDone that are done, all steps, and a text."""

DISPLAY_ELSEWHERE: ContextVar[Callable[[StepsDone], None] | None] = ContextVar("DISPLAY_ELSEWHERE", default=None)
"""Takes the steps of a training whose bar is drawn by another process; None: it is drawn here."""


class ProgressBar:
    """Ignite handler: draws a bar on stderr, see `Bars`, and writes one line for each epoch.

    Args:
        checkpoints: Holds the history and the best metric; must stand before this handler in the list.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.console = Console(file=sys.stderr)
        self.bar: Bars | None = None

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's trainer."""
        if not ranks.is_first():
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.print_epoch)
        engine.add_event_handler(Events.COMPLETED, self.stop)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def start(self, engine: Engine) -> None:
        """Opens the bar at the step from which a resumed run goes on."""
        length, epochs = engine.state.epoch_length or 1, engine.state.max_epochs or 1
        self.steps, self.tell = length * epochs, DISPLAY_ELSEWHERE.get()
        self.bar, begun = _bars(self.console, is_shown=self.tell is None), engine.state.iteration
        self.task = self.bar.add_task("loss -", total=self.steps, completed=begun, name="training", begun=begun)
        self.bar.start()
        if engine.state.epoch:
            self.console.print(f"resumed after epoch {engine.state.epoch} of {epochs}")

    def step(self, engine: Engine) -> None:
        """Moves the bar."""
        output: Any = engine.state.output
        loss = f"loss {output['loss']:.3f}"
        if self.bar is not None:
            self.bar.update(self.task, completed=engine.state.iteration, description=loss)
        if self.tell is not None:
            self.tell((engine.state.iteration, self.steps, loss))

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


class NamedBars:
    """Draws a bar on stderr for each of several trainings in other processes; their lines begin with their names.

    A context manager: there are bars inside its block.
    """

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr)
        self.bars = _bars(self.console)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def hear(self, name: str, message: StepsDone | str | Exception | None) -> None:
        """Shows what `run_in_processes` hears of a training."""
        match message:
            case (int(completed), int(total), str(text)):
                if name not in self.tasks:  # from here on the time that is left is estimated
                    self.tasks[name] = self.bars.add_task(
                        text, total=total, completed=completed, name=name, begun=completed
                    )
                self.bars.update(self.tasks[name], completed=completed, description=text)
            case None:
                if name in self.tasks:
                    self.bars.remove_task(self.tasks.pop(name))
            case Exception():
                self._print(name, f"failed: {message}; the running trainings go on to their end, no other begins")
            case _:
                self._print(name, str(message))

    def _print(self, name: str, text: str) -> None:
        self.console.print(f"{name} · {text}", markup=False, highlight=False, soft_wrap=True)


def _bars(console: Console, *, is_shown: bool = True) -> Bars:
    """Bars for trainings; a task has a field `name`, which stands before its bar."""
    return Bars(
        TextColumn("{task.fields[name]}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("steps · {task.description}"),
        TimeElapsedColumn(),
        TextColumn("· left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        is_shown=is_shown,
    )
