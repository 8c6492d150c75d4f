"""A node's database, made anew from its audit trail: what was done, what was decided, and which destination has what.

A line of the trail is written before the database is changed, within the same transaction, so the trail knows as much. The
trail lacks tries that failed, reasons that people wrote (they are in `decisions`, and may name a patient), and the time by the
node's own clock at which something was done: retention begins anew. Studies that the trail does not name are found among the
received files, and count as arriving.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from monai_unet_app.service import slots
from monai_unet_app.service.audit import entries
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.rows import (
    FOLLOW_UPS,
    SENDING_DECISIONS,
    Decision,
    DecisionKind,
    Delivery,
    NewResult,
    ResultState,
)

Line = dict[str, Any]
_NUMBER_KEYS = {"complete": "job", "result": "result", **dict.fromkeys(FOLLOW_UPS, "result")}
"""Event -> key of the number of the job or result that it made."""


def restore(queue: Queue, trail: Path) -> None:
    """Fills a queue that never had a job; any other queue stays as it is.

    Args:
        queue: Gets jobs, results, decisions and deliveries, with the numbers that they had.
        trail: A trail that was verified.
    """
    if not queue.is_new:
        return
    with queue.transaction():
        for line in _lines_in_effect(trail):
            _EVENTS[line["event"]](queue, line)


def _lines_in_effect(trail: Path) -> list[Line]:
    """The lines that changed the database.

    Of several lines that made the same job or result only the last counts: the node died before it recorded the others.
    """
    in_effect: dict[object, Line] = {}
    for n, line in enumerate(entries(trail)):
        if line["event"] in _EVENTS:
            key = _NUMBER_KEYS.get(line["event"])
            made = (key, line[key]) if key else n
            in_effect.pop(made, None)  # for the later line keeps its own place in the order
            in_effect[made] = line
    return list(in_effect.values())


def _complete(queue: Queue, line: Line) -> None:
    # The line has the number of all instances, and `record_instances` adds to what is recorded.
    queue.record_instances(line["study"], line["instances"] - queue.instances(line["study"]))
    queue.set_next_number("jobs", line["job"])
    queue.complete_study(line["study"], line.get("plan", ""))


def _result(queue: Queue, line: Line) -> None:
    queue.set_next_number("results", line["result"])
    facts = {key: line[key] for key in ("rule", "series", "folder", "verdict", "digest", "destinations")}
    had_all = line["destinations"] and line["state"] == "delivered"  # every destination had the same bytes already
    # Both absent in lines of earlier versions
    reason, bundle = line.get("reason", ""), line.get("observed", {}).get("bundle", "")
    state: ResultState = "sending" if had_all else line["state"]
    queue.finish_job(line["job"], [NewResult(**facts, state=state, reason=reason, bundle=bundle)])


def _follow_up(queue: Queue, line: Line) -> None:
    of = queue.result(line["of"])
    if of is not None:
        queue.set_next_number("results", line["result"])
        queue.add_follow_up(of, line["event"], line["folder"], line["digest"], line["destinations"])
        for number in line.get("replaces", ()):
            queue.mark_replaced(number, line["destinations"][0])


def _decided(queue: Queue, line: Line) -> None:
    # The events "released" and "refused" are decisions themselves.
    kind: DecisionKind = line["decision"] if "decision" in line else line["event"]
    if kind in SENDING_DECISIONS:
        queue.send_held_back(line["result"], line["destinations"])
    else:
        reason = f"by {line['who']}, {line['time'][:10]}" if kind == "refused" else f"{kind} by a reviewer"
        queue.mark_refused(line["result"], reason)
    queue.record_decision(Decision(line["result"], kind, line["who"], line["time"]))


def _delivered(queue: Queue, line: Line) -> None:
    deliveries = _deliveries(queue, line)
    for delivery in deliveries:
        queue.close_delivery(delivery.id, "delivered")
    if not deliveries:
        queue.add_delivered(line["result"], line["destination"])


def _dead_letter(queue: Queue, line: Line) -> None:
    if "job" in line:
        queue.give_up_job(line["job"], line["reason"])
    for delivery in _deliveries(queue, line):
        queue.close_delivery(delivery.id, "dead", line["reason"])


def _retried(queue: Queue, line: Line) -> None:
    if "job" in line:
        queue.retry_job(line["job"])
    for delivery in _deliveries(queue, line):
        queue.retry_delivery(delivery.id)


def _rolled_back(queue: Queue, line: Line) -> None:
    slots.roll_back(queue, line["rule"], line["reason"])
    for result, destination in line["cut_off"]:
        queue.add_delivered(result, destination)


def _deliveries(queue: Queue, line: Line) -> list[Delivery]:
    """The delivery that a line is about; empty for a line about a job."""
    deliveries = queue.deliveries_of(line["result"]) if "result" in line else []
    return [delivery for delivery in deliveries if delivery.destination == line["destination"]]


_EVENTS: dict[str, Callable[[Queue, Line], None]] = {
    "complete": _complete,
    "result": _result,
    **dict.fromkeys(FOLLOW_UPS, _follow_up),
    **dict.fromkeys(("released", "refused", "decided"), _decided),
    "delivered": _delivered,
    "dead letter": _dead_letter,
    "retried": _retried,
    "assigned": lambda queue, line: slots.assign(queue, line["rule"], line["champion"], line["challenger"]),
    "share": lambda queue, line: slots.set_share(queue, line["rule"], line["share"]),
    "taken over": lambda queue, line: queue.replan_job(line["job"], line["plan"]),
    "compared": lambda queue, line: slots.add_comparisons(queue, line["job"], line["study"], line["compared"]),
    "rolled back": _rolled_back,
    "forgotten": lambda queue, line: queue.forget(line["study"]),
    "decision forgotten": lambda queue, line: queue.forget_decision(line["result"], line["decision"]),
}
