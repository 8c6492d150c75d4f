"""A rejection note names what is rejected, all of it and nothing else, says why in the person's words, and whose it is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest
from phantoms import lopsided_array, oblique_affine, write_mr_series
from result_phantoms import RESULT, dciodvfy_errors
from source_phantoms import lopsided

from dicom_io.errors import GeometryProofError, LabelError
from dicom_io.read import read_series
from dicom_io.rejection import REASONS, Program, Rejection, _prove, write_rejection_note
from dicom_io.seg import write_seg
from dicom_io.sr import write_sr

HEADER = {"PatientName": "Berger^Anna", "PatientID": "PID-4711", "AccessionNumber": "ACC-99"}
WHEN = datetime(2026, 11, 21, 3, 15, tzinfo=UTC)
REJECTION = Rejection("Lang^Eva^^Dr", "Clinic", WHEN, "the left side is on the right")


@pytest.fixture(scope="module")
def rejected(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("rejected")
    write_mr_series(folder / "mr", lopsided_array(), oblique_affine(), header=HEADER)
    source = read_series(folder / "mr")
    seg = write_seg(lopsided(source), source, folder / "seg.dcm", RESULT)
    return [seg, write_sr(lopsided(source), source, folder / "sr.dcm", RESULT, seg=seg)]


def named_items(note: pydicom.Dataset) -> dict[str, pydicom.Dataset]:
    """The content items that have a concept name, by its code value."""
    named = (item for item in note.ContentSequence if "ConceptNameCodeSequence" in item)
    return {item.ConceptNameCodeSequence[0].CodeValue: item for item in named}


@pytest.mark.parametrize(("reason", "code"), [("quality", "113001"), ("patient safety", "113037")])  # PS3.16 CID 7010
def test_a_rejection_note_names_every_object_and_says_why(
    reason: str, code: str, rejected: list[Path], tmp_path: Path
) -> None:
    path = write_rejection_note(rejected, tmp_path / "note.dcm", replace(REJECTION, reason=reason))
    assert dciodvfy_errors(path) == []
    note, objects = pydicom.dcmread(path), [pydicom.dcmread(file) for file in rejected]
    assert (note.SOPClassUID, note.Modality) == ("1.2.840.10008.5.1.4.1.1.88.59", "KO")
    title = note.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator) == (code, "DCM")
    assert note.ContentTemplateSequence[0].TemplateIdentifier == "2010"
    said = named_items(note)
    assert said["113012"].TextValue == "the left side is on the right"
    assert said["121008"].PersonName == "Lang^Eva^^Dr"
    references = [item for item in note.ContentSequence if item.ValueType in ("IMAGE", "COMPOSITE")]
    assert not any("ConceptNameCodeSequence" in item for item in references)  # TID 2010: no purpose of reference
    assert {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in references} == {
        one.SOPInstanceUID for one in objects
    }
    (study,) = note.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == objects[0].StudyInstanceUID
    assert {series.SeriesInstanceUID for series in study.ReferencedSeriesSequence} == {
        one.SeriesInstanceUID for one in objects
    }
    for keyword, value in HEADER.items():
        assert note[keyword].value == value
    assert note.SeriesInstanceUID not in {one.SeriesInstanceUID for one in objects}
    assert "REJECTED" in note.SeriesDescription


def test_the_same_rejection_gives_the_same_bytes_and_another_another_uid(rejected: list[Path], tmp_path: Path) -> None:
    one, two = (write_rejection_note(rejected, tmp_path / name, REJECTION) for name in ("1.dcm", "2.dcm"))
    assert one.read_bytes() == two.read_bytes()
    other = write_rejection_note(rejected, tmp_path / "3.dcm", replace(REJECTION, comment="too small"))
    assert pydicom.dcmread(one).SOPInstanceUID != pydicom.dcmread(other).SOPInstanceUID


def test_a_comment_in_other_letters_is_written_in_those_of_the_study(rejected: list[Path], tmp_path: Path) -> None:
    """The study's text is ASCII; a rejection is not refused for a letter that it cannot hold."""
    path = write_rejection_note(rejected, tmp_path / "note.dcm", replace(REJECTION, comment="größer, 左"))
    assert named_items(pydicom.dcmread(path))["113012"].TextValue == "gro?er, ?"


def test_a_note_that_names_too_little_does_not_leave(rejected: list[Path], tmp_path: Path) -> None:
    from dicom_io.objects import identity

    path = write_rejection_note(rejected[:1], tmp_path / "note.dcm", REJECTION)
    with pytest.raises(GeometryProofError, match="names 1 objects, 2 are rejected"):
        _prove(path, [identity.header_of(file) for file in rejected], REASONS["quality"])
    assert not path.exists()


@pytest.mark.parametrize("change", [{"observer": "root"}, {"moment": datetime(2026, 1, 1)}, {"reason": "mood"}])
def test_a_rejection_is_by_a_person_at_a_time_for_a_reason(change: dict[str, object]) -> None:
    with pytest.raises(LabelError, match="are needed"):
        replace(REJECTION, **change)


def test_a_program_that_rejects_by_a_rule_is_named_as_a_device(rejected: list[Path], tmp_path: Path) -> None:
    by = Rejection(Program("a node", "1.2"), "", WHEN, "replaced by a later result")
    path = write_rejection_note(rejected, tmp_path / "note.dcm", by)
    assert dciodvfy_errors(path) == []
    items = named_items(pydicom.dcmread(path))
    assert items["121005"].ConceptCodeSequence[0].CodeValue == "121007"  # Observer Type: Device (PS3.16 TID 1002)
    assert items["121013"].TextValue == "a node"  # Device Observer Name (TID 1004)
    assert "121008" not in items  # Person Observer Name
    other = write_rejection_note(rejected, tmp_path / "2.dcm", replace(by, observer=Program("a node", "1.3")))
    assert pydicom.dcmread(other).SOPInstanceUID != pydicom.dcmread(path).SOPInstanceUID


def test_objects_of_two_studies_have_no_common_note(rejected: list[Path], tmp_path: Path) -> None:
    dataset = pydicom.dcmread(rejected[0])
    dataset.StudyInstanceUID = "1.2.3"
    dataset.save_as(tmp_path / "other.dcm")
    with pytest.raises(LabelError, match="of 2 studies"):
        write_rejection_note([rejected[1], tmp_path / "other.dcm"], tmp_path / "note.dcm", REJECTION)
