"""Children of one kind: started, watched, and replaced when they end."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence

from monai_unet_app.service.child_processes import Child, Message

Inbox = queue.SimpleQueue[tuple[Child, Message | None]]
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


class Pause:
    """Between tries: each that follows another is twice as long. By a clock that nobody sets."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        """Over until `begin`; every pause lasts `first_s` at least and `longest_s` at most."""
        self._first_s, self._longest_s = first_s, longest_s
        self._length_s, self._until = 0.0, 0.0

    def begin(self) -> None:
        """After a try that failed."""
        self._length_s = min(max(2 * self._length_s, self._first_s), self._longest_s)
        self._until = time.monotonic() + self._length_s

    def end(self) -> None:
        """After a try that did not; the next pause is a first one again."""
        self._length_s, self._until = 0.0, 0.0

    @property
    def is_over(self) -> bool:
        """Whether it may be tried."""
        return time.monotonic() >= self._until


class Crew:
    """So many children that run one module.

    Attributes:
        started: How many were started in all; each start of a worker is cold.
        was_ready: One of them was ready once.
        facts: What the last of them that became ready said of itself.
    """

    def __init__(self, module: str, args: Sequence[str], count: int, silent_s: float) -> None:
        """Starts them; one that gives no sign of life for `silent_s` is replaced."""
        self.module, self.args, self.count, self.silent_s = module, list(args), count, silent_s
        self.inbox: Inbox = queue.SimpleQueue()
        self.children: list[Child] = []
        self.started, self.was_ready = 0, False
        self.facts: Message = {}
        self._pause = Pause(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        self.mend()

    def mend(self) -> None:
        """Starts those that are missing; after one that never became ready, with a pause that grows."""
        while len(self.children) < self.count and self._pause.is_over:
            self.children.append(Child(self.module, self.args, self.inbox))
            self.started += 1

    def watch(self) -> None:
        """Asks each for a heart-beat, and ends those that have been silent for too long."""
        for child in self.children:
            child.ask()
            if child.silent_s > self.silent_s and child.exit_code is None:
                child.why_ended = f"it gave no sign of life for {self.silent_s:g} s"
                child.end()

    def heard(self) -> Iterator[tuple[Child, Message | None]]:
        """What they have said since, one by one, None from one that has ended; who did not listen to the end hears the rest
        the next time.
        """
        while not self.inbox.empty():
            child, message = self.inbox.get()
            if message is None:
                self._ended(child)
            elif message.get("ready"):
                child.is_ready = self.was_ready = True
                self.facts = message
                self._pause.end()
                child.rest()
                continue
            yield child, message

    def idle(self) -> list[Child]:
        """Those that can be given a task."""
        return [child for child in self.children if child.is_idle]

    @property
    def is_ready(self) -> bool:
        """Whether one of them can work or does: it was ready, is alive, and has answered lately."""
        return any(
            child.is_ready and child.exit_code is None and child.silent_s <= self.silent_s / 2
            for child in list(self.children)
        )

    def end(self, patience_s: float) -> None:
        """Ends all of them."""
        for child in self.children:
            child.end(patience_s if child.task is None else 0.0)

    def _ended(self, child: Child) -> None:
        if child in self.children:
            self.children.remove(child)
        if not child.is_ready:
            self._pause.begin()
