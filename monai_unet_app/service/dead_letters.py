"""The folder of dead letters: a file for each job and delivery that was given up, for whoever looks into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_unet_app.data.schemas import write_json
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.rows import Delivery, Job

_ALL = 1_000_000


class DeadLetters:
    """Says in files what the queue says."""

    def __init__(self, folder: Path, queue: Queue) -> None:
        self.folder, self.queue = folder, queue

    def lay_down(self, dead: Job | Delivery, reason: str) -> None:
        """Writes one."""
        write_json({**_about(dead), "reason": reason}, self.folder / f"{_name(dead)}.json")

    def mend(self) -> None:
        """Writes those that are missing, and takes those away that are tried again or not needed any more."""
        jobs, deliveries = self.queue.jobs(["dead"], _ALL), self.queue.deliveries(["dead"], _ALL)
        dead: dict[str, Job | Delivery] = {_name(one): one for one in jobs} | {_name(one): one for one in deliveries}
        found = {path.stem for path in self.folder.glob("*.json")}
        for name in found - dead.keys():
            (self.folder / f"{name}.json").unlink(missing_ok=True)
        for name in dead.keys() - found:
            self.lay_down(dead[name], dead[name].reason)


def _name(dead: Job | Delivery) -> str:
    return f"job-{dead.id}" if isinstance(dead, Job) else f"delivery-{dead.id}"


def _about(dead: Job | Delivery) -> dict[str, Any]:
    if isinstance(dead, Job):
        return {"study": dead.study, "instances": f"received/{dead.study}"}
    return {"result": dead.result, "destination": dead.destination}
