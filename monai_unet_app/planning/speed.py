"""What a step of a training takes: its time on this machine, measured by doing some, and its memory beside other networks'."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import Tensor

from monai_unet_app.config import resolve_device
from monai_unet_app.planning.family import NetworkChoice, built, written
from monai_unet_app.planning.network import NetworkPlan
from monai_unet_app.training.update import autocast, loss_of, resolve_precision

_STEPS = 4
_VOXELS = 2**17  # of the window that is timed: the time of a larger one is in proportion
_LEAST_SHARE = 0.5  # of the cores, that a step uses on a quiet machine
_BYTES_A_WEIGHT = 20  # the weight, its gradient, two moments and the average


def seconds_of_a_window(
    plan: NetworkPlan, channels: int, outputs: int, choice: NetworkChoice | None = None, device: str = "auto",
    tell: Callable[[str], None] = lambda line: None,
) -> float:  # fmt: skip
    """Seconds that a training step of this network takes for each window, without reading and varying the image.

    On a CPU that other processes use as well, they are those of a machine on which it gets half of its cores: a step waits
    for the others, but takes no more core-seconds.

    Args:
        plan: Window and levels.
        channels: Of an image.
        outputs: Labels.
        choice: The network; None takes that of a plan.
        device: As in `resolve_device`.
        tell: Takes a line about seconds and core-seconds.
    """
    where = resolve_device(device)
    timed = replace(plan, window=plan.smaller_window(_VOXELS))
    network: Any = built(written(choice or NetworkChoice(), timed, channels)[0], timed, outputs).train().to(where)
    network.to(
        memory_format=torch.channels_last if len(plan.window) == 2 else torch.channels_last_3d
    )  # as train.yaml does
    optimizer, loss = torch.optim.AdamW(network.parameters()), DiceCELoss(sigmoid=outputs == 1, batch=True)
    image = torch.randn(2, channels, *timed.window, device=where)
    label = torch.randint(0, 2, (2, outputs, *timed.window), device=where).float()
    taken: list[tuple[float, float]] = []
    for _ in range(_STEPS):
        begun, core_begun = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        with autocast(resolve_precision("auto", where, network), where, network):
            answer = network(image)
        loss_of(loss, answer, label).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        taken.append((time.perf_counter() - begun, time.process_time() - core_begun))
    # The first step also allocates, and others may have to wait for what else the machine does
    (seconds, core), cores = min(taken), torch.get_num_threads()
    line = f"a training step: {seconds:.2g} s, {core:.2g} core-seconds, {core / seconds:.1f} of {cores} cores"
    if where.type == "cpu" and core < _LEAST_SHARE * cores * seconds:
        seconds = core / (_LEAST_SHARE * cores)
        line += (
            f"; other processes use this machine, so {seconds:.2g} s are planned; if they stay, give a longer --time"
        )
    tell(line)
    return seconds / len(image) * plan.voxels / timed.voxels


def memory_beside(plan: NetworkPlan, channels: int, outputs: int, choice: NetworkChoice) -> tuple[float, float]:
    """What a training keeps in memory beside one of the network that a plan takes by itself.

    Nothing is computed: torch tells on its "meta" device what the backward pass would need.

    Returns:
        What a window needs, as a multiple; and bytes of the larger number of weights, below 0 for a smaller one.
    """
    (own, weights), (usual, fewer) = (_kept(plan, channels, outputs, one) for one in (choice, NetworkChoice()))
    return own / usual, _BYTES_A_WEIGHT * (weights - fewer)


def _kept(plan: NetworkPlan, channels: int, outputs: int, choice: NetworkChoice) -> tuple[int, int]:
    """Bytes of all different tensors that the backward pass of a window needs, and the number of weights."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    network = built(written(choice, plan, channels)[0], plan, outputs).train().to("meta")
    weights = list(network.parameters())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(1, channels, *plan.window, device="meta"))
    places = {weight.untyped_storage()._cdata for weight in weights}
    held = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in places)
    return held, sum(weight.numel() for weight in weights)
