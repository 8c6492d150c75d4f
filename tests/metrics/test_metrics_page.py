"""docs/metrics.md names every figure of an evaluation, and the versions that were compared with."""

import numpy as np
import pytest
from conftest import REPOSITORY

from monai_unet_app.metrics.case_scores import CaseArrays
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.summary import Evaluation

PAGE = (REPOSITORY / "docs/metrics.md").read_text()
PINS = [
    line.split("==") for line in (REPOSITORY / "tests/peers/requirements.txt").read_text().splitlines() if "==" in line
]


def test_every_figure_of_a_summary_is_on_the_page():
    labels = np.zeros((2, 12, 11, 10), np.uint8)
    labels[0, 2:6, 3:8, 2:7] = labels[1, 3:7, 3:8, 2:7] = 1
    p = np.where(np.arange(2).reshape(2, 1, 1, 1) == labels[1], 0.9, 0.1).astype(np.float32)
    evaluation = Evaluation(EvaluationPlan(("Box",), centreline=True))
    evaluation.add(CaseArrays("a", "s", labels[0], labels[1], p, (1.0, 1.0, 1.0), 0.001))
    summary = evaluation.summary()
    whole = summary["calibration"]["whole"]
    names = {key.removesuffix("_mm").removesuffix("_ml") for key in summary} - {"calibration"}
    figures = {*names, *summary["components"], *summary["calibration"], *whole["top_label"], "brier", "nll"}
    assert {"dice", "hd95", "missed", "band_2mm", "ace_equal_mass"} <= figures
    assert [figure for figure in sorted(figures) if f"`{figure}`" not in PAGE] == []


@pytest.mark.parametrize(("package", "version"), PINS, ids=[name for name, _ in PINS])
def test_a_package_is_compared_with_at_the_version_that_the_page_names(package, version):
    assert f"### {package} {version} (`tests/peers/test_{package.replace('-', '_')}.py`)" in PAGE
