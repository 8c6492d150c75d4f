"""Hints by which a person finds a study: header values that the site file names, such as the accession number.

Hints identify a patient. They are read from the received files when a reviewer asks, are kept in memory only, and never reach
the database, the audit trail, a log or a URL.
"""

from collections.abc import Sequence
from pathlib import Path

from pydicom.datadict import dictionary_description

from dicom_io.errors import DicomIoError
from dicom_io.reading.instances import READ_ERRORS, load_dataset

_LEAST_CHARACTERS = 3  # of a search; fewer would list all studies
_LONGEST = 64


class Hints:
    """The header values of studies by which a site finds them."""

    def __init__(self, received: Path, keywords: Sequence[str]) -> None:
        """No file is read yet.

        Args:
            received: Folder with one folder for each study.
            keywords: DICOM keywords of the values, in the order in which they are shown; empty: there are no hints.
        """
        self._received, self._keywords = received, list(keywords)
        self._read: dict[str, tuple[str, ...]] = {}

    @property
    def names(self) -> list[str]:
        """The name of each value in the DICOM dictionary."""
        return [dictionary_description(keyword) for keyword in self._keywords]

    def of(self, study: str) -> tuple[str, ...]:
        """The values of a study, one for each name; empty texts where its headers lack a value or cannot be read."""
        values = self._read.get(study)
        if values is None and self._keywords:
            values = self._values(study)
            if values is not None:
                self._read[study] = values
        return values or ("",) * len(self._keywords)

    def find(self, text: str) -> list[str]:
        """Studies with a value that contains a text, regardless of case; none for a text of fewer than 3 characters."""
        part = text.strip().casefold()
        if not self._keywords or len(part) < _LEAST_CHARACTERS or not self._received.is_dir():
            return []
        studies = {path.name for path in self._received.iterdir() if path.is_dir() and not path.name.startswith(".")}
        # Values identify a patient: they leave the memory with their study.
        for gone in self._read.keys() - studies:
            self._read.pop(gone, None)
        return sorted(study for study in studies if any(part in value.casefold() for value in self.of(study)))

    def _values(self, study: str) -> tuple[str, ...] | None:
        """The values in an instance of a study; None if it has no instance, or the instance cannot be read."""
        path = next((self._received / study).rglob("*.dcm"), None)
        if path is None:
            return None
        try:
            header = load_dataset(path, keywords=self._keywords)
            return tuple(" ".join(str(header.get(keyword) or "").split())[:_LONGEST] for keyword in self._keywords)
        except (DicomIoError, *READ_ERRORS):  # type: ignore[misc]  # READ_ERRORS is a tuple of any length
            return None
