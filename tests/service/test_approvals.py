"""Decisions about models: who may take them, what is recorded, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from http_sites import Site, opened

from monai_unet_app.service.audit import entries


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with opened(tmp_path) as running:
        yield running


def record(site: Site, results: int) -> None:
    """Writes lines of results as the node does."""
    rule = site.node.site.rules[0].name
    for n in range(1, results + 1):
        seen = {"bundle": "one", "words": {"Manufacturer": "A"}, "numbers": {"size": float(n % 7)}}
        about = {"study": f"1.2.{n}", "series": f"1.2.{n}.1", "state": "sending", "verdict": "accept"}
        site.node.audit.write("result", result=n, rule=rule, observed=seen, **about)


def test_an_approver_freezes_a_reference_and_the_trail_says_who(site: Site) -> None:
    rule = site.node.site.rules[0].name
    record(site, 45)
    few = site.ask("POST", f"/rules/{rule}/reference", "approver", json={"results": 60})
    assert few.status_code == 422
    assert "45 result(s) of its bundle were accepted so far, and 60 are asked for" in few.json()["detail"]
    frozen = site.ask("POST", f"/rules/{rule}/reference", "approver", json={"results": 40})
    assert frozen.status_code == 200
    assert frozen.json() == {"rule": rule, "bundle": "one", "results": list(range(1, 41)), "who": "Bianchi^Eva"}
    (line,) = (line for line in entries(site.node.audit.path) if line["event"] == "reference frozen")
    assert line["who"] == "Bianchi^Eva"
    (state,) = site.ask("GET", "/rules/drift", "metrics").json()
    assert (state["state"], state["results"], state["reference"]["results"]) == ("steady", 45, 40)


def test_an_alarm_is_an_answer_and_no_failure(site: Site) -> None:
    record(site, 40)
    rule = site.node.site.rules[0].name
    assert site.ask("POST", f"/rules/{rule}/reference", "approver", json={"results": 40}).status_code == 200
    for n in range(41, 90):
        seen = {"bundle": "one", "words": {"Manufacturer": "B"}, "numbers": {"size": 90.0 + n}}
        about = {"study": f"1.2.{n}", "series": f"1.2.{n}.1", "state": "sending", "verdict": "accept"}
        site.node.audit.write("result", result=n, rule=rule, observed=seen, **about)
    (state,) = site.ask("GET", "/rules/drift", "approver").json()
    assert state["state"] == "drift"
    assert f'monai_unet_drift{{rule="{rule}"}}' not in site.ask("GET", "/metrics", "metrics").text
    site.node.drift.ask()  # which it does once an hour
    figures = site.ask("GET", "/metrics", "metrics").text
    assert f'monai_unet_drift{{rule="{rule}"}} 1.0' in figures
    assert f'monai_unet_drift_score{{rule="{rule}"}}' in figures
    assert "Manufacturer is B in 100% of the studies, 0% before" in state["sentence"]


def test_only_an_approver_freezes(site: Site) -> None:
    rule = site.node.site.rules[0].name
    for role in ("admin", "reviewer", "read", "submit", "metrics"):
        answer = site.ask("POST", f"/rules/{rule}/reference", role, json={"results": 40})
        assert answer.status_code == 403, role
        assert "the role approver is needed" in answer.json()["detail"]
    assert site.ask("GET", "/rules/drift", "submit").status_code == 403
    unknown = site.ask("POST", "/rules/spleen/reference", "approver", json={"results": 40})
    assert unknown.status_code == 422
    assert f"the site has no rule 'spleen'; one of {rule} is needed" in unknown.json()["detail"]
    assert not [line for line in entries(site.node.audit.path) if line["event"] == "reference frozen"]
