"""A challenger beside the champion: as a shadow, for a share of the patients, rolled back, and after a lost database."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from challenged import CHALLENGER, CHAMPION, NEXT, RULE, arrived, challenged_site, name_models, study_by
from nodes import pacs, running, store, study_of, wait_until
from pydicom import dcmread

from dicom_io.net.instance_store import InstanceStore, Stored
from dicom_io.net.scp import Listen, Provider
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.service import slots
from monai_unet_app.service.audit import entries
from monai_unet_app.service.node import Node
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.rows import NewResult

TABLES = ("studies", "jobs", "results", "slots", "shadows", "comparisons")


def send_studies(node: Node, folder: Path, patients: Sequence[str], wish: str = "") -> list[str]:
    """Sends a study of each patient; gives their UIDs."""
    folders = [study_by(folder / f"{n} {wish}", patient, wish) for n, patient in enumerate(patients)]
    for one in folders:
        store(node, one)
    return [str(study_of(one)) for one in folders]


def compared(node: Node) -> int:
    return sum(rule["studies"] for rule in node.challengers.state())


def test_a_shadow_compares_after_the_delivery_and_sends_nothing(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(challenged_site(tmp_path, peer.port)) as node:
        send_studies(node, tmp_path, ["1", "2", "3"])
        wait_until(lambda: compared(node) == 3)
        (state,) = node.challengers.state()
        events = [line["event"] for line in entries(node.audit.path)]
    assert arrived(tmp_path / "pacs") == {"a": 3}
    assert (state["champion"], state["challenger"], state["share"], state["sent"]) == (CHAMPION, CHALLENGER, 0, [])
    assert state["last"][0]["results"][0].startswith("any/")
    for study in range(3):  # each after its own delivery
        assert [n for n, event in enumerate(events) if event == "compared"][study] > [
            n for n, event in enumerate(events) if event == "delivered"
        ][study]


def test_a_patient_keeps_a_side_and_a_larger_share_only_adds_patients(tmp_path: Path) -> None:
    patients = [str(number) for number in range(40)]
    with pacs(tmp_path / "pacs") as peer, running(challenged_site(tmp_path, peer.port)) as node:

        def sides(share: float) -> set[str]:
            node.in_loop(lambda: node.challengers.set_share("any", share, "Bianchi^Eva", ""))
            return {one for one in patients if node.challengers._side("any", f"\0{one}") < share}

        tenth, half = sides(0.1), sides(0.5)
        assert tenth < half
        assert 10 <= len(half) <= 30
        studies = send_studies(node, tmp_path, patients[:8])
        wait_until(lambda: compared(node) == 8)
        made = {study: node.queue.jobs_of(study)[0].bundles["any"] for study in studies}
        expected = {
            study: CHALLENGER if patient in half else CHAMPION
            for study, patient in zip(studies, patients, strict=False)
        }
        assert made == expected
        assert len(node.challengers.state()[0]["sent"]) == sum(one == CHALLENGER for one in made.values())
    assert arrived(tmp_path / "pacs") == Counter(one[0] for one in expected.values())
    with running(challenged_site(tmp_path, 1)) as again:  # the key of the sides outlives the node
        assert {one for one in patients if again.challengers._side("any", f"\0{one}") < 0.5} == half


def test_a_challenger_that_is_worse_is_rolled_back_and_the_champion_goes_on(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(challenged_site(tmp_path, peer.port)) as node:
        node.in_loop(lambda: node.challengers.set_share("any", 0.5, "Bianchi^Eva", ""))
        send_studies(node, tmp_path, [str(n) for n in range(24)], "worse")
        wait_until(lambda: node.challengers.state()[0]["withdrawn"], 60)
        (state,) = node.challengers.state()
        assert state["withdrawn"].startswith("predicted Dice: worse in ")
        assert state["studies"] <= 20
        wait_until(lambda: not node.queue.waiting(), 60)
        sent = arrived(tmp_path / "pacs")["c"]
        assert len(state["sent"]) == sent > 0
        send_studies(node, tmp_path / "later", [str(n) for n in range(8)])
        wait_until(lambda: not node.arrivals.unrecorded() and not node.queue.waiting(), 60)
        assert arrived(tmp_path / "pacs")["c"] == sent
        with pytest.raises(InputRefusedError, match="a written reason is needed to try it again"):
            node.in_loop(lambda: node.challengers.set_share("any", 0.1, "Bianchi^Eva", ""))
        again = node.in_loop(lambda: node.challengers.set_share("any", 0.1, "Bianchi^Eva", "a mistake of the site"))
        assert (again.share, again.withdrawn, compared(node)) == (0.1, "", 0)


def test_after_a_rollback_no_result_of_the_challenger_starts_and_the_champion_makes_them(tmp_path: Path) -> None:
    path = challenged_site(tmp_path, 1)  # nobody listens there
    with running(path) as node:
        node.in_loop(lambda: node.challengers.set_share("any", 0.5, "Bianchi^Eva", ""))
        studies = send_studies(node, tmp_path, [str(n) for n in range(8)])
        wait_until(lambda: node.queue.counts()["results"]["sending"] == 8)
        theirs = {study for study in studies if node.queue.jobs_of(study)[0].bundles["any"] == CHALLENGER}
        assert theirs
        done = node.in_loop(lambda: node.challengers.roll_back("any", "it looks wrong", "Bianchi^Eva"))
        assert (set(done.studies), len(done.ended), done.sent) == (theirs, len(theirs), [])
        wait_until(lambda: node.queue.counts()["results"]["sending"] == 8)
        for study in theirs:
            before, after = node.queue.results_of_study(study)
            assert (before.state, after.state) == ("superseded", "sending")
            assert node.queue.jobs_of(study)[-1].plans["any"] == {
                "champion": CHAMPION, "challenger": "", "slot": "champion",
            }  # fmt: skip
    port = int(path.read_text().split("port = ")[1].split()[0])
    assert port == 1
    with pacs(tmp_path / "pacs") as peer:
        path.write_text(path.read_text().replace("port = 1\n", f"port = {peer.port}\n"))
        with running(path) as node:
            wait_until(lambda: not node.queue.waiting())
    assert arrived(tmp_path / "pacs") == {"a": 8}


@pytest.mark.parametrize("wish", ["cannot", "dies"])
def test_the_champion_takes_over_what_the_challenger_cannot_do(wish: str, tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(challenged_site(tmp_path, peer.port)) as node:
        node.in_loop(lambda: node.challengers.set_share("any", 0.5, "Bianchi^Eva", ""))
        patients = [one for one in map(str, range(20)) if node.challengers._side("any", f"\0{one}") < 0.5][:2]
        studies = send_studies(node, tmp_path, patients, wish)
        wait_until(lambda: node.queue.counts()["results"]["delivered"] == 2, 60)
        (state,) = node.challengers.state()
        assert [bool(one["fault"][1]) for one in state["last"]] == [True, True]
        assert node.queue.counts()["jobs"] == {"done": 2}
        assert all(node.queue.jobs_of(study)[0].bundles["any"] == CHAMPION for study in studies)
        assert not slots.next_shadow(node.queue)
    assert arrived(tmp_path / "pacs") == {"a": 2}


def rows(node: Node) -> dict[str, list[tuple[object, ...]]]:
    """All rows, without times and tries."""
    left_out = {"created", "done", "since", "last", "attempts", "reason"}
    deliveries = (
        "SELECT result, destination, state FROM deliveries ORDER BY result, destination"  # their numbers name nothing
    )
    with sqlite3.connect(node.folder / "node.sqlite") as database:
        database.row_factory = sqlite3.Row
        found = {table: database.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in TABLES}
        found["deliveries"] = database.execute(deliveries).fetchall()
    return {
        table: [tuple(one[key] for key in one.keys() if key not in left_out) for one in lines]  # noqa: SIM118
        for table, lines in found.items()
    }


def test_a_lost_database_is_made_anew_in_the_middle_of_a_canary(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer:
        path = challenged_site(tmp_path, peer.port)
        with running(path) as node:
            node.in_loop(lambda: node.challengers.set_share("any", 0.5, "Bianchi^Eva", ""))
            send_studies(node, tmp_path, [str(n) for n in range(6)])
            wait_until(lambda: compared(node) == 6)
            send_studies(node, tmp_path / "slow", [str(n) for n in range(4)], "slow shadow")
            wait_until(lambda: node.queue.counts()["results"]["delivered"] == 10)
            before = rows(node)
            assert {one[1] for one in before["shadows"]} == {"done", "waiting"}
        for name in ("node.sqlite", "node.sqlite-wal", "node.sqlite-shm"):
            (tmp_path / "node" / name).unlink(missing_ok=True)
        with running(path) as node:
            assert rows(node) == before
            node.in_loop(lambda: node.challengers.roll_back("any", "enough", "Bianchi^Eva"))
            wait_until(lambda: not node.queue.waiting())
            before = rows(node)
        for name in ("node.sqlite", "node.sqlite-wal", "node.sqlite-shm"):
            (tmp_path / "node" / name).unlink(missing_ok=True)
        with running(path) as node:
            assert rows(node) == before


def test_a_shadow_stands_still_while_a_study_waits_for_the_champion(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(challenged_site(tmp_path, peer.port)) as node:
        send_studies(node, tmp_path, ["1"], "slow shadow")
        wait_until(lambda: node.shadows.pool.tasks())
        send_studies(node, tmp_path, ["2"], "slow")
        wait_until(lambda: node.workers.tasks())
        (child,) = node.shadows.pool.children
        wait_until(lambda: child.is_stopped)
        wait_until(lambda: Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        assert compared(node) == 0
        wait_until(lambda: compared(node) == 2, 60)
        pid = child.pid
    assert not Path(f"/proc/{pid}").exists()


def test_new_models_are_taken_without_a_new_start_and_a_promoted_challenger_is_the_champion(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(challenged_site(tmp_path, peer.port)) as node:
        send_studies(node, tmp_path, ["1"])
        wait_until(lambda: compared(node) == 1)
        name_models(tmp_path, CHALLENGER, CHALLENGER)
        assert node.in_loop(lambda: node.challengers.assign_models("Bianchi^Eva")) == ["any"]
        assert node.challengers.state() == []
        send_studies(node, tmp_path / "later", ["1"])
        wait_until(lambda: node.queue.counts()["results"]["delivered"] == 2)
        name_models(tmp_path, CHALLENGER, NEXT)
        node.in_loop(lambda: node.challengers.assign_models("Bianchi^Eva"))
        assert (compared(node), node.challengers.state()[0]["challenger"]) == (0, NEXT)
    assert arrived(tmp_path / "pacs") == {"a": 1, "c": 1}


def test_a_share_needs_the_site_the_gate_or_a_reason(tmp_path: Path) -> None:
    with running(challenged_site(tmp_path, 1)) as node:
        with pytest.raises(InputRefusedError, match=r"permits a share of 0\.5 at most, 0\.6 is asked for"):
            node.challengers.set_share("any", 0.6, "Bianchi^Eva", "")
        with pytest.raises(InputRefusedError, match="the site has no rule 'spleen'; one of any is needed"):
            node.challengers.set_share("spleen", 0.1, "Bianchi^Eva", "")
        name_models(tmp_path, CHAMPION, CHALLENGER, passed=False)
        with pytest.raises(InputRefusedError, match=r"has not passed the release gate \(so\)"):
            node.challengers.set_share("any", 0.1, "Bianchi^Eva", "")
        node.in_loop(lambda: node.challengers.set_share("any", 0.1, "Bianchi^Eva", "2D for 3D, to see it rolled back"))
        (line,) = [line for line in entries(node.audit.path) if line["event"] == "share"]
        assert (line["who"], line["reason"], line["share"]) == ("Bianchi^Eva", "2D for 3D, to see it rolled back", 0.1)
        node.in_loop(lambda: node.challengers.roll_back("any", "enough", "Bianchi^Eva"))
        with pytest.raises(InputRefusedError, match="was rolled back already"):
            node.in_loop(lambda: node.challengers.roll_back("any", "enough", "Bianchi^Eva"))


def test_a_result_that_is_cut_off_by_a_rollback_is_made_by_the_champion(tmp_path: Path) -> None:
    came = []

    def hang(stored: Stored) -> None:
        came.append(stored)
        time.sleep(8 if len(came) == 1 else 0)  # longer than a rollback waits

    store_of = InstanceStore(tmp_path / "pacs", stored=hang)
    with Provider(store_of, Listen("PACS", port=0)) as peer, running(challenged_site(tmp_path, peer.port)) as node:
        node.in_loop(lambda: node.challengers.set_share("any", 0.5, "Bianchi^Eva", ""))
        patient = next(one for one in map(str, range(20)) if node.challengers._side("any", f"\0{one}") < 0.5)
        (study,) = send_studies(node, tmp_path, [patient])
        wait_until(node.senders.tasks)
        begin = time.monotonic()
        done = node.in_loop(lambda: node.challengers.roll_back("any", "enough", "Bianchi^Eva"))
        assert time.monotonic() - begin < 5
        assert done.studies == [study]
        (line,) = [line for line in entries(node.audit.path) if line["event"] == "rolled back"]
        assert [destination for _, destination in line["cut_off"]] == ["pacs"]
        wait_until(lambda: len(node.queue.jobs_of(study)) == 2)
        # What may have arrived is known, so that the champion's result replaces it
        assert [result.id for result in node.queue.last_delivered(study)] == done.ended
        again = node.queue.jobs_of(study)[-1].id
        wait_until(lambda: [one.state for one in node.queue.results_of(again)] == ["delivered", "delivered"], 60)
        assert [one.verdict for one in node.queue.results_of(again)] == ["", "rejection note"]
    found = [dcmread(path) for path in (tmp_path / "pacs").rglob("*.dcm")]
    assert sorted(str(one.get("ImageComments", "note")).partition(" by ")[2][:1] for one in found) == ["", "a", "c"]


def test_a_challenger_that_was_rolled_back_stays_so_when_its_alias_goes_and_comes(tmp_path: Path) -> None:
    with running(challenged_site(tmp_path, 1)) as node:
        node.in_loop(lambda: node.challengers.roll_back("any", "enough", "Bianchi^Eva"))
        for challenger in (NEXT, CHALLENGER):
            name_models(tmp_path, CHAMPION, challenger)
            node.in_loop(lambda: node.challengers.assign_models("Bianchi^Eva"))
        assert node.challengers.state()[0]["withdrawn"] == "enough"


def test_a_rule_that_leaves_the_registry_is_planned_no_more(tmp_path: Path) -> None:
    path = challenged_site(tmp_path, 1)
    with running(path) as node:
        assert "champion" in node.challengers.plan("1.2.3")
    text = path.read_text().replace(RULE, "").replace('"registry:liver@champion"', '"none"')
    path.write_text(text)
    with running(path) as node:
        assert node.challengers.plan("1.2.3") == ""
        assert node.challengers.state() == []


def test_a_study_that_no_bundle_can_do_is_nobodys_fault(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(challenged_site(tmp_path, peer.port)) as node:
        node.in_loop(lambda: node.challengers.set_share("any", 0.5, "Bianchi^Eva", ""))
        send_studies(node, tmp_path, [str(n) for n in range(6)], "refuse")
        wait_until(lambda: node.queue.counts()["results"].get("not processed") == 6, 60)
        wait_until(lambda: slots.next_shadow(node.queue) is None, 60)
        assert not any(any(one["fault"]) for one in node.challengers.state()[0]["last"])


def test_reports_of_other_rules_on_the_same_series_stay(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "node.sqlite")
    slots.assign(queue, "liver", CHAMPION, CHALLENGER)
    queue.record_instances("1.2", 1)
    plan = {"champion": CHAMPION, "challenger": CHALLENGER, "slot": "challenger"}
    job = queue.complete_study("1.2", json.dumps({"liver": plan}))
    both = [
        NewResult(rule, "1.2.3", f"1-1/{rule}", "sending", "accept", "", rule, ("pacs",), bundle=bundle)
        for rule, bundle in (("liver", CHALLENGER), ("spleen", CHAMPION))
    ]
    liver, spleen = queue.finish_job(job.id, both)
    reports = [queue.add_follow_up(one, "verified", "f", "d", ("pacs",)) for one in (liver, spleen)]
    done = slots.roll_back(queue, "liver", "enough")
    assert (done.ended, done.studies) == ([liver.id, reports[0]], ["1.2"])
    states = {one: queue.result(one) for one in (spleen.id, reports[1])}
    assert [one.state for one in states.values() if one] == ["sending", "sending"]
    queue.close()
