"""Figures as they are printed."""

import csv
import io
import math
from collections.abc import Iterable, Sequence

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def number(value: float | None, digits: int) -> str:
    """The value, or a dash where it is undefined (None, NaN or infinite)."""
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "–"


def between(interval: Sequence[float] | None, digits: int) -> str:
    """Both ends of an interval; empty without an interval."""
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else ""


def percent(share: float | None, digits: int = 0) -> str:
    """A share of 0 to 1 in per cent, or a dash where it is undefined."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def plural(number: int, noun: str) -> str:
    """The number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as the text of a CSV file: floats in six digits; an empty field for None, NaN and infinity.

    A text that a spreadsheet would run as a formula has an apostrophe before it, which `plain_field` takes away.
    """
    stream = io.StringIO()
    # The default of `csv` is \r\n; files of this package have \n on every system.
    csv.writer(stream, lineterminator="\n").writerows(map(_field, row) for row in rows)
    return stream.getvalue()


def _field(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    text = "" if value is None else str(value)
    return f"'{text}" if isinstance(value, str) and text.lstrip("'").startswith(_FORMULA) else text


def plain_field(text: str) -> str:
    """A field as it was given to `csv_text`."""
    return text[1:] if text[:1] == "'" and text.lstrip("'").startswith(_FORMULA) else text
