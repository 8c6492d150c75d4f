"""Network, window and length of a training: the widest network whose training fits into the time and the memory."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from monai_unet_app.errors import InputRefusedError
from monai_unet_app.planning.decisions import Decisions, PlanConfig, Reasoned, Speed
from monai_unet_app.planning.family import DEFAULT, NetworkChoice, known, layer_line, packages, written
from monai_unet_app.planning.network import LEAST_EDGE, NetworkPlan, plan_network
from monai_unet_app.progress_bars import lasting

EPOCHS = 24
LEAST_STEPS = 2000
_STEPS_SHARE = 0.75  # of the time of a training; the rest reads, varies and validates
_VALIDATED = (4, 3)  # epochs from one validation to the next, as in train.yaml
_MARGIN = 1.3  # of the window: what a rotated and sheared window may need
_WINDOW_VOXELS = {2: 2**16, 3: 2**20}
_BYTES = 0.7e9  # of a training, beside its windows
_BYTES_A_VOXEL = 4200  # of the windows of a step, with 32 filters at the first level
_BATCH = {2: 16, 3: 2}
_LEAST_VOXELS = {2: 2**10, 3: 2**12}
"""Of a window: with 16 voxels along an axis a network can halve twice, which is the least."""
_FILTERS = (32, 24, 16)


@dataclass(frozen=True)
class Grid:
    """A usual image on the grid of the network, without the axis of the slices for a 2D network.

    Attributes:
        shape: Voxels along each axis.
        steps: Spacing along each axis, in `unit`.
        unit: "mm" or "pixels".
    """

    shape: tuple[int, ...]
    steps: tuple[float, ...]
    unit: str

    def extent(self, voxels: Sequence[int]) -> str:
        """So many voxels along each axis, as a size in words."""
        return " x ".join(f"{n * step:.0f}" for n, step in zip(voxels, self.steps, strict=True)) + f" {self.unit}"


def network_and_length(decided: Decisions, image: Grid, config: PlanConfig, speed: Speed, cases: int) -> Decisions:
    """Network, window and length of the training: the widest network that sees enough windows in the time."""
    channels, outputs = decided["channels"].value, len(decided["labels"].value)
    batch = _BATCH[len(image.shape)]
    network, seconds, chosen = _widest_network(
        image, config, lambda network: speed(network, channels, outputs), _memory_of(config.network, channels, outputs)
    )
    block, layer = written(config.network, network, channels)
    steps = _steps_in_time(seconds, config)
    train_cases = max(1, round(0.8 * cases))
    per_case = max(1, round(steps * batch / (EPOCHS * train_cases)))
    epochs = steps * batch // (per_case * train_cases)
    epochs = max(2, *(epochs // every * every for every in _VALIDATED))
    steps = epochs * max(1, per_case * train_cases // batch)
    margin = [math.ceil(size * _MARGIN) for size in network.window]
    slice_axis = decided["slice_axis"].value
    if slice_axis is not None:
        margin.insert(slice_axis, 1)
    part = math.prod(network.window) / math.prod(image.shape)
    lasts = steps * seconds / _STEPS_SHARE
    return {
        "window": Reasoned(
            list(network.window),
            f"{image.extent(network.window)} of a usual field of view of {image.extent(image.shape)}, {part:.0%} of its voxels",
        ),
        "network_def": _told(config.network, network, chosen),
        "networks": Reasoned(config.networks),
        "filters": Reasoned(network.filters),
        "new_network": Reasoned(block),
        "feature_layer": Reasoned(layer_line(layer)),
        "packages": Reasoned(packages(config.network)),
        "windows_at_once": Reasoned(4 if len(image.shape) == 3 else 32),
        "batch_size": Reasoned(batch),
        "windows_per_case": Reasoned(per_case),
        "epochs": Reasoned(
            epochs,
            f"{steps} steps of {batch} windows, {seconds:.2g} s each as measured here; with reading, augmentation and "
            "validation, "
            f"which take {1 - _STEPS_SHARE:.0%}, about {lasting(lasts)}"
            + ("; every case is seen twice, whatever --time says" if epochs == 2 and lasts > config.time_s else ""),
        ),
        "training_s": Reasoned(round(lasts, 1), "of one training, without its start"),
        "margin": Reasoned(margin),
        "scaling": Reasoned([0.25] * len(image.shape)),
        "shearing": Reasoned([0.15] * len(image.shape)),
        "learning_rate": Reasoned(0.002),
        "weight_decay": Reasoned(0.05),
    }


_Memory = Callable[[NetworkPlan], tuple[float, float]]
"""As `memory_beside`."""


def _memory_of(choice: NetworkChoice, channels: int, outputs: int) -> _Memory:
    if choice == NetworkChoice():
        return lambda network: (1.0, 0.0)
    from monai_unet_app.planning.speed import memory_beside

    return lambda network: memory_beside(network, channels, outputs, choice)


def _widest_network(
    image: Grid, config: PlanConfig, speed: Callable[[NetworkPlan], float], memory: _Memory
) -> tuple[NetworkPlan, float, str]:
    """The widest network with the largest window that sees enough windows in the time, its seconds a step, and why."""
    axes = len(image.shape)
    most = _WINDOW_VOXELS[axes]
    member = known(config.network.name)
    like = member.like
    if like and len(like.window) != axes:
        raise InputRefusedError(
            f"--network {member.name}: its windows have {len(like.window)} axes, and those of this plan have {axes}; the same "
            "number is needed; give another --configuration or --network"
        )

    def planned(most_voxels: float, base: int) -> NetworkPlan:
        if like and member.keeps_window:
            return like
        return plan_network(image.shape, image.steps, most_voxels, base, member.divisor, like)

    seconds_a_voxel: dict[int, float] = {}
    kept: dict[int, tuple[float, float]] = {}
    for voxels, base in product((most, most / 2, most / 4), like.filters[:1] if like else _FILTERS):
        whole = planned(voxels, base)
        if base not in kept:
            kept[base] = memory(whole)
        factor, weights = kept[base]
        room = (config.memory_limit - _BYTES - weights) / (_bytes_a_voxel(axes, config.networks, base) * factor)
        room = max(_LEAST_VOXELS[axes], room)
        network = whole if room >= voxels else planned(room, base)
        if base not in seconds_a_voxel:
            seconds_a_voxel[base] = speed(network) / network.voxels
        seconds = seconds_a_voxel[base] * network.voxels * _BATCH[axes] * config.networks
        if _steps_in_time(seconds, config) >= LEAST_STEPS:
            break
    if len(network.strides) < 3 and not like:
        raise InputRefusedError(
            f"a usual image has {' x '.join(map(str, image.shape))} voxels on the grid of the network; 16 along an axis are "
            "needed, so that it can be halved twice; give larger images, or another --configuration"
        )
    steps = _steps_in_time(seconds, config)
    why = f"{steps} steps fit into the time" if like else _why_this_size(steps, base, voxels, config)
    if room < min(voxels, math.prod(image.shape)):
        why += f". The memory limit of a training allows a window of {room:.0f} voxels"
    return network, seconds, why


def _steps_in_time(seconds: float, config: PlanConfig) -> int:
    """How many steps of so many seconds fit into the time of a training."""
    return int(_STEPS_SHARE * config.time_s / seconds)


def least_memory(networks: int) -> float:
    """Bytes that the smallest training takes: fewest filters, smallest window."""
    return _BYTES + max(
        voxels * _bytes_a_voxel(axes, networks, min(_FILTERS)) for axes, voxels in _LEAST_VOXELS.items()
    )


def _bytes_a_voxel(axes: int, networks: int, base: int) -> float:
    """Bytes of a training for each voxel of a window."""
    return _BATCH[axes] * networks * _BYTES_A_VOXEL * base / 32


def _told(choice: NetworkChoice, plan: NetworkPlan, why: str) -> Reasoned[str]:
    """The network in words. `why`: so many filters, and such a window."""
    member = known(choice.name)
    values = "".join(f", {name} {value}" for name, value in choice.values.items())
    if member.divisor is not None:
        return Reasoned(
            f"{member.name} of {plan.filters[0]} filters at the first level{values}",
            f"{member.about}; an axis of its window is a multiple of {member.divisor}. {why}",
        )
    if member.like:
        return Reasoned(
            f"that of {member.name}, {plan.filters[0]} filters at the first level", f"{member.about}. {why}"
        )
    return Reasoned(
        f"{'' if choice.name == DEFAULT else f'{member.name}, '}{len(plan.strides)} levels of {plan.filters[0]} to "
        f"{plan.filters[-1]} filters{values}",
        f"{'' if choice.name == DEFAULT else f'{member.about}; '}an axis is halved while {LEAST_EDGE} voxels or more are left "
        f"of the window and its voxels are the shortest. {why}",
    )


def _why_this_size(steps: int, base: int, voxels: float, config: PlanConfig) -> str:
    """Why a network has so many filters, and a window at most so many voxels, when so many steps fit into the time."""
    if steps < LEAST_STEPS:
        return (
            f"Even with {base} filters at the first level and a window of {voxels:.0f} voxels at most, the smallest of a plan, "
            f"only {steps} steps fit into {lasting(config.time_s)}; {LEAST_STEPS} are recommended"
        )
    if base == max(_FILTERS):
        return f"{base} filters at the first level are the most that a plan uses; {LEAST_STEPS} steps or more fit into the time"
    return f"The number of filters and the window are the largest with which {LEAST_STEPS} steps fit into the time"
