"""A registry without models, which takes MLflow some seconds to make and a copy of its folder milliseconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from once import made_once

from monai_unet_app.lifecycle.registry import open_registry


def _make(folder: Path) -> None:
    with open_registry(folder / "registry") as registry:
        assert registry.models() == []


def empty_registry(factory: pytest.TempPathFactory, folder: Path) -> Path:
    """Writes `folder`, a registry that nothing was registered in; its trail and its key are copies of one registry's."""
    return Path(shutil.copytree(made_once(factory, "empty_registry", _make) / "registry", folder))
