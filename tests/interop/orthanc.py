"""Runs other people's DICOM servers for a test: reachable from this machine only, in a folder of their own, gone after it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
DCMTK = Path("/usr/bin")  # pynetdicom brings programs of the same names beside this Python
START_S, STOP_S = 30.0, 30.0
_LISTENING = "0A"  # of /proc/net/tcp
_LOOPBACK = ("0100007F", "00000000000000000000000001000000")


@dataclass(frozen=True)
class Orthanc:
    """A running archive.

    Attributes:
        port: DIMSE; the AE title is ORTHANC.
        web: URL of its DICOMweb service.
        move_port: Where it sends to when a C-MOVE names MONAIUNET.
    """

    port: int
    web: str
    move_port: int
    log: Path


def program(name: str) -> str:
    """Path of an installed program; the test is skipped where it is absent."""
    path = DCMTK / name if name != "Orthanc" else Path(shutil.which("Orthanc", path="/usr/sbin:/usr/bin") or "/none")
    if not path.is_file():
        pytest.skip(f"{name} is not installed; `make interop` installs it")
    return str(path)


@contextmanager
def orthanc(folder: Path, **settings: Any) -> Iterator[Orthanc]:
    """An empty Orthanc with its DICOMweb plugin; `settings` are added to its configuration."""
    command = program("Orthanc")
    if not PLUGIN.is_file():
        pytest.skip("orthanc-dicomweb is not installed; `make interop` installs it")
    folder.mkdir(parents=True)
    dicom, http, move = free_ports(3)
    configuration = {
        "Name": "interop",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(PLUGIN)],
        "DicomAet": "ORTHANC",
        "DicomPort": dicom,
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomCheckCalledAet": True,
        "DicomModalities": {"us": ["MONAIUNET", "127.0.0.1", move]},
        "UnknownSopClassAccepted": True,
        "DicomAlwaysAllowGet": True,
        "ConcurrentJobs": 1,
        **settings,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with server([command, "--verbose", str(folder / "orthanc.json")], folder, [dicom, http]) as log:
        yield Orthanc(dicom, f"http://127.0.0.1:{http}/dicom-web", move, log)


@contextmanager
def server(command: list[str], folder: Path, ports: list[int]) -> Iterator[Path]:
    """Runs a server until the `with` ends and waits for its exit; gives its log.

    Fails if one of its ports can be reached from another machine.
    """
    log, shim = folder / "server.log", loopback_shim(folder)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=folder, env={**os.environ, "LD_PRELOAD": str(shim)}
        )
    try:
        _wait_until_listening(process, ports, log)
        yield log
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def loopback_shim(folder: Path) -> Path:
    """The library that keeps a program's ports on the loopback interface, compiled into `folder`."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler; `make interop` installs one")
    library = folder / "loopback.so"
    source = Path(__file__).with_name("loopback.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def listening_addresses(port: int) -> set[str]:
    """Local addresses (hexadecimal, as the kernel prints them) that listen on a port."""
    rows = []
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        rows += path.read_text().splitlines()[1:] if path.is_file() else []
    fields = [row.split() for row in rows]
    return {one[1].split(":")[0] for one in fields if one[3] == _LISTENING and int(one[1].split(":")[1], 16) == port}


def _wait_until_listening(process: subprocess.Popen[bytes], ports: list[int], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not all(listening_addresses(port) for port in ports):
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.05)
    for port in ports:
        outside = listening_addresses(port) - set(_LOOPBACK)
        assert not outside, f"port {port} can be reached from outside: {outside}"
