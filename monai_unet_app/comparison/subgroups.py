"""The scores of an evaluation by groups of people, for groups that are large enough, and whether the groups differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.bootstrap import Bootstrap, Estimate, bootstrap_mean, finite_or_none
from monai_unet_app.metrics.score_registry import SCORES
from monai_unet_app.report.stored_evaluation import MEAN, CaseTable, read_cases

from .attributes import NOT_GIVEN, Attributes, Grouping, groupings
from .differences import CALIBRATION_ERRORS
from .rank_tests import RankTest, holm, rank_groups, rank_test_entry, subject_means

FEWEST = 5  # subjects of a group whose scores are shown
_COMPARED = [score for score in SCORES if score.better]


@dataclass(frozen=True)
class Group:
    """One group of an attribute.

    Attributes:
        name: The group; "(not given)" for cases whose attribute is unknown.
        subjects: Number of people in it.
        cases: Number of cases.
        scores: Score -> mean with interval by subject; None if fewer subjects than the guard asks for have the score.
    """

    name: str
    subjects: int
    cases: int
    scores: Mapping[str, Estimate | None]


@dataclass(frozen=True)
class Subgroup:
    """All groups of one attribute.

    Attributes:
        attribute: Its name.
        groups: The groups in their order; "(not given)" is the last, if it has cases.
        tests: Score -> Kruskal-Wallis test between the groups that pass the guard, without "(not given)".
    """

    attribute: str
    groups: tuple[Group, ...]
    tests: Mapping[str, RankTest]


@dataclass(frozen=True)
class Subgroups:
    """An evaluation by subgroups.

    Attributes:
        class_name: The class whose scores these are, or "mean".
        fewest: The guard: groups with fewer subjects get no figures.
        how: How the intervals were drawn.
        attributes: An entry for each attribute.
    """

    class_name: str
    fewest: int
    how: Bootstrap
    attributes: tuple[Subgroup, ...]

    def as_dict(self) -> dict[str, Any]:
        """The content of subgroups.json; `subgroups.schema.json` explains each entry."""
        return {
            "schema_version": "1.0",
            "class": self.class_name,
            "fewest_subjects": self.fewest,
            "interval": self.how.document(),
            "attributes": [
                {
                    "attribute": part.attribute,
                    "groups": [_group_entry(group) for group in part.groups],
                    "tests": {score: rank_test_entry(test) for score, test in part.tests.items()},
                }
                for part in self.attributes
            ],
        }


def subgroups(
    cases_csv: Path,
    attributes: Attributes,
    *,
    edges: Mapping[str, Sequence[float]] | None = None,
    fewest: int = FEWEST,
    class_name: str = MEAN,
    how: Bootstrap | None = None,
) -> Subgroups:
    """The scores of an evaluation for each group of each attribute.

    Args:
        cases_csv: The file that `evaluate` wrote.
        attributes: Of the cases or their subjects, as `read_attributes` or `dicom_attributes` give them.
        edges: As in `groupings`.
        fewest: The guard. Smaller groups are named with their number of subjects and get no figures, since few people are
            easily recognised, and their mean says little.
        class_name: A class, or "mean" over classes (top label, for calibration errors).
        how: Seed, resamples and level of the intervals.

    Raises:
        InputRefusedError: cases.csv cannot be used, or the attributes know none of its cases.
        UsageError: As `groupings`.
    """
    table, how = read_cases(cases_csv), how or Bootstrap()
    scores = {column: table.values(column, class_name) for column in _scores(table)}
    if not scores:
        names = [score.name for score in _COMPARED]
        raise InputRefusedError(
            f"{cases_csv} has none of the scores {', '.join([*names, *CALIBRATION_ERRORS])}; evaluate again"
        )
    parts = [_subgroup(grouping, table, scores, fewest, how) for grouping in groupings(attributes, table, edges or {})]
    adjusted = holm({f"{part.attribute} {score}": test.p for part in parts for score, test in part.tests.items()})
    tested = [
        replace(
            part, tests={s: replace(test, p_holm=adjusted[f"{part.attribute} {s}"]) for s, test in part.tests.items()}
        )
        for part in parts
    ]
    return Subgroups(class_name, fewest, how, tuple(tested))


def _scores(table: CaseTable) -> list[str]:
    """The columns of cases.csv that are compared between groups; lengths carry their unit."""
    known = {*CALIBRATION_ERRORS, *(key for score in _COMPARED for key in score.keys)}
    return [column for column in table.columns if column in known]


def _subgroup(
    grouping: Grouping, table: CaseTable, scores: Mapping[str, Mapping[str, float]], fewest: int, how: Bootstrap
) -> Subgroup:
    members = {
        group: [case for case in table.subjects if grouping.of_case[case] == group]
        for group in (*grouping.groups, NOT_GIVEN)
    }
    groups = list[Group]()
    for group, cases in members.items():
        if not cases:
            continue
        subjects = [table.subjects[case] for case in cases]
        estimates = {
            score: bootstrap_mean([values[case] for case in cases], subjects, how) for score, values in scores.items()
        }
        # The subjects that have this score are counted: in a large group few may have a defined distance.
        guarded = {score: estimate if estimate.subjects >= fewest else None for score, estimate in estimates.items()}
        groups.append(Group(group, len(set(subjects)), len(cases), guarded))
    return Subgroup(
        grouping.name,
        tuple(groups),
        {
            score: _test(values, [members[group] for group in grouping.groups], table, fewest)
            for score, values in scores.items()
        },
    )


def _test(values: Mapping[str, float], groups: Sequence[Sequence[str]], table: CaseTable, fewest: int) -> RankTest:
    """Kruskal-Wallis over the groups with enough subjects; no test where a subject is in two of them."""
    means = [
        subject_means([values[case] for case in cases], [table.subjects[case] for case in cases]) for cases in groups
    ]
    enough = [by_subject for by_subject in means if len(by_subject) >= fewest]
    subjects = [subject for by_subject in enough for subject in by_subject]
    if len(set(subjects)) < len(subjects):  # the test needs independent values
        return RankTest(reason="a subject is in several groups; groups of different subjects are needed")
    return rank_groups([list(by_subject.values()) for by_subject in enough])


def _group_entry(group: Group) -> dict[str, Any]:
    return {
        "group": group.name,
        "subjects": group.subjects,
        "cases": group.cases,
        "scores": {
            score: None if estimate is None else _estimate_entry(estimate) for score, estimate in group.scores.items()
        },
    }


def _estimate_entry(estimate: Estimate) -> dict[str, Any]:
    return {
        "mean": finite_or_none(estimate.value),
        "interval": estimate.interval,
        "subjects": estimate.subjects,
        "cases": estimate.cases,
    }
