"""How long a step of a training takes on this machine, measured by doing some."""

import math
import time
from typing import Any

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet

from monai_unet_app.config import resolve_device
from monai_unet_app.planning.network import NetworkPlan
from monai_unet_app.training.update import autocast, resolve_precision

_STEPS = 4
_VOXELS = 2**17  # of the window that is timed: the time of a larger one is in proportion


def seconds_of_a_window(plan: NetworkPlan, channels: int, outputs: int, device: str = "auto") -> float:
    """Seconds that a training step of this network takes for each window, without reading and varying the image."""
    where = resolve_device(device)
    network: Any = DynUNet(
        len(plan.window), channels, outputs, plan.kernels, plan.strides, plan.strides[1:], filters=plan.filters,
        norm_name=("INSTANCE", {"affine": True}),
    ).to(where)  # fmt: skip
    network.to(
        memory_format=torch.channels_last if len(plan.window) == 2 else torch.channels_last_3d
    )  # as train.yaml does
    optimizer, loss = torch.optim.AdamW(network.parameters()), DiceCELoss(sigmoid=outputs == 1, batch=True)
    window = plan.smaller_window(_VOXELS)
    image = torch.randn(2, channels, *window, device=where)
    label = torch.randint(0, 2, (2, outputs, *window), device=where).float()
    seconds: list[float] = []
    for _ in range(_STEPS):
        begun = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with autocast(resolve_precision("auto", where), where):
            answer = network(image)
        loss(answer.float(), label).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
    # The first step also allocates, and others may have to wait for what else the machine does
    return min(seconds) / len(image) * plan.voxels / math.prod(window)
