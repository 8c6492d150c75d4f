"""The cases of a folder or a list: images with their labels.

images/ and labels/      files with the same name in both (NIfTI or 2D pictures), or one folder with a suffix for labels
imagesTr/ and labelsTr/  the same of nnU-Net (its images end with _0000) and of the Medical Segmentation Decathlon
a CSV or JSON file       a list of such files: `datalist`
<case>_0000, <case>_0001  one file for each channel, as nnU-Net names them, where an image without such a number is not meant
a folder of DICOM        one folder for each case: one image series and the SEG or RTSTRUCT with its labels
a study and UIDs         one case: the series with this UID, or several series as its channels
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

from dicom_io.errors import DicomIoError, SeriesSelectionError, UnreadableFileError
from dicom_io.read import ReadOptions
from dicom_io.reading.series import SeriesRef, files_below, find_series, survey_files
from monai_unet_app.data.datalist import (
    ListedCase,
    check_channel_count,
    check_listed_labels,
    is_datalist,
    read_datalist,
    read_dataset_json,
)
from monai_unet_app.data.folder_contents import kind_of, modality_of, note_on_files
from monai_unet_app.data.read import FILE_ENDINGS, PICTURE_ENDINGS, VOLUME_ENDINGS, has_ending, read_volume
from monai_unet_app.errors import InputRefusedError, absence

SHOWN = 5  # names in a message
Row = Mapping[str, Any]
"""A case in a data list of MONAI: id, subject, image, label; of several channels a list of files, and their names if known."""
IMAGES_OF_NNUNET, LABELS_OF_NNUNET = "imagesTr", "labelsTr"  # and the Decathlon's


@dataclass(frozen=True)
class CaseFiles:
    """One case on disk.

    Attributes:
        id: File or folder name without ending.
        image: NIfTI, picture, or folder with one DICOM image series; of several channels the first, whose grid all have.
        channels: The files of the further channels.
        channel_names: Of all channels, in the order of their files, if the data state them.
        masks: The files of the further structures, where each has a mask of its own; `label` is that of the first.
        mask_names: Of all structures, in the order of their masks, if the data state them.
        folder: Of the data set, where `dataset.json` is; or the list that names the case.
        label_values: The label value of each structure of a bundle, where names in the data say that it is another one than
            the bundle's.
        label: NIfTI, picture, SEG or RTSTRUCT; None for an image without a label.
        label_objects: Every SEG and RTSTRUCT beside a DICOM series.
        header: One file of a DICOM series, whose PatientID identifies the subject.
        listed: What a list of cases tells of it.
    """

    id: str
    image: Path
    label: Path | None = None
    label_objects: tuple[Path, ...] = ()
    header: Path | None = None
    listed: ListedCase | None = None
    channels: tuple[Path, ...] = ()
    channel_names: tuple[str, ...] = ()
    masks: tuple[Path, ...] = ()
    mask_names: tuple[str, ...] = ()
    folder: Path | None = None
    label_values: tuple[int, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The file or folder of each channel, or the one that has all; `read_volume` takes them."""
        return self.image, *self.channels

    @property
    def label_files(self) -> tuple[Path, ...]:
        """The files that `read_labels` takes; empty without a label."""
        return () if self.label is None else (self.label, *self.masks)


def case_of_row(row: Row) -> CaseFiles:
    """The files of a case in a data list."""
    images = [row["image"]] if isinstance(row["image"], str) else row["image"]
    labels = [row["label"]] if isinstance(row["label"], str) else row["label"]
    (first, *others), (label, *masks) = map(Path, images), map(Path, labels)
    names = tuple(row.get("channels", ()))
    values = tuple(row.get("label_values", ()))
    return CaseFiles(
        row.get("id", ""),
        first,
        label,
        channels=tuple(others),
        channel_names=names,
        masks=tuple(masks),
        label_values=values,
    )


def named_series(options: ReadOptions) -> tuple[str, ...]:
    """The UIDs of the requested series: one series, or several channels; empty for any series."""
    return options.channels or ((options.series_instance_uid,) if options.series_instance_uid else ())


def case_id(path: Path) -> str:
    """File name without its ending; `.nii.gz` is one ending. Umlauts, which macOS parts into letter and dots, are whole."""
    name = normalize("NFC", path.name)
    # The longest ending first, so that no shorter ending leaves a part of it in the id
    for ending in sorted((*FILE_ENDINGS, ".dcm"), key=len, reverse=True):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def find_images(source: Path, series: Sequence[str] = (), channels: Sequence[str] = ()) -> list[CaseFiles]:
    """Every case at `source`: a file, a folder of files, or DICOM with one case for each folder that holds an image series.

    Args:
        source: A file, a folder, or a list of cases.
        series: SeriesInstanceUIDs of the only DICOM series to take. Several series are the channels of one case, in any
            folders of a study. If a series is absent, the source is the only case, and reading it gives the reason.
        channels: Names of a bundle's channels, if it takes one file for each: files whose names end with _0000 and on are
            channels of one case then, also those beside a source of such a name.

    Raises:
        InputRefusedError: The source holds no image, or it holds image files and DICOM in one folder; or as `by_channels`.
    """
    source = Path(os.path.abspath(source))  # "." has no name
    if not source.exists():
        raise InputRefusedError(
            f"{source.name} {absence(source)}; an image, a DICOM folder or a folder of cases is needed"
        )
    if is_datalist(source):
        return listed_cases(source, need_all=False)
    if source.is_file():
        name = _without_number(case_id(source)) if channels else None
        if name is None:
            return [CaseFiles(case_id(source), source)]
        beside = [file for file in sorted(source.parent.iterdir()) if has_ending(file, FILE_ENDINGS)]
        own = [CaseFiles(case_id(file), file) for file in beside if _without_number(case_id(file)) == name]
        return _with_bundles_names(
            by_channels(_with_unique_ids(own, source.parent), len(channels)), source.parent, channels
        )
    files = sorted(
        file
        for file in source.iterdir()
        # macOS adds "._name" beside a name
        if file.is_file() and has_ending(file, FILE_ENDINGS) and not file.name.startswith(".")
    )
    if files:
        files += _broken_dicom_beside(files, source)
    cases = [CaseFiles(case_id(file), file) for file in files] or _dicom_cases(source, series)
    if not cases:
        raise InputRefusedError(
            f"no image found in {source.name}/{note_on_files(source)}; NIfTI, NRRD or MetaImage "
            f"({', '.join(VOLUME_ENDINGS)}), pictures ({', '.join(PICTURE_ENDINGS)}) or DICOM is needed; check the path"
        )
    cases = _with_unique_ids(cases, source)
    if not channels or not any(_without_number(case.id) for case in cases):
        return cases
    return _with_bundles_names(by_channels(cases, len(channels)), source, channels)


def _broken_dicom_beside(files: Sequence[Path], source: Path) -> list[Path]:
    """Damaged DICOM files among the image files of a folder; they are cases that cannot be read.

    Raises:
        InputRefusedError: The folder also holds whole DICOM images, so that the intended kind is unknown.
    """
    images = set(files)
    kinds = {file: kind_of(file) for file in files_below(source) if file not in images}
    if "image" in kinds.values():
        raise InputRefusedError(
            f"{source.name}/ holds {len(files)} image file(s) ({files[0].name} ...) and DICOM images beside or below them; one "
            "kind in a folder is needed; name the file that is meant, or move one kind away"
        )
    return [file for file, kind in kinds.items() if kind == "broken" and file.parent == source]


def _with_unique_ids(cases: Sequence[CaseFiles], source: Path) -> list[CaseFiles]:
    """The cases with unique ids, since these name the results: folders with the same name get their path as id."""
    count = Counter(case.id for case in cases)
    named = [
        replace(case, id="_".join(case.image.relative_to(source).parts))
        if count[case.id] > 1 and case.image.is_dir() and case.image != source
        else case
        for case in cases
    ]
    name, times = Counter(case.id for case in named).most_common(1)[0]
    if times > 1:
        files = ", ".join(case.image.name for case in named if case.id == name)
        raise InputRefusedError(
            f"{times} cases of {source.name}/ are called {name} ({files}); each needs its own name; rename one or move it away"
        )
    return named


def find_cases(
    images: Path, labels: Path | None = None, label_suffix: str = "", *, need_all: bool = True
) -> list[CaseFiles]:
    """Images with their labels.

    Args:
        images: Folder of images, or of DICOM folders that hold an image series with a SEG or RTSTRUCT each.
        labels: Folder of labels whose names are those of the images plus `label_suffix`; None if the labels lie beside
            the images.
        label_suffix: For instance "_1stHO" if the label of Image_01L.jpg is Image_01L_1stHO.png.
        need_all: Refuse images without a label. If False, only images without any label are refused.

    Raises:
        InputRefusedError: There is no case, or an image has no label.
    """
    cases = find_images(images)
    if labels is not None and labels.is_dir():
        known = {case_id(file) for file in labels.iterdir()}
        # A label of the very name: then "_0003" at its end is not the number of a channel
        as_named, numbered = (all(name(case.id) in known for case in cases) for name in (str, _without_number))
        if not as_named and (numbered or images.name == IMAGES_OF_NNUNET):
            cases = _named_channels(by_channels(cases), images.parent)
    if labels is None and not any(has_ending(case.image, FILE_ENDINGS) for case in cases):
        pairs = [replace(case, label=_only_label(case)) for case in cases]
    elif labels is None:
        pairs = _with_labels(_without_derived(cases, label_suffix), images, label_suffix)
    else:
        pairs = _with_labels(cases, labels, label_suffix)
    unlabelled = [case for case in pairs if case.label is None]
    for case in unlabelled:
        if need_all and not has_ending(case.image, FILE_ENDINGS):
            read_volume(case.image)  # raises for a damaged series, which is a better reason
    missing = [case.id for case in unlabelled]
    if missing and (need_all or len(missing) == len(pairs)):
        raise InputRefusedError(
            f"{len(missing)} of {len(pairs)} image(s) have no label: {first_names(missing)}; a label of the same "
            f"name{f' plus {label_suffix!r}' if label_suffix else ''} is needed; add it or move the image away"
        )
    return pairs


def by_channels(cases: Sequence[CaseFiles], count: int | None = None) -> list[CaseFiles]:
    """Files as nnU-Net names them as cases: brain_1_0000 and brain_1_0001 are the channels of brain_1.

    Args:
        cases: One for each file.
        count: Number of channels; None for that of most cases.

    Raises:
        InputRefusedError: A channel of a case is absent, or a file that its name gives another number.
    """
    numbered: dict[str, dict[int, CaseFiles]] = {}
    for case in cases:
        name = _without_number(case.id)
        taken = numbered.setdefault(name or case.id, {}).setdefault(int(case.id[-4:]) if name else 0, case)
        if taken is not case:
            raise InputRefusedError(
                f"{taken.image.name} and {case.image.name} are the same channel of one case; one file is needed; move one away"
            )
    usual = count or Counter(map(len, numbered.values())).most_common(1)[0][0]
    if odd := {name: found for name, found in numbered.items() if sorted(found) != list(range(usual))}:
        name, found = next(iter(odd.items()))
        raise InputRefusedError(
            f"{len(odd)} of {len(numbered)} case(s) do not have {usual} channel(s) ({name} has "
            f"{', '.join(found[number].id for number in sorted(found))}); files that end with _0000 to _{usual - 1:04} are "
            "needed for each; add the absent ones or move the case away"
        )
    grouped = []
    for name, found in numbered.items():
        first, *others = (found[number].image for number in range(usual))
        grouped.append(CaseFiles(name, first, channels=tuple(others)))
    return grouped


def _named_channels(cases: Sequence[CaseFiles], folder: Path) -> list[CaseFiles]:
    """The cases with the names of their channels in the `dataset.json` of a folder, if it has as many."""
    facts = read_dataset_json(folder) if any(case.channels for case in cases) else None
    names = facts.channels if facts else ()
    if len(set(names)) < len(names):  # nnU-Net's names say how to scale, so several channels may be called CT
        names = tuple(f"{name}_{number}" for number, name in enumerate(names))
    check_channel_count(names, len(cases[0].files))
    return [replace(case, channel_names=names) for case in cases]


def _with_bundles_names(cases: list[CaseFiles], folder: Path, channels: Sequence[str]) -> list[CaseFiles]:
    """The cases with the names of their channels in a `dataset.json` in or above the folder, if a bundle has some of them."""
    place = next((place for place in (folder, folder.parent) if (place / "dataset.json").is_file()), folder)
    named = _named_channels(cases, place)
    return named if set(named[0].channel_names) & set(channels) else cases


def _without_number(name: str) -> str | None:
    """The case of a file that nnU-Net's number of a channel ends, brain_1 of brain_1_0000; None for another name."""
    case, _, number = name.rpartition("_")
    return case if case and len(number) == 4 and number.isdigit() else None


def _with_labels(cases: Sequence[CaseFiles], labels: Path, suffix: str) -> list[CaseFiles]:
    if not labels.is_dir():
        raise InputRefusedError(
            f"{labels.name}/ is not a folder; one with a label for each image is needed, {cases[0].id}{suffix} and so on; give "
            "--labels DIR"
        )
    by_id: dict[str, Path] = {}
    for file in sorted(file for file in labels.iterdir() if not file.name.startswith(".")):
        name = case_id(file)
        other = by_id.setdefault(name, file)
        if other != file and has_ending(file, FILE_ENDINGS) and has_ending(other, FILE_ENDINGS):
            raise InputRefusedError(
                f"{labels.name}/ has {other.name} and {file.name}; one label for each name is needed; move the others away"
            )
        if has_ending(file, FILE_ENDINGS):
            by_id[name] = file
    return [replace(case, label=by_id.get(case.id + normalize("NFC", suffix))) for case in cases]


def _without_derived(cases: Sequence[CaseFiles], suffix: str) -> list[CaseFiles]:
    """The images of one folder that holds labels too.

    A file that has a label is an image. A file whose name extends an image's name is not an image if every image has a file
    with the same extension: a second grader's labels, for instance, Image_1_2ndHO beside Image_1. Every other file is an
    image that lacks its label.
    """
    if not suffix:
        raise InputRefusedError(
            "no labels are given; give --labels DIR, or --label-suffix if images and labels are in one folder"
        )
    ids = {case.id for case in cases}
    images = {name for name in ids if name + suffix in ids}
    suffixes = {name[len(image) :] for name in ids for image in images if name != image and name.startswith(image)}
    common = {end for end in suffixes if not end[0].isalnum() and all(image + end in ids for image in images)}
    derived = {image + end for end in common for image in images}
    return [case for case in cases if case.id in images or case.id not in derived]


def _dicom_cases(source: Path, requested: Sequence[str] = ()) -> list[CaseFiles]:
    """One case for each folder at any depth below `source` that holds an image series, with the labels beside the series.

    If a file is broken, every folder is searched by itself: the good cases are found, and reading the bad case gives the
    reason.
    """
    try:
        series = survey_files(files_below(source)).series if requested else find_series(source)
    except UnreadableFileError:
        return _cases_by_folder(source)
    except SeriesSelectionError:  # no DICOM at all
        return []
    except DicomIoError as error:
        raise InputRefusedError(f"{source.name}/: {error}") from error
    if requested:
        return _requested_cases(source, series, requested)
    folders: dict[Path, list[SeriesRef]] = {}
    for ref in series:
        if ref.kind == "image" and not ref.set_aside:
            folders.setdefault(_folder_of([ref]), []).append(ref)
    return [_case(source, folder, refs, list(folders), series) for folder, refs in sorted(folders.items())]


def _requested_cases(source: Path, series: Sequence[SeriesRef], requested: Sequence[str]) -> list[CaseFiles]:
    """A case for each study that has all requested series; else the source itself, so that reading it gives the reason."""
    # A localizer or a capture, which is set aside otherwise, is a case when it is requested by its UID
    images = [ref for ref in series if ref.files and (ref.kind == "image" or ref.set_aside)]
    studies = _by_study(ref for ref in images if ref.series_instance_uid in requested)
    complete = [refs for refs in studies if {ref.series_instance_uid for ref in refs} == set(requested)]
    groups = _by_study(images) if len(requested) > 1 else [[ref] for ref in images]
    folders = [_folder_of(refs) for refs in groups]
    cases = [_case(source, _folder_of(refs), refs, folders, series) for refs in complete]
    return cases or [CaseFiles(source.name, source)]


def _by_study(series: Iterable[SeriesRef]) -> list[list[SeriesRef]]:
    studies: dict[str, list[SeriesRef]] = {}
    for ref in series:
        studies.setdefault(ref.study_instance_uid, []).append(ref)
    return list(studies.values())


def _folder_of(refs: Sequence[SeriesRef]) -> Path:
    """The lowest folder that holds all files of the series."""
    return Path(os.path.commonpath([file.parent for ref in refs for file in ref.files]))


def _case(
    source: Path, folder: Path, refs: Sequence[SeriesRef], folders: Sequence[Path], series: Sequence[SeriesRef]
) -> CaseFiles:
    """The case of the series in a folder, with the name of the highest folder that holds none of the other `folders`."""
    top = source if len(set(folders)) == 1 else _top_folder(folder, source, folders)
    objects = [file for ref in series if ref.kind in ("seg", "rtstruct") for file in ref.files]
    beside = tuple(file for file in objects if top in file.parents)
    return CaseFiles(top.name, folder, label_objects=beside, header=refs[0].files[0])


def _cases_by_folder(source: Path) -> list[CaseFiles]:
    entries = sorted(source.iterdir())
    kinds = {file: kind_of(file) for file in entries if file.is_file()}
    if {"image", "other DICOM"} & set(kinds.values()) or len(kinds) == len(entries):
        return [CaseFiles(source.name, source)]
    cases = [CaseFiles(case_id(file), file) for file, kind in kinds.items() if kind == "broken"]
    for folder in (entry for entry in entries if entry.is_dir()):
        cases += _dicom_cases(folder)
    return cases


def _top_folder(folder: Path, source: Path, folders: Sequence[Path]) -> Path:
    """The highest folder below `source` that holds this image series and no other."""
    top = folder
    while top.parent != source and sum(top.parent in (other, *other.parents) for other in folders) == 1:
        top = top.parent
    return top


def _only_label(case: CaseFiles) -> Path | None:
    if len(case.label_objects) > 1:
        raise InputRefusedError(f"{case.id}/ has {several_labels(case)}; one is needed; move the others away")
    return case.label_objects[0] if case.label_objects else None


def several_labels(case: CaseFiles) -> str:
    """The label objects of a case, with modality and path, for a message."""
    names = [
        f"{modality_of(file)} {os.path.relpath(file, os.path.commonpath([file.parent, case.image]))}"
        for file in case.label_objects
    ]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} label objects ({', '.join(names[:SHOWN])}{more})"


def first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def case_message(case: CaseFiles, error: Exception) -> str:
    """The message of an error about a case, with the case's name once, at its beginning."""
    message = str(error)
    for name in (case.id, case.image.name):
        message = message.removeprefix(f"{name}: ")
    return f"{case.id}: {message}"


def image_and_label_folders(folder: Path, labels: Path | None = None) -> tuple[Path, Path | None]:
    """The folder of the images, and the folder of the labels if they have one of their own."""
    for images_name, labels_name in (("images", "labels"), (IMAGES_OF_NNUNET, LABELS_OF_NNUNET)):
        if labels is None and (folder / images_name).is_dir():
            return folder / images_name, folder / labels_name
    return folder, labels


def find_data(dataset_dir: str | Path, labels_dir: str | Path | None = None, label_suffix: str = "") -> list[CaseFiles]:
    """The labelled cases of a data folder.

    Args:
        dataset_dir: Holds images/ and labels/, or imagesTr/ and labelsTr/, or both mixed, or DICOM; or images alone if
            `labels_dir` is given; or a file that lists cases.
        labels_dir: Folder of labels apart from the images.
        label_suffix: As in `find_cases`.
    """
    folder = Path(dataset_dir)
    if is_datalist(folder):
        return listed_cases(folder)
    cases = find_cases(*image_and_label_folders(folder, Path(labels_dir) if labels_dir else None), label_suffix)
    if not labels_dir:
        check_listed_labels(folder, {case.id: (case.files, case.label) for case in cases})
    return [replace(case, folder=folder) for case in cases]


def listed_cases(path: Path, *, need_all: bool = True) -> list[CaseFiles]:
    """The cases of a list.

    Args:
        path: A CSV or JSON file, as in `read_datalist`.
        need_all: Refuse cases without a label.
    """
    listed = read_datalist(path)
    unlabelled = [case.image.name for case in listed if case.label is None]
    if unlabelled and need_all:
        raise InputRefusedError(
            f"{len(unlabelled)} of {len(listed)} case(s) of {path.name} have no label: {first_names(unlabelled)}; each needs "
            "one; add it or leave the case out"
        )
    cases = [
        CaseFiles(
            case.id or case_id(case.image), case.image, case.label, listed=case, channels=case.channels,
            channel_names=case.channel_names, masks=case.masks, mask_names=case.mask_names, folder=path,
        )
        for case in listed
    ]  # fmt: skip
    of_channels = {case.channel_names: case.id for case in cases if case.channels}
    of_masks = {case.mask_names: case.id for case in cases if case.masks}
    for what, named in (("channels", of_channels), ("masks", of_masks)):
        if len(named) > 1:
            told = " and ".join(f"{', '.join(names) or 'no names'} ({case})" for names, case in named.items())
            raise InputRefusedError(
                f"the {what} of the cases are {told}; the same names in the same order are needed; correct them"
            )
    return sorted(_with_unique_ids(cases, path.parent), key=lambda case: case.id)
