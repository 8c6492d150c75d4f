"""The status page can be read when much waits with long reasons, and leads to a study; looked at in a real browser."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Tab, browser, program
from nodes import NAME, PATIENT_ID, READER, make_study, pacs, running, store, study_of, wait_until, write_site
from ports import free_port
from test_http_api import Site

from monai_unet_app.errors import UsageError
from monai_unet_app.service.http_api import serve
from monai_unet_app.service.node import Node
from monai_unet_app.service.rows import NewResult
from monai_unet_app.service.site import HttpConfig
from monai_unet_app.service.site_file import read_site
from monai_unet_app.service.status import age, find_page, status_page
from monai_unet_app.service.tokens import new_token

REASON = (
    "Anterior hippocampus: predicted Dice 0.61, which is below the 0.80 that this bundle asks for before a result goes out by "
    "itself; Posterior hippocampus: predicted Dice 0.58, which is below 0.80; the image is unlike those of the "
    "training (distance 3.42, flagged above 1.90); the mask touches the border of the image on 2 of 6 sides; the volume of the "
    "posterior part, 0.41 mL, lies outside the 0.62 to 2.31 mL of all subjects that the model was made with"
)
RESULTS = 50

needs_chromium = pytest.mark.skipif(
    program() is None, reason="there is no Chromium; tests/interop/install.sh brings one"
)


def make_busy(node: Node) -> list[str]:
    """50 studies whose results are held back with long reasons; gives their UIDs."""
    studies = [f"1.2.826.0.1.3680043.8.498.{n:05d}.20261121.{7 * n:012d}" for n in range(RESULTS)]
    for study in studies:
        with node.queue.transaction():  # the node's own workers do not get it
            node.queue.record_instances(study, 3)
            job = node.queue.complete_study(study)
            folder = f"{job.id}-1/hippocampus_one"
            found = NewResult("hippocampus", f"{study}.1", folder, "held", "review", REASON, study)
            node.queue.finish_job(job.id, [found])
    return studies


def make_dead(node: Node) -> None:
    """A study whose job is a dead letter."""
    with node.queue.transaction():
        node.queue.record_instances("1.2.826.0.1.9", 1)
        node.queue.give_up_job(node.queue.complete_study("1.2.826.0.1.9").id, "its process ended (signal 9)")


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[Node, str, str]]:
    """A node in which 50 results wait: the node, its URL, and an administrator's token."""
    token, line = new_token("Rossi^Anna", ["admin", "reviewer"])
    (tmp_path / "tokens").write_text(line + "\n")
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        make_busy(node)
        with serve(node, HttpConfig(tmp_path / "tokens", port=0)) as server:
            yield node, f"http://127.0.0.1:{server.port}", token


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A node with its HTTP server, and a token for each role."""
    made = {role: new_token("Rossi^Anna", [role]) for role in ("read", "reviewer", "admin")}
    (tmp_path / "tokens").write_text("".join(line + "\n" for _, line in made.values()))
    config = HttpConfig(tmp_path / "tokens", port=0)
    with (
        pacs(tmp_path / "pacs") as peer,
        running(write_site(tmp_path, peer.port)) as node,
        serve(node, config) as server,
    ):
        tokens = {role: token for role, (token, _) in made.items()}
        yield Site(node, f"http://127.0.0.1:{server.port}", tokens, tmp_path / "pacs")


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with browser(tmp_path / "profile") as found:
        yield found


def sign_in(tab: Tab, token: str) -> None:
    """What the tab asks for from now on, it asks for with this token."""
    tab.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Bearer {token}"})


def open_page(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.wait(f"document.readyState === 'complete' && location.href === {json.dumps(url)}", 20)


@pytest.mark.interop
@needs_chromium
def test_fifty_results_with_long_reasons_are_read_without_endless_scrolling(
    busy: tuple[Node, str, str], tab: Tab
) -> None:
    _, url, token = busy
    sign_in(tab, token)
    tab.size(1280, 900)
    open_page(tab, url + "/?still=true")
    assert tab.ask("document.querySelectorAll('table')[0].tBodies[0].rows.length") == RESULTS
    assert tab.ask("document.documentElement.scrollHeight") < 4 * 900
    assert tab.ask("Math.min(...[...document.querySelectorAll('td.why')].map((one) => one.offsetWidth))") > 400
    assert tab.ask("document.documentElement.scrollWidth") <= 1280
    folded = tab.box("td.why")["height"]
    tab.click("td.why summary")
    assert tab.box("td.why")["height"] > 2.5 * folded
    assert (
        tab.ask("document.querySelector('td.why summary').scrollWidth - document.querySelector('td.why').clientWidth")
        <= 1
    )

    tab.size(400, 800)
    assert tab.ask("document.documentElement.scrollWidth") <= 400
    assert tab.ask("Math.min(...[...document.querySelectorAll('td.why')].map((one) => one.offsetWidth))") > 300
    assert tab.console == []


@pytest.mark.interop
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_of_the_status_page_stands_out_from_its_ground(
    busy: tuple[Node, str, str], tab: Tab, scheme: str
) -> None:
    _, url, token = busy
    sign_in(tab, token)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    open_page(tab, url + "/?still=true")
    ratio, *where = tab.least_contrast()
    assert ratio >= 4.5, where


@pytest.mark.interop
@needs_chromium
def test_the_box_and_the_buttons_of_the_pages_work_in_a_browser(busy: tuple[Node, str, str], tab: Tab) -> None:
    node, url, token = busy
    with node.queue.transaction():
        dead = node.queue.complete_study(node.queue.results((), 1)[0].study)
        node.queue.give_up_job(dead.id, "its process ended (signal 9)")
    sign_in(tab, token)
    open_page(tab, url + "/find")
    tab.ask("document.getElementById('text').value = '.00017.2026'")
    tab.click(".find button")
    tab.wait("document.querySelectorAll('tbody tr').length === 1", 20)
    assert tab.ask("location.href") == url + "/find"  # what was searched for is in no URL
    assert tab.ask("document.querySelector('tbody a[href$=review]').textContent") == "review"
    tab.open(url + "/?still=true")
    tab.wait("document.querySelector('form[action*=retry] button') !== null", 20)
    tab.click("form[action*=retry] button")
    tab.wait(f"location.href === {json.dumps(url + '/')}", 20)
    assert node.queue.job(dead.id).state != "dead"


def test_a_reviewer_finds_a_study_by_its_accession_number_and_a_reader_does_not(
    site: Site,
    tmp_path: Path,
) -> None:
    study = make_study(tmp_path / "study", wish="review")
    store(site.node, study)
    number, uid = site.result("held"), study_of(study)
    found = site.ask("POST", "/find", "reviewer", data={"text": "acc-55"})
    assert f'<a href="/results/{number}/review">review</a>' in found.text
    assert "ACC-55-QX" in found.text
    assert "ACC-55-QX" in site.ask("GET", "/", "reviewer").text
    assert "Nothing was found" in site.ask("POST", "/find", "reviewer", data={"text": "acc-56"}).text
    for text in ("ACC-55", NAME, PATIENT_ID):
        assert "Nothing was found" in site.ask("POST", "/find", "read", data={"text": text}).text
    assert "ACC-55" not in site.ask("GET", "/", "admin").text
    told = site.ask("GET", "/", "read").text + site.ask("GET", "/metrics", "reviewer").text
    told += site.ask("POST", "/find", "read", data={"text": uid[-9:]}).text
    assert f"/studies/{uid}" in told
    assert "ACC-55" not in told
    trail = (site.node.folder / "audit.jsonl").read_text()
    assert '"searched"' in trail
    assert "acc-55" not in trail.lower()
    for path in site.node.folder.rglob("*"):
        if path.is_file() and path.suffix != ".dcm":
            assert b"ACC-55" not in path.read_bytes(), path.name


def test_a_study_is_found_by_the_number_of_its_result_and_before_it_has_one(site: Site, tmp_path: Path) -> None:
    first = make_study(tmp_path / "first", wish="review")
    store(site.node, first)
    number = site.result("held")
    page = site.ask("POST", "/find", "read", data={"text": str(number)}).text
    assert f"/studies/{study_of(first)}" in page
    late = make_study(tmp_path / "late", wish="hang")
    store(site.node, late)
    wait_until(lambda: site.node.queue.counts()["jobs"].get("working") == 1)
    page = site.ask("POST", "/find", "read", data={"text": study_of(late)}).text
    assert re.search(rf"/studies/{re.escape(study_of(late))}.*working", page)
    assert site.ask("POST", "/find", "read", data={"text": "x" * 65}).status_code == 422


def test_the_pages_offer_each_role_what_it_may_do(site: Site, tmp_path: Path) -> None:
    held, nothing = (make_study(tmp_path / wish, wish=wish) for wish in ("review", "nothing"))
    for study in (held, nothing):
        store(site.node, study)
    wait_until(lambda: site.node.queue.counts()["results"] == {"held": 1, "not processed": 1})
    make_dead(site.node)
    for role, offered in (("read", set()), ("reviewer", {"/review"}), ("admin", {"/reprocess", "/retry"})):
        text = site.ask("GET", "/?still=true", role).text
        found = "".join(
            site.ask("POST", "/find", role, data={"text": str(study_of(study))}).text for study in (held, nothing)
        )
        for page, most in ((text, offered), (found, offered - {"/retry"})):
            assert {end for end in ("/review", "/reprocess", "/retry") if f'{end}"' in page} == most, role


def test_a_search_that_finds_more_studies_than_a_page_shows_says_so(tmp_path: Path) -> None:
    with running(write_site(tmp_path, 1)) as node:
        part = make_busy(node)[0][:20]
        assert f"Found: {RESULTS} studies" in find_page(node, part, READER)
        with node.queue.transaction():
            node.queue.record_instances(f"{part}.99999", 3)
        page = find_page(node, part, READER)
    assert "Found: more than 50 studies" in page
    assert "50 of them are shown; search for a longer text." in page


def test_a_site_names_its_own_hint_and_one_that_shows_no_identity_has_none(tmp_path: Path) -> None:
    token, line = new_token("Rossi^Anna", ["reviewer"])
    (tmp_path / "tokens").write_text(line + "\n")
    told = {}
    for name, key in (("own", 'find_by = ["PatientID"]'), ("nobody", "show_identity = false")):
        folder = tmp_path / name
        folder.mkdir()
        with pacs(folder / "pacs") as peer, running(write_site(folder, peer.port, node=key)) as node:
            store(node, make_study(folder / "study", wish="review"))
            wait_until(lambda node=node: node.queue.counts()["results"].get("held") == 1)
            with serve(node, HttpConfig(tmp_path / "tokens", port=0)) as server:
                one = Site(node, f"http://127.0.0.1:{server.port}", {"reviewer": token}, folder)
                told[name] = one.ask("POST", "/find", "reviewer", data={"text": PATIENT_ID}).text
    assert PATIENT_ID in told["own"]
    assert "Patient ID" in told["own"]
    assert "Nothing was found" in told["nobody"]
    path = write_site(tmp_path, 104, node='find_by = ["PatientIdent"]')
    with pytest.raises(UsageError, match="find_by has 'PatientIdent'; DICOM keywords"):
        read_site(path)


@pytest.mark.parametrize(("rule", "said"), [("deliver_ungated = true", True), ("", False)])
def test_the_page_names_the_rules_whose_results_may_go_out_unjudged(rule: str, said: bool, tmp_path: Path) -> None:
    with running(write_site(tmp_path, 1, rule=rule)) as node:
        assert ("deliver_ungated is set for any" in status_page(node, READER)) is said


def test_the_top_line_counts_who_waits_and_how_long_and_the_worst_stands_first(tmp_path: Path) -> None:
    path = write_site(tmp_path, free_port())  # nobody listens there
    with running(path) as node:
        assert "Nothing waits." in status_page(node, READER)
        store(node, make_study(tmp_path / "away"))
        wait_until(lambda: node.deliveries.outages())
        for number, (state, verdict, hours) in enumerate([("held", "review", 50), ("rejected", "reject", 3)], start=1):
            study = f"1.2.826.0.1.{number}"
            with node.queue.transaction() as db:
                node.queue.record_instances(study, 3)
                job = node.queue.complete_study(study)
                new = NewResult("any", f"{study}.1", f"{job.id}-1/one", state, verdict, REASON, study)
                node.queue.finish_job(job.id, [new])
                db.execute("UPDATE results SET created = created - ? WHERE study = ?", (hours * 3600 + 60, study))
                db.execute("UPDATE deliveries SET created = created - 900")
        make_dead(node)
        page = html.unescape(status_page(node, READER))
    assert (
        "Waiting: 2 results for a reviewer, the longest for 2 d 2 h; 1 delivery for a destination, for 30 min." in page
    )
    lines = [
        "1 dead letter waits for an administrator.",
        "pacs cannot be reached since",
        "1.2.826.0.1.2",
        "1.2.826.0.1.1",
    ]
    assert sorted(lines, key=page.index) == lines
    assert re.search(
        r"pacs cannot be reached since \d\d:\d\d \(\d+ s\); 1 delivery waits\. .* refused the connection", page
    )
    (row,) = re.findall(r"<tr><td[^>]*>pacs</td>.*?</tr>", page, re.DOTALL)
    cells = re.findall(r'<td[^>]*data-name="(.*?)">(.*?)</td>', row, re.DOTALL)
    assert dict(cells) | {"since": "", "age": ""} == {
        "destination": "pacs", "state": "cannot be reached", "since": "", "age": "", "waiting": "1", "the longest": "30 min",
    }  # fmt: skip
    assert "refused the connection" in row


def test_a_destination_that_failed_before_the_node_began_does_not_seem_to_fail_since_then(tmp_path: Path) -> None:
    path = write_site(tmp_path, free_port())
    with running(path) as node:
        store(node, make_study(tmp_path / "away"))
        wait_until(lambda: [sent.attempts for sent in node.queue.deliveries(["pending"])] > [0])
    with running(path) as node:
        wait_until(lambda: node.deliveries.outages())
        assert "pacs cannot be reached since before" in status_page(node, READER)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (7140, "1 h 59 min"),
        (82_800, "23 h"),
        (180_000, "2 d 2 h"),
        (1e6, "11 d"),
    ],
)
def test_an_age_is_told_in_words(seconds: float, words: str) -> None:
    assert age(seconds) == words
