"""Settings of one run, frozen. Science is in the bundle, sites come later; these are the CLI's flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dicom_io.read import ReadOptions
from monai_unet_app.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PredictConfig:
    """How one prediction runs.

    Attributes:
        tta: Average over the mirror images that the bundle was trained with.
        reading: Which series, which time point, and what may be repaired, where the input is DICOM.
    """

    tta: bool = False
    reading: ReadOptions = field(default_factory=ReadOptions)


def resolve_device(name: str) -> torch.device:
    """The torch device for a flag's value: "auto" takes CUDA, else Apple's MPS, else the CPU; or for instance "cuda:1".

    Raises:
        UsageError: No such device on this machine.
    """
    import torch  # takes seconds: not before a device is asked for

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r} is not usable here; cuda, cuda:N, mps or cpu is needed; leave --device out to take what is "
            "there"
        ) from error
    return device
