"""Which cases there are: images with their labels, found in folders, and told apart by partition.

images/ and labels/      files of one name in both (NIfTI or 2D pictures), or one folder with a suffix for labels
a folder of DICOM        one folder a case: one image series and the SEG or RTSTRUCT with its labels
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dicom_io.errors import DicomIoError, SeriesSelectionError, UnreadableFileError
from dicom_io.series import SeriesRef, find_series
from monai_unet_app.data.read import NIFTI_ENDINGS, PICTURE_ENDINGS, has_ending
from monai_unet_app.data.splits import Partition, SplitCase, make_split, read_splits
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.shipped import shipped

FILE_ENDINGS = NIFTI_ENDINGS + PICTURE_ENDINGS


@dataclass(frozen=True)
class CaseFiles:
    """One case on disk.

    Attributes:
        id: File or folder name without ending.
        image: NIfTI, picture, or folder with one DICOM image series.
        label: NIfTI, picture, SEG or RTSTRUCT; None where there is none.
    """

    id: str
    image: Path
    label: Path | None = None


def case_id(path: Path) -> str:
    """File name without its ending; `.nii.gz` is one ending."""
    name = path.name
    for ending in sorted((*FILE_ENDINGS, ".dcm"), key=len, reverse=True):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def find_images(source: Path) -> list[CaseFiles]:
    """Every case at `source`: a file, a folder of files, or DICOM, one case for each folder that holds an image series.

    Raises:
        InputRefusedError: Nothing is there that could be an image.
    """
    if not source.exists():
        raise InputRefusedError(
            f"{source.name} does not exist; an image, a DICOM folder or a folder of cases is needed"
        )
    if source.is_file():
        return [CaseFiles(case_id(source), source)]
    files = sorted(file for file in source.iterdir() if file.is_file() and has_ending(file, FILE_ENDINGS))
    found = [CaseFiles(case_id(file), file) for file in files] or _dicom_cases(source)
    if not found:
        raise InputRefusedError(
            f"no image found in {source.name}/; NIfTI ({', '.join(NIFTI_ENDINGS)}), pictures ({', '.join(PICTURE_ENDINGS)}) "
            "or DICOM is needed; check the path"
        )
    return _told_apart(found, source)


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
    if labels is None and all(case.image.is_dir() for case in found):
        pairs = found
    elif labels is None:
        pairs = _paired(_without_derived(found, label_suffix), images, label_suffix)
    else:
        pairs = _paired(found, labels, label_suffix)
    missing = [case.id for case in pairs if case.label is None]
    if missing and (need_all or len(missing) == len(pairs)):
        raise InputRefusedError(
            f"{len(missing)} of {len(pairs)} image(s) have no label: {', '.join(missing[:5])}{' ...' if missing[5:] else ''}; "
            f"a label of the same name{f' plus {label_suffix!r}' if label_suffix else ''} is needed; add it or move the "
            "image away"
        )
    return pairs


def _paired(cases: Sequence[CaseFiles], labels: Path, suffix: str) -> list[CaseFiles]:
    if not labels.is_dir():
        raise InputRefusedError(f"{labels.name}/ is no folder; one with a label for each image is needed")
    by_id = {case_id(file): file for file in sorted(labels.iterdir())}
    return [CaseFiles(case.id, case.image, by_id.get(case.id + suffix)) for case in cases]


def _without_derived(cases: Sequence[CaseFiles], suffix: str) -> list[CaseFiles]:
    """The images of one folder that holds labels too: a name that goes on from another's (Image_1_x) is no image."""
    if not suffix:
        raise InputRefusedError("images and labels lie in one folder; a suffix tells labels apart; give --label-suffix")
    ids = {case.id for case in cases}
    return [
        case
        for case in cases
        if not any(case.id[:end] in ids for end in range(1, len(case.id)) if case.id[end] == suffix[0])
    ]


def _dicom_cases(source: Path) -> list[CaseFiles]:
    """One case for each folder below `source` that holds an image series, however deep, with the labels beside it.

    Beside a broken file every folder stands for itself: the good cases are found, and reading the bad one says what is
    wrong with it.
    """
    try:
        series = find_series(source)
    except UnreadableFileError:
        return _one_by_one(source)
    except DicomIoError as error:
        raise InputRefusedError(f"{source.name}/: {error}") from error
    images = [ref for ref in series if ref.kind == "image" and not ref.set_aside]
    folders = sorted({Path(os.path.commonpath([file.parent for file in ref.files])) for ref in images})
    cases = []
    for folder in folders:
        home = source if len(folders) == 1 else _home(folder, source, folders)
        cases.append(CaseFiles(home.name, folder, _label_in(home, series)))
    return cases


def _one_by_one(source: Path) -> list[CaseFiles]:
    entries = sorted(source.iterdir())
    if not all(entry.is_dir() for entry in entries):
        return [CaseFiles(source.name, source)]
    cases: list[CaseFiles] = []
    for folder in entries:
        try:
            find_series(folder)
        except UnreadableFileError:
            cases += _one_by_one(folder)
        except SeriesSelectionError:  # nothing of DICOM in it
            continue
        else:
            cases += _dicom_cases(folder)
    return cases


def _home(folder: Path, source: Path, folders: Sequence[Path]) -> Path:
    """The highest folder below `source` that holds this image series and no other."""
    home = folder
    while home.parent != source and sum(home.parent in (other, *other.parents) for other in folders) == 1:
        home = home.parent
    return home


def _label_in(home: Path, series: Sequence[SeriesRef]) -> Path | None:
    labels = [ref.files[0] for ref in series if ref.kind in ("seg", "rtstruct") and home in ref.files[0].parents]
    if len(labels) > 1:
        raise InputRefusedError(
            f"{home.name}/ has {len(labels)} label objects ({', '.join(file.name for file in labels)}); one is needed; move "
            "the others away"
        )
    return labels[0] if labels else None


def plan_of(cases: Sequence[CaseFiles], splits: str | Path | None) -> dict[str, SplitCase]:
    """Each case's place in the given `splits.json`.

    With `splits` None: the shipped plan if it knows every case, else a new one in which each case is a subject of its own.

    Raises:
        InputRefusedError: The given plan does not know a case.
    """
    known = read_splits(Path(splits)) if splits else read_splits(shipped("examples") / "splits.json")
    unknown = [case.id for case in cases if case.id not in known]
    if not unknown:
        return {case.id: known[case.id] for case in cases}
    if splits:
        raise InputRefusedError(
            f"{Path(splits).name} does not know {len(unknown)} of {len(cases)} case(s): {', '.join(unknown[:5])}; a place for "
            "each case is needed; add them or leave --splits out"
        )
    return {case.id: case for case in make_split("data", {case.id: case.id for case in cases})}


def find_data(dataset_dir: str | Path, labels_dir: str | Path | None = None, label_suffix: str = "") -> list[CaseFiles]:
    """The labelled cases of a data folder: images/ and labels/ in it, both mixed, or DICOM; or images with `labels_dir`."""
    folder = Path(dataset_dir)
    if labels_dir is not None:
        return find_cases(folder, Path(labels_dir), label_suffix)
    if (folder / "images").is_dir():
        return find_cases(folder / "images", folder / "labels", label_suffix)
    return find_cases(folder, None, label_suffix)


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
