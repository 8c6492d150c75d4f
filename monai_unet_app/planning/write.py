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
from monai_unet_app.data.naming import harmless, one_line
from monai_unet_app.data.schemas import write_json
from monai_unet_app.data.structures import StatedStructure
from monai_unet_app.errors import UsageError
from monai_unet_app.planning.family import yaml_text
from monai_unet_app.planning.plan import BundlePlan
from monai_unet_app.training.identity import NOT_STATED, REQUIRED, derived_facts

CONFIGS = ("inference", "train", "multi_gpu_train", "calibrate", "evaluate", "inference_dicom")
OF_OTHERS = ("inference", "calibrate", "evaluate", "inference_dicom")
"""Configs of a network that others have trained."""

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
    if (output.exists() or output.is_symlink()) and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and is not empty; a plan never replaces files; choose another folder")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A new folder with a temporary name, which is `output` when the block has ended well."""
    check_new(output)
    partial = output.with_name(f".part-{output.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:  # also after Ctrl-C
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if output.exists():
        output.rmdir()
    partial.rename(output)


def _write_bundle(plan: BundlePlan, root: Path, name: str) -> None:
    """The files of a bundle of this name."""
    # Each structure with the codes that the labels state, else those of its name; one without says so
    structures = [plan.stated.get(value) or StatedStructure(name) for value, name in plan.structures.items()]
    why = {key: _comment(reason) for key, reason in plan.reasons.items() if reason}
    write_files(root, {**plan.values, "why": why}, structures, metadata(name, plan.values["packages"]), CONFIGS)
    write_json(plan.fingerprint.as_dict(), root / "configs/fingerprint.json")
    write_json(plan.splits, root / "configs/splits.json", "splits")


def write_files(
    root: Path,
    values: Mapping[str, Any],
    structures: Sequence[StatedStructure],
    stated: Mapping[str, Any],
    configs: Sequence[str],
    licence: str = LICENSE,
) -> dict[str, Any]:
    """Configs, licence, `segments.json`, a first `fitted.json` and metadata of a bundle; gives the metadata.

    Args:
        root: Its folder.
        values: Of the templates; "template" names that of `inference.yaml` if it is another.
        structures: In the order of their numbers.
        stated: From `metadata`, with what else is known; what follows from the configs is added.
        configs: Names; without `inference_dicom` where the images are no single series, which its reader gives.
        licence: Its text.
    """
    suffix = str(values.get("label_suffix", ""))
    if harmless(suffix) != suffix or not suffix.isprintable() or set(suffix) & set('"\\\\'):
        raise UsageError(f"--label-suffix {suffix!r} cannot stand in a config; rename the label files")
    (root / "configs").mkdir(parents=True)
    for name in configs:
        if name != "inference_dicom" or not (values["planar"] or values["files"] > 1):
            (root / f"configs/{name}.yaml").write_text(_config_text(name, values), encoding="utf-8")
    (root / "LICENSE").write_text(licence, encoding="utf-8")
    write_json(segments_of(structures, stated["name"]), root / "configs/segments.json")
    write_json(stated, root / "configs/metadata.json")
    begin_fitted(root)
    facts = {**stated, **derived_facts(root)}
    write_json(facts, root / "configs/metadata.json")
    return facts


def _config_text(name: str, values: Mapping[str, Any]) -> str:
    """The text of a config by its template. What data say of themselves stands in it as plain text."""
    template = values.get("template", name) if name == "inference" else name
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(__package__), PackageLoader("monai_unet_app.calibration")]),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=yaml_text,
    )
    of_data = {name: harmless(values[name]) for name in _OF_DATA if name in values}
    of_data = {name: one_line(value) if isinstance(value, str) else value for name, value in of_data.items()}
    return environment.get_template(f"{template}.yaml").render({**values, **of_data})


_OF_DATA = (
    "labels", "input_rules", "image_words", "structure_words", "pattern", "configuration", "trainer", "architecture",
)  # fmt: skip


def _comment(reason: str) -> str:
    return "\n".join(textwrap.wrap(one_line(reason), 126, initial_indent="# ", subsequent_indent="# "))


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
