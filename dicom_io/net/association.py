"""Opens associations, bounded in time, and says in words why one did not open or did not last."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, evt, register_uid
from pynetdicom.association import Association
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import (
    AllStoragePresentationContexts,
    PresentationContext,
    StoragePresentationContexts,
)
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from dicom_io.errors import NetworkError
from dicom_io.kinds import LABEL_MAP_STORAGE
from dicom_io.net.destination import Destination, Dimse, Tls
from dicom_io.net.tls import client_context

VERIFICATION = UID("1.2.840.10008.1.1")
STUDY_ROOT_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")
STUDY_ROOT_MOVE = UID("1.2.840.10008.5.1.4.1.2.2.2")
STUDY_ROOT_GET = UID("1.2.840.10008.5.1.4.1.2.2.3")
COMMITMENT = UID("1.2.840.10008.1.20.1")
COMMITMENT_INSTANCE = UID("1.2.840.10008.1.20.1.1")
AVAILABILITY = UID("1.2.840.10008.5.1.4.33")
LABEL_MAP = UID(LABEL_MAP_STORAGE)
PARAMETRIC_MAP = UID("1.2.840.10008.5.1.4.1.1.30")
MOST_CONTEXTS = 128  # PS3.8 9.3.2.2: odd identifiers from 1 to 255
LARGEST_PDU = 65_536
_SHORTEST_IDLE_S = 60.0
_LOOK_S = 0.05

_ABORT_SOURCE = {0: "service user", 2: "service provider"}  # PS3.8 table 9-26


class Link:
    """An open association, and what is known if it breaks."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.association: Association | None = None
        self.is_connected = False
        self._abort = ""
        self._asked = time.monotonic()

    @property
    def is_open(self) -> bool:
        return self.association is not None and bool(self.association.is_established)

    def ask(self, question: Callable[[Association], Any]) -> Any:
        """Sends one request; the clock for "no answer" starts here."""
        self.restart_clock()
        if self.association is None or not self.is_open:
            raise self.broken()
        try:
            return question(self.association)
        except RuntimeError as error:  # pynetdicom: not established any more
            raise self.broken() from error

    def restart_clock(self) -> None:
        """Between two answers to one request."""
        self._asked = time.monotonic()

    def broken(self) -> NetworkError:
        """Why no answer came."""
        waited = time.monotonic() - self._asked
        if self._abort:
            found, advice = f"aborted the association ({self._abort})", "look into its log, then send again"
        elif waited >= self.destination.answer_s - 0.5:
            found, advice = (
                f"gave no answer within {self.destination.answer_s:g} s",
                "see whether it is busy; raise answer_s",
            )
        else:
            found, advice = "closed the connection without an answer", "look into its log, then send again"
        return NetworkError(f"{self.destination.label} {found}; an answer is needed; {advice}")

    def handlers(self) -> list[Any]:
        return [(evt.EVT_CONN_OPEN, self._bound_reading), (evt.EVT_PDU_RECV, self._note_abort)]

    def _bound_reading(self, event: Any) -> None:
        """Without this a peer that stops in the middle of a message is waited for without end."""
        self.is_connected = True
        event.assoc.dul.socket.socket.settimeout(self.destination.answer_s)

    def _note_abort(self, event: Any) -> None:
        if isinstance(event.pdu, A_ABORT_RQ):
            self._abort = f"by its {_ABORT_SOURCE.get(event.pdu.source or 0, 'unknown part')}"


class Checkpoint:
    """Stops pynetdicom's own thread while we wait for an answer, in place of the event that it brings.

    With the event there is a moment in which both read what comes in: the thread that has just passed it still counts as
    stopped. Under load it takes an answer for a request now and then, and the request waits in vain. Here `clear` returns
    only when the thread stands still.
    """

    def __init__(self, association: threading.Thread) -> None:
        self._thread, self._condition = association, threading.Condition()
        self._is_open, self._stands = True, False

    def set(self) -> None:
        """The thread may go on."""
        with self._condition:
            self._is_open = True
            self._condition.notify_all()

    def clear(self) -> None:
        """The thread must stop; it has, or has ended, when this returns."""
        with self._condition:
            self._is_open = False
            while not self._stands and self._thread.is_alive() and threading.current_thread() is not self._thread:
                self._condition.wait(_LOOK_S)

    def wait(self, timeout: float | None = None) -> bool:
        """Called by the thread in each of its rounds."""
        with self._condition:
            self._stands = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._is_open, timeout)
            self._stands = False
            return self._is_open

    def is_set(self) -> bool:
        """Whether the thread may go on."""
        return self._is_open


@contextmanager
def associated(
    destination: Destination,
    contexts: Sequence[PresentationContext],
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[Any] = (),
) -> Iterator[Link]:
    """An open association, released at the end, aborted after an error.

    Args:
        destination: Its peer speaks DIMSE.
        contexts: At most 128.
        roles: Role selections, for C-GET.
        handlers: pynetdicom's (event, function) pairs.

    Raises:
        NetworkError: It could not be opened; the message says why.
    """
    link = _opened(destination, contexts, roles, handlers)
    try:
        yield link
    except BaseException:
        if link.association is not None and link.is_open:
            link.association.abort()
        raise
    if link.association is not None and link.is_open:
        link.association.release()


def context(abstract_syntax: str, transfer_syntaxes: Sequence[str]) -> PresentationContext:
    """One proposal: a service with the encodings that may be used for it."""
    found = PresentationContext()
    found.abstract_syntax = UID(abstract_syntax)
    found.transfer_syntax = [UID(uid) for uid in transfer_syntaxes]
    return found


def storage_classes() -> list[str]:
    """SOP Class UIDs of everything that can be stored: today's, retired ones, and Label Map Segmentation."""
    known = (*StoragePresentationContexts, *AllStoragePresentationContexts)
    return list(dict.fromkeys([*(str(one.abstract_syntax) for one in known), LABEL_MAP]))


def usual_classes() -> list[str]:
    """The SOP Class UIDs that one association has room for beside one other: pynetdicom's choice, and results."""
    common = (str(one.abstract_syntax) for one in StoragePresentationContexts)
    return list(dict.fromkeys([LABEL_MAP, PARAMETRIC_MAP, *common]))[: MOST_CONTEXTS - 1]


def prepared_ae(our_ae_title: str) -> AE:
    """An application entity of pynetdicom that logs no identifier and knows Label Map Segmentation."""
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False  # they hold names of patients
    if not issubclass(uid_to_service_class(LABEL_MAP), StorageServiceClass):  # pynetdicom before 3.0.2
        register_uid(LABEL_MAP, "LabelMapSegmentationStorage", StorageServiceClass)
    return AE(our_ae_title)


def dimse_peer(destination: Destination) -> Dimse:
    """The peer of a destination that speaks DIMSE."""
    if not isinstance(destination.peer, Dimse):
        raise TypeError(f"{destination.label} does not speak DIMSE")
    return destination.peer


def checked_status(link: Link, status: Dataset) -> int:
    """The status of an answer. Raises NetworkError if none came."""
    if "Status" not in status:
        raise link.broken()
    return int(status.Status)


def _opened(
    destination: Destination,
    contexts: Sequence[PresentationContext],
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation],
    handlers: Sequence[Any],
) -> Link:
    peer, link = dimse_peer(destination), Link(destination)
    ae = prepared_ae(peer.our_ae_title)
    ae.connection_timeout = ae.acse_timeout = destination.connect_s
    ae.dimse_timeout = destination.answer_s
    ae.network_timeout = max(destination.answer_s, _SHORTEST_IDLE_S)
    tls_args = (client_context(peer.tls), peer.host) if peer.tls else None
    started = time.monotonic()
    for address in _addresses(destination, peer):
        association = ae.associate(
            address,
            peer.port,
            contexts=list(contexts),
            ae_title=peer.ae_title,
            max_pdu=LARGEST_PDU,
            ext_neg=list(roles),
            tls_args=tls_args,
            evt_handlers=[*link.handlers(), *handlers],
        )
        if association.is_established:
            association._reactor_checkpoint = Checkpoint(association)  # type: ignore[assignment]
            link.association = association
            return link
        if link.is_connected:
            break
    raise _not_opened(destination, peer, association, time.monotonic() - started)


def _addresses(destination: Destination, peer: Dimse) -> list[str]:
    """All addresses of the host, in the order in which they should be tried; "localhost" has two."""
    try:
        found = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NetworkError(
            f"{destination.label}: the host name is not known here ({getattr(error, 'strerror', None) or 'no name'}); a host "
            "that can be reached is needed; check name and network"
        ) from error
    return list(dict.fromkeys(str(one[4][0]) for one in found))


def _not_opened(destination: Destination, peer: Dimse, association: Association, waited_s: float) -> NetworkError:
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        return NetworkError(
            f"{destination.label} rejected the association ({answer.result_str}: {answer.reason_str}); an accepted one is "
            f"needed; let it know our AE title {peer.our_ae_title} and this machine, and check the AE title that we call"
        )
    if association.rejected_contexts:
        names = ", ".join(dict.fromkeys(UID(str(one.abstract_syntax)).name for one in association.rejected_contexts))
        return NetworkError(
            f"{destination.label} accepts none of what was proposed ({names}); one accepted service is needed; check what "
            "it allows our AE title to do"
        )
    return NetworkError(f"{destination.label} {_why_closed(destination, peer, waited_s)}")


def _why_closed(destination: Destination, peer: Dimse, waited_s: float) -> str:
    """Calls once more without DICOM, since pynetdicom keeps the reason for itself."""
    answering = "a DICOM node that answers is needed; check host, port and whether it runs"
    try:
        with socket.create_connection((peer.host, peer.port), timeout=destination.connect_s) as plain:
            if peer.tls is not None:
                _shake_hands(plain, peer.tls, peer.host)
    except ssl.SSLCertVerificationError as error:
        return (
            f"has a certificate that is not accepted ({error.verify_message}); one of our authorities that names "
            f"{peer.host} is needed; check ca and host"
        )
    except ssl.SSLError as error:
        return (
            f"broke off TLS ({error.reason or 'no reason given'}); a TLS node that accepts our certificate is needed; check "
            "certificate, key and port"
        )
    except ConnectionRefusedError:
        return f"refused the connection; {answering}"
    except TimeoutError:
        return f"did not answer within {destination.connect_s:g} s; {answering}"
    except OSError as error:
        return f"cannot be reached ({error.strerror or type(error).__name__}); {answering}"
    if waited_s >= destination.connect_s - 0.5:
        return (
            f"took the connection and was silent for {destination.connect_s:g} s; {answering}, and whether it wants TLS"
        )
    return f"took the connection and closed it without an answer; {answering}, and whether it wants TLS"


def _shake_hands(plain: socket.socket, tls: Tls, host: str) -> None:
    with client_context(tls).wrap_socket(plain, server_hostname=host) as secret:
        secret.settimeout(1.0)
        try:
            secret.recv(1)  # with TLS 1.3 the refusal of our certificate comes after the handshake
        except TimeoutError:
            return
