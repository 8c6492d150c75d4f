"""A bundle in the form of MONAI's model zoo as one of ours: the same network, preprocessing and windows.

Its configs are read as data, see `zoo_config`; nothing in them is run, neither now nor later. `zoo.schema.json` says what is
taken: all else could change a label. What needs code runs as a program of its own, see `bundle external`.
"""

import math
import pickletools
import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import monai
import torch
from monai.networks import nets

from monai_unet_app.bundle import Bundle
from monai_unet_app.calibration.fitted import change_fitted
from monai_unet_app.data.datalist import modality_of
from monai_unet_app.data.schemas import validate
from monai_unet_app.data.structures import StatedStructure
from monai_unet_app.errors import AppError, InputRefusedError, first_line
from monai_unet_app.planning.family import layer_line, yaml_text
from monai_unet_app.planning.write import LICENSE, OF_OTHERS, check_new, metadata, whole_folder, write_files
from monai_unet_app.planning.zoo_config import Config, checked_text, plain_file, read_config, shown
from monai_unet_app.training.identity import REQUIRED, write_card
from monai_unet_app.weights import unwrapped

WEIGHTS = "models/model.pt"
_READING = ("LoadImaged", "EnsureChannelFirstd", "EnsureTyped", "CastToTyped", "ToTensord")
"""What our own reader does, or what changes no value."""

_SAYS_NOTHING = {
    "_target_", "_desc_", "keys", "image_only", "ensure_channel_first", "simple_keys", "expanduser", "strict_check",
    "data_type", "device", "wrap_sequence", "track_meta", "to_tensor", "meta_keys", "orig_meta_keys", "meta_key_postfix",
    "allow_missing_keys", "sw_batch_size", "sw_device", "progress", "cache_roi_weight_map", "cpu_thresh", "buffer_steps",
    "buffer_dim",
}  # fmt: skip
_WIRED = {
    "evaluator::network": r"\$?@network(_def)?",
    "evaluator::inferer": r"\$?@inferer",
    "evaluator::postprocessing": r"\$?@postprocessing",
    "evaluator::val_data_loader": r"\$?@dataloader",
    "dataloader::dataset": r"\$?@dataset",
    "dataset::transform": r"\$?@preprocessing",
}
"""How a config joins its parts; otherwise MONAI would run something else than they say."""

_OF_EVALUATOR = {
    "_target_", "_desc_", "device", "amp", "val_handlers", "key_val_metric", "additional_metrics",
    "val_data_loader", "network", "inferer", "postprocessing",
}  # fmt: skip
_NETWORK = re.compile(r"\$?@network_def(\.to\(@device\))?")
_RUN = re.compile(
    r"\$import \w+|\$?@evaluator\.run\(\)|\$monai\.utils\.set_determinism\((seed=)?\d+\)|"
    r"\$@(checkpointloader|handlers#\d+)\(@evaluator\)( if @load_pretrain else None)?|"
    r"\$setattr\(torch\.backends\.cudnn, 'benchmark', (True|False)\)"
)
"""Lines of `initialize` and `run` that change no result."""

_FLOAT32 = re.compile(r"\$?((torch|np|numpy)\.)?float32")
_MOST_WINDOW = 1 << 24
_TENSORS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage")
"""What a file of weights may name: nothing else is needed for tensors by their names."""


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
    def origin(self) -> dict[str, str]:
        """Its name and version."""
        texts = {"name": self.root.name, "version": str(self.metadata.get("version", "not stated"))}
        return {key: re.sub(r"[^\w .-]", "_", text)[:64] for key, text in texts.items()}

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """`configs/metadata.json`."""
        return read_config(self.root / "configs/metadata.json")

    @cached_property
    def config(self) -> Config:
        """`configs/inference.json` or `.yaml`. Raises InputRefusedError if MONAI would run something else than it says."""
        files = [self.root / f"configs/inference.{ending}" for ending in ("json", "yaml", "yml")]
        if len(there := [file for file in files if file.is_file()]) != 1:
            raise InputRefusedError(
                f"the bundle has {len(there)} of configs/inference.json and .yaml; the one that is meant is needed"
            )
        (path,) = there
        config = Config(read_config(path), path.name)
        for place, usual in _WIRED.items():
            first, second = place.split("::")
            joined = _mapping(config.entry(first)).get(second)
            if not (isinstance(joined, str) and re.fullmatch(usual, joined)):
                raise config.refusal(f"{shown(joined)} at {place}; a bundle that joins its own parts is needed")
        network = config.raw("network")
        lines = [line for name in ("initialize", "run", "inference", "evaluating") for line in config.raw(name) or ()]
        odd = [
            one
            for one in (network, *lines)
            if one is not None and not (isinstance(one, str) and (_NETWORK if one is network else _RUN).fullmatch(one))
        ]
        odd += sorted(set(_mapping(config.entry("evaluator"))) - _OF_EVALUATOR)
        if odd:
            raise config.refusal(f"{shown(odd[0])}, which could change what its parts say; leave it out")
        return config

    @cached_property
    def parts(self) -> dict[str, Any]:
        """Network, transforms, inferer and names as plain values, as `zoo.schema.json` has them."""
        config = self.config
        parts: dict[str, Any] = {
            "schema_version": "1.0",
            "network_def": self._plain(_mapping(config.entry("network_def")), "monai.networks.nets"),
            "preprocessing": self._transforms("preprocessing", "image"),
            "inferer": self._plain(_mapping(config.entry("inferer")), "monai.inferers"),
            "postprocessing": self._transforms("postprocessing", "pred"),
            "names": self._names(),
        }
        try:
            validate(parts, "zoo")
        except InputRefusedError as error:
            remedy = "take it out if the result may do without it, or run the bundle as a program (monai-unet bundle external)"
            raise InputRefusedError(f"{error}; {remedy}") from error
        if (network := parts["network_def"])["_target_"] == "SwinUNETR":
            network.pop("img_size", None)  # of older versions of MONAI; it says nothing of the weights
        return parts

    def _plain(self, entry: Mapping[str, Any], home: str) -> dict[str, Any]:
        """An entry with the name of its class in MONAI, and its arguments as plain values, without those that say nothing."""
        place, _, name = str(entry.get("_target_", ""))[:200].rpartition(".")
        kept = {
            key: self.config.plain(value)
            for key, value in entry.items()
            if key not in _SAYS_NOTHING
            and not (key == "dtype" and isinstance(value, str) and _FLOAT32.fullmatch(value))
            and not (key == "transform" and value in ("@preprocessing", "$@preprocessing"))
        }
        return {"_target_": name if place == "" or place.startswith(home) else f"{place}.{name}", **kept}

    def _transforms(self, place: str, key: str) -> list[dict[str, Any]]:
        around = _mapping(self.config.entry(place))
        if around.get("_target_") not in ("Compose", "monai.transforms.Compose") or set(around) - {
            "_target_",
            "_desc_",
            "transforms",
        }:
            raise self.config.refusal(f"more than a Compose of transforms at {place}; that alone is taken")
        entries = [
            one for one in self.config.entries(f"{place}::transforms") if not one["_target_"].endswith("SaveImaged")
        ]
        for entry in entries:
            if self.config.plain(entry.get("keys")) not in (key, [key]):
                raise self.config.refusal(
                    f"{entry['_target_'][:60]} for {shown(entry.get('keys'))} at {place}; {key} alone is taken"
                )
        return [
            self._plain({name: one for name, one in entry.items() if name != "_disabled_"}, "monai.transforms")
            for entry in entries
        ]

    def _names(self) -> list[str]:
        formats = _mapping(self.metadata.get("network_data_format") or {})
        names = _numbered(_mapping(_mapping(formats.get("outputs") or {}).get("pred") or {}).get("channel_def")) | dict(
            self.named
        )
        if not names or sorted(names) != list(range(len(names))):
            raise InputRefusedError(
                "configs/metadata.json does not name each channel of the answer (channel_def of pred); name each by "
                "--structure CHANNEL=NAME, the background as channel 0"
            )
        texts = [names[number].strip() for number in sorted(names)]
        if any(ord(character) > 0xFFFF for text in texts for character in text):
            raise InputRefusedError(
                "names of channels have characters that YAML files of MONAI cannot hold; name them otherwise"
            )
        return texts

    @property
    def names(self) -> list[str]:
        """Of the channels of its answer, in their order."""
        return list(self.parts["names"])

    @cached_property
    def steps(self) -> dict[str, dict[str, Any]]:
        """What it does to an image before the network, by name, in our reader's terms."""
        steps = {}
        for entry in self.parts["preprocessing"]:
            name, values = entry["_target_"], {key: value for key, value in entry.items() if key != "_target_"}
            placing: dict[str, dict[str, Any]] = {
                "Spacingd": {"mode": ["bilinear", "nearest"]}, "Orientationd": {"labels": None},
            }  # fmt: skip
            more = placing.get(name)
            keys = {"keys": ["image", "label"], "allow_missing_keys": True} if more else {"keys": "image"}
            if name in steps:
                raise InputRefusedError(f"preprocessing has {name} twice; once is taken")
            if name not in _READING:
                steps[name] = {"_target_": name, **keys, **values, **(more or {})}
        return steps

    @cached_property
    def sliding(self) -> dict[str, Any]:
        """Its windows: "window", "slice_axis", and how they are laid and weighted, with MONAI's defaults."""
        said, axes = dict(self.parts["inferer"]), int(self.parts["network_def"].get("spatial_dims", 3))
        sliced, size, axis = said.pop("_target_") == "SliceInferer", said.pop("roi_size"), said.pop("spatial_dim", 0)
        window = size if isinstance(size, list) else [size] * axes
        if len(window) != axes or math.prod(window) > _MOST_WINDOW or (sliced and axes != 2):
            raise InputRefusedError(
                f"the inferer has windows of {size} for a network of {axes} axes; windows that fit it are needed"
            )
        usual = {"overlap": 0.25, "mode": "constant", "sigma_scale": 0.125, "padding_mode": "constant", "cval": 0.0}
        return usual | said | {"window": window, "slice_axis": axis if sliced else None}

    @cached_property
    def deciding(self) -> dict[str, dict[str, Any]]:
        """The transforms behind the network, by name, in their order."""
        found = {
            entry["_target_"]: {key: _one(value) for key, value in entry.items()}
            for entry in self.parts["postprocessing"]
        }
        activation, decision = found.get("Activationsd", {}), found.get("AsDiscreted", {})
        softmax, sigmoid = activation.get("softmax", False), activation.get("sigmoid", False)
        argmax = decision.get("argmax", False)
        wins = argmax and decision.get("threshold") is None and not sigmoid and (softmax or not activation)
        alone = not argmax and decision.get("threshold") == 0.5 and sigmoid and not softmax
        order = " ".join(found)
        usual = r"(Activationsd )?(Invertd )?AsDiscreted( Keep\w+)?|(Activationsd )?AsDiscreted( Keep\w+)? Invertd"
        if len(found) < len(self.parts["postprocessing"]) or not re.fullmatch(usual, order) or not (wins or alone):
            raise InputRefusedError(
                "the postprocessing is not softmax and argmax, or sigmoid and 0.5, each once, with Invertd before or behind, "
                "and at most one KeepLargestConnectedComponentd behind the decision; this is needed"
            )
        return found

    @property
    def has_background(self) -> bool:
        """Whether one class of all wins at a voxel; else each channel decides by itself."""
        return bool(self.deciding["AsDiscreted"].get("argmax", False))

    @property
    def differs(self) -> str:
        """Why labels differ at edges from those that MONAI gives with the bundle; empty where they are equal."""
        order = list(self.deciding)
        if "Invertd" not in order:
            return "it leaves its result on the grid of the network"
        if order[-1] == "Invertd" or self.deciding["Invertd"].get("nearest_interp", True):
            return "it takes its result back to the image by the nearest voxel"
        return "" if "Activationsd" in order else "it takes logits back to the image"

    @cached_property
    def largest(self) -> list[int]:
        """The structures of which only the largest part stays, from 1."""
        if "KeepLargestConnectedComponentd" not in self.deciding:
            return []
        # In a label map MONAI counts values; where each channel has a mask, channels from 0, of which it leaves out the first
        # where none are named
        in_map = self.has_background or len(self.names) == 1
        count = len(self.names) - self.has_background
        possible = range(1, count + 1) if in_map else range(count)
        said = self.deciding["KeepLargestConnectedComponentd"].get("applied_labels")
        chosen = list(possible[0 if in_map else 1 :]) if said is None else said if isinstance(said, list) else [said]
        if not set(chosen) <= set(possible):
            raise InputRefusedError(f"KeepLargestConnectedComponentd is for {chosen}; labels of structures are needed")
        return sorted({label + 1 - possible.start for label in chosen})

    @cached_property
    def weights(self) -> tuple[Path, str]:
        """The file that its config loads, and under which key the weights stand in it, if they are not all of it."""
        places = [
            self.config.raw("checkpointloader"),
            self.config.raw("handlers"),
            _mapping(self.config.entry("evaluator")).get("val_handlers"),
        ]
        entries = [
            entry for one in places for entry in (one if isinstance(one, list) else [one]) if isinstance(entry, dict)
        ]
        loaders = [entry for entry in entries if str(entry.get("_target_"))[:200].endswith("CheckpointLoader")]
        found = {
            (str(self.config.plain(one.get("load_path"))), *_mapping(one.get("load_dict"))) for one in loaders
        } or {(WEIGHTS, "model")}
        root = str(self.config.plain(self.config.raw("bundle_root") or "."))
        path, *keys = found.pop()
        if (
            found
            or len(keys) != 1
            or not re.fullmatch(r"models/[\w.-]+", path := path.removeprefix(f"{root}/").removeprefix("./"))
        ):
            raise self.config.refusal(f"{path[:80]!r} and so on where it loads weights; one file in models/ is needed")
        return self.root / path, keys[0]


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputRefusedError(
            f"the bundle says {shown(value)} where names with values are needed; see the form of MONAI's zoo"
        )
    return value


def _numbered(value: Any) -> dict[int, str]:
    """Number -> text, of what metadata say of channels."""
    found = _mapping(value or {}).items()
    return {int(key): name for key, name in found if re.fullmatch(r"[0-9]{1,4}", str(key)) and isinstance(name, str)}


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 and type(value[0]) is not int else value


def bundle_of_zoo(zoo: ZooBundle, output: Path) -> Bundle:
    """Writes the bundle, whole or not at all.

    Raises:
        InputRefusedError: The bundle needs code of its own, has parts that are not known here, or weights of another network.
        UsageError: The output exists.
    """
    try:
        return _written(zoo, output)
    except AppError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise InputRefusedError(
            f"the bundle cannot be taken ({first_line(error)}); one in the form of MONAI's zoo, which MONAI runs, is needed"
        ) from error


def _written(zoo: ZooBundle, output: Path) -> Bundle:
    check_new(output)
    values = config_values(zoo)
    network, state = _trained(zoo)
    layer, channels = _deepest(network, [int(values["channels"]), *zoo.sliding["window"]])
    if channels != len(zoo.names) or channels < 1 + zoo.has_background:
        raise InputRefusedError(
            f"the network answers with {channels} channels, and {len(zoo.names)} have a name ({', '.join(zoo.names)}); name "
            "each by --structure CHANNEL=NAME"
        )
    named = [name.casefold() == "background" for name in zoo.names]
    if any(named[zoo.has_background :]) or (zoo.has_background and not named[0]):
        raise InputRefusedError(
            f"the channels are called {', '.join(zoo.names)}, and {'the first' if zoo.has_background else 'none'} is the "
            "background; name each by --structure CHANNEL=NAME, channel 0 as background where it is"
        )
    values["feature_layer"] = layer_line(layer)
    with whole_folder(output) as root:
        structures = [StatedStructure(name) for name in zoo.names[zoo.has_background :]]
        licence = zoo.root / "LICENSE"
        terms = plain_file(licence).read_text("utf-8", errors="replace") if licence.exists() else LICENSE
        said = {key: text for key in REQUIRED if isinstance(text := zoo.metadata.get(key), str)}
        stated = metadata(output.name, {}) | {
            key: checked_text(text, f"metadata.json, {key},") for key, text in said.items()
        }
        stated |= {"changelog": {"0.1.0": "imported from a MONAI bundle"}, "imported": zoo.origin}
        facts = write_files(root, values, structures, stated, OF_OTHERS, terms)
        torch.save(state, root / WEIGHTS)
        if zoo.largest:
            step = {"step": "largest", "structures": zoo.largest, "why": "as the imported bundle does"}
            change_fitted(root, "tidy", steps=[step], why="as the imported bundle does")
        write_card(facts, root)
        made = Bundle(root)
        _ = made.network, made.windows, made.preprocessing, made.result
    return Bundle(output)


def config_values(zoo: ZooBundle) -> dict[str, Any]:
    """What the templates of the configs need."""
    inputs = _mapping(_mapping(zoo.metadata.get("network_data_format") or {}).get("inputs") or {})
    image = _mapping(inputs.get("image") or {})
    channels, modality = zoo.parts["network_def"].get("in_channels", 1), modality_of(str(image.get("modality", "")))
    planar = len(zoo.sliding["window"]) == 2 and zoo.sliding["slice_axis"] is None
    if planar and {"Orientationd", "Spacingd"} & set(zoo.steps):
        raise InputRefusedError("the bundle turns or resamples pictures; they are taken as they are; take that out")
    if not planar and "Orientationd" not in zoo.steps:
        raise InputRefusedError(
            "the bundle takes images as they lie in their file, and DICOM lies otherwise than NIfTI; write the axes of its "
            "training images as Orientationd into its preprocessing"
        )
    files, named = 1 if planar else channels, _numbered(image.get("channel_def"))
    names = [re.sub(r"[^\w .-]", "_", named.get(number, f"channel_{number}"))[:64] for number in range(files)]
    names = names if len(set(names)) == files else [f"channel_{number}" for number in range(files)]
    rules: dict[str, Any] = {"channels": names if files > 1 else channels}
    rules |= {"planar": True} if planar else {"modality": [modality]} if modality else {}
    return {
        "image_words": "images",
        "structure_words": "the structures of a MONAI bundle",
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
        "spacing_mm": zoo.steps.get("Spacingd", {}).get("pixdim"),
        "files": files,
        "channels": channels,
        "steps": "".join(f"- {yaml_text(step)}\n" for step in zoo.steps.values()),
        "new_network": f"new_network: {yaml_text(zoo.parts['network_def'] | {'_mode_': 'callable'})}\n",
        "networks": 1,
        "windows_at_once": 4,
        **zoo.sliding,
    }


def _trained(zoo: ZooBundle) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The network without weights, as shapes alone, and its weights."""
    arguments, (path, key) = dict(zoo.parts["network_def"]), zoo.weights
    kind = getattr(nets, arguments.pop("_target_"))
    try:
        # What its arguments ask for may not fit into memory. SwinUNETR reads numbers from a tensor
        with torch.device("cpu" if kind is nets.SwinUNETR else "meta"):
            network: torch.nn.Module = kind(**arguments).to("meta")
    except Exception as error:  # whatever a class of MONAI makes of arguments that it cannot take
        raise InputRefusedError(
            f"MONAI {monai.__version__} cannot build its {kind.__name__} ({first_line(error)})"
        ) from error
    wanted = {name: weight.shape for name, weight in network.state_dict().items()}
    try:
        _check_file(plain_file(path, math.inf), sum(math.prod(shape) for shape in wanted.values()))
        found = torch.load(path, map_location="cpu", weights_only=True)
        state = unwrapped(found[key] if isinstance(found.get(key), dict) else found)
        if {name: weight.shape for name, weight in state.items()} != wanted:
            odd = sorted(set(wanted) ^ set(state))
            raise ValueError(f"it is of another network: {odd[0] if odd else 'shapes differ'}")
    except Exception as error:  # pickle, zip, key, type and shape errors: these are not the weights of this network
        raise InputRefusedError(
            f"models/{path.name} cannot be used ({first_line(error)}); the weights of the network in {zoo.config.name}, "
            "without code, are needed; python -m monai.bundle download brings them (a model.ts is a program, and is not read)"
        ) from error
    floats = {name: weight.float() if weight.is_floating_point() else weight for name, weight in state.items()}
    return network.eval(), {name: weight.contiguous().clone() for name, weight in floats.items()}


def _check_file(path: Path, weights: int) -> None:
    """Raises ValueError for a file that names more than tensors, or would become much larger in memory."""
    with zipfile.ZipFile(path) as archive:
        if (
            any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
            or path.stat().st_size < weights
        ):
            raise ValueError("it is smaller than its weights")
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        named = [
            str(argument)
            for code, argument, _ in pickletools.genops(archive.read(pickled))
            if code.name in ("GLOBAL", "INST", "STACK_GLOBAL")
        ]
    if odd := [name for name in named if not _TENSORS.fullmatch(name)]:
        raise ValueError(f"it names {odd[0][:60]}")


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
    try:
        with torch.inference_mode():
            answer = network(torch.zeros(1, *shape, device="meta"))
        return layer, int(answer.shape[1])
    except Exception as error:  # whatever a network makes of a window that it cannot take
        size = " x ".join(map(str, shape[1:]))
        raise InputRefusedError(
            f"the network takes no window of {size} ({first_line(error)}); roi_size must fit it"
        ) from error
