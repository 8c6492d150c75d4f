"""The same promise with the worker that a clinic runs: torch, a shipped bundle, and one DIMSE and one STOW destination.

REAL_FAULT_ROUNDS kills (10), seeded; REAL_SOAK_MINUTES (0: left out; 30 before a release) of studies one after the other.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from harness import Ledger, NodeProcess, drained, mounted, node_process
from nodes import pacs, wait_until
from ports import free_port
from pydicom import dcmread
from pydicom.dataset import Dataset
from web_peer import WebArchive

from dicom_io.dicomize import dicomize
from monai_unet_app.data.read import read_volume
from monai_unet_app.machine_memory import resident_bytes
from monai_unet_app.service.node import SENDER, WORKER
from monai_unet_app.shipped import shipped

pytestmark = pytest.mark.faults

ROUNDS = int(os.environ.get("REAL_FAULT_ROUNDS", "10"))
MINUTES = float(os.environ.get("REAL_SOAK_MINUTES", "0"))
PARTS = ("worker", "sender", "receiver")
MOMENTS = {
    "worker": ("jobs working",),
    "sender": ("results sending",),
    "receiver": ("sending", "jobs working", "results sending"),
}
"""When a part is killed: half a second at most after this is so. "sending": while the study comes in."""

LONG_S = 900.0
"""More than a busy machine with two cores takes; a quiet one takes a tenth."""

LEFT_BYTES = 150_000
"""Of a disk that is full: the queue goes on for more than a minute, and the results need more."""

MOST_MB, WARM_UP = 100.0, 0.3
SITE = """
[node]
folder = "node"
port = {port}
stable_s = 0.5
first_pause_s = 0.1
longest_pause_s = 1.0
tries = 20
{node}
[[rules]]
name = "hippocampus"
bundle = "hippocampus_mri_unet3d"
match = {{Modality = "MR"}}
destinations = ["archive", "web"]
hold_review = false
[destinations.archive]
host = "127.0.0.1"
port = {archive}
ae_title = "PACS"
[destinations.web]
url = "{web}"
"""


class Hospital:
    """A node with the real worker, and the two places that its results go to."""

    def __init__(self, node: NodeProcess, archive: Path, web: WebArchive) -> None:
        self.node, self.archive, self.web, self.ledger = node, archive, web, Ledger()

    def at_archive(self) -> list[Dataset]:
        """Every object that came by DIMSE."""
        return [dcmread(path) for path in self.archive.rglob("*.dcm")]

    def at_web(self) -> list[Dataset]:
        """Every object that came by STOW, as often as it came."""
        return [one for request in list(self.web.received) for one in request]

    def check(self) -> None:
        """Fails unless each destination has a SEG and an SR of every accepted study, whole, and nothing twice and different."""
        assert self.node.counts()["jobs"].get("dead", 0) == 0
        assert self.node.counts()["deliveries"].get("dead", 0) == 0
        for objects in (self.at_archive(), self.at_web()):
            # A study that a kill cut in two has a first version, which is rejected when the whole one is there.
            kinds = {(str(one.StudyInstanceUID), one.Modality) for one in objects if one.Modality != "KO"}
            assert kinds == {(study, kind) for study in self.ledger.accepted for kind in ("SEG", "SR")}
            for study, uids in self.ledger.accepted.items():
                segs = [one for one in objects if one.Modality == "SEG" and one.StudyInstanceUID == study]
                assert uids in [_sources(one) for one in segs], "no SEG of the whole study"
            contents: dict[str, Dataset] = {}
            for one in objects:
                assert contents.setdefault(str(one.SOPInstanceUID), one) == one


def _sources(seg: Dataset) -> set[str]:
    (series,) = seg.ReferencedSeriesSequence
    return {str(one.ReferencedSOPInstanceUID) for one in series.ReferencedInstanceSequence}


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Callable[..., Hospital]]:
    """Starts a hospital whose site file, and so the node, is in a folder; more lines go to [node]."""
    with ExitStack() as stack:

        def start(folder: Path = tmp_path, node: str = "") -> Hospital:
            port, web = free_port(), stack.enter_context(WebArchive().running())
            archive = stack.enter_context(pacs(tmp_path / "pacs"))
            site = folder / "site.toml"
            site.write_text(SITE.format(port=port, archive=archive.port, web=web.url, node=node))
            running = stack.enter_context(node_process(site, port, WORKER))
            return Hospital(running, tmp_path / "pacs", web)

        yield start


def make_study(folder: Path, number: int) -> Path:
    """An example case as an MR series, of a patient of its own."""
    images = sorted((shipped("examples") / "msd_hippocampus" / "images").iterdir())
    image = read_volume(images[number % len(images)])
    return dicomize(image, folder / f"study{number}", case_id=f"fault {number}").series_folder


def test_kills_at_random_moments_lose_nothing_of_what_a_real_worker_segments(
    tmp_path: Path, hospital: Callable[..., Hospital], capsys: pytest.CaptureFixture[str]
) -> None:
    chance, here = random.Random(14), hospital()
    for number in range(ROUNDS):
        study = make_study(tmp_path, number)
        sending = threading.Thread(target=here.ledger.send_until_accepted, args=(here.node, study, LONG_S))
        sending.start()
        part, moment = PARTS[number % len(PARTS)], chance.choice(MOMENTS[PARTS[number % len(PARTS)]])
        if moment != "sending":
            sending.join()
            _wait_for(here.node, *moment.split())
        time.sleep(chance.uniform(0, 0.5))
        _signal(here.node, part, signal.SIGKILL)
        sending.join()
    drained(here.node, LONG_S)
    with capsys.disabled():
        print(f"\n{ROUNDS} kills with the real worker, {here.node.starts} starts, {len(here.at_web())} objects by STOW")
    assert len(here.ledger.accepted) == ROUNDS
    here.check()


def _wait_for(node: NodeProcess, table: str, state: str) -> None:
    """Until a row of a table is in a state, or was so quickly in it that nothing is left to be done."""
    wait_until(lambda: node.counts()[table].get(state) or node.is_quiet(), LONG_S)


def _signal(node: NodeProcess, part: str, number: signal.Signals) -> None:
    """Sends a signal to a part that is there; a receiver is started again."""
    if part == "receiver":
        node.kill()
        node.start()
        return
    pid = node.child(WORKER if part == "worker" else SENDER)
    if pid is not None:
        os.kill(pid, number)


@contextmanager
def _stopped_worker(node: NodeProcess) -> Iterator[None]:
    """The worker does nothing, and goes on at the end."""
    _signal(node, "worker", signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(node, "worker", signal.SIGCONT)


def test_a_worker_that_is_stopped_while_two_senders_send_is_replaced_and_both_studies_arrive(
    tmp_path: Path, hospital: Callable[..., Hospital]
) -> None:
    here = hospital(node="silent_s = 4")
    studies = [make_study(tmp_path, number) for number in range(2)]
    stopped = here.node.child(WORKER)
    _signal(here.node, "worker", signal.SIGSTOP)
    threads = [
        threading.Thread(target=here.ledger.send_until_accepted, args=(here.node, study, LONG_S)) for study in studies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    drained(here.node, LONG_S)
    assert here.node.child(WORKER) != stopped
    here.check()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "8m") as folder:
        yield folder


def test_a_disk_that_is_full_for_the_results_of_a_real_worker_delays_them_and_loses_none(
    tmp_path: Path, small_disk: Path, hospital: Callable[..., Hospital]
) -> None:
    here = hospital(small_disk, f"least_free_gb = 0.000000001\nsilent_s = {LONG_S}")
    with _stopped_worker(here.node):  # how much the queue takes until then depends on the pace
        here.ledger.send_until_accepted(here.node, make_study(tmp_path, 0), LONG_S)
        wait_until(lambda: here.node.counts()["jobs"].get("working"), LONG_S)
        wait_until(lambda: not here.node.counts()["studies"].get("arriving"), LONG_S)
        (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - LEFT_BYTES))
    wait_until(lambda: any("could not be written" in reason for reason in here.node.reasons()), LONG_S)
    assert here.node.process is not None
    assert here.node.process.poll() is None
    assert here.at_archive() == here.at_web() == []
    (small_disk / "ballast").unlink()
    here.ledger.send_until_accepted(here.node, make_study(tmp_path, 1), LONG_S)
    drained(here.node, LONG_S)
    here.check()


@pytest.mark.skipif(MINUTES <= 0, reason="REAL_SOAK_MINUTES says for how long; 30 before a release")
def test_a_real_worker_does_not_grow(
    tmp_path: Path, hospital: Callable[..., Hospital], capsys: pytest.CaptureFixture[str]
) -> None:
    here, begin, number, memory_mb = hospital(node="retention_days = 0.00001"), time.monotonic(), 0, []
    while time.monotonic() - begin < MINUTES * 60:
        study = make_study(tmp_path, number)
        here.ledger.send_until_accepted(here.node, study, LONG_S)
        shutil.rmtree(study.parent)
        drained(here.node, LONG_S)
        worker = here.node.child(WORKER)
        assert worker is not None
        memory_mb.append(resident_bytes(worker) / 1e6)
        number += 1
    early = max(memory_mb[: max(1, int(len(memory_mb) * WARM_UP))])
    with capsys.disabled():
        print(
            f"\n{MINUTES:g} minutes, {number} studies: worker {early:.0f} MB early, {memory_mb[-1]:.0f} MB at the end"
        )
    assert number > 5
    assert memory_mb[-1] - early < MOST_MB
    here.check()
