"""Whether the node can do its work: each part is tried again and again, and a part that fails is named."""

from __future__ import annotations

import logging
import sqlite3
import time
from typing import TYPE_CHECKING

from monai_unet_app.errors import AppError

if TYPE_CHECKING:
    from monai_unet_app.service.node import Node

LOOK_S = 5.0
"""Seconds between two trials of database and audit trail."""

LONGEST_TICK_S = 10.0
"""The node does everything in rounds of a part of a second; after a round of more seconds than this it is not ready."""

_logger = logging.getLogger(__name__)


class Health:
    """What the node knows about its own parts. `look` and `ticked` are called by the node's loop, `failing` by anyone."""

    def __init__(self, node: Node) -> None:
        """Everything counts as good until it was tried; the loop as begun now."""
        self._node = node
        self._looked, self._ticked = 0.0, time.monotonic()
        self._broken: dict[str, str] = {}
        self._told: list[str] = []
        self._trying = ""

    def look(self) -> None:
        """Tries database and audit trail, if they were not tried just now, and logs what has changed."""
        if self._looked and time.monotonic() - self._looked < LOOK_S:
            return
        for part, try_out in (("database", self._node.queue.check_writable), ("audit trail", self._node.audit.try_out)):
            self._trying = part
            try:
                try_out()
            except (OSError, sqlite3.Error, AppError) as error:
                self._broken[part] = str(error)
            else:
                self._broken.pop(part, None)
        self._trying, self._looked = "", time.monotonic()
        self._tell()

    def ticked(self, error: Exception | None = None) -> None:
        """The loop has made a round; `error` ended it."""
        self._ticked = time.monotonic()
        if error is None:
            self._broken.pop("main loop", None)
        else:
            self._broken["main loop"] = type(error).__name__
        if isinstance(error, sqlite3.Error):
            self._broken["database"] = str(error)  # until it was tried again

    def failing(self) -> list[str]:
        """The parts that fail now, some of: "main loop", "database", "audit trail", "disk", "worker", "sender"."""
        node, broken = self._node, set(self._broken)
        if not node.is_running or time.monotonic() - self._ticked > LONGEST_TICK_S:
            broken |= {"main loop", *filter(None, [self._trying])}  # it may hang in what it tries
        if node.why_full():
            broken.add("disk")
        if not node.workers.is_ready:
            broken.add("worker")
        if node.site.destinations and not node.senders.is_ready:
            broken.add("sender")
        return sorted(broken)

    def _tell(self) -> None:
        failing = self.failing()
        if failing == self._told:
            return
        if failing:
            why = "; ".join(f"{part} ({self._broken[part]})" if part in self._broken else part for part in failing)
            _logger.warning("not ready: %s", why)
        else:
            _logger.info("ready")
        self._told = failing
