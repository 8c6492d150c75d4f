"""The errors of `dicom_io`: every refusal is a `DicomIoError` with a text for users.

A message says what was found, what is needed and what to do. It never holds a patient's name, ID or birth date.
"""


class DicomIoError(Exception):
    """Base of all errors that `dicom_io` raises itself."""


class UnreadableFileError(DicomIoError):
    """A file is truncated, has another format than its name says, or cannot be decoded."""


class SeriesSelectionError(DicomIoError):
    """No series fits the caller's choice, or several do."""


class SeriesGeometryError(DicomIoError):
    """The slices of a series do not form one even grid in patient space."""


class SegmentCodingError(DicomIoError):
    """A `segments.json` does not say what the labels mean."""


class LabelError(DicomIoError):
    """A label object does not fit its image."""


class GeometryProofError(DicomIoError):
    """A written object does not lie where the result lies; it was deleted."""


class NetworkError(DicomIoError):
    """Another node could not be reached, or refused a request."""


class RefusedError(DicomIoError):
    """A request of the other side is refused.

    Attributes:
        status: DIMSE status of the answer.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
