"""Results whose files are lost or changed: the digest shows it, they are remade at most twice, and never sent as they are."""

from collections.abc import Sequence
from pathlib import Path

from monai_unet_app.service.audit import AuditTrail
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.result_folder import digest_of, result_files
from monai_unet_app.service.rows import FOLLOW_UPS, HELD_BACK, Job, NewResult, Result

_MOST_REMADE = 2


def why_lost(folder: Path, digest: str) -> str:
    """What is wrong with the files of a result; empty if they are byte for byte as the worker made them.

    Args:
        folder: Folder of the result, below `results`.
        digest: `result_folder.digest_of` this folder when it was made.
    """
    if not result_files(folder):
        return "its files are missing from results"
    if digest_of(folder) != digest:
        return "its files in results are not the original files: some are missing, or were changed"
    return ""


class LostResults:
    """What a node does about results whose files are lost."""

    def __init__(self, queue: Queue, audit: AuditTrail, received: Path, results: Path) -> None:
        self._queue, self._audit, self._received, self._results = queue, audit, received, results

    def why_lost(self, result: Result) -> str:
        """See the function `why_lost`; empty for a result without files."""
        return why_lost(self._results / result.folder, result.digest) if result.folder else ""

    def remake(self, result: Result, lost: str) -> str:
        """Queues the job of a result again, at most twice. The new result supersedes the lost one.

        Args:
            result: A result whose files are lost.
            lost: What is wrong with them, see `why_lost`.

        Returns:
            Empty if the result is being remade, or will be; else `lost`, and why it cannot be remade.
        """
        with self._queue.transaction():
            jobs = self._queue.jobs_of(result.study)
            if not jobs or jobs[-1].state in ("queued", "working"):
                return ""
            job = jobs[-1]
            # A review or a sender wrote it: a worker cannot make it again.
            if result.verdict in FOLLOW_UPS:
                put_back = f"put {self._results.name} back from a backup"
                return f"{lost}; a {result.verdict} object is not made again: {put_back}"
            if not any((self._received / result.study).rglob("*")):
                return f"{lost}, and its images from {self._received.name}; send the study again"
            if job.state == "dead":
                return f"{lost}, and job {job.id}, which would make them again, is a dead letter"
            if self._queue.times_remade(job.id) >= _MOST_REMADE:
                return f"{lost}, also after they were made again {_MOST_REMADE} times"
            self._queue.remake_job(job.id)
            self._audit.write("remade", study=result.study, job=job.id, result=result.id, reason=lost)
        return ""

    def compare(self, job: Job, remade: Sequence[NewResult]) -> tuple[list[NewResult], dict[int, str]]:
        """Sorts the remade results of a job: which of them may be recorded, and which lost results they do not replace.

        A result that was sent somewhere, or was to be, is replaced by the same bytes only. A result that is held back may get
        other bytes: no reader has seen the old bytes, and a reviewer will look at the new ones.

        Returns:
            The remade results that may be recorded; and number -> reason of each result that stays lost.
        """
        before = {
            (old.rule, old.series): old
            for old in self._queue.results_of(job.id)
            if old.verdict not in FOLLOW_UPS and old.state != "superseded"
        }
        after = {(new.rule, new.series): new for new in remade}
        different = {
            key: old
            for key, old in before.items()
            if old.state not in HELD_BACK and (key not in after or after[key].digest != old.digest)
        }
        reasons = {
            old.id: _why_not_replaced(lost, after.get(key))
            for key, old in different.items()
            if (lost := self.why_lost(old))
        }
        return [new for new in remade if (new.rule, new.series) not in different], reasons


def _why_not_replaced(lost: str, remade: NewResult | None) -> str:
    """Why a remade result does not replace a result; `lost`: what is wrong with the files of that result."""
    if remade is None:
        outcome = "nothing was made again"
    elif remade.state == "not processed":
        outcome = f"made again, it was not processed ({remade.reason})"
    else:
        outcome = "made again, they have other bytes: the bundle, the site file or the program has changed since"
    return f"{lost}; {outcome}; process the study again to deliver the new result"
