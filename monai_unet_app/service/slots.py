"""The slots of rules in the database: champion, challenger, what both made of the same studies, and the way back.

A study's bundles are fixed when its job is made. A rollback ends what the challenger made and no destination has: those results
are superseded, and their studies wait for the champion. Each function is replayed by `service.restore` from a line of the
audit trail, so it depends on rows and arguments alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monai_unet_app.service.database import Database
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.rows import FOLLOW_UPS, UNFINISHED, Job, Result, Shadow, Slot, sql_list

MOST_TRIES = 2
"""Of a shadow; one that fails as often counts as a fault of its bundle."""

_MADE = "rule = ? AND bundle = ?"
_VERIFIED = (
    "verdict = 'verified' AND EXISTS (SELECT 1 FROM results m WHERE m.job = r.job AND m.series = r.series "
    "AND m.rule = r.rule AND m.rule = ? AND m.bundle = ?)"
)
"""Follow-ups of the results that a bundle made for a rule."""

_SENT = "EXISTS (SELECT 1 FROM deliveries d WHERE d.result = r.id AND d.state = 'delivered')"


@dataclass(frozen=True)
class RolledBack:
    """What a rollback found.

    Attributes:
        sent: Numbers of the challenger's results that a destination has.
        ended: Numbers of those that were superseded; some may be among `sent`, where another destination waited.
        studies: Those of which the champion must make a result.
        cut_off: Results whose sending was ended, with the destination that may have some of their objects.
    """

    sent: list[int]
    ended: list[int]
    studies: list[str]
    cut_off: list[tuple[int, str]] = field(default_factory=list)


def slots(database: Database) -> dict[str, Slot]:
    """The slot of each rule that names a model of a registry."""
    return {slot.rule: slot for slot in database.select(Slot, "SELECT * FROM slots ORDER BY rule")}


def assign(database: Database, rule: str, champion: str, challenger: str) -> None:
    """Gives a rule its bundles; a challenger begins with no share, and one that was rolled back stays so."""
    pair = (rule, champion, challenger)
    query = "SELECT reason FROM withdrawn WHERE rule = ? AND champion = ? AND challenger = ?"
    with database.transaction():
        why = "".join(database.column(query, *pair))
        database.change("INSERT OR REPLACE INTO slots VALUES (?, ?, ?, 0, ?)", *pair, why)
        _drop_shadows(database, rule)


def _drop_shadows(database: Database, rule: str) -> None:
    """Gives up the shadows that wait: the bundles of their rule have changed. Other rules of the same study lose theirs too."""
    database.change(
        "DELETE FROM shadows WHERE state = 'waiting' AND job IN "
        "(SELECT id FROM jobs WHERE plan != '' AND json_extract(plan, '$.' || json_quote(?)) IS NOT NULL)",
        rule,
    )


def set_share(database: Database, rule: str, share: float) -> None:
    """Gives the challenger's results to a share of the patients; one that was rolled back is tried from the beginning."""
    with database.transaction():
        slot = slots(database)[rule]
        if slot.withdrawn:
            for table in ("comparisons", "withdrawn"):
                query = f"DELETE FROM {table} WHERE rule = ? AND champion = ? AND challenger = ?"
                database.change(query, rule, slot.champion, slot.challenger)
        database.change("UPDATE slots SET share = ?, withdrawn = '' WHERE rule = ?", share, rule)


def roll_back(queue: Queue, rule: str, why: str) -> RolledBack:
    """Ends the challenger of a rule.

    Args:
        queue: The node's.
        rule: It has a challenger.
        why: In words.
    """
    with queue.transaction():
        slot = slots(queue)[rule]
        mine = sorted(numbers_of(queue, slot))
        ended = queue.select(
            Result, f"SELECT * FROM results WHERE id IN (SELECT value FROM json_each(?)) AND state IN "
            f"{sql_list((*UNFINISHED, 'dead'))} ORDER BY id",
            json.dumps(mine),
        )  # fmt: skip
        for result in ended:
            queue.change("UPDATE results SET state = 'superseded', done = ? WHERE id = ?", queue.now_s(), result.id)
            queue.change("DELETE FROM deliveries WHERE result = ? AND state IN ('pending', 'dead')", result.id)
        queue.change("UPDATE slots SET share = 0, withdrawn = ? WHERE rule = ?", why, rule)
        query = "INSERT OR REPLACE INTO withdrawn VALUES (?, ?, ?, ?)"
        queue.change(query, rule, slot.champion, slot.challenger, why)
        # Also those that are done: files of theirs that are lost are not made again by the challenger
        for job in queue.select(Job, "SELECT * FROM jobs WHERE plan != ''"):
            if job.plans.get(rule, {}).get("challenger") == slot.challenger:
                queue.change("UPDATE jobs SET plan = ? WHERE id = ?", champion_only(job, rule, slot.champion), job.id)
                queue.change("DELETE FROM shadows WHERE job = ?", job.id)
        _drop_shadows(queue, rule)
        studies = dict.fromkeys(one.study for one in ended if one.verdict not in FOLLOW_UPS)
        return RolledBack(sent_by(queue, slot), [one.id for one in ended], list(studies))


def champion_only(job: Job, rule: str, champion: str, **more: str) -> str:
    """The plan of a job, with the champion for a rule and without a shadow of it; `more` stands in the plan, too."""
    return json.dumps({**job.plans, rule: {"champion": champion, "challenger": "", "slot": "champion", **more}})


def next_shadow(database: Database) -> Shadow | None:
    """The oldest shadow whose study is segmented and of which no delivery waits; None if there is none."""
    found = database.select(
        Shadow,
        "SELECT s.* FROM shadows s JOIN jobs j ON j.id = s.job WHERE s.state = 'waiting' AND j.state = 'done' AND NOT EXISTS "
        "(SELECT 1 FROM results r JOIN deliveries d ON d.result = r.id WHERE r.job = j.id AND d.state = 'pending') "
        "AND EXISTS (SELECT 1 FROM studies WHERE uid = j.study AND state = 'complete') "
        "ORDER BY s.attempts, s.job LIMIT 1",
    )
    return next(iter(found), None)


def count_try(database: Database, job: int, reason: str) -> Shadow | None:
    """Counts a try of a shadow that failed, and gives it, dead after the last; None if it is no longer wanted."""
    with database.transaction():
        database.change(
            "UPDATE shadows SET attempts = attempts + 1, reason = ?, state = CASE WHEN attempts + 1 < ? THEN 'waiting' ELSE "
            "'dead' END WHERE job = ? AND state = 'waiting'",
            reason, MOST_TRIES, job,
        )  # fmt: skip
        return next(iter(database.select(Shadow, "SELECT * FROM shadows WHERE job = ?", job)), None)


def add_comparisons(database: Database, job: int, study: str, compared: Mapping[str, Mapping[str, Any]]) -> None:
    """Records what champion and challenger made of a study, once for both, and ends its shadow.

    Args:
        database: The node's.
        job: Number of the job.
        study: StudyInstanceUID.
        compared: Rule -> the comparison, see `evidence_against.ways`, with the sha256 of "champion" and "challenger".
    """
    with database.transaction():
        for rule, facts in compared.items():
            query = (
                "INSERT OR IGNORE INTO comparisons (rule, champion, challenger, study, facts) VALUES (?, ?, ?, ?, ?)"
            )
            database.change(query, rule, facts["champion"], facts["challenger"], study, json.dumps(facts))
        database.change("UPDATE shadows SET state = 'done' WHERE job = ? AND state = 'waiting'", job)


def comparisons(database: Database, slot: Slot) -> list[dict[str, Any]]:
    """What was found of the challenger of a slot beside this champion, the first study first."""
    query = "SELECT facts FROM comparisons WHERE rule = ? AND champion = ? AND challenger = ? ORDER BY id"
    return [json.loads(text) for text in database.column(query, slot.rule, slot.champion, slot.challenger)]


def numbers_of(database: Database, slot: Slot) -> set[int]:
    """Numbers of the challenger's results and of their verified reports: what a rollback ends."""
    made = (slot.rule, slot.challenger)
    return set(database.column(f"SELECT id FROM results r WHERE ({_MADE}) OR ({_VERIFIED})", *made, *made))


def sent_by(database: Database, slot: Slot) -> list[int]:
    """Numbers of the challenger's results that a destination has, which a site may want to look at."""
    query = f"SELECT id FROM results r WHERE {_MADE} AND {_SENT} ORDER BY id"
    return database.column(query, slot.rule, slot.challenger)
