"""Alerts, boards and their runbooks: checked by Prometheus' and Alertmanager's own tools, and against a node that runs."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from challenged import challenged_site, study_by
from conftest import REPOSITORY
from nodes import pacs, running, store, wait_until
from ports import free_port

from monai_unet_app.service.http_api import serve
from monai_unet_app.service.site import HttpConfig
from monai_unet_app.service.tokens import new_token

pytestmark = pytest.mark.mlops
OPS = REPOSITORY / "ops"
BOARDS = ("management", "on_call", "debugging")
_METRIC = re.compile(r"\b(monai_unet_[a-z0-9_]+|up)\b")


def made(name: str) -> Any:
    """The module of a file in `ops`."""
    spec = importlib.util.spec_from_file_location(name, OPS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def told(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_is_committed_is_what_the_programs_write(tmp_path: Path) -> None:
    for program in ("make_alerts", "make_boards"):
        told(sys.executable, OPS / f"{program}.py", "--output", tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_text() == (OPS / path.name).read_text(), path.name


def test_each_alert_fires_and_stays_silent_in_its_tests_and_has_a_runbook() -> None:
    told("promtool", "check", "rules", OPS / "rules.yml")
    told("promtool", "test", "rules", OPS / "rules_test.yml", OPS / "rules_long_test.yml")
    tests = [
        test["alert_rule_test"][0]
        for name in ("rules_test.yml", "rules_long_test.yml")
        for test in yaml.safe_load((OPS / name).read_text())["tests"]
    ]
    alerts = yaml.safe_load((OPS / "rules.yml").read_text())["groups"][1]["rules"]
    sections = re.findall(r"^## (\w+)$", (REPOSITORY / "docs/runbooks.md").read_text(), re.MULTILINE)
    assert sections == [alert["annotations"]["runbook_url"].partition("#")[2] for alert in alerts]
    for alert in alerts:
        asked = [bool(test["exp_alerts"]) for test in tests if test["alertname"] == alert["alert"]]
        assert sorted(asked) == [False, True], alert["alert"]


def test_a_test_of_an_alert_can_fail(tmp_path: Path) -> None:
    rules = (OPS / "rules.yml").read_text()
    (tmp_path / "rules_test.yml").write_text((OPS / "rules_test.yml").read_text())
    (tmp_path / "rules.yml").write_text(rules.replace("monai_unet_ready == 0", "monai_unet_ready == 2"))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "rules_test.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "MonaiUnetNotReady" in done.stdout + done.stderr


def test_pages_and_tickets_go_to_whom_they_should() -> None:
    config = OPS / "alertmanager.yml"
    told("amtool", "check-config", config)
    for severity, receiver in (("page", "page"), ("ticket", "ticket"), ("none", "nobody")):
        assert receiver in told("amtool", "config", "routes", "test", f"--config.file={config}", f"severity={severity}")


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Prometheus that has scraped a node with a challenger, after a study."""
    folder = tmp_path_factory.mktemp("live")
    token, line = new_token("prometheus", ["metrics"])
    (folder / "tokens").write_text(line + "\n")
    (folder / "metrics_token").write_text(token)
    config = HttpConfig(folder / "tokens", port=0)
    with (
        pacs(folder / "pacs") as peer,
        running(challenged_site(folder, peer.port)) as node,
        serve(node, config) as server,
    ):
        node.drift.rules = [
            {
                "rule": "any",
                "reference": {"results": 40},
                "state": "steady",
                "score": 1.0,
                "expected_dice": {"mean": 0.9, "bias": 0.0},
            }
        ]
        store(node, study_by(folder / "study", "1"))
        wait_until(lambda: node.queue.counts()["results"].get("delivered"))
        port = free_port()
        document = yaml.safe_load((OPS / "prometheus.yml").read_text())
        document["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        document["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(document))
        (folder / "rules.yml").write_text((OPS / "rules.yml").read_text())
        told("promtool", "check", "config", folder / "prometheus.yml")
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--storage.tsdb.retention.time=400d",
                "--log.level=error",
            ]
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(url, 'up{job="monai_unet"} == 1'), 60)
            time.sleep(2.5)
            yield url
        finally:
            process.terminate()
            process.wait(20)


def answers(url: str, query: str) -> list[Any]:
    """What Prometheus answers; nothing while it does not listen."""
    with contextlib.suppress(requests.ConnectionError):
        answer = requests.get(f"{url}/api/v1/query", {"query": query}, timeout=10)
        assert answer.status_code in (200, 503), answer.text
        return list(answer.json()["data"]["result"]) if answer.status_code == 200 else []
    return []


def test_every_query_of_boards_and_alerts_names_metrics_that_a_node_has(scraped: str) -> None:
    queries = [
        target["expr"]
        for board in BOARDS
        for panel in json.loads((OPS / f"{board}.json").read_text())["panels"]
        for target in panel["targets"]
    ]
    rules = [rule for group in yaml.safe_load((OPS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    assert len(queries) > 35
    for query in [*queries, *(rule["expr"] for rule in rules)]:
        told("promtool", "query", "instant", scraped, query)  # it parses
        for name in _METRIC.findall(re.sub(r"monai_unet:[a-z:0-9]+", "", query)):
            assert answers(scraped, name), f"{name} of {query}"
        for name in re.findall(r"monai_unet:[a-z:0-9]+", query):
            assert name in recorded
    assert not answers(scraped, 'ALERTS{alertstate="firing"}')


def test_a_node_has_few_series_and_names_no_study(scraped: str) -> None:
    series = requests.get(f"{scraped}/api/v1/series", {"match[]": '{job="monai_unet"}'}, timeout=10).json()["data"]
    assert 100 < len(series) < 2000
    labels = {value for one in series for value in one.values()}
    assert not [value for value in labels if re.search(r"[0-9]+([.][0-9]+){4,}", value) or "QX" in value]
