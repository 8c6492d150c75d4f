"""A node with its real worker talks to nobody but the peers of its site, and names the patient nowhere but in DICOM objects."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
from nodes import pacs, wait_until
from own_network import own_network
from ports import free_port
from pydicom import dcmread

from dicom_io.dicomize import dicomize
from dicom_io.net.destination import parse_destination
from dicom_io.net.exchange import send
from dicom_io.volume import Provenance, Volume
from monai_unet_app.service.tokens import new_token

pytestmark = pytest.mark.slow

IDENTITY = {
    "PatientName": "Quintessenza^Ottavia",
    "PatientID": "Q-774-KX",
    "PatientBirthDate": "19310717",
    "AccessionNumber": "ACC-55-QX",
}
SITE = """
[node]
folder = "node"
port = {port}
stable_s = 3
[[rules]]
name = "hippocampus"
bundle = "{bundle}"
deliver_ungated = true
match = {{Modality = "MR"}}
formats = ["seg", "sr"]
destinations = ["pacs"]
notice = true
[destinations.pacs]
host = "127.0.0.1"
port = {pacs}
ae_title = "PACS"
[http]
tokens = "tokens"
port = {http}
"""


def test_no_address_but_the_sites_and_no_name_but_in_the_objects(
    tiny_bundle: Callable[[], Path], crop: Volume, tmp_path: Path
) -> None:
    whole, gappy = (_named_series(crop, tmp_path / "in", case_id) for case_id in ("one", "two"))
    sorted(gappy.glob("*.dcm"))[9].unlink()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    port, http = free_port(), free_port()
    made = {role: new_token(role, [role]) for role in ("metrics", "submit", "read", "admin")}
    made["reviewer"] = new_token("Lang^Eva", ["reviewer"])
    (tmp_path / "tokens").write_text("".join(line + "\n" for _, line in made.values()))
    api = _HttpApi(f"http://127.0.0.1:{http}", {role: token for role, (token, _) in made.items()})
    with own_network() as packets_sent, pacs(tmp_path / "pacs") as peer:
        pacs_port = peer.port
        site = tmp_path / "site.toml"
        site.write_text(SITE.format(port=port, bundle=tiny_bundle(), pacs=pacs_port, http=http))
        with (tmp_path / "log").open("w") as log:
            node = subprocess.Popen(
                [sys.executable, "-m", "monai_unet_app", "node", "--config", str(site)],
                stdout=log, stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": str(Path(__file__).parent / "guard"),
                    "EGRESS_LOG": str(tmp_path / "egress"),
                    "TMPDIR": str(temporary),
                    "HOME": str(tmp_path / "home"),
                },
            )  # fmt: skip
        try:
            wait_until(lambda: "ready" in (tmp_path / "log").read_text(), 240)
            files = [path for series in (whole, gappy) for path in sorted(series.glob("*.dcm"))]
            sent = send(parse_destination(f"MONAIUNET@127.0.0.1:{port}"), files)
            assert {one.state for one in sent} == {"sent"}
            wait_until(lambda: len(list((tmp_path / "pacs").rglob("*.dcm"))) == 3, 240)
            _uploaded_and_looked_at(api, _zipped(_named_series(crop, tmp_path / "in", "three")))
            time.sleep(1)
        finally:
            node.send_signal(signal.SIGTERM)
            assert node.wait(60) == 0
        assert packets_sent() == 0  # what native code sends is seen here
    objects = [dcmread(path) for path in (tmp_path / "pacs").rglob("*.dcm")]
    assert sorted(one.Modality for one in objects) == ["OT", "SEG", "SEG", "SR", "SR"]
    for one in objects:
        assert one.PatientName == IDENTITY["PatientName"]
        assert not any(value in str(one.get("ImageComments")) for value in (*IDENTITY.values(), "Quintessenza"))
    _talked_only_to(tmp_path / "egress", pacs_port)
    shutil.rmtree(tmp_path / "pacs")
    shutil.rmtree(tmp_path / "in")
    _names_nobody(tmp_path)


@dataclass
class _HttpApi:
    """The HTTP API of the node, and a token for each role."""

    url: str
    tokens: dict[str, str]

    def ask(self, method: str, path: str, role: str, **words: Any) -> requests.Response:
        return requests.request(
            method, self.url + path, headers={"Authorization": f"Bearer {self.tokens[role]}"}, timeout=120, **words
        )


def _zipped(series: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in series.glob("*.dcm"):
            archive.write(path, path.name)
    return stream.getvalue()


def _uploaded_and_looked_at(api: _HttpApi, study: bytes) -> None:
    """A study by HTTP, and every page on it; the patient's name is on no page but the reviewer's."""
    submitted = api.ask("POST", "/studies", "submit", data=study)
    (uid,) = submitted.json()["studies"]

    def results() -> list[dict[str, Any]]:
        return [
            result
            for version in api.ask("GET", f"/studies/{uid}", "read").json()["versions"]
            for result in version["results"]
        ]

    wait_until(lambda: [result["state"] for result in results()] == ["delivered"], 240)
    (number,) = (result["id"] for result in results())
    pages = [
        submitted,
        api.ask("GET", "/metrics", "metrics"),
        api.ask("GET", "/", "read"),
        api.ask("GET", "/openapi.json", "read"),
    ]
    pages += [
        api.ask("GET", path, "read") for path in (f"/studies/{uid}", f"/results/{number}", "/results/999", "/nothing")
    ]
    assert {page.status_code for page in pages} == {200, 202, 404}
    for page in pages:
        assert not any(value in page.text for value in (*IDENTITY.values(), "Quintessenza")), page.url
    assert "Quintessenza" in api.ask("GET", f"/results/{number}/review", "reviewer").text


def _named_series(crop: Volume, folder: Path, case_id: str) -> Path:
    """The folder of a series with the identity, in a study of its own."""
    series = dicomize(replace(crop, provenance=Provenance("nifti")), folder / case_id, case_id=case_id).series_folder
    for path in series.glob("*.dcm"):
        instance = dcmread(path)
        for keyword, value in IDENTITY.items():
            setattr(instance, keyword, value)
        instance.save_as(path)
    return series


def _talked_only_to(log: Path, port: int) -> None:
    """Connections went to the destination alone, and no name was looked up: numbers of this machine need nobody."""
    lines = set(log.read_text().splitlines())
    connected = {line for line in lines if not line.startswith("socket.getaddrinfo")}
    assert connected == {f"socket.connect (('127.0.0.1', {port}),)"}  # the guard sees the sender, and nothing else
    own = {f"socket.getaddrinfo ('127.0.0.1', {number})" for number in (0, port)} | {"socket.getaddrinfo (None, 0)"}
    assert lines - connected <= own


def _names_nobody(folder: Path) -> None:
    kept = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".dcm"]
    assert {"log", "node.sqlite", "audit.jsonl"} <= {path.name for path in kept}
    for value in (*IDENTITY.values(), "Quintessenza"):
        for path in folder.rglob("*"):
            assert value not in str(path)
        for path in kept:
            if folder / "node" / "reviews" not in path.parents:
                assert value.encode() not in path.read_bytes(), path.name
