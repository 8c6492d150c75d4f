"""How a new result enters the node's database: what it supersedes, what was decided about its bytes, where it goes.

A result that is held back gets no row in `deliveries` here, and senders are given rows of that table only. `rows.state_of`
gives the state that the quality gate asks for; `_decided_state` changes it where a person has decided about the same bytes
before.

Each function works within the caller's transaction.
"""

import sqlite3
import time
from collections.abc import Sequence

from monai_unet_app.service import rows

_SENT: tuple[rows.ResultState, ...] = ("sending", "not processed")
"""New results that go to their destinations: the result itself, or the notice that there is none."""

_SAME_SERIES = "study = ? AND rule = ? AND series = ?"


def add_result(db: sqlite3.Connection, job: sqlite3.Row, new: rows.NewResult, now_s: float) -> int:
    """Records a result and its deliveries; a destination that has the same bytes is not sent them again.

    Args:
        db: Within a transaction.
        job: Row of the job that made the result.
        new: The result, in the state that the quality gate asks for.
        now_s: Time by the node's own clock.

    Returns:
        Number of the result.
    """
    series = (job["study"], new.rule, new.series)
    query = f"SELECT * FROM results WHERE {_SAME_SERIES} AND digest = ? ORDER BY id"
    same = db.execute(query, (*series, new.digest)).fetchall()
    state, reason = _decided_state(new, same, _decisions(db, series, new.digest))
    # Before the new row is inserted, which would be superseded as well.
    _supersede(db, series, now_s)
    row = (job["id"], *series, new.folder, state, new.verdict, reason, new.digest)
    number = insert_result(db, row, done=None if state in rows.UNFINISHED else now_s)
    if new.folder and state != "not processed":
        count_verdict(db, new.verdict)
    if state in _SENT:
        _add_new_deliveries(db, number, new.destinations, [row["id"] for row in same], now_s)
    return number


def insert_result(db: sqlite3.Connection, row: Sequence[int | str], *, done: float | None) -> int:
    """Adds a row to `results`, with the columns from job to digest, and gives its number."""
    cursor = db.execute(
        "INSERT INTO results (job, study, rule, series, folder, state, verdict, reason, digest, created, done) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*row, time.time(), done),
    )
    return int(cursor.lastrowid or 0)


def _decisions(db: sqlite3.Connection, series: tuple[str, str, str], digest: str) -> list[str]:
    """Decisions about results of the same bytes, forgotten results included; the first decision first."""
    decisions = db.execute(
        "SELECT d.id, d.decision FROM decisions d JOIN results r ON r.id = d.result "
        f"WHERE {_SAME_SERIES} AND digest = ? AND digest != '' "
        f"UNION ALL SELECT id, decision FROM kept_decisions WHERE {_SAME_SERIES} AND digest = ? ORDER BY id",
        (*series, digest, *series, digest),
    )
    return [row["decision"] for row in decisions]


def _decided_state(
    new: rows.NewResult, same: Sequence[sqlite3.Row], decisions: Sequence[str]
) -> tuple[rows.ResultState, str]:
    """State and reason of a new result. A decision about the same bytes holds for it, and the last decision counts.

    Without a decision the quality gate has the last word, also where the same bytes were sent before: a bundle that was
    calibrated again, or a rule that holds reviews now, may judge them otherwise.

    Args:
        new: The new result.
        same: Earlier results of the same bytes.
        decisions: Decisions about the same bytes.
    """
    if new.state not in rows.UNFINISHED:
        return new.state, new.reason
    reasons = [row["reason"] for row in same if row["state"] == "refused"]
    if decisions and decisions[-1] in rows.SENDING_DECISIONS:
        return "sending", new.reason
    if decisions or reasons:
        return "refused", reasons[-1] if reasons else f"{decisions[-1]} by a reviewer"
    return new.state, new.reason


def _supersede(db: sqlite3.Connection, series: tuple[str, str, str], now_s: float) -> None:
    """Ends the unfinished results of a series and rule, and the deliveries of notices that no destination has."""
    db.execute(
        f"UPDATE results SET state = 'superseded', done = ? WHERE {_SAME_SERIES} AND state IN {rows.sql_list(rows.UNFINISHED)} "
        f"AND verdict NOT IN {rows.FOLLOW_UPS}",
        (now_s, *series),
    )
    db.execute(
        "DELETE FROM deliveries WHERE state IN ('pending', 'dead') AND result IN "
        "(SELECT id FROM results WHERE state = 'superseded' AND study = ?)",
        series[:1],
    )
    # A notice that is not delivered, given up or not, says what is no longer so.
    db.execute(
        "DELETE FROM deliveries WHERE state != 'delivered' AND result IN "
        f"(SELECT id FROM results WHERE {_SAME_SERIES} AND state = 'not processed')",
        series,
    )


def _add_new_deliveries(
    db: sqlite3.Connection, result: int, destinations: Sequence[str], same: Sequence[int], now_s: float
) -> None:
    """Deliveries of a new result; `same`: results of the same bytes, which some destinations may have."""
    query = f"SELECT destination FROM deliveries WHERE state = 'delivered' AND result IN ({', '.join('?' * len(same))})"
    # The same bytes under the same UIDs (decision 0015): sending them again would change nothing at the destination.
    have = {row["destination"] for row in db.execute(query, list(same))}
    add_deliveries(db, result, [name for name in destinations if name not in have], now_s)
    db.executemany(
        "INSERT INTO deliveries (result, destination, state, reason, created, done) VALUES (?, ?, 'delivered', "
        "'it has the same bytes already', ?, ?)",
        [(result, name, time.time(), now_s) for name in destinations if name in have],
    )
    close_if_done(db, result, now_s)


def count_verdict(db: sqlite3.Connection, verdict: str) -> None:
    """Counts a verdict of the gate, or a follow-up, once for ever: totals also count results that are forgotten."""
    db.execute("INSERT INTO totals VALUES (?, 1) ON CONFLICT (verdict) DO UPDATE SET n = n + 1", (verdict,))


def close_if_done(db: sqlite3.Connection, result: int, now_s: float) -> None:
    """A result in state "sending" without pending deliveries becomes "delivered", or "dead" if a delivery was given up."""
    db.execute(
        "UPDATE results SET done = ?, state = CASE WHEN EXISTS (SELECT 1 FROM deliveries d WHERE d.result = results.id "
        "AND d.state = 'dead') THEN 'dead' ELSE 'delivered' END WHERE id = ? AND state = 'sending' AND NOT EXISTS (SELECT 1 "
        "FROM deliveries d WHERE d.result = results.id AND d.state = 'pending')",
        (now_s, result),
    )


def add_deliveries(db: sqlite3.Connection, result: int, destinations: Sequence[str], now_s: float) -> None:
    """Adds deliveries of a result that wait to be sent; a delivery that is recorded already stays as it is."""
    db.executemany(
        "INSERT OR IGNORE INTO deliveries (result, destination, state, created, since) VALUES (?, ?, 'pending', ?, ?)",
        [(result, name, time.time(), now_s) for name in destinations],
    )
