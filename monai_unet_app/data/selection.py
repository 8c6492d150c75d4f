"""Which series of a study are meant: by patterns that values of their headers must contain."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydicom.datadict import tag_for_keyword

from dicom_io.reading.instances import load_dataset
from dicom_io.reading.series import SeriesRef

Patterns = Mapping[str, re.Pattern[str]]
"""DICOM keyword -> pattern that its value must contain; all must fit."""


def compiled(match: Mapping[str, Any]) -> dict[str, re.Pattern[str]]:
    """The patterns of a site file or of settings; upper and lower case are alike.

    Raises:
        ValueError: A key that is no DICOM keyword, or a value that is no pattern; says which, what is needed and what to do.
    """
    found = {}
    for keyword, text in match.items():
        if tag_for_keyword(keyword) is None or not isinstance(text, str):
            raise ValueError(f"match has {keyword} = {text!r}; a DICOM keyword and a pattern are needed")
        try:
            found[keyword] = re.compile(text, re.IGNORECASE)
        except re.error as error:
            raise ValueError(f"the pattern {text!r} of {keyword} cannot be used ({error}); correct it") from error
    return found


def misfits(series: SeriesRef, match: Patterns, least_instances: int = 1) -> list[str]:
    """What of a series is not what is meant, by the header of its first instance: keywords, no values; empty: it fits."""
    if series.frame_count < least_instances or not series.files:
        return [f"{least_instances} images or more"]
    header = load_dataset(series.files[0], with_pixels=False, keywords=list(match))
    return [
        f"another {keyword}" for keyword, pattern in match.items() if not pattern.search(text_of(header.get(keyword)))
    ]


def text_of(value: Any) -> str:
    """The value of an attribute as a pattern sees it; several values with backslashes between them."""
    if value is None:
        return ""
    return str(value) if isinstance(value, str) or not hasattr(value, "__iter__") else "\\".join(map(str, value))
