"""What takes long to make is made once for all processes of a run of tests, behind a file lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` has filled, the first time in this run; whoever changes it copies it before.

    Args:
        factory: The fixture `tmp_path_factory`.
        name: Of the folder, another one for each content.
        make: Called with the folder, which exists. When it fails nothing is kept, and the next test that asks tries again.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a folder of its own in that of the run
        root = root.parent
    folder = root / "made_once" / name
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            partial = folder.with_name(f"{name}.partial")
            partial.mkdir(exist_ok=True)
            make(partial)
            partial.rename(folder)
    return folder
