"""The node: takes studies, has them segmented, delivers the results. What it accepted it does not lose.

    received/<study>/<series>/<instance>.dcm    forced to the disk before the sender is told so
    results/<job>-<attempt>/<result>/           whole, or not there
    reviews/<result>/                           pages that name patients, made when a reviewer asks
    verdicts/<study>/                           what people decided and why; kept when the study's files are deleted
    dead-letters/                               what could not be done, and why
    audit.jsonl, node.sqlite                    what was done; what waits, told anew by the former if it is lost

This process receives and decides. Torch is in the workers and the network's slowness in the senders, both of which may die at
any moment: what they were at is begun anew. Waiting is measured by a clock that nobody can set.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sqlite3
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dicom_io.net.availability import Availability, availability_service
from dicom_io.net.messages import Limits
from dicom_io.net.scp import Listen, Provider
from dicom_io.net.store import INCOMING, InstanceStore, Stored
from monai_unet_app.errors import AppError, UsageError
from monai_unet_app.service.arrivals import Arrivals
from monai_unet_app.service.audit import AuditTrail
from monai_unet_app.service.child_processes import PARTIAL, Child, Message, resident_bytes
from monai_unet_app.service.commitment_store import Commitments
from monai_unet_app.service.dead_letters import DeadLetters
from monai_unet_app.service.health import Health
from monai_unet_app.service.lost_results import LostResults
from monai_unet_app.service.node_metrics import Durations
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.restore import restore
from monai_unet_app.service.rows import Delivery, Job, NewResult, Result
from monai_unet_app.service.site_file import Site
from monai_unet_app.service.uploads import IMAGES
from monai_unet_app.service.worker_pool import Crew, Pause

RECEIVED, RESULTS, REVIEWS, DEAD, VERDICTS = "received", "results", "reviews", "dead-letters", "verdicts"
WORKER, SENDER = "monai_unet_app.service.work", "monai_unet_app.service.deliver"
_TICK_S = 0.05
_TIDY_S = 60.0
_WAIT_S = 5.0  # for a disk that is full
_FEW_TRIES = 10  # no destination is given up before, whatever the clock says
_LONGEST_START_S = 600.0  # of a worker, which loads its bundles
_TURNED_AWAY = 10

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DestinationState:
    """What is known of a destination.

    Attributes:
        pending: Deliveries that wait for it.
        is_reachable: The last try to give it something did not fail, or there was none.
        is_paused: After a failed try it is left alone for some time.
        delivered: When it was last given something, in seconds since 1970; None if never since the node began.
    """

    pending: int
    is_reachable: bool
    is_paused: bool
    delivered: float | None


class Node:
    """Runs from `with` to its end.

    Attributes:
        seconds: Stage -> how long the last ones took: "work", "deliver" and "total" (complete until delivered).
        received: How many instances were stored.
        refused: How many were not.
        rejected: How many callers were not let in.
        turned_away: The last of both: when, in seconds since 1970, and why.
        deciding: Result number -> the lock of whoever decides on it.
    """

    def __init__(self, site: Site, worker: str = WORKER, *, new_key: bool = False) -> None:
        """Opens the node's folder; nothing runs yet.

        Args:
            site: Its file is what workers and senders read again.
            worker: Module that the workers run.
            new_key: See `AuditTrail`.

        Raises:
            UsageError: Another node uses the folder, its `node.sqlite` is damaged, or the audit trail's key cannot be used.
            InputRefusedError: The audit trail was tampered with.
        """
        self.site, self.config, self._worker = site, site.node, worker
        self.folder = self.config.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock_file = _locked(self.folder)
        self.store = InstanceStore(
            self.folder / RECEIVED, stored=self._stored, most_bytes=self.config.instance_gb * 1e9
        )
        try:
            self.queue = Queue(self.folder / "node.sqlite")
            self.audit = AuditTrail(self.folder / "audit.jsonl", self.config.audit_key, self.queue, new_key=new_key)
            restore(self.queue, self.audit.path)
        except BaseException:
            self._lock_file.close()
            raise
        self.letters = DeadLetters(self.folder / DEAD, self.queue)
        self.lost = LostResults(self.queue, self.audit, self.folder / RECEIVED, self.folder / RESULTS)
        self.health = Health(self)
        self.seconds: dict[str, Durations] = {name: Durations(name) for name in ("work", "deliver", "total")}
        self.received = self.refused = self.rejected = 0
        self.turned_away: deque[tuple[float, str]] = deque(maxlen=_TURNED_AWAY)
        self.deciding: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
        self.arrivals = Arrivals()
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, name="node")
        self._is_full = ""
        self._not_before: dict[int, float] = {}  # job -> clock
        self._whole: set[int] = set()  # jobs of studies of which somebody said that they are whole
        self._unsendable: dict[int, str] = {}  # result whose files are lost -> study, until its job has ended
        self._pauses: dict[str, Pause] = {}
        self._delivered: dict[str, float] = {}  # destination -> seconds since 1970
        self._tidied = 0.0

    def __enter__(self) -> Node:
        (self.folder / RESULTS).mkdir(exist_ok=True)
        for unfinished in (self.folder / RECEIVED / INCOMING, self.folder / "uploads"):
            shutil.rmtree(unfinished, ignore_errors=True)  # what nobody was told is stored
        for study in self.queue.reconcile(dict(_instances(self.folder / RECEIVED))):
            self.arrivals.came(study, 0)
        self._look_at_disk()
        self.commitments = Commitments(self.store, self.site, self.queue)
        self.provider = Provider(
            self.store,
            Listen(
                self.config.ae_title, self.config.host, self.config.port, self.config.senders, self.config.tls,
                self.config.idle_s, self.config.most_senders, networks=self.config.networks,
                limits=Limits(instance_bytes=int(self.config.instance_gb * 1e9)),
            ),
            refused=self._refused,
            rejected=self._rejected,
            room=lambda: self._is_full,
            services=(availability_service(self._notified), self.commitments.service),
        )  # fmt: skip
        self.provider.__enter__()  # first of all, because it may fail: the port may be taken
        file, silent_s = [str(self.site.path)], self.config.silent_s
        self.workers = Crew(self._worker, file, self.config.workers, silent_s)
        self.senders = Crew(SENDER, file, max(1, min(4, len(self.site.destinations))), silent_s)
        self.commitments.__enter__()
        self._thread.start()
        self.audit.write("started", port=self.provider.port)
        return self

    def __exit__(self, *exc: object) -> None:
        self.provider.__exit__(*exc)
        self.commitments.__exit__(*exc)
        self._stop.set()
        self._thread.join()
        for crew in (self.workers, self.senders):
            crew.end(patience_s=2.0)
        try:
            self.audit.write("stopped")
        except (OSError, sqlite3.Error, AppError) as error:  # a broken disk or trail keeps nobody from stopping
            _logger.error("the audit trail does not say that the node stopped (%s)", type(error).__name__)
        self.queue.close()
        self._lock_file.close()

    @property
    def is_ready(self) -> bool:
        """Whether a study that comes now would be segmented, recorded and delivered without waiting for a repair."""
        return not self.failing()

    def failing(self) -> list[str]:
        """The parts that keep it from being ready, see `Health.failing`; they name nobody, and no file."""
        return self.health.failing()

    @property
    def is_running(self) -> bool:
        """Whether its own threads are alive."""
        return self._thread.is_alive() and self.commitments.is_alive

    # what others ask of it

    def why_full(self) -> str:
        """Why nothing is taken just now; empty where it is."""
        return self._is_full

    def is_arriving(self, study: str) -> bool:
        """Whether a study is not complete yet."""
        return study in self.arrivals

    def destinations_away(self) -> list[str]:
        """Destinations that could not be given something the last time."""
        return sorted(self._pauses)

    def destinations(self) -> dict[str, DestinationState]:
        """The destinations of the site, and others that something still waits for."""
        pending = self.queue.pending_by_destination()
        return {
            name: DestinationState(
                pending=pending.get(name, 0),
                is_reachable=name not in self._pauses,
                is_paused=(pause := self._pauses.get(name)) is not None and not pause.is_over,
                delivered=self._delivered.get(name),
            )
            for name in dict.fromkeys([*self.site.destinations, *pending])
        }

    def bundles(self) -> dict[str, dict[str, str]]:
        """Rule -> "name", "version" and "sha256" of the bundle that a worker has loaded for it; empty before one is ready."""
        return dict(self.workers.facts.get("bundles", {}))

    def result_folder(self, result: Result) -> Path:
        """Where a result's files are."""
        return self.folder / RESULTS / result.folder

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory of the node and of its children."""
        found = {"node": resident_bytes(os.getpid())}
        for name, crew in (("worker", self.workers), ("sender", self.senders)):
            found |= {f"{name} {n}": resident_bytes(child.pid) for n, child in enumerate(crew.children, start=1)}
        return found

    def reprocess(self, study: str, who: str) -> bool:
        """A study is worked at once more, as it is and by the rules as they are; False if there is none that was complete."""
        if self.is_arriving(study) or not self.queue.jobs_of(study):
            return False
        self.audit.write("reprocessed", study=study, who=who)
        self.arrivals.came(study, 0)
        self.arrivals.declare(study)
        return True

    def retry(self, kind: Literal["job", "delivery"], number: int, who: str) -> bool:
        """A dead letter is tried again, with all its tries; False if there is none of that number."""
        with self.queue.transaction():
            revived = (self.queue.retry_job if kind == "job" else self.queue.retry_delivery)(number)
            if revived is None:
                return False
            told = (
                {"study": revived.study, "job": number}
                if isinstance(revived, Job)
                else {"result": revived.result, "destination": revived.destination}
            )
            self.audit.write("retried", who=who, **told)
        self.letters.mend()
        return True

    # what comes in

    def _stored(self, stored: Stored) -> None:
        if not stored.is_new:
            return
        self.received += 1
        self.arrivals.stored(stored)

    def _notified(self, told: Availability) -> None:
        """A study of which all that is said to be available is here, is complete (PS3.4 R)."""
        wanted = {(series, uid) for series, uids in told.online.items() for uid in uids}
        folder = self.folder / RECEIVED / told.study_instance_uid
        if wanted and all((folder / series / f"{uid}.dcm").is_file() for series, uid in wanted):
            self.arrivals.declare(told.study_instance_uid)
            for job in self.queue.jobs_of(told.study_instance_uid)[-1:]:  # it may wait for images already
                self._whole.add(job.id)
                self._not_before.pop(job.id, None)

    def _refused(self, reason: str) -> None:
        self.refused += 1
        self.turned_away.append((time.time(), f"an instance: {reason}"))

    def _rejected(self, caller: str) -> None:
        self.rejected += 1
        self.turned_away.append((time.time(), f"a caller, {caller}"))

    # what it does, again and again

    def _run(self) -> None:
        while not self._stop.wait(_TICK_S):
            try:
                self._tick()
            except Exception as error:  # a full disk, or a fault of ours: nothing is forgotten, and tried again
                where = traceback.extract_tb(error.__traceback__)[-1]
                self.health.ticked(error)
                _logger.error("cannot go on: %s in %s, line %s", type(error).__name__, where.name, where.lineno)
                self._stop.wait(1.0)
            else:
                self.health.ticked()

    def _tick(self) -> None:
        self.health.look()
        self._look_at_disk()
        self._settle()
        self._hear()
        self._watch()
        for crew in (self.workers, self.senders):
            crew.mend()
        self._set_to_work()
        self._send()
        self._tidy()

    def _look_at_disk(self) -> None:
        free = shutil.disk_usage(self.folder).free
        self._is_full = "" if free >= self.config.least_free_gb * 1e9 else "the node's disk is full"

    def _settle(self) -> None:
        """Makes a job of each study that nothing more comes for."""
        for study in self.arrivals.studies():
            count = self.arrivals.unrecorded(study)
            if count:
                self.queue.record_instances(study, count)
                self.arrivals.recorded(study, count)
            if not self.arrivals.is_quiet(study, self.config.stable_s):
                continue
            with self.queue.transaction():
                job = self.queue.complete_study(study)
                count = self.queue.instances(study)
                self.audit.write("complete", study=study, version=job.version, job=job.id, instances=count)
            _logger.info("study %s: complete, version %s of %s instance(s), job %s", study, job.version, count, job.id)
            if self.arrivals.is_declared(study):
                self._whole.add(job.id)
            self.arrivals.settled(study)

    def _set_to_work(self) -> None:
        idle = self.workers.idle()
        if not idle:
            return
        due = [job for job in self.queue.queued_jobs() if time.monotonic() >= self._not_before.get(job.id, 0.0)]
        for child, job in zip(idle, due, strict=False):
            begun = self.queue.start_job(job.id)
            child.give(begun, self._task(begun))

    def _task(self, job: Job) -> dict[str, Any]:
        return {
            "study": str(self.folder / RECEIVED / job.study),
            "output": str(self.folder / RESULTS / self._output(job)),
            "waited": job.id in self._whole or self.queue.quiet_s(job.study) >= self.config.incomplete_s,
            "earlier": {
                f"{one.rule}/{one.series}": str(self.folder / RESULTS / one.folder)
                for one in self.queue.last_delivered(job.study, job.id)
            },
        }

    def _output(self, job: Job) -> str:
        """Name of the folder below `results` for this attempt at a job."""
        remade = self.queue.times_remade(job.id)
        return f"{job.id}-{job.attempts}" + (f"-again{remade}" if remade else "")

    def _hear(self) -> None:
        """What children say is done; what cannot be recorded just now, because the disk is full, is heard again."""
        for crew, done in ((self.workers, self._worked), (self.senders, self._sent)):
            for child, message in crew.heard():
                try:
                    if child.task is not None:
                        done(child, child.task, message)
                except (OSError, sqlite3.Error):
                    crew.inbox.put((child, message))
                    raise
                child.rest()

    def _worked(self, child: Child, job: Job, message: Message | None) -> None:
        if message is not None and "results" in message:
            self.seconds["work"].append(float(message["seconds"]))
            self._keep(job, [self._new_result(one) for one in message["results"]], child.pid)
        elif message is not None and "incomplete" in message:
            self._wait_for_the_rest(job, str(message["incomplete"]))
        elif message is not None and "wait" in message:
            self._not_before[job.id] = time.monotonic() + _WAIT_S
            self.queue.requeue_job(job.id, str(message["wait"]), counts=False)
        else:
            self._failed(job, str(message["broken"]) if message else _why_ended(child))

    def _wait_for_the_rest(self, job: Job, lacks: str) -> None:
        """A study whose series lack images by their own headers is worked at when the rest came, or did not for so long."""
        left_s = max(0.0, self.config.incomplete_s - self.queue.quiet_s(job.study))
        self._not_before[job.id] = time.monotonic() + left_s
        self.queue.requeue_job(job.id, f"waits for images: {lacks}", counts=False)
        _logger.info("study %s: waits up to %.0f s for images: %s", job.study, left_s, lacks)

    def _new_result(self, one: Mapping[str, Any]) -> NewResult:
        rule = self.site.rule(one["rule"])
        if rule is None or not one["folder"]:
            return NewResult(**one)
        if one["state"] == "not processed":
            return NewResult(**one, destinations=self.site.noticed(rule))
        return NewResult(**one, destinations=self.site.destinations_for(rule.name, one["series"]))

    def _keep(self, job: Job, found: list[NewResult], worker: int) -> None:
        with self.queue.transaction():
            self._drop_decisions(job.study)
            if self.queue.times_remade(job.id):
                found, not_again = self.lost.compare(job, found)
                for number, why in not_again.items():
                    for delivery in self.queue.deliveries_of(number):
                        if delivery.state == "pending":
                            self._give_up(delivery, why)
            for made, one in zip(self.queue.finish_job(job.id, found), found, strict=True):
                self.audit.write(
                    "result", study=job.study, version=job.version, job=job.id, result=made.id, series=one.series,
                    rule=one.rule, state=made.state, verdict=one.verdict, reason=one.reason, digest=one.digest,
                    folder=one.folder, destinations=one.destinations, worker=worker,
                )  # fmt: skip  # the worker's reason: one that a person wrote is in `verdicts` only
                self._whole.discard(job.id)
                self._not_before.pop(job.id, None)
                why = f": {one.reason}" if one.reason else ""
                _logger.info("study %s: result %s of rule %s is %s%s", job.study, made.id, one.rule, made.state, why)
        self._forget_unsendable(job.study)

    def _forget_unsendable(self, study: str) -> None:
        """A job has ended that was to make lost results again; those that it did not are found anew by a sender."""
        self._unsendable = {result: of for result, of in self._unsendable.items() if of != study}

    def _failed(self, job: Job, reason: str) -> None:
        if job.attempts >= self.config.tries:
            with self.queue.transaction():
                self.queue.give_up_job(job.id, reason)
                self.audit.write("dead letter", study=job.study, version=job.version, job=job.id, reason=reason)
                self.letters.lay_down(job, reason)
            self._forget_unsendable(job.study)
            _logger.warning("dead letter: study %s, job %s: %s", job.study, job.id, reason)
        else:
            _logger.info("study %s: job %s failed, try %s: %s", job.study, job.id, job.attempts, reason)
            self._not_before[job.id] = time.monotonic() + min(2.0**job.attempts, _WAIT_S)
            self.queue.requeue_job(job.id, reason)

    def _watch(self) -> None:
        """Ends children that are frozen or take too long, at a task or to start, and workers that take too much memory."""
        for crew in (self.workers, self.senders):
            crew.watch()
            for child in crew.children:
                most_s = self.config.job_s if child.is_ready else max(self.config.job_s, _LONGEST_START_S)
                if not child.is_idle and child.busy_s > most_s:
                    child.why_ended = child.why_ended or f"it took more than {most_s:g} s"
                    child.end()
        for child in self.workers.children:
            if resident_bytes(child.pid) > self.config.worker_gb * 1e9:
                child.why_ended = f"it took more than {self.config.worker_gb:g} GB of memory"
                child.end()

    def _send(self) -> None:
        """Gives every destination that is neither busy nor left alone what it was sent least often, the oldest first."""
        idle = self.senders.idle()
        if not idle:
            return
        busy = {child.task.destination for child in self.senders.children if child.task is not None}
        away = {destination for destination, pause in self._pauses.items() if not pause.is_over}
        due = [one for one in self.queue.next_deliveries(self._unsendable) if one[0].destination not in busy | away]
        for child, (delivery, result) in zip(idle, due, strict=False):
            folder = str(self.result_folder(result))
            child.give(delivery, {"destination": delivery.destination, "folder": folder, "digest": result.digest})

    def _sent(self, child: Child, delivery: Delivery, message: Message | None) -> None:
        if message is not None and "lost" in message:
            self._lost_on_the_way(delivery, str(message["lost"]))
            return
        if message is not None and "delivered" in message:
            self._pauses.pop(delivery.destination, None)
            self._delivered[delivery.destination] = time.time()
            self.seconds["deliver"].append(float(message["seconds"]))
            result = self.queue.result(delivery.result)
            with self.queue.transaction():
                self.queue.record_delivered(delivery.id)
                self.audit.write(
                    "delivered", study=result.study if result else "", result=delivery.result,
                    destination=delivery.destination, objects=message["delivered"],
                )  # fmt: skip
            self._note_total(delivery)
            _logger.info(
                "result %s: delivered to %s, %s object(s)", delivery.result, delivery.destination, message["delivered"]
            )
            return
        reason = str(message["failed"]) if message else _why_ended(child)
        pause = Pause(self.config.first_pause_s, self.config.longest_pause_s)
        self._pauses.setdefault(delivery.destination, pause).begin()
        _logger.info(
            "result %s: not delivered to %s, try %s: %s",
            delivery.result, delivery.destination, delivery.attempts + 1, reason,
        )  # fmt: skip
        is_late = self.queue.is_late(delivery.id, self.config.give_up_h * 3600)
        if is_late and delivery.attempts >= _FEW_TRIES:
            self._give_up(delivery, reason)
        else:
            self.queue.record_failed_try(delivery.id, reason)

    def _give_up(self, delivery: Delivery, reason: str) -> None:
        with self.queue.transaction():
            self.queue.give_up_delivery(delivery.id, reason)
            self.audit.write("dead letter", result=delivery.result, destination=delivery.destination, reason=reason)
            self.letters.lay_down(delivery, reason)
        _logger.warning("dead letter: result %s to %s: %s", delivery.result, delivery.destination, reason)

    def _lost_on_the_way(self, delivery: Delivery, lost: str) -> None:
        """A sender found that the files of a result are not those that were made: they are made again, or it is given up."""
        result = self.queue.result(delivery.result)
        if result is None:
            return
        why_not = self.lost.make_again(result, lost)
        if why_not:
            self._give_up(delivery, why_not)
            return
        self._unsendable[result.id] = result.study
        self.queue.record_failed_try(delivery.id, f"{lost}; they are made again")
        _logger.warning("result %s: %s; study %s is worked at again", result.id, lost, result.study)

    def _note_total(self, delivery: Delivery) -> None:
        result = self.queue.result(delivery.result)
        job = self.queue.job(result.job) if result else None
        if job is not None:
            self.seconds["total"].append(max(0.0, time.time() - job.created))

    def _tidy(self) -> None:
        """Forgets studies about which all was done long ago, and results that nothing names."""
        if time.monotonic() - self._tidied < _TIDY_S and self._tidied:
            return
        self._tidied = time.monotonic()
        for study in self.queue.forgettable(self.queue.now_s() - self.config.retention_days * 86_400):
            if study in self.arrivals:
                continue
            for job in self.queue.jobs_of(study):
                for result in self.queue.results_of(job.id):
                    shutil.rmtree(self.folder / REVIEWS / str(result.id), ignore_errors=True)
            shutil.rmtree(self.folder / RECEIVED / study, ignore_errors=True)
            with self.queue.transaction():
                self.queue.forget(study)
                self.audit.write("forgotten", study=study)
                self._drop_decisions(study)
            _logger.info("study %s: forgotten, as everything about it was done long ago", study)
        self._forget_verdicts()
        self.letters.mend()
        at_work = {self._output(child.task) for child in self.workers.children if child.task is not None}
        known = self.queue.folder_names() | at_work
        (self.folder / RESULTS).mkdir(exist_ok=True)
        for path in (self.folder / RESULTS).iterdir():
            is_being_made = at_work and path.name.startswith(PARTIAL)  # a worker writes there when it has computed
            if path.name not in known and not is_being_made and time.time() - path.stat().st_mtime > _TIDY_S:
                shutil.rmtree(path, ignore_errors=True)

    def _forget_verdicts(self) -> None:
        """Deletes records of decisions that are older than the site keeps them; by default none are."""
        if not self.config.verdict_days:
            return
        before = self.queue.now_s() - self.config.verdict_days * 86_400
        for path in (self.folder / VERDICTS).glob("*/*.json"):
            if path.stat().st_mtime < before:
                path.unlink()
                self._drop_decisions(path.parent.name)
                if not any(path.parent.iterdir()):
                    path.parent.rmdir()

    def _drop_decisions(self, study: str) -> None:
        """What was decided about results of a study that are forgotten holds as long as there is a record of it."""
        for one in self.queue.decisions_on_forgotten(study):
            if not any((self.folder / VERDICTS / study).glob(f"result-{one.result}_{one.decision}*.json")):
                with self.queue.transaction():
                    self.queue.forget_decision(one.result, one.decision)
                    self.audit.write("decision forgotten", study=study, result=one.result, decision=one.decision)


def _why_ended(child: Child) -> str:
    code = child.exit_code
    return (
        child.why_ended
        or f"its process ended ({'signal ' + str(-code) if code is not None and code < 0 else f'exit {code}'})"
    )


def _instances(folder: Path) -> Iterator[tuple[str, int]]:
    """(study, instances) of a store."""
    for study in folder.iterdir() if folder.is_dir() else ():
        if study.is_dir() and not study.name.startswith("."):
            yield study.name, sum(name.endswith((".dcm", *IMAGES)) for _, _, names in os.walk(study) for name in names)


def _locked(folder: Path) -> Any:
    """An open file that no other node on this machine can lock."""
    file = (folder / "node.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UsageError(f"{folder} is used by another node; a folder of its own is needed; stop that one") from error
    return file
