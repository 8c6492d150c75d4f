"""What the node remembers of studies, jobs, results and deliveries, whatever becomes of its process."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from nodes import pending

from monai_unet_app.service import database
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.rows import (
    FOLLOW_UPS,
    DecidedError,
    Decision,
    DecisionKind,
    NewResult,
    ResultState,
    state_of,
)

FOUND = NewResult("hippocampus", "1.2.3.4", "1-1/one", "sending", "accept", "", "abc", ("pacs", "viewer"))
NOTICE = replace(FOUND, state="not processed", verdict="", reason="slice gaps", digest="notice")


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    queue = Queue(tmp_path / "node.sqlite")
    yield queue
    queue.close()


def settled(queue: Queue, study: str = "1.2.3", instances: int = 3) -> int:
    """A study that came and is complete; its job."""
    queue.record_instances(study, instances)
    return queue.complete_study(study).id


def finished(queue: Queue, found: NewResult = FOUND, study: str = "1.2.3") -> int:
    """A result of a study that came once more; its number."""
    job = settled(queue, study, 1)
    queue.start_job(job)
    return queue.finish_job(job, [found])[0].id


def test_a_job_goes_from_waiting_through_work_to_its_deliveries(queue: Queue) -> None:
    job = settled(queue)
    assert [one.id for one in queue.queued_jobs()] == [job]
    assert queue.start_job(job).attempts == 1
    assert queue.queued_jobs() == []
    (result,) = queue.finish_job(job, [FOUND])
    assert [one.destination for one in pending(queue)] == ["pacs", "viewer"]
    first, second = pending(queue)
    queue.close_delivery(first.id, "delivered")
    assert queue.result(result.id).state == "sending"
    queue.close_delivery(second.id, "delivered")
    assert queue.result(result.id).state == "delivered"
    assert pending(queue) == []


def test_one_dead_delivery_makes_a_dead_result_that_can_be_revived(queue: Queue) -> None:
    number = finished(queue)
    first, second = pending(queue)
    queue.close_delivery(first.id, "dead", "gone for days")
    queue.close_delivery(second.id, "delivered")
    assert queue.result(number).state == "dead"
    queue.retry_delivery(first.id)
    assert queue.result(number).state == "sending"
    assert [one.attempts for one in pending(queue)] == [0]
    queue.close_delivery(first.id, "delivered")
    assert queue.result(number).state == "delivered"


def test_no_study_is_worked_at_twice_at_a_time(queue: Queue) -> None:
    first = settled(queue)
    queue.start_job(first)
    second = settled(queue, instances=1)
    other = settled(queue, "1.2.4")
    assert [one.id for one in queue.queued_jobs()] == [other]
    queue.finish_job(first, [])
    assert [one.id for one in queue.queued_jobs()] == [second, other]


def test_a_version_that_nobody_began_is_not_worked_at_when_a_later_one_is_there(queue: Queue) -> None:
    settled(queue)
    last = settled(queue, instances=1)
    assert [(one.id, one.version) for one in queue.queued_jobs()] == [(last, 2)]


def test_the_same_bytes_are_not_sent_to_whom_has_them(queue: Queue) -> None:
    first = finished(queue)
    queue.close_delivery(pending(queue)[0].id, "delivered")  # pacs has it, viewer not yet
    second = finished(queue)
    assert queue.result(first).state == "superseded"
    assert [(one.result, one.destination) for one in pending(queue)] == [(second, "viewer")]
    queue.close_delivery(pending(queue)[0].id, "delivered")
    third = finished(queue)
    assert queue.result(third).state == "delivered"
    changed = finished(queue, replace(FOUND, digest="def"))
    assert [one.destination for one in pending(queue)] == ["pacs", "viewer"]
    assert queue.result(changed).state == "sending"


def test_a_new_result_of_one_series_leaves_those_of_others_alone(queue: Queue) -> None:
    job = settled(queue)
    queue.start_job(job)
    queue.finish_job(job, [FOUND, replace(FOUND, series="1.2.3.5")])
    finished(queue)
    assert sorted(one.result for one in pending(queue)) == [2, 2, 3, 3]


def test_held_results_wait_for_somebody(queue: Queue) -> None:
    number = finished(queue, replace(FOUND, state="held", destinations=()))
    assert pending(queue) == []
    queue.send_held_back(number, ["pacs"])
    queue.send_held_back(number, ["pacs"])
    assert [one.destination for one in pending(queue)] == ["pacs"]
    other = finished(queue, replace(FOUND, state="rejected", destinations=(), series="1.2.3.9"))
    queue.mark_refused(other, "wrong")
    queue.send_held_back(other, ["pacs"])
    assert queue.result(other).state == "refused"


@pytest.mark.parametrize("state", ["held", "rejected", "sending"])
def test_what_was_decided_on_some_bytes_holds_for_the_same_bytes(queue: Queue, state: ResultState) -> None:
    number = finished(queue, replace(FOUND, state="held"))
    queue.mark_refused(number, "wrong side")
    again = queue.result(finished(queue, replace(FOUND, state=state)))
    assert (again.state, again.reason) == ("refused", "wrong side")
    assert pending(queue) == []
    other = queue.result(finished(queue, replace(FOUND, state="held", digest="def")))
    assert other.state == "held"
    queue.record_if_undecided(Decision(other.id, "accepted", "Rossi^Anna", "2026-03-02T10:15:07+00:00"))
    queue.send_held_back(other.id, ["pacs"])
    queue.close_delivery(pending(queue)[0].id, "delivered")
    assert (
        queue.result(finished(queue, replace(FOUND, state="held", digest="def", destinations=["pacs"]))).state
        == "delivered"
    )


def test_a_dead_delivery_of_a_superseded_result_is_not_tried_again(queue: Queue) -> None:
    finished(queue)
    dead, _ = pending(queue)
    queue.close_delivery(dead.id, "dead", "gone for days")
    finished(queue, replace(FOUND, digest="def", state="held"))
    assert queue.retry_delivery(dead.id) is None
    assert pending(queue) == []


@pytest.mark.parametrize("state", ["held", "rejected"])
def test_bytes_that_were_sent_before_are_held_back_when_the_gate_judges_them_otherwise(
    queue: Queue, state: ResultState
) -> None:
    finished(queue)
    for delivery in pending(queue):
        queue.close_delivery(delivery.id, "delivered")
    again = finished(queue, replace(FOUND, state=state, destinations=["pacs", "viewer", "ward"]))
    assert queue.result(again).state == state
    assert pending(queue) == []


def test_what_is_decided_on_a_result_is_decided_on_all_of_the_same_bytes(queue: Queue) -> None:
    first = finished(queue)
    for delivery in pending(queue):
        queue.close_delivery(delivery.id, "delivered")
    second, other = finished(queue), finished(queue, replace(FOUND, digest="def", destinations=["pacs"]))
    queue.record_if_undecided(Decision(first, "rejected", "Rossi^Anna", "2026-03-02T10:15:07+00:00"))
    queue.mark_refused(first, "rejected by a reviewer")
    assert [queue.result(number).state for number in (first, second, other)] == ["refused", "refused", "sending"]
    with pytest.raises(DecidedError, match="rejected by Rossi"):
        queue.record_if_undecided(Decision(second, "accepted", "Lang^Eva", "2026-03-02T10:15:09+00:00"))
    assert queue.decisions_of(second) == queue.decisions_of(first) != []
    assert queue.decisions_of(other) == []


@pytest.mark.parametrize(
    ("decision", "state"),
    [("accepted", "sending"), ("released", "sending"), ("rejected", "refused"), ("corrected", "refused")],
)
def test_what_was_decided_holds_when_a_study_comes_again_after_it_was_forgotten(
    queue: Queue, decision: DecisionKind, state: ResultState
) -> None:
    held = replace(FOUND, state="held")
    one = Decision(finished(queue, held), decision, "Rossi^Anna", "2026-03-02T10:15:07+00:00")
    queue.record_if_undecided(one)
    queue.forget("1.2.3")
    again = finished(queue, held)
    assert (queue.result(again).state, queue.decisions_of(again)) == (state, [one])
    assert queue.result(finished(queue, held, "1.2.9")).state == "held"  # the same bytes of another study
    queue.forget("1.2.3")
    (kept,) = queue.decisions_on_forgotten("1.2.3")
    queue.forget_decision(kept.result, kept.decision)
    assert queue.result(finished(queue, held)).state == "held"


@pytest.mark.parametrize(("decision", "state"), [("accepted", "sending"), ("released", "sending")])
def test_a_decision_to_send_holds_when_bytes_are_made_again_that_were_superseded_while_they_were_sent(
    queue: Queue, decision: DecisionKind, state: ResultState
) -> None:
    held = replace(FOUND, state="held", destinations=["pacs"])
    first = finished(queue, held)
    queue.record_if_undecided(Decision(first, decision, "Rossi^Anna", "2026-03-02T10:15:07+00:00"))
    queue.send_held_back(first, ["pacs"])
    assert queue.result(first).state == "sending"
    finished(queue, replace(held, digest="def"))
    assert queue.result(first).state == "superseded"
    again = finished(queue, held)
    assert queue.result(again).state == state
    assert [(one.result, one.destination) for one in pending(queue)] == [(again, "pacs")]


@pytest.mark.parametrize("state", ["held", "sending"])
def test_a_rejection_of_a_superseded_result_holds_when_its_bytes_are_made_again(
    queue: Queue, state: ResultState
) -> None:
    """It had reached one of two destinations when a later version superseded it; that one is rejected, and it as well."""
    first = finished(queue)
    queue.close_delivery(pending(queue)[0].id, "delivered")
    finished(queue, replace(FOUND, digest="def", state="held"))
    queue.record_decision(Decision(first, "rejected", "Rossi^Anna", "2026-03-02T10:15:07+00:00"))
    queue.mark_refused(first, "rejected with result 2")
    assert queue.result(first).state == "superseded"
    again = queue.result(finished(queue, replace(FOUND, state=state)))
    assert (again.state, again.reason) == ("refused", "rejected by a reviewer")
    assert pending(queue) == []


def test_a_result_that_goes_nowhere_is_done(queue: Queue) -> None:
    number = finished(queue, replace(FOUND, destinations=()))
    assert queue.result(number).state == "delivered"
    verified = queue.add_follow_up(queue.result(number), "verified", "verified-1", "def", [])
    assert queue.result(verified).state == "delivered"
    held = finished(queue, replace(FOUND, state="held", destinations=(), series="1.2.3.9"))
    queue.send_held_back(held, [])
    assert queue.result(held).state == "delivered"
    assert queue.forgettable(time.time() + 100) == ["1.2.3"]


def test_what_is_next_is_the_oldest_delivery_to_each_destination(queue: Queue) -> None:
    first = finished(queue)
    second = finished(queue, replace(FOUND, folder="2-1/one", series="1.2.3.5"))
    assert [(one.result, one.destination, of.folder) for one, of in queue.next_deliveries()] == [
        (first, "pacs", "1-1/one"),
        (first, "viewer", "1-1/one"),
    ]
    queue.close_delivery(pending(queue)[0].id, "delivered")
    assert {(one.result, one.destination) for one, _ in queue.next_deliveries()} == {
        (second, "pacs"),
        (first, "viewer"),
    }


def test_what_a_destination_always_refuses_holds_up_nothing_else(queue: Queue) -> None:
    refused = finished(queue)
    other = finished(queue, replace(FOUND, series="1.2.3.5"))
    queue.record_failed_try(next(one.id for one in pending(queue) if one.destination == "pacs"), "it refused the SEG")
    found = {one.destination: one.result for one, _ in queue.next_deliveries()}
    assert found == {"pacs": other, "viewer": refused}


def test_what_is_refused_on_its_way_goes_no_further(queue: Queue) -> None:
    number = finished(queue)
    first, _ = pending(queue)
    queue.close_delivery(first.id, "delivered")
    queue.mark_refused(number, "rejected by a reviewer")
    assert pending(queue) == []
    assert queue.result(number).state == "refused"


def test_a_delivery_without_its_result_keeps_none_back(queue: Queue) -> None:
    lost = finished(queue)
    kept = finished(queue, replace(FOUND, series="1.2.3.5"))
    with queue.transaction() as db:
        db.execute("DELETE FROM results WHERE id = ?", (lost,))
    assert [one.result for one, _ in queue.next_deliveries()] == [kept, kept]


def test_what_was_at_work_waits_again_at_no_cost(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "node.sqlite")
    job = settled(queue)
    queue.start_job(job)
    queue.close()
    queue = Queue(tmp_path / "node.sqlite")
    (waiting,) = queue.queued_jobs()
    assert (waiting.id, waiting.attempts) == (job, 0)
    queue.close()


def test_files_that_nobody_recorded_are_found_again(queue: Queue) -> None:
    done, half = settled(queue), "1.2.4"
    queue.start_job(done)
    queue.finish_job(done, [])
    queue.record_instances(half, 2)
    assert queue.reconcile({"1.2.3": 3, half: 2, "1.2.5": 7}) == [half, "1.2.5"]
    assert queue.reconcile({"1.2.3": 4}) == ["1.2.3"]  # one came before the node died, and was not recorded


def test_a_study_is_forgotten_only_when_all_about_it_was_done_long_ago(queue: Queue) -> None:
    later = time.time() + 100
    number = finished(queue)
    assert queue.forgettable(later) == []
    for delivery in pending(queue):
        queue.close_delivery(delivery.id, "delivered")
    assert queue.forgettable(time.time() - 100) == []
    assert queue.forgettable(later) == ["1.2.3"]
    held = finished(queue, replace(FOUND, state="held", series="1.2.3.9"))
    assert queue.forgettable(later) == []
    queue.mark_refused(held, "no")
    queue.forget("1.2.3")
    assert queue.result(number) is None
    assert queue.counts() == {"studies": {}, "jobs": {}, "results": {}, "deliveries": {}}


def test_dead_jobs_are_kept_and_can_be_revived(queue: Queue) -> None:
    job = settled(queue)
    queue.start_job(job)
    queue.give_up_job(job, "its worker died")
    assert queue.forgettable(time.time() + 100) == []
    assert queue.queued_jobs() == []
    queue.retry_job(job)
    assert [(one.id, one.attempts) for one in queue.queued_jobs()] == [(job, 0)]


def test_a_notice_is_delivered_and_what_was_not_processed_stays_so(queue: Queue) -> None:
    number = finished(queue, NOTICE)
    first, second = pending(queue)
    assert (first.destination, second.destination) == ("pacs", "viewer")
    assert queue.result(number).state == "not processed"
    queue.record_failed_try(first.id, "away")
    queue.close_delivery(first.id, "delivered")
    assert queue.result(number).state == "not processed"
    queue.close_delivery(second.id, "dead", "gone for days")
    assert queue.result(number).state == "not processed"
    assert [(one.destination, one.reason) for one in queue.deliveries(["dead"])] == [("viewer", "gone for days")]
    queue.retry_delivery(second.id)
    assert [one.attempts for one in pending(queue)] == [0]
    assert queue.result(number).state == "not processed"
    queue.close_delivery(second.id, "delivered")
    assert (queue.result(number).state, queue.result(number).reason) == ("not processed", "slice gaps")


def test_what_was_not_processed_goes_nowhere_without_a_notice(queue: Queue) -> None:
    number = finished(queue, replace(NOTICE, folder="", digest="", destinations=()))
    assert pending(queue) == []
    assert queue.result(number).state == "not processed"
    assert queue.forgettable(time.time() + 100) == ["1.2.3"]


def test_the_same_notice_is_not_sent_to_whom_has_it_and_another_one_is(queue: Queue) -> None:
    finished(queue, NOTICE)
    queue.close_delivery(pending(queue)[0].id, "delivered")  # pacs has it, viewer not yet
    again = finished(queue, NOTICE)
    assert [(one.result, one.destination) for one in pending(queue)] == [(again, "viewer")]
    queue.close_delivery(pending(queue)[0].id, "delivered")
    assert queue.result(finished(queue, NOTICE)).state == "not processed"
    assert pending(queue) == []
    finished(queue, replace(NOTICE, digest="other"))
    assert [one.destination for one in pending(queue)] == ["pacs", "viewer"]


def test_a_later_version_supersedes_a_notice_that_is_not_out(queue: Queue) -> None:
    notice, other = finished(queue, NOTICE), finished(queue, replace(NOTICE, series="1.2.3.5"))
    dead, _, _, _ = pending(queue)
    queue.close_delivery(dead.id, "dead", "gone for days")
    later = finished(queue)
    assert [(one.result, one.destination) for one in pending(queue)] == [
        (other, "pacs"), (other, "viewer"), (later, "pacs"), (later, "viewer"),
    ]  # fmt: skip
    queue.retry_delivery(dead.id)
    assert len(pending(queue)) == 4  # nobody is told any more what is so no longer
    assert queue.result(notice).state == "not processed"


def test_a_notice_that_is_out_is_known_to_be_when_a_later_version_comes(queue: Queue) -> None:
    notice = finished(queue, NOTICE)
    for delivery in pending(queue):
        queue.close_delivery(delivery.id, "delivered")
    finished(queue)
    assert [one.state for one in queue.deliveries_of(notice)] == ["delivered", "delivered"]


def test_a_notice_is_no_result_that_a_later_one_could_follow(queue: Queue) -> None:
    first = finished(queue)
    for delivery in pending(queue):
        queue.close_delivery(delivery.id, "delivered")
    finished(queue, NOTICE)
    for delivery in pending(queue):
        queue.close_delivery(delivery.id, "delivered")
    assert [one.id for one in queue.last_delivered("1.2.3")] == [first]
    assert queue.verdict_counts() == {"accept": 1}


def test_a_study_is_kept_until_its_notice_is_out(queue: Queue) -> None:
    later = time.time() + 100
    finished(queue, NOTICE)
    first, second = pending(queue)
    queue.close_delivery(first.id, "delivered")
    assert queue.forgettable(later) == []
    queue.close_delivery(second.id, "dead", "gone for days")
    assert queue.forgettable(later) == []
    queue.retry_delivery(second.id)
    assert queue.forgettable(later) == []
    time.sleep(0.05)
    before = time.time()
    queue.close_delivery(second.id, "delivered")
    assert queue.forgettable(before) == []  # it was done only after that
    assert queue.forgettable(later) == ["1.2.3"]


def test_nobody_decides_on_a_notice(queue: Queue) -> None:
    number = finished(queue, NOTICE)
    queue.mark_refused(number, "no")
    queue.send_held_back(number, ["archive"])
    assert queue.result(number).state == "not processed"
    assert [one.destination for one in pending(queue)] == ["pacs", "viewer"]


def test_totals_of_verdicts_do_not_fall_when_results_are_forgotten(queue: Queue, tmp_path: Path) -> None:
    queue.record_instances("1.2.3", 1)
    results = [NewResult("any", f"1.{n}", f"1-1/{n}", "delivered", word, "", "abc") for n, word in enumerate(VERDICTS)]
    queue.finish_job(queue.complete_study("1.2.3").id, results)
    assert queue.verdict_counts() == {"accept": 2, "review": 1}
    queue.forget("1.2.3")
    assert queue.verdict_counts() == {"accept": 2, "review": 1}


VERDICTS = ("accept", "accept", "review")


def test_a_file_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    file, queue = tmp_path / "old.sqlite", Queue(tmp_path / "old.sqlite")
    queue.record_instances("1.2.3", 1)
    one = NewResult("any", "1.2.3.4", "1-1/any", "sending", "accept", "", "abc", ["pacs"])
    queue.finish_job(queue.complete_study("1.2.3").id, [one])
    queue.close()
    with closing(sqlite3.connect(file)) as db:
        for table in ("totals", "clock", "remade", "audit_head"):
            db.execute(f"DROP TABLE {table}")
        db.execute("ALTER TABLE deliveries DROP COLUMN since")
    queue = Queue(file)
    assert queue.verdict_counts() == {"accept": 1}
    assert queue.head() is None
    ((delivery, _),) = queue.next_deliveries()
    assert not queue.is_late(delivery.id, 3600)


def test_the_nodes_own_clock_goes_on_only_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wall, mono = 1_000_000.0, 500.0
    monkeypatch.setattr(time, "time", lambda: wall)
    monkeypatch.setattr(time, "monotonic", lambda: mono)
    queue = Queue(tmp_path / "a.sqlite")
    mono += 100
    wall += 1e9  # set to another year
    assert queue.now_s() == 1_000_100.0
    queue.close()
    mono = 3.0  # another start of the machine
    queue = Queue(tmp_path / "a.sqlite")
    assert queue.now_s() == 1_000_100.0
    mono += 86_400 * 15
    queue.record_instances("1.2.3", 1)
    queue.finish_job(queue.complete_study("1.2.3").id, [])
    assert queue.forgettable(queue.now_s() - 86_400 * 14) == []
    mono += 86_400 * 14 + 1
    assert queue.forgettable(queue.now_s() - 86_400 * 14) == ["1.2.3"]


@pytest.mark.parametrize("kind", FOLLOW_UPS)
def test_a_new_version_drops_nothing_that_follows_from_a_decision(queue: Queue, kind: str) -> None:
    """A note that rejects the old result, say, is still sent, and is no result that a later report could follow."""
    number = finished(queue)
    for delivery in pending(queue):
        queue.close_delivery(delivery.id, "delivered")
    note = queue.add_follow_up(queue.result(number), kind, f"{kind}-1", "xyz", ["pacs"])
    finished(queue, replace(FOUND, digest="def", state="held"))
    assert queue.result(note).state == "sending"
    assert [one.result for one in pending(queue)] == [note]
    queue.close_delivery(pending(queue)[0].id, "delivered")
    assert [one.id for one in queue.last_delivered("1.2.3")] == [number]


def test_a_file_that_cannot_be_opened_just_now_leaves_no_open_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, for instance; the node is started again and again, and must not keep a file open for each start."""
    connections = []

    class Connection(sqlite3.Connection):
        def __init__(self, *words: object, **options: object) -> None:
            super().__init__(*words, **options)
            connections.append(self)

    monkeypatch.setattr(database.sqlite3, "connect", Connection)
    monkeypatch.setattr(database, "SCHEMA", "no SQL")
    with pytest.raises(sqlite3.OperationalError):
        Queue(tmp_path / "node.sqlite")
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        connections[0].execute("SELECT 1")


@pytest.mark.parametrize(
    ("verdict", "ungated", "state"),
    [("", False, "held"), ("", True, "sending"), ("accept", False, "sending"), ("reject", True, "rejected")],
)
def test_a_result_without_a_verdict_is_held_unless_the_rule_delivers_it(
    verdict: str, ungated: bool, state: str
) -> None:
    assert state_of(verdict, hold_review=False, ungated=ungated) == state
