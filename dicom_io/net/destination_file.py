"""A site's destinations, from a TOML file. docs/how-to/send-and-fetch.md shows such a file.

Every key is checked, and an unknown key is refused: a misspelt "tls" must not mean "not encrypted". The file holds no
secret: a bearer token stands in an environment variable, and the file holds the name of that variable.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dicom_io.kinds import NAMES
from dicom_io.kinds.encodings import SEG_ENCODINGS
from dicom_io.net.destination import (
    OUR_AE_TITLE,
    Destination,
    DestinationError,
    DicomWeb,
    Dimse,
    Profile,
    Receive,
    Tls,
    checked_ae_title,
    checked_port,
    checked_url,
)

LOOPBACK = ("localhost", "127.0.0.1", "::1")

NODE_TABLES = ("node", "rules", "http")
"""Tables of a site file that this package does not read: the settings of a node."""


def read_site(path: Path) -> dict[str, Destination]:
    """The destinations of a site file, by name.

    Paths in it are relative to the file's folder.

    Raises:
        DestinationError: Not TOML, an unknown or missing key, or a value that cannot be right.
    """
    top = read_table(path)
    # The settings of a node stand in the same file and are read elsewhere.
    top.known.update(NODE_TABLES)
    destinations = destinations_of(top, path)
    top.close()
    if not destinations:
        raise DestinationError(f"{path.name} names no destination; a table [destinations.NAME] is needed; add one")
    return destinations


def read_table(path: Path) -> "TomlTable":
    """A whole site file. Raises DestinationError if it is not TOML."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DestinationError(
            f"{path.name} cannot be read ({error}); a site file in TOML is needed; check it"
        ) from error
    return TomlTable(document, path.name)


def destinations_of(top: "TomlTable", path: Path) -> dict[str, Destination]:
    """The destinations of a site file, by name; empty if it has none."""
    return {
        name: _destination(name, TomlTable(table, f"{path.name}: {name}"), path.parent)
        for name, table in (top.table("destinations") or {}).items()
    }


class TomlTable:
    """A table of a site file; a key that was not read before `close` is unknown."""

    def __init__(self, content: Any, where: str) -> None:
        if not isinstance(content, Mapping):
            raise DestinationError(
                f"{where} is {content!r}; a table is needed; write its keys below [{where.split()[-1]}]"
            )
        self.content, self.where, self.known = content, where, set[str]()

    def take(
        self, key: str, kind: type | tuple[type, ...], needed: str, default: Any = None, *, must: bool = False
    ) -> Any:
        """The value of a key. Raises DestinationError if its type is wrong, or if a key that `must` be there is missing."""
        self.known.add(key)
        if key not in self.content:
            if must:
                raise DestinationError(f"{self.where} has no key {key}; {needed} is needed; add it")
            return default
        value = self.content[key]
        # A TOML boolean is no number, but Python's bool is an int.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise DestinationError(f"{self.where}: {key} is {value!r}; {needed} is needed; correct it")
        return value

    def table(self, key: str) -> Mapping[str, Any] | None:
        content: Mapping[str, Any] | None = self.take(key, Mapping, "a table")
        return content

    def part(self, key: str) -> "TomlTable | None":
        """The table below a key; None where the key is absent."""
        content = self.table(key)
        return None if content is None else TomlTable(content, f"{self.where}: {key}")

    def choice(self, key: str, values: tuple[str, ...], default: str | None) -> Any:
        value = self.take(key, str, f"one of {', '.join(values)}", default)
        if value not in (*values, default):
            raise DestinationError(
                f"{self.where}: {key} is {value!r}; one of {', '.join(values)} is needed; correct it"
            )
        return value

    def texts(self, key: str, values: tuple[str, ...] | None = None) -> tuple[str, ...] | None:
        """A list of different texts, all of them among `values`; None where the key is absent."""
        needed = "a list of " + (", ".join(values) if values else "texts")
        texts = self.take(key, list, needed)
        if texts is None:
            return None
        valid = all(isinstance(text, str) and (values is None or text in values) for text in texts)
        if not valid or len(set(texts)) != len(texts) or not texts:
            raise DestinationError(f"{self.where}: {key} is {texts!r}; {needed}, each once, is needed; correct it")
        return tuple(texts)

    def seconds(self, key: str, default: float) -> float:
        value = float(self.take(key, (int, float), "a number of seconds", default))
        if not 0 < value <= 86_400:
            raise DestinationError(
                f"{self.where}: {key} is {value:g}; more than 0 and at most 86400 s is needed; correct it"
            )
        return value

    def close(self) -> None:
        """Raises DestinationError if a key was not read."""
        unknown = sorted(set(self.content) - self.known)
        if unknown:
            raise DestinationError(
                f"{self.where} has the unknown key {unknown[0]}; the known keys are {', '.join(sorted(self.known))}; "
                "correct or remove it"
            )


def _destination(name: str, table: TomlTable, folder: Path) -> Destination:
    parsed = Destination(
        name,
        _dicom_web(table, folder) if "url" in table.content else _dimse(table, folder),
        _profile(table.part("profile")),
        connect_s=table.seconds("connect_s", Destination.connect_s),
        answer_s=table.seconds("answer_s", Destination.answer_s),
    )
    table.close()
    return parsed


def _dimse(table: TomlTable, folder: Path) -> Dimse:
    peer = Dimse(
        host=table.take("host", str, "a host name or address (or a url for DICOMweb)", must=True),
        port=checked_port(table.take("port", int, "a TCP port", must=True), table.where),
        ae_title=checked_ae_title(table.take("ae_title", str, "the AE title to call", must=True), table.where),
        our_ae_title=checked_ae_title(table.take("our_ae_title", str, "our AE title", OUR_AE_TITLE), table.where),
        tls=read_tls(table.part("tls"), folder),
        retrieve=table.choice("retrieve", ("get", "move"), "get"),
        receive=_receive(table.part("receive")),
    )
    if not peer.host or re.search(r"[\s/@]", peer.host):
        raise DestinationError(f"{table.where}: host is {peer.host!r}; a host name or address is needed; correct it")
    if peer.retrieve == "move" and "receive" not in table.content:
        raise DestinationError(
            f"{table.where} retrieves by C-MOVE and has no table receive; where the archive sends to is needed; add "
            "host and port, as the archive knows them for our AE title"
        )
    return peer


def _dicom_web(table: TomlTable, folder: Path) -> DicomWeb:
    url = checked_url(table.take("url", str, "an http(s) URL"), table.where)
    token_env = table.take("token_env", str, "the name of an environment variable", "")
    # The value is not repeated in the message: it may be the token itself, written here by mistake.
    if token_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", token_env):
        raise DestinationError(
            f"{table.where}: token_env is not a name ({len(token_env)} characters); the name of the environment variable that "
            "holds the token is needed, never the token; correct it"
        )
    parts = urlsplit(url)
    if token_env and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise DestinationError(
            f"{table.where} has a token and the URL {url}; https is needed, otherwise anybody on the network path can read "
            "the token; "
            "use the https URL"
        )
    return DicomWeb(url, read_tls(table.part("tls"), folder), token_env)


def read_tls(table: TomlTable | None, folder: Path) -> Tls | None:
    """Certificates, their paths relative to `folder`; None for no table."""
    if table is None:
        return None
    # All keys are read before `close`, or they would count as unknown.
    files = {key: table.take(key, str, "the path of a PEM file") for key in ("ca", "certificate", "key")}
    check_hostname = table.take("check_hostname", bool, "true or false", True)
    table.close()
    if bool(files["certificate"]) != bool(files["key"]):
        raise DestinationError(
            f"{table.where} has one of certificate and key; either both or none are needed; add the other"
        )
    paths = {key: folder / value if value else None for key, value in files.items()}
    return Tls(**paths, check_hostname=check_hostname)


def _receive(table: TomlTable | None) -> Receive | None:
    if table is None:
        return None
    receive = Receive(
        senders=tuple(checked_ae_title(title, table.where) for title in table.texts("senders") or ()),
        host=table.take("host", str, "an address of this machine", Receive.host),
        port=checked_port(table.take("port", int, "a TCP port", must=True), table.where),
    )
    table.close()
    return receive


def _profile(table: TomlTable | None) -> Profile:
    if table is None:
        return Profile()
    objects = table.texts("objects", NAMES) or NAMES
    encoding = table.choice("seg_encoding", SEG_ENCODINGS, None)
    empty_frames = table.take("empty_frames", bool, "true or false", False)
    table.close()
    try:
        return Profile(objects, encoding, empty_frames)
    except DestinationError as error:
        raise DestinationError(f"{table.where}: {error}") from error
