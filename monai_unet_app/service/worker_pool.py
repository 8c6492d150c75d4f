"""A pool of child processes that run one module: started, watched, and replaced when they end."""

import math
import queue
import time
from collections.abc import Iterator, Sequence
from typing import Any

from monai_unet_app.machine_memory import resident_bytes
from monai_unet_app.service.child_processes import Child, Message

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_LONGEST_START_S = 600.0
"""How long a child may take to become ready, at least: a worker loads its bundles."""


class Pause:
    """A pause between tries; after each further failure it is twice as long. Monotonic clock."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        """No pause until `begin`; each pause lasts `first_s` to `longest_s`."""
        self._first_s, self._longest_s = first_s, longest_s
        self._length_s, self._until = 0.0, 0.0

    def begin(self) -> None:
        """Begins a pause after a try that failed."""
        self._length_s = min(max(2 * self._length_s, self._first_s), self._longest_s)
        self._until = time.monotonic() + self._length_s

    def end(self) -> None:
        """Ends the pause after a try that succeeded; the next pause is a first pause again."""
        self._length_s, self._until = 0.0, 0.0

    @property
    def is_over(self) -> bool:
        """Whether the next try may be made."""
        return time.monotonic() >= self._until


class WorkerPool:
    """A fixed number of children: workers or senders.

    Attributes:
        inbox: Messages of the children that `messages` has not given yet; None when a child has ended.
        children: Those that run, and those whose end `messages` has not given yet.
        started: How many were started in all.
        ready_message: What the last child that became ready said of itself; empty before any child was ready. Its "args" are
            arguments for the children that come after it, so that a retry finds what the first try found.
    """

    def __init__(self, module: str, args: Sequence[str], count: int, silent_s: float) -> None:
        """Starts `count` children; a child without a sign of life for `silent_s` seconds is replaced."""
        self.module, self.args, self.count, self.silent_s = module, list(args), count, silent_s
        self.inbox: queue.SimpleQueue[tuple[Child, Message | None]] = queue.SimpleQueue()
        self.children: list[Child] = []
        self.started = 0
        self.ready_message: Message = {}
        self._pause = Pause(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        self.start_missing()

    def start_missing(self) -> None:
        """Starts children until there are enough; after a child that never became ready only when a growing pause is over."""
        while len(self.children) < self.count and self._pause.is_over:
            self.children.append(Child(self.module, [*self.args, *self.ready_message.get("args", ())], self.inbox))
            self.started += 1

    def watch(self, longest_task_s: float, most_bytes: float = math.inf) -> None:
        """Asks every child for a heart-beat, and kills children that are frozen, slow or large.

        Args:
            longest_task_s: Time that a task may take; becoming ready may take `_LONGEST_START_S` where that is longer.
            most_bytes: Resident memory that a child may have.
        """
        for child in self.children:
            if child.is_stopped:
                continue
            child.ask_heartbeat()
            longest_s = longest_task_s if child.is_ready else max(longest_task_s, _LONGEST_START_S)
            if child.exit_code is not None:
                continue
            if child.silent_s > self.silent_s:
                child.kill(f"it did not answer for {self.silent_s:g} s")
            elif not child.is_idle and child.busy_s > longest_s:
                child.kill(f"it took more than {longest_s:g} s")
            elif resident_bytes(child.pid) > most_bytes:
                child.was_too_large = True
                child.kill(f"it took more than {most_bytes / 1e9:g} GB of memory")

    def messages(self) -> Iterator[tuple[Child, Message | None]]:
        """Unread messages with their child; None when a child has ended. Messages left unread come with the next call."""
        while not self.inbox.empty():
            child, message = self.inbox.get()
            if message is None:
                if child in self.children:
                    self.children.remove(child)
                # A child that never became ready would fail again at once, for instance by a bundle that cannot be loaded.
                if not child.is_ready:
                    self._pause.begin()
            elif message.get("ready"):
                child.is_ready = True
                self.ready_message = message
                self._pause.end()
                child.end_task()
                continue
            yield child, message

    def idle(self) -> list[Child]:
        """Children that can be given a task."""
        return [child for child in self.children if child.is_idle]

    def tasks(self) -> list[Any]:
        """What the children work at."""
        return [child.task for child in self.children if child.task is not None]

    @property
    def is_ready(self) -> bool:
        """Whether a child can work or does: it was ready, is alive, and has answered lately."""
        # Half the time of `watch`: /ready tells of a frozen child before that child is replaced. The list is copied
        # because threads of the HTTP API ask while the node's loop changes it.
        return any(
            child.is_ready and child.exit_code is None and child.silent_s <= self.silent_s / 2
            for child in list(self.children)
        )

    def end(self, patience_s: float) -> None:
        """Ends all children; a child without a task may take so many seconds for it."""
        for child in self.children:
            child.end(patience_s if child.task is None else 0.0)
