"""Review pages of a node: made while a browser waits, with their PDF, compared with the patient's earlier result."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
import requests
from pypdf import PdfReader
from ward import PATIENT, Ward, ward

from monai_unet_app.service import reviews
from monai_unet_app.service.pages import ReviewPages

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*"}


@pytest.fixture
def without_bundle(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The worker of these tests has no bundle: pages are made without one. Gives what `monai-unet review` was called with."""
    run, called = reviews._run, []

    def run_without(words: list[str]) -> str:
        if "--bundle" not in words:  # a decision
            return run(words)
        called.append(words)
        at = words.index("--bundle")
        return run([*words[:at], *words[at + 2 :]])

    monkeypatch.setattr(reviews, "_run", run_without)
    return called


def open_as_browser(place: Ward, number: int, who: str = "rossi") -> tuple[str, int]:
    """The review page as a browser comes to it, and how often it was told to wait."""
    for waits in range(600):
        token = {"Authorization": f"Bearer {place.tokens[who]}", **BROWSER}
        answer = requests.get(f"{place.url}/results/{number}/review", headers=token, timeout=60)
        if answer.status_code != 202:
            return answer.text, waits
        assert "is being made" in answer.text
        assert 'http-equiv="refresh"' in answer.text
        assert "Berger" not in answer.text
        time.sleep(0.2)
    raise AssertionError("the page was never made")


def test_a_browser_is_told_that_the_page_is_being_made_and_gets_its_pdf(
    tmp_path: Path, without_bundle: list[list[str]]
) -> None:
    with ward(tmp_path) as place:
        number = place.study(tmp_path / "study", "review")
        text, waits = open_as_browser(place, number)
        assert waits >= 1
        assert "Berger, Anna" in text
        assert 'href="review.pdf"' in text
        assert len(without_bundle) == 1  # however often it was asked for
        answer = place.ask("GET", f"/results/{number}/review.pdf", "rossi")
        assert answer.headers["Content-Type"] == "application/pdf"
        assert "Berger" not in answer.headers["Content-Disposition"]
        assert "Berger, Anna" in PdfReader(io.BytesIO(answer.content)).pages[0].extract_text()
        assert place.ask("GET", f"/results/{number}/review.pdf", "admin").status_code == 403
        trail = (place.node.folder / "audit.jsonl").read_text()
        assert '"file": "review.pdf"' in trail or '"file":"review.pdf"' in trail


def test_a_result_on_what_came_of_an_incomplete_series_has_a_page_too(
    tmp_path: Path, without_bundle: list[list[str]]
) -> None:
    with ward(tmp_path, to='["pacs"]\nallow_incomplete = true') as place:
        number = place.study(tmp_path / "study", "review", ImagesInAcquisition=99)
        text, _ = open_as_browser(place, number)
        assert "Berger, Anna" in text


def test_a_page_that_cannot_be_made_says_why_instead_of_waiting(tmp_path: Path) -> None:
    with ward(tmp_path) as place:  # its rule names a bundle that is not there
        number = place.study(tmp_path / "study", "review")
        text, _ = open_as_browser(place, number)
        assert "none" in text
        assert "detail" in text


def test_the_last_earlier_result_of_the_same_patient_is_compared_with_and_nobody_elses(
    tmp_path: Path, without_bundle: list[list[str]]
) -> None:
    def study(name: str, wish: str = "", **header: object) -> int:
        return place.study(tmp_path / name, wish, **{"PatientBirthDate": "19550214", **header})

    with ward(tmp_path) as place:
        study("first", StudyDate="20240101")
        last = study("last", StudyDate="20250101")
        study("namesake", StudyDate="20250601", PatientID="PID-4712")
        study("another birthday", StudyDate="20250601", PatientBirthDate="19550215")
        study("later", StudyDate="20270101")
        study("held", "review", StudyDate="20250701")
        rejected = study("rejected", StudyDate="20250801")
        assert place.decide(rejected, "rejected").status_code == 200
        now = study("now", "review", StudyDate="20260301")
        text, _ = open_as_browser(place, now)
        folder = place.node.queue.result(last).folder
        assert folder in without_bundle[0][without_bundle[0].index("--prior") + 1]
        assert "Both are of the same patient, by the ID and the date of birth" in text
        assert "intervals overlap" in text
        pages = ReviewPages(place.node)
        nobody = study("nobody", "review", StudyDate="20260301", PatientID="")
        assert pages.earlier(place.node.queue.result(nobody)) is None
        assert pages.earlier(place.node.queue.result(last)).id != last
        assert PATIENT["PatientID"] not in (place.node.folder / "audit.jsonl").read_text()
