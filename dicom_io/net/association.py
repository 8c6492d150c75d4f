"""Opens associations, bounded in time, and explains why an association did not open or did not last."""

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, ParametricMapStorage
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext, StoragePresentationContexts

from dicom_io.errors import NetworkError
from dicom_io.kinds import LABEL_MAP_STORAGE
from dicom_io.net.destination import Destination, Dimse, Tls
from dicom_io.net.pynetdicom_patches import answer_to_request, limit_read_time, quiet_logs, use_safe_checkpoint
from dicom_io.net.tls import client_context

VERIFICATION = UID("1.2.840.10008.1.1")
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
MOST_CONTEXTS = 128  # PS3.8 9.3.2.2: odd identifiers from 1 to 255
LARGEST_PDU = 65_536
_SHORTEST_IDLE_S = 60.0
_MARGIN_S = 0.5  # a wait that ended so much before its time limit ended because of it

_ABORT_SOURCE = {0: "service user", 2: "service provider"}  # PS3.8 table 9-26


class OpenAssociation:
    """An association that we requested, and the facts that explain why it broke.

    Attributes:
        association: From the moment at which it is open.
        is_connected: Whether the peer took the connection.
    """

    association: Association

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.is_connected = False
        self._abort = ""
        self._asked_at_s = time.monotonic()

    @property
    def is_open(self) -> bool:
        return bool(self.association.is_established)

    def request(self, send: Callable[[Association], Any]) -> Any:
        """Sends one request; the time limit of its answer starts now."""
        self.restart_clock()
        if not self.is_open:
            raise self.broken()
        try:
            return send(self.association)
        except RuntimeError as error:  # pynetdicom: the association is no longer established
            raise self.broken() from error

    def restart_clock(self) -> None:
        """Starts the time limit anew, between two answers to one request."""
        self._asked_at_s = time.monotonic()

    def checked_status(self, status: Dataset) -> int:
        """The status of an answer. Raises NetworkError if no answer came."""
        if "Status" not in status:
            raise self.broken()
        return int(status.Status)

    def broken(self) -> NetworkError:
        """The error that says why no answer came."""
        waited_s, limit_s = time.monotonic() - self._asked_at_s, self.destination.answer_s
        advice = "see its log, then send again"
        if self._abort:
            problem = f"aborted the association ({self._abort})"
        elif waited_s >= limit_s - _MARGIN_S:
            problem, advice = f"gave no answer within {limit_s:g} s", "check whether it is busy, or raise answer_s"
        else:
            problem = "closed the connection without an answer"
        return NetworkError(f"{self.destination.label} {problem}; an answer is needed; {advice}")

    def handlers(self) -> list[Any]:
        """pynetdicom's (event, function) pairs that keep this object up to date."""
        return [(evt.EVT_CONN_OPEN, self._note_connection), (evt.EVT_PDU_RECV, self._note_abort)]

    def _note_connection(self, event: Any) -> None:
        self.is_connected = True
        limit_read_time(event.assoc, self.destination.answer_s)

    def _note_abort(self, event: Any) -> None:
        if isinstance(event.pdu, A_ABORT_RQ):
            self._abort = f"by its {_ABORT_SOURCE.get(event.pdu.source or 0, 'unknown part')}"


@contextmanager
def open_association(
    destination: Destination,
    contexts: Sequence[PresentationContext],
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[Any] = (),
) -> Iterator[OpenAssociation]:
    """An association, released at the end, aborted after an error.

    Args:
        destination: Its peer speaks DIMSE.
        contexts: At most 128.
        roles: Role selections, for C-GET.
        handlers: pynetdicom's (event, function) pairs.

    Raises:
        NetworkError: The association could not be opened; the message says why.
    """
    opened = _request_association(destination, contexts, roles, handlers)
    try:
        yield opened
    except BaseException:
        # Not released: the peer may still be sending, and a release waits for its answer.
        if opened.is_open:
            opened.association.abort()
        raise
    opened.association.release()


def presentation_context(abstract_syntax: str, transfer_syntaxes: Sequence[str] = UNCOMPRESSED) -> PresentationContext:
    """A proposal: a SOP class with the transfer syntaxes that may be used for it."""
    return build_context(abstract_syntax, [*transfer_syntaxes])


def storage_classes() -> list[str]:
    """SOP Class UIDs of everything that can be stored, retired classes included."""
    known = (*StoragePresentationContexts, *AllStoragePresentationContexts)
    return list(dict.fromkeys(str(context.abstract_syntax) for context in known))


def common_storage_classes() -> list[str]:
    """As many SOP Class UIDs as fit into an association with one further context: those of results, then pynetdicom's list."""
    common = (str(context.abstract_syntax) for context in StoragePresentationContexts)
    return list(dict.fromkeys([LABEL_MAP_STORAGE, ParametricMapStorage, *common]))[: MOST_CONTEXTS - 1]


def application_entity(our_ae_title: str) -> AE:
    """An application entity of pynetdicom that logs no identifiers."""
    quiet_logs()
    return AE(our_ae_title)


def dimse_peer(destination: Destination) -> Dimse:
    """The peer of a destination that speaks DIMSE."""
    if not isinstance(destination.peer, Dimse):
        raise TypeError(f"{destination.label} does not speak DIMSE")
    return destination.peer


def _request_association(
    destination: Destination,
    contexts: Sequence[PresentationContext],
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation],
    handlers: Sequence[Any],
) -> OpenAssociation:
    peer, opened = dimse_peer(destination), OpenAssociation(destination)
    ae = application_entity(peer.our_ae_title)
    ae.connection_timeout = ae.acse_timeout = destination.connect_s
    ae.dimse_timeout = destination.answer_s
    # pynetdicom aborts an association without traffic for `network_timeout`. That must come neither before the time
    # limit of an answer nor while the next file is read or decompressed.
    ae.network_timeout = max(destination.answer_s, _SHORTEST_IDLE_S)
    tls_args = (client_context(peer.tls), peer.host) if peer.tls else None
    started_s = time.monotonic()
    for address in _addresses(destination, peer):
        association = ae.associate(
            address,
            peer.port,
            contexts=list(contexts),
            ae_title=peer.ae_title,
            max_pdu=LARGEST_PDU,
            ext_neg=list(roles),
            tls_args=tls_args,
            evt_handlers=[*opened.handlers(), *handlers],
        )
        if association.is_established:
            use_safe_checkpoint(association)
            opened.association = association
            return opened
        # The host was reached and refused; its other addresses lead to the same node.
        if opened.is_connected:
            break
    raise _opening_error(destination, peer, association, time.monotonic() - started_s)


def _addresses(destination: Destination, peer: Dimse) -> list[str]:
    """All addresses of the host, in the order in which they should be tried; "localhost" has two."""
    try:
        answers = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NetworkError(
            f"{destination.label}: the host name is not known here ({getattr(error, 'strerror', None) or 'no name'}); a host "
            "that can be reached is needed; check name and network"
        ) from error
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def _opening_error(destination: Destination, peer: Dimse, association: Association, waited_s: float) -> NetworkError:
    answer = answer_to_request(association)
    if answer is not None and answer.result:
        return NetworkError(
            f"{destination.label} rejected the association ({answer.result_str}: {answer.reason_str}); an accepted one is "
            f"needed; let it know our AE title {peer.our_ae_title} and this machine, and check the AE title that we call"
        )
    if association.rejected_contexts:
        syntaxes = dict.fromkeys(str(context.abstract_syntax) for context in association.rejected_contexts)
        return NetworkError(
            f"{destination.label} accepts none of the proposed services "
            f"({', '.join(UID(syntax).name for syntax in syntaxes)}); "
            "one accepted service is needed; check what it allows our AE title to do"
        )
    return NetworkError(f"{destination.label} {_connection_problem(destination, peer, waited_s)}")


def _connection_problem(destination: Destination, peer: Dimse, waited_s: float) -> str:
    """The problem and the remedy. Connects once more without DICOM, because pynetdicom does not report the reason."""
    answering = "a DICOM node that answers is needed; check host, port and whether it runs"
    try:
        with socket.create_connection((peer.host, peer.port), timeout=destination.connect_s) as plain:
            if peer.tls is not None:
                _try_handshake(plain, peer.tls, peer.host)
    except ssl.SSLCertVerificationError as error:
        return (
            f"has a certificate that is not accepted ({error.verify_message}); a certificate from one of our authorities "
            "that names "
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
    is_late = waited_s >= destination.connect_s - _MARGIN_S
    silence = f"was silent for {destination.connect_s:g} s" if is_late else "closed it without an answer"
    return f"took the connection and {silence}; {answering}, and whether it requires TLS"


def _try_handshake(plain: socket.socket, tls: Tls, host: str) -> None:
    with client_context(tls).wrap_socket(plain, server_hostname=host) as encrypted:
        encrypted.settimeout(1.0)
        try:
            encrypted.recv(1)  # with TLS 1.3 the refusal of our certificate comes after the handshake
        except TimeoutError:
            return
