"""Figures as they are printed."""

from collections.abc import Sequence


def number(value: float | None, digits: int) -> str:
    """The value, or a dash where it is undefined (None, NaN or infinite)."""
    defined = value is not None and abs(value) < float("inf")
    return f"{value:.{digits}f}" if defined else "–"


def between(interval: Sequence[float] | None, digits: int) -> str:
    """Both ends; empty where there is no interval."""
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else ""


def percent(share: float | None, digits: int = 0) -> str:
    """A share of 0 to 1 in per cent, or a dash where it is undefined."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def plural(number: int, noun: str) -> str:
    """So many of these."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
