"""The reference bundles and the example data that are shipped with the code, in a wheel or in the repository."""

from importlib.resources import files
from pathlib import Path
from typing import Literal


def shipped(kind: Literal["bundles", "examples"]) -> Path:
    """The folder of the installed wheel, or of the repository that the package is run from."""
    installed = Path(str(files("monai_unet_app"))) / "_shipped" / kind
    return installed if installed.is_dir() else Path(__file__).resolve().parents[1] / kind
