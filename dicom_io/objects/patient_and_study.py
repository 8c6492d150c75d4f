"""What a result repeats of its source: the modules of patient and study, byte for byte, whatever text they hold.

pydicom decodes an attribute when it is read, and encodes it when it is written. The text stays the same only if the bytes fit
the character set that the source names. So these attributes are taken before they are decoded, and written as they were.
"""

import json
import unicodedata
from copy import copy, deepcopy
from importlib.resources import files

from pydicom import config
from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import PersonName

# DICOM PS3.3 C.7.1.1, C.7.1.3, C.7.2.1, C.7.2.2, C.7.2.3: what belongs to the patient and to the study.
_TABLE = json.loads(files("dicom_io.objects").joinpath("tables/carried_attributes.json").read_text(encoding="utf-8"))
PATIENT_KEYWORDS, STUDY_KEYWORDS = _TABLE["patient"], _TABLE["study"]
CHARACTER_SET = "SpecificCharacterSet"
CARRIED_KEYWORDS = (*PATIENT_KEYWORDS, *STUDY_KEYWORDS, CHARACTER_SET)
CARRIED_TAGS = frozenset(map(Tag, (*CARRIED_KEYWORDS, "TimezoneOffsetFromUTC")))
IN_CHARACTER_SET = frozenset(["LO", "LT", "PN", "SH", "ST", "UC", "UT"])  # PS3.5 6.1.2.2
IN_ASCII = frozenset(["AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM"])
DEFAULT_REPERTOIRE = {"iso8859": "ascii"}  # where no character set is named it is ISO-IR 6; pydicom would write Latin-1


def copied(header: Dataset) -> Dataset:
    """A new data set with the same elements. Elements that were not decoded before stay so."""
    own = Dataset()
    own.update({tag: copy(header.get_item(tag)) for tag in header.keys()})  # noqa: SIM118 - to set one alters it in place
    own.file_meta = getattr(header, "file_meta", None) or FileMetaDataset()
    character_set = header.original_character_set or convert_encodings(header.get(CHARACTER_SET))
    own.set_original_encoding(None, None, character_set)
    return own


def carried(header: Dataset) -> list[DataElement]:
    """The patient's and study's elements of a header, and their character set, verbatim."""
    tags = CARRIED_TAGS & header.keys()
    if not header.get(CHARACTER_SET):
        tags -= {Tag(CHARACTER_SET)}
    return [_verbatim(header, tag) for tag in sorted(tags)]


def carry_over(target: Dataset, header: Dataset) -> None:
    """Give `target` the patient and study modules of `header`, byte for byte, and the character set that they are written in.
    An empty character set is left out: it is an error (PS3.3 C.12.1.1.2).

    Args:
        target: Its own attributes of these modules are removed.
        header: From `identity.source_headers`, the first.
    """
    for tag in CARRIED_TAGS & target.keys():
        del target[tag]
    for element in header.carried:
        target[element.tag] = deepcopy(element)


def _verbatim(dataset: Dataset, tag: BaseTag) -> DataElement:
    """An element whose text is written as it was read: decoding and encoding change text that does not fit the character set.

    An element that pydicom has decoded before (of a data set in memory) is copied.
    """
    element = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and tag != Tag(CHARACTER_SET):
        # In implicit VR, and as UN, the bytes do not state the VR; the dictionary does.
        known = element.VR not in (None, "UN") or not dictionary_has_tag(tag)
        vr, value = str(element.VR) if known else dictionary_VR(tag), element.value or b""
        if vr == "PN":  # without an encoding it keeps its bytes
            name = PersonName(value, validation_mode=config.IGNORE)
            return DataElement(tag, vr, name, already_converted=True)
        if vr in IN_CHARACTER_SET:
            return DataElement(tag, vr, value, already_converted=True)
        if vr in IN_ASCII:
            # latin-1 keeps each byte as one character, whatever it is.
            return DataElement(tag, vr, value.decode("latin-1"), already_converted=True)
    element = dataset[tag]
    if element.VR == "SQ":
        return DataElement(tag, "SQ", [_verbatim_item(item) for item in element.value])
    return deepcopy(element)


def _verbatim_item(item: Dataset) -> Dataset:
    own = Dataset()
    for tag in item.keys():  # noqa: SIM118 - to walk the data set itself decodes it
        own[tag] = _verbatim(item, tag)
    return own


def can_hold(text: str, dataset: Dataset) -> bool:
    """Whether the character set of a data set can hold a text; other text would be written as question marks."""
    encodings = convert_encodings(dataset.get(CHARACTER_SET))
    return any(_encodes(text, DEFAULT_REPERTOIRE.get(encoding, encoding)) for encoding in encodings)


def transcribed(text: str, dataset: Dataset) -> str:
    """A text for the character set of a data set. Letters that it cannot hold lose their accents or become question marks."""
    if can_hold(text, dataset):
        return text
    return "".join(letter if can_hold(letter, dataset) else _bare(letter) for letter in text)


def _bare(letter: str) -> str:
    # NFKD splits a letter into its base and its accents; accents are not ASCII.
    return "".join(part for part in unicodedata.normalize("NFKD", letter) if part.isascii()) or "?"


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
