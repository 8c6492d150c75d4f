"""A peer that asks for storage commitment, and what the tests of both sides share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import TCPServer
from typing import Any

import pytest
from net_peers import SERIES, ct_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.transport import ThreadedAssociationServer

from dicom_io.net.commitment_provider import CommitmentProvider, CommitmentRequest, SopReference
from dicom_io.net.destination import Destination, Dimse
from dicom_io.net.instance_store import InstanceStore
from dicom_io.net.pynetdicom_patches import limit_association
from dicom_io.net.scp import Listen, Provider

PUSH_MODEL, WELL_KNOWN = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"  # PS3.4 J.3.5
MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
OURS = Listen("ARCHIVE", port=0, idle_s=10.0)
SOON_S = 10.0


@pytest.fixture
def slices(tmp_path: Path) -> list[Path]:
    return ct_series(tmp_path / "source", 3)


@pytest.fixture
def store(tmp_path: Path, slices: list[Path]) -> InstanceStore:
    return filled_store(tmp_path / "store", slices)


def filled_store(folder: Path, slices: list[Path]) -> InstanceStore:
    """A store that holds the slices."""
    made = InstanceStore(folder)
    for path in slices:
        made.put(path.read_bytes())
    return made


def uid(k: int) -> str:
    return f"{SERIES}.{100 + k}"


def asked_for(*references: tuple[str, str], transaction: str = "1.2.3") -> CommitmentRequest:
    return CommitmentRequest("SENDER", transaction, tuple(SopReference(*one) for one in references))


def items(*references: tuple[str, str]) -> Sequence:
    made = []
    for sop_class, instance in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        made.append(item)
    return Sequence(made)


def action(transaction: str, *references: tuple[str, str]) -> Dataset:
    made = Dataset()
    made.TransactionUID, made.ReferencedSOPSequence = transaction, items(*references)
    return made


def there(report: Dataset) -> list[str]:
    return [item.ReferencedSOPInstanceUID for item in report.get("ReferencedSOPSequence") or []]


def failed(report: Dataset) -> dict[str, int]:
    return {item.ReferencedSOPInstanceUID: item.FailureReason for item in report.get("FailedSOPSequence") or []}


def until(condition: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + SOON_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


class Requestor:
    """A peer that asks: pynetdicom as user of storage commitment, with a listener of its own.

    Attributes:
        reports: (event type, event information, whether it came over an association that the peer was called on).
        status: What it answers to reports.
        messages: The kinds of messages that came over associations of its own, in their order.
    """

    def __init__(self, *, roles: bool = True) -> None:
        self.reports: list[tuple[int, Dataset, bool]] = []
        self.messages: list[str] = []
        self.status, self._roles, self.port = 0x0000, roles, 0

    @contextmanager
    def listening(self) -> Iterator[Requestor]:
        ae = AE("SENDER")
        ae.network_timeout = ae.dimse_timeout = ae.acse_timeout = 10
        roles = {"scu_role": True, "scp_role": True} if self._roles else {}
        ae.add_supported_context(PUSH_MODEL, **roles)  # type: ignore[arg-type]
        handlers = [(evt.EVT_N_EVENT_REPORT, self._take, [True])]
        server = ThreadedAssociationServer(ae, ("127.0.0.1", 0), "SENDER", ae.supported_contexts, evt_handlers=handlers)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            TCPServer.shutdown(server)  # pynetdicom's own wants servers that the AE has started, which poll every 0.5 s
            server.server_close()
            thread.join()
            for association in ae.active_associations:
                association.abort()

    @contextmanager
    def associated(self, port: int, *more: str, together: bool = False) -> Iterator[Association]:
        """An association to a provider; `together`: it may store while a report comes, which pynetdicom may not."""
        ae = AE("SENDER")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10
        for sop_class in (PUSH_MODEL, *more):
            ae.add_requested_context(sop_class, ExplicitVRLittleEndian)
        handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, self._take, [False])]
        handlers += [(evt.EVT_DIMSE_RECV, lambda event: self.messages.append(type(event.message).__name__))]
        handlers += [(evt.EVT_CONN_OPEN, lambda event: limit_association(event.assoc))] if together else []
        association = ae.associate("127.0.0.1", port, ae_title="ARCHIVE", evt_handlers=handlers)
        assert association.is_established
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def ask(self, port: int, what: Dataset, *, action_type: int = 1, instance: str = WELL_KNOWN) -> int:
        """The status of the answer to a request over an association of its own."""
        with self.associated(port) as association:
            return ask(association, what, action_type=action_type, instance=instance)

    @property
    def addresses(self) -> dict[str, Destination]:
        return {"SENDER": Destination("sender", Dimse("127.0.0.1", self.port, "SENDER", "ARCHIVE"), answer_s=5)}

    def _take(self, event: Any, is_own: bool) -> tuple[int, None]:
        if not self.status:
            self.reports.append((event.event_type, event.event_information, is_own))
        return self.status, None


def ask(association: Association, what: Dataset, *, action_type: int = 1, instance: str = WELL_KNOWN) -> int:
    status, _ = association.send_n_action(what, action_type, PUSH_MODEL, instance)
    return int(status.Status)


@contextmanager
def provider(store: InstanceStore, addresses: dict[str, Destination], **more: Any) -> Iterator[int]:
    commitments = CommitmentProvider(store, addresses, **more)
    with Provider(store, OURS, services=[commitments.service]) as made:
        yield made.port
