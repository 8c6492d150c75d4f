"""An accepted study is never lost: whatever is killed, full, away, slow, doubled or broken."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import Ledger, NodeProcess, balance, drained, mounted, node_process
from nodes import make_study, pacs, study_of, wait_until, write_site
from ports import free_port
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from dicom_io.net.instance_store import InstanceStore
from dicom_io.net.scp import Listen, Provider

pytestmark = pytest.mark.faults

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "100"))
PARTS = ("receiver", "worker", "sender", "receiver and its memory")


@pytest.fixture
def port() -> int:
    return free_port()


def site(folder: Path, port: int, pacs_port: int, node: str = "") -> Path:
    return write_site(folder, pacs_port, node=f"port = {port}\nmost_senders = 80\n{node}")


def test_kills_at_random_moments_lose_nothing(tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    chance, ledger = random.Random(20), Ledger()
    with pacs(tmp_path / "pacs") as peer, node_process(site(tmp_path, port, peer.port), port) as node:
        for number in range(ROUNDS):
            study = make_study(tmp_path / f"study{number}", chance.randint(1, 6))
            sending = threading.Thread(target=ledger.send_until_accepted, args=(node, study))
            sending.start()
            time.sleep(chance.uniform(0, 0.8))
            _kill(node, PARTS[number % len(PARTS)])
            sending.join()
            shutil.rmtree(study)
        drained(node)
        found = balance(ledger, tmp_path / "node", tmp_path / "pacs")
    with capsys.disabled():
        print(f"\n{ROUNDS} kills, {node.starts} starts: {found}")
    assert found.accepted == ROUNDS
    assert found.lost == 0
    assert found.delivered == ROUNDS - found.dead
    assert found.dead == 0  # a kill from outside now and then is no fault of a study


def _kill(node: NodeProcess, part: str) -> None:
    if part.startswith("receiver"):
        node.kill()
        if part.endswith("memory"):
            for file in (node.site.parent / "node").glob("node.sqlite*"):
                file.unlink()
        node.start()
        return
    pid = node.child("fake_worker" if part == "worker" else "service.deliver")
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def test_an_association_that_is_aborted_in_mid_transfer_leaves_what_was_accepted(tmp_path: Path, port: int) -> None:
    study, ledger = make_study(tmp_path / "study", 9, tells=False), Ledger()
    with pacs(tmp_path / "pacs") as peer, node_process(site(tmp_path, port, peer.port), port) as node:
        ae = AE()
        ae.add_requested_context(CTImageStorage)
        association = ae.associate("127.0.0.1", port, ae_title="MONAIUNET")
        for path in sorted(study.glob("*.dcm"))[:4]:
            assert association.send_c_store(dcmread(path)).Status == 0
        association.abort()
        drained(node)
        assert _comments(tmp_path / "pacs") == ["4 instances"]
        ledger.send_until_accepted(node, study)
        drained(node)
        assert _comments(tmp_path / "pacs") == ["4 instances", "9 instances"]
        assert balance(ledger, tmp_path / "node", tmp_path / "pacs").lost == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "6m") as folder:
        yield folder


@pytest.mark.parametrize("least_free_gb", [1e-9, 0.002], ids=["to the last byte", "with a watermark"])
def test_a_full_disk_refuses_and_what_was_accepted_goes_on_when_there_is_room(
    tmp_path: Path, port: int, small_disk: Path, least_free_gb: float
) -> None:
    ledger = Ledger()
    with pacs(tmp_path / "pacs") as peer:
        where = site(small_disk, port, peer.port, f"least_free_gb = {least_free_gb:.9f}")
        with node_process(where, port) as node:
            studies = [make_study(tmp_path / f"study{n}", 4, size=256) for n in range(12)]
            whole = [ledger.send(node, study) for study in studies]
            assert not all(whole)  # 12 times 4 times 128 kB do not fit
            time.sleep(2)
            assert node.process is not None
            assert node.process.poll() is None
            subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
            for study in studies:
                ledger.send_until_accepted(node, study)
            drained(node)
            found = balance(ledger, small_disk / "node", tmp_path / "pacs")
    assert (found.accepted, found.delivered, found.lost) == (12, 12, 0)


def test_a_pacs_that_refuses_and_one_that_is_slow_get_everything_in_the_end(tmp_path: Path, port: int) -> None:
    ledger, pacs_port = Ledger(), free_port()
    with node_process(site(tmp_path, port, pacs_port), port) as node:
        with Provider(tmp_path / "refusing", Listen("ELSEWHERE", port=pacs_port)):
            for number in range(3):
                ledger.send_until_accepted(node, make_study(tmp_path / f"study{number}"))
            wait_until(lambda: node.counts()["deliveries"].get("pending") == 3)
            time.sleep(1)
            assert node.counts()["deliveries"] == {"pending": 3}
        slow = InstanceStore(tmp_path / "pacs", stored=lambda stored: time.sleep(1.5))
        with Provider(slow, Listen("PACS", port=pacs_port)):
            drained(node)
            found = balance(ledger, tmp_path / "node", tmp_path / "pacs")
    assert (found.delivered, found.lost) == (3, 0)


def test_two_senders_of_one_study_at_a_time_and_again_make_one_result(tmp_path: Path, port: int) -> None:
    study, ledger = make_study(tmp_path / "study", 20), Ledger()
    with pacs(tmp_path / "pacs") as peer, node_process(site(tmp_path, port, peer.port), port) as node:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: ledger.send_until_accepted(node, study), range(2)))
        drained(node)
        ledger.send_until_accepted(node, study)
        drained(node)
    assert _comments(tmp_path / "pacs") == ["20 instances"]
    assert ledger.accepted == {study_of(study): {dcmread(path).SOPInstanceUID for path in study.glob("*.dcm")}}


def test_fifty_associations_at_once(tmp_path: Path, port: int) -> None:
    ledger, studies = Ledger(), [make_study(tmp_path / f"study{n}", 2) for n in range(50)]
    with pacs(tmp_path / "pacs") as peer, node_process(site(tmp_path, port, peer.port), port) as node:
        with ThreadPoolExecutor(50) as pool:
            list(pool.map(lambda study: ledger.send_until_accepted(node, study), studies))
        drained(node)
        found = balance(ledger, tmp_path / "node", tmp_path / "pacs")
    assert (found.accepted, found.delivered, found.lost) == (50, 50, 0)


def test_a_study_of_two_thousand_instances(tmp_path: Path, port: int) -> None:
    study, ledger = make_study(tmp_path / "study", 2000), Ledger()
    with pacs(tmp_path / "pacs") as peer, node_process(site(tmp_path, port, peer.port), port) as node:
        ledger.send_until_accepted(node, study, 300)
        drained(node)
    assert "2000 instances" in _comments(tmp_path / "pacs")


def test_a_broken_object_in_a_good_study_is_refused_and_the_study_goes_on(tmp_path: Path, port: int) -> None:
    study, ledger = make_study(tmp_path / "study", 5, tells=False), Ledger()
    first = sorted(study.glob("*.dcm"))[0]
    broken = dcmread(first)
    del broken.StudyInstanceUID
    broken.save_as(first)
    with pacs(tmp_path / "pacs") as peer, node_process(site(tmp_path, port, peer.port), port) as node:
        assert not ledger.send(node, study)
        drained(node)
    (accepted,) = ledger.accepted.values()
    assert len(accepted) == 4
    assert _comments(tmp_path / "pacs") == ["4 instances"]


def _comments(folder: Path) -> list[str]:
    """Comments of the results; the note that rejects a replaced result has none."""
    objects = (dcmread(path) for path in folder.rglob("*.dcm"))
    return sorted(str(found.ImageComments) for found in objects if found.get("Modality") != "KO")
