"""Progress bars; where output is not a terminal, as under nohup or a scheduler, a dated line once a minute instead."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Event, Thread

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task

Display = Callable[[str, int], AbstractContextManager[Callable[[str], None]]]
"""Takes a text and a number of steps, and gives a context manager with a function that is called after each step."""

EVERY_S = 60.0


def say_nothing(text: str) -> None:
    """Drops a line of text for the user."""


def no_display(text: str, total: int) -> AbstractContextManager[Callable[[str], None]]:
    """A `Display` that shows nothing."""
    return nullcontext(say_nothing)


class Bars(Progress):
    """Bars, or lines with the same numbers.

    A task has the fields `name`, which stands before its bar, and `begun`: how many steps earlier runs have done, if any.

    Args:
        columns: Of the bars.
        console: Where they are drawn.
        is_shown: False: nothing is drawn or printed.
        transient: The bars go away at the end.
    """

    def __init__(self, *columns: ProgressColumn, console: Console, is_shown: bool, transient: bool = False) -> None:
        is_drawn = is_shown and console.is_terminal
        super().__init__(*columns, console=console, disable=not is_drawn, transient=transient)
        self.prints, self.ended = is_shown and not is_drawn, Event()

    def start(self) -> None:
        """Begins to draw, or to print."""
        super().start()
        if self.prints:
            Thread(target=self._print_lines, daemon=True).start()

    def stop(self) -> None:
        """Ends it."""
        self.ended.set()
        super().stop()

    def _print_lines(self) -> None:
        while not self.ended.wait(EVERY_S):
            for task in self.tasks:
                now = time.strftime("%Y-%m-%dT%H:%M:%S")
                self.console.print(f"{now} {_state(task)}", markup=False, highlight=False, soft_wrap=True)


def _state(task: Task) -> str:
    """How far a task is, and the time that the rest takes at the pace of what is done."""
    name, done = task.fields["name"], task.completed - task.fields.get("begun", 0)
    if task.total is None:
        return f"{name}: {task.completed:.0f}"
    rest = task.total - task.completed
    left = f", about {lasting((task.elapsed or 0) * rest / done)} left" if done and rest else ", finishing" * (not rest)
    return f"{name}: {int(task.completed)} of {task.total:.0f}{left}"


def lasting(seconds: float) -> str:
    """A duration in words: "40 s", "12 minutes", "2.5 hours"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
