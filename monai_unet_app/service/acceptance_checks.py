"""What the checks of an acceptance test share: a time limit, labels compared in patient space, the node's audit trail."""

from __future__ import annotations

import ipaddress
import json
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import DicomIoError
from dicom_io.net.scp import Listen
from dicom_io.volume import Volume
from monai_unet_app.errors import AppError

MOST_PLACE_MM, MOST_VOLUME_ML = 0.01, 1e-3
"""What a voxel may lie off its place, and what a volume may differ by, for a check to be passed."""


@dataclass(frozen=True)
class StepResult:
    """What came out of a step.

    Attributes:
        text: In words.
        fault: It is not what it must be.
        place_mm, volume_ml: As in `label_errors`, where they were measured.
    """

    text: str
    fault: bool = False
    place_mm: float | None = None
    volume_ml: float | None = None


class TrailReader:
    """What the node's audit trail says of our studies; lines that were there before are passed by."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as stream:
                self._begin: int | None = stream.seek(0, 2)
        except OSError:
            self._begin = None

    @property
    def can_be_read(self) -> bool:
        """Whether the trail is there and readable."""
        return self._begin is not None

    def _entries(self, event: str, studies: set[str]) -> list[dict[str, Any]]:
        if self._begin is None:
            return []
        with self.path.open("rb") as stream:
            stream.seek(self._begin)
            lines = stream.read().split(b"\n")[:-1]  # what follows the last line end is being written
        found = [json.loads(line) for line in lines]
        return [one for one in found if one.get("event") == event and one.get("study") in studies]

    def _results(self, studies: set[str]) -> list[dict[str, Any]]:
        return self._entries("result", studies)

    def has_result(self, study: str) -> bool:
        """Whether a worker has answered about a study."""
        return bool(self._results({study}))

    def has_results(self, studies: set[str]) -> bool:
        """Whether workers have answered about all of them."""
        return {one["study"] for one in self._results(studies)} == studies

    def workers(self, studies: set[str]) -> set[int]:
        """Process ids of the workers that made results of these studies."""
        return {one["worker"] for one in self._results(studies) if "worker" in one}

    def refusal(self, study: str, rule: str, images: int) -> str:
        """State of a rule's result of a whole study, if it is one that is not delivered; else empty.

        A node that did not wait long enough may have refused a part of the study before.
        """
        whole = {one["job"] for one in self._entries("complete", {study}) if one["instances"] == images}
        found = [one for one in self._results({study}) if one["job"] in whole and one["rule"] in (rule, "")]
        states = [str(one["state"]) for one in found]
        return states[-1] if states and states[-1] in ("held", "rejected", "not processed") else ""


def result_within(seconds: float, work: Callable[[], StepResult]) -> StepResult:
    """The result of a step; a fault where it fails, or gives none within so many seconds."""
    answers: queue.SimpleQueue[StepResult | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(work())
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        found = answers.get(timeout=seconds)
    except queue.Empty:
        return StepResult(f"no answer within {seconds:.0f} s", fault=True)
    if isinstance(found, (DicomIoError, AppError, OSError)):
        return StepResult(str(found), fault=True)
    if isinstance(found, BaseException):
        raise found
    return found


def address_of_node(host: str, networks: Sequence[str]) -> str:
    """The address at which a node on this machine is called.

    Args:
        host: Where it listens; "0.0.0.0" and "::" are all addresses of this machine.
        networks: IP networks that it lets in; empty: all.

    Returns:
        `host`; where that is all addresses, one that `networks` lets in, or 127.0.0.1 if there is none.
    """
    if host not in ("0.0.0.0", "::"):
        return host
    loopback = "127.0.0.1"
    if Listen(networks=tuple(networks)).lets_in(loopback):
        return loopback
    ours = (source_address(str(ipaddress.ip_network(one)[0])) for one in networks)
    return next((one for one in ours if one and Listen(networks=tuple(networks)).lets_in(one)), loopback)


def source_address(host: str) -> str:
    """The address of this machine that a connection to a host would come from; empty where there is no way. Sends nothing."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def compare_labels(before: Volume, after: Volume, text: str) -> StepResult:
    """What `label_errors` measures, with a fault where it is more than `MOST_PLACE_MM` or `MOST_VOLUME_ML`.

    No place is stated where a label is missing: the report is JSON, which has no infinite numbers.
    """
    place_mm, volume_ml = label_errors(before, after)
    if np.isinf(place_mm):
        return StepResult(f"{text}; a label is in one of the two only", True, None, round(volume_ml, 6))
    is_fault = place_mm > MOST_PLACE_MM or volume_ml > MOST_VOLUME_ML
    return StepResult(text, is_fault, round(place_mm, 6), round(volume_ml, 6))


def label_errors(before: Volume, after: Volume) -> tuple[float, float]:
    """How two label volumes differ in patient space, whatever their axes.

    Args:
        before: Shape (I, J, K), 0 is background; or (I, J, K, C), channel c non-zero where label c + 1 is.
        after: Any grid.

    Returns:
        Largest distance in mm of a voxel labelled in the one from the nearest voxel of the same label in the other, both
        ways, infinite where a label is in one only; and the largest difference of a label's volume in mL.
    """
    from scipy.spatial import KDTree

    place_mm, volume_ml = 0.0, 0.0
    masks = [_masks(volume) for volume in (before, after)]
    for label in sorted(set(masks[0]) | set(masks[1])):
        first, second = (
            _places(volume, found.get(label)) for volume, found in zip((before, after), masks, strict=True)
        )
        volume_ml = max(volume_ml, abs(len(first) * before.voxel_ml - len(second) * after.voxel_ml))
        if not len(first) or not len(second):
            return np.inf, volume_ml
        for one, other in ((first, second), (second, first)):
            place_mm = max(place_mm, float(KDTree(other).query(one)[0].max()))
    return place_mm, volume_ml


def _masks(volume: Volume) -> dict[int, NDArray[np.bool_]]:
    """Label -> where it is; labels that are nowhere are left out."""
    if volume.array.ndim == 3:
        return {int(label): volume.array == label for label in np.unique(volume.array) if label != 0}
    channels = {number + 1: volume.array[..., number] != 0 for number in range(volume.array.shape[3])}
    return {label: mask for label, mask in channels.items() if mask.any()}


def _places(volume: Volume, mask: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """Shape (N, 3): centres of a mask's voxels in LPS mm."""
    indices = np.empty((0, 3)) if mask is None else np.argwhere(mask)
    return indices @ volume.affine_lps[:3, :3].T + volume.affine_lps[:3, 3]
