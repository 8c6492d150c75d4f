"""Cases that a file lists, and what a data set says of its labels in nnU-Net's or the Medical Segmentation Decathlon's form.

CSV, TSV    a row for each case with the columns image and label, and where they are known id, subject, partition and fold; of
            several channels the columns image_T1, image_FLAIR ... instead of image, and of structures that have a mask each the
            columns label_liver, label_vessel ... instead of label
JSON        a list of such cases, or MONAI's data list: {"training": [{"image": ..., "label": ...}]}, with the lists
            validation (of cases that select) and testing, where there are any; an image of several channels is a list of
            files, or {"T1": ..., "FLAIR": ...}, and so are masks as its label
dataset.json    beside imagesTr/ and labelsTr/: the names of the label values and the modality

Paths are taken from the folder of the file.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast, get_args
from unicodedata import normalize

from monai_unet_app.data.schemas import json_of
from monai_unet_app.data.splits import Partition
from monai_unet_app.errors import InputRefusedError

# A spreadsheet is no list that can be read; `read_datalist` says so
LIST_ENDINGS = (".csv", ".tsv", ".json", ".xlsx", ".xlsm", ".xls", ".ods")
IGNORE = "ignore"
"""nnU-Net's name of voxels without a class."""

_KEYS = ("image", "label", "id", "subject", "partition", "fold")
_SYNONYMS = {
    "subject": (
        "patient",
        "patient_id",
        "patientid",
        "subject_id",
        "person",
        "pid",
        "participant",
        "participant_id",
        "mrn",
    ),
    "partition": ("split", "set", "subset", "phase"),
    "label": ("mask", "seg", "segmentation"),
    "image": ("img", "file", "path"),
    "id": ("case", "case_id", "identifier"),
    "fold": ("cv", "cv_fold", "kfold"),
}
_LISTS: dict[str, Partition] = {"training": "train", "validation": "selection", "testing": "test", "test": "test"}
"""Of a JSON file: which cases stand in which list, where there are several."""

_SHOWN = 5
_MODALITIES = {"ct": "CT", "mr": "MR", "mri": "MR", "pet": "PT", "pt": "PT", "us": "US"}


def modality_of(channel: str) -> str | None:
    """DICOM's term for the name of a channel; None if it names no modality."""
    return _MODALITIES.get(channel.lower())


@dataclass(frozen=True)
class ListedCase:
    """A case of a list.

    Attributes:
        image: File, or folder of one DICOM series; of several channels the first.
        label: Its label, if the list names one.
        id: A name that the list gives it; None for the name of its image.
        subject: The person, if the list tells.
        partition: What the case is for, if the list tells.
        fold: Of a cross-validation, from 0, if the list tells.
        channels: Files of the further channels.
        channel_names: Of all channels, if the list tells.
        masks: Files of the masks of further structures; `label` is that of the first.
        mask_names: Of all structures, if the list tells.
    """

    image: Path
    label: Path | None = None
    id: str | None = None
    subject: str | None = None
    partition: Partition | None = None
    fold: int | None = None
    channels: tuple[Path, ...] = ()
    channel_names: tuple[str, ...] = ()
    masks: tuple[Path, ...] = ()
    mask_names: tuple[str, ...] = ()

    @property
    def is_placed(self) -> bool:
        """Whether the list tells its partition or its fold."""
        return self.partition is not None or self.fold is not None


@dataclass(frozen=True)
class LabelFacts:
    """What a `dataset.json` says.

    Attributes:
        names: Of the structures, by label value, without the background.
        channels: The name of each channel; () where the file does not say them.
        regions: The label values of each structure, by its name, where structures consist of several; `names` is empty then.
        ignored: The value of voxels without a class (`ignore`), if there is one.
    """

    names: Mapping[int, str]
    channels: tuple[str, ...] = ()
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignored: int | None = None

    @property
    def named(self) -> Mapping[int, str]:
        """The names of values that are a structure by themselves, among regions, too."""
        return self.names or {values[0]: name for name, values in self.regions.items() if len(values) == 1}


def is_datalist(path: Path) -> bool:
    """Whether this is a file that lists cases."""
    return path.is_file() and path.name.lower().endswith(LIST_ENDINGS)


def read_datalist(path: Path) -> list[ListedCase]:
    """The cases of a list.

    Raises:
        InputRefusedError: The file cannot be read, has no column `image`, names files that are absent, or an unknown partition.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel writes a byte order mark
        rows = _rows_of_csv(text) if path.name.lower().endswith((".csv", ".tsv")) else _rows_of_json(json.loads(text))
    except (OSError, ValueError, csv.Error) as error:
        raise InputRefusedError(
            f"{path.name} cannot be read as a list of cases ({error}); CSV or JSON with image and label, in UTF-8, is "
            "needed; save a spreadsheet as CSV UTF-8 (Save As in Excel or LibreOffice); see docs/how-to/train.md"
        ) from error
    _check_keys(dict.fromkeys(key for row in rows for key in row), path.name)
    if not rows:
        raise InputRefusedError(f"{path.name} lists no case; a row with image and label for each is needed; add them")
    cases = [_listed(row, f"{path.name}, case {number}", path.parent) for number, row in enumerate(rows, 1)]
    files = [file for case in cases for file in (case.image, *case.channels, case.label, *case.masks) if file]
    if absent := [file.name for file in files if not file.exists()]:
        raise InputRefusedError(
            f"{path.name} names {len(absent)} file(s) that do not exist: {', '.join(absent[:_SHOWN])}"
            f"{' ...' if len(absent) > _SHOWN else ''}; paths are relative to the folder of the list, with / between folders; "
            "correct them"
        )
    for what in ("partition", "fold", "subject"):
        asked = [case for case in cases if what != "fold" or case.partition != "test"]
        told = sum(getattr(case, what) is not None for case in asked)
        if 0 < told < len(asked):
            raise InputRefusedError(
                f"{path.name} states the {what} of {told} of {len(asked)} case(s); all or none are needed; add the others"
            )
    spelt: dict[str, str] = {}
    for subject in filter(None, (case.subject for case in cases)):
        # A spreadsheet turns 001 into 1 or 1.0
        plain = re.sub(r"^0+(?=.)|\.0$", "", normalize("NFC", subject).strip().casefold())
        if (other := spelt.setdefault(plain, subject)) != subject:
            raise InputRefusedError(
                f"{path.name} has the subjects {other!r} and {subject!r}, which may be one person; one spelling for each is "
                "needed; correct them"
            )
    return cases


def _rows_of_csv(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip(',;\t" ') and not re.fullmatch("sep=.", line)]
    dialect = csv.Sniffer().sniff(lines[0], ",;\t") if lines and any(sign in lines[0] for sign in ",;\t") else "excel"
    return [dict(row) for row in csv.DictReader(lines, dialect=dialect)]


def _rows_of_json(document: Any) -> list[dict[str, Any]]:
    """The cases of a list, or of the lists of MONAI's form; of several lists each says the partition of its cases.

    Test cases without a label, which are there to be predicted, count only where there are no others.
    """
    lists = document if isinstance(document, dict) else {"training": document}
    found = {key: rows for key, rows in lists.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)}
    if odd := [key for key in ("training", "validation") if lists.get(key) and key not in found]:
        raise ValueError(f"{odd[0]!r} is no list of cases, each with an image and a label")
    if unknown := [key for key in found if key not in _LISTS]:
        raise ValueError(f"{unknown[0]!r} is not known; {_nearest(unknown[0], _LISTS)!r} is the nearest known list")
    if not found or not all(isinstance(row, dict) for rows in found.values() for row in rows):
        raise ValueError('neither a list of cases nor {"training": [cases]}')
    labelled = {key: [row for row in rows if _LISTS[key] != "test" or row.get("label")] for key, rows in found.items()}
    told = {key: rows for key, rows in labelled.items() if rows} or found
    if len(told) == 1:
        return next(iter(told.values()))
    return [{"partition": _LISTS[key], **row} for key, rows in told.items() for row in rows]


def _nearest(key: str, known: Iterable[str]) -> str:
    return next(iter(get_close_matches(key.lower(), list(known), 1, 0)), "")


def _check_keys(keys: Iterable[str], where: str) -> None:
    """Raises InputRefusedError for a key that says what a known one says; others, such as an age, are no business of ours."""
    for key in keys:
        word = re.sub(r"[\s.-]+", "_", str(key).strip().lower())
        meant = next((known for known, words in _SYNONYMS.items() if word in words), None)
        meant = meant or next(iter(get_close_matches(word, _KEYS, 1, 0.8)), None)
        if meant and key not in _KEYS and not str(key).startswith(("image_", "label_")):
            raise InputRefusedError(
                f"{where} has the key {key!r}, which is not known; {meant!r} is the nearest; rename it"
            )


def _listed(row: Mapping[str, Any], where: str, folder: Path) -> ListedCase:
    # `value == value` is false of NaN, by which pandas writes what is missing
    told = {key: row[key] for key in _KEYS if row.get(key) not in (None, "") and row[key] == row[key]}
    (images, names), (labels, mask_names) = (_files(row, what, where) for what in ("image", "label"))
    if not images:
        raise InputRefusedError(f"{where} has no image (it has {', '.join(map(str, row)) or 'nothing'}); name its file")
    (first, *others), masks = (folder / image for image in images), [folder / label for label in labels]
    if told.get("partition", "train") not in get_args(Partition):
        raise InputRefusedError(
            f"{where} has the partition {told['partition']!r}; {', '.join(get_args(Partition))} is needed; correct it"
        )
    try:
        fold = int(str(told["fold"]).removesuffix(".0")) if "fold" in told else None
    except (TypeError, ValueError) as error:
        raise InputRefusedError(f"{where} has the fold {told['fold']!r}; 0, 1, 2 ... is needed; correct it") from error
    return ListedCase(
        image=first,
        label=masks[0] if masks else None,
        id=str(told["id"]) if "id" in told else None,
        subject=str(told["subject"]) if "subject" in told else None,
        partition=cast(Partition | None, told.get("partition")),
        fold=fold,
        channels=tuple(others),
        channel_names=names,
        masks=tuple(masks[1:]),
        mask_names=mask_names,
    )


def _files(row: Mapping[str, Any], what: str, where: str) -> tuple[list[str], tuple[str, ...]]:
    """The files of an image or a label, none where there is none; and their names, where the list tells them of several.

    Raises:
        InputRefusedError: One of several is absent.
    """
    told = row.get(what)
    if told in (None, ""):
        told = {key.removeprefix(f"{what}_"): row[key] for key in row if str(key).startswith(f"{what}_")}
    named = told if isinstance(told, dict) else dict(enumerate(told if isinstance(told, list) else [told]))
    absent = [name for name, file in named.items() if not file]
    if absent and len(absent) < len(named):
        raise InputRefusedError(f"{where} has no {what} {', '.join(map(str, absent))}; each needs a file; add it")
    files = [] if absent else [str(file) for file in named.values()]
    return files, tuple(map(str, named)) if isinstance(told, dict) and len(files) > 1 else ()


def facts_of(data: Path) -> LabelFacts | None:
    """What a data set says of its labels: a list of cases in itself or in the `dataset.json` beside it, a folder in the latter.

    Raises:
        InputRefusedError: As `read_dataset_json`, or a list and the file beside it differ.
    """
    if not is_datalist(data):
        return read_dataset_json(data)
    beside, own = read_dataset_json(data.parent), None
    if (
        data.suffix.lower() == ".json"
        and isinstance(document := json_of(data), dict)
        and {"labels", "modality"} & {*document}
    ):
        own = _facts(data, {"labels": {}, **document})
    if own and beside and own.names and own.named != beside.named:
        raise InputRefusedError(
            f"{data.name} names the label values {dict(own.named)}, dataset.json beside it {dict(beside.named)}; one "
            "meaning is needed; correct or remove one of them"
        )
    return own if own and (own.names or own.regions) else beside or own


def read_dataset_json(folder: Path) -> LabelFacts | None:
    """What `dataset.json` in the folder says of its labels; None where there is none.

    Raises:
        InputRefusedError: The file is damaged, or gives the value to ignore to a structure as well.
    """
    path = folder / "dataset.json"
    return _facts(path) if path.is_file() and not _only_directions(path) else None


def _only_directions(path: Path) -> bool:
    """Whether a `dataset.json` says nothing but the directions of the files beside it, see `read_volume`."""
    try:
        return set(json.loads(path.read_text(encoding="utf-8-sig"))) == {"directions"}
    except (OSError, ValueError, TypeError):  # `_facts` gives the reason
        return False


def _facts(path: Path, document: dict[str, Any] | None = None) -> LabelFacts:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig")) if document is None else document
        # To nnU-Net, too, a list of one value is this value
        labels = {name: _only(value) for name, value in document["labels"].items()}
        channels = document.get("channel_names") or document.get("modality") or {}
        ignored = next((int(value) for name, value in _pairs(labels) if name.lower() == IGNORE), None)
        names, regions = _names_by_value(labels), _regions(labels)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputRefusedError(
            f"{path.name} does not state its labels ({type(error).__name__}: {error}); nnU-Net's or the Decathlon's form is "
            "needed; correct or remove it"
        ) from error
    if isinstance(channels, dict) and channels and all(isinstance(place, int) for place in channels.values()):
        channels = {str(place): name for name, place in channels.items()}  # {"T1": 0, "FLAIR": 1}
    told = tuple(str(channels[key]) for key in sorted(channels, key=_number)) if isinstance(channels, dict) else ()
    if ignored in {*names, *(value for region in regions.values() for value in region)}:
        raise InputRefusedError(
            f"{path.name} gives the value {ignored} to {IGNORE} and to a structure; a value of its own is needed; correct it, "
            "and the labels"
        )
    return LabelFacts({} if regions else names, told, regions, ignored)


def check_listed_labels(folder: Path, found: Mapping[str, tuple[Sequence[Path], Path | None]]) -> None:
    """Raises InputRefusedError if `dataset.json` in the folder lists another label for a case, or leaves out a case.

    `found`: files of the image and label of each case, by its id.
    """
    try:
        document = json_of(folder / "dataset.json")
        told = document.get("dataset") or {}  # of nnU-Net, which takes these files wherever they lie
        rows = [{"image": case["images"][0], "label": case["label"]} for case in told.values()] or document["training"]
        rows = [row for row in rows if isinstance(row["image"], str) and isinstance(row["label"], str)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # nnU-Net's form need not list any
        return
    listed = {_bare(row["image"]): (folder / row["label"]).resolve() for row in rows}
    for case, (files, label) in found.items():
        names = (*(_bare(file.name) for file in files), case)  # nnU-Net's first version lists no number of a channel
        told = next((listed[name] for name in names if name in listed), None)
        if told is None and label is not None and listed:
            raise InputRefusedError(
                f"{case} has an image and a label, and is not among the {len(listed)} cases that dataset.json lists; add "
                "it there, or move its files away"
            )
        if told is not None and label is not None and told.is_file() and told != label.resolve():
            raise InputRefusedError(
                f"dataset.json lists {os.path.relpath(told, folder)} as the label of {case}, and "
                f"{os.path.relpath(label, folder)} was found; one of them is needed; correct dataset.json, or move "
                "the other file away"
            )


def check_channel_count(names: Sequence[str], count: int) -> None:
    """Raises InputRefusedError if a data set names another number of channels than its images have; no names are fine."""
    if names and len(names) != count:
        raise InputRefusedError(
            f"the data name {len(names)} channel(s) ({', '.join(names)}), and the images have {count}; one name for each is "
            "needed; correct channel_names in dataset.json, or add the files of the others"
        )


def _bare(file: str) -> str:
    return re.sub(r"(\.nii)?(\.\w+)?$", "", Path(file).name)


def _number(key: str) -> tuple[int, str]:
    """Sorts "0", "1" ... "10" as numbers, and other keys behind them."""
    return (int(key), "") if key.isdigit() else (10**9, key)


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _regions(labels: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The values of each region, from {"background": 0, "whole tumour": [1, 2], "core": 2}; empty where none has several."""
    if not any(isinstance(value, list) for value in labels.values()):
        return {}
    values = {name: tuple(map(int, value if isinstance(value, list) else [value])) for name, value in labels.items()}
    return {name: told for name, told in values.items() if told != (0,) and name.lower() != IGNORE}


def _pairs(labels: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name, value) of {"0": "background", "1": "liver"} or {"background": 0, "liver": 1}."""
    return [(str(key), value) if not str(key).isdigit() else (str(value), key) for key, value in labels.items()]


def _names_by_value(labels: Mapping[str, Any]) -> dict[int, str]:
    """The names by label value, from {"0": "background", "1": "liver"} or {"background": 0, "liver": 1}; without regions."""
    pairs = [
        (name, int(value)) for name, value in _pairs(labels) if not isinstance(value, list) and name.lower() != IGNORE
    ]
    names = {value: name for name, value in pairs if value != 0}
    if doubled := [name for name, times in Counter(names.values()).items() if times > 1]:
        raise InputRefusedError(f"dataset.json gives two label values the name {doubled[0]!r}; rename one")
    return dict(sorted(names.items()))
