"""What comes in: which studies are arriving, and when nothing more of one is to be expected."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from dicom_io.errors import DicomIoError
from dicom_io.net.store import Stored
from dicom_io.reading.instances import READ_ERRORS, load_dataset

_SOONER = 0.2  # of the usual time, for a study that has all that its headers tell of
_HINTS = ("ImagesInAcquisition", "NumberOfSlices")  # PS3.3 C.7.6.1, C.8.9.4


@dataclass
class _Arriving:
    """A study that is coming in.

    Attributes:
        unrecorded: Instances that the queue does not know of.
        last: When the last came, by the monotonic clock.
        declared: Somebody has said that it is whole.
        missing: Series -> instances that it still lacks by its first header; None where that does not say.
    """

    unrecorded: int = 0
    last: float = field(default_factory=time.monotonic)
    declared: bool = False
    missing: dict[str, int | None] = field(default_factory=dict)


class Arrivals:
    """Studies that are coming in. The threads of the doors tell of them, the node's loop asks."""

    def __init__(self) -> None:
        self._studies: dict[str, _Arriving] = {}
        self._lock = threading.Lock()

    def __contains__(self, study: str) -> bool:
        with self._lock:
            return study in self._studies

    def studies(self) -> list[str]:
        """UIDs of all that are coming in."""
        with self._lock:
            return list(self._studies)

    def stored(self, stored: Stored) -> None:
        """An instance is on the disk that was not there before."""
        study, series = stored.study_instance_uid, stored.series_instance_uid
        if self.came(study, 1, series) and (told := _told_count(stored.path)) is not None:
            with self._lock:
                if study in self._studies:
                    self._studies[study].missing[series] = told - 1

    def came(self, study: str, count: int, series: str = "") -> bool:
        """So many files of a study are on the disk that were not there before; whether they are the first of their series."""
        with self._lock:
            one = self._studies.setdefault(study, _Arriving())
            one.unrecorded, one.last, one.declared = one.unrecorded + count, time.monotonic(), False
            is_first, left = series not in one.missing, one.missing.get(series)
            one.missing[series] = None if left is None else left - count
        return is_first

    def declare(self, study: str) -> None:
        """Somebody who knows says that a study is whole."""
        with self._lock:
            if study in self._studies:
                self._studies[study].declared = True

    def is_declared(self, study: str) -> bool:
        """Whether somebody said so, and nothing came since."""
        with self._lock:
            return study in self._studies and self._studies[study].declared

    def unrecorded(self, study: str) -> int:
        """Instances that the queue does not know of."""
        with self._lock:
            return self._studies[study].unrecorded

    def recorded(self, study: str, count: int) -> None:
        """So many more are known to the queue."""
        with self._lock:
            self._studies[study].unrecorded -= count

    def is_quiet(self, study: str, stable_s: float) -> bool:
        """Whether all is recorded and nothing more is to be expected: after so long, or sooner where every series has all that
        its first header told of, or at once where somebody said that the study is whole.
        """
        with self._lock:
            one = self._studies[study]
            has_all = bool(one.missing) and all(left is not None and left <= 0 for left in one.missing.values())
            silent_s = time.monotonic() - one.last
            return not one.unrecorded and (one.declared or silent_s >= stable_s * (_SOONER if has_all else 1.0))

    def settled(self, study: str) -> None:
        """It is complete; unless more has just come, which is for another version."""
        with self._lock:
            if not self._studies[study].unrecorded:
                del self._studies[study]


def _told_count(path: Path) -> int | None:
    """How many instances the series of an instance has by its header; None where it does not say."""
    try:
        header = load_dataset(path, with_pixels=False, keywords=_HINTS)
        told = [int(header[keyword].value) for keyword in _HINTS if header.get(keyword)]
    except (DicomIoError, *READ_ERRORS):  # type: ignore[misc]  # a hint that cannot be read is none
        return None
    return told[0] if told and told[0] > 0 else None
