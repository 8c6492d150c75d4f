"""A `models/fitted.json` that does not belong to its bundle is refused at every door, before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_data import few_examples, set_calibration

from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.calibration.calibrate_bundle import calibrate_bundle
from monai_unet_app.calibration.fitted import begin_fitted, change_fitted
from monai_unet_app.data.cases import by_partition
from monai_unet_app.deploy.package import render_package
from monai_unet_app.errors import BundleError
from monai_unet_app.service.rule_checks import check_bundles
from monai_unet_app.service.site_file import read_site

SITE = """
[node]
folder = "node"
[[rules]]
name = "crops"
bundle = "{bundle}"
deliver_ungated = true
match = {{Modality = "MR"}}
destinations = ["pacs"]
[destinations.pacs]
host = "127.0.0.1"
port = 104
ae_title = "PACS"
"""


def of_other_weights(root: Path) -> None:
    change_fitted(root, "calibration", fitted_to={"models/model.pt": "0" * 64})


def written(text: str) -> Callable[[Path], Any]:
    return lambda root: (root / "models/fitted.json").write_text(text)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent": (lambda root: (root / "models/fitted.json").unlink(), "is absent and inference.yaml reads it"),
    "cut off": (written('{"schema_ver'), r"cannot be used \(Unterminated string"),
    "empty": (written(""), r"cannot be used \(Expecting value"),
    "of another form": (written("[]"), r"cannot be used \(fitted: at the document"),
    "an unknown form": (
        lambda root: change_fitted(root, "calibration", form="vector"),
        r"has 'vector', which `forms` of inference.yaml does not offer \(region, classwise, temperature, none\)",
    ),
    "an unknown step": (
        lambda root: change_fitted(root, "tidy", steps=[{"step": "smooth", "structures": [1], "why": ""}]),
        r"has 'smooth', which `steps` of inference.yaml does not offer \(largest, holes, islands\)",
    ),
    "other weights": (of_other_weights, "`calibration` of models/fitted.json was fitted to weights with sha256 0000"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_does_not_belong_to_its_bundle_is_refused_at_every_door(
    fault: str, tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root = tiny_bundle()
    spoil, said = FAULTS[fault]
    spoil(root)
    site = tmp_path / "site.toml"
    site.write_text(SITE.format(bundle=root))
    doors: tuple[Callable[[], Any], ...] = (
        lambda: load_bundle(root).network,
        lambda: load_bundle(root).check_configs(),
        lambda: render_package(root, tmp_path / "package"),
        lambda: check_bundles(read_site(site)),
    )
    for door in doors:
        with pytest.raises(BundleError, match=f"^{root.name}: .*{said}"):
            door()
    assert not (tmp_path / "package").exists()


def test_a_calibration_mends_what_was_fitted_to_other_weights(tiny_bundle: Callable[..., Path]) -> None:
    root = set_calibration(tiny_bundle(), 0.4)
    of_other_weights(root)
    begin_fitted(root)
    load_bundle(root).check_configs()
    fitted = bundle_files(root).fitted
    assert fitted is not None
    assert fitted["calibration"]["plain"] == {"reach": 2, "far": 0.0, "near": 0.0}
    assert fitted["calibration"]["fitted_to"] is None


def test_plain_and_averaged_numbers_keep_their_reasons(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    root = tiny_bundle()
    rows = by_partition(few_examples(tmp_path / "data", ("hippocampus_053", "hippocampus_143")))["calibration"]
    for setting in ("plain", "tta"):
        calibrate_bundle(load_bundle(root), rows, setting=setting)
    fitted = bundle_files(root).fitted
    assert fitted is not None
    first, second = fitted["calibration"]["why"].split("; averages over mirror images ")
    assert first.startswith("fitted on 2 case(s)")
    assert second.startswith("fitted on 2 case(s)")
    assert first != second
    assert fitted["calibration"]["fitted_to"]["models/model.pt"] == load_bundle(root).weights_sha256


def test_lines_that_a_refusal_prints_are_all_that_a_hand_written_bundle_needs(
    tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root = tiny_bundle()
    config = root / "configs/inference.yaml"
    text = config.read_text()
    begin, end = text.index("# What `monai-unet calibrate`"), text.index("# From logits to the result")
    # As its author wrote it: one network, no calibration, no post-processing to choose
    text = text[:begin] + text[end:].replace('- _target_: Lambdad\n  keys: pred\n  func: "@calibrate"\n', "", 1)
    for old, new in (
        ("- $import json\n", ""),
        ("- $import pathlib\n", ""),
        ("folds: \"$@fitted['folds']['number']\"", "folds: 1"),
        ("tidy: \"$[@steps[step['step']](step) for step in @fitted['tidy']['steps']]\"", "tidy: []"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    config.write_text(text)
    (root / "models/fitted.json").unlink()
    load_bundle(root).check_configs()
    with pytest.raises(BundleError, match=r"does not read models/fitted\.json; add `- ") as refusal:
        begin_fitted(root)
    said, _, lines = str(refusal.value).partition("of its own:\n")
    assert 'first transform that logits go through, {_target_: Lambdad, keys: pred, func: "@calibrate"}' in said
    text = text.replace("imports:\n", "imports:\n- $import json\n- $import pathlib\n")
    text = text.replace("\nprobable:\n", '\nprobable:\n- {_target_: Lambdad, keys: pred, func: "@calibrate"}\n')
    config.write_text(text + lines)
    begin_fitted(root)
    rows = by_partition(few_examples(tmp_path / "data", ("hippocampus_053", "hippocampus_143")))["calibration"]
    fitted = calibrate_bundle(load_bundle(root), rows)
    assert fitted.nll_after < fitted.nll_before
    assert json.loads((root / "models/fitted.json").read_text())["calibration"]["plain"] == fitted.parameters
