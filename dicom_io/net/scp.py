"""A storage provider: takes C-STORE and C-ECHO, and answers success only for what is on the disk (PS3.4 A and B).

Further services may stand beside them, see `service.Service`.
"""

from __future__ import annotations

import errno
import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from socketserver import BaseServer
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.transport import ThreadedAssociationServer

from dicom_io.errors import NetworkError
from dicom_io.net.association import LARGEST_PDU, VERIFICATION, prepared_ae, storage_classes
from dicom_io.net.callers import Callers
from dicom_io.net.destination import OUR_AE_TITLE, DestinationError, Dimse, Receive, Tls
from dicom_io.net.messages import Intake, Limits, bound
from dicom_io.net.sending import UNCOMPRESSED
from dicom_io.net.service import COMMENT_LENGTH, Service, handlers
from dicom_io.net.store import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, InstanceRefusedError, InstanceStore
from dicom_io.net.tls import server_context
from dicom_io.reading.headers import is_uid

_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
# JPIP gives an address instead of pixels; nothing here follows addresses.
_REFERENCED = ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.204", "1.2.840.10008.1.2.4.205")
_UNKNOWN_CALLER = (
    0x01,
    0x01,
    0x03,
)  # PS3.8 table 9-21: permanent, by the service user, calling AE title not recognised
_NO_ROOM = (0x02, 0x03, 0x02)  # transient, by the service provider (presentation), local limit exceeded
_ANY_NUMBER = 1_000_000  # of threads: pynetdicom would count callers that have not said who they are

COMPRESSED = tuple(uid for uid in ALL_TRANSFER_SYNTAXES if uid not in (*_PLAIN, *_REFERENCED))
"""Transfer syntaxes in which an instance is kept as it comes."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listen:
    """Where and for whom a provider listens.

    Attributes:
        ae_title: Our AE title.
        host: Address to bind; only this machine can reach the default.
        port: TCP port; 0 takes a free one.
        senders: Calling AE titles that are let in; empty: all. A title is no proof; TLS is.
        tls: Certificates; whoever connects must show one of the same authority. None: not encrypted.
        idle_s: Seconds of silence after which a sender is dropped.
        most_senders: Associations at one time; one in five is kept free for callers from other addresses.
        any_title: Let callers in who call us by another AE title; else they are rejected (PS3.8 table 9-21).
        networks: Addresses that are let in, such as "192.0.2.7" or "192.0.2.0/24"; empty: all. Callers from elsewhere are
            rejected as one whose AE title is not known.
        limits: How much one association may bring.
        say_s: Seconds in which a caller must have said who it is, TLS handshake and A-ASSOCIATE-RQ included.

    Raises:
        DestinationError: One of `networks` is none.
    """

    ae_title: str = OUR_AE_TITLE
    host: str = "127.0.0.1"
    port: int = 11112
    senders: tuple[str, ...] = ()
    tls: Tls | None = None
    idle_s: float = 60.0
    most_senders: int = 10
    any_title: bool = False
    networks: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    say_s: float = 10.0

    def __post_init__(self) -> None:
        for text in self.networks:
            _network(text)

    def lets_in(self, address: str) -> bool:
        """Whether an IP address is one of `networks`."""
        if not self.networks:
            return True
        caller = ip_address(address)
        if isinstance(caller, IPv6Address) and caller.ipv4_mapped is not None:
            caller = caller.ipv4_mapped
        return any(caller in _network(text) for text in self.networks)


def listen_for(peer: Dimse) -> Listen:
    """Where an archive reaches us, as its `receive` says, and that only it is let in."""
    receive = peer.receive or Receive()
    return Listen(peer.our_ae_title, receive.host, receive.port, receive.senders or (peer.ae_title,), peer.tls)


class Provider:
    """Listens from `with` to its end; every association has a thread of its own."""

    def __init__(
        self,
        store: InstanceStore | Path | None,
        listen: Listen = Listen(),
        *,
        refused: Callable[[str], None] = lambda text: None,
        rejected: Callable[[str], None] = lambda text: None,
        room: Callable[[], str] = lambda: "",
        services: Sequence[Service] = (),
    ) -> None:
        """Prepares a provider; nothing is bound yet.

        Args:
            store: Where instances go, or its folder; None: no instances are taken.
            listen: Where and for whom.
            refused: Called with the reason when an instance is not kept.
            rejected: Called with who it was, by AE title and address, and the reason, when a caller is not let in.
            room: Asked when an instance begins to come in. What it answers, unless empty, refuses the instance with 0xA700
                and is told the sender; it may name nothing of a patient. Called by one thread for each association.
            services: What is answered beside C-STORE and C-ECHO; one for each operation of a SOP class.
        """
        self.store = store if isinstance(store, InstanceStore | None) else InstanceStore(store)
        self.listen, self.services = listen, tuple(services)
        self._refused, self._rejected, self._room = refused, rejected, room
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is bound."""
        assert self._server is not None, "the provider listens only inside its `with`"
        return int(self._server.server_address[1])

    def __enter__(self) -> Provider:
        self._server = self._bound()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), daemon=True, name="dicom provider"
        )
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()
        self._thread.join()
        self._server = self._thread = None
        for service in self.services:
            service.close()
        if self.store is not None:
            self.store.tidy()

    def _bound(self) -> _Server:
        listen, secret = self.listen, server_context(self.listen.tls) if self.listen.tls else None
        answers = [
            (evt.EVT_CONN_OPEN, lambda event: bound(event.assoc, listen.limits, self._room)),
            (evt.EVT_REQUESTED, _let_in, [listen]),
            (evt.EVT_ACCEPTED, lambda event: event.assoc._server.callers.accepted(_address_of(event.assoc))),
            (evt.EVT_ACSE_SENT, _note_rejection, [listen, self._rejected]),
            (evt.EVT_C_ECHO, lambda event: 0x0000),
            *handlers(self.services),
        ]
        if self.store is not None:
            answers.append((evt.EVT_C_STORE, answer_store, [self.store, self._refused]))
        try:
            return _Server(_acceptor(listen, self.services, stores=self.store is not None), listen, answers, secret)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise NetworkError(
                f"cannot listen on {listen.host}:{listen.port} ({'the port is taken' if taken else error.strerror}); a free "
                f"port of this machine is needed; {'stop what uses it or ' if taken else ''}choose another"
            ) from error


def answer_store(event: Any, store: InstanceStore, refused: Callable[[str], None]) -> Dataset:
    """Keeps the instance of a C-STORE request; the status to answer with."""
    answer = Dataset()
    announced, content = str(event.request.AffectedSOPInstanceUID or ""), event.request.DataSet
    try:
        if isinstance(content, Intake) and content.refused:
            raise InstanceRefusedError(OUT_OF_RESOURCES, content.refused)
        if not is_uid(announced):
            raise InstanceRefusedError(CANNOT_UNDERSTAND, "the request names no UID")
        store.put(event.encoded_dataset(), announced)
        answer.Status = 0x0000
    except InstanceRefusedError as error:
        answer.Status, text = error.status, str(error)
    except Exception as error:  # whatever it is, the instance is not on the disk
        answer.Status, text = CANNOT_UNDERSTAND, f"the instance could not be kept ({type(error).__name__})"
    if answer.Status:
        answer.ErrorComment = text[:COMMENT_LENGTH]
        _logger.warning("refused an instance of %s: %s", event.assoc.remote["ae_title"], text)
        refused(text)
    return answer


def _let_in(event: Any, listen: Listen) -> None:
    """Rejects a caller whose address is not let in, or for whom there is no room, before anything is negotiated."""
    if not _is_let_in(event.assoc.requestor, listen):
        why = _UNKNOWN_CALLER
    elif not event.assoc._server.callers.admit(event.assoc):
        why = _NO_ROOM
    else:
        return
    event.assoc.acse.send_reject(*why)
    event.assoc.kill()


def _address_of(association: Any) -> tuple[str, int]:
    return str(association.requestor.address), int(association.requestor.port)


def _is_let_in(caller: Any, listen: Listen) -> bool:
    try:
        return listen.lets_in(str(caller.address))
    except ValueError:  # there is no address, or it is none
        return False


def _note_rejection(event: Any, listen: Listen, rejected: Callable[[str], None]) -> None:
    """Tells of a caller who was just rejected, whoever of pynetdicom and us did it."""
    answer = event.primitive
    if not isinstance(answer, A_ASSOCIATE) or not answer.result:
        return
    caller = event.assoc.requestor
    title = str(caller.primitive.calling_ae_title).strip() if caller.primitive else "?"
    why = answer.reason_str if _is_let_in(caller, listen) else "its address is in no network that is let in"
    text = f"{title!r} at {caller.address}: {why}"
    _logger.warning("rejected %s", text)
    rejected(text)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise DestinationError(
            f"networks has {text!r} ({error}); an IP address or a network such as 192.0.2.0/24 is needed; correct it"
        ) from error


class _Server(ThreadedAssociationServer):
    """pynetdicom's server, except that a caller who says nothing, or half of it, keeps nobody else out."""

    def __init__(self, ae: AE, listen: Listen, handlers: list[Any], secret: ssl.SSLContext | None) -> None:
        self.secret, self.idle_s, self.callers = secret, listen.idle_s, Callers(listen.most_senders, listen.say_s)
        super().__init__(ae, (listen.host, listen.port), listen.ae_title, ae.supported_contexts, evt_handlers=handlers)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.callers.connected(client_address[:2], request)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(self.idle_s)
        if self.secret is not None:
            request = self.secret.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
            self.callers.connected(client_address[:2], request)
            request.do_handshake()
        super().finish_request(request, client_address)

    def service_actions(self) -> None:
        super().service_actions()
        self.callers.end_late()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _logger.warning("a connection from %s came to nothing (TLS handshake or time)", client_address[0])

    def shutdown(self) -> None:
        BaseServer.shutdown(self)
        self.server_close()


def _acceptor(listen: Listen, services: Sequence[Service], *, stores: bool) -> AE:
    ae = prepared_ae(listen.ae_title)
    ae.maximum_pdu_size = LARGEST_PDU
    ae.maximum_associations = _ANY_NUMBER
    ae.network_timeout = ae.dimse_timeout = listen.idle_s
    ae.acse_timeout = min(listen.idle_s, 30.0)
    ae.require_calling_aet, ae.require_called_aet = list(listen.senders), not listen.any_title
    ae.add_supported_context(VERIFICATION)
    for sop_class in storage_classes() if stores else ():
        ae.add_supported_context(sop_class, [*_PLAIN, *COMPRESSED])
    for service in services:
        # a caller reports to us only if it may take the provider's part on its own association (PS3.7 D.3.3.4)
        reports = any(one.sop_class_uid == service.sop_class_uid and one.is_report for one in services)
        roles = {"scu_role": True, "scp_role": True} if reports else {}
        ae.add_supported_context(service.sop_class_uid, list(UNCOMPRESSED), **roles)
    return ae
