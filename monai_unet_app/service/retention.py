"""What a node forgets: studies that were done long ago, records of decisions, and folders that nothing names."""

import logging
import shutil
import time
from typing import TYPE_CHECKING

from monai_unet_app.service.child_processes import PARTIAL

if TYPE_CHECKING:
    from monai_unet_app.service.node import Node

_DAY_S = 86_400
_EVERY_S = 60.0
_logger = logging.getLogger(__name__)


class Retention:
    """Deletes what the site does not keep. The node's loop calls it."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self.last_run: float | None = None
        """Monotonic clock, in seconds; None before the first run."""

    def run(self) -> None:
        """Forgets what is due, once a minute."""
        if self.last_run is not None and time.monotonic() - self.last_run < _EVERY_S:
            return
        self.last_run = time.monotonic()
        node = self._node
        for study in node.queue.forgettable(node.queue.now_s() - node.config.retention_days * _DAY_S):
            if study not in node.arrivals:
                self._forget_study(study)
        self._delete_decision_records()
        node.dead_letters.update()
        self._delete_unknown_results()

    def forget_decisions_without_record(self, study: str) -> None:
        """Forgets decisions about forgotten results of a study that no record in `decisions` tells of any more."""
        node = self._node
        for decision in node.queue.decisions_on_forgotten(study):
            records = (node.decisions_folder / study).glob(f"result-{decision.result}_{decision.decision}*.json")
            if any(records):
                continue
            with node.queue.transaction():
                node.queue.forget_decision(decision.result, decision.decision)
                node.audit.write("decision forgotten", study=study, result=decision.result, decision=decision.decision)

    def _forget_study(self, study: str) -> None:
        node = self._node
        for result in node.queue.results_of_study(study):
            shutil.rmtree(node.reviews_folder / str(result.id), ignore_errors=True)
        # Files before rows: after a kill in between, the next run goes on. The other way round, the node would find
        # files of an unknown study at its start and segment it again.
        shutil.rmtree(node.received_folder / study, ignore_errors=True)
        with node.queue.transaction():
            node.queue.forget(study)
            node.audit.write("forgotten", study=study)
            self.forget_decisions_without_record(study)
        _logger.info("study %s: forgotten, because its retention time is over", study)

    def _delete_decision_records(self) -> None:
        """Deletes records of decisions that are older than `decision_days`; 0 keeps all."""
        node = self._node
        if not node.config.decision_days:
            return
        before = node.queue.now_s() - node.config.decision_days * _DAY_S
        for path in node.decisions_folder.glob("*/*.json"):
            if path.stat().st_mtime < before:
                path.unlink()
                self.forget_decisions_without_record(path.parent.name)
                if not any(path.parent.iterdir()):
                    path.parent.rmdir()

    def _delete_unknown_results(self) -> None:
        """Deletes folders below `results` that no result and no running job names."""
        node = self._node
        jobs = node.workers.tasks()
        known = node.queue.folder_names() | {node.jobs.output_name(job) for job in jobs}
        node.results_folder.mkdir(exist_ok=True)
        for path in node.results_folder.iterdir():
            # Young folders stay: a review may write the folder of a follow-up after the names above were read.
            is_being_written = jobs and path.name.startswith(PARTIAL)
            if path.name not in known and not is_being_written and time.time() - path.stat().st_mtime > _EVERY_S:
                shutil.rmtree(path, ignore_errors=True)
