"""Processes of this machine, found by their arguments."""

from __future__ import annotations

from pathlib import Path


def marked(word: str) -> list[int]:
    """Process ids of those that have a word among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if word.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
