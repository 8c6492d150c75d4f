"""What a data set states of its structures: their names by label value and, where a SEG describes them, codes and colours."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.sr.coding import Code

from dicom_io.coding import WITHOUT_CLASS, Segment, snomed_ct
from dicom_io.itk_files import slicer_segments
from dicom_io.reading.series import files_at, scan_files
from dicom_io.rtstruct import region_names
from dicom_io.seg import described_segments
from monai_unet_app.data.case_files import CaseFiles, first_names
from monai_unet_app.data.datalist import LabelFacts
from monai_unet_app.data.labels import has_unlabelled_segment
from monai_unet_app.data.naming import check_side, same_name, says_nothing, side_in, side_of
from monai_unet_app.data.nifti import label_table
from monai_unet_app.data.read import FILE_ENDINGS, has_ending
from monai_unet_app.data.strict import MOST_CLASSES
from monai_unet_app.errors import InputRefusedError, refusing_as

IGNORED_IN_SEG = 255
"""The label value that voxels of a SEG get which belong to its segment of voxels without a class."""

LEAST_VOXELS = 10
"""Of a structure in a whole data set; nothing is learnt of fewer."""

_ENOUGH_CASES = 4  # that a usual case can be told from
_COUNTS = 4  # different highest values of labels without gaps: labels of classes have one or two
_LONGEST_NAME = 64
_SHOWN = 5


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
        found = scan_files(files_at(path)).series[0]
        if found.kind == "rtstruct":
            return {number: StatedStructure(name) for number, name in region_names(found.files[0]).items()}
        described = [one for one in described_segments(found.files[0]) if one.type != WITHOUT_CLASS]
        for segment in described:
            check_side(segment)
        return {one.number: StatedStructure(name_of(one), _codes_of(one), one.display_rgb) for one in described}


def stated_in_file(label: Path) -> dict[int, StatedStructure]:
    """As `dicom_structures`; of NIfTI the names in its header, and of 3D Slicer's segments in one layer; empty for others."""
    if not has_ending(label, FILE_ENDINGS):
        return dicom_structures(label)
    if segments := slicer_segments(label):
        return (
            {value: StatedStructure(name) for name, layer, value in segments}
            if len({s[1] for s in segments}) == 1
            else {}
        )
    return {value: StatedStructure(name) for value, name in label_table(label).items()}


def name_of(segment: Segment) -> str:
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
    """What SEGs, RTSTRUCTs and headers of NIfTI files state of the label values; empty where none does.

    A file without codes contradicts no other; of different colours the first counts.

    Args:
        cases: Each with its label; a value of those with `label_values` is the number of its structure.
        held: The label values that some label holds; what no voxel has needs no meaning.

    Raises:
        InputRefusedError: Two labels give a value different names or codes, or a name different codes.
    """
    stated: dict[int, StatedStructure] = {}
    named_by: dict[int, str] = {}
    coded_by: dict[str, tuple[str, StructureCodes]] = {}
    for case in cases:
        if case.label is None:
            continue
        file, own = f"{case.id}/{case.label.name}", case.label_values
        for stored, new in stated_in_file(case.label).items():
            value = stored if not own else own.index(stored) + 1 if stored in own else 0
            if value not in held or (not value and own):
                continue
            old = stated.get(value)
            if old is None or says_nothing(old.name):
                old = stated[value] = new
                named_by[value] = file
            if says_nothing(new.name):
                continue
            if not same_name(old.name, new.name):
                raise InputRefusedError(
                    f"label value {value} is {old.name!r} in {named_by[value]} and {new.name!r} in {file}; one meaning for "
                    "each value is needed; write label files by monai-unet regions, which takes regions by their names"
                )
            if new.codes is not None:
                other, codes = coded_by.setdefault(new.name, (file, new.codes))
                if codes != new.codes:
                    raise InputRefusedError(
                        f"{new.name!r} has the codes {_shown(codes)} in {other} and {_shown(new.codes)} in {file}; the same "
                        "codes are needed; correct one of the files, or name the label values yourself"
                    )
                stated[value] = StatedStructure(old.name, codes, old.rgb or new.rgb)
    return dict(sorted(stated.items()))


def stated_ignored(cases: Sequence[CaseFiles], facts: LabelFacts | None) -> int | None:
    """The label value of voxels without a class, as a `dataset.json` or the SEGs of the cases state it; None if none does."""
    if facts and facts.ignored is not None:
        return facts.ignored
    return IGNORED_IN_SEG if any(case.label and has_unlabelled_segment(case.label) for case in cases) else None


def _shown(codes: StructureCodes) -> str:
    """The codes for a message: "10200004 Liver"."""
    all_of_them = codes.category, codes.type, codes.modifier, codes.region, codes.region_modifier
    return ", ".join(f"{code.value} {code.meaning}" for code in all_of_them if code is not None)


def named_values(voxels: Mapping[str, Mapping[int, int]], told: Mapping[int, str], unnamed: str) -> Mapping[int, str]:
    """The name of each label value; nothing is guessed of values that nobody has named and that classes do not have.

    Args:
        voxels: How many of each label value the label of each case holds, by the case's id.
        told: Names by label value; empty where nobody has named them.
        unnamed: The name of a value that nobody has named, with {} in place of the value.

    Raises:
        InputRefusedError: No label holds a structure; some values have a name and others that are held have none; or nobody has
            named the values, and they number objects, or stand in few cases and belong to no structure.
    """
    holders = _holders(voxels)
    if not holders:
        raise InputRefusedError("no label holds a structure: all are 0; labels with structures are needed; add them")
    if told and (without := [value for value in holders if value not in told]):
        raise InputRefusedError(
            f"the labels hold {_where({value: holders[value] for value in without})}, which have no name; each value needs a "
            "name; name them by --structure VALUE=NAME, change the labels, or, if they number objects, name these by "
            "--objects NAME"
        )
    if not told:
        _check_no_objects(voxels, holders)
        if strays := stray_values(voxels):
            raise InputRefusedError("; ".join(strays))
    names = dict(told) or {value: unnamed.format(value) for value in holders}
    for value, name in names.items():
        if not name.isprintable() or "\\" in name or not 0 < len(name.encode()) <= _LONGEST_NAME:
            raise InputRefusedError(
                f"label value {value} has the name {name[:_LONGEST_NAME]!r}; DICOM takes 1 to {_LONGEST_NAME} bytes of "
                f"printable characters without a backslash; name it by --structure {value}=NAME"
            )
    return names


def _holders(voxels: Mapping[str, Mapping[int, int]]) -> dict[int, list[str]]:
    """The cases that hold each label value but 0, by rising value."""
    values = sorted({value for counts in voxels.values() for value in counts if value})
    return {value: [case for case, counts in voxels.items() if value in counts] for value in values}


def _check_no_objects(voxels: Mapping[str, Mapping[int, int]], holders: Mapping[int, Sequence[str]]) -> None:
    """Raises InputRefusedError for labels that have more values than classes have, or count from 1 in each case."""
    own = {case: [value for value in counts if value] for case, counts in voxels.items()}
    counted = all(sorted(values) == list(range(1, len(values) + 1)) for values in own.values())
    if len(holders) <= MOST_CLASSES and not (counted and len({len(values) for values in own.values()}) >= _COUNTS):
        return
    many = sorted(own, key=lambda case: -len(own[case]))
    usual = sorted(map(len, own.values()))[len(own) // 2]
    raise InputRefusedError(
        f"the labels hold {len(holders)} different values above 0, up to {max(holders)}, and no names: {len(own[many[0]])} in "
        f"{many[0]}, {usual} in a usual case; names are needed; if the values number objects, name these by --objects NAME; if "
        "they are classes, name each by --structure VALUE=NAME; if a case has a wrong label, correct it"
    )


def stray_values(voxels: Mapping[str, Mapping[int, int]]) -> list[str]:
    """One sentence for each group of label values that stand in few cases and are likely a fault of these.

    Such a value stands in a tenth of the cases or fewer, and it follows none of the other values (255 beside 1 and 2), or has
    fewer than LEAST_VOXELS. Where values number objects, nothing is said.

    Args:
        voxels: As in `named_values`.
    """
    holders = _holders(voxels)
    if len(holders) > MOST_CLASSES:
        return []
    few = max(1, len(voxels) // 10)
    usual = {value for value, cases in holders.items() if len(cases) > few}
    while more := [value for value in set(holders) - usual if {value - 1, value + 1} & usual]:
        usual.update(more)
    strays: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for value, cases in holders.items():
        tiny = sum(voxels[case][value] for case in cases) < LEAST_VOXELS
        if len(cases) <= few < len(voxels) and (tiny or (value not in usual and len(voxels) >= _ENOUGH_CASES)):
            strays[tuple(cases)].append(value)
    return [
        f"{first_names(cases)}: its label holds {_values(values)}, in {sum(voxels[case][n] for case in cases for n in values)} "
        f"voxel(s), as no other of {len(voxels)} labels does; correct it, or, if these are structures, name every label value "
        "by --structure VALUE=NAME"
        for cases, values in strays.items()
    ]


def _values(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:_SHOWN])) + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")
    return f"the value{'s' if len(values) > 1 else ''} {shown}"


def _where(holders: Mapping[int, Sequence[str]]) -> str:
    """ "the values 5 and 255 (in case1)": label values, with the cases of the one that fewest hold."""
    fewest = min(holders, key=lambda value: len(holders[value]))
    return f"{_values(list(holders))} ({fewest} in {first_names(holders[fewest])})"
