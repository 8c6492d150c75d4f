"""A bundle for a folder of images and labels: measured, decided, written. Every value has its reason beside it."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from monai_unet_app.calibration.statement_fit import COVERAGE
from monai_unet_app.confidence.conformal import subjects_needed
from monai_unet_app.data.case_files import CaseFiles, case_id, find_data
from monai_unet_app.data.cases import nnunet_folds_of, places_of, plan_of
from monai_unet_app.data.datalist import read_dataset_json
from monai_unet_app.data.inspect import (
    Accepted,
    CaseFingerprint,
    Fingerprint,
    check_one_kind,
    inspect_cases,
    refuse_faults,
)
from monai_unet_app.data.labels import FileValues
from monai_unet_app.data.naming import says_nothing, side_in
from monai_unet_app.data.splits import SplitCase
from monai_unet_app.data.structures import StatedStructure, named_values, stated_structures
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.machine_memory import ever_resident_bytes
from monai_unet_app.metrics.outputs import EXCLUSIVE, OVERLAPPING
from monai_unet_app.planning.decisions import (
    Configuration,
    Reasoned,
    input_rules,
    intensities,
    mirror_axes,
    ratios,
    rotations,
    shapes_ras,
    spacings_ras,
    target_spacing,
)
from monai_unet_app.planning.family import DEFAULT, NetworkChoice, checked_values, known, layer_line, packages, written
from monai_unet_app.planning.network import LEAST_EDGE, NetworkPlan, plan_network

Decisions = dict[str, Reasoned[Any]]
"""By the name of a value in the templates."""

Speed = Callable[[NetworkPlan, int, int], float]
"""Seconds that a training step takes for each window of a network: its plan, its channels in and out."""

EPOCHS = 24
LEAST_SEEN = 0.2
"""Of a usual image, by a window."""

LEAST_STEPS = 2000
_STEPS_SHARE = 0.75  # of the time of a training; the rest reads, varies and validates
_VALIDATED = 4  # epochs from one validation to the next, as in train.yaml
_MARGIN = 1.3  # of the window: what a rotated and sheared window may need
_WINDOW_VOXELS = {2: 2**16, 3: 2**20}
_BYTES = 0.7e9  # of a training, beside its windows
_BYTES_A_VOXEL = 4200  # of the windows of a step, with 32 filters at the first level
_BATCH = {2: 16, 3: 2}
_LEAST_VOXELS = {2: 2**10, 3: 2**12}
"""Of a window: with 16 voxels along an axis a network can halve twice, which is the least."""
_FILTERS = (32, 24, 16)


@dataclass(frozen=True)
class PlanConfig:
    """What a user says of a plan.

    Attributes:
        data: As in `find_data`.
        labels: Folder of labels, if `data` holds images only.
        label_suffix: End of a label's name that its image's name lacks.
        structures: Names of the label values; None takes those of `dataset.json`.
        splits: A plan of the cases, as in `plan_of`; None takes what a list or nnU-Net tells, or deals the subjects.
        objects: Name of the objects that label values number; None where these are classes.
        modality: DICOM's term; None takes that of the files.
        configuration: 2d, 3d, or 3d on a coarser grid; None takes 2d for pictures and 3d for volumes.
        memory_limit: Bytes that a training may take.
        time_s: Seconds that a training may take on this machine.
        networks: Trained together; their answer is the mean.
        network: Of the family.
    """

    data: Path
    labels: Path | None = None
    label_suffix: str = ""
    splits: Path | None = None
    structures: Mapping[int, str] = field(default_factory=dict)
    objects: str | None = None
    modality: str | None = None
    configuration: Configuration | None = None
    memory_limit: float = 8e9
    time_s: float = 3600.0
    networks: int = 1
    network: NetworkChoice = field(default_factory=NetworkChoice)


@dataclass(frozen=True)
class BundlePlan:
    """All that the files of the new bundle say.

    Attributes:
        values: Names of the templates' values.
        reasons: Why, by the name of a value.
        structures: Names by label value, without the background.
        fingerprint: What was measured.
        splits: The document `splits.json`.
        stated: What SEGs and RTSTRUCTs state of their structures, by label value; empty where the names come from elsewhere.
    """

    values: Mapping[str, Any]
    reasons: Mapping[str, str]
    structures: Mapping[int, str]
    fingerprint: Fingerprint
    splits: Mapping[str, Any]
    stated: Mapping[int, StatedStructure] = field(default_factory=dict)

    @property
    def cases(self) -> Sequence[Mapping[str, Any]]:
        """The entry of each case in `splits`."""
        return [case for dataset in self.splits["datasets"].values() for case in dataset["cases"]]

    @property
    def by_folds(self) -> bool:
        """Whether every case trains and is tested, in folds."""
        return all(case["partition"] == "train" for case in self.cases)

    def overview(self, *, by_folds: bool) -> list[tuple[str, str, str]]:
        """What, value and reason of the data, of their places, and of the time of all trainings.

        Args:
            by_folds: Whether a network is trained for each fold, and one more.
        """
        subjects, channels = {case["subject"] for case in self.cases}, self.values["channels"]
        in_parts = Counter(case["fold" if by_folds else "partition"] for case in self.cases)
        sizes = sorted(in_parts.values())
        name, places = "partitions", ", ".join(f"{part} {count}" for part, count in in_parts.items())
        trainings, seconds = 1, self.values["training_s"]
        if by_folds:
            name, places = "folds", f"{len(sizes)} of {sizes[0]} to {sizes[-1]} cases"
            trainings += len(sizes)
        each = (
            f"{trainings} trainings of {lasting(seconds)}, one after the other: one for each fold, and one on all cases"
        )
        return [
            ("cases", str(len(self.cases)), f"of {len(subjects)} subject(s)"),
            ("channels", str(channels), self.reasons["channels"]),
            (name, places, self.reasons["places"] if by_folds == self.by_folds else "to rank configurations"),
            ("time", f"about {lasting(trainings * seconds)}", each if by_folds else "one training"),
        ]


def plan_configurations(
    config: PlanConfig,
    configurations: Sequence[Configuration | None],
    speed: Speed,
    step: Callable[[str], None] = lambda case_id: None,
) -> list[BundlePlan]:
    """Measures the data once and decides for each configuration; all have the same partitions and folds.

    Args:
        config: The data, and what the user says of it; its own configuration does not count.
        configurations: One or more.
        speed: Measures or estimates one training step.
        step: Called with the id of each case when it has been read.

    Raises:
        InputRefusedError: Cases cannot be used, or are no one kind of images; the message lists all.
    """
    if config.memory_limit > (machine := ever_resident_bytes()):
        raise InputRefusedError(
            f"--memory-limit {config.memory_limit / 1e9:.0f}GB: this machine has {machine / 1e9:.0f} GB of memory; less is "
            "needed; give a smaller limit"
        )
    if config.memory_limit < (least := least_memory(config.networks)):
        raise InputRefusedError(
            f"--memory-limit {config.memory_limit / 1e6:.0f}MB: a training of {config.networks} network(s) takes "
            f"{least / 1e6:.0f} MB at least; give --memory-limit {math.ceil(least / 1e8) * 100}MB or more"
        )
    checked_values(known(config.network.name), config.network.values)
    cases = find_data(config.data, config.labels, config.label_suffix)
    facts = read_dataset_json(config.data) if config.data.is_dir() else None
    plan, why = dealt(cases, config.splits)
    accepted = Accepted(values=FileValues(objects=config.objects is not None))
    fingerprint = inspect_cases(cases, accepted, step, places=places_of(plan))
    check_one_kind(fingerprint)
    measured = fingerprint.cases
    for configuration in configurations:
        _check_configuration(measured, configuration)
    names = config.structures or (facts.names if facts else {})
    if config.objects is not None:
        names = {1: config.objects}
    stated = {} if names else stated_structures(cases, fingerprint.label_values)
    structures = _structures(fingerprint, names or {value: structure.name for value, structure in stated.items()})
    refuse_faults(fingerprint)  # after the label values, since a stray one looks like a class of one fold
    in_files = next((case.modality for case in measured if case.modality), None)
    modality = config.modality or in_files or (facts.modality if facts else None)
    splits = {
        "schema_version": "1.0",
        "datasets": {config.data.resolve().name: {"cases": [asdict(entry) for entry in plan]}},
    }
    plans = []
    for configuration in configurations:
        decided = _decided(measured, structures, modality, replace(config, configuration=configuration), speed)
        values = {name: reasoned.value for name, reasoned in decided.items()}
        values |= {"label_suffix": config.label_suffix, "pattern": _pattern(cases)}
        reasons = {name: reasoned.reason for name, reasoned in decided.items()} | {"places": why}
        plans.append(BundlePlan(values, reasons, structures, fingerprint, splits, stated))
    return plans


def least_memory(networks: int) -> float:
    """Bytes that the smallest training takes: fewest filters, smallest window."""
    return _BYTES + max(
        voxels * _bytes_a_voxel(axes, networks, min(_FILTERS)) for axes, voxels in _LEAST_VOXELS.items()
    )


def _bytes_a_voxel(axes: int, networks: int, base: int) -> float:
    """Bytes of a training for each voxel of a window."""
    return _BATCH[axes] * networks * _BYTES_A_VOXEL * base / 32


def dealt(cases: Sequence[CaseFiles], splits: Path | None) -> tuple[list[SplitCase], str]:
    """The partition and the fold of each case, and why.

    Partitions that nobody has told are dealt only where enough subjects calibrate for every statement of the bundle. With
    fewer, every case trains and is tested, in folds, and all subjects count for the statements.
    """
    entries = list(plan_of(cases, splits).values())
    if splits is None and any(case.listed and case.listed.partition for case in cases):
        return entries, "as stated in the list of cases"
    if told := splits or nnunet_folds_of(cases):
        return entries, f"as {told.name} says"
    calibrating = len({entry.subject for entry in entries if entry.partition == "calibration"})
    needed = subjects_needed(COVERAGE)
    if calibrating >= needed:
        return (
            entries,
            f"{calibrating} subjects calibrate, and {needed} are enough for statements that hold {COVERAGE:.0%}",
        )
    return (
        [replace(entry, partition="train") for entry in entries],
        f"every case trains and is tested, since partitions would leave {calibrating} subject(s) to calibrate, and statements "
        f"that hold {COVERAGE:.0%} of the time need {needed}",
    )


@dataclass(frozen=True)
class _Grid:
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


def _share(cases: Sequence[CaseFingerprint], value: int) -> float:
    """Of all voxels, those with this label value."""
    return sum(case.class_size.get(value, 0.0) for case in cases) / sum(_size(case) for case in cases)


def _size(case: CaseFingerprint) -> float:
    """Of the whole image, in the unit of `class_size`: mL, or pixels."""
    voxels = math.prod(case.shape)
    return voxels if case.spacing_mm is None else voxels * math.prod(case.spacing_mm) / 1000


def _grid(decided: Decisions, cases: Sequence[CaseFingerprint]) -> _Grid:
    spacing, planar = decided["spacing_mm"].value, decided["planar"].value
    kept = [axis for axis in range(len(spacing)) if axis != decided["slice_axis"].value]
    size = np.median(shapes_ras(cases)[:, kept] * spacings_ras(cases)[:, kept], axis=0)
    steps = tuple(spacing[axis] for axis in kept)
    return _Grid(tuple(np.ceil(size / steps).astype(int).tolist()), steps, "pixels" if planar else "mm")


def _check_configuration(cases: Sequence[CaseFingerprint], configuration: Configuration | None) -> None:
    if cases[0].axes == "px" and configuration not in (None, "2d"):
        raise InputRefusedError(
            f"--configuration {configuration}: the images are pictures; volumes are needed; leave it out"
        )


def _pattern(cases: Sequence[CaseFiles]) -> str:
    """Names of the images in their folder, for `monai.bundle run`."""
    ends = {"" if case.image.is_dir() else case.image.name.removeprefix(case_id(case.image)) for case in cases}
    return f"*{ends.pop()}" if len(ends) == 1 else "*"


def _structures(fingerprint: Fingerprint, told: Mapping[int, str]) -> Mapping[int, str]:
    """The name of each label value that training will know.

    Args:
        fingerprint: What the labels hold.
        told: Names by label value; empty where nobody has named them.
    """
    names = named_values(fingerprint.label_voxels, told, "structure_{}")
    if absent := [f"{value} ({name})" for value, name in told.items() if value not in fingerprint.label_values]:
        raise InputRefusedError(
            f"no label holds {', '.join(absent)}; a structure that no case has cannot be learnt; remove it from the names"
        )
    return names


def _label_values(structures: Mapping[int, str], config: PlanConfig) -> Reasoned[Any]:
    """What `label_values` says; None where label values are the numbers of the structures."""
    if config.objects is not None:
        return Reasoned("objects", "label files number their objects, as --objects says; all are one structure")
    if list(structures) == list(range(1, len(structures) + 1)):
        return Reasoned(None)
    pairs = ", ".join(f"{value} is {number}" for number, value in enumerate(structures, 1))
    return Reasoned(list(structures), f"of each structure in label files, where values have gaps: {pairs}")


def _decide(
    cases: Sequence[CaseFingerprint], structures: Mapping[int, str], modality: str | None, config: PlanConfig
) -> Decisions:
    """The decisions that need no network."""
    planar = cases[0].axes == "px"
    sided = [name for name in structures.values() if side_in(name)]
    unnamed = [name for name in structures.values() if says_nothing(name)]
    spacing = (
        Reasoned((1.0, 1.0), "pixels") if planar else target_spacing(cases, coarse=config.configuration == "3d_low")
    )
    slice_axis = None if planar or config.configuration != "2d" else int(np.argmax(spacing.value))
    outputs = OVERLAPPING if planar and len(structures) == 1 else EXCLUSIVE
    classes = len(structures) + 1
    in_plane = [step for axis, step in enumerate(spacing.value) if axis != slice_axis]
    return {
        "image_words": Reasoned("a picture" if planar else f"a volume{f' ({modality})' if modality else ''}"),
        "structure_words": Reasoned(_listed(list(structures.values()))),
        "planar": Reasoned(planar, "what the files are"),
        "binary": Reasoned(not outputs.background, "one structure and the rest"),
        "outputs": Reasoned(outputs.name, "each voxel has one label value"),
        "labels": Reasoned([*["background"] * outputs.background, *structures.values()], "as the data set names them"),
        "label_values": _label_values(structures, config),
        "classes": Reasoned(classes, "background included"),
        "channels": Reasoned(cases[0].channels, "of every image"),
        "numbers": Reasoned(list(range(cases[0].channels))),
        "modality": Reasoned(modality, "as the files say"),
        "spacing_mm": spacing,
        "slice_axis": Reasoned(slice_axis, "the axis with the longest voxels"),
        "input_rules": input_rules(cases, modality),
        "intensities": intensities(cases, modality),
        "mirror_axes": mirror_axes(sided, unnamed, planar=planar, slice_axis=slice_axis),
        "ratios": ratios({name: _share(cases, value) for value, name in structures.items()}),
        "rotation": rotations(in_plane),
        "bias_field": Reasoned(
            modality == "MR" and len(in_plane) == 3, "the field of an MR scanner is not homogeneous"
        ),
    }


def _decided(
    cases: Sequence[CaseFingerprint],
    structures: Mapping[int, str],
    modality: str | None,
    config: PlanConfig,
    speed: Speed,
) -> Decisions:
    """All decisions. If the user names no configuration, volumes of which a window sees little are seen on a coarser grid."""
    decided = _decide(cases, structures, modality, config)
    grid = _grid(decided, cases)
    decided |= _network(decided, grid, config, speed, len(cases))
    seen = math.prod(decided["window"].value) / math.prod(grid.shape)
    if config.configuration is None and not decided["planar"].value and seen < LEAST_SEEN:
        low = _decided(cases, structures, modality, replace(config, configuration="3d_low"), speed)
        why = (
            low["spacing_mm"].reason + f"; on the full grid a window of this time and memory would see {seen:.0%} of it"
        )
        return low | {"spacing_mm": Reasoned(low["spacing_mm"].value, why)}
    return decided


def _widest_network(
    image: "_Grid", config: PlanConfig, speed: Callable[[NetworkPlan], float], memory: "_Memory"
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


_Memory = Callable[[NetworkPlan], tuple[float, float]]
"""As `memory_beside`."""


def _memory_of(choice: NetworkChoice, channels: int, outputs: int) -> _Memory:
    if choice == NetworkChoice():
        return lambda network: (1.0, 0.0)
    from monai_unet_app.planning.speed import memory_beside

    return lambda network: memory_beside(network, channels, outputs, choice)


def _steps_in_time(seconds: float, config: PlanConfig) -> int:
    """How many steps of so many seconds fit into the time of a training."""
    return int(_STEPS_SHARE * config.time_s / seconds)


def _network(decided: Decisions, image: "_Grid", config: PlanConfig, speed: Speed, cases: int) -> Decisions:
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
    epochs = max(2, epochs // _VALIDATED * _VALIDATED or epochs)
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


def lasting(seconds: float) -> str:
    """A duration in words: "40 s", "12 minutes", "2.5 hours"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
