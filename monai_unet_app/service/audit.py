"""The audit trail: who had what done to which study by which model, in lines that are chained by their digests.

Each line is a JSON object with `n`, `time`, `event`, what happened, `previous` (sha256 of the line before) and `sha256` (of
this line without it). Lines are only added. A line that was changed, taken out or put in breaks the chain at its place; lines
taken off the end do not, so whoever must prove more keeps the last digest elsewhere. No patient's identity is in it: studies
are named by their UIDs.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monai_unet_app.errors import InputRefusedError

BEGIN = "0" * 64
"""What the first line names as the digest before it."""


@dataclass(frozen=True)
class Verified:
    """A trail that is whole.

    Attributes:
        lines: How many.
        last: sha256 of the last one.
    """

    lines: int
    last: str


class AuditTrail:
    """A file that grows; one process at a time may write to it."""

    def __init__(self, path: Path) -> None:
        """Opens the trail, making it if need be; half a line that a crash left is moved to a file beside it.

        Raises:
            InputRefusedError: The chain is broken.
        """
        self.path, self._lock = path, threading.Lock()
        path.touch(mode=0o640)
        _set_torn_line_aside(path)
        found = verify(path)
        self._count, self._last = found.lines, found.last

    def write(self, event: str, **facts: Any) -> None:
        """Adds a line and forces it to the disk. Raises OSError where that cannot be done; nothing is added then."""
        with self._lock:
            line = {
                "n": self._count + 1,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "event": event,
                **facts,
                "previous": self._last,
            }
            digest = _digest(line)
            _append(self.path, json.dumps({**line, "sha256": digest}, ensure_ascii=False) + "\n")
            self._count, self._last = self._count + 1, digest

    def try_out(self) -> None:
        """Whether a line could be added now. Raises OSError if not."""
        with self._lock, self.path.open("rb+"):
            pass


def verify(path: Path) -> Verified:
    """Follows the chain from the first line to the last.

    Raises:
        InputRefusedError: A line is none, is not what it was, or does not follow the one before; the message names it.
    """
    count, last = 0, BEGIN
    for number, line in lines(path):
        broken = (
            f"{path.name}: line {number} is not what was written there, or lines before it are missing; an unchanged trail is "
            "needed; compare it with a copy that is kept elsewhere"
        )
        try:
            content = json.loads(line)
            digest = content.pop("sha256")
            fits = content["previous"] == last and content["n"] == number and digest == _digest(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputRefusedError(broken) from error
        if not fits:
            raise InputRefusedError(broken)
        count, last = number, digest
    return Verified(count, last)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line. Raises InputRefusedError if there is no such file."""
    try:
        with path.open(encoding="utf-8") as stream:
            yield from enumerate(stream, start=1)
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefusedError(
            f"{path.name} cannot be read ({type(error).__name__}); a node's audit trail is needed"
        ) from error


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """What the lines of a whole trail say."""
    return (json.loads(text) for _, text in lines(path))


def _digest(line: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(line, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _append(path: Path, text: str) -> None:
    size = path.stat().st_size
    try:
        with path.open("ab") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        os.truncate(path, size)  # a full disk takes half a line
        raise


def _set_torn_line_aside(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.with_suffix(".torn").open("ab") as stream:
            stream.write(content[whole:] + b"\n")
        os.truncate(path, whole)
