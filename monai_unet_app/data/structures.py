"""What a data set states of its structures: their names by label value and, where a SEG describes them, codes and colours."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.sr.coding import Code

from dicom_io.coding import Segment, snomed_ct
from dicom_io.reading.series import find_series, scan_files
from dicom_io.rtstruct import region_names
from dicom_io.seg import described_segments
from monai_unet_app.data.case_files import FILE_ENDINGS, CaseFiles
from monai_unet_app.data.naming import side_in, side_of
from monai_unet_app.data.read import has_ending
from monai_unet_app.data.strict import MOST_CLASSES
from monai_unet_app.errors import InputRefusedError, refusing_as

OBJECTS = 0
"""Stands for every label value above 0, where files number objects."""


@dataclass(frozen=True)
class StructureCodes:
    """What DICOM calls a structure: its category, its type with side or position, and for a lesion where it lies."""

    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None


@dataclass(frozen=True)
class StatedStructure:
    """What the labels of a data set state of one structure.

    Attributes:
        name: As the files call it.
        codes: SNOMED CT; None where no file has a full set of codes that other programs know.
        rgb: The colour that it is to be drawn in, 0 to 255 each; None where no file says one.
    """

    name: str
    codes: StructureCodes | None = None
    rgb: tuple[int, int, int] | None = None


def dicom_structures(path: Path) -> dict[int, StatedStructure]:
    """What a SEG or RTSTRUCT states of its label values; of an RTSTRUCT the names alone.

    Args:
        path: The object, or a folder that holds it.

    Raises:
        InputRefusedError: The file cannot be read, or does not describe its labels.
    """
    with refusing_as(f"label {path.name}"):
        found = (find_series(path) if path.is_dir() else scan_files([path]).series)[0]
        if found.kind == "rtstruct":
            return {number: StatedStructure(name) for number, name in region_names(found.files[0]).items()}
        return {
            segment.number: StatedStructure(_name_of(segment), _codes_of(segment), segment.display_rgb)
            for segment in described_segments(found.files[0])
        }


def _name_of(segment: Segment) -> str:
    """Its label; a side or position that only its codes tell stands first, since the name decides about mirror images."""
    position = segment.type_modifier.meaning if segment.type_modifier else ""
    name = segment.label if position.lower() in segment.label.lower() else f"{position} {segment.label}"
    side = side_of(segment)
    return f"{side.capitalize()} {name}" if side and side_in(name) is None else name


def _codes_of(segment: Segment) -> StructureCodes | None:
    """Its codes in SNOMED CT; None if one of them is in another scheme or malformed, since half a code is a wrong code."""
    category, kind = snomed_ct(segment.category), snomed_ct(segment.type)
    told = segment.type_modifier, segment.anatomic_region, segment.anatomic_region_modifier
    known = [code and snomed_ct(code) for code in told]
    if category is None or kind is None or any(code and not own for code, own in zip(told, known, strict=True)):
        return None
    return StructureCodes(category, kind, *known)


def stated_structures(cases: Sequence[CaseFiles], held: Collection[int]) -> dict[int, StatedStructure]:
    """What the SEGs and RTSTRUCTs of the cases state of the label values; empty if the labels are no DICOM.

    A file without codes contradicts no other; of different colours the first counts.

    Args:
        cases: Each with its label.
        held: The label values that some label holds; what no voxel has needs no meaning.

    Raises:
        InputRefusedError: Two labels give a value different names or codes, or a name different codes.
    """
    stated: dict[int, StatedStructure] = {}
    named_by: dict[int, str] = {}
    coded_by: dict[str, tuple[str, StructureCodes]] = {}
    for case in cases:
        if case.label is None or has_ending(case.label, FILE_ENDINGS):
            continue
        file = f"{case.id}/{case.label.name}"
        for value, new in dicom_structures(case.label).items():
            if value not in held:
                continue
            old = stated.setdefault(value, new)
            if old.name != new.name:
                raise InputRefusedError(
                    f"label value {value} is {old.name!r} in {named_by[value]} and {new.name!r} in {file}; one meaning for "
                    "each value is needed; write label files by monai-unet regions, which takes regions by their names"
                )
            named_by.setdefault(value, file)
            if new.codes is not None:
                other, codes = coded_by.setdefault(new.name, (file, new.codes))
                if codes != new.codes:
                    raise InputRefusedError(
                        f"{new.name!r} has the codes {_shown(codes)} in {other} and {_shown(new.codes)} in {file}; the same "
                        "codes are needed; correct one of the files, or name the label values yourself"
                    )
                stated[value] = StatedStructure(old.name, codes, old.rgb or new.rgb)
    return dict(sorted(stated.items()))


def _shown(codes: StructureCodes) -> str:
    """The codes for a message: "10200004 Liver"."""
    all_of_them = codes.category, codes.type, codes.modifier, codes.region, codes.region_modifier
    return ", ".join(f"{code.value} {code.meaning}" for code in all_of_them if code is not None)


def named_values(held: Collection[int], told: Mapping[int, str], unnamed: str) -> Mapping[int, str]:
    """The name of each label value. Where nothing names them and they number objects, these are one structure, OBJECTS.

    Args:
        held: The label values that some label holds.
        told: Names by label value; empty where nobody has named them.
        unnamed: The name of a value that nobody has named, with {} in place of the value.

    Raises:
        InputRefusedError: No label holds a structure, or some values have a name and others that are held have none.
    """
    seen = sorted(value for value in held if value)
    if not seen:
        raise InputRefusedError("no label holds a structure: all are 0; labels with structures are needed; add them")
    if without := [value for value in seen if told and value not in told]:
        raise InputRefusedError(
            f"the labels hold the value(s) {without}, which have no name; name them by --structure VALUE=NAME, or change the "
            "labels"
        )
    if not told and max(seen) > MOST_CLASSES:
        return {OBJECTS: "object"}
    return dict(told) or {value: unnamed.format(value) for value in seen}
