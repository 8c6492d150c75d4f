"""Where to send to and fetch from: a DICOM node or a DICOMweb service, and a profile with the objects that it wants.

Destinations come from a site's file (`destination_file.read_site`) or from a word of the command line (`parse_destination`).
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from dicom_io.errors import DicomIoError
from dicom_io.kinds import KINDS, NAMES
from dicom_io.kinds.encodings import SegEncoding

OUR_AE_TITLE = "MONAIUNET"
Retrieve = Literal["get", "move"]

_AE_TITLE = re.compile(r"[ -\[\]-~]{1,16}")  # PS3.5 6.2: at most 16 characters of ASCII, no backslash
_NODE = re.compile(r"(?P<aet>[^@]+)@(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^@:\s\[\]]+)):(?P<port>[0-9]{1,5})")


class DestinationError(DicomIoError):
    """A site file, or the text that names a destination, does not say where to send."""


@dataclass(frozen=True)
class Tls:
    """Certificates of an encrypted connection.

    Attributes:
        ca: PEM file of the authorities for the other side's certificate; None: the system's authorities.
        certificate: PEM file of our own certificate, if the other side asks for it.
        key: PEM file of its private key, not encrypted.
        check_hostname: Whether the server's certificate must name the host that we call.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    check_hostname: bool = True


@dataclass(frozen=True)
class Receive:
    """Where we listen during a C-MOVE and for reports of commitment; the archive must know this address under our AE title.

    Attributes:
        host: Address to bind; only this machine can reach the default.
        port: TCP port; 0 takes a free port.
        senders: Calling AE titles that may send; empty: the archive's own.
    """

    host: str = "127.0.0.1"
    port: int = 11112
    senders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dimse:
    """A DICOM node that speaks DIMSE (PS3.7).

    Attributes:
        ae_title: Called AE title.
        our_ae_title: Calling AE title, and with C-MOVE the title to send to.
        tls: None: not encrypted.
        retrieve: Whether `fetch` uses C-GET or C-MOVE.
        receive: Where the archive can reach us; None: a C-MOVE listens at the default address, and no reports are taken.
    """

    host: str
    port: int
    ae_title: str
    our_ae_title: str = OUR_AE_TITLE
    tls: Tls | None = None
    retrieve: Retrieve = "get"
    receive: Receive | None = None


@dataclass(frozen=True)
class DicomWeb:
    """A DICOMweb service (PS3.18): QIDO-RS, WADO-RS and STOW-RS below one URL.

    Attributes:
        url: http or https, without a password, a query or a closing slash.
        tls: Certificates for https; None: the system's authorities and no certificate of ours.
        token_env: Name of the environment variable that holds a bearer token; empty: none is sent.
    """

    url: str
    tls: Tls | None = None
    token_env: str = ""


@dataclass(frozen=True)
class Profile:
    """The objects that a destination wants.

    Attributes:
        objects: Kinds of result objects, in the order in which they are sent; SEG comes before SR.
        seg_encoding: The encoding of a SEG for it; a SEG in another encoding is not sent. None: any encoding.
        empty_frames: Whether a SEG for it has the frames in which a segment has no voxel.
    """

    objects: tuple[str, ...] = NAMES
    seg_encoding: SegEncoding | None = None
    empty_frames: bool = False

    def __post_init__(self) -> None:
        objects = list(self.objects)
        # An archive may refuse or hide an object whose references do not resolve.
        references = ((kind.name, other) for kind in KINDS for other in kind.refers_to)
        for name, other in references:
            if {name, other} <= set(objects) and objects.index(name) < objects.index(other):
                raise DestinationError(
                    f"objects are sent in the order {', '.join(objects)}; {other} before {name} is needed, or the {name} would "
                    f"refer to an object that is not there; put {other} first"
                )


@dataclass(frozen=True)
class Destination:
    """A peer to send to and fetch from.

    Attributes:
        name: Its name in the site file, or the text that was given instead.
        peer: Its address and protocol.
        connect_s: Seconds to wait for a connection, and then for the association.
        answer_s: Seconds to wait for each answer after that.
    """

    name: str
    peer: Dimse | DicomWeb
    profile: Profile = field(default_factory=Profile)
    connect_s: float = 10.0
    answer_s: float = 60.0

    @property
    def label(self) -> str:
        """The name of the other side in messages: AE title, host and port, or the URL."""
        if isinstance(self.peer, DicomWeb):
            return self.peer.url
        host = f"[{self.peer.host}]" if ":" in self.peer.host else self.peer.host
        return f"{self.peer.ae_title}@{host}:{self.peer.port}"


def parse_destination(text: str, our_ae_title: str = OUR_AE_TITLE) -> Destination:
    """The destination with the address `AET@host:port` or an http(s) URL, the default profile and no certificates.

    Raises:
        DestinationError: The text is neither.
    """
    if text.startswith(("http://", "https://")):
        return Destination(text, DicomWeb(checked_url(text, "the destination")))
    match = _NODE.fullmatch(text)
    if not match:
        raise DestinationError(
            f"the destination is {text!r}; AET@host:port, an http(s) URL or a name in a site file is needed; write for "
            "instance ARCHIVE@pacs.example.org:11112, or give the site file"
        )
    host = match["six"] or match["host"]
    title, own_title = checked_ae_title(match["aet"], text), checked_ae_title(our_ae_title, "our own")
    peer = Dimse(host, checked_port(int(match["port"]), text), title, own_title)
    return Destination(text, peer)


def checked_port(port: int, where: str) -> int:
    if not 1 <= port <= 65_535:
        raise DestinationError(f"{where}: the port is {port}; a TCP port from 1 to 65535 is needed; correct it")
    return port


def checked_ae_title(title: str, where: str) -> str:
    if not _AE_TITLE.fullmatch(title) or not title.strip():
        raise DestinationError(
            f"{where}: the AE title is {title!r}; 1 to 16 characters of ASCII without a backslash are needed; correct it"
        )
    return title.strip()


def checked_url(text: str, where: str) -> str:
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or "@" in text or "?" in text or "#" in text or re.search(r"\s", text):
        raise DestinationError(
            f"{where}: the URL is not one of a DICOMweb service; http(s)://host:port/path without a password, a query or a "
            "mark is needed; a token goes into an environment variable"
        )
    return text.rstrip("/")
