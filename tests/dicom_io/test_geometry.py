"""The geometry gate against positions computed by hand; every fault by its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from phantoms import oblique_affine, tilted_affine

from dicom_io.errors import SeriesGeometryError
from dicom_io.reading.geometry import ImagePlane, angle_degrees, even_grid, same_positions, slice_order

Planes = list[ImagePlane]


def planes_of(affine_lps: np.ndarray, count: int = 8, decimals: int = 9) -> Planes:
    """Planes of a grid, as a scanner would write them: position, unit directions, row spacing first."""
    between_columns, between_rows = np.linalg.norm(affine_lps[:3, :2], axis=0)
    cosines = (*(affine_lps[:3, 0] / between_columns), *(affine_lps[:3, 1] / between_rows))
    positions = [np.round(affine_lps[:3, 3] + k * affine_lps[:3, 2], decimals) for k in range(count)]
    return [ImagePlane(tuple(p), cosines, (between_rows, between_columns), (19, 23)) for p in positions]


def moved(planes: Planes, k: int, offset: np.ndarray) -> Planes:
    changed = list(planes)
    changed[k] = replace(planes[k], position=tuple(np.array(planes[k].position) + offset))
    return changed


def test_row_spacing_moves_along_the_column_direction_and_column_spacing_along_the_row() -> None:
    # rows run to +y, columns to -z, so the normal is y x (-z) = -x; rows lie 2 mm apart, columns 3 mm
    planes = [ImagePlane((x, 20, 30), (0, 1, 0, 0, 0, -1), (2, 3), (4, 5)) for x in (10, 5, 7.5)]
    grid = even_grid(planes)
    np.testing.assert_allclose(
        grid.affine_lps, [[0, 0, -2.5, 10], [3, 0, 0, 20], [0, -2, 0, 30], [0, 0, 0, 1]], atol=1e-12
    )
    assert grid.order == (0, 2, 1)
    assert grid.shear_degrees == 0


def test_shuffled_planes_of_an_oblique_stack_give_the_affine_back() -> None:
    planes = planes_of(oblique_affine())
    shuffled = [planes[k] for k in (5, 0, 7, 2, 1, 6, 4, 3)]
    grid = even_grid(shuffled)
    np.testing.assert_allclose(grid.affine_lps, oblique_affine(), atol=1e-8)
    assert [shuffled[index] for index in grid.order] == planes
    assert slice_order(shuffled) == grid.order


def test_every_five_points_of_a_slice_lie_on_the_grid() -> None:
    grid = even_grid(planes_of(oblique_affine()))
    for k, plane in enumerate(planes_of(oblique_affine())):
        corner_and_middle = grid.affine_lps @ np.array([[22, 18, k, 1], [11, 9, k, 1]]).T
        np.testing.assert_allclose(plane.five_points[3:], corner_and_middle.T[:, :3], atol=1e-8)


def test_an_even_gantry_tilt_is_a_sheared_grid_with_its_angle() -> None:
    grid = even_grid(planes_of(tilted_affine(20.0)))
    np.testing.assert_allclose(grid.affine_lps, tilted_affine(20.0), atol=1e-8)
    assert grid.shear_degrees == pytest.approx(20.0, abs=1e-6)


def test_positions_rounded_to_a_hundredth_of_a_millimetre_pass_and_stay_within_it() -> None:
    grid = even_grid(planes_of(oblique_affine(), count=40, decimals=2))
    exact = oblique_affine() @ np.array([22, 18, 39, 1])
    assert np.linalg.norm(grid.affine_lps @ np.array([22, 18, 39, 1]) - exact) < 0.01 * np.sqrt(3)


def test_a_single_plane_steps_along_its_normal() -> None:
    grid = even_grid(planes_of(oblique_affine(), count=1), single_step_mm=2.5)
    np.testing.assert_allclose(grid.affine_lps, oblique_affine(), atol=1e-8)


def test_planes_at_one_position_are_found_as_groups() -> None:
    planes = planes_of(oblique_affine(), count=3)
    assert same_positions([*planes, planes[1], planes[1], planes[0]]) == [(0, 5), (1, 3, 4)]
    assert same_positions(planes) == []


def test_a_tiny_angle_does_not_drown_in_rounding() -> None:
    assert angle_degrees(np.array([1.0, 0, 0]), np.array([1.0, 1e-9, 0])) == pytest.approx(np.degrees(1e-9))


def _missing(planes: Planes) -> Planes:
    return planes[:3] + planes[5:]


def _uneven(planes: Planes) -> Planes:
    return moved(planes, 7, planes[0].normal * 1.3)


def _duplicate(planes: Planes) -> Planes:
    return [*planes, planes[2]]


def _small_slice(planes: Planes) -> Planes:
    return [*planes[:-1], replace(planes[-1], shape=(19, 24))]


def _other_spacing(planes: Planes) -> Planes:
    return [*planes[:-1], replace(planes[-1], pixel_spacing=(0.75, 1.3))]


def _turned(planes: Planes) -> Planes:
    row, column = planes[0].orientation[:3], planes[0].orientation[3:]
    return [*planes[:-1], replace(planes[-1], orientation=(*column, *row))]


def _wandering(planes: Planes) -> Planes:
    turn = np.radians(0.3)
    row, column = np.array(planes[0].orientation).reshape(2, 3)
    turned = np.cos(turn) * row + np.sin(turn) * column, np.cos(turn) * column - np.sin(turn) * row
    return [*planes[:-1], replace(planes[-1], orientation=(*turned[0], *turned[1]))]


def _drifting(planes: Planes) -> Planes:
    """Each gap within 0.08 mm of the usual one, the middle 0.24 mm from where it belongs."""
    for k in range(len(planes)):
        planes = moved(planes, k, planes[0].normal * 0.08 * min(k, 7 - k))
    return planes


def _sideways(planes: Planes) -> Planes:
    return moved(planes, 4, np.array(planes[0].orientation[:3]) * 0.4)


def _long_cosines(planes: Planes) -> Planes:
    return [replace(plane, orientation=tuple(1.1 * np.array(plane.orientation))) for plane in planes]


def _no_number(planes: Planes) -> Planes:
    return moved(planes, 0, np.array([np.nan, 0, 0]))


def _no_spacing(planes: Planes) -> Planes:
    return [replace(plane, pixel_spacing=(0.0, 1.0)) for plane in planes]


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (_missing, "lacks 2 of 8 slices, .* between slices 3 and 4 .7.50 mm, .* usual gap is 2.50 mm"),
        (_uneven, r"slice gaps from 2.50 to 3.80 mm \(1 of 7 differ from the usual 2.50 mm\)"),
        (_duplicate, "up to 2 slices at one position, at 1 positions"),
        (_small_slice, "19x23, 19x24 pixels"),
        (_other_spacing, r"from \(0.75, 1.25\) to \(0.75, 1.3\) mm"),
        (_turned, "1 of 8 slices are turned by up to 90.0 degrees"),
        (_wandering, r"a corner of slice 8 of 8 lies 0\.1\d mm off the grid"),
        (_drifting, r"slice gaps from 2.42 to 2.58 mm \(6 of 7"),
        (_sideways, "slice 5 of 8 lies 0.00 mm along the normal and 0.40 mm sideways"),
        (_long_cosines, "lengths 1.1000 and 1.1000 at 90.00 degrees"),
        (_no_number, "nan"),
        (_no_spacing, r"spacing \(0, 1\) mm"),
    ],
)
@pytest.mark.parametrize("affine_lps", [oblique_affine(), oblique_affine(degrees=(0, 0, 0))])
def test_a_fault_is_refused_with_its_numbers_and_a_way_out(
    fault: Callable[[Planes], Planes], text: str, affine_lps: np.ndarray
) -> None:
    with pytest.raises(SeriesGeometryError, match=text) as refusal:
        even_grid(fault(planes_of(affine_lps)), "series 1.2.3")
    found, needed, advice = str(refusal.value).split("; ")
    assert found.startswith("series 1.2.3")
    assert "needed" in needed
    assert advice
