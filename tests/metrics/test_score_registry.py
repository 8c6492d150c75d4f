"""The table of scores holds together: every score is read, named, explained and allowed by the schema."""

import dataclasses
import json

import pytest
from conftest import REPOSITORY

from monai_unet_app.data.schemas import schema
from monai_unet_app.metrics.case_scores import ClassScores
from monai_unet_app.metrics.components import ComponentScores
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.score_registry import (
    COMPONENT_SCORES,
    SCORES,
    column_readers,
    key_of,
    scores_of,
)

NO_ENTRY = {"name", "surface_dice_at", "truth_size", "predicted_size", "components", "absent"}


def schema_pattern():
    """The pattern of `metrics.schema.json` that the keys of all scores match, and no other name."""
    units = {"length": "mm|px", "size": "ml|px"}
    names = (f"{score.name}_({units[score.unit]})" if score.unit else score.name for score in SCORES)
    return f"^({'|'.join(names)})$"


def test_the_schema_allows_the_keys_of_all_scores_and_no_others():
    patterns = list(schema("metrics")["patternProperties"])
    line = f"    {json.dumps(schema_pattern())}: {{"
    assert patterns == [schema_pattern()], f"write this line in patternProperties of metrics.schema.json:\n{line}"


def test_every_field_of_a_class_has_an_entry_and_every_entry_a_field():
    fields = {field.name for field in dataclasses.fields(ClassScores)}
    computed = {name for name, value in vars(ClassScores).items() if isinstance(value, property)}
    assert {score.name for score in SCORES} == (fields | computed) - NO_ENTRY
    counted = {field.name for field in dataclasses.fields(ComponentScores)} | set(vars(ComponentScores))
    assert {score.name for score in COMPONENT_SCORES} <= counted


def test_every_name_is_there_once_and_every_table_has_a_heading():
    assert len({score.name for score in SCORES}) == len(SCORES)
    assert all(bool(score.column) == bool(score.table) for score in (*SCORES, *COMPONENT_SCORES))


@pytest.mark.parametrize("planar", [False, True])
def test_a_key_is_the_name_with_the_unit(planar):
    plan = EvaluationPlan(("Box",), planar=planar, centreline=True)
    assert key_of("hd95", plan) == ("hd95_px" if planar else "hd95_mm")
    assert key_of("size_difference", plan) == ("size_difference_px" if planar else "size_difference_ml")
    assert key_of("dice", plan) == "dice"
    assert [score.name for score in scores_of(plan).values()] == [score.name for score in SCORES]
    assert {key.rpartition("_")[2] for key, score in scores_of(plan).items() if score.unit == "length"} == {
        plan.units.length
    }
    assert set(scores_of(plan)) < set(column_readers(plan))


def test_a_score_that_has_to_be_asked_for_is_not_taken_otherwise():
    assert "centreline_dice" not in scores_of(EvaluationPlan(("Box",)))
    assert "centreline_dice" in scores_of(EvaluationPlan(("Box",), centreline=True))


def test_the_page_on_metrics_says_how_to_add_one():
    page = (REPOSITORY / "docs/metrics.md").read_text()
    assert "## To add a metric" in page
    assert "score_registry.py" in page
