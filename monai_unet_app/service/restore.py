"""A node's memory, made anew from its audit trail: what was done, what was decided and who has what.

The trail is written before the memory, in one go with it, so that it knows as much. What is not in it: tries that failed
and why, what people wrote as their reasons (it is in `verdicts`, and may name a patient), and how long ago something was done,
from which on it is kept. Studies that the trail does not tell of are found among the received files, as those that came last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_unet_app.service.audit import entries
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.rows import FOLLOW_UPS, Decision, DecisionKind, Delivery, NewResult

Line = dict[str, Any]
_MADE = {"complete": "job", "result": "result", **dict.fromkeys(FOLLOW_UPS, "result")}
"""Event -> the key of the number of what it made."""


def restore(queue: Queue, trail: Path) -> None:
    """Fills a queue that never had a job; does nothing to another.

    Args:
        queue: Gets jobs, results and deliveries, with the numbers that they had.
        trail: One that is whole.
    """
    if not queue.is_new:
        return
    with queue.transaction():
        for line in _told(trail):
            _EVENTS[line["event"]](queue, line)


def _told(trail: Path) -> list[Line]:
    """The lines that matter; of several that made the same, those before the last are of a node that died at that moment."""
    known = [line for line in entries(trail) if line["event"] in _EVENTS]
    last = {_made(line): n for n, line in enumerate(known)}
    return [line for n, line in enumerate(known) if line["event"] not in _MADE or last[_made(line)] == n]


def _made(line: Line) -> tuple[str, int]:
    key = _MADE.get(line["event"], "n")
    return key, line[key]


def _complete(queue: Queue, line: Line) -> None:
    queue.record_instances(line["study"], line["instances"] - queue.instances(line["study"]))
    queue.set_next_number("jobs", line["job"])
    queue.complete_study(line["study"])


def _result(queue: Queue, line: Line) -> None:
    queue.set_next_number("results", line["result"])
    facts = {key: line[key] for key in ("rule", "series", "folder", "verdict", "digest", "destinations")}
    goes = line["destinations"] and line["state"] == "delivered"  # to nobody who had not these bytes already
    reason = line.get("reason", "")  # none in lines of earlier versions
    queue.finish_job(line["job"], [NewResult(**facts, state="sending" if goes else line["state"], reason=reason)])


def _follow_up(queue: Queue, line: Line) -> None:
    of = queue.result(line["of"])
    if of is not None:
        queue.set_next_number("results", line["result"])
        queue.add_follow_up(of, line["event"], line["folder"], line["digest"], line["destinations"])


def _released(queue: Queue, line: Line) -> None:
    queue.send_held_back(line["result"], line["destinations"])
    _recorded(queue, line, "released")


def _refused(queue: Queue, line: Line) -> None:
    queue.mark_refused(line["result"], f"by {line['who']}, {line['time'][:10]}")
    _recorded(queue, line, "refused")


def _decided(queue: Queue, line: Line) -> None:
    if line["decision"] == "accepted":
        queue.send_held_back(line["result"], line["destinations"])
    else:
        queue.mark_refused(line["result"], f"{line['decision']} by a reviewer")
    _recorded(queue, line, line["decision"])


def _recorded(queue: Queue, line: Line, decision: DecisionKind) -> None:
    queue.record_decision(Decision(line["result"], decision, line["who"], line["time"]))


def _delivered(queue: Queue, line: Line) -> None:
    for delivery in _deliveries(queue, line):
        queue.record_delivered(delivery.id)


def _dead(queue: Queue, line: Line) -> None:
    if "job" in line:
        queue.give_up_job(line["job"], line["reason"])
    for delivery in _deliveries(queue, line):
        queue.give_up_delivery(delivery.id, line["reason"])


def _retried(queue: Queue, line: Line) -> None:
    if "job" in line:
        queue.retry_job(line["job"])
    for delivery in _deliveries(queue, line):
        queue.retry_delivery(delivery.id)


def _forgotten(queue: Queue, line: Line) -> None:
    queue.forget(line["study"])


def _decision_forgotten(queue: Queue, line: Line) -> None:
    queue.forget_decision(line["result"], line["decision"])


def _deliveries(queue: Queue, line: Line) -> list[Delivery]:
    found = queue.deliveries_of(line["result"]) if "result" in line else []
    return [one for one in found if one.destination == line["destination"]]


_EVENTS = {
    "complete": _complete,
    "result": _result,
    **dict.fromkeys(FOLLOW_UPS, _follow_up),
    "released": _released,
    "refused": _refused,
    "decided": _decided,
    "delivered": _delivered,
    "dead letter": _dead,
    "retried": _retried,
    "forgotten": _forgotten,
    "decision forgotten": _decision_forgotten,
}
