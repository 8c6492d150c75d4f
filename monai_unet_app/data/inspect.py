"""The fingerprint of a data set, and everything that is wrong with it."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from dicom_io.errors import DicomIoError
from dicom_io.read import ReadOptions
from dicom_io.reading.dicomdir import files_of_dicomdir, is_dicomdir
from dicom_io.volume import Volume
from monai_unet_app.data.case_files import (
    CaseFiles,
    Row,
    case_id,
    case_message,
    case_of_row,
    find_cases,
    find_images,
    first_names,
    image_and_label_folders,
    listed_cases,
    several_labels,
)
from monai_unet_app.data.cases import subjects_of
from monai_unet_app.data.datalist import is_datalist
from monai_unet_app.data.fingerprint import CaseFingerprint, Fingerprint, label_voxels_of
from monai_unet_app.data.labels import AS_NUMBERED, FileValues, as_numbers, check_values, read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.rules import (
    InputRules,
    along_patient,
    check_channel_names,
    check_rules,
    constant_reasons,
    extent_of,
)
from monai_unet_app.data.sketch import sketch_of
from monai_unet_app.data.strict import MOST_CLASSES, Place, StrictCase, compare_cases
from monai_unet_app.data.structures import stray_values
from monai_unet_app.errors import InputRefusedError

PERCENTILES = (0.5, 50.0, 99.5)


@dataclass(frozen=True)
class Accepted:
    """What a bundle accepts.

    Attributes:
        rules: Its input rules; None accepts every readable image.
        known: Label values that it knows; None accepts all.
        values: What the values of label files stand for.
    """

    rules: InputRules | None = None
    known: tuple[int, ...] | None = None
    values: FileValues = AS_NUMBERED


ANYTHING = Accepted()


def find_to_inspect(
    data: Path,
    labels: Path | None = None,
    label_suffix: str = "",
    series: Sequence[str] = (),
    channels: Sequence[str] = (),
) -> tuple[list[CaseFiles], list[str]]:
    """The cases of a folder, labelled or not, and one sentence for each label without an image.

    Args:
        data: images/ and labels/ or imagesTr/ and labelsTr/ in a folder, a folder of images, DICOM, a CSV or JSON list of
            cases, or one file.
        labels: Folder of labels, if they lie apart.
        label_suffix: As in `find_cases`.
        series, channels: As in `find_images`.
    """
    if is_datalist(data):
        return listed_cases(data, need_all=False), []
    images, labels = image_and_label_folders(data, labels)
    if labels is not None and not labels.is_dir() and not label_suffix:
        labels = None
    if labels is None and not label_suffix:
        return [
            replace(case, label=case.label_objects[0]) if len(case.label_objects) == 1 else case
            for case in _images_of(images, series, channels)
        ], []
    cases = find_cases(images, labels, label_suffix, need_all=False)
    used = {case.label for case in cases}
    unused = [file for file in sorted(labels.iterdir()) if file not in used and file.is_file()] if labels else []
    return cases, [f"label {case_id(file)} has no image; add it or move the label away" for file in unused]


def _images_of(data: Path, series: Sequence[str], channels: Sequence[str]) -> list[CaseFiles]:
    """As `find_images`; for a DICOMDIR whose files are all present, every series that it lists."""
    listed: set[Path] = set()
    if data.is_file() and is_dicomdir(data):
        with suppress(DicomIoError):
            listed = {file.absolute() for file in files_of_dicomdir(data)}
    if not listed or not all(file.is_file() for file in listed):  # reading a broken DICOMDIR gives the reason
        return find_images(data, series, channels)
    cases = find_images(data.parent, series)
    return [case for case in cases if case.header is None or case.header.absolute() in listed]


def inspect_cases(
    cases: Sequence[CaseFiles],
    accepted: Accepted = ANYTHING,
    step: Callable[[str], None] = lambda case_id: None,
    options: ReadOptions | None = None,
    *,
    places: Mapping[str, Place] | None = None,
) -> Fingerprint:
    """Reads every case once.

    Args:
        cases: Images, with or without labels.
        accepted: What a bundle accepts.
        step: Called with the id of each case when it has been read.
        options: How DICOM is read.
        places: For strict checks, which compare the cases with each other (`compare_cases`): where a plan puts each case, empty
            without a plan. None for no strict checks.
    """
    usable: list[CaseFingerprint] = []
    refused: dict[str, str] = {}
    strict: list[StrictCase] = []
    labelled = any(case.label is not None for case in cases)
    subjects = subjects_of(cases)
    for case in cases:
        try:
            # The image first: if it cannot be read, that is a better reason than an absent label
            volume = _read_image(case, accepted.rules, options)
            labels = _read_label(case, volume, accepted)
            fingerprint = _fingerprint(case.id, volume, labels, subjects[case.id], accepted.values.ignored)
            if labelled and case.label is None and not case.label_objects:
                raise InputRefusedError(
                    "it has no label, but other cases have labels; add a label of the same name or move the image away"
                )
            usable.append(fingerprint)
            if places is not None:
                with_class = _with_class(labels, accepted.values.ignored) if labels else None
                strict.append(strict_case(fingerprint, volume, with_class, places.get(case.id)))
        except InputRefusedError as error:
            refused[case.id] = case_message(case, error).removeprefix(f"{case.id}: ")
        step(case.id)
    several = [
        f"look at {case.id}: it has {several_labels(case)}; they are not read here, and training needs a single label"
        for case in cases
        if case.label is None and len(case.label_objects) > 1
    ]
    found = compare_cases(strict, accepted.known)
    strays = [f"look at {stray}" for stray in stray_values(label_voxels_of(usable))] if accepted.known is None else []
    return Fingerprint(tuple(usable), refused, (*several, *strays, *_oddities(usable), *found.odd), found.faults)


def check_one_kind(fingerprint: Fingerprint) -> None:
    """Raises InputRefusedError if cases cannot be used, or are no one kind of images; the message lists all.

    Args:
        fingerprint: Of one case or more.
    """
    cases = fingerprint.cases
    _refuse(fingerprint.refused, len(fingerprint.refused) + len(cases))
    for what in ("channels", "modality"):
        found: dict[Any, list[str]] = {}
        for case in cases:
            found.setdefault(getattr(case, what), []).append(case.id)
        found.pop(None, None)
        if len(found) > 1:
            rare = min(found, key=lambda kind: len(found[kind]))
            raise InputRefusedError(
                f"the images have {what} {', '.join(map(str, sorted(found)))} ({rare}: {first_names(found[rare])}); one kind "
                "of image is needed; take each kind by itself"
            )
    if len({case.axes == "px" for case in cases}) > 1:
        raise InputRefusedError(
            "some images are pictures, some are volumes; one kind is needed; process each kind separately"
        )


def check_cases(
    rows: Sequence[Row],
    bundle: Any,
    step: Callable[[str], None] = lambda case_id: None,
    places: Mapping[str, Place] | None = None,
) -> Fingerprint:
    """Reads the cases. Raises InputRefusedError with a list of all on which this bundle cannot be trained or calibrated.

    Args:
        rows: {"id", "image", "label"} of each case.
        bundle: Its input rules and label values count, and its `ignore_label`.
        step: Called with the id of each case when it has been read.
        places: As in `inspect_cases`.
    """
    cases = [case_of_row(row) for row in rows]
    if bundle.file_values.overlap and bundle.outputs.background:
        raise InputRefusedError(
            "structures of these labels may share voxels, as `label_values` says, and the bundle's outputs are exclusive; set "
            "`outputs` to overlapping, or plan a bundle for these labels"
        )
    check_channel_names(((case.id, case.channel_names) for case in cases), bundle.rules)
    accepted = Accepted(bundle.rules, tuple(bundle.label_values), bundle.file_values.collapsed)
    fingerprint = inspect_cases(cases, accepted, step, places=places)
    without = [
        f"{case.id}: all its voxels are ignored; some with a class are needed; complete its label, or leave the case out"
        for case in fingerprint.cases
        if case.ignored == math.prod(case.shape)
    ]
    _refuse([*fingerprint.refused, *without], len(cases))
    refuse_faults(fingerprint)
    return fingerprint


def _refuse(refused: Sequence[str], count: int) -> None:
    """Raises InputRefusedError with these of so many cases, if there are any."""
    if refused:
        listed = "\n  ".join(refused)
        raise InputRefusedError(f"{len(refused)} of {count} case(s) cannot be used:\n  {listed}")


def refuse_faults(fingerprint: Fingerprint) -> None:
    """Raises InputRefusedError with all sure findings about several cases, if there are any."""
    if fingerprint.faults:
        listed = "\n  ".join(fingerprint.faults)
        raise InputRefusedError(f"the cases cannot be used together ({len(fingerprint.faults)} fault(s)):\n  {listed}")


def strict_case(seen: CaseFingerprint, volume: Volume, labels: Volume | None, place: Place | None = None) -> StrictCase:
    """What is kept of a case for strict checks.

    Args:
        seen: Its properties.
        volume: Its image.
        labels: On the same grid.
        place: Where a plan puts it.
    """
    return StrictCase(
        id=seen.id,
        sketch=sketch_of(volume, labels and as_numbers(labels)),
        spacing=() if volume.planar else along_patient(volume, np.array(volume.spacing_mm)),
        extent=extent_of(volume),
        values=frozenset(value for value in seen.class_size if value),
        place=place,
    )


def _read_image(case: CaseFiles, rules: InputRules | None, options: ReadOptions | None) -> Volume:
    volume = read_volume(case.files, options)
    if rules is not None:
        check_rules(volume, rules)
    elif reasons := "; ".join(constant_reasons(volume, case.channel_names)):
        raise InputRefusedError(f"{reasons}; export it again")
    return volume


def _read_label(case: CaseFiles, volume: Volume, accepted: Accepted) -> Volume | None:
    if case.label is None:
        return None
    values = replace(accepted.values, values=case.label_values) if case.label_values else accepted.values
    labels = read_labels(case.label_files, volume, values)
    if accepted.known is not None:
        ignored = () if accepted.values.ignored is None else (accepted.values.ignored,)
        check_values(labels, (*accepted.known, *ignored), case.label.name)
    return labels


def _fingerprint(
    name: str, volume: Volume, labels: Volume | None, subject: str, ignored: int | None
) -> CaseFingerprint:
    i, j, k = volume.spacing_mm
    voxels = _class_voxels(labels) if labels else {}
    structures, without_class = _inside(labels, ignored) if labels else None, 0
    if labels and ignored is not None:
        without_class = int((labels.array.reshape(*volume.shape, -1)[..., 0] == ignored).sum())
        if labels.array.ndim == 3:
            voxels.pop(ignored, None)
    channels = volume.channels
    return CaseFingerprint(
        id=name,
        shape=volume.shape,
        spacing_mm=None if volume.planar else (round(i, 4), round(j, 4), round(k, 4)),
        axes="px" if volume.planar else "".join(aff2axcodes(volume.affine_ras)),
        channels=len(channels),
        modality=volume.provenance.modality,
        intensity=tuple(_percentiles(channel) for channel in channels),
        class_size={value: round(count * volume.voxel_size, 4) for value, count in voxels.items()},
        class_voxels=voxels,
        subject=subject,
        foreground=tuple(_foreground(channel[structures]) for channel in channels)
        if structures is not None and structures.any()
        else (),
        ignored=without_class,
        further_modalities=tuple(other.modality for other in volume.provenance.others),
    )


def _with_class(labels: Volume, ignored: int | None) -> Volume:
    """The labels, 0 where voxels have no class."""
    return labels if ignored is None else labels.with_array(np.where(labels.array == ignored, 0, labels.array))


def _inside(labels: Volume, ignored: int | None) -> NDArray[np.bool_]:
    """Shape (I, J, K): the voxels of all structures."""
    numbers = as_numbers(labels).array
    return np.asarray((numbers > 0) & (numbers != ignored) if ignored is not None else numbers > 0)


def _percentiles(values: NDArray[Any]) -> tuple[float, float, float]:
    low, middle, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return low, middle, high


def _foreground(values: NDArray[Any]) -> tuple[float, float, float, float]:
    """Percentiles, mean and deviation of the intensities inside all structures, of one channel."""
    low, high = np.percentile(values, PERCENTILES[::2])
    return float(low), float(values.mean(dtype=float)), float(values.std(dtype=float)), float(high)


def _class_voxels(labels: Volume) -> dict[int, int]:
    voxels: Counter[int] = Counter()
    for plane in np.moveaxis(labels.array, 2, 0):  # planes, since counting sorts a copy
        if labels.array.ndim == 4:
            voxels.update({0: int((plane == 0).all(axis=-1).sum())})
            voxels.update(
                {number: int((plane[..., number - 1] == 1).sum()) for number in range(1, plane.shape[-1] + 1)}
            )
            continue
        values, counts = np.unique(plane, return_counts=True)
        voxels.update(dict(zip(values.astype(int).tolist(), counts.tolist(), strict=True)))
    return {value: count for value, count in sorted(voxels.items()) if count}


def _oddities(cases: Sequence[CaseFingerprint]) -> Iterator[str]:
    """Empty labels, very many label values, and class sizes far from those of the other cases."""
    yield from (f"look at {case.id}: its label is empty" for case in cases if set(case.class_size) == {0})
    values = sorted({value for case in cases for value in case.class_size if value})
    many = len(values)
    if many > MOST_CLASSES:
        yield (
            f"look at the labels: they have {many} different values, which is usual for numbered objects and not for "
            "classes; plan takes objects with --objects NAME"
        )
    yield from _exchanged_channels(cases)
    # A median of fewer than four sizes says little, and numbers of counted objects have no usual size
    if len(cases) < 4 or many > MOST_CLASSES:
        return
    for value in values:
        sizes = {case.id: case.class_size.get(value, 0.0) for case in cases if case.class_size}
        middle = float(np.median(list(sizes.values())))
        yield from (
            f"look at {name}: class {value} is {size:.4g}, the median of all cases {middle:.4g}"
            for name, size in sizes.items()
            if middle and not middle / 4 <= size <= middle * 4
        )


def _exchanged_channels(cases: Sequence[CaseFingerprint]) -> Iterator[str]:
    """Volumes whose channels have the contrast of those of the other cases only after two are exchanged."""
    channels = cases[0].channels if cases else 1
    if len(cases) < 4 or channels < 2 or any(case.axes == "px" or case.channels != channels for case in cases):
        return
    # Shape (cases, channels): contrast, as the logarithm of the span of intensities
    spans = np.log([[max(high - low, 1e-6) for low, _, high in case.intensity] for case in cases])
    for n, case in enumerate(cases):
        others = np.delete(spans, n, axis=0)
        middle = np.median(others, axis=0)
        usual = float(np.abs(others - middle).sum(axis=1).max())
        own = float(np.abs(spans[n] - middle).sum())
        for a, b in combinations(range(channels), 2):
            order = list(range(channels))
            order[a], order[b] = b, a
            if own > 2 * np.abs(spans[n, order] - middle).sum() and own > 1.3 * usual:
                yield (
                    f"look at {case.id}: its channels {a + 1} and {b + 1} have the contrast of the other cases only if they "
                    "are exchanged; compare them with those of another case"
                )
