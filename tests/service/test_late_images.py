"""Images that come after a result was delivered make another, and the archive is told that the first one holds no more."""

from __future__ import annotations

import json
import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from nodes import make_late, make_study, pacs, pending, running, store, wait_until, write_site
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_io.net.instance_store import InstanceStore
from dicom_io.net.scp import Listen, Provider
from monai_unet_app.service.audit import read_key, verify
from monai_unet_app.service.deliver import answer
from monai_unet_app.service.node import Node
from monai_unet_app.service.result_folder import digest_of
from monai_unet_app.service.rows import Decision, DecisionKind
from monai_unet_app.service.site_file import read_site


def got(folder: Path) -> list[Dataset]:
    """What an archive has, in the order in which it came."""
    files = (path for path in folder.rglob("*.dcm") if "incoming" not in str(path))
    return [dcmread(path) for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)]


def named(note: Dataset) -> set[str]:
    """SOP Instance UIDs of the objects that a note rejects."""
    items = [item for item in note.ContentSequence if item.ValueType in ("IMAGE", "COMPOSITE")]
    return {str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for item in items}


def notes(folder: Path) -> list[Dataset]:
    return [one for one in got(folder) if one.get("Modality") == "KO"]


def versions(folder: Path) -> dict[str, str]:
    """How many instances each delivered version was made of -> its SOP Instance UID."""
    return {one.ImageComments.split()[0]: str(one.SOPInstanceUID) for one in got(folder) if "ImageComments" in one}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "node/audit.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


def bring(node: Node, study: Path, results: int) -> None:
    """Sends a study, and waits until so many results are there and nothing is left to be delivered."""
    store(node, study)
    wait_until(lambda: len(node.queue.results(())) >= results and not pending(node.queue))


def test_the_version_that_another_replaces_is_rejected_once_the_other_is_delivered(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        bring(node, study, 1)
        bring(node, make_late(tmp_path / "one", study), 3)
        assert [one.get("Modality", "result") for one in got(tmp_path / "pacs")] == ["result", "result", "KO"]
        (note,) = notes(tmp_path / "pacs")
        assert named(note) == {versions(tmp_path / "pacs")["3"]}
        assert note.ConceptNameCodeSequence[0].CodeValue == "113001"  # Rejected for Quality Reasons, DCM
        others = [item for item in note.ContentSequence if item.ValueType not in ("IMAGE", "COMPOSITE")]
        said = {item.ConceptNameCodeSequence[0].CodeValue: item for item in others}
        assert said["121005"].ConceptCodeSequence[0].CodeValue == "121007"  # the observer is a device (TID 1002)
        assert said["121013"].TextValue == "monai-unet node"  # Device Observer Name
        assert said["113012"].TextValue == "replaced by a later result of the same series (result 2 of the node)"
        assert note.PatientID == dcmread(next(study.glob("*.dcm"))).PatientID
        assert {one.id: one.state for one in node.queue.results(())} == {
            1: "superseded",
            2: "delivered",
            3: "delivered",
        }
        bring(node, make_late(tmp_path / "two", study), 5)  # each version is rejected once
        uids = versions(tmp_path / "pacs")
        assert [named(one) for one in notes(tmp_path / "pacs")] == [{uids["3"]}, {uids["4"]}]
    assert [line["replaces"] for line in events(tmp_path, "rejection note")] == [[1], [2]]
    verify(tmp_path / "node/audit.jsonl", read_key(tmp_path / "node/audit.key"))


def test_a_note_that_was_not_recorded_when_the_node_died_is_sent_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "study")

    def fail(*args: object, **words: object) -> None:
        raise sqlite3.OperationalError("the node dies here")

    with pacs(tmp_path / "pacs") as peer:
        with running(write_site(tmp_path, peer.port)) as node:
            bring(node, study, 1)
            monkeypatch.setattr(node.queue, "mark_replaced", fail)
            store(node, make_late(tmp_path / "late", study))
            wait_until(lambda: len(got(tmp_path / "pacs")) == 2)
            wait_until(lambda: "main loop" in node.health.failing())
            assert node.queue.counts()["deliveries"] == {"delivered": 1, "pending": 1}  # both or neither
        with running(tmp_path / "site.toml") as node:
            wait_until(lambda: node.queue.counts()["deliveries"] == {"delivered": 2, "replaced": 1})
        uids = versions(tmp_path / "pacs")
        assert [named(note) for note in notes(tmp_path / "pacs")] == [{uids["3"]}]
    verify(tmp_path / "node/audit.jsonl", read_key(tmp_path / "node/audit.key"))


def test_a_memory_that_is_made_anew_knows_which_version_was_rejected(tmp_path: Path) -> None:
    study, query = make_study(tmp_path / "study"), "SELECT result, destination, state FROM deliveries ORDER BY result"
    with pacs(tmp_path / "pacs") as peer:
        with running(write_site(tmp_path, peer.port)) as node:
            bring(node, study, 1)
            bring(node, make_late(tmp_path / "late", study), 3)
            before = [tuple(row) for row in node.queue.rows(query)]
        for file in (tmp_path / "node").glob("node.sqlite*"):
            file.unlink()
        with running(tmp_path / "site.toml") as node:
            assert [tuple(row) for row in node.queue.rows(query)] == before
            assert node.queue.result(1).state == "superseded"
    assert before == [(1, "pacs", "replaced"), (2, "pacs", "delivered"), (3, "pacs", "delivered")]


def test_a_version_that_was_on_its_way_when_the_next_came_is_rejected_too(tmp_path: Path) -> None:
    """Its row is gone when the archive answers, and the archive has it all the same."""
    study, go_on = make_study(tmp_path / "study"), threading.Event()
    slow = InstanceStore(tmp_path / "pacs", stored=lambda stored: go_on.wait(4) and None)
    with Provider(slow, Listen("PACS", port=0)) as peer, running(write_site(tmp_path, peer.port)) as node:
        store(node, study)
        wait_until(lambda: got(tmp_path / "pacs"))
        store(node, make_late(tmp_path / "late", study))
        wait_until(lambda: node.queue.result(2))
        assert node.queue.result(1).state == "superseded"
        go_on.set()
        wait_until(lambda: node.queue.counts()["deliveries"] == {"delivered": 2, "replaced": 1})
        assert [named(note) for note in notes(tmp_path / "pacs")] == [{versions(tmp_path / "pacs")["3"]}]


@pytest.mark.parametrize(
    ("rule", "profile", "told"),
    [("reject_replaced = false", "", []), ("", '[destinations.pacs.profile]\nobjects = ["SC"]\n', [(1, ["pacs"])])],
    ids=["the site does not want it", "the archive takes no KO"],
)
def test_no_note_goes_out_where_site_or_archive_want_none(
    rule: str, profile: str, told: list[tuple[int, list[str]]], tmp_path: Path
) -> None:
    study = make_study(tmp_path / "study")
    with pacs(tmp_path / "pacs") as peer:
        site = write_site(tmp_path, peer.port, rule=rule)
        site.write_text(site.read_text() + profile)
        with running(site) as node:
            bring(node, study, 1)
            bring(node, make_late(tmp_path / "late", study), 2)
            assert node.queue.counts()["deliveries"] == {"delivered": 2}
    assert notes(tmp_path / "pacs") == []
    assert [(line["result"], line["destinations"]) for line in events(tmp_path, "not told")] == told


@pytest.mark.parametrize(("decision", "is_rejected"), [("accepted", False), ("released", True)])
def test_what_a_person_accepted_is_not_rejected_by_a_program(
    decision: DecisionKind, is_rejected: bool, tmp_path: Path
) -> None:
    study = make_study(tmp_path / "study")
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        bring(node, study, 1)
        node.queue.record_decision(Decision(1, decision, "Lang^Eva", datetime.now(UTC).isoformat()))
        bring(node, make_late(tmp_path / "late", study), 3 if is_rejected else 2)
        assert bool(notes(tmp_path / "pacs")) == is_rejected


def test_a_later_version_that_waits_for_a_reviewer_leaves_the_first_in_its_place(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        bring(node, study, 1)
        bring(node, make_late(tmp_path / "late", study, wish="review"), 2)
        assert (node.queue.result(1).state, node.queue.result(2).state) == ("delivered", "held")
        assert notes(tmp_path / "pacs") == []
        node.queue.send_held_back(2, ["pacs"])
        wait_until(lambda: node.queue.counts()["deliveries"] == {"delivered": 2, "replaced": 1})


def test_a_version_whose_files_are_lost_does_not_keep_the_next_from_its_archive(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        bring(node, study, 1)
        for file in node.result_folder(node.queue.result(1)).rglob("*.dcm"):
            file.unlink()
        bring(node, make_late(tmp_path / "late", study), 2)
        assert node.queue.counts()["deliveries"] == {"delivered": 2}
    (line,) = events(tmp_path, "not told")
    assert (line["result"], line["reason"], line["destinations"]) == (1, "its files are lost", ["pacs"])


def test_an_object_that_is_in_both_versions_is_not_rejected(tmp_path: Path) -> None:
    """The rule makes a report now too: the SEG of the second version is that of the first, and holds."""
    first, second, third = sorted(make_study(tmp_path / "objects").glob("*.dcm"))
    old, new = tmp_path / "1-1/any", tmp_path / "2-1/any"
    for folder, files in ((old, (first, second)), (new, (second, third))):
        (folder / "binary").mkdir(parents=True)
        for file in files:
            (folder / "binary" / file.name).write_bytes(file.read_bytes())
    with pacs(tmp_path / "pacs") as peer:
        site = read_site(write_site(tmp_path, peer.port))
        replaced = {"versions": [[1, str(old), digest_of(old)]], "note": str(tmp_path / "note"), "by": 2, "at": 1.6e9}
        task = {"destination": "pacs", "folder": str(new), "digest": digest_of(new), "replaced": replaced}
        told = answer(site, task)
        assert (told["delivered"], told["named"], told["unnamed"]) == (2, [1], [])
        (note,) = (tmp_path / "note/binary").iterdir()
        assert named(dcmread(note)) == {str(dcmread(first).SOPInstanceUID)}
        assert answer(site, task)["digest"] == told["digest"]  # a second try writes the same bytes
