"""Versions of one result: what was made of a series by a rule each time that its study became complete."""

from __future__ import annotations

from monai_unet_app.service.queue import Queue
from monai_unet_app.service.rows import FOLLOW_UPS, Result


def earlier_versions(queue: Queue, result: Result) -> list[Result]:
    """Earlier results of the same series and rule, of other bytes, that a destination has and nobody has decided about.

    Of several with the same bytes the last one; none whose bytes were made again later than this result.
    """
    every = [one for job in queue.jobs_of(result.study) for one in queue.results_of(job.id) if _is_alike(one, result)]
    last = {one.digest: one for one in sorted(every, key=lambda one: one.id)}
    newest = last.get(result.digest, result).id
    return [
        one
        for digest, one in last.items()
        if digest != result.digest
        and one.id < newest
        and one.state != "refused"
        and destinations_with(queue, one)
        and not any(decision.is_final for decision in queue.decisions_of(one.id))
    ]


def destinations_with(queue: Queue, result: Result) -> set[str]:
    """Names of the destinations that have the bytes of a result."""
    sent = [delivery for one in queue.same_bytes(result.id) for delivery in queue.deliveries_of(one.id)]
    return {delivery.destination for delivery in sent if delivery.state == "delivered"}


def _is_alike(one: Result, other: Result) -> bool:
    """Whether both are results of one series and rule, and neither a notice nor what follows from a decision."""
    is_result = one.state != "not processed" and one.verdict not in FOLLOW_UPS
    return is_result and (one.rule, one.series) == (other.rule, other.series)
