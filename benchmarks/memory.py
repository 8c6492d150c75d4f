"""How much memory do volumes of full size take, and how long, from DICOM to SEG, SR, intervals, verdict and review page?

    python benchmarks/memory.py [--rows NAME ...] [--size 512] [--slices 300] [--classes 105] [--window 96]
                                [--under watch|ulimit|cgroup] [--most-gb 16] [--before WORKTREE] [--rounds 3]
                                [--examples DIR] [--peers DIR] [--shares ...] [--filters ...] [--work DIR]
                                [--json FILE] [--plot FILE] [--short]

CT and bundle are made up (`full_size.py`). Everything measured is a process of its own; this one reads the resident memory of
it and of its children every 20 ms, and is the only judge. The rows:

- full, few: the whole way with all classes, and with 3; engines: the same to SEG and SR by each engine;
- classes: what the other classes cost beyond their accumulators; slices: the same for 600 slices instead of 150;
- small: the committed examples, against the code in another folder (`--before`);
- loop: the sliding window against the bare network in the same run, 5 levels with 32 to 320 filters;
- equal: `monai.bundle run` on oblique, anisotropic images with 3, 20 and 105 classes;
- curve: ours, MONAI and nnU-Net over two decades of voxels, each from the same NIfTI file to a label map.

A process above --most-gb is ended (`watch`). `--under ulimit` bounds its address space by `ulimit -v`, `--under cgroup` its
memory in a cgroup of its own; both at the bound of the row. Bounds are judged at full size only. `--short`: 96 x 96 x 60 voxels
and 12 classes. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

from claims import judged
from measuring import GB, REPOSITORY, Measured, environment_of, measured
from memory_children import LIMITS_GB

HERE = Path(__file__).resolve().parent
FULL = (512, 300, 105, 96)
FEW = 3
FILTERS, LEVELS = (16, 32, 64, 128), (32, 64, 128, 256, 320)
SIDES = ("ours", "MONAI", "MONAI buffered", "MONAI labels first", "nnU-Net", "nnU-Net labels only")
CURVE_SHARES = (0.215, 0.3162, 0.464, 0.681, 1.0)  # of each axis: two decades of voxels
MOST_GB = {"full": 4.0, "few": 2.0}
MOST_GROWTH_GB, MOST_SLICE_GROWTH, MOST_SLOWER, MOST_DP = 0.5, 1.15, 1.05, 1e-6
MOST_OVERHEAD = {FEW: 0.05, 105: 0.25}


@dataclass
class Bench:
    """The options, and what has been measured so far."""

    options: argparse.Namespace
    work: Path
    done: dict[str, Measured] = field(default_factory=dict)
    reached: list[bool] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether the sizes are those that the bounds are made for."""
        options = self.options
        found = (options.size, options.slices, options.classes, options.window)
        return found == FULL and tuple(options.filters) == FILTERS

    def judge(self, what: str, found: float, wanted: float, *, always: bool = False) -> None:
        """Prints a figure beside its upper bound; at other sizes than the full ones it is only printed."""
        if self.is_full or always:
            self.reached.append(judged(what, found, wanted, at_most=True))
        else:
            print(f"  {what}: {found:.3g}; not judged at this size")

    def run(self, what: str, words: Sequence[str], most_gb: float | None = None, **environment: str) -> Measured:
        """Measures a process, once."""
        if what not in self.done:
            self.done[what] = measured(what, words, self.options, most_gb, environment)
            self.done[what].show(most_gb)
            if self.options.json:
                rows = [asdict(one) | {"printed": one.printed[-300:]} for one in self.done.values()]
                self.options.json.write_text(json.dumps(rows, indent=1))
        return self.done[what]

    def made(self, name: str, call: str) -> Path:
        """A file or folder of `full_size.py`, made in another process: torch would count in this one's memory."""
        path = self.work / name
        if not path.exists():
            code = (
                f"import sys; sys.path.append({str(HERE)!r}); from pathlib import Path; from full_size import *; {call}"
            )
            subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=REPOSITORY, env=environment_of())
        return path

    @property
    def version(self) -> str:
        """Of what bundles are made by and from."""
        made_from = (HERE / "full_size.py", REPOSITORY / "bundles/hippocampus_mri_unet3d/configs/inference.yaml")
        return sha256(b"".join(path.read_bytes() for path in made_from)).hexdigest()[:8]

    def series(self, slices: int) -> Path:
        """A DICOM series of the options' size."""
        size = self.options.size
        return self.made(f"series_{size}_{slices}", f"ct_series(Path(sys.argv[1]), Scale(1, {size}, {slices}))")

    def image(self, size: int, slices: int) -> Path:
        """The same as NIfTI."""
        return self.made(f"image_{size}_{slices}.nii", f"ct_nifti(Path(sys.argv[1]), Scale(1, {size}, {slices}))")

    def bundle(self, classes: int, filters: Sequence[int] | None = None, softness: float = 1.0) -> Path:
        """A bundle for the options' size and window."""
        filters = tuple(filters or self.options.filters)
        scale = (classes, self.options.size, self.options.slices, self.options.window, filters, softness)
        name = f"bundle_{'_'.join(map(str, scale[:4]))}_{max(filters)}_{softness:g}_{self.version}"
        return self.made(name, f"full_size_bundle(Path(sys.argv[1]), Scale(*{scale}))")


def main() -> int:
    """Measures the rows that are asked for; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS))
    for name, value in zip(("size", "slices", "classes", "window"), FULL, strict=True):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--filters", type=int, nargs="+", default=FILTERS, help="of the network's levels")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="of the curve")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=CURVE_SHARES, help="of each axis, sizes of the curve"
    )
    parser.add_argument("--under", choices=["watch", "ulimit", "cgroup"], default="watch")
    parser.add_argument("--most-gb", type=float, default=16.0, help="a process above it is ended")
    parser.add_argument("--before", type=Path, help="another checkout, for the row small")
    parser.add_argument(
        "--examples", type=Path, default=REPOSITORY / "examples/msd_hippocampus/images", help="of the row small"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the row small")
    parser.add_argument("--peers", type=Path, help="folder of packages for nnU-Net")
    parser.add_argument("--work", type=Path, help="folder for inputs, kept for the next run")
    for name in ("json", "plot"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    if options.short:
        options.size, options.slices, options.classes, options.window = 96, 60, 12, 32
        options.rows = options.rows or ["full", "equal"]
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, (options.work or Path(scratch)).resolve())
        bench.work.mkdir(parents=True, exist_ok=True)
        print(f"  {'GB; s':44}    peak   VmHWM  VmPeak  seconds bound")
        for name in options.rows or ROWS:
            print(f"{name}:")
            ROWS[name](bench)
    return int(not all(bench.reached))


# The rows


def full(bench: Bench) -> None:
    """From DICOM to the review page with all classes."""
    whole_way(bench, "full", bench.options.classes)


def few(bench: Bench) -> None:
    """The same with 3 classes."""
    whole_way(bench, "few", FEW)


def whole_way(bench: Bench, row: str, classes: int) -> None:
    """SEG in both encodings, SR, intervals, verdict and review page."""
    bound = MOST_GB[row]
    results = [predicted(bench, classes, bench.options.slices, encoding, bound) for encoding in ("binary", "labelmap")]
    folder = results[0][1]
    words = ["review", "--bundle", str(bench.bundle(classes)), "--input", str(bench.series(bench.options.slices))]
    page = bench.run(
        f"{classes} classes, review page",
        ours(*words, "--result", str(folder), "--output", str(folder / "review"), "--no-pdf"),
        bound,
    )
    steps = [*(one for one, _ in results), page]
    bench.reached.append(all(one.done for one in steps))
    if results[0][0].done:
        record = json.loads(next(folder.glob("*_result.json")).read_text())
        stated = sum("interval" in json.dumps(one) for one in record["structures"])
        verdict = record["assessment"].get("verdict")
        print(f"  intervals of {stated} structures, verdict {verdict}; seconds: {record['seconds']}")
        bench.reached.append(stated > 0 and verdict is not None)
    bench.judge(f"{classes} classes, GB", max(one.peak for one in steps) / GB, bound)


def predicted(
    bench: Bench, classes: int, slices: int, encoding: str, bound: float | None = None
) -> tuple[Measured, Path]:
    """`monai-unet predict` on the series, and the folder of its results."""
    folder = bench.work / f"out_{bench.options.size}_{slices}_{classes}_{encoding}"
    words = ["predict", "--bundle", str(bench.bundle(classes)), "--input", str(bench.series(slices))]
    formats = ["--format", "nifti,seg,sr", "--seg-encoding", encoding, "--deliver-rejected", "--device", "cpu"]
    limit = ["--memory-limit", f"{bound:g}GB"] if bound else []
    name = f"{classes} classes, {slices} slices, {encoding}"
    return bench.run(name, ours(*words, "--output", str(folder), *formats, *limit), bound), folder


def engines(bench: Bench) -> None:
    """From DICOM to SEG and SR by each engine, with 3 classes and with all; torch with all is in the row `full`."""
    for classes in (FEW, bench.options.classes):
        bundle, usual = bench.bundle(classes, softness=64.0), 0.0
        done = bench.run(
            f"{classes} classes, export", ours("bundle", "export", "--bundle", str(bundle), "--to", "openvino")
        )
        sides = [("openvino", "float32"), ("openvino", "bfloat16")]
        for engine, precision in [("torch", "float32"), *sides] if classes == FEW else sides:
            folder = bench.work / f"out_{classes}_{engine}_{precision}"
            words = [
                "predict",
                "--bundle",
                str(bundle),
                "--input",
                str(bench.series(bench.options.slices)),
                "--engine",
                engine,
            ]
            more = ["--precision", precision, "--format", "seg,sr", "--deliver-rejected", "--device", "cpu"]
            bound = MOST_GB["full"]  # OpenVINO is beside torch in the process
            one = bench.run(
                f"{classes} classes, {engine}, {precision}",
                ours(*words, *more, "--output", str(folder), "--memory-limit", f"{bound:g}GB"),
                bound,
            )
            bench.reached.append(done.done and one.done)
            usual = one.seconds if engine == "torch" else usual
            if one.done:
                record = json.loads(next(folder.glob("*_result.json")).read_text())
                times = f"{usual / one.seconds:.2f} times as quick as torch; " if usual else ""
                print(f"  {times}seconds: {record['seconds']}")


def classes_growth(bench: Bench) -> None:
    """Beyond the accumulators."""
    sizes = []
    for classes in (FEW, bench.options.classes):
        one, _ = predicted(bench, classes, bench.options.slices, "binary", MOST_GB["full" if sizes else "few"])
        if not one.done:
            bench.reached.append(False)
            return
        sizes.append((one.peak - accumulators(one)) / GB)
    bench.judge(f"growth from {FEW} to {bench.options.classes} classes, GB", sizes[1] - sizes[0], MOST_GROWTH_GB)


def slices_growth(bench: Bench) -> None:
    """In multiples of what the arrays of image and labels grow."""
    sizes, half = [], bench.options.slices // 2
    for slices in (half, 4 * half):
        one, _ = predicted(bench, FEW, slices, "binary")
        if not one.done:
            bench.reached.append(False)
            return
        sizes.append(one.peak - accumulators(one))
    voxels = bench.options.size**2 * 3 * half
    arrays = voxels * (4 + 1) + voxels * 4 / 1.5**3  # image, labels; the image on the working grid
    print(f"  grows by {(sizes[1] - sizes[0]) / GB:.2f} GB, its arrays by {arrays / GB:.2f} GB")
    bench.judge(
        f"growth from {half} to {4 * half} slices, times that of the arrays",
        (sizes[1] - sizes[0]) / arrays,
        MOST_SLICE_GROWTH,
    )


def accumulators(one: Measured) -> float:
    """Bytes of the sums of windows in memory, as the plan that the run printed states them."""
    stated = re.search(r"sums of windows ([0-9.]+) GB", one.printed)
    return float(stated[1]) * GB if stated else 0.0  # an image that is not planned is small


def small(bench: Bench) -> None:
    """Every committed example, in turns with the code of another checkout."""
    if bench.options.before is None:
        print("  left out: --before names no checkout to compare with")
        return
    trees = {"now": REPOSITORY, "before": bench.options.before.resolve()}
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    peaks: dict[str, list[float]] = {name: [] for name in trees}
    images = bench.options.examples.resolve()
    for turn in range(bench.options.rounds):
        for name, tree in trees.items():
            folder = bench.work / f"small_{name}_{turn}"
            words = ["--input", str(images), "--output", str(folder), "--format", "nifti", "--deliver-rejected"]
            command = ours("predict", "--bundle", "hippocampus_mri_unet3d", "--device", "cpu", *words)
            one = bench.run(f"examples, {name}, round {turn}", command, PYTHONPATH=str(tree))
            peaks[name].append(one.peak / GB)
            records = [json.loads(path.read_text()) for path in sorted(folder.glob("*_result.json"))]
            seconds[name].append({record["case"]: sum(record["seconds"].values()) for record in records})
    best = {name: {case: min(turn[case] for turn in turns) for case in turns[0]} for name, turns in seconds.items()}
    ratios = {case: best["now"][case] / best["before"][case] for case in best["now"]}
    print(
        f"  {len(ratios)} cases, best of {bench.options.rounds}: median ratio {statistics.median(ratios.values()):.3f}"
    )
    print(f"  slowest: {max(ratios, key=ratios.__getitem__)} {max(ratios.values()):.3f}")
    total = sum(best["now"].values()) / sum(best["before"].values())
    bench.judge("examples, seconds now / before", total, MOST_SLOWER, always=True)
    bench.judge("examples, GB now / before", min(peaks["now"]) / min(peaks["before"]), 1.02, always=True)


def loop(bench: Bench) -> None:
    """What the sliding window takes beyond the network, in one run."""
    window = bench.options.window
    edge = round(window * 1.5 * 1.5)  # two windows along each axis
    for classes in (FEW, bench.options.classes):
        bundle, image = bench.bundle(classes, LEVELS), bench.image(edge, edge)
        one = bench.run(f"loop, {classes} classes", child("loop", bundle, image))
        found = json.loads(one.printed.splitlines()[-1]) if one.done else {}
        bench.reached.append(one.done)
        if one.done:
            print("  " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
            bench.judge(f"overhead, {classes} classes", found["overhead"], MOST_OVERHEAD.get(classes, 0.25))


def equal(bench: Bench) -> None:
    """Labels and probabilities of `monai.bundle run` and of `predict`."""
    for classes in (FEW, bench.options.classes) if bench.options.short else (FEW, 20, 105):
        name = f"equal_{classes}"
        scale = (classes, 72, 40, 32)
        bundle = bench.made(f"{name}_bundle_{bench.version}", f"full_size_bundle(Path(sys.argv[1]), Scale(*{scale}))")
        call = f"ct_nifti(Path(sys.argv[1]), Scale(*{scale}), spacing_mm=(0.9, 0.8, 2.5), oblique=True)"
        data = bench.made(f"{name}_data/image.nii", call).parent
        theirs, mine = bench.work / f"{name}_monai", bench.work / f"{name}_ours"
        run = bench.run(f"{classes} classes, monai.bundle run", child("bundle_run", bundle, data, theirs))
        words = ["--input", str(data / "image.nii"), "--output", str(mine), "--probabilities", "--deliver-rejected"]
        one = bench.run(
            f"{classes} classes, predict", ours("predict", "--bundle", str(bundle), "--device", "cpu", *words)
        )
        told = bench.run(f"{classes} classes, compared", child("differences", theirs, mine)).printed
        if not (run.done and one.done and told):
            bench.reached.append(False)
            continue
        labels, apart = json.loads(told.splitlines()[-1])
        bench.judge(f"{classes} classes, different labels", labels, 1e-9, always=True)
        bench.judge(f"{classes} classes, largest difference of probabilities", apart, MOST_DP, always=True)


def curve(bench: Bench) -> None:
    """Every side over two decades of voxels, until it is ended."""
    size, slices, classes = bench.options.size, bench.options.slices, bench.options.classes
    bundle, table = bench.bundle(classes), []
    for side in bench.options.sides:
        if side.startswith("nnU-Net") and bench.options.peers is None:
            print(f"  {side} left out: --peers names no folder of its packages")
            continue
        for share in bench.options.shares:
            edge, length = round(size * share), round(slices * share)
            image, folder = bench.image(edge, length), bench.work / "out_curve"
            if side == "ours":
                words = ["--input", str(image), "--output", str(folder), "--device", "cpu", "--deliver-rejected"]
                command, path = ours("predict", "--bundle", str(bundle), *words), {}
            else:
                command = child("nnunet" if side.startswith("nnU") else "monai", side, bundle, image, folder)
                path = {"PYTHONPATH": f"{bench.options.peers}{os.pathsep}{REPOSITORY}"} if side[0] == "n" else {}
            one = bench.run(f"{side}, {edge} x {edge} x {length}", command, **path)
            table.append({"side": side, "voxels": edge * edge * length, "classes": classes, **asdict(one)})
            if not one.done:
                break
    for limit in LIMITS_GB:
        fits = {row["side"]: row["voxels"] for row in table if row["code"] == 0 and row["peak"] <= limit * GB}
        told = ", ".join(f"{side} {fits.get(side, 0) / 1e6:.3g}" for side in dict.fromkeys(r["side"] for r in table))
        print(f"  largest image within {limit} GB, million voxels: {told}")
    if bench.options.plot:
        subprocess.run([*child("plot", bench.options.plot)], input=json.dumps(table), text=True, check=True)


ROWS: dict[str, Callable[[Bench], None]] = {
    "full": full,
    "few": few,
    "engines": engines,
    "classes": classes_growth,
    "slices": slices_growth,
    "small": small,
    "loop": loop,
    "equal": equal,
    "curve": curve,
}


# Commands


def ours(*words: str) -> list[str]:
    """`monai-unet` of the checkout on PYTHONPATH, whatever the current folder is."""
    return [sys.executable, "-P", "-m", "monai_unet_app", *words]


def child(name: str, *words: object) -> list[str]:
    """A function of `memory_children.py` in a process of its own."""
    return [sys.executable, str(HERE / "memory_children.py"), name, *map(str, words)]


if __name__ == "__main__":
    raise SystemExit(main())
