"""A result holds its voxels once, whatever the number of its structures."""

from __future__ import annotations

import tracemalloc
from typing import Literal

import numpy as np
import pytest
from pydicom.sr.codedict import codes

from dicom_io import boxes
from dicom_io.boxes import values_in
from dicom_io.coding import Segment
from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume


def crossing(shape: tuple[int, int, int], count: int) -> np.ndarray:
    """Label n at two voxels near opposite corners, so that the box of every label is nearly the whole grid."""
    labels = np.zeros(shape, np.uint8)
    for number in range(1, count + 1):
        labels[0, number, 0] = labels[-1, -number, -1] = number
    return labels


def segments(count: int) -> tuple[Segment, ...]:
    """Segments numbered from 1."""
    kind = codes.SCT.AnatomicalStructure, codes.SCT.Brain
    return tuple(Segment(number, f"part {number}", *kind) for number in range(1, count + 1))


@pytest.mark.parametrize("exclusive", [True, False])
def test_structures_of_many_labels_hold_no_masks(exclusive: bool) -> None:
    labels = crossing((40, 50, 60), 40)
    if not exclusive:
        labels = np.stack([labels == number for number in range(1, 41)]).astype(np.uint8)
    segmentation = Segmentation(Volume(np.zeros((40, 50, 60), np.uint8), np.eye(4)), labels, segments(40))
    tracemalloc.start()
    try:
        sizes = [structure.voxels for structure in segmentation.structures]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sizes == [2] * 40
    assert peak < 3 * 40 * 50 * 60


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("exclusive", [True, False])
def test_the_mask_of_a_structure_is_its_voxels_in_its_box(exclusive: bool, order: Literal["C", "F"]) -> None:
    labels = crossing((4, 7, 5), 2)
    labels[1:3, 3, 2] = 2
    masks = [labels == number for number in (1, 2, 3)]
    held = np.array(labels if exclusive else np.stack(masks), np.uint8, order=order)
    image = Volume(np.zeros(labels.shape, np.uint8), np.eye(4))
    structures = Segmentation(image, held, segments(3)).structures
    assert structures[1].mask.shape == (4, 4, 5)
    for structure, mask in zip(structures, masks, strict=True):
        np.testing.assert_array_equal(structure.mask, mask[structure.box])
        np.testing.assert_array_equal(structure.mask_on_grid, mask)
    assert structures[2].voxels == 0
    assert structures[0].box_with(structures[2]) == structures[0].box
    assert structures[2].mask_in(structures[2].box_with(structures[2])).tolist() == [[[False]]]


def test_the_box_of_two_structures_holds_both() -> None:
    labels = np.zeros((9, 8, 7), np.uint8)
    labels[1:3, 4, 6], labels[2:7, 1:3, 0] = 1, 2
    first, second = Segmentation(Volume(labels, np.eye(4)), labels, segments(2)).structures
    assert first.box_with(second) == second.box_with(first) == (slice(1, 7), slice(1, 5), slice(0, 7))
    assert np.array_equal(second.mask_in((slice(0, 4), slice(2, 5), slice(0, 7))), labels[:4, 2:5] == 2)


@pytest.mark.parametrize("voxels", [1, 100, 1 << 22])
def test_values_in_a_mask_are_those_of_the_mask_in_their_order(voxels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "_SLAB_VOXELS", voxels)
    rng = np.random.default_rng(2)
    values, mask = rng.normal(size=(9, 11, 7)).astype(np.float32), rng.random((9, 11, 7)) > 0.7
    np.testing.assert_array_equal(values_in(values, mask), values[mask])
    box = slice(2, 8), slice(3, 5), slice(0, 7)
    np.testing.assert_array_equal(values_in(values, mask[box], box), values[box][mask[box]])
    assert values_in(values, np.zeros((0, 0, 0), bool), (slice(0, 0),) * 3).size == 0
