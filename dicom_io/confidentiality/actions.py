"""The Basic Application Level Confidentiality Profile (DICOM PS3.15 Annex E) applied to one data set.

The action on an attribute is data: Table E.1-1 in `tables/confidentiality_profile.json`. Its letters mean X remove,
Z empty (or a dummy), D a dummy, U a new UID, K keep, C clean. Where the table leaves a choice ("X/Z/D": X unless Z or D is
required to maintain IOD conformance), the attribute's Type in the object's IOD decides: 3 is removed, 2 emptied, 1 replaced.
Where the Type is unknown (a private SOP class, an attribute that the IOD does not list there) the last letter is taken: a
dummy is valid for every Type, and reveals nothing, because it is a constant or derived from the key.

The table is the minimum (E.1.1). Attributes that it does not list are treated like this: unknown and private attributes are
removed; the items of sequences are treated in turn; UIDs are replaced (but not classes, transfer syntaxes, coding schemes and
UIDs that PS3.6 registers); names, dates, addresses and texts of unlimited length are treated as "X/Z/D". Codes and numbers are
kept, and so are short texts, unless something that identifies stands in them: the name of any person, a number that the table
removes, or a birth date (`identifiers`).
"""

import re
from collections import Counter
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.tag import BaseTag

from dicom_io.coding import code_item
from dicom_io.confidentiality.identifiers import (
    SHORTEST_NUMBER,
    SHORTEST_PART,
    encodings_of,
    identifiers_of,
    readings,
    texts_of,
)
from dicom_io.confidentiality.pseudonyms import Pseudonyms, shifted
from dicom_io.confidentiality.table import OPTIONS, PROFILE, Path, table

PIXEL_CODES = frozenset({"113101", "113102"})  # of earlier cleaning of the pixels; it stays true
# PS3.5 6.2: a value of an LO has 64 characters at most, so the text is two values.
METHODS = ("monai-unet deidentify, PS3.15 Annex E, Table E.1-1 {edition}", "and rows added until {later_edition}")

# UIDs of classes, not of instances. Private classes are not in PS3.6 and must stay all the same.
CLASS_UIDS = (
    "SOPClassUID ReferencedSOPClassUID RelatedGeneralSOPClassUID OriginalSpecializedSOPClassUID SOPClassesInStudy "
    "SOPClassesSupported PertinentSOPClassesInStudy PertinentSOPClassesInSeries CodingSchemeUID ContextUID "
    "MappingResourceUID StoredInstanceTransferSyntaxUID AvailableTransferSyntaxUID FlowTransferSyntaxUID "
    "MACCalculationTransferSyntaxUID EncryptedContentTransferSyntaxUID"
)
DATES = ("DA", "DT", "TM")
BY_VR = frozenset({*DATES, "PN", "AE", "UR", "LT", "ST", "UT"})
SHORT_TEXT = frozenset({"LO", "SH", "UC"})
CODE_KEYWORDS = (  # E.1.1: it is usually safe to assume that codes do not identify
    "CodeValue LongCodeValue URNCodeValue CodeMeaning CodingSchemeDesignator CodingSchemeVersion CodingSchemeURL "
    "ContextIdentifier"
)
VRS_WITH_TEXT = frozenset({"PN", "LO", "SH", "LT", "ST", "UT", "UC", "UR", "OB", "SQ"})
DUMMIES: dict[str, Any] = {
    "DA": "19000101", "DT": "19000101000000", "TM": "000000", "AS": "000Y", "CS": "ANON", "UR": "urn:anon",
    "OB": b"\0\0", "OW": b"\0\0", "OD": b"\0" * 8, "OF": b"\0" * 4, "OL": b"\0" * 4, "OV": b"\0" * 8,
    "DS": "0", "IS": "0",
}  # fmt: skip
TEXTS = frozenset({"PN", "AE", "LO", "SH", "UC", "LT", "ST", "UT"})
DOCUMENTS = {
    "application/pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>"
    b"endobj\n3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n",
    "text/XML": b'<?xml version="1.0"?><ClinicalDocument xmlns="urn:hl7-org:v3"/>',
}
DUMMY_FOR_Z = ("AccessionNumber", "ROIName")  # Z allows a dummy; so examinations and regions stay distinguishable
REMOVED = "Removed by de-identification"
# PS3.15 Table E.3.4-1: content items on the patient that are not a text, date, person or reference
SUBJECT_AGE, SUBJECT_SEX = "121033", "121032"
COUNTERS = ("SeriesNumber", "AcquisitionNumber", "InstanceNumber")  # some devices put the PatientID there
UID_IN_TEXT = re.compile(r"[012](?:\.\d+){6,}", re.ASCII)


def protect(
    dataset: Dataset, pseudonyms: Pseudonyms, options: frozenset[str], patient: str = ""
) -> Counter[tuple[str, str]]:
    """De-identifies a data set in place, nested sequences included, and records that in it.

    Args:
        dataset: With SOPClassUID and StudyInstanceUID. Values that are kept are not decoded; neither are pixels.
        pseudonyms: Makes the dummies.
        options: From `checked_options`.
        patient: What only objects of the same person share; "" for PatientID, or the study where there is none.

    Returns:
        (keyword, action) -> how often it was applied. Attributes that need no action are not counted.
    """
    protection = _Protection(dataset, pseudonyms, options, patient)
    protection.apply(dataset, ())
    _declare(dataset, options)
    return protection.counts


class _Protection:
    """The de-identification of one data set."""

    def __init__(self, dataset: Dataset, pseudonyms: Pseudonyms, options: frozenset[str], patient: str) -> None:
        self.pseudonyms, self.options, self.table = pseudonyms, options, table()
        self.encodings = encodings_of(dataset)
        self.identifiers = identifiers_of(dataset, options)  # before anything is decoded
        self.iod = self.table.sop_classes.get(str(dataset.get("SOPClassUID")))
        # Without a PatientID, a study counts as a patient of its own: two strangers must not share a pseudonym.
        self.patient = patient or str(dataset.get("PatientID") or "").strip() or str(dataset.StudyInstanceUID)
        self.days = pseudonyms.shift_days(self.patient)
        self.counts: Counter[tuple[str, str]] = Counter()

    def apply(self, dataset: Dataset, path: Path) -> None:
        """Treats every attribute of a data set or item."""
        if "clean-structured-content" in self.options and "retain-patient-characteristics" not in self.options:
            _hide_subject(dataset)
        for tag in sorted(dataset.keys()):
            if tag not in dataset:  # removed together with another attribute
                continue
            vr, keyword = _vr(dataset, tag), keyword_for_tag(tag)
            action = self._action(dataset, tag, vr, keyword, path)
            if action != "keep":
                self.counts[keyword or ("(private)" if tag.is_private else "(unknown)"), action] += 1
            if action == "X":
                del dataset[tag]
            elif vr == "SQ":
                self._sequence(dataset, tag, action, (*path, keyword))
            # C changes dates only: a shift by whole days leaves a time of day as it is.
            elif action not in ("keep", "K") and not (action == "C" and vr not in ("DA", "DT")):
                dataset.add_new(tag, vr, self._value(dataset, tag, vr, keyword, action, path))

    def _action(self, dataset: Dataset, tag: BaseTag, vr: str, keyword: str, path: Path) -> str:
        """The action on one attribute; "keep" if nothing has to be done, K if an option keeps it."""
        if _unknown(tag, vr, keyword):
            return "X"
        row = self.table.rows.get(tag)
        # Text, bytes or items under the tag of a number may hold anything, so they are removed.
        if row is None:
            return "X" if _has_foreign_vr(tag, vr) else self._unlisted_action(dataset, tag, vr, keyword, path)
        chosen = {option: row.options.get(option) for option in self.options}
        if "K" in chosen.values():
            return "X" if _has_foreign_vr(tag, vr) else "K"
        if chosen.get("retain-modified-dates") == "C" and self._can_shift(dataset, tag, vr, keyword):
            return "C"
        if chosen.get("clean-structured-content") == "C":
            return "C"
        return self._action_for_type(row.basic, keyword, path)  # no program can clean other texts

    def _unlisted_action(self, dataset: Dataset, tag: BaseTag, vr: str, keyword: str, path: Path) -> str:
        """The action on an attribute without a row."""
        if vr == "UI":
            return "keep" if keyword in CLASS_UIDS.split() else "K" if "retain-uids" in self.options else "U"
        if keyword in CODE_KEYWORDS.split():
            return "keep"
        if vr in DATES and "retain-full-dates" in self.options:
            return "K"
        if "retain-modified-dates" in self.options and self._can_shift(dataset, tag, vr, keyword):
            return "C"
        may_name = vr in SHORT_TEXT or keyword in COUNTERS
        if vr in BY_VR or (may_name and self._names_someone(dataset, tag)):
            return self._action_for_type("X/Z/D", keyword, path)
        return "keep"

    def _action_for_type(self, code: str, keyword: str, path: Path) -> str:
        """The action that a code of the table stands for, given the attribute's Type."""
        # Decision 13: references are kept, for a segmentation that lost its image is of no use.
        if code == "X/Z/U*":
            return "U"
        kind, letters = self.table.type_of(keyword, path, self.iod), code.split("/")
        if code == "X" and kind in ("1", "2"):
            return "D" if kind == "1" else "Z"  # E.1.1: the IOD's integrity must not suffer
        if len(letters) == 1:
            return "D" if code == "Z" and kind in ("1", "1C") else code
        least = {"1": "D", "1C": "D", "2": "Z", "2C": "Z", "3": "X"}.get(str(kind), letters[-1])
        # X leaves nothing, Z an empty value, D a dummy: the first letter that leaves enough for the Type is taken.
        enough = [letter for letter in letters if "XZD".index(letter) >= "XZD".index(least)]
        return enough[0] if enough else least  # Z may be a dummy, so D is within "X/Z"

    def _names_someone(self, dataset: Dataset, tag: BaseTag) -> bool:
        """True if a short text or counter holds what identifies someone, or a UID."""
        # A slice among thousands may have the number of a patient with four digits by chance.
        shortest = SHORTEST_PART if keyword_for_tag(tag) == "InstanceNumber" else SHORTEST_NUMBER
        return any(
            self.identifiers.are_in(text, shortest) or UID_IN_TEXT.search(text)
            for text in readings(dataset.get_item(tag), encodings_of(dataset, self.encodings))
        )

    def _can_shift(self, dataset: Dataset, tag: BaseTag, vr: str, keyword: str) -> bool:
        """True for dates that can be shifted, and for attributes that a shift by whole days does not change."""
        if vr in ("DA", "DT"):
            return all(shifted(text, self.days, vr) is not None for text in texts_of(dataset[tag].value))
        return vr == "TM" or keyword == "TimezoneOffsetFromUTC"

    def _value(self, dataset: Dataset, tag: BaseTag, vr: str, keyword: str, action: str, path: Path) -> Any:
        """The new value of an attribute that is no sequence."""
        texts = texts_of(dataset[tag].value)
        if action == "U" or (vr == "UI" and action == "D"):
            return [self.pseudonyms.uid(text) for text in texts] or ""
        if action == "C":
            return [shifted(text, self.days, vr) for text in texts]
        if keyword in ("PatientName", "PatientID") and not path:
            return self.pseudonyms.token(self.patient)  # one patient has one dummy, in every spelling of the name
        if action == "Z":
            if keyword in DUMMY_FOR_Z and texts:
                return self.pseudonyms.token("\\".join(texts))
            return b"" if vr.startswith("O") else None
        if vr in TEXTS:
            return self.pseudonyms.token("\\".join(texts))
        if keyword == "EncapsulatedDocument":
            dataset.pop("EncapsulatedDocumentLength", None)
            document = DOCUMENTS.get(str(dataset.get("MIMETypeOfEncapsulatedDocument")), REMOVED.encode())
            return document + b"\0" * (len(document) % 2)
        return DUMMIES.get(vr, 0)

    def _sequence(self, dataset: Dataset, tag: BaseTag, action: str, path: Path) -> None:
        """Empties a sequence, replaces it by a dummy, or treats its items."""
        if action == "Z":
            dataset.add_new(tag, "SQ", [])
        # A dummy has to be a valid item and not an empty sequence.
        elif action == "D" and path[-1] == "ContentSequence":
            dataset.add_new(tag, "SQ", [_removed_content()])
        elif action == "D" and path[-1].endswith("CodeSequence"):
            dataset.add_new(tag, "SQ", [code_item(codes.SCT.Unknown)])
        else:
            for item in dataset[tag].value:
                self.apply(item, path)
                if action == "D" and path[-1] == "GraphicAnnotationSequence":
                    _remove_graphics(item)


def _vr(dataset: Dataset, tag: BaseTag) -> str:
    """The VR in the file, or else in the dictionary. An attribute that a gateway stored as UN gets its own VR back."""
    element = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and element.VR not in (None, "UN"):
        return str(element.VR)
    if tag.is_private or not keyword_for_tag(tag):
        return "UN"
    if isinstance(element, RawDataElement) and element.VR is None:  # implicit VR
        return dictionary_VR(tag)
    return str(dataset[tag].VR)


def _unknown(tag: BaseTag, vr: str, keyword: str) -> bool:
    """True for attributes that are removed unread: private, unknown, commands, directories, curves, overlays."""
    if tag.is_private or tag.group < 8 or tag.element == 0:
        return True
    return tag.group >> 8 in (0x50, 0x60) or not keyword or vr == "UN"


def _has_foreign_vr(tag: BaseTag, vr: str) -> bool:
    """True for a standard attribute with text, bytes or items where the standard gives it another VR."""
    known = dictionary_VR(tag).split(" or ")
    if vr not in VRS_WITH_TEXT or vr in known or (vr in SHORT_TEXT and SHORT_TEXT & set(known)):
        return False
    return not (vr == "OB" and any(own.startswith("O") for own in known))


def _hide_subject(item: Dataset) -> None:
    """Removes age and sex of the patient from a content item; the item stays, because others may refer to its position."""
    concept = item.get("ConceptNameCodeSequence") or []
    code = str(concept[0].get("CodeValue")) if concept else ""
    if code == SUBJECT_AGE and "MeasuredValueSequence" in item:
        item.MeasuredValueSequence = []  # Type 2 in PS3.3 C.18.1
    if code == SUBJECT_SEX and "ConceptCodeSequence" in item:
        item.ConceptCodeSequence = [code_item(codes.SCT.Unknown)]


def _removed_content() -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", REMOVED
    item.ConceptNameCodeSequence = [code_item(codes.DCM.Comment)]
    return item


def _remove_graphics(item: Dataset) -> None:
    """Leaves the layer and the images of an annotation, and a text which says that the drawing was removed (PS3.3 C.10.5)."""
    for tag in list(item.keys()):
        if keyword_for_tag(tag) not in ("GraphicLayer", "ReferencedImageSequence"):
            del item[tag]
    text = Dataset()
    text.AnchorPointAnnotationUnits, text.AnchorPoint, text.AnchorPointVisibility = "DISPLAY", [0.0, 0.0], "N"
    text.UnformattedTextValue = REMOVED
    item.TextObjectSequence = [text]


def _declare(dataset: Dataset, options: frozenset[str]) -> None:
    """Records the de-identification in the data set (PS3.15 E.1.1, E.2, E.3.6)."""
    before = [
        item
        for item in dataset.get("DeidentificationMethodCodeSequence") or []
        if item.get("CodingSchemeDesignator") == "DCM" and item.get("CodeValue") in PIXEL_CODES
    ]
    dates = "UNMODIFIED" if "retain-full-dates" in options else "REMOVED"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if "retain-modified-dates" in options else dates
    dataset.PatientIdentityRemoved = "YES"
    facts = {"edition": table().edition, "later_edition": table().later_edition}
    dataset.DeidentificationMethod = [text.format(**facts) for text in METHODS]
    dataset.DeidentificationMethodCodeSequence = [
        code_item(PROFILE), *(code_item(code) for name, code in OPTIONS.items() if name in options), *before
    ]  # fmt: skip
