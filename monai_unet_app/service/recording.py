"""How a new result enters the node's database: whose place it takes, what was decided on its bytes, who gets it.

Each function works within the caller's transaction.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

from monai_unet_app.service.rows import FOLLOW_UPS, OPEN_RESULTS, NewResult, ResultState

_SENT: tuple[ResultState, ...] = ("sending", "not processed")
"""New results that go to their destinations: the result itself, or the notice that there is none."""


def add_result(db: sqlite3.Connection, job: sqlite3.Row, one: NewResult, now_s: float) -> int:
    """Records a result and its deliveries; one that the destinations have already, byte for byte, is not sent again."""
    earlier = db.execute(
        "SELECT * FROM results WHERE study = ? AND rule = ? AND series = ? ORDER BY id",
        (job["study"], one.rule, one.series),
    ).fetchall()
    db.execute(
        "UPDATE results SET state = 'superseded', done = ? WHERE study = ? AND rule = ? AND series = ? "
        f"AND state IN {listed(OPEN_RESULTS)} AND verdict NOT IN {FOLLOW_UPS}",
        (now_s, job["study"], one.rule, one.series),
    )
    db.execute(
        "DELETE FROM deliveries WHERE state = 'pending' AND result IN (SELECT id FROM results WHERE state = 'superseded' AND "
        "study = ?)",
        (job["study"],),
    )
    db.execute(  # a notice that is not out, given up or not, says nothing that is still so
        "DELETE FROM deliveries WHERE state != 'delivered' AND result IN (SELECT id FROM results WHERE study = ? AND rule = ? "
        "AND series = ? AND state = 'not processed')",
        (job["study"], one.rule, one.series),
    )
    same = [row for row in earlier if row["digest"] == one.digest]
    kept = db.execute(
        "SELECT * FROM kept_decisions WHERE study = ? AND rule = ? AND series = ? AND digest = ? ORDER BY id",
        (job["study"], one.rule, one.series, one.digest),
    ).fetchall()
    state, reason = _as_decided(one, same, kept)
    now, done = time.time(), None if state in OPEN_RESULTS else now_s
    cursor = db.execute(
        "INSERT INTO results (job, study, rule, series, folder, state, verdict, reason, digest, created, done) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            job["id"], job["study"], one.rule, one.series, one.folder, state, one.verdict, reason, one.digest, now, done,
        ),
    )  # fmt: skip
    number = int(cursor.lastrowid or 0)
    if one.folder and state != "not processed":
        count_verdict(db, one.verdict)
    if state not in _SENT:
        return number
    marks = ", ".join("?" * len(same))
    query = f"SELECT destination FROM deliveries WHERE state = 'delivered' AND result IN ({marks})"
    have = {row["destination"] for row in db.execute(query, [row["id"] for row in same])}
    add_deliveries(db, number, [name for name in one.destinations if name not in have], now_s)
    for name in one.destinations:
        if name in have:
            db.execute(
                "INSERT INTO deliveries (result, destination, state, reason, created, done) VALUES (?, ?, 'delivered', "
                "'it has the same bytes already', ?, ?)",
                (number, name, now, now_s),
            )
    close_if_done(db, number, now_s)
    return number


def count_verdict(db: sqlite3.Connection, verdict: str) -> None:
    """Counts a verdict of the gate, or a follow-up, once for ever: totals outlive what is forgotten."""
    db.execute("INSERT INTO totals VALUES (?, 1) ON CONFLICT (verdict) DO UPDATE SET n = n + 1", (verdict,))


def _as_decided(one: NewResult, same: Sequence[sqlite3.Row], kept: Sequence[sqlite3.Row]) -> tuple[ResultState, str]:
    """State and reason of a new result; what was decided on the same bytes is not asked again, the last decision counts.

    Args:
        one: The new result.
        same: Earlier results of the same bytes.
        kept: Decisions on results of the same bytes that are forgotten.
    """
    if one.state not in OPEN_RESULTS:
        return one.state, one.reason
    decided = [row for row in same if row["state"] in ("refused", "sending", "delivered", "dead")]
    if decided:
        is_out = decided[-1]["state"] != "refused"
        return ("sending", one.reason) if is_out else ("refused", decided[-1]["reason"])
    if kept:
        is_out = kept[-1]["decision"] in ("accepted", "released")
        return ("sending", one.reason) if is_out else ("refused", f"{kept[-1]['decision']} by a reviewer")
    return one.state, one.reason


def close_if_done(db: sqlite3.Connection, result: int, now_s: float) -> None:
    """A result that was being sent, and of which nothing is pending, is delivered; dead if one of its deliveries is."""
    db.execute(
        "UPDATE results SET done = ?, state = CASE WHEN EXISTS (SELECT 1 FROM deliveries d WHERE d.result = results.id "
        "AND d.state = 'dead') THEN 'dead' ELSE 'delivered' END WHERE id = ? AND state = 'sending' AND NOT EXISTS (SELECT 1 "
        "FROM deliveries d WHERE d.result = results.id AND d.state = 'pending')",
        (now_s, result),
    )


def add_deliveries(db: sqlite3.Connection, result: int, destinations: Sequence[str], now_s: float) -> None:
    """Deliveries of a result that wait to be sent; one that is recorded already stays as it is."""
    db.executemany(
        "INSERT OR IGNORE INTO deliveries (result, destination, state, created, since) VALUES (?, ?, 'pending', ?, ?)",
        [(result, name, time.time(), now_s) for name in destinations],
    )


def listed(states: Sequence[ResultState]) -> str:
    """States as SQL lists them after IN."""
    return f"({', '.join(repr(state) for state in states)})"
