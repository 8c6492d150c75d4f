"""What `benchmarks/memory.py` measures, and what it measures with: a CT series and a bundle, in small sizes here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from dicom_io.read import read_series
from monai_unet_app.bundle import load_bundle
from monai_unet_app.pipeline import Case, segment_case

sys.path.append(str(REPOSITORY / "benchmarks"))

from full_size import Scale, ct_series, full_size_bundle, phantom_hu
from measuring import measured

SMALL = Scale(classes=12, size=48, slices=36, window=16, filters=(4, 4, 4, 4))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("small")
    bundle = load_bundle(full_size_bundle(folder / "bundle", SMALL))
    return segment_case(ct_series(folder / "series", SMALL), bundle)


def test_an_oblique_series_holds_the_phantom_in_hounsfield_units_where_it_belongs(tmp_path: Path) -> None:
    volume = read_series(ct_series(tmp_path / "series", SMALL, oblique=True))
    assert volume.array.shape == (48, 48, 36)
    np.testing.assert_allclose(np.linalg.norm(volume.affine_lps[:3, :3], axis=0), 1, atol=1e-6)
    assert 0.001 < abs(volume.affine_lps[2, 0]) < 0.2
    axes = [(np.arange(n) + 0.5) / n for n in volume.array.shape]
    noise = volume.array - phantom_hu(*axes)
    assert abs(noise.mean()) < 0.5
    assert 11 < noise.std() < 13


def test_the_bundle_answers_with_regions_of_most_classes(case: Case) -> None:
    labels = case.segmentation.label_volume.array
    sizes = np.bincount(labels.ravel(), minlength=SMALL.classes)
    assert 0.4 < sizes[0] / labels.size < 0.85
    assert (sizes > 0).sum() >= 9
    assert np.mean([(np.diff(labels.astype(int), axis=axis) == 0).mean() for axis in range(3)]) > 0.75


def test_every_statement_is_made_and_belongs_to_the_bundle(case: Case) -> None:
    assert case.assessment is not None
    assert not case.assessment.confidence.why_not
    assert case.assessment.verdict in ("accept", "review")


def fills(megabytes: int) -> list[str]:
    """A process whose child has so much memory for a moment."""
    code = f"import time; one = bytearray({megabytes} * 2**20); time.sleep(0.3)"
    return [
        sys.executable,
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{code}'], check=True)",
    ]


def test_the_peak_counts_the_children_of_a_process() -> None:
    one = measured("filled", fills(150), argparse.Namespace(under="watch", most_gb=1), None, {})
    assert one.done
    assert 150 * 2**20 < one.peak < 200 * 2**20


def test_a_process_above_the_limit_is_ended() -> None:
    one = measured("filled", fills(400), argparse.Namespace(under="watch", most_gb=0.2), None, {})
    assert one.over
    assert not one.done
