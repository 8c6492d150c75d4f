"""The groups that people belong to, from a table or from the headers of their DICOM series. No identity is read."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset

from dicom_io.reading.instances import load_dataset
from monai_unet_app.data.case_files import CaseFiles
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.report.stored_evaluation import CaseTable, first_names, read_table

NOT_GIVEN = "(not given)"
AGE_BAND, AGE = "age_band", "age"
EDGES: Mapping[str, tuple[float, ...]] = {AGE: (0, 40, 60, 80)}  # columns with customary bands
MOST_CODES = 5  # up to so many different numbers are groups as they are: sites 1 to 5, slices of 1, 3 and 5 mm
YEARS_IN = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
PERSONAL = {
    "patientname", "patient_name", "name", "patientid", "patient_id", "patientbirthdate", "birth_date", "birthdate",
    "date_of_birth", "dob", "accessionnumber", "accession_number",
}  # fmt: skip
Institution = Literal["numbered", "named"]


@dataclass(frozen=True)
class Attributes:
    """Attributes of cases or of subjects.

    Attributes:
        by: Whether the keys of `values` are cases or subjects.
        values: Attribute -> case or subject -> text; an empty text means that the attribute is not known.
    """

    by: Literal["case", "subject"]
    values: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Grouping:
    """One attribute, as groups.

    Attributes:
        name: The attribute.
        groups: Names of the groups in their order.
        of_case: Case id -> its group, or `NOT_GIVEN`.
    """

    name: str
    groups: tuple[str, ...]
    of_case: Mapping[str, str]


def read_attributes(path: Path) -> Attributes:
    """A CSV with a column `case` or `subject`, and one column for each attribute.

    Raises:
        InputRefusedError: The file cannot be read, has neither of the two columns or no further column, has two values for the
            same case or subject, or has a column that identifies a person.
    """
    header, rows = read_table(path, ())
    by: Literal["case", "subject"] = "case" if "case" in header else "subject"
    names = [name for name in header if name not in ("case", "subject")]
    if by not in header or not names:
        raise InputRefusedError(
            f"{path} has the columns {', '.join(header) or '(none)'}; case or subject, and one for each attribute, with commas "
            "between them, are needed"
        )
    if personal := [name for name in names if name.strip().lower() in PERSONAL]:
        raise InputRefusedError(
            f"{path} has the column(s) {', '.join(personal)}; names, numbers and birth dates of persons are not allowed; "
            "remove them"
        )
    values: dict[str, dict[str, str]] = {name: {} for name in names}
    for row in rows:
        for name in names:
            text = row[name].strip()
            if values[name].setdefault(row[by], text) != text:
                raise InputRefusedError(f"{path}: {by} {row[by]} has two values of {name}; one is needed; correct it")
    return Attributes(by, values)


def groupings(attributes: Attributes, cases: CaseTable, edges: Mapping[str, Sequence[float]]) -> list[Grouping]:
    """Every attribute as groups of the cases of an evaluation.

    Numbers are cut into bands: at `edges`; without edges, ages at 40, 60 and 80, and other numbers into terciles of the values
    of the cases (or subjects). Up to five different numbers are groups as they are. Each other text is a group of its own.

    Args:
        attributes: Attributes of the cases or of their subjects.
        cases: The cases that were measured.
        edges: Attribute -> the lower ends of its bands, rising; the last band is open.

    Raises:
        InputRefusedError: The attributes know no case of the evaluation, or lack leading zeros.
        UsageError: There are edges for an unknown attribute or for an attribute with texts, or edges that do not rise.
    """
    known = {key for values in attributes.values.values() for key in values}
    keys = {case: case if attributes.by == "case" else subject for case, subject in cases.subjects.items()}
    if not known & set(keys.values()):
        raise InputRefusedError(
            f"no {attributes.by} of the evaluation ({first_names(sorted(set(keys.values())))}) has attributes (there are "
            f"{first_names(sorted(known)) or 'none'}); the ids of cases.csv are needed; mend the column {attributes.by}"
        )
    zeros = {key: key.lstrip("0") for key in set(keys.values()) - known if key.lstrip("0") in known}
    if zeros:
        key, short = next(iter(sorted(zeros.items())))
        raise InputRefusedError(
            f"{attributes.by} {key} of the evaluation is {short} in the table ({len(zeros)} like it): spreadsheets drop "
            f"leading zeros; the ids of cases.csv are needed; mend the column {attributes.by}"
        )
    if strangers := [name for name in edges if name not in attributes.values]:
        raise UsageError(
            f"--bands {', '.join(strangers)}: no such attribute; there are {', '.join(attributes.values)}; give one of these"
        )
    return [_grouping(name, values, keys, edges.get(name)) for name, values in attributes.values.items()]


def _grouping(name: str, values: Mapping[str, str], keys: Mapping[str, str], edges: Sequence[float] | None) -> Grouping:
    texts = {key: values[key] for key in dict.fromkeys(keys.values()) if values.get(key)}
    numbers = {key: number for key, text in texts.items() if (number := _number(text)) is not None}
    # A column with any text holds names of groups, even if some of them look like numbers.
    if len(numbers) < len(texts):
        if edges is not None:
            wrong = next(text for key, text in texts.items() if key not in numbers)
            raise UsageError(f"--bands {name}: {wrong!r} is not a number; numbers are needed; leave the bands out")
        numbers = {}
    chosen = edges if edges is not None else EDGES.get(name)
    if numbers and (chosen is not None or len(set(numbers.values())) > MOST_CODES):
        limits = _rising(name, chosen if chosen is not None else _terciles(numbers.values()))
        order = _band_names(limits)
        groups = {key: order[int(np.searchsorted(limits, number, side="right"))] for key, number in numbers.items()}
    elif numbers:
        groups = {key: f"{number:g}" for key, number in numbers.items()}
        order = [f"{number:g}" for number in sorted(set(numbers.values()))]
    else:
        groups, order = texts, sorted(set(texts.values()))
    used = set(groups.values())
    of_case = {case: groups.get(key, NOT_GIVEN) for case, key in keys.items()}
    return Grouping(
        AGE_BAND if name == AGE and numbers else name, tuple(group for group in order if group in used), of_case
    )


def _terciles(values: Iterable[float]) -> list[float]:
    """Edges of three bands that hold the same number of values, as far as ties allow; in four digits."""
    return sorted({float(f"{edge:.4g}") for edge in np.quantile(list(values), [1 / 3, 2 / 3])})


def _rising(name: str, edges: Sequence[float]) -> list[float]:
    limits = list(edges)
    if not limits or any(low >= high for low, high in pairwise(limits)):
        raise UsageError(
            f"--bands {name}: edges {', '.join(f'{edge:g}' for edge in limits)}; rising numbers are needed"
        )
    return limits


def _band_names(limits: Sequence[float]) -> list[str]:
    """ "<10", "10-20", "20+": a band includes its lower edge, not its upper edge."""
    # Beside a negative edge a hyphen would look like a minus sign.
    between = "-" if limits[0] >= 0 else " to "
    inner = [f"{low:g}{between}{high:g}" for low, high in pairwise(limits)]
    return [f"<{limits[0]:g}", *inner, f"{limits[-1]:g}+"]


def _number(text: str) -> float | None:
    try:
        # float() also reads "nan" and "inf", which are texts here.
        return value if math.isfinite(value := float(text)) else None
    except ValueError:
        return None


def dicom_attributes(cases: Sequence[CaseFiles], institution: Institution | None = None) -> Attributes:
    """Attributes of cases from the headers of their DICOM series, without any identity.

    The age is the band of PatientAge; it is not computed from a birth date if PatientAge is missing. Sex, manufacturer, model,
    field strength (T) and slice thickness (mm) are taken as they are. A missing attribute is an empty text.

    Args:
        cases: As `find_images` gives them.
        institution: None leaves InstitutionName out; "numbered" calls the institutions site 1, site 2 and so on in the
            order of the cases, which cannot be traced back to the names; "named" keeps the names.

    Raises:
        InputRefusedError: A case is no DICOM series.
        DicomIoError: A header cannot be read.
    """
    foreign = [case.id for case in cases if case.header is None]
    if foreign:
        raise InputRefusedError(
            f"{first_names(foreign)}: no series of DICOM files with a header; give a table with --attributes FILE instead"
        )
    headers = {case.id: load_dataset(case.header) for case in cases if case.header is not None}
    values = {
        name: {case: read(header) for case, header in headers.items()} for name, read in HEADER_ATTRIBUTES.items()
    }
    if institution is not None:
        names = {case: _text(header, "InstitutionName") for case, header in headers.items()}
        order = {
            name: f"site {number}" for number, name in enumerate(dict.fromkeys(filter(None, names.values())), start=1)
        }
        values["institution"] = (
            names if institution == "named" else {case: order.get(n, "") for case, n in names.items()}
        )
    return Attributes("case", values)


def _age_band(header: Dataset) -> str:
    text = _text(header, "PatientAge")  # DICOM PS3.5 6.2, AS: three digits and D, W, M or Y
    if len(text) != 4 or not text[:3].isdigit() or text[3] not in YEARS_IN:
        return ""
    limits = EDGES[AGE]
    return _band_names(limits)[bisect_right(limits, int(text[:3]) * YEARS_IN[text[3]])]


def _sex(header: Dataset) -> str:
    # PS3.3 C.7.1.1: the values of Patient's Sex are M, F and O.
    text = _text(header, "PatientSex").upper()
    return text if text in ("F", "M", "O") else ""


def _text(header: Dataset, keyword: str) -> str:
    """The value of an element as one printable text."""
    value = header.get(keyword)
    # Line breaks and control characters of a header would damage tables and terminals.
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(value or "")).split())


def _decimal(header: Dataset, keyword: str) -> str:
    number = _number(_text(header, keyword))
    return "" if number is None else f"{number:g}"


HEADER_ATTRIBUTES: Mapping[str, Callable[[Dataset], str]] = {
    AGE_BAND: _age_band,
    "sex": _sex,
    # Upper case, since scanners of one manufacturer write its name as SIEMENS and as Siemens.
    "manufacturer": lambda header: _text(header, "Manufacturer").upper(),
    "model": lambda header: _text(header, "ManufacturerModelName"),
    "field_strength_t": lambda header: _decimal(header, "MagneticFieldStrength"),
    "slice_thickness_mm": lambda header: _decimal(header, "SliceThickness"),
}
