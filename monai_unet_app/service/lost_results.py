"""Results whose files are lost or changed: known by their digest, made again at most twice, and never sent as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_unet_app.service.audit import AuditTrail
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.rows import FOLLOW_UPS, HELD_BACK, Job, NewResult, Result
from monai_unet_app.service.work import digest_of, result_files

_MOST_REMADE = 2


def why_lost(folder: Path, digest: str) -> str:
    """What is wrong with the files of a result; empty where they are, byte for byte, those that were made.

    Args:
        folder: Of the result, below `results`.
        digest: `digest_of` this folder when it was made.
    """
    if not result_files(folder):
        return "its files are missing from results"
    if digest_of(folder) != digest:
        return "its files in results are not those that were made: some are missing, or were changed"
    return ""


class LostResults:
    """What a node does about results whose files are lost."""

    def __init__(self, queue: Queue, audit: AuditTrail, received: Path, results: Path) -> None:
        self._queue, self._audit, self._received, self._results = queue, audit, received, results

    def why_lost(self, result: Result) -> str:
        """As the function of this name; empty where a result has no files."""
        return why_lost(self._results / result.folder, result.digest) if result.folder else ""

    def make_again(self, result: Result, lost: str) -> str:
        """Has the study of a result worked at again, at most twice. What is made again supersedes what is lost.

        Args:
            result: Its files are lost.
            lost: How, see `why_lost`.

        Returns:
            Empty where it is made again, or will be; else `lost`, and why it cannot be made again.
        """
        with self._queue.transaction():
            jobs = self._queue.jobs_of(result.study)
            if not jobs or jobs[-1].state in ("queued", "working"):
                return ""
            job = jobs[-1]
            if result.verdict in FOLLOW_UPS:
                put_back = f"put {self._results.name} back from a backup"
                return f"{lost}; what follows from a decision is not made again: {put_back}"
            if not any((self._received / result.study).rglob("*")):
                return f"{lost}, and its images from {self._received.name}; send the study again"
            if job.state == "dead":
                return f"{lost}, and job {job.id}, which would make them again, is a dead letter"
            if self._queue.times_remade(job.id) >= _MOST_REMADE:
                return f"{lost}, and were again after they were made again {_MOST_REMADE} times"
            self._queue.remake_job(job.id)
            self._audit.write("remade", study=result.study, job=job.id, result=result.id, reason=lost)
        return ""

    def compare(self, job: Job, found: Sequence[NewResult]) -> tuple[list[NewResult], dict[int, str]]:
        """Of what a job made again, what may be kept; and by number the results that it did not make again, with the reason.

        What was sent somewhere, or was to be, is replaced by the same bytes only. What waits for a reviewer may differ:
        nobody has seen the first, and somebody looks at the second.
        """
        made = {(one.rule, one.series): one for one in self._queue.results_of(job.id) if one.verdict not in FOLLOW_UPS}
        again = {(one.rule, one.series): one for one in found}
        other = {
            key: before
            for key, before in made.items()
            if before.state not in HELD_BACK and (key not in again or again[key].digest != before.digest)
        }
        reasons = {before.id: _why_other(self.why_lost(before), again.get(key)) for key, before in other.items()}
        kept = [one for one in found if (one.rule, one.series) not in other]
        return kept, {number: why for number, why in reasons.items() if why}


def _why_other(lost: str, again: NewResult | None) -> str:
    """Why what was made again does not take the place of a result; empty where that is not lost."""
    if not lost:
        return ""
    if again is None:
        became = "nothing was made again"
    elif again.state == "not processed":
        became = f"made again, it was not processed ({again.reason})"
    else:
        became = "made again, they have other bytes: the bundle, the site file or the program is another one by now"
    return f"{lost}; {became}; have the study worked at once more to deliver what is made of it now"
