"""What the node knows about its studies, in SQLite: which wait, which are at work, which results go where.

Instances are not in it: they are files, forced to the disk before their sender was told so. `reconcile` compares the files with
what is recorded, so that a study is never forgotten, whatever happened to this file; `service.restore` makes it anew from the
audit trail. Only the node's own process writes here.

A study has one job for each time that it became complete. A job has results, one for each series that a rule picked, and a
result has deliveries, one for each destination. What was not processed has deliveries where its rule wants a notice of that:
it is done with, and stays what it is, whatever becomes of the notice.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from monai_unet_app.errors import UsageError
from monai_unet_app.service.audit import Head
from monai_unet_app.service.recording import add_deliveries, add_result, close_if_done, count_verdict, listed
from monai_unet_app.service.rows import (
    DECIDABLE,
    FOLLOW_UPS,
    KEPT_BACK,
    OPEN_RESULTS,
    RELEASED,
    SCHEMA,
    DecidedError,
    Decision,
    DecisionKind,
    Delivery,
    DeliveryState,
    Job,
    JobState,
    NewResult,
    Result,
    ResultState,
)

__all__ = [
    "DECIDABLE",
    "FOLLOW_UPS",
    "KEPT_BACK",
    "OPEN_RESULTS",
    "RELEASED",
    "DecidedError",
    "Decision",
    "DecisionKind",
    "Delivery",
    "DeliveryState",
    "Job",
    "JobState",
    "NewResult",
    "Queue",
    "Result",
    "ResultState",
]

_ALIKE = (
    "(SELECT one.id FROM results one JOIN results me ON one.study = me.study AND one.rule = me.rule AND one.series = me.series "
    "AND one.digest = me.digest WHERE me.id = ? AND (me.digest != '' OR one.id = me.id))"
)
"""Results of the same bytes as one, and itself."""

_COUNTED = "SELECT verdict, count(*) FROM results WHERE folder != '' AND state != 'not processed'"
"""Results that the quality gate has judged, or that have no gate."""


class Queue:
    """The node's memory; several threads of its process may use it."""

    def __init__(self, path: Path) -> None:
        """Opens it, making it if need be. What was at work when the node died waits again, and not at its own cost.

        Raises:
            UsageError: It is no such file, or damaged.
        """
        self._path, self._lock = path, threading.RLock()
        self._opened = time.monotonic()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(SCHEMA)
            if "since" not in {row["name"] for row in self._db.execute("PRAGMA table_info(deliveries)")}:
                self._db.execute("ALTER TABLE deliveries ADD COLUMN since REAL")  # a file of an earlier version
            self._db.execute(f"INSERT INTO totals {_COUNTED} AND NOT EXISTS (SELECT 1 FROM totals) GROUP BY verdict")
            self._db.execute("INSERT OR IGNORE INTO clock VALUES (1, ?)", (time.time(),))
            (self._begun_s,) = self._db.execute("SELECT seconds FROM clock").fetchone()
            self._db.execute("UPDATE jobs SET state = 'queued', attempts = attempts - 1 WHERE state = 'working'")
        except sqlite3.OperationalError:  # such as a full disk
            raise
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise UsageError(
                f"{path} is damaged ({error}); the node's own is needed; move it away: it is made anew from audit.jsonl and "
                "the received files"
            ) from error

    def close(self) -> None:
        """Nothing may be asked of it afterwards."""
        with self._lock:
            with suppress(sqlite3.Error):
                self.keep_time()
            self._db.close()

    @contextmanager
    def all_or_none(self) -> Iterator[sqlite3.Connection]:
        """What happens within is recorded at its end; nothing of it is if it ends with an error. One may be within another."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite may have undone it by itself, on a full disk for instance
                    self._db.execute("ROLLBACK")
                raise

    def try_out(self) -> None:
        """Writes something and reads it again, by a connection that knows nothing of it.

        Raises:
            sqlite3.Error: The file cannot be written or read, is locked, or is not the one that was opened.
        """
        with self.all_or_none() as db:
            self.keep_time()
            (written,) = db.execute("SELECT seconds FROM clock").fetchone()
        with closing(sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)) as other:
            if other.execute("SELECT seconds FROM clock").fetchone() != (written,):
                raise sqlite3.DatabaseError("what was written is not read again")

    @property
    def is_new(self) -> bool:
        """Whether it never had a job."""
        return not self._rows("SELECT 1 FROM sqlite_sequence WHERE name = 'jobs'")

    # the node's own clock

    def now_s(self) -> float:
        """Seconds by the node's own clock: it was set by the time of day once, and goes on only while the node runs.

        What is kept for some time is kept by this clock, so the time of day may jump and nothing is forgotten.
        """
        return self._begun_s + time.monotonic() - self._opened

    def keep_time(self) -> None:
        """Records how late it is by the node's own clock."""
        with self.all_or_none() as db:
            db.execute("UPDATE clock SET seconds = ?", (self.now_s(),))

    # the head of the audit trail: `service.audit.Anchor`

    def head(self) -> Head | None:
        """The last line of the audit trail that was recorded; None if none was."""
        return _head_of(self._rows("SELECT n, digest FROM audit_head"))

    def keep_head(self, head: Head) -> None:
        """Records the last line of the audit trail."""
        with self.all_or_none() as db:
            db.execute("INSERT OR REPLACE INTO audit_head VALUES (1, ?, ?)", (head.n, head.digest))

    def number_next(self, table: Literal["jobs", "results"], number: int) -> None:
        """The next job or result gets this number."""
        with self.all_or_none() as db:
            if not db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (number - 1, table)).rowcount:
                db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, number - 1))

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # studies

    def arriving(self, study: str, instances: int) -> None:
        """Instances of a study came that no job has seen."""
        with self.all_or_none() as db:
            db.execute(
                "INSERT INTO studies VALUES (?, ?, 0, 'arriving', ?) ON CONFLICT (uid) DO UPDATE SET "
                "instances = instances + excluded.instances, state = 'arriving', last = excluded.last",
                (study, instances, self.now_s()),
            )

    def reconcile(self, found: Mapping[str, int]) -> list[str]:
        """Studies whose files are not what was recorded: they count as arriving. `found`: instances on the disk by study.

        Studies that were complete, and whose job was lost, are among them.
        """
        known = {row["uid"]: row for row in self._rows("SELECT * FROM studies")}
        jobs = {(row["study"], row["version"]) for row in self._rows("SELECT study, version FROM jobs")}
        changed = [
            study
            for study, instances in found.items()
            if study not in known
            or known[study]["instances"] != instances
            or known[study]["state"] == "arriving"
            or (study, known[study]["version"]) not in jobs
        ]
        with self.all_or_none() as db:
            for study in changed:
                version = known[study]["version"] if study in known else 0
                db.execute(
                    "INSERT OR REPLACE INTO studies VALUES (?, ?, ?, 'arriving', ?)",
                    (study, found[study], version, self.now_s()),
                )
        return changed

    def settle(self, study: str) -> Job:
        """The study is complete for now: a job of its own waits."""
        with self.all_or_none() as db:
            db.execute("UPDATE studies SET state = 'complete', version = version + 1 WHERE uid = ?", (study,))
            db.execute(
                "INSERT INTO jobs (study, version, state, created) SELECT uid, version, 'queued', ? FROM studies WHERE uid = ?",
                (time.time(), study),
            )
            # an older version that nobody has begun says nothing that this one does not
            db.execute(
                "UPDATE jobs SET state = 'done', reason = 'superseded', done = ? WHERE study = ? AND state = 'queued' "
                "AND version < (SELECT version FROM studies WHERE uid = ?)",
                (self.now_s(), study, study),
            )
            row = db.execute("SELECT * FROM jobs WHERE study = ? ORDER BY version DESC LIMIT 1", (study,)).fetchone()
        return _job(row)

    def instances(self, study: str) -> int:
        """How many of a study are recorded."""
        return sum(row["instances"] for row in self._rows("SELECT instances FROM studies WHERE uid = ?", study))

    def find_studies(self, part: str, limit: int = 50) -> list[str]:
        """UIDs of the studies that contain a text, the newest first."""
        rows = self._rows("SELECT uid FROM studies WHERE instr(uid, ?) > 0 ORDER BY last DESC LIMIT ?", part, limit)
        return [str(row["uid"]) for row in rows]

    def quiet_s(self, study: str) -> float:
        """Seconds since the last instance of a study was recorded, by the node's own clock."""
        return self.now_s() - max(
            (row["last"] for row in self._rows("SELECT last FROM studies WHERE uid = ?", study)), default=0
        )

    # jobs

    def waiting(self) -> list[Job]:
        """Jobs that nobody works at, the oldest first; of studies at work none."""
        return [
            _job(row)
            for row in self._rows(
                "SELECT * FROM jobs WHERE state = 'queued' AND study NOT IN (SELECT study FROM jobs WHERE state = 'working') "
                "ORDER BY created, id"
            )
        ]

    def job(self, number: int) -> Job | None:
        rows = self._rows("SELECT * FROM jobs WHERE id = ?", number)
        return _job(rows[0]) if rows else None

    def begin(self, job: int) -> Job:
        """A worker has it now."""
        with self.all_or_none() as db:
            db.execute("UPDATE jobs SET state = 'working', attempts = attempts + 1 WHERE id = ?", (job,))
            return _job(db.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone())

    def put_back(self, job: int, reason: str, *, counts: bool = True) -> None:
        """It waits again; `counts`: the attempt is held against it."""
        with self.all_or_none() as db:
            db.execute(
                "UPDATE jobs SET state = 'queued', reason = ?, attempts = attempts - ? WHERE id = ?",
                (reason, 0 if counts else 1, job),
            )

    def bury(self, job: int, reason: str) -> None:
        """It goes to the dead letters."""
        with self.all_or_none() as db:
            db.execute("UPDATE jobs SET state = 'dead', reason = ?, done = ? WHERE id = ?", (reason, self.now_s(), job))

    def finish(self, job: int, results: Sequence[NewResult]) -> list[Result]:
        """It is done; its results supersede those of the same series that are not delivered, and wait to be sent."""
        with self.all_or_none() as db:
            row = db.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
            now_s = self.now_s()
            db.execute("UPDATE jobs SET state = 'done', reason = '', done = ? WHERE id = ?", (now_s, job))
            made = [add_result(db, row, one, now_s) for one in results]
            return [_result(db.execute("SELECT * FROM results WHERE id = ?", (number,)).fetchone()) for number in made]

    def remake(self, job: int) -> None:
        """What a job made is lost: it waits again, with all its tries."""
        with self.all_or_none() as db:
            db.execute("UPDATE jobs SET state = 'queued', attempts = 0, done = NULL WHERE id = ?", (job,))
            db.execute("INSERT INTO remade VALUES (?, 1) ON CONFLICT (job) DO UPDATE SET n = n + 1", (job,))

    def times_remade(self, job: int) -> int:
        """How often what a job made was lost and it waited again."""
        return sum(row["n"] for row in self._rows("SELECT n FROM remade WHERE job = ?", job))

    def revive(self, job: int) -> Job | None:
        """A dead letter is tried again, with all its tries; None if it is none."""
        query = "UPDATE jobs SET state = 'queued', attempts = 0, done = NULL WHERE id = ? AND state = 'dead'"
        with self.all_or_none() as db:
            return self.job(job) if db.execute(query, (job,)).rowcount else None

    # results

    def result(self, number: int) -> Result | None:
        rows = self._rows("SELECT * FROM results WHERE id = ?", number)
        return _result(rows[0]) if rows else None

    def results_of(self, job: int) -> list[Result]:
        return [_result(row) for row in self._rows("SELECT * FROM results WHERE job = ? ORDER BY id", job)]

    def last_delivered(self, study: str, job: int = 0) -> list[Result]:
        """Of each series the last result that went out, wholly or in part; a notice that there is none is no result.

        What `job` made itself, whose results are lost and made again, does not count.
        """
        rows = self._rows(
            "SELECT * FROM results WHERE id IN (SELECT max(r.id) FROM results r JOIN deliveries d ON d.result = r.id "
            "WHERE r.study = ? AND r.job != ? AND r.state != 'not processed' AND d.state = 'delivered' "
            f"AND r.verdict NOT IN {FOLLOW_UPS} GROUP BY r.rule, r.series)",
            study, job,
        )  # fmt: skip
        return [_result(row) for row in rows]

    def folders(self) -> set[str]:
        """Names of the folders below `results` that a result is in."""
        return {str(row["folder"]).split("/")[0] for row in self._rows("SELECT folder FROM results")}

    def decisions_of(self, number: int) -> list[Decision]:
        """What was decided about the bytes of a result, on it or on another one, the first decision first."""
        rows = self._rows(
            f"SELECT id, result, decision, who, at FROM decisions WHERE result IN {_ALIKE} UNION ALL "
            "SELECT d.id, d.result, d.decision, d.who, d.at FROM kept_decisions d JOIN results r ON d.study = r.study AND "
            "d.rule = r.rule AND d.series = r.series AND d.digest = r.digest WHERE r.id = ? ORDER BY id",
            number, number,
        )  # fmt: skip
        return [_decision(row) for row in rows]

    def alike(self, number: int) -> list[Result]:
        """The results of a series that have the same bytes as one, itself among them."""
        return [_result(row) for row in self._rows(f"SELECT * FROM results WHERE id IN {_ALIKE} ORDER BY id", number)]

    def kept_decisions(self, study: str) -> list[Decision]:
        """What was decided about results of a study that are forgotten, the first decision first."""
        return [_decision(row) for row in self._rows("SELECT * FROM kept_decisions WHERE study = ? ORDER BY id", study)]

    def drop_decision(self, result: int, decision: str) -> None:
        """What was decided about a result that is forgotten holds no more."""
        with self.all_or_none() as db:
            db.execute("DELETE FROM kept_decisions WHERE result = ? AND decision = ?", (result, decision))

    def decide(self, one: Decision) -> None:
        """Records a decision, if the result waits for one: nothing final was decided, and its state allows it.

        Raises:
            DecidedError: Somebody was first, or the result is in another state; the message says who, what and when.
        """
        with self.all_or_none():
            self.check_undecided(one.result, KEPT_BACK if one.decision in ("released", "refused") else DECIDABLE)
            self.record_decision(one)

    def record_decision(self, one: Decision) -> None:
        """Records a decision that was taken, whatever is known of the result."""
        with self.all_or_none() as db:
            db.execute(
                "INSERT INTO decisions (result, decision, who, at) VALUES (?, ?, ?, ?)",
                (one.result, one.decision, one.who, one.at),
            )

    def check_undecided(self, number: int, states: Sequence[ResultState] = DECIDABLE) -> None:
        """Pass if nothing final was decided about a result and it is in one of these states. Raises DecidedError."""
        found, before = self.result(number), self.decisions_of(number)
        final = [one for one in before if one.is_final]
        if found is not None and found.state in states and not final:
            return
        told = "".join(f"; it was {one.decision} by {one.who} at {one.at}" for one in (final or before)[-1:])
        raise DecidedError(
            f"result {number} is {found.state if found else 'gone'}{told}; one that is {', '.join(states)} and was not "
            "decided on can be; look at the newest result of this study"
        )

    def release(self, number: int, destinations: Sequence[str]) -> None:
        """A result that was kept back may go out; without destinations it is done."""
        now_s = self.now_s()
        with self.all_or_none() as db:
            query = f"UPDATE results SET state = 'sending' WHERE id = ? AND state IN {listed(KEPT_BACK)}"
            if db.execute(query, (number,)).rowcount:
                add_deliveries(db, number, destinations, now_s)
                close_if_done(db, number, now_s)

    def refuse(self, number: int, reason: str) -> None:
        """A result, and any of the same bytes, goes nowhere any more, where it is not yet; if delivered, it is refused too."""
        with self.all_or_none() as db:
            changed = db.execute(
                f"UPDATE results SET state = 'refused', reason = ?, done = ? WHERE id IN {_ALIKE} AND state IN "
                f"{listed(DECIDABLE)}",
                (reason, self.now_s(), number),
            ).rowcount
            if changed:
                db.execute(f"DELETE FROM deliveries WHERE state != 'delivered' AND result IN {_ALIKE}", (number,))

    # deliveries

    def next_deliveries(self, without: Collection[int] = ()) -> list[tuple[Delivery, Result]]:
        """For each destination the delivery that is to be made next, and its result; none of the results `without`.

        The one that was tried the least is, and of those the oldest: what a destination always refuses holds up nothing else.
        """
        rows = self._rows(
            "SELECT * FROM (SELECT d.*, row_number() OVER (PARTITION BY destination ORDER BY d.attempts, d.id) turn "
            "FROM deliveries d JOIN results r ON r.id = d.result WHERE d.state = 'pending' "
            f"AND r.id NOT IN ({', '.join('?' * len(without))})) WHERE turn = 1 ORDER BY id",
            *without,
        )
        found = [(_delivery(row), self.result(row["result"])) for row in rows]
        return [(delivery, result) for delivery, result in found if result is not None]

    def delivered(self, number: int) -> None:
        """A destination has all that it wants of a result."""
        self._close_delivery(number, "delivered", "")

    def not_delivered(self, number: int, reason: str) -> None:
        """A destination could not be given a result; it is tried again."""
        with self.all_or_none() as db:
            db.execute("UPDATE deliveries SET attempts = attempts + 1, reason = ? WHERE id = ?", (reason, number))

    def is_late(self, delivery: int, most_s: float) -> bool:
        """Whether a delivery has waited for longer, by the node's own clock."""
        rows = self._rows("SELECT coalesce(since, created) since FROM deliveries WHERE id = ?", delivery)
        return any(self.now_s() - row["since"] > most_s for row in rows)

    def bury_delivery(self, number: int, reason: str) -> None:
        """It goes to the dead letters."""
        self._close_delivery(number, "dead", reason)

    def _close_delivery(self, number: int, state: DeliveryState, reason: str) -> None:
        now_s = self.now_s()
        with self.all_or_none() as db:
            db.execute(
                "UPDATE deliveries SET state = ?, attempts = attempts + 1, reason = ?, done = ? WHERE id = ?",
                (state, reason, now_s, number),
            )
            row = db.execute("SELECT result FROM deliveries WHERE id = ?", (number,)).fetchone()
            if row is not None:  # else a newer result has superseded it meanwhile
                close_if_done(db, row["result"], now_s)

    def revive_delivery(self, number: int) -> Delivery | None:
        """A dead delivery is tried again; None if it is none."""
        with self.all_or_none() as db:
            revived = db.execute(
                "UPDATE deliveries SET state = 'pending', attempts = 0, created = ?, since = ?, done = NULL WHERE id = ? "
                "AND state = 'dead'",
                (time.time(), self.now_s(), number),
            ).rowcount
            db.execute(
                "UPDATE results SET state = 'sending', done = NULL WHERE id = (SELECT result FROM deliveries WHERE id = ? AND "
                "state = 'pending') AND state = 'dead'",
                (number,),
            )
            row = db.execute("SELECT * FROM deliveries WHERE id = ?", (number,)).fetchone()
            return _delivery(row) if revived else None

    def add_follow_up(self, of: Result, kind: str, folder: str, digest: str, destinations: Sequence[str]) -> int:
        """What follows from a decision about a result, one of FOLLOW_UPS, goes to destinations; it supersedes nothing."""
        now_s = self.now_s()
        with self.all_or_none() as db:
            cursor = db.execute(
                "INSERT INTO results (job, study, rule, series, folder, state, verdict, reason, digest, created) "
                "VALUES (?, ?, ?, ?, ?, 'sending', ?, '', ?, ?)",
                (of.job, of.study, of.rule, of.series, folder, kind, digest, time.time()),
            )
            number = int(cursor.lastrowid or 0)
            count_verdict(db, kind)
            add_deliveries(db, number, destinations, now_s)
            close_if_done(db, number, now_s)
        return number

    # storage commitment

    def commitment(self, ae_title: str, transaction: str, references: list[list[str]]) -> bool:
        """Remembers a request; False if the transaction came before with other instances."""
        told = json.dumps(references)
        with self.all_or_none() as db:
            db.execute(
                'INSERT OR IGNORE INTO commitments (ae_title, "transaction", refs, created) VALUES (?, ?, ?, ?)',
                (ae_title, transaction, told, self.now_s()),
            )
            query = 'SELECT refs FROM commitments WHERE ae_title = ? AND "transaction" = ?'
            return bool(db.execute(query, (ae_title, transaction)).fetchone()["refs"] == told)

    def commitments(self) -> list[tuple[str, str, list[list[str]], int, float]]:
        """Those that were not reported: AE title, transaction UID, [class, instance] of each, tries, when it came (`now_s`)."""
        rows = self._rows("SELECT * FROM commitments WHERE reported IS NULL ORDER BY created")
        return [
            (row["ae_title"], row["transaction"], json.loads(row["refs"]), row["attempts"], row["created"])
            for row in rows
        ]

    def commitment_tried(self, ae_title: str, transaction: str) -> None:
        """It could not be reported."""
        with self.all_or_none() as db:
            db.execute(
                'UPDATE commitments SET attempts = attempts + 1 WHERE ae_title = ? AND "transaction" = ?',
                (ae_title, transaction),
            )

    def commitment_reported(self, ae_title: str, transaction: str) -> None:
        """Nothing more is to be done."""
        with self.all_or_none() as db:
            db.execute(
                'UPDATE commitments SET reported = ? WHERE ae_title = ? AND "transaction" = ?',
                (time.time(), ae_title, transaction),
            )

    # the whole

    def counts(self) -> dict[str, dict[str, int]]:
        """How many studies, jobs, results and deliveries are in each state."""
        return {
            table: {
                str(row["state"]): int(row["n"])
                for row in self._rows(f"SELECT state, count(*) n FROM {table} GROUP BY state")
            }
            for table in ("studies", "jobs", "results", "deliveries")
        }

    def oldest(self) -> dict[str, float]:
        """When the oldest "job" that is not done, "delivery" that is not made and result for "review" came; seconds since 1970.

        A kind of which nothing waits is left out.
        """
        rows = self._rows(
            "SELECT 'job' kind, min(created) begun FROM jobs WHERE state IN ('queued', 'working') UNION ALL "
            "SELECT 'delivery', min(created) FROM deliveries WHERE state = 'pending' UNION ALL "
            f"SELECT 'review', min(created) FROM results WHERE state IN {listed(KEPT_BACK)}"
        )
        return {str(row["kind"]): float(row["begun"]) for row in rows if row["begun"] is not None}

    def pending_by_destination(self) -> dict[str, int]:
        """How many deliveries wait for each destination."""
        rows = self._rows("SELECT destination, count(*) n FROM deliveries WHERE state = 'pending' GROUP BY destination")
        return {str(row["destination"]): int(row["n"]) for row in rows}

    def jobs(self, states: Sequence[JobState], limit: int = 100) -> list[Job]:
        """Jobs in these states, the newest first."""
        marks = ", ".join("?" * len(states))
        return [
            _job(row)
            for row in self._rows(
                f"SELECT * FROM jobs WHERE state IN ({marks}) ORDER BY id DESC LIMIT ?", *states, limit
            )
        ]

    def jobs_of(self, study: str) -> list[Job]:
        """All versions of a study, the first one first."""
        return [_job(row) for row in self._rows("SELECT * FROM jobs WHERE study = ? ORDER BY version", study)]

    def results(self, states: Sequence[ResultState], limit: int = 100) -> list[Result]:
        """Results in these states, in any if there are none; the newest first."""
        marks = ", ".join("?" * len(states))
        where = f"WHERE state IN ({marks})" if states else ""
        query = f"SELECT * FROM results {where} ORDER BY id DESC LIMIT ?"
        return [_result(row) for row in self._rows(query, *states, limit)]

    def deliveries(self, states: Sequence[DeliveryState], limit: int = 100) -> list[Delivery]:
        """Deliveries in these states, the newest first."""
        marks = ", ".join("?" * len(states))
        query = f"SELECT * FROM deliveries WHERE state IN ({marks}) ORDER BY id DESC LIMIT ?"
        return [_delivery(row) for row in self._rows(query, *states, limit)]

    def verdicts(self) -> dict[str, int]:
        """How many results got each verdict of the quality gate, forgotten ones too; "" for none. It never falls."""
        return {str(row["verdict"]): int(row["n"]) for row in self._rows("SELECT * FROM totals")}

    def deliveries_of(self, result: int) -> list[Delivery]:
        return [_delivery(row) for row in self._rows("SELECT * FROM deliveries WHERE result = ? ORDER BY id", result)]

    def forgettable(self, before: float) -> list[str]:
        """Studies about which everything was done before a time by `now_s`: no file of them is needed any more."""
        rows = self._rows(
            "SELECT uid FROM studies s WHERE state = 'complete' AND last < ? "
            "AND NOT EXISTS (SELECT 1 FROM jobs WHERE study = s.uid AND (state != 'done' OR done >= ?)) "
            f"AND NOT EXISTS (SELECT 1 FROM results WHERE study = s.uid AND (state IN {listed((*OPEN_RESULTS, 'dead'))} "
            "OR done >= ?)) "
            "AND NOT EXISTS (SELECT 1 FROM results r JOIN deliveries d ON d.result = r.id WHERE r.study = s.uid "
            "AND r.state = 'not processed' AND (d.state != 'delivered' OR d.done >= ?))",
            before, before, before, before,
        )  # fmt: skip
        return [str(row["uid"]) for row in rows]

    def forget(self, study: str) -> None:
        """Its files are gone: so are its rows. What was decided is kept, for when the same bytes are made again."""
        with self.all_or_none() as db:
            db.execute(
                "INSERT INTO kept_decisions SELECT d.id, d.result, d.decision, d.who, d.at, r.study, r.rule, r.series, "
                "r.digest FROM decisions d JOIN results r ON r.id = d.result WHERE r.study = ? AND r.digest != ''",
                (study,),
            )
            for table in ("deliveries", "decisions"):
                db.execute(f"DELETE FROM {table} WHERE result IN (SELECT id FROM results WHERE study = ?)", (study,))
            db.execute("DELETE FROM remade WHERE job IN (SELECT id FROM jobs WHERE study = ?)", (study,))
            for table, key in (("results", "study"), ("jobs", "study"), ("studies", "uid")):
                db.execute(f"DELETE FROM {table} WHERE {key} = ?", (study,))


def read_head(path: Path) -> Head | None:
    """The last line of the audit trail that a node's database remembers; None if it remembers none. Changes nothing.

    Raises:
        sqlite3.Error: It cannot be read.
    """
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'audit_head'").fetchall():
            return None  # of an earlier version
        return _head_of(db.execute("SELECT n, digest FROM audit_head").fetchall())


def _head_of(rows: Sequence[Any]) -> Head | None:
    """The one row of a table of heads."""
    return Head(*rows[0]) if rows else None


def _job(row: sqlite3.Row) -> Job:
    return Job(*(row[name] for name in Job.__dataclass_fields__))


def _result(row: sqlite3.Row) -> Result:
    return Result(*(row[name] for name in Result.__dataclass_fields__))


def _delivery(row: sqlite3.Row) -> Delivery:
    return Delivery(*(row[name] for name in Delivery.__dataclass_fields__))


def _decision(row: sqlite3.Row) -> Decision:
    return Decision(*(row[name] for name in Decision.__dataclass_fields__))
