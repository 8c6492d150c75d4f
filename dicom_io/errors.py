"""One error tree: every refusal of `dicom_io` is a `DicomIoError` whose text is fit for a user's eyes.

A message says what was found, what is needed and what to do, and never holds a patient's name, ID or birth date.
"""


class DicomIoError(Exception):
    """Base of everything `dicom_io` raises on purpose."""


class UnreadableFileError(DicomIoError):
    """A file is truncated, is not what its name says, or cannot be decoded."""


class SeriesSelectionError(DicomIoError):
    """No series, or more than one, fits what the caller asked for."""


class SeriesGeometryError(DicomIoError):
    """The slices of a series do not form one even grid in patient space."""


class SegmentCodingError(DicomIoError):
    """A `segments.json` does not say what the labels mean."""


class LabelError(DicomIoError):
    """A label object does not fit the image it is meant for."""


class GeometryProofError(DicomIoError):
    """What was written does not lie where the result lies; the object was deleted."""


class NetworkError(DicomIoError):
    """Another node could not be reached, or did not do what it was asked to."""
