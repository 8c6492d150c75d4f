"""How a new result enters the node's database: what it supersedes, what was decided about its bytes, where it goes.

A result that is held back gets no row in `deliveries` here, and senders are given rows of that table only. `rows.state_of`
gives the state that the quality gate asks for; `_decided` changes it where a person has decided about the same bytes before.

Each function works within the caller's transaction.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from monai_unet_app.service.database import Database
from monai_unet_app.service.rows import (
    FOLLOW_UPS,
    SENDING_DECISIONS,
    UNFINISHED,
    Job,
    NewResult,
    Result,
    ResultState,
    sql_list,
)

_SENT: tuple[ResultState, ...] = ("sending", "not processed")
"""New results that go to their destinations: the result itself, or the notice that there is none."""

_SAME_SERIES = "study = ? AND rule = ? AND series = ?"


def add_result(database: Database, job: Job, new: NewResult) -> int:
    """Records a result and its deliveries, and gives its number; a destination that has the same bytes is not sent them again.

    Args:
        database: Within a transaction.
        job: The job that made the result.
        new: The result, in the state that the quality gate asks for.
    """
    series = (job.study, new.rule, new.series)
    query = f"SELECT * FROM results WHERE {_SAME_SERIES} AND digest = ? ORDER BY id"
    same = database.select(Result, query, *series, new.digest)
    decided = _decided(new, same, _decisions(database, *series, new.digest))
    # Before the new row is inserted, which would be superseded as well.
    _supersede(database, *series)
    return insert_result(database, job.id, job.study, decided, [result.id for result in same])


def insert_result(database: Database, job: int, study: str, new: NewResult, same: Sequence[int] = ()) -> int:
    """Adds a result and its deliveries as they are, and gives its number; `same`: numbers of results of the same bytes."""
    done = None if new.state in UNFINISHED else database.now_s()
    with database.transaction() as db:
        inserted = db.execute(
            "INSERT INTO results (job, study, rule, series, folder, state, verdict, reason, digest, created, done, bundle) "
            "VALUES (:job, :study, :rule, :series, :folder, :state, :verdict, :reason, :digest, :created, :done, :bundle)",
            {**vars(new), "job": job, "study": study, "created": time.time(), "done": done},
        )
    number = inserted.lastrowid or 0
    if new.folder and new.state != "not processed":
        # Totals also count results that are forgotten.
        database.change("INSERT INTO totals VALUES (?, 1) ON CONFLICT (verdict) DO UPDATE SET n = n + 1", new.verdict)
    if new.state in _SENT:
        _add_new_deliveries(database, number, new.destinations, same)
    return number


def _decisions(database: Database, study: str, rule: str, series: str, digest: str) -> list[str]:
    """Decisions about results of the same bytes, forgotten results included; the first decision first."""
    same = (study, rule, series, digest)
    return database.column(
        "SELECT d.decision, d.id FROM decisions d JOIN results r ON r.id = d.result "
        f"WHERE {_SAME_SERIES} AND digest = ? AND digest != '' "
        f"UNION ALL SELECT decision, id FROM kept_decisions WHERE {_SAME_SERIES} AND digest = ? ORDER BY id",
        *same, *same,
    )  # fmt: skip


def _decided(new: NewResult, same: Sequence[Result], decisions: Sequence[str]) -> NewResult:
    """A new result with its state and reason. A decision about the same bytes holds for it, and the last decision counts.

    Without a decision the quality gate has the last word, also where the same bytes were sent before: a bundle that was
    calibrated again, or a rule that holds reviews now, may judge them otherwise.

    Args:
        new: The new result.
        same: Earlier results of the same bytes.
        decisions: Decisions about the same bytes.
    """
    if new.state not in UNFINISHED:
        return new
    if decisions and decisions[-1] in SENDING_DECISIONS:
        return replace(new, state="sending")
    reasons = [result.reason for result in same if result.state == "refused"]
    if decisions or reasons:
        return replace(new, state="refused", reason=reasons[-1] if reasons else f"{decisions[-1]} by a reviewer")
    return new


def _supersede(database: Database, study: str, rule: str, series: str) -> None:
    """Ends the unfinished results of a series and rule, and the deliveries of notices that no destination has."""
    database.change(
        f"UPDATE results SET state = 'superseded', done = ? WHERE {_SAME_SERIES} AND state IN {sql_list(UNFINISHED)} "
        f"AND verdict NOT IN {FOLLOW_UPS}",
        database.now_s(), study, rule, series,
    )  # fmt: skip
    database.change(
        "DELETE FROM deliveries WHERE state IN ('pending', 'dead') AND result IN "
        "(SELECT id FROM results WHERE state = 'superseded' AND study = ?)",
        study,
    )
    # A notice that is not delivered, given up or not, says what is no longer so.
    database.change(
        "DELETE FROM deliveries WHERE state != 'delivered' AND result IN "
        f"(SELECT id FROM results WHERE {_SAME_SERIES} AND state = 'not processed')",
        study, rule, series,
    )  # fmt: skip


def _add_new_deliveries(database: Database, result: int, destinations: Sequence[str], same: Sequence[int]) -> None:
    """Deliveries of a new result; `same`: results of the same bytes, which some destinations may have."""
    query = f"SELECT destination FROM deliveries WHERE state = 'delivered' AND result IN ({', '.join('?' * len(same))})"
    # The same bytes under the same UIDs (decision 0015): sending them again would change nothing at the destination.
    have = set(database.column(query, *same))
    add_deliveries(database, result, [name for name in destinations if name not in have])
    for name in destinations:
        if name in have:
            database.change(
                "INSERT INTO deliveries (result, destination, state, reason, created, done) VALUES (?, ?, 'delivered', "
                "'it has the same bytes already', ?, ?)",
                result, name, time.time(), database.now_s(),
            )  # fmt: skip
    close_if_done(database, result)


def close_if_done(database: Database, result: int) -> None:
    """A result in state "sending" without pending deliveries becomes "delivered", or "dead" if a delivery was given up."""
    database.change(
        "UPDATE results SET done = ?, state = CASE WHEN EXISTS (SELECT 1 FROM deliveries d WHERE d.result = results.id "
        "AND d.state = 'dead') THEN 'dead' ELSE 'delivered' END WHERE id = ? AND state = 'sending' AND NOT EXISTS (SELECT 1 "
        "FROM deliveries d WHERE d.result = results.id AND d.state = 'pending')",
        database.now_s(), result,
    )  # fmt: skip


def add_deliveries(database: Database, result: int, destinations: Sequence[str]) -> None:
    """Adds deliveries of a result that wait to be sent; a delivery that is recorded already stays as it is."""
    for name in destinations:
        database.change(
            "INSERT OR IGNORE INTO deliveries (result, destination, state, created, since) VALUES (?, ?, 'pending', ?, ?)",
            result, name, time.time(), database.now_s(),
        )  # fmt: skip
