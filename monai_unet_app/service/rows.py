"""What the node's memory holds: states, and rows of jobs, results, deliveries and decisions. SQLite is in `service.queue`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from monai_unet_app.errors import AppError

JobState = Literal["queued", "working", "done", "dead"]
ResultState = Literal["held", "rejected", "sending", "delivered", "not processed", "dead", "superseded", "refused"]
DeliveryState = Literal["pending", "delivered", "dead"]
DecisionKind = Literal["accepted", "corrected", "rejected", "refused", "released"]
KEPT_BACK: tuple[ResultState, ...] = ("held", "rejected")
"""Results that wait for a reviewer."""

RELEASED: tuple[ResultState, ...] = ("sending", "delivered", "dead", "not processed")
"""Results that went out or may; of all others only a reviewer sees the content."""

OPEN_RESULTS: tuple[ResultState, ...] = (*KEPT_BACK, "sending")
"""Results of which something is still to be done."""

DECIDABLE: tuple[ResultState, ...] = (*OPEN_RESULTS, "delivered", "dead")
"""Results that a person may decide on, unless somebody has."""

FOLLOW_UPS = ("verified", "corrected", "rejection note")
"""Verdicts of results that follow from a decision: they are no results of a worker, supersede none and are not superseded."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
    uid TEXT PRIMARY KEY, instances INTEGER NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL, last REAL NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', created REAL NOT NULL, done REAL,
    UNIQUE (study, version));
CREATE TABLE IF NOT EXISTS results (
    id INTEGER PRIMARY KEY AUTOINCREMENT, job INTEGER NOT NULL, study TEXT NOT NULL, rule TEXT NOT NULL, series TEXT NOT NULL,
    folder TEXT NOT NULL, state TEXT NOT NULL, verdict TEXT NOT NULL, reason TEXT NOT NULL, digest TEXT NOT NULL,
    created REAL NOT NULL, done REAL);
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT, result INTEGER NOT NULL, destination TEXT NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', created REAL NOT NULL, done REAL,
    since REAL, UNIQUE (result, destination));
CREATE TABLE IF NOT EXISTS commitments (
    ae_title TEXT NOT NULL, "transaction" TEXT NOT NULL, refs TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL, reported REAL, PRIMARY KEY (ae_title, "transaction"));
CREATE TABLE IF NOT EXISTS audit_head (one INTEGER PRIMARY KEY CHECK (one = 1), n INTEGER NOT NULL, digest TEXT NOT NULL);
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
"""Tables of the SQLite file. `kept_decisions` has those about results that are forgotten, with what they were about."""


@dataclass(frozen=True)
class Job:
    """A study that is to be segmented, or was.

    Attributes:
        version: How often the study had become complete, from 1.
        attempts: How often a worker has begun it.
        created: Seconds since 1970.
    """

    id: int
    study: str
    version: int
    state: JobState
    attempts: int
    reason: str
    created: float


@dataclass(frozen=True)
class NewResult:
    """What a worker made of one series.

    Attributes:
        series: SeriesInstanceUID; empty where no series of the study was picked.
        folder: Below the node's folder; empty where there is nothing to deliver.
        digest: Of all files in it.
        destinations: Where it is to go, at once or when a reviewer lets it.
    """

    rule: str
    series: str
    folder: str
    state: ResultState
    verdict: str
    reason: str
    digest: str
    destinations: Sequence[str] = ()


@dataclass(frozen=True)
class Result:
    """A result as it is recorded; see `NewResult`."""

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
    """A result on its way to one destination."""

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
        at: When, by the node's clock, in ISO 8601 with a time zone.
    """

    result: int
    decision: DecisionKind
    who: str
    at: str

    @property
    def is_final(self) -> bool:
        """A released result may still be accepted, corrected or rejected; after any other decision nothing more is decided."""
        return self.decision != "released"


class DecidedError(AppError):
    """Somebody has decided about the result already, or it is not what it was when it was looked at."""
