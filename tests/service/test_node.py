"""A node takes studies, has them worked at and delivers what comes of them; what fails is tried again or says why."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from nodes import (
    NAME,
    PATIENT_ID,
    announce,
    make_study,
    pacs,
    pending,
    running,
    site_on_any_port,
    started,
    store,
    study_of,
    to,
    wait_until,
    write_site,
)
from ports import free_port
from pydicom import dcmread

from dicom_io.net.exchange import commit
from dicom_io.net.instance_store import Stored
from dicom_io.net.scp import Listen, Provider
from monai_unet_app.errors import UsageError
from monai_unet_app.service import job_scheduler
from monai_unet_app.service.arrivals import Arrivals
from monai_unet_app.service.audit import verify
from monai_unet_app.service.node import Node
from monai_unet_app.service.reviews import refuse, release
from monai_unet_app.service.rows import DecidedError


def delivered(folder: Path) -> list[str]:
    """What the destination has: the comments of the results."""
    return sorted(str(dcmread(path).ImageComments) for path in folder.rglob("*.dcm"))


def test_a_study_is_stored_worked_at_and_delivered(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", 4)
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port), as_usual=True) as node:
        assert {one.state for one in store(node, study)} == {"sent"}
        wait_until(lambda: node.queue.counts()["results"].get("delivered") == 1)
        assert delivered(tmp_path / "pacs") == ["4 instances"]
        assert node.queue.counts()["jobs"] == {"done": 1}
    events = [json.loads(line)["event"] for line in (tmp_path / "node/audit.jsonl").read_text().splitlines()]
    assert events == ["started", "complete", "result", "delivered", "stopped"]
    assert verify(tmp_path / "node/audit.jsonl").lines == 5


def test_late_arrivals_make_a_new_result(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", 3)
    late = make_study(tmp_path / "late", 1, study=study_of(study))
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        store(node, study)
        wait_until(lambda: node.queue.counts()["results"].get("delivered") == 1)
        store(node, late)
        wait_until(lambda: len(delivered(tmp_path / "pacs")) == 2)
        assert delivered(tmp_path / "pacs") == ["3 instances", "4 instances"]


def test_the_same_study_again_is_no_new_work(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", 3)
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        store(node, study)
        wait_until(lambda: node.queue.counts()["results"].get("delivered") == 1)
        assert {one.state for one in store(node, study)} == {"sent"}
        time.sleep(0.8)
        assert node.queue.counts()["jobs"] == {"done": 1}


@pytest.mark.parametrize(
    ("wish", "limits", "reason"),
    [
        ("crash", "", "signal 9"),
        ("hang", "job_s = 0.5", "took more than 0.5 s"),
        ("eat", "worker_gb = 0.4", "took more than 0.4 GB of memory"),
    ],
)
def test_what_ends_its_worker_goes_to_the_dead_letters_and_others_do_not_suffer(
    tmp_path: Path, wish: str, limits: str, reason: str
) -> None:
    bad, good = make_study(tmp_path / "bad", wish=wish), make_study(tmp_path / "good")
    site = tmp_path
    with pacs(tmp_path / "pacs") as peer, running(write_site(site, peer.port, node=f"tries = 2\n{limits}")) as node:
        store(node, bad)
        store(node, good)
        wait_until(lambda: node.queue.counts()["jobs"] == {"dead": 1, "done": 1}, 60)
        (dead,) = node.queue.jobs(["dead"])
        assert reason in dead.reason
        assert dead.attempts == (1 if wish == "eat" else 2)  # it would take as much memory again
        assert dead.study == study_of(bad)
        wait_until(lambda: delivered(tmp_path / "pacs") == ["3 instances"])
        (letter,) = (tmp_path / "node/dead-letters").iterdir()
        assert json.loads(letter.read_text())["study"] == study_of(bad)
        assert reason in letter.read_text()
        node.retry("job", dead.id, "eva")
        assert not letter.exists()
        wait_until(lambda: node.queue.counts()["jobs"] == {"dead": 1, "done": 1}, 60)


def test_a_study_that_failed_is_tried_again_behind_those_that_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_scheduler, "_RETRY_S", 0.0)
    studies = [make_study(tmp_path / wish, wish=wish) for wish in ("crash", "one", "two")]
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port, node="tries = 2")) as node:
        start_jobs, begun = node.jobs.start_jobs, []
        start_job = node.queue.start_job
        monkeypatch.setattr(
            node.jobs, "start_jobs", lambda: start_jobs() if len(node.queue.jobs(["queued"])) + len(begun) > 2 else None
        )
        monkeypatch.setattr(node.queue, "start_job", lambda number: begun.append(number) or start_job(number))
        for number, study in enumerate(studies, start=1):
            store(node, study)
            wait_until(lambda number=number: len(node.queue.jobs(["queued"])) == number)
        wait_until(lambda: node.queue.counts()["jobs"] == {"dead": 1, "done": 2})
    assert begun == [1, 2, 3, 1]


def test_a_fault_of_our_own_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        faults = iter([KeyError("one"), ValueError("two")])
        queue_studies = node.jobs.queue_complete_studies
        monkeypatch.setattr(
            node.jobs,
            "queue_complete_studies",
            lambda: queue_studies() if (fault := next(faults, None)) is None else _raise(fault),
        )
        store(node, make_study(tmp_path / "one"))
        wait_until(lambda: delivered(tmp_path / "pacs") == ["3 instances"])


def _raise(fault: Exception) -> None:
    raise fault


def test_a_destination_that_is_away_gets_its_results_when_it_is_back(tmp_path: Path) -> None:
    with pacs(tmp_path / "away") as gone:
        port = gone.port
    with running(write_site(tmp_path, port)) as node:
        store(node, make_study(tmp_path / "one"))
        store(node, make_study(tmp_path / "two", 2))
        wait_until(lambda: len(pending(node.queue)) == 2 and pending(node.queue)[0].attempts > 1)
        assert "refused the connection" in pending(node.queue)[0].reason
        with pacs(tmp_path / "pacs", port):
            wait_until(lambda: node.queue.counts()["results"].get("delivered") == 2)
        assert delivered(tmp_path / "pacs") == ["2 instances", "3 instances"]


def lose_results(node: Node) -> None:
    shutil.rmtree(node.folder / "results")


def test_results_that_are_lost_are_made_again_and_delivered(tmp_path: Path) -> None:
    with pacs(tmp_path / "away") as gone:
        port = gone.port
    with running(write_site(tmp_path, port)) as node:
        store(node, make_study(tmp_path / "one"))
        wait_until(lambda: len(pending(node.queue)) == 1)
        lose_results(node)
        with pacs(tmp_path / "pacs", port):
            wait_until(lambda: node.queue.counts()["results"] == {"superseded": 1, "delivered": 1})
        assert delivered(tmp_path / "pacs") == ["3 instances"]
        assert [job.version for job in node.queue.jobs(["done"])] == [1]
    told = [json.loads(line) for line in (tmp_path / "node/audit.jsonl").read_text().splitlines()]
    assert [one["event"] for one in told] == [
        "started", "complete", "result", "remade", "result", "delivered", "stopped",
    ]  # fmt: skip
    assert told[3]["reason"] == "its files are missing from results"
    assert told[2]["digest"] == told[4]["digest"]


def test_results_that_are_lost_again_and_again_are_given_up_with_the_reason(tmp_path: Path) -> None:
    with pacs(tmp_path / "away") as gone:
        port = gone.port
    with running(write_site(tmp_path, port)) as node:
        store(node, make_study(tmp_path / "one"))
        for number in range(1, 4):
            wait_until(lambda number=number: len(node.queue.results(())) == number)
            lose_results(node)
        wait_until(lambda: node.queue.counts()["deliveries"] == {"dead": 1})
        (dead,) = node.queue.deliveries(["dead"])
        assert dead.reason == "its files are missing from results, also after they were made again 2 times"


def test_results_that_are_lost_with_their_images_are_given_up_with_the_reason(tmp_path: Path) -> None:
    with pacs(tmp_path / "away") as gone:
        port = gone.port
    with running(write_site(tmp_path, port)) as node:
        store(node, make_study(tmp_path / "one"))
        wait_until(lambda: len(pending(node.queue)) == 1)
        shutil.rmtree(node.folder / "received")
        lose_results(node)
        wait_until(lambda: node.queue.counts()["deliveries"] == {"dead": 1})
        (dead,) = node.queue.deliveries(["dead"])
        assert dead.reason.endswith("and its images from received; send the study again")


def alter_results(node: Node) -> None:
    """Alters them after a vain attempt: one that goes on may have looked at them already, and would send what they are now."""
    attempts = pending(node.queue)[0].attempts
    wait_until(lambda: pending(node.queue)[0].attempts > attempts)
    for path in (node.folder / "results").rglob("*.dcm"):
        path.write_bytes(path.read_bytes().replace(b"3 instances", b"0 instances"))


TWO = '[destinations.second]\nhost = "127.0.0.1"\nport = {port}\nae_title = "SECOND"\n'


def two_destinations(path: Path, second: int) -> Path:
    """A site file whose results go to a second archive, too, at this port."""
    path.write_text(path.read_text().replace('["pacs"]', '["pacs", "second"]') + TWO.format(port=second))
    return path


def test_a_changed_result_is_made_again_and_never_sent(tmp_path: Path) -> None:
    """One archive has the result; what is changed before the other one can have it does not reach that."""
    with Provider(tmp_path / "away", Listen("SECOND")) as gone:
        port = gone.port
    with pacs(tmp_path / "pacs") as peer:
        path = two_destinations(write_site(tmp_path, peer.port), port)
        with running(path) as node:
            store(node, make_study(tmp_path / "one"))
            wait_until(lambda: delivered(tmp_path / "pacs") == ["3 instances"])
            alter_results(node)
            with Provider(tmp_path / "second", Listen("SECOND", port=port)):
                wait_until(lambda: node.queue.counts()["results"] == {"superseded": 1, "delivered": 1})
            assert delivered(tmp_path / "second") == ["3 instances"]
            assert delivered(tmp_path / "pacs") == ["3 instances"]
    told = [json.loads(line) for line in (tmp_path / "node/audit.jsonl").read_text().splitlines()]
    (remade,) = [one["reason"] for one in told if one["event"] == "remade"]
    assert remade == "its files in results are not the original files: some are missing, or were changed"
    assert len({one["digest"] for one in told if one["event"] == "result"}) == 1


@pytest.mark.parametrize(("wish", "state"), [("drift", "other bytes"), ("nothing", "not processed")])
def test_a_changed_result_that_is_made_otherwise_is_a_dead_letter(wish: str, state: str, tmp_path: Path) -> None:
    with pacs(tmp_path / "away") as gone:
        port = gone.port
    study = make_study(tmp_path / "one", wish="drift" if wish == "drift" else "")
    with running(write_site(tmp_path, port)) as node:
        store(node, study)
        wait_until(lambda: len(pending(node.queue)) == 1)
        if wish == "nothing":  # as another bundle would
            for file in (node.folder / "received").rglob("*.dcm"):
                header = dcmread(file)
                header.PatientComments = wish
                header.save_as(file)
        alter_results(node)
        with pacs(tmp_path / "pacs", port):
            wait_until(lambda: node.queue.counts()["deliveries"] == {"dead": 1})
        (dead,) = node.queue.deliveries(["dead"])
        assert dead.reason.startswith("its files in results are not the original files")
        assert state in dead.reason
        assert dead.reason.endswith("process the study again to deliver the new result")
        assert node.queue.counts()["results"] == {"dead": 1}
        assert delivered(tmp_path / "pacs") == []
        with pacs(tmp_path / "pacs", port):  # what is done then
            assert node.reprocess(study_of(study), "eva")
            wait_until(lambda: 2 in {one.id for one in node.queue.results(["delivered", "not processed"])})


def test_what_a_worker_is_writing_is_not_tidied_away(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        store(node, make_study(tmp_path / "one", wish="hang"))
        wait_until(node.workers.tasks)
        left, begun = node.folder / "results/5-1", node.folder / "results/.partial-x"
        for folder in (left, begun):
            folder.mkdir(parents=True)
            os.utime(folder, (0, 0))
        node.retention.last_run = None
        wait_until(lambda: not left.exists())
        assert begun.exists()


def test_what_is_held_back_goes_out_when_somebody_releases_it(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        store(node, make_study(tmp_path / "one", wish="review"))
        wait_until(lambda: node.queue.counts()["results"].get("held") == 1)
        assert pending(node.queue) == []
        (held,) = node.queue.results_of(1)
        release(node, held.id, "Rossi^Anna", "all of it is there")
        wait_until(lambda: delivered(tmp_path / "pacs") == ["3 instances"])
    released = [line for line in (tmp_path / "node/audit.jsonl").read_text().splitlines() if "released" in line]
    assert json.loads(released[0])["who"] == "Rossi^Anna"


def test_what_is_refused_never_goes_out(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        store(node, make_study(tmp_path / "one", wish="review"))
        wait_until(lambda: node.queue.counts()["results"].get("held") == 1)
        refuse(node, 1, "Rossi^Anna", "the posterior part is missing")
        with pytest.raises(DecidedError, match="refused by Rossi"):
            release(node, 1, "Bianchi^Ugo", "it is fine")
        time.sleep(0.5)
        assert node.queue.counts()["results"] == {"refused": 1}
        assert delivered(tmp_path / "pacs") == []


def test_a_study_without_anything_to_segment_says_so(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        store(node, make_study(tmp_path / "one", wish="nothing"))
        wait_until(lambda: node.queue.counts()["results"] == {"not processed": 1})
        assert delivered(tmp_path / "pacs") == []


def test_what_was_refused_is_told_to_the_destination_where_the_rule_says_so(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", 3, wish="refuse")
    again = make_study(tmp_path / "again", 1, study=study_of(study), wish="refuse")
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port, rule="notice = true")) as node:
        store(node, study)
        wait_until(lambda: delivered(tmp_path / "pacs") == ["3 instances"])
        wait_until(lambda: node.queue.counts()["deliveries"] == {"delivered": 1})
        assert node.queue.counts()["results"] == {"not processed": 1}
        store(node, again)
        wait_until(lambda: delivered(tmp_path / "pacs") == ["3 instances", "4 instances"])
        wait_until(lambda: node.queue.counts()["deliveries"] == {"delivered": 2})
        assert node.queue.counts()["results"] == {"not processed": 2}
        assert node.queue.last_delivered(study_of(study)) == []
    events = [json.loads(line) for line in (tmp_path / "node/audit.jsonl").read_text().splitlines()]
    assert [(one["event"], one.get("state")) for one in events[1:4]] == [
        ("complete", None), ("result", "not processed"), ("delivered", None),
    ]  # fmt: skip


def test_a_notice_goes_nowhere_where_the_rule_wants_none(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        store(node, make_study(tmp_path / "one", wish="refuse"))
        wait_until(lambda: node.queue.counts()["results"] == {"not processed": 1})
        assert node.queue.counts()["deliveries"] == {}


def test_after_a_restart_it_goes_on_with_what_was_left(tmp_path: Path) -> None:
    with pacs(tmp_path / "away") as gone:
        port = gone.port
    path = write_site(tmp_path, port, node="")
    with running(path) as node:
        store(node, make_study(tmp_path / "one"))
        wait_until(lambda: len(pending(node.queue)) == 1)
        store(node, make_study(tmp_path / "two", 2))  # stopped before it was complete
    with pacs(tmp_path / "pacs", port), running(path):
        wait_until(lambda: delivered(tmp_path / "pacs") == ["2 instances", "3 instances"])


def test_without_memory_and_trail_everything_is_done_again_to_the_same_bytes(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer:
        path = write_site(tmp_path, peer.port)
        with running(path) as node:
            store(node, make_study(tmp_path / "one"))
            wait_until(lambda: delivered(tmp_path / "pacs") == ["3 instances"])
        for file in [*(tmp_path / "node").glob("node.sqlite*"), tmp_path / "node/audit.jsonl"]:
            file.unlink()
        with running(path) as node:
            wait_until(lambda: node.queue.counts()["results"].get("delivered") == 1)
        assert delivered(tmp_path / "pacs") == ["3 instances"]


def test_a_memory_that_is_damaged_says_so_and_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node/node.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UsageError, match=r"node\.sqlite is damaged .* move it away"):
        Node(site_on_any_port(write_site(tmp_path, 104)))
    assert (tmp_path / "node/node.sqlite").read_bytes() == b"no database" * 100


def test_a_study_can_be_worked_at_once_more(tmp_path: Path) -> None:
    study = make_study(tmp_path / "one")
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        assert not node.reprocess(study_of(study), "eva")
        store(node, study)
        wait_until(lambda: node.queue.counts()["results"] == {"delivered": 1})
        assert node.reprocess(study_of(study), "eva")
        wait_until(lambda: node.queue.counts()["results"] == {"delivered": 2})
        assert [job.version for job in node.queue.jobs_of(study_of(study))] == [1, 2]
        assert delivered(tmp_path / "pacs") == ["3 instances"]
    events = [json.loads(line)["event"] for line in (tmp_path / "node/audit.jsonl").read_text().splitlines()]
    assert events.count("delivered") == 1  # the second time it was there already
    assert events.count("reprocessed") == 1


def test_one_folder_has_one_node(tmp_path: Path) -> None:
    path = write_site(tmp_path, 104)
    with running(path), pytest.raises(UsageError, match="is used by another node"):
        Node(site_on_any_port(path))


def test_on_a_full_disk_nothing_is_taken(tmp_path: Path) -> None:
    path = write_site(tmp_path, 104, node="least_free_gb = 999999")
    with started(path) as node:
        (outcome,) = {one.state for one in store(node, make_study(tmp_path / "one"))}
        assert outcome == "refused"
        assert not node.is_ready
        assert list((tmp_path / "node/received").rglob("*.dcm")) == []


def test_a_clock_that_is_set_back_delays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = time.time
    with pacs(tmp_path / "away") as gone:
        port = gone.port
    with running(write_site(tmp_path, port)) as node:
        store(node, make_study(tmp_path / "one"))
        wait_until(lambda: pending(node.queue) and pending(node.queue)[0].attempts > 0)
        monkeypatch.setattr(time, "time", lambda: told() - 86_400 * 30)
        store(node, make_study(tmp_path / "two", 2))
        with pacs(tmp_path / "pacs", port):
            wait_until(lambda: node.queue.counts()["results"].get("delivered") == 2)
        assert delivered(tmp_path / "pacs") == ["2 instances", "3 instances"]


def test_a_clock_that_is_set_forward_gives_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = time.time
    with pacs(tmp_path / "away") as gone:
        port = gone.port
    with running(write_site(tmp_path, port)) as node:
        store(node, make_study(tmp_path / "one"))
        wait_until(lambda: len(pending(node.queue)) == 1)
        monkeypatch.setattr(time, "time", lambda: told() + 86_400 * 30)
        wait_until(lambda: pending(node.queue)[0].attempts > 2)
        with pacs(tmp_path / "pacs", port):
            wait_until(lambda: node.queue.counts()["results"].get("delivered") == 1)


def tidy(node: Node) -> None:
    """Has it forget now what is to be forgotten."""
    node.retention.last_run = None
    wait_until(lambda: node.retention.last_run)
    time.sleep(0.3)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_clock_that_is_far_ahead_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    told = time.time
    with pacs(tmp_path / "pacs") as peer:
        site = write_site(tmp_path, peer.port)
        with running(site) as node:
            store(node, make_study(tmp_path / "one"))
            wait_until(lambda: node.queue.counts()["results"].get("delivered") == 1)
            if not restarted:
                monkeypatch.setattr(time, "time", lambda: told() + 86_400 * 365 * 5)
                tidy(node)
                assert node.queue.counts()["studies"] == {"complete": 1}
        monkeypatch.setattr(time, "time", lambda: told() + 86_400 * 365 * 5)
        with running(site) as node:
            tidy(node)
            assert node.queue.counts()["studies"] == {"complete": 1}
            monkeypatch.undo()
            tidy(node)
            assert node.queue.counts()["studies"] == {"complete": 1}


def test_the_log_says_what_was_done_with_each_study_and_names_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "monai_unet_app.service")
    with pacs(tmp_path / "away") as gone:
        port = gone.port
    bad, good = make_study(tmp_path / "bad", wish="crash"), make_study(tmp_path / "good")
    with running(write_site(tmp_path, port, node="tries = 1")) as node:
        store(node, good)
        wait_until(lambda: pending(node.queue) and pending(node.queue)[0].attempts)
        store(node, bad)
        wait_until(lambda: node.queue.counts()["jobs"] == {"done": 1, "dead": 1})
        with pacs(tmp_path / "pacs", port):
            wait_until(lambda: node.queue.counts()["results"] == {"delivered": 1})
    said = "\n".join(record.getMessage() for record in caplog.records)
    for line in (
        f"study {study_of(good)}: complete, version 1 of 3 instance(s), job 1",
        f"study {study_of(good)}: result 1 of rule any is sending",
        "result 1: not delivered to pacs, try 1: ",
        "result 1: delivered to pacs, 1 object(s)",
        f"dead letter: study {study_of(bad)}, job 2: its process ended (signal 9)",
    ):
        assert line in said
    assert NAME not in said
    assert PATIENT_ID not in said


def test_a_terminal_that_is_closed_ends_the_node_as_a_service_manager_does(tmp_path: Path) -> None:
    site = write_site(tmp_path, 104, node=f"port = {free_port()}")
    words = "from monai_unet_app.cli import main, service_verbs; service_verbs._check_bundles = lambda _: None; "
    node = subprocess.Popen(
        [sys.executable, "-c", f"{words} raise SystemExit(main(['node', '--config', {str(site)!r}]))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert node.stdout is not None
    with node.stdout:
        assert "listens on" in node.stdout.readline()
        node.send_signal(signal.SIGHUP)
        assert node.wait(30) == 0
    lines = (tmp_path / "node/audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["started", "stopped"]


def test_a_study_that_has_all_its_headers_tell_of_is_complete_sooner(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", 4)
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        node.config = replace(node.config, stable_s=20.0)
        store(node, study)
        begin = time.monotonic()
        wait_until(lambda: node.queue.counts()["jobs"], 15)
        assert 3.0 < time.monotonic() - begin < 15


@pytest.mark.parametrize("larger", [1, 2], ids=["in the first header", "in the second"])
def test_of_headers_that_count_differently_the_larger_count_is_waited_for(larger: int, tmp_path: Path) -> None:
    arrivals, files = Arrivals(), sorted(make_study(tmp_path / "study", 2).glob("*.dcm"))
    for number, path in enumerate(files, start=1):
        instance = dcmread(path)
        instance.ImagesInAcquisition = 3 if number == larger else 2
        instance.save_as(path)
        arrivals.add_instance(Stored(path, "1.2", "1.2.3", f"1.2.3.{number}", "1.2.4", is_new=True))
    arrivals.mark_recorded("1.2", 2)
    time.sleep(0.3)
    assert not arrivals.is_complete("1.2", 1.0)  # a fifth of the second would do if all were here
    arrivals.add("1.2", 1, "1.2.3")
    arrivals.mark_recorded("1.2", 1)
    time.sleep(0.3)
    assert arrivals.is_complete("1.2", 1.0)


def test_a_study_that_is_said_to_be_whole_is_complete_at_once(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", 3)
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        node.config = replace(node.config, stable_s=60.0)
        store(node, study)
        headers = [dcmread(path) for path in study.glob("*.dcm")]
        assert announce(node, headers, "1.2.3.4.5") == 0  # of one more, which is not here
        time.sleep(0.5)
        assert node.queue.counts()["jobs"] == {}
        assert announce(node, headers) == 0
        wait_until(lambda: delivered(tmp_path / "pacs") == ["3 instances"])


def test_what_the_node_has_is_committed_to(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", 3)
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        store(node, study)
        found = commit(to(node), sorted(study.glob("*.dcm")), wait_s=20)
        assert found.is_complete
        assert len(found.committed) == 3
        (other,) = make_study(tmp_path / "other", 1).glob("*.dcm")
        missing = commit(to(node), [other], wait_s=20)
        assert not missing.is_complete
        assert len(missing.failed) == 1
        wait_until(lambda: not node.queue.rows("SELECT 1 FROM commitments WHERE reported IS NULL"))
