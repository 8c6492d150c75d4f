"""From a preprocessed image to logits: windows are planned, run through the network, and blended."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from monai_unet_app.errors import InputRefusedError
from monai_unet_app.inference.blend import Blend, sum_bytes
from monai_unet_app.inference.engines import Engine
from monai_unet_app.inference.spool import Rows
from monai_unet_app.inference.windows import Window, WindowPlan, WindowSettings

Progress = Callable[[int, int], None]  # (windows done, windows in all)
OnLayer = Callable[[Tensor], None]  # (what a layer made of a batch)


def predict_rows(
    image: Tensor,
    engine: Engine,
    settings: WindowSettings,
    progress: Progress | None = None,
    on_layer: OnLayer = lambda layer: None,
) -> Iterator[Rows]:
    """Logits of one image by sliding window, row by row: rows are given as soon as no window can change them.

    Args:
        image: Shape (C, *spatial), float32, preprocessed; perhaps a MetaTensor.
        engine: Runs the windows.
        settings: The sliding window of the bundle.
        progress: Called after each batch.
        on_layer: Called with `Answer.layer` of each batch, where the engine gives it.

    Yields:
        Neighbouring rows, float32, on the image's device, in the order of the first spatial axis.

    Raises:
        InputRefusedError: A logit is infinite or NaN.
    """
    image = image.as_subclass(Tensor)
    plan = settings.plan(tuple(image.shape[1:]))
    padded_image = padded(image, plan, settings)
    blend = None
    for first in range(0, len(plan.windows), settings.batch):
        windows = plan.windows[first : first + settings.batch]
        batch = torch.stack([_seen(padded_image, window) for window in windows])
        # The image stays where it is; the accelerator holds one batch of windows at a time, and the sums if they fit
        answer = engine(_moved(batch, engine.device))
        if answer.layer is not None:
            on_layer(answer.layer)
        if blend is None:
            channels = answer.logits.shape[1]
            place = _place_of_sums(plan, channels, engine.device)
            blend = Blend(plan, settings, place, channels, answer.networks)
        blend.add(windows, answer.logits.to(blend.device))
        del answer
        if progress is not None:
            progress(first + len(windows), len(plan.windows))
        for start, rows in blend.finished():
            if not torch.isfinite(rows).all():
                raise InputRefusedError(
                    "the network's answer to it is not finite; look at its intensities with monai-unet inspect"
                )
            yield start, rows.to(image.device)


def _moved(batch: Tensor, device: torch.device) -> Tensor:
    """The windows on the device; to CUDA from pinned memory, so that the copy waits for no batch before it."""
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)


def _place_of_sums(plan: WindowPlan, channels: int, device: torch.device) -> torch.device:
    """The device if it is CUDA and the sums take less than half of what it has free; else the CPU."""
    if device.type == "cuda" and 2 * sum_bytes(plan, channels) < torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")


def _seen(image: Tensor, window: Window) -> Tensor:
    """A window of the image, shape (C, *window), as the network sees it."""
    # Logits are averaged rather than probabilities: a calibration rescales logits, and `calibration_tta` is fitted to
    # these means
    return image[(slice(None), *window.place)].flip([axis + 1 for axis in window.mirrored])


def padded(tensor: Tensor, plan: WindowPlan, settings: WindowSettings) -> Tensor:
    """The tensor with the padding of the plan, for an image that is smaller than one window.

    Args:
        tensor: Shape (C, *spatial).
        plan: Made for this spatial shape.
        settings: State the values of the padding.

    Returns:
        Shape (C, *plan.padded_shape).
    """
    sides = zip(plan.inside, plan.padded_shape, strict=True)
    # torch.nn.functional.pad takes the last axis first
    padding = [n for side, size in reversed(list(sides)) for n in (side.start, size - side.stop)]
    if not any(padding):
        return tensor
    return F.pad(tensor[None], padding, settings.padding_mode, settings.padding_value)[0]
