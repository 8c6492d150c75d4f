"""What data say that their label values mean, held against the names that somebody else gives these values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dicom_io.coding import Segment, printable
from monai_unet_app.data.case_files import CaseFiles, first_names
from monai_unet_app.data.coding import named_segment
from monai_unet_app.data.datalist import LabelFacts, facts_of
from monai_unet_app.data.label_files import is_black_and_white
from monai_unet_app.data.labels import FileValues
from monai_unet_app.data.naming import contradiction, same_name, says_nothing
from monai_unet_app.data.structures import StatedStructure, stated_in_file
from monai_unet_app.errors import InputRefusedError, SidesError

_SHOWN = 12


@dataclass(frozen=True)
class LabelTable:
    """What one source says of label values.

    Attributes:
        names: By label value, without the background; a name that says nothing, such as "label_1", states nothing.
        source: Who says so, in a sentence: "dataset.json of Task01".
    """

    names: Mapping[int, str]
    source: str

    def __str__(self) -> str:
        """For a message: "dataset.json of Task01 has 1 liver, 2 spleen"."""
        told = ", ".join(f"{value} {name}" for value, name in list(self.names.items())[:_SHOWN])
        return f"{self.source} has {told}{' ...' if len(self.names) > _SHOWN else ''}"

    def held_against(self, known: "LabelTable", segments: Mapping[int, Segment] | None = None) -> dict[int, int]:
        """The value that means the same in `known`, for each value here that is named in both.

        An equal name decides, under whatever value; any other name must fit that of its own value in `known` better than those
        of other values.

        Args:
            known: The other names.
            segments: What is known of these values beside their names; None for the codes that follow from the names.

        Raises:
            InputRefusedError: A name fits another value better, has the opposite side, or nothing in common with that of its
                value.
        """
        described = segments or {
            value: named_segment(number, StatedStructure(printable(name, 64) or "?"))
            for number, (value, name) in enumerate(known.names.items(), 1)
        }
        told = {value: name for value, name in self.names.items() if not says_nothing(name)}
        same = {
            value: [v for v, other in known.names.items() if same_name(name, other)] for value, name in told.items()
        }
        found = {value: values[0] for value, values in same.items() if len(values) == 1}
        rest = [value for value in told if value not in found and value in known.names]
        clash = [value for value in rest if value in found.values()] or len(set(found.values())) < len(found)
        others = [value for value in known.names if value not in found.values()]
        names = [told.get(value, "") if value in rest else "" for value in others]
        if clash or contradiction(names, [described[value] for value in others]):
            raise InputRefusedError(
                f"label values have names that contradict each other: {self}; {known}; one meaning of each value is "
                "needed; correct the one that is wrong, or, if both mean the same, write the names of the one into the other; "
                "verbs that take --structure VALUE=NAME go by that"
            )
        return found | {value: value for value in rest}


def facts_of_cases(cases: Sequence[CaseFiles], data: Path) -> LabelFacts | None:
    """As `facts_of`; None where each structure has a mask, whose name the cases state, and values mean nothing."""
    return None if cases and cases[0].mask_names else facts_of(data)


def tables_of(case: CaseFiles, folder: Path | None) -> list[LabelTable]:
    """What the label of a case says of its values, and its data set, in a `dataset.json` or a list of cases.

    Args:
        case: With or without a label.
        folder: Of the data set, or the list of its cases; None without one.
    """
    found = []
    if case.label is not None and (names := names_in_file(case.label)):
        found.append(LabelTable(names, case.label.name))
    facts = facts_of_cases([case], folder) if folder is not None else None
    if facts and facts.names:
        found.append(LabelTable(facts.names, "dataset.json" if folder and folder.is_dir() else "the list of cases"))
    return found


def names_in_file(label: Path) -> dict[int, str]:
    """Label value -> name, as the header of a NIfTI file, a SEG or an RTSTRUCT says; empty for others and damaged files.

    Raises SidesError if the label and the codes of a segment have opposite sides.
    """
    try:
        return {value: stated.name for value, stated in stated_in_file(label).items()}
    except SidesError:
        raise
    except Exception:  # reading the label gives the reason
        return {}


def understood(
    cases: Sequence[CaseFiles], values: FileValues, structures: Mapping[int, str], facts: LabelFacts | None
) -> tuple[list[CaseFiles], FileValues]:
    """The cases and what the values in their label files stand for, decided once over all files of a data set.

    Args:
        cases: Labelled or not.
        values: What is known of the values: regions, masks, objects, the ignored one.
        structures: Names by label value, where the user gives them; they count, whatever files say.
        facts: What `dataset.json` says.

    Raises:
        InputRefusedError: As `consistent` and `is_black_and_white`.
    """
    named = structures or (facts.names if facts else {})
    if not (values.overlap or values.objects or structures):
        cases = consistent(cases, LabelTable(named, "dataset.json") if named else None)
    files = [file for case in cases for file in case.label_files]
    told = {*named, *(value for region in values.regions for value in region)}
    white = bool(values.masks) or values.objects or is_black_and_white(files, told, values.ignored)
    return list(cases), replace(values, white=white)


def consistent(cases: Sequence[CaseFiles], named: LabelTable | None) -> list[CaseFiles]:
    """The cases of a data set whose structures are to get numbers; with `label_values` where their tables differ by values.

    Args:
        cases: With their labels.
        named: What is said of all label values; None where only the files say it.

    Raises:
        InputRefusedError: A file contradicts `named`, or does not say what its values mean where others differ.
    """
    tables = {case.id: LabelTable(names_in_file(case.label), case.label.name) for case in cases if case.label}
    if named is not None:
        for table in tables.values():
            if any(value != other for value, other in table.held_against(named).items()):
                raise InputRefusedError(f"label values have two meanings: {table}; {named}; correct one of them")
        return list(cases)
    told = {
        case: {value: name for value, name in table.names.items() if not says_nothing(name)}
        for case, table in tables.items()
    }
    pairs = [(value, name) for names in told.values() for value, name in names.items()]
    first: dict[int, str] = {}
    if all(same_name(first.setdefault(value, name), name) for value, name in pairs):
        return list(cases)
    names: list[str] = []
    for _, name in pairs:
        names += [] if any(same_name(name, other) for other in names) else [name]
    if silent := [case.id for case in cases if case.label and not told.get(case.id)]:
        raise InputRefusedError(
            f"labels of different cases give one value different names, and {first_names(silent)} does not say what its values "
            "mean; names in every file are needed, or --structure VALUE=NAME if the values mean the same in all"
        )
    return [
        replace(case, label_values=tuple(
            next((value for value, own in told[case.id].items() if same_name(own, name)), -number)
            for number, name in enumerate(names, 1)
        ))
        for case in cases
    ]  # fmt: skip


def agreed_meanings(
    tables: Sequence[LabelTable], known: LabelTable, segments: Mapping[int, Segment] | None = None
) -> dict[int, int]:
    """As `LabelTable.held_against` for several sources of one file, which must agree. Args and errors are those."""
    found = [table.held_against(known, segments) for table in tables]
    meant = {value: other for one in reversed(found) for value, other in one.items()}
    if any(meant[value] != other for one in found for value, other in one.items()):
        raise InputRefusedError(
            f"two sources name the label values otherwise: {'; '.join(map(str, tables))}; one meaning is needed; correct "
            "one of them"
        )
    return meant


def values_by_name(
    tables: Sequence[LabelTable], values: FileValues, segments: Sequence[Segment], bundle: str
) -> FileValues:
    """What the values of a label file stand for, which tells their names: those of the bundle, if the names say so.

    Args:
        tables: What the file and its data set say.
        values: What they stand for in files without names.
        segments: Of the bundle's structures.
        bundle: Its name.

    Raises:
        InputRefusedError: As `LabelTable.held_against`, or the file and its data set contradict each other.
    """
    if not tables or values.objects or values.instances or values.regions or values.masks:
        return values
    usual = values.values or tuple(segment.number for segment in segments)
    known = LabelTable({value: segment.label for value, segment in zip(usual, segments, strict=True)}, bundle)
    described = dict(zip(usual, segments, strict=True))
    meant = agreed_meanings(tables, known, described)
    own = {other: value for value, other in meant.items()}
    if all(value == other for value, other in meant.items()):
        return values
    # A structure whose usual value means another one here has none
    return replace(values, values=tuple(own.get(value, -value if value in meant else value) for value in usual))
