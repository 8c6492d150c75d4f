"""A notice says in the archive that nothing was made of a series, and why; it is the patient's, and its pixels name nobody."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid
from result_phantoms import RESULT, dciodvfy_errors
from source_phantoms import ALL, NAMES, oblique_mr, raw_name

from dicom_io.capture import MOST_REASON, write_notice
from dicom_io.errors import LabelError, SeriesSelectionError, UnreadableFileError
from dicom_io.net.outgoing import kind_of
from dicom_io.objects import drawing

GAPS = "series 1.2.826.0.1.368.7 has slice gaps from 1.10 to 2.20 mm; one even gap is needed (tolerance 0.02 mm)"
RESEARCH_RGB = (255, 220, 0)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def mr_files(folder: Path, header: dict[str, object] | None = None) -> list[Path]:
    """The files of a series of seven slices."""
    oblique_mr(folder, header)
    return files_of(folder)


def change(path: Path, **header: object) -> None:
    """Sets attributes of a file."""
    dataset = pydicom.dcmread(path)
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


@pytest.mark.parametrize("kind", ALL)
def test_notices_on_every_kind_of_source_are_valid_captures(kind, tmp_path):
    ALL[kind](tmp_path / "source")
    path = write_notice(files_of(tmp_path / "source"), GAPS, tmp_path / "n.dcm", RESULT, about="rule any")
    assert dciodvfy_errors(path) == []
    dataset = pydicom.dcmread(path)
    assert dataset.SOPClassUID.name == "Secondary Capture Image Storage"
    assert (dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber) == ("OT", 9003, 1)
    assert kind_of(dataset) == "SC"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["n.dcm"]


def test_it_says_that_nothing_was_made_by_what_and_why(tmp_path):
    about = "rule hippocampus, 7 image(s) had come"
    dataset = pydicom.dcmread(write_notice(mr_files(tmp_path / "mr"), GAPS, tmp_path / "n.dcm", RESULT, about=about))
    assert dataset.ImageComments.split("\r\n") == [
        "NOT PROCESSED",
        "No result was made. This is not a finding.",
        "series ... has slice gaps from 1.10 to 2.20 mm; one even gap is needed (tolerance 0.02 mm)",
        "a_network 1.2.3, series 3, rule hippocampus, 7 image(s) had come",
    ]
    assert dataset.SeriesDescription == "NOT PROCESSED a_network SC RESEARCH"
    assert RESULT.bundle_sha256 in dataset.ContributingEquipmentSequence[0].ContributionDescription


def test_what_it_says_is_what_it_shows_with_the_research_mark_above(tmp_path):
    files = mr_files(tmp_path / "mr")
    shown = pydicom.dcmread(write_notice(files, GAPS, tmp_path / "n.dcm", RESULT))
    headline, *paragraphs = shown.ImageComments.split("\r\n")
    np.testing.assert_array_equal(shown.pixel_array, drawing.page(headline, paragraphs))
    bright = (shown.pixel_array > 100).any(axis=2)
    marked = np.flatnonzero((shown.pixel_array == RESEARCH_RGB).all(axis=2).any(axis=1))
    assert marked.max() < 48  # and no text above or beside it
    assert bright[:48].sum() == (shown.pixel_array[:48, :, 0] > 100).sum()
    rows_of_text = np.flatnonzero(bright.any(axis=1))
    heights = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], bright.any(axis=1), [0]]))))[::2]
    assert heights.max() > 2 * np.median(heights)  # the headline
    assert rows_of_text.max() < len(bright) - 12
    assert not bright[:, :36].any()
    assert not bright[:, -36:].any()


def test_a_page_grows_with_its_text_and_loses_no_line():
    words = [f"word{n}" for n in range(400)]
    short, long = (drawing.page("A", [" ".join(words[:count])]) for count in (10, 400))
    assert short.shape == (768, 768, 3)
    assert long.shape[0] > 768
    lines = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], (long > 100).any(axis=(1, 2)), [0]]))))[::2]
    assert len(lines) > 400 / 9  # at most 8 such words are on a line
    assert not (long[-24:] > 100).any()


def test_uids_and_paths_are_not_shown(tmp_path):
    reason = "/data/received/1.2.3.4/b.dcm holds 1.2.3.4.5 twice (/one/two.dcm), 1.10 x 2.20 mm and/or \\ 3 mm; see /x."
    dataset = pydicom.dcmread(write_notice(mr_files(tmp_path / "mr"), reason, tmp_path / "n.dcm", RESULT))
    said = dataset.ImageComments.split("\r\n")[2]
    assert "1.10 x 2.20 mm and/or" in said
    assert not re.search(r"data|received|one|two|1\.2\.3\.4|see /", said)


def test_a_reason_of_any_length_and_in_any_script_is_shown_in_ascii_and_ends_where_a_word_does(tmp_path):
    files = mr_files(tmp_path / "mr")
    reason = "Lücke zwischen Schichten\n" * 100
    path = write_notice(files, reason, tmp_path / "n.dcm", RESULT)
    said = pydicom.dcmread(path).ImageComments.split("\r\n")[2]
    assert said.isascii()
    assert MOST_REASON - 30 < len(said) <= MOST_REASON
    assert said.endswith((" zwischen ...", " Schichten ...", "cke ..."))
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize("name", NAMES)
def test_patient_and_study_are_carried_over_byte_for_byte(name, tmp_path):
    characters, text = NAMES[name]
    identity = {
        "SpecificCharacterSet": characters, "PatientName": text, "PatientID": "P-1", "PatientBirthDate": "19310717",
        "AccessionNumber": "A-77", "StudyDescription": "head", "TimezoneOffsetFromUTC": "+0100",
    }  # fmt: skip
    files = mr_files(tmp_path / "mr", identity)
    path = write_notice(files, GAPS, tmp_path / "n.dcm", RESULT)
    assert raw_name(path) == raw_name(files[0])
    written, source = pydicom.dcmread(path), pydicom.dcmread(files[0])
    for keyword in (*identity, "StudyInstanceUID", "StudyDate", "StudyTime", "BodyPartExamined"):
        assert written[keyword].value == source[keyword].value, keyword
    assert written.SeriesInstanceUID != source.SeriesInstanceUID
    (image,) = written.SourceImageSequence
    assert (image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID) == (source.SOPClassUID, source.SOPInstanceUID)
    assert dciodvfy_errors(path) == []


def test_no_value_of_the_patient_is_burned_in(tmp_path):
    """Two patients, one picture: what differs in the file cannot be in the pixels."""
    found = []
    for number, name in enumerate(("Phantom^One", "Quite^Another")):
        identity = {"PatientName": name, "PatientID": name, "PatientBirthDate": f"19{number}00101"}
        files = mr_files(tmp_path / str(number), identity | {"AccessionNumber": str(number)})
        found.append(pydicom.dcmread(write_notice(files, GAPS, tmp_path / f"{number}.dcm", RESULT)))
    assert found[0].PixelData == found[1].PixelData
    assert found[0].ImageComments == found[1].ImageComments
    assert [one.PatientName for one in found] == ["Phantom^One", "Quite^Another"]


def test_the_same_series_bundle_and_reason_give_the_same_file_and_others_another_instance(tmp_path):
    files = mr_files(tmp_path / "mr")
    first = write_notice(files, GAPS, tmp_path / "first.dcm", RESULT, about="rule any")
    again = write_notice(files, GAPS, tmp_path / "again.dcm", RESULT, about="rule any")
    assert first.read_bytes() == again.read_bytes()
    others = [
        write_notice(files, "something else", tmp_path / "1.dcm", RESULT, about="rule any"),
        write_notice(files, GAPS, tmp_path / "2.dcm", RESULT, about="rule other"),
        write_notice(files, GAPS, tmp_path / "3.dcm", replace(RESULT, bundle_sha256="f" * 64), about="rule any"),
        write_notice(files, GAPS, tmp_path / "4.dcm", replace(RESULT, algorithm_version="2"), about="rule any"),
        write_notice(files[1:], GAPS, tmp_path / "5.dcm", RESULT, about="rule any"),
    ]
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in (first, *others)]
    assert len(set(uids)) == 6
    series = [pydicom.dcmread(path).SeriesInstanceUID for path in (first, *others)]
    assert [one == series[0] for one in series] == [True, True, True, False, False, False]


def test_one_whole_header_is_enough(tmp_path):
    """The pixels of the files are gone, and the first file's header is cut."""
    files = mr_files(tmp_path / "mr")
    for path in files:
        dataset = pydicom.dcmread(path)
        del dataset.PixelData
        dataset.save_as(path)
    files[0].write_bytes(files[0].read_bytes()[:600])
    path = write_notice(files, GAPS, tmp_path / "n.dcm", RESULT)
    (image,) = pydicom.dcmread(path).SourceImageSequence
    assert image.ReferencedSOPInstanceUID == pydicom.dcmread(files[1]).SOPInstanceUID


def test_where_nobody_can_say_whose_it_is_there_is_none(tmp_path):
    files = mr_files(tmp_path / "mr")
    target = tmp_path / "n.dcm"
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x08\x00\x18\x00UI\xff\0")
    with pytest.raises(UnreadableFileError, match="is broken"):
        write_notice([tmp_path / "broken.dcm"], GAPS, target, RESULT)
    with pytest.raises(LabelError, match="has no files"):
        write_notice([], GAPS, target, RESULT)
    change(files[-1], PatientID="SOMEBODY-ELSE")
    with pytest.raises(SeriesSelectionError, match="2 different PatientID") as refused:
        write_notice(files, GAPS, target, RESULT)
    assert "SOMEBODY-ELSE" not in str(refused.value)
    change(files[0], StudyInstanceUID="")
    with pytest.raises(LabelError, match="no StudyInstanceUID"):
        write_notice(files[:1], GAPS, target, RESULT)
    assert not target.exists()


def test_a_number_that_is_none_is_neither_repeated_nor_told(tmp_path, caplog):
    files = mr_files(tmp_path / "mr", {"SeriesNumber": 2044444444})  # digits that no UID has by chance
    for path in files:
        path.write_bytes(path.read_bytes().replace(b"2044444444", b"NAME^GIVEN"))
    notice = write_notice(files, GAPS, tmp_path / "n.dcm", RESULT)
    assert pydicom.dcmread(notice).SeriesNumber == 9000
    assert b"NAME^" not in notice.read_bytes()
    assert "NAME^" not in caplog.text


def test_a_notice_of_another_study_is_another(tmp_path):
    files = mr_files(tmp_path / "mr")
    first = pydicom.dcmread(write_notice(files, GAPS, tmp_path / "1.dcm", RESULT))
    for path in files:
        change(path, StudyInstanceUID=generate_uid(), SOPInstanceUID=generate_uid())
    other = pydicom.dcmread(write_notice(files, GAPS, tmp_path / "2.dcm", RESULT))
    assert first.SOPInstanceUID != other.SOPInstanceUID
    assert first.SeriesInstanceUID != other.SeriesInstanceUID
