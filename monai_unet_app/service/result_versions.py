"""Versions of a result: one for each time that its study became complete, by the same rule and of the same series."""

from monai_unet_app.service.queue import Queue
from monai_unet_app.service.rows import FOLLOW_UPS, Result


def earlier_versions(queue: Queue, result: Result) -> list[Result]:
    """Earlier versions of a result with other bytes that a destination has, without a final decision.

    Of several versions with the same bytes the last version counts; a version later than this result is left out.
    """
    versions = [other for other in queue.results_of_study(result.study) if _is_version_of(other, result)]
    # A decision is about bytes: versions with the same digest are decided on together (decision 0028).
    last = {version.digest: version for version in sorted(versions, key=lambda version: version.id)}
    newest = last.get(result.digest, result).id
    return [
        version
        for digest, version in last.items()
        if digest != result.digest
        and version.id < newest
        and version.state != "refused"
        and destinations_with(queue, version)
        and not any(decision.is_final for decision in queue.decisions_of(version.id))
    ]


def replaced_by(queue: Queue, result: Result, destination: str) -> list[Result]:
    """Earlier versions that a destination has and that a result takes the place of, see `earlier_versions`."""
    if result.state == "not processed" or result.verdict in FOLLOW_UPS:
        return []
    return [version for version in earlier_versions(queue, result) if destination in destinations_with(queue, version)]


def destinations_with(queue: Queue, result: Result) -> set[str]:
    """Names of the destinations that have the bytes of a result."""
    deliveries = queue.deliveries_of_same_bytes(result.id)
    return {delivery.destination for delivery in deliveries if delivery.state == "delivered"}


def _is_version_of(other: Result, result: Result) -> bool:
    """Whether a result is of the same series and rule, and neither a notice nor a follow-up."""
    is_result = other.state != "not processed" and other.verdict not in FOLLOW_UPS
    return is_result and (other.rule, other.series) == (result.rule, result.series)
