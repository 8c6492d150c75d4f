"""Small lopsided sources of every kind that a picture-like result can be made from, and labels on them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

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

from dicom_io import capture
from dicom_io.objects.drawing import FramedPicture
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.source_images import labelled
from dicom_io.read import read_series
from dicom_io.volume import Volume

DX_IMAGE = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1",
    "Modality": "DX",
    "PresentationIntentType": "FOR PRESENTATION",
}
NAMES = {
    "utf-8": ("ISO_IR 192", "Müller^Jörg=美^麗"),
    "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
}


def oblique_mr(folder: Path, header: Mapping[str, object] | None = None) -> Volume:
    """A classic MR series, oblique, without windows; values as `lopsided_array`."""
    write_mr_series(folder, lopsided_array(), oblique_affine(), header=header)
    return read_series(folder)


def tilted_ct(folder: Path, header: Mapping[str, object] | None = None) -> Volume:
    """A classic CT series with gantry tilt, rescale 1 and -1000, window 300 wide about -850."""
    window = {"WindowCenter": -850, "WindowWidth": 300}
    write_mr_series(
        folder, lopsided_array(), tilted_affine(), header=CT_IMAGE | window | dict(header or {}),
        slopes=[1.0] * 7, intercepts=[-1000.0] * 7,
    )  # fmt: skip
    return read_series(folder)


def enhanced_mr(folder: Path, header: Mapping[str, object] | None = None) -> Volume:
    """One multi-frame object whose frames run against the positions: slice k is frame 7 - k."""
    return read_series(_enhanced(folder, header))


def enhanced_mr_in_parts(folder: Path, header: Mapping[str, object] | None = None) -> Volume:
    """The same as a concatenation of three objects, with 4, 1 and 2 frames."""
    return read_series(split_frames(_enhanced(folder, header), 4, 1, 2))


def _enhanced(folder: Path, header: Mapping[str, object] | None) -> Path:
    def edit(dataset: Dataset, _: int) -> None:
        for keyword, value in (header or {}).items():
            setattr(dataset, keyword, value)

    return write_enhanced_mr(folder / "enhanced.dcm", lopsided_array(), oblique_affine(), edit=edit)


def radiograph(folder: Path, header: Mapping[str, object] | None = None) -> Volume:
    """A DX picture without patient space, MONOCHROME1, 12 bits, pixels 0.3 mm wide and 0.2 mm high."""
    own = {
        "BitsStored": 12,
        "HighBit": 11,
        "PhotometricInterpretation": "MONOCHROME1",
        "PatientOrientation": ["L", "F"],
    }
    own |= {"PixelSpacing": [0.2, 0.3], "WindowCenter": 800, "WindowWidth": 1200, "FrameOfReferenceUID": None}
    return read_series(write_picture(folder / "dx.dcm", stored_radiograph(), DX_IMAGE | own | dict(header or {})))


def stored_radiograph() -> np.ndarray:
    """Shape (20, 15): stored values of the radiograph, 100 to about 1700."""
    i, j = np.indices((20, 15))
    return (100 + 61 * i + 29 * j).astype(np.uint16)


def colour_picture(folder: Path, header: Mapping[str, object] | None = None) -> Volume:
    """An RGB picture of 20 x 15 pixels without patient space."""
    i, j = np.indices((20, 15))
    array = np.stack([10 * i, 12 * j, 200 - 5 * i], axis=-1).astype(np.uint8)
    return read_series(write_picture(folder / "rgb.dcm", array, header))


def resampled_mr(folder: Path) -> Volume:
    """A classic MR without its slice 3, which the reader fills on request: 7 slices of voxels, 6 instances."""
    write_mr_series(folder, lopsided_array(), oblique_affine(), drop=[3])
    return read_series(folder, resample_gaps=True)


PLACED: dict[str, Callable[..., Volume]] = {
    "MR": oblique_mr,
    "CT": tilted_ct,
    "enhanced MR": enhanced_mr,
    "enhanced MR in parts": enhanced_mr_in_parts,
}
AFFINES = dict.fromkeys(PLACED, oblique_affine()) | {"CT": tilted_affine()}
ALL = PLACED | {"DX": radiograph, "RGB": colour_picture}


def kept_source(factory: pytest.TempPathFactory, kind: str) -> Volume:
    """A source of a kind, written and read once in a process: for tests that do not change it."""
    return _kept_source(kind, factory.getbasetemp() / "sources" / kind)


@cache
def _kept_source(kind: str, folder: Path) -> Volume:
    return ALL[kind](folder)


def frame_of(kind: str, k: int) -> int | None:
    """The frame, from 1, that slice k of a source of this kind is of the object that holds it; None for one without frames."""
    return {"enhanced MR": 7 - k, "enhanced MR in parts": (2, 1, 1, 4, 3, 2, 1)[k]}.get(kind)


def lopsided(source: Volume) -> Volume:
    """Label 1: a block of 4 x 5 pixels with a hole of one; label 2: a block of 2 x 3 in the last slice alone, where
    label 1 is absent if there is another slice.
    """
    array = np.zeros(source.shape, dtype=np.uint8)
    array[2:6, 3:8, : max(1, source.shape[2] - 1)] = 1
    array[3, 4] = 0
    array[7:9, 2:5, -1] = 2
    return source.with_array(array)


def drawn_capture(
    labels: Volume, source: Volume, k: int, result: ResultInfo, style: capture.CaptureStyle
) -> FramedPicture:
    """The capture of slice k as a picture, with its place in the frame."""
    return capture._draw(capture._scene(*labelled(labels, source, result), result, style), k)


def source_file(source: Volume, k: int) -> pydicom.FileDataset:
    """The file that holds slice k."""
    wanted = source.provenance.sop_instance_uids[k]
    (path,) = [path for path in source.provenance.files if _uid(path) == wanted]
    return pydicom.dcmread(path)


def _uid(path: Path) -> str:
    return str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"], stop_before_pixels=True).SOPInstanceUID)


def raw_name(path: Path) -> bytes:
    """PatientName as its bytes stand in the file."""
    return bytes(pydicom.dcmread(path).get_item("PatientName").value)


def run_program(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of dcmtk; the test is skipped where it is not installed."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} (dcmtk) is not installed")
    return subprocess.run([name, *arguments], capture_output=True, text=True, check=False)
