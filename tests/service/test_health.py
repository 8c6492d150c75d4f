"""A node says that it is ready only while everything works that a study needs; what is frozen is replaced."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
import requests
from http_sites import opened
from nodes import make_study, pacs, running, store, wait_until, write_site

from monai_unet_app.service import child_processes, health
from monai_unet_app.service.http_api import serve
from monai_unet_app.service.node import Node
from monai_unet_app.service.site import HttpConfig
from monai_unet_app.service.worker_pool import WorkerPool

SILENT = "silent_s = 3"


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process that is stopped, not ended."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def done(node: Node) -> dict[str, int]:
    return node.queue.counts()["jobs"]


@pytest.mark.parametrize("kind", ["workers", pytest.param("senders", marks=pytest.mark.slow)])
def test_a_frozen_child_makes_the_node_unready_and_is_replaced(tmp_path: Path, kind: str) -> None:
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port, node=SILENT)) as node:
        pool: WorkerPool = getattr(node, kind)
        (child,) = pool.children
        with frozen(child.pid):
            wait_until(lambda: node.health.failing() == [kind.removesuffix("s")], 10)
            assert not node.is_ready
            wait_until(lambda: node.is_ready)
        assert child.exit_code == -signal.SIGKILL
        assert [one.pid for one in pool.children] != [child.pid]
        store(node, make_study(tmp_path / "one"))
        wait_until(lambda: node.queue.counts()["results"] == {"delivered": 1})


@pytest.mark.slow
def test_a_worker_that_is_frozen_at_work_is_replaced_and_its_study_done(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port, node=SILENT)) as node:
        (child,) = node.workers.children
        store(node, make_study(tmp_path / "one", wish="slow"))
        wait_until(lambda: child.task is not None)
        with frozen(child.pid):
            wait_until(lambda: node.queue.job(1).reason == "it did not answer for 3 s", 15)
        wait_until(lambda: node.queue.counts()["results"] == {"delivered": 1})
        assert node.queue.job(1).attempts == 2


@pytest.mark.slow
@pytest.mark.parametrize("wish", ["slow", "grind"])
def test_a_worker_that_works_for_long_is_left_alone(tmp_path: Path, wish: str) -> None:
    """It sleeps, or native code keeps its threads from answering: it has its time, which has a limit of its own."""
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port, node=SILENT)) as node:
        store(node, make_study(tmp_path / "one", wish=wish))
        wait_until(lambda: node.queue.counts()["results"] == {"delivered": 1}, 120)
        assert node.queue.job(1).attempts == 1
        assert node.workers.started == 1


def break_by_deleting(file: Path) -> None:
    file.unlink()


def break_by_overwriting(file: Path) -> None:
    with closing(sqlite3.connect(file)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # as it is sooner or later: all of it is in this file
    with file.open("rb+") as stream:
        stream.write(os.urandom(file.stat().st_size))


@pytest.mark.parametrize("broken", [break_by_deleting, break_by_overwriting])
def test_a_database_that_breaks_while_the_node_runs_is_told_at_ready(tmp_path: Path, broken) -> None:
    (tmp_path / "tokens").write_text("")
    config = HttpConfig(tmp_path / "tokens", port=0)
    with (
        pacs(tmp_path / "pacs") as peer,
        running(write_site(tmp_path, peer.port)) as node,
        serve(node, config) as server,
    ):
        url = f"http://127.0.0.1:{server.port}/ready"
        assert requests.get(url, timeout=10).json() == {"ready": True}
        broken(tmp_path / "node/node.sqlite")
        wait_until(lambda: "database" in node.health.failing(), 15)
        answer = requests.get(url, timeout=10)
        assert answer.status_code == 503
        assert not answer.json()["ready"]
        assert "database" in answer.json()["failing"]
        assert str(tmp_path) not in answer.text


@pytest.mark.slow
def test_a_database_that_somebody_else_keeps_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LONGEST_ROUND_S", 2.0)
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        with closing(sqlite3.connect(tmp_path / "node/node.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            wait_until(lambda: node.health.failing() == ["database", "main loop"], 15)
        wait_until(lambda: node.is_ready, 15)


def test_an_audit_trail_that_is_gone_is_told(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        kept = (tmp_path / "node/audit.jsonl").rename(tmp_path / "kept")
        wait_until(lambda: node.health.failing() == ["audit trail"], 15)
        kept.rename(tmp_path / "node/audit.jsonl")
        wait_until(lambda: node.is_ready, 15)


def test_a_loop_that_raises_or_hangs_makes_the_node_unready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LONGEST_ROUND_S", 1.5)
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        with monkeypatch.context() as patch:
            patch.setattr(node.jobs, "queue_complete_studies", lambda: 1 / 0)
            wait_until(lambda: node.health.failing() == ["main loop"], 10)
        wait_until(lambda: node.is_ready, 10)
        go_on = threading.Event()
        with monkeypatch.context() as patch:
            patch.setattr(node.jobs, "queue_complete_studies", lambda: go_on.wait(30))
            wait_until(lambda: node.health.failing() == ["main loop"], 10)
        go_on.set()
        wait_until(lambda: node.is_ready, 10)


def test_a_node_that_was_frozen_itself_blames_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port, node=SILENT)) as node:
        told, (child,) = time.monotonic, node.workers.children
        monkeypatch.setattr(time, "monotonic", lambda: told() + 3600.0)
        time.sleep(0.5)
        assert node.workers.children == [child]
        assert child.exit_code is None


@pytest.mark.parametrize("spoken_to", [True, False])
def test_a_child_whose_node_is_gone_ends_also_while_it_answers(spoken_to: bool) -> None:
    """Killed between a heart-beat and its answer, a node no longer hears, and what it said is still to be read."""
    words = "from monai_unet_app.service.child_processes import serve; serve(lambda: (lambda message: message, {}))"
    child = subprocess.Popen([sys.executable, "-c", words], stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True)
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        assert json.loads(child.stdout.readline()) == child_processes.READY
        child.stdout.close()
        child.stdin.write(json.dumps(child_processes.HEARTBEAT) + "\n" if spoken_to else "")
        child.stdin.close()
        assert child.wait(20) == 0
    finally:
        child.kill()


def test_pages_answer_at_once_while_another_program_keeps_the_database_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        opened(tmp_path) as site,
        closing(sqlite3.connect(tmp_path / "node/node.sqlite", isolation_level=None)) as other,
    ):
        store(site.node, make_study(tmp_path / "study", wish="review"))
        number = site.result("held")
        monkeypatch.setattr(health, "CHECK_S", 0.1)
        site.node.health._last_check = None
        other.execute("BEGIN IMMEDIATE")
        wait_until(lambda: not site.node.is_ready, 10)
        begin = time.monotonic()
        answers = [
            site.ask("GET", path, role)
            for path, role in (
                ("/ready", ""),
                ("/?still=true", "read"),
                (f"/results/{number}", "read"),
                ("/metrics", "read"),
            )
        ]
        assert time.monotonic() - begin < 2
        assert [answer.status_code for answer in answers] == [503, 200, 200, 200]
        assert answers[0].json()["failing"] == ["database"]
        assert re.fullmatch(r"busy: another program has kept it locked for \d+ s", answers[0].json()["database"])
        assert "another program has kept the database locked for" in answers[1].text
        assert f'<a href="/results/{number}">' in answers[1].text  # what was recorded before
        other.execute("ROLLBACK")
        wait_until(lambda: site.node.is_ready, 10)
