"""Whether the node can do its work: each part is tried again and again, and a part that fails is named."""

import logging
import sqlite3
import time
from typing import TYPE_CHECKING

from monai_unet_app.errors import AppError

if TYPE_CHECKING:
    from monai_unet_app.service.node import Node

CHECK_S = 5.0
"""Seconds between two checks of database and audit trail."""

LONGEST_ROUND_S = 10.0
"""A round of the node's loop takes a fraction of a second; after a round of more seconds than this the node is not ready."""

_BUSY_S = 1.0
"""A change of the database takes milliseconds; after so many seconds of waiting another process has locked the file."""

_logger = logging.getLogger(__name__)


class Health:
    """What the node knows about its own parts. The node's loop calls `check` and `end_round`, any thread `failing`."""

    def __init__(self, node: "Node") -> None:
        """Every part counts as working until it was checked, and the loop as begun now."""
        self._node = node
        self._last_check: float | None = None
        self._last_round = time.monotonic()
        self._broken: dict[str, str] = {}  # part -> reason
        self._logged: list[str] = []
        self._being_checked = ""

    def check(self) -> None:
        """Checks database and audit trail, if the last check is long enough ago, and logs what has changed."""
        if self._last_check is not None and time.monotonic() - self._last_check < CHECK_S:
            return
        parts = {"database": self._node.queue.check_writable, "audit trail": self._node.audit.check_writable}
        for part, check_writable in parts.items():
            self._being_checked = part
            try:
                check_writable()
            except (OSError, sqlite3.Error, AppError) as error:
                self._broken[part] = str(error)
            else:
                self._broken.pop(part, None)
        self._being_checked, self._last_check = "", time.monotonic()
        self._log_changes()

    def end_round(self, error: Exception | None = None) -> None:
        """Notes that the loop has made a round, or that `error` ended the round."""
        self._last_round = time.monotonic()
        if error is None:
            self._broken.pop("main loop", None)
        else:
            self._broken["main loop"] = type(error).__name__
        if isinstance(error, sqlite3.Error):
            self._broken["database"] = str(error)  # until the next check

    def failing(self) -> list[str]:
        """The parts that fail now, some of: "main loop", "database", "audit trail", "disk", "worker", "sender"."""
        node, broken = self._node, set(self._broken)
        if self.database_locked_s:
            broken.add("database")
        if not node.is_running or time.monotonic() - self._last_round > LONGEST_ROUND_S:
            broken |= {"main loop", *filter(None, [self._being_checked])}  # the check itself may hang
        if node.why_full():
            broken.add("disk")
        if not node.workers.is_ready:
            broken.add("worker")
        if node.site.destinations and not node.senders.is_ready:
            broken.add("sender")
        return sorted(broken)

    @property
    def database_locked_s(self) -> float:
        """Seconds for which another program has kept the database locked; 0 if none does, or only for a moment."""
        busy_s = self._node.queue.busy_s
        return busy_s if busy_s > _BUSY_S else 0.0

    def _log_changes(self) -> None:
        failing = self.failing()
        if failing == self._logged:
            return
        if failing:
            why = "; ".join(f"{part} ({self._broken[part]})" if part in self._broken else part for part in failing)
            _logger.warning("not ready: %s", why)
        else:
            _logger.info("ready")
        self._logged = failing
