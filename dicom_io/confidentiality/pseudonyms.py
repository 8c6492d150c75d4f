"""New names for old ones, derived from a secret key: UIDs, identifiers, dates.

The same key gives the same names in every run, so that objects which refer to each other keep doing so, whenever and
in whatever order they are processed. Everything is HMAC-SHA256 (RFC 2104): without the key nothing can be turned back
and no guess can be confirmed; whoever has the key can confirm guesses, so the key is as secret as the identities.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from datetime import date, timedelta
from pathlib import Path

from pydicom.uid import UID_dictionary

from dicom_io.errors import DicomIoError

KEY_BYTES = 32
SHORTEST_KEY_BYTES = 16
LONGEST_SHIFT_DAYS = 3650
TOKEN_PREFIX = "ANON-"
TOKEN_DIGITS = 11  # with the prefix 16 characters, what SH and AE may hold (PS3.5 6.2); 44 bits keep patients apart

_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})", re.ASCII)  # the dots are ACR-NEMA's
_TIME = re.compile(r"(?:\d{2}){0,3}(?:\.\d{1,6})?(?:[+-]\d{4})?", re.ASCII)


class DeidentificationError(DicomIoError):
    """The caller asked for what de-identification cannot or must not do, or an object must not be shared."""


class Pseudonyms:
    """Names under one key."""

    def __init__(self, key: bytes) -> None:
        if len(key) < SHORTEST_KEY_BYTES:
            raise DeidentificationError(
                f"the key has {len(key)} bytes; at least {SHORTEST_KEY_BYTES} are needed; let this program make one"
            )
        self._key = key

    def uid(self, old: str) -> str:
        """A UID under 2.25 (PS3.5 B.2) in the place of `old`; registered UIDs (PS3.6 Annex A) and "" stay as they are."""
        old = old.strip("\0 ")
        if not old or old in UID_dictionary:
            return old
        number = int.from_bytes(self._digest("uid", old)[:16], "big")
        number = number & ~(0xF << 76) | 8 << 76  # RFC 9562: version 8, own content
        number = number & ~(3 << 62) | 2 << 62  # and the variant that all of them have
        return f"2.25.{number}"

    def token(self, old: str) -> str:
        """16 ASCII characters in the place of a name, identifier or text."""
        return TOKEN_PREFIX + self._digest("text", old.strip()).hex()[:TOKEN_DIGITS]

    def shift_days(self, patient: str) -> int:
        """-1 to -3650: by how many days all dates of `patient` move; back, so that none lies in the future."""
        return -1 - int.from_bytes(self._digest("days", patient.strip())[:8], "big") % LONGEST_SHIFT_DAYS

    def _digest(self, purpose: str, text: str) -> bytes:
        return hmac.new(self._key, f"{purpose}\0{text}".encode(errors="surrogateescape"), hashlib.sha256).digest()


def shifted(text: str, days: int, vr: str) -> str | None:
    """A value of VR DA or DT moved by whole days; time of day and zone stay.

    Returns:
        The new text; "" for ""; None where there is no whole date to move (a year alone, a range, nonsense).
    """
    text = text.strip("\0 ")
    if not text:
        return ""
    found = _DATE.match(text)
    rest = text[found.end() :] if found else ""
    if found is None or (rest and vr == "DA") or not _TIME.fullmatch(rest):
        return None
    try:
        moved = date(*(int(part) for part in found.groups())) + timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}{rest}"


def new_key() -> bytes:
    """A random key; what it makes cannot be made again once it is forgotten."""
    return secrets.token_bytes(KEY_BYTES)


def key_from(path: Path, *, away_from: Path) -> bytes:
    """The key in a file; makes the file, for its owner only (mode 0600), where there is none.

    Args:
        path: One line of hexadecimal digits.
        away_from: The folder that will be given away; the key must not lie in it.

    Raises:
        DeidentificationError: The file holds no key, or lies in that folder.
    """
    if away_from.resolve() in path.resolve().parents:
        raise DeidentificationError(
            f"the key file {path} lies in the output folder; whoever has key and data can confirm who is who; keep it "
            "elsewhere"
        )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_key(path)
    key = new_key()
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key.hex() + "\n")
    return key


def _read_key(path: Path) -> bytes:
    text = path.read_bytes().strip()
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except (UnicodeDecodeError, ValueError):
        key = b""
    if len(key) < SHORTEST_KEY_BYTES:
        raise DeidentificationError(
            f"{path} holds no key; one line of at least {2 * SHORTEST_KEY_BYTES} hexadecimal digits is needed; name a "
            "file that does not exist, and one is made"
        )
    return key
