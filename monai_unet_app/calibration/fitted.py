"""Writes `models/fitted.json`: what commands found out about the weights of a bundle, as values that `inference.yaml` reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from monai_unet_app.bundle import Bundle
from monai_unet_app.bundle_folder import FITTED, BundleFiles
from monai_unet_app.confidence.fitted_to import fitted_to
from monai_unet_app.config import InferenceSetting
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import BundleError

SCHEMA_VERSION = "1.0"

Parameters = Mapping[str, float | int]
"""Numbers of a calibration: floats are fitted, integers stay."""


def check_reads_fitted(bundle: BundleFiles) -> None:
    """Raises BundleError, with the lines to add, if `inference.yaml` does not take its calibration from `fitted.json`."""
    config = bundle.inference_document
    if "fitted" not in config or "@fitted" not in str(config.get("calibration")):
        raise BundleError(f"{bundle.name}: inference.yaml does not read {FITTED}; {_lines_to_add(bundle)}")


def begin_fitted(root: Path) -> None:
    """Writes a first `fitted.json`, without any finding, if there is none: with the first of the bundle's forms.

    Findings of other weights are taken back.

    Raises:
        BundleError: As `check_reads_fitted`.
    """
    bundle = BundleFiles(root)
    check_reads_fitted(bundle)
    if bundle.fitted is None:
        forms = bundle.inference_document.get("forms", {})
        name, form = next(iter(forms.items()), (None, {"numbers": {}}))
        write_json(neutral(name, form["numbers"]), root / FITTED, "fitted")
    elif bundle.stale_findings:
        forget_fitted(root)


def forget_fitted(root: Path) -> None:
    """Takes back all findings: the form of the calibration stays, its floats are 0; one network, no post-processing."""
    document = BundleFiles(root).fitted
    if document is not None:
        found = document["calibration"]
        write_json(neutral(found["form"], found["plain"]), root / FITTED, "fitted")


def change_fitted(root: Path, part: str, **values: Any) -> None:
    """Replaces values of a part of `fitted.json`: "folds", "calibration", "thresholds" or "tidy"."""
    document = BundleFiles(root).fitted
    assert document is not None
    write_json({**document, part: {**document[part], **values}}, root / FITTED, "fitted")


def write_calibration(bundle: Bundle, numbers: Parameters, why: str) -> None:
    """Writes fitted numbers, with the reason, and takes back those for averages over mirror images and for engines.

    Args:
        bundle: Whose `fitted.json` is written.
        numbers: All of the form.
        why: What they gain.
    """
    values = {"plain": dict(numbers), "tta": None, "engines": {}, "why": why, "fitted_to": digests_before(bundle)}
    change_fitted(bundle.root, "calibration", **values)


def write_calibration_beside(bundle: Bundle, setting: InferenceSetting, numbers: Parameters, why: str) -> None:
    """Writes fitted numbers for averages over mirror images, or for an engine, beside the plain ones, and adds the reason."""
    fitted = BundleFiles(bundle.root).fitted
    assert fitted is not None
    found, what = fitted["calibration"], "averages over mirror images" if setting == "tta" else setting
    earlier = [reason for reason in (found["why"] or "").split("; ") if reason and not reason.startswith(what)]
    own = (
        {"tta": dict(numbers)} if setting == "tta" else {"engines": found.get("engines", {}) | {setting: dict(numbers)}}
    )
    change_fitted(bundle.root, "calibration", **own, why="; ".join([*earlier, f"{what} {why}"]))


def digests_before(bundle: Bundle) -> dict[str, str | None]:
    """Digests of what a finding was fitted to: of everything but `fitted.json` itself."""
    return {file: digest for file, digest in fitted_to(bundle, "plain").items() if file != FITTED}


def neutral(form: str | None, numbers: Parameters) -> dict[str, Any]:
    """A fitted.json without any finding."""
    zeros = {name: 0.0 if isinstance(value, float) else value for name, value in numbers.items()}
    nothing = {"why": None, "fitted_to": None}
    return {
        "schema_version": SCHEMA_VERSION,
        "folds": {"number": 1, "why": None},
        "calibration": {"form": form, "plain": zeros, "tta": None, **nothing},
        "thresholds": {"values": None, **nothing},
        "tidy": {"steps": [], **nothing},
    }


def yaml_block(name: str, bundle: BundleFiles) -> str:
    """Lines of an `inference.yaml` that read fitted.json: "calibration" or "steps", for the outputs of this bundle."""
    config = bundle.inference_document
    labels = config.get("labels")
    environment = Environment(loader=PackageLoader(__package__), trim_blocks=True, keep_trailing_newline=True)
    return environment.get_template(f"{name}.yaml").render(
        outputs=config.get("outputs"),
        planar=bool((config.get("input_rules") or {}).get("planar")),
        labels=labels if isinstance(labels, list) else [labels],
    )


def _lines_to_add(bundle: BundleFiles) -> str:
    """The lines that let a bundle's `inference.yaml` read `fitted.json`, and where they go."""
    return (
        "add `- $import json` and `- $import pathlib` to `imports`; as the first transform that logits go through, "
        f'{{_target_: Lambdad, keys: pred, func: "@calibrate"}}; and at the top level, in place of a `calibrate` of its own:\n'
        f"{yaml_block('calibration', bundle)}"
    )
