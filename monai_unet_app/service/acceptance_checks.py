"""The checks of a site acceptance and its report: time limit, labels compared in patient space, the node's audit trail."""

import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import DicomIoError
from dicom_io.net.scp import Listen
from dicom_io.volume import Volume
from monai_unet_app.errors import AppError

MOST_PLACE_MM, MOST_VOLUME_ML = 0.01, 1e-3
"""The largest error of a voxel's place, and the largest difference of a volume, with which a check passes."""


@dataclass(frozen=True)
class StepResult:
    """The result of a step.

    Attributes:
        text: The result in words.
        fault: The step failed.
        place_mm, volume_ml: As in `label_errors`; None if not measured.
    """

    text: str
    fault: bool = False
    place_mm: float | None = None
    volume_ml: float | None = None


State = Literal["passed", "failed", "not tried"]


@dataclass(frozen=True)
class Check:
    """The outcome of a step. The names of the attributes are the keys of the JSON report.

    Attributes:
        what: The step in a few words.
        where: Destination, node or rule.
        state: "passed", "failed", or "not tried" because a step that it needs failed, or the time was over.
        seconds: Duration.
        said: The result, the fault, or the reason why it was not tried.
        place_mm, volume_ml: Largest error of a labelled voxel's place and difference of volume; None if not measured.
    """

    what: str
    where: str
    state: State
    seconds: float
    said: str
    place_mm: float | None = None
    volume_ml: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the check passed."""
        return self.state == "passed"


@dataclass
class Acceptance:
    """The report of an acceptance.

    Attributes:
        site: Name of the site file.
        began: ISO 8601, UTC.
        versions: Versions of program, system and packages.
        bundles: Rule -> name, version and sha256 of its bundle.
        unchecked: What no check covers, in words.
        checks: All checks, in order.
    """

    site: str
    began: str
    versions: dict[str, str]
    bundles: dict[str, str]
    unchecked: list[str]
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether there are checks, and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def of(self, state: State) -> list[Check]:
        """The checks of one state."""
        return [check for check in self.checks if check.state == state]

    def document(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "schema_version": "1.1",
            "passed": self.passed,
            "limits": {"place_mm": MOST_PLACE_MM, "volume_ml": MOST_VOLUME_ML},
            **asdict(self),
            "checks": [{**asdict(check), "passed": check.passed} for check in self.checks],
        }


class TrailReader:
    """Reads the lines that the node's audit trail got since the reader was made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as stream:
                self._begin: int | None = stream.seek(0, 2)
        except OSError:
            self._begin = None

    @property
    def can_be_read(self) -> bool:
        """Whether the trail exists and is readable."""
        return self._begin is not None

    def _entries(self, event: str, studies: set[str]) -> list[dict[str, Any]]:
        if self._begin is None:
            return []
        with self.path.open("rb") as stream:
            stream.seek(self._begin)
            lines = stream.read().split(b"\n")[:-1]  # the text after the last line end is being written
        entries = [json.loads(line) for line in lines]
        return [entry for entry in entries if entry.get("event") == event and entry.get("study") in studies]

    def has_results(self, studies: set[str]) -> bool:
        """Whether workers have made results of all these studies."""
        return {entry["study"] for entry in self._entries("result", studies)} == studies

    def workers(self, studies: set[str]) -> set[int]:
        """Process ids of the workers that made results of these studies."""
        return {entry["worker"] for entry in self._entries("result", studies) if "worker" in entry}

    def refusal(self, study: str, rule: str, images: int) -> str:
        """State of a rule's result of a whole study if that result is not delivered, else empty.

        A node that did not wait long enough may have refused a part of the study before; such results do not count.
        """
        whole = {entry["job"] for entry in self._entries("complete", {study}) if entry["instances"] == images}
        results = [
            entry for entry in self._entries("result", {study}) if entry["job"] in whole and entry["rule"] in (rule, "")
        ]
        state = str(results[-1]["state"]) if results else ""
        return state if state in ("held", "rejected", "not processed") else ""


def result_within(seconds: float, work: Callable[[], StepResult]) -> StepResult:
    """The result of a step; a fault if the step fails, or gives no result within so many seconds."""
    answer: Future[StepResult] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    # A thread cannot be ended from outside: a step that takes too long goes on, and as a daemon it does not keep the
    # program from ending.
    threading.Thread(target=run, daemon=True).start()
    if not wait([answer], seconds).done:
        return StepResult(f"no answer within {seconds:.0f} s", fault=True)
    try:
        return answer.result()
    except (DicomIoError, AppError, OSError) as error:
        return StepResult(str(error), fault=True)


def address_of_node(host: str, networks: Sequence[str]) -> str:
    """The address under which a node on this machine can be called.

    Args:
        host: The address on which it listens; "0.0.0.0" and "::" mean all addresses of this machine.
        networks: IP networks that may connect; empty: all.

    Returns:
        `host`. If that means all addresses: an address of this machine in `networks`, or 127.0.0.1 if there is none.
    """
    if host not in ("0.0.0.0", "::"):
        return host
    loopback, listen = "127.0.0.1", Listen(networks=tuple(networks))
    own = (source_address(str(ipaddress.ip_network(network)[0])) for network in networks)
    return next((address for address in (loopback, *own) if address and listen.lets_in(address)), loopback)


def source_address(host: str) -> str:
    """The address of this machine from which it would connect to a host; empty if there is no route. Sends nothing."""
    try:
        # connect() on a UDP socket only looks up the route; port 9 is "discard" (RFC 863), should anything be sent.
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def compare_labels(before: Volume, after: Volume, text: str) -> StepResult:
    """The errors that `label_errors` measures; a fault if they exceed `MOST_PLACE_MM` or `MOST_VOLUME_ML`.

    If a label is missing, no place error is stated: the report is JSON, which has no infinite numbers.
    """
    place_mm, volume_ml = label_errors(before, after)
    if np.isinf(place_mm):
        return StepResult(f"{text}; a label is in only one of the two", True, None, round(volume_ml, 6))
    is_fault = place_mm > MOST_PLACE_MM or volume_ml > MOST_VOLUME_ML
    return StepResult(text, is_fault, round(place_mm, 6), round(volume_ml, 6))


def label_errors(before: Volume, after: Volume) -> tuple[float, float]:
    """How two label volumes differ in patient space, whatever their axes.

    Args:
        before: Shape (I, J, K), 0 is background; or (I, J, K, C), where channel c is non-zero in voxels of label c + 1.
        after: Likewise, on any grid.

    Returns:
        The largest distance in mm from a labelled voxel of one volume to the nearest voxel of the same label in the other, in
        both directions; infinite if a label is in one volume only. And the largest difference of a label's volume in mL.
    """
    from scipy.spatial import KDTree

    place_mm, volume_ml = 0.0, 0.0
    all_first, all_second, none = _centres_mm(before), _centres_mm(after), np.empty((0, 3))
    for label in sorted(all_first.keys() | all_second.keys()):
        first, second = all_first.get(label, none), all_second.get(label, none)
        volume_ml = max(volume_ml, abs(len(first) * before.voxel_ml - len(second) * after.voxel_ml))
        if not len(first) or not len(second):
            return np.inf, volume_ml
        # The Hausdorff distance of the voxel centres. In one direction only, a label that was cut in half has no error.
        for points, others in ((first, second), (second, first)):
            place_mm = max(place_mm, float(KDTree(others).query(points)[0].max()))
    return place_mm, volume_ml


def _centres_mm(volume: Volume) -> dict[int, NDArray[np.float64]]:
    """Label -> centres of its voxels in LPS mm, shape (N, 3); labels without voxels are left out."""
    array, affine_lps = volume.array, volume.affine_lps
    if array.ndim == 3:
        masks = {int(label): array == label for label in np.unique(array) if label != 0}
    else:
        masks = {number + 1: array[..., number] != 0 for number in range(array.shape[3])}
    indices = {label: np.argwhere(mask) for label, mask in masks.items() if mask.any()}
    return {label: points @ affine_lps[:3, :3].T + affine_lps[:3, 3] for label, points in indices.items()}
