"""What the node knows about its studies: which wait, which are at work, which results go where.

Instances are not in it: they are files, forced to the disk before their sender gets an answer. `reconcile` compares the files
with what is recorded, so no study is lost with this file; `service.restore` makes the file anew from the audit trail.

A study has one job for each time that it became complete. A job has results, one for each series that a rule picked, and a
result has deliveries, one for each destination. A result that is "not processed" has deliveries where its rule wants a notice;
its state stays "not processed", whatever becomes of the notice.
"""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from monai_unet_app.service.database import Database
from monai_unet_app.service.recording import add_deliveries, add_result, close_if_done, insert_result
from monai_unet_app.service.rows import (
    DECIDABLE,
    FOLLOW_UPS,
    HELD_BACK,
    UNFINISHED,
    DecidedError,
    Decision,
    Delivery,
    DeliveryState,
    Job,
    JobState,
    NewResult,
    Result,
    ResultState,
    sql_list,
)

# An empty digest means that there are no files: such a result is the same as itself only.
_SAME_BYTES = (
    "(SELECT a.id FROM results a JOIN results b ON a.study = b.study AND a.rule = b.rule AND a.series = b.series "
    "AND a.digest = b.digest WHERE b.id = ? AND (b.digest != '' OR a.id = b.id))"
)
"""Numbers of the results that have the same bytes as a given result; that result is among them."""

_JOB, _RESULT, _DELIVERY = (f"SELECT * FROM {table} WHERE id = ?" for table in ("jobs", "results", "deliveries"))


def _in_states(table: str, states: Sequence[str], oldest_first: bool) -> str:
    """A query for the rows of a table in these states, up to a limit; no states: rows in any state."""
    where = f"WHERE state IN {sql_list(states)}" if states else ""
    return f"SELECT * FROM {table} {where} ORDER BY id {'' if oldest_first else 'DESC'} LIMIT ?"


class Queue(Database):
    """The node's memory; several threads of its process may use it."""

    # studies

    def record_instances(self, study: str, count: int) -> None:
        """Records that so many more instances of a study came: it is arriving."""
        with self.transaction():  # the time of the last instance is asked for when no other process writes
            self.change(
                "INSERT INTO studies VALUES (?, ?, 0, 'arriving', ?) ON CONFLICT (uid) DO UPDATE SET "
                "instances = instances + excluded.instances, state = 'arriving', last = excluded.last",
                study, count, self.now_s(),
            )  # fmt: skip

    def reconcile(self, stored: Mapping[str, int]) -> list[str]:
        """Studies whose files are not what was recorded, or whose job was lost; they are arriving from now on.

        Args:
            stored: Study -> number of its instances on the disk.
        """
        known = self._numbers(
            "SELECT uid name, instances n FROM studies s WHERE state = 'complete' "
            "AND EXISTS (SELECT 1 FROM jobs WHERE study = s.uid AND version = s.version)"
        )
        changed = [study for study, instances in stored.items() if known.get(study) != instances]
        with self.transaction():
            for study in changed:
                # The version goes on counting: jobs are unique by study and version.
                self.change(
                    "INSERT INTO studies VALUES (?, ?, 0, 'arriving', ?) ON CONFLICT (uid) DO UPDATE SET "
                    "instances = excluded.instances, state = 'arriving', last = excluded.last",
                    study, stored[study], self.now_s(),
                )  # fmt: skip
        return changed

    def complete_study(self, study: str, plan: str = "") -> Job:
        """The new job of a study that is complete for now; `plan` as in `Job`."""
        with self.transaction():
            self.change("UPDATE studies SET state = 'complete', version = version + 1 WHERE uid = ?", study)
            self.change(
                "INSERT INTO jobs (study, version, state, created, plan) SELECT uid, version, 'queued', ?, ? FROM studies "
                "WHERE uid = ?",
                time.time(), plan, study,
            )  # fmt: skip
            # An older version that no worker has begun gives nothing that this version does not give.
            self.change(
                "UPDATE jobs SET state = 'done', reason = 'superseded', done = ? WHERE study = ? AND state = 'queued' "
                "AND version < (SELECT version FROM studies WHERE uid = ?)",
                self.now_s(), study, study,
            )  # fmt: skip
            job = self.jobs_of(study)[-1]
            self._plan_shadow(job)
            return job

    def instances(self, study: str) -> int:
        """Number of recorded instances of a study."""
        return sum(self.column("SELECT instances FROM studies WHERE uid = ?", study))

    def find_studies(self, part: str, limit: int) -> list[str]:
        """UIDs of the studies that contain a text, the newest first."""
        return self.column("SELECT uid FROM studies WHERE instr(uid, ?) > 0 ORDER BY last DESC LIMIT ?", part, limit)

    def quiet_s(self, study: str) -> float:
        """Seconds since the last instance of a study was recorded, by the node's own clock."""
        return self.now_s() - max(self.column("SELECT last FROM studies WHERE uid = ?", study), default=0.0)

    # jobs

    def queued_jobs(self) -> list[Job]:
        """Jobs that wait for a worker, the oldest first; no job of a study that a worker is at."""
        return self.select(
            Job,
            "SELECT * FROM jobs WHERE state = 'queued' AND study NOT IN (SELECT study FROM jobs WHERE state = 'working') "
            "ORDER BY created, id",
        )

    def job(self, number: int) -> Job | None:
        """The job of a number; None if no job has it."""
        return next(iter(self.select(Job, _JOB, number)), None)

    def start_job(self, number: int) -> Job:
        """The job, which a worker has begun now."""
        with self.transaction():
            self.change("UPDATE jobs SET state = 'working', attempts = attempts + 1 WHERE id = ?", number)
            return self.select(Job, _JOB, number)[0]

    def requeue_job(self, number: int, reason: str, *, counts: bool = True) -> None:
        """Lets a job wait again; `counts`: the attempt counts as one of its tries."""
        query = "UPDATE jobs SET state = 'queued', reason = ?, attempts = attempts - ? WHERE id = ?"
        self.change(query, reason, 0 if counts else 1, number)

    def give_up_job(self, number: int, reason: str) -> None:
        """Makes a job dead."""
        self.change("UPDATE jobs SET state = 'dead', reason = ?, done = ? WHERE id = ?", reason, self.now_s(), number)

    def finish_job(self, number: int, results: Sequence[NewResult]) -> list[Result]:
        """Records the results of a job, which is done, and gives them as they are recorded, see `recording.add_result`."""
        with self.transaction():
            self.change("UPDATE jobs SET state = 'done', reason = '', done = ? WHERE id = ?", self.now_s(), number)
            (job,) = self.select(Job, _JOB, number)
            added = [add_result(self, job, new) for new in results]
            return [result for new in added for result in self.select(Result, _RESULT, new)]

    def remake_job(self, number: int) -> None:
        """Lets a job wait again, with all its tries, because files of its results are lost."""
        with self.transaction():
            self.change("UPDATE jobs SET state = 'queued', attempts = 0, done = NULL WHERE id = ?", number)
            self.change("INSERT INTO remade VALUES (?, 1) ON CONFLICT (job) DO UPDATE SET n = n + 1", number)

    def times_remade(self, job: int) -> int:
        """How often a job was remade."""
        return sum(self.column("SELECT n FROM remade WHERE job = ?", job))

    def retry_job(self, number: int) -> Job | None:
        """A dead job, which waits again now, with all its tries; None if no dead job has this number."""
        query = "UPDATE jobs SET state = 'queued', attempts = 0, done = NULL WHERE id = ? AND state = 'dead'"
        with self.transaction():
            return self.job(number) if self.change(query, number) else None

    def jobs(self, states: Sequence[JobState], limit: int = 100, *, oldest_first: bool = False) -> list[Job]:
        """Jobs in these states, the newest first or the oldest first; no states: jobs in any state."""
        return self.select(Job, _in_states("jobs", states, oldest_first), limit)

    def replan_job(self, number: int, plan: str) -> None:
        """Lets a job wait again, with all its tries, for the bundles of another plan."""
        query = "UPDATE jobs SET state = 'queued', attempts = 0, reason = '', plan = ? WHERE id = ?"
        with self.transaction():
            self.change(query, plan, number)
            self.change("DELETE FROM remade WHERE job = ?", number)  # it is no longer to give the bytes of before
            self._plan_shadow(self.select(Job, _JOB, number)[0])

    def _plan_shadow(self, job: Job) -> None:
        """Lets the shadow of a job wait, if its plan has one; the shadow of an earlier version of the study is dropped."""
        self.change(
            "DELETE FROM shadows WHERE state = 'waiting' AND job IN (SELECT id FROM jobs WHERE study = ?)", job.study
        )
        if job.shadows:
            self.change("INSERT OR REPLACE INTO shadows (job, state) VALUES (?, 'waiting')", job.id)

    def jobs_of(self, study: str) -> list[Job]:
        """Jobs of all versions of a study, the first version first."""
        return self.select(Job, "SELECT * FROM jobs WHERE study = ? ORDER BY version", study)

    # results

    def result(self, number: int) -> Result | None:
        """The result of a number; None if no result has it, or the result is forgotten."""
        return next(iter(self.select(Result, _RESULT, number)), None)

    def results(self, states: Sequence[ResultState], limit: int = 100, *, oldest_first: bool = False) -> list[Result]:
        """Results in these states, the newest first or the oldest first; no states: results in any state."""
        return self.select(Result, _in_states("results", states, oldest_first), limit)

    def results_of(self, job: int) -> list[Result]:
        """Results of a job and what follows from decisions about them, the first result first."""
        return self.select(Result, "SELECT * FROM results WHERE job = ? ORDER BY id", job)

    def results_of_study(self, study: str) -> list[Result]:
        """Results of all versions of a study, those of the first version first."""
        return self.select(Result, "SELECT * FROM results WHERE study = ? ORDER BY job, id", study)

    def last_delivered(self, study: str, job: int = 0) -> list[Result]:
        """For each rule and series of a study the last result that a destination has; notices and follow-ups are left out.

        Args:
            study: StudyInstanceUID.
            job: Results of this job are left out: they are lost and are being remade.
        """
        return self.select(
            Result,
            "SELECT * FROM results WHERE id IN (SELECT max(r.id) FROM results r JOIN deliveries d ON d.result = r.id "
            "WHERE r.study = ? AND r.job != ? AND r.state != 'not processed' AND d.state = 'delivered' "
            f"AND r.verdict NOT IN {FOLLOW_UPS} GROUP BY r.rule, r.series)",
            study, job,
        )  # fmt: skip

    def folder_names(self) -> set[str]:
        """Names of the folders below `results` that hold a result."""
        return {folder.split("/")[0] for folder in self.column("SELECT folder FROM results")}

    def add_follow_up(self, of: Result, kind: str, folder: str, digest: str, destinations: Sequence[str]) -> int:
        """Records what follows from a decision about a result; it goes to the destinations and supersedes nothing.

        Args:
            of: The result.
            kind: One of `FOLLOW_UPS`.
            folder: Relative to the folder `results`; not empty.
            digest: Of the files in it.
            destinations: Names of the destinations that get it.

        Returns:
            Number of the follow-up.
        """
        new = NewResult(of.rule, of.series, folder, "sending", kind, "", digest, destinations)
        with self.transaction():
            return insert_result(self, of.job, of.study, new)

    def mark_replaced(self, number: int, destination: str) -> None:
        """Notes that a destination has a later version of a result and gets a rejection note for this one."""
        with self.transaction():
            self.change(
                "UPDATE deliveries SET state = 'replaced', done = ? WHERE destination = ? AND state = 'delivered' "
                f"AND result IN {_SAME_BYTES}",
                self.now_s(), destination, number,
            )  # fmt: skip
            self.change(
                f"UPDATE results SET state = 'superseded', done = ? WHERE id IN {_SAME_BYTES} AND state = 'delivered' AND NOT "
                "EXISTS (SELECT 1 FROM deliveries d WHERE d.result = results.id AND d.state != 'replaced')",
                self.now_s(), number,
            )  # fmt: skip

    # decisions

    def decisions_of(self, number: int) -> list[Decision]:
        """Decisions about the bytes of a result, on this result or on another, the first decision first."""
        return self.select(
            Decision,
            f"SELECT id, result, decision, who, at FROM decisions WHERE result IN {_SAME_BYTES} UNION ALL "
            "SELECT d.id, d.result, d.decision, d.who, d.at FROM kept_decisions d JOIN results r ON d.study = r.study AND "
            "d.rule = r.rule AND d.series = r.series AND d.digest = r.digest WHERE r.id = ? ORDER BY id",
            number, number,
        )  # fmt: skip

    def decisions_on_forgotten(self, study: str) -> list[Decision]:
        """Decisions about forgotten results of a study, the first decision first."""
        return self.select(Decision, "SELECT * FROM kept_decisions WHERE study = ? ORDER BY id", study)

    def forget_decision(self, result: int, decision: str) -> None:
        """Forgets a decision about a forgotten result: it no longer holds for the same bytes."""
        self.change("DELETE FROM kept_decisions WHERE result = ? AND decision = ?", result, decision)

    def check_undecided(self, number: int, states: Sequence[ResultState] = DECIDABLE) -> None:
        """Passes if a result is in one of these states and no final decision was taken about its bytes.

        Raises:
            DecidedError: The message names the decision, the person and the time.
        """
        result, before = self.result(number), self.decisions_of(number)
        final = [decision for decision in before if decision.is_final]
        if result is not None and result.state in states and not final:
            return
        taken = "".join(f"; it was {last.decision} by {last.who} at {last.at}" for last in (final or before)[-1:])
        raise DecidedError(
            f"result {number} is {result.state if result else 'deleted'}{taken}; only an undecided result that is "
            f"{', '.join(states)} can be decided on; look at the newest result of this study"
        )

    def record_if_undecided(self, decision: Decision) -> None:
        """Records a decision if the result waits for it.

        Raises:
            DecidedError: See `check_undecided`.
        """
        with self.transaction():
            # Within the transaction that records the decision: of two decisions at the same time only the first counts
            # (decision 0028).
            is_for_held_back = decision.decision in ("released", "refused")
            self.check_undecided(decision.result, HELD_BACK if is_for_held_back else DECIDABLE)
            self.record_decision(decision)

    def record_decision(self, decision: Decision) -> None:
        """Records a decision, whatever is known of the result; its state stays as it is."""
        self.change(
            "INSERT INTO decisions (result, decision, who, at) VALUES (?, ?, ?, ?)",
            decision.result, decision.decision, decision.who, decision.at,
        )  # fmt: skip

    def send_held_back(self, number: int, destinations: Sequence[str]) -> None:
        """Sends a result that is held back; without destinations it is done. A result in another state stays as it is."""
        query = f"UPDATE results SET state = 'sending' WHERE id = ? AND state IN {sql_list(HELD_BACK)}"
        with self.transaction():
            if self.change(query, number):
                add_deliveries(self, number, destinations)
                close_if_done(self, number)

    def mark_refused(self, number: int, reason: str) -> None:
        """Refuses a result and all results of the same bytes, delivered ones too; nothing more of them is sent."""
        query = (
            f"UPDATE results SET state = 'refused', reason = ?, done = ? WHERE id IN {_SAME_BYTES} AND state IN "
            f"{sql_list(DECIDABLE)}"
        )
        with self.transaction():
            if self.change(query, reason, self.now_s(), number):
                self.change(
                    f"DELETE FROM deliveries WHERE state IN ('pending', 'dead') AND result IN {_SAME_BYTES}", number
                )

    # deliveries

    def deliveries(
        self, states: Sequence[DeliveryState], limit: int = 100, *, oldest_first: bool = False
    ) -> list[Delivery]:
        """Deliveries in these states, the newest first or the oldest first; no states: deliveries in any state."""
        return self.select(Delivery, _in_states("deliveries", states, oldest_first), limit)

    def deliveries_of(self, result: int) -> list[Delivery]:
        """Deliveries of a result, the first delivery first."""
        return self.select(Delivery, "SELECT * FROM deliveries WHERE result = ? ORDER BY id", result)

    def deliveries_of_same_bytes(self, result: int) -> list[Delivery]:
        """Deliveries of all results that have the same bytes as a result, itself among them."""
        return self.select(Delivery, f"SELECT * FROM deliveries WHERE result IN {_SAME_BYTES}", result)

    def next_deliveries(self, without: Collection[int] = ()) -> list[tuple[Delivery, Result]]:
        """For each destination the delivery that is to be made next, and its result.

        That is the delivery with the fewest tries, and of those the oldest: a result that a destination always refuses does not
        block others.

        Args:
            without: Numbers of results that are left out.
        """
        due = self.select(
            Delivery,
            "SELECT * FROM (SELECT d.*, row_number() OVER (PARTITION BY destination ORDER BY d.attempts, d.id) turn "
            "FROM deliveries d JOIN results r ON r.id = d.result WHERE d.state = 'pending' "
            f"AND r.id NOT IN ({', '.join('?' * len(without))})) WHERE turn = 1 ORDER BY id",
            *without,
        )
        pairs = [(delivery, self.result(delivery.result)) for delivery in due]
        return [(delivery, result) for delivery, result in pairs if result is not None]

    def record_failed_try(self, number: int, reason: str) -> None:
        """Counts a try of a delivery that failed; it is tried again."""
        self.change("UPDATE deliveries SET attempts = attempts + 1, reason = ? WHERE id = ?", reason, number)

    def is_late(self, delivery: int, longest_s: float) -> bool:
        """Whether a delivery has waited for more than `longest_s` seconds, by the node's own clock."""
        # Rows of an earlier version lack `since`.
        since = self.column("SELECT coalesce(since, created) FROM deliveries WHERE id = ?", delivery)
        return any(self.now_s() - begun_s > longest_s for begun_s in since)

    def close_delivery(self, number: int, state: DeliveryState, reason: str = "") -> None:
        """Ends a delivery: the destination has everything that it wants of the result, or the delivery is given up."""
        query = "UPDATE deliveries SET state = ?, attempts = attempts + 1, reason = ?, done = ? WHERE id = ?"
        with self.transaction():
            self.change(query, state, reason, self.now_s(), number)
            # No row: a newer result has superseded it meanwhile, see `add_delivered`.
            for delivery in self.select(Delivery, _DELIVERY, number):
                close_if_done(self, delivery.result)

    def add_delivered(self, result: int, destination: str) -> None:
        """Records a delivery whose row was deleted while it was being made, because a later version superseded its result."""
        now_s = self.now_s()
        self.change(
            "INSERT OR IGNORE INTO deliveries (result, destination, state, attempts, created, since, done) "
            "SELECT id, ?, 'delivered', 1, ?, ?, ? FROM results WHERE id = ?",
            destination, time.time(), now_s, now_s, result,
        )  # fmt: skip

    def retry_delivery(self, number: int) -> Delivery | None:
        """A dead delivery, which waits again now, with all its tries; None if no dead delivery has this number."""
        query = (
            "UPDATE deliveries SET state = 'pending', attempts = 0, created = ?, since = ?, done = NULL WHERE id = ? "
            "AND state = 'dead'"
        )
        with self.transaction():
            if not self.change(query, time.time(), self.now_s(), number):
                return None
            (delivery,) = self.select(Delivery, _DELIVERY, number)
            self.change(
                "UPDATE results SET state = 'sending', done = NULL WHERE id = ? AND state = 'dead'", delivery.result
            )
            return delivery

    # figures and forgetting

    def counts(self) -> dict[str, Counter[str]]:
        """How many studies, jobs, results and deliveries are in each state."""
        return {
            table: self._numbers(f"SELECT state name, count(*) n FROM {table} GROUP BY state")
            for table in ("studies", "jobs", "results", "deliveries")
        }

    def waiting_by_destination(self) -> dict[str, tuple[int, float]]:
        """How many deliveries wait for each destination, and when the oldest of them came, in seconds since 1970."""
        waiting = self.rows(
            "SELECT destination, count(*) n, min(created) oldest FROM deliveries WHERE state = 'pending' GROUP BY destination"
        )
        return {row["destination"]: (row["n"], row["oldest"]) for row in waiting}

    def verdict_counts(self) -> Counter[str]:
        """How many results got each verdict, forgotten results included; "" for no verdict. No number ever falls."""
        return self._numbers("SELECT verdict name, n FROM totals")

    def _numbers(self, query: str) -> Counter[str]:
        return Counter({row["name"]: row["n"] for row in self.rows(query)})

    def waiting(self) -> dict[str, tuple[int, float]]:
        """How many jobs, deliveries and results for a review wait: "job", "delivery" and "review".

        Returns:
            Kind -> number, and when the oldest came, in seconds since 1970. A kind is left out if nothing of it waits.
        """
        waiting = self.rows(
            "SELECT 'job' kind, count(*) n, min(created) oldest FROM jobs WHERE state IN ('queued', 'working') UNION ALL "
            "SELECT 'delivery', count(*), min(created) FROM deliveries WHERE state = 'pending' UNION ALL "
            f"SELECT 'review', count(*), min(created) FROM results WHERE state IN {sql_list(HELD_BACK)}"
        )
        return {row["kind"]: (row["n"], row["oldest"]) for row in waiting if row["n"]}

    def forgettable(self, before: float) -> list[str]:
        """Studies that everything was done about before a time by `now_s`: no file of them is needed any more."""
        not_done = sql_list((*UNFINISHED, "dead"))
        return self.column(
            "SELECT uid FROM studies s WHERE state = 'complete' AND last < ? "
            "AND NOT EXISTS (SELECT 1 FROM jobs WHERE study = s.uid AND (state != 'done' OR done >= ?)) "
            f"AND NOT EXISTS (SELECT 1 FROM results WHERE study = s.uid AND (state IN {not_done} OR done >= ?)) "
            "AND NOT EXISTS (SELECT 1 FROM results r JOIN deliveries d ON d.result = r.id WHERE r.study = s.uid "
            "AND r.state = 'not processed' AND (d.state != 'delivered' OR d.done >= ?))",
            before, before, before, before,
        )  # fmt: skip

    def forget(self, study: str) -> None:
        """Deletes the rows of a study whose files are gone. Decisions are kept, for when the same bytes are made again."""
        with self.transaction():
            self.change(
                "INSERT INTO kept_decisions SELECT d.id, d.result, d.decision, d.who, d.at, r.study, r.rule, r.series, "
                "r.digest FROM decisions d JOIN results r ON r.id = d.result WHERE r.study = ? AND r.digest != ''",
                study,
            )
            # First the rows that are reached by way of results and jobs.
            for table in ("deliveries", "decisions"):
                self.change(f"DELETE FROM {table} WHERE result IN (SELECT id FROM results WHERE study = ?)", study)
            self.change("DELETE FROM remade WHERE job IN (SELECT id FROM jobs WHERE study = ?)", study)
            self.change("DELETE FROM shadows WHERE job IN (SELECT id FROM jobs WHERE study = ?)", study)
            for table, key in (("results", "study"), ("jobs", "study"), ("studies", "uid")):
                self.change(f"DELETE FROM {table} WHERE {key} = ?", study)
