"""Headers with values that are none: every kind of result is written, or refused in our words; nothing else ever ends it.

HEADER_MUTATIONS broken headers of each kind of source go through nine writers (10; 500 makes 2,000 files and 18,000 results).
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pydicom
import pytest
from hostile_inputs import element, elements_of, inserted
from hostile_judge import Answer, Judge
from kept_examples import copied_examples

from dicom_io.reading.frames import numbers
from dicom_io.reading.instances import OddHeaderError

MUTATIONS = int(os.environ.get("HEADER_MUTATIONS", "10"))
SOURCES = ("explicit", "enhanced", "colour", "modality table")
LONGEST_S = 20.0
NASTY = (
    b"", b"3A", b"1,0 ", b"40,5", b"\\\\", b"1\\2\\3 ", b"\xff\xfe\0 ", b"-0", b"nan ", b"1e400 ", b"9" * 70, b"99999999",
    b"1.2.x.",
    b"1." + b"2" * 91, "Müller^Jörg ".encode(), "Müller^Jörg".encode("latin-1"), b"x" * 5000, b"\0\0", b"YES ", b"KLINGON ",
    b"\xfe\xff\0\xe0\xff\xff\xff\xff", b"-32768",
)  # fmt: skip
VRS = (b"DS", b"US", b"SQ", b"UI", b"UN", b"OB", b"PN", b"CS", b"ZZ", b"D\x7f", b"un", b"FD", b"LT")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    examples = copied_examples(tmp_path_factory, tmp_path_factory.mktemp("odd") / "examples")
    return {name: examples[name].path for name in SOURCES}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    judge = Judge(tmp_path_factory.mktemp("judge"), memory_bytes=1 << 30, patience_s=LONGEST_S)
    yield judge
    judge.close()


def results_of(judge: Judge, content: bytes, folder: Path) -> Answer:
    path, output = folder / "source" / "image.dcm", folder / "results"
    path.parent.mkdir(exist_ok=True)
    output.mkdir(exist_ok=True)
    path.write_bytes(content)
    return judge("write_results", path, output=str(output))


def with_value(content: bytes, keyword: str, value: bytes, vr: bytes | None = None) -> bytes:
    """The file with an attribute of these bytes, in the place of the one that it has."""
    tag = pydicom.tag.Tag(keyword)
    for at, head, length, found in elements_of(content):
        if found == tag:
            content = content[:at] + content[at + head + length :]
    return inserted(content, element(tag, vr or pydicom.datadict.dictionary_VR(tag).encode(), value))


def mutated(content: bytes, seed: str) -> bytes:
    """The file with one to three attributes of another value, another VR, or none."""
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, head, length, tag = rng.choice([one for one in elements_of(content) if one[3] >> 16 > 2])
        end, how = at + head + length, rng.random()
        if how < 0.1:
            content = content[:at] + content[end:]
        elif how < 0.3:
            content = content[: at + 4] + rng.choice(VRS) + content[at + 6 :]
        else:
            value = rng.choice(NASTY)
            content = (
                content[:at] + element(tag, content[at + 4 : at + 6], value + b" " * (len(value) % 2)) + content[end:]
            )
    return content


def nested(depth: int) -> bytes:
    """A sequence within a sequence, and so on."""
    value = b""
    for _ in range(depth):
        value = element(0x00400275, b"SQ", struct.pack("<HHL", 0xFFFE, 0xE000, len(value)) + value)
    return value


WRITTEN = {
    "a SeriesNumber with a letter": ("SeriesNumber", b"3A"),
    "a comma in SpacingBetweenSlices": ("SpacingBetweenSlices", b"1,0 "),
    "a comma in WindowCenter": ("WindowCenter", b"40,5"),
    "a VOI LUT that is none": ("VOILUTSequence", struct.pack("<HHL", 0xFFFE, 0xE000, 0)),
    "an issuer with a VR that is none": ("IssuerOfPatientID", b"abcd", b"XS"),
    "a VR with a byte of noise": ("PatientWeight", b"70", b"D\x7f"),
    "an age that is none": ("PatientAge", b"\xff\xfe"),
}


IN_ONE_HEADER = (
    (
        "a SeriesNumber with a letter",
        "a comma in SpacingBetweenSlices",
        "a comma in WindowCenter",
        "an issuer with a VR that is none",
    ),
    ("a VOI LUT that is none", "a VR with a byte of noise", "an age that is none"),
)
"""What stands in one header together. A VOI LUT takes precedence over a window, so they are in different headers."""


@pytest.fixture(scope="module")
def one_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where sources stand whose refusals are compared, since these name the file."""
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def plain(judge: Judge, examples: dict[str, Path], one_place: Path) -> Callable[[str], Answer]:
    """The answer for a source as it is."""
    return cache(lambda name: results_of(judge, examples[name].read_bytes(), one_place))


def test_each_oddity_is_in_one_header() -> None:
    assert sorted(chain(*IN_ONE_HEADER)) == sorted(WRITTEN)


@pytest.mark.parametrize("oddities", IN_ONE_HEADER, ids=", ".join)
@pytest.mark.parametrize("name", SOURCES)
def test_what_a_result_does_not_need_ends_none(
    judge: Judge,
    examples: dict[str, Path],
    plain: Callable[[str], Answer],
    one_place: Path,
    name: str,
    oddities: tuple[str, ...],
) -> None:
    """Every oddity in every kind of source; after a failure each alone, to name the one that is at fault."""

    def ends_a_result(*some: str) -> bool:
        content = examples[name].read_bytes()
        for what in some:
            content = with_value(content, *WRITTEN[what])
        answer = results_of(judge, content, one_place)
        seen.append(answer)
        return (answer.complaints, answer.outcome, answer.message) != ([], plain(name).outcome, plain(name).message)

    seen: list[Answer] = []
    if ends_a_result(*oddities):
        pytest.fail(f"{[what for what in oddities if ends_a_result(what)] or 'all together'}: {seen}")


@pytest.mark.parametrize(("vr", "value"), [("LO", "12"), ("SH", "3"), ("OB", b"\1\2")])
def test_one_text_is_one_number_and_not_a_number_for_each_letter(vr: str, value: str | bytes) -> None:
    header = pydicom.Dataset()
    header.add_new("PixelSpacing", vr, value)
    with pytest.raises(OddHeaderError, match="PixelSpacing"):
        numbers(header, "PixelSpacing", 2)


def test_a_broken_sequence_of_the_patient_is_named_and_refused(
    judge: Judge, examples: dict[str, Path], tmp_path: Path
) -> None:
    content = with_value(examples["explicit"].read_bytes(), "IssuerOfPatientIDQualifiersSequence", b"abcd")
    answer = results_of(judge, content, tmp_path)
    assert (answer.complaints, answer.outcome) == ([], "refused")
    assert "IssuerOfPatientIDQualifiersSequence" in answer.message


@pytest.mark.parametrize("depth", [90, 400])
def test_sequences_in_sequences_end_their_own_case_only(
    judge: Judge, examples: dict[str, Path], tmp_path: Path, depth: int
) -> None:
    content = inserted(examples["explicit"].read_bytes(), nested(depth))
    assert results_of(judge, content, tmp_path).complaints == []


@pytest.mark.parametrize("name", SOURCES)
def test_mutated_headers_give_results_or_are_refused(
    judge: Judge, examples: dict[str, Path], tmp_path: Path, name: str
) -> None:
    content, found, written = examples[name].read_bytes(), [], 0
    for number in range(MUTATIONS):
        answer = results_of(judge, mutated(content, f"{name} {number}"), tmp_path)
        found += [f"{number}: {complaint}" for complaint in answer.complaints]
        written += answer.outcome == "read"
    assert not found, "\n".join(found[:20])
    assert written or name == "colour" or MUTATIONS < 5
