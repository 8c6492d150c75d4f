"""Sizes and numbers of objects with their intervals as they are printed: on screen, on a review page, in a DICOM report."""

from collections.abc import Mapping, Sequence
from typing import Any


def amount(row: Mapping[str, Any]) -> float:
    """The size in a row of `result.json`, in `unit`."""
    return float(next(row[name] for name in ("volume_ml", "pixels", "voxels") if name in row))


def unit(row: Mapping[str, Any]) -> str:
    """The unit of the sizes in a row: "mL" or "px"."""
    return "mL" if "volume_ml" in row else "px"


def interval(row: Mapping[str, Any]) -> Sequence[float] | None:
    """The interval of the size in a row; None without one."""
    return row.get("volume_interval_ml") or row.get("pixels_interval")


def digits(size: float, of: str) -> int:
    """Number of decimals: three significant digits for a volume, none for pixels and objects."""
    return 0 if of != "mL" else 3 if size < 1 else 2 if size < 100 else 1


def in_unit(size: float, of: str) -> str:
    """A size with its unit."""
    return f"{size:.{digits(size, of)}f} {of}"


def size_text(row: Mapping[str, Any]) -> str:
    """The size in a row with its unit, and its area where that is known."""
    area = f" ({row['area_mm2']:.1f} mm²)" if "area_mm2" in row else ""
    return in_unit(amount(row), unit(row)) + area


def interval_text(size: float, ends: Sequence[float] | None, of: str) -> str:
    """Both ends of an interval; before them, how a size that lies outside is probably off. Empty without an interval.

    Args:
        size: What the interval is about.
        ends: Low and high.
        of: The unit of `size`: "mL" or "px", or "objects" for their number.
    """
    if not ends:
        return ""
    low, high = ends
    words = ("few", "many") if of == "objects" else ("small", "large")
    off = "" if low <= size <= high else f"probably too {words[size > high]}: "
    return f"{off}{low:.{digits(size, of)}f} to {high:.{digits(size, of)}f}"
