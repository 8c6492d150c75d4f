"""Runs every benchmark, and writes what they print into docs/performance.md.

    python benchmarks/run.py [--data DIR] [--only NAME ...]      make performance
    python benchmarks/run.py --short                             make benchmarks

The long form installs the peers into build/peers, takes some hours on two quiet cores and writes the page. With --only some are
run anew, and of the others the page keeps what it has.

The short form takes small sizes and no peers beyond those of the project's own environment, asks for a third of each claim, and
writes nothing: it is there to notice on any machine when a figure falls far below its claim. What needs larger data below DIR
(`../shared/data`) is left out where they are absent, and named. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from claims import SHARE

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
PAGE = REPOSITORY / "docs" / "performance.md"
PEERS = REPOSITORY / "build" / "peers"
PEER_PACKAGES = ("dicom2nifti", "dcm2niix", "python-gdcm", "rt-utils", "opencv-python-headless", "surface-distance")
NNUNET = HERE / "nnunet.txt"
SHORT_SHARE = "0.33"
LEFT_OUT = "left out: "
"""What a benchmark prints first, with exit code 0, if it lacks what it compares."""
EXAMPLES = REPOSITORY / "examples"


@dataclass(frozen=True)
class Benchmark:
    """One file of this folder, or a part of what it measures.

    Attributes:
        name: For --only; of the file, without its ending, where `file` names no other.
        claim: What it measures, as a heading.
        long: Its arguments for the page; {data} and {peers} stand for folders.
        short: Its arguments for a quick look; None where there is none.
        needs: Folder below the data that the long form cannot do without; empty where it needs none.
        picture: What the long form draws, below docs/; empty where it draws nothing.
        file: Whose part it is, without its ending; empty where it is a file of its own.
        note: What a reader of the page must know of the sides.
    """

    name: str
    claim: str
    long: str
    short: str | None
    needs: str = ""
    picture: str = ""
    file: str = ""
    note: str = ""


BENCHMARKS = (
    Benchmark(
        "dicom_read",
        "Reading a CT series of 300 slices",
        "--data {data} --peers {peers}",
        "--slices 40 --rounds 2",
    ),
    Benchmark(
        "dicom_write",
        "Writing 20 labels as SEG and as RTSTRUCT",
        "--data {data} --peers {peers}",
        "--slices 30 --rounds 1",
    ),
    Benchmark(
        "hazards",
        "Hazardous series: right, refused or wrong",
        "--data {data}/dicom_series --peers {peers}",
        "--only gap",
    ),
    Benchmark("receive", "Receiving instances", "", "--instances 60 --rounds 1"),
    Benchmark("node", "From a complete study to results in the archive", "--studies 50", "--studies 4"),
    Benchmark("metrics", "A full table of scores", "", "--slices 40 --labels 6 --rounds 1"),
    Benchmark(
        "memory",
        "Volumes of full size in bounded memory",
        "--work build/memory --rows full few classes slices loop equal",
        "--short",
    ),
    Benchmark(
        "memory_curve",
        "Memory and time over two decades of voxels",
        "--work build/memory --rows curve --peers {peers} --plot docs/images/memory.svg",
        None,
        picture="images/memory.svg",
        file="memory",
        note="From a NIfTI file to a label map, 105 classes, one network. Ours is `monai-unet predict`: labels from calibrated "
        "probabilities on the grid of the image, and statements; no limit is set. MONAI is the bundle's `inference.yaml` as it "
        "is; buffered joins windows before they are added (`buffer_steps`) and resamples in float32; labels first resamples "
        "labels instead of probabilities, which is quick and jagged. nnU-Net is its predictor with results on the CPU, with "
        "probabilities and without. A process above 16 GB is ended.",
    ),
    Benchmark(
        "sliding_window",
        "One volume through one network: ours with each engine, MONAI, nnU-Net",
        "--peers {peers} --rounds 3 --plot docs/images/sliding_window.png",
        "--quick --rounds 1",
        picture="images/sliding_window.png",
        note="No loop around an engine is quicker than the engine alone, which the convolutions of a processor bound.",
    ),
    Benchmark(
        "engines",
        "From DICOM to SEG and SR by each engine",
        "--work build/memory --rows engines",
        None,
        file="memory",
        note="A CT of 512 x 512 x 300 voxels; each row is a process of its own, from its start.",
    ),
    Benchmark("latency", "One study, warm and end to end", "", None),
    Benchmark(
        "cohort",
        "A folder of 40 cases, beyond the engine alone",
        "--cases 40 --rounds 1",
        None,
        note="Both sides run in one process; half of the cases of the engine alone come before the cohort, half after it.",
    ),
    Benchmark(
        "tradeoff",
        "Time against quality",
        "--bundle hippocampus_mri_unet3d --data {data}/msd_hippocampus --splits examples/splits.json --overlaps --grids 1.5",
        None,
        "msd_hippocampus",
        note="Images hardly larger than a window, for which an overlap changes nothing; the bundle has two networks.",
    ),
    Benchmark(
        "tradeoff_folds",
        "Time against quality, by folds",
        "--bundle build/chaos_folds --data {data}/chaos_t2spir_mr --folds --grids 1.5",
        None,
        "chaos_t2spir_mr",
        file="tradeoff",
        note="Abdomens in T2-weighted MR; the bundle came of `plan --time 20min` and `train --folds 0 1`.",
    ),
    Benchmark(
        "quality_gate",
        "The quality gate on sound and spoiled images",
        "--data {data} --cases 8",
        f"--data {EXAMPLES} --cases 2",
        "msd_hippocampus",
    ),
    Benchmark(
        "label_place",
        "Labels that were mirrored or moved, told by the edges of their image",
        "--data {data}",
        None,
        "msd_hippocampus",
        note="`dicomize --labels --source` refuses them; thresholds were chosen on these cases, so others may be refused "
        "somewhat more often.",
    ),
    Benchmark(
        "label_files",
        "Label files of TotalSegmentator as SEG, SR and RTSTRUCT",
        "--data {data}",
        None,
        "totalsegmentator_ct",
        note="104 labels on 512 x 512 x 300 voxels are ellipsoids on a made-up CT.",
    ),
    Benchmark(
        "hippocampus_vs_stock",
        "Our recipe and a plain MONAI script in the same time",
        "--data {data}/msd_hippocampus",
        None,
        "msd_hippocampus",
    ),
    Benchmark(
        "trained_vs_nnunet",
        "Our folds and nnU-Net's own trainer in the same minutes",
        "--data {data}/chaos_t2spir_mr --peers {peers}",
        None,
        "chaos_t2spir_mr",
        note="Folds of a planned bundle in build/chaos_folds against nnU-Net's own plan and trainer, on the CPU.",
    ),
    Benchmark(
        "trained_vs_otsu",
        "A network planned and trained in 20 minutes, and Otsu's threshold",
        "--data {data}/dsb2018_nuclei_2d",
        None,
        "dsb2018_nuclei_2d",
        note="Nuclei in fluorescence; the bundle in build/nuclei was planned and trained by the commands in the benchmark.",
    ),
    Benchmark(
        "nnunet_labels",
        "Two channels and regions, by nnU-Net's own label manager and ours",
        "--data {data}/msd_hippocampus --peers {peers}",
        None,
        "msd_hippocampus",
        note="nnU-Net trains for three minutes on the CPU on what `convert` wrote; what is compared are voxels, not quality.",
    ),
    Benchmark(
        "imported_nnunet",
        "Folds of nnU-Net as a bundle: time, calibration and intervals",
        "--data {data}/msd_hippocampus --peers {peers}",
        None,
        "msd_hippocampus",
        note="nnU-Net trains five folds for ten minutes each on one thread, at a quarter of the width of its own plan.",
    ),
    Benchmark(
        "results_of_others",
        "Label files of nnU-Net, judged by what was fitted to others of them",
        "",
        None,
        "msd_hippocampus",
        note="By the folds that `imported_nnunet.py` trained; kinds with a star were never shown to the gate.",
    ),
    Benchmark(
        "drift",
        "Planted drifts found and named, false alarms, and the Dice that nobody measured",
        "--data {data}/msd_hippocampus",
        None,
        "msd_hippocampus",
        note="Real images and numbers; tags and changes are planted. Which bets are placed, and how wide the bias of an "
        "expected Dice is, was chosen on training cases.",
    ),
    Benchmark(
        "challengers",
        "A challenger beside the champion: what it costs, the way back, and how soon one that is worse is found",
        "",
        None,
        note="Shipped bundles, example cases, a real registry and Orthanc.",
    ),
    Benchmark(
        "counted_nuclei",
        "Nuclei told apart by learnt middles, and by a watershed of the distance alone",
        "--data {data}/dsb2018_nuclei_2d",
        None,
        "dsb2018_nuclei_2d",
        note="On the test cases of the plan; the bundle in build/nuclei was made by the commands in the benchmark.",
    ),
)


@dataclass(frozen=True)
class Run:
    """What became of one benchmark: its command as a user types it, exit code (None: left out), what it printed, seconds."""

    benchmark: Benchmark
    command: str
    code: int | None
    printed: str
    seconds: float


def main() -> int:
    """Runs the benchmarks that are asked for; 1 if one misses a target or breaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument(
        "--only", nargs="+", choices=[one.name for one in BENCHMARKS], help="these only, beside what was kept of others"
    )
    parser.add_argument(
        "--short", action="store_true", help="small sizes and a third of each claim; no page is written"
    )
    options = parser.parse_args()
    if not options.short:
        install_peers()
    chosen = [one for one in BENCHMARKS if not options.only or one.name in options.only]
    if options.short:
        chosen = [one for one in chosen if one.short is not None]
    done = list(runs(chosen, options))
    if not options.short:
        PAGE.write_text(page(done), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(REPOSITORY)}")
    for one in done:
        word = "left out" if one.code is None else "reached" if one.code == 0 else "MISSED"
        print(f"{one.benchmark.name:22} {word:9} {one.seconds:6.0f} s")
    return int(any(one.code for one in done))


def install_peers() -> None:
    """The programs that ours are compared with, in a folder of their own: they ask for other versions than ours."""
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--target", str(PEERS)]
    subprocess.run([*words, *PEER_PACKAGES, "--requirement", str(NNUNET)], check=True)


def runs(chosen: list[Benchmark], options: argparse.Namespace) -> Iterator[Run]:
    """Each benchmark in a process of its own; what it prints is shown and kept."""
    environment = {**os.environ, SHARE: SHORT_SHARE if options.short else "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(REPOSITORY)]))
    if not options.short:  # metrics.py imports its peer in its own process
        environment["PYTHONPATH"] += os.pathsep + str(PEERS)
    for one in chosen:
        file = f"{one.file or one.name}.py"
        arguments = (one.short if options.short else one.long.format(data="../shared/data", peers="build/peers")) or ""
        command = f"python benchmarks/{file} {arguments}".strip()
        print(f"== {command}", flush=True)
        if not options.short and one.needs and not (options.data / one.needs).is_dir():
            print(f"  left out: {one.needs}/ is absent from {options.data}")
            yield Run(one, command, None, "", 0.0)
            continue
        typed = arguments if options.short else one.long.format(data=options.data, peers=PEERS)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, str(HERE / file), *typed.split()],
            capture_output=True, text=True, env=environment, cwd=REPOSITORY, check=False,
        )  # fmt: skip
        print(done.stdout, flush=True)
        if done.returncode:
            print(*done.stderr.splitlines()[-20:], sep="\n", file=sys.stderr, flush=True)
        left_out = done.returncode == 0 and done.stdout.startswith(LEFT_OUT)
        yield Run(one, command, None if left_out else done.returncode, done.stdout, time.monotonic() - began)


def page(done: list[Run]) -> str:
    """docs/performance.md, with these runs anew."""
    head = [
        "# Performance",
        "",
        "Written by `make performance`; every line in a frame was printed by the command above it. Both sides of a comparison "
        "run in turns on one machine, and the ratio is what counts: seconds on other machines are others. `make benchmarks` "
        "runs a short form of each, which fails where a figure is below a third of its claim.",
    ]
    before = _sections()
    sections = before | {
        one.benchmark.claim: section(one) for one in done if one.code is not None or one.benchmark.claim not in before
    }
    parts = ["\n".join(head), *(sections[one.claim] for one in BENCHMARKS if one.claim in sections)]
    return "\n\n".join([*parts, (HERE / "all_probabilities.md").read_text(encoding="utf-8").rstrip()]) + "\n"


def section(run: Run) -> str:
    """What the page says of a run."""
    one = run.benchmark
    lines = [f"## {one.claim}", "", "```", run.command, "```", ""]
    if run.code is None:
        return "\n".join([*lines, "Not measured: what it compares was absent."])
    verdict = "every target is reached" if run.code == 0 else "a target is missed, or it broke"
    lines += [f"![{one.claim}]({one.picture})", ""] if one.picture else []
    lines += [one.note, ""] if one.note else []
    lines += [
        "```text",
        *run.printed.rstrip().splitlines(),
        "```",
        "",
        f"Exit code {run.code}: {verdict}. {_machine()}",
    ]
    return "\n".join(lines)


def _sections() -> dict[str, str]:
    """What the page says already, by heading."""
    parts = PAGE.read_text(encoding="utf-8").rstrip().split("\n## ")[1:] if PAGE.is_file() else []
    return {part.partition("\n")[0]: f"## {part.rstrip()}" for part in parts}


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "pydicom", "numpy", "SimpleITK"))
    return f"{_processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}."


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
