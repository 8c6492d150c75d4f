"""Fingerprints of files and data sets, to know them again whatever folder they lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path


def file_sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes, or of the bytes of all files below a folder in order of their names."""
    path, digest = Path(path), hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def dataset_sha256(rows: Iterable[Mapping[str, str]]) -> str:
    """Hex digest over every case's id and the bytes of its image and label; order and folders do not count."""
    lines = [
        f"{row['id']} {key} {file_sha256(row[key])}\n"
        for row in sorted(rows, key=lambda row: row["id"])
        for key in ("image", "label")
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
