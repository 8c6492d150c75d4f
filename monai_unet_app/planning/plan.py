"""A bundle for a folder of images and labels: measured, decided, written. Every value has its reason beside it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from monai_unet_app.calibration.statement_fit import COVERAGE
from monai_unet_app.confidence.conformal import subjects_needed
from monai_unet_app.data.case_files import CaseFiles, case_id, find_data
from monai_unet_app.data.cases import nnunet_folds_of, places_of, plan_of
from monai_unet_app.data.coding import named_segment
from monai_unet_app.data.datalist import LabelFacts, check_channel_count, modality_of
from monai_unet_app.data.fingerprint import CaseFingerprint, Fingerprint
from monai_unet_app.data.inspect import Accepted, check_one_kind, inspect_cases, refuse_faults
from monai_unet_app.data.label_names import facts_of_cases, understood
from monai_unet_app.data.labels import FileValues, mask_count, masks_of
from monai_unet_app.data.naming import says_nothing, side_in
from monai_unet_app.data.splits import SplitCase, trains_by_folds
from monai_unet_app.data.structures import StatedStructure, named_values, stated_ignored, stated_structures
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.machine_memory import ever_resident_bytes
from monai_unet_app.metrics.outputs import COUNTED, EXCLUSIVE, OVERLAPPING
from monai_unet_app.planning.decisions import (
    Configuration,
    Decisions,
    PlanConfig,
    Reasoned,
    Speed,
    flat_axis,
    input_rules,
    intensities,
    mirror_axes,
    ratios,
    rotations,
    shapes_ras,
    spacings_ras,
    target_spacing,
)
from monai_unet_app.planning.family import checked_values, known
from monai_unet_app.planning.sizing import Grid, least_memory, network_and_length
from monai_unet_app.progress_bars import Display, lasting, no_display

LEAST_SEEN = 0.2
"""Of a usual image, by a window."""

_SHOWN = ("labels", "spacing_mm", "intensities", "window", "network_def", "mirror_axes", "ratios", "rotation", "epochs")


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
        """As `trains_by_folds`."""
        return trains_by_folds((SplitCase(**case) for case in self.cases), "the plan")

    def overview(self, *, by_folds: bool) -> list[tuple[str, str, str]]:
        """What, value and reason of the data, of their places, and of the time of all trainings.

        Args:
            by_folds: Whether a network is trained for each fold, and one more.
        """
        subjects, channels = Counter(case["subject"] for case in self.cases), self.values["channels"]
        several = [case["id"] for case in self.cases if case["subject"] == subjects.most_common(1)[0][0]]
        of_one = f"; {several[0]} and {several[1]} are of one, for instance" if several[1:] else ""
        kept = [case for case in self.cases if not by_folds or case["partition"] != "test"]
        in_parts = Counter(case["fold" if by_folds else "partition"] for case in kept)
        sizes = sorted(in_parts.values())
        why = self.reasons["places"] if by_folds == self.by_folds else "to rank configurations"
        if self.by_folds and any(case["partition"] != "train" for case in self.cases):
            why += "; its partitions leave no case to select, or none to calibrate or test"
        name, places = "partitions", ", ".join(f"{part} {count}" for part, count in in_parts.items())
        trainings, seconds = 1, self.values["training_s"]
        if by_folds:
            name, places = "folds", f"{len(sizes)} of {sizes[0]} to {sizes[-1]} cases"
            trainings += len(sizes)
        each = (
            f"{trainings} trainings of {lasting(seconds)}, one after the other: one for each fold, and one on all cases"
        )
        return [
            ("cases", str(len(self.cases)), f"of {len(subjects)} subject(s){of_one}"),
            ("channels", str(channels), self.reasons["channels"]),
            (name, places, why),
            ("time", f"about {lasting(trainings * seconds)}", each if by_folds else "one training"),
        ]

    def decided(self) -> list[tuple[str, str, str]]:
        """What the plan table shows of its decisions: name, value and reason."""
        return [(name, str(self.values[name] or "none"), self.reasons[name]) for name in _SHOWN]


def plan_configurations(
    config: PlanConfig,
    configurations: Sequence[Configuration | None],
    speed: Speed,
    display: Display = no_display,
) -> list[BundlePlan]:
    """Measures the data once and decides for each configuration; all have the same partitions and folds.

    Args:
        config: The data, and what the user says of it; its own configuration does not count.
        configurations: One or more.
        speed: Measures or estimates one training step.
        display: Shows how many cases have been read; called once.

    Raises:
        InputRefusedError: Cases cannot be used, or are no one kind of images; the message lists all.
    """
    _check_memory(config)
    checked_values(known(config.network.name), config.network.values)
    cases = find_data(config.data, config.labels, config.label_suffix)
    plan, why = dealt(cases, config.splits)
    by_folds = trains_by_folds(plan, config.data.name, True if len(configurations) > 1 else None)
    facts = facts_of_cases(cases, config.data)
    config, cases, values = _with_meaning(config, cases, facts)
    with display("reading", len(cases)) as step:
        fingerprint = inspect_cases(cases, Accepted(values=values), step, places=places_of(plan, by_folds=by_folds))
    check_one_kind(fingerprint)
    measured = fingerprint.cases
    wanted = [_checked_configuration(measured, configuration) for configuration in configurations]
    if values.masks and any(case.overlaps for case in measured):
        config = replace(config, masks=values.masks)
    in_files = dict(enumerate(cases[0].mask_names, 1)) or (facts.names if facts else {})
    names = dict(enumerate(config.regions, 1)) or config.structures or in_files
    if config.objects is not None:
        names = {1: config.objects}
    stated = {} if names else stated_structures(cases, fingerprint.label_values)
    structures = _structures(fingerprint, names or {value: structure.name for value, structure in stated.items()})
    _check_above_numbers(config, structures)
    refuse_faults(fingerprint)  # after the label values, since a stray one looks like a class of one fold
    of_channels = config.channels or (facts.channels if facts else ())
    modalities = (config.modality,) * measured[0].channels if config.modality else _modalities(measured, of_channels)
    dataset = {"cases": [asdict(entry) for entry in plan]}
    splits = {"schema_version": "1.0", "datasets": {config.data.resolve().name: dataset}}
    plans = []
    for configuration in wanted:
        decided = _decided(measured, structures, modalities, replace(config, configuration=configuration), speed)
        told = {name: reasoned.value for name, reasoned in decided.items()}
        told |= {"label_suffix": config.label_suffix, "pattern": _pattern(cases), "files": len(cases[0].files)}
        reasons = {name: reasoned.reason for name, reasoned in decided.items()} | {"places": why}
        plans.append(BundlePlan(told, reasons, structures, fingerprint, splits, stated))
    return plans


def _with_meaning(
    config: PlanConfig, cases: list[CaseFiles], facts: LabelFacts | None
) -> tuple[PlanConfig, list[CaseFiles], FileValues]:
    """The config with what the data say of channels, regions and values without a class; and what label values mean."""
    regions = config.regions or (facts.regions if facts and not config.structures else {})
    config = replace(config, channels=config.channels or _channel_names(cases), regions=regions)
    if config.ignore is None:
        config = replace(config, ignore=stated_ignored(cases, facts))
    named = config.structures or (facts.names if facts else {})
    masks = 0 if regions or config.objects else masks_of(cases, len(named), config.ignore)
    config = replace(
        config, one_hot=0 < masks < max((mask_count(case.label) for case in cases if case.label), default=0)
    )
    _check_ignored(config)
    values = FileValues((), config.objects is not None, config.ignore, tuple(regions.values()), masks)
    cases, values = understood(cases, values, config.structures, facts)
    return replace(config, white=values.white), cases, values


def _check_memory(config: PlanConfig) -> None:
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


def _check_ignored(config: PlanConfig) -> None:
    """Raises InputRefusedError for a value to ignore that training cannot tell from a class."""
    if config.ignore is not None and config.objects is not None:
        raise InputRefusedError(
            "voxels are to be ignored, and objects to be counted; objects need labels of every voxel; leave --ignore out, or "
            "name the objects as one structure by --structure 1=NAME, with labels of 0 and 1"
        )
    taken = {0, *config.structures, *(value for region in config.regions.values() for value in region)}
    if config.ignore is not None and (config.ignore in taken or not 0 < config.ignore < 256):
        raise InputRefusedError(
            f"voxels with the label value {config.ignore} are to be ignored; a value from 1 to 255 that no structure has is "
            "needed; correct --ignore, or the labels"
        )


def _check_above_numbers(config: PlanConfig, structures: Mapping[int, str]) -> None:
    """Raises InputRefusedError for a value to ignore that is among the numbers that training sees, or is that of a mask."""
    most = 1 if config.regions or config.masks else len(structures)
    if config.ignore is not None and config.ignore <= most:
        raise InputRefusedError(
            f"voxels with the label value {config.ignore} are to be ignored, and structures get the numbers 1 to {most}; a "
            "larger value is needed; change it in the label files, and --ignore"
        )


def dealt(cases: Sequence[CaseFiles], splits: Path | None) -> tuple[list[SplitCase], str]:
    """The partition and the fold of each case, and why.

    Partitions that nobody has told are dealt only where enough subjects calibrate for every statement of the bundle. With
    fewer, every case trains and is tested, in folds, and all subjects count for the statements.
    """
    entries = list(plan_of(cases, splits).values())
    if splits is None and any(case.listed and case.listed.is_placed for case in cases):
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


def _share(cases: Sequence[CaseFingerprint], value: int) -> float:
    """Of all voxels, those with this label value."""
    return sum(case.class_size.get(value, 0.0) for case in cases) / sum(_size(case) for case in cases)


def _size(case: CaseFingerprint) -> float:
    """Of the whole image, in the unit of `class_size`: mL, or pixels."""
    voxels = math.prod(case.shape)
    return voxels if case.spacing_mm is None else voxels * math.prod(case.spacing_mm) / 1000


def _grid(decided: Decisions, cases: Sequence[CaseFingerprint]) -> Grid:
    spacing, planar = decided["spacing_mm"].value, decided["planar"].value
    kept = [axis for axis in range(len(spacing)) if axis != decided["slice_axis"].value]
    size = np.median(shapes_ras(cases)[:, kept] * spacings_ras(cases)[:, kept], axis=0)
    steps = tuple(spacing[axis] for axis in kept)
    return Grid(tuple(np.ceil(size / steps).astype(int).tolist()), steps, "pixels" if planar else "mm")


def _checked_configuration(
    cases: Sequence[CaseFingerprint], configuration: Configuration | None
) -> Configuration | None:
    """The configuration; "2d" for volumes of one slice. Raises InputRefusedError if it needs more axes than images have."""
    flat = flat_axis(cases) is not None
    if (flat or cases[0].axes == "px") and configuration not in (None, "2d"):
        what = "one voxel thick" if flat else "pictures"
        raise InputRefusedError(
            f"--configuration {configuration}: the images are {what}; volumes are needed; leave it out"
        )
    return "2d" if flat else configuration


def _channel_names(cases: Sequence[CaseFiles]) -> tuple[str, ...]:
    """Of channels that are a file each, as the data state them, else "channel_0" and on; () for one file a case."""
    count = len(cases[0].files)
    return cases[0].channel_names or (tuple(f"channel_{number}" for number in range(count)) if count > 1 else ())


def _modalities(cases: Sequence[CaseFingerprint], names: Sequence[str]) -> tuple[str | None, ...]:
    """Of each channel, as the files say, or the name of the channel; None where neither does."""
    count = cases[0].channels
    check_channel_count(names, count)
    by_name = [modality_of(name) for name in names] if names else [None] * count
    of_files = zip(*(case.modalities for case in cases), strict=True)
    return tuple(next(filter(None, said), named) for said, named in zip(of_files, by_name, strict=True))


def _pattern(cases: Sequence[CaseFiles]) -> str:
    """Names of the images in their folder, for `monai.bundle run`."""
    names = {case.image: "" if case.image.is_dir() else normalize("NFC", case.image.name) for case in cases}
    ends = {name.removeprefix(case_id(image)) for image, name in names.items()}
    if cases[0].channels and cases[0].image.is_dir():
        return "*_0000.nii.gz"  # as `convert` writes them
    first = "_0000" if cases[0].channels else ""
    return f"*{first}{ends.pop()}" if len(ends) == 1 else "*"


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
    first = {"Mean": "the mean of all"}  # a row of tables
    for name in names.values():
        label = named_segment(1, StatedStructure(name)).label
        if label in first:
            raise InputRefusedError(
                f"the structures {first[label]!r} and {name!r} would both be called {label!r} in results; rename one"
            )
        first[label] = name
    return names


def _label_values(structures: Mapping[int, str], config: PlanConfig, *, planar: bool) -> Reasoned[Any]:
    """What `label_values` says; None where label values are the numbers of the structures."""
    if config.objects is not None:
        return Reasoned("instances", "label files number their objects, as --objects says")
    if config.masks:
        return Reasoned({"masks": config.masks}, "of each structure a mask, since structures share voxels")
    if config.regions:
        return Reasoned(
            list(map(list, config.regions.values())), "of each structure in label files; structures share values"
        )
    if list(structures) == list(range(1, len(structures) + 1)):
        if not planar or config.white:
            return Reasoned(None)
        return Reasoned(list(structures), "of each structure in label files; 255 is none of them")
    pairs = ", ".join(f"{value} is {number}" for number, value in enumerate(structures, 1))
    return Reasoned(list(structures), f"of each structure in label files, where values have gaps: {pairs}")


def _decide(
    cases: Sequence[CaseFingerprint],
    structures: Mapping[int, str],
    modalities: Sequence[str | None],
    config: PlanConfig,
) -> Decisions:
    """The decisions that need no network."""
    planar, known = cases[0].axes == "px", " and ".join(dict.fromkeys(filter(None, modalities)))
    sided = [name for name in structures.values() if side_in(name)]
    unnamed = [name for name in structures.values() if says_nothing(name)]
    spacing = (
        Reasoned((1.0, 1.0), "pixels") if planar else target_spacing(cases, coarse=config.configuration == "3d_low")
    )
    flat = flat_axis(cases)
    longest = int(np.argmax(spacing.value)) if flat is None else flat
    slice_axis = None if planar or config.configuration != "2d" else longest
    overlap = bool(config.regions or config.masks)
    binary = planar and len(structures) == 1 and not overlap and config.objects is None
    outputs = OVERLAPPING if overlap or binary else EXCLUSIVE
    named = [*["background"] * outputs.background, *structures.values()]
    if config.objects is not None:
        outputs, named = COUNTED, [config.objects, f"middle of {config.objects}"]
    classes = len(structures) + 1
    in_plane = [step for axis, step in enumerate(spacing.value) if axis != slice_axis]
    return {
        "image_words": Reasoned("a picture" if planar else f"a volume{f' ({known})' if known else ''}"),
        "structure_words": Reasoned(_listed(list(structures.values()))),
        "planar": Reasoned(planar, "what the files are"),
        "binary": Reasoned(binary, "one structure and the rest"),
        "outputs": Reasoned(
            outputs.name, "structures may share voxels" if overlap else "each voxel has one label value"
        ),
        "labels": Reasoned(
            named,
            "label files are one-hot, the background first; if each channel is a structure, name them all by --structure"
            if config.one_hot
            else "as the data set names them",
        ),
        "label_values": _label_values(structures, config, planar=planar),
        "ignore_label": Reasoned(config.ignore, "voxels with this label value have no class: they count nowhere"),
        "classes": Reasoned(classes, "background included"),
        "channels": Reasoned(cases[0].channels, "of every image"),
        "numbers": Reasoned(list(range(cases[0].channels))),
        "modality": Reasoned(modalities[0], "as the files say"),
        "spacing_mm": spacing,
        "slice_axis": Reasoned(
            slice_axis, "the axis with the longest voxels" if flat is None else "along which images have one voxel"
        ),
        "input_rules": input_rules(cases, modalities, config.channels or ()),
        "intensities": intensities(cases, modalities),
        "mirror_axes": mirror_axes(sided, unnamed, planar=planar, slice_axis=slice_axis),
        "ratios": ratios({name: _share(cases, value) for value, name in structures.items()}),
        "rotation": rotations(in_plane),
        "bias_field": Reasoned(
            {"MR"} <= set(modalities) <= {"MR", None} and len(in_plane) == 3,
            "the field of an MR scanner is not homogeneous",
        ),
    }


def _decided(
    cases: Sequence[CaseFingerprint],
    structures: Mapping[int, str],
    modalities: Sequence[str | None],
    config: PlanConfig,
    speed: Speed,
) -> Decisions:
    """All decisions. If the user names no configuration, volumes of which a window sees little are seen on a coarser grid."""
    decided = _decide(cases, structures, modalities, config)
    grid = _grid(decided, cases)
    decided |= network_and_length(decided, grid, config, speed, len(cases))
    seen = math.prod(decided["window"].value) / math.prod(grid.shape)
    if config.configuration is None and not decided["planar"].value and seen < LEAST_SEEN:
        low = _decided(cases, structures, modalities, replace(config, configuration="3d_low"), speed)
        why = (
            low["spacing_mm"].reason + f"; on the full grid a window of this time and memory would see {seen:.0%} of it"
        )
        return low | {"spacing_mm": Reasoned(low["spacing_mm"].value, why)}
    return decided


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
