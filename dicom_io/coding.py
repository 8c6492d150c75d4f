"""What label values mean: the coded concepts of a bundle's `segments.json`.

The file has the form of dcmqi's metainfo, so that `itkimage2segimage` can use the same file. Codes are SNOMED
CT ("SCT") only: SNOMED RT ("SRT") was retired from DICOM in 2019 and private "99" schemes mean nothing
elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_io.errors import SegmentCodingError
from dicom_io.reading.bounded import BoundedFile
from dicom_io.reading.headers import shown

SCHEMA_MAJOR = 1
MAX_BYTES = 2**20
"""The largest segments.json: room for some thousand segments."""
LONGEST_QUOTE = 300


@dataclass(frozen=True)
class Segment:
    """One label: how it is numbered, called, coded and coloured.

    Attributes:
        number: Label value and DICOM SegmentNumber, from 1.
        label: SegmentLabel, at most 64 printable ASCII characters without a backslash.
        category: SegmentedPropertyCategory, for instance SCT 91723000 "Anatomical Structure".
        type: SegmentedPropertyType, for instance SCT 5366008 "Hippocampus".
        type_modifier: What narrows the type, for instance SCT 255549009 "Anterior", or None.
        anatomic_region: Where the property lies when the type does not say it, or None.
        anatomic_region_modifier: What narrows the region, or None.
        rgb: Recommended display colour, 0 to 255 each.
        description: SegmentDescription, at most 1024 printable ASCII characters without a backslash, may be empty.
    """

    number: int
    label: str
    category: Code
    type: Code
    type_modifier: Code | None = None
    anatomic_region: Code | None = None
    anatomic_region_modifier: Code | None = None
    rgb: tuple[int, int, int] = (255, 255, 0)
    description: str = ""


@dataclass(frozen=True)
class Whole:
    """Segments that are parts of one structure.

    Attributes:
        label: The meaning of their common type, for instance "Hippocampus".
        numbers: Theirs, ascending; two or more.
        category: Common to all.
        type: Common to all.
        anatomic_region: Common to all, or None.
        anatomic_region_modifier: Common to all, or None.
    """

    label: str
    numbers: tuple[int, ...]
    category: Code
    type: Code
    anatomic_region: Code | None = None
    anatomic_region_modifier: Code | None = None

    @property
    def name(self) -> str:
        """How a table calls it beside its parts."""
        return f"{self.label}, whole"


def wholes_of(segments: Sequence[Segment]) -> tuple[Whole, ...]:
    """What segments are parts of: those of one category, type and region whose type modifiers all differ, each having one.

    Anterior and posterior hippocampus are a hippocampus. Whether their volumes add up, that is, no voxel is of both, is for
    the caller to know.
    """
    groups: dict[tuple[Code | None, ...], list[Segment]] = {}
    for segment in segments:
        shared = (segment.category, segment.type, segment.anatomic_region, segment.anatomic_region_modifier)
        groups.setdefault(shared, []).append(segment)
    found = []
    for parts in groups.values():
        modifiers = {part.type_modifier for part in parts if part.type_modifier}
        if len(parts) > 1 and len(modifiers) == len(parts):
            one, numbers = parts[0], tuple(sorted(part.number for part in parts))
            region = one.anatomic_region, one.anatomic_region_modifier
            found.append(Whole(one.type.meaning, numbers, one.category, one.type, *region))
    return tuple(sorted(found, key=lambda whole: whole.numbers))


def load_segments(path: Path) -> tuple[Segment, ...]:
    """The segments of a `segments.json`, ordered by number, which runs from 1 without gaps.

    Raises:
        SegmentCodingError: The file cannot be read, breaks the schema, is of another major `schema_version`,
            or its labelIDs are not 1, 2, 3 ... each once.
    """
    document = _read_json(Path(path))
    _check_version(document, path.name)
    error = best_match(_validator().iter_errors(document))
    if error is not None:
        where = "/".join(str(step) for step in error.absolute_path) or "the top"
        found = "" if isinstance(error.instance, (dict, list)) else f" (found {error.instance!r})"
        raise SegmentCodingError(
            f"{shown(path.name)} at {_short(where)}: {_short(error.message)}{_short(found)}; dcmqi's metainfo form with "
            "SNOMED CT codes (SCT) is needed; compare with segments.schema.json"
        )
    items = [item for file in document["segmentAttributes"] for item in file]
    segments = sorted((_segment(item) for item in items), key=lambda segment: segment.number)
    numbers = [segment.number for segment in segments]
    if numbers != list(range(1, len(numbers) + 1)):
        raise SegmentCodingError(
            f"{shown(path.name)} has the labelIDs {_short(str(numbers))}; 1 to {len(numbers)}, each once, are needed because a "
            "label value is its SegmentNumber; renumber the labels"
        )
    return tuple(segments)


def code_item(code: Code) -> Dataset:
    """The item of a DICOM code sequence."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


@cache
def _validator() -> Draft202012Validator:
    schema = json.loads(files("dicom_io").joinpath("segments.schema.json").read_text(encoding="utf-8"))
    return Draft202012Validator(schema)


def _short(text: str) -> str:
    """What a message may hold of a document that may hold anything."""
    return shown(text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + " ...")


def _read_json(path: Path) -> Any:
    try:
        with BoundedFile(path) as file:
            content = file.rest() if file.size <= MAX_BYTES else b""
        if not content:
            raise ValueError(f"it has {file.size} bytes; 1 to {MAX_BYTES} are needed")
        return json.loads(content.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise SegmentCodingError(
            f"{shown(path.name)} cannot be read ({_short(str(error))}); a segments.json is needed; add one to the bundle's "
            "configs"
        ) from error


def _check_version(document: Any, name: str) -> None:
    version = str(document.get("schema_version", "1.0")) if isinstance(document, dict) else "1.0"
    if version.split(".")[0] != str(SCHEMA_MAJOR):
        raise SegmentCodingError(
            f"{shown(name)} has schema_version {_short(version)}; {SCHEMA_MAJOR}.x is needed; "
            "use the program version that wrote it or convert the file"
        )


def _segment(item: dict[str, Any]) -> Segment:
    red, green, blue = item.get("recommendedDisplayRGBValue", (255, 255, 0))
    category, kind = (_code(item, f"SegmentedProperty{part}CodeSequence") for part in ("Category", "Type"))
    assert category is not None  # the schema requires both
    assert kind is not None
    return Segment(
        number=item["labelID"],
        label=item["SegmentLabel"],
        category=category,
        type=kind,
        type_modifier=_code(item, "SegmentedPropertyTypeModifierCodeSequence"),
        anatomic_region=_code(item, "AnatomicRegionSequence"),
        anatomic_region_modifier=_code(item, "AnatomicRegionModifierSequence"),
        rgb=(red, green, blue),
        description=item.get("SegmentDescription", ""),
    )


def _code(item: dict[str, Any], keyword: str) -> Code | None:
    found = item.get(keyword)
    if found is None:
        return None
    return Code(found["CodeValue"], found["CodingSchemeDesignator"], found["CodeMeaning"])
