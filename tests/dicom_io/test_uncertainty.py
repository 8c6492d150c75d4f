"""Entropy of probabilities against closed forms."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from dicom_io.segmentation import normalised_entropy


def test_entropy_of_exclusive_classes_is_0_where_one_is_sure_and_1_where_all_are_alike() -> None:
    p = np.array([[1.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.0]], np.float32)[:, :, None, None]
    found = normalised_entropy(p, exclusive=True)
    assert (found.shape, found.dtype) == ((3, 1, 1), np.float32)
    assert found[:, 0, 0] == pytest.approx([0.0, 1.0, np.log(2) / np.log(3)], abs=1e-6)


def test_entropy_of_overlapping_structures_is_that_of_the_most_undecided() -> None:
    p = np.array([[0.5, 1.0, 0.25], [0.0, 0.0, 1.0]], np.float32)[:, :, None, None]
    found = normalised_entropy(p, exclusive=False)
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert found[:, 0, 0] == pytest.approx([1.0, 0.0, quarter], abs=1e-6)


@pytest.mark.parametrize("exclusive", [True, False])
def test_entropy_of_many_channels_takes_less_memory_than_they_do(exclusive: bool) -> None:
    p = np.random.default_rng(0).random((60, 20, 16, 14), dtype=np.float32)
    p /= p.sum(axis=0)
    tracemalloc.start()
    found = normalised_entropy(p, exclusive=exclusive)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < p.nbytes / 4
    q = p.astype(np.float64)
    each = -(q * np.log(q)), -(q * np.log(q) + (1 - q) * np.log(1 - q)) / np.log(2)
    assert found == pytest.approx(each[0].sum(axis=0) / np.log(60) if exclusive else each[1].max(axis=0), abs=1e-6)
