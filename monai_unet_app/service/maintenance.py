"""Maintenance that a person has declared: alerts that it explains are not sent while it lasts. Nothing else changes."""

import time
from datetime import UTC, datetime
from pathlib import Path

from dicom_io.files import write_whole

_FILE = "maintenance"


def declare_maintenance(folder: Path, minutes: float) -> datetime:
    """Declares it from now on, also across a new start of the node; 0 minutes end it. Gives its end."""
    until = time.time() + 60 * minutes
    write_whole(folder / _FILE, f"{until:.0f}\n")
    return datetime.fromtimestamp(until, UTC)


def maintenance_until(folder: Path) -> float:
    """Its end in seconds since 1970; 0 if none was declared."""
    try:
        return float((folder / _FILE).read_text())
    except (OSError, ValueError):
        return 0.0
