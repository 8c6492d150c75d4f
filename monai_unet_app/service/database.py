"""The SQLite file of a node: its connection, its transactions, its clock, and the head of the audit trail.

Only the node's own process writes here; several of its threads may. Tables and rows are in `service.rows`.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from monai_unet_app.errors import UsageError
from monai_unet_app.service.rows import SCHEMA, Row

_COUNTED = "SELECT verdict, count(*) FROM results WHERE folder != '' AND state != 'not processed'"
"""Results that the quality gate has judged, or that have no gate."""


_LATER_COLUMNS = (
    ("deliveries", "since", "REAL"),
    ("jobs", "plan", "TEXT NOT NULL DEFAULT ''"),
    ("results", "bundle", "TEXT NOT NULL DEFAULT ''"),
)
_READ_S = 2.0
"""How long a query waits for a file that another process keeps from being read."""


@dataclass(frozen=True)
class Head:
    """The last line of an audit trail.

    Attributes:
        n: Number of the line; 0 for an empty trail.
        digest: sha256 of the line.
    """

    n: int
    digest: str


class Database:
    """An open `node.sqlite`. Changes and queries have a connection each, so that no query waits for a change."""

    def __init__(self, path: Path) -> None:
        """Opens the file, making it if need be. Jobs that were at work when the node died wait again, at no cost.

        Raises:
            UsageError: The file is no such database, or is damaged.
        """
        # Reentrant: a transaction may be within another transaction of the same thread.
        self._path, self._lock, self._query_lock = path, threading.RLock(), threading.Lock()
        self._changing: int | None = None  # the thread within a transaction
        self._waits_since: float | None = None  # monotonic clock
        self._opened = time.monotonic()
        # isolation_level=None: sqlite3 begins no transaction by itself; `transaction` says where each begins and ends.
        # The lock keeps threads apart, so SQLite need not check them.
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        self._db.row_factory = sqlite3.Row
        try:
            # Other connections read while the node writes (WAL). FULL, because WAL with NORMAL may lose the last
            # commits in a power failure.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(SCHEMA)
            for table, column, kind in _LATER_COLUMNS:  # which a file of an earlier version lacks
                if column not in {row["name"] for row in self._db.execute(f"PRAGMA table_info({table})")}:
                    self._db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
            self._db.execute(f"INSERT INTO totals {_COUNTED} AND NOT EXISTS (SELECT 1 FROM totals) GROUP BY verdict")
            self._db.execute("INSERT OR IGNORE INTO clock VALUES (1, ?)", (time.time(),))
            (self._begun_s,) = self._db.execute("SELECT seconds FROM clock").fetchone()
            # The node died, and not the worker: the attempt does not count as one of the job's tries.
            self._db.execute("UPDATE jobs SET state = 'queued', attempts = attempts - 1 WHERE state = 'working'")
            self._queries = _open_read_only(path, _READ_S)
        except sqlite3.DatabaseError as error:
            self._db.close()
            if isinstance(error, sqlite3.OperationalError):  # such as a full disk: the file itself is sound
                raise
            raise UsageError(
                f"{path} is damaged ({error}); a sound database is needed; move it away: it is made again from audit.jsonl and "
                "the received files"
            ) from error

    def close(self) -> None:
        """Closes the file; no other method may be called afterwards."""
        with self._lock:
            with suppress(sqlite3.Error):
                self._record_clock()
            self._db.close()
        with self._query_lock:
            self._queries.close()

    @property
    def busy_s(self) -> float:
        """Seconds for which changes have been waiting because another process has locked the file; 0 if none waits."""
        since = self._waits_since
        return 0.0 if since is None else time.monotonic() - since

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Changes made within are recorded at its end, or none of them after an error. A transaction may be within another."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            # Takes the lock for writing at once: a transaction that reads first and writes later could fail in between.
            self._waits_since = self._waits_since or time.monotonic()
            try:
                self._db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not is_locked(error):  # else the next change goes on waiting
                    self._waits_since = None
                raise
            self._waits_since = None
            self._changing = threading.get_ident()
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite may have rolled back by itself, on a full disk for instance
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._changing = None

    def change(self, statement: str, *values: Any) -> int:
        """Executes a statement in the transaction that is open, else in its own; gives the number of rows that it changed."""
        with self.transaction() as db:
            return db.execute(statement, values).rowcount

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Rows of a query; within a transaction of this thread, with the changes made so far."""
        if self._changing == threading.get_ident():
            return self._db.execute(query, values).fetchall()
        # In WAL mode a query is answered while another connection, also of another process, changes the file.
        with self._query_lock:
            return self._queries.execute(query, values).fetchall()

    def select(self, kind: type[Row], query: str, *values: Any) -> list[Row]:
        """Rows of a query as objects; the query gives a column for each of their fields, and may give more."""
        names = kind.__dataclass_fields__
        return [kind(*(row[name] for name in names)) for row in self.rows(query, *values)]

    def column(self, query: str, *values: Any) -> list[Any]:
        """First value of each row of a query."""
        return [row[0] for row in self.rows(query, *values)]

    def check_writable(self) -> None:
        """Writes something and reads it again, by a connection that knows nothing of it.

        Raises:
            sqlite3.Error: The file cannot be written or read, is locked, or is not the file that was opened.
        """
        with self.transaction():
            self._record_clock()
            (written,) = self.column("SELECT seconds FROM clock")
        # The open connection would go on with a file that was deleted or replaced; a new connection does not.
        with closing(_open_read_only(self._path)) as other:
            if other.execute("SELECT seconds FROM clock").fetchone()["seconds"] != written:
                raise sqlite3.DatabaseError("the value that was written was not read back")

    # the node's own clock

    def now_s(self) -> float:
        """Seconds by the node's own clock, which was set by the time of day once and goes on only while the node runs.

        Times of retention are counted by this clock: when the time of day jumps, no study is forgotten for it.
        """
        return float(self._begun_s) + time.monotonic() - self._opened

    def _record_clock(self) -> None:
        self.change("UPDATE clock SET seconds = ?", self.now_s())

    # the head of the audit trail

    def head(self) -> Head | None:
        """The last line of the audit trail that was recorded; None if no line was."""
        return _head(self.rows("SELECT n, digest FROM audit_head"))

    def record_head(self, head: Head) -> None:
        """Records the last line of the audit trail."""
        self.change("INSERT OR REPLACE INTO audit_head VALUES (1, ?, ?)", head.n, head.digest)

    def keep_line(self, event: str, facts: Mapping[str, Any]) -> None:
        """Keeps a line that the audit trail cannot take now."""
        self.change("INSERT INTO kept_lines (event, facts) VALUES (?, ?)", event, json.dumps(facts))

    def kept_lines(self) -> list[tuple[str, dict[str, Any]]]:
        """Event and facts of the lines that the audit trail could not take, the first line first."""
        kept = self.rows("SELECT event, facts FROM kept_lines ORDER BY n")
        return [(row["event"], json.loads(row["facts"])) for row in kept]

    def forget_kept_lines(self) -> None:
        """Forgets the lines that were kept for the audit trail, which has them now."""
        self.change("DELETE FROM kept_lines")

    # for `service.restore`

    @property
    def is_new(self) -> bool:
        """Whether it never had a job."""
        # AUTOINCREMENT keeps the last number in sqlite_sequence, even after all jobs were forgotten.
        return not self.rows("SELECT 1 FROM sqlite_sequence WHERE name = 'jobs'")

    def set_next_number(self, table: Literal["jobs", "results"], number: int) -> None:
        """Gives the next job or result this number."""
        with self.transaction():
            if not self.change("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", number - 1, table):
                self.change("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", table, number - 1)


def is_locked(error: Exception) -> bool:
    """Whether an error says that another connection has locked the database."""
    # The low byte of an extended code is the primary code (sqlite.org/rescode.html).
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def read_head(path: Path) -> Head | None:
    """The last line of the audit trail that a node's database remembers; None if it remembers none. Changes nothing.

    Raises:
        sqlite3.Error: The file cannot be read.
    """
    with closing(_open_read_only(path)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'audit_head'").fetchall():
            return None  # of an earlier version
        return _head(db.execute("SELECT n, digest FROM audit_head").fetchall())


def _open_read_only(path: Path, timeout_s: float = 5.0) -> sqlite3.Connection:
    """A connection that several threads may use, one at a time."""
    uri = f"{path.resolve().as_uri()}?mode=ro"
    db = sqlite3.connect(uri, uri=True, timeout=timeout_s, check_same_thread=False)
    db.row_factory = sqlite3.Row
    return db


def _head(rows: list[Any]) -> Head | None:
    """The only row of the table `audit_head`, if there is a row."""
    return Head(*rows[0]) if rows else None
