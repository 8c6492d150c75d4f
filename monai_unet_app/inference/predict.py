"""From a preprocessed image to logits: plan the windows, run them, blend them."""

from __future__ import annotations

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
    """How a bundle slides its window; read from its `inferer`.

    Attributes:
        window: Size for each spatial axis of the image; a 2D network on a volume has 1 along its slice axis.
        overlap: Share that neighbours have in common, 0 to less than 1.
        batch: Windows in one call of the engine.
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
        settings: The bundle's window.
        progress: Called after each batch.

    Returns:
        Shape (C_out, *spatial), float32, on the image's device.
    """
    plan = plan_windows(tuple(image.shape[1:]), settings.window, settings.overlap)
    padded_image = padded(image, plan, settings.padding_mode, settings.padding_value)
    blend = Blend(plan, settings.mode, settings.sigma_scale, image.device)
    for first in range(0, len(plan.windows), settings.batch):
        places = plan.windows[first : first + settings.batch]
        batch = torch.stack([padded_image[(slice(None), *place)] for place in places])
        blend.add(places, engine(batch.to(engine.device)).to(image.device))
        if progress is not None:
            progress(first + len(places), len(plan.windows))
    return blend.result()


def padded(tensor: torch.Tensor, plan: WindowPlan, mode: str = "constant", value: float = 0.0) -> torch.Tensor:
    """Shape (C, *spatial) to (C, *padded): as the sliding window sees an image that is smaller than one window."""
    sizes = zip(plan.before, plan.padded_shape, tensor.shape[1:], strict=True)
    padding = [n for before, whole, size in reversed(list(sizes)) for n in (before, whole - size - before)]
    return F.pad(tensor[None], padding, mode, value)[0] if any(padding) else tensor


def predict_mirrored(
    image: torch.Tensor,
    engine: Engine,
    settings: WindowSettings,
    mirror_axes: Sequence[int],
    progress: Progress | None = None,
) -> torch.Tensor:
    """Mean logits of the image and of its mirror images along every combination of `mirror_axes` (spatial axes)."""
    total = torch.zeros(())
    combinations = [
        [axis + 1 for bit, axis in enumerate(mirror_axes) if number >> bit & 1]
        for number in range(2 ** len(mirror_axes))
    ]
    for axes in combinations:
        total = total + predict_logits(image.flip(axes), engine, settings, progress).flip(axes)
    return total / len(combinations)
