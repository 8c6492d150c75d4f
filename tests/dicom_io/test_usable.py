"""Series as archives hold them are read; results lie on their slices."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hazard_truth import fault
from pydicom.sr.codedict import codes
from usable_series import USABLE, Usable

from dicom_io import Segment, prove_rtstruct, prove_seg, read_series, write_parametric_map, write_rtstruct, write_seg
from dicom_io.objects.identity import ResultInfo
from dicom_io.parametric import NO_UNIT, PROBABILITY, MapMeaning

RESULT = ResultInfo((Segment(1, "Part", codes.SCT.AnatomicalStructure, codes.SCT.Liver),), "network", "1", "0" * 64)


def test_there_are_three_or_more_of_each_clause() -> None:
    assert len(USABLE) >= 40
    assert min(Counter(one.clause for one in USABLE).values()) >= 3


ELSEWHERE = ("jitter", "rounded to 0.1 mm")
"""Clauses whose series lie each at other places; those of the others lie where the phantom lies."""


def results_of(one: Usable) -> tuple[str, ...]:
    """What is written on a series: a SEG on each, and on those that lie alike contours and a map in turns, so that each pair of
    a clause and a kind of result is there.
    """
    number = [other.name for other in USABLE if other.clause == one.clause].index(one.name)
    return ("contours", "map") if one.clause in ELSEWHERE else (("contours", "map")[number % 2],)


def test_each_clause_has_each_kind_of_result() -> None:
    pairs = {(one.clause, kind) for one in USABLE for kind in results_of(one)}
    assert pairs == set(product({one.clause for one in USABLE}, ("contours", "map")))


@pytest.mark.parametrize("one", USABLE, ids=lambda one: f"{one.clause}: {one.name}")
def test_a_usable_series_is_read_and_gives_results_that_lie_right(tmp_path: Path, one: Usable) -> None:
    one.build(tmp_path / "series")
    volume = read_series(tmp_path / "series", **one.options)
    assert volume.provenance.resampled == one.repaired
    if not one.repaired:
        assert fault((volume.array, volume.affine_lps), one.truth) == ""
    array = np.zeros(volume.shape, np.uint8)
    array[2:6, 3:8, 1:-1] = 1
    labels = volume.with_array(array)
    seg = write_seg(labels, volume, tmp_path / "seg.dcm", RESULT)
    prove_seg(seg, labels, volume, RESULT.segments)
    if "contours" in results_of(one):
        rtstruct = write_rtstruct(labels, volume, tmp_path / "rtstruct.dcm", RESULT)
        prove_rtstruct(rtstruct, labels, volume, RESULT.segments)
    if "map" in results_of(one):
        values = volume.with_array(array / np.float32(2))
        write_parametric_map(values, volume, tmp_path / "map.dcm", RESULT, MapMeaning(PROBABILITY, NO_UNIT, "P"))
