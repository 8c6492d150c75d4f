"""From a preprocessed image to logits: windows are planned, run through the network, and blended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

from monai_unet_app.inference.blend import Blend
from monai_unet_app.inference.engines import Engine
from monai_unet_app.inference.windows import WindowPlan, plan_windows

Progress = Callable[[int, int], None]  # (windows done, windows in all)


@dataclass(frozen=True)
class WindowSettings:
    """The sliding window of a bundle, as its `inferer` states it.

    Attributes:
        window: Size along each spatial axis of the image, in voxels; a 2D network on a volume has 1 along its slice axis.
        overlap: Share of a window that its neighbour covers too, 0 to less than 1.
        batch: Number of windows in one call of the engine.
        mode: "gaussian" or "constant".
        sigma_scale: Width of the Gaussian as a share of the window.
        padding_mode: As in `torch.nn.functional.pad`.
        padding_value: For padding_mode "constant".
    """

    window: tuple[int, ...]
    overlap: float
    batch: int
    mode: str
    sigma_scale: float
    padding_mode: str
    padding_value: float


def predict_logits(
    image: torch.Tensor, engine: Engine, settings: WindowSettings, progress: Progress | None = None
) -> torch.Tensor:
    """Logits of one image by sliding window.

    Args:
        image: Shape (C, *spatial), float32, preprocessed.
        engine: Runs the windows.
        settings: The sliding window of the bundle.
        progress: Called after each batch.

    Returns:
        Shape (C_out, *spatial), float32, on the image's device.
    """
    plan = plan_windows(tuple(image.shape[1:]), settings.window, settings.overlap)
    padded_image = padded(image, plan, settings.padding_mode, settings.padding_value)
    blend = Blend(plan, settings.mode, settings.sigma_scale, image.device)
    for first in range(0, len(plan.windows), settings.batch):
        windows = plan.windows[first : first + settings.batch]
        batch = torch.stack([padded_image[(slice(None), *window)] for window in windows])
        # The image and the sums stay on the image's device; the accelerator holds one batch of windows at a time
        blend.add(windows, engine(batch.to(engine.device)).to(image.device))
        if progress is not None:
            progress(first + len(windows), len(plan.windows))
    return blend.result()


def padded(tensor: torch.Tensor, plan: WindowPlan, mode: str = "constant", value: float = 0.0) -> torch.Tensor:
    """The tensor with the padding of the plan, for an image that is smaller than one window.

    Args:
        tensor: Shape (C, *spatial).
        plan: Made for this spatial shape.
        mode: As in `torch.nn.functional.pad`.
        value: For mode "constant".

    Returns:
        Shape (C, *plan.padded_shape).
    """
    sizes = zip(plan.before, plan.padded_shape, tensor.shape[1:], strict=True)
    # torch.nn.functional.pad takes the last axis first
    padding = [n for before, padded, size in reversed(list(sizes)) for n in (before, padded - size - before)]
    return F.pad(tensor[None], padding, mode, value)[0] if any(padding) else tensor


def predict_mirrored(
    image: torch.Tensor,
    engine: Engine,
    settings: WindowSettings,
    mirror_axes: Sequence[int],
    progress: Progress | None = None,
) -> torch.Tensor:
    """Mean logits (C, *spatial) of the image and of its mirror images along every combination of `mirror_axes`.

    Args:
        image: As in `predict_logits`.
        engine: As in `predict_logits`.
        settings: As in `predict_logits`.
        mirror_axes: Spatial axes, counted from 0.
        progress: Called after each batch; every mirror image counts its windows anew.

    Returns:
        As `predict_logits`.
    """
    # Logits are averaged rather than probabilities: a calibration rescales logits, and `calibration_tta` is fitted to
    # these means. The mirrored answer is mirrored back before it is added.
    total = torch.zeros(())
    combinations = [
        [axis + 1 for bit, axis in enumerate(mirror_axes) if number >> bit & 1]
        for number in range(2 ** len(mirror_axes))
    ]
    for axes in combinations:
        total = total + predict_logits(image.flip(axes), engine, settings, progress).flip(axes)
    return total / len(combinations)
