"""Who may do what through the HTTP API: tokens with roles, of which only digests are kept.

A line of the tokens' file is `name role[,role] sha256 expires=YYYY-MM-DD`, made by `monai-unet token`; # begins a comment. A
line without a date, as earlier versions made it, holds without end. The name of a reviewer stands in verified reports: as DICOM
has it, Family^Given. Whoever has no such name decides nothing, whatever their roles. The file is read again when it changes.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal

from dicom_io.reading.headers import LONGEST_NAME, is_person_name
from monai_unet_app.errors import UsageError

Role = Literal["metrics", "submit", "read", "reviewer", "admin"]
ROLES: tuple[Role, ...] = ("metrics", "submit", "read", "reviewer", "admin")
"""metrics: figures only. submit: studies in. read: released results. reviewer: those too that are kept back, and decides on
them. admin: repairs, and sees what is said of all results, but no file that names a patient.
"""
_LINE = re.compile(
    r"(?P<name>[\w.@^'-]+(?: [\w.@^'-]+)*)\s+(?P<roles>[a-z,]+)\s+(?P<digest>[0-9a-f]{64})"
    r"(?:\s+expires=(?P<expires>\d{4}-\d\d-\d\d))?"
)
DAYS = 365
"""How long a token holds where nothing else is said."""

_MOST_DAYS = 3650
_SOON_DAYS = 14

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Somebody with a token; `expires` is its last day (UTC), None where it has none."""

    name: str
    roles: frozenset[str]
    expires: date | None = None

    @property
    def is_expired(self) -> bool:
        """Whether the last day of the token is over."""
        return self.expires is not None and datetime.now(UTC).date() > self.expires

    def may(self, *roles: Role) -> bool:
        """Whether one of these roles is theirs; a reviewer reads, else no role holds another."""
        return bool(self.roles & set(roles)) or ("read" in roles and "reviewer" in self.roles)

    @property
    def may_decide(self) -> bool:
        """Whether they may verify, release or refuse a result: a reviewer with a person's name. No other role stands for it."""
        return "reviewer" in self.roles and is_person_name(self.name)


def new_token(name: str, roles: list[str], days: int = DAYS) -> tuple[str, str]:
    """A new token, and the line that lets its holder in for so many days from today.

    Raises:
        UsageError: A name that cannot stand in the file, no such role, a reviewer without a person's name, or a number of
            days that no token has.
    """
    if "reviewer" in roles and not is_person_name(name):
        raise UsageError(
            f"the reviewer's name is {name!r}; Family^Given is needed, such as Rossi^Anna, because it stands in verified "
            "reports; give the person's name"
        )
    if not 1 <= days <= _MOST_DAYS:
        raise UsageError(f"days is {days}; 1 to {_MOST_DAYS} is needed; a token that is to hold longer is made anew")
    token = secrets.token_urlsafe(32)
    expires = datetime.now(UTC).date() + timedelta(days=days)
    line = f"{name} {','.join(roles)} {_digest(token)} expires={expires.isoformat()}"
    _parsed(line, "the new line")
    return token, line


def read_tokens(path: Path) -> dict[str, Holder]:
    """sha256 of each token -> whose it is.

    Raises:
        UsageError: The file is absent, or a line is none.
    """
    return dict(_parsed(text, f"{path.name}, line {number}") for number, text in _lines(path))


class Tokens:
    """A file of tokens that is read again when it changed; several threads may ask."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError as `read_tokens`."""
        self._path, self._lock = path, threading.Lock()
        self._version = _version(path)
        self._known = read_tokens(path)
        self._warn()

    def holder_of(self, token: str) -> Holder | None:
        """Whose token it is by the file as it is now, expired or not; None for nobody's."""
        with self._lock:
            version = _version(self._path)
            if version != self._version:
                self._known, self._version = self._read_again(), version
                self._warn()
            known = self._known
        return holder_of(token, known)

    def _read_again(self) -> dict[str, Holder]:
        """The lines that can be used. A running node does not end because of one that cannot, and nobody keeps what was taken
        from them: a line that is not there or is none lets nobody in.
        """
        known: dict[str, Holder] = {}
        try:
            for number, text in _lines(self._path):
                try:
                    known.update([_parsed(text, f"{self._path.name}, line {number}")])
                except UsageError as error:
                    _logger.error("%s; the line lets nobody in", error)
        except UsageError as error:
            _logger.error("%s; nobody is let in", error)
        return known

    def _warn(self) -> None:
        endless = sorted(one.name for one in self._known.values() if one.expires is None)
        if endless:
            _logger.warning(
                "tokens without a last day: %s; one with a last day is needed; make new ones with monai-unet token",
                ", ".join(endless),
            )
        soon = datetime.now(UTC).date() + timedelta(days=_SOON_DAYS)
        for one in self._known.values():
            if one.expires is not None and one.expires <= soon:
                _logger.warning(
                    "the token of %s holds until %s; make a new one with monai-unet token", one.name, one.expires
                )


def _version(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number from 1, text) of each line that is no comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read ({type(error).__name__}); a file of tokens is needed; make lines with monai-unet token"
        ) from error
    texts = ((number, line.split("#")[0].strip()) for number, line in enumerate(lines, start=1))
    return [(number, text) for number, text in texts if text]


def holder_of(token: str, known: dict[str, Holder]) -> Holder | None:
    """Whose token it is; None for nobody's. Takes as long for any token."""
    digest, found = _digest(token), None
    for one, holder in known.items():
        if hmac.compare_digest(one, digest):
            found = holder
    return found


def _parsed(text: str, where: str) -> tuple[str, Holder]:
    found = _LINE.fullmatch(text)
    roles = frozenset(found["roles"].split(",")) if found else frozenset()
    if found is None or len(found["name"]) > LONGEST_NAME or not roles <= set(ROLES):
        raise UsageError(
            f"{where} is no token's; a name, some of {', '.join(ROLES)} with commas, a sha256 and expires=YYYY-MM-DD are "
            "needed; make it with monai-unet token"
        )
    try:
        expires = date.fromisoformat(found["expires"]) if found["expires"] else None
    except ValueError as error:
        raise UsageError(
            f"{where}: {found['expires']} is no day; one such as 2027-06-30 is needed; correct it"
        ) from error
    return found["digest"], Holder(found["name"], roles, expires)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
