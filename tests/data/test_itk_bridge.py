"""Images go to the package itk and come back with values and place, and ITK alone reads a series where we do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from phantoms import lopsided_array, oblique_affine, tilted_affine, write_mr_series
from pydicom import dcmread

from dicom_io.read import read_series
from dicom_io.volume import Provenance, Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.data.itk_bridge import check_by_itk, itk_from_volume, read_by_itk, volume_from_itk
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.pipeline import segment_case

itk = pytest.importorskip("itk")


def test_an_itk_image_has_every_voxel_where_the_volume_has_it() -> None:
    volume = Volume(lopsided_array(), oblique_affine())
    image = itk_from_volume(volume)
    for index in ((0, 0, 0), (10, 0, 3), (2, 8, 6), (10, 8, 6)):
        expected = (volume.affine_lps @ (*index, 1))[:3]
        np.testing.assert_allclose(list(image.TransformIndexToPhysicalPoint(index)), expected, atol=1e-9)
        assert image.GetPixel(index) == volume.array[index]


def test_a_volume_comes_back_from_itk_as_it_went() -> None:
    for array in (lopsided_array(), np.stack([lopsided_array(), 2 * lopsided_array()], axis=-1).astype(np.float32)):
        volume = Volume(array, oblique_affine())
        back = volume_from_itk(itk_from_volume(volume))
        np.testing.assert_array_equal(back.array, array)
        np.testing.assert_allclose(back.affine_lps, volume.affine_lps, atol=1e-9)
        assert back.array.dtype == array.dtype


def test_what_an_itk_filter_cuts_out_keeps_its_place() -> None:
    volume = Volume(lopsided_array(), oblique_affine())
    cropped = itk.crop_image_filter(
        itk_from_volume(volume), lower_boundary_crop_size=[2, 1, 3], upper_boundary_crop_size=[1, 2, 0]
    )
    back = volume_from_itk(cropped)
    np.testing.assert_array_equal(back.array, volume.array[2:-1, 1:-2, 3:])
    np.testing.assert_allclose(back.affine_lps[:3, 3], (volume.affine_lps @ (2, 1, 3, 1))[:3], atol=1e-9)


def test_what_itk_cannot_hold_is_refused() -> None:
    with pytest.raises(InputRefusedError, match="sheared"):
        itk_from_volume(Volume(lopsided_array(), tilted_affine()))
    with pytest.raises(InputRefusedError, match="no position in the patient"):
        itk_from_volume(Volume(np.zeros((4, 5, 1)), np.eye(4), Provenance("image"), planar=True))
    with pytest.raises(InputRefusedError, match="2 dimensions"):
        volume_from_itk(itk.image_from_array(np.zeros((4, 5), np.float32)))


def test_itk_reads_an_oblique_series_where_we_do(tmp_path: Path) -> None:
    for number, degrees in enumerate([(0, 0, 0), (90, 0, 0), (0, 90, 0), (180, 0, 0), (12, -23, 37)]):
        folder = tmp_path / str(number)
        write_mr_series(folder, lopsided_array(), oblique_affine(degrees=degrees))
        assert check_by_itk(read_series(folder)) == 0


def test_a_series_that_was_moved_after_reading_is_noticed_by_itk(tmp_path: Path) -> None:
    write_mr_series(tmp_path, lopsided_array(), oblique_affine())
    volume = read_series(tmp_path)
    for path in tmp_path.glob("*.dcm"):
        one = dcmread(path)
        one.ImagePositionPatient = [value + 0.5 for value in one.ImagePositionPatient]
        one.save_as(path)
    with pytest.raises(InputRefusedError, match="ITK reads the series at another position"):
        check_by_itk(volume)


def test_files_that_itk_takes_for_another_series_are_refused(tmp_path: Path) -> None:
    write_mr_series(tmp_path, lopsided_array(), oblique_affine())
    files = sorted(tmp_path.glob("*.dcm"))
    with pytest.raises(InputRefusedError, match="ITK finds series of 7 files where our reader has 6"):
        read_by_itk(files[:-1])


def test_real_series_lie_where_itk_has_them(shared_data: Path) -> None:
    folder = shared_data / "dicom_series/mr_ge_oblique_t1post/Study1/13_HCropVolume"
    assert check_by_itk(read_series(folder)) == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
def test_an_itk_image_is_segmented_and_the_labels_lie_on_it() -> None:
    path = REPOSITORY / "examples/msd_hippocampus/images/hippocampus_035.nii.gz"
    bundle = load_bundle("hippocampus_mri_unet3d")
    image = itk.imread(str(path), itk.F)
    from_itk = segment_case(volume_from_itk(image), bundle)
    labels = itk_from_volume(from_itk.segmentation.label_volume)
    np.testing.assert_allclose(list(labels.GetOrigin()), list(image.GetOrigin()))
    from_file = segment_case(read_volume(path), bundle)
    np.testing.assert_array_equal(
        from_itk.segmentation.label_volume.on_grid_of(from_file.image).array, from_file.segmentation.labels
    )
