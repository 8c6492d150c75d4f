"""A bundle in the form of MONAI's model zoo as one of ours: the same network, preprocessing and windows.

Its configs are read as data. An expression counts where it says a plain value, such as `$[1.5, 1.5, 2.0] if @fine else
[3.0, 3.0, 3.0]`; nothing else in them is run, neither now nor later. What needs code runs as a program, see `bundle external`.
"""

import ast
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser
from monai.networks import nets

from monai_unet_app.bundle import Bundle
from monai_unet_app.calibration.fitted import begin_fitted, change_fitted
from monai_unet_app.data.datalist import modality_of
from monai_unet_app.data.schemas import write_json
from monai_unet_app.data.structures import StatedStructure
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.planning.family import layer_line, yaml_text
from monai_unet_app.planning.write import LICENSE, config_text, metadata, segments_of, whole_folder
from monai_unet_app.training.identity import CARD, REQUIRED, card_of, derived_facts

WEIGHTS = "models/model.pt"
_READING = ("LoadImaged", "EnsureChannelFirstd", "EnsureTyped", "CastToTyped", "ToTensord")
"""What our own reader does, or what changes no value."""

_INTENSITIES = (
    "ScaleIntensityd", "ScaleIntensityRanged", "ScaleIntensityRangePercentilesd", "NormalizeIntensityd", "ShiftIntensityd",
    "ThresholdIntensityd",
)  # fmt: skip
_DECIDING = ("Activationsd", "AsDiscreted", "Invertd", "SaveImaged", "KeepLargestConnectedComponentd")
_SLIDING = ("overlap", "mode", "sigma_scale", "padding_mode", "cval")
_GONE = {"SwinUNETR": "img_size"}  # an argument of older versions of MONAI, which says nothing of the weights
_PLAIN = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.Dict, ast.Subscript, ast.Slice, ast.IfExp,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Add, ast.Sub, ast.Div, ast.FloorDiv, ast.USub,
    ast.Not, ast.And, ast.Or, ast.cmpop,
)  # fmt: skip
_MOST_FOLLOWED = 50  # references, one behind the other
_KNOWN = {function.__name__: function for function in (len, list, tuple, int, float, str)}
_KEYS = {"monai.utils.CommonKeys.IMAGE": "'image'", "monai.utils.CommonKeys.PRED": "'pred'"}
_REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")


class Config:
    """A config of a bundle, whose values are made plain without running code."""

    def __init__(self, document: Any, name: str) -> None:
        self._document, self.name = document, name

    def entry(self, place: str, followed: int = 0) -> Any:
        """What stands at an id, such as "inferer::overlap"; references are followed, expressions stay."""
        found = self._document
        if followed > _MOST_FOLLOWED:
            raise InputRefusedError(f"{self.name}: {place} refers to itself; a config that MONAI can read is needed")
        for part in re.split(r"#|::", place):
            try:
                found = found[int(part) if isinstance(found, list) else part]
            except (LookupError, TypeError, ValueError) as error:
                raise InputRefusedError(f"{self.name} does not say {place}; a bundle that says it is needed") from error
            if isinstance(found, str) and _REFERENCE.fullmatch(found.removeprefix("$")):
                found = self.entry(found.removeprefix("$")[1:], followed + 1)
        return found

    def value(self, place: str) -> Any:
        """The plain value at an id. Raises InputRefusedError where it is code or not there."""
        return self.plain(self.entry(place))

    def plain(self, entry: Any) -> Any:
        """An entry with what its references and expressions stand for."""
        if isinstance(entry, dict):
            return {key: self.plain(one) for key, one in entry.items()}
        if isinstance(entry, list):
            return [self.plain(one) for one in entry]
        if not isinstance(entry, str) or entry[:1] not in ("$", "@"):
            return entry
        text = entry.removeprefix("$")
        try:
            for key, value in _KEYS.items():
                text = text.replace(key, value)
            places = dict.fromkeys(_REFERENCE.findall(text))
            names = {place: f"value_{number}" for number, place in enumerate(places)}
            tree = ast.parse(_REFERENCE.sub(lambda found: names[found[1]], text), mode="eval")
            values = _KNOWN | {name: self.value(place) for place, name in names.items()}
            for node in ast.walk(tree):
                if not isinstance(node, _PLAIN) or (isinstance(node, ast.Name) and node.id not in values):
                    raise SyntaxError("it is code")
            return eval(compile(tree, self.name, "eval"), {"__builtins__": {}}, values)
        except (SyntaxError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise InputRefusedError(
                f"{self.name} says {entry[:120]!r}, which is no plain value; code of a bundle is not run here; write the value "
                "in its place, or run the bundle as a program (monai-unet bundle external)"
            ) from error


@dataclass(frozen=True)
class ZooBundle:
    """What a bundle in the form of the zoo says.

    Attributes:
        root: Its folder.
        named: Channel of its answer -> name, where that differs from what its metadata say.
    """

    root: Path
    named: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """`configs/metadata.json`."""
        return _read(self.root / "configs/metadata.json")

    @cached_property
    def config(self) -> Config:
        """`configs/inference.json` or `.yaml`."""
        for ending in ("json", "yaml", "yml"):
            if (path := self.root / f"configs/inference.{ending}").is_file():
                return Config(_read(path), path.name)
        raise InputRefusedError(
            f"{self.root.name} has no configs/inference.json or .yaml; a bundle that has one is needed"
        )

    @cached_property
    def network_def(self) -> dict[str, Any]:
        """The network: a class of `monai.networks.nets` and its arguments."""
        entry = self.config.entry("network_def")
        said = entry if isinstance(entry, dict) else {"_target_": entry}
        name = str(said.get("_target_", "")).removeprefix("monai.networks.nets.")
        kind = getattr(nets, name, None) if name.isidentifier() else None
        if kind is None or "_target_" in json.dumps([value for key, value in said.items() if key != "_target_"]):
            raise InputRefusedError(
                f"the network of {self.root.name} is {name or 'not told'}; one of MONAI's, with plain arguments, is needed; "
                "run the bundle as a program (monai-unet bundle external)"
            )
        taken = inspect.signature(kind).parameters
        return {
            key: self.config.plain(value)
            for key, value in (said | {"_target_": name}).items()
            if key in taken or key != _GONE.get(name)
        }

    def transforms(self, place: str, known: Sequence[str]) -> list[dict[str, Any]]:
        """The entries of a Compose by MONAI's plain names, in their order; InputRefusedError for others than those known."""
        entries = [
            {**entry, "_target_": str(entry["_target_"]).removeprefix("monai.transforms.")}
            for entry in self.config.entry(f"{place}::transforms")
        ]
        if others := [entry["_target_"] for entry in entries if entry["_target_"] not in known]:
            raise InputRefusedError(
                f"{place} of {self.root.name} has {', '.join(others)}; some of {', '.join(known)} are possible; take the "
                "others out if the result may do without them, or run the bundle as a program (monai-unet bundle external)"
            )
        return entries

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """What it does to an image before the network, in our reader's terms."""
        steps = []
        for entry in self.transforms("preprocessing", (*_READING, "Orientationd", "Spacingd", *_INTENSITIES)):
            name, plain = (
                entry["_target_"],
                {key: value for key, value in entry.items() if key not in ("_target_", "keys")},
            )
            if name in _READING:
                continue
            plain = {key: self.config.plain(value) for key, value in plain.items()}
            if name in _INTENSITIES:
                steps.append({"_target_": name, "keys": "image", **plain})
                continue
            modes = {"mode": ["bilinear", "nearest"]} if name == "Spacingd" else {"labels": None}
            if name == "Spacingd" and _one(plain.get("mode", "bilinear")) not in ("bilinear", 1):
                raise InputRefusedError(f"{self.root.name} resamples by {plain['mode']}; bilinear is needed")
            both = {"_target_": name, "keys": ["image", "label"], **plain, **modes, "allow_missing_keys": True}
            steps.append(both)
        return steps

    @cached_property
    def sliding(self) -> dict[str, Any]:
        """Its windows: "window", "slice_axis", and how they are laid and weighted, with MONAI's defaults."""
        said = self.config.entry("inferer")
        name = str(said["_target_"]).rpartition(".")[2]
        if name not in ("SlidingWindowInferer", "SliceInferer"):
            raise InputRefusedError(
                f"the inferer of {self.root.name} is {name}; SlidingWindowInferer or SliceInferer is needed"
            )
        found = {"overlap": 0.25, "mode": "constant", "sigma_scale": 0.125, "padding_mode": "constant", "cval": 0.0}
        found |= {key: self.config.plain(said[key]) for key in _SLIDING if key in said}
        axes = int(self.network_def.get("spatial_dims", 3))
        size = self.config.plain(said["roi_size"])
        window = [size] * axes if isinstance(size, int) else list(size)
        slice_axis = self.config.plain(said.get("spatial_dim", 0)) if name == "SliceInferer" else None
        return found | {"window": window, "slice_axis": slice_axis}

    @cached_property
    def has_background(self) -> bool:
        """Whether one class of all wins at a voxel, by argmax; else each channel decides by itself, by sigmoid at 0.5."""
        entries = {entry["_target_"]: entry for entry in self.transforms("postprocessing", _DECIDING)}
        decided, activation = entries.get("AsDiscreted", {}), entries.get("Activationsd", {})
        if self.config.plain(decided.get("argmax", False)) is True:
            return True
        if (
            self.config.plain(decided.get("threshold")) != 0.5
            or self.config.plain(activation.get("sigmoid")) is not True
        ):
            raise InputRefusedError(
                f"{self.root.name} decides neither by argmax nor by sigmoid at 0.5; one of these is needed"
            )
        return False

    @cached_property
    def names(self) -> list[str]:
        """Of the channels of its answer, in their order."""
        stated = (
            self.metadata.get("network_data_format", {}).get("outputs", {}).get("pred", {}).get("channel_def") or {}
        )
        names = {int(channel): str(name) for channel, name in stated.items()} | dict(self.named)
        if sorted(names) != list(range(len(names))) or len(names) < 1 + self.has_background:
            raise InputRefusedError(
                f"configs/metadata.json of {self.root.name} does not name each channel of its answer (channel_def of pred); "
                "name each by --structure CHANNEL=NAME, the background as channel 0"
            )
        return [names[number] for number in sorted(names)]

    @cached_property
    def image(self) -> Mapping[str, Any]:
        """What its metadata say of the image."""
        return dict(self.metadata.get("network_data_format", {}).get("inputs", {}).get("image", {}))

    @property
    def origin(self) -> dict[str, str]:
        """Its name and version."""
        return {"name": self.root.name, "version": str(self.metadata.get("version", "not stated"))}

    @property
    def decides_first(self) -> bool:
        """Whether it takes labels back to the grid of the image, by the nearest voxel; we take probabilities back."""
        order = [entry["_target_"] for entry in self.transforms("postprocessing", _DECIDING)]
        return "Invertd" in order and order.index("AsDiscreted") < order.index("Invertd")

    @cached_property
    def largest(self) -> list[int]:
        """The structures of which only the largest part stays."""
        kept = [
            one for one in self.transforms("postprocessing", _DECIDING) if one["_target_"].startswith("KeepLargest")
        ]
        return [number for one in kept for number in self.config.plain(one.get("applied_labels") or [])]


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(ConfigParser.load_config_file(path))  # reads; what it says is evaluated elsewhere
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise InputRefusedError(
            f"{path.name} cannot be read ({error}); a whole bundle is needed; copy it again"
        ) from error


def bundle_of_zoo(zoo: ZooBundle, output: Path) -> Bundle:
    """Writes the bundle, whole or not at all.

    Raises:
        InputRefusedError: The bundle needs code of its own, has parts that are not known here, or weights of another network.
        UsageError: The output exists.
    """
    values = config_values(zoo)
    network, state = _trained(zoo)
    layer, channels = _deepest(network, [int(values["channels"]), *zoo.sliding["window"]])
    if channels != len(zoo.names):
        raise InputRefusedError(
            f"the network of {zoo.root.name} answers with {channels} channels, and {len(zoo.names)} have a name "
            f"({', '.join(zoo.names)}); name each by --structure CHANNEL=NAME"
        )
    values["feature_layer"] = layer_line(layer)
    with whole_folder(output) as root:
        for folder in ("configs", "models", "docs"):
            (root / folder).mkdir()
        overlays = ["calibrate", "evaluate", *([] if values["planar"] or values["files"] > 1 else ["inference_dicom"])]
        for name in ("inference", *overlays):
            (root / f"configs/{name}.yaml").write_text(config_text(name, values), encoding="utf-8")
        structures = zoo.names[1:] if zoo.has_background else zoo.names
        write_json(
            segments_of([StatedStructure(name) for name in structures], output.name), root / "configs/segments.json"
        )
        licence = zoo.root / "LICENSE"
        (root / "LICENSE").write_text(licence.read_text("utf-8") if licence.is_file() else LICENSE, encoding="utf-8")
        torch.save(state, root / WEIGHTS)
        stated = metadata(output.name, {}) | {key: zoo.metadata[key] for key in REQUIRED if key in zoo.metadata}
        stated |= {"changelog": {"0.1.0": "imported from a MONAI bundle"}, "imported": zoo.origin}
        write_json(stated, root / "configs/metadata.json")
        begin_fitted(root)
        if zoo.largest:
            step = {"step": "largest", "structures": zoo.largest, "why": "as the imported bundle does"}
            change_fitted(root, "tidy", steps=[step], why="as the imported bundle does")
        facts = stated | derived_facts(root)
        write_json(facts, root / "configs/metadata.json")
        (root / CARD).write_text(card_of(facts, root), encoding="utf-8")
    return Bundle(output)


def config_values(zoo: ZooBundle) -> dict[str, Any]:
    """What the templates of the configs need."""
    channels, modality = int(zoo.image.get("num_channels", 1)), modality_of(str(zoo.image.get("modality", "")))
    axes, sliding = int(zoo.network_def.get("spatial_dims", 3)), zoo.sliding
    planar, placed = axes == 2 and sliding["slice_axis"] is None, {step["_target_"]: step for step in zoo.steps}
    if not planar and "Orientationd" not in placed:
        raise InputRefusedError(
            f"{zoo.root.name} takes images as they lie in their file, and DICOM lies otherwise than NIfTI; write the axes of "
            "its training images as Orientationd into its preprocessing"
        )
    files = 1 if planar else channels
    named = {int(number): str(name) for number, name in (zoo.image.get("channel_def") or {}).items()}
    rules: dict[str, Any] = {
        "channels": [named.get(n, f"channel_{n}") for n in range(files)] if files > 1 else channels
    }
    rules |= {"planar": True} if planar else {"modality": [modality]} if modality else {}
    return {
        "image_words": f"images of {zoo.root.name}",
        "structure_words": "its structures",
        "why": defaultdict(str),
        "pattern": "*.png" if planar else "*_0000.nii.gz" if files > 1 else "*.nii.gz",
        "input_rules": rules,
        "planar": planar,
        "binary": False,
        "labels": zoo.names,
        "label_values": None,
        "ignore_label": None,
        "label_suffix": "",
        "outputs": "exclusive" if zoo.has_background else "overlapping",
        "mirror_axes": [],
        "spacing_mm": placed.get("Spacingd", {}).get("pixdim"),
        "files": files,
        "channels": channels,
        "steps": "".join(f"- {yaml_text(step)}\n" for step in zoo.steps),
        "new_network": f"new_network: {yaml_text(zoo.network_def | {'_mode_': 'callable'})}\n",
        "networks": 1,
        "windows_at_once": 4,
        **sliding,
    }


def _trained(zoo: ZooBundle) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The network with its weights, and these alone."""
    path = zoo.root / WEIGHTS
    arguments = {key: value for key, value in zoo.network_def.items() if key != "_target_"}
    try:
        network: torch.nn.Module = getattr(nets, zoo.network_def["_target_"])(**arguments)
        found = torch.load(path, map_location="cpu", weights_only=True)
        state = next((found[key] for key in ("model", "state_dict", "net") if isinstance(found.get(key), dict)), found)
        network.load_state_dict(state)
    except (
        Exception
    ) as error:  # pickle, zip, key, type and shape errors all mean that these are not the weights of this network
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputRefusedError(
            f"{zoo.root.name}: {WEIGHTS} cannot be used ({reason}); the weights of the network that configs/inference names, "
            "without code, are needed; python -m monai.bundle download brings them (a model.ts is a program, and is not read)"
        ) from error
    return network.eval(), network.state_dict()


def _deepest(network: torch.nn.Module, shape: Sequence[int]) -> tuple[str, int]:
    """The layer whose answer to a window has the fewest places, and the channels of the network's own answer."""
    fewest, layer = float("inf"), ""

    def look(name: str, answer: Any) -> None:
        nonlocal fewest, layer
        if isinstance(answer, torch.Tensor) and answer.ndim == len(shape) + 1:
            places = answer[0, 0].numel()
            if 1 < places <= fewest:
                fewest, layer = places, name

    for name, module in network.named_modules():
        module.register_forward_hook(lambda _, __, answer, name=name: look(name, answer))
    with torch.inference_mode():
        answer = network(torch.zeros(1, *shape))
    return layer, int(answer.shape[1])
