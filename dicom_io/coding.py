"""What label values mean: the coded concepts of a bundle's `segments.json`.

The file has the form of dcmqi's metainfo, so that `itkimage2segimage` can use it too. All codes are SNOMED CT ("SCT"): SNOMED
RT ("SRT") was retired from DICOM in 2019, and private schemes ("99...") mean nothing to other programs. A structure that nobody
has coded yet has the private scheme UNCODED.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicom_io.errors import SegmentCodingError
from dicom_io.reading.bounded import BoundedFile
from dicom_io.reading.headers import shown

SCHEMA_MAJOR = 1
UNCODED = "99MUA_UNCODED"
"""Coding scheme of a structure that nobody has coded yet."""
NOT_STATED = Code("NOT_STATED", UNCODED, "not stated")
"""The code of a structure for which none is known, or whose code is malformed."""
WITHOUT_CLASS = Code("WITHOUT_CLASS", UNCODED, "Voxel without a class")
"""The type of the segment of a SEG whose voxels nobody has labelled; `not_labelled` makes it."""
_OWN_KEYS = ("wholes", "schema_version", "segmentAttributes")
_CODES = {
    "SegmentedPropertyCategoryCodeSequence": "category",
    "SegmentedPropertyTypeCodeSequence": "type",
    "SegmentedPropertyTypeModifierCodeSequence": "type_modifier",
    "AnatomicRegionSequence": "anatomic_region",
    "AnatomicRegionModifierSequence": "anatomic_region_modifier",
}
"""Key of each code in the file -> its attribute of a `Segment`, or of a `Whole`, which has no type modifier."""
MAX_BYTES = 2**20
"""The largest segments.json: enough for some thousand segments."""
LONGEST_QUOTE = 300
LONGEST = 64
"""Of a label or the meaning of a code, in characters, and in bytes of UTF-8."""


# The first eight can be distinguished with common colour blindness and on grey images. Each further colour lies as far as
# possible from those before it, from white and from a dark ground, in CIELAB (29 units or more).
DISPLAY_COLOURS = (
    "#4cc3ff", "#ffb000", "#ff6db6", "#8be04e", "#c49bff", "#ff7f4d", "#3fe0c5", "#e6e24a",
    "#a500ff", "#78783c", "#965a69", "#0f5aff", "#ff005a", "#00ff00", "#ff2de1", "#1e7878",
    "#ff0000", "#00872d", "#ffd296", "#00ffa5", "#5a69a5", "#b4e196", "#ffb4c3", "#0087ff",
    "#a54bd2", "#a56900", "#789600", "#f06978", "#c3c3f0", "#c38769", "#96f0ff", "#a5ff00",
)  # fmt: skip


def display_rgb(number: int) -> tuple[int, int, int]:
    """The default colour of a structure, 0 to 255 each, by its number from 1; the colours repeat after 32."""
    red, green, blue = bytes.fromhex(DISPLAY_COLOURS[(number - 1) % len(DISPLAY_COLOURS)][1:])
    return red, green, blue


@dataclass(frozen=True)
class Segment:
    """One label: its number, name, codes and colour.

    Attributes:
        number: Label value and DICOM SegmentNumber, from 1.
        label: SegmentLabel, 1 to 64 printable characters of any script, in at most 64 bytes of UTF-8, without a backslash.
        category: SegmentedPropertyCategory, for instance SCT 91723000 "Anatomical Structure".
        type: SegmentedPropertyType, for instance SCT 5366008 "Hippocampus".
        type_modifier: What narrows the type, for instance SCT 255549009 "Anterior", or None.
        anatomic_region: Where the structure lies if the type does not say it, or None.
        anatomic_region_modifier: What narrows the region, or None.
        display_rgb: Recommended display colour, 0 to 255 each; None for the colour of its number in `DISPLAY_COLOURS`.
        description: SegmentDescription, at most 1024 such characters, may be empty.

    Raises:
        SegmentCodingError: A number, text, code or colour does not fit a DICOM object.
    """

    number: int
    label: str
    category: Code
    type: Code
    type_modifier: Code | None = None
    anatomic_region: Code | None = None
    anatomic_region_modifier: Code | None = None
    display_rgb: tuple[int, int, int] | None = None
    description: str = ""

    def __post_init__(self) -> None:
        facts: dict[str, Any] = {"labelID": _plain_number(self.number), "SegmentDescription": self.description}
        if self.display_rgb is not None:
            facts["recommendedDisplayRGBValue"] = [_plain_number(value) for value in self.display_rgb]
        _check_structure(self, f"segment {self.number}", facts)

    @property
    def texts(self) -> tuple[str, ...]:
        """Its label and the meanings of its codes."""
        return self.label, *(code.meaning for code in _codes_of(self).values())

    @property
    def short_label(self) -> str:
        """The beginning of the label, for attributes of 16 characters (the VR SH, PS3.5 6.2)."""
        return printable(self.label, 16)

    @property
    def drawn_label(self) -> str:
        """The label in a picture, whose font has ASCII only: without accents, or the number and the coded meaning instead."""
        # NFKD splits a letter into its base and its accents.
        bare = "".join(part for part in unicodedata.normalize("NFKD", self.label) if not unicodedata.combining(part))
        return bare if bare.isascii() else f"{self.number} {self.type.meaning.encode('ascii', 'replace').decode()}"

    @property
    def is_coded(self) -> bool:
        """Whether its codes mean something to other programs."""
        return UNCODED not in (self.category.scheme_designator, self.type.scheme_designator)

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour that it is drawn in, 0 to 255 each."""
        return self.display_rgb or display_rgb(self.number)

    @property
    def colour(self) -> str:
        """The same for pages and charts, "#rrggbb"."""
        return "#{:02x}{:02x}{:02x}".format(*self.rgb)


def not_labelled(number: int) -> Segment:
    """The segment, of this number, of voxels that have no class."""
    return Segment(number, "Not labelled", Code("309825002", "SCT", "Spatial and Relational Concept"), WITHOUT_CLASS)


@dataclass(frozen=True)
class Whole:
    """A structure whose parts are several segments, as `segments.json` states it under `wholes`.

    Attributes:
        label: Its name, for instance "Hippocampus".
        numbers: The numbers of its parts, two or more, ascending.
        category: SegmentedPropertyCategory of the whole.
        type: SegmentedPropertyType of the whole, for instance SCT 5366008 "Hippocampus".
        anatomic_region: Where it lies if the type does not say it, or None.
        anatomic_region_modifier: What narrows the region, or None.
    """

    label: str
    numbers: tuple[int, ...]
    category: Code
    type: Code
    anatomic_region: Code | None = None
    anatomic_region_modifier: Code | None = None

    def __post_init__(self) -> None:
        _check_structure(self, "a whole", {})

    @property
    def texts(self) -> tuple[str, ...]:
        """Its label and the meanings of its codes."""
        return self.label, *(code.meaning for code in _codes_of(self).values())

    @property
    def name(self) -> str:
        """The name of the structure in a table that names its parts too."""
        return f"{self.label}, whole"


def load_segments(path: Path) -> tuple[Segment, ...]:
    """The segments of a `segments.json`, ordered by number, which runs from 1 without gaps.

    Raises:
        SegmentCodingError: The file cannot be read, breaks the schema, is of another major `schema_version`, its labelIDs
            are not 1, 2, 3 ... each once, two segments share a SegmentLabel, its `wholes` name parts that do not exist or
            have the label of a segment, or it has a key at its top that is neither ours nor dcmqi's.
    """
    return _contents(Path(path))[0]


def uncoded(segments: Sequence[Segment]) -> str:
    """A sentence about the segments that nobody has coded yet; empty if all are coded."""
    labels = ", ".join(segment.label for segment in segments if not segment.is_coded)
    return labels and (
        f"segments.json has no SNOMED CT code for {labels}; other programs know a structure by its code; write one in its place"
    )


def load_wholes(path: Path) -> tuple[Whole, ...]:
    """The structures that a `segments.json` states under `wholes`, in the order of the file; empty if it states none.

    Nothing is inferred from codes: a left and a right kidney have the codes of two parts and are two organs. The caller has to
    know whether the volumes of the parts add up, that is, whether no voxel belongs to two of them.

    Raises:
        SegmentCodingError: As `load_segments`.
    """
    return _contents(Path(path))[1]


def _check_structure(structure: Segment | Whole, name: str, facts: dict[str, Any]) -> None:
    """Pass if what a program or a file says of a structure fits DICOM objects.

    Args:
        structure: Its label and codes are checked.
        name: Its name in a message.
        facts: What else is checked, by the keywords of `segments.json`.
    """
    entry = {"SegmentLabel": structure.label} | facts
    entry |= {keyword: code_entry(code) for keyword, code in _codes_of(structure).items()}
    error = best_match(_form("structure").iter_errors(entry))
    if error is not None:
        raise _refusal(error, name, "values that fit a DICOM object are needed; correct it")
    # PS3.5 6.2 counts characters; dciodvfy and databases of archives count bytes.
    for text, most in [(text, LONGEST) for text in structure.texts] + [(facts.get("SegmentDescription", ""), 1024)]:
        if (size := len(text.encode())) > most:
            raise SegmentCodingError(
                f"{name} has a text of {size} bytes in UTF-8 (found {_short(repr(text))}); at most {most} are needed, because "
                "archives and validators count bytes; shorten it"
            )


def _plain_number(value: Any) -> Any:
    # A number of NumPy is no number to a JSON Schema.
    return value.item() if hasattr(value, "item") else value


def _codes_of(structure: Segment | Whole) -> dict[str, Code]:
    codes_by_keyword = {keyword: getattr(structure, name, None) for keyword, name in _CODES.items()}
    return {keyword: code for keyword, code in codes_by_keyword.items() if code is not None}


def _refusal(error: ValidationError, name: str, remedy: str) -> SegmentCodingError:
    where = f"{shown(name)} at {_short('/'.join(str(step) for step in error.absolute_path) or 'the top')}"
    text = error.instance
    if isinstance(text, str) and error.validator == "not":
        refused = re.compile(error.schema["not"]["pattern"])  # type: ignore[index]
        odd = "".join(dict.fromkeys(letter for letter in text if refused.search(letter)))
        return SegmentCodingError(
            f"{where} holds {_short(ascii(odd))} (found {_short(ascii(text))}); a line of printable characters without a "
            "backslash is needed, in a code those of ASCII; write it without them"
        )
    if text and isinstance(text, str) and error.validator in ("minLength", "maxLength"):
        return SegmentCodingError(
            f"{where} has {len(text)} characters (found {_short(repr(text))}); "
            f"{'at most' if error.validator == 'maxLength' else 'at least'} {error.validator_value} are needed; "
            "write another text"
        )
    if isinstance(text, str) and not text.strip():
        return SegmentCodingError(f"{where} is blank (found {text!r}); a text is needed; write it")
    value = "" if isinstance(text, (dict, list)) else f" (found {text!r})"
    return SegmentCodingError(f"{where}: {_short(error.message)}{_short(value)}; {remedy}")


def _contents(path: Path) -> tuple[tuple[Segment, ...], tuple[Whole, ...]]:
    document = _read_json(path)
    # The version comes first, because the schema fits only files of its own version.
    _check_version(document, path.name)
    _check_keys(document, path.name)
    error = best_match(Draft202012Validator(_schema()).iter_errors(document))
    if error is not None:
        raise _refusal(
            error,
            path.name,
            "dcmqi's metainfo form with SNOMED CT codes (SCT) is needed; compare with segments.schema.json",
        )
    items = [item for file in document["segmentAttributes"] for item in file]
    segments = sorted((_segment(item) for item in items), key=lambda segment: segment.number)
    numbers = [segment.number for segment in segments]
    if numbers != list(range(1, len(numbers) + 1)):
        raise SegmentCodingError(
            f"{shown(path.name)} has the labelIDs {_short(str(numbers))}; 1 to {len(numbers)}, each once, are needed because a "
            "label value is its SegmentNumber; renumber the labels"
        )
    _check_labels(segments, path.name)
    wholes = tuple(_whole(item) for item in document.get("wholes", []))
    _check_wholes(wholes, segments, path.name)
    return tuple(segments), wholes


def _check_labels(segments: Sequence[Segment], name: str) -> None:
    numbers: dict[str, int] = {}
    for segment in segments:
        if (other := numbers.setdefault(segment.label, segment.number)) != segment.number:
            raise SegmentCodingError(
                f"{shown(name)} calls the labelIDs {other} and {segment.number} both {_short(repr(segment.label))}; "
                "a SegmentLabel of its own is needed for each, because tables and reports name them by it; rename one"
            )


def _check_keys(document: Any, name: str) -> None:
    """Refuses a key at the top that is neither ours nor dcmqi's: it would be ignored. The keys of dcmqi begin with a capital, @
    or $, except segmentAttributes and segmentAttributesFileMapping.
    """
    unknown = [key for key in document if _is_unknown(key)] if isinstance(document, dict) else []
    if unknown:
        raise SegmentCodingError(
            f"{shown(name)} has the key {_short(repr(unknown[0]))} at its top level, which has no meaning; "
            f"{', '.join(_OWN_KEYS)} or a key of dcmqi's metainfo is needed; correct or remove it"
        )


def _is_unknown(key: str) -> bool:
    if key in _OWN_KEYS or key == "segmentAttributesFileMapping":
        return False
    # A key such as "Wholes" looks like a key of dcmqi by its capital, and is a misspelt key of ours.
    return not (key[:1].isupper() or key.startswith(("@", "$"))) or bool(
        get_close_matches(key.lower(), _OWN_KEYS[:2], 1, 0.8)
    )


def _check_wholes(wholes: Sequence[Whole], segments: Sequence[Segment], name: str) -> None:
    labels = {segment.label.casefold(): segment.number for segment in segments}
    for n, whole in enumerate(wholes):
        where = f"{shown(name)} at wholes/{n} ({whole.label!r})"
        unknown = [number for number in whole.numbers if number > len(segments)]
        if unknown:
            raise SegmentCodingError(
                f"{where}: its parts are {_short(str(list(whole.numbers)))}, and there is no labelID "
                f"{_short(', '.join(map(str, unknown)))}; a whole needs parts among the labelIDs 1 to {len(segments)}; "
                "correct its parts"
            )
        if same_label := labels.get(whole.label.casefold()):
            raise SegmentCodingError(
                f"{where} has the label of labelID {same_label}; a whole needs a label of its own, because reports name both; "
                "rename it"
            )
        for other in wholes[:n]:
            same = "label" if other.label == whole.label else "parts" if other.numbers == whole.numbers else ""
            if same:
                raise SegmentCodingError(
                    f"{where} has the {same} of another whole; each whole needs a label and parts of its own; remove one"
                )


def snomed_ct(code: Code) -> Code | None:
    """The same concept as `segments.json` takes it, in SNOMED CT.

    Args:
        code: Of any scheme. SNOMED RT ("SRT"), the former form of SNOMED CT, is translated if DICOM uses the concept.

    Returns:
        None for other schemes, and for a value or a meaning that is malformed.
    """
    if code.scheme_designator == "SRT":  # pydicom's codes are equal across the two forms
        found = (getattr(codes.SCT, keyword) for keyword in codes.SCT.dir())
        code = next((Code(other.value, "SCT", code.meaning) for other in found if other == code), code)
    return code if _form("code").is_valid(code_entry(code)) else None


def is_code(code: Code) -> bool:
    """Whether value, scheme and meaning fit a DICOM object."""
    return _form("anyCode").is_valid(code_entry(code))


def code_entry(code: Code) -> dict[str, str]:
    """A code as `segments.json` has it."""
    return {"CodeValue": code.value, "CodingSchemeDesignator": code.scheme_designator, "CodeMeaning": code.meaning}


def code_item(code: Code) -> Dataset:
    """The item of a DICOM code sequence."""
    item = Dataset()
    # PS3.3 8.8: a value of more than 16 characters stands in an attribute of its own.
    is_urn = code.value.startswith("urn:") or "://" in code.value
    setattr(item, "CodeValue" if len(code.value) <= 16 else "URNCodeValue" if is_urn else "LongCodeValue", code.value)
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


@cache
def _form(name: str) -> Draft202012Validator:
    """One definition of the schema."""
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": _schema()["$defs"]})


def printable(text: str, length: int) -> str:
    """A text of another program in the form that a `Segment` takes: a line without a backslash, of at most `length` bytes."""
    # A backslash separates the values of an attribute (PS3.5 6.4).
    line = "".join(letter if letter.isprintable() else " " for letter in text.replace("\\", "/"))
    return line.encode()[:length].decode(errors="ignore").strip()


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(files("dicom_io").joinpath("segments.schema.json").read_text(encoding="utf-8"))
    return schema


def _short(text: str) -> str:
    """A text of a document for a message, cut to LONGEST_QUOTE characters."""
    return shown(text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + " ...")


def _read_json(path: Path) -> Any:
    try:
        # A bundle comes from anywhere: its file may be a pipe or of any size.
        with BoundedFile(path) as file:
            content = file.read_uncounted(file.size) if file.size <= MAX_BYTES else b""
        if not content:
            raise ValueError(f"it has {file.size} bytes; 1 to {MAX_BYTES} are needed")
        return json.loads(content.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise SegmentCodingError(
            f"{shown(path.name)} cannot be read ({_short(str(error))}); a segments.json is needed; add one to the bundle's "
            "configs"
        ) from error


def _check_version(document: Any, name: str) -> None:
    # The files of dcmqi have no version.
    version = str(document.get("schema_version", "1.0")) if isinstance(document, dict) else "1.0"
    if version.split(".")[0] != str(SCHEMA_MAJOR):
        raise SegmentCodingError(
            f"{shown(name)} has schema_version {_short(version)}; {SCHEMA_MAJOR}.x is needed; "
            "use the program version that wrote it or convert the file"
        )


def _segment(item: dict[str, Any]) -> Segment:
    colour = item.get("recommendedDisplayRGBValue")
    return Segment(
        number=item["labelID"],
        label=item["SegmentLabel"],
        display_rgb=tuple(colour) if colour else None,
        description=item.get("SegmentDescription", ""),
        **_codes_in(item),
    )


def _whole(item: dict[str, Any]) -> Whole:
    return Whole(item["label"], tuple(sorted(item["parts"])), **_codes_in(item))


def _codes_in(item: dict[str, Any]) -> dict[str, Any]:
    """The codes in an item of the file, by the attributes that hold them."""
    return {
        name: Code(code["CodeValue"], code["CodingSchemeDesignator"], code["CodeMeaning"])
        for keyword, name in _CODES.items()
        if (code := item.get(keyword))
    }
