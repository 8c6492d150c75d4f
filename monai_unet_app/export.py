"""Writes a bundle's network for other programs, with the proof that it answers as before."""

import shutil
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dicom_io.files import replace_when_whole
from monai_unet_app.bundle import Bundle
from monai_unet_app.config import Precision, ResultSettings, RuntimeName
from monai_unet_app.data.case_files import Row
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import BundleError, UsageError
from monai_unet_app.inference.engines import answer_of
from monai_unet_app.inference.engines.certificate import PARITY, export_key, export_sha256, parity_of
from monai_unet_app.inference.engines.exported import (
    LARGEST_APART,
    exported_engine,
    network_sha256,
    probabilities_apart,
    reference_answers,
    reference_windows,
    why_no_export,
)
from monai_unet_app.inference.engines.quantised import QUANTISERS, quantise
from monai_unet_app.inference.engines.runtimes import RUNTIMES, Runtime, export_files, imported, made_with
from monai_unet_app.inference.engines.torch_engine import statistics_of
from monai_unet_app.inference.predict import padded
from monai_unet_app.pipeline import preprocess

SCHEMA_VERSION = "1.0"
_HALVED = 3  # times that neighbours are averaged before the others are summed up
_CASES, _WINDOWS = 40, 120  # at most, for int8: an image after another, and of each the same number of windows


class PreciseNorm(nn.Module):
    """Instance norm in operations that every runtime computes as precisely as torch.

    A runtime's own norm sums up all voxels of a window in float32, one after the other, and probabilities of photographs were
    0.001 from those of torch. Here neighbours are averaged first, which no runtime merges into one sum. The sizes of the window
    that is traced are part of it.

    Args:
        norm: Without running statistics.
    """

    def __init__(self, norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, values: Tensor) -> Tensor:
        """Values of shape (B, C, *spatial), each channel with mean 0 and deviation 1, then weight and bias."""
        centred = values - _mean(values)
        shape = (1, -1, *[1] * (values.ndim - 2))
        scale = torch.rsqrt(_mean(centred * centred) + self.norm.eps)
        if self.norm.weight is None:
            return centred * scale
        return centred * (scale * self.norm.weight.view(shape)) + self.norm.bias.view(shape)


def _mean(values: Tensor) -> Tensor:
    pool = functional.avg_pool3d if values.ndim == 5 else functional.avg_pool2d
    for _ in range(_HALVED):
        pairs = [2 - int(size) % 2 for size in values.shape[2:]]
        if max(pairs) == 2:
            values = pool(values, pairs)
    return values.mean(tuple(range(2, values.ndim)), keepdim=True)


def with_precise_norms(network: nn.Module) -> nn.Module:
    """A copy of a network whose instance norms are `PreciseNorm`; keys and weights are not those of the original."""
    copied = deepcopy(network)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d) and not child.track_running_stats:
                setattr(parent, name, PreciseNorm(child))
    return copied


class WithStatistics(nn.Module):
    """A network that also answers with the mean and the deviation of a layer, as `Answer.layer`.

    Args:
        network: In eval mode; gets a hook.
        layer: Name of a submodule; None for none.
    """

    def __init__(self, network: nn.Module, layer: str | None) -> None:
        super().__init__()
        self.network, self._seen = network, list[Tensor]()
        if layer is not None:
            network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: self._seen.append(output))

    def forward(self, windows: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of windows (B, C_in, *window), and statistics of the layer where there is one."""
        self._seen.clear()
        logits: Tensor = self.network(windows)
        return (logits, statistics_of(self._seen.pop())) if self._seen else logits


def export_bundle(bundle: Bundle, engine: RuntimeName, rows: Sequence[Row] = ()) -> dict[str, Any]:
    """Exports a bundle's network into its folder, and gives the entry of the export in the certificate.

    The export answers the reference windows, whole, beside torch. One that differs is kept out of the bundle.

    Args:
        bundle: In a folder, on the CPU; `models/parity.json` and the files of the export are written.
        engine: The program that will run it.
        rows: Cases that an int8 network is quantised on; it is made of the export in float32, which is written first where it
            is absent. Empty for an export in float32.

    Raises:
        UsageError: The runtime, or what quantises for it, is not installed; or the bundle is of nnU-Net.
        BundleError: The export answers otherwise than torch.
    """
    if bundle.windows.of_nnunet:
        raise UsageError(
            f"{bundle.name} is of nnU-Net, whose labels torch alone gives; other engines differ; leave it to torch"
        )
    for package in [engine, QUANTISERS[engine]] if rows else [engine]:
        imported(package)
    precision: Precision = "int8" if rows else "float32"
    files, runtime = export_files(engine, precision), RUNTIMES[engine]
    if rows and why_no_export(bundle, engine):
        export_bundle(bundle, engine)
    cases, windows = windows_of(bundle, rows)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=bundle.root / "models") as folder:
        made = [Path(folder) / Path(name).name for name in files]
        if rows:
            quantise(engine, bundle.root / runtime.files[0], made[0], windows)
        else:
            _write(bundle, runtime, made[0])
        run, apart, voxels, changed = runtime.run(made[0], precision), 0.0, 0, 0
        for window in reference_windows(bundle.rules.channels, bundle.windows.window):
            torchs = bundle.engine(ResultSettings())(window).logits[0]
            logits = answer_of(run, window, bundle.slice_axis).logits[0]
            apart = max(apart, probabilities_apart(bundle.outputs, torchs, logits, precision))
            labels = [bundle.outputs.labels(one) for one in (torchs, logits)]
            voxels, changed = voxels + labels[0].numel(), changed + int((labels[0] != labels[1]).sum())
        if not apart <= (most := LARGEST_APART[precision][0]):
            raise BundleError(
                f"{bundle.name}: exported for {made_with(engine)}, its network answers with probabilities that are "
                f"{apart:.2g} from those of torch; {most:g} at most is needed, so nothing was written"
            )
        with ExitStack() as whole:
            for part, name in zip(made, files, strict=True):
                shutil.copyfile(part, whole.enter_context(replace_when_whole(bundle.root / name)))
    entry = {
        "sha256": export_sha256(bundle.root, files),
        "made_with": made_with(engine),
        precision: {"probabilities_apart": apart, "labels": voxels, "labels_changed": changed},
    }
    if rows:
        entry["quantised_on"] = {"cases": cases, "windows": len(windows)}
    document = begun_certificate(bundle)
    document["exports"] |= {export_key(engine, precision): entry}
    write_json(document, bundle.root / PARITY, "parity", indent=None)
    exported_engine(bundle, ResultSettings(engine=engine, precision=precision))  # as it will be loaded
    return entry


def windows_of(bundle: Bundle, rows: Sequence[Row]) -> tuple[int, list[NDArray[np.float32]]]:
    """Windows of preprocessed images, where the bundle's windows stand, and the number of images; the same each time.

    Windows without a difference between voxels are left out. Each has shape (1, C, *window), without the slice axis of a
    network that does not know it.
    """
    chosen, found = _spread(sorted(rows, key=lambda row: row["id"]), _CASES), list[NDArray[np.float32]]()
    for row in chosen:
        image = preprocess(read_volume(row["image"]), bundle)["image"].as_subclass(Tensor)
        plan = bundle.windows.plan(tuple(image.shape[1:]))
        whole = padded(image, plan, bundle.windows)
        windows = [whole[(None, slice(None), *window.place)] for window in plan.windows]
        varied = [window for window in windows if window.max() > window.min()]
        axis = None if bundle.slice_axis is None else bundle.slice_axis + 2
        kept = _spread(varied, max(1, _WINDOWS // len(chosen)))
        found += [np.ascontiguousarray(one if axis is None else one.squeeze(axis)) for one in kept]
    return len(chosen), found


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, at even distances."""
    return [items[(2 * n + 1) * len(items) // (2 * most)] for n in range(most)] if len(items) > most else list(items)


def _write(bundle: Bundle, runtime: Runtime, file: Path) -> None:
    module = WithStatistics(with_precise_norms(bundle.network), bundle.feature_layer).eval()
    for kind in {type(part) for part in module.modules()}:
        if "__module__" not in vars(
            kind
        ):  # a class made by an expression of inference.yaml; torch's exporter asks for it
            kind.__module__ = "inference"
    window = reference_windows(bundle.rules.channels, bundle.windows.window)[0]
    if bundle.slice_axis is not None:
        window = window.squeeze(bundle.slice_axis + 2)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        runtime.write(module, window, file)


def begun_certificate(bundle: Bundle) -> dict[str, Any]:
    """The certificate of a bundle as it is, or a new one where the network is another than that of the certificate."""
    old = parity_of(bundle)
    network = {"weights_sha256": bundle.weights_sha256, "network_sha256": network_sha256(bundle)}
    if old.items() >= network.items():
        return old
    reference = reference_answers(bundle.engine(ResultSettings()), bundle)
    return {"schema_version": SCHEMA_VERSION, **network, "reference": reference, "exports": {}}
