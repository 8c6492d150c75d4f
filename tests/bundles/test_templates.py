"""A bundle without weights is a template: it can be trained, claims nothing, and every verb that needs weights refuses it."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import BUNDLES, EXAMPLES, SHIPPED, TEMPLATES
from monai.bundle import ConfigWorkflow
from shell import Run, shell
from small_data import FEW, few_examples

from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import WHY_NO_WEIGHTS, bundle_files
from monai_unet_app.cli.common import trained_bundle
from monai_unet_app.cli.parser import build_parser
from monai_unet_app.data.splits import FOLDS, read_splits
from monai_unet_app.doctor import examine
from monai_unet_app.errors import UntrainedError
from monai_unet_app.service.rule_checks import check_bundles
from monai_unet_app.service.site_file import read_site
from monai_unet_app.training.identity import forget_template

run = pytest.fixture(shell)
NAME = "abdomen_mr_unet3d"
each_template = pytest.mark.parametrize("root", TEMPLATES, ids=lambda path: path.name)

NEEDS_WEIGHTS = {
    "predict": "--input {data}/images --output {out}",
    "calibrate": "--data {data}",
    "evaluate": "--data {data} --output {out}",
    "evaluate --into-bundle": "--evaluation {data}",
    "compare --fail-if-worse": "--second hippocampus_mri_unet3d --data {data} --output {out}",
    "compare": "--second hippocampus_mri_unet3d --data {data} --output {out}",
    "bundle package": "--output {out}",
    "registry add": "--registry {out}",
    "node": "--config {site}",
    "node commission": "--config {site} --key {site}.pem --output {out}",
}
NEEDS_NONE = {"dicomize", "convert", "inspect", "train", "review"}
"""They read configs only; `review` wants the bundle that made a result, which no untrained bundle did."""

SITE = """
[node]
folder = "node"
[[rules]]
name = "abdomen"
bundle = "{bundle}"
deliver_ungated = true
match = {{Modality = "MR"}}
destinations = ["pacs"]
[destinations.pacs]
host = "127.0.0.1"
port = 104
ae_title = "PACS"
"""


@pytest.fixture
def new_bundle(tmp_path: Path) -> Path:
    """A bundle as `plan` leaves it: nobody has trained it, and it says nothing of the reason."""
    root = Path(shutil.copytree(TEMPLATES[0], tmp_path / "my plan"))
    path = root / "configs/metadata.json"
    metadata = json.loads(path.read_text())
    del metadata[WHY_NO_WEIGHTS]
    path.write_text(json.dumps(metadata))
    return root


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pem"}


def test_every_verb_that_takes_a_bundle_is_known_here_to_need_weights_or_not() -> None:
    (action,) = (action for action in build_parser()._actions if isinstance(action.choices, dict))
    taking = {
        verb
        for verb, parser in action.choices.items()
        if {flag.dest for flag in parser._actions} & {"bundle", "first", "config"}
    }
    of_one_word = {verb.split()[0] for verb in NEEDS_WEIGHTS} - {"bundle", "registry"}
    assert taking == of_one_word | NEEDS_NONE


@pytest.mark.parametrize("verb", NEEDS_WEIGHTS)
@pytest.mark.parametrize("kind", ["shipped", "new"])
def test_a_verb_that_needs_weights_refuses_by_name_with_the_reason_and_the_command(
    verb: str, kind: str, run: Run, new_bundle: Path, tmp_path: Path
) -> None:
    bundle = NAME if kind == "shipped" else str(new_bundle)
    site = tmp_path / "site.toml"
    site.write_text(SITE.format(bundle=bundle))
    data = few_examples(tmp_path / "data", FEW[:1])
    before = files_below(tmp_path)
    flags = NEEDS_WEIGHTS[verb].format(data=data, out=tmp_path / "out", site=site).split()
    named = [] if "--config" in flags else ["--first" if verb.startswith("compare") else "--bundle", bundle]
    answer = run(*verb.split(), *named, *flags)
    assert answer.code == 3, answer.err
    said = [line for line in answer.err.splitlines() if line.startswith("refused: ")]
    why = "none are shipped, because its data (CHAOS, CC BY-NC-SA 4.0) are for non-commercial use"
    assert said == [
        f"refused: {Path(bundle).name} has no weights (models/model.pt is absent): "
        f"{why if kind == 'shipped' else 'it is new and has not been trained'}; a trained copy is needed; make one with "
        f"monai-unet train --bundle {bundle if kind == 'shipped' else repr(bundle)} --data DATA --folds all --output OUT"
    ]
    assert files_below(tmp_path) == before


def test_a_worker_that_is_given_an_untrained_bundle_refuses_it_too(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text(SITE.format(bundle=NAME))
    with pytest.raises(UntrainedError, match="none are shipped"):
        check_bundles(read_site(site))


def test_from_python_network_and_digest_are_refused_in_the_same_words(new_bundle: Path) -> None:
    for wanted in ("network", "sha256"):
        with pytest.raises(UntrainedError, match=r"^my plan has no weights \(models/model\.pt is absent\): it is new"):
            getattr(load_bundle(new_bundle), wanted)
    with pytest.raises(UntrainedError, match=r"has no weights \(folds/2/models/model\.pt is absent\)"):
        _ = load_bundle(new_bundle).of_fold(2).network


@pytest.mark.parametrize("begun", ["run", "folds/1/models"])
def test_a_training_that_has_not_completed_is_to_be_gone_on_with(begun: str, new_bundle: Path) -> None:
    (new_bundle / begun).mkdir(parents=True)
    with pytest.raises(
        UntrainedError, match=r"its training has not completed.* give the same monai-unet train command"
    ):
        bundle_files(new_bundle).check_trained()


def test_networks_of_folds_are_enough_where_they_are_asked_for(new_bundle: Path) -> None:
    with pytest.raises(UntrainedError, match="it is new"):
        trained_bundle(str(new_bundle), by_folds=True)
    (new_bundle / "folds/1/models").mkdir(parents=True)
    assert trained_bundle(str(new_bundle), by_folds=True).root == new_bundle
    with pytest.raises(UntrainedError, match="with --folds all"):
        trained_bundle(str(new_bundle))


def test_a_template_whose_cases_are_not_dealt_to_folds_is_trained_without(new_bundle: Path) -> None:
    (new_bundle / "configs/splits.json").unlink()
    assert "--data DATA --output OUT" in (bundle_files(new_bundle).untrained or "")


def test_in_a_zip_the_command_names_no_folder_that_is_gone(new_bundle: Path, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", new_bundle)
    assert "train --bundle ZIP --data DATA" in (bundle_files(packed).untrained or "")


def test_bundles_lists_it_as_untrained_and_says_what_to_do(run: Run) -> None:
    answer = run("doctor", "--bundles")
    assert answer.code == 0
    assert re.search(rf"{NAME} .* untrained ", answer.out)
    assert f"{NAME} has no weights" in answer.out
    rows = {row["name"]: row for row in json.loads(run("doctor", "--bundles", "--json").out)["bundles"]}
    row = rows[NAME]
    assert (row["trained"], row["sha256"]) == (False, None)
    assert "monai-unet train --bundle abdomen_mr_unet3d --data DATA --folds all" in row["untrained"]
    assert {name for name, row in rows.items() if row["untrained"] is None} == {folder.name for folder in BUNDLES}


def test_doctor_notes_it_and_calls_no_shipped_bundle_broken() -> None:
    states = {row["what"]: row for row in examine() if row["what"] in {folder.name for folder in SHIPPED}}
    assert {name: row["state"] for name, row in states.items()} == {
        folder.name: "note" if folder in TEMPLATES else "ok" for folder in SHIPPED
    }
    assert "none are shipped" in states[NAME]["found"]


def test_inspect_holds_images_to_its_rules(run: Run) -> None:
    answer = run("inspect", EXAMPLES / "images" / f"{FEW[0]}.nii.gz", "--bundle", NAME)
    assert answer.code == 3
    assert "field of view" in answer.out + answer.err


@each_template
def test_its_configs_agree_and_its_new_network_fits_them(root: Path) -> None:
    load_bundle(root).check_network()


@each_template
def test_it_says_why_it_has_no_weights_and_claims_no_figures(root: Path) -> None:
    files, card = bundle_files(root), (root / "docs/README.md").read_text()
    assert files.metadata[WHY_NO_WEIGHTS]
    assert [path.name for path in (root / "models").iterdir()] == ["fitted.json"]
    assert files.confidence_document is None
    assert (files.eval_metrics, files.metadata.get("targets")) == ({}, None)
    assert "<!-- figures -->\nNot measured: there are no weights.\n<!-- end of figures -->" in card
    assert "docs/data_license.txt" in card
    assert "CC BY-NC-SA 4.0" in (root / "docs/data_license.txt").read_text()


@each_template
def test_its_plan_deals_every_subject_to_one_of_five_folds(root: Path) -> None:
    plan = read_splits(root / "configs/splits.json").values()
    counts = Counter(case.fold for case in plan)
    assert len({case.subject for case in plan}) == len(plan) == 14
    assert set(counts) == set(range(FOLDS))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert {case.partition for case in plan} == {"train"}


@each_template
def test_a_copy_says_neither_why_its_template_has_no_weights_nor_whose_data_they_were(
    root: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "mine"
    for part in ("configs", "docs"):
        shutil.copytree(root / part, copy / part)
    metadata = json.loads((copy / "configs/metadata.json").read_text()) | {WHY_NO_WEIGHTS: "the owner's own words"}
    (copy / "configs/metadata.json").write_text(json.dumps(metadata))
    forget_template(copy, root)
    metadata = json.loads((copy / "configs/metadata.json").read_text())
    assert not {WHY_NO_WEIGHTS, "data_source", "references"} & set(metadata)
    assert not (copy / "docs/data_license.txt").exists()
    assert not (copy / "configs/fingerprint.json").exists()
    said = json.dumps(metadata) + (copy / "docs/README.md").read_text()
    assert not re.search("chaos|kavur|CC BY|t2-spir", said, re.IGNORECASE)


@each_template
def test_monai_finds_every_property_of_its_training(root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / root.name)  # what a training writes goes into the bundle's folder
    workflow = ConfigWorkflow(
        config_file=[str(copy / f"configs/{config}.yaml") for config in ("inference", "train")],
        meta_file=str(copy / "configs/metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(copy),
        dataset_dir=str(few_examples(tmp_path / "data")),
        device=torch.device("cpu"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
