"""The choice of a series in a study, by patterns that the values of its header must contain."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydicom.datadict import tag_for_keyword

from dicom_io.reading.instances import load_dataset
from dicom_io.reading.series import SeriesRef

Patterns = Mapping[str, re.Pattern[str]]
"""DICOM keyword -> pattern that its value must contain. All patterns must be found."""


def compiled(match: Mapping[str, Any]) -> dict[str, re.Pattern[str]]:
    """The patterns of a site file or of settings; they ignore case.

    Raises:
        ValueError: A key is no DICOM keyword, or a value is no pattern.
    """
    patterns = {}
    for keyword, text in match.items():
        if tag_for_keyword(keyword) is None or not isinstance(text, str):
            raise ValueError(f"match has {keyword} = {text!r}; a DICOM keyword and a pattern are needed")
        try:
            patterns[keyword] = re.compile(text, re.IGNORECASE)
        except re.error as error:
            raise ValueError(f"the pattern {text!r} of {keyword} cannot be used ({error}); correct it") from error
    return patterns


def misfits(series: SeriesRef, match: Patterns, least_instances: int = 1) -> list[str]:
    """Why a series is not chosen, by the header of its first instance; empty for a chosen series. No values are named."""
    if series.frame_count < least_instances or not series.files:
        return [f"{least_instances} images or more"]
    # Only the needed attributes: a study may have many series, and their pixels are not looked at
    header = load_dataset(series.files[0], keywords=list(match))
    return [
        f"another {keyword}" for keyword, pattern in match.items() if not pattern.search(text_of(header.get(keyword)))
    ]


def series_for_channel(series: Sequence[SeriesRef], uid: str, match: Patterns) -> list[str]:
    """SeriesInstanceUIDs of the image series of a study, in the frame of reference of the series `uid`, that patterns pick."""
    space = _frame_of_reference(series, uid)
    fits = [
        ref.series_instance_uid
        for ref in series
        if ref.kind == "image" and ref.series_instance_uid != uid and not misfits(ref, match)
    ]
    return [one for one in dict.fromkeys(fits) if _frame_of_reference(series, one) == space]


def _frame_of_reference(series: Sequence[SeriesRef], uid: str) -> str:
    first = next(part for part in series if part.series_instance_uid == uid and part.kind == "image")
    return str(first.instances[0].header.get("FrameOfReferenceUID") or "")


def text_of(value: Any) -> str:
    """The value of an attribute as text for a pattern; several values are joined by backslashes."""
    if value is None:
        return ""
    # PS3.5 6.4: a backslash separates the values of an attribute
    return str(value) if isinstance(value, str) or not hasattr(value, "__iter__") else "\\".join(map(str, value))
