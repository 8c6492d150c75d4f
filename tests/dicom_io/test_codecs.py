"""Compressed pixels against the uncompressed original and against other decoders."""

from __future__ import annotations

import base64
import json
import re
import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from phantoms import lopsided_array, oblique_affine, write_mr_series, write_picture
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.uid import (
    HTJ2K,
    UID,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicom_io.errors import UnreadableFileError
from dicom_io.read import read_series
from dicom_io.reading.codecs import decoder_of
from dicom_io.reading.codestreams import codestream_header


def htj2k(values: np.ndarray) -> bytes:
    return imagecodecs.htj2k_encode(values, reversible=True)


def lossless_jpeg(values: np.ndarray) -> bytes:
    return imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=16)


ENCODERS = {
    JPEG2000Lossless: lambda values: imagecodecs.jpeg2k_encode(values, codecformat="j2k", reversible=True),
    HTJ2KLossless: htj2k,
    HTJ2K: htj2k,
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEGLosslessSV1: lossless_jpeg,
    JPEGLossless: lossless_jpeg,
}


def compressed(encode, syntax: UID):
    """An edit of a phantom's slice: its pixels encoded, whatever their sign, as unsigned 16-bit patterns."""

    def edit(dataset: Dataset, k: int) -> None:
        values = np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)
        signed_j2k = dataset.PixelRepresentation and syntax in (JPEG2000Lossless,)
        content = encode(np.ascontiguousarray(values.view("<i2") if signed_j2k else values))
        dataset.PixelData = encapsulate([content + b"\0" * (len(content) % 2)])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True

    return edit


def rewrite_syntax(folder: Path, syntax: UID) -> None:
    for path in folder.iterdir():
        dataset = dcmread(path)
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)


@pytest.mark.parametrize("offset", [0, 40000], ids=["unsigned", "upper half"])
@pytest.mark.parametrize("syntax", ENCODERS, ids=lambda syntax: UID(syntax).keyword)
def test_lossless_codecs_give_the_very_values(tmp_path: Path, syntax: UID, offset: int) -> None:
    array = (lopsided_array((16, 12, 5)).astype(np.int64) + offset).astype(np.uint16)
    write_mr_series(tmp_path, array, oblique_affine(), edit=compressed(ENCODERS[syntax], syntax))
    rewrite_syntax(tmp_path, syntax)
    np.testing.assert_array_equal(read_series(tmp_path).array, array)


@pytest.mark.parametrize(
    "syntax", [JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1], ids=lambda uid: UID(uid).keyword
)
def test_signed_values_of_twelve_bits_keep_their_sign(tmp_path: Path, syntax: UID) -> None:
    array = lopsided_array((16, 12, 5)) - np.int16(300)

    def twelve_bits(dataset: Dataset, k: int) -> None:
        compressed(ENCODERS[syntax], syntax)(dataset, k)
        dataset.BitsStored, dataset.HighBit = 12, 11

    write_mr_series(tmp_path, array, oblique_affine(), edit=twelve_bits)
    rewrite_syntax(tmp_path, syntax)
    np.testing.assert_array_equal(read_series(tmp_path).array, array)


def test_real_compressed_files_decode_as_pydicom_decodes_them(shared_data: Path) -> None:
    files = sorted((shared_data / "dicom_series" / "dicom2nifti_small" / "generic").rglob("*.dcm"))
    files += [shared_data / "hostile" / "pydicom" / name for name in ("J2K_pixelrep_mismatch.dcm", "MR_small_RLE.dcm")]
    files += sorted((shared_data / "hostile" / "pydicom").glob("MR_small_j*.dcm"))
    compared = 0
    for path in files:
        dataset = dcmread(path)
        syntax = dataset.file_meta.TransferSyntaxUID
        if not syntax.is_compressed or syntax in (JPEGLosslessSV1, JPEGLossless):
            continue  # pydicom alone has no decoder of lossless JPEG
        ours = decoder_of(syntax).as_array(dataset, index=0)[0]
        np.testing.assert_array_equal(ours, pixel_array(dataset, index=0), err_msg=path.name)
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        truth = (pixel_array(dataset, index=0).astype(np.float64) * slope + intercept).astype(np.float32)
        if dataset.SamplesPerPixel == 1 and dataset.PhotometricInterpretation == "MONOCHROME2":
            np.testing.assert_array_equal(read_series(path).array[:, :, 0].T, truth, err_msg=path.name)
        compared += 1
    assert compared > 10


BY_DCMTK = json.loads(Path(__file__).with_name("jpeg_by_dcmtk.json").read_text())["pictures"]


def jpeg_picture(path: Path, picture: dict) -> Path:
    """A picture whose pixels are a codestream of dcmtk."""
    values, bits = np.array(picture["values"]), picture["bits_stored"]
    dataset = dcmread(write_picture(path, values.swapaxes(0, 1).astype(np.uint8 if bits == 8 else np.uint16)))
    dataset.PhotometricInterpretation = picture["photometric_interpretation"]
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    content = base64.b64decode(picture["codestream"])
    dataset.PixelData = encapsulate([content + b"\0" * (len(content) % 2)])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = UID(picture["transfer_syntax"])
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("number", range(len(BY_DCMTK)))
def test_extended_and_retired_progressive_jpeg_gives_the_values_of_dcmtk(tmp_path: Path, number: int) -> None:
    picture = BY_DCMTK[number]
    volume = read_series(jpeg_picture(tmp_path / "picture.dcm", picture))
    np.testing.assert_array_equal(volume.array[:, :, 0].swapaxes(0, 1), picture["values"])


@pytest.mark.parametrize("number", [52, 54, 56, *range(58, 67)])
def test_other_retired_jpeg_is_refused_by_name(tmp_path: Path, number: int) -> None:
    syntax = UID(f"1.2.840.10008.1.2.4.{number}")
    path = jpeg_picture(tmp_path / "picture.dcm", BY_DCMTK[0] | {"transfer_syntax": syntax})
    with pytest.raises(UnreadableFileError, match=re.escape(f"is encoded as {syntax.name}; there is no decoder")):
        read_series(path)


def claimed(content: bytearray) -> tuple[int, int] | None:
    claim = codestream_header(bytes(content))
    return claim and (claim.rows, claim.columns)


def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    values = np.zeros((12, 16), np.uint16)
    for syntax, encode in ENCODERS.items():
        content = bytearray(encode(values))
        assert claimed(content) == (12, 16), syntax.name
        claim_size(content, 60000, 60001)
        assert claimed(content) == (60000, 60001), syntax.name
        path = write_picture(tmp_path / f"{syntax.keyword}.dcm", values.T)
        dataset = dcmread(path)
        dataset.PixelData = encapsulate([bytes(content) + b"\0" * (len(content) % 2)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)
        with pytest.raises(UnreadableFileError, match=r"60000 x 60001 pixels, the header 12 x 16"):
            read_series(path)


def claim_size(content: bytearray, rows: int, columns: int) -> None:
    """Writes another size into the header of a codestream."""
    at = content.find(b"\xff\x4f\xff\x51")
    if at >= 0:
        content[at + 8 : at + 16] = struct.pack(">LL", columns, rows)
        return
    at = next(n for n in range(len(content)) if content[n] == 0xFF and content[n + 1] in (0xC3, 0xF7))
    content[at + 5 : at + 9] = struct.pack(">HH", rows, columns)


def test_a_transfer_syntax_without_a_decoder_is_refused_by_its_name(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "video.dcm", np.zeros((4, 4), np.uint8))
    dataset = dcmread(path)
    dataset.PixelData = encapsulate([b"\0" * 32])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")
    dataset.save_as(path)
    with pytest.raises(UnreadableFileError, match=r"MPEG-4 .*no decoder for it here"):
        read_series(path)


def test_run_lengths_decode(tmp_path: Path) -> None:
    path = write_mr_series(tmp_path, lopsided_array((16, 12, 1)), oblique_affine())[0]
    dataset = dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_series(path).array, lopsided_array((16, 12, 1)))
