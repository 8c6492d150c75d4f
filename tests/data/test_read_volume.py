"""Files to volumes and to MONAI's tensors: what MONAI's own readers give where those are right, and bad input refused."""

from __future__ import annotations

import gzip
import json
import math
import os
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
import torch
from false_claims import claiming, png_claiming
from monai.transforms import LoadImaged
from phantoms import lopsided_array, lopsided_labels, oblique_affine, write_mr_series
from PIL import Image

from dicom_io.read import ReadOptions
from dicom_io.volume import LPS_FROM_RAS, Volume
from monai_unet_app.data.labels import FileValues, check_values, read_labels
from monai_unet_app.data.monai_bridge import VolumeReader, to_metatensor
from monai_unet_app.data.read import read_picture, read_volume
from monai_unet_app.errors import InputRefusedError

OBLIQUE_RAS = LPS_FROM_RAS @ oblique_affine()


def write_nifti(path: Path, array: np.ndarray, affine_ras: np.ndarray = OBLIQUE_RAS) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine_ras), path)
    return path


def scaled_nifti(path: Path) -> Path:
    """16-bit voxels with a slope and an intercept that float32 arithmetic would round another way."""
    image = nibabel.Nifti1Image(np.zeros((11, 9, 7), np.int16), OBLIQUE_RAS)
    image.header.set_data_dtype(np.int16)
    path.write_bytes(image.to_bytes())
    header = bytearray(path.read_bytes())
    header[112:120] = np.array([0.1000000015, -1023.7], np.float32).tobytes()  # scl_slope, scl_inter
    voxels = (lopsided_array().astype(np.int32) * 61 - 9000).astype(np.int16)
    path.write_bytes(bytes(header[:352]) + voxels.tobytes(order="F"))
    return path


def animation(path: Path) -> Path:
    first, *others = (Image.fromarray(np.full((5, 7), 40 * n, np.uint8)) for n in range(3))
    first.save(path, save_all=True, append_images=others)
    return path


def picture(path: Path, mode: str) -> Path:
    rng = np.random.default_rng(3)
    shape = (13, 8, 3) if mode == "RGB" else (13, 8)
    values = rng.integers(0, 60000 if mode == "I;16" else 256, shape)
    Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.uint8)).save(path)
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {
    "oblique float NIfTI": lambda folder: write_nifti(folder / "a.nii.gz", lopsided_array().astype(np.float32) / 7),
    "int16 NIfTI": lambda folder: write_nifti(folder / "a.nii", lopsided_array()),
    "float64 NIfTI": lambda folder: write_nifti(folder / "a.nii.gz", lopsided_array() / 7),
    "NIfTI with slope": lambda folder: scaled_nifti(folder / "a.nii"),
    "left-handed NIfTI": lambda folder: write_nifti(
        folder / "a.nii.gz", lopsided_array(), OBLIQUE_RAS @ np.diag([-1.0, 1, 1, 1])
    ),
    "grey PNG": lambda folder: picture(folder / "a.png", "L"),
    "RGB PNG": lambda folder: picture(folder / "a.png", "RGB"),
    "16-bit PNG": lambda folder: picture(folder / "a.png", "I;16"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_volume_reader_gives_what_monais_own_readers_give(source: str, tmp_path: Path) -> None:
    path = str(SOURCES[source](tmp_path))
    ours = LoadImaged(keys="image", reader=VolumeReader())({"image": path})["image"]
    theirs = LoadImaged(keys="image")({"image": path})["image"]
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float32
    assert torch.equal(ours.as_tensor(), theirs.as_tensor())
    assert torch.equal(ours.affine, theirs.affine)
    channel = [np.nan_to_num(float(item.meta["original_channel_dim"]), nan=-9) for item in (ours, theirs)]
    assert channel[0] % max(ours.ndim, 1) == channel[1] % max(ours.ndim, 1)


def test_a_tensor_made_from_a_volume_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    path = SOURCES["oblique float NIfTI"](tmp_path)
    made = to_metatensor(read_volume(path))
    loaded = LoadImaged(keys="image", reader=VolumeReader())({"image": str(path)})["image"]
    assert torch.equal(made.as_tensor(), loaded.as_tensor())
    assert torch.equal(made.affine, loaded.affine)
    assert made.meta["filename_or_obj"] == loaded.meta["filename_or_obj"]


def test_a_nifti_volume_places_voxels_in_lps_and_a_picture_runs_along_its_width(tmp_path: Path) -> None:
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz", lopsided_array()))
    np.testing.assert_allclose(volume.affine_lps, oblique_affine(), atol=1e-5)
    np.testing.assert_array_equal(volume.array, lopsided_array())
    wide = np.zeros((4, 9), np.uint8)
    wide[1, 7] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert read_volume(tmp_path / "wide.png").array[7, 1, 0] == 200
    assert read_volume(tmp_path / "wide.png").planar


def test_a_nifti_with_one_channel_at_its_end_is_a_volume(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", lopsided_array()[..., None])
    assert read_volume(path).array.shape == (11, 9, 7)


def rgb_nifti(path: Path) -> Path:
    voxels = np.zeros((5, 4, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return write_nifti(path, voxels)


def nifti_without_place(path: Path) -> Path:
    image = nibabel.Nifti1Image(lopsided_array(), None)
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    path.write_bytes(image.to_bytes()[:280] + bytes(48) + image.to_bytes()[328:])  # srow_x, y, z are 0
    return path


def cut(path: Path, share: float = 0.6) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def with_value(path: Path, value: float) -> Path:
    array = lopsided_array().astype(np.float32)
    array[3, 2, 1] = value
    return write_nifti(path, array)


def two_pages(path: Path) -> Path:
    pages = [Image.fromarray(np.full((5, 6), value, np.uint8)) for value in (1, 2)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


def words(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def dicom_cut(folder: Path) -> Path:
    cut(write_mr_series(folder, lopsided_array(), oblique_affine())[3], 0.95)
    return folder


HUGE, LARGE = (30000, 30000, 3000), (1000, 1000, 1000)
TOO_MANY = (
    "claims 30000 x 30000 x 3000 voxels, 2700000000000 in all; at most 1073741824 fit; check the file, or split it"
)
# 2,000,000,000 bytes at least 1032 times smaller, RFC 1951, are 1,937,984
TOO_FEW = r"claims 1000 x 1000 x 1000 voxels, 2000000000 bytes, and holds \d{2,4} bytes"

BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absent": (lambda folder: folder / "none.nii.gz", "none.nii.gz does not exist"),
    "truncated NIfTI": (
        lambda folder: cut(write_nifti(folder / "a.nii", lopsided_array())),
        r"a\.nii claims 11 x 9 x 7 voxels, 1386 bytes, and holds 690 bytes; a whole file is needed",
    ),
    "truncated nii.gz": (
        lambda folder: cut(write_nifti(folder / "a.nii.gz", lopsided_array())),
        "a.nii.gz cannot be read as NIfTI",
    ),
    "header cut": (lambda folder: cut(write_nifti(folder / "a.nii", lopsided_array()), 0.1), "cannot be read as NIfTI"),
    "no NIfTI": (lambda folder: words(folder / "a.nii.gz", "hello"), "cannot be read as NIfTI"),
    "empty NIfTI": (lambda folder: words(folder / "a.nii", ""), "cannot be read as NIfTI"),
    "RGB NIfTI": (lambda folder: rgb_nifti(folder / "a.nii.gz"), "RGB voxels; one number for each voxel is needed"),
    "complex NIfTI": (
        lambda folder: write_nifti(folder / "a.nii.gz", lopsided_array().astype(np.complex64)),
        "complex voxels; one number for each voxel is needed",
    ),
    "channels first": (
        lambda folder: write_nifti(folder / "a.nii.gz", np.stack([lopsided_array((8, 7, 6))] * 2)),
        r"shape \(2, 8, 7, 6\): as NIfTI orders axes, 6 channels of an image 2 voxel.* 2 channel\(s\) that stand first",
    ),
    "several GIF pictures": (
        lambda folder: animation(folder / "a.gif"),
        "holds 3 pictures; one is needed",
    ),
    "5D NIfTI": (
        lambda folder: write_nifti(folder / "a.nii.gz", np.zeros((3, 3, 3, 2, 2), np.float32)),
        r"shape \(3, 3, 3, 2, 2\)",
    ),
    "huge NIfTI": (lambda folder: claiming(folder / "a.nii", HUGE), TOO_MANY),
    "huge nii.gz": (lambda folder: claiming(folder / "a.nii.gz", HUGE), TOO_MANY),
    "huge NRRD": (lambda folder: claiming(folder / "b.nrrd", HUGE), TOO_MANY),
    "huge MetaImage": (lambda folder: claiming(folder / "b.mha", HUGE), TOO_MANY),
    "few bytes in a nii.gz": (lambda folder: claiming(folder / "a.nii.gz", LARGE), f"{TOO_FEW}, which unpack to"),
    "few bytes in a NRRD": (lambda folder: claiming(folder / "b.nrrd", LARGE), f"{TOO_FEW};"),
    "few bytes in a packed NRRD": (lambda folder: claiming(folder / "packed.nrrd", LARGE), f"{TOO_FEW}, which"),
    "few bytes beside a NRRD": (lambda folder: claiming(folder / "b.nhdr", LARGE), f"{TOO_FEW};"),
    "few bytes in a MetaImage": (lambda folder: claiming(folder / "b.mha", LARGE), f"{TOO_FEW};"),
    "few bytes in a packed MetaImage": (lambda folder: claiming(folder / "packed.mha", LARGE), f"{TOO_FEW}, which"),
    "few bytes beside a MetaImage": (lambda folder: claiming(folder / "b.mhd", LARGE), f"{TOO_FEW};"),
    "huge picture": (
        lambda folder: png_claiming(folder / "a.png", 30000, 30000),
        r"a\.png is too large .*900000000 pixels.*; check the file, or cut it into parts",
    ),
    "NaN": (lambda folder: with_value(folder / "a.nii.gz", np.nan), "1 NaN or infinite voxel.* of 693"),
    "infinite": (lambda folder: with_value(folder / "a.nii.gz", -np.inf), "1 NaN or infinite voxel"),
    "beyond float32": (
        lambda folder: write_nifti(folder / "a.nii.gz", lopsided_array() * 1e37),
        "NaN or infinite voxel",
    ),
    "no position": (lambda folder: nifti_without_place(folder / "a.nii"), "does not say where its voxels lie"),
    "truncated PNG": (lambda folder: cut(picture(folder / "a.png", "RGB")), "a.png cannot be read as a picture"),
    "no picture": (lambda folder: words(folder / "a.jpg", "hello"), "a.jpg cannot be read as a picture"),
    "TIFF stack": (lambda folder: two_pages(folder / "a.tif"), "holds 2 pictures; one is needed"),
    "truncated DICOM": (lambda folder: dicom_cut(folder / "series"), "is broken .*; a whole DICOM file is needed"),
    "text": (lambda folder: words(folder / "a.txt", "hello"), "found no DICOM object"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_image_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    make, message = BAD[kind]
    with pytest.raises(InputRefusedError, match=message) as refused:
        read_volume(make(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["a.nii", "a.nii.gz", "b.nrrd", "packed.nrrd", "b.nhdr", "b.mha", "packed.mha", "b.mhd"]
)
def test_a_file_of_zeros_is_read_however_well_it_is_packed(name: str, tmp_path: Path) -> None:
    shape = (160, 120, 100)
    volume = read_volume(claiming(tmp_path / name, shape, held=2 * math.prod(shape)))
    assert volume.shape == shape
    assert not volume.array.any()


_MHA = b"""ObjectType = Image
NDims = 3
BinaryData = True
CompressedData = True
CompressedDataSize = {size}
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
ElementSpacing = 1 1 1
DimSize = 11 9 7
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
_NRRD = b"""NRRD0004
type: int16
dimension: 3
space: left-posterior-superior
sizes: 11 9 7
space directions: (1,0,0) (0,1,0) (0,0,1)
endian: little
encoding: gzip
space origin: (0,0,0)

"""


def compressed(ending: str, voxels: bytes) -> tuple[bytes, bytes]:
    """The header of a file, and its voxels as a stream that holds them as they are, so that a changed byte still unpacks."""
    if ending == ".mha":
        stream = zlib.compress(voxels, 0)
        return _MHA.replace(b"{size}", str(len(stream)).encode()), stream
    if ending == ".nrrd":
        return _NRRD, gzip.compress(voxels, 0)
    header = nibabel.Nifti1Image(lopsided_array().astype(np.int16), OBLIQUE_RAS).to_bytes()[:352]
    return b"", gzip.compress(header + voxels, 0)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_compressed_voxels_are_read_to_their_checksum(ending: str, tmp_path: Path) -> None:
    voxels = lopsided_array().astype(np.int16)
    path = tmp_path / f"a{ending}"
    header, stream = compressed(ending, voxels.tobytes(order="F"))
    path.write_bytes(header + stream)
    assert np.array_equal(read_volume(path).array, voxels)
    middle = len(stream) - 400
    wrong = {
        "a voxel": stream[:middle] + bytes([stream[middle] ^ 64]) + stream[middle + 1 :],
        "the last byte of the checksum": stream[:-1],
        "the whole trailer": stream[:-8],
    }
    for name, bad in wrong.items():
        path.write_bytes(header + bad)
        with pytest.raises(InputRefusedError, match=rf"a\{ending} cannot be read as .*; copy it again"):
            pytest.fail(f"{name} is wrong, and {read_volume(path).shape} voxels were read")


def test_a_meta_image_whose_header_states_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    header, stream = compressed(".mha", lopsided_array().astype(np.int16).tobytes(order="F")[:1000])
    path.write_bytes(header + stream)
    # 11 x 9 x 7 voxels of 2 bytes
    with pytest.raises(InputRefusedError, match=r"a\.mha holds 1000 bytes of voxels, and its header says 1386"):
        read_volume(path)
    header, stream = compressed(".mha", lopsided_array().astype(np.int16).tobytes(order="F"))
    size = f"CompressedDataSize = {len(stream)}\n".encode()
    for other, message in (
        (b"", "does not state its CompressedDataSize"),
        (b"CompressedDataSize = 900\n", "end early"),
    ):
        path.write_bytes(header.replace(size, other) + stream)
        with pytest.raises(InputRefusedError, match=message):
            read_volume(path)


def test_a_series_whose_last_file_is_cut_in_its_header_is_never_read_without_it(tmp_path: Path) -> None:
    cut(write_mr_series(tmp_path / "series", lopsided_array(), oblique_affine())[-1], 0.6)
    with pytest.raises(InputRefusedError):
        read_volume(tmp_path / "series")


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Volume:
    return read_volume(write_nifti(tmp_path / "image.nii.gz", lopsided_array((8, 8, 8))))


def test_labels_on_their_images_grid_are_read_as_they_are(image: Volume, tmp_path: Path) -> None:
    labels = read_labels(write_nifti(tmp_path / "label.nii.gz", lopsided_labels((8, 8, 8))), image)
    np.testing.assert_array_equal(labels.array, lopsided_labels((8, 8, 8)))


SWAPPED = OBLIQUE_RAS[:, [1, 0, 2, 3]]
MOVED = OBLIQUE_RAS @ np.array([[1, 0, 0, 0.11], *np.eye(4)[1:]])  # along the columns, which are 1.25 mm apart
BAD_LABELS = {
    "another shape": (lopsided_labels((8, 8, 7)), OBLIQUE_RAS, r"shape \(8, 8, 7\), its image \(8, 8, 8\)"),
    "a ninth of a voxel away": (
        lopsided_labels((8, 8, 8)),
        MOVED,
        r"mm away from its image, 0\.11 voxels along one axis",
    ),
    "mirrored": (lopsided_labels((8, 8, 8)), OBLIQUE_RAS @ np.diag([-1.0, 1, 1, 1]), "mm away from its image"),
    "axes swapped on a cube": (lopsided_labels((8, 8, 8)), SWAPPED, "mm away from its image"),
    "half a class": (lopsided_labels((8, 8, 8)) / 2, OBLIQUE_RAS, r"holds 0\.5, which is no whole number"),
    "channels": (np.full((8, 8, 8, 2), 2, np.uint8), OBLIQUE_RAS, "a mask of 0 and 1 for each structure"),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_labels_that_do_not_lie_on_their_image_are_refused(kind: str, image: Volume, tmp_path: Path) -> None:
    array, affine_ras, message = BAD_LABELS[kind]
    with pytest.raises(InputRefusedError, match=message):
        read_labels(write_nifti(tmp_path / "label.nii.gz", array, affine_ras), image)


def test_a_label_that_lies_a_tenth_of_a_voxel_away_is_taken_voxel_by_voxel(image: Volume, tmp_path: Path) -> None:
    near = OBLIQUE_RAS @ np.array([[1, 0, 0, 0.09], [0, 1, 0, -0.09], *np.eye(4)[2:]])
    labels = read_labels(write_nifti(tmp_path / "label.nii.gz", lopsided_labels((8, 8, 8)), near), image)
    np.testing.assert_array_equal(labels.array, lopsided_labels((8, 8, 8)))
    np.testing.assert_array_equal(labels.affine_lps, image.affine_lps)
    longer = OBLIQUE_RAS @ np.diag([1.02, 1, 1, 1])  # 0.14 voxels at the last of 8
    with pytest.raises(InputRefusedError, match=r"0\.14 voxels along one axis; at most 0\.1"):
        read_labels(write_nifti(tmp_path / "label.nii.gz", lopsided_labels((8, 8, 8)), longer), image)


@pytest.mark.parametrize("off", [1e-7, -0.0009])
def test_label_values_a_hair_beside_whole_numbers_are_these(off: float, image: Volume, tmp_path: Path) -> None:
    stored = lopsided_labels((8, 8, 8)).astype(np.float32)
    file = write_nifti(tmp_path / "label.nii.gz", np.where(stored > 0, stored + np.float32(off), 0))
    np.testing.assert_array_equal(read_labels(file, image).array, stored)


def test_a_probability_is_no_class_and_its_value_is_told(image: Volume, tmp_path: Path) -> None:
    stored = np.zeros((8, 8, 8), np.float32)
    stored[1, 2, 3], stored[4, 5, 6] = 1, 0.99608
    with pytest.raises(InputRefusedError, match=r"label l\.nii holds 0\.99608, which is no whole number"):
        read_labels(write_nifti(tmp_path / "l.nii", stored), image)
    stored[4, 5, 6] = np.nan
    with pytest.raises(InputRefusedError, match="NaN"):
        read_labels(write_nifti(tmp_path / "l.nii", stored), image)


def test_a_label_that_is_no_dicom_or_a_broken_one_is_refused(image: Volume, tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match=r"label seg\.dcm: .*is broken \(its 5 bytes do not begin as one\)"):
        read_labels(words(tmp_path / "seg.dcm", "hello"), image)
    slices = write_mr_series(tmp_path / "series", lopsided_array(), oblique_affine())
    with pytest.raises(InputRefusedError, match="broken"):
        read_labels(cut(slices[0], 0.95), image)
    with pytest.raises(InputRefusedError, match="a segmentation is needed"):
        read_labels(slices[1], image)


def test_a_label_value_that_the_bundle_does_not_know_is_named(image: Volume) -> None:
    labels = image.with_array(lopsided_labels((8, 8, 8)) * 2.0)
    with pytest.raises(InputRefusedError, match=r"holds the value\(s\) \[4\]; the bundle has \[0, 1, 2\]"):
        check_values(labels, range(3), "label.nii.gz")
    check_values(labels, range(5), "label.nii.gz")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([0, 255], [0, 1], id="black and white"),
        pytest.param([0, 1, 255], [0, 1, 255], id="no class beside a class"),
        pytest.param([0, 1], [0, 1], id="0 and 1"),
        pytest.param([0, 1, 2], [0, 1, 2], id="class numbers"),
        pytest.param([0, 7, 255], [0, 7, 255], id="left for check_values to refuse"),
    ],
)
def test_a_pictures_label_holds_class_numbers_or_is_black_and_white(
    values: list[int], expected: list[int], tmp_path: Path
) -> None:
    pixels = np.zeros((5, 7), np.uint8)
    places = [(0, 0), (1, 6), (4, 0)][: len(values)]
    for place, value in zip(places, values, strict=True):
        pixels[place] = value
    Image.fromarray(pixels).save(tmp_path / "label.png")
    Image.fromarray(np.stack([pixels] * 3, -1)).save(tmp_path / "grey_as_colour.png")
    image = read_volume(picture_of(tmp_path / "image.png", (5, 7)))
    for name in ("label.png", "grey_as_colour.png"):
        array = read_labels(tmp_path / name, image, FileValues(white=True)).array
        assert [array[column, row, 0] for row, column in places] == expected
        assert np.count_nonzero(array) == len(values) - 1


def test_a_coloured_label_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((5, 7, 3), np.uint8)
    pixels[2, 3, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "label.png")
    with pytest.raises(InputRefusedError, match=r"label\.png is coloured; a grey picture is needed"):
        read_labels(tmp_path / "label.png", read_volume(picture_of(tmp_path / "image.png", (5, 7))))


@pytest.mark.parametrize(
    ("palette", "classes"),
    [
        pytest.param([0, 0, 0, 128, 0, 0, 0, 128, 0], [0, 1, 2], id="colours"),
        pytest.param([0, 0, 0, 90, 90, 90, 200, 200, 200], [0, 1, 2], id="grey values"),
        pytest.param([255, 255, 255, 0, 0, 0, 255, 255, 255], [255, 0, 255], id="white, black, white"),
    ],
)
@pytest.mark.parametrize("ending", ["png", "gif", "tif"])
def test_a_palettes_indices_are_classes_unless_it_is_black_and_white(
    ending: str, palette: list[int], classes: list[int], tmp_path: Path
) -> None:
    indices = np.zeros((5, 7), np.uint8)
    indices[0, 1:], indices[3, 6] = 1, 2
    stored = Image.fromarray(indices, "P")
    stored.putpalette(palette)
    stored.save(tmp_path / f"label.{ending}")
    image = read_volume(picture_of(tmp_path / "image.png", (5, 7)))
    found = read_labels(tmp_path / f"label.{ending}", image).array[:, :, 0].T
    np.testing.assert_array_equal(found, np.array(classes)[indices])


def test_a_mask_whose_numbers_are_not_what_was_drawn_is_refused(tmp_path: Path) -> None:
    drawn = np.zeros((16, 24), np.uint8)
    drawn[4:9, 5:12] = 1
    image = read_volume(picture_of(tmp_path / "image.png", (16, 24)))
    for bits in (np.uint8, np.uint16):
        tifffile.imwrite(tmp_path / "a.tif", drawn.astype(bits), photometric="miniswhite")
        with pytest.raises(
            InputRefusedError, match=r"stores white as 0 \(MINISWHITE\), as ImageJ does for black objects"
        ):
            read_labels(tmp_path / "a.tif", image)
        assert read_volume(tmp_path / "a.tif").array.max() > 1  # an image is what a screen shows
    Image.fromarray(drawn * 255).save(tmp_path / "a.jpg", quality=100)
    with pytest.raises(InputRefusedError, match="is a JPEG, which changes class numbers"):
        read_labels(tmp_path / "a.jpg", image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "deep.tif"])
def test_a_picture_is_turned_as_the_screen_shows_it(kind: str, orientation: int, tmp_path: Path) -> None:
    """The stored row 0 and column 0 are bright; where the screen shows them follows from the table of CIPA DC-008."""
    stored = np.zeros((16, 24), np.uint8)
    stored[:8], stored[:, :8] = 200, 100
    sides = {1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left",
             5: "left top", 6: "right top", 7: "right bottom", 8: "left bottom"}[orientation].split()  # fmt: skip
    path = tmp_path / f"a.{kind}"
    if kind.endswith("tif"):
        values = np.stack([stored.astype(np.uint16) * 257] * 3, -1) if kind == "deep.tif" else stored
        tag = (274, "H", 1, orientation, True)
        tifffile.imwrite(path, values, photometric="rgb" if values.ndim == 3 else "minisblack", extratags=[tag])
    else:
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(stored).save(path, exif=exif, quality=100)
    shown = read_volume(path).array.reshape((*read_volume(path).shape[:2], -1))[..., 0].T  # rows and columns
    shown = shown / (257 if kind == "deep.tif" else 1)
    assert shown.shape == ((24, 16) if orientation > 4 else (16, 24))
    strip = {"top": np.s_[1, 8:-8], "bottom": np.s_[-2, 8:-8], "left": np.s_[8:-8, 1], "right": np.s_[8:-8, -2]}
    row_0, column_0 = (shown[strip[side]] for side in sides)
    np.testing.assert_allclose(row_0, 200, atol=3)
    np.testing.assert_allclose(column_0, 100, atol=3)


DEEP: dict[str, Callable[[Path, np.ndarray], None]] = {
    "RGB PNG": lambda path, values: path.with_suffix(".png").write_bytes(imagecodecs.png_encode(values)),
    "RGB TIFF": lambda path, values: tifffile.imwrite(path.with_suffix(".tif"), values, photometric="rgb"),
    "packed TIFF by planes": lambda path, values: tifffile.imwrite(
        path.with_suffix(".tif"), np.moveaxis(values, -1, 0).copy(), photometric="rgb", planarconfig="separate",
        compression="deflate",
    ),
    "TIFF with transparency": lambda path, values: tifffile.imwrite(
        path.with_suffix(".tif"), np.concatenate([values, values[..., :1]], -1), photometric="rgb",
        extrasamples=["unassalpha"],
    ),
    "big-endian TIFF": lambda path, values: tifffile.imwrite(
        path.with_suffix(".tif"), values.astype(">u2"), photometric="rgb", byteorder=">"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DEEP)
def test_colours_keep_their_16_bits(kind: str, tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 1024, (5, 7, 3)).astype(np.uint16)
    DEEP[kind](tmp_path / "a", values)
    (file,) = tmp_path.iterdir()
    np.testing.assert_array_equal(read_volume(file).array[:, :, 0], np.swapaxes(values, 0, 1))


@pytest.mark.parametrize("dtype", [np.int8, np.uint32, np.float64, np.int16])
def test_numbers_that_pillow_wraps_or_does_not_know_are_kept(dtype: type, tmp_path: Path) -> None:
    values = np.arange(35).reshape(5, 7).astype(dtype) * dtype(3 if dtype is np.int8 else 500) - dtype(20)
    tifffile.imwrite(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").array[:, :, 0], values.T.astype(np.float32))


def test_every_channel_of_a_tiff_is_kept_and_white_is_zero_where_it_says_so(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 256, (5, 7, 5)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unspecified"] * 2)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").array[:, :, 0], np.swapaxes(values, 0, 1))
    for deep in (np.uint8, np.uint16):
        tifffile.imwrite(tmp_path / "b.tif", values[..., 0].astype(deep), photometric="miniswhite")
        np.testing.assert_array_equal(
            read_volume(tmp_path / "b.tif").array[:, :, 0].T, np.iinfo(deep).max - values[..., 0].astype(deep)
        )


def test_axes_of_length_1_and_vectors_of_itk_are_read_as_the_header_says(tmp_path: Path) -> None:
    array = lopsided_array((8, 7, 6))
    two = np.stack([array, array + 5], -1)
    for given, expected in (
        (array[:, :, 2], array[:, :, 2:3]),
        (array[:, :, 2:3], array[:, :, 2:3]),
        (array[2:3], array[2:3]),
        (array[..., None, None], array),
        (two[..., None, :], two),
    ):
        found = read_volume(write_nifti(tmp_path / "a.nii", given)).array
        np.testing.assert_array_equal(found, expected)
    series = nibabel.Nifti1Image(np.stack([array] * 9, -1)[:2], OBLIQUE_RAS)
    series.header.set_xyzt_units("mm", "sec")  # the fourth axis is time, the first two sagittal slices
    nibabel.save(series, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").array.shape == (2, 7, 6, 9)


def test_a_quaternion_that_was_rounded_beyond_1_is_one_of_length_1(tmp_path: Path) -> None:
    turn = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([1.0, 1.5, 3.0, 1.0])  # half a turn: the real part is 0
    image = nibabel.Nifti1Image(lopsided_array(), None)
    image.set_qform(turn, 1)
    image.set_sform(None, 0)
    raw = bytearray(image.to_bytes())
    vector = np.frombuffer(bytes(raw[256:268]), "<f4").astype(float)
    raw[256:268] = (vector / np.linalg.norm(vector) * np.sqrt(1 + 5e-7)).astype("<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine_ras, turn, atol=1e-5)
    raw[256:268] = (vector * 1.01).astype("<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(InputRefusedError):
        read_volume(tmp_path / "a.nii")


def test_a_file_is_packed_or_not_as_its_bytes_say(tmp_path: Path) -> None:
    plain = write_nifti(tmp_path / "a.nii", lopsided_array()).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(plain)
    (tmp_path / "c.nii").write_bytes(gzip.compress(plain))
    for name in ("b.nii.gz", "c.nii"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, lopsided_array())
    (tmp_path / "c.nii").write_bytes(gzip.compress(plain)[:-4])
    with pytest.raises(InputRefusedError, match="cannot be read as NIfTI"):
        read_volume(tmp_path / "c.nii")


def picture_of(path: Path, shape: tuple[int, int]) -> Path:
    Image.fromarray(np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)).save(path)
    return path


def test_a_message_about_dicom_never_holds_the_patients_name_or_id(tmp_path: Path) -> None:
    def nameless(dataset: object, k: int) -> None:
        if k == 2:
            del dataset.ImagePositionPatient  # type: ignore[attr-defined]

    header = {"PatientName": "Secret^Someone", "PatientID": "SECRET-7", "AccessionNumber": "SECRET-8"}
    write_mr_series(tmp_path / "s", lopsided_array(), oblique_affine(), header=header, edit=nameless)
    with pytest.raises(InputRefusedError) as refused:
        read_volume(tmp_path / "s")
    assert "secret" not in str(refused.value).lower()


def test_a_nifti_that_says_nowhere_how_it_lies_is_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(lopsided_array(), None), tmp_path / "a.nii.gz")
    with pytest.raises(InputRefusedError, match=r"neither sform nor qform \(both codes are 0\).*--directions LPS"):
        read_volume(tmp_path / "a.nii.gz")


BARE_STEPS = np.array([[0.9, 0.3, 0.1], [-0.2, 1.4, 0.2], [0.1, -0.3, 2.1]])
"""mm along the axes of a space without a name, a column for each axis of the array."""


def bare_nrrd(path: Path) -> Path:
    steps = " ".join(f"({','.join(map(str, column))})" for column in BARE_STEPS.T)
    array = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    lines = ["NRRD0004", "type: unsigned char", "dimension: 3", "space dimension: 3", "sizes: 5 4 3"]
    lines += [f"space directions: {steps}", "kinds: domain domain domain", "encoding: raw", "space origin: (7,-3,11)"]
    path.write_bytes(("\n".join(lines) + "\n\n").encode() + array.tobytes(order="F"))
    return path


@pytest.mark.parametrize(
    ("directions", "to_lps"),
    [("LPS", np.eye(3)), ("ras", np.diag([-1, -1, 1])), ("PIR", [[0, 0, -1], [1, 0, 0], [0, -1, 0]])],
)
def test_directions_that_a_file_lacks_are_those_that_are_stated_for_it(
    directions: str, to_lps: Any, tmp_path: Path
) -> None:
    """PIR: the first axis runs towards posterior, the second towards inferior, the third towards the right."""
    (tmp_path / "images").mkdir()
    file = bare_nrrd(tmp_path / "images/a.nrrd")
    with pytest.raises(InputRefusedError, match=r"--directions LPS, or \"directions\": \"LPS\" in a dataset\.json"):
        read_volume(file)
    found = read_volume(file, ReadOptions(directions=directions))
    np.testing.assert_allclose(found.affine_lps[:3, :3], np.array(to_lps) @ BARE_STEPS, atol=1e-6)
    np.testing.assert_allclose(found.affine_lps[:3, 3], np.array(to_lps) @ [7, -3, 11], atol=1e-6)
    assert found.provenance.notes == (f"its axes run towards {directions}, as was stated beside the file",)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {}, "directions": directions}))
    np.testing.assert_array_equal(read_volume(file).affine_lps, found.affine_lps)
    nifti = nibabel.Nifti1Image(lopsided_array(), None)
    nifti.header.set_zooms((0.5, 2.0, 3.0))
    nibabel.save(nifti, tmp_path / "images/b.nii.gz")
    bare = read_volume(tmp_path / "images/b.nii.gz")
    np.testing.assert_allclose(bare.affine_lps[:3, :3], np.array(to_lps) @ np.diag([0.5, 2.0, 3.0]), atol=1e-6)


def test_directions_that_are_none_are_refused_and_those_of_a_file_count(tmp_path: Path) -> None:
    for wrong in ("LPX", "LRS", "LP"):
        with pytest.raises(InputRefusedError, match=f"'{wrong}' are not three directions"):
            read_volume(bare_nrrd(tmp_path / "a.nrrd"), ReadOptions(directions=wrong))
    affine = LPS_FROM_RAS @ oblique_affine()
    nibabel.save(nibabel.Nifti1Image(lopsided_array(), affine), tmp_path / "b.nii.gz")
    found = read_volume(tmp_path / "b.nii.gz", ReadOptions(directions="PIR"))
    np.testing.assert_allclose(found.affine_ras, affine, atol=1e-5)
    assert found.provenance.notes == ("the directions PIR are not used, since the source states its own",)


@pytest.mark.parametrize(
    ("unit", "mm"), [("mm", 1), ("um", 1e-3), ("µm", 1e-3), ("microns", 1e-3), ("Millimeters", 1), ("cm", 10)]
)
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_lengths_are_in_the_unit_that_the_header_states(ending: str, unit: str, mm: float, tmp_path: Path) -> None:
    """`space units` of NRRD and DistanceUnits of MetaIO; ITK takes every length for mm."""
    path, voxels = tmp_path / f"a{ending}", lopsided_array().astype(np.int16)
    header, stream = compressed(ending, voxels.tobytes(order="F"))
    told = {".nrrd": (b"space origin: (0,0,0)", f'space origin: (3,5,7)\nspace units: "{unit}" "{unit}" "{unit}"'.encode()),
            ".mha": (b"Offset = 0 0 0", f"Offset = 3 5 7\nDistanceUnits = {unit}".encode())}  # fmt: skip
    assert told[ending][0] in header
    path.write_bytes(header.replace(*told[ending]) + stream)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine_lps[:3], mm * np.c_[np.eye(3), [3, 5, 7]])
    assert len(volume.provenance.notes) == (mm != 1)
    path.write_bytes(header.replace(*told[ending]).replace(unit.encode(), b"ell", 1) + stream)
    with pytest.raises(
        InputRefusedError, match=r"has lengths in '.*; one unit for all axes, such as mm or um, is needed"
    ):
        read_volume(path)


def test_a_meta_image_says_its_modality(tmp_path: Path) -> None:
    header, stream = compressed(".mha", lopsided_array().astype(np.int16).tobytes(order="F"))
    (tmp_path / "a.mha").write_bytes(
        header.replace(b"ElementDataFile", b"Modality = MET_MOD_CT\nElementDataFile") + stream
    )
    assert read_volume(tmp_path / "a.mha").provenance.modality == "CT"


@pytest.mark.parametrize("says", ["axis 0 index type:=numeric", "modality:=DWMRI"])
def test_time_points_and_gradients_of_a_nrrd_are_no_channels(says: str, tmp_path: Path) -> None:
    voxels = np.zeros((2, 11, 9, 7), np.int16)
    header = _NRRD.replace(b"dimension: 3", b"dimension: 4").replace(b"sizes: 11", b"sizes: 2 11")
    header = header.replace(b"directions: (1", b"directions: none (1").replace(
        b"endian", b"kinds: list domain domain domain\nendian"
    )
    (tmp_path / "a.nrrd").write_bytes(header[:-1] + says.encode() + b"\n\n" + gzip.compress(voxels.tobytes(order="F")))
    with pytest.raises(InputRefusedError, match="holds 2 time points or gradients, which are not channels"):
        read_volume(tmp_path / "a.nrrd")


def nifti(
    path: Path, shape: tuple[int, ...] = (5, 4, 3), *, sform: Any = None, qform: Any = None, **header: Any
) -> Path:
    image = nibabel.Nifti1Image(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), None)
    for key, value in header.items():
        image.header[key] = value
    image.set_qform(qform, 1 if qform is not None else 0, update_affine=True)
    image.set_sform(sform, 2 if sform is not None else 0, update_affine=True)
    if "pixdim" in header:
        image.header["pixdim"] = header["pixdim"]
    nibabel.save(image, path)
    return path


def test_a_nifti_states_one_size_and_one_direction_of_its_voxels(tmp_path: Path) -> None:
    """Direction cosines alone in the sform, an affine map to a template, and a scan that was turned in one form only."""
    path, scaled = tmp_path / "a.nii", np.diag([0.8, 0.8, 0.8, 1])
    for sform, sizes in ((np.eye(4), "1 x 1 x 1"), (np.diag([0.96, 0.96, 0.96, 1]), "0.96 x 0.96 x 0.96")):
        with pytest.raises(
            InputRefusedError, match=f"voxels of {sizes} mm by its sform and of 0.8 x 0.8 x 0.8 mm by its pixdim"
        ):
            read_volume(nifti(path, sform=sform, pixdim=[1, 0.8, 0.8, 0.8, 0, 0, 0, 0]))
    with pytest.raises(InputRefusedError, match="whose axes run in opposite directions"):
        read_volume(nifti(path, sform=scaled, qform=scaled @ np.diag([-1, -1, 1, 1])))
    tilted = scaled @ affine_of_turn(20)
    np.testing.assert_allclose(read_volume(nifti(path, sform=tilted, qform=scaled)).affine_ras, tilted, atol=1e-6)


def affine_of_turn(degrees: float) -> np.ndarray:
    """About the first axis."""
    turn = np.eye(4)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[1:3, 1:3] = [[cosine, -sine], [sine, cosine]]
    return turn


def test_time_points_of_a_nifti_are_no_channels(tmp_path: Path) -> None:
    """ITK writes channels with seconds and a step of 1."""
    step = [1, 1, 1, 1, 2, 0, 0, 0]
    with pytest.raises(InputRefusedError, match="holds 2 time points, 2 sec apart, which are not channels"):
        read_volume(nifti(tmp_path / "a.nii", (5, 4, 3, 2), sform=np.eye(4), xyzt_units=10, pixdim=step))
    step[4] = 1
    assert (
        read_volume(nifti(tmp_path / "a.nii", (5, 4, 3, 2), sform=np.eye(4), xyzt_units=10, pixdim=step)).array.ndim
        == 4
    )
    with pytest.raises(InputRefusedError, match="states the units 5, which NIfTI does not have"):
        read_volume(nifti(tmp_path / "a.nii", sform=np.eye(4), xyzt_units=5))


def test_two_forms_that_are_mirror_images_of_each_other_are_refused(tmp_path: Path) -> None:
    affine = LPS_FROM_RAS @ oblique_affine()
    image = nibabel.Nifti1Image(lopsided_array(), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine @ np.diag([-1, 1, 1, 1]), 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(InputRefusedError, match="a sform and a qform whose axes run in opposite directions"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_mask_with_transparent_pixels_is_refused_and_an_image_is_not(mode: str, tmp_path: Path) -> None:
    values = np.full((6, 9, len(mode)), 255, np.uint8)
    Image.fromarray(values, mode).save(tmp_path / "whole.png")
    assert (read_picture(tmp_path / "whole.png", classes=True).array == 255).all()
    values[:, 4:, -1] = 0
    Image.fromarray(values, mode).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").shape == (9, 6, 1)
    with pytest.raises(InputRefusedError, match="a mask with transparent pixels"):
        read_picture(tmp_path / "a.png", classes=True)


def test_values_that_float32_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    array = lopsided_array().astype(np.int64)
    for offset, fits in ((0, True), (2**24, True), (2**61, False)):
        nibabel.save(nibabel.Nifti1Image(array + offset, np.eye(4), dtype=np.int64), tmp_path / "a.nii")
        if fits:
            assert np.ptp(read_volume(tmp_path / "a.nii").array) == np.ptp(array)
        else:
            with pytest.raises(InputRefusedError, match="too little for float32 to distinguish them"):
                read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("slopes", [None, [0.37] * 24], ids=["as stored", "rescaled"])
def test_a_series_is_read_in_little_more_memory_than_its_voxels(slopes, tmp_path: Path, monkeypatch) -> None:
    stored = np.random.default_rng(2).integers(0, 4000, (512, 384, 24), np.uint16)
    intercepts = None if slopes is None else [-1024.0] * 24
    write_mr_series(tmp_path, stored, oblique_affine(), slopes=slopes, intercepts=intercepts)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # each thread holds a slice, here a large part of the volume
    tracemalloc.start()
    try:
        volume = read_volume(tmp_path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert volume.array.dtype == np.float32
    if slopes is None:
        assert np.array_equal(volume.array, stored)
    assert most < 1.2 * volume.array.nbytes


@pytest.mark.parametrize(("unit", "length"), [("mm", 1.0), ("unknown", 1.0), ("meter", 1e-3), ("micron", 1e3)])
def test_a_nifti_in_another_unit_lies_where_it_lies(unit: str, length: float, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(lopsided_array(), np.diag([length] * 3 + [1.0]) @ OBLIQUE_RAS)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(volume.affine_ras, OBLIQUE_RAS, rtol=1e-5, atol=1e-5)
    assert bool(volume.provenance.notes) == (unit in ("meter", "micron"))
