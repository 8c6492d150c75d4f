"""From pending deliveries to archives: which sender gets which delivery, and what becomes of it."""

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from monai_unet_app.service.child_processes import Child, Message
from monai_unet_app.service.rows import Delivery
from monai_unet_app.service.worker_pool import Pause

if TYPE_CHECKING:
    from monai_unet_app.service.node import Node

_FEWEST_TRIES = 10
"""No delivery is given up before so many tries, whatever the clock says."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DestinationState:
    """What is known of a destination.

    Attributes:
        pending: Deliveries that wait for it.
        is_reachable: The last delivery to it did not fail, or there was none.
        is_paused: It is left alone for some time after a delivery that failed.
        delivered: Time of the last delivery to it in seconds since 1970; None if there was none since the node began.
    """

    pending: int
    is_reachable: bool
    is_paused: bool
    delivered: float | None


class Sending:
    """The deliveries of a node. The node's loop calls the methods that change something."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._pauses: dict[str, Pause] = {}  # only of destinations whose last delivery failed
        self._delivered: dict[str, float] = {}  # destination -> seconds since 1970
        self._being_remade: dict[int, str] = {}  # result whose files are lost -> study, until its job has ended

    def unreachable(self) -> list[str]:
        """Destinations whose last delivery failed."""
        return sorted(self._pauses)

    def states(self) -> dict[str, DestinationState]:
        """The destinations of the site, and others that something still waits for."""
        pending = self._node.queue.pending_by_destination()
        return {
            name: DestinationState(
                pending=pending.get(name, 0),
                is_reachable=name not in self._pauses,
                is_paused=(pause := self._pauses.get(name)) is not None and not pause.is_over,
                delivered=self._delivered.get(name),
            )
            for name in dict.fromkeys([*self._node.site.destinations, *pending])
        }

    def start_deliveries(self) -> None:
        """Gives idle senders the next delivery of each destination that is neither busy nor paused."""
        idle = self._node.senders.idle()
        if not idle:
            return
        blocked = {delivery.destination for delivery in self._node.senders.tasks()}
        blocked |= {destination for destination, pause in self._pauses.items() if not pause.is_over}
        pairs = self._node.queue.next_deliveries(self._being_remade)
        due = [(delivery, result) for delivery, result in pairs if delivery.destination not in blocked]
        for child, (delivery, result) in zip(idle, due, strict=False):
            folder = str(self._node.result_folder(result))
            child.start_task(delivery, {"destination": delivery.destination, "folder": folder, "digest": result.digest})

    def handle_answer(self, child: Child, delivery: Delivery, message: Message | None) -> None:
        """Records what a sender has answered, see `deliver.Sender.answer`; None: the sender has ended."""
        if message is None:
            self._record_failure(delivery, child.why_ended)
        elif "lost" in message:
            self._remake(delivery, str(message["lost"]))
        elif "delivered" in message:
            self._record_delivered(delivery, message)
        else:
            self._record_failure(delivery, str(message["failed"]))

    def give_up(self, delivery: Delivery, reason: str) -> None:
        """Ends a delivery that cannot be made; it is a dead letter."""
        node = self._node
        with node.queue.transaction():
            node.queue.give_up_delivery(delivery.id, reason)
            node.audit.write("dead letter", result=delivery.result, destination=delivery.destination, reason=reason)
            node.dead_letters.write(delivery, reason)
        _logger.warning("dead letter: result %s to %s: %s", delivery.result, delivery.destination, reason)

    def forget_remade(self, study: str) -> None:
        """Lets results of a study be sent again: the job that was to remake lost results has ended.

        A sender finds out which of them are still lost.
        """
        self._being_remade = {result: of for result, of in self._being_remade.items() if of != study}

    def _record_delivered(self, delivery: Delivery, message: Message) -> None:
        node, count = self._node, message["delivered"]
        self._pauses.pop(delivery.destination, None)
        self._delivered[delivery.destination] = time.time()
        node.seconds["deliver"].append(float(message["seconds"]))
        result = node.queue.result(delivery.result)
        with node.queue.transaction():
            node.queue.record_delivered(delivery.id)
            node.audit.write(
                "delivered", study=result.study if result else "", result=delivery.result,
                destination=delivery.destination, objects=count,
            )  # fmt: skip
        job = node.queue.job(result.job) if result else None
        if job is not None:
            node.seconds["total"].append(max(0.0, time.time() - job.created))
        _logger.info("result %s: delivered to %s, %s object(s)", delivery.result, delivery.destination, count)

    def _record_failure(self, delivery: Delivery, reason: str) -> None:
        config = self._node.config
        pause = Pause(config.first_pause_s, config.longest_pause_s)
        self._pauses.setdefault(delivery.destination, pause).begin()
        _logger.info(
            "result %s: not delivered to %s, try %s: %s",
            delivery.result, delivery.destination, delivery.attempts + 1, reason,
        )  # fmt: skip
        is_late = self._node.queue.is_late(delivery.id, config.give_up_h * 3600)
        if is_late and delivery.attempts >= _FEWEST_TRIES:
            self.give_up(delivery, reason)
        else:
            self._node.queue.record_failed_try(delivery.id, reason)

    def _remake(self, delivery: Delivery, lost: str) -> None:
        """Has lost files of a result made again, or gives the delivery up; `lost` says what the sender missed."""
        result = self._node.queue.result(delivery.result)
        if result is None:
            return
        why_not = self._node.lost_results.remake(result, lost)
        if why_not:
            self.give_up(delivery, why_not)
            return
        self._being_remade[result.id] = result.study
        self._node.queue.record_failed_try(delivery.id, f"{lost}; they are made again")
        _logger.warning("result %s: %s; study %s is worked at again", result.id, lost, result.study)
