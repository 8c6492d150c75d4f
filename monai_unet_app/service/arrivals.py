"""Studies that are coming in, and when nothing more of a study is to be expected."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dicom_io.errors import DicomIoError
from dicom_io.net.instance_store import Stored
from dicom_io.reading.instances import READ_ERRORS, load_dataset

_SHORTER = 0.2
"""Share of the usual waiting time for a study that has all instances that its headers tell of."""

_COUNTS = ("ImagesInAcquisition", "NumberOfSlices")  # PS3.3 C.7.6.1, C.8.9.4


@dataclass
class _ArrivingStudy:
    """A study that is coming in.

    Attributes:
        unrecorded: Instances that the queue does not know of.
        last: Time of the last instance by the monotonic clock.
        is_declared: The study was declared complete.
        here: SeriesInstanceUID -> number of its instances that are here.
        told: SeriesInstanceUID -> the largest count that one of their headers states; 0 where none states any.
    """

    unrecorded: int = 0
    last: float = field(default_factory=time.monotonic)
    is_declared: bool = False
    here: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)


class Arrivals:
    """Studies that are coming in. The threads that receive add instances, the node's loop asks."""

    def __init__(self) -> None:
        self._studies: dict[str, _ArrivingStudy] = {}
        self._lock = threading.Lock()

    def __contains__(self, study: str) -> bool:
        with self._lock:
            return study in self._studies

    def unrecorded(self) -> dict[str, int]:
        """Each study that is coming in -> number of its instances that the queue does not know of."""
        with self._lock:
            return {study: arriving.unrecorded for study, arriving in self._studies.items()}

    def add_instance(self, stored: Stored) -> None:
        """Adds an instance that is on the disk and was not there before."""
        study, series = stored.study_instance_uid, stored.series_instance_uid
        self.add(study, 1, series)
        # The header is read outside the lock, so that no other sender waits for the disk.
        told = _count_in_header(stored.path)
        with self._lock:
            arriving = self._studies.get(study)
            if arriving is not None and series in arriving.here:  # it may just have become complete
                # Of headers that state different counts the largest holds (decision 0026).
                arriving.told[series] = max(told, arriving.told[series])

    def add(self, study: str, count: int, series: str = "") -> None:
        """Adds so many files of a study that were not on the disk before; 0: the study is on the disk already and arrives."""
        with self._lock:
            arriving = self._studies.setdefault(study, _ArrivingStudy())
            arriving.unrecorded, arriving.last = arriving.unrecorded + count, time.monotonic()
            arriving.is_declared = False
            arriving.here[series] += count

    def declare_complete(self, study: str) -> None:
        """Notes that a study was declared complete; this holds until another instance comes."""
        with self._lock:
            if study in self._studies:
                self._studies[study].is_declared = True

    def is_declared(self, study: str) -> bool:
        """Whether a study was declared complete, and no instance has come since."""
        with self._lock:
            return study in self._studies and self._studies[study].is_declared

    def mark_recorded(self, study: str, count: int) -> None:
        """Notes that so many more instances are known to the queue."""
        with self._lock:
            self._studies[study].unrecorded -= count

    def is_complete(self, study: str, stable_s: float) -> bool:
        """Whether all instances of a study are recorded and no more are to be expected.

        That is so after `stable_s` seconds without an instance; after a fifth of that time where every series has all instances
        that its headers tell of; and at once where the study was declared complete.
        """
        with self._lock:
            arriving = self._studies[study]
            has_all = all(0 < arriving.told[series] <= here for series, here in arriving.here.items())
            silent_s = time.monotonic() - arriving.last
            is_quiet = silent_s >= stable_s * (_SHORTER if has_all else 1.0)
            # A job is made from what the queue knows, so a study with unrecorded instances is never complete.
            return not arriving.unrecorded and (arriving.is_declared or is_quiet)

    def remove(self, study: str) -> None:
        """Removes a study that is complete, unless another instance has just come: that is for another version."""
        with self._lock:
            if not self._studies[study].unrecorded:
                del self._studies[study]


def _count_in_header(path: Path) -> int:
    """How many instances the series of an instance has by its header; 0 where the header does not say."""
    try:
        header = load_dataset(path, keywords=_COUNTS)
        return max(int(header[keyword].value) for keyword in _COUNTS if header.get(keyword))
    except (DicomIoError, ValueError, *READ_ERRORS):  # type: ignore[misc]  # a count that cannot be read says nothing
        return 0
