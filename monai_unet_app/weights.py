"""Files of weights: read without running code, and by the names of the bare network."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_unet_app.errors import BundleError


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What a file of torch holds, on the CPU; no code in it is run. Raises BundleError if it is damaged."""
    import torch

    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle or zip fails in any way
        raise BundleError(
            f"{path.parent.parent.name}: {path.parent.name}/{path.name} is damaged, or holds more than weights "
            f"({type(error).__name__}); a whole file is needed; copy it again, or train again"
        ) from error
    return saved


def sha256_of(path: Path) -> str:
    """The hex digest of a file, which is read in parts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unwrapped(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights by the names of the bare network, without what `DataParallel` and `torch.compile` put before them."""
    return {re.sub(r"^(?:(?:module|_orig_mod)\.)+", "", name): value for name, value in weights.items()}


def misfit(error: Exception) -> str:
    """The first lines of an error about weights that do not fit: torch names every tensor of the network."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2])[:300] + (f" ... and {len(lines) - 2} more" if len(lines) > 2 else "")
