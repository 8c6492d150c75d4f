"""The facts of a trained copy about itself: its own, and "not stated" in place of those of its template.

The card, licence, targets and figures of a template are claims about its own weights and data. They are not true of other
weights that were trained on other data, so a copy inherits none. Facts that the owner wrote before the training stay: those in
metadata.json that differ from the facts of every shipped bundle. The card is written anew from them.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from monai_unet_app.bundle import Bundle
from monai_unet_app.bundle_folder import WHY_NO_WEIGHTS, BundleFiles
from monai_unet_app.data.schemas import json_of, write_json
from monai_unet_app.shipped import shipped

NOT_STATED = "not stated"
REQUIRED = ("task", "description", "authors", "copyright")
"""Facts that MONAI's metadata schema asks for: they become "not stated" where they are a template's."""

DROPPED = ("data_source", "data_type", "references", "targets")
"""Facts that are left out where they are a template's."""

LICENSE_OF_DATA = "docs/data_license.txt"
CARD, METADATA, SEGMENTS = "docs/README.md", "configs/metadata.json", "configs/segments.json"
INFERENCE = "configs/inference.yaml"


def forget_template(root: Path, template: Path, name: str | None = None) -> None:
    """Removes the facts of the template from a copy, and writes a card and metadata of its own.

    Args:
        root: Folder of the copy, with the configs and docs of its template.
        template: Folder of the template. If it has trained weights that are not shipped, the copy inherits no facts at all.
        name: Name of the copy in card and metadata; None takes the name that its owner wrote into metadata.json, else the
            name of its folder.
    """
    is_trained = (template / "models/model.pt").is_file() and not _is_shipped(template / "models/model.pt")
    old = json_of(root / METADATA)
    facts = {
        "name": root.resolve().name,
        **_own_facts(old, inherit_none=is_trained),
        **({"name": name} if name else {}),
    }
    # Derived facts win: classes and channels follow from the configs, whatever the metadata said before
    metadata = facts | derived_facts(root)
    write_json(metadata, root / METADATA)
    licence = root / LICENSE_OF_DATA
    if licence.is_file() and (is_trained or _is_shipped(licence)):
        licence.unlink()
    shipped_names = {folder.name for folder in _shipped_bundles()}
    _name_algorithm(root / SEGMENTS, {template.name} | shipped_names, root.resolve().name)
    _forget_description(root)
    write_card(metadata, root)


def _is_shipped(file: Path) -> bool:
    """Whether a shipped bundle has the same file at the same path."""
    content = file.read_bytes()
    others = [folder / file.parent.name / file.name for folder in _shipped_bundles()]
    return any(other.is_file() and other.read_bytes() == content for other in others)


def _shipped_bundles() -> list[Path]:
    """The folders of the shipped bundles."""
    return [path.parents[1] for path in shipped("bundles").glob(f"*/{METADATA}")]


def _own_facts(old: Mapping[str, Any], *, inherit_none: bool) -> dict[str, Any]:
    """The metadata without the facts of a template: those that a shipped bundle has too, or all with `inherit_none`."""
    others = [json_of(folder / METADATA) for folder in _shipped_bundles()]
    # why a template has no weights is never true of a trained copy, whoever stated it
    facts = {key: value for key, value in old.items() if key != WHY_NO_WEIGHTS}
    for key in (*REQUIRED, *DROPPED, "name"):
        if key in facts and (inherit_none or any(other.get(key) == facts[key] for other in others)):
            del facts[key]
    facts["eval_metrics"] = {}
    if inherit_none or any(other.get("changelog") == facts.get("changelog") for other in others):
        facts["changelog"] = {str(facts["version"]): "trained with monai-unet train"}
    return {**facts, **{key: facts.get(key, NOT_STATED) for key in REQUIRED}}


def derived_facts(root: Path) -> dict[str, Any]:
    """The facts about images, classes and tensors that follow from the configs."""
    bundle = Bundle(root)
    rules, labels = bundle.rules, bundle.labels
    first = 1 - bundle.outputs.background
    names = dict(enumerate(["background", *bundle.structure_names][first:], first))
    kind = " or ".join(rules.modality) or ("picture" if rules.planar else NOT_STATED)
    spatial = ["*"] * (rules.axes if bundle.slice_axis is None else 2)
    channels = rules.channel_names or rules.channel_modality or [kind] * rules.channels
    common = {"spatial_shape": spatial, "dtype": "float32", "is_patch_data": True}
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": kind,
        "num_channels": rules.channels,
        "value_range": [],
        "channel_def": {str(n): name or NOT_STATED for n, name in enumerate(channels)},
        **common,
    }
    pred = {
        "type": "image",
        "format": "segmentation",
        "num_channels": len(labels),
        "value_range": [0, 1],
        "channel_def": {str(n): name for n, name in enumerate(names.values())},
        **common,
    }
    return {
        "image_classes": ", ".join([f"{rules.channels} channel(s)", *rules.channel_names, kind]),
        "label_classes": ", ".join(f"{number} {label}" for number, label in sorted(names.items())),
        "pred_classes": "the same classes",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def _name_algorithm(segments: Path, old: Collection[str], new: str) -> None:
    """Writes the name of the copy as SegmentAlgorithmName, in place of its template and of shipped bundles."""
    text = segments.read_text(encoding="utf-8")
    names = "|".join(re.escape(json.dumps(name)) for name in old)
    # Replaced in the text, so that the file keeps the layout that its owner gave it
    text = re.sub(rf'("SegmentAlgorithmName"\s*:\s*)(?:{names})', lambda match: match[1] + json.dumps(new), text)
    segments.write_text(text, encoding="utf-8")


def _forget_description(root: Path) -> None:
    """Removes "From ... to ..." of a shipped bundle from the first line of inference.yaml if images or labels differ."""
    config = root / INFERENCE
    # Bytes, because reading as text would change the line ends of a file from Windows
    first, end, rest = config.read_bytes().decode().partition("\n")
    for other in _shipped_bundles():
        if (other / INFERENCE).read_text(encoding="utf-8").split("\n")[0] != first.rstrip("\r"):
            continue
        own, of_shipped = (BundleFiles(folder).inference_document for folder in (root, other))
        if any(own.get(name) != of_shipped.get(name) for name in ("labels", "input_rules")):
            config.write_bytes((re.sub(r"^# From [^.]*\. ", "# ", first) + end + rest).encode())
        return


def write_card(metadata: Mapping[str, Any], root: Path) -> None:
    """Writes a new card from these facts and the configs of a bundle."""
    bundle = Bundle(root)
    environment = Environment(loader=PackageLoader(__package__), trim_blocks=True, keep_trailing_newline=True)
    text = environment.get_template("card.md").render(
        metadata=metadata,
        rules=bundle.rules,
        segments=bundle.segments,
        licence="see `docs/data_license.txt`" if (root / LICENSE_OF_DATA).is_file() else NOT_STATED,
        not_stated=NOT_STATED,
    )
    (root / CARD).parent.mkdir(exist_ok=True)
    (root / CARD).write_text(text, encoding="utf-8")
