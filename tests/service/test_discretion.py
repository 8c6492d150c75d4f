"""A node with its real worker talks to nobody but the peers of its site, and names the patient nowhere but in DICOM objects."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from nodes import pacs, wait_until
from ports import free_port
from pydicom import dcmread

from dicom_io.dicomize import dicomize
from dicom_io.net.destination import parse_destination
from dicom_io.net.exchange import send
from dicom_io.volume import Provenance, Volume

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
match = {{Modality = "MR"}}
formats = ["seg", "sr"]
destinations = ["pacs"]
notice = true
[destinations.pacs]
host = "127.0.0.1"
port = {pacs}
ae_title = "PACS"
"""


def test_no_address_but_the_sites_and_no_name_but_in_the_objects(
    tiny_bundle: Callable[[], Path], crop: Volume, tmp_path: Path
) -> None:
    whole, gappy = (_named_series(crop, tmp_path / "in", case_id) for case_id in ("one", "two"))
    sorted(gappy.glob("*.dcm"))[9].unlink()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    port = free_port()
    with pacs(tmp_path / "pacs") as peer:
        pacs_port = peer.port
        site = tmp_path / "site.toml"
        site.write_text(SITE.format(port=port, bundle=tiny_bundle(), pacs=pacs_port))
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
            time.sleep(1)
        finally:
            node.send_signal(signal.SIGTERM)
            assert node.wait(60) == 0
    objects = [dcmread(path) for path in (tmp_path / "pacs").rglob("*.dcm")]
    assert sorted(one.Modality for one in objects) == ["OT", "SEG", "SR"]
    for one in objects:
        assert one.PatientName == IDENTITY["PatientName"]
        assert not any(value in str(one.get("ImageComments")) for value in (*IDENTITY.values(), "Quintessenza"))
    _talked_only_to(tmp_path / "egress", pacs_port)
    shutil.rmtree(tmp_path / "pacs")
    shutil.rmtree(tmp_path / "in")
    _names_nobody(tmp_path)


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
            assert value.encode() not in path.read_bytes(), path.name
