"""Makes dicom_io/confidentiality/tables/confidentiality_profile.json, the data behind `monai-unet deidentify`.

    python tools/make_confidentiality_table.py confidentiality_profile_attributes.json [--edition 2024b]

The JSON file is Table E.1-1 of DICOM PS3.15 as github.com/innolitics/dicom-standard publishes it (folder standard/).
Which Type (1, 1C, 2, 2C, 3) an IOD gives an attribute comes from the tables that the installed highdicom brings with it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydicom.datadict import DicomDictionary, dictionary_VR, keyword_for_tag, tag_for_keyword

TARGET = (
    Path(__file__).resolve().parents[1] / "dicom_io" / "confidentiality" / "tables" / "confidentiality_profile.json"
)
COMMIT = "7f4749d09ed3ef2fa70637d376d423a4b13523cd"
OPTIONS = {
    "rtnUIDsOpt": "retain-uids",
    "rtnDevIdOpt": "retain-device-identity",
    "rtnInstIdOpt": "retain-institution-identity",
    "rtnPatCharsOpt": "retain-patient-characteristics",
    "rtnLongFullDatesOpt": "retain-full-dates",
    "rtnLongModifDatesOpt": "retain-modified-dates",
    "rtnSafePrivOpt": "retain-safe-private",
    "cleanDescOpt": "clean-descriptors",
    "cleanStructContOpt": "clean-structured-content",
    "cleanGraphOpt": "clean-graphics",
}
LATER_EDITION = "2026c"
# Rows that Table E.1-1 gained until 2026c, basic profile only; no row of 2024b changed. As other de-identifiers list them.
LATER = {
    "X": "00081301 00081302 00081303 00081304 00100011 00100012 00100013 00100014 00100015 00100016 00100041 00100042 "
    "00100043 00100044 00100045 00100046 00100047 00102161 00102162 00181010 00181011 003A0020 003A0203 003A020C "
    "00400556 0040A034 0040A035 0040B034 0040B036 0040B03B 0040B03F 0040E012",
    "X/D": "0040B020",
    "D": "00700006",
    "U": "300A0054",
}
# No row of the table, and yet of the kind that E.2 removes: names, identifiers, addresses, dates, orders, body measures,
# what an earlier de-identifier encrypted or signed, and one-line comments that people write.
OWN = (
    "PatientBirthDateInAlternativeCalendar PatientDeathDateInAlternativeCalendar BreedRegistrationNumber "
    "GroupOfPatientsIdentificationSequence SourcePatientGroupIdentificationSequence "
    "IssuerOfPatientIDQualifiersSequence IssuerOfAccessionNumberSequence "
    "OrderPlacerIdentifierSequence OrderFillerIdentifierSequence PlacerOrderNumberProcedure FillerOrderNumberProcedure "
    "PlacerOrderNumberImagingServiceRequestRetired FillerOrderNumberImagingServiceRequestRetired "
    "RequestedProcedureDescriptionTrial RequestingPhysicianIdentificationSequence "
    "DocumentAuthorIdentifierCodeSequenceTrial DocumentingObserverIdentifierCodeSequenceTrial "
    "DocumentingOrganizationIdentifierCodeSequenceTrial HangingProtocolCreator HangingProtocolUserGroupName "
    "HangingProtocolUserIdentificationCodeSequence ContactDisplayName OwnerID NTPSourceAddress PrinterName "
    "StorageMediaFileSetID AuthorizationEquipmentCertificationNumber BoardingPassID ItineraryID CarrierID "
    "EncryptedAttributesSequence MACParametersSequence ContentDescription CompletionFlagDescription "
    "PerformedProcedureTypeDescription SystemStatusComment TestResultComment DoseComment SubstanceAdministrationNotes "
    "FrameOfReferenceTransformationComment"
)
OWN_WITH_OPTION = {
    "PatientBodyMassIndex": "retain-patient-characteristics",
    "DeviceID": "retain-device-identity",
}
# VRs whose attributes are handled even where the table is silent: names, dates (E.1.1), addresses, unlimited text.
BY_VR = ("PN", "DA", "TM", "DT", "AE", "UR", "LT", "ST", "UT")
CODES = ("URNCodeValue", "CodingSchemeURL")  # part of a code; E.1.1: codes are safe
STRONGEST_FIRST = ("1", "1C", "2", "2C", "3")

Rows = list[dict[str, Any]]


def main() -> None:
    """Writes the table, one row a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attributes", type=Path, help="confidentiality_profile_attributes.json")
    parser.add_argument("--edition", default="2024b", help="edition of the standard that the JSON was made from")
    parser.add_argument("--commit", default=COMMIT, help="commit of innolitics/dicom-standard that the JSON is from")
    parser.add_argument("--output", type=Path, default=TARGET)
    options = parser.parse_args()
    rows = rows_of(json.loads(options.attributes.read_text(encoding="utf-8")))
    types = types_of({row["keyword"]: row["basic"] for row in rows if row["keyword"]})
    document = {
        "schema_version": "1.0",
        "what": "DICOM PS3.15 Table E.1-1, Application Level Confidentiality Profile Attributes",
        "edition": options.edition,
        "source": f"github.com/innolitics/dicom-standard at {options.commit}, MIT; see LICENSE-dicom-standard.txt",
        "later_edition": LATER_EDITION,
        "types_source": f"highdicom {version('highdicom')}, MIT; see LICENSE-highdicom.txt",
        "rows": rows,
        **types,
    }
    options.output.write_text(_lines(document), encoding="utf-8")
    print(f"{options.output}: {len(rows)} rows, types of {len(types['types'])} attributes")


def rows_of(published: list[dict[str, str]]) -> Rows:
    """The published rows in the order of their tags, then the later rows and our own."""
    rows = [_row(item) for item in published]
    known = {row["tag"] for row in rows}
    later = [(tag, basic) for basic, tags in LATER.items() for tag in tags.split()]
    rows += [
        {"tag": tag, "keyword": keyword_for_tag(int(tag, 16)), "basic": basic, "since": LATER_EDITION}
        for tag, basic in later
        if tag not in known
    ]
    own: dict[str, Any] = dict.fromkeys(OWN.split()) | OWN_WITH_OPTION
    for keyword, option in own.items():
        tag = f"{tag_for_keyword(keyword):08X}"
        assert tag not in known, f"{keyword} has a row of its own by now"
        row = {"tag": tag, "keyword": keyword, "basic": "X/Z/D", "since": "own"}
        rows.append({**row, "options": {option: "K"}} if option else row)
    return sorted(rows, key=lambda row: row["tag"])


def _row(item: dict[str, str]) -> dict[str, Any]:
    tag = item["tag"].strip("()").replace(",", "").upper()[:8]
    if "WHERE" in item["tag"].upper():
        tag = "PRIVATE"
    keyword = "" if "X" in tag or tag == "PRIVATE" else keyword_for_tag(int(tag, 16))
    options = {name: item[column] for column, name in OPTIONS.items() if item.get(column)}
    row = {"tag": tag, "keyword": keyword, "name": item["name"].split("\n")[0], "basic": item["basicProfile"]}
    return {**row, "options": options} if options else row


def types_of(basic: dict[str, str]) -> dict[str, Any]:
    """Which Type an IOD gives to the attributes whose action depends on it.

    Returns:
        `iods`: names. `sop_classes`: UID to the number of its IOD. `types`: keyword, then the path of the sequences around
        it (joined by "/"), then a Type to numbers of IODs; "*" is the Type in all other IODs. An attribute that is of one
        Type everywhere has that Type alone. Places where a dummy is needed are left out where a place that is not named
        gets a dummy anyway.
    """
    folder = files("highdicom").joinpath("_standard")
    modules, iods, classes = (
        json.loads(folder.joinpath(f"{name}.json").read_text(encoding="utf-8"))
        for name in ("module_attribute_map", "iod_module_map", "sop_class_iod_map")
    )
    names = sorted(set(classes.values()))
    found: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for number, name in enumerate(names):
        for attribute in (item for part in iods[name] for item in modules.get(part["key"], [])):
            keyword, path = attribute["keyword"], attribute["path"]
            if _depends(keyword, basic) and not any(basic.get(step) in ("X", "Z") for step in path):
                types = found[keyword, "/".join(path)]
                types[number] = min(types.get(number, "3"), attribute["type"], key=STRONGEST_FIRST.index)
    table: dict[str, Any] = defaultdict(dict)
    for (keyword, path), types in sorted(found.items()):
        if not (set(types.values()) <= {"1", "1C"} and basic.get(keyword, "D").endswith("D")):
            table[keyword][path] = _condensed(types)
    for keyword, paths in list(table.items()):
        alike = [json.loads(text) for text in {json.dumps(kinds) for kinds in paths.values()}]
        if basic.get(keyword) == "X" and not _required(paths):
            del table[keyword]
        elif len(alike) == 1 and len(alike[0]) == 1:
            table[keyword] = alike[0]["*"]
    return {
        "iods": names,
        "sop_classes": {uid: names.index(name) for uid, name in sorted(classes.items())},
        "types": table,
    }


def _depends(keyword: str, basic: dict[str, str]) -> bool:
    if keyword in basic:
        return basic[keyword] in ("X", "Z") or "/" in basic[keyword]
    tag = tag_for_keyword(keyword)
    return tag in DicomDictionary and dictionary_VR(tag) in BY_VR and keyword not in CODES


def _required(paths: dict[str, dict[str, Any]]) -> bool:
    return any(kind in ("1", "2") or types[kind] in ("1", "2") for types in paths.values() for kind in types)


def _condensed(types: dict[int, str]) -> dict[str, Any]:
    usual = Counter(types.values()).most_common(1)[0][0]
    kinds = sorted(set(types.values()) - {usual})
    return {"*": usual, **{kind: sorted(iod for iod, own in types.items() if own == kind) for kind in kinds}}


def _lines(document: dict[str, Any]) -> str:
    """JSON with one line for each row of a table, so that two versions can be compared."""
    parts = []
    for name, value in document.items():
        if name == "rows":
            text = "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n ]"
        elif name == "types":
            text = "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in value.items()) + "\n }"
        else:
            text = json.dumps(value)
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
