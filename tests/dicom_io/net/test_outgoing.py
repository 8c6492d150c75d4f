"""What each written object is to a destination, and which pictures are results: by what the writers really write."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import save
from pydicom.dataset import Dataset
from result_phantoms import RESULT
from source_phantoms import colour_picture, lopsided, oblique_mr, radiograph

from dicom_io.capture import write_captures, write_notice
from dicom_io.kinds import NAMES
from dicom_io.net.destination import Profile
from dicom_io.net.outgoing import kind_of, prepare_files
from dicom_io.parametric import NO_UNIT, PROBABILITY, MapMeaning, write_parametric_map
from dicom_io.pdf import write_pdf
from dicom_io.presentation import write_gsps
from dicom_io.rejection import Rejection, write_rejection_note
from dicom_io.rtstruct import write_rtstruct
from dicom_io.seg import write_seg
from dicom_io.sr import write_sr

COLOR_SOFTCOPY = "1.2.840.10008.5.1.4.1.1.11.2"  # PS3.4 table B.5-1
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One object of each kind and form, all by the writers; the first word of its name is its kind."""
    folder = tmp_path_factory.mktemp("written")
    source, colour = oblique_mr(folder / "mr"), colour_picture(folder / "rgb")
    labels, chances = lopsided(source), source.with_array((lopsided(source).array / 4).astype(np.float32))
    seg = write_seg(labels, source, folder / "seg.dcm", RESULT)
    return {
        "SEG": seg,
        "SEG label map": write_seg(labels, source, folder / "labelmap.dcm", RESULT, encoding="labelmap"),
        "SR": write_sr(labels, source, folder / "sr.dcm", RESULT, seg=seg),
        "RTSTRUCT": write_rtstruct(labels, source, folder / "rt.dcm", RESULT),
        "GSPS": write_gsps(labels, source, folder / "gsps.dcm", RESULT),
        "GSPS colour": write_gsps(lopsided(colour), colour, folder / "colour.dcm", RESULT),
        "SC": write_captures(labels, source, folder / "sc", RESULT, slices=[1])[0],
        "SC colour": write_captures(lopsided(colour), colour, folder / "sc_colour", RESULT, slices=[0])[0],
        "SC notice": write_notice(sorted((folder / "mr").iterdir()), "slice gaps", folder / "notice.dcm", RESULT),
        "PM": write_parametric_map(chances, source, folder / "pm.dcm", RESULT, MapMeaning(PROBABILITY, NO_UNIT, "x")),
        "KO": write_rejection_note([seg], folder / "ko.dcm", Rejection("Lang^Eva", "Clinic", datetime.now(UTC))),
        "PDF": write_pdf(b"%PDF-1.4\n%%EOF", source, folder / "report.dcm", RESULT, title="A report"),
    }


def test_every_object_that_is_written_has_its_kind(written: dict[str, Path]) -> None:
    found = {name: kind_of(pydicom.dcmread(path, stop_before_pixels=True)) for name, path in written.items()}
    assert found == {name: name.split()[0] for name in written}
    assert set(found.values()) == set(NAMES)
    assert pydicom.dcmread(written["GSPS colour"]).SOPClassUID == COLOR_SOFTCOPY


def test_every_object_goes_after_the_images_in_the_order_of_the_profile(written: dict[str, Path]) -> None:
    source = next((written["SEG"].parent / "mr").iterdir())
    wanted, left_out = prepare_files([*reversed(written.values()), source], Profile())
    assert [one.kind for one in wanted] == [
        "", "SEG", "SEG", "PM", "RTSTRUCT", "SR", "GSPS", "GSPS", "SC", "SC", "SC", "PDF", "KO",
    ]  # fmt: skip
    assert left_out == []


@pytest.mark.parametrize(
    "sop_class", [SECONDARY_CAPTURE, SECONDARY_CAPTURE + ".2", SECONDARY_CAPTURE + ".4", "1.2.840.10008.5.1.4.1.1.2"]
)
def test_an_image_of_whatever_class_is_one_and_goes_first(
    sop_class: str, written: dict[str, Path], tmp_path: Path
) -> None:
    source = radiograph(tmp_path / "in", {"SOPClassUID": sop_class})
    wanted, left_out = prepare_files([written["SEG"], *source.provenance.files], Profile(("SEG",)))
    assert ([one.kind for one in wanted], left_out) == (["", "SEG"], [])


def _primary(capture: Dataset) -> None:
    capture.ImageType = ["ORIGINAL", "SECONDARY"]


def _without_source(capture: Dataset) -> None:
    del capture.SourceImageSequence


def _of_a_lossy_copy(capture: Dataset) -> None:
    purpose = capture.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0]
    purpose.CodeValue, purpose.CodeMeaning = "121320", "Uncompressed predecessor"


def _by_another_program(capture: Dataset) -> None:
    capture.ContributingEquipmentSequence[0].ContributionDescription = "exported from a viewer"


def _without_equipment(capture: Dataset) -> None:
    del capture.ContributingEquipmentSequence


@pytest.mark.parametrize(
    "change", [_primary, _without_source, _of_a_lossy_copy, _by_another_program, _without_equipment]
)
def test_a_secondary_capture_that_is_not_ours_is_an_image(
    change: Callable[[Dataset], None], written: dict[str, Path], tmp_path: Path
) -> None:
    capture = pydicom.dcmread(written["SC"])
    assert kind_of(capture) == "SC"
    change(capture)
    wanted, left_out = prepare_files([save(capture, tmp_path / "capture.dcm")], Profile(("SEG",)))
    assert ([one.kind for one in wanted], left_out) == ([""], [])


def test_a_capture_of_ours_is_left_out_where_none_is_wanted(written: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(written["SC"], tmp_path))
    assert [(one.kind, one.state) for one in prepare_files([path], Profile(("SEG",)))[1]] == [("SC", "left out")]
