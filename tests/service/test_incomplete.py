"""A study that lacks images by its own headers is waited for, then refused with the reason unless its rule says otherwise."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from nodes import READER, announce, make_study, pacs, running, store, study_of, wait_until, write_site
from pydicom import dcmread

from monai_unet_app.service.node import Node
from monai_unet_app.service.status import status_page

REASON = "15 of 35 images did not come"


def make_parts(folder: Path) -> tuple[Path, Path]:
    """A series of 35 images, each of which says so: the first 20, and the other 15."""
    whole, rest = make_study(folder / "first", 35), folder / "rest"
    rest.mkdir()
    for number in range(35):
        path = whole / f"{number}.dcm"
        image = dcmread(path)
        image.ImagesInAcquisition = 35
        image.save_as(path)
        if number >= 20:
            path.rename(rest / path.name)
    return whole, rest


def delivered(folder: Path) -> list[str]:
    return sorted(str(dcmread(path).ImageComments) for path in folder.rglob("*.dcm"))


def reason(node: Node) -> str:
    queued = node.queue.jobs(["queued"])
    return queued[0].reason if queued else ""


def test_the_rest_that_comes_in_time_makes_one_result_of_all_images(tmp_path: Path) -> None:
    first, rest = make_parts(tmp_path)
    with (
        pacs(tmp_path / "pacs") as peer,
        running(write_site(tmp_path, peer.port, node="incomplete_s = 60")) as node,
    ):
        store(node, first)
        wait_until(lambda: reason(node) == f"waits for images: {REASON}")
        assert REASON in status_page(node, READER)
        time.sleep(1)
        assert node.queue.counts()["results"] == {}
        store(node, rest)
        wait_until(lambda: node.queue.counts()["results"] == {"delivered": 1})
        assert delivered(tmp_path / "pacs") == ["35 instances"]
        assert node.queue.jobs(["queued", "working"]) == []


def test_the_rest_that_never_comes_is_told_and_when_it_comes_late_there_is_a_result(tmp_path: Path) -> None:
    first, rest = make_parts(tmp_path)
    site = write_site(tmp_path, 104, node="incomplete_s = 3")
    with pacs(tmp_path / "pacs") as peer:
        write_site(tmp_path, peer.port, node="incomplete_s = 3", rule="notice = true")
        with running(site) as node:
            store(node, first)
            wait_until(lambda: node.queue.counts()["results"] == {"not processed": 1})
            (refused,) = node.queue.results(())
            assert refused.reason == REASON
            wait_until(lambda: delivered(tmp_path / "pacs") == ["20 instances"])  # the notice
            assert node.queue.last_delivered(refused.study) == []
            assert {one.state for one in store(node, rest)} == {"sent"}
            wait_until(lambda: node.queue.counts()["results"] == {"not processed": 1, "delivered": 1})
            assert node.queue.jobs_of(refused.study)[-1].version > 1
    states = [
        line["state"]
        for line in map(json.loads, (tmp_path / "node/audit.jsonl").read_text().splitlines())
        if line["event"] == "result"
    ]
    assert states == ["not processed", "sending"]


def test_a_rule_may_take_what_is_there(tmp_path: Path) -> None:
    first, _ = make_parts(tmp_path)
    with pacs(tmp_path / "pacs") as peer:
        site = write_site(tmp_path, peer.port, node="incomplete_s = 1.5", rule="allow_incomplete = true")
        with running(site) as node:
            begin = time.monotonic()
            store(node, first)
            wait_until(lambda: node.queue.counts()["results"] == {"delivered": 1})
            assert time.monotonic() - begin > 1.5  # it is waited for all the same
            assert delivered(tmp_path / "pacs") == ["20 instances"]


def test_a_restart_neither_forgets_the_waiting_nor_begins_it_anew(tmp_path: Path) -> None:
    first, _ = make_parts(tmp_path)
    with pacs(tmp_path / "pacs") as peer:
        site = write_site(tmp_path, peer.port, node="incomplete_s = 60")
        with running(site) as node:
            store(node, first)
            wait_until(lambda: reason(node))
        with running(site) as node:
            wait_until(lambda: node.workers.idle())
            time.sleep(1)
            assert node.queue.counts()["results"] == {}
            assert node.queue.quiet_s(str(study_of(first))) > 1
            node.config = replace(node.config, incomplete_s=1.0)
            node.jobs._not_before.clear()
            wait_until(lambda: node.queue.counts()["results"] == {"not processed": 1})


def test_who_says_that_a_study_is_whole_is_believed(tmp_path: Path) -> None:
    first, _ = make_parts(tmp_path)
    with (
        pacs(tmp_path / "pacs") as peer,
        running(write_site(tmp_path, peer.port, node="incomplete_s = 60")) as node,
    ):
        store(node, first)
        wait_until(lambda: reason(node) and study_of(first) not in node.arrivals)
        assert node.reprocess(study_of(first), "eva")
        wait_until(lambda: node.queue.counts()["results"] == {"not processed": 1})


def test_an_announcement_that_comes_while_images_are_waited_for_ends_the_waiting(tmp_path: Path) -> None:
    first, rest = make_parts(tmp_path)
    headers = [dcmread(path) for path in first.glob("*.dcm")]
    with (
        pacs(tmp_path / "pacs") as peer,
        running(write_site(tmp_path, peer.port, node="incomplete_s = 60")) as node,
    ):
        store(node, first)
        wait_until(lambda: reason(node) and study_of(first) not in node.arrivals)
        assert announce(node, [*headers, *(dcmread(path) for path in rest.glob("*.dcm"))]) == 0  # of more than is here
        time.sleep(0.5)
        assert node.queue.counts()["results"] == {}
        assert announce(node, headers) == 0
        wait_until(lambda: node.queue.counts()["results"] == {"not processed": 1})
