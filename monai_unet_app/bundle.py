"""A bundle, checked, with the parts of its `inference.yaml` that the whole project works with.

torch and MONAI take seconds to import. They are imported where a part of a bundle is built, so that a wrong flag or file is
refused at once.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from dicom_io.coding import Whole, load_wholes
from dicom_io.volume import Volume
from monai_unet_app.bundle_folder import CALIBRATION_RECORD, DONOR, BundleFiles, bundle_files
from monai_unet_app.config import ResultSettings, resolve_device
from monai_unet_app.data.digest import place_among
from monai_unet_app.data.labels import FileValues
from monai_unet_app.data.naming import contradiction, side_of
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.rules import InputRules
from monai_unet_app.data.schemas import json_of
from monai_unet_app.data.splits import Partition
from monai_unet_app.errors import BundleError, InputRefusedError, innermost, refusing_as
from monai_unet_app.metrics.outputs import OUTPUTS, Outputs
from monai_unet_app.weights import load_checkpoint, misfit, unwrapped
from monai_unet_app.written_config import check_config

if TYPE_CHECKING:
    import torch
    from monai.bundle import ComponentLocator, ConfigParser
    from monai.transforms import Compose

    from monai_unet_app.inference.engines import Engine
    from monai_unet_app.inference.pieces import ResultSteps
    from monai_unet_app.inference.windows import WindowSettings


@dataclass(frozen=True)
class SeenCase:
    """A case that trained, selected or calibrated a bundle, or was kept for its test."""

    id: str
    subject: str
    partition: Partition
    fingerprint: str


def _cpu() -> "torch.device":
    return resolve_device("cpu")


@dataclass(frozen=True)
class Bundle(BundleFiles):
    """A MONAI bundle, ready to be run on one device.

    Attributes:
        device: Device of the network.
        overrides: Values that replace those of `inference.yaml`, by id.
        may_leave_device: Windows for which the device has no memory run on the CPU.
        agreed: Code digests of bundles that may run code; None: those to which the user has agreed, see `consent`.
        fold: The weights are those of a fold of the cross-validation, in `folds/`; None: the bundle's own.
    """

    device: "torch.device" = field(default_factory=_cpu)
    overrides: tuple[tuple[str, Any], ...] = ()
    may_leave_device: bool = False
    agreed: frozenset[str] | None = None
    fold: int | None = None

    def of_fold(self, fold: int) -> "Bundle":
        """The same bundle with the weights of a fold of its cross-validation, which tests the cases of that fold."""
        return replace(self, fold=fold)

    @property
    def weights_dir(self) -> Path:
        """Holds the weights and the record of their training."""
        return super().weights_dir if self.fold is None else self.root / f"folds/{self.fold}/models"

    @property
    def replaced(self) -> tuple[str, ...]:
        """The overrides, each as "id=value"."""
        return tuple(f"{key}={json.dumps(value, default=lambda x: type(x).__name__)}" for key, value in self.overrides)

    @property
    def folds(self) -> "tuple[Bundle, ...]":
        """The bundle with the weights of each fold that is trained."""
        trained = (int(path.parts[-3]) for path in self.root.glob("folds/[0-9]/models/model.pt"))
        return tuple(map(self.of_fold, sorted(trained)))

    @property
    def values_of_fold(self) -> Mapping[str, Any]:
        """`of_fold` in `inference.yaml`: values that replace others where the network of one fold is meant.

        Empty for the bundle's own network, and where that is a single network as those of the folds are.
        """
        return {} if self.fold is None else self.inference_document.get("of_fold") or {}

    @cached_property
    def parser(self) -> "ConfigParser":
        """`inference.yaml` as MONAI parses it, with the overrides."""
        from monai.bundle import ConfigParser

        parser = ConfigParser()
        parser.locator = _components()
        parser["_meta_"] = deepcopy(self.metadata)
        written = deepcopy(self.config_with(agreed=self.agreed))  # MONAI's own reader takes ten times as long
        own = (("bundle_root", str(self.root)), ("device", self.device))
        for name, value in (*written.items(), *own, *self.values_of_fold.items(), *self.overrides):
            parser[name] = value
        try:
            parser.parse()
        except Exception as error:  # a reference out of its level, for instance
            raise BundleError(f"{self.name}: inference.yaml cannot be parsed: {innermost(error)}") from error
        return parser

    def part(self, name: str) -> Any:
        """The object that `inference.yaml` builds under this id. Raises BundleError if it cannot be built."""
        parser = self.parser
        try:
            return parser.get_parsed_content(name)
        except Exception as error:  # a config can fail in any way that Python can
            check_config(parser, {f"{self.name}: inference.yaml": self.inference_document}, name=name)
            raise BundleError(f"{self.name}: inference.yaml does not give `{name}`: {innermost(error)}") from error

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the probability channels, background first where it has a channel.

        Raises:
            BundleError: `segments.json` does not describe these structures.
        """
        labels = tuple(map(str, self.part("labels")))
        background, structures = self.outputs.background, self.outputs.of_structures(labels)
        if len(self.segments) != len(structures):
            beside = f" beside the background {labels[0]!r}" if background and labels else ""
            raise BundleError(
                f"{self.name}: `labels` names {len(structures)} structure(s){beside} ({', '.join(structures)}), segments.json "
                f"has {len(self.segments)} ({', '.join(self.structure_names)}); one segment for each, in "
                "the same order, is needed; correct configs/segments.json or `labels`"
            )
        if mismatch := contradiction(structures, self.segments):
            raise BundleError(
                f"{self.name}: `labels` {mismatch} in segments.json; the same structures in the same order are needed, with a "
                "word in common; correct configs/segments.json or `labels`"
            )
        return labels

    def check_configs(self) -> None:
        """Raises BundleError if the configs contradict each other. Neither weights are read nor a network is built."""
        self.check_fitted()
        _ = self.labels, self.wholes, self.windows, self.thresholds, self.grid_spacing
        sided = [segment.label for segment in self.segments if side_of(segment)]
        if not (sided and self.mirror_axes):
            return
        axis = self._right_left_axis
        if axis is None or axis in self.mirror_axes:
            reason = "no Orientationd says which axis is right-left" if axis is None else f"axis {axis} is right-left"
            raise BundleError(
                f"{self.name}: `mirror_axes` is {list(self.mirror_axes)} and {reason}, but {', '.join(map(repr, sided[:3]))} "
                "of segments.json have a side; a mirror image would exchange left and right; take the axis out of "
                "`mirror_axes` and train again"
            )

    def check_network(self) -> None:
        """Raises BundleError if a new network, before training, does not fit the rest of the bundle."""
        self.check_configs()
        import torch

        with torch.random.fork_rng(devices=[]):  # initial weights are random
            self._check_network(self._new_network.eval(), trained=False)

    @cached_property
    def outputs(self) -> Outputs:
        """What the logits of the network mean."""
        name = self.part("outputs")
        if name not in OUTPUTS:
            raise BundleError(f"{self.name}: `outputs` is {name!r}; one of {', '.join(OUTPUTS)} is needed")
        return OUTPUTS[name]

    @cached_property
    def wholes(self) -> tuple[Whole, ...]:
        """Parents of several structures, such as the hippocampus of its two parts, from `configs/segments.json`.

        Raises:
            BundleError: The file is damaged, or states a whole although the structures may overlap.
        """
        with refusing_as(self.name, BundleError):
            wholes = load_wholes(self.root / "configs/segments.json")
        if wholes and not self.outputs.one_map:
            raise BundleError(
                f"{self.name}: segments.json states {len(wholes)} whole(s) and `outputs` is {self.outputs.name}; sizes of "
                "parts that overlap do not add up; remove `wholes`, or set `outputs` to exclusive"
            )
        return wholes

    @cached_property
    def rules(self) -> InputRules:
        """The demands on an image, from `input_rules`."""
        return InputRules.parse(self.part("input_rules"))

    @cached_property
    def preprocessing(self) -> "Compose":
        """The list `deterministic` as a Compose; its first transform loads and is skipped for images in memory."""
        compose: Compose = self.part("preprocessing")
        return compose

    @cached_property
    def grid_spacing(self) -> tuple[float, ...] | None:
        """Voxel size in mm of the grid of the network, along its axes; None if images keep their own.

        Raises BundleError if it has two numbers and an image three axes: MONAI would take the second for the third, too.
        """
        from monai.transforms import Spacingd

        steps = [step for step in self.preprocessing.transforms if isinstance(step, Spacingd)]
        spacing = steps[-1].spacing_transform.pixdim if steps else ()
        if len(spacing) == 2 and not self.rules.planar:
            raise BundleError(
                f"{self.name}: the spacing of inference.yaml is {list(map(float, spacing))}; three numbers are needed, one for "
                "each axis; correct `spacing_mm`"
            )
        return tuple(np.resize(spacing, 3)) if steps else None

    @cached_property
    def result(self) -> "ResultSteps":
        """The transforms of `result`, by part: logits under "pred" become "prob" and "pred" on the source grid."""
        from monai_unet_app.inference.pieces import ResultSteps

        parts = ("probable", "back", "decide", "tidy")
        if str(self.parser.get("result")).replace(" ", "") == f"$@{'+@'.join(parts)}":
            return ResultSteps(*(self.part(name) for name in parts))
        return ResultSteps((), self.part("result"), (), (), named=False)

    @cached_property
    def thresholds(self) -> tuple[float, ...]:
        """The probability from which on a voxel has a label, for each overlapping label: `thresholds`, or 0.5.

        Exclusive classes have none. Raises BundleError if `thresholds` is not one number between 0 and 1 for each label.
        """
        usual = self.outputs.thresholds(len(self.labels))
        stated = usual and (self._optional("thresholds") or usual)
        if len(stated) != len(usual) or not all(0 < value < 1 for value in stated):
            raise BundleError(
                f"{self.name}: `thresholds` is {stated}; a number between 0 and 1 for each of {len(self.labels)} label(s) is "
                "needed; correct it, or calibrate the bundle again"
            )
        return tuple(map(float, stated))

    @property
    def no_calibration(self) -> dict[str, Any]:
        """`calibration` with every fitted number at 0, which leaves the logits unchanged."""
        return {name: 0.0 if isinstance(value, float) else value for name, value in self.part("calibration").items()}

    @cached_property
    def uncalibrated_result(self) -> "ResultSteps":
        """`result` without the calibration."""
        return self._result_with(self.no_calibration)

    def result_of(self, settings: ResultSettings) -> "ResultSteps":
        """`result` with the calibration for these settings: their own if `calibrate --precision` has fitted one."""
        if settings.own_key in self._own_results:
            return self._own_results[settings.own_key]
        return self.mirrored_result if settings.tta else self.result

    @cached_property
    def _own_results(self) -> "dict[str | None, ResultSteps]":
        """Engine and number type -> `result` with what was fitted for it alone; parsed once."""
        own = self.fitted["calibration"].get("engines", {}) if self.fitted else {}
        return {key: self._result_with(numbers) for key, numbers in own.items()}

    @cached_property
    def mirrored_result(self) -> "ResultSteps":
        """`result` for averages over mirror images: with `calibration_tta` if it is fitted, else with `calibration`."""
        calibration = self._optional("calibration_tta") or {}
        is_fitted = any(isinstance(number, float) and number for number in calibration.values())
        return self._result_with(calibration) if is_fitted else self.result

    def _result_with(self, calibration: Mapping[str, Any]) -> "ResultSteps":
        from monai.transforms import Invertd

        # A config parsed anew: the parser caches the objects that it has built, with the calibration inside them
        twin = Bundle(self.root, self.device, (*self.overrides, ("calibration", dict(calibration)))).result
        for step in twin.back:
            if isinstance(step, Invertd):  # it must invert the preprocessing that ran, which is that of this bundle
                step.transform = self.preprocessing
        return twin

    @cached_property
    def network(self) -> "torch.nn.Module":
        """The network with its trained weights, on the device, in eval mode, checked on a window of zeros.

        A `ModuleList` of networks is their mean.

        Raises:
            BundleError: The configs contradict each other, weights are absent, or the network does not fit the bundle.
        """
        self.check_configs()
        self.check_trained()
        network = self._new_network.to(self.device)
        saved = load_checkpoint(self.weights)
        try:
            network.load_state_dict(unwrapped(saved))  # which casts float16 to the network's float32
        except Exception as error:  # key and type errors mean that these are not the weights
            raise BundleError(f"{self.name}: models/model.pt does not fit network_def: {misfit(error)}") from error
        self._check_network(network.eval(), trained=True)
        return network

    @property
    def _new_network(self) -> "torch.nn.Module":
        """What `network_def` builds."""
        import torch

        from monai_unet_app.inference.engines.torch_engine import MeanOfNetworks

        network: torch.nn.Module = self.part("network_def")
        if not isinstance(network, torch.nn.ModuleList):
            return network
        mean = MeanOfNetworks(network)
        mean.apart = self.windows.of_nnunet
        return mean

    def engine(self, settings: ResultSettings) -> "Engine":
        """What runs the windows with these settings, made once. Raises UsageError as `choose_engine`."""
        from monai_unet_app.inference.engines.chooser import choose_engine

        key = settings.engine, settings.precision
        if key not in self._engines:
            self._engines[key] = choose_engine(settings)(self, settings)
        return self._engines[key]

    @cached_property
    def _engines(self) -> "dict[object, Engine]":
        return {}

    def _check_network(self, network: "torch.nn.Module", *, trained: bool) -> None:
        from monai_unet_app.inference.network_check import Demands, UnfitNetworkError, check_network

        window = [n for axis, n in enumerate(self.windows.window) if axis != self.slice_axis]
        demands = Demands(self.rules.channels, tuple(window), self.labels, self.feature_layer)
        try:
            check_network(network, demands, trained=trained)
        except UnfitNetworkError as error:
            raise BundleError(f"{self.name}: {error}") from error

    @cached_property
    def seen(self) -> tuple[SeenCase, ...]:
        """Every case of the records in `models/`: of training, calibration and the weights that the training began with.

        They are ordered by partition: training cases first.

        Raises:
            BundleError: One of these files is damaged or of another version.
        """
        path = self.weights_dir / CALIBRATION_RECORD
        try:
            calibrated = json_of(path)["cases"] if path.is_file() else {}
            donor = self.root / DONOR
            earlier = (json_of(donor)["cases"] or {}) if donor.is_file() else {}
            # A list, not a mapping by id: a case may stand in several records
            cases = [
                SeenCase(case_id, entry["subject"], entry.get("partition", "calibration"), entry["image"])
                for entries in (calibrated, self.run_record.get("cases", {}), earlier)
                for case_id, entry in entries.items()
            ]
            return tuple(sorted(cases, key=lambda case: get_args(Partition).index(case.partition)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"{self.name}: models/run.json or {CALIBRATION_RECORD} does not say what the bundle has seen "
                f"({type(error).__name__}: {error}); whole records of this version are needed; train or calibrate again"
            ) from error

    def seen_as(self, volume: Volume) -> SeenCase | None:
        """The case of `seen` whose image this is, mirrored or not, by its content; None if the bundle never saw the image."""
        place = place_among(volume, (case.fingerprint for case in self.seen))
        return None if place is None else self.seen[place]

    @cached_property
    def feature_layer(self) -> str | None:
        """Name of the network's layer whose features tell usual from unusual images; None if the bundle names no layer."""
        layer: str | None = self._optional("feature_layer")
        return layer

    @cached_property
    def ignore_label(self) -> int | None:
        """Label value of voxels without a class, which count nowhere; None if the bundle names no such value."""
        value: int | None = self._optional("ignore_label")
        return value

    @cached_property
    def file_values(self) -> FileValues:
        """What the values of label files stand for.

        Raises:
            BundleError: `ignore_label` is a value of a structure, too.
        """
        values, ignored = FileValues.parse(self._optional("label_values"), self.ignore_label), self.ignore_label
        if ignored is not None and ignored in ((0, 1) if values.overlap else self.label_values):
            raise BundleError(
                f"{self.name}: ignore_label is {ignored}, which is the number of a structure as well; a value of its own is "
                "needed; correct it in inference.yaml, and the labels"
            )
        return values.for_structures(len(self.segments))

    @cached_property
    def centreline(self) -> bool:
        """Whether the structures are thin and long, so that centre-line Dice is meaningful."""
        return bool(self._optional("centreline"))

    def _optional(self, name: str) -> Any:
        return self.part(name) if name in self.parser.get() else None

    @cached_property
    def slice_axis(self) -> int | None:
        """Spatial axis along which a 2D network takes a volume slice by slice; None for a network with all axes."""
        axis = getattr(self.part("inferer"), "spatial_dim", None)  # of SliceInferer, and of ours
        return None if axis is None else int(axis)

    @cached_property
    def windows(self) -> "WindowSettings":
        """The sliding window, from `inferer`."""
        from monai.inferers import SlidingWindowInferer

        from monai_unet_app.inference.windows import WindowSettings

        inferer = self.part("inferer")
        if not isinstance(inferer, SlidingWindowInferer):
            raise BundleError(f"{self.name}: inferer is {type(inferer).__name__}; a SlidingWindowInferer is needed")
        try:
            return WindowSettings.of(inferer, self.slice_axis)
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"{self.name}: inferer of inference.yaml cannot be used ({error}); a window of whole numbers from 1, and "
                "numbers with a decimal point, are needed; correct it"
            ) from error

    @cached_property
    def mirror_axes(self) -> tuple[int, ...]:
        """Spatial axes along which the bundle was trained with mirror images; for `--tta`."""
        return tuple(self._optional("mirror_axes") or ())

    @cached_property
    def _right_left_axis(self) -> int | None:
        """Spatial axis of the preprocessed image that runs from right to left; None if no Orientationd fixes it."""
        from monai.transforms import Orientationd

        if self.rules.planar:
            return 0  # the width of a picture
        orientations = [step for step in self.preprocessing.transforms if isinstance(step, Orientationd)]
        # The last Orientationd decides; the letters are the directions in which the axes of its output run
        axes = str(orientations[-1].ornt_transform.axcodes or "") if orientations else ""
        return next((axis for axis, letter in enumerate(axes) if letter in "LR"), None)


@cache
def _components() -> "ComponentLocator":
    """The classes of MONAI by name, for all bundles; ours need their full name, as without us."""
    from monai.bundle import ComponentLocator

    return ComponentLocator(excludes=["monai_unet_app"])


def check_unseen(bundle: Bundle, rows: Sequence[Mapping[str, str]], partitions: Sequence[Partition]) -> None:
    """Raises InputRefusedError with the names of all cases that the bundle has seen in one of these partitions."""
    matches = {row["id"]: bundle.seen_as(read_volume(row["image"])) for row in rows} if bundle.seen else {}
    known = [f"{name} ({case.partition})" for name, case in matches.items() if case and case.partition in partitions]
    if known:
        raise InputRefusedError(
            f"{bundle.name} has seen {len(known)} of {len(rows)} case(s): {', '.join(known[:5])}; cases that neither trained "
            "nor selected it are needed; leave these out"
        )


def load_bundle(
    name: str | Path, device: "torch.device | str | None" = None, agreed: frozenset[str] | None = None, **overrides: Any
) -> Bundle:
    """The bundle that a name, a folder or a zip stands for, on a device.

    Args:
        name: As in `bundle_files`.
        device: A name as in `resolve_device`; "auto" lets a window run on the CPU for which the device has no memory. None: the
            CPU.
        agreed: As in `Bundle`.
        overrides: Values that replace those of `inference.yaml`, by id.

    Raises:
        UsageError, BundleError: As `bundle_files` and `resolve_device`.
    """
    root = bundle_files(name).root
    place = resolve_device(device) if isinstance(device, str) else device or _cpu()
    return Bundle(root, place, tuple(overrides.items()), may_leave_device=device == "auto", agreed=agreed)
