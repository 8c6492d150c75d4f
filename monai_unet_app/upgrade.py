"""Moves what earlier versions wrote into a bundle's `inference.yaml` to `models/fitted.json`, and shows that nothing changes.

Earlier versions wrote the form and the numbers of the calibration, thresholds, post-processing and the networks of an ensemble
as text into `inference.yaml`. This module is the only one that knows these texts.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from nibabel.affines import from_matvec
from scipy.ndimage import gaussian_filter

from dicom_io.files import replace_together
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.bundle_folder import CONFIDENCE, FITTED, WEIGHTS, BundleFiles
from monai_unet_app.calibration.fitted import digests_before, neutral, yaml_block
from monai_unet_app.confidence.fitted_to import fitted_to
from monai_unet_app.config import InferenceSetting, PredictConfig, ResultSettings
from monai_unet_app.data.schemas import json_of, write_json
from monai_unet_app.errors import BundleError
from monai_unet_app.pipeline import segment_case
from monai_unet_app.training.checkpoints import half_weights
from monai_unet_app.training.record import recipe_sha256

CONFIGS = ("inference", "train", "calibrate", "evaluate")
_BY_US = "chosen by monai-unet calibrate"

_OLD_FORMS = {
    "none": r"logits",
    "temperature": r"logits \* torch\.exp\(torch\.as_tensor\(-c\['log_temperature'\]\)\)\.to\(logits\)",
    "classwise": r".*@each\(c, 'class_', logits\).*",
    "region": r"logits \* torch\.exp\(-\(c\['far'\] \+ c\['near'\] \* @mixture\(logits, c\['reach'\]\)\)\)",
}
"""What followed `calibrate: "$lambda logits, c=@calibration: ` in earlier versions; another expression stays as it is."""

_STEPS = {"KeepLargestConnectedComponentd": "largest", "FillHolesd": "holes", "RemoveSmallObjectsd": "islands"}


def upgrade_bundle(root: Path) -> list[str]:
    """Upgrades the bundle in a folder; gives the names of the files that were changed.

    The upgraded bundle is made beside it, its results are compared with those of the old one, to the bit, on a made image, and
    only then its files take their places.

    Raises:
        BundleError: The bundle needs no upgrade, or gives other results afterwards, or its YAML cannot be understood.
    """
    old = BundleFiles(root)
    if not isinstance(old.inference_document.get("calibration"), dict):
        raise BundleError(
            f"{old.name}: inference.yaml holds no numbers of a calibration, as bundles of earlier versions do; there is "
            "nothing to upgrade"
        )
    sha256 = old.sha256 if any(root.glob("**/model.pt")) else None
    with tempfile.TemporaryDirectory(prefix="monai-unet-upgrade-") as folder:
        before, after = (Path(folder) / name / root.resolve().name for name in ("before", "after"))
        for copy in (before, after):
            shutil.copytree(root, copy, ignore=shutil.ignore_patterns("run", "eval", "cache", "data", "folds"))
        fitted = _rewrite(after)
        write_json(fitted, after / FITTED, "fitted")
        _compare(before, after)
        texts = dict(_new_texts(root, before, after, fitted))
    (root / "models").mkdir(exist_ok=True)
    replace_together({root / name: text for name, text in texts.items()})
    metadata = root / "configs/metadata.json"
    facts = metadata.read_text(encoding="utf-8")
    if sha256 and sha256 in facts:  # figures of this very bundle are still true
        replace_together({metadata: facts.replace(sha256, BundleFiles(root).sha256)})
    return list(texts)


def _rewrite(root: Path) -> dict[str, Any]:
    """Rewrites the configs in a folder; gives the document fitted.json."""
    paths = {name: root / f"configs/{name}.yaml" for name in CONFIGS}
    texts = {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path.is_file()}
    bundle = Bundle(root)
    document = bundle.inference_document
    texts, folds = _without_ensemble(texts)
    text, steps = _without_tidy(texts["inference"], bundle)
    text, form = _with_calibration(text, bundle)
    text = re.sub(r"(?m)^imports:\n(?:- .*\n)+", _with_imports, text, count=1)
    fitted = neutral(form, document["calibration"])
    fitted["calibration"] |= {"plain": document["calibration"], "tta": _of_averages(document)}
    fitted["tidy"]["steps"] = steps
    if "thresholds" in document and _BY_US in text:
        fitted["thresholds"]["values"] = document["thresholds"]
        read = "thresholds: \"$@fitted['thresholds']['values'] or [0.5] * len(@labels)\"\n"
        text = re.sub(r"(?m)^thresholds: \[.*\n", read, text).replace(f"  # {_BY_US}, with `thresholds`", "")
    texts["inference"] = text
    texts = _with_networks(texts)
    if folds > 1:
        fitted["folds"] = {"number": folds, "why": f"the mean of the networks of {folds} folds"}
    for name, text in texts.items():
        end = "\r\n" if b"\r\n" in paths[name].read_bytes() else "\n"
        paths[name].write_text(text, encoding="utf-8", newline=end)
    return fitted


def _of_averages(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The calibration of averages over mirror images; None where its floats are 0, which meant "as without them"."""
    numbers = document.get("calibration_tta") or {}
    return numbers if any(isinstance(value, float) and value for value in numbers.values()) else None


def _with_imports(block: re.Match[str]) -> str:
    lines = block[0].splitlines(keepends=True)
    new = [f"- $import {name}\n" for name in ("json", "pathlib") if f"- $import {name}\n" not in lines]
    return lines[0] + "".join(sorted([*lines[1:], *new]))


def _with_calibration(text: str, bundle: Bundle) -> tuple[str, str | None]:
    """The text with a calibration that is read from fitted.json, and the name of the form; None for a form of the owner's."""
    calibrate = re.search(r"""(?m)^calibrate: (["'])\$lambda logits, c=@calibration: (.*)\1\n""", text)
    form = next(
        (name for name, old in _OLD_FORMS.items() if calibrate and re.fullmatch(old, calibrate[2].strip())), None
    )
    block = yaml_block("calibration", bundle)
    if form is None:
        reads = [line for line in block.splitlines() if re.match(r"fitted:|calibration(_tta)?: ", line)]
        fitted, plain, tta = (f"{line}\n" for line in reads)
        text = re.sub(r"(?m)^calibration: \{.*\n", lambda old: fitted + plain, text, count=1)
        return re.sub(r"(?m)^calibration_tta: .*\n", lambda old: tta, text), None
    for name in ("calibration_tta", "mean_nearby", "mixture", "each", "by_channel"):
        text = re.sub(rf"(?m)^{name}: .*\n(?:  .*\n)*", "", text)
    text = re.sub(r"(?m)(?:^#.*\n)*^calibration: \{.*\n", "", text, count=1)
    return re.sub(r"(?m)^calibrate: .*\n", lambda old: block, text, count=1), form


def _without_tidy(text: str, bundle: Bundle) -> tuple[str, list[dict[str, Any]]]:
    """The text whose `tidy` reads fitted.json, and the steps that `calibrate` chose; a `tidy` of the owner stays as it is."""
    block = re.search(rf"(?m)^tidy:  # {_BY_US}.*\n((?:(?:# \||- | +\S).*\n)*)", text)
    empty = re.search(r"(?m)^tidy: \[\].*\n(?:# .*\n)*", text)
    steps: list[dict[str, Any]] = []
    if block:
        reasons = re.findall(r"(?m)^# \| (.*)", block[1])
        for why, transform in zip(reasons, yaml.safe_load(block[1]), strict=True):
            if transform["_target_"] not in _STEPS:
                return text.replace(f"  # {_BY_US}; with [] in its place it begins anew", ""), []
            shift = 1 - bundle.outputs.background
            everyone = [segment.number for segment in bundle.segments]
            named = [number + shift for number in transform.get("applied_labels", ())] or everyone
            values = (
                {"min_size": transform["min_size"]}
                if transform["_target_"] == "RemoveSmallObjectsd"
                else {"structures": named}
            )
            steps.append({"step": _STEPS[transform["_target_"]], **values, "why": why})
    found = block or empty
    if found is None:
        return text, []
    return text[: found.start()] + yaml_block("steps", bundle) + text[found.end() :], steps


_BEGIN = "# The networks of the folds, by monai-unet train --deliver ensemble; their answer is the mean of their logits"
_END = "# End of the networks of the folds"
_NETWORK = re.compile(r"(?m)^(?:network_def|network_\d+):\n  _target_: DynUNet\n((?:  .*\n)+)")
_LAYER = re.compile(r"(?m)^feature_layer: (?:0\.)?(\S+).*\n")


def _without_ensemble(texts: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """The configs for a single network, and of how many folds an ensemble had networks; 1 where it is none."""
    inference = texts["inference"]
    block = re.search(rf"(?m)^{re.escape(_BEGIN)}\n(?:.*\n)*?{re.escape(_END)}\n", inference)
    if block is None:
        return dict(texts), 1
    count = len(re.findall(r'"@network_\d+"', block[0].split("modules:")[1].split("\n")[0]))
    inference = re.sub(r"(?m)^network_1:", "network_def:", inference.replace(block[0], ""), count=1)
    inference = re.sub(r"(?m)^feature_layer: 0\.", "feature_layer: ", inference)
    for several, single in (
        ("\n  _target_: EnsembleEvaluator\n", "\n  _target_: SupervisedEvaluator\n"),
        ('\n  networks: "$list(@network)"\n  pred_keys: "@answers"\n', '\n  network: "@network"\n'),
        ('"$@mean + @result + @save"\n', '"$@result + @save"\n'),
    ):
        inference = inference.replace(several, single)
    return {**texts, "inference": inference}, count


def _with_networks(texts: Mapping[str, str]) -> dict[str, str]:
    """The configs whose `network_def` reads from fitted.json how many networks answer; as they are if nobody planned them."""
    text, changed = texts["inference"], dict(texts)
    networks, layer = _NETWORK.findall(text), _LAYER.search(text)
    if not networks or layer is None or len(set(networks)) > 1:
        return changed
    text = re.sub(r"(?m)^# Their answer is the mean.*\nnetwork_def: \{_target_: torch.nn.ModuleList.*\n", "", text)
    text = re.sub(r"(?m)^mean:\n(?:[- ].*\n)+", "", text)
    lines = _NETWORK_LINES.format(networks=len(networks), layer=layer[1])
    text = _NETWORK.sub("", _LAYER.sub(lambda old: f"{_NEW_NETWORK}{networks[0]}{lines}", text, count=1))
    for pattern, new in (
        (r"\n  _target_: (?:Supervised|Ensemble)Evaluator\n", "\n  _target_: EnsembleEvaluator\n"),
        (r'\n  network: "@network"\n|\n  networks: "\$list\(@network\)"\n  pred_keys: .*\n', _EVALUATED),
        (r'\npostprocessing:\n  _target_: Compose\n  transforms: "\$(?:@mean \+ )?@result \+ @save"\n', _POSTPROCESSED),
    ):
        text, count = re.subn(pattern, lambda old, new=new: new, text)  # type: ignore[misc]
        if count != 1:
            return changed
    changed["inference"] = text
    for name, single, several in (
        ("evaluate", '\n  transforms: "@result"\n', '\n  transforms: "$@mean + @result"\n'),
        ("calibrate", "\npostprocessing: null\n", '\npostprocessing: {_target_: Compose, transforms: "@mean"}\n'),
    ):
        if name in changed:
            changed[name] = changed[name].replace(single, several)
    return changed


_NEW_NETWORK = "new_network:\n  _target_: DynUNet\n  _mode_: callable\n"
_NETWORK_LINES = """\
# The answer of several networks is the mean of their logits; how far they differ tells good results from poor ones
networks: {networks}  # trained side by side
folds: "$@fitted['folds']['number']"  # whose networks answer together; `train --deliver ensemble` sets their number
of_fold: {{folds: 1}}  # where the networks of one fold are meant, whose weights lie in folds/
count: "$@networks * @folds"
network_def: "$@new_network() if @count == 1 else torch.nn.ModuleList([@new_network() for _ in range(@count)])"
feature_layer: "$'{layer}' if @count == 1 else '0.{layer}'"  # its statistics tell unusual images from those of the training
"""
_EVALUATED = '\n  networks: "$[@network] if @count == 1 else list(@network)"\n  pred_keys: "@answers"\n'
_POSTPROCESSED = """
answers: "$['pred'] if @count == 1 else [f'pred_{n}' for n in range(@count)]"
mean: "$[] if @count == 1 else [monai.transforms.MeanEnsembled(@answers, output_key='pred')]"
postprocessing:
  _target_: Compose
  transforms: "$@mean + @result + @save"
"""


def _compare(before: Path, after: Path) -> None:
    """Raises BundleError unless both give the same labels and probabilities of a made image, plain and averaged."""
    if not (before / WEIGHTS).is_file():  # a template, or a run that is not finished: any weights will do
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            weights = half_weights(Bundle(before).part("network_def"))
        for root in (before, after):
            (root / "models").mkdir(exist_ok=True)
            torch.save(weights, root / WEIGHTS)
    old, new = Bundle(before), Bundle(after)
    image = made_image(old)
    for tta in (False, True):
        results = [
            segment_case(
                image, bundle, PredictConfig(ResultSettings(tta=tta)), keep="probabilities", fitting=True
            ).segmentation
            for bundle in (old, new)
        ]
        arrays = [(np.asarray(one.labels), np.asarray(one.probabilities)) for one in results]
        if not all(np.array_equal(one, other) for one, other in zip(*arrays, strict=True)):
            raise BundleError(
                f"{old.name}: the upgraded bundle gives other results than before, so nothing was changed; equal results are "
                "needed; add the lines of docs/bundles.md to inference.yaml yourself, and calibrate again"
            )


def made_image(bundle: Bundle) -> Volume:
    """Smooth noise on a grid that the bundle accepts: of volumes an oblique one, resampled, with axes in another order."""
    rules = bundle.rules
    low, high = rules.spacing_mm or (0.0, np.inf)
    spacing = np.clip(np.array(bundle.grid_spacing or [1.0] * 3) * [0.93, 1.1, 1.0], 1.01 * low, 0.99 * high)
    extent = 1.1 * np.array(rules.extent_mm[0] if rules.extent_mm else [40] * rules.axes)
    shape = [*np.ceil(extent / (1 if rules.planar else spacing)).astype(int), 1][:3]
    noise = np.random.default_rng(0).normal(size=(*shape, rules.channels))
    smooth = gaussian_filter(noise, [2 * (size > 1) for size in shape] + [0])
    scaled = 40 + 175 * (smooth - smooth.min()) / np.ptp(smooth)
    voxels = (scaled[..., 0] if rules.channels == 1 else scaled).astype(np.uint8 if rules.planar else np.float32)
    if rules.planar:
        return Volume(voxels, np.eye(4), planar=True)
    turn = np.array([[0.98, -(0.0396**0.5), 0], [0.0396**0.5, 0.98, 0], [0, 0, 1]])
    return Volume.from_ras(
        np.moveaxis(voxels, 2, 0), from_matvec((turn * spacing)[:, [2, 0, 1]] * [1, -1, 1], [9, 31, -40])
    )


def _new_texts(root: Path, before: Path, after: Path, fitted: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of each file of the bundle that changes: configs, fitted.json, and records with digests of these."""
    for config in sorted((after / "configs").glob("*.yaml")):
        name = config.relative_to(after).as_posix()
        if (content := config.read_bytes()) != (before / name).read_bytes():
            yield name, content.decode()
    old, new = Bundle(before), Bundle(after)
    held = False
    if (document := old.confidence_document) is not None:
        for setting, entry in document["settings"].items():
            of_setting: InferenceSetting = "tta" if setting == "tta" else "plain"
            if entry.get("fitted_to") == fitted_to(old, of_setting):
                entry["fitted_to"], held = fitted_to(new, of_setting), True
        yield CONFIDENCE, json.dumps(document, ensure_ascii=False) + "\n"  # on one line, as `calibrate` writes it
    # Statements that held say that the calibration beside them was fitted to these weights
    digests = digests_before(new) if held else None
    yield FITTED, _json({**fitted, "calibration": {**fitted["calibration"], "fitted_to": digests}})
    configs = ("configs/inference.yaml", "configs/train.yaml")
    recipe = _old_recipe([before / name for name in configs]) if (before / configs[1]).is_file() else None
    for path in sorted((*root.glob("models/run.json"), *root.glob("run/run.json"), *root.glob("folds/*/*/run.json"))):
        record = json_of(path)
        if recipe and record.get("recipe_sha256") == recipe:
            record["recipe_sha256"] = recipe_sha256([after / name for name in configs])
            yield path.relative_to(root).as_posix(), _json(record)


def _json(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _old_recipe(configs: Sequence[Path]) -> str:
    """`recipe_sha256` as it was: without what was found or delivered after the training."""
    inference, train = (path.read_text(encoding="utf-8") for path in configs)
    texts = _without_ensemble({"inference": inference})[0]["inference"], train
    recipe = re.sub(r"(?m)^calibration(_tta)?: .*$", "", "".join(map(_without_chosen, texts)))
    return hashlib.sha256(recipe.encode()).hexdigest()


def _without_chosen(text: str) -> str:
    text = re.sub(rf"(?m)^(?:# \| .*\n)?thresholds: \[.*\]  # {_BY_US}.*\n", "", text)
    text = re.sub(rf"(?m)^- _target_: Lambdad  # {_BY_US}, with `thresholds`\n(?:  .*\n)*", "", text)
    return re.sub(rf"(?m)^tidy:  # {_BY_US}.*\n(?:(?:# \||- | +\S).*\n)*", "tidy: []\n", text)
