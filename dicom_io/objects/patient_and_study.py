"""What a result repeats of its source: the modules of patient and study, byte for byte, whatever text they hold.

pydicom decodes an attribute when it is read, and encodes it when it is written. The text stays the same only if the bytes fit
the character set that the source names. So these attributes are taken before they are decoded, and written as they were.
"""

import json
import logging
import unicodedata
from copy import copy, deepcopy
from importlib.resources import files

from pydicom import config
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS, PersonName

from dicom_io.errors import LabelError

_logger = logging.getLogger(__name__)

# DICOM PS3.3 C.7.1.1, C.7.1.3, C.7.2.1, C.7.2.2, C.7.2.3: what belongs to the patient and to the study.
_TABLE = json.loads(files("dicom_io.objects").joinpath("tables/carried_attributes.json").read_text(encoding="utf-8"))
PATIENT_KEYWORDS, STUDY_KEYWORDS = _TABLE["patient"], _TABLE["study"]
CHARACTER_SET, UTF_8 = "SpecificCharacterSet", "ISO_IR 192"
OWN_ENCODINGS = {UTF_8: "utf-8", "ISO_IR 100": "latin-1"}
"""Character sets that text of our own is written in beyond ASCII, as Python calls them; each has all of ASCII."""
CARRIED_KEYWORDS = (*PATIENT_KEYWORDS, *STUDY_KEYWORDS, CHARACTER_SET)
CARRIED_TAGS = frozenset(map(Tag, (*CARRIED_KEYWORDS, "TimezoneOffsetFromUTC")))
MAX_LEVELS = 16
"""Of items in each other. The standard's own have 4; Python cannot copy or write some dozens in each other."""
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
    """The patient's and study's elements of a header, and their character set, verbatim.

    A sequence with more than MAX_LEVELS of items in each other is left out; all sequences of these modules are optional.
    """
    tags = CARRIED_TAGS & header.keys()
    if not header.get(CHARACTER_SET):
        tags -= {Tag(CHARACTER_SET)}
    elements = []
    for tag in sorted(tags):
        try:
            elements.append(_verbatim(header, tag))
        except _TooDeepError:
            _logger.warning(
                "%s of the source has more than %d levels of items; results leave it out",
                keyword_for_tag(tag),
                MAX_LEVELS,
            )
    return elements


class _TooDeepError(Exception):
    """Items in each other in more than MAX_LEVELS."""


def carry_over(target: Dataset, header: Dataset, *, in_utf8: bool = False) -> None:
    """Give `target` the patient and study modules of `header`, byte for byte, and the character set that they are written in.
    An empty character set is left out: it is an error (PS3.3 C.12.1.1.2).

    Args:
        target: Its own attributes of these modules are removed.
        header: From `identity.source_headers`, the first.
        in_utf8: The same text in UTF-8, whatever character set the source has.

    Raises:
        LabelError: The text is needed in UTF-8, and some bytes of it are not of the character set that the source names.
    """
    for tag in CARRIED_TAGS & target.keys():
        del target[tag]
    if in_utf8 and header.get(CHARACTER_SET) != UTF_8:
        elements = [_in_utf8(element, _encodings(header)) for element in header.carried]
        target.SpecificCharacterSet = UTF_8
    else:
        elements = header.carried
    for element in elements:
        if element.tag not in target:
            target[element.tag] = deepcopy(element)


def _encodings(dataset: Dataset) -> list[str]:
    return [DEFAULT_REPERTOIRE.get(encoding, encoding) for encoding in convert_encodings(dataset.get(CHARACTER_SET))]


def _in_utf8(element: DataElement, encodings: list[str]) -> DataElement:
    """An element of `carried` with its text as characters, which pydicom writes in the character set of the whole."""
    if element.VR == "SQ":
        return DataElement(element.tag, "SQ", [_item_in_utf8(item, encodings) for item in element.value])
    value = element.value.original_string if isinstance(element.value, PersonName) else element.value
    if element.VR not in IN_CHARACTER_SET or not isinstance(value, bytes):
        return element
    try:
        with config.strict_reading():  # else pydicom would replace bytes that are not of the character set
            text = decode_bytes(value, encodings, PN_DELIMS if element.VR == "PN" else TEXT_VR_DELIMS)
    except (LookupError, ValueError) as error:
        raise LabelError(
            f"the {keyword_for_tag(element.tag)} of the source is not in the character set that the source names "
            f"({', '.join(encodings)}); it must be known to write labels beyond ASCII beside it, in UTF-8; name the right "
            "SpecificCharacterSet in the source, or write the labels in ASCII"
        ) from error
    return DataElement(element.tag, element.VR, text, validation_mode=config.IGNORE)


def _item_in_utf8(item: Dataset, encodings: list[str]) -> Dataset:
    own, encodings = Dataset(), _encodings(item) if CHARACTER_SET in item else encodings
    for element in item:
        if element.tag != Tag(CHARACTER_SET):
            own[element.tag] = _in_utf8(element, encodings)
    return own


def _verbatim(dataset: Dataset, tag: BaseTag, level: int = 0) -> DataElement:
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
        if level == MAX_LEVELS:
            raise _TooDeepError
        return DataElement(tag, "SQ", [_verbatim_item(item, level + 1) for item in element.value])
    return deepcopy(element)


def _verbatim_item(item: Dataset, level: int) -> Dataset:
    own = Dataset()
    for tag in item.keys():  # noqa: SIM118 - to walk the data set itself decodes it
        own[tag] = _verbatim(item, tag, level)
    return own


def fits_own(text: str, header: Dataset) -> bool:
    """Whether text of our own can stand beside that of a header, in the character set that the header names."""
    return _encodes(text, OWN_ENCODINGS.get(str(header.get(CHARACTER_SET)), "ascii"))


def can_hold(text: str, dataset: Dataset) -> bool:
    """Whether the character set of a data set can hold a text; other text would be written as question marks."""
    return any(_encodes(text, encoding) for encoding in _encodings(dataset))


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
