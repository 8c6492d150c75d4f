"""Asking for storage commitment: what an archive keeps is what its report lists, and no report is waited for without end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import commitment_peers
import pydicom
import pytest
from commitment_peers import (
    MR_IMAGE_STORAGE,
    OURS,
    PUSH_MODEL,
    WELL_KNOWN,
    Requestor,
    action,
    asked_for,
    items,
    provider,
    uid,
)
from net_peers import CT_IMAGE_STORAGE, Archive, destination
from ports import free_port
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt

from dicom_io.errors import NetworkError, UnreadableFileError
from dicom_io.net.commitment_provider import CommitmentProvider, CommitmentRequest, commitment_report, send_report
from dicom_io.net.commitment_user import ReportListener, request_commitment
from dicom_io.net.destination import Destination, DestinationError, Dimse, parse_destination
from dicom_io.net.dimse_n import RequestRefusedError
from dicom_io.net.exchange import commit
from dicom_io.net.instance_store import InstanceStore
from dicom_io.net.scp import Listen, Provider

slices, store = commitment_peers.slices, commitment_peers.store  # fixtures


def test_what_we_sent_is_committed_over_the_same_association(store: InstanceStore, slices: list[Path]) -> None:
    with provider(store, {}) as port:
        found = commit(destination(port), slices, wait_s=10)
    assert found.is_complete
    assert found.committed == tuple(uid(k) for k in range(3))
    assert (found.peer, found.unreported) == (f"ARCHIVE@127.0.0.1:{port}", ())


def test_an_archive_that_reports_to_our_address_is_heard_there(store: InstanceStore, slices: list[Path]) -> None:
    ours = free_port()
    addresses = {"MONAIUNET": Destination("us", Dimse("127.0.0.1", ours, "MONAIUNET", "ARCHIVE"), answer_s=5)}
    listen = Listen("MONAIUNET", port=ours, senders=("ARCHIVE",))
    with provider(store, addresses) as port, ReportListener().listening(listen) as reports:
        assert request_commitment(destination(port), slices, reports=reports, wait_s=10).is_complete


def test_a_provider_that_listens_already_takes_the_reports(store: InstanceStore, slices: list[Path]) -> None:
    reports = ReportListener()
    with Provider(None, Listen("MONAIUNET", port=0), services=[reports.service]) as listening:
        addresses = {"MONAIUNET": Destination("us", Dimse("127.0.0.1", listening.port, "MONAIUNET", "ARCHIVE"))}
        with provider(store, addresses) as port:
            assert request_commitment(destination(port), slices, reports=reports, wait_s=10).is_complete
            stale = commitment_report(asked_for((CT_IMAGE_STORAGE, uid(0)), transaction="1.2.999"), store)
            with pytest.raises(NetworkError, match=r"0x0115 \(Failure: Invalid Argument Value\)"):
                send_report(addresses["MONAIUNET"], stale)


def test_one_node_may_ask_and_be_asked_on_one_port(store: InstanceStore, slices: list[Path]) -> None:
    reports, kept = ReportListener(), list[CommitmentRequest]()
    commitments = CommitmentProvider(store, {}, kept.append)
    with Provider(store, OURS, services=[commitments.service, reports.service]) as node:
        assert Requestor().ask(node.port, action("1.2.3", (CT_IMAGE_STORAGE, uid(0)))) == 0x0000
        with reports.expecting("1.2.4") as expected:
            send_report(
                destination(node.port),
                commitment_report(asked_for((CT_IMAGE_STORAGE, uid(0)), transaction="1.2.4"), store),
            )
    assert len(kept) == 1
    assert len(expected) == 1


def test_what_the_archive_does_not_have_is_named(store: InstanceStore, slices: list[Path], tmp_path: Path) -> None:
    dataset = pydicom.dcmread(slices[0])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.9"
    dataset.save_as(tmp_path / "other.dcm")
    with provider(store, {}) as port:
        found = request_commitment(destination(port), [*slices, tmp_path / "other.dcm"], wait_s=10)
    assert not found.is_complete
    assert found.failed == {"1.2.9": "0x0112 (Failure: No Such SOP Instance)"}
    assert len(found.committed) == 3


def test_an_archive_that_never_reports_is_not_waited_for_without_end(store: InstanceStore, slices: list[Path]) -> None:
    with provider(store, {}, accepted=lambda request: None) as port:
        started = time.monotonic()
        found = request_commitment(destination(port), slices, wait_s=0.5)
        assert time.monotonic() - started < 5
        with ReportListener().listening(Listen("MONAIUNET", port=0)) as reports:
            again = request_commitment(destination(port), slices[:1], reports=reports, wait_s=0.5)
    assert (found.committed, found.failed) == ((), {})
    assert found.unreported == tuple(uid(k) for k in range(3))
    assert again.unreported == (uid(0),)


class _Liar:
    """An archive that reports what it likes."""

    def __init__(self, report: Callable[[Dataset], Dataset]) -> None:
        self._report = report

    @contextmanager
    def running(self) -> Iterator[int]:
        ae = AE("ARCHIVE")
        ae.network_timeout = ae.dimse_timeout = ae.acse_timeout = 10
        ae.add_supported_context(PUSH_MODEL)
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_ACTION, self._act)])
        try:
            yield server.socket.getsockname()[1]
        finally:
            ae.shutdown()

    def _act(self, event: Any) -> tuple[int, None]:
        report = self._report(event.action_information)
        threading.Timer(0.2, event.assoc.send_n_event_report, (report, 1, PUSH_MODEL, WELL_KNOWN)).start()
        return 0x0000, None


def test_only_what_the_report_lists_with_its_class_and_not_as_failed_is_committed(slices: list[Path]) -> None:
    def report(asked: Dataset) -> Dataset:
        found = action(asked.TransactionUID, (CT_IMAGE_STORAGE, uid(0)), (MR_IMAGE_STORAGE, uid(1)))
        found.ReferencedSOPSequence += items((CT_IMAGE_STORAGE, uid(2)), (CT_IMAGE_STORAGE, "1.2.9"))
        found.FailedSOPSequence = items((CT_IMAGE_STORAGE, uid(2)))
        found.FailedSOPSequence[0].FailureReason = 0x0110
        return found

    with _Liar(report).running() as port:
        found = request_commitment(destination(port), slices, wait_s=5)
    assert found.committed == (uid(0),)
    assert found.unreported == (uid(1),)
    assert list(found.failed) == [uid(2)]


def test_a_report_on_another_transaction_is_not_taken_for_ours(slices: list[Path]) -> None:
    def report(asked: Dataset) -> Dataset:
        return action("1.2.999", *((CT_IMAGE_STORAGE, uid(k)) for k in range(3)))

    with _Liar(report).running() as port:
        found = request_commitment(destination(port), slices, wait_s=1)
    assert found.committed == ()
    assert len(found.unreported) == 3


def test_an_archive_that_refuses_the_request_is_quoted(store: InstanceStore, slices: list[Path]) -> None:
    def refuse(request: CommitmentRequest) -> None:
        raise RequestRefusedError(0x0213, "too many requests")

    message = r"commitment request with 0x0213 \(Failure: Resource Limitation\)"
    with provider(store, {}, accepted=refuse) as port, pytest.raises(NetworkError, match=message):
        request_commitment(destination(port), slices)


def test_an_archive_without_storage_commitment_is_named(slices: list[Path]) -> None:
    message = r"accepts none of the proposed services \(Storage Commitment Push Model"
    with Archive().running() as archive, pytest.raises(NetworkError, match=message):
        request_commitment(destination(archive.port), slices)


def test_what_cannot_be_asked_is_refused_before_anybody_is_called(tmp_path: Path, slices: list[Path]) -> None:
    nobody = destination(free_port())
    with pytest.raises(ValueError, match="no file was given"):
        commit(nobody, [])
    (tmp_path / "text.dcm").write_text("not DICOM")
    with pytest.raises(UnreadableFileError):
        commit(nobody, [tmp_path / "text.dcm"])
    with pytest.raises(DestinationError, match="speaks DICOMweb, which has no storage commitment"):
        commit(parse_destination("http://127.0.0.1/dicom-web"), slices)


def test_the_role_of_the_provider_is_proposed_for_a_report(store: InstanceStore) -> None:
    seen: list[Any] = []
    ae = AE("SENDER")
    ae.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
    handlers: list[Any] = [
        (evt.EVT_ACCEPTED, lambda event: seen.append(dict(event.assoc.requestor.role_selection))),
        (evt.EVT_N_EVENT_REPORT, lambda event: (0x0000, None)),
    ]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        there = Destination("sender", Dimse("127.0.0.1", server.socket.getsockname()[1], "SENDER"))
        send_report(there, commitment_report(asked_for((CT_IMAGE_STORAGE, uid(0))), store))
    finally:
        ae.shutdown()
    expected = build_role(PUSH_MODEL, scp_role=True)
    (role,) = seen[0].values()
    assert (role.scu_role, role.scp_role) == (expected.scu_role, expected.scp_role) == (False, True)
