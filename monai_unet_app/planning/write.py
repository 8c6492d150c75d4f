"""The files of a planned bundle, written as one folder or not at all."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from dicom_io.coding import code_entry
from monai_unet_app.calibration.fitted import begin_fitted
from monai_unet_app.data.coding import named_segment
from monai_unet_app.data.schemas import write_json
from monai_unet_app.data.structures import StatedStructure
from monai_unet_app.errors import UsageError
from monai_unet_app.planning.family import yaml_text
from monai_unet_app.planning.plan import BundlePlan
from monai_unet_app.training.identity import NOT_STATED, REQUIRED, derived_facts

CONFIGS = ("inference", "train", "multi_gpu_train", "calibrate", "evaluate", "inference_dicom")
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
LICENSE = "No licence is stated for this bundle. Its owner must write the licence here before giving the bundle away.\n"


def write_plan(plan: BundlePlan, output: Path) -> None:
    """Writes the bundle under a temporary name and renames it.

    Raises:
        UsageError: The folder exists and is not empty: a bundle that somebody may have edited is not replaced.
    """
    with whole_folder(output) as partial:
        _write_bundle(plan, partial, output.name)


def write_plans(plans: Mapping[str, BundlePlan], output: Path) -> None:
    """Writes a folder with a bundle for each plan, under its name there, or nothing. Errors as `write_plan`."""
    with whole_folder(output) as partial:
        for name, plan in plans.items():
            _write_bundle(plan, partial / name, f"{output.name}_{name}")


def check_new(output: Path) -> None:
    """Raises UsageError if there is a file at this place, or a folder that holds something."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and is not empty; a plan never replaces files; choose another folder")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A new folder with a temporary name, which is `output` when the block has ended well."""
    check_new(output)
    partial = output.with_name(f".part-{output.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if output.exists():
        output.rmdir()
    partial.rename(output)


def _write_bundle(plan: BundlePlan, root: Path, name: str) -> None:
    """The files of a bundle of this name."""
    (root / "configs").mkdir(parents=True)
    for config in CONFIGS:
        # Its reader gives one series
        if not (config == "inference_dicom" and (plan.values["planar"] or plan.values["files"] > 1)):
            (root / "configs" / f"{config}.yaml").write_text(rendered(config, plan), encoding="utf-8")
    (root / "LICENSE").write_text(LICENSE, encoding="utf-8")
    write_json(segments(plan, name), root / "configs/segments.json")
    write_json(plan.fingerprint.as_dict(), root / "configs/fingerprint.json")
    write_json(plan.splits, root / "configs/splits.json", "splits")
    stated = metadata(name, plan.values["packages"])
    write_json(stated, root / "configs/metadata.json")
    begin_fitted(root)
    write_json(stated | derived_facts(root), root / "configs/metadata.json")


def rendered(name: str, plan: BundlePlan) -> str:
    """The text of a config."""
    why = {key: _comment(reason) for key, reason in plan.reasons.items() if reason}
    return config_text(name, {**plan.values, "why": why})


def config_text(name: str, values: Mapping[str, Any]) -> str:
    """The text of a config by its template."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(__package__), PackageLoader("monai_unet_app.calibration")]),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=yaml_text,
    )
    return environment.get_template(f"{name}.yaml").render(values)


def _comment(reason: str) -> str:
    return "\n".join(textwrap.wrap(reason, 126, initial_indent="# ", subsequent_indent="# "))


def metadata(name: str, packages: Mapping[str, str]) -> dict[str, Any]:
    """`metadata.json` of a bundle of which its owner has stated nothing yet. `packages`: further ones, with their versions."""
    return {
        "schema": SCHEMA,
        "name": name,
        "version": "0.1.0",
        "changelog": {"0.1.0": "planned with monai-unet plan"},
        "eval_metrics": {},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in ("pytorch-ignite", "nibabel", "scikit-image")}
        | dict(packages),
        **dict.fromkeys(REQUIRED, NOT_STATED),
        "intended_use": "Research. Not a medical device; not for diagnosis.",
    }


def segments(plan: BundlePlan, algorithm: str) -> dict[str, Any]:
    """`segments.json`: each structure with the codes that the labels state, else those of its name; one without says so."""
    structures = [plan.stated.get(value) or StatedStructure(name) for value, name in plan.structures.items()]
    return segments_of(structures, algorithm)


def segments_of(structures: Sequence[StatedStructure], algorithm: str) -> dict[str, Any]:
    """`segments.json` of these structures in the order of their numbers."""
    items = [_segment(number, structure, algorithm) for number, structure in enumerate(structures, 1)]
    return {"schema_version": "1.2", "segmentAttributes": [items]}


def _segment(number: int, structure: StatedStructure, algorithm: str) -> dict[str, Any]:
    segment = named_segment(number, structure)
    item: dict[str, Any] = {
        "labelID": number,
        "SegmentLabel": segment.label,
        "SegmentAlgorithmType": "AUTOMATIC",
        "SegmentAlgorithmName": algorithm,
    }
    codes = {
        "SegmentedPropertyCategoryCodeSequence": segment.category,
        "SegmentedPropertyTypeCodeSequence": segment.type,
        "SegmentedPropertyTypeModifierCodeSequence": segment.type_modifier,
        "AnatomicRegionSequence": segment.anatomic_region,
        "AnatomicRegionModifierSequence": segment.anatomic_region_modifier,
    }
    item |= {keyword: code_entry(code) for keyword, code in codes.items() if code is not None}
    return item | ({"recommendedDisplayRGBValue": list(structure.rgb)} if structure.rgb else {})
