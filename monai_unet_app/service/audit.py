"""The audit trail: who had what done to which study by which model, in lines that are chained by their digests and signed.

Each line is a JSON object with `n` (its number), `time`, `event`, the facts of the event, `previous` (sha256 of the line
before), `key` (name of the key that signs the line), `sha256` (of the line without `sha256` and `hmac`) and `hmac` (HMAC-SHA256
of `sha256` by that key). Lines are only added.

- A line that was changed, removed or inserted breaks the chain at its place. No key is needed to check this. The digest is of
  the parsed line, so the text is checked too: a name twice in a line, or other spaces, is a change.
- A trail that was computed anew as a whole has no valid signatures. The key is needed to check this.
- A trail that was deleted or cut at its end is shorter than what the node's database remembers of it.

A line is forced to the disk before the database remembers it. So a node that is killed in between has a trail that is longer
than remembered, never shorter. No patient's identity is in a trail: studies are named by their UIDs.

While the file cannot be written, nothing is done that must be recorded. What has happened all the same, because it needs no
permission of the node, is kept in the database until the file can be written again (`AuditTrail.write_or_keep`).
"""

import errno
import hashlib
import hmac
import json
import logging
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from dicom_io.files import sync_folder
from monai_unet_app.errors import AppError, InputRefusedError, UsageError
from monai_unet_app.service.database import Database, Head

BEGIN = "0" * 64
"""`previous` of the first line."""

KEY_FILE = "audit.key"
"""Name of the key's file beside the trail, unless the site names another place."""

_logger = logging.getLogger(__name__)


class TrailError(AppError):
    """The audit trail cannot be written: a fault of the node, whatever it was asked for."""


@dataclass(frozen=True)
class Verified:
    """A trail that was checked and has no fault.

    Attributes:
        lines: Number of lines.
        last: sha256 of the last line.
        signed: Number of lines, up to the last, whose signature by the key was checked; 0 without a key.
    """

    lines: int
    last: str
    signed: int = 0


@dataclass(frozen=True, repr=False)
class Key:
    """A secret that signs lines."""

    secret: bytes

    @property
    def name(self) -> str:
        """Identifies the key without giving the secret away."""
        return hashlib.sha256(b"monai-unet audit key\0" + self.secret).hexdigest()[:16]

    def sign(self, digest: str) -> str:
        """The `hmac` of a line with this sha256."""
        return hmac.new(self.secret, digest.encode(), hashlib.sha256).hexdigest()


class AuditTrail:
    """A file that grows; one process at a time may write to it."""

    def __init__(self, path: Path, key_file: Path | None, database: Database, *, new_key: bool = False) -> None:
        """Opens the trail, and makes it and its key if need be. Half a line that a crash left is moved to a file beside it.

        A trail of an earlier version, which is not signed, gets a line "signed from here on".

        Args:
            path: The trail.
            key_file: Its key; None: `audit.key` beside the trail.
            database: Remembers the head of the trail, in another place than the trail.
            new_key: The key is lost: make a new key, and say so in a line "new key".

        Raises:
            InputRefusedError: The chain is broken, a signature is wrong, or the trail is not what the database remembers.
            UsageError: The key is missing, can be read by others, or is no key; or `new_key` is given and the key is there.
        """
        self.path, self._database, self._lock = path, database, threading.Lock()
        key_file = key_file or path.with_name(KEY_FILE)
        # Before trail and key are read: half a line would look like a forged line, and a kill may have left a new key
        # under its temporary name.
        _set_torn_line_aside(path)
        new = key_file.with_name(key_file.name + ".new")
        _finish_new_key(path, key_file, new)
        key, head = read_key(key_file), database.head()
        if key is not None and new_key:
            raise UsageError(f"{key_file} exists; --new-audit-key is only for a lost key; leave it out")
        verified = verify(path, key, head or Head(0, BEGIN))
        was_signed = key is None and any("key" in line and "hmac" in line for line in entries(path))
        if was_signed and not new_key:
            raise UsageError(
                f"{path} is signed, and its key {key_file} is missing; the key is needed to go on; put it back from its "
                "copy, or if it is lost for good start once with --new-audit-key, which the trail records"
            )
        # fsync of a file does not make its name last: the folder is forced to the disk as well (fsync(2)).
        if not path.exists():
            path.touch(mode=0o640)
            sync_folder(path.parent)
        self._file = _identity(path)
        self._head = Head(verified.lines, verified.last)
        if key is None:
            # The new key takes its name after it has signed a line. A kill in between leaves the old state, or a key
            # that `_finish_new_key` finds in use.
            self._key = Key(secrets.token_bytes(32))
            _write_key(self._key, new)
            if verified.lines:
                self.write("new key" if was_signed else "signed from here on")
            _rename(new, key_file)
        else:
            self._key = key
        # A kill between line and commit leaves a trail that is longer than its head; the lines were verified above, and
        # the head follows.
        database.record_head(self._head)

    def write(self, event: str, **facts: Any) -> None:
        """Adds a line, forces it to the disk, and lets the database remember it within the transaction that is open, if any.

        Lines that the database kept come before it.

        Raises:
            TrailError: The line cannot be written, or the file is not as this process left it; no part of it is in the trail.
            OSError: The disk is full; no part of the line is in the trail.
        """
        self._add([(event, facts)])

    def write_or_keep(self, event: str, **facts: Any) -> bool:
        """Adds a line about what has happened already. Where the trail cannot be written, the database keeps the line.

        It is added later, with the time of the event as `at`.

        Returns:
            Whether the trail has the line.

        Raises:
            sqlite3.Error: The database cannot keep the line either.
        """
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            self.write(event, **facts)
        except (OSError, TrailError) as error:
            self._database.keep_line(event, {**facts, "at": at})
            _logger.error("%s; until then the database keeps the line: %s", error, event)
            return False
        return True

    def check_writable(self) -> None:
        """Checks that a line could be added now, and adds those that the database kept.

        Raises:
            TrailError: The file cannot be written, or is not as this process left it.
            OSError: The disk is full.
        """
        with self._lock, _as_trail_error(self.path):
            self._check_file()
            with self.path.open("rb+"):
                pass
        if self._database.kept_lines():
            self._add([])

    def _add(self, lines: list[tuple[str, dict[str, Any]]]) -> None:
        # The database is locked before the trail: a caller that records other changes with the line has locked it already.
        with self._database.transaction(), self._lock, _as_trail_error(self.path):
            self._check_file()
            # A kill before the commit writes kept lines twice, with the same `at`.
            kept = self._database.kept_lines()
            for event, facts in (*kept, *lines):
                self._append(event, facts)
            self._database.record_head(self._head)
            if kept:
                self._database.forget_kept_lines()

    def _append(self, event: str, facts: Mapping[str, Any]) -> None:
        line = {
            "n": self._head.n + 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            **facts,
            "previous": self._head.digest,
            "key": self._key.name,
        }
        digest = _digest(line)
        signed = {**line, "sha256": digest, "hmac": self._key.sign(digest)}
        _append(self.path, _line(signed) + "\n")
        self._file = _identity(self.path)
        self._head = Head(self._head.n + 1, digest)

    def _check_file(self) -> None:
        if _identity(self.path) != self._file:
            raise TrailError(
                f"{self.path.name} was changed, cut or replaced while the node ran; the file that the node wrote is needed; "
                "put it back, or stop the node and compare with a copy"
            )


def verify(path: Path, key: Key | None = None, head: Head | None = None) -> Verified:
    """Follows the chain from the first line to the last.

    Args:
        path: The trail; where a `head` is given, a missing file counts as empty.
        key: Every line from the first line that it signed must be signed by it. None: signatures are not checked.
        head: What was remembered of the trail, which must have that line and may be longer.

    Raises:
        InputRefusedError: A line is no JSON object, was changed, does not follow the line before, or is not signed; or the
            trail lacks lines at its end. The message says which.
    """
    last, signed = Head(0, BEGIN), 0
    for number, text in lines(path) if head is None or path.exists() else ():
        where = f"{path.name}: line {number}"
        content, digest, signature = _parse_line(text, where)
        if content.get("previous") != last.digest or content.get("n") != number:
            raise _changed(where)
        if head is not None and number == head.n and digest != head.digest:
            raise InputRefusedError(
                f"{where} is not the line recorded in the node's database; this is another trail, or it was computed again; "
                "compare it with a copy that is kept elsewhere"
            )
        if key is not None and (signed or content.get("key") == key.name):
            # As bytes: `compare_digest` raises TypeError for texts that are not ASCII, and a forged signature may be
            # any.
            if not hmac.compare_digest(key.sign(digest).encode(), signature.encode()):
                raise InputRefusedError(
                    f"{where} is not signed by the node's key; somebody else wrote it; compare the trail with a copy that is "
                    "kept elsewhere"
                )
            signed += 1
        last = Head(number, digest)
    if head is not None and last.n < head.n:
        raise InputRefusedError(
            f"{path.name} has {last.n} line(s), but the node's database records line {head.n}; lines were removed from its "
            "end, or the file was deleted; put the whole trail back from a copy. If there is no copy, also move node.sqlite "
            "away: the node continues from the rest of the trail, and later decisions are lost"
        )
    if key is not None and last.n and not signed:
        raise InputRefusedError(
            f"{path.name}: no line is signed by the key {key.name}; the trail's own key is needed, or the trail was computed "
            "again; compare it with a copy that is kept elsewhere"
        )
    return Verified(last.n, last.digest, signed)


def _parse_line(text: str, where: str) -> tuple[dict[str, Any], str, str]:
    """Content of a line, its `sha256` and its `hmac`; raises `InputRefusedError` if the line is not as it was written."""
    try:
        content = json.loads(text)
        # The digest is of the parsed line: a name that stands twice is lost in parsing, so the text is compared too.
        as_written = _line(content) == text.removesuffix("\n")
        digest, signature = content.pop("sha256"), str(content.pop("hmac", ""))
        if as_written and digest == _digest(content):
            return content, digest, signature
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _changed(where) from error
    raise _changed(where)


def _changed(where: str) -> InputRefusedError:
    return InputRefusedError(
        f"{where} was changed after it was written, or lines before it are missing; an unchanged trail is needed; compare it "
        "with a copy that is kept elsewhere"
    )


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line. Raises `InputRefusedError` if the file cannot be read."""
    try:
        # Universal newlines would also cut at a carriage return, and would hide that a line's end was changed.
        with path.open(encoding="utf-8", newline="\n") as stream:
            yield from enumerate(stream, start=1)
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefusedError(
            f"{path.name} cannot be read ({type(error).__name__}); a node's audit trail is needed"
        ) from error


def read_key(path: Path) -> Key | None:
    """The key in a file; None if there is no file.

    Raises:
        UsageError: Others can read the file, or it holds no key.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read ({type(error).__name__}); the key of an audit trail is needed"
        ) from error
    # Whoever can read the key can sign a trail of their own.
    if os.name == "posix" and mode & 0o077:
        raise UsageError(f"{path} has mode {mode & 0o777:o}; only its owner may read a key; chmod 600 it")
    try:
        secret = bytes.fromhex(text.strip())
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise UsageError(
            f"{path} does not contain a key of an audit trail; 64 hexadecimal digits are needed; put the key back"
        )
    return Key(secret)


def _write_key(key: Key, path: Path) -> None:
    path.unlink(missing_ok=True)
    with open(path, "x", opener=partial(os.open, mode=0o600)) as stream:
        stream.write(key.secret.hex() + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _finish_new_key(trail: Path, key_file: Path, new: Path) -> None:
    """Ends the change to a new key during which a node was killed: the new key stays only if it has signed a line."""
    if key_file.exists() or not new.exists():
        return
    try:
        key = read_key(new)
    except UsageError:
        key = None  # half written
    if key is not None and any(line.get("key") == key.name for line in entries(trail)):
        _rename(new, key_file)
    else:
        new.unlink()


def _rename(new: Path, key_file: Path) -> None:
    new.replace(key_file)
    sync_folder(key_file.parent)


def entries(trail: Path) -> Iterator[dict[str, Any]]:
    """The lines that are JSON objects, which are all lines of a trail that `verify` has checked; none of a missing file."""
    for _, text in lines(trail) if trail.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def _identity(path: Path) -> tuple[int, int]:
    """Number of the file at a path (its inode), and its size in bytes."""
    status = path.stat()
    return status.st_ino, status.st_size


def _digest(line: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(line, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _line(content: dict[str, Any]) -> str:
    """The text of a line with this content; all versions have written it so."""
    return json.dumps(content, ensure_ascii=False)


@contextmanager
def _as_trail_error(path: Path) -> Iterator[None]:
    """Any error of the system but that of a full disk, which goes away by itself, becomes a `TrailError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrailError(
            f"{path.name} cannot be written ({error.strerror or type(error).__name__}); the trail that the node wrote is "
            "needed; put the file back"
        ) from error


def _append(path: Path, text: str) -> None:
    size = path.stat().st_size
    try:
        with path.open("ab") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        os.truncate(path, size)  # a full disk may have taken half a line
        raise


def _set_torn_line_aside(path: Path) -> None:
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.with_suffix(".torn").open("ab") as stream:
            stream.write(content[whole:] + b"\n")
        # Written beside the trail before it is cut off: a crash in between keeps the half line twice.
        os.truncate(path, whole)
