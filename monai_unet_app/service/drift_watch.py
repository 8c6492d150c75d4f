"""What the node knows about drift, for its metrics: asked for once an hour, in a process of its own."""

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from monai_unet_app.errors import AppError
from monai_unet_app.service.approvals import drift_of

if TYPE_CHECKING:
    from monai_unet_app.service.node import Node

_EVERY_S = 3600.0
_logger = logging.getLogger(__name__)


class DriftWatch:
    """Keeps the last answer. The node's loop calls `run`, which never waits."""

    def __init__(self, node: "Node") -> None:
        """Nothing is known before the first hour is over."""
        self._node, self._last = node, time.monotonic()
        self._asking = threading.Thread(target=self.ask)
        self.rules: list[dict[str, Any]] = []
        """What was said of each rule, see `lifecycle.watch.RuleWatch.document`."""

    def run(self) -> None:
        """Asks again when an hour is over, unless the last answer has not come yet."""
        if time.monotonic() - self._last >= _EVERY_S and not self._asking.is_alive():
            self._last = time.monotonic()
            self._asking = threading.Thread(target=self.ask, name="drift", daemon=True)
            self._asking.start()

    def ask(self) -> None:
        """Asks now, and logs a rule that has drifted since it was asked last."""
        before = {rule["rule"]: rule["state"] for rule in self.rules}
        try:
            self.rules = drift_of(self._node)
        except (AppError, OSError) as error:
            _logger.warning("drift was not looked for: %s", error)
            return
        for rule in self.rules:
            if rule["state"] == "drift" != before.get(rule["rule"]):
                _logger.warning("rule %s: %s", rule["rule"], rule["sentence"])
