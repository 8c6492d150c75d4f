"""A node that lost its memory has it again: what was decided stays decided, and nobody gets what they have."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from nodes import make_late, make_study, open_trail, pacs, pending, running, store, study_of, wait_until, write_site

from monai_unet_app.service.node import Node
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.restore import restore
from monai_unet_app.service.reviews import refuse, release
from monai_unet_app.service.rows import NewResult

COLUMNS = {
    "studies": "uid, instances, version, state",
    "jobs": "id, study, version, state",
    "results": "id, job, study, rule, series, folder, state, verdict, digest",
    "deliveries": "result, destination, state",
    "decisions": "result, decision, who",
}
STUDY, SERIES = "1.2.3", "1.2.3.4"


def memory(file: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that is remembered, but for reasons, tries and times."""
    with sqlite3.connect(file) as db:
        return {table: sorted(db.execute(f"SELECT {names} FROM {table}")) for table, names in COLUMNS.items()}


def lose_memory(folder: Path) -> None:
    for file in folder.glob("node.sqlite*"):
        file.unlink()


def states(node: Node, what: str) -> dict[str, int]:
    return node.queue.counts()[what]


def live_through_much(node: Node, folder: Path) -> None:
    """Results that are delivered, follow one another, are held, released, refused, told of by a notice, and dead."""
    delivered, held, refused, noticed, dead = (
        make_study(folder / wish, wish=wish.split("-")[0])
        for wish in ("good", "review-1", "review-2", "refuse", "crash")
    )
    for study in (delivered, held, refused, noticed, dead):
        store(node, study)
    wait_until(lambda: states(node, "jobs") == {"done": 4, "dead": 1}, 60)
    kept = {one.study: one.id for one in node.queue.results(["held"])}
    release(node, kept[study_of(held)], "Lang^Eva", "all of it is there")
    refuse(node, kept[study_of(refused)], "Lang^Eva", "not this patient")
    store(node, make_late(folder / "late", delivered))
    wait_until(lambda: states(node, "jobs") == {"done": 5, "dead": 1})
    wait_until(lambda: states(node, "results").get("superseded") == 1)  # the note about it is a result, too
    wait_until(lambda: not pending(node.queue))


def test_a_lost_memory_is_made_anew_and_nothing_is_done_again(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer:
        site = write_site(tmp_path, peer.port, node="tries = 1", rule="notice = true")
        with running(site) as node:
            live_through_much(node, tmp_path)
        before = memory(tmp_path / "node/node.sqlite")
        assert {row[6] for row in before["results"]} == {"delivered", "superseded", "refused", "not processed"}
        lose_memory(tmp_path / "node")
        came = sorted((tmp_path / "pacs").rglob("*.dcm"))
        with running(site) as node:
            wait_until(lambda: not pending(node.queue))
            assert states(node, "studies") == {"complete": 5}
        assert memory(tmp_path / "node/node.sqlite") == before
        assert sorted((tmp_path / "pacs").rglob("*.dcm")) == came
    events = [json.loads(line)["event"] for line in (tmp_path / "node/audit.jsonl").read_text().splitlines()]
    assert events[-2:] == ["started", "stopped"]


def test_the_reasons_of_results_are_known_again(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer:
        site = write_site(tmp_path, peer.port)
        with running(site) as node:
            for wish in ("nothing", "reject"):
                store(node, make_study(tmp_path / wish, wish=wish))
            wait_until(lambda: states(node, "results") == {"not processed": 1, "rejected": 1})
            before = {(one.study, one.state, one.reason) for one in node.queue.results(())}
        assert {reason for _, _, reason in before} == {"no series fits a rule", "the gate says reject"}
        lose_memory(tmp_path / "node")
        with running(site) as node:
            assert {(one.study, one.state, one.reason) for one in node.queue.results(())} == before


def test_what_came_after_the_last_line_is_worked_at(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer:
        site = write_site(tmp_path, peer.port)
        study = make_study(tmp_path / "one")
        with running(site) as node:
            store(node, study)
            wait_until(lambda: states(node, "results") == {"delivered": 1})
            store(node, make_late(tmp_path / "late", study))
        lose_memory(tmp_path / "node")
        with running(site) as node:
            wait_until(lambda: states(node, "results") == {"delivered": 2, "superseded": 1})
            assert [job.version for job in node.queue.jobs_of(study_of(study))] == [1, 2]


def test_a_line_whose_like_came_again_counts_once(tmp_path: Path) -> None:
    """The node died after the line and before it remembered: after its restart it made the same once more."""
    trail = open_trail(tmp_path / "audit.jsonl")
    made = {"study": STUDY, "version": 1, "job": 4}
    result = {"result": 7, "series": SERIES, "rule": "any", "state": "sending", "verdict": "", "digest": "abc"}
    trail.write("complete", **made, instances=3)
    trail.write("result", **made, **result, folder="4-1/any", destinations=["pacs"])
    trail.write("result", **made, **result, folder="4-2/any", destinations=["pacs"])
    trail.write("delivered", study=STUDY, result=7, destination="pacs", objects=1)
    queue = Queue(tmp_path / "node.sqlite")
    restore(queue, trail.path)
    assert [(one.id, one.folder, one.state) for one in queue.results(())] == [(7, "4-2/any", "delivered")]
    assert [(job.id, job.state) for job in queue.jobs_of(STUDY)] == [(4, "done")]
    queue.record_instances(STUDY, 1)
    assert queue.complete_study(STUDY).id == 5


def test_a_memory_that_is_there_is_left_alone(tmp_path: Path) -> None:
    trail = open_trail(tmp_path / "audit.jsonl")
    trail.write("complete", study=STUDY, version=1, job=1, instances=3)
    queue = Queue(tmp_path / "node.sqlite")
    queue.record_instances("1.2.9", 1)
    queue.finish_job(
        queue.complete_study("1.2.9").id, [NewResult("any", SERIES, "1-1/any", "sending", "", "", "abc", ["pacs"])]
    )
    restore(queue, trail.path)
    assert queue.jobs_of(STUDY) == []
