"""One volume through one network by sliding window: ours with each engine, MONAI, nnU-Net, and the engine alone.

    python benchmarks/sliding_window.py [--quick] [--rounds 5] [--peers DIR] [--plot FILE]

A DynUNet of 5 levels with 32 to 320 filters answers windows of 96 voxels, half over each other, of a CT of 160 x 144 x 128
voxels; the weights give regions rather than noise (`full_size.py`). All sides run in turns, with the same tensors; MONAI and
nnU-Net in a process of their own, as their users have them: without the large pages that this package asks torch for. "engine
alone" answers the same windows, and nothing is put together. Int8 is quantised on the windows of the volume
itself: its time is that of any other, its agreement is not. --plot draws each side under the roofs of this machine: what a
product of matrices and a copy reach here in torch. --quick: 3 levels, windows of 32 voxels, 64 x 48 x 40 voxels, no targets
of time. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median

import nibabel
import numpy as np
import torch
from claims import judged
from full_size import Scale, full_size_bundle, phantom_hu
from matplotlib.figure import Figure
from measuring import REPOSITORY
from monai.inferers import SlidingWindowInferer
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.config import ResultSettings
from monai_unet_app.errors import AppError, BundleError
from monai_unet_app.export import export_bundle
from monai_unet_app.inference.engines import Engine
from monai_unet_app.inference.engines.exported import ExportedEngine
from monai_unet_app.inference.engines.runtimes import RUNTIMES, export_files
from monai_unet_app.inference.predict import predict_rows

FULL, QUICK = ((160, 144, 128), 96, (32, 64, 128, 256, 320)), ((64, 48, 40), 32, (8, 16, 32))
SETTINGS = {
    "ours, torch": ResultSettings(),
    "ours, OpenVINO": ResultSettings(engine="openvino"),
    "ours, OpenVINO bfloat16": ResultSettings(engine="openvino", precision="bfloat16"),
    "ours, OpenVINO int8": ResultSettings(engine="openvino", precision="int8"),
    "ours, ONNX Runtime": ResultSettings(engine="onnxruntime"),
}
CLASSES, NEAR_MM, MM = 3, 2.0, 1.5


def main() -> int:
    """Measures, and judges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peers", type=Path, default=REPOSITORY / "build/peers", help="folder of packages for nnU-Net")
    options = parser.parse_args()
    sys.path.append(str(options.peers))
    if options.serve:
        return serve(options.serve)
    shape, window, filters = QUICK if options.quick else FULL
    print(f"{platform.machine()}, {torch.get_num_threads()} threads; {', '.join(instructions()) or 'no AVX-512'}")
    with tempfile.TemporaryDirectory() as folder:
        image = torch.from_numpy(phantom_hu(*(np.linspace(0, 1, n) for n in shape)))[None]
        image += 12 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
        case = Path(folder) / "body.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image[0].numpy(), np.diag([MM, MM, MM, 1.0])), case)
        bundle = made_bundle(Path(folder) / "bundle", Scale(CLASSES, 128, 128, window, filters, 64.0), case)
        image = (image.clamp(-200, 300) + 200) / 500  # as the bundle scales it
        peers = Peers(bundle, image, Path(folder), options.peers)
        sides = peers.sides | made_sides(bundle, image)
        answers, seconds = {name: run() for name, run in sides.items()}, {name: list[float]() for name in sides}
        answers |= {name: peers.answer(name) for name in peers.sides}
        print("warm", flush=True)
        for _ in range(options.rounds):
            for name, run in sides.items():
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
        peers.end()
        medians = {name: median(found) for name, found in seconds.items()}
        if options.plot:
            roofline(medians, bundle, bundle.windows.plan(shape).count).savefig(options.plot, dpi=110)
    return judge(medians, answers, quick=options.quick)


def instructions() -> list[str]:
    """What the processor has that engines use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if name in flags]


def made_bundle(folder: Path, scale: Scale, case: Path) -> Bundle:
    """A bundle with exports, whose logits are as large as those of a trained network; int8 is quantised on a case."""
    bundle = load_bundle(full_size_bundle(folder, scale))
    for engine in ("openvino", "onnxruntime"):
        export_bundle(bundle, engine)
    with suppress(
        BundleError
    ):  # the layer of weights that nobody trained changes more than an export's may; it is written
        export_bundle(bundle, "openvino", [{"id": "body", "image": str(case)}])
    return bundle


def engine_of(bundle: Bundle, settings: ResultSettings) -> Engine:
    """The engine as a bundle has it; int8 without the check of its layer."""
    if settings.precision != "int8":
        return bundle.engine(settings)
    file = bundle.root / export_files("openvino", "int8")[0]
    return ExportedEngine(RUNTIMES["openvino"].run(file, "int8"), bundle)


def roofline(seconds: dict[str, float], bundle: Bundle, windows: int) -> Figure:
    """Each side by what it computes a second and by what it must at least move for that, under what this machine can do."""
    layers: list[int] = []
    kinds = (torch.nn.Conv3d, torch.nn.ConvTranspose3d)
    for layer in bundle.network.modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(
                lambda own, inputs, answer: layers.append(inputs[0].numel() + answer.numel() + own.weight.numel())
            )
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        bundle.network(torch.zeros(1, 1, *bundle.windows.window))
    gflop, gb = counter.get_total_flops() / 1e9, 4 * sum(layers) / 1e9
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axis, bits = figure.subplots(), {torch.float32: 32, torch.bfloat16: 16}
    at = np.logspace(0, 3, 200)
    for kind, size in bits.items():
        peak, moved = peaks(kind)
        print(f"  {size} bits: {peak:.0f} GFLOP/s in a product of matrices, {moved:.1f} GB/s in a copy")
        axis.plot(at, np.minimum(peak, at * moved), label=f"roof, {size} bits")
    for name, found in seconds.items():
        share = 0.25 if "int8" in name else 0.5 if "bfloat16" in name else 1.0
        axis.plot(gflop / (share * gb), gflop * windows / found, "o", ms=5)
        beside = {"xytext": (-6, 3), "ha": "right"} if "alone" in name or name == "MONAI" else {"xytext": (6, -3)}
        at_side = (gflop / (share * gb), gflop * windows / found)
        axis.annotate(name, at_side, textcoords="offset points", fontsize=7, **beside)
    axis.set(
        xscale="log", yscale="log", xlabel="operations a byte, if each layer reads and writes once", ylabel="GFLOP/s"
    )
    axis.grid(alpha=0.3, which="both")
    axis.legend(loc="lower right")
    return figure


def peaks(kind: torch.dtype) -> tuple[float, float]:
    """GFLOP/s of a product of matrices, and GB/s of a copy, the best of five."""
    size, one = 2048, torch.rand(1 << 27).to(kind)
    left, right, other = torch.rand(size, size).to(kind), torch.rand(size, size).to(kind), torch.empty_like(one)
    best = [min(_seconds(run) for _ in range(5)) for run in (lambda: left @ right, lambda: other.copy_(one))]
    return 2 * size**3 / best[0] / 1e9, 2 * one.nbytes / best[1] / 1e9


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


class Peers:
    """MONAI and nnU-Net, in a process of their own.

    Attributes:
        sides: Name -> a run of it, which ends when the answer is there; `answer` gives that.
    """

    def __init__(self, bundle: Bundle, image: Tensor, folder: Path, peers: Path) -> None:
        self.folder = folder
        torch.save((bundle.network.eval(), image, bundle.windows.window, bundle.windows.overlap), folder / "peers.pt")
        command = [sys.executable, __file__, "--serve", str(folder), "--peers", str(peers)]
        usual = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=usual)
        self.sides = {name: partial(self._ask, name) for name in self._heard().split(",")}

    def _ask(self, word: str) -> Tensor:
        print(word, file=self.process.stdin, flush=True)
        self._heard()
        return torch.empty(0)

    def _heard(self) -> str:
        line = self.process.stdout.readline().rstrip("\n")
        if not line.startswith(HEARD):
            if self.process.poll() is not None:
                raise SystemExit("the process of MONAI and nnU-Net ended")
            return self._heard()  # something that a library printed
        return line.removeprefix(HEARD)

    def answer(self, name: str) -> Tensor:
        """What a side answered last."""
        self._ask(f"keep {name}")
        return torch.load(self.folder / "answer.pt")

    def end(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


HEARD = "peers: "


def serve(folder: Path) -> int:
    """The side of `Peers`: runs what is asked for, a line each."""
    network, image, window, overlap = torch.load(folder / "peers.pt", weights_only=False)
    inferer = SlidingWindowInferer(window, 1, overlap, "gaussian")
    sides: dict[str, Callable[[], Tensor]] = {"MONAI": torch.no_grad()(lambda: inferer(image[None], network)[0])}
    if nnunet := nnunet_side(network, window, image):
        sides["nnU-Net"] = nnunet
    last: dict[str, Tensor] = {}
    print(HEARD + ",".join(sides), flush=True)
    for line in map(str.strip, sys.stdin):
        if line.startswith("keep "):
            torch.save(last[line.removeprefix("keep ")], folder / "answer.pt")
        else:
            last[line] = sides[line]()
        print(HEARD, flush=True)
    return 0


def made_sides(bundle: Bundle, image: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ours with each engine: each gives logits (C, *spatial), the engine alone those of its last window."""
    windows = bundle.windows
    plan = windows.plan(tuple(image.shape[1:]))
    sides: dict[str, Callable[[], Tensor]] = {}
    for name, settings in SETTINGS.items():
        try:
            engine = engine_of(bundle, settings)
        except AppError as error:
            print(f"  {name} left out: {error}")
            continue
        sides[name] = lambda engine=engine: torch.cat([rows for _, rows in predict_rows(image, engine, windows)], 1)
        if "OpenVINO" in name:
            batches = [image[(slice(None), *one.place)][None].contiguous() for one in plan.windows]
            sides[f"engine alone, {name.partition(', ')[2]}"] = partial(alone, engine, batches)
    return sides


def alone(engine: Engine, batches: Sequence[Tensor]) -> Tensor:
    """The engine's answer to the last window, after all others."""
    return [engine(batch).logits for batch in batches][-1][0]


def nnunet_side(network: torch.nn.Module, window: Sequence[int], image: Tensor) -> Callable[[], Tensor] | None:
    """nnU-Net's own sliding window; None where it is not installed."""
    try:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
    except ImportError as error:
        print(f"  nnU-Net left out: {error}")
        return None
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    about = ConfigurationManager({"patch_size": list(window), "architecture": {}})

    class Labels:
        num_segmentation_heads = CLASSES

    predictor.network, predictor.configuration_manager, predictor.label_manager = network, about, Labels()
    predictor.list_of_parameters = [network.state_dict()]
    return lambda: predictor.predict_sliding_window_return_logits(image).float()


def judge(seconds: dict[str, float], answers: dict[str, Tensor], *, quick: bool) -> int:
    """Prints the table, and judges speed and agreement."""
    truth = answers["MONAI"]
    print(f"  {'median':34}{'s':>8}{'MONAI / it':>12}")
    for name, found in seconds.items():
        print(f"  {name:34}{found:8.2f}{seconds['MONAI'] / found:12.2f}")
    reached = [
        judged(
            "values that differ, ours with torch and MONAI", apart(truth, answers["ours, torch"]), 1e-30, at_most=True
        )
    ]
    for name in SETTINGS:
        if name not in answers or name == "ours, torch":
            continue
        one, other = (torch.softmax(logits.double(), 0) for logits in (truth, answers[name]))
        changed, near = labels_changed(one.argmax(0).numpy(), other.argmax(0).numpy())
        print(
            f"  {name}: probabilities {float((one - other).abs().max()):.2g} apart at most; {changed} of {near} labels within "
            f"{NEAR_MM:g} mm of a surface differ"
        )
        if "bfloat16" not in name and "int8" not in name:
            reached.append(judged(f"probabilities apart, {name}", float((one - other).abs().max()), 1e-4, at_most=True))
            reached.append(judged(f"labels that differ near a surface, {name}", changed / near, 1e-4, at_most=True))
    if not quick:
        reached += speed(seconds)
    return int(not all(reached))


def speed(seconds: dict[str, float]) -> list[bool]:
    """The targets of time."""
    ours, alone_s = seconds["ours, OpenVINO"], seconds["engine alone, OpenVINO"]
    reached = [judged("MONAI / ours, OpenVINO", seconds["MONAI"] / ours, 2.05)]
    if "nnU-Net" in seconds:
        reached.append(judged("nnU-Net / ours, OpenVINO", seconds["nnU-Net"] / ours, 2.05))
    reached.append(judged("engine alone / ours, OpenVINO", alone_s / ours, 0.95))
    if (low := seconds.get("ours, OpenVINO bfloat16")) and {"avx512_bf16", "amx_bf16"} & set(instructions()):
        reached.append(judged("MONAI / ours, OpenVINO bfloat16", seconds["MONAI"] / low, 4.0))
    return reached


def apart(one: Tensor, other: Tensor) -> int:
    """How many values are not the same, to the bit."""
    return int((one.as_subclass(Tensor) != other.as_subclass(Tensor)).sum())


def labels_changed(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """How many labels differ within `NEAR_MM` of a surface of the first, and how many voxels lie there."""
    near = np.zeros(one.shape, bool)
    for label in range(CLASSES):
        for inside in (one == label, one != label):
            near |= inside & (distance_transform_edt(inside, sampling=MM) <= NEAR_MM)
    return int(((one != other) & near).sum()), int(near.sum())


if __name__ == "__main__":
    raise SystemExit(main())
