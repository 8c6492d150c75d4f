"""The folder of dead letters: a file for each job and delivery that was given up, for the administrator to read."""

from pathlib import Path
from typing import Any

from monai_unet_app.data.schemas import write_json
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.rows import Delivery, Job

_ALL = 1_000_000


class DeadLetters:
    """Keeps a file for each dead job and delivery of the queue."""

    def __init__(self, folder: Path, queue: Queue) -> None:
        self.folder, self.queue = folder, queue

    def write(self, dead: Job | Delivery, reason: str) -> None:
        """Writes the file of a job or delivery."""
        about: dict[str, Any] = (
            {"study": dead.study, "instances": f"received/{dead.study}"}
            if isinstance(dead, Job)
            else {"result": dead.result, "destination": dead.destination}
        )
        write_json({**about, "reason": reason}, self.folder / f"{_name(dead)}.json")

    def update(self) -> None:
        """Writes files that are missing, and deletes those of jobs and deliveries that are not dead any more."""
        rows: list[Job | Delivery] = [*self.queue.jobs(["dead"], _ALL), *self.queue.deliveries(["dead"], _ALL)]
        dead = {_name(row): row for row in rows}
        written = {path.stem for path in self.folder.glob("*.json")}
        for name in written - dead.keys():
            (self.folder / f"{name}.json").unlink(missing_ok=True)
        for name in dead.keys() - written:
            self.write(dead[name], dead[name].reason)


def _name(dead: Job | Delivery) -> str:
    return f"job-{dead.id}" if isinstance(dead, Job) else f"delivery-{dead.id}"
