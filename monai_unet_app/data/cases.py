"""Which cases there are: images with their labels, found in folders, and told apart by partition.

images/ and labels/      files of one name in both (NIfTI or 2D pictures), or one folder with a suffix for labels
a folder of DICOM        one folder a case: one image series and the SEG or RTSTRUCT with its labels
a study and UIDs         one case: the series that is named, or those that are the channels
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dicom_io.errors import DicomIoError, SeriesSelectionError, UnreadableFileError
from dicom_io.read import ReadOptions
from dicom_io.reading.dicomdir import files_of_dicomdir, is_dicomdir
from dicom_io.reading.instances import load_dataset
from dicom_io.reading.series import SeriesRef, counted, files_below, find_series, scan_files, survey_files
from monai_unet_app.data.read import PICTURE_ENDINGS, VOLUME_ENDINGS, has_ending, read_volume
from monai_unet_app.data.splits import Partition, SplitCase, make_split, read_splits
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.shipped import shipped

FILE_ENDINGS = VOLUME_ENDINGS + PICTURE_ENDINGS
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class CaseFiles:
    """One case on disk.

    Attributes:
        id: File or folder name without ending.
        image: NIfTI, picture, or folder with one DICOM image series.
        label: NIfTI, picture, SEG or RTSTRUCT; None where there is none.
        label_objects: Every SEG and RTSTRUCT that lies beside a DICOM series.
        header: One file of a DICOM series; its PatientID tells whose it is.
    """

    id: str
    image: Path
    label: Path | None = None
    label_objects: tuple[Path, ...] = ()
    header: Path | None = None


def named_series(options: ReadOptions) -> tuple[str, ...]:
    """The series that somebody asked for by UID: one, or those that are the channels; none for any."""
    return options.channels or ((options.series_instance_uid,) if options.series_instance_uid else ())


def case_id(path: Path) -> str:
    """File name without its ending; `.nii.gz` is one ending."""
    name = path.name
    for ending in sorted((*FILE_ENDINGS, ".dcm"), key=len, reverse=True):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def find_images(source: Path, series: Sequence[str] = ()) -> list[CaseFiles]:
    """Every case at `source`: a file, a folder of files, or DICOM, one case for each folder that holds an image series.

    Args:
        source: Where to look.
        series: SeriesInstanceUIDs: take no other DICOM series. Several are the channels of one case, in whatever folders
            of a study they lie. Where one of them is nowhere, the source is the one case, whose reading says so.

    Raises:
        InputRefusedError: Nothing is there that could be an image, or files and DICOM in one folder.
    """
    source = Path(os.path.abspath(source))  # "." has no name
    if not source.exists():
        raise InputRefusedError(
            f"{source.name} does not exist; an image, a DICOM folder or a folder of cases is needed"
        )
    if source.is_file():
        return [CaseFiles(case_id(source), source)]
    files = sorted(file for file in source.iterdir() if file.is_file() and has_ending(file, FILE_ENDINGS))
    if files:
        files += _broken_dicom_beside(files, source)
    found = [CaseFiles(case_id(file), file) for file in files] or _dicom_cases(source, series)
    if not found:
        raise InputRefusedError(
            f"no image found in {source.name}/{_of_dicomdir(source)}; NIfTI, NRRD or MetaImage ({', '.join(VOLUME_ENDINGS)}), "
            f"pictures ({', '.join(PICTURE_ENDINGS)}) or DICOM is needed; check the path"
        )
    return _told_apart(found, source)


def _of_dicomdir(folder: Path) -> str:
    """What the DICOMDIR of a folder lists, where there is one and none of it is here."""
    index = next((file for file in folder.iterdir() if file.is_file() and is_dicomdir(file)), None)
    if index is None:
        return ""
    try:
        listed = files_of_dicomdir(index)
    except DicomIoError as error:
        return f" ({error})"
    return f": {index.name} lists {counted(len(listed), 'file')}" + (", none of which is here" if listed else "")


def _broken_dicom_beside(files: Sequence[Path], source: Path) -> list[Path]:
    """Damaged DICOM files among the images of a folder: cases that cannot be read.

    Raises:
        InputRefusedError: Whole DICOM images are there or deeper down: nobody can say which kind was meant.
    """
    images = set(files)
    kinds = {file: _kind_of(file) for file in files_below(source) if file not in images}
    if "image" in kinds.values():
        raise InputRefusedError(
            f"{source.name}/ holds {len(files)} image file(s) ({files[0].name} ...) and DICOM images beside or below them; one "
            "kind in a folder is needed; name the file that is meant, or move one kind away"
        )
    return [file for file, kind in kinds.items() if kind == "broken" and file.parent == source]


def _told_apart(cases: Sequence[CaseFiles], source: Path) -> list[CaseFiles]:
    """The cases with ids of their own, since results are named by them: folders of one name get their path as id."""
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
            f"{times} cases of {source.name}/ are called {name} ({files}); each needs a name of its own; rename one or move it "
            "away"
        )
    return named


def image_rows(folder: str | Path) -> list[dict[str, str]]:
    """`find_images` as MONAI's data list: {"image", "id"}."""
    return [{"image": str(case.image), "id": case.id} for case in find_images(Path(folder))]


def find_cases(
    images: Path, labels: Path | None = None, label_suffix: str = "", *, need_all: bool = True
) -> list[CaseFiles]:
    """Images with their labels.

    Args:
        images: Folder of images, or of DICOM folders that hold image series with a SEG or RTSTRUCT each.
        labels: Folder of labels whose names are those of the images plus `label_suffix`; None where the labels lie
            beside the images.
        label_suffix: For instance "_1stHO" when the label of Image_01L.jpg is Image_01L_1stHO.png.
        need_all: Refuse images without a label; else they come back without one, as long as one image has one.

    Raises:
        InputRefusedError: No case, or an image without a label.
    """
    found = find_images(images)
    if labels is None and not any(has_ending(case.image, FILE_ENDINGS) for case in found):
        pairs = [replace(case, label=_one_label(case)) for case in found]
    elif labels is None:
        pairs = _paired(_without_derived(found, label_suffix), images, label_suffix)
    else:
        pairs = _paired(found, labels, label_suffix)
    unlabelled = [case for case in pairs if case.label is None]
    for case in unlabelled:
        if need_all and not has_ending(case.image, FILE_ENDINGS):
            read_volume(case.image)  # a damaged series is said to be that
    missing = [case.id for case in unlabelled]
    if missing and (need_all or len(missing) == len(pairs)):
        raise InputRefusedError(
            f"{len(missing)} of {len(pairs)} image(s) have no label: {_some(missing)}; "
            f"a label of the same name{f' plus {label_suffix!r}' if label_suffix else ''} is needed; add it or move the "
            "image away"
        )
    return pairs


def _paired(cases: Sequence[CaseFiles], labels: Path, suffix: str) -> list[CaseFiles]:
    if not labels.is_dir():
        raise InputRefusedError(f"{labels.name}/ is no folder; one with a label for each image is needed")
    by_id: dict[str, Path] = {}
    for file in sorted(labels.iterdir()):
        other = by_id.setdefault(case_id(file), file)
        if other != file and has_ending(file, FILE_ENDINGS) and has_ending(other, FILE_ENDINGS):
            raise InputRefusedError(
                f"{labels.name}/ has {other.name} and {file.name}; one label of a name is needed; move the others away"
            )
        if has_ending(file, FILE_ENDINGS):
            by_id[case_id(file)] = file
    return [CaseFiles(case.id, case.image, by_id.get(case.id + suffix)) for case in cases]


def _without_derived(cases: Sequence[CaseFiles], suffix: str) -> list[CaseFiles]:
    """The images of one folder that holds labels too.

    What has a label is an image. What goes on from an image's name, by a mark like _, as it does for every image (a second
    grader's labels, Image_1_2ndHO beside Image_1) is none; anything else is an image that lacks its label.
    """
    if not suffix:
        raise InputRefusedError(
            "no labels are named; give --labels DIR, or --label-suffix where images and labels lie in one folder"
        )
    ids = {case.id for case in cases}
    images = {name for name in ids if name + suffix in ids}
    tails = {name[len(image) :] for name in ids for image in images if name != image and name.startswith(image)}
    common = {tail for tail in tails if not tail[0].isalnum() and all(image + tail in ids for image in images)}
    derived = {image + tail for tail in common for image in images}
    return [case for case in cases if case.id in images or case.id not in derived]


def _dicom_cases(source: Path, wanted: Sequence[str] = ()) -> list[CaseFiles]:
    """One case for each folder below `source` that holds an image series, however deep, with the labels beside it.

    Beside a broken file every folder stands for itself: the good cases are found, and reading the bad one says what is
    wrong with it.
    """
    try:
        series = survey_files(files_below(source)).series if wanted else find_series(source)
    except UnreadableFileError:
        return _one_by_one(source)
    except SeriesSelectionError:  # nothing of DICOM in it
        return []
    except DicomIoError as error:
        raise InputRefusedError(f"{source.name}/: {error}") from error
    if wanted:
        return _named_cases(source, series, wanted)
    folders: dict[Path, list[SeriesRef]] = {}
    for ref in series:
        if ref.kind == "image" and not ref.set_aside:
            folders.setdefault(_folder_of([ref]), []).append(ref)
    return [_case(source, folder, refs, list(folders), series) for folder, refs in sorted(folders.items())]


def _named_cases(source: Path, series: Sequence[SeriesRef], wanted: Sequence[str]) -> list[CaseFiles]:
    """A case for each study that has all the series; else the source itself: reading it says what is there instead."""
    images = [ref for ref in series if ref.files and (ref.kind == "image" or ref.set_aside)]
    found = _by_study(ref for ref in images if ref.series_instance_uid in wanted)
    whole = [refs for refs in found if {ref.series_instance_uid for ref in refs} == set(wanted)]
    others = _by_study(images) if len(wanted) > 1 else [[ref] for ref in images]
    folders = [_folder_of(refs) for refs in others]
    cases = [_case(source, _folder_of(refs), refs, folders, series) for refs in whole]
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
    """The case of the series in a folder, called by the highest folder that holds none of the other `folders`."""
    home = source if len(set(folders)) == 1 else _home(folder, source, folders)
    objects = [file for ref in series if ref.kind in ("seg", "rtstruct") for file in ref.files]
    beside = tuple(file for file in objects if home in file.parents)
    return CaseFiles(home.name, folder, label_objects=beside, header=refs[0].files[0])


def _one_by_one(source: Path) -> list[CaseFiles]:
    entries = sorted(source.iterdir())
    kinds = {file: _kind_of(file) for file in entries if file.is_file()}
    if {"image", "other DICOM"} & set(kinds.values()) or len(kinds) == len(entries):
        return [CaseFiles(source.name, source)]
    cases = [CaseFiles(case_id(file), file) for file, kind in kinds.items() if kind == "broken"]
    for folder in (entry for entry in entries if entry.is_dir()):
        cases += _dicom_cases(folder)
    return cases


def _kind_of(file: Path) -> Literal["image", "other DICOM", "broken", "foreign"]:
    try:
        (series,) = scan_files([file]).series
    except UnreadableFileError:
        return "broken"
    except SeriesSelectionError:
        return "foreign"
    return "image" if series.kind == "image" else "other DICOM"


def _home(folder: Path, source: Path, folders: Sequence[Path]) -> Path:
    """The highest folder below `source` that holds this image series and no other."""
    home = folder
    while home.parent != source and sum(home.parent in (other, *other.parents) for other in folders) == 1:
        home = home.parent
    return home


def _one_label(case: CaseFiles) -> Path | None:
    if len(case.label_objects) > 1:
        raise InputRefusedError(f"{case.id}/ has {several_labels(case)}; one is needed; move the others away")
    return case.label_objects[0] if case.label_objects else None


def several_labels(case: CaseFiles) -> str:
    """The label objects of a case, with kind and path, for a message."""
    told = [f"{scan_files([file]).series[0].modality} {_below(file, case.image)}" for file in case.label_objects]
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return f"{len(told)} label objects ({', '.join(told[:SHOWN])}{more})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def _below(file: Path, image: Path) -> str:
    """The file's path from the folder that holds it and the image."""
    return os.path.relpath(file, os.path.commonpath([file.parent, image]))


def told(case: CaseFiles, error: Exception) -> str:
    """What is wrong with a case, its name in front, once."""
    message = str(error)
    for name in (case.id, case.image.name):
        message = message.removeprefix(f"{name}: ")
    return f"{case.id}: {message}"


def subjects_of(cases: Sequence[CaseFiles]) -> dict[str, str]:
    """Whose each case is: by the shipped plan if it knows the case, else by PatientID, else its own.

    A subject of the latter kinds is called by its first case; a PatientID goes nowhere.
    """
    known = read_splits(shipped("examples") / "splits.json")
    first: dict[tuple[str, str], str] = {}
    return {
        case.id: known[case.id].subject if case.id in known else first.setdefault(_patient(case), case.id)
        for case in sorted(cases, key=lambda case: case.id)
    }


def _patient(case: CaseFiles) -> tuple[str, str]:
    """A key that is the same for all series of a patient, and for nothing else."""
    if case.header is not None:
        header = load_dataset(case.header, with_pixels=False)
        if header.get("PatientID"):
            return str(header.get("IssuerOfPatientID") or ""), str(header.PatientID)
    return "case", case.id


def plan_of(cases: Sequence[CaseFiles], splits: str | Path | None) -> dict[str, SplitCase]:
    """Each case's place in the given `splits.json`.

    With `splits` None: the shipped plan if it knows every case, else a new one over `subjects_of` the cases.

    Raises:
        InputRefusedError: The given plan does not know a case.
    """
    known = read_splits(Path(splits)) if splits else read_splits(shipped("examples") / "splits.json")
    unknown = [case.id for case in cases if case.id not in known]
    if not unknown:
        return {case.id: known[case.id] for case in cases}
    if splits:
        raise InputRefusedError(
            f"{Path(splits).name} does not know {len(unknown)} of {len(cases)} case(s): {_some(unknown)}; a place for "
            "each case is needed; add them or leave --splits out"
        )
    return {case.id: case for case in make_split("data", subjects_of(cases))}


def find_data(dataset_dir: str | Path, labels_dir: str | Path | None = None, label_suffix: str = "") -> list[CaseFiles]:
    """The labelled cases of a data folder: images/ and labels/ in it, both mixed, or DICOM; or images with `labels_dir`."""
    return find_cases(
        *image_and_label_folders(Path(dataset_dir), Path(labels_dir) if labels_dir else None), label_suffix
    )


def image_and_label_folders(folder: Path, labels: Path | None = None) -> tuple[Path, Path | None]:
    """Where the images lie, and the labels where they have a folder of their own."""
    if labels is None and (folder / "images").is_dir():
        return folder / "images", folder / "labels"
    return folder, labels


def by_partition(
    dataset_dir: str | Path,
    splits: str | Path | None = None,
    label_suffix: str = "",
    labels_dir: str | Path | None = None,
    fold: int | None = None,
) -> dict[Partition, list[dict[str, str]]]:
    """Cases of a data folder by partition, as MONAI's data lists: {"image", "label", "id", "subject"}.

    Args:
        dataset_dir: As in `find_data`.
        splits: A `splits.json`; None as in `plan_of`.
        label_suffix: As in `find_cases`.
        labels_dir: As in `find_data`.
        fold: For cross-validation: the cases of this fold (0 to 4) test, and those that would test else train.
    """
    cases = find_data(dataset_dir, labels_dir, label_suffix)
    plan = plan_of(cases, splits)
    found: dict[Partition, list[dict[str, str]]] = {"train": [], "selection": [], "calibration": [], "test": []}
    for case in cases:
        found[_part_of(plan[case.id], fold)].append(data_row(case, plan[case.id].subject))
    return found


def _part_of(place: SplitCase, fold: int | None) -> Partition:
    if fold is None:
        return place.partition
    if place.fold == fold:
        return "test"
    return "train" if place.partition == "test" else place.partition


def data_row(case: CaseFiles, subject: str) -> dict[str, str]:
    """One entry of a MONAI data list."""
    return {"image": str(case.image), "label": str(case.label), "id": case.id, "subject": subject}
