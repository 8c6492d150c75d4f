"""The patches do what they should; and each test named "unpatched" shows that pynetdicom itself still needs its patch.

When an unpatched test fails after an update of pynetdicom, remove the patch from `dicom_io.net.pynetdicom_patches`.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from net_peers import Certificates, ct_series, destination, make_certificates
from pynetdicom import AE, build_context, evt, transport
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_ECHO, C_STORE, N_EVENT_REPORT
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from dicom_io.errors import NetworkError
from dicom_io.net import scu
from dicom_io.net.association import open_association, presentation_context
from dicom_io.net.destination import Destination, Dimse
from dicom_io.net.exchange import send
from dicom_io.net.limits import Limits
from dicom_io.net.pynetdicom_patches import (
    LimitedDimseProvider,
    ReactorCheckpoint,
    limit_association,
    limit_read_time,
    read_at_most,
)
from dicom_io.net.scp import Listen, Provider
from dicom_io.net.tls import server_context

VERIFICATION, PUSH_MODEL = "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"
CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "keys")


@contextmanager
def unpatched_server(*, tls: ssl.SSLContext | None = None, most: int = 10) -> Iterator[ThreadedAssociationServer]:
    """pynetdicom's own server for C-ECHO."""
    ae = AE("ARCHIVE")
    ae.maximum_associations = most
    ae.acse_timeout = ae.network_timeout = 10
    ae.add_supported_context(VERIFICATION)
    server = ae.start_server(("127.0.0.1", 0), block=False, ssl_context=tls)
    assert server is not None
    try:
        yield server
    finally:
        server.shutdown()


# --- an association that is rejected at once ---------------------------------------------------------------------------


@pytest.fixture
def rejecting() -> Iterator[int]:
    """Port of a server that knows another title."""
    ae = AE("ARCHIVE")
    ae.require_called_aet = True
    ae.add_supported_context(VERIFICATION)
    server = ae.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    yield server.socket.getsockname()[1]
    server.shutdown()


def wake_late(event: Any) -> None:
    """Holds the thread that asked until the other side has answered and hung up."""
    end = time.monotonic() + 10
    while event.assoc.dul.is_alive() and time.monotonic() < end:
        time.sleep(0.01)


LATE: list[Any] = [(evt.EVT_REQUESTED, wake_late)]


def test_unpatched_association_that_is_rejected_at_once_counts_as_never_connected(rejecting: int) -> None:
    ae = AE()
    association = ae.associate("127.0.0.1", rejecting, [build_context(VERIFICATION)], "SOMEONE", evt_handlers=LATE)
    assert association.is_aborted
    assert not association.is_rejected
    assert association.acceptor.primitive is None


@pytest.mark.parametrize("handlers", [LATE, []], ids=["at once", "later"])
def test_a_rejected_association_says_why_however_soon_the_answer_comes(rejecting: int, handlers: list[Any]) -> None:
    wrong = Destination("wrong", Dimse("127.0.0.1", rejecting, "SOMEONE"))
    with (
        pytest.raises(NetworkError, match=r"rejected the association .*Called AE title not recognised"),
        open_association(wrong, [presentation_context(VERIFICATION)], handlers=handlers),
    ):
        pass


# --- the checkpoint of the reactor ------------------------------------------------------------------------------------


class LateEvent(threading.Event):
    """An event that holds a thread back in the moment after it has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.passed, self.go_on = threading.Event(), threading.Event()
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        is_set = super().wait(timeout)
        self.passed.set()
        self.go_on.wait(10)
        return is_set


def test_unpatched_reactor_counts_as_paused_and_still_takes_a_message() -> None:
    association, taken = Association(AE(), "requestor"), threading.Event()
    checkpoint = association._reactor_checkpoint = LateEvent()
    association.dimse.get_msg = lambda block=False: (taken.set(), (None, None))[1]  # type: ignore
    thread = threading.Thread(target=association._run_reactor, daemon=True)
    thread.start()
    assert checkpoint.passed.wait(10)
    checkpoint.clear()
    assert association._is_paused  # so every `send_*` method takes the reactor for stopped
    checkpoint.go_on.set()
    assert taken.wait(10)
    thread.join(10)


@pytest.mark.usefixtures("hasty")
def test_the_thread_stands_still_whenever_it_was_stopped() -> None:
    rounds, ended = [0], threading.Event()

    def run() -> None:
        while not ended.is_set():
            checkpoint.wait()
            rounds[0] += 1

    thread = threading.Thread(target=run, daemon=True)
    checkpoint = ReactorCheckpoint(thread)
    thread.start()
    for _ in range(500):
        checkpoint.clear()
        before = rounds[0]
        time.sleep(0.0002)
        assert rounds[0] == before
        checkpoint.set()
        time.sleep(0.0002)
    assert rounds[0] > 100
    ended.set()
    thread.join(5)


def test_a_thread_that_has_ended_is_not_waited_for() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    checkpoint = ReactorCheckpoint(thread)
    checkpoint.clear()
    assert not checkpoint.is_set()
    assert not checkpoint.wait(0.01)


@pytest.mark.usefixtures("hasty")
def test_no_answer_is_lost_of_many_requests(tmp_path: Path) -> None:
    files = ct_series(tmp_path / "ct", 60)
    with Provider(tmp_path / "store", Listen("ARCHIVE", port=0)) as provider:
        peer = Destination("peer", Dimse("127.0.0.1", provider.port, "ARCHIVE"), answer_s=5.0)
        assert {outcome.state for outcome in send(peer, files)} == {"sent"}
        with open_association(peer, [presentation_context(VERIFICATION, ["1.2.840.10008.1.2"])]) as opened:
            assert isinstance(opened.association._reactor_checkpoint, ReactorCheckpoint)
            answers = [opened.request(lambda association: association.send_c_echo()).Status for _ in range(300)]
        assert set(answers) == {0}


# --- the DIMSE provider -----------------------------------------------------------------------------------------------


def fragments(size: int) -> list[P_DATA]:
    """A C-STORE request with a data set of so many bytes, but for its last fragment."""
    request = C_STORE()
    request.MessageID, request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = 1, CT, "1.2.3"
    request.Priority, request.DataSet = 2, BytesIO(b"\0" * size)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    return list(message.encode_msg(1, 16_382))[:-1]


def kept_bytes(dimse: DIMSEServiceProvider, size: int) -> int:
    for fragment in fragments(size):
        dimse.receive_primitive(fragment)
    assert dimse.message is not None
    assert dimse.message.data_set is not None
    return len(dimse.message.data_set.getvalue())


def test_unpatched_provider_keeps_a_data_set_of_any_size_in_memory() -> None:
    association = Association(AE(), "acceptor")
    assert kept_bytes(DIMSEServiceProvider(association), 2**24) > 2**24 - 2**15
    limited = LimitedDimseProvider(association, Limits(instance_bytes=2**20), lambda: "")
    assert kept_bytes(limited, 2**24) == 0


def report_answer() -> N_EVENT_REPORT:
    answer = N_EVENT_REPORT()
    answer.MessageIDBeingRespondedTo, answer.Status = 1, 0x0000
    return answer


def test_unpatched_provider_puts_answers_to_reports_among_the_requests() -> None:
    association = Association(AE(), "acceptor")
    unpatched, limited = DIMSEServiceProvider(association), LimitedDimseProvider(association, Limits(), lambda: "")
    for dimse in (unpatched, limited):
        dimse.msg_queue.put((1, report_answer()))
    assert unpatched.get_msg()[1] is not None
    assert limited.get_msg()[1] is None


def senders_of_fragments(make: Any) -> list[str]:
    """The threads whose fragments leave, in order, when a second thread sends after the first fragment of another."""
    association, order = Association(AE(), "acceptor"), list[str]()
    dimse = make(association)
    association.requestor.maximum_length = 16_382  # type: ignore[misc]

    def echo() -> C_ECHO:
        request = C_ECHO()
        request.MessageID, request.AffectedSOPClassUID = 2, VERIFICATION
        return request

    second = threading.Thread(target=lambda: dimse.send_msg(echo(), 3), name="second")

    def note(primitive: Any) -> None:
        order.append(threading.current_thread().name)
        if len(order) == 1:
            second.start()
            second.join(0.5)

    association.dul.send_pdu = note  # type: ignore[method-assign]
    request = C_STORE()
    request.MessageID, request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = 1, CT, "1.2.3"
    request.Priority, request.DataSet = 2, BytesIO(b"\0" * 50_000)
    first = threading.Thread(target=lambda: dimse.send_msg(request, 1), name="first")
    first.start()
    for thread in (first, second):
        thread.join(10)
    return order


def test_unpatched_provider_mixes_the_fragments_of_two_messages() -> None:
    mixed = senders_of_fragments(DIMSEServiceProvider)
    assert mixed[:3] == ["first", "second", "first"]
    whole = senders_of_fragments(lambda association: LimitedDimseProvider(association, Limits(), lambda: ""))
    assert whole == [*["first"] * (len(whole) - 1), "second"]


@pytest.mark.parametrize(("is_patched", "is_still_paused"), [(False, False), (True, True)])
def test_unpatched_association_runs_on_after_a_report_although_another_thread_has_paused_it(
    is_patched: bool, is_still_paused: bool
) -> None:
    association = Association(AE(), "requestor")
    association.bind(evt.EVT_N_EVENT_REPORT, lambda event: (0x0000, None))
    context = build_context(PUSH_MODEL)
    context.context_id, context.result = 1, 0
    context._as_scu, context._as_scp = True, True
    association._accepted_cx = {1: context}
    if is_patched:
        limit_association(association)
    association.dul.send_pdu = lambda primitive: None  # type: ignore[method-assign]
    report = N_EVENT_REPORT()
    report.MessageID, report.EventTypeID = 1, 1
    report.AffectedSOPClassUID, report.AffectedSOPInstanceUID = PUSH_MODEL, "1.2.840.10008.1.20.1.1"
    report.EventInformation = BytesIO(b"")
    association._is_paused = True  # as another thread has waited for
    association._serve_request(report, 1)
    assert association._is_paused is is_still_paused


# --- the connection ---------------------------------------------------------------------------------------------------


class CountedSocket:
    """A connection that has as many bytes as anybody wants."""

    def __init__(self) -> None:
        self.calls = 0

    def recv(self, count: int) -> bytes:
        self.calls += 1
        return b"\0" * count

    def recv_into(self, view: memoryview) -> int:
        self.calls += 1
        return len(view)


def test_unpatched_connection_reads_in_small_pieces() -> None:
    unpatched, patched = CountedSocket(), CountedSocket()
    transport = AssociationSocket.__new__(AssociationSocket)
    transport.socket = unpatched  # type: ignore[assignment]
    assert len(transport.recv(65_536)) == len(read_at_most(patched, 65_536)) == 65_536  # type: ignore[arg-type]
    assert unpatched.calls >= 16
    assert patched.calls == 1


def test_unpatched_connection_waits_for_the_gigabytes_that_a_pdu_announces() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0.3)
        theirs.sendall(b"x" * 100)
        transport = AssociationSocket.__new__(AssociationSocket)
        transport.socket = ours
        with pytest.raises(TimeoutError):
            transport.recv(2**32 - 1)
        with pytest.raises(OSError, match="4294967295 bytes is announced"):
            read_at_most(ours, 2**32 - 1)


def test_unpatched_connections_have_no_time_limit_and_delay_small_messages() -> None:
    seen: list[tuple[float | None, int]] = []

    def note(event: Any) -> None:
        connection = event.assoc.dul.socket.socket
        seen.append((connection.gettimeout(), connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        limit_association(event.assoc)
        limit_read_time(event.assoc, 7.0)
        seen.append((connection.gettimeout(), connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))

    with unpatched_server() as server:
        ae = AE()
        ae.network_timeout = ae.dimse_timeout = ae.acse_timeout = ae.connection_timeout = 10
        ae.add_requested_context(VERIFICATION)
        port = int(server.server_address[1])
        association = ae.associate("127.0.0.1", port, evt_handlers=[(evt.EVT_CONN_OPEN, note)])
        assert association.is_established
        association.release()
    assert seen[0] == (None, 0)
    assert seen[1][0] == 7.0
    assert seen[1][1] != 0


# --- the server -------------------------------------------------------------------------------------------------------


def test_unpatched_server_lets_a_silent_tls_caller_keep_everybody_out(certificates: Certificates) -> None:
    with unpatched_server(tls=server_context(certificates.server)) as server:
        port = int(server.server_address[1])
        peer = destination(port, tls=certificates.client, connect_s=1.0)
        assert scu.echo(peer) >= 0
        with socket.create_connection(("127.0.0.1", port)):
            time.sleep(0.2)
            with pytest.raises(NetworkError):
                scu.echo(peer)


def test_unpatched_server_counts_silent_callers_as_associations() -> None:
    with unpatched_server(most=1) as server:
        port = int(server.server_address[1])
        with socket.create_connection(("127.0.0.1", port)):
            time.sleep(0.2)
            with pytest.raises(NetworkError, match="Local limit exceeded"):
                scu.echo(destination(port))


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """The contexts of a server, and those of each connection to it."""
    pairs: list[tuple[Any, Any]] = []

    def noted(contexts: Any) -> Any:
        pairs.append((contexts, deepcopy(contexts)))
        return pairs[-1][1]

    monkeypatch.setattr(transport, "deepcopy", noted)
    return pairs


def test_unpatched_server_copies_each_context_for_each_connection(copied: list[tuple[Any, Any]]) -> None:
    with unpatched_server() as server:
        scu.echo(destination(int(server.server_address[1])))
    ((ours, theirs),) = copied
    assert [str(context) for context in theirs] == [str(context) for context in ours]
    assert theirs[0] is not ours[0]


def test_connections_share_the_contexts_and_each_has_a_list_of_its_own(
    copied: list[tuple[Any, Any]], tmp_path: Path
) -> None:
    with Provider(tmp_path, Listen("ARCHIVE", port=0)) as provider:
        before = [str(context) for context in provider._server.contexts]  # type: ignore[union-attr]
        for _ in range(2):
            scu.echo(destination(provider.port))
    for ours, theirs in copied:
        assert [id(context) for context in theirs] == [id(context) for context in ours]
        assert theirs is not ours
        assert [str(context) for context in theirs] == before
    assert len(copied) == 2


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever pynetdicom collects the garbage of the whole program."""
    made: list[int] = []
    monkeypatch.setattr(transport.gc, "collect", lambda: made.append(1))
    return made


def test_unpatched_server_collects_garbage_although_nobody_calls(collections: list[int]) -> None:
    with unpatched_server() as server:
        for _ in range(61):
            server.service_actions()
    assert collections


def test_garbage_is_collected_after_calls_and_until_the_last_has_ended(collections: list[int], tmp_path: Path) -> None:
    """A long association that is given up leaves as much as it had received."""

    def wait() -> int:
        for _ in range(200):
            server.service_actions()
        return len(collections)

    with Provider(tmp_path, Listen("ARCHIVE", port=0)) as provider:
        server: Any = provider._server
        assert wait() == 0
        with open_association(destination(provider.port), [presentation_context(VERIFICATION)]):
            assert wait() == 3  # one in 60 rounds
        while server.active_associations:
            time.sleep(0.01)
        assert wait() == 4
        assert wait() == 4
        assert server.connections.is_idle
        assert not server.connections._associations  # which would keep what the last of them had received


# --- logs -------------------------------------------------------------------------------------------------------------


def test_unpatched_pynetdicom_logs_identifiers() -> None:
    program = "from pynetdicom import _config; print(_config.LOG_REQUEST_IDENTIFIERS, _config.LOG_RESPONSE_IDENTIFIERS)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["True", "True"]
