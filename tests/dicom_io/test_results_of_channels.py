"""Results of an image whose channels are several series: each series is named, and no two sets of series share a UID."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import lopsided_array, oblique_affine, write_mr_series
from pydicom.dataset import Dataset
from result_phantoms import RESULT, dciodvfy_errors

from dicom_io.channels import joined, read_channels
from dicom_io.errors import SeriesGeometryError, SeriesSelectionError
from dicom_io.parametric import NO_UNIT, PROBABILITY, MapMeaning, write_parametric_map
from dicom_io.read import read_series
from dicom_io.seg import read_seg, write_seg
from dicom_io.sr import write_sr
from dicom_io.volume import Volume

SERIES = ("1.2.3.1", "1.2.3.2", "1.2.3.3")
"""T1, and two further images of other slices."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for uid, spacing, slices in zip(
        SERIES, ((1.25, 0.75, 2.5), (1.5, 1.0, 2.0), (1.25, 0.75, 2.5)), (6, 8, 6), strict=True
    ):
        header = {
            "StudyInstanceUID": "1.2.3",
            "SeriesInstanceUID": uid,
            "FrameOfReferenceUID": "1.2.4",
            "PatientID": "anna",
        }
        write_mr_series(folder / uid, lopsided_array((12, 9, slices)), oblique_affine(spacing), header=header)
    return folder


def labels_on(image: Volume) -> Volume:
    array = np.zeros(image.shape, np.uint8)
    array[2:7, 3:6, 1:4], array[8:10, 1:3, 2:5] = 1, 2
    return image.with_array(array)


def instances(series: list[Dataset], images: str = "ReferencedInstanceSequence") -> dict[str, set[str]]:
    return {
        str(one.SeriesInstanceUID): {str(image.ReferencedSOPInstanceUID) for image in one[images]} for one in series
    }


def test_a_seg_and_a_report_name_every_instance_of_every_channel(study: Path, tmp_path: Path) -> None:
    image = read_channels(study, SERIES[:2]).channel(0)
    labels, seg = labels_on(image), tmp_path / "seg.dcm"
    write_seg(labels, image, seg, RESULT)
    expected = {
        uid: {str(pydicom.dcmread(file).SOPInstanceUID) for file in (study / uid).iterdir()} for uid in SERIES[:2]
    }
    header = pydicom.dcmread(seg)
    assert instances(header.ReferencedSeriesSequence) == expected
    places = {
        str(one.ReferencedSOPInstanceUID): one.get("SpatialLocationsPreserved") for one in header.SourceImageSequence
    }
    assert places == {uid: "YES" if series == SERIES[0] else None for series in expected for uid in expected[series]}
    assert np.array_equal(read_seg(seg, image).array, labels.array)
    assert dciodvfy_errors(seg) == []
    report = pydicom.dcmread(write_sr(labels, image, tmp_path / "sr.dcm", RESULT, seg=seg))
    (used,) = report.CurrentRequestedProcedureEvidenceSequence
    found = instances(used.ReferencedSeriesSequence, "ReferencedSOPSequence")
    assert {uid: found[uid] for uid in SERIES[:2]} == expected
    assert dciodvfy_errors(tmp_path / "sr.dcm") == []
    values = image.with_array(np.full(image.shape, 0.5, np.float32))
    path = write_parametric_map(values, image, tmp_path / "pm.dcm", RESULT, MapMeaning(PROBABILITY, NO_UNIT, "P"))
    assert instances(pydicom.dcmread(path).ReferencedSeriesSequence) == expected


def test_other_channels_make_another_result(study: Path, tmp_path: Path) -> None:
    uids = set()
    for number, image in enumerate(
        (
            read_series(study, series_instance_uid=SERIES[0]),
            *(read_channels(study, [SERIES[0], other]) for other in SERIES[1:]),
        )
    ):
        path = write_seg(labels_on(image.channel(0)), image.channel(0), tmp_path / f"{number}.dcm", RESULT)
        header = pydicom.dcmread(path)
        uids |= {str(header.SOPInstanceUID), str(header.SeriesInstanceUID), str(header.SegmentSequence[0].TrackingUID)}
    assert len(uids) == 9


def test_series_of_two_patients_or_the_same_series_twice_are_refused(study: Path, tmp_path: Path) -> None:
    one = read_series(study, series_instance_uid=SERIES[0])
    header = {
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.9",
        "FrameOfReferenceUID": "1.2.4",
        "PatientID": "berta",
    }
    write_mr_series(tmp_path, lopsided_array((12, 9, 6)), oblique_affine(), header=header)
    with pytest.raises(SeriesGeometryError, match=r"series 1\.2\.3\.1 and series 1\.2\.9 are of different patients"):
        joined([one, read_series(tmp_path)])
    in_other_study = replace(one.provenance, study_instance_uid="1.2.8", series_instance_uid="1.2.9")
    with pytest.raises(SeriesGeometryError, match="are of different studies"):
        joined([one, replace(one, provenance=in_other_study)])
    with pytest.raises(SeriesSelectionError, match="some are of one series"):
        joined([one, one])
