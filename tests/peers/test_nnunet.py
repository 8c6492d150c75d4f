"""nnU-Net's own check of the folders that we write for it, in every form that they have."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from small_data import numbered_discs, tilted_volumes

from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.labels import FileValues
from monai_unet_app.data.nnunet_folder import NnunetConfig, write_nnunet_folder

peer = pytest.importorskip("nnunetv2.experiment_planning.verify_dataset_integrity")


def sheared(folder: Path) -> Path:
    data = tilted_volumes(folder)
    for file in folder.rglob("*.nii.gz"):
        image = nibabel.load(file)
        affine = image.affine.copy()
        affine[:3, 2] += 0.3 * affine[:3, 1]
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), file)
    return data


def with_channels(folder: Path) -> Path:
    data = tilted_volumes(folder)
    for file in folder.rglob("imagesTr/*.nii.gz"):
        image = nibabel.load(file)
        both = np.stack([image.get_fdata(), 2 * image.get_fdata()], -1).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(both, image.affine), file)
    return data


@pytest.mark.parametrize("make", [tilted_volumes, sheared, with_channels, numbered_discs])
def test_nnunet_finds_nothing_wrong(make, tmp_path, capfd):
    output = tmp_path / "Dataset123_Phantom"
    said = {"structures": ("disc",), "values": FileValues(objects=True)} if make is numbered_discs else {}
    write_nnunet_folder(find_data(make(tmp_path / "source")), NnunetConfig(output, **said))
    peer.verify_dataset_integrity(str(output), 1)
    said = capfd.readouterr().out
    assert "verify_dataset_integrity Done" in said
    assert "Error" not in said
    assert "Warning" not in said
