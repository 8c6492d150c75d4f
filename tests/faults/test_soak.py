"""Day after day: memory, handles and disk of a node do not grow with the studies that went through it.

A few minutes of studies, one after the other and forgotten at once, stand for weeks of a clinic; SOAK_MINUTES makes it longer.
Images of some studies come late, so that the sender has what a rejection of a replaced result needs from the first study on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Ledger, NodeProcess, drained, node_process
from nodes import make_study, pacs, write_site
from ports import free_port

from dicom_io.net.exchange import send
from monai_unet_app.machine_memory import resident_bytes

pytestmark = pytest.mark.faults

MINUTES = float(os.environ.get("SOAK_MINUTES", "4"))
WARM_UP = 0.4  # part of the time after which things are compared with the end
LATE_EVERY = 20  # so many studies, the first too
MOST_MB, MOST_HANDLES, MOST_DISK_MB = 8.0, 4, 2.0


@dataclass(frozen=True)
class Sample:
    """What a node takes: MB of memory and open handles, with its children, and MB of disk but for the audit trail."""

    memory_mb: float
    handles: int
    disk_mb: float
    studies: int

    @classmethod
    def of(cls, node: NodeProcess, folder: Path, studies: int) -> Sample:
        assert node.process is not None
        processes = [node.process.pid, *node.children()]
        handles = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in processes)

        used = subprocess.run(
            ["du", "-sk", "--exclude=audit.jsonl", str(folder)], capture_output=True, text=True, check=False
        )
        return cls(sum(map(resident_bytes, processes)) / 1e6, handles, int(used.stdout.split()[0]) / 1e3, studies)


def test_nothing_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port, ledger, number = free_port(), Ledger(), 0
    settings = f"port = {port}\nretention_days = 0.00001\n"
    with pacs(tmp_path / "pacs") as peer, node_process(write_site(tmp_path, peer.port, node=settings), port) as node:
        samples, begin = [], time.monotonic()
        while time.monotonic() - begin < MINUTES * 60:
            for _ in range(5):
                study = make_study(tmp_path / f"study{number}", 4, size=64, tells=number % LATE_EVERY > 0)
                if number % LATE_EVERY == 0:
                    send(node.destination, sorted(study.glob("*.dcm"))[:2])
                    drained(node)
                ledger.send_until_accepted(node, study)
                shutil.rmtree(study)
                number += 1
            drained(node)
            samples.append(Sample.of(node, tmp_path / "node", number))
    early, late = samples[int(len(samples) * WARM_UP)], samples[-1]
    with capsys.disabled():
        print(f"\n{MINUTES:g} minutes, {number} studies: {early} -> {late}")
    assert late.studies > 2 * early.studies - 10
    assert late.memory_mb - early.memory_mb < MOST_MB
    assert late.handles - early.handles <= MOST_HANDLES
    forgotten = [sample.disk_mb for sample in samples[int(len(samples) * WARM_UP) :]]
    assert min(forgotten[len(forgotten) // 2 :]) - min(forgotten[: len(forgotten) // 2 or 1]) < MOST_DISK_MB
