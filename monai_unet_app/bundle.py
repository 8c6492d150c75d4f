"""A bundle on disk, checked, and the parts of its `inference.yaml` that the whole project works with.

torch and MONAI take seconds to import. They are imported where a part of a bundle is built, so that whoever only looks for
bundles, or names a wrong one, has the answer at once.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dicom_io.coding import Whole, load_wholes
from dicom_io.errors import DicomIoError
from dicom_io.volume import Volume
from monai_unet_app.bundle_folder import CALIBRATION_RECORD, BundleFiles, bundle_files
from monai_unet_app.data.digest import mirrored_fingerprints, same_image
from monai_unet_app.data.naming import contradiction, side_of
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.rules import InputRules
from monai_unet_app.data.splits import Partition
from monai_unet_app.errors import AppError, BundleError, InputRefusedError

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser
    from monai.transforms import Compose

    from monai_unet_app.inference.predict import WindowSettings


@dataclass(frozen=True)
class SeenCase:
    """An image that made a bundle what it is, or was set aside when it was trained."""

    id: str
    subject: str
    partition: Partition
    fingerprint: str


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


@dataclass(frozen=True)
class Bundle(BundleFiles):
    """A MONAI bundle, ready to be run on one device.

    Attributes:
        device: Where the network runs.
        overrides: Values that replace those of `inference.yaml`, by id.
    """

    device: torch.device = field(default_factory=_cpu)
    overrides: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def parser(self) -> ConfigParser:
        """`inference.yaml` as MONAI parses it, with the overrides."""
        from monai.bundle import ConfigParser

        parser = ConfigParser()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI warns on every config that `$` expressions are code
            parser.read_config(str(self.root / "configs/inference.yaml"))
            parser.read_meta(str(self.root / "configs/metadata.json"))
        for name, value in (("bundle_root", str(self.root)), ("device", self.device), *self.overrides):
            parser[name] = value
        parser.parse()
        return parser

    def part(self, name: str) -> Any:
        """The object that `inference.yaml` builds under this id. Raises BundleError if it cannot."""
        try:
            return self.parser.get_parsed_content(name)
        except Exception as error:  # a config can fail in any way that Python can
            raise BundleError(f"{self.name}: inference.yaml does not give `{name}`: {error}") from error

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the probability channels, background first where classes exclude each other.

        Raises:
            BundleError: `segments.json` does not describe these.
        """
        labels = tuple(map(str, self.part("labels")))
        structures = labels[1:] if self.exclusive else labels
        if len(self.segments) != len(structures):
            beside = f" beside the background {labels[0]!r}" if self.exclusive and labels else ""
            raise BundleError(
                f"{self.name}: `labels` names {len(structures)} structure(s){beside} ({', '.join(structures)}), segments.json "
                f"has {len(self.segments)} ({', '.join(self.structure_names)}); one segment for each, in "
                "the same order, is needed; correct configs/segments.json or `labels`"
            )
        if found := contradiction(structures, self.segments):
            raise BundleError(
                f"{self.name}: `labels` {found} in segments.json; the same structures in the same order are needed, with a "
                "word in common; correct configs/segments.json or `labels`"
            )
        return labels

    def check_configs(self) -> None:
        """Raises BundleError where the configs contradict each other; neither weights nor a network are built."""
        _ = self.labels, self.wholes, self.windows
        sided = [segment.label for segment in self.segments if side_of(segment)]
        if not (sided and self.mirror_axes):
            return
        axis = self._right_left_axis
        if axis is None or axis in self.mirror_axes:
            which = (
                f"axis {axis} is right-left" if axis is not None else "no Orientationd says which axis is right-left"
            )
            raise BundleError(
                f"{self.name}: `mirror_axes` is {list(self.mirror_axes)} and {which}, but {', '.join(map(repr, sided[:3]))} of "
                "segments.json have a side; a mirror image would exchange left and right; take the axis out of `mirror_axes` "
                "and train again"
            )

    def check_network(self) -> None:
        """Raises BundleError if the network, with or without trained weights, does not fit the rest of the bundle."""
        self.check_configs()
        import torch

        with torch.random.fork_rng(devices=[]):  # its first weights are drawn at random
            self._try(self.part("network_def").eval(), weights=False)

    @cached_property
    def exclusive(self) -> bool:
        """True for softmax over classes with a background channel, False for overlapping labels (sigmoid)."""
        outputs = self.part("outputs")
        if outputs not in ("exclusive", "overlapping"):
            raise BundleError(f"{self.name}: `outputs` is {outputs!r}; exclusive or overlapping is needed")
        return outputs == "exclusive"

    @cached_property
    def wholes(self) -> tuple[Whole, ...]:
        """What `configs/segments.json` states that several structures are parts of.

        Raises:
            BundleError: The file is damaged, or states a whole although the structures may overlap.
        """
        try:
            wholes = load_wholes(self.root / "configs/segments.json")
        except DicomIoError as error:
            raise BundleError(f"{self.name}: {error}") from error
        if wholes and not self.exclusive:
            raise BundleError(
                f"{self.name}: segments.json states {len(wholes)} whole(s) and `outputs` is overlapping; sizes of parts that "
                "overlap do not add up; remove `wholes`, or set `outputs` to exclusive"
            )
        return wholes

    @cached_property
    def rules(self) -> InputRules:
        """What images must be."""
        return InputRules.parse(self.part("input_rules"))

    @cached_property
    def preprocessing(self) -> Compose:
        """The list `deterministic` as a Compose; its first transform loads and is skipped for images in memory."""
        return self.part("preprocessing")

    @cached_property
    def result(self) -> Compose:
        """The list `result` as a Compose: logits under "pred" become "prob" and "pred" on the source grid."""
        from monai.transforms import Compose

        return Compose(self.part("result"))

    @property
    def no_calibration(self) -> dict[str, Any]:
        """`calibration` with every fitted number at 0, which means none."""
        return {name: 0.0 if isinstance(value, float) else value for name, value in self.part("calibration").items()}

    @cached_property
    def uncalibrated_result(self) -> Compose:
        """`result` without the calibration."""
        return self._result_with(self.no_calibration)

    @cached_property
    def mirrored_result(self) -> Compose:
        """`result` for averages over mirror images: with `calibration_tta` where that was fitted, else with `calibration`."""
        fitted = self._optional("calibration_tta") or {}
        return self._result_with(fitted) if any(isinstance(n, float) and n for n in fitted.values()) else self.result

    def _result_with(self, calibration: Mapping[str, Any]) -> Compose:
        from monai.transforms import Compose, Invertd

        twin = Bundle(self.root, self.device, (*self.overrides, ("calibration", dict(calibration))))
        steps = twin.part("result")
        for step in steps:
            if isinstance(step, Invertd):  # inverts what this bundle's own preprocessing did
                step.transform = self.preprocessing
        return Compose(steps)

    @cached_property
    def network(self) -> torch.nn.Module:
        """The network with its trained weights, on the device, in eval mode, tried on a window of zeros.

        Raises:
            BundleError: The bundle contradicts itself, has no weights, or its network does not fit the rest of it.
        """
        import torch

        weights = self.root / "models/model.pt"
        self.check_configs()  # a bundle that contradicts itself is refused before work starts
        if not weights.is_file():
            raise BundleError(f"{self.name} has no models/model.pt; trained weights are needed; run monai-unet train")
        network = self.part("network_def").to(self.device)
        try:
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except Exception as error:  # pickle, zip and key errors alike mean: not these weights
            raise BundleError(f"{self.name}: models/model.pt does not fit network_def: {_short(error)}") from error
        self._try(network.eval(), weights=True)
        return network

    def _try(self, network: torch.nn.Module, *, weights: bool) -> None:
        from monai_unet_app.inference.network_check import Demands, UnfitNetworkError, check_network

        window = [n for axis, n in enumerate(self.windows.window) if axis != self.slice_axis]
        demands = Demands(self.rules.channels, tuple(window), self.labels, self.feature_layer)
        try:
            check_network(network, demands, weights=weights)
        except UnfitNetworkError as error:
            raise BundleError(f"{self.name}: {error}") from error

    @cached_property
    def run_record(self) -> dict[str, Any]:
        """`models/run.json`: how the weights were trained, and on which cases; empty where it is absent."""
        path = self.root / "models/run.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @cached_property
    def seen(self) -> tuple[SeenCase, ...]:
        """Every case of `models/run.json` and `models/calibration.json`; what trained first, what only was set aside last.

        Raises:
            BundleError: One of these files is damaged or of another version.
        """
        path = self.root / "models" / CALIBRATION_RECORD
        try:
            calibrated = json.loads(path.read_text())["cases"] if path.is_file() else {}
            seen = [
                SeenCase(case_id, entry["subject"], entry.get("partition", "calibration"), entry["image"])
                for cases in (calibrated, self.run_record.get("cases", {}))
                for case_id, entry in cases.items()
            ]
            return tuple(sorted(seen, key=lambda case: get_args(Partition).index(case.partition)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"{self.name}: models/run.json or {CALIBRATION_RECORD} does not say what the bundle has seen "
                f"({type(error).__name__}: {error}); whole records of this version are needed; train or calibrate again"
            ) from error

    def seen_as(self, volume: Volume) -> SeenCase | None:
        """The case that this image, or its mirror image, is to the bundle under whatever name; None if it never saw it."""
        marks = mirrored_fingerprints(volume)
        return next((case for case in self.seen if any(same_image(case.fingerprint, mark) for mark in marks)), None)

    @cached_property
    def feature_layer(self) -> str | None:
        """Name of the network's layer by which images are known again as usual; None where the bundle names none."""
        return self._optional("feature_layer")

    @cached_property
    def ignore_label(self) -> int | None:
        """Label value of voxels that count for nothing in an evaluation; None where the bundle names none."""
        return self._optional("ignore_label")

    @cached_property
    def centreline(self) -> bool:
        """Whether its structures are thin and long, so that centre-line Dice says something."""
        return bool(self._optional("centreline"))

    def _optional(self, name: str) -> Any:
        return self.part(name) if name in self.parser.get() else None

    @cached_property
    def slice_axis(self) -> int | None:
        """Spatial axis along which a 2D network walks through a volume, or None."""
        from monai.inferers import SliceInferer

        inferer = self.part("inferer")
        return int(inferer.spatial_dim) if isinstance(inferer, SliceInferer) else None

    @cached_property
    def windows(self) -> WindowSettings:
        """The values of `inferer`."""
        from monai.inferers import SlidingWindowInferer

        from monai_unet_app.inference.predict import WindowSettings

        inferer = self.part("inferer")
        if not isinstance(inferer, SlidingWindowInferer):
            raise BundleError(f"{self.name}: inferer is {type(inferer).__name__}; a SlidingWindowInferer is needed")
        values = vars(inferer)  # typed for every use MONAI makes of them; a bundle gives plain numbers
        window = [int(size) for size in values.get("orig_roi_size", values["roi_size"])]
        if self.slice_axis is not None:
            window.insert(self.slice_axis, 1)
        return WindowSettings(
            window=tuple(window),
            overlap=float(values["overlap"]),
            batch=int(values["sw_batch_size"]),
            mode=str(getattr(values["mode"], "value", values["mode"])),
            sigma_scale=float(values["sigma_scale"]),
            padding_mode=str(getattr(values["padding_mode"], "value", values["padding_mode"])),
            padding_value=float(values["cval"]),
        )

    @cached_property
    def mirror_axes(self) -> tuple[int, ...]:
        """Spatial axes along which the bundle was trained with mirror images; for `--tta`."""
        return tuple(self._optional("mirror_axes") or ())

    @cached_property
    def _right_left_axis(self) -> int | None:
        """Spatial axis of the preprocessed image that runs from right to left; None where nothing says which it is."""
        from monai.transforms import Orientationd

        if self.rules.planar:
            return 0  # the width of a picture
        turns = [step for step in self.preprocessing.transforms if isinstance(step, Orientationd)]
        axes = str(turns[-1].ornt_transform.axcodes or "") if turns else ""
        return next((axis for axis, letter in enumerate(axes) if letter in "LR"), None)


def _short(error: Exception) -> str:
    """The first lines of what torch says of weights that do not fit: it names every tensor of a network."""
    told = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(told[:2])[:300] + (f" ... and {len(told) - 2} more" if len(told) > 2 else "")


def check_unseen(bundle: Bundle, rows: Sequence[Mapping[str, str]], partitions: Sequence[Partition]) -> None:
    """Raises InputRefusedError, naming them, if the bundle saw any of these cases in one of these partitions."""
    seen = {row["id"]: bundle.seen_as(read_volume(row["image"])) for row in rows} if bundle.seen else {}
    known = [f"{name} ({case.partition})" for name, case in seen.items() if case and case.partition in partitions]
    if known:
        raise InputRefusedError(
            f"{bundle.name} has seen {len(known)} of {len(rows)} case(s): {', '.join(known[:5])}; cases that neither trained "
            "nor selected it are needed; leave these out"
        )


def load_bundle(name: str | Path, device: torch.device | None = None, **overrides: Any) -> Bundle:
    """The bundle that a name, a folder or a zip stands for, on a device (default: the CPU).

    Raises:
        UsageError, BundleError: As `bundle_files`.
    """
    return Bundle(bundle_files(name).root, device or _cpu(), tuple(overrides.items()))


def run_overlay(root: Path, overlay: str, overrides: Mapping[str, Any]) -> None:
    """Runs `configs/<overlay>.yaml` on top of `inference.yaml`, as `python -m monai.bundle run` does.

    Args:
        root: The bundle's folder.
        overlay: "train", "calibrate" or "evaluate".
        overrides: Values by id.

    Raises:
        AppError: What a part of the config refused, without MONAI's wrapping.
    """
    from monai.bundle import ConfigWorkflow

    configs = [str(root / "configs" / f"{name}.yaml") for name in ("inference", overlay)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = ConfigWorkflow(
            config_file=configs,
            meta_file=str(root / "configs/metadata.json"),
            logging_file=False,
            workflow_type="train" if overlay == "train" else "inference",
        )
        # not as arguments: ConfigWorkflow has parameters of its own whose names a config may use (`tracking`)
        workflow.parser.update({"bundle_root": str(root), **overrides})
        try:
            workflow.initialize()
            workflow.run()
            workflow.finalize()
        except Exception as error:
            refusal = _refusal_in(error)
            if refusal is None:
                raise
            raise refusal from refusal.__cause__


def _refusal_in(error: BaseException | None) -> AppError | None:
    """The AppError that MONAI wrapped in errors about its config items, if that is what happened."""
    while error is not None and not isinstance(error, AppError):
        error = error.__cause__
    return error
