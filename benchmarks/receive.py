"""How many instances of 0.5 MB a second does a provider take that says "stored" only of what is on the disk?

    python benchmarks/receive.py [--instances 200] [--rounds 5] [--folder DIR]

One sender, one association, a CT series made in a temporary folder below DIR, whose disk decides much. The sender is dcmtk's
storescu where it is installed in /usr/bin, else pynetdicom. The receivers:

- ours: `Provider`. Each instance is read to its end, its UIDs are checked, no file is ever replaced, and file and folder are
  forced to the disk before it is answered.
- pynetdicom, forced: as bare as it can be with the same promise. `encoded_dataset()` written to its place, file and folder
  forced to the disk; nothing is looked at.
- pynetdicom, not forced: the same without forcing.
- dcmtk storescp, where it is installed (and a C compiler, with which it is kept on the loopback interface): it forces
  nothing.

They receive in turns, each in a new process and an empty folder. Prints instances a second, best and median, and how many times
ours each other is. Exit code 1 if ours takes fewer than half of what pynetdicom takes with the same promise, best round against
best round, or something does not arrive: how many a second it is depends on the disk, which is asked twice for each instance.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from claims import judged
from dicom_sides import DATA, REPOSITORY, make_ct

LEAST_SHARE = 0.5
OURS, FORCED = "ours", "pynetdicom, forced"
DCMTK = Path("/usr/bin")  # pynetdicom brings programs of the same names beside this Python
TITLE = "RECEIVER"

Receiver = Callable[[Path], Any]


def main() -> int:
    """Makes a series, sends it to each receiver in turns, prints; 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to receive; its disk is what is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        series, scratch = Path(place, "series"), Path(place, "received")
        make_ct(series, options.instances, None, DATA)
        size = sum(path.stat().st_size for path in series.iterdir()) / options.instances
        print(f"{options.instances} instances of {size / 1e6:.2f} MB, sent by {sender_name()}; {options.rounds} rounds")
        found: dict[str, list[float]] = {name: [] for name in receivers(Path(place))}
        for number in range(options.rounds + 1):  # the first fills caches
            for name, receiver in receivers(Path(place)).items():
                a_second = turn(receiver, series, scratch, options.instances)
                if number:
                    found[name].append(a_second)
    return shown(found)


def receivers(scratch: Path) -> dict[str, Receiver]:
    """Who takes part: for each a `with` that receives into a folder and gives its port."""
    found: dict[str, Receiver] = {
        OURS: partial(in_own_process, ours),
        FORCED: partial(in_own_process, bare, True),
        "pynetdicom, not forced": partial(in_own_process, bare, False),
    }
    compiler = shutil.which("gcc") or shutil.which("cc")
    if (DCMTK / "storescp").is_file() and compiler:
        found["dcmtk storescp, not forced"] = partial(storescp, compiler, scratch)
    return found


def turn(receiver: Receiver, series: Path, folder: Path, count: int) -> float:
    """Instances a second, from the sender's start to its end."""
    folder.mkdir()
    try:
        with receiver(folder) as port:
            began = time.perf_counter()
            send(series, port)
            seconds = time.perf_counter() - began
        there = sum(path.is_file() for path in folder.rglob("*"))
        if there != count:
            raise SystemExit(f"{there} of {count} instances arrived")
        return count / seconds
    finally:
        shutil.rmtree(folder)


def shown(found: dict[str, list[float]]) -> int:
    """Prints a line for each; 1 if ours is too slow."""
    for name, speeds in found.items():
        best = max(speeds) / max(found[OURS])
        middle = statistics.median(them / us for them, us in zip(speeds, found[OURS], strict=True))
        times = "" if name == OURS else f"  {best:5.2f}x best {middle:5.2f}x median"
        print(f"  {name:28} best {max(speeds):6.1f}/s  median {statistics.median(speeds):6.1f}/s{times}")
    return int(not judged(f"ours / {FORCED}", max(found[OURS]) / max(found[FORCED]), LEAST_SHARE))


def sender_name() -> str:
    return "dcmtk storescu" if (DCMTK / "storescu").is_file() else "pynetdicom"


def send(series: Path, port: int) -> None:
    """Sends a folder over one association."""
    if not (DCMTK / "storescu").is_file():
        send_by_pynetdicom(series, port)
        return
    command = [DCMTK / "storescu", "+sd", "-aec", TITLE, "127.0.0.1", str(port), series]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"storescu failed: {done.stderr}")


def send_by_pynetdicom(series: Path, port: int) -> None:
    from pynetdicom import AE
    from pynetdicom.sop_class import CTImageStorage

    ae = AE()
    ae.add_requested_context(CTImageStorage)
    association = ae.associate("127.0.0.1", port, ae_title=TITLE)
    for path in sorted(series.iterdir()):
        if association.send_c_store(path).Status:
            raise SystemExit(f"{path.name} was refused")
    association.release()


@contextmanager
def in_own_process(serve: Callable[..., None], *options: Any) -> Iterator[int]:
    """Runs a receiver in a process of its own; `options` end with its folder."""
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(there, *options), daemon=True)
    process.start()
    try:
        yield here.recv()
        here.send("enough")
    finally:
        process.join(30)
        process.kill()


def ours(parent: Connection, folder: Path) -> None:
    sys.path.insert(0, str(REPOSITORY))
    from dicom_io.net.scp import Listen, Provider

    with Provider(folder, Listen(TITLE, port=0)) as provider:
        parent.send(provider.port)
        parent.recv()


def bare(parent: Connection, forced: bool, folder: Path) -> None:
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    def keep(event: Any) -> int:
        with (folder / f"{event.request.AffectedSOPInstanceUID}.dcm").open("wb") as file:
            file.write(event.encoded_dataset())
            if forced:
                file.flush()
                os.fsync(file.fileno())
        if forced:
            handle = os.open(folder, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        return 0x0000

    ae = AE(TITLE)
    ae.maximum_pdu_size = 65_536
    ae.supported_contexts = AllStoragePresentationContexts
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    parent.send(server.socket.getsockname()[1])
    parent.recv()
    server.shutdown()


@contextmanager
def storescp(compiler: str, scratch: Path, folder: Path) -> Iterator[int]:
    """dcmtk's storescp, which would bind every interface, behind a library that keeps it on loopback."""
    library = scratch / "loopback.so"
    if not library.is_file():
        source = REPOSITORY / "tests" / "interop" / "loopback.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [DCMTK / "storescp", "-aet", TITLE, "-pdu", "65536", "-od", folder, str(port)]
    process = subprocess.Popen(command, env={**os.environ, "LD_PRELOAD": str(library)}, stderr=subprocess.DEVNULL)
    try:
        _wait_until_listening(port)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("storescp does not listen")


if __name__ == "__main__":
    sys.exit(main())
