"""The committed plan of who trains and who tests, and the rule that made it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import EXAMPLES, REPOSITORY

from monai_unet_app.data.case_files import CaseFiles
from monai_unet_app.data.cases import plan_of
from monai_unet_app.data.schemas import validate
from monai_unet_app.data.splits import SHARES, SplitCase, make_split, read_nnunet_folds, read_splits
from monai_unet_app.errors import InputRefusedError

COMMITTED = REPOSITORY / "examples" / "splits.json"
DOCUMENT = json.loads(COMMITTED.read_text())


def cases_of(name: str) -> list[SplitCase]:
    return [SplitCase(**row) for row in DOCUMENT["datasets"][name]["cases"]]


def test_committed_plan_obeys_its_schema() -> None:
    validate(DOCUMENT, "splits")


def test_committed_plan_covers_185_crops_of_116_subjects_and_20_photographs_of_10_children() -> None:
    crops, photographs = cases_of("msd_hippocampus"), cases_of("chase_db1")
    assert (len(crops), len({case.subject for case in crops})) == (185, 116)
    assert (len(photographs), len({case.subject for case in photographs})) == (20, 10)


@pytest.mark.parametrize("name", ["msd_hippocampus", "chase_db1"])
@pytest.mark.parametrize("line", ["partition", "fold"])
def test_no_subject_of_the_committed_plan_stands_on_two_sides_of_a_line(name: str, line: str) -> None:
    sides: dict[str, set[object]] = {}
    for case in cases_of(name):
        sides.setdefault(case.subject, set()).add(getattr(case, line))
    assert all(len(found) == 1 for found in sides.values())


def test_neighbouring_hippocampi_2k_minus_1_and_2k_are_one_subject_and_no_others_are() -> None:
    for case in cases_of("msd_hippocampus"):
        number = int(case.id.removeprefix("hippocampus_"))
        assert int(case.subject) == (number + 1) // 2, case.id


def test_both_eyes_of_a_child_are_one_subject() -> None:
    for case in cases_of("chase_db1"):
        child = re.fullmatch(r"Image_(\d\d)[LR]", case.id)
        assert child is not None
        assert child[1] in case.subject


def test_every_partition_and_each_of_five_folds_has_cases_in_about_its_share() -> None:
    cases = cases_of("msd_hippocampus")
    subjects = {case.subject: case for case in cases}
    counted = Counter(case.partition for case in subjects.values())
    assert {part: round(counted[part] / len(subjects), 2) for part in SHARES} == pytest.approx(SHARES, abs=0.02)
    folds = Counter(case.fold for case in subjects.values())
    assert sorted(folds) == [0, 1, 2, 3, 4]
    assert max(folds.values()) - min(folds.values()) <= 1


def test_every_example_case_has_its_place_in_the_plan_and_every_partition_has_examples() -> None:
    plan = read_splits(COMMITTED)
    ids = [file.name.removesuffix(".nii.gz") for file in sorted((EXAMPLES / "images").glob("*.nii.gz"))]
    labels = [file.name.removesuffix(".nii.gz") for file in sorted((EXAMPLES / "labels").glob("*.nii.gz"))]
    assert ids == labels
    assert len(ids) > 50
    assert {plan[name].partition for name in ids} == set(SHARES)


def test_both_hippocampi_of_an_example_subject_travel_together() -> None:
    plan = read_splits(COMMITTED)
    ids = {file.name.removesuffix(".nii.gz") for file in (EXAMPLES / "images").glob("*.nii.gz")}
    subjects = {plan[name].subject for name in ids}
    assert {case.id for case in cases_of("msd_hippocampus") if case.subject in subjects} == ids


@pytest.mark.parametrize("name", ["msd_hippocampus", "chase_db1"])
def test_committed_plan_is_what_make_split_makes(name: str) -> None:
    cases = cases_of(name)
    assert make_split(name, {case.id: case.subject for case in cases}) == cases


def test_make_split_does_not_depend_on_the_order_of_cases_or_on_pythons_hash_seed() -> None:
    program = (
        "from monai_unet_app.data.splits import make_split;"
        "ids = {f'case_{n}': f'person_{n // 2}' for n in %s};"
        "print([(c.id, c.partition, c.fold) for c in make_split('set', ids)])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program % order],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed, order in (("1", "range(40)"), ("2", "reversed(range(40))"))
    }  # fmt: skip
    assert len(answers) == 1


def test_make_split_keeps_subjects_together_and_fills_every_partition_from_four_subjects_on() -> None:
    for people in (4, 7, 23):
        cases = make_split("any", {f"{person}{side}": str(person) for person in range(people) for side in "LR"})
        assert len(cases) == 2 * people
        assert len({(case.subject, case.partition, case.fold) for case in cases}) == people
        assert {case.partition for case in cases} == set(SHARES)


def test_three_subjects_are_refused() -> None:
    with pytest.raises(InputRefusedError, match=r"3 subject\(s\) found; at least 4 are needed"):
        make_split("any", {"a": "1", "b": "2", "c": "3", "d": "3"})


def test_a_written_plan_reads_back_the_same(tmp_path: Path) -> None:
    cases = make_split("any", {f"case {n}": f"person {n // 2}" for n in range(12)})
    document = {"schema_version": "1.0", "datasets": {"any": {"cases": [asdict(case) for case in cases]}}}
    (tmp_path / "splits.json").write_text(json.dumps(document))
    assert list(read_splits(tmp_path / "splits.json").values()) == cases


ROW = {"id": "a", "subject": "1", "partition": "train", "fold": 0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, ROW], "case a occurs twice"),
        ([ROW, {**ROW, "id": "b", "partition": "test"}], "set: subject 1 is in train and in test"),
        ([{**ROW, "partition": "validation"}], "validation"),
        ([{**ROW, "fold": -1}], "-1"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused_with_the_value(rows: list, message: str, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"schema_version": "1.0", "datasets": {"set": {"cases": rows}}}))
    with pytest.raises(InputRefusedError, match=message):
        read_splits(path)


def test_a_plan_that_is_absent_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match=r"none\.json"):
        read_splits(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text('{"schema_version": ')
    with pytest.raises(InputRefusedError, match=r"broken\.json"):
        read_splits(tmp_path / "broken.json")


NAMES = ("a", "b", "c", "d", "e")


def raw_folder(root: Path) -> list[CaseFiles]:
    """Five cases of nnU-Net's raw folder Dataset001_X; their files are not looked at."""
    images = root / "nnUNet_raw/Dataset001_X/imagesTr"
    images.mkdir(parents=True)
    return [CaseFiles(name, images / f"{name}_0000.nii.gz") for name in NAMES]


def nnunet_folds(*vals: str) -> list[dict[str, list[str]]]:
    """nnU-Net's folds: each validates the cases whose letters it has, and trains on all others."""
    return [{"train": [name for name in NAMES if name not in val], "val": list(val)} for val in vals]


@pytest.mark.parametrize("place", ["nnUNet_raw", "nnUNet_preprocessed", "elsewhere"])
def test_the_folds_of_nnunet_are_found_beside_its_data_or_given(tmp_path: Path, place: str) -> None:
    cases = raw_folder(tmp_path)
    file = tmp_path / place / "Dataset001_X/splits_final.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(nnunet_folds("be", "a", "cd")))
    plan = plan_of(cases, file if place == "elsewhere" else None)
    assert {name: entry.fold for name, entry in plan.items()} == {"a": 1, "b": 0, "c": 2, "d": 2, "e": 0}
    assert {entry.partition for entry in plan.values()} == {"train"}


BAD_FOLDS = {
    "no val": (nnunet_folds("be", "a", "c"), "d is in val of no fold and in train of fold 0, 1, 2"),
    "several vals": (nnunet_folds("be", "ab", "cd"), "b is in val of fold 0, 1 and in train of fold 2"),
    "trained and validated": (
        [{"train": ["a", "b", "c"], "val": ["a", "d", "e"]}, {"train": ["d", "e"], "val": ["b", "c"]}],
        "a is in val of fold 0 and in train of fold 0",
    ),
    "another form": ([{"train": ["a"]}], "cannot be read as a list of folds"),
    "many folds": (nnunet_folds(*"abcde", *[""] * 6), "has 11 folds; at most 10"),
}


@pytest.mark.parametrize(("folds", "words"), BAD_FOLDS.values(), ids=BAD_FOLDS)
def test_folds_of_nnunet_that_cannot_be_ours_are_refused_by_name(
    tmp_path: Path, folds: list[dict[str, list[str]]], words: str
) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(InputRefusedError, match=re.escape(words)):
        plan_of(raw_folder(tmp_path), tmp_path / "splits_final.json")


def test_a_subject_in_two_folds_of_nnunet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps(nnunet_folds("ab", "c", "de")))
    together = {"a": "p1", "b": "p1", "c": "p2", "d": "p3", "e": "p3"}
    assert read_nnunet_folds(tmp_path / "splits_final.json", together)["e"].subject == "p3"
    with pytest.raises(InputRefusedError, match="subject p1 is in fold 0 and, with case c, in fold 1"):
        read_nnunet_folds(tmp_path / "splits_final.json", together | {"c": "p1"})


def test_a_plan_with_umlauts_is_read_whatever_encoding_the_machine_has(tmp_path: Path) -> None:
    row = {"id": "Müller_1", "subject": "Müller", "partition": "test", "fold": 0}
    plan = tmp_path / "splits.json"
    plan.write_bytes(
        json.dumps({"schema_version": "1.0", "datasets": {"a": {"cases": [row]}}}, ensure_ascii=False).encode()
    )
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    words = "from pathlib import Path; from monai_unet_app.data.splits import read_splits"
    done = subprocess.run(
        [sys.executable, "-c", f"{words}; print(ascii([*read_splits(Path({str(plan)!r}))]))"],
        env=os.environ | ascii_only, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (ascii(["Müller_1"]) + "\n", "")
