"""Rows of the node's database, the states that they go through, and the tables. SQLite is opened in `service.database`.

The life of a result. "By a person" names the decision that leads from one state to the next.

    (new)          -> held            the quality gate's verdict is "review", and the rule holds such results;
                                      or it was accepted, and drawn for review; or it has no verdict, and the rule does not
                                      say `deliver_ungated` (`state_of`)
                   -> rejected        the quality gate's verdict is "reject" (`state_of`)
                   -> sending         any other verdict, or a person has accepted or released the same bytes before
                   -> refused         a person has rejected, corrected or refused the same bytes before
                   -> not processed   there is no result, only a reason; destinations may get a notice
    held, rejected -> sending         by a person: accepted, released
    held, rejected -> refused         by a person: rejected, corrected, refused
    held, rejected,
    sending        -> superseded      the next version of the study has a result of the same series and rule
    delivered      -> superseded      every destination that had it has a later version, and gets a rejection note for this one
    sending        -> delivered       every destination has it
                   -> dead            nothing waits to be sent any more, and a delivery was given up
    dead           -> sending         an administrator retries the delivery
    sending,
    delivered,
    dead           -> refused         by a person: rejected, corrected

Words that are used for one thing each:

- A result is *held back* while it is held or rejected. `recording` gives it no row in `deliveries` then, so no sender can find
  it, and only reviewers may read its files (`READABLE`). A person lets it go in `reviews`: by `decide` with the decision
  accepted, or by `release`, which asks again for a rejected result. Both end in `queue.send_held_back`.
- A *verdict* is the quality gate's: "accept", "review", "reject", or empty without a gate. Follow-ups have their kind there.
- A *decision* is a person's: accepted, corrected, rejected, released, refused.
- A delivery or job that is *given up* is dead, and there is a *dead letter* about it.
- A delivery is *replaced* when the destination has a later version of the result, and a rejection note for this one is on its
  way.
- A result whose files are lost is *remade*: its job is done again.
- Callers and instances that the node does not take are *turned away*.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from monai_unet_app.errors import AppError

JobState = Literal["queued", "working", "done", "dead"]
ResultState = Literal["held", "rejected", "sending", "delivered", "not processed", "dead", "superseded", "refused"]
DeliveryState = Literal["pending", "delivered", "dead", "replaced"]
DecisionKind = Literal["accepted", "corrected", "rejected", "refused", "released"]

HELD_BACK: tuple[ResultState, ...] = ("held", "rejected")
"""Results that wait for a reviewer and have no delivery yet."""

UNFINISHED: tuple[ResultState, ...] = (*HELD_BACK, "sending")
"""Results that wait for a decision or a delivery; a later version of the study supersedes them."""

DECIDABLE: tuple[ResultState, ...] = (*UNFINISHED, "delivered", "dead")
"""Results that a person may decide about, unless a final decision was taken."""

READABLE: tuple[ResultState, ...] = ("sending", "delivered", "dead", "not processed")
"""Results whose content every reader may see; the content of all others is for reviewers only."""

SENDING_DECISIONS: tuple[DecisionKind, ...] = ("accepted", "released")
"""Decisions that let a result go to its destinations; every other decision refuses the result."""

FOLLOW_UPS = ("verified", "corrected", "rejection note")
"""Verdicts of results that follow from a decision. No worker made them; they supersede no result and are not superseded."""


def state_of(verdict: str, *, hold_review: bool, ungated: bool, drawn: bool = False) -> ResultState:
    """The state of a new result.

    Args:
        verdict: Of the quality gate: "accept", "review", "reject", or empty without a gate.
        hold_review: Of the rule that the result was made for.
        ungated: The rule delivers results without a verdict.
        drawn: An accepted result is one of the share that the rule has reviewed (`is_drawn`).
    """
    if verdict == "reject":
        return "rejected"
    unjudged = not verdict and not ungated
    return "held" if drawn or unjudged or (verdict == "review" and hold_review) else "sending"


def is_drawn(verdict: str, digest: str, share: float) -> bool:
    """Whether an accepted result is in the share drawn for review: by its digest, so that one made again is drawn again."""
    return verdict == "accept" and int(digest[:8], 16) < share * 16**8


# AUTOINCREMENT: no number is given twice, also after its row was forgotten, since audit lines and folders name it.
# UNIQUE (result, destination) lets `add_deliveries` pass over deliveries that exist.
SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
    uid TEXT PRIMARY KEY, instances INTEGER NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL, last REAL NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', created REAL NOT NULL, done REAL,
    plan TEXT NOT NULL DEFAULT '', UNIQUE (study, version));
CREATE TABLE IF NOT EXISTS results (
    id INTEGER PRIMARY KEY AUTOINCREMENT, job INTEGER NOT NULL, study TEXT NOT NULL, rule TEXT NOT NULL, series TEXT NOT NULL,
    folder TEXT NOT NULL, state TEXT NOT NULL, verdict TEXT NOT NULL, reason TEXT NOT NULL, digest TEXT NOT NULL,
    created REAL NOT NULL, done REAL, bundle TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS slots (
    rule TEXT PRIMARY KEY, champion TEXT NOT NULL, challenger TEXT NOT NULL, share REAL NOT NULL, withdrawn TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shadows (
    job INTEGER PRIMARY KEY, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS comparisons (
    id INTEGER PRIMARY KEY AUTOINCREMENT, rule TEXT NOT NULL, champion TEXT NOT NULL, challenger TEXT NOT NULL,
    study TEXT NOT NULL, facts TEXT NOT NULL, UNIQUE (rule, champion, challenger, study));
CREATE TABLE IF NOT EXISTS withdrawn (
    rule TEXT NOT NULL, champion TEXT NOT NULL, challenger TEXT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (rule, champion, challenger));
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT, result INTEGER NOT NULL, destination TEXT NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', created REAL NOT NULL, done REAL,
    since REAL, UNIQUE (result, destination));
CREATE TABLE IF NOT EXISTS commitments (
    ae_title TEXT NOT NULL, "transaction" TEXT NOT NULL, refs TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL, reported REAL, PRIMARY KEY (ae_title, "transaction"));
CREATE TABLE IF NOT EXISTS audit_head (one INTEGER PRIMARY KEY CHECK (one = 1), n INTEGER NOT NULL, digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS kept_lines (n INTEGER PRIMARY KEY, event TEXT NOT NULL, facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS clock (one INTEGER PRIMARY KEY CHECK (one = 1), seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS totals (verdict TEXT PRIMARY KEY, n INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS remade (job INTEGER PRIMARY KEY, n INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS decisions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, result INTEGER NOT NULL, decision TEXT NOT NULL, who TEXT NOT NULL, at TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS decisions_of ON decisions (result);
CREATE TABLE IF NOT EXISTS kept_decisions (
    id INTEGER PRIMARY KEY, result INTEGER NOT NULL, decision TEXT NOT NULL, who TEXT NOT NULL, at TEXT NOT NULL,
    study TEXT NOT NULL, rule TEXT NOT NULL, series TEXT NOT NULL, digest TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS kept_decisions_of ON kept_decisions (study);
CREATE INDEX IF NOT EXISTS jobs_state ON jobs (state);
CREATE INDEX IF NOT EXISTS results_of ON results (study, rule, series);
CREATE INDEX IF NOT EXISTS deliveries_state ON deliveries (state);
"""
"""Tables of the SQLite file. `kept_decisions` has the decisions about forgotten results, with what identifies the result;
`kept_lines` has the lines that the audit trail could not take yet."""


@dataclass(frozen=True)
class Job:
    """One version of a study that is to be segmented, or was.

    Attributes:
        version: Counts from 1 how often the study became complete.
        attempts: How often a worker has begun it.
        created: Seconds since 1970.
        plan: JSON: name of each rule whose bundles were fixed when the job was made -> sha256 of its "champion" and its
            "challenger" ("" for none), and the "slot" of these two that makes the result. The other one segments the study once
            more when it is delivered; what it makes is compared, and never sent. A challenger that could not make it is its
            "failed", for the "reason".
    """

    id: int
    study: str
    version: int
    state: JobState
    attempts: int
    reason: str
    created: float
    plan: str = ""

    @property
    def plans(self) -> dict[str, dict[str, str]]:
        """The plan, read."""
        return dict(json.loads(self.plan or "{}"))

    @property
    def bundles(self) -> dict[str, str]:
        """Rule -> sha256 of the bundle that makes its result."""
        return {rule: plan[plan["slot"]] for rule, plan in self.plans.items()}

    @property
    def shadows(self) -> dict[str, str]:
        """Rule -> sha256 of the bundle whose result is only compared; a rule without a challenger is left out."""
        return {rule: plan[other_slot(plan["slot"])] for rule, plan in self.plans.items() if plan["challenger"]}


def other_slot(slot: str) -> str:
    """The slot beside this one."""
    return "challenger" if slot == "champion" else "champion"


@dataclass(frozen=True)
class Slot:
    """The bundles of a rule.

    Attributes:
        champion: sha256 of the bundle in use.
        challenger: Of the one that is tried beside it; empty: none.
        share: Part of the patients whose results are the challenger's.
        withdrawn: Why the challenger was rolled back; empty while it is tried.
    """

    rule: str
    champion: str
    challenger: str
    share: float
    withdrawn: str

    @property
    def is_open(self) -> bool:
        """Whether a challenger is tried."""
        return bool(self.challenger) and not self.withdrawn


@dataclass(frozen=True)
class Shadow:
    """A job whose study is segmented once more, by the other bundle of its rules: waiting, done or dead."""

    job: int
    state: Literal["waiting", "done", "dead"]
    attempts: int
    reason: str


@dataclass(frozen=True)
class NewResult:
    """What a worker made of one series.

    Attributes:
        series: SeriesInstanceUID; empty where no series of the study was picked, and for a NIfTI image.
        folder: Relative to the folder `results`; empty where there is nothing to deliver.
        verdict: Of the quality gate; empty without a gate.
        digest: sha256 of the files in the folder, see `result_folder.digest_of`.
        destinations: Names of the destinations that get it, at once or after a reviewer's decision.
        observed: As of `service.observed`, with the sha256 of the "bundle"; for the audit trail only.
        bundle: sha256 of the bundle that made it; empty for a notice.
    """

    rule: str
    series: str
    folder: str
    state: ResultState
    verdict: str
    reason: str
    digest: str
    destinations: Sequence[str] = ()
    observed: Mapping[str, Any] = field(default_factory=dict)
    bundle: str = ""


@dataclass(frozen=True)
class Result:
    """A result as it is recorded, see `NewResult`. The verdict of a follow-up is its kind, one of `FOLLOW_UPS`.

    Attributes:
        created: Seconds since 1970.
    """

    id: int
    job: int
    study: str
    rule: str
    series: str
    folder: str
    state: ResultState
    verdict: str
    reason: str
    digest: str
    created: float


@dataclass(frozen=True)
class Delivery:
    """A result on its way to one destination.

    Attributes:
        attempts: How often it was tried.
        reason: Why the last try failed, or why it was given up.
        created: Seconds since 1970.
    """

    id: int
    result: int
    destination: str
    state: DeliveryState
    attempts: int
    reason: str
    created: float


@dataclass(frozen=True)
class Decision:
    """What a person decided about a result.

    Attributes:
        who: The person's name.
        at: Time of the decision by the node's clock, in ISO 8601 with a time zone.
    """

    result: int
    decision: DecisionKind
    who: str
    at: str

    @property
    def is_final(self) -> bool:
        """Whether no further decision is allowed. A released result may still be accepted, corrected or rejected."""
        return self.decision != "released"


class DecidedError(AppError):
    """A decision about the result was taken already, or the result has changed since the person looked at it."""


Row = TypeVar("Row", Job, Result, Delivery, Decision, Slot, Shadow)
"""The classes of the objects that `Database.select` makes of rows."""


def sql_list(states: Sequence[str]) -> str:
    """States as SQL writes them after IN."""
    return f"({', '.join(repr(state) for state in states)})"
