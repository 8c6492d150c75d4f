"""From arriving studies to recorded results: a complete study becomes a job, and a worker's answer becomes results."""

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from monai_unet_app.service.child_processes import Child, Message
from monai_unet_app.service.rows import Job, NewResult, Result

if TYPE_CHECKING:
    from monai_unet_app.service.node import Node

_RETRY_S = 5.0
"""Pause after a result that could not be written, because the disk is full for instance; the longest pause after a failure."""

_logger = logging.getLogger(__name__)


class JobScheduler:
    """Gives the jobs of a node to workers, and records what becomes of them.

    The node's loop calls all methods but `declare_complete`, which any thread may call.
    """

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._not_before: dict[int, float] = {}  # job -> monotonic clock
        self._behind: dict[int, int] = {}  # job that failed -> the newest job that waited then
        self._declared: set[int] = set()  # jobs of studies that were declared complete

    def declare_complete(self, study: str) -> None:
        """Notes that nothing more of a study will come: its job starts at once, and missing images are not waited for."""
        self._node.arrivals.declare_complete(study)
        for job in self._node.queue.jobs_of(study)[-1:]:
            self._declared.add(job.id)
            self._not_before.pop(job.id, None)

    def queue_complete_studies(self) -> None:
        """Makes a job of each study that is complete."""
        node = self._node
        for study, count in node.arrivals.unrecorded().items():
            # Instances are counted in memory and recorded some times a second, which saves a sync for each row. A kill
            # loses a count and no file; `Queue.reconcile` finds the difference (decision 0021).
            if count:
                node.queue.record_instances(study, count)
                node.arrivals.mark_recorded(study, count)
            if not node.arrivals.is_complete(study, node.config.stable_s):
                continue
            job = self.queue_study(study)
            if node.arrivals.is_declared(study):
                self._declared.add(job.id)
            node.arrivals.remove(study)

    def queue_study(self, study: str) -> Job:
        """Makes a job of a study that is complete; its bundles are fixed from now on."""
        node, plan = self._node, self._node.challengers.plan(study)
        with node.queue.transaction():
            # Line and rows in one transaction: a lost database can be made anew from the trail (decision 0021).
            job = node.queue.complete_study(study, plan)
            total, planned = node.queue.instances(study), {"plan": plan} if plan else {}
            node.audit.write("complete", study=study, version=job.version, job=job.id, instances=total, **planned)
        _logger.info("study %s: complete, version %s of %s instance(s), job %s", study, job.version, total, job.id)
        return job

    def due(self) -> list[Job]:
        """Jobs that a worker could begin now, in their order."""
        now = time.monotonic()
        due = [job for job in self._node.queue.queued_jobs() if now >= self._not_before.get(job.id, 0.0)]
        # A job that failed waits behind those that waited then, and before those that came later
        return sorted(due, key=lambda job: (self._behind.get(job.id, job.id), job.id in self._behind))

    def start_jobs(self) -> None:
        """Gives waiting jobs to idle workers."""
        idle = self._node.workers.idle()
        for child, job in zip(idle, self.due() if idle else (), strict=False):
            started = self._node.queue.start_job(job.id)
            child.start_task(started, self._task(started))

    def _task(self, job: Job) -> dict[str, Any]:
        """The message for a worker, see `work.Task`."""
        node = self._node
        return {
            "study": str(node.received_folder / job.study),
            "output": str(node.results_folder / self.output_name(job)),
            "waited": job.id in self._declared or node.queue.quiet_s(job.study) >= node.config.incomplete_s,
            "models": job.bundles,
            "earlier": {
                f"{result.rule}/{result.series}": str(node.result_folder(result))
                for result in node.queue.last_delivered(job.study, job.id)
            },
        }

    def output_name(self, job: Job) -> str:
        """Name of the folder below `results` for this attempt at a job."""
        # The attempts of a remade job begin at 1 again; the folder of the first time stays, because results name it.
        remade = self._node.queue.times_remade(job.id)
        return f"{job.id}-{job.attempts}" + (f"-again{remade}" if remade else "")

    def handle_answer(self, child: Child, job: Job, message: Message | None) -> None:
        """Records what a worker has answered, see `work.Worker.answer`; None: the worker has ended."""
        now = self._node.queue.job(job.id)
        if now and now.bundles != job.bundles:  # its challenger was rolled back meanwhile
            self._node.queue.requeue_job(job.id, "its bundle was rolled back", counts=False)
        elif message is None:
            # A study that took too much memory would take it again, and keep others waiting for as long
            self._retry_or_give_up(job, child.why_ended, may_retry=not child.was_too_large)
        elif "results" in message:
            self._node.durations.add("work", message["seconds"], job=job.id)
            results = [self._addressed(NewResult(**fields)) for fields in message["results"]]
            refused = {one.rule: one.reason for one in results if one.state == "not processed"}
            if not self._node.challengers.take_over(job, refused):
                self._record_results(job, results, child.pid)
                self._node.challengers.record_faults(job, {one.rule for one in results} - refused.keys())
        elif "incomplete" in message:
            self._wait_for_images(job, message["incomplete"])
        elif "wait" in message:
            # A full disk is no fault of the study, so the attempt does not count as one of its tries.
            self._not_before[job.id] = time.monotonic() + _RETRY_S
            self._node.queue.requeue_job(job.id, message["wait"], counts=False)
        else:
            self._retry_or_give_up(job, message["broken"])

    def _addressed(self, new: NewResult) -> NewResult:
        """A result with its destinations: those of the notice where the series was not processed."""
        site, rule = self._node.site, self._node.site.rule(new.rule)
        if rule is None or not new.folder:
            return new
        is_notice = new.state == "not processed"
        names = site.noticed(rule) if is_notice else site.destinations_for(new)
        return replace(new, destinations=names)

    def _record_results(self, job: Job, results: list[NewResult], worker: int) -> None:
        node = self._node
        with node.queue.transaction():
            # Before results are recorded: a decision holds for the same bytes while its record is there (decision
            # 0028).
            node.retention.forget_decisions_without_record(job.study)
            if node.queue.times_remade(job.id):
                results, not_remade = node.lost_results.compare(job, results)
                for number, reason in not_remade.items():
                    for delivery in node.queue.deliveries_of(number):
                        if delivery.state == "pending":
                            node.deliveries.give_up(delivery, reason)
            for recorded, new in zip(node.queue.finish_job(job.id, results), results, strict=True):
                self._report_result(job, recorded, new, worker)
        self._declared.discard(job.id)
        self._not_before.pop(job.id, None)
        self._behind.pop(job.id, None)
        node.deliveries.forget_remade(job.study)

    def _report_result(self, job: Job, recorded: Result, new: NewResult, worker: int) -> None:
        self._node.figures.add(new, job, self._node.bundles().get(new.rule, {}))
        observed = {"observed": new.observed} if new.observed else {}
        # The reason is the worker's: a reason that a person wrote may name a patient, and is in `decisions` only.
        self._node.audit.write(
            "result", study=job.study, version=job.version, job=job.id, result=recorded.id, series=new.series,
            rule=new.rule, state=recorded.state, verdict=new.verdict, reason=new.reason, digest=new.digest,
            folder=new.folder, destinations=new.destinations, worker=worker, **observed,
        )  # fmt: skip
        why = f": {new.reason}" if new.reason else ""
        _logger.info("study %s: result %s of rule %s is %s%s", job.study, recorded.id, new.rule, recorded.state, why)

    def _wait_for_images(self, job: Job, missing: str) -> None:
        """Lets a job wait whose series lack images by their headers: until these come, or for `incomplete_s` seconds."""
        left_s = max(0.0, self._node.config.incomplete_s - self._node.queue.quiet_s(job.study))
        self._not_before[job.id] = time.monotonic() + left_s
        self._node.queue.requeue_job(job.id, f"waits for images: {missing}", counts=False)
        _logger.info("study %s: waits up to %.0f s for images: %s", job.study, left_s, missing)

    def _retry_or_give_up(self, job: Job, reason: str, *, may_retry: bool = True) -> None:
        node = self._node
        if may_retry and job.attempts < node.config.tries:
            _logger.info("study %s: job %s failed, try %s: %s", job.study, job.id, job.attempts, reason)
            self._not_before[job.id] = time.monotonic() + min(2.0**job.attempts, _RETRY_S)
            self._behind[job.id] = max((waiting.id for waiting in node.queue.queued_jobs()), default=job.id)
            node.queue.requeue_job(job.id, reason)
            return
        self._behind.pop(job.id, None)
        self._not_before.pop(job.id, None)
        if node.challengers.take_over(job, dict.fromkeys(job.plans, reason)):
            return
        with node.queue.transaction():
            node.queue.give_up_job(job.id, reason)
            node.audit.write("dead letter", study=job.study, version=job.version, job=job.id, reason=reason)
            node.dead_letters.write(job, reason)
        node.deliveries.forget_remade(job.study)
        node.challengers.record_faults(job, (), reason)
        _logger.warning("dead letter: study %s, job %s: %s", job.study, job.id, reason)
