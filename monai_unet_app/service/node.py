"""The node: takes studies, has them segmented, delivers the results. A study that it has confirmed to a sender is not lost.

    received/<study>/<series>/<instance>.dcm    forced to the disk before the sender gets its answer
    results/<job>-<attempt>/<result>/           whole, or not there
    reviews/<result>/                           pages that name patients, made when a reviewer asks
    decisions/<study>/                          what people decided and why; kept when the study's files are deleted
    dead-letters/                               what was given up, and why
    audit.jsonl                                 what was done
    node.sqlite                                 what waits; made anew from the audit trail if it is lost

This process receives and decides. Torch is in the workers, and slow networks are the senders' matter. Both kinds of process may
die at any moment: the task that they were at is begun anew. All waiting is measured by the monotonic clock.

The loop of the node calls, in turn, `service.job_scheduler` (studies to results), `service.delivery_scheduler` (results to
destinations) and `service.retention` (what is forgotten).
"""

import fcntl
import logging
import os
import shutil
import sqlite3
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, Literal, TypeVar

from dicom_io.net.availability import Availability, availability_service
from dicom_io.net.instance_store import INCOMING, InstanceStore, Stored
from dicom_io.net.limits import Limits
from dicom_io.net.scp import Listen, Provider
from monai_unet_app.errors import AppError, UsageError
from monai_unet_app.machine_memory import resident_bytes
from monai_unet_app.service.arrivals import Arrivals
from monai_unet_app.service.audit import AuditTrail, TrailError
from monai_unet_app.service.challengers import Challengers
from monai_unet_app.service.commitment_store import Commitments
from monai_unet_app.service.dead_letters import DeadLetters
from monai_unet_app.service.delivery_scheduler import DeliveryScheduler
from monai_unet_app.service.drift_watch import DriftWatch
from monai_unet_app.service.health import Health
from monai_unet_app.service.job_scheduler import JobScheduler
from monai_unet_app.service.lost_results import LostResults
from monai_unet_app.service.models import resolved
from monai_unet_app.service.node_metrics import Durations
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.restore import restore
from monai_unet_app.service.result_figures import ResultFigures
from monai_unet_app.service.retention import Retention
from monai_unet_app.service.rows import Job, Result
from monai_unet_app.service.shadows import Shadows
from monai_unet_app.service.site import Site
from monai_unet_app.service.uploads import IMAGES
from monai_unet_app.service.worker_pool import WorkerPool

WORKER, SENDER = "monai_unet_app.service.work", "monai_unet_app.service.deliver"
_ROUND_S = 0.05
_LAST_TURNED_AWAY = 10
_IN_LOOP_S = 60.0  # a round of the loop takes less

_Answer = TypeVar("_Answer")

_logger = logging.getLogger(__name__)


class Node:
    """Runs from `with` to its end.

    Attributes:
        durations: How long the stages took: "work", "deliver" and "total" (complete until delivered).
        figures: Of the results of each bundle.
        instances_stored: How many instances were stored since the node began.
        instances_turned_away: How many instances were not stored.
        callers_turned_away: How many callers were not let in.
        last_turned_away: The last of both: time in seconds since 1970, and why.
        decision_locks: Result number -> lock of the thread that decides about the result.
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
        self.folder = folder = self.config.folder
        self.received_folder, self.results_folder = folder / "received", folder / "results"
        self.reviews_folder, self.decisions_folder = folder / "reviews", folder / "decisions"
        folder.mkdir(parents=True, exist_ok=True)
        self._lock_file = _locked(folder)
        if (folder / "verdicts").is_dir() and not self.decisions_folder.exists():
            (folder / "verdicts").rename(self.decisions_folder)  # the name in earlier versions
        most_bytes = self.config.instance_gb * 1e9
        self.store = InstanceStore(self.received_folder, stored=self._stored, most_bytes=most_bytes)
        try:
            # In this order: the trail is held against the head that the database remembers, then the database is
            # restored from the trail if it is new.
            self.queue = Queue(folder / "node.sqlite")
            self.audit = AuditTrail(folder / "audit.jsonl", self.config.audit_key, self.queue, new_key=new_key)
            restore(self.queue, self.audit.path)
        except BaseException:
            self._lock_file.close()
            raise
        self.dead_letters = DeadLetters(folder / "dead-letters", self.queue)
        self.lost_results = LostResults(self.queue, self.audit, self.received_folder, self.results_folder)
        self.health, self.arrivals = Health(self), Arrivals()
        self.jobs, self.deliveries, self.retention = JobScheduler(self), DeliveryScheduler(self), Retention(self)
        self.challengers, self.shadows, self.drift = Challengers(self), Shadows(self, worker), DriftWatch(self)
        self.durations, self.figures = Durations(), ResultFigures()
        self.instances_stored = self.instances_turned_away = self.callers_turned_away = 0
        self.last_turned_away: deque[tuple[float, str]] = deque(maxlen=_LAST_TURNED_AWAY)
        self.decision_locks: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, name="node")
        self._asked: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._why_full = ""

    def __enter__(self) -> "Node":
        self.results_folder.mkdir(exist_ok=True)
        for unfinished in (self.received_folder / INCOMING, self.folder / "uploads"):
            shutil.rmtree(unfinished, ignore_errors=True)  # no sender was told that these are stored
        for study in self.queue.reconcile(dict(_instances(self.received_folder))):
            self.arrivals.add(study, 0)
        self.challengers.assign_models()
        self._check_disk()
        self.commitments = Commitments(self.store, self.site, self.queue)
        self.provider = self._provider()
        self.provider.__enter__()  # first of all, because it may fail: the port may be taken
        args, silent_s = [str(self.site.path)], self.config.silent_s
        self.workers = WorkerPool(self._worker, args, self.config.workers, silent_s)
        self.senders = WorkerPool(SENDER, args, max(1, min(4, len(self.site.destinations))), silent_s)
        self.commitments.__enter__()
        self._thread.start()
        # Which versions the rules mean from now on
        models = {"models": known} if (known := resolved(self.site)) else {}
        self.audit.write("started", port=self.provider.port, **models)
        return self

    def __exit__(self, *exc: object) -> None:
        # First whatever brings work, then the loop, then its children. The audit trail needs the database to the last.
        self.provider.__exit__(*exc)
        self.commitments.__exit__(*exc)
        self._stop.set()
        self._thread.join()
        for pool in (self.workers, self.senders, self.shadows.pool):
            pool.end(patience_s=2.0)
        try:
            self.audit.write_or_keep("stopped")
        except (OSError, sqlite3.Error, AppError) as error:  # the node stops all the same on a broken disk or trail
            _logger.error("the audit trail does not say that the node stopped (%s)", type(error).__name__)
        self.queue.close()
        self._lock_file.close()

    def _provider(self) -> Provider:
        config = self.config
        return Provider(
            self.store,
            Listen(
                config.ae_title, config.host, config.port, config.senders, config.tls, config.idle_s,
                config.most_senders, networks=config.networks,
                limits=Limits(instance_bytes=int(config.instance_gb * 1e9)),
            ),
            refused=self._turn_instance_away,
            rejected=self._turn_caller_away,
            room=self.why_full,
            services=(availability_service(self._handle_availability), self.commitments.service),
        )  # fmt: skip

    @property
    def is_ready(self) -> bool:
        """Whether a study that comes now would be segmented, recorded and delivered without waiting for a repair."""
        return not self.health.failing()

    @property
    def is_running(self) -> bool:
        """Whether its own threads are alive."""
        return self._thread.is_alive() and self.commitments.is_alive

    # for the HTTP service

    def why_full(self) -> str:
        """Why no study is taken just now; empty while studies are taken."""
        return self._why_full

    def bundles(self) -> dict[str, dict[str, str]]:
        """Rule -> "name", "version" and "sha256" of the bundle that a worker has loaded; empty before a worker is ready."""
        return dict(self.workers.ready_message.get("bundles", {}))

    def result_folder(self, result: Result) -> Path:
        """Where a result's files are."""
        return self.results_folder / result.folder

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory of the node and of its children."""
        sizes = {"node": resident_bytes(os.getpid())}
        for name, pool in (("worker", self.workers), ("sender", self.senders), ("shadow", self.shadows.pool)):
            sizes |= {f"{name} {n}": resident_bytes(child.pid) for n, child in enumerate(pool.children, start=1)}
        return sizes

    def reprocess(self, study: str, person: str) -> bool:
        """Queues a study once more, by the rules as they are; False if no complete study has this UID."""
        if study in self.arrivals or not self.queue.jobs_of(study):
            return False
        self.audit.write("reprocessed", study=study, who=person)
        self.arrivals.add(study, 0)
        self.arrivals.declare_complete(study)
        return True

    def retry(self, kind: Literal["job", "delivery"], number: int, person: str) -> bool:
        """Queues a dead job or delivery again, with all its tries; False if no dead letter has this number."""
        with self.queue.transaction():
            row = (self.queue.retry_job if kind == "job" else self.queue.retry_delivery)(number)
            if row is None:
                return False
            facts = (
                {"study": row.study, "job": number}
                if isinstance(row, Job)
                else {"result": row.result, "destination": row.destination}
            )
            self.audit.write("retried", who=person, **facts)
        self.dead_letters.update()
        return True

    # for reviews and deliveries

    def add_follow_up(
        self, of: Result, kind: str, folder: str, digest: str, destinations: Sequence[str], **about: object
    ) -> int:
        """Records what follows from a result, see `Queue.add_follow_up`, with a line that says more `about` it."""
        facts = {"folder": folder, "digest": digest, "destinations": destinations}
        with self.queue.transaction():
            number = self.queue.add_follow_up(of, kind, folder, digest, destinations)
            self.audit.write(kind, study=of.study, result=number, of=of.id, **about, **facts)
        return number

    # for the DICOM provider

    def _stored(self, stored: Stored) -> None:
        if stored.is_new:
            self.instances_stored += 1
            self.arrivals.add_instance(stored)

    def _handle_availability(self, notice: Availability) -> None:
        """Declares a study complete if the node has all instances that the notice calls available (PS3.4 R)."""
        folder = self.received_folder / notice.study_instance_uid
        files = [folder / series / f"{uid}.dcm" for series, uids in notice.online.items() for uid in uids]
        if files and all(file.is_file() for file in files):
            self.jobs.declare_complete(notice.study_instance_uid)

    def _turn_instance_away(self, reason: str) -> None:
        self.instances_turned_away += 1
        self.last_turned_away.append((time.time(), f"an instance: {reason}"))

    def _turn_caller_away(self, caller: str) -> None:
        self.callers_turned_away += 1
        self.last_turned_away.append((time.time(), f"a caller, {caller}"))

    # the loop

    def _run(self) -> None:
        while not self._stop.wait(_ROUND_S):
            try:
                self._do_round()
            except (
                Exception
            ) as error:  # a full disk or a fault of ours: the next round tries again, and nothing is lost
                where = traceback.extract_tb(error.__traceback__)[-1]
                self.health.end_round(error)
                _logger.error("cannot go on: %s in %s, line %s", type(error).__name__, where.name, where.lineno)
                self._stop.wait(1.0)
            else:
                self.health.end_round()

    def in_loop(self, work: Callable[[], _Answer]) -> _Answer:
        """What `work` gives, done in the loop's thread between two rounds: no job or delivery starts meanwhile."""
        if threading.current_thread() is self._thread:
            return work()
        answer: Future[_Answer] = Future()
        self._asked.put((work, answer))
        return answer.result(_IN_LOOP_S)

    def _do_asked(self) -> None:
        while not self._asked.empty():
            work, answer = self._asked.get()
            try:
                answer.set_result(work())
            except BaseException as error:  # it is the caller's
                answer.set_exception(error)

    def _do_round(self) -> None:
        self._do_asked()
        self.health.check()
        self._check_disk()
        self.jobs.queue_complete_studies()
        # Before `watch`: a child that has just answered must not be killed for the time of its task.
        self.handle_answers()
        self.workers.watch(self.config.job_s, self.config.worker_gb * 1e9)
        self.senders.watch(self.config.job_s)
        for pool in (self.workers, self.senders):
            pool.start_missing()
        self.jobs.start_jobs()
        self.deliveries.start_deliveries()
        self.shadows.run()
        self.retention.run()
        self.drift.run()

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.folder).free
        self._why_full = "" if free >= self.config.least_free_gb * 1e9 else "the node's disk is full"

    def handle_answers(self) -> None:
        """Records what children have answered; an answer that cannot be recorded, on a full disk say, is read again later."""
        for pool, part in ((self.workers, self.jobs), (self.senders, self.deliveries)):
            for child, message in pool.messages():
                try:
                    if child.task is not None:
                        part.handle_answer(child, child.task, message)
                except (OSError, sqlite3.Error, TrailError):
                    pool.inbox.put((child, message))
                    raise
                child.end_task()


def _instances(folder: Path) -> Iterator[tuple[str, int]]:
    """(study, number of its instances) for each study of a store."""
    for study in folder.iterdir() if folder.is_dir() else ():
        if study.is_dir() and not study.name.startswith("."):
            yield study.name, sum(name.endswith((".dcm", *IMAGES)) for _, _, names in os.walk(study) for name in names)


def _locked(folder: Path) -> IO[str]:
    """An open file that no other node on this machine can lock."""
    file = (folder / "node.lock").open("w")
    try:
        # The system frees the lock when the process ends, however it ends; the file itself may stay.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UsageError(f"{folder} is used by another node; a folder of its own is needed; stop that node") from error
    return file
