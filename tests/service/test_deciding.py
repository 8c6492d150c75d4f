"""One person decides about a result, once, at the time that the node's clock says; nobody else's name stands in a report."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from nodes import make_study, pacs, running, store, study_of, wait_until, write_site
from ward import Ward, ward

from monai_unet_app.cli import main
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.service.reviews import refuse, release
from monai_unet_app.service.rows import DecidedError
from monai_unet_app.service.tokens import Holder

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Ward]:
    with ward(tmp_path) as one:
        yield one


def test_the_nodes_clock_dates_a_decision_and_the_browsers_is_a_remark(site: Ward, tmp_path: Path) -> None:
    number = site.study(tmp_path / "in")
    before = datetime.now(UTC)
    answer = site.decide(number, "accepted", decided_at="1999-01-01T00:00:00Z")
    assert answer.status_code == 200, answer.text
    wait_until(lambda: len(site.got()) == 3, 60)
    (verified,) = [one for one in site.got() if one.get("VerificationFlag") == "VERIFIED"]
    observer = verified.VerifyingObserverSequence[0]
    said = datetime.strptime(observer.VerificationDateTime, "%Y%m%d%H%M%S%z")
    assert before - timedelta(seconds=1) <= said <= datetime.now(UTC)
    assert observer.VerifyingObserverName == "Rossi^Anna"
    (record,) = site.records()
    assert record["at"] == record["review"]["applied_at"]
    assert record["review"]["page_time"] == "1999-01-01T00:00:00+00:00"
    assert abs(datetime.fromisoformat(record["at"]) - datetime.now(UTC)) < timedelta(minutes=5)


def test_of_accept_and_reject_at_one_moment_one_counts_and_the_other_is_told(site: Ward, tmp_path: Path) -> None:
    number = site.study(tmp_path / "in", "review")
    with ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(site.decide, number, decision, who)
            for decision, who in (("accepted", "rossi"), ("rejected", "lang"), ("accepted", "lang"))
        ]
        answers = [one.result() for one in asked]
    assert sorted(one.status_code for one in answers) == [200, 409, 409]
    (won,) = [one.json() for one in answers if one.status_code == 200]
    (record,) = site.records()
    assert (record["decision"], record["who"], record["at"]) == (
        won["decision"], won["reviewer"]["name"], won["applied_at"],
    )  # fmt: skip
    for lost in (one.json()["detail"] for one in answers if one.status_code == 409):
        assert f"{won['decision']} by {won['reviewer']['name']} at {won['applied_at']}" in lost
    events = (site.node.folder / "audit.jsonl").read_text()
    assert events.count('"event": "decided"') == 1
    wait_until(lambda: len(site.got()) == (3 if won["decision"] == "accepted" else 0), 60)


def test_two_decisions_of_the_same_browser_time_have_two_records(site: Ward, tmp_path: Path) -> None:
    first, second = site.study(tmp_path / "one"), site.study(tmp_path / "two")
    for number, decision in ((first, "rejected"), (second, "accepted")):
        assert site.decide(number, decision).status_code == 200
    assert sorted((one["result"], one["decision"]) for one in site.records()) == [
        (first, "rejected"), (second, "accepted"),
    ]  # fmt: skip


def test_nobody_but_a_named_reviewer_decides(site: Ward, tmp_path: Path) -> None:
    number = site.study(tmp_path / "in", "review")
    for path, words in (
        ("decision", site.decision(number, "accepted")),
        ("verdict", site.decision(number, "accepted")),  # the name in earlier versions
        ("release", {"reason": "it is fine"}),
        ("refuse", {"reason": "it is not"}),
    ):
        answer = site.ask("POST", f"/results/{number}/{path}", "root", json=words)
        assert answer.status_code == 403
        assert "only a person may decide; root is not a person's name" in answer.json()["detail"]
        assert site.ask("POST", f"/results/{number}/{path}", "admin", json=words).status_code == 403
    stands = site.ask("GET", f"/results/{number}/decision", "root").json()
    assert stands["open"] is False
    assert site.node.queue.result(number).state == "held"
    assert site.records() == []


def test_a_rejected_result_is_not_released_by_an_empty_request(site: Ward, tmp_path: Path) -> None:
    number, path = site.study(tmp_path / "in", "reject"), "/results/{}/release"
    assert site.ask("POST", path.format(number), "rossi").status_code == 422
    assert site.ask("POST", path.format(number), "rossi", json={"reason": "  "}).status_code == 422
    unconfirmed = site.ask("POST", path.format(number), "rossi", json={"reason": "the gate is wrong"})
    assert unconfirmed.status_code == 422
    assert "confirm_rejected" in unconfirmed.json()["detail"]
    assert (site.node.queue.result(number).state, site.records()) == ("rejected", [])
    for unclear in ("yes", "true", 1):
        words = {"reason": "the gate is wrong", "confirm_rejected": unclear}
        answer = site.ask("POST", path.format(number), "rossi", json=words)
        assert (answer.status_code, "valid boolean" in answer.json()["detail"]) == (422, True)
    assert site.records() == []
    words = {"reason": "the gate is wrong", "confirm_rejected": True}
    assert site.ask("POST", path.format(number), "rossi", json=words).status_code == 200
    (record,) = site.records()
    assert (record["decision"], record["who"], record["reason"]) == ("released", "Rossi^Anna", "the gate is wrong")
    wait_until(lambda: len(site.got()) == 2, 60)


@pytest.mark.parametrize("half", [False, True], ids=["all files", "the SEG"])
def test_nobody_decides_on_a_result_whose_files_are_lost_and_they_are_made_again(
    half: bool, site: Ward, tmp_path: Path
) -> None:
    number = site.study(tmp_path / "in", "reject")
    decision, confirmed = site.decision(number, "accepted"), {"reason": "the gate is wrong", "confirm_rejected": True}
    folder = site.node.result_folder(site.node.queue.result(number))
    (folder / "binary/case_seg.dcm").unlink() if half else shutil.rmtree(folder.parent)
    asked = site.ask("GET", f"/results/{number}/review", "rossi")
    assert asked.status_code == 422
    assert f"result {number} cannot be looked at: its files" in asked.json()["detail"]
    assert "they are made again" in asked.json()["detail"]
    for path, words in (("release", confirmed), ("refuse", {"reason": "unseen"}), ("decision", decision)):
        assert site.ask("POST", f"/results/{number}/{path}", "rossi", json=words).status_code in (409, 422)
    assert site.records() == []
    wait_until(lambda: site.node.queue.result(number).state == "superseded", 60)
    (again,) = site.node.queue.results(["rejected"])
    assert again.digest == site.node.queue.result(number).digest
    late = site.ask("GET", f"/results/{number}/review", "rossi")
    assert "look at the newest result of its study" in late.json()["detail"]
    assert site.ask("POST", f"/results/{again.id}/release", "rossi", json=confirmed).status_code == 200
    wait_until(lambda: len(site.got()) == 2, 60)


def test_a_result_that_cannot_be_made_again_can_only_be_refused(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        store(node, make_study(tmp_path / "one", wish="review"))
        wait_until(lambda: node.queue.counts()["results"].get("held") == 1)
        for folder in ("results", "received"):
            shutil.rmtree(node.folder / folder)
        with pytest.raises(InputRefusedError, match="images from received; send the study again"):
            release(node, 1, "Rossi^Anna", "it is fine")
        refuse(node, 1, "Rossi^Anna", "nobody can look at it")
        assert node.queue.counts()["results"] == {"refused": 1}


def test_what_was_released_can_still_be_verified_and_then_no_more(site: Ward, tmp_path: Path) -> None:
    number = site.study(tmp_path / "in", "review")
    assert site.ask("POST", f"/results/{number}/release", "rossi", json={"reason": "fine"}).status_code == 200
    again = site.ask("POST", f"/results/{number}/release", "lang", json={"reason": "fine"})
    assert again.status_code == 409
    assert "released by Rossi^Anna at 2" in again.json()["detail"]
    assert site.decide(number, "accepted", "lang").status_code == 200
    late = site.decide(number, "rejected")
    assert late.status_code == 409
    assert "accepted by Lang^Eva^^Dr at 2" in late.json()["detail"]


def test_an_accept_holds_when_the_same_bytes_are_made_again(site: Ward, tmp_path: Path) -> None:
    first = site.study(tmp_path / "in")
    assert site.decide(first, "accepted").status_code == 200
    wait_until(lambda: len(site.got()) == 3, 60)
    assert site.ask("POST", f"/studies/{study_of(tmp_path / 'in')}/reprocess", "admin").status_code == 202
    again = lambda: site.node.queue.result(first + 2)  # noqa: E731 - the verified report has the number between
    wait_until(lambda: again() and again().state == "delivered", 120)
    assert again().digest == site.node.queue.result(first).digest
    stands = site.ask("GET", f"/results/{first + 2}/decision", "lang").json()
    (record,) = site.records()
    assert (stands["open"], stands["decided"]) == (
        False, {"decision": "accepted", "by": "Rossi^Anna", "at": record["at"]},
    )  # fmt: skip
    late = site.decide(first + 2, "rejected", "lang")
    assert late.status_code == 409
    assert f"accepted by Rossi^Anna at {record['at']}" in late.json()["detail"]
    assert (len(site.got()), len(site.records())) == (3, 1)


def test_a_decision_is_about_every_result_of_the_same_bytes(site: Ward, tmp_path: Path) -> None:
    """The study was worked at once more before somebody rejects the first of two equal results."""
    first = site.study(tmp_path / "in")
    assert site.ask("POST", f"/studies/{study_of(tmp_path / 'in')}/reprocess", "admin").status_code == 202
    wait_until(lambda: site.node.queue.counts()["results"] == {"delivered": 2}, 120)
    assert site.decide(first, "rejected").status_code == 200
    wait_until(lambda: sorted(one.Modality for one in site.got()) == ["KO", "SEG", "SR"], 60)
    assert site.node.queue.result(first + 1).state == "refused"
    assert site.decide(first + 1, "accepted", "lang").status_code == 409


def test_what_was_decided_holds_for_a_study_that_comes_again_after_it_was_forgotten(site: Ward, tmp_path: Path) -> None:
    numbers = {one: site.study(tmp_path / one) for one in ("accepted", "rejected", "corrected")}
    for decision in ("accepted", "rejected"):
        assert site.decide(numbers[decision], decision).status_code == 200
    seg = next(path for path in site.node.result_folder(site.node.queue.result(numbers["corrected"])).rglob("*seg.dcm"))
    corrected = site.ask(
        "POST", f"/results/{numbers['corrected']}/decision", "rossi",
        data={"decision": json.dumps(site.decision(numbers["corrected"], "corrected"))},
        files={"mask": ("corrected.dcm", seg.read_bytes())},
    )  # fmt: skip
    assert corrected.status_code == 200, corrected.text
    wait_until(lambda: len(site.got()) == 11, 60)  # three SEG and SR; verified SR; KO; KO, SEG and SR
    wait_until(lambda: site.node.queue.counts()["deliveries"] == {"delivered": 7}, 60)
    retention = site.node.config
    site.node.config = replace(retention, retention_days=1e-9)
    site.node.retention.last_run = None
    wait_until(lambda: site.node.queue.counts()["studies"] == {}, 60)
    site.node.config = retention
    for decision in numbers:
        store(site.node, tmp_path / decision)
    wait_until(lambda: site.node.queue.counts()["results"] == {"delivered": 1, "refused": 2}, 120)
    assert site.node.queue.counts()["deliveries"] == {"delivered": 1}  # of the accepted result
    again = {one.study: one.id for one in site.node.queue.results(())}
    for decision in numbers:
        number = again[study_of(tmp_path / decision)]
        stands = site.ask("GET", f"/results/{number}/decision", "lang").json()
        assert (stands["open"], stands["decided"]["decision"], stands["decided"]["by"]) == (
            False, decision, "Rossi^Anna",
        )  # fmt: skip
        assert site.decide(number, "accepted", "lang").status_code == 409
    assert (len(site.got()), len(site.records())) == (11, 3)


def test_a_decision_holds_as_long_as_its_record_is_kept_whatever_the_node_lost(tmp_path: Path) -> None:
    """A refused study is forgotten, comes again, and once more after its record was deleted."""
    with pacs(tmp_path / "pacs") as peer:
        file = write_site(tmp_path, peer.port, node="retention_days = 1e-9\ndecision_days = 1")
        study = make_study(tmp_path / "one", wish="review")
        with running(file) as node:
            store(node, study)
            wait_until(lambda: node.queue.counts()["results"].get("held") == 1)
            refuse(node, 1, "Rossi^Anna", "half of it is missing")
            node.retention.last_run = None
            wait_until(lambda: node.queue.counts()["studies"] == {})
        for one in (tmp_path / "node").glob("node.sqlite*"):
            one.unlink()
        (tmp_path / "node/decisions").rename(tmp_path / "node/verdicts")  # its name in earlier versions
        with running(file) as node:
            store(node, study)
            wait_until(lambda: node.queue.counts()["results"].get("refused") == 1)
            (known,) = node.queue.decisions_of(2)
            assert (known.result, known.decision, known.who) == (1, "refused", "Rossi^Anna")
            node.retention.last_run = None
            wait_until(lambda: node.queue.counts()["studies"] == {})
            (record,) = (node.folder / "decisions").rglob("*.json")
            os.utime(record, (time.time() - 90_000,) * 2)
            node.retention.last_run = None
            wait_until(lambda: not record.exists())
            store(node, study)
            wait_until(lambda: node.queue.counts()["results"].get("held") == 1)
            assert node.queue.decisions_of(3) == []
        for one in (tmp_path / "node").glob("node.sqlite*"):
            one.unlink()
        with running(file) as node:
            assert node.queue.result(3).state == "held"
        events = [json.loads(line) for line in (tmp_path / "node/audit.jsonl").read_text().splitlines()]
        assert [one["result"] for one in events if one["event"] == "decision forgotten"] == [1]


def test_records_outlive_the_study_and_go_when_the_site_says_so(tmp_path: Path) -> None:
    """The study's files are deleted at once; the record of what was decided is kept for a day."""
    with pacs(tmp_path / "pacs") as peer:
        site = write_site(tmp_path, peer.port, node="retention_days = 1e-9\ndecision_days = 1")
        with running(site) as node:
            store(node, make_study(tmp_path / "one", wish="review"))
            wait_until(lambda: node.queue.counts()["results"].get("held") == 1)
            refuse(node, 1, "Rossi^Anna", "half of it is missing")
            node.retention.last_run = None
            wait_until(lambda: node.queue.counts()["studies"] == {})
            (record,) = (node.folder / "decisions").rglob("*.json")
            assert "half of it is missing" in record.read_text()
            assert "half of it" not in (node.folder / "audit.jsonl").read_text()
            os.utime(record, (time.time() - 90_000,) * 2)
            node.retention.last_run = None
            wait_until(lambda: not record.exists())


def test_a_decision_is_known_to_a_node_that_lost_its_memory(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer:
        site = write_site(tmp_path, peer.port)
        with running(site) as node:
            store(node, make_study(tmp_path / "one", wish="review"))
            wait_until(lambda: node.queue.counts()["results"].get("held") == 1)
            release(node, 1, "Rossi^Anna", "it is fine")
        for file in (tmp_path / "node").glob("node.sqlite*"):
            file.unlink()
        with running(site) as node:
            (known,) = node.queue.decisions_of(1)
            assert (known.decision, known.who, known.at[:2]) == ("released", "Rossi^Anna", "20")
            with pytest.raises(DecidedError, match="released by Rossi"):
                refuse(node, 1, "Lang^Eva", "no")


@pytest.mark.parametrize("name", ["root", "rossi", "Rossi^", "^Anna", "Rossi^1", "Rossi^Anna^^^^more"])
def test_no_reviewer_without_a_persons_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["node", "token", "--name", name, "--roles", "read,reviewer"]) == 2
    assert "Family^Given is needed" in capsys.readouterr().err
    assert not Holder(name, frozenset({"reviewer", "admin"})).decides_as("reviewer")


@pytest.mark.parametrize(
    ("roles", "decides"), [({"reviewer"}, True), ({"admin"}, False), ({"admin", "reviewer"}, True), ({"read"}, False)]
)
def test_only_the_role_of_a_reviewer_decides(roles: set[str], decides: bool) -> None:
    assert Holder("Rossi^Anna", frozenset(roles)).decides_as("reviewer") is decides
