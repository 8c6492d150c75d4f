"""The other side of the tests: a small archive that speaks DIMSE and misbehaves on demand, and certificates.

Everything listens on 127.0.0.1 and on a free port.
"""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from phantoms import CT_IMAGE, CT_IMAGE_STORAGE, lopsided_array, oblique_affine, write_mr_series
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from dicom_io.net.destination import Destination, Dimse, Receive, Tls

PATIENT = {"PatientName": "Zyxwvut^Qponmlk", "PatientID": "ID-55501234", "AccessionNumber": "ACC-998877"}
PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"


def ct_series(folder: Path, count: int = 3, **header: object) -> list[Path]:
    """An oblique, lopsided CT series with a made-up patient; SOP Instance UIDs count from .100."""
    array = lopsided_array((11, 9, count))

    def edit(dataset: Dataset, k: int) -> None:
        dataset.SOPInstanceUID = f"{SERIES}.{100 + k}"

    given = {**CT_IMAGE, **PATIENT, "StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES, **header}
    return write_mr_series(folder, array, oblique_affine(), header=given, edit=edit)


def destination(port: int, **more: Any) -> Destination:
    """How our side calls a peer of the tests; keywords of `Dimse`, or of `Destination` where it has them."""
    timing = {name: more.pop(name) for name in ("connect_s", "answer_s", "profile") if name in more}
    timing = {"connect_s": 5.0, "answer_s": 5.0, **timing}
    host = more.pop("host", "127.0.0.1")
    return Destination("test", Dimse(host, port, "ARCHIVE", **more), **timing)


@dataclass
class Archive:
    """What the small archive holds, and how it behaves.

    Attributes:
        held: Instances that can be found and fetched.
        syntaxes: Transfer syntaxes that it takes for storage.
        status: Of C-STORE, by SOP Instance UID or for all ("").
        refusals: How many requests, from the first, `status` is for; 0: all.
        abort_at: Aborts when so many C-STORE requests have come, on the first `aborts` associations.
        addresses: AE title -> port, for C-MOVE.
        get: Whether it offers C-GET.
        find_status: Of the last C-FIND answer.
    """

    held: Sequence[Path] = ()
    syntaxes: Sequence[str] = PLAIN
    status: dict[str, int] = field(default_factory=dict)
    refusals: int = 0
    abort_at: int = 0
    aborts: int = 1
    addresses: dict[str, int] = field(default_factory=dict)
    get: bool = True
    find_status: int = 0x0000
    secret: ssl.SSLContext | None = None
    calling: Sequence[str] = ()
    contexts: Sequence[PresentationContext] | None = None
    received: list[Dataset] = field(default_factory=list)
    queries: list[Dataset] = field(default_factory=list)
    associations: int = 0
    stores: int = 0
    port: int = 0
    close: Callable[[], None] = lambda: None

    @contextmanager
    def running(self) -> Iterator[Archive]:
        ae = AE("ARCHIVE")
        ae.require_calling_aet = list(self.calling)
        ae.network_timeout = ae.dimse_timeout = ae.acse_timeout = 10
        if self.contexts is None:
            ae.add_supported_context(Verification)
            for one in AllStoragePresentationContexts:
                ae.add_supported_context(one.abstract_syntax, list(self.syntaxes), scu_role=True, scp_role=True)
            ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
            ae.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
            if self.get:
                ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
        else:
            ae.supported_contexts = list(self.contexts)
        handlers = [
            (evt.EVT_ACCEPTED, self._count),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_C_MOVE, self._move),
            (evt.EVT_C_GET, self._get),
        ]
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=self.secret)
        self.port, self.close = server.socket.getsockname()[1], server.shutdown
        try:
            yield self
        finally:
            ae.shutdown()

    def _count(self, event: Any) -> None:
        self.associations += 1

    def _store(self, event: Any) -> int:
        self.stores += 1
        if self.abort_at and self.associations <= self.aborts and self.stores >= self.abort_at:
            event.assoc.abort()
            return 0x0000
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        status = self.status.get(str(dataset.SOPInstanceUID), self.status.get("", 0x0000))
        if self.refusals and self.stores > self.refusals:
            status = 0x0000
        if status in (0x0000, 0xB000):
            self.received.append(dataset)
        return status

    def _matches(self, query: Dataset) -> list[Dataset]:
        headers = [pydicom.dcmread(path) for path in self.held]
        keys = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID")
        return [one for one in headers if all(query.get(key) in (None, "", one[key].value) for key in keys)]

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        self.queries.append(event.identifier)
        level = event.identifier.QueryRetrieveLevel
        key = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}[level]
        seen = set()
        for one in self._matches(event.identifier):
            if one[key].value in seen:
                continue
            seen.add(one[key].value)
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            for element in event.identifier:
                if element.keyword in one:
                    answer[element.keyword] = one[element.keyword]
            if event.is_cancelled:
                yield 0xFE00, None
                return
            yield 0xFF00, answer
        if self.find_status:
            yield self.find_status, None

    def _get(self, event: Any) -> Iterator[Any]:
        found = self._matches(event.identifier)
        yield len(found)
        for one in found:
            yield 0xFF00, one

    def _move(self, event: Any) -> Iterator[Any]:
        port = self.addresses.get(event.move_destination)
        if port is None:
            yield None, None
            return
        classes = {one.SOPClassUID for one in self._matches(event.identifier)}
        contexts = []
        for sop_class in classes:
            one = PresentationContext()
            one.abstract_syntax, one.transfer_syntax = sop_class, list(PLAIN)
            contexts.append(one)
        yield "127.0.0.1", port, {"contexts": contexts}
        yield from self._get(event)


def send_raw(
    port: int,
    dataset: Dataset,
    *,
    ae_title: str = "SENDER",
    called: str = "ARCHIVE",
    edit: Callable[[Any], None] | None = None,
) -> Dataset:
    """C-STORE of one data set by pynetdicom itself; `edit` may change the encoded request on its way out."""
    ae = AE(ae_title)
    ae.add_requested_context(dataset.SOPClassUID, [dataset.file_meta.TransferSyntaxUID])
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10
    association = ae.associate("127.0.0.1", port, ae_title=called)
    assert association.is_established
    if edit is not None:
        send = association.dimse.send_msg

        def send_edited(request: Any, context_id: int) -> None:
            edit(request)
            send(request, context_id)

        association.dimse.send_msg = send_edited  # type: ignore[method-assign]
    try:
        return association.send_c_store(dataset)
    finally:
        association.release()


@contextmanager
def mute_listener(answer: bytes = b"") -> Iterator[int]:
    """A port that takes connections, sends `answer` at once and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.sendall(answer)
                taken.append(connection)

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield int(server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in taken:
                connection.close()


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority, and certificates for 127.0.0.1 that it has given to a server and to a client."""

    server: Tls
    client: Tls

    @property
    def strangers(self) -> Tls:
        """The client without a certificate of its own."""
        return replace(self.client, certificate=None, key=None)


def make_certificates(folder: Path, name: str = "authority", host: str = "127.0.0.1") -> Certificates:
    """A new authority and two certificates; `host` is what the server's certificate names."""
    folder.mkdir(parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate(name, authority_key, None, None, host)
    ca = folder / f"{name}.pem"
    ca.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    made = []
    for owner in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(f"{name} {owner}", key, authority, authority_key, host)
        paths = folder / f"{name}_{owner}.pem", folder / f"{name}_{owner}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(private_pem(key))
        made.append(Tls(ca, *paths))
    return Certificates(*made)


def private_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    secret = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)


def _certificate(name: str, key: Any, issuer: x509.Certificate | None, issuer_key: Any, host: str) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        alternative = x509.DNSName(host)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
    return builder.sign(issuer_key or key, hashes.SHA256())


def same_data_set(first: Path | Dataset, second: Path | Dataset) -> bool:
    """Whether two instances have the same elements with the same values, pixels included."""
    one, two = (item if isinstance(item, Dataset) else pydicom.dcmread(item) for item in (first, second))
    np.testing.assert_array_equal(one.pixel_array, two.pixel_array)
    return one == two


__all__ = [
    "CT_IMAGE_STORAGE",
    "PATIENT",
    "SERIES",
    "STUDY",
    "Archive",
    "Certificates",
    "Receive",
    "ct_series",
    "destination",
    "make_certificates",
    "mute_listener",
    "private_pem",
    "same_data_set",
    "send_raw",
]
