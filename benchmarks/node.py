"""How long from "complete" until SEG and SR are in the archive, of a warm node? And from a cold start of the command line?

    python benchmarks/node.py [--studies 50]

The studies are example cases as DICOM series, each with a patient of its own; the archive is Orthanc where it is installed,
else a store of our own, and then it says so. One study at a time is sent and waited for. "Complete" is when the node makes a
job of the study; the times are those of its own `/metrics`. `monai-unet predict` on the same series, a new process each, is
what who has no node does; three of them are timed. Memory is resident: that of `monai-unet node` while it is idle, whose
process only receives and decides, and of a worker at its end. Exit code 1 if the 95th percentile is above 5 s, or the idle
receiver above 150 MB.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from claims import judged

sys.path.extend(str(Path(__file__).resolve().parents[1] / "tests" / room) for room in ("", "interop"))

from orthanc import PLUGIN, orthanc

from dicom_io.dicomize import dicomize
from dicom_io.net.destination import parse_destination
from dicom_io.net.exchange import send
from dicom_io.net.scp import Listen, Provider
from monai_unet_app.data.read import read_volume
from monai_unet_app.machine_memory import resident_bytes
from monai_unet_app.service.node import Node
from monai_unet_app.service.site_file import read_site
from monai_unet_app.shipped import shipped

MOST_S, MOST_MB = 5.0, 150.0
BUNDLE = "hippocampus_mri_unet3d"
SITE = """
[node]
folder = "node"
stable_s = 1.0
[[rules]]
name = "hippocampus"
bundle = "{bundle}"
match = {{Modality = "MR"}}
destinations = ["archive"]
hold_review = false
[destinations.archive]
host = "127.0.0.1"
port = {port}
ae_title = "{title}"
"""


def main() -> int:
    """Runs the node, times studies, prints; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        series = made_studies(folder / "in", options.studies)
        with archive(folder) as (title, port):
            where = "Orthanc" if title == "ORTHANC" else "absent, a store of our own instead"
            print(f"{options.studies} studies, archive: {where}")
            (folder / "site.toml").write_text(SITE.format(bundle=BUNDLE, port=port, title=title))
            idle_mb = idle_receiver_mb(folder / "site.toml")
            site = read_site(folder / "site.toml")
            with Node(replace(site, node=replace(site.node, port=0))) as node:
                started = time.perf_counter()
                while not node.is_ready:
                    time.sleep(0.05)
                print(f"  the worker is ready after {time.perf_counter() - started:.1f} s")
                for number, one in enumerate(series, start=1):
                    through(node, one, number)
                times, memory = list(node.durations.last["total"]), node.memory_bytes()
        cold = [predict_alone(one, folder / "out") for one in series[:3]]
    return int(not shown(times, cold, idle_mb, memory))


def idle_receiver_mb(site: Path) -> float:
    """Memory of a node that waits, as a process of its own."""
    command = [sys.executable, "-m", "monai_unet_app", "node", "--config", str(site)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "ready" not in process.stdout.readline():
            pass
        found = resident_bytes(process.pid) / 1e6
        process.terminate()
    return found


def made_studies(folder: Path, count: int) -> list[Path]:
    """Folders of DICOM series."""
    images = sorted((shipped("examples") / "msd_hippocampus" / "images").iterdir())
    volumes = [read_volume(path) for path in images[: min(count, len(images))]]
    return [
        dicomize(volumes[n % len(volumes)], folder / str(n), case_id=f"bench{n}").series_folder for n in range(count)
    ]


@contextmanager
def archive(folder: Path) -> Iterator[tuple[str, int]]:
    """AE title and port of a place for results."""
    if PLUGIN.is_file():
        with orthanc(folder / "orthanc") as running:
            yield "ORTHANC", running.port
    else:
        with Provider(folder / "store", Listen("STORE", port=0)) as provider:
            yield "STORE", provider.port


def through(node: Node, series: Path, number: int) -> None:
    """Sends a study and waits until it is delivered."""
    send(parse_destination(f"MONAIUNET@127.0.0.1:{node.provider.port}"), sorted(series.glob("*.dcm")))
    end = time.monotonic() + 120
    while node.queue.counts()["results"].get("delivered", 0) < number:
        if time.monotonic() > end:
            raise SystemExit(f"study {number} did not arrive: {node.queue.counts()}")
        time.sleep(0.02)


def predict_alone(series: Path, output: Path) -> float:
    """Seconds of the command line, from nothing to SEG and SR."""
    began = time.perf_counter()
    words = ["predict", "--bundle", BUNDLE, "--input", str(series), "--output", str(output), "--format", "seg,sr"]
    subprocess.run([sys.executable, "-m", "monai_unet_app", *words], check=True, capture_output=True)
    return time.perf_counter() - began


def shown(times: list[float], cold: list[float], idle_mb: float, memory: dict[str, int]) -> bool:
    """Prints; whether the targets are reached."""
    median, late = np.quantile(times, [0.5, 0.95]).tolist()
    print(
        f"  warm node, complete until delivered: median {median:.2f} s, 95 % {late:.2f} s, longest {max(times):.2f} s"
    )
    alone = statistics.median(cold)
    print(f"  monai-unet predict, a new process each: median {alone:.2f} s, {alone / median:.1f}x")
    print(f"  worker {memory['worker 1'] / 1e6:.0f} MB")
    return all(
        [
            judged("95 % of the studies, s", late, MOST_S, at_most=True),
            judged("receiver, MB", idle_mb, MOST_MB, at_most=True),
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
