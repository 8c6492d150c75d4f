"""A game day: things go wrong at a live node; the right alert reaches the right person, its runbook helps, nothing is lost.

Prometheus and Alertmanager are real; an hour of the rules is a minute of the game.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from challenged import CHAMPION, NEXT, arrived, challenged_site, name_models, study_by
from conftest import REPOSITORY
from nodes import pacs, study_of, wait_until
from ports import free_ports
from pydicom import dcmread
from pydicom.uid import KeyObjectSelectionDocumentStorage

from dicom_io.net.destination import parse_destination
from dicom_io.net.exchange import send
from monai_unet_app.service.tokens import new_token

pytestmark = pytest.mark.game_day
OPS, HERE = REPOSITORY / "ops", Path(__file__).parent
LONG_S = 300.0  # on a busy machine


@dataclass
class Ward:
    """A node with those who watch it.

    Attributes:
        sent: StudyInstanceUIDs of all studies that the node has accepted.
        told: (receiver, status, alert) of each message that reached somebody.
    """

    folder: Path
    port: int
    url: str
    pacs_port: int
    tokens: dict[str, str]
    sent: list[str] = field(default_factory=list)
    told: list[tuple[str, str, str]] = field(default_factory=list)

    def send(self, patient: str, wish: str = "", scanner: str = "A") -> None:
        """A study comes from a modality."""
        study = study_by(self.folder / f"in/{len(self.sent)}", patient, wish)
        for path in study.glob("*.dcm"):
            one = dcmread(path)
            one.ManufacturerModelName = scanner
            one.save_as(path)
        outcomes = send(parse_destination(f"MONAIUNET@127.0.0.1:{self.port}"), sorted(study.glob("*.dcm")))
        assert all(one.state == "sent" for one in outcomes)
        self.sent.append(str(study_of(study)))

    def ask(self, method: str, path: str, role: str, **words: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.tokens[role]}"}
        answer = requests.request(method, self.url + path, headers=headers, timeout=60, **words)
        assert answer.ok, answer.text
        return answer.json()

    def hears(self, receiver: str, status: str, alert: str) -> bool:
        """Whether somebody was told of an alert, or that it is over."""
        return (receiver, status, f"MonaiUnet{alert}") in self.told

    def all_delivered(self) -> None:
        """Waits until the archive has a result of every study, and one only that no rejection note names."""

        def found() -> Counter[str]:
            count: Counter[str] = Counter()
            for path in (self.folder / "pacs").rglob("*.dcm"):
                one = dcmread(path, stop_before_pixels=True)
                count[str(one.StudyInstanceUID)] += -1 if one.SOPClassUID == KeyObjectSelectionDocumentStorage else 1
            return count

        end = time.monotonic() + LONG_S
        while (there := found()) != Counter(self.sent) and time.monotonic() < end:
            time.sleep(0.5)
        assert there == Counter(self.sent)


def servers(ward: Ward, port: int) -> ThreadingHTTPServer:
    """Where Alertmanager's messages arrive."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            receiver = self.path.strip("/")
            ward.told.extend((receiver, one["status"], one["labels"]["alertname"]) for one in message["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    return ThreadingHTTPServer(("127.0.0.1", port), Receiver)


@contextmanager
def process(command: list[str], **env: str) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env})
    try:
        yield started
    finally:
        started.terminate()
        started.wait(60)
        if started.stdout:
            started.stdout.close()


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    folder = tmp_path_factory.mktemp("ward")
    port, http, prometheus, alerts, cluster, webhook, archive = free_ports(7)
    tokens, lines = {}, []
    for name, role in (("prometheus", "metrics"), ("Bianchi^Eva", "approver"), ("admin", "admin")):
        tokens[role], line = new_token(name, [role])
        lines.append(line)
    (folder / "tokens").write_text("\n".join(lines) + "\n")
    (folder / "metrics_token").write_text(tokens["metrics"])
    site = challenged_site(folder, archive, node=f"port = {port}")
    site.write_text(site.read_text() + f'[http]\nport = {http}\ntokens = "tokens"\n')
    subprocess.run([sys.executable, OPS / "make_alerts.py", "--game-day", "--output", folder], check=True)
    document = yaml.safe_load((OPS / "prometheus.yml").read_text())
    document["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    document["scrape_configs"][0]["static_configs"] = [
        {"targets": [f"127.0.0.1:{http}"], "labels": {"instance": "node"}}
    ]
    document["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{alerts}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(document))
    routes = (OPS / "alertmanager.yml").read_text().replace(":9099/", f":{webhook}/")
    for slow in ("group_wait: 30s", "group_wait: 10s", "group_interval: 5m"):
        routes = routes.replace(slow, f"{slow.split(':')[0]}: 1s")
    (folder / "alertmanager.yml").write_text(routes)
    library = folder / "faults.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    here = Ward(folder, port, f"http://127.0.0.1:{http}", archive, tokens)
    paths = os.pathsep.join(str(REPOSITORY / "tests" / room) for room in ("service", "", "dicom_io"))
    env = {"PYTHONPATH": paths, "LD_PRELOAD": str(library), "GAME": str(folder)}
    receiver = servers(here, webhook)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    with ExitStack() as stack:
        node = stack.enter_context(process([sys.executable, str(HERE / "run_ward.py"), str(site)], **env))
        assert node.stdout is not None
        assert node.stdout.readline() == "ready\n"
        stack.enter_context(process(["prometheus-alertmanager", f"--config.file={folder / 'alertmanager.yml'}",
            f"--storage.path={folder / 'alerts'}", f"--web.listen-address=127.0.0.1:{alerts}",
            f"--cluster.listen-address=127.0.0.1:{cluster}", "--log.level=error"]))  # fmt: skip
        stack.enter_context(process(["prometheus", f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{prometheus}",
            "--log.level=error"]))  # fmt: skip
        yield here
    receiver.shutdown()


def test_the_pacs_goes_away(ward: Ward) -> None:
    ward.send("1")
    wait_until(lambda: ward.hears("page", "firing", "DestinationAway"), LONG_S)
    with pacs(ward.folder / "pacs", ward.pacs_port):  # as the runbook says: call them; nothing needs to be sent again
        ward.all_delivered()
        wait_until(lambda: ward.hears("page", "resolved", "DestinationAway"), LONG_S)


def test_the_disk_is_slow(ward: Ward) -> None:
    with pacs(ward.folder / "pacs", ward.pacs_port):
        (ward.folder / "slow").touch()
        for n in range(6):
            ward.send(str(n))
        wait_until(lambda: ward.hears("page", "firing", "LateFast"), LONG_S)
        (ward.folder / "slow").unlink()  # the runbook: look at the disk
        ward.all_delivered()
        wait_until(lambda: ward.hears("page", "resolved", "LateFast"), LONG_S)


def test_the_clock_jumps(ward: Ward) -> None:
    with pacs(ward.folder / "pacs", ward.pacs_port):
        (ward.folder / "clock").touch()
        wait_until(lambda: ward.hears("page", "firing", "ClockJump"), LONG_S)
        ward.send("1")
        ward.all_delivered()  # waiting is measured by a clock that cannot be set
        (ward.folder / "clock").unlink()  # the runbook: mend the clock
        wait_until(lambda: ward.hears("page", "resolved", "ClockJump"), LONG_S)


def test_nobody_is_called_during_maintenance(ward: Ward) -> None:
    assert ward.ask("POST", "/maintenance", "admin", json={"minutes": 5, "reason": "game day"})["until"]
    time.sleep(4)
    before = len(ward.told)
    ward.send("1")
    time.sleep(15)
    assert "MonaiUnetDestinationAway" not in [alert for _, status, alert in ward.told[before:] if status == "firing"]
    ward.ask("POST", "/maintenance", "admin", json={"minutes": 0, "reason": "game day"})
    with pacs(ward.folder / "pacs", ward.pacs_port):
        ward.all_delivered()


def test_a_challenger_is_bad(ward: Ward) -> None:
    with pacs(ward.folder / "pacs", ward.pacs_port):
        name_models(ward.folder, CHAMPION, NEXT)
        answer = ward.ask("POST", "/models", "approver")  # there is no registry behind the names
        assert (answer["changed"], "holds no registry" in answer["kept"]) == (["any"], True)
        ward.ask("POST", "/rules/any/canary", "approver", json={"share": 0.5})
        for n in range(18):
            ward.send(str(n), "worse")
        wait_until(lambda: ward.hears("ticket", "firing", "ChallengerRolledBack"), LONG_S)
        (state,) = ward.ask("GET", "/rules/challengers", "approver")
        assert state["withdrawn"].startswith("predicted Dice: worse in")
        ward.all_delivered()
        sent = arrived(ward.folder / "pacs")["b"]
        assert len(state["sent"]) == sent  # the runbook: these are listed


def test_a_scanner_drifts(ward: Ward) -> None:
    with pacs(ward.folder / "pacs", ward.pacs_port):
        (rule,) = ward.ask("GET", "/rules/drift", "approver")
        for n in range(34 - rule["accepted"]):  # more of the same scanner could alarm by chance
            ward.send(str(n))
        ward.all_delivered()
        ward.ask("POST", "/rules/any/reference", "approver", json={"results": 30})
        for n in range(24):
            ward.send(str(n), scanner="B")
        wait_until(lambda: ward.hears("ticket", "firing", "Drift"), LONG_S)
        # the runbook: `node drift` says since when and in what
        command = [sys.executable, "-m", "monai_unet_app", "node", "drift", "--config", str(ward.folder / "site.toml")]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert said.returncode == 1
        assert "ManufacturerModelName is B in 100% of the studies, 0% before" in " ".join(said.stdout.split())
        ward.all_delivered()
