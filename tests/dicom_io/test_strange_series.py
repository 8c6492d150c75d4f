"""Series with faults that no table of hazards lists: each is read as its headers mean it, or refused by the fault's name."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import hostile_inputs
import numpy as np
import pydicom
import pytest
from phantoms import (
    CT_IMAGE,
    lopsided_array,
    oblique_affine,
    split_frames,
    tilted_affine,
    write_enhanced_mr,
    write_mr_series,
    write_picture,
)
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from dicom_io.channels import read_channels
from dicom_io.errors import DicomIoError, SeriesGeometryError, SeriesSelectionError, UnreadableFileError
from dicom_io.read import examine, read_series

Edit = Callable[[Dataset, int], None]
ARRAY, AFFINE = lopsided_array(), oblique_affine()


def series(folder: Path, edit: Edit | None = None, **more: object) -> Path:
    write_mr_series(folder, ARRAY, AFFINE, edit=edit, **more)
    return folder


def setting(slices: range | None = None, **values: object) -> Edit:
    """Sets attributes in some of the slices; None takes one away."""

    def edit(dataset: Dataset, k: int) -> None:
        for keyword, value in values.items():
            if slices is not None and k not in slices:
                continue
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)

    return edit


# --- UIDs


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"])
def test_a_uid_that_no_result_may_repeat_is_refused_before_anything_is_computed(tmp_path: Path, keyword: str) -> None:
    def edit(dataset: Dataset, k: int) -> None:
        own = f".{k + 1}" if keyword == "SOPInstanceUID" else ".0"
        setattr(dataset, keyword, "1.2." + "3" * (60 - len(own) + longer) + own)

    for longer in (0, 1):
        folder = series(tmp_path / f"{keyword}{longer}", edit)
        (verdict,) = examine(folder)
        if not longer:  # DICOM PS3.5 9.1: at most 64 characters
            np.testing.assert_array_equal(read_series(folder).array, ARRAY)
            continue
        with pytest.raises(SeriesSelectionError, match=f"a {keyword} of 65 characters; at most 64"):
            read_series(folder)
        assert f"a {keyword} of 65 characters" in str(verdict.reason)


def test_zeros_in_front_of_a_component_of_a_uid_are_read(tmp_path: Path) -> None:
    folder = series(tmp_path, setting(SeriesInstanceUID="1.2.003.04", FrameOfReferenceUID="1.02.3"))
    np.testing.assert_array_equal(read_series(folder).array, ARRAY)


# --- values


def test_values_that_stand_above_the_lowest_bit_are_shifted_down(tmp_path: Path) -> None:
    """PS3.5 8.1.1: a value ends at HighBit."""
    plain = ARRAY.astype(np.uint16)

    def up(dataset: Dataset, k: int) -> None:
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 15, 0
        shifted = np.frombuffer(dataset.PixelData, np.uint16) << 4
        dataset.PixelData = (shifted | 0x5).astype(np.uint16).tobytes()  # something below the value

    write_mr_series(tmp_path, plain, AFFINE, edit=up)
    np.testing.assert_array_equal(read_series(tmp_path).array, plain)


def test_monochrome1_goes_through_its_table_before_it_is_inverted(tmp_path: Path) -> None:
    stored = np.arange(200, dtype=np.uint8).reshape(20, 10)
    path = write_picture(tmp_path / "film.dcm", stored, {"PhotometricInterpretation": "MONOCHROME1", "Modality": "CR"})
    dataset, item, table = pydicom.dcmread(path), Dataset(), (np.arange(256) ** 2 // 4).astype("<u2")
    item.LUTDescriptor, item.ModalityLUTType = [256, 0, 16], "OD"
    item.add_new("LUTData", "OW", table.tobytes())
    dataset.ModalityLUTSequence = [item]
    dataset.save_as(path)
    np.testing.assert_array_equal(read_series(path).array[:, :, 0], float(table.max()) - table[stored])


def test_monochrome1_is_inverted_about_one_number_for_the_whole_volume(tmp_path: Path) -> None:
    slopes = [1.0, 0.5, 2.0, 1.5, 1.0, 3.0, 2.5]
    folder = series(tmp_path / "mr", setting(PhotometricInterpretation="MONOCHROME1"), slopes=slopes)
    values = ARRAY * np.array(slopes)
    found = read_series(folder).array + values
    np.testing.assert_allclose(found, found[0, 0, 0], rtol=1e-6)
    with pytest.raises(SeriesSelectionError, match="mixes MONOCHROME1 and MONOCHROME2"):
        read_series(series(tmp_path / "mixed", setting(range(3), PhotometricInterpretation="MONOCHROME1")))
    counts = series(tmp_path / "nm", setting(PhotometricInterpretation="MONOCHROME1", Modality="NM"))
    np.testing.assert_array_equal(read_series(counts).array, ARRAY)


@pytest.mark.parametrize(
    ("edit", "more", "says"),
    [
        (setting(RescaleSlope=0), {}, "RescaleSlope is 0"),
        (setting(range(2), RescaleSlope=None), {"intercepts": [-1024.0] * 7, "slopes": [1.0] * 7}, "2 of 7 slices without Re"),
        (setting(PixelSpacing=None), {}, "its files name no PixelSpacing"),
        (setting(ImageOrientationPatient=None), {}, "its files name no ImageOrientationPatient"),
        (setting(range(1), Modality=""), {}, "1 file .without Modality."),
        (setting(range(1), ImageType=["DERIVED", "SECONDARY", "MIP"]), {}, "goes on in .* set aside as projection"),
        (setting(range(6, 7), SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), {}, "goes on in .* set aside as secondary capture"),
    ],
)  # fmt: skip
def test_a_series_with_a_fault_is_refused_by_its_name(tmp_path: Path, edit: Edit, more: dict, says: str) -> None:
    folder = series(tmp_path / "s", edit, **more)
    with pytest.raises(DicomIoError, match=says):
        read_series(folder)
    assert all(verdict.outcome != "readable" for verdict in examine(folder))


def test_pixels_of_another_size_than_the_header_has_are_refused(tmp_path: Path) -> None:
    def twice(dataset: Dataset, k: int) -> None:
        dataset.PixelData = dataset.PixelData * 2

    with pytest.raises(UnreadableFileError, match="of 16 bits need 198 bytes, it holds 396"):
        read_series(series(tmp_path / "twice", twice))

    def padded(dataset: Dataset, k: int) -> None:
        dataset.PixelData = dataset.PixelData + b"\0" * 4

    np.testing.assert_array_equal(read_series(series(tmp_path / "padded", padded)).array, ARRAY)


@pytest.mark.parametrize("size", [(102, 102), (90, 200)])
def test_a_length_that_looks_like_a_vr_is_a_length(tmp_path: Path, size: tuple[int, int]) -> None:
    """In implicit VR the four bytes after the tag are the length: 102 x 102 x 2 is "HQ" in ASCII."""
    values = np.random.default_rng(1).integers(0, 500, (*size, 2)).astype(np.int16)
    for path in write_mr_series(tmp_path, values, AFFINE):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(read_series(tmp_path).array, values)


# --- places


@pytest.mark.parametrize("aside", [60.0, 150.0])
def test_slices_that_lie_beside_each_other_are_no_stack(tmp_path: Path, aside: float) -> None:
    write_mr_series(tmp_path, ARRAY[:, :, :2], np.diag([1.0, 1, 1, 1]), shift_mm={1: (aside, 0, 0)})
    with pytest.raises(SeriesGeometryError, match=r"goes sideways.* at most 45 degrees can be a gantry tilt"):
        read_series(tmp_path)


def test_a_steep_gantry_tilt_is_still_one(tmp_path: Path) -> None:
    write_mr_series(tmp_path, ARRAY, tilted_affine(tilt_degrees=30.0), header=CT_IMAGE)
    np.testing.assert_allclose(read_series(tmp_path).affine_lps, tilted_affine(tilt_degrees=30.0), atol=1e-4)


def test_micrometres_are_told_apart(tmp_path: Path) -> None:
    write_mr_series(tmp_path / "even", ARRAY, np.diag([0.01, 0.01, 0.015, 1.0]))
    assert read_series(tmp_path / "even").shape == ARRAY.shape
    write_mr_series(tmp_path / "aside", ARRAY, np.diag([0.01, 0.01, 0.015, 1.0]), shift_mm={3: (0.018, 0, 0)})
    with pytest.raises(SeriesGeometryError, match="not one straight stack"):
        read_series(tmp_path / "aside")


def test_headers_that_count_more_slices_are_told(tmp_path: Path) -> None:
    sparse = AFFINE @ np.diag([1, 1, 2, 1.0])
    write_mr_series(tmp_path / "second", ARRAY, sparse, edit=setting(SpacingBetweenSlices=2.5))
    assert (
        "SpacingBetweenSlices says 2.5 mm, the slices lie 5 mm apart"
        in read_series(tmp_path / "second").provenance.notes[-1]
    )
    counted = series(tmp_path / "pet", setting(Modality="PT", NumberOfSlices=9))
    with pytest.raises(SeriesGeometryError, match="holds 7 images, and its headers count 9"):
        read_series(counted)
    assert "the header counts 9 slices, 7 were found" in read_series(counted, accept_incomplete=True).provenance.notes
    fewer = series(tmp_path / "more than counted", setting(Modality="PT", NumberOfSlices=5))
    assert "the header counts 5 slices, 7 were found" in read_series(fewer).provenance.notes
    assert (
        read_series(series(tmp_path / "right", setting(SpacingBetweenSlices=2.5, NumberOfSlices=7))).provenance.notes
        == ()
    )


def test_every_gap_is_told_with_its_place(tmp_path: Path) -> None:
    for k, path in enumerate(write_mr_series(tmp_path, lopsided_array((5, 6, 12)), AFFINE, names_backwards=False)):
        if k in (3, 8, 9):
            path.unlink()
    with pytest.raises(
        SeriesGeometryError, match=r"lacks 3 of 12 .* 3 and 4 \(5\.00 mm, from \(.*\) on\), between slices 7 and 8 "
    ):
        read_series(tmp_path)


@pytest.mark.parametrize("has_word", [True, False])
@pytest.mark.parametrize("block", [0x10, 0x11])
def test_a_mosaic_is_known_by_the_scanners_own_header(tmp_path: Path, has_word: bool, block: int) -> None:
    path = hostile_inputs.mosaic(tmp_path)
    dataset = pydicom.dcmread(path)
    if not has_word:
        dataset.ImageType = dataset.ImageType[:4]
    if block != 0x10:
        dataset[0x0029, block] = pydicom.DataElement((0x0029, block), "LO", dataset[0x0029, 0x10].value)
        dataset.add_new((0x0029, block << 8 | 0x10), "OB", dataset[0x0029, 0x1010].value)
        del dataset[0x0029, 0x10], dataset[0x0029, 0x1010]
    dataset.save_as(path)
    volume = read_series(path)
    assert volume.shape == (8, 6, 4)
    assert volume.spacing_mm[2] == pytest.approx(3.0)
    across = volume.affine_lps[:3, :2].T @ volume.affine_lps[:3, 2]
    np.testing.assert_allclose(across, 0, atol=1e-4)


def test_a_mosaic_whose_normal_is_not_that_of_its_planes_is_refused(tmp_path: Path) -> None:
    csa = hostile_inputs.csa_header({"NumberOfImagesInMosaic": ["4"], "SliceNormalVector": ["1.0", "0.0", "0.0"]})
    with pytest.raises(SeriesSelectionError, match="degrees off the normal of their planes"):
        read_series(hostile_inputs.mosaic(tmp_path, csa))


def test_a_series_that_lies_elsewhere_is_no_channel(tmp_path: Path) -> None:
    far = np.array(AFFINE)
    far[:3, 3] += 5000
    uids = ("1.2.3.1", "1.2.3.2")
    for uid, affine in zip(uids, (AFFINE, far), strict=True):
        write_mr_series(
            tmp_path / uid,
            ARRAY,
            affine,
            header={"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": uid, "FrameOfReferenceUID": "1.2.3.9"},
        )
    with pytest.raises(SeriesGeometryError, match="lies wholly outside"):
        read_channels(tmp_path, uids)


# --- files


@pytest.mark.parametrize(
    ("name", "content"),
    [("slice_0001.dcm", b"\0" * 1470), ("IM0001", b""), ("IM0001", b"\0" * 100), ("slice_0001.dcm", b"hello" * 100)],
)
def test_a_slice_that_never_came_through_is_missed(tmp_path: Path, name: str, content: bytes) -> None:
    folder = series(tmp_path / "s")
    sorted(folder.iterdir())[0].unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(UnreadableFileError, match="do not begin as one"):
        read_series(folder)


def test_files_that_are_named_must_all_be_dicom(tmp_path: Path) -> None:
    files = sorted(series(tmp_path / "s").iterdir())
    packed = files[0].with_suffix(".gz")
    packed.write_bytes(gzip.compress(files[0].read_bytes()))
    assert "1 files beside it" in read_series(tmp_path / "s").provenance.notes[0]
    with pytest.raises(UnreadableFileError, match="is no DICOM object, as 1 of the 7 files named"):
        read_series([packed, *files[1:]])


def test_a_data_set_without_a_preamble_is_missed_wherever_it_is_cut(tmp_path: Path) -> None:
    files = sorted(series(tmp_path / "s").iterdir())
    for path in files:
        dataset = pydicom.dcmread(path)
        bare = io.BytesIO()
        pydicom.dcmwrite(bare, Dataset(dict(dataset.items())), implicit_vr=True, little_endian=True)
        path.with_suffix("").write_bytes(bare.getvalue())
        path.unlink()
    assert read_series(tmp_path / "s").shape == ARRAY.shape
    last = sorted((tmp_path / "s").iterdir())[-1]
    whole = last.read_bytes()
    for size in (*range(8, 60), *range(60, len(whole), 37)):
        last.write_bytes(whole[:size])
        with pytest.raises(UnreadableFileError):
            read_series(tmp_path / "s")


def test_a_data_set_in_memory_needs_no_file_meta_information(tmp_path: Path) -> None:
    datasets = [Dataset(dict(pydicom.dcmread(path).items())) for path in series(tmp_path / "s").iterdir()]
    np.testing.assert_array_equal(read_series(datasets).array, ARRAY)


def test_series_without_a_uid_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    sagittal = np.array([[0, 0, 2.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    nameless = setting(SeriesInstanceUID=None)
    write_mr_series(tmp_path / "axial", lopsided_array((8, 8, 16)), np.diag([1, 1, 2, 1.0]), edit=nameless)
    write_mr_series(tmp_path / "sagittal", lopsided_array((8, 8, 3)), sagittal, edit=nameless)
    with pytest.raises(SeriesSelectionError, match="2 studies or folders"):
        read_series(tmp_path)


def test_a_concatenation_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = split_frames(write_enhanced_mr(tmp_path / "parts.dcm", ARRAY, AFFINE), 6, 1)
    np.testing.assert_array_equal(read_series(folder).array, ARRAY)
    (folder / "1.dcm").unlink()
    rest = pydicom.dcmread(folder / "2.dcm")
    for total in (2, None):  # InConcatenationTotalNumber need not be there
        rest.InConcatenationTotalNumber = total
        rest.save_as(folder / "2.dcm")
        with pytest.raises(SeriesGeometryError, match="a concatenation of 2 parts, of which 1 are here"):
            read_series(folder)


def test_a_name_with_empty_components_is_the_same_name(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", setting(range(3), PatientName="Doe^A^^^"), header={"PatientName": "Doe^A"})
    assert read_series(folder).shape == ARRAY.shape


def test_text_in_the_place_of_a_number_is_not_told(tmp_path: Path) -> None:
    path = sorted(series(tmp_path / "s").iterdir())[0]
    content = path.read_bytes()
    at = content.index(b"0.75")
    path.write_bytes(content[:at] + b"0,75" + content[at + 4 :])
    with pytest.raises(UnreadableFileError, match="text that is not a number in its PixelSpacing") as refusal:
        read_series(tmp_path / "s")
    assert "0,75" not in str(refusal.value)
