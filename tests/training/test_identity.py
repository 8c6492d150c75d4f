"""A trained copy of a bundle says nothing that its template said of itself."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import BUNDLES, SHIPPED
from shell import Run, shell
from small_data import few_examples

from monai_unet_app.bundle import Bundle
from monai_unet_app.training.identity import NOT_STATED, forget_template
from monai_unet_app.training.record import recipe_sha256

run = pytest.fixture(shell)

TEMPLATE_S = re.compile(
    "hippocamp|anterior|posterior|decathlon|vanderbilt|antonelli|simpson|cc-by|medical segmentation|t1-weighted|0[.]017|"
    "28 of 34|retina|vessel|chase|fraz|kingston|child|photograph|maintainers|"
    "abdom|chaos|kavur|t2-spir|q-net|non-?commercial|no_weights|no weights|one hospital|strong atrophy|whole head|grader",
    re.IGNORECASE,
)
"""Words and figures of the shipped cards, metadata and licences."""


def said(root: Path) -> str:
    """All that a bundle says of itself: card, metadata, other documents, names of its segments' algorithm."""
    files = [root / "configs/metadata.json", root / "configs/segments.json", *(root / "docs").iterdir()]
    first_line = (root / "configs/inference.yaml").read_text().split("\n")[0]
    return "\n".join([first_line, *(f"{file.name}\n{file.read_text()}" for file in files)])


def of_liver(root: Path) -> Path:
    """The bundle for two other structures, as its owner edits a copy before training."""
    config = root / "configs/inference.yaml"
    text = re.sub(r"^labels: .*$", "labels: [background, liver, spleen]", config.read_text(), flags=re.MULTILINE)
    config.write_text(text)
    path = root / "configs/segments.json"
    document: dict[str, Any] = json.loads(path.read_text())
    document.pop("wholes", None)
    (items,) = document["segmentAttributes"]
    for item, organ, code in zip(items, ("Liver", "Spleen"), ("10200004", "78961009"), strict=True):
        item |= {"SegmentLabel": organ, "SegmentDescription": ""}
        item["SegmentedPropertyTypeCodeSequence"] |= {"CodeValue": code, "CodeMeaning": organ}
        del item["SegmentedPropertyTypeModifierCodeSequence"]
    path.write_text(json.dumps(document))
    return root


@pytest.mark.slow
def test_training_evaluating_and_reporting_on_other_data_leave_no_word_of_the_template(
    run: Run, tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    template, data, mine = of_liver(tiny_bundle()), few_examples(tmp_path / "cases"), tmp_path / "my_liver_mr"
    assert TEMPLATE_S.search(said(template))
    words = ["--bundle", template, "--data", data, "--output", mine, "--name", "Liver MR"]
    answer = run("train", *words, "--epochs", 1, "--device", "cpu", "--tracking", "none")
    assert answer.code == 0, answer.err
    assert "reading and checking 5 case(s)" in answer.err
    assert "reading and checking 5 case(s)" in answer.err
    for told in (answer.err, answer.out):
        assert "1 subject(s) to calibrate: monai-unet calibrate needs 2 or more" in " ".join(told.split())
    assert "next: monai-unet evaluate --bundle " in answer.out  # its test case is measured all the same
    again = run(
        "train", *words, "--epochs", 1, "--device", "cpu", "--tracking", "none"
    )  # the same recipe, in other words
    assert again.code == 0, again.err
    assert not TEMPLATE_S.search(said(mine)), TEMPLATE_S.findall(said(mine))
    metadata = json.loads((mine / "configs/metadata.json").read_text())
    assert metadata["name"] == "Liver MR"
    assert metadata["task"] == NOT_STATED
    assert metadata["label_classes"] == "0 background, 1 Liver, 2 Spleen"
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "Liver",
        "2": "Spleen",
    }
    answer = run("evaluate", "--bundle", mine, "--data", data, "--output", tmp_path / "report", "--device", "cpu")
    assert answer.code == 0, answer.err
    measured = json.loads((tmp_path / "report/metrics.json").read_text())
    names = {target["name"] for target in measured["targets"]}
    assert {"IoU, mean", "precision, mean"} <= names  # the usual ones
    assert "ECE, band around the predicted surface" not in names  # one of the template's
    answer = run("evaluate", "--evaluation", tmp_path / "report", "--bundle", mine, "--into-bundle")
    assert answer.code == 0, answer.err
    card = (mine / "docs/README.md").read_text()
    assert card.startswith("# Liver MR\n")
    assert "| Dice |" in card
    assert not TEMPLATE_S.search(
        re.sub(r"hippocampus_\d+", "case", said(mine))
    )  # names of the cases that were measured


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.name)
def test_neither_first_line_nor_algorithm_is_the_shipped_bundle_s_after_a_copy_of_a_copy(
    shipped: Path, tmp_path: Path
) -> None:
    template = Path(shutil.copytree(shipped, tmp_path / "my_template"))
    config = template / "configs/inference.yaml"
    config.write_text(config.read_text().replace("spacing_mm: {least: 0.5", "spacing_mm: {least: 0.4"))
    config.write_text(config.read_text().replace("least: [700, 700]", "least: [600, 600]"))
    config.write_text(config.read_text().replace('{"least": 1.0', '{"least": 0.9'))
    root = Path(shutil.copytree(template, tmp_path / "mine", ignore=shutil.ignore_patterns("models")))
    forget_template(root, template)
    copied = root / "configs/inference.yaml"
    assert copied.read_text().startswith("# This file is all that inference needs: ")
    assert yaml.safe_load(copied.read_text()) == yaml.safe_load(config.read_text())
    configs = [[folder / f"configs/{name}.yaml" for name in ("inference", "train")] for folder in (root, template)]
    assert len({recipe_sha256(files, comments=False) for files in configs}) == 1  # so that the run can go on
    algorithms = re.findall(r'"SegmentAlgorithmName": "(.*)"', (root / "configs/segments.json").read_text())
    assert set(algorithms) == {"mine"}


def test_a_copy_for_the_same_images_and_labels_keeps_the_line_that_describes_them(tmp_path: Path) -> None:
    root = owned(tmp_path)
    before = (root / "configs/inference.yaml").read_bytes()
    forget_template(root, BUNDLES[0])
    assert (root / "configs/inference.yaml").read_bytes() == before


@pytest.mark.parametrize("template", SHIPPED, ids=lambda path: path.name)
def test_a_copy_of_a_shipped_bundle_states_nothing_of_its_own(template: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for part in ("configs", "docs"):
        shutil.copytree(template / part, root / part)
    labels = Bundle(root).labels
    forget_template(root, template)
    metadata, card = json.loads((root / "configs/metadata.json").read_text()), (root / "docs/README.md").read_text()
    own = {segment.label for segment in Bundle(root).segments}
    rest = re.sub("|".join(sorted(map(re.escape, own), key=len, reverse=True)), "", card + json.dumps(metadata))
    assert not TEMPLATE_S.search(rest)
    assert card.startswith("# mine\n")
    assert card.count(NOT_STATED) >= 6
    assert "targets" not in metadata
    assert metadata["eval_metrics"] == {}
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == len(labels)
    assert not (root / "docs/data_license.txt").exists()
    assert f'"SegmentAlgorithmName": "{template.name}"' not in (root / "configs/segments.json").read_text()


def owned(folder: Path) -> Path:
    """A copy of a shipped bundle's configs and docs in which the owner stated some facts."""
    root = folder / "mine"
    for part in ("configs", "docs"):
        shutil.copytree(BUNDLES[0] / part, root / part)
    path = root / "configs/metadata.json"
    mine = {"task": "Segmentation of the liver", "authors": "A. Author", "targets": {"dice": {"at_least": 0.7}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | mine))
    (root / "docs/data_license.txt").write_text("CC0\n")
    return root


def test_facts_that_the_owner_stated_before_the_training_stay(tmp_path: Path) -> None:
    root = owned(tmp_path)
    forget_template(root, BUNDLES[0])
    metadata = json.loads((root / "configs/metadata.json").read_text())
    assert (metadata["task"], metadata["authors"]) == ("Segmentation of the liver", "A. Author")
    assert metadata["targets"] == {"dice": {"at_least": 0.7}}
    assert metadata["description"] == NOT_STATED
    card = (root / "docs/README.md").read_text()
    assert "Task: Segmentation of the liver." in card
    assert "Licence: see `docs/data_license.txt`." in card


@pytest.mark.parametrize(("name", "wanted"), [(None, "Liver MR"), ("Liver CT", "Liver CT")])
def test_the_name_that_is_given_replaces_the_name_that_the_owner_stated_before(
    name: str | None, wanted: str, tmp_path: Path
) -> None:
    root = owned(tmp_path)
    path = root / "configs/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "Liver MR"}))
    forget_template(root, BUNDLES[0], name)
    assert json.loads(path.read_text())["name"] == wanted
    assert (root / "docs/README.md").read_text().startswith(f"# {wanted}\n")


def test_facts_of_a_bundle_with_weights_of_its_own_are_not_inherited(tmp_path: Path) -> None:
    root, finished = owned(tmp_path), tmp_path / "finished"
    shutil.copytree(root, finished)
    (finished / "models").mkdir()
    (finished / "models/model.pt").write_bytes(b"weights that no shipped bundle has")
    forget_template(root, finished)
    metadata = json.loads((root / "configs/metadata.json").read_text())
    assert (metadata["task"], metadata["authors"]) == (NOT_STATED, NOT_STATED)
    assert "targets" not in metadata
    assert not (root / "docs/data_license.txt").exists()
