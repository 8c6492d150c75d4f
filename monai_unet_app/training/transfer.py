"""Trainings that begin with the weights of another bundle or of a checkpoint, instead of random ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import DONOR
from monai_unet_app.data.case_files import Row
from monai_unet_app.data.digest import file_sha256, place_among
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import json_of, write_json
from monai_unet_app.data.splits import Partition
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.training.update import together
from monai_unet_app.weights import load_checkpoint, unwrapped

_LEAST = 0.5  # of the donor's tensors, that must fit
_SLOWER = 0.1  # the learning rate, as a part of that of a network which begins at random
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Donor:
    """Weights to begin with, and what is done with them.

    Attributes:
        path: A file of weights.
        name: Of the bundle, or of the file.
        freeze: Beginnings of names of layers that are not trained.
        first_rate: The learning rate of the first layer, as a part of that of the last; between them it grows by one factor
            from layer to layer.
        networks: How many stand in the file, one after the other; 0: one, whose names begin with no number.
        seen: Case id -> {"partition", "subject", "image"} of the cases that have made these weights; None: nobody knows them.
    """

    path: Path
    name: str
    freeze: tuple[str, ...] = ()
    first_rate: float = 1.0
    networks: int = 0
    seen: Mapping[str, Mapping[str, str]] | None = None

    def fitting(self, network: nn.Module) -> dict[str, Tensor]:
        """The weights that a network takes over, by its own names. Raises InputRefusedError as `started`."""
        own = network.state_dict()
        donor = _state_of(load_checkpoint(self.path))
        needed = len(network) if isinstance(network, nn.ModuleList) else 0
        if needed > max(1, self.networks):
            raise InputRefusedError(
                f"--from {self.name}: it has {max(1, self.networks)} network(s), and {needed} are trained together; as many "
                "are needed; plan with --networks 1, or give other weights"
            )
        if self.networks and not needed:
            donor = {name.removeprefix("0."): value for name, value in donor.items() if name.startswith("0.")}
        return fitted_weights(donor, own, self.name)

    def document(self) -> dict[str, Any]:
        """What `models/donor.json` holds."""
        return {
            "schema_version": "1.0",
            "name": self.name,
            "sha256": file_sha256(self.path),
            "freeze": list(self.freeze),
            "first_rate": self.first_rate,
            "cases": None if self.seen is None else dict(self.seen),
        }


def find_donor(source: str, freeze: Sequence[str] = (), first_rate: float = 1.0) -> Donor:
    """The weights of a bundle (a name, a folder or a zip), or of a checkpoint file of torch.

    Raises:
        UsageError, UntrainedError: There is no such bundle, or it has no weights.
    """
    if Path(source).suffix in (".pt", ".pth", ".ckpt"):
        if not Path(source).is_file():
            raise UsageError(
                f"--from {source}: there is no such file; a checkpoint or a bundle is needed; check the path"
            )
        return Donor(Path(source), Path(source).name, tuple(freeze), first_rate)
    bundle = load_bundle(source)
    bundle.check_trained()
    seen = {
        case.id: {"partition": case.partition, "subject": case.subject, "image": case.fingerprint}
        for case in bundle.seen
        if case.partition != "test"
    }
    network = bundle.part("network_def")
    networks = len(network) if isinstance(network, nn.ModuleList) else 0
    return Donor(bundle.weights, bundle.name, tuple(freeze), first_rate, networks, seen)


def record_donor(donor: Donor | None, root: Path) -> None:
    """Writes `models/donor.json` into a bundle that begins with these weights; a run that is resumed must begin with the same.

    Raises:
        UsageError: The training in this folder has begun with other weights.
    """
    file = root / DONOR
    document = donor.document() if donor else None
    if (root / "run").exists() or (root / "folds").exists():
        earlier = json_of(file) if file.is_file() else None
        if earlier != document:
            found = f"--from {earlier['name']}" if earlier else "random weights"
            raise UsageError(
                f"{root} holds a training that began with {found}; only the same training can be resumed; give the same "
                "--from, --freeze and --first-rate, or another output folder"
            )
    elif document:
        write_json(document, file)


def started(
    network: nn.Module, device: torch.device | str, weights: str, networks: int = 0, freeze: Sequence[str] = ()
) -> nn.Module:
    """The network with the weights of a donor wherever name and shape are the same, on the device.

    Args:
        network: New; one, or a `ModuleList` of several.
        device: Where it trains.
        weights: File of the donor.
        networks: As in `Donor`.
        freeze: Beginnings of names of layers that are not trained.

    Raises:
        InputRefusedError: Less than half of the donor's weights fit, it has fewer networks, or no layer has such a name.
    """
    donor = Donor(Path(weights), Path(weights).name, networks=networks)
    network.load_state_dict({**network.state_dict(), **donor.fitting(network)})
    for begin in freeze:
        layers = [module for name, module in network.named_modules() if _begins(name, begin)]
        if not layers:
            tops = ", ".join(name for name, _ in network.named_children())
            raise InputRefusedError(
                f"--freeze {begin}: the network has no such layer; it has {tops}; name one of these"
            )
        for layer in layers:
            layer.requires_grad_(False)
            layer.register_forward_pre_hook(_in_use)
    return together(network, device)


def _in_use(layer: nn.Module, inputs: object) -> None:
    """Sets a frozen layer back to what it is in use, so that a batch norm keeps its statistics: each step calls `train()`."""
    layer.eval()


def fitted_weights(donor: Weights, own: Weights, name: str) -> dict[str, Tensor]:
    """The donor's weights by the names of the own network, where shape and name are the same, or names differ in one beginning.

    Raises:
        InputRefusedError: Less than half of the donor's tensors fit.
    """
    best: dict[str, Tensor] = {}
    for drop in ("", *_beginnings(donor)):
        for add in ("", *_beginnings(own)):
            named = {add + key.removeprefix(drop): value for key, value in donor.items() if key.startswith(drop)}
            fitting = {key: value for key, value in named.items() if key in own and value.shape == own[key].shape}
            best = max(best, fitting, key=len)
    if len(best) < _LEAST * len(donor):
        raise InputRefusedError(
            f"--from {name}: {len(best)} of its {len(donor)} tensors fit the network; weights of the same network are needed, "
            "whose head may differ; give others, or the donor's --network"
        )
    return best


def check_donor(donor: Donor, network: nn.Module, rows: Mapping[Partition, Sequence[Row]]) -> str:
    """What is taken over, in words, when the donor fits.

    Args:
        donor: The weights.
        network: New.
        rows: The cases of the training, by partition.

    Raises:
        InputRefusedError: The weights do not fit; or as `check_unseen`.
    """
    fitting, own = donor.fitting(network), network.state_dict()
    check_unseen(donor, rows)
    new = sorted(name for name in own.keys() - fitting.keys() if own[name].dim())
    parts = list(dict.fromkeys(name.rpartition(".")[0] for name in new))
    told = f"{len(fitting)} of {len(own)} tensors begin with those of {donor.name}"
    told += f"; at random: {', '.join(parts[:4])}{' and more' if parts[4:] else ''}" if parts else ""
    return told + ("; which cases have made them is not known: keep these out of tests" if donor.seen is None else "")


def check_unseen(donor: Donor, rows: Mapping[Partition, Sequence[Row]]) -> None:
    """Raises InputRefusedError if a donor has seen a case that is to select, calibrate or test."""
    seen = [entry["image"] for entry in (donor.seen or {}).values()]
    known = [
        f"{row['id']} ({part})"
        for part, cases in rows.items()
        for row in cases
        if part != "train" and seen and place_among(read_volume(row["image"]), seen) is not None
    ]
    if known:
        raise InputRefusedError(
            f"--from {donor.name}: its weights have seen {', '.join(known[:3])}{' and more' if known[3:] else ''}; cases that "
            "they have not seen are needed there; let them train by --splits, or leave them out"
        )


def rates_by_depth(network: nn.Module, learning_rate: float, first_rate: float) -> list[dict[str, Any]]:
    """Groups of weights for an optimizer, one a layer, each with its learning rate.

    Layers are counted in the order in which the network names them, which in a U-Net is from the image through the bottleneck
    to the labels.

    Args:
        network: Weights that do not train are left out.
        learning_rate: Of the last layer.
        first_rate: As in `Donor`.
    """
    layers: dict[str, list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        layers.setdefault(name.rpartition(".")[0], []).append(weight)
    last = max(1, len(layers) - 1)
    return [
        {"params": training, "lr": learning_rate * first_rate ** (1 - number / last)}
        for number, weights in enumerate(layers.values())
        if (training := [weight for weight in weights if weight.requires_grad])
    ]


def overrides_of(donor: Donor | None, train: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `train.yaml` by id with which a training begins with the donor's weights.

    Args:
        donor: None for random weights.
        train: The document `train.yaml`.
    """
    if donor is None:
        return {}
    part = "monai_unet_app.training."
    ids: dict[str, Any] = {
        "network": {
            "_target_": f"{part}started", "network": "@network_def", "device": "@device", "weights": str(donor.path),
            "networks": donor.networks, "freeze": list(donor.freeze),
        },
        "optimizer::params": {
            "_target_": f"{part}rates_by_depth", "network": "@network", "learning_rate": "@learning_rate",
            "first_rate": donor.first_rate,
        },
    }  # fmt: skip
    if rate := train.get("learning_rate"):
        ids["learning_rate"] = float(rate) * _SLOWER
    handlers = (train.get("train") or {}).get("handlers") or ()
    own = [number for number, handler in enumerate(handlers) if str(handler.get("_target_")).endswith(".Checkpoints")]
    ids |= {f"train::handlers::{number}::donor": donor.name for number in own}
    if "max_lr" in (train.get("scheduler") or {}):
        ids["scheduler::max_lr"] = "$[group['lr'] for group in @optimizer.param_groups]"
    return ids


def _state_of(found: Any) -> Weights:
    """The tensors of a checkpoint, which may hold them under a name such as `state_dict` or `model`."""
    while isinstance(found, Mapping) and not any(isinstance(value, Tensor) for value in found.values()):
        found = max((part for part in found.values() if isinstance(part, Mapping)), key=len, default=None)
    if not found:
        raise InputRefusedError("--from: the file holds no weights; a state_dict is needed; give another checkpoint")
    return unwrapped({name: value for name, value in found.items() if isinstance(value, Tensor)})


def _beginnings(weights: Weights) -> Iterator[str]:
    """The first parts of names: "encoder.", "module."."""
    return iter(dict.fromkeys(name.partition(".")[0] + "." for name in weights))


def _begins(name: str, begin: str) -> bool:
    """Whether the name of a module is this layer or below it; the number of the network in a list may stand before."""
    own = name.partition(".")[2] if name.partition(".")[0].isdigit() else name
    return any(f"{one}.".startswith(f"{begin}.") for one in (name, own))
