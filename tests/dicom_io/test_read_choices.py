"""What a caller may ask for: a time point, a repair, data sets in memory, a DICOMDIR; and the verdict on a whole folder."""

from __future__ import annotations

import copy
import gzip
import io
import shutil
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from phantoms import (
    linear_field,
    lopsided_array,
    oblique_affine,
    save,
    tilted_affine,
    write_enhanced_mr,
    write_mr_series,
    write_picture,
)
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_io.channels import read_channels
from dicom_io.errors import DicomIoError, SeriesGeometryError, SeriesSelectionError, UnreadableFileError
from dicom_io.read import examine, read_series
from dicom_io.reading import instances
from dicom_io.reading.series import scan_files

ONE_SERIES = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "FrameOfReferenceUID": "1.2.3.5"}


# --- time points


def write_echoes(folder: Path) -> None:
    for number, echo_ms in enumerate((30.0, 4.5, 12.0)):
        header = ONE_SERIES | {"EchoTime": echo_ms}
        array = lopsided_array() + np.int16(1000 * number)
        write_mr_series(folder, array, oblique_affine(), header=header, prefix=f"echo{number}")


def test_echoes_are_numbered_by_their_time_and_the_asked_one_is_read(tmp_path: Path) -> None:
    write_echoes(tmp_path)
    with pytest.raises(SeriesGeometryError, match=r"EchoTime \(4\.5 / 12\.0 / 30\.0\).*--time-point 1 to 3"):
        read_series(tmp_path)
    for time_point, offset in ((1, 1000), (2, 2000), (3, 0)):
        volume = read_series(tmp_path, time_point=time_point)
        np.testing.assert_array_equal(volume.array, lopsided_array() + offset)
    assert "time point 3 of 3 was asked for: EchoTime 30.0" in volume.provenance.notes


def test_a_time_point_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    write_echoes(tmp_path)
    with pytest.raises(SeriesSelectionError, match=r"has 3 time points .*number 4 was asked for; choose 1 to 3"):
        read_series(tmp_path, time_point=4)
    write_mr_series(tmp_path / "single", lopsided_array(), oblique_affine())
    with pytest.raises(SeriesSelectionError, match="1 time point; number 2 was asked for"):
        read_series(tmp_path / "single", time_point=2)


def test_time_points_that_need_two_attributes_are_told_apart(tmp_path: Path) -> None:
    for echo in (5.0, 10.0):
        for inversion in (100.0, 900.0):
            header = ONE_SERIES | {"EchoTime": echo, "InversionTime": inversion}
            array = lopsided_array() + np.int16(100 * echo + inversion)
            write_mr_series(tmp_path, array, oblique_affine(), header=header, prefix=f"{echo}_{inversion}")
    volume = read_series(tmp_path, time_point=3)
    np.testing.assert_array_equal(volume.array, lopsided_array() + 1100)


def test_a_time_point_of_an_enhanced_object_is_read_by_its_functional_group(tmp_path: Path) -> None:
    def two_times(dataset: Dataset, _: int) -> None:
        frames = list(dataset.PerFrameFunctionalGroupsSequence)
        copies = pydicom.Sequence([copy.deepcopy(frame) for frame in frames])
        for time, group in ((1, frames), (2, copies)):
            for frame in group:
                content = Dataset()
                content.TemporalPositionIndex = time
                frame.FrameContentSequence = pydicom.Sequence([content])
        dataset.PerFrameFunctionalGroupsSequence = pydicom.Sequence([*frames, *copies])
        later = np.frombuffer(dataset.PixelData, dtype="<i2") + 500
        dataset.NumberOfFrames, dataset.PixelData = 2 * len(frames), dataset.PixelData + later.astype("<i2").tobytes()

    path = write_enhanced_mr(tmp_path / "e.dcm", lopsided_array(), oblique_affine(), edit=two_times)
    volume = read_series(path, time_point=2)
    np.testing.assert_array_equal(volume.array, lopsided_array() + 500)
    assert min(volume.provenance.frame_numbers) == 8


# --- repairs


FIELD_ROUNDING = 0.011  # half a step of 0.02, and a little


def write_field(folder: Path, affine_lps: np.ndarray, depths_mm: list[float], shape: tuple[int, int] = (12, 9)) -> None:
    """Slices of the field at the given places along the affine's third column (a unit of which is 1 mm of it)."""
    step = affine_lps[:3, 2] / np.linalg.norm(affine_lps[:3, 2])
    base, along = affine_lps.copy(), {}
    base[:3, 2] = step
    for k, depth_mm in enumerate(depths_mm):
        along[k] = (depth_mm - k) * step
    i, j, _ = np.indices((*shape, 1))
    slices = []
    for depth_mm in depths_mm:
        points = np.stack([i, j, np.full_like(i, depth_mm, dtype=float), np.ones_like(i)], axis=-1) @ base.T
        slices.append(np.rint(linear_field(points[..., :3]) * 50).astype(np.int16))
    array = np.concatenate(slices, axis=2)
    write_mr_series(folder, array, base, shift_mm=along, slopes=[0.02] * len(depths_mm), header=ONE_SERIES)


def error_on_field(volume, margin: int = 0) -> float:
    """The worst difference between a volume and the field at its voxels, `margin` columns and rows left out."""
    index = np.stack([*np.indices(volume.shape), np.ones(volume.shape)], axis=-1)
    truth = linear_field((index @ volume.affine_lps.T)[..., :3])
    inside = (slice(margin, -margin or None), slice(margin, -margin or None))
    return float(np.abs(volume.array - truth)[inside].max())


def test_uneven_gaps_are_refused_with_the_flag_that_mends_them_and_mended_on_request(tmp_path: Path) -> None:
    write_field(tmp_path, oblique_affine(), [0, 4, 8, 12, 16, 20, 27])
    with pytest.raises(SeriesGeometryError, match=r"4\.00 to 7\.00 mm.*--resample-gaps"):
        read_series(tmp_path)
    volume = read_series(tmp_path, resample_gaps=True)
    assert volume.shape == (12, 9, round(27 / 4) + 1)
    assert volume.spacing_mm[2] == pytest.approx(27 / 7)
    assert error_on_field(volume) < FIELD_ROUNDING
    assert volume.provenance.resampled
    assert any(
        "7 slices with gaps of 4.00 to 7.00 mm became 8 slices 3.857 mm apart" in n for n in volume.provenance.notes
    )


def test_a_missing_slice_is_filled_in_between_on_request_only(tmp_path: Path) -> None:
    write_field(tmp_path, oblique_affine(), [0, 2.5, 5, 10, 12.5])
    with pytest.raises(SeriesGeometryError, match="lacks 1 of 6 slices"):
        read_series(tmp_path)
    volume = read_series(tmp_path, resample_gaps=True)
    assert volume.shape[2] == 6
    assert error_on_field(volume) < FIELD_ROUNDING


def test_a_hole_larger_than_the_stack_is_not_filled(tmp_path: Path) -> None:
    write_field(tmp_path, oblique_affine(), [0, 1, 2, 3, 60])
    with pytest.raises(SeriesGeometryError, match="61 even slices would be needed; at most 4 are made for each slice"):
        read_series(tmp_path, resample_gaps=True)


def test_a_tilted_stack_is_put_onto_a_right_angled_grid_on_request(tmp_path: Path) -> None:
    write_field(tmp_path, tilted_affine(20.0), [3.0 * k for k in range(7)], shape=(12, 40))
    sheared = read_series(tmp_path)
    assert not sheared.provenance.resampled
    assert error_on_field(sheared) < FIELD_ROUNDING
    volume = read_series(tmp_path, resample_tilt=True)
    steps = volume.affine_lps[:3, :3] / np.array(volume.spacing_mm)
    np.testing.assert_allclose(steps.T @ steps, np.eye(3), atol=1e-9)
    shift_rows = 18.0 * np.sin(np.radians(20.0)) / 0.5
    assert volume.shape == (12, 40 + int(np.ceil(shift_rows)), 7)
    assert volume.spacing_mm[2] == pytest.approx(3.0 * np.cos(np.radians(20.0)), abs=1e-6)
    assert error_on_field(volume, margin=0) > 1.0, "the corners that no slice reaches hold no field"
    reached = volume.array[:, :, 3] > volume.array.min() + 1e-3
    index = np.stack([*np.indices(volume.shape), np.ones(volume.shape)], axis=-1)
    truth = linear_field((index @ volume.affine_lps.T)[..., :3])[:, :, 3]
    inner = reached & np.roll(reached, 1, axis=1) & np.roll(reached, -1, axis=1)
    assert inner.sum() > 12 * 35
    assert np.abs(volume.array[:, :, 3] - truth)[inner].max() < FIELD_ROUNDING


def test_tilt_and_uneven_gaps_together_need_both_flags(tmp_path: Path) -> None:
    write_field(tmp_path, tilted_affine(18.5), [0, 4, 8, 12, 19, 26, 33], shape=(12, 60))
    with pytest.raises(SeriesGeometryError, match="--resample-gaps"):
        read_series(tmp_path)
    with pytest.raises(SeriesGeometryError, match="--resample-gaps"):
        read_series(tmp_path, resample_tilt=True)
    sheared = read_series(tmp_path, resample_gaps=True)
    assert error_on_field(sheared) < FIELD_ROUNDING
    straight = read_series(tmp_path, resample_gaps=True, resample_tilt=True)
    steps = straight.affine_lps[:3, :3]
    assert abs(steps[:, 1] @ steps[:, 2]) < 1e-9


def test_two_patients_are_never_repaired(tmp_path: Path) -> None:
    def other(dataset: Dataset, k: int) -> None:
        dataset.PatientID = f"PATIENT-{k // 4}"

    write_mr_series(tmp_path, lopsided_array(), oblique_affine(), edit=other)
    with pytest.raises(SeriesSelectionError, match="2 different PatientID"):
        read_series(tmp_path, resample_gaps=True, resample_tilt=True)


# --- other sources


def test_data_sets_in_memory_read_like_their_files(tmp_path: Path) -> None:
    paths = write_mr_series(tmp_path, lopsided_array(), oblique_affine(), slopes=[1 + k / 8 for k in range(7)])
    from_files, from_memory = read_series(tmp_path), read_series([dcmread(path) for path in paths])
    np.testing.assert_array_equal(from_memory.array, from_files.array)
    np.testing.assert_array_equal(from_memory.affine_lps, from_files.affine_lps)
    assert from_memory.provenance.sop_instance_uids == from_files.provenance.sop_instance_uids
    assert len(from_memory.provenance.headers) == 7
    assert "PixelData" not in from_memory.provenance.headers[0]


def dicomdir(folder: Path, names: list[list[str]]) -> Path:
    """An index that lists files by their components."""
    index = Dataset()
    index.SOPClassUID, index.SOPInstanceUID = "1.2.840.10008.1.3.10", generate_uid()
    records = []
    for parts in names:
        record = Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", parts
        records.append(record)
    index.DirectoryRecordSequence = pydicom.Sequence(records)
    return save(index, folder / "DICOMDIR")


def test_a_dicomdir_reads_the_files_that_it_lists_and_no_others(tmp_path: Path) -> None:
    paths = write_mr_series(tmp_path / "A", lopsided_array(), oblique_affine())
    write_mr_series(tmp_path / "B", lopsided_array(), oblique_affine())
    volume = read_series(dicomdir(tmp_path, [["A", path.name] for path in paths]))
    np.testing.assert_array_equal(volume.array, lopsided_array())


def test_a_dicomdir_that_lists_a_lost_file_or_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    write_mr_series(tmp_path / "A", lopsided_array(), oblique_affine())
    with pytest.raises(UnreadableFileError, match=r"lists 1 file, of which 1 are absent .*LOST"):
        read_series(dicomdir(tmp_path, [["A", "LOST"]]))
    for parts in (["..", "A"], ["/etc", "passwd"], ["A", "x/../../y"]):
        with pytest.raises(UnreadableFileError, match="which is not a File ID"):
            read_series(dicomdir(tmp_path, [parts]))


def test_a_palette_picture_is_read_in_its_colours(tmp_path: Path) -> None:
    numbers = (np.indices((5, 4)).sum(axis=0) % 3).astype(np.uint8)
    colours = np.array([[10, 20, 30], [200, 0, 90], [5, 250, 128]], dtype=np.uint8)
    lut = {"PhotometricInterpretation": "PALETTE COLOR"}
    for channel, name in enumerate(("Red", "Green", "Blue")):
        lut[f"{name}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        lut[f"{name}PaletteColorLookupTableData"] = (colours[:, channel].astype("<u2") * 257).tobytes()
    volume = read_series(write_picture(tmp_path / "palette.dcm", numbers, lut))
    assert volume.planar
    np.testing.assert_array_equal(volume.array[:, :, 0], colours[numbers])


def siemens_mosaic(folder: Path) -> Path:
    """The diffusion mosaic that NiBabel ships with its tests."""
    packed = Path(nibabel.__file__).parent / "nicom" / "tests" / "data" / "siemens_dwi_0.dcm.gz"
    if not packed.is_file():
        pytest.skip("this build of NiBabel ships no test data")
    path = folder / "mosaic.dcm"
    with gzip.open(packed) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)
    return path


def test_a_siemens_mosaic_lies_where_nibabel_puts_it(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls its DICOM readers experimental, when they are first imported
        from nibabel.nicom.dicomwrappers import wrapper_from_data

    path = siemens_mosaic(tmp_path)
    volume = read_series(path)
    truth = wrapper_from_data(dcmread(path))
    assert volume.shape == (128, 128, 48)
    # NiBabel's axes are (row, column, slice) and its world is LPS as the wrapper gives it
    np.testing.assert_allclose(volume.affine_lps, truth.affine[:, [1, 0, 2, 3]], atol=1e-4)
    np.testing.assert_array_equal(volume.array, truth.get_data().transpose(1, 0, 2))


def test_a_mosaic_without_its_private_header_is_refused(tmp_path: Path) -> None:
    path = siemens_mosaic(tmp_path)
    dataset = dcmread(path)
    dataset.remove_private_tags()
    dataset.save_as(path)
    with pytest.raises(SeriesSelectionError, match=r"is a mosaic.* names 0 tiles"):
        read_series(path)


# --- claims that cannot be true


def test_a_header_that_claims_a_huge_picture_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    claim = {"Rows": 65535, "Columns": 65535, "NumberOfFrames": 10000}
    path = write_picture(tmp_path / "huge.dcm", np.zeros((4, 4), np.uint8), claim)
    with pytest.raises(SeriesSelectionError, match="42948362250000 voxels; at most 1073741824 fit"):
        read_series(path)
    claim = {"Rows": 400, "Columns": 400, "NumberOfFrames": 1}
    path = write_picture(tmp_path / "large.dcm", np.zeros((4, 4), np.uint8), claim)
    with pytest.raises(UnreadableFileError, match="need 160000 bytes, it holds 16"):
        read_series(path)


def test_what_stands_above_the_stored_bits_is_not_read(tmp_path: Path) -> None:
    def overlay(dataset: Dataset, k: int) -> None:
        pixels = np.frombuffer(dataset.PixelData, dtype="<i2").astype(np.int32) - 1000
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 1
        dataset.PixelData = ((pixels & 0x0FFF) | 0xA000).astype("<u2").tobytes()

    write_mr_series(tmp_path, lopsided_array(), oblique_affine(), edit=overlay)
    np.testing.assert_array_equal(read_series(tmp_path).array, lopsided_array() - 1000)


# --- verdicts


OTHER_SERIES = "1.2.826.0.1.3680043.8.498.77"


@pytest.mark.parametrize("kept", ["pixels cut", "header cut", "zeros", "nothing"])
def test_a_broken_file_stops_only_its_own_series(tmp_path: Path, kept: str) -> None:
    good = write_mr_series(tmp_path / "good", lopsided_array(), oblique_affine())
    uid = str(dcmread(good[0]).SeriesInstanceUID)
    other = {"SeriesInstanceUID": OTHER_SERIES}
    broken = write_mr_series(tmp_path / "other", lopsided_array(), oblique_affine(), header=other)[3]
    content = broken.read_bytes()
    at = content.index(OTHER_SERIES.encode())
    of = {"pixels cut": content[:-40], "header cut": content[: at + 5], "zeros": bytes(3000), "nothing": b""}
    broken.write_bytes(of[kept])
    volume = read_series(tmp_path, series_instance_uid=uid)
    np.testing.assert_array_equal(volume.array, read_series(good).array)
    named = "broken file of other series" if kept == "pixels cut" else f"unknown series, the first {broken.name}; if it"
    assert any(named in note for note in volume.provenance.notes)
    for choice in (None, OTHER_SERIES):
        if choice is None or kept == "pixels cut":
            with pytest.raises(UnreadableFileError, match=rf"{broken.name} is broken"):
                read_series(tmp_path, series_instance_uid=choice)
    # A file that the caller names is needed, whatever it holds.
    if kept != "pixels cut":
        with pytest.raises(UnreadableFileError, match=broken.name):
            read_series([*good, broken], series_instance_uid=uid)


def test_every_series_of_a_folder_gets_its_verdict_and_its_reason(tmp_path: Path) -> None:
    write_mr_series(tmp_path / "good", lopsided_array(), oblique_affine())
    write_mr_series(tmp_path / "tilted", lopsided_array(), tilted_affine())
    write_mr_series(tmp_path / "gap", lopsided_array(), oblique_affine(), drop=(3,))
    write_mr_series(
        tmp_path / "scout", lopsided_array((8, 9, 2)), oblique_affine(), header={"ImageType": ["LOCALIZER"]}
    )
    broken = write_mr_series(tmp_path / "broken", lopsided_array(), oblique_affine())
    broken[0].write_bytes(broken[0].read_bytes()[:-40])
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.34", generate_uid()
    save(report, tmp_path / "report.dcm")
    verdicts = {Path(v.series.files[0]).parent.name if v.series else "cut": v for v in examine(tmp_path)}
    assert {name: verdict.outcome for name, verdict in verdicts.items()} == {
        "good": "readable",
        "tilted": "readable",
        "gap": "refused",
        "scout": "set aside",
        "broken": "readable",
        "cut": "broken",
        tmp_path.name: "object",
    }
    assert verdicts["good"].shape == (11, 9, 7)
    assert verdicts["good"].spacing_mm == pytest.approx((1.25, 0.75, 2.5), abs=1e-5)
    assert "sheared by 20.00 degrees" in verdicts["tilted"].reason
    assert "lacks 1 of 7 slices" in verdicts["gap"].reason
    assert verdicts["scout"].reason == "localizer"


def test_the_verdict_of_every_hostile_file_is_one_line_or_a_refusal(shared_data: Path) -> None:
    for path in sorted(path for path in (shared_data / "hostile").rglob("*") if path.is_file()):
        try:
            reasons = [verdict.reason for verdict in examine(path)]
        except DicomIoError as refusal:
            reasons = [str(refusal)]
        assert all("\n" not in reason for reason in reasons)


def test_reading_from_a_buffer_in_memory_names_no_file(tmp_path: Path) -> None:
    path = write_mr_series(tmp_path, lopsided_array(), oblique_affine(), drop=(3,))[0]
    content = io.BytesIO(path.read_bytes())
    datasets = [dcmread(content), *(dcmread(other) for other in sorted(tmp_path.iterdir()) if other != path)]
    with pytest.raises(SeriesGeometryError, match="lacks 1 of 7") as refusal:
        read_series(datasets)
    assert str(tmp_path) not in str(refusal.value)


# --- channels


def write_plain_field(folder: Path, affine_lps: np.ndarray, shape: tuple[int, int, int], uid: str, space: str) -> None:
    """A series of the linear field on any grid."""
    index = np.stack([*np.indices(shape), np.ones(shape)], axis=-1)
    values = np.rint(linear_field((index @ affine_lps.T)[..., :3]) * 50).astype(np.int16)
    header = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": uid, "FrameOfReferenceUID": space}
    write_mr_series(folder, values, affine_lps, slopes=[0.02] * shape[2], intercepts=[0.0] * shape[2], header=header)


def test_series_of_one_frame_of_reference_become_channels_on_the_first_ones_grid(tmp_path: Path) -> None:
    fine = oblique_affine((1.5, 1.0, 2.0))
    coarse = oblique_affine((2.5, 2.5, 3.0), origin_lps=(-34.5, 10.0, -49.0), degrees=(2.0, -13.0, 30.0))
    write_plain_field(tmp_path / "a", fine, (10, 9, 6), "1.2.1", "1.2.9")
    write_plain_field(tmp_path / "b", coarse, (12, 11, 9), "1.2.2", "1.2.9")
    volume = read_channels(tmp_path, ["1.2.1", "1.2.2"])
    reference = read_series(tmp_path, series_instance_uid="1.2.1")
    assert volume.array.shape == (10, 9, 6, 2)
    np.testing.assert_array_equal(volume.array[..., 0], reference.array)
    np.testing.assert_array_equal(volume.affine_lps, reference.affine_lps)
    index = np.stack([*np.indices(volume.shape), np.ones(volume.shape)], axis=-1)
    points = (index @ volume.affine_lps.T)[..., :3]
    inside_index = (np.concatenate([points, np.ones((*volume.shape, 1))], axis=-1) @ np.linalg.inv(coarse).T)[..., :3]
    inside = ((inside_index >= 0) & (inside_index <= np.array([11, 10, 8]))).all(axis=-1)
    assert inside.sum() > 100
    assert np.abs(volume.array[..., 1] - linear_field(points))[inside].max() < FIELD_ROUNDING
    assert "channel 2 is series 1.2.2: interpolated linearly" in volume.provenance.notes[-1]


def test_channels_of_the_same_grid_are_not_touched_and_others_are_refused(tmp_path: Path) -> None:
    for uid in ("1.2.1", "1.2.2"):
        write_plain_field(tmp_path / uid, oblique_affine(), (10, 9, 6), uid, "1.2.9")
    write_plain_field(tmp_path / "far", oblique_affine(), (10, 9, 6), "1.2.4", "1.2.8")
    volume = read_channels(tmp_path, ["1.2.2", "1.2.1"])
    np.testing.assert_array_equal(volume.array[..., 0], volume.array[..., 1])
    assert "the same grid" in volume.provenance.notes[-1]
    with pytest.raises(SeriesGeometryError, match=r"frames of reference 1\.2\.8, 1\.2\.9"):
        read_channels(tmp_path, ["1.2.1", "1.2.4"])
    with pytest.raises(SeriesSelectionError, match="two or more different series"):
        read_channels(tmp_path, ["1.2.1", "1.2.1"])


def test_each_header_is_read_once_for_channels_named_files_and_scanned_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uid in ("1.2.1", "1.2.2", "1.2.3"):
        write_plain_field(tmp_path / uid, oblique_affine(), (10, 9, 6), uid, "1.2.9")
    parsed: list[str] = []
    parse = instances.parse
    monkeypatch.setattr(
        instances, "parse", lambda path, *others, **options: (parsed.append(path), parse(path, *others, **options))[1]
    )
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    read_channels(tmp_path, ["1.2.1", "1.2.2", "1.2.3"])
    assert sorted(parsed) == files
    parsed.clear()
    by_files = read_series(files, series_instance_uid="1.2.2")
    assert sorted(parsed) == files
    scanned = scan_files(files).series
    parsed.clear()
    by_headers = read_series(scanned, series_instance_uid="1.2.2")
    assert parsed == []
    np.testing.assert_array_equal(by_headers.array, by_files.array)
    assert by_headers.provenance == by_files.provenance
