"""Which DICOM objects a case can have."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import write_picture

from dicom_io.read import read_series
from dicom_io.segmentation import Segmentation
from monai_unet_app.bundle import load_bundle
from monai_unet_app.config import OutputConfig
from monai_unet_app.errors import BundleError, InputRefusedError
from monai_unet_app.pipeline import Case
from monai_unet_app.results import write_results

FUNDUS = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.5.1",
    "Modality": "OP",
    "ImageLaterality": "L",
    "NumberOfFrames": 1,
}


@pytest.fixture
def photograph(tiny_bundle: Callable[[str], Path], tmp_path: Path) -> Case:
    """A fundus photograph of 20 x 15 pixels with a vessel of 7."""
    i, j = np.indices((20, 15))
    colours = np.stack([10 * i, 12 * j, 200 - 5 * i], axis=-1).astype(np.uint8)
    volume = read_series(write_picture(tmp_path / "in/fundus.dcm", colours, FUNDUS))
    labels = np.zeros((1, 20, 15, 1), np.uint8)
    labels[0, 2, 5:12, 0] = 1
    bundle = load_bundle(tiny_bundle("retina_vessel_unet2d"))
    return Case(Segmentation(volume, labels, bundle.segments, labels * np.float32(0.9)), bundle)


@pytest.mark.parametrize("impossible", ["sr", "rtstruct", "pm"])
def test_what_a_picture_cannot_have_is_refused_before_anything_is_written(
    impossible: str,
    photograph: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[Path] = []
    monkeypatch.setattr("dicom_io.seg.write.write_seg", lambda *given, **named: written.append(given[2]))
    what = OutputConfig(("seg", impossible))
    said = rf"^case: {impossible} cannot be made of a picture.*of seg, gsps, sc some are possible; change --format"
    with pytest.raises(InputRefusedError, match=said):
        write_results(photograph, "case", what, tmp_path / "out")
    assert written == []
    assert list((tmp_path / "out").iterdir()) == []


def test_a_fundus_photograph_has_a_seg_outlines_and_captures(photograph: Case, tmp_path: Path) -> None:
    what = OutputConfig(("seg", "gsps", "sc"))
    document = write_results(photograph, "case", what, tmp_path / "out")
    assert set(document["files"]) == {"seg", "gsps", "sc"}
    for name in document["files"].values():
        assert (tmp_path / "out" / name).exists()


def test_a_structure_without_code_is_written_only_where_it_may_say_so(photograph: Case, tmp_path: Path) -> None:
    file = photograph.bundle.root / "configs/segments.json"
    text = re.sub(
        r'("SegmentedPropertyTypeCodeSequence": \{)[^}]*\}',
        r'\1"CodeValue": "STRUCTURE_1", "CodingSchemeDesignator": "99MUA_UNCODED", "CodeMeaning": "Vessels, not coded"}',
        file.read_text(),
    )
    file.write_text(text)
    bundle = load_bundle(photograph.bundle.root)
    found = photograph.segmentation
    case = Case(Segmentation(found.image, found.labels, bundle.segments, found.labels * np.float32(0.9)), bundle)
    with pytest.raises(BundleError, match=r"no SNOMED CT code for .*--uncoded"):
        write_results(case, "case", OutputConfig(("seg",)), tmp_path / "refused")
    assert list((tmp_path / "refused").iterdir()) == []
    write_results(case, "case", OutputConfig(("seg",), uncoded=True), tmp_path / "out")
    (segment,) = pydicom.dcmread(tmp_path / "out/case_seg.dcm").SegmentSequence
    code = segment.SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodingSchemeDesignator, code.CodeMeaning) == ("99MUA_UNCODED", "Vessels, not coded")
    # No DICOM, no code
    write_results(case, "case", OutputConfig(("nifti",)), tmp_path / "plain")
