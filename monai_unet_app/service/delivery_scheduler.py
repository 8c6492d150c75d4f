"""From pending deliveries to archives: which sender gets which delivery, and what becomes of it."""

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monai_unet_app.service.child_processes import Child, Message
from monai_unet_app.service.result_versions import replaced_by
from monai_unet_app.service.rows import Delivery, Result
from monai_unet_app.service.worker_pool import Pause

if TYPE_CHECKING:
    from monai_unet_app.service.node import Node

_FEWEST_TRIES = 10
"""No delivery is given up before so many tries, whatever the clock says."""

_NAME_DIGITS = 8


def _note_folder(delivery: Delivery) -> str:
    """Name of the folder below `results` for the note that goes with a delivery; the same for every try."""
    # By the number of the result, which is kept when the database is made anew; the name of a destination may be any.
    return f"replaced-{delivery.result}-{hashlib.sha256(delivery.destination.encode()).hexdigest()[:_NAME_DIGITS]}"


_logger = logging.getLogger(__name__)


@dataclass
class Outage:
    """A destination whose last delivery failed.

    Attributes:
        pause: Until the next try.
        since: Time of the first of the failed tries, in seconds since 1970.
        is_older: It failed before the node began as well, so that `since` is the first try since then.
        reason: Why the last try failed.
    """

    pause: Pause
    since: float
    is_older: bool
    reason: str = ""


class DeliveryScheduler:
    """Gives the deliveries of a node to senders. The node's loop calls the methods that change something.

    Attributes:
        last_delivered: Destination -> when it was last given something since the node began, in seconds since 1970.
    """

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._outages: dict[str, Outage] = {}
        self.last_delivered: dict[str, float] = {}
        self._being_remade: dict[int, str] = {}  # result whose files are lost -> study, until its job has ended

    def outages(self) -> dict[str, Outage]:
        """The destinations whose last delivery failed, the longest outage first."""
        return dict(sorted(self._outages.copy().items(), key=lambda item: item[1].since))

    def start_deliveries(self) -> None:
        """Gives idle senders the next delivery of each destination that is neither busy nor paused."""
        idle = self._node.senders.idle()
        if not idle:
            return
        blocked = {delivery.destination for delivery in self._node.senders.tasks()}
        blocked |= {destination for destination, outage in self._outages.items() if not outage.pause.is_over}
        pairs = self._node.queue.next_deliveries(self._being_remade)
        due = [(delivery, result) for delivery, result in pairs if delivery.destination not in blocked]
        for child, (delivery, result) in zip(idle, due, strict=False):
            folder = str(self._node.result_folder(result))
            task = {"destination": delivery.destination, "folder": folder, "digest": result.digest}
            child.start_task(delivery, task | self._replaced(delivery, result))

    def handle_answer(self, child: Child, delivery: Delivery, message: Message | None) -> None:
        """Records what a sender has answered, see `deliver.answer`; None: the sender has ended."""
        is_wanted = any(one.id == delivery.id for one in self._node.queue.deliveries_of(delivery.result))
        if not (is_wanted or "delivered" in (message or {})):
            return  # the result was superseded or refused meanwhile, and nothing of it is known to have arrived
        if message is None:
            self._record_failure(delivery, child.why_ended)
        elif "lost" in message:
            self._remake(delivery, message["lost"])
        elif "delivered" in message:
            self._record_delivered(delivery, message)
        else:
            self._record_failure(delivery, message["failed"])

    def give_up(self, delivery: Delivery, reason: str) -> None:
        """Ends a delivery that cannot be made; it is a dead letter."""
        node = self._node
        with node.queue.transaction():
            node.queue.close_delivery(delivery.id, "dead", reason)
            node.audit.write("dead letter", result=delivery.result, destination=delivery.destination, reason=reason)
            node.dead_letters.write(delivery, reason)
        _logger.warning("dead letter: result %s to %s: %s", delivery.result, delivery.destination, reason)

    def forget_remade(self, study: str) -> None:
        """Lets results of a study be sent again: the job that was to remake lost results has ended.

        A sender finds out which of them are still lost.
        """
        self._being_remade = {result: of for result, of in self._being_remade.items() if of != study}

    def _record_delivered(self, delivery: Delivery, message: Message) -> None:
        node, count, result = self._node, message["delivered"], self._node.queue.result(delivery.result)
        self._outages.pop(delivery.destination, None)
        self.last_delivered[delivery.destination] = time.time()
        node.durations.add("deliver", message["seconds"], destination=delivery.destination)
        # A kill before the commit below makes the node send the same bytes under the same UIDs once more (decision
        # 0004): the archive gets no second result.
        with node.queue.transaction():
            rejected = self._to_be_rejected(delivery, result) if result else []
            if "versions" in message and message["versions"] != [version.id for version in rejected]:
                # A person has decided about an earlier version since the note was written: the same bytes once more, with
                # another note.
                return
            node.queue.close_delivery(delivery.id, "delivered")
            node.queue.add_delivered(delivery.result, delivery.destination)
            node.audit.write(
                "delivered", study=result.study if result else "", result=delivery.result,
                destination=delivery.destination, objects=count,
            )  # fmt: skip
            if result is not None:
                self._record_note(delivery, result, message, rejected)
        job = node.queue.job(result.job) if result else None
        if job is not None:
            node.durations.add("total", max(0.0, time.time() - job.created), job=job.id)
        _logger.info("result %s: delivered to %s, %s object(s)", delivery.result, delivery.destination, count)

    def _to_be_rejected(self, delivery: Delivery, result: Result) -> list[Result]:
        """Earlier versions that a destination has, and that the rule wants rejected when it has got this result."""
        rule = self._node.site.rule(result.rule)
        if rule is None or not rule.reject_replaced:
            return []
        return replaced_by(self._node.queue, result, delivery.destination)

    def _replaced(self, delivery: Delivery, result: Result) -> dict[str, Any]:
        """What a sender needs to write the rejection note for earlier versions, see `deliver.answer`; empty if none is due."""
        node, destination = self._node, self._node.site.destinations.get(delivery.destination)
        versions = self._to_be_rejected(delivery, result)
        if destination is None or not versions or "KO" not in destination.profile.objects:
            return {}
        named = [[version.id, str(node.result_folder(version)), version.digest] for version in versions]
        folder = node.results_folder / _note_folder(delivery)
        return {"replaced": {"versions": named, "note": str(folder), "by": result.id, "at": result.created}}

    def _record_note(self, delivery: Delivery, result: Result, message: Message, rejected: Sequence[Result]) -> None:
        """Records the rejection note that a sender has written, within the transaction that records the delivery."""
        node, named, to = self._node, message.get("named", []), [delivery.destination]
        if named:
            for version in named:
                node.queue.mark_replaced(version, delivery.destination)
            number = node.add_follow_up(
                result, "rejection note", _note_folder(delivery), message["digest"], to, replaces=named
            )
            _logger.info(
                "result %s: note %s rejects the version that it replaces at %s", result.id, number, delivery.destination
            )
        why = message.get("why", "the destination takes no KO")
        for version in message.get("unnamed", [version.id for version in rejected]):
            node.audit.write("not told", study=result.study, result=version, reason=why, destinations=to)

    def _record_failure(self, delivery: Delivery, reason: str) -> None:
        config = self._node.config
        # Only a delivery that was tried before the node began can have failed before the first failure that it knows of.
        first = Outage(Pause(config.first_pause_s, config.longest_pause_s), time.time(), is_older=delivery.attempts > 0)
        outage = self._outages.setdefault(delivery.destination, first)
        outage.reason = reason
        outage.pause.begin()
        _logger.info(
            "result %s: not delivered to %s, try %s: %s",
            delivery.result, delivery.destination, delivery.attempts + 1, reason,
        )  # fmt: skip
        is_late = self._node.queue.is_late(delivery.id, config.give_up_h * 3600)
        # Both conditions, so that a clock that jumps forward gives nothing up (decision 0021).
        if is_late and delivery.attempts >= _FEWEST_TRIES:
            self.give_up(delivery, reason)
        else:
            self._node.queue.record_failed_try(delivery.id, reason)

    def _remake(self, delivery: Delivery, lost: str) -> None:
        """Has lost files of a result made again, or gives the delivery up; `lost`: what the sender missed."""
        result = self._node.queue.result(delivery.result)
        if result is None:
            return
        why_not = self._node.lost_results.remake(result, lost)
        if why_not:
            self.give_up(delivery, why_not)
            return
        # Left out of the next deliveries until the job has ended, or senders would miss the files again at once.
        self._being_remade[result.id] = result.study
        self._node.queue.record_failed_try(delivery.id, f"{lost}; they are made again")
        _logger.warning("result %s: %s; study %s is processed again", result.id, lost, result.study)
