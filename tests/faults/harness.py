"""A node in a process of its own, whose parts are killed; and what became of everything that it accepted."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from nodes import study_of, wait_until
from pydicom import dcmread

from dicom_io.errors import NetworkError
from dicom_io.net.destination import parse_destination
from dicom_io.net.exchange import send

HERE = Path(__file__).parent
SERVICE = HERE.parent / "service"


class NodeProcess:
    """A node that can be killed and started again, in whole or in parts."""

    def __init__(self, site: Path, port: int, worker: str = "fake_worker") -> None:
        self.site, self.port, self.worker, self.starts = site, port, worker, 0
        self.destination = parse_destination(f"MONAIUNET@127.0.0.1:{port}")
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts it, and waits until it is ready."""
        path = os.pathsep.join([str(SERVICE), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "run_node.py"), str(self.site), self.worker],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
        self.starts += 1
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def children(self) -> list[int]:
        """Process ids of its workers and senders."""
        assert self.process is not None
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split()]

    def child(self, module: str) -> int | None:
        """Process id of a child that runs a module; None while there is none."""
        for pid in self.children():
            with contextlib.suppress(OSError):
                if module in Path(f"/proc/{pid}/cmdline").read_text():
                    return pid
        return None

    def kill(self) -> None:
        """As a power failure does it."""
        assert self.process is not None
        self.process.kill()
        self._wait()

    def stop(self) -> int:
        """Ends it as a service manager does."""
        assert self.process is not None
        self.process.terminate()
        return self._wait(30)

    def _wait(self, patience_s: float | None = None) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        code = self.process.wait(patience_s)
        self.process.stdout.close()
        return code

    def counts(self) -> dict[str, dict[str, int]]:
        """How many rows of each table are in each state."""
        with contextlib.closing(sqlite3.connect(self.site.parent / "node/node.sqlite", timeout=10)) as db:
            return {
                table: dict(db.execute(f"SELECT state, count(*) FROM {table} GROUP BY state").fetchall())
                for table in ("studies", "jobs", "results", "deliveries")
            }

    def reasons(self) -> list[str]:
        """Why each job that is not done was not done the last time; empty where it was never tried."""
        with contextlib.closing(sqlite3.connect(self.site.parent / "node/node.sqlite", timeout=10)) as db:
            return [str(reason) for (reason,) in db.execute("SELECT reason FROM jobs WHERE state != 'done'")]

    def is_quiet(self) -> bool:
        """Whether nothing is left to be done."""
        counts = self.counts()
        busy = (("studies", "arriving"), ("jobs", "queued"), ("jobs", "working"), ("results", "sending"))
        return not any(counts[table].get(state) for table, state in busy)


@contextlib.contextmanager
def node_process(site: Path, port: int, worker: str = "fake_worker") -> Iterator[NodeProcess]:
    """Ready; killed at the end."""
    node = NodeProcess(site, port, worker)
    node.start()
    try:
        yield node
    finally:
        if node.process is not None:
            node.kill()


@dataclass
class Ledger:
    """What senders were told: study -> UIDs of the instances that were answered with 0x0000."""

    accepted: dict[str, set[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, node: NodeProcess, study: Path) -> bool:
        """Sends a study once, and notes what was accepted; whether all of it was."""
        files = sorted(study.glob("*.dcm"))
        try:
            outcomes = send(node.destination, files, lambda outcome: self._note(study, outcome))
        except NetworkError:
            return False
        return all(one.state == "sent" for one in outcomes)

    def send_until_accepted(self, node: NodeProcess, study: Path, seconds: float = 60.0) -> None:
        """As a modality does: again until everything was accepted."""
        end = time.monotonic() + seconds
        while not self.send(node, study):
            if time.monotonic() > end:
                raise AssertionError(f"not accepted within {seconds:g} s")
            time.sleep(0.2)

    def _note(self, study: Path, outcome) -> None:  # type: ignore[no-untyped-def]
        if outcome.state == "sent":
            with self.lock:
                self.accepted.setdefault(str(study_of(study)), set()).add(outcome.sop_instance_uid)


@dataclass(frozen=True)
class Balance:
    """What became of all studies of which an instance was accepted."""

    accepted: int
    delivered: int
    again: int
    dead: int
    lost: int

    def __str__(self) -> str:
        return (
            f"studies accepted {self.accepted}, delivered {self.delivered}, results delivered more than once or superseded "
            f"{self.again}, dead letters {self.dead}, lost {self.lost}"
        )


def balance(ledger: Ledger, node_folder: Path, pacs_folder: Path) -> Balance:
    """Compares what senders were told with what the PACS has and what the node keeps."""
    with contextlib.closing(sqlite3.connect(node_folder / "node.sqlite", timeout=10)) as db:
        dead = {row[0] for row in db.execute("SELECT study FROM jobs WHERE state = 'dead'")}
        again = int(
            db.execute(
                "SELECT coalesce(sum(n - 1), 0) FROM (SELECT count(*) n FROM results GROUP BY study)"
            ).fetchone()[0]
        )
    covered: dict[str, int] = {}
    for path in pacs_folder.rglob("*.dcm"):
        found = dcmread(path)
        if found.get("Modality") == "KO":  # rejects a version that another has replaced
            continue
        count = int(str(found.ImageComments).split()[0])
        covered[found.StudyInstanceUID] = max(covered.get(found.StudyInstanceUID, 0), count)
    delivered, lost = 0, 0
    for study, uids in ledger.accepted.items():
        kept = {path.stem for path in (node_folder / "received" / study).rglob("*.dcm")}
        if uids <= kept and covered.get(study, 0) >= len(uids):
            delivered += 1
        elif not (uids <= kept and study in dead):
            lost += 1
    return Balance(len(ledger.accepted), delivered, again, len(dead), lost)


def drained(node: NodeProcess, seconds: float = 120.0) -> None:
    """Waits until nothing is left to be done."""
    wait_until(node.is_quiet, seconds)


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own in memory, of a size as `mount` takes it; the test is skipped where none can be mounted."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("a file system of its own cannot be mounted here; root is needed")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
