"""What comes in answer to one request: kept, counted, and reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from dicom_io.net.outcome import Fetched
from dicom_io.net.store import InstanceStore, Stored

OnStored = Callable[[Stored], None]


class Arrivals:
    """The instances of one study on their way into a folder."""

    def __init__(self, folder: Path, study_instance_uid: str, on_stored: OnStored) -> None:
        """Opens the folder.

        Args:
            folder: Gets the instances.
            study_instance_uid: What was asked for; instances of other studies are refused.
            on_stored: Called for each instance that is on the disk.
        """
        self.folder, self._on_stored = Path(folder), on_stored
        self._kept: dict[Path, bool] = {}
        self._problems: list[str] = []
        self.store = InstanceStore(folder, studies=frozenset({study_instance_uid}), stored=self._note)

    def refused(self, reason: str) -> None:
        """Remembers why an instance was not kept."""
        self._problems.append(reason)

    def wait_for(self, count: int, pause_s: float) -> None:
        """Waits until so many instances are here, or nothing has come for `pause_s`."""
        known, since = -1, time.monotonic()
        while len(self._kept) < count and time.monotonic() - since < pause_s:
            if len(self._kept) != known:
                known, since = len(self._kept), time.monotonic()
            time.sleep(0.05)

    def fetched(self, expected: int | None, problems: list[str] | None = None) -> Fetched:
        """The report, with what the other side said: how many it meant to send, and what it could not."""
        self.store.tidy()
        new = sum(self._kept.values())
        return Fetched(self.folder, tuple(self._kept), new, expected, (*self._problems, *(problems or [])))

    def _note(self, stored: Stored) -> None:
        self._kept.setdefault(stored.path, stored.is_new)
        self._on_stored(stored)
