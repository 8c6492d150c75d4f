"""Cases that a file lists, and what a data set says of its labels in nnU-Net's or the Medical Segmentation Decathlon's form.

CSV         a row for each case with the columns image and label, and where they are known id, subject, partition and fold
JSON        a list of such cases, or MONAI's data list: {"training": [{"image": ..., "label": ...}]}
dataset.json    beside imagesTr/ and labelsTr/: the names of the label values and the modality

Paths are taken from the folder of the file.
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from monai_unet_app.data.splits import Partition
from monai_unet_app.errors import InputRefusedError

LIST_ENDINGS = (".csv", ".json")
_KEYS = ("image", "label", "id", "subject", "partition", "fold")
_SHOWN = 5
_MODALITIES = {"ct": "CT", "mr": "MR", "mri": "MR", "pet": "PT", "us": "US"}


@dataclass(frozen=True)
class ListedCase:
    """A case of a list.

    Attributes:
        image: File, or folder of one DICOM series.
        label: Its label, if the list names one.
        id: A name that the list gives it; None for the name of its image.
        subject: The person, if the list tells.
        partition: What the case is for, if the list tells.
        fold: Of a cross-validation, from 0, if the list tells.
    """

    image: Path
    label: Path | None = None
    id: str | None = None
    subject: str | None = None
    partition: Partition | None = None
    fold: int | None = None


@dataclass(frozen=True)
class LabelFacts:
    """What a `dataset.json` says.

    Attributes:
        names: Of the structures, by label value, without the background.
        modality: DICOM's term (CT, MR), if it is one.
        channels: The name of each channel; () where the file does not say them.
    """

    names: Mapping[int, str]
    modality: str | None
    channels: tuple[str, ...] = ()


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
        rows = _rows_of_csv(text) if path.name.lower().endswith(".csv") else _rows_of_json(json.loads(text))
    except (OSError, ValueError, csv.Error) as error:
        raise InputRefusedError(
            f"{path.name} cannot be read as a list of cases ({error}); CSV or JSON with image and label is needed; see "
            "docs/how-to/train.md"
        ) from error
    if not rows:
        raise InputRefusedError(f"{path.name} lists no case; a row with image and label for each is needed; add them")
    cases = [_listed(row, f"{path.name}, case {number}", path.parent) for number, row in enumerate(rows, 1)]
    if absent := [file.name for case in cases for file in (case.image, case.label) if file and not file.exists()]:
        raise InputRefusedError(
            f"{path.name} names {len(absent)} file(s) that do not exist: {', '.join(absent[:_SHOWN])}"
            f"{' ...' if len(absent) > _SHOWN else ''}; paths are relative to the folder of the list; correct them"
        )
    for what in ("partition", "fold"):
        told = sum(getattr(case, what) is not None for case in cases)
        if 0 < told < len(cases):
            raise InputRefusedError(
                f"{path.name} states the {what} of {told} of {len(cases)} case(s); all or none are needed; add the others"
            )
    return cases


def _rows_of_csv(text: str) -> list[dict[str, Any]]:
    lines = text.splitlines()
    dialect = csv.Sniffer().sniff(lines[0], ",;\t") if lines and any(sign in lines[0] for sign in ",;\t") else "excel"
    return [dict(row) for row in csv.DictReader(lines, dialect=dialect)]


def _rows_of_json(document: Any) -> list[dict[str, Any]]:
    rows = document.get("training") if isinstance(document, dict) else document
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError('neither a list of cases nor {"training": [cases]}')
    return rows


def _listed(row: Mapping[str, Any], where: str, folder: Path) -> ListedCase:
    told = {key: row[key] for key in _KEYS if row.get(key) not in (None, "")}
    image, label = told.get("image"), told.get("label")
    if isinstance(image, list) or isinstance(label, list):
        raise InputRefusedError(
            f"{where} has several files for one image or label; one file is needed; put channels into one file"
        )
    if not image:
        raise InputRefusedError(f"{where} has no image (it has {', '.join(map(str, row)) or 'nothing'}); name its file")
    if told.get("partition", "train") not in get_args(Partition):
        raise InputRefusedError(
            f"{where} has the partition {told['partition']!r}; {', '.join(get_args(Partition))} is needed; correct it"
        )
    try:
        fold = int(told["fold"]) if "fold" in told else None
    except (TypeError, ValueError) as error:
        raise InputRefusedError(f"{where} has the fold {told['fold']!r}; 0, 1, 2 ... is needed; correct it") from error
    return ListedCase(
        image=folder / str(image),
        label=folder / str(label) if label else None,
        id=str(told["id"]) if "id" in told else None,
        subject=str(told["subject"]) if "subject" in told else None,
        partition=cast(Partition | None, told.get("partition")),
        fold=fold,
    )


def read_dataset_json(folder: Path) -> LabelFacts | None:
    """What `dataset.json` in the folder says of its labels; None where there is none.

    Raises:
        InputRefusedError: The file is damaged, or its labels are regions, or some voxels have no class (`ignore`).
    """
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
        labels, channels = document["labels"], document.get("channel_names") or document.get("modality") or {}
        names = _names_by_value(labels)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputRefusedError(
            f"{path.name} does not state its labels ({type(error).__name__}: {error}); nnU-Net's or the Decathlon's form is "
            "needed; correct or remove it"
        ) from error
    told = tuple(str(name) for name in channels.values()) if isinstance(channels, dict) else ()
    return LabelFacts(names, _MODALITIES.get(told[0].lower()) if told else None, told)


def _names_by_value(labels: Mapping[str, Any]) -> dict[int, str]:
    """The names by label value, from {"0": "background", "1": "liver"} or {"background": 0, "liver": 1}."""
    pairs = [(key, value) if not str(key).isdigit() else (value, key) for key, value in labels.items()]
    regions = [str(name) for name, value in pairs if isinstance(value, list)]
    if regions:
        raise InputRefusedError(
            f"dataset.json has regions ({', '.join(regions[:_SHOWN])}), which consist of several label values; one value for "
            "each structure is needed; write the labels without regions"
        )
    if any(str(name).lower() == "ignore" for name, _ in pairs):
        raise InputRefusedError(
            "dataset.json has voxels without a class (ignore); a class for every voxel is needed to train; complete the labels"
        )
    names = {int(value): str(name) for name, value in pairs if int(value) != 0}
    if doubled := [name for name, times in Counter(names.values()).items() if times > 1]:
        raise InputRefusedError(f"dataset.json gives two label values the name {doubled[0]!r}; rename one")
    return dict(sorted(names.items()))


def without_channel_number(names: Sequence[str]) -> dict[str, str]:
    """The case of each image of nnU-Net's form: "liver_003_0000" is the first channel of "liver_003".

    Raises:
        InputRefusedError: A case has several channels.
    """
    cases: dict[str, list[str]] = {}
    for name in names:
        case, _, number = name.rpartition("_")
        cases.setdefault(case if len(number) == 4 and number.isdigit() else name, []).append(name)
    several = {case: files for case, files in cases.items() if len(files) > 1}
    if several:
        case, files = next(iter(several.items()))
        raise InputRefusedError(
            f"{len(several)} case(s) have several channels ({case}: {', '.join(sorted(files)[:_SHOWN])}); one image for each "
            "case is needed; put the channels into one file"
        )
    return {files[0]: case for case, files in cases.items()}
