"""The instances that come in answer to one retrieve request: kept, counted, and reported."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dicom_io.net.instance_store import InstanceStore, Stored
from dicom_io.net.outcome import Fetched
from dicom_io.net.query import Query

OnStored = Callable[[Stored], None]


class Retrieval:
    """One study on its way into a folder."""

    def __init__(self, folder: Path, query: Query, on_stored: OnStored) -> None:
        """Opens the folder.

        Args:
            folder: Gets the instances.
            query: The requested study, and series; instances of others are refused.
            on_stored: Called for each instance that is on the disk.
        """
        self.folder, self._on_stored = Path(folder), on_stored
        self._is_new: dict[Path, bool] = {}
        self._problems: list[str] = []
        self.store = InstanceStore(
            folder, studies=frozenset({query.study_instance_uid}), series=query.series_instance_uid, stored=self._note
        )

    def note_refusal(self, reason: str) -> None:
        """Keeps the reason why an instance was refused, for the report."""
        self._problems.append(reason)

    def wait_for(self, count: int, pause_s: float) -> None:
        """Waits until `count` instances are here, or none has come for `pause_s`."""
        known, since_s = -1, time.monotonic()
        while len(self._is_new) < count and time.monotonic() - since_s < pause_s:
            if len(self._is_new) != known:
                known, since_s = len(self._is_new), time.monotonic()
            time.sleep(0.05)

    def result(self, expected: int | None, problems: Sequence[str] = ()) -> Fetched:
        """The report, with how many instances the other side meant to send, and the problems that it named."""
        self.store.tidy()
        new = sum(self._is_new.values())
        return Fetched(self.folder, tuple(self._is_new), new, expected, (*self._problems, *problems))

    def _note(self, stored: Stored) -> None:
        # An instance may be sent twice; the first time says whether it is new.
        self._is_new.setdefault(stored.path, stored.is_new)
        self._on_stored(stored)
