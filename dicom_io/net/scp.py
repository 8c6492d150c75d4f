"""A storage provider: answers C-STORE and C-ECHO, and success only for what is on the disk (PS3.4 A and B).

DIMSE-N services may be added, see `dimse_n.Service`.
"""

import errno
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, build_context, evt
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext

from dicom_io.errors import NetworkError
from dicom_io.net.association import (
    LARGEST_PDU,
    UNCOMPRESSED,
    VERIFICATION,
    application_entity,
    presentation_context,
    storage_classes,
)
from dicom_io.net.connections import Connections
from dicom_io.net.destination import OUR_AE_TITLE, DestinationError, Dimse, Receive, Tls
from dicom_io.net.dimse_n import COMMENT_LENGTH, Service, service_handlers
from dicom_io.net.instance_file import CANNOT_UNDERSTAND, InstanceRefusedError
from dicom_io.net.instance_store import OUT_OF_RESOURCES, InstanceStore
from dicom_io.net.limits import IncomingDataSet, Limits
from dicom_io.net.pynetdicom_patches import AssociationServer, limit_association
from dicom_io.net.tls import server_context
from dicom_io.reading.headers import is_uid

_PLAIN = (*UNCOMPRESSED, DeflatedExplicitVRLittleEndian)
# JPIP gives an address instead of pixels; nothing here follows addresses.
_REFERENCED = ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.204", "1.2.840.10008.1.2.4.205")
# Result, source and reason of a rejection, PS3.8 table 9-21
_UNKNOWN_CALLER = (0x01, 0x01, 0x03)  # permanent, by the service user, calling AE title not recognised
_NO_ROOM = (0x02, 0x03, 0x02)  # transient, by the service provider (presentation), local limit exceeded
_ANY_NUMBER = 1_000_000  # `Connections` counts the associations; pynetdicom would count silent connections too

COMPRESSED = tuple(uid for uid in ALL_TRANSFER_SYNTAXES if uid not in (*_PLAIN, *_REFERENCED))
"""Transfer syntaxes in which an instance is kept as it comes."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listen:
    """Where a provider listens, and for whom.

    Attributes:
        ae_title: Our AE title.
        host: Address to bind; only this machine can reach the default.
        port: TCP port; 0 takes a free port.
        senders: Calling AE titles that are let in; empty: all. A title is no proof; TLS is.
        tls: Certificates; a caller must show a certificate of the same authority. None: not encrypted.
        idle_s: Seconds of silence after which a sender is dropped.
        most_senders: Associations at one time; one in five is kept free for callers from other addresses.
        any_title: Let callers in that call us by another AE title; else they are rejected (PS3.8 table 9-21).
        networks: Addresses that are let in, such as "192.0.2.7" or "192.0.2.0/24"; empty: all. Callers from elsewhere are
            rejected like callers with an unknown AE title.
        limits: How much one association may bring.
        negotiation_s: Seconds until an association must be accepted, TLS handshake and A-ASSOCIATE-RQ included.

    Raises:
        DestinationError: A member of `networks` is not an address or network.
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
    negotiation_s: float = 10.0

    def __post_init__(self) -> None:
        for text in self.networks:
            _network(text)

    def lets_in(self, address: str) -> bool:
        """Whether an IP address is in one of `networks`."""
        if not self.networks:
            return True
        caller = ip_address(address)
        # A socket that listens on IPv6 sees an IPv4 caller as ::ffff:a.b.c.d (RFC 4291 2.5.5.2).
        if isinstance(caller, IPv6Address) and caller.ipv4_mapped is not None:
            caller = caller.ipv4_mapped
        return any(caller in _network(text) for text in self.networks)


def listen_for(peer: Dimse) -> Listen:
    """Where an archive reaches us, as its `receive` says; only the archive is let in."""
    receive = peer.receive or Receive()
    return Listen(peer.our_ae_title, receive.host, receive.port, receive.senders or (peer.ae_title,), peer.tls)


class Provider:
    """Listens while its `with` block runs; every association has a thread of its own."""

    def __init__(
        self,
        store: InstanceStore | Path | None,
        listen: Listen = Listen(),
        *,
        refused: Callable[[str], None] = lambda reason: None,
        rejected: Callable[[str], None] = lambda caller_and_reason: None,
        room: Callable[[], str] = lambda: "",
        services: Sequence[Service] = (),
    ) -> None:
        """Prepares a provider; nothing is bound yet.

        Args:
            store: Where instances are kept, or its folder; None: no instances are taken.
            listen: Where to listen, and for whom.
            refused: Called with the reason when an instance is not kept.
            rejected: Called with AE title, address and reason when a caller is not let in.
            room: Called when an instance begins to come in, by one thread for each association. Any reason that it returns
                refuses the instance with 0xA700 and is sent as comment; the reason must not name a patient.
            services: DIMSE-N operations that are answered; at most one for each operation of a SOP class.
        """
        self.store = store if isinstance(store, InstanceStore | None) else InstanceStore(store)
        self.listen, self.services = listen, tuple(services)
        self._refused, self._rejected, self._room = refused, rejected, room
        self._server: AssociationServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is bound."""
        assert self._server is not None, "the provider listens only inside its `with`"
        return int(self._server.server_address[1])

    def __enter__(self) -> "Provider":
        self._server = self._bind()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), daemon=True, name="dicom provider"
        )
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._server is None or self._thread is None:
            return
        # First new callers are kept out. The open associations are aborted, because their threads would wait up to
        # `idle_s`. Services are closed when no request can reach them any more.
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()
        self._thread.join()
        self._server = self._thread = None
        for service in self.services:
            service.close()
        if self.store is not None:
            self.store.tidy()

    def _bind(self) -> AssociationServer:
        listen, context = self.listen, server_context(self.listen.tls) if self.listen.tls else None
        connections = Connections(listen.most_senders, listen.negotiation_s)
        handlers: list[Any] = [
            # At this event no PDU has been read, so that nothing comes in beside the limits.
            (evt.EVT_CONN_OPEN, lambda event: limit_association(event.assoc, listen.limits, self._room)),
            (evt.EVT_REQUESTED, _admit, [listen, connections]),
            (evt.EVT_ACCEPTED, lambda event: connections.accept(event.assoc)),
            (evt.EVT_ACSE_SENT, _note_rejection, [listen, self._rejected]),
            (evt.EVT_C_ECHO, lambda event: 0x0000),
            *service_handlers(self.services),
        ]
        if self.store is not None:
            handlers.append((evt.EVT_C_STORE, answer_store, [self.store, self._refused]))
        contexts = _contexts(self.services, stores=self.store is not None)
        address, ae = (listen.host, listen.port), _acceptor(listen)
        try:
            return AssociationServer(ae, address, contexts, handlers, connections, context)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise NetworkError(
                f"cannot listen on {listen.host}:{listen.port} ({'the port is in use' if taken else error.strerror}); a free "
                f"port of this machine is needed; {'stop what uses it or ' if taken else ''}choose another"
            ) from error


def answer_store(event: Any, store: InstanceStore, refused: Callable[[str], None]) -> Dataset:
    """Keeps the instance of a C-STORE request; the status to answer with."""
    answer = Dataset()
    announced, content = str(event.request.AffectedSOPInstanceUID or ""), event.request.DataSet
    try:
        if isinstance(content, IncomingDataSet) and content.refused:
            raise InstanceRefusedError(OUT_OF_RESOURCES, content.refused)
        if not is_uid(announced):
            raise InstanceRefusedError(CANNOT_UNDERSTAND, "the request names no UID")
        # The data set is kept in the bytes that came; decoding and encoding could change them. Success is set only
        # after `put`, which returns once the file is on the disk.
        store.put(event.encoded_dataset(), announced)
        answer.Status = 0x0000
    except InstanceRefusedError as error:
        answer.Status, text = error.status, str(error)
    except Exception as error:  # whatever failed, the instance is not on the disk
        answer.Status, text = CANNOT_UNDERSTAND, f"the instance could not be kept ({type(error).__name__})"
    if answer.Status:
        answer.ErrorComment = text[:COMMENT_LENGTH]
        _logger.warning("refused an instance of %s: %s", event.assoc.remote["ae_title"], text)
        refused(text)
    return answer


def _admit(event: Any, listen: Listen, connections: Connections) -> None:
    """Rejects a caller from an unknown address, and any caller if there is no room, before anything is negotiated."""
    if not _is_let_in(event.assoc.requestor, listen):
        rejection = _UNKNOWN_CALLER
    elif not connections.admit(event.assoc):
        rejection = _NO_ROOM
    else:
        return
    event.assoc.acse.send_reject(*rejection)
    event.assoc.kill()


def _is_let_in(caller: Any, listen: Listen) -> bool:
    try:
        return listen.lets_in(str(caller.address))
    except ValueError:  # the address is absent or unreadable
        return False


def _note_rejection(event: Any, listen: Listen, rejected: Callable[[str], None]) -> None:
    """Reports a caller that was just rejected, by pynetdicom or by us."""
    answer = event.primitive
    # The event comes for everything that ACSE sends; a result of 0 accepts an association.
    if not isinstance(answer, A_ASSOCIATE) or not answer.result:
        return
    caller = event.assoc.requestor
    title = str(caller.primitive.calling_ae_title).strip() if caller.primitive else "?"
    reason = answer.reason_str if _is_let_in(caller, listen) else "its address is in none of the allowed networks"
    text = f"{title!r} at {caller.address}: {reason}"
    _logger.warning("rejected %s", text)
    rejected(text)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise DestinationError(
            f"networks has {text!r} ({error}); an IP address or a network such as 192.0.2.0/24 is needed; correct it"
        ) from error


def _acceptor(listen: Listen) -> AE:
    ae = application_entity(listen.ae_title)
    ae.maximum_pdu_size = LARGEST_PDU
    ae.maximum_associations = _ANY_NUMBER
    ae.network_timeout = ae.dimse_timeout = listen.idle_s
    ae.acse_timeout = min(listen.idle_s, 30.0)
    ae.require_calling_aet, ae.require_called_aet = list(listen.senders), not listen.any_title
    return ae


def _contexts(services: Sequence[Service], *, stores: bool) -> list[PresentationContext]:
    """What callers may propose: C-ECHO, storage if it `stores`, and the services."""
    contexts = [build_context(VERIFICATION), *(_storage_contexts() if stores else ())]
    # Of event reports the other side is the provider.
    reported = {service.sop_class_uid for service in services if service.event == evt.EVT_N_EVENT_REPORT}
    for service in services:
        context = presentation_context(service.sop_class_uid)
        # a caller sends us reports only if it may be the provider on the association that it requested (PS3.7 D.3.3.4)
        context.scu_role = context.scp_role = True if service.sop_class_uid in reported else None
        contexts.append(context)
    return contexts


@cache
def _storage_contexts() -> tuple[PresentationContext, ...]:
    """Everything that can be stored. Made once, since pynetdicom looks whether each of the 7,000 UIDs is one."""
    return tuple(presentation_context(sop_class, (*_PLAIN, *COMPRESSED)) for sop_class in storage_classes())
