"""Pseudonyms of UIDs, identifiers and dates, derived from a secret key.

The same key gives the same pseudonyms in every run, so that references between objects stay valid in whatever order the
objects are processed. All pseudonyms are HMAC-SHA256 (RFC 2104): without the key they cannot be reversed, and no guess can be
confirmed. With the key guesses can be confirmed, so the key is as secret as the identities.
"""

import hashlib
import hmac
import os
import re
import secrets
from datetime import date, timedelta
from pathlib import Path

from pydicom.uid import UID_dictionary  # type: ignore[attr-defined]  # a table of pydicom that it imports there

from dicom_io.errors import DicomIoError

# RFC 2104, 3: a key as long as the digest of SHA-256; a shorter key weakens it, a longer key adds little.
KEY_BYTES = 32
SHORTEST_KEY_BYTES = 16
LONGEST_SHIFT_DAYS = 3650
TOKEN_PREFIX = "ANON-"
TOKEN_DIGITS = 11  # 16 characters with the prefix, the most of SH and AE (PS3.5 6.2); 44 bits keep patients apart

_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})", re.ASCII)  # the dots are ACR-NEMA's
_TIME = re.compile(r"(?:\d{2}){0,3}(?:\.\d{1,6})?(?:[+-]\d{4})?", re.ASCII)


class DeidentificationError(DicomIoError):
    """De-identification cannot or must not do what was asked, or an object must not be shared."""


class Pseudonyms:
    """Pseudonyms under one key."""

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
        number = number & ~(3 << 62) | 2 << 62  # and the variant of that RFC
        return f"2.25.{number}"

    def token(self, old: str) -> str:
        """16 ASCII characters in the place of a name, identifier or text."""
        return TOKEN_PREFIX + self._digest("text", old.strip()).hex()[:TOKEN_DIGITS]

    def shift_days(self, patient: str) -> int:
        """-1 to -3650: days by which all dates of `patient` are shifted; back, so that no date lies in the future."""
        return -1 - int.from_bytes(self._digest("days", patient.strip())[:8], "big") % LONGEST_SHIFT_DAYS

    def _digest(self, purpose: str, text: str) -> bytes:
        # The purpose comes first, so a UID and a text that are equal get pseudonyms that show no relation.
        return hmac.new(self._key, f"{purpose}\0{text}".encode(errors="surrogateescape"), hashlib.sha256).digest()


def shifted(text: str, days: int, vr: str) -> str | None:
    """A value of VR DA or DT shifted by whole days; time of day and zone stay.

    Returns:
        The new text; "" for ""; None where there is no whole date to shift (a year alone, a range, an invalid date).
    """
    text = text.strip("\0 ")
    if not text:
        return ""
    match = _DATE.match(text)
    rest = text[match.end() :] if match else ""
    if match is None or (rest and vr == "DA") or not _TIME.fullmatch(rest):
        return None
    try:
        moved = date(*(int(part) for part in match.groups())) + timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}{rest}"


def new_key() -> bytes:
    """A random key; without it the same pseudonyms cannot be made again."""
    return secrets.token_bytes(KEY_BYTES)


def key_from(path: Path, *, away_from: Path) -> bytes:
    """The key in a file; if there is no file, makes it, for its owner only (mode 0600).

    Args:
        path: One line of hexadecimal digits.
        away_from: The folder that will be shared; the key must not lie in it.

    Raises:
        DeidentificationError: The file holds no key, or lies in that folder.
    """
    if away_from.resolve() in path.resolve().parents:
        raise DeidentificationError(
            f"the key file {path} lies in the output folder; anybody who has key and data can confirm identities; keep it "
            "elsewhere"
        )
    try:
        # O_EXCL: of two runs that start together, one makes the key. The mode holds before the first byte is written.
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
            f"{path} does not contain a key; one line of at least {2 * SHORTEST_KEY_BYTES} hexadecimal digits is needed; "
            "name a "
            "file that does not exist, and the program makes a key"
        )
    return key
