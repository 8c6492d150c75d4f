"""Storage commitment with an archive that others wrote, asking it and being asked by it; and dcmtk before a full provider."""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pydicom
import pytest
from net_peers import CT_IMAGE_STORAGE, ct_series
from orthanc import Orthanc, orthanc, program

from dicom_io.net.commitment_provider import CommitmentProvider
from dicom_io.net.commitment_user import ReportListener, request_commitment
from dicom_io.net.destination import Destination, Dimse
from dicom_io.net.exchange import send
from dicom_io.net.instance_store import InstanceStore
from dicom_io.net.limits import Limits
from dicom_io.net.scp import Listen, Provider
from monai_unet_app.cli import main

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return ct_series(tmp_path_factory.mktemp("files") / "ct", 4)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("archive") / "orthanc") as running:
        yield running


def node(archive: Orthanc) -> Destination:
    return Destination("archive", Dimse("127.0.0.1", archive.port, "ORTHANC"), answer_s=30)


def rest(archive: Orthanc, path: str, body: object = None) -> Any:
    """Orthanc's own interface, below the URL that its DICOMweb plugin has."""
    address = archive.web.removesuffix("/dicom-web") + path
    content = None if body is None else json.dumps(body).encode()
    with urlopen(Request(address, content), timeout=30) as answer:
        return json.load(answer)


def uids(files: list[Path]) -> list[str]:
    return [str(pydicom.dcmread(file).SOPInstanceUID) for file in files]


def test_orthanc_commits_itself_to_what_it_has(archive: Orthanc, slices: list[Path]) -> None:
    assert {one.state for one in send(node(archive), slices[:3])} == {"sent"}
    listen = Listen("MONAIUNET", port=archive.move_port, senders=("ORTHANC",))
    with ReportListener().listening(listen) as reports:
        found = request_commitment(node(archive), slices[:3], reports=reports, wait_s=30)
        assert found.is_complete, found
        found = request_commitment(node(archive), slices, reports=reports, wait_s=30)
    assert list(found.committed) == uids(slices[:3])
    assert list(found.failed) == uids(slices[3:])
    assert found.failed[uids(slices)[3]].startswith("0x0112")


def test_send_with_commit_hears_orthanc_where_it_knows_us(
    archive: Orthanc, slices: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Orthanc reports over an association of its own, to the address that it knows for our AE title."""
    files = slices[:3]
    words = ["pacs", "send", "--to", f"ORTHANC@127.0.0.1:{archive.port}", "--commit", "--json", *map(str, files)]
    try:
        assert main([*words, "--listen", str(archive.move_port)]) == 0
        found = json.loads(capsys.readouterr().out)["commitment"]
        assert (found["committed"], found["failed"], found["unreported"]) == (uids(files), {}, [])
        assert main([*words, "--wait-s", "1"]) == 1
        assert json.loads(capsys.readouterr().out)["commitment"]["unreported"] == uids(files)
    finally:
        logging.disable(logging.NOTSET)  # `main` silences the log


def test_orthanc_is_told_what_we_have(archive: Orthanc, slices: list[Path], tmp_path: Path) -> None:
    store = InstanceStore(tmp_path / "store")
    for path in slices[:2]:
        store.put(path.read_bytes())
    back = replace(node(archive), peer=Dimse("127.0.0.1", archive.port, "ORTHANC", "MONAIUNET"))
    service = CommitmentProvider(store, {"ORTHANC": back}).service
    with Provider(store, Listen("MONAIUNET", port=archive.move_port, senders=("ORTHANC",)), services=[service]):
        wanted = [[CT_IMAGE_STORAGE, uid] for uid in uids(slices)]
        transaction = rest(archive, "/modalities/us/storage-commitment", {"DicomInstances": wanted})["ID"]
        deadline = time.monotonic() + 30
        while (report := rest(archive, f"/storage-commitment/{transaction}"))["Status"] == "Pending":
            assert time.monotonic() < deadline, report
            time.sleep(0.1)
    assert report["Status"] == "Failure"
    assert sorted(one["SOPInstanceUID"] for one in report["Success"]) == sorted(uids(slices[:2]))
    assert {one["SOPInstanceUID"]: one["FailureReason"] for one in report["Failures"]} == dict.fromkeys(
        uids(slices[2:]), 0x0112
    )


def storescu(port: int, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [program("storescu"), "-v", "-aec", "MONAIUNET", "127.0.0.1", str(port), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_dcmtk_s_storescu_is_told_that_there_is_no_room(slices: list[Path], tmp_path: Path) -> None:
    with Provider(tmp_path / "in", Listen(port=0, limits=Limits(instances=2))) as provider:
        stored = storescu(provider.port, *slices)
    assert "Refused: OutOfResources" in stored.stdout + stored.stderr
    assert len(list((tmp_path / "in").rglob("*.dcm"))) == 2


def test_dcmtk_s_storescu_from_elsewhere_is_rejected(slices: list[Path], tmp_path: Path) -> None:
    with Provider(tmp_path / "in", Listen(port=0, networks=("192.0.2.0/24",))) as provider:
        stored = storescu(provider.port, slices[0])
    assert stored.returncode != 0
    assert "Calling AE Title Not Recognized" in stored.stdout + stored.stderr
    assert list((tmp_path / "in").rglob("*.dcm")) == []
