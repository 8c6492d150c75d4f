"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of larger real data beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MONAI_UNET_SHARED", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"extended data are absent (looked for {folder.name}/ beside the repository)")
    return folder
