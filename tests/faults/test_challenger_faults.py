"""Kills and new starts in the middle of shadow and canary: rows, comparisons and deliveries are as without them."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from challenged import arrived, challenged_site, study_by
from harness import Ledger, NodeProcess, node_process
from nodes import pacs, study_of, wait_until
from ports import free_port

from monai_unet_app.service import slots
from monai_unet_app.service.audit import AuditTrail
from monai_unet_app.service.node import SENDER
from monai_unet_app.service.queue import Queue

pytestmark = pytest.mark.faults

ROUNDS = int(os.environ.get("CHALLENGER_FAULT_ROUNDS", "100"))
PARTS = ("worker", "sender", "shadow", "node", "stop")
"""What is killed in turns; "stop": the node is ended as a service manager does it, and started again."""


def site_with_a_canary(folder: Path, port: int) -> tuple[Path, int]:
    """Its site file and port; half of the patients are on the challenger's side, by the same secret in every folder."""
    at = free_port()
    path = challenged_site(folder, port, node=f"port = {at}\ntries = 20")
    (folder / "node/sides.key").write_text("11" * 32 + "\n")
    queue = Queue(folder / "node/node.sqlite")
    trail = AuditTrail(folder / "node/audit.jsonl", None, queue)
    for event, facts in (
        ("assigned", {"champion": "a" * 64, "challenger": "c" * 64}),
        ("share", {"share": 0.5}),
    ):
        trail.write(event, rule="any", **facts)
    slots.assign(queue, "any", "a" * 64, "c" * 64)
    slots.set_share(queue, "any", 0.5)
    queue.close()
    return path, at


def rows(site: Path) -> dict[str, list[tuple[object, ...]]]:
    """What became of the studies, by their UIDs."""
    with contextlib.closing(sqlite3.connect(site.parent / "node/node.sqlite", timeout=10)) as db:
        return {
            query.split()[-1]: sorted(db.execute(query).fetchall())
            for query in (
                "SELECT study, version, state, plan FROM jobs",
                "SELECT study, rule, series, state, bundle, digest FROM results",
                "SELECT rule, champion, challenger, facts FROM comparisons",
                "SELECT rule, champion, challenger, share, withdrawn FROM slots",
                "SELECT state FROM shadows",
            )
        } | {
            "deliveries": sorted(
                db.execute("SELECT r.study, d.destination, d.state FROM deliveries d JOIN results r ON r.id = d.result")
            )
        }


def is_quiet(node: NodeProcess) -> bool:
    """Whether nothing waits, shadows included."""
    with contextlib.closing(sqlite3.connect(node.site.parent / "node/node.sqlite", timeout=10)) as db:
        (waiting,) = db.execute("SELECT count(*) FROM shadows WHERE state = 'waiting'").fetchone()
    return not waiting and node.is_quiet()


def strike(node: NodeProcess, part: str) -> None:
    """Kills a part, or ends the node; what was ended is started again."""
    if part in ("node", "stop"):
        node.kill() if part == "node" else node.stop()
        node.start()
        return
    found = None
    for pid in node.children():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_text()
            is_shadow = "--shadow" in command
            if (part == "sender" and SENDER in command) or (
                "fake_worker" in command and is_shadow == (part == "shadow")
            ):
                found = pid
    if found is not None:
        os.kill(found, signal.SIGKILL)


def processes_of(folder: Path) -> list[str]:
    """Commands of the processes that name a folder."""
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            commands.append((process / "cmdline").read_text())
    return [command for command in commands if str(folder) in command]


def test_kills_and_new_starts_leave_the_rows_that_a_quiet_run_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance, studies = random.Random(45), []
    for number in range(ROUNDS):
        studies.append(study_by(tmp_path / f"study{number}", str(number), "brief shadow"))
    found = {}
    for run in ("quiet", "struck"):
        folder = tmp_path / run
        folder.mkdir()
        with pacs(folder / "pacs") as peer:
            site, port = site_with_a_canary(folder, peer.port)
            with node_process(site, port) as node:
                ledger = Ledger()
                for number, study in enumerate(studies):
                    ledger.send_until_accepted(node, study)
                    if run == "struck":
                        time.sleep(chance.uniform(0.5, 2.5))  # arriving, at work, being sent, or compared
                        strike(node, PARTS[number % len(PARTS)])
                        wait_until(lambda: is_quiet(node), 120)
                wait_until(lambda: is_quiet(node) and len(rows(site)["comparisons"]) == ROUNDS, 300)  # noqa: B023
                found[run] = rows(site)
                starts = node.starts
            came = arrived(folder / "pacs")
    assert set(ledger.accepted) == {str(study_of(study)) for study in studies}
    for table, lines in found["quiet"].items():
        assert found["struck"][table] == lines, table
    assert came == {"a": came["a"], "c": came["c"]}
    assert came["a"] + came["c"] == ROUNDS
    wait_until(lambda: not processes_of(tmp_path), 10)  # no shadow outlives its node, also if it stood still
    with capsys.disabled():
        print(f"\n{ROUNDS} kills and new starts beside shadow and canary, {starts} starts, {came['c']} canary results")
    shutil.rmtree(tmp_path)
