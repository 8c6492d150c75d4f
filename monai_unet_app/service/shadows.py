"""Shadows: studies that are segmented once more by the other bundle of their rules, when nothing else is to be done.

A shadow has a worker of its own, which stands still (SIGSTOP) while a study of a champion waits or is segmented, and writes no
file. What it finds beside the delivered result is a line of the audit trail; it is never sent.
"""

import logging
import time
from typing import TYPE_CHECKING

from monai_unet_app.service import slots
from monai_unet_app.service.challengers import fault
from monai_unet_app.service.child_processes import Message
from monai_unet_app.service.rows import FOLLOW_UPS, Job, other_slot
from monai_unet_app.service.worker_pool import WorkerPool

if TYPE_CHECKING:
    from monai_unet_app.service.node import Node

_RETRY_S = 30.0
_logger = logging.getLogger(__name__)


class Shadows:
    """The worker of a node's shadows, which is started with the first of them. The node's loop calls `run`."""

    def __init__(self, node: "Node", worker: str) -> None:
        """No process is started yet; `worker` is the module that it will run."""
        self._node, self._not_before, config = node, 0.0, node.config
        self.pool = WorkerPool(worker, [str(node.site.path), "--shadow"], 0, config.silent_s)

    def run(self) -> None:
        """Records answers, and lets the shadow work while no study waits."""
        node, pool = self._node, self.pool
        for child, message in pool.messages():
            if child.task is not None:
                self._handle_answer(child.task, message, child.why_ended if message is None else "")
            child.end_task()
        if not any(slot.is_open for slot in slots.slots(node.queue).values()):
            pool.end(patience_s=0.0)  # its memory is of use elsewhere
            return
        waits = slots.next_shadow(node.queue) if time.monotonic() >= self._not_before else None
        pool.count = 1 if waits or pool.children else 0
        if not pool.count:
            return
        if node.workers.tasks() or node.jobs.due():
            for child in pool.children:
                child.stop()
            return
        for child in pool.children:
            child.go_on()
        pool.watch(node.config.job_s, node.config.worker_gb * 1e9)
        pool.start_missing()
        for child in pool.idle():
            job = node.queue.job(waits.job) if waits else None
            if job is not None:
                child.start_task(job, self._task(job))

    def _task(self, job: Job) -> Message:
        """The message for the worker, see `comparing.compared`."""
        node = self._node
        return {
            "study": str(node.received_folder / job.study),
            "models": job.shadows,
            "slots": {rule: other_slot(plan["slot"]) for rule, plan in job.plans.items()},
            "results": [
                (one.rule, one.series, "" if one.state == "not processed" else str(node.result_folder(one)))
                for one in node.queue.results_of(job.id)
                if one.rule in job.shadows and one.verdict not in FOLLOW_UPS
            ],
        }

    def _handle_answer(self, job: Job, message: Message | None, why_ended: str) -> None:
        node = self._node
        answer = message or {}
        found = answer.get("compared")
        if "wait" in answer:  # no memory or disk: nobody's fault
            self._not_before = time.monotonic() + _RETRY_S
            return
        if found is None:
            reason = why_ended or str(answer.get("broken"))
            tried = slots.count_try(node.queue, job.id, reason)
            if tried is None or tried.state != "dead":
                return
            found = {rule: fault(other_slot(job.plans[rule]["slot"]), reason) for rule in job.shadows}
        _logger.info("study %s: compared for %s", job.study, ", ".join(found) or "no rule")
        node.challengers.record(job, {rule: {**job.plans[rule], **facts} for rule, facts in found.items()})
