"""Cases of a program that this project did not make: image, true labels, and labels that are some percent too small."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from fake_segmenter import segmented
from numpy.typing import NDArray
from once import made_once
from phantoms import oblique_affine
from scipy import ndimage

from dicom_io.volume import LPS_FROM_RAS

SHAPE, VALUES = (30, 26, 22), {3: "liver", 7: "spleen"}
AFFINE_RAS = LPS_FROM_RAS @ oblique_affine((1.1, 0.9, 1.3))
NAMED = [word for value, name in VALUES.items() for word in ("--structure", f"{value}={name}")]
PROGRAM = [sys.executable, str(Path(__file__).with_name("fake_segmenter.py"))]
BY = ("--algorithm", "Segmenter 1.0")
SUBJECTS = 24


def case(seed: int) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8]]:
    """Image, true labels and those of a program, whose masks are some percent too small; label values of VALUES."""
    random = np.random.default_rng(seed)
    places = np.indices(SHAPE).transpose(1, 2, 3, 0)
    truth = np.zeros(SHAPE, np.uint8)
    for value, middle, radii in ((3, (11, 12, 11), (6, 7, 5)), (7, (21, 15, 9), (4, 4, 5))):
        away = (places - middle - random.uniform(-1, 1, 3)) / (np.array(radii) * random.uniform(0.92, 1.08))
        truth[((away**2).sum(-1) < 1) & (truth == 0)] = value
    image = np.select([truth == 3, truth == 7], [300.0, 420.0], 120.0) + places @ (1.0, 2.0, -1.0)
    image = ndimage.gaussian_filter(image, 0.7) + random.normal(0, 12, SHAPE)
    wobble = ndimage.gaussian_filter(random.normal(0, 1, SHAPE), 2) * 12  # of some tenths of a voxel
    made = np.zeros_like(truth)
    for value in VALUES:
        depth = ndimage.distance_transform_edt(truth == value) - ndimage.distance_transform_edt(truth != value)
        made[depth + wobble > 1.0] = value
    return image.astype(np.int16), truth, made


def write_cases(root: Path, seeds: Iterable[int]) -> Path:
    """images, labels and results of these people."""
    for seed in seeds:
        for folder, array in zip(("images", "labels", "results"), case(seed), strict=True):
            (root / folder).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, AFFINE_RAS), root / f"{folder}/case{seed:02}.nii.gz")
    return root


def program_bundle_once(factory: pytest.TempPathFactory) -> Path:
    """As `program_bundle`, made once for all tests; whoever changes it copies it before."""
    return made_once(factory, "program_bundle", program_bundle) / "segmenter"


def program_bundle(root: Path) -> Path:
    """A bundle of `kind: external` that starts `fake_segmenter.py`, fitted to its results of 24 people."""
    from monai_unet_app.cli import main

    for seed in range(24):
        image, truth, _ = case(seed)
        for folder, array in (("images", image), ("labels", truth), ("results", segmented(image))):
            (root / folder).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, AFFINE_RAS), root / f"{folder}/case{seed:02}.nii.gz")
    files = [word for name in ("results", "labels", "images") for word in (f"--{name}", str(root / name))]
    assert main(["calibrate", *files, *BY, *NAMED, "--unseen", "--output", str(root / "model")]) == 0
    started, version = (shlex.join([*PROGRAM, *more]) for more in (("{image}", "{output}"), ("--version",)))
    words = ["--command", started, "--version-command", version]
    limits = ["--time", "60s", "--memory", "4GB", "--disk", "50MB"]
    assert main(["bundle", "external", str(root / "model"), *words, *limits, "--output", str(root / "segmenter")]) == 0
    return root / "segmenter"
