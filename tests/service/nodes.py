"""What tests of the node share: small studies, a site file, a place that results go to, and waiting."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from forks import forked
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import InstanceAvailabilityNotification

from dicom_io.net.destination import Destination, parse_destination
from dicom_io.net.exchange import send
from dicom_io.net.outcome import Outcome
from dicom_io.net.scp import Listen, Provider
from monai_unet_app.service.audit import AuditTrail
from monai_unet_app.service.hints import Hints
from monai_unet_app.service.node import SENDER, Node
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.rows import Delivery
from monai_unet_app.service.site import Site
from monai_unet_app.service.site_file import read_site
from monai_unet_app.service.status import Viewer
from monai_unet_app.service.tokens import Holder

NAME, PATIENT_ID = "Quintessenza^Ottavia", "Q-774-KX"

READER = Viewer(Hints(Path("none"), ()), Holder("reader", frozenset({"read"})))
"""Reads a page of the node, and may do nothing else."""

_PLACES = [
    str(Path(__file__).parents[1] / place) for place in ("service", "", "dicom_io", "review")
]  # as pytest has them

WORKERS = {"fake_worker", "real_worker"}

SITE = """
[node]
folder = "node"
stable_s = 1.5  # a fifth of it after the last instance that the headers tell of
first_pause_s = 0.1
longest_pause_s = 0.5
{node}
[[rules]]
name = "any"
bundle = "none"
match = {{Modality = "CT"}}
destinations = ["pacs"]
{rule}
[destinations.pacs]
host = "127.0.0.1"
port = {port}
ae_title = "PACS"
connect_s = 2.0
answer_s = 5.0
"""


def make_study(
    folder: Path, count: int = 3, *, study: str | None = None, wish: str = "", size: int = 8, tells: bool = True
) -> Path:
    """A study of one CT series of so many instances; `wish` is what a fake worker obeys.

    Its instances tell their number, so that it is complete as soon as all are there, unless a part of them is sent alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series = study or generate_uid(), generate_uid()
    for number in range(count):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, generate_uid()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.Modality = study, series, "CT"
        one.PatientName, one.PatientID, one.PatientComments = NAME, PATIENT_ID, wish
        one.PatientBirthDate, one.AccessionNumber = "19310717", "ACC-55-QX"
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness, one.InstanceNumber = [1, 1], 1, number + 1
        one.ImagesInAcquisition = count if tells else None
        one.Rows = one.Columns = size
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation, one.SamplesPerPixel = 15, 0, 1
        one.PhotometricInterpretation, one.PixelData = "MONOCHROME2", bytes(2 * size * size)
        one.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def study_of(folder: Path) -> UID:
    """StudyInstanceUID of a study's files."""
    return UID(dcmread(next(folder.glob("*.dcm"))).StudyInstanceUID)


def make_late(folder: Path, of: Path, wish: str = "") -> Path:
    """A further instance of the series of a study."""
    (path,) = make_study(folder, 1, study=study_of(of), wish=wish).glob("*.dcm")
    instance, before = dcmread(path), dcmread(next(of.glob("*.dcm")))
    instance.SeriesInstanceUID = before.SeriesInstanceUID
    instance.save_as(path)
    return folder


def write_site(folder: Path, port: int, *, node: str = "", rule: str = "") -> Path:
    """A site file with one rule and one destination, at this port of this machine."""
    path = folder / "site.toml"
    path.write_text(SITE.format(node=node, rule=rule, port=port))
    return path


def site_on_any_port(path: Path) -> Site:
    """The site, listening on a free port."""
    site = read_site(path)
    return replace(site, node=replace(site.node, port=0))


@contextmanager
def started(path: Path, worker: str = "fake_worker", *, as_usual: bool = False) -> Iterator[Node]:
    """A node with a worker of the tests, a module that its children find by their path.

    Its children are forked, see `forks`, unless they are to be started `as_usual`.
    """
    before = os.environ.get("PYTHONPATH")
    known = before.split(os.pathsep) if before else []  # by a node that runs already
    os.environ["PYTHONPATH"] = os.pathsep.join([*(one for one in _PLACES if one not in known), *known])
    try:
        fork = nullcontext() if as_usual else forked(*({worker} & WORKERS), SENDER)
        with fork, Node(site_on_any_port(path), worker=worker) as node:
            try:
                yield node
            except AssertionError as error:
                with suppress(Exception):  # a test may have broken the database
                    error.add_note(f"the queue of the node: {node.queue.counts()}, {node.queue.jobs(())}")
                raise
    finally:
        del os.environ["PYTHONPATH"]
        os.environ.update({"PYTHONPATH": before} if before else {})


@contextmanager
def running(path: Path, *, as_usual: bool = False) -> Iterator[Node]:
    """As `started`, and ready."""
    with started(path, as_usual=as_usual) as node:
        wait_until(lambda: node.is_ready)
        yield node


@contextmanager
def pacs(folder: Path, port: int = 0) -> Iterator[Provider]:
    """Takes what is sent to it."""
    with Provider(folder, Listen("PACS", port=port)) as provider:
        yield provider


def to(node: Node) -> Destination:
    """The node, as others see it."""
    return parse_destination(f"MONAIUNET@127.0.0.1:{node.provider.port}")


def store(node: Node, study: Path) -> tuple[Outcome, ...]:
    """Sends a study to the node."""
    return send(to(node), sorted(study.glob("*.dcm")))


def open_trail(path: Path) -> AuditTrail:
    """An audit trail, with a database that remembers nothing of it yet."""
    return AuditTrail(path, None, Queue(path.with_name(f"{uuid4().hex}.sqlite")))


def pending(queue: Queue) -> list[Delivery]:
    """All deliveries that are still to be made, the oldest first."""
    return queue.deliveries(["pending"])[::-1]


def wait_until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits, and fails after so long."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds:g} s it still does not hold")
        time.sleep(0.05)


def announce(node: Node, headers: list[Dataset], *more: str) -> int:
    """The status of an Instance Availability Notification for these instances, and for others of their series."""
    told = Dataset()
    told.ReferencedPerformedProcedureStepSequence = Sequence([])
    told.StudyInstanceUID, series = headers[0].StudyInstanceUID, Dataset()
    series.SeriesInstanceUID, series.ReferencedSOPSequence = headers[0].SeriesInstanceUID, Sequence([])
    for uid in (*(one.SOPInstanceUID for one in headers), *more):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = headers[0].SOPClassUID, uid
        item.InstanceAvailability, item.RetrieveAETitle = "ONLINE", "PACS"
        series.ReferencedSOPSequence.append(item)
    told.ReferencedSeriesSequence = Sequence([series])
    ae = AE("PACS")
    ae.add_requested_context(InstanceAvailabilityNotification)
    association = ae.associate("127.0.0.1", node.provider.port, ae_title="MONAIUNET")
    answer, _ = association.send_n_create(told, InstanceAvailabilityNotification, "1.2.3.4")
    association.release()
    return int(answer.Status)
