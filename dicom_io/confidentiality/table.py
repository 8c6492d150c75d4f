"""Table E.1-1 of DICOM PS3.15, and the options of E.3 that this program offers. The table is data: `tables/`."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicom_io.confidentiality.pseudonyms import DeidentificationError

# PS3.16 CID 7050
PROFILE = codes.cid7050.BasicApplicationConfidentialityProfile
OPTIONS: dict[str, Code] = {
    "retain-uids": codes.cid7050.RetainUidsOption,
    "retain-device-identity": codes.cid7050.RetainDeviceIdentityOption,
    "retain-institution-identity": codes.cid7050.RetainInstitutionIdentityOption,
    "retain-patient-characteristics": codes.cid7050.RetainPatientCharacteristicsOption,
    "retain-full-dates": codes.cid7050.RetainLongitudinalTemporalInformationFullDatesOption,
    "retain-modified-dates": codes.cid7050.RetainLongitudinalTemporalInformationModifiedDatesOption,
    "clean-structured-content": codes.cid7050.CleanStructuredContentOption,
}
NOT_OFFERED = {
    "clean-descriptors": "no program can tell which words of a free text identify someone; descriptions are removed",
    "clean-graphics": "drawings and overlays can spell a name; they are removed",
    "clean-pixel-data": "text in pixels must be found and covered by a person; objects that may contain text are refused",
    "clean-recognizable-visual-features": "faces are not removed; use a defacing program first",
    "retain-safe-private": "this program has no table of safe private attributes; all of them are removed",
}

Path = tuple[str, ...]
"""Keywords of the sequences around an attribute, the outermost first."""


@dataclass(frozen=True)
class Row:
    """One attribute of Table E.1-1: its code in the basic profile, and the codes that options replace it by."""

    basic: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class ProfileTable:
    """Table E.1-1 with the Types of attributes.

    Attributes:
        edition: Edition of the standard.
        later_edition: Last edition from which rows were added, each with its code in the basic profile.
        rows: Tag -> row. Private attributes and the groups 50xx and 60xx have no row: the code has a rule for them.
        sop_classes: SOP Class UID -> number of its IOD.
        types: See tools/make_confidentiality_table.py.
    """

    edition: str
    later_edition: str
    rows: Mapping[int, Row]
    sop_classes: Mapping[str, int]
    types: Mapping[str, Any]

    def type_of(self, keyword: str, path: Path, iod: int | None) -> str | None:
        """The Type (1, 1C, 2, 2C, 3) of an attribute in the sequences of `path`; None where it is unknown."""
        if iod is None:
            return None
        paths: str | dict[str, dict[str, Any]] = self.types.get(keyword, {})
        if isinstance(paths, str):
            return paths
        types = paths.get("/".join(path))
        if types is None:
            return None
        return next((kind for kind, iods in types.items() if kind != "*" and iod in iods), str(types["*"]))


@cache
def table() -> ProfileTable:
    """The table in this package."""
    file = files("dicom_io.confidentiality").joinpath("tables/confidentiality_profile.json")
    document = json.loads(file.read_text(encoding="utf-8"))
    rows = {
        int(row["tag"], 16): Row(row["basic"], row.get("options", {}))
        for row in document["rows"]
        if re.fullmatch("[0-9A-F]{8}", row["tag"])
    }
    return ProfileTable(
        document["edition"], document["later_edition"], rows, document["sop_classes"], document["types"]
    )


def checked_options(names: Iterable[str]) -> frozenset[str]:
    """The options as a set.

    Raises:
        DeidentificationError: An option is unknown or not offered, or two options contradict each other.
    """
    chosen = frozenset(names)
    for name in sorted(chosen - OPTIONS.keys()):
        reason = NOT_OFFERED.get(name, "it is not an option of PS3.15 E.3")
        raise DeidentificationError(f"the option {name!r} is not offered: {reason}; offered are {', '.join(OPTIONS)}")
    if {"retain-full-dates", "retain-modified-dates"} <= chosen:
        raise DeidentificationError(
            "retain-full-dates and retain-modified-dates are both given; dates are either kept or moved; choose one"
        )
    return chosen
