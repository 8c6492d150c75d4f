"""Engines that run what `bundle export` wrote, and the certificate that they answer as torch does.

`models/parity.json` holds what torch answered to reference windows. An exported network answers them again whenever it is
loaded, and is refused if it differs: because of a damaged file, other weights, or a runtime that computes otherwise.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_unet_app.config import EngineName, ResultSettings
from monai_unet_app.errors import BundleError, UsageError
from monai_unet_app.metrics.outputs import Outputs

from . import Answer, Source, answer_of
from .certificate import PARITY, export_key, export_sha256, parity_of
from .runtimes import RUNTIMES, Run, export_files, made_with

MOST_APART = 1e-4
"""Between the probabilities of torch and of a certified export in float32."""

_WINDOWS, _DARK = 2, -1.5
_NUMBERS = 1024  # of the logits of a reference window that are kept
LARGEST_APART = {"float32": (MOST_APART, 1e-3), "bfloat16": (0.1, 0.05), "int8": (0.05, 0.1)}
"""Precision -> the largest difference of probabilities (int8: their mean), and of a layer as a part of its largest number, that
a reference window may show. In fewer bits it only tells an engine that is broken: what the difference does to results is
certified on subjects."""


class ExportedEngine:
    """An exported network, on the CPU, for windows of the bundle's size.

    Args:
        run: Runs it.
        source: The bundle.
    """

    device = torch.device("cpu")

    def __init__(self, run: Run, source: Source) -> None:
        self._run, self._window, self.slice_axis = run, tuple(source.windows.window), source.slice_axis

    def __call__(self, windows: Tensor) -> Answer:
        """As of an `Engine`. Raises UsageError for windows of another size."""
        if windows.shape[2:] != self._window:
            raise UsageError(
                f"an export answers windows of {self._window} voxels, not of {tuple(windows.shape[2:])}; use the engine torch"
            )
        return answer_of(self._run, windows, self.slice_axis)


def exported_engine(bundle: Source, settings: ResultSettings) -> ExportedEngine:
    """The engine of these settings, after it has answered the reference windows.

    Raises:
        UsageError: The runtime is not installed.
        BundleError: There is no export for it, or it is damaged, of another network, or answers otherwise than torch.
    """
    engine, precision = settings.engine, settings.precision
    again = f"run monai-unet bundle export --bundle {bundle.name} --to {engine}"
    again += " --precision int8 --data DATA" if precision == "int8" else ""
    file, runs = export_files(engine, precision)[0], RUNTIMES[engine].run
    if why := why_no_export(bundle, engine, precision):
        raise BundleError(f"{bundle.name}: {why}; an export of this network is needed; {again}")
    document, (most, most_layer) = parity_of(bundle), LARGEST_APART[settings.precision]
    made, reference = ExportedEngine(runs(bundle.root / file, precision), bundle), document["reference"]
    for answer, torchs in zip(reference_answers(made, bundle), reference, strict=True):
        apart = probabilities_apart(bundle.outputs, _logits(answer), _logits(torchs), precision)
        layers = [np.asarray(one["layer"]) for one in (answer, torchs)]
        layer_apart = np.abs(layers[0] - layers[1]).max(initial=0.0) / max(np.abs(layers[1]).max(initial=0.0), 1e-6)
        if not (apart <= most and layer_apart <= most_layer):
            raise BundleError(
                f"{bundle.name}: {made_with(engine)} answers a reference window with probabilities that are {apart:.2g} from "
                f"those of torch (layer: {layer_apart:.2g}); {most:g} at most is needed ({most_layer:g}); use "
                f"--engine torch, or {again}"
            )
    return made


def why_no_export(bundle: Source, name: EngineName, precision: str = "float32") -> str | None:
    """Why an engine has no certified export of the bundle's network for a precision; None if it has one."""
    document, files, engine = parity_of(bundle), export_files(name, precision), export_key(name, precision)
    if engine not in document.get("exports", {}):
        return f"it has no export for {engine}"
    if document["weights_sha256"] != bundle.weights_sha256:
        return f"its export for {engine} is of other weights"
    if document["network_sha256"] != network_sha256(bundle):
        return f"its export for {engine} is of another network_def, window or feature_layer"
    if document["exports"][engine]["sha256"] != export_sha256(bundle.root, files):
        return f"its export for {engine} is not the one that its certificate {PARITY} names"
    return None


def network_sha256(bundle: Source) -> str:
    """SHA-256 of what an export depends on beside the weights: the network as torch describes it, its window, its layer."""
    network = re.sub(r" at 0x[0-9a-f]+", "", repr(bundle.network))
    return hashlib.sha256(f"{network} {tuple(bundle.windows.window)} {bundle.feature_layer}".encode()).hexdigest()


def reference_windows(channels: int, window: Sequence[int]) -> list[Tensor]:
    """Windows by a formula, so that they need not be kept: waves of unlike length along each axis, and a ripple of voxels.

    The first half of the last window is dark, as around a photograph: what is constant shows how precisely norms are computed.

    Returns:
        Of shape (1, channels, *window), float32, about -2 to 2.
    """
    axes = np.meshgrid(*(np.arange(size) for size in window), indexing="ij")
    windows = []
    for number in range(_WINDOWS):
        parts = []
        for channel in range(channels):
            waves = sum(
                np.cos(2 * np.pi * (number + 1 + axis) * place / (19 + 4 * axis + channel))
                for axis, place in enumerate(axes)
            )
            count = sum(place * (7 + 6 * axis) for axis, place in enumerate(axes)) * (number + 3)
            parts.append(0.6 * waves + 0.5 * ((count % 31) / 15 - 1))
        windows.append(torch.from_numpy(np.stack(parts)[None].astype(np.float32)))
    dark = windows[-1].clone()
    dark[:, :, : window[0] // 2] = _DARK
    return [*windows, dark]


def reference_answers(engine: Any, bundle: Source) -> list[dict[str, Any]]:
    """What an engine answers to the reference windows: some of the logits, shape (C, n), and the layer, as lists."""
    kept = []
    for window in reference_windows(bundle.rules.channels, bundle.windows.window):
        answer = engine(window.to(engine.device))
        logits = answer.logits[0].flatten(1).cpu()
        some = logits[:, :: max(1, logits.numel() // _NUMBERS)]
        layer = [] if answer.layer is None else answer.layer[0]
        kept.append({"logits": [_short(row) for row in some], "layer": _short(layer)})
    return kept


def probabilities_apart(outputs: Outputs, one: Tensor, other: Tensor, precision: str = "float32") -> float:
    """The largest difference of the probabilities of two answers, logits of shape (C, n) or (C, *spatial).

    Of int8 it is the mean: windows that are made by a formula hold numbers beyond the ranges that images have.
    """
    first, second = (outputs.probabilities(logits.double()) for logits in (one, other))
    apart = (first - second).abs()
    return float(apart.mean() if precision == "int8" else apart.max())


def _short(numbers: Iterable[Any]) -> list[float]:
    return [float(f"{number:.7g}") for number in numbers]


def _logits(answer: dict[str, Any]) -> Tensor:
    return torch.tensor(answer["logits"])
