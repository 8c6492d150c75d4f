"""Permissions of the HTTP API: tokens with roles. Only the digests of tokens are kept.

A line of the file of tokens is `name role[,role] sha256 expires=YYYY-MM-DD`, made by `monai-unet node token`; # begins a
comment. A line without a date, as earlier versions made it, never expires. The name of a reviewer stands in verified reports,
in DICOM's form Family^Given. A holder without such a name decides nothing, whatever their roles. The file is read again when it
changes.
"""

import hashlib
import hmac
import logging
import re
import secrets
import threading
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

from dicom_io.reading.headers import LONGEST_NAME, is_person_name
from monai_unet_app.errors import UsageError

Role = Literal["metrics", "submit", "read", "reviewer", "approver", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""metrics: only metrics. submit: sends studies. read: released results. reviewer: also held-back results, and decides on
them. approver: decides about models, and sees what is said of rules. admin: repairs, and sees the state of all results, but
opens no file that names a patient.
"""
_LINE = re.compile(
    r"(?P<name>[\w.@^'-]+(?: [\w.@^'-]+)*)\s+(?P<roles>[a-z,]+)\s+(?P<digest>[0-9a-f]{64})"
    r"(?:\s+expires=(?P<expires>\d{4}-\d\d-\d\d))?"
)
DAYS = 365
"""Days for which a token is valid by default."""

_MOST_DAYS = 3650
_SOON_DAYS = 14

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """The holder of a token; `expires` is the last day (UTC) of the token, None for a token that never expires."""

    name: str
    roles: frozenset[str]
    expires: date | None = None

    @property
    def is_expired(self) -> bool:
        """Whether the last day of the token is over."""
        return self.expires is not None and datetime.now(UTC).date() > self.expires

    def may(self, *roles: Role) -> bool:
        """Whether the holder has one of these roles. A reviewer may read; no other role includes another."""
        return bool(self.roles & set(roles)) or ("read" in roles and "reviewer" in self.roles)

    def decides_as(self, role: Role) -> bool:
        """Whether the holder has a role in which a person decides; only a holder with a person's name decides."""
        return role in self.roles and is_person_name(self.name)


def new_token(name: str, roles: list[str], days: int = DAYS) -> tuple[str, str]:
    """A new token, and the line for the file of tokens, valid for so many days from today.

    Raises:
        UsageError: The name cannot stand in the file, a role is unknown, a reviewer or approver has no person's name, or the
            number of days is out of range.
    """
    deciding = [role for role in ("reviewer", "approver") if role in roles]
    if deciding and not is_person_name(name):
        raise UsageError(
            f"the {deciding[0]}'s name is {name!r}; Family^Given is needed, such as Rossi^Anna, because it is written into "
            "reports and records; give the person's name"
        )
    if not 1 <= days <= _MOST_DAYS:
        raise UsageError(f"days is {days}; 1 to {_MOST_DAYS} is needed; for a longer time, make a new token later")
    token = secrets.token_urlsafe(32)
    expires = datetime.now(UTC).date() + timedelta(days=days)
    line = f"{name} {','.join(roles)} {_digest(token)} expires={expires.isoformat()}"
    _parsed(line, "the new line")
    return token, line


def read_tokens(path: Path) -> dict[str, Holder]:
    """sha256 of each token -> its holder.

    Raises:
        UsageError: The file cannot be read, or a line is invalid.
    """
    return dict(_parsed(text, where) for where, text in _lines(path))


class Tokens:
    """A file of tokens, which is read again when it changes; several threads may use it."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError as `read_tokens`."""
        self._path, self._lock = path, threading.Lock()
        self._version = _version(path)
        self._known = read_tokens(path)
        self._warn()

    def holder_of(self, token: str) -> Holder | None:
        """The holder of a token, expired or not, by the current file; None for an unknown token.

        It takes the same time for every token, so that timing tells nothing.
        """
        with self._lock:
            # Taken before the lines are read: a change in between is seen at the next request.
            version = _version(self._path)
            if version != self._version:
                self._known, self._version = self._read_again(), version
                self._warn()
            known = self._known
        digest = _digest(token)
        matches = [holder for known_digest, holder in known.items() if hmac.compare_digest(known_digest, digest)]
        return matches[-1] if matches else None

    def _read_again(self) -> dict[str, Holder]:
        """The holders of all valid lines. An invalid line lets nobody in, and does not stop a running node; a holder whose line
        was removed is not let in any more.
        """
        known: dict[str, Holder] = {}
        try:
            for where, text in _lines(self._path):
                try:
                    known.update([_parsed(text, where)])
                except UsageError as error:
                    _logger.error("%s; the line gives no access", error)
        except UsageError as error:
            _logger.error("%s; nobody has access", error)
        return known

    def _warn(self) -> None:
        endless = sorted(holder.name for holder in self._known.values() if holder.expires is None)
        if endless:
            _logger.warning(
                "tokens without a last day: %s; a last day is needed; make new tokens with monai-unet node token",
                ", ".join(endless),
            )
        soon = datetime.now(UTC).date() + timedelta(days=_SOON_DAYS)
        for holder in self._known.values():
            if holder.expires is not None and holder.expires <= soon:
                _logger.warning(
                    "the token of %s is valid until %s; make a new token with monai-unet node token",
                    holder.name,
                    holder.expires,
                )


def _version(path: Path) -> tuple[int, ...]:
    """Times, size and inode of a file; a file that is written or replaced has others. Empty for a missing file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _lines(path: Path) -> list[tuple[str, str]]:
    """(place for messages, text) of each line, without comments and empty lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read ({type(error).__name__}); a file of tokens is needed; make lines with monai-unet node token"
        ) from error
    texts = ((f"{path.name}, line {number}", line.split("#")[0].strip()) for number, line in enumerate(lines, start=1))
    return [(where, text) for where, text in texts if text]


def _parsed(text: str, where: str) -> tuple[str, Holder]:
    match = _LINE.fullmatch(text)
    roles = frozenset(match["roles"].split(",")) if match else frozenset()
    if match is None or len(match["name"]) > LONGEST_NAME or not roles <= set(ROLES):
        raise UsageError(
            f"{where} is not a line of a token; a name, some of {', '.join(ROLES)} with commas, a sha256 and "
            "expires=YYYY-MM-DD are needed; make it with monai-unet node token"
        )
    try:
        expires = date.fromisoformat(match["expires"]) if match["expires"] else None
    except ValueError as error:
        raise UsageError(
            f"{where}: {match['expires']} is not a date; a date such as 2027-06-30 is needed; correct it"
        ) from error
    return match["digest"], Holder(match["name"], roles, expires)


def _digest(token: str) -> str:
    # No salt is needed: unlike a password, a token has 256 random bits (`new_token`) and cannot be guessed.
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
