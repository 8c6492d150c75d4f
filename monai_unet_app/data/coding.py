"""Codes for the name of a structure, from the context groups of DICOM PS3.16 as pydicom carries them.

A name is coded only if all of its words are explained: one concept of a group, and its side or position as the modifier. A name
that is explained in part ("left kidney with cyst") is not coded, since half a code is a wrong code.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicom_io.coding import UNCODED, Segment, printable
from monai_unet_app.data.structures import StatedStructure, StructureCodes

_ANATOMY, _MORPHOLOGY = "91723000", "49755003"
_CATEGORIES = {7192: _ANATOMY, 7191: "85756007", 7194: _MORPHOLOGY, 7197: "91720002", 4: _ANATOMY}
"""Context groups of property types, in the order in which they are searched, each with the code of its category (CID 7150)."""

_SYNONYMS = {
    "autochthon": "erector spinae muscle",
    "brainstem": "brain stem",
    "clavicula": "clavicle",
    "gall bladder": "gallbladder",
    "gluteus maximus": "gluteus maximus muscle",
    "gluteus medius": "gluteus medius muscle",
    "gluteus minimus": "gluteus minimus muscle",
    "grey matter": "gray matter",
    "heart atrium": "atrium",
    "heart ventricle": "ventricle",
    "iliopsoas": "iliopsoas muscle",
    "oedema": "edema",
    "oesophagus": "esophagus",
    "pallidum": "globus pallidus",
    "parotid": "parotid gland",
    "small bowel": "small intestine",
    "thyroid gland": "thyroid",
    "tumor": "neoplasm",
    "tumour": "neoplasm",
    "urinary bladder": "bladder",
    "vessel": "blood vessel",
}
"""Other words for concepts, in the singular; whole words only."""

_POSITIONS = {"upper": "superior", "lower": "inferior", "ant": "anterior", "post": "posterior"}
_SIDES = {"l": "left", "lt": "left", "r": "right", "rt": "right", "both": "bilateral"}
_EMPTY = frozenset(("a", "an", "and", "of", "or", "structure", "the"))


def named_segment(number: int, structure: StatedStructure) -> Segment:
    """The segment of a structure: its own codes, else those of its name, else private ones, which say that it is not coded."""
    name = structure.name.replace("_", " ").strip()
    label = name[:1].upper() + name[1:]
    found = structure.codes or codes_of(structure.name)
    if found is None:
        kind = Code(f"STRUCTURE_{number}", UNCODED, printable(f"{label}, not coded", 64))
        found = StructureCodes(Code("UNKNOWN", UNCODED, "Not coded"), kind)
    codes = found.category, found.type, found.modifier, found.region, found.region_modifier
    return Segment(number, label, *codes, display_rgb=structure.rgb)


@cache
def totalsegmentator_structures() -> dict[str, StatedStructure]:
    """The classes of TotalSegmentator's task "total" by their names, with the codes and colours that it gives them.

    Source: `totalsegmentator_snomed_mapping.csv` of TotalSegmentator (Apache-2.0), commit 0e65a44; the category is that of
    CID 7150.
    """
    text = (files(__package__) / "totalsegmentator.csv").read_text(encoding="utf-8")
    return {
        row["name"]: StatedStructure(
            row["name"],
            StructureCodes(_code(row["category"]), _code(row["type"]), *(_code_or_none(row[key]) for key in _FURTHER)),
            tuple(map(int, row["rgb"].split())),  # type: ignore[arg-type]  # three of them
        )
        for row in csv.DictReader(text.splitlines())
    }


def structure_named(name: str, program: str) -> StatedStructure:
    """What a program means by the name of a structure: TotalSegmentator's classes have the codes of its own table."""
    own = totalsegmentator_structures() if program.lower() == "totalsegmentator" else {}
    return own.get(name) or StatedStructure(name)


def named_as(name: str, program: str) -> str:
    """The SegmentLabel of a structure, by the name that a program gives it."""
    return named_segment(1, structure_named(name, program)).label


_FURTHER = ("modifier", "region", "region_modifier")


def _code(cell: str) -> Code:
    """From "78961009 Spleen"."""
    value, _, meaning = cell.partition(" ")
    return Code(value, "SCT", meaning)


def _code_or_none(cell: str) -> Code | None:
    return _code(cell) if cell else None


def codes_of(name: str) -> StructureCodes | None:
    """The codes of a structure by its name; None if a word of the name is not explained.

    Args:
        name: As people write it in label files: "liver", "kidney_left", "Lower lobe of left lung", "vertebrae_L1".
    """
    words = frozenset(_words(name))
    return _with_modifier(words) or _lesion_of_a_region(words)


def _with_modifier(words: frozenset[str]) -> StructureCodes | None:
    """A concept of these words, or of all but one that is a side or a position."""
    concepts = _concepts()
    if found := concepts.get(words):
        return found
    for word in sorted(words):
        modifier, found = _modifiers().get(_POSITIONS.get(word, word)), concepts.get(words - {word})
        if modifier is not None and found is not None:
            return replace(found, modifier=modifier)
    return None


def _lesion_of_a_region(words: frozenset[str]) -> StructureCodes | None:
    """A lesion of an anatomical structure, such as "liver tumour"."""
    for lesion in sorted(words):
        found, where = _concepts().get(frozenset([lesion])), _with_modifier(words - {lesion})
        if found is None or where is None or found.category.value != _MORPHOLOGY or where.category.value != _ANATOMY:
            continue
        return replace(found, region=where.type, region_modifier=where.modifier)
    return None


@cache
def _concepts() -> dict[frozenset[str], StructureCodes]:
    """The codes for each set of words, of the first group that has them."""
    categories = {code.value: code for code in _group(7150)}
    found: dict[frozenset[str], StructureCodes] = {}
    for cid, category in _CATEGORIES.items():
        for code in _group(cid):
            found.setdefault(frozenset(_words(code.meaning)), StructureCodes(categories[category], code))
    return found


@cache
def _modifiers() -> dict[str, Code]:
    """Sides and positions by their word, CID 2 Anatomic Modifier."""
    return {code.meaning.lower(): code for code in _group(2)}


def _group(cid: int) -> Iterator[Code]:
    """The SNOMED CT concepts of a context group."""
    group = getattr(codes, f"cid{cid}")
    for keyword in sorted(group.dir()):
        code = getattr(group, keyword)
        if code.scheme_designator == "SCT":
            yield Code(code.value, code.scheme_designator, code.meaning)


def _words(text: str) -> list[str]:
    """The words of a name in lower case and in the singular, without those that mean nothing, synonyms replaced."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)  # leftKidney
    words = [_SIDES.get(word, word) for word in re.findall(r"[^\W_]+", spaced.lower())]
    plain = " ".join(_singular(word) for word in words if word not in _EMPTY)
    for other, usual in _SYNONYMS.items():
        plain = re.sub(rf"\b{other}\b", usual, plain)
    return plain.split()


def _singular(word: str) -> str:
    if word == "vertebrae":
        return "vertebra"
    return word[:-1] if len(word) > 4 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
