"""What the node remembers of studies, jobs, results and deliveries, whatever becomes of its process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from monai_unet_app.service.queue import NewResult, Queue

FOUND = NewResult("hippocampus", "1.2.3.4", "1-1/one", "sending", "accept", "", "abc", ("pacs", "viewer"))


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    queue = Queue(tmp_path / "node.sqlite")
    yield queue
    queue.close()


def settled(queue: Queue, study: str = "1.2.3", instances: int = 3) -> int:
    """A study that came and is complete; its job."""
    queue.arriving(study, instances)
    return queue.settle(study).id


def finished(queue: Queue, found: NewResult = FOUND, study: str = "1.2.3") -> int:
    """A result of a study that came once more; its number."""
    job = settled(queue, study, 1)
    queue.begin(job)
    return queue.finish(job, [found])[0].id


def test_a_job_goes_from_waiting_through_work_to_its_deliveries(queue: Queue) -> None:
    job = settled(queue)
    assert [one.id for one in queue.waiting()] == [job]
    assert queue.begin(job).attempts == 1
    assert queue.waiting() == []
    (result,) = queue.finish(job, [FOUND])
    assert [one.destination for one in queue.pending()] == ["pacs", "viewer"]
    first, second = queue.pending()
    queue.delivered(first.id)
    assert queue.result(result.id).state == "sending"
    queue.delivered(second.id)
    assert queue.result(result.id).state == "delivered"
    assert queue.pending() == []


def test_one_dead_delivery_makes_a_dead_result_that_can_be_revived(queue: Queue) -> None:
    number = finished(queue)
    first, second = queue.pending()
    queue.bury_delivery(first.id, "gone for days")
    queue.delivered(second.id)
    assert queue.result(number).state == "dead"
    queue.revive_delivery(first.id)
    assert queue.result(number).state == "sending"
    assert [one.attempts for one in queue.pending()] == [0]
    queue.delivered(first.id)
    assert queue.result(number).state == "delivered"


def test_no_study_is_worked_at_twice_at_a_time(queue: Queue) -> None:
    first = settled(queue)
    queue.begin(first)
    second = settled(queue, instances=1)
    other = settled(queue, "1.2.4")
    assert [one.id for one in queue.waiting()] == [other]
    queue.finish(first, [])
    assert [one.id for one in queue.waiting()] == [second, other]


def test_a_version_that_nobody_began_is_not_worked_at_when_a_later_one_is_there(queue: Queue) -> None:
    settled(queue)
    last = settled(queue, instances=1)
    assert [(one.id, one.version) for one in queue.waiting()] == [(last, 2)]


def test_the_same_bytes_are_not_sent_to_whom_has_them(queue: Queue) -> None:
    first = finished(queue)
    queue.delivered(queue.pending()[0].id)  # pacs has it, viewer not yet
    second = finished(queue)
    assert queue.result(first).state == "superseded"
    assert [(one.result, one.destination) for one in queue.pending()] == [(second, "viewer")]
    queue.delivered(queue.pending()[0].id)
    third = finished(queue)
    assert queue.result(third).state == "delivered"
    changed = finished(queue, replace(FOUND, digest="def"))
    assert [one.destination for one in queue.pending()] == ["pacs", "viewer"]
    assert queue.result(changed).state == "sending"


def test_a_new_result_of_one_series_leaves_those_of_others_alone(queue: Queue) -> None:
    job = settled(queue)
    queue.begin(job)
    queue.finish(job, [FOUND, replace(FOUND, series="1.2.3.5")])
    finished(queue)
    assert sorted(one.result for one in queue.pending()) == [2, 2, 3, 3]


def test_held_results_wait_for_somebody(queue: Queue) -> None:
    number = finished(queue, replace(FOUND, state="held", destinations=()))
    assert queue.pending() == []
    queue.release(number, ["pacs"])
    queue.release(number, ["pacs"])
    assert [one.destination for one in queue.pending()] == ["pacs"]
    other = finished(queue, replace(FOUND, state="rejected", destinations=(), series="1.2.3.9"))
    queue.refuse(other, "wrong")
    queue.release(other, ["pacs"])
    assert queue.result(other).state == "refused"


def test_what_was_at_work_waits_again_at_no_cost(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "node.sqlite")
    job = settled(queue)
    queue.begin(job)
    queue.close()
    queue = Queue(tmp_path / "node.sqlite")
    (waiting,) = queue.waiting()
    assert (waiting.id, waiting.attempts) == (job, 0)
    queue.close()


def test_files_that_nobody_recorded_are_found_again(queue: Queue) -> None:
    done, half = settled(queue), "1.2.4"
    queue.begin(done)
    queue.finish(done, [])
    queue.arriving(half, 2)
    assert queue.reconcile({"1.2.3": 3, half: 2, "1.2.5": 7}) == [half, "1.2.5"]
    assert queue.reconcile({"1.2.3": 4}) == ["1.2.3"]  # one came before the node died, and was not recorded


def test_a_study_is_forgotten_only_when_all_about_it_was_done_long_ago(queue: Queue) -> None:
    later = time.time() + 100
    number = finished(queue)
    assert queue.forgettable(later) == []
    for delivery in queue.pending():
        queue.delivered(delivery.id)
    assert queue.forgettable(time.time() - 100) == []
    assert queue.forgettable(later) == ["1.2.3"]
    held = finished(queue, replace(FOUND, state="held", series="1.2.3.9"))
    assert queue.forgettable(later) == []
    queue.refuse(held, "no")
    queue.forget("1.2.3")
    assert queue.result(number) is None
    assert queue.counts() == {"studies": {}, "jobs": {}, "results": {}, "deliveries": {}}


def test_dead_jobs_are_kept_and_can_be_revived(queue: Queue) -> None:
    job = settled(queue)
    queue.begin(job)
    queue.bury(job, "its worker died")
    assert queue.forgettable(time.time() + 100) == []
    assert queue.waiting() == []
    queue.revive(job)
    assert [(one.id, one.attempts) for one in queue.waiting()] == [(job, 0)]
