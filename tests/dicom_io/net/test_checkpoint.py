"""While we wait for an answer, pynetdicom's own thread stands still: else it takes answers that are not its own."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from net_peers import ct_series

from dicom_io.net.association import Checkpoint, associated, context
from dicom_io.net.destination import Destination, Dimse
from dicom_io.net.exchange import send
from dicom_io.net.scp import Listen, Provider


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_the_thread_stands_still_whenever_it_was_stopped() -> None:
    rounds, ended = [0], threading.Event()

    def run() -> None:
        while not ended.is_set():
            checkpoint.wait()
            rounds[0] += 1

    thread = threading.Thread(target=run, daemon=True)
    checkpoint = Checkpoint(thread)
    thread.start()
    for _ in range(500):
        checkpoint.clear()
        before = rounds[0]
        time.sleep(0.0002)
        assert rounds[0] == before
        checkpoint.set()
        time.sleep(0.0002)
    assert rounds[0] > 100
    ended.set()
    thread.join(5)


def test_a_thread_that_has_ended_is_not_waited_for() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    checkpoint = Checkpoint(thread)
    checkpoint.clear()
    assert not checkpoint.is_set()
    assert not checkpoint.wait(0.01)


@pytest.mark.usefixtures("hasty")
def test_no_answer_is_lost_of_many_requests(tmp_path: Path) -> None:
    files = ct_series(tmp_path / "ct", 60)
    with Provider(tmp_path / "store", Listen("ARCHIVE", port=0)) as provider:
        peer = Destination("peer", Dimse("127.0.0.1", provider.port, "ARCHIVE"), answer_s=5.0)
        assert {outcome.state for outcome in send(peer, files)} == {"sent"}
        with associated(peer, [context("1.2.840.10008.1.1", ["1.2.840.10008.1.2"])]) as link:
            assert isinstance(link.association._reactor_checkpoint, Checkpoint)
            answers = [link.ask(lambda association: association.send_c_echo()).Status for _ in range(300)]
        assert set(answers) == {0}
