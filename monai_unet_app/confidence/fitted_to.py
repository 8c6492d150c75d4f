"""What the statements of `confidence.json` were fitted to: they are not used for other weights, configs or structures."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dicom_io.coding import load_wholes
from monai_unet_app.bundle import Bundle
from monai_unet_app.bundle_folder import FITTED, BundleFiles
from monai_unet_app.config import InferenceSetting, ResultSettings
from monai_unet_app.errors import BundleError, refusing_as

SCHEMA_VERSION = "1.2"
"""Of confidence.json."""

INFERENCE, SEGMENTS, WEIGHTS = "configs/inference.yaml", "configs/segments.json", "models/model.pt"

_OF_RESULTS = ("imports", "labels", "outputs", "preprocessing", "network_def", "inferer", "result", "feature_layer")
"""Ids of inference.yaml on which masks, probabilities and the features of an image depend, with all that they refer to."""

_OF_AVERAGES = ("mirror_axes", "calibration_tta")

_OF_THE_RUN = frozenset(("bundle_root", "dataset_dir", "output_dir", "pattern", "device", "reader"))
"""Ids that change no result of `predict`; references to them are not followed."""

_OF_SPEED = frozenset(
    (
        "sw_batch_size",
        "sw_device",
        "device",
        "progress",
        "cache_roi_weight_map",
        "cpu_thresh",
        "buffer_steps",
        "buffer_dim",
    )
)
"""Arguments of the inferer that change its speed and memory, not its result."""

_REFERENCE = re.compile(r"[@%](\w+)")  # MONAI: @id, @id::part and the macro %id


def fitted_to(bundle: BundleFiles, setting: InferenceSetting) -> dict[str, str | None]:
    """SHA-256 of the values that results of this setting depend on, by file; comments, paths, device and formats do not count.

    Args:
        bundle: Its files as they are now.
        setting: "tta" depends on the mirror axes and on `calibration_tta`, too; an engine in fewer bits on its export.

    Returns:
        models/model.pt: the file's digest, None where there are no weights. configs/inference.yaml: of the parsed values that
        masks and probabilities depend on. configs/segments.json: of the labels of structures and wholes and of their parts.
        models/fitted.json, where there is one: of its values that results of this setting depend on. models/parity.json, of an
        engine in fewer bits: of its export; None for torch.

    Raises:
        BundleError: A config is damaged.
    """
    return {
        WEIGHTS: bundle.weights_sha256,
        INFERENCE: _digest(_values_of_results(bundle, setting)),
        SEGMENTS: _digest([list(bundle.structure_names), _wholes(bundle)]),
        **({FITTED: _digest(_found_values(bundle.fitted, setting))} if bundle.fitted else {}),
        **_export(bundle, setting),
    }


def changed_since(bundle: BundleFiles, setting: InferenceSetting, then: Mapping[str, str | None]) -> tuple[str, ...]:
    """The files of the bundle that have changed since `fitted_to` gave `then`."""
    return tuple(file for file, digest in fitted_to(bundle, setting).items() if digest != then.get(file))


def _values_of_results(bundle: BundleFiles, setting: InferenceSetting) -> dict[str, Any]:
    """The top-level values of inference.yaml that results depend on: those listed above and all that they refer to."""
    config = bundle.inference_document
    # All values that can be reached by references; a value that several others refer to is followed once.
    waiting, values = [*_OF_RESULTS, *(_OF_AVERAGES if setting == "tta" else ())], dict[str, Any]()
    while waiting:
        name = waiting.pop()
        if name in values or name in _OF_THE_RUN or name not in config:
            continue
        value = config[name]
        if name == "inferer" and isinstance(value, dict):
            value = {key: argument for key, argument in value.items() if key not in _OF_SPEED}
        values[name] = value
        waiting += [reference for text in _texts(value) for reference in _REFERENCE.findall(text)]
    if bundle.channel_names:
        values["input_rules::channels"] = list(bundle.channel_names)
    # Overrides of this run change results as if they stood in the file.
    overrides = bundle.overrides if isinstance(bundle, Bundle) else ()
    return values | {name: value for name, value in overrides if name.split("::")[0] in values}


def _found_values(fitted: Mapping[str, Any], setting: InferenceSetting) -> list[Any]:
    """The values of a fitted.json that results of this setting depend on, without their reasons."""
    calibration = fitted["calibration"]
    steps = [{name: value for name, value in step.items() if name != "why"} for step in fitted["tidy"]["steps"]]
    own = {"tta": calibration["tta"], **(calibration.get("engines") or {})}
    beside = [] if setting == "plain" else [own.get(setting)]
    return [calibration["form"], calibration["plain"], *beside, fitted["thresholds"]["values"], steps]


def _export(bundle: BundleFiles, setting: InferenceSetting) -> dict[str, str | None]:
    settings = ResultSettings.of_key(setting)
    if settings.own_key is None:
        return {}
    from monai_unet_app.inference.engines.certificate import (
        PARITY,
        export_named,
    )  # brings torch, which few processes need

    return {PARITY: export_named(bundle, settings.engine, settings.precision)}


def _texts(value: Any) -> Iterator[str]:
    """Every text in a parsed value; keys hold no references."""
    if isinstance(value, str):
        yield value
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(entry)


def _wholes(bundle: BundleFiles) -> list[Any]:
    with refusing_as(bundle.name, BundleError):
        return [[whole.label, list(whole.numbers)] for whole in load_wholes(bundle.root / SEGMENTS)]


def _digest(value: Any) -> str:
    # Sorted keys: the order of the entries in a YAML file changes no result.
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """The value with texts as keys; YAML knows numbers and dates as keys, too."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
