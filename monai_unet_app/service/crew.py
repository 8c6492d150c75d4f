"""Children of one kind: started, watched, and replaced when they end."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence

from monai_unet_app.service.children import Child, Message

Inbox = queue.SimpleQueue[tuple[Child, Message | None]]
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


class Crew:
    """So many children that run one module.

    Attributes:
        started: How many were started in all; each start of a worker is cold.
    """

    def __init__(self, module: str, args: Sequence[str], count: int) -> None:
        """Starts them."""
        self.module, self.args, self.count = module, list(args), count
        self.inbox: Inbox = queue.SimpleQueue()
        self.children: list[Child] = []
        self.started = 0
        self._pause_s, self._not_before = 0.0, 0.0
        self.mend()

    def mend(self) -> None:
        """Starts those that are missing; after one that never became ready, with a pause that grows."""
        while len(self.children) < self.count and time.monotonic() >= self._not_before:
            self.children.append(Child(self.module, self.args, self.inbox))
            self.started += 1

    def heard(self) -> Iterator[tuple[Child, Message | None]]:
        """What they have said since, one by one, None from one that has ended; who did not listen to the end hears the rest
        the next time.
        """
        while not self.inbox.empty():
            child, message = self.inbox.get()
            if message is None:
                self._ended(child)
            elif message.get("ready"):
                child.is_ready, self._pause_s = True, 0.0
                child.rest()
                continue
            yield child, message

    def idle(self) -> list[Child]:
        """Those that can be given a task."""
        return [child for child in self.children if child.is_idle]

    @property
    def is_ready(self) -> bool:
        """Whether one of them can work or does."""
        return any(child.is_ready for child in self.children)

    def end(self, patience_s: float) -> None:
        """Ends all of them."""
        for child in self.children:
            child.end(patience_s if child.task is None else 0.0)

    def _ended(self, child: Child) -> None:
        if child in self.children:
            self.children.remove(child)
        if not child.is_ready:
            self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._not_before = time.monotonic() + self._pause_s
