"""Networks by name. Each is a file in `networks/`, of two YAML documents.

The first says of a network:

- `about`: what it is, in one line.
- `divisor`: what its window must be divisible by along each axis; `strides` if the strides of the plan say it.
- `needs`: packages beside MONAI and torch.
- `feature_layer`: the layer whose statistics tell unusual images from those of the training.
- `values`: what a user may set. A number is the default of a number; words stand with what each means, the default first.

The second is the block `new_network` of `inference.yaml`, a template in which `{{ axes_and_channels }}` stands for the
lines that all networks of MONAI have. It may name nothing but MONAI and torch.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, StrictUndefined

from monai_unet_app.data.schemas import json_of, write_json
from monai_unet_app.errors import BundleError, InputRefusedError, UsageError
from monai_unet_app.planning.network import NetworkPlan, levels, widths

if TYPE_CHECKING:
    from torch import nn

    from monai_unet_app.bundle import Bundle
    from monai_unet_app.bundle_folder import BundleFiles

DEFAULT = "dynunet"
_FOLDER = resources.files(__package__) / "networks"
_BASE = 16  # filters of the first level, for a bundle whose network names none
_BLOCK = re.compile(r"^new_network:\n(?: .*\n)+", re.MULTILINE)
_LAYER = re.compile(r"^feature_layer: .*$", re.MULTILINE)
_LAYER_NAME = re.compile(r"^feature_layer: (?:\"\$'([\w.]+)' if @count == 1|([A-Za-z_][\w.]*)\s*(?:#|$))", re.MULTILINE)
_AXES_AND_CHANNELS = """\
  _mode_: callable
  spatial_dims: {axes}
  in_channels: {channels}
  out_channels: "$len(@labels)\""""
_CHANNELS = re.compile(r"^(  in_channels: )\d+$", re.MULTILINE)


@dataclass(frozen=True)
class NetworkChoice:
    """A network by its name, and the values of it that differ from its own, as texts."""

    name: str = DEFAULT
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class KnownNetwork:
    """What a file of the family says.

    Attributes:
        name: Of its file.
        about: One line.
        divisor: What a window must be divisible by; None: what the strides of the plan ask.
        feature_layer: Template.
        values: Name -> the default of a number, or words with what each stands for.
        needs: Packages beside MONAI and torch.
        block: Template of `new_network`.
        like: Window, levels and filters of a bundle whose network this is; None for a network of the family.
        keeps_window: Whether other windows than this one may not fit, since the bundle does not tell its strides.
    """

    name: str
    about: str
    divisor: int | None
    feature_layer: str
    values: Mapping[str, Any]
    needs: Sequence[str]
    block: str
    like: NetworkPlan | None = None
    keeps_window: bool = False

    def value_texts(self) -> list[str]:
        """Each value and what it may be, the default first: "norm=instance|batch", "dropout=0.0"."""
        return [
            f"{name}={'|'.join(allowed) if isinstance(allowed, dict) else allowed}"
            for name, allowed in self.values.items()
        ]


def names() -> tuple[str, ...]:
    """Of all networks of the family."""
    return tuple(sorted(file.name.removesuffix(".yaml") for file in _FOLDER.iterdir() if file.name.endswith(".yaml")))


@cache
def known(name: str) -> KnownNetwork:
    """The network of this name, or that of a bundle.

    Raises:
        InputRefusedError: There is no such network.
        BundleError: The bundle is none of a plan, whose network its `inference.yaml` says in lines of its own.
    """
    if name not in names():
        return _of_bundle(name)
    facts, block = (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("---\n")
    said = yaml.safe_load(facts)
    divisor = None if said["divisor"] == "strides" else said["divisor"]
    return KnownNetwork(
        name, said["about"], divisor, said["feature_layer"], said["values"], said.get("needs", ()), block
    )


def _of_bundle(name: str) -> KnownNetwork:
    """The network of a planned bundle, for other images: its own lines, but for the number of channels."""
    from monai_unet_app.bundle_folder import bundle_files

    try:
        bundle = bundle_files(name)
    except UsageError as error:
        raise InputRefusedError(
            f"--network {name}: there is no network and no bundle of this name; one of {', '.join(names())}, or a bundle, is "
            "needed"
        ) from error
    text = _text_of(bundle)
    block, layer = _BLOCK.search(text), _LAYER_NAME.search(text)
    said = yaml.safe_load(block[0])["new_network"] if block else {}
    window: Any = bundle.inference_document.get("window")
    told, filters = said.get("strides", []), said.get("filters", [_BASE])
    if not block or not layer or not all(isinstance(value, list) for value in (window, told, filters)):
        raise BundleError(
            f"--network {name}: inference.yaml of the bundle does not say `window`, `feature_layer`, and `strides` and "
            "`filters` of `new_network` as plain values; a bundle of monai-unet plan is needed; take one, or a network by name"
        )
    axes = len(window)
    strides, kernels = levels(window, (1.0,) * axes)
    if told:
        steps = [tuple(step) if isinstance(step, list) else (step,) * axes for step in told]
        strides = [(1,) * axes, *(step for step in steps if max(step) > 1)]
        kernels = [(3,) * axes for _ in strides]
    like = NetworkPlan(tuple(window), tuple(strides), tuple(kernels), widths(filters[0], strides))
    own = {need for other in names() for need in known(other).needs}
    needs = own.intersection(bundle.metadata.get("required_packages_version", {}))
    about = f"the network of {bundle.root.name}, whose weights train --from can begin with"
    template = _CHANNELS.sub(r"\1{{ channels }}", block[0])
    return KnownNetwork(
        bundle.root.name, about, None, layer[1] or layer[2], {}, sorted(needs), template, like, keeps_window=not told
    )


def _text_of(bundle: "BundleFiles") -> str:
    return (bundle.root / "configs/inference.yaml").read_text(encoding="utf-8")


def written(choice: NetworkChoice, plan: NetworkPlan, channels: int) -> tuple[str, str]:
    """The lines of `new_network` and the name of the feature layer, for windows and levels of a plan.

    Raises:
        InputRefusedError: The network is unknown, or does not take a value.
    """
    network = known(choice.name)
    context = {
        "axes_and_channels": _AXES_AND_CHANNELS.format(axes=len(plan.window), channels=channels),
        "window": plan.window,
        "channels": channels,
        "kernels": plan.kernels,
        "strides": plan.strides,
        "upsample": plan.strides[1:],
        "filters": plan.filters,
        "base": plan.filters[0],
        **checked_values(network, choice.values),
    }
    environment = Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined, finalize=yaml_text
    )
    block, layer = (environment.from_string(text).render(context) for text in (network.block, network.feature_layer))
    return block, layer


def checked_values(network: KnownNetwork, told: Mapping[str, str]) -> dict[str, Any]:
    """All values of a network, those that the user tells instead of its own."""
    if unknown := sorted(told.keys() - network.values.keys()):
        raise InputRefusedError(
            f"--network-value {unknown[0]}={told[unknown[0]]}: {network.name} takes {', '.join(network.value_texts())}; give "
            "one of these, or leave it out"
            if network.values
            else f"--network-value {unknown[0]}={told[unknown[0]]}: {network.name} is as its bundle says; leave it out"
        )
    return {name: _value(network, name, allowed, told.get(name)) for name, allowed in network.values.items()}


def _value(network: KnownNetwork, name: str, allowed: Any, text: str | None) -> Any:
    if isinstance(allowed, dict):
        if text is not None and text not in allowed:
            raise InputRefusedError(
                f"--network-value {name}={text}: {network.name} takes {', '.join(allowed)} as {name}; give one of these"
            )
        return allowed[next(iter(allowed)) if text is None else text]
    try:
        number = float(allowed if text is None else text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise InputRefusedError(
            f"--network-value {name}={text}: a number from 0 to 1, without 1, is needed; give such a number"
        )
    return number


def yaml_text(value: Any) -> Any:
    """Lists, tuples, mappings and truth values in YAML's flow style, which JSON is; for templates."""
    if not isinstance(value, list | tuple | dict | bool):
        return value
    # YAML 1.1 takes a number such as 1e-05 for a word; strings are passed over
    return re.sub(
        r'"(?:[^"\\]|\\.)*"|(?<![\d.])(\d+)(e[-+]?\d+)',
        lambda m: f"{m[1]}.0{m[2]}" if m[1] else m[0],
        json.dumps(value),
    )


def built(block: str, plan: NetworkPlan, outputs: int) -> "nn.Module":
    """The network of a block `new_network`, with new weights."""
    from monai.bundle import ConfigParser

    config = {"labels": list(range(outputs)), "window": list(plan.window), **yaml.safe_load(block)}
    network: nn.Module = ConfigParser(config).get_parsed_content("new_network")()
    return network


def with_network(bundle: "Bundle", choice: NetworkChoice, folder: Path) -> "Bundle":
    """A copy of a bundle, as a template of trainings, with another network for the same windows.

    Args:
        bundle: What is copied.
        choice: The new network.
        folder: New; the copy.

    Raises:
        BundleError: `inference.yaml` has no block `new_network` with lines of its own, or no `feature_layer`.
        InputRefusedError: As `written`; or the network does not take the windows.
    """
    from monai_unet_app.bundle import load_bundle

    text = _text_of(bundle)
    if not _BLOCK.search(text) or not _LAYER.search(text):
        raise BundleError(
            f"{bundle.name}: configs/inference.yaml has no `new_network:` with its lines below it, or no `feature_layer:`; "
            f"--network needs both, as in a bundle of monai-unet plan; take such a bundle, or plan --network {choice.name}"
        )
    block, layer = written(choice, _plan_of(bundle), bundle.rules.channels)
    shutil.copytree(bundle.root, folder, ignore=shutil.ignore_patterns("run", "cache", "folds"))
    text = _LAYER.sub(lambda _: layer_line(layer), _BLOCK.sub(lambda _: block, text))
    (folder / "configs/inference.yaml").write_text(text, encoding="utf-8")
    metadata = folder / "configs/metadata.json"
    document = json_of(metadata)
    document.setdefault("required_packages_version", {}).update(packages(choice))
    write_json(document, metadata)
    copy = load_bundle(folder, bundle.device)
    try:
        copy.check_network()
    except BundleError as error:
        raise InputRefusedError(
            f"--network {choice.name}: {error}; or take monai-unet plan --network {choice.name}, which chooses a window"
        ) from error
    return copy


def packages(choice: NetworkChoice) -> dict[str, str]:
    """The packages that a network needs beside MONAI and torch, with the versions that are installed."""
    return {name: version(name) for name in known(choice.name).needs}


def layer_line(layer: str) -> str:
    """The line `feature_layer` of `inference.yaml`."""
    return (
        f"feature_layer: \"$'{layer}' if @count == 1 else '0.{layer}'\"  # its statistics tell unusual images from those of "
        "the training"
    )


def _plan_of(bundle: "Bundle") -> NetworkPlan:
    """Levels for the windows of a bundle, as a plan would choose them, with as many filters as its network begins with."""
    axes = [axis for axis in range(len(bundle.windows.window)) if axis != bundle.slice_axis]
    window = [bundle.windows.window[axis] for axis in axes]
    spacing = [(bundle.grid_spacing or (1.0,) * len(window))[axis] for axis in axes]
    strides, kernels = levels(window, spacing)
    told = (bundle.inference_document.get("new_network") or {}).get("filters") or [_BASE]
    return NetworkPlan(tuple(window), tuple(strides), tuple(kernels), widths(told[0], strides))
