"""Site acceptance: phantoms to every destination and back, a known study through the live node, all of it in one signed report.

What comes back is compared in patient space with what went out: how far a labelled voxel lies from its place, and how much the
volume differs. Nothing of a patient takes part; phantoms carry made-up names and stay where they were sent until somebody
deletes them.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.coding import Segment, load_segments
from dicom_io.dicomize import dicomize
from dicom_io.errors import DicomIoError
from dicom_io.net.destination import Destination, Dimse
from dicom_io.net.exchange import echo, fetch, find, send
from dicom_io.net.query import Query
from dicom_io.objects.seg_read import read_seg
from dicom_io.read import read_series
from dicom_io.reading.instances import load_dataset
from dicom_io.volume import Provenance, Volume
from monai_unet_app.bundle import bundle_files
from monai_unet_app.errors import AppError
from monai_unet_app.service.site import Rule, Site
from monai_unet_app.shipped import shipped

MOST_PLACE_MM, MOST_VOLUME_ML = 0.01, 1e-3
"""What a voxel may lie off its place, and what a volume may differ by, for a check to be passed."""

RESULT_S = 120.0
"""How long the live node may take for one study."""

ORIENTATIONS = ("axial", "sagittal", "coronal", "oblique", "feet first")
_PACKAGES = ("torch", "monai", "pydicom", "pynetdicom", "highdicom", "numpy")


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        what: In a few words.
        where: Destination or node.
        passed: Whether it came out as it must.
        seconds: How long it took.
        said: What came out, or what went wrong.
        place_mm, volume_ml: Largest error of a labelled voxel's place and difference of volume, where they were measured.
    """

    what: str
    where: str
    passed: bool
    seconds: float
    said: str
    place_mm: float | None = None
    volume_ml: float | None = None


@dataclass
class Acceptance:
    """What was tried at a site, in order.

    Attributes:
        site: Name of its file.
        began: ISO 8601, UTC.
        versions: Of what took part.
        bundles: Rule -> name, version and sha256 of its bundle.
        checks: All of them.
    """

    site: str
    began: str
    versions: dict[str, str]
    bundles: dict[str, str]
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all was passed, and anything was tried at all."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "schema_version": "1.0",
            "passed": self.passed,
            "limits": {"place_mm": MOST_PLACE_MM, "volume_ml": MOST_VOLUME_ML},
            **{name: value for name, value in asdict(self).items() if name != "checks"},
            "checks": [asdict(check) for check in self.checks],
        }


Each = Callable[[Check], None]


def commission(site: Site, *, live: bool = True, each: Each = lambda check: None) -> Acceptance:
    """Tries every destination of a site, and its node if it runs.

    Args:
        site: What is tried.
        live: Send studies to the node too; it must be running.
        each: Called with every check as soon as it is done.
    """
    done = Acceptance(
        site.path.name, datetime.now(UTC).isoformat(timespec="seconds"), _versions(), _bundles(site.rules)
    )

    def note(checks: Iterator[Check]) -> None:
        for check in checks:
            done.checks.append(check)
            each(check)

    with tempfile.TemporaryDirectory(prefix="commission-") as scratch:
        for destination in site.destinations.values():
            note(_try_destination(destination, Path(scratch)))
        for rule in site.rules if live else ():
            note(_try_node(site, rule, Path(scratch)))
    return done


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in _PACKAGES}
    return {
        "monai-unet-app": version("monai-unet-app"),
        "python": platform.python_version(),
        "system": platform.platform(),
        **found,
    }


def _bundles(rules: Sequence[Rule]) -> dict[str, str]:
    found = {}
    for rule in rules:
        files = bundle_files(rule.bundle)
        found[rule.name] = f"{files.name} {files.version}, sha256 {files.sha256}"
    return found


def _try_destination(destination: Destination, scratch: Path) -> Iterator[Check]:
    where = f"{destination.name} ({destination.label})"
    check = _tried("answers", where, lambda: _told(f"{echo(destination).seconds:.2f} s"))
    yield check
    if not check.passed:
        return
    for orientation in ORIENTATIONS:
        folder = scratch / destination.name / orientation
        case = dicomize(
            phantom(orientation),
            folder,
            labels=_labels(orientation),
            segments=_SEGMENTS,
            case_id=f"COMMISSION {orientation}",
        )
        assert case.seg is not None
        files = [*sorted(case.series_folder.glob("*.dcm")), case.seg]
        study = str(load_dataset(case.seg, with_pixels=False).StudyInstanceUID)
        stored = _tried(f"stores a phantom, {orientation}", where, partial(_store, destination, files))
        yield stored
        if stored.passed:
            yield _tried(f"finds it, {orientation}", where, partial(_find, destination, study))
            yield _tried(
                f"gives it back, {orientation}",
                where,
                partial(_retrieve, destination, study, case.labels, folder / "back"),
            )


@dataclass(frozen=True)
class _Said:
    """What came out of a step: words, and errors where they were measured; `fault` if it is not what it must be."""

    text: str
    fault: bool = False
    place_mm: float | None = None
    volume_ml: float | None = None


def _told(text: str) -> _Said:
    return _Said(text)


def _tried(what: str, where: str, work: Callable[[], _Said]) -> Check:
    begin = time.perf_counter()
    try:
        said = work()
    except (DicomIoError, AppError, OSError) as error:
        said = _Said(str(error), fault=True)
    seconds = round(time.perf_counter() - begin, 3)
    return Check(what, where, not said.fault, seconds, said.text, said.place_mm, said.volume_ml)


def _store(destination: Destination, files: Sequence[Path]) -> _Said:
    profile = replace(destination.profile, seg_encoding=None, objects=("SEG",))
    outcomes = send(replace(destination, profile=profile), files)
    lost = [one for one in outcomes if not one.is_delivered]
    if lost:
        return _Said(f"{len(lost)} of {len(outcomes)} objects did not arrive: {lost[0].meaning}", fault=True)
    return _Said(f"{len(outcomes)} objects")


def _find(destination: Destination, study: str) -> _Said:
    found = find(destination, Query(study_instance_uid=study))
    return _Said(
        f"{len(found)} study" if len(found) == 1 else f"{len(found)} studies, one is needed", fault=len(found) != 1
    )


def _retrieve(destination: Destination, study: str, labels: Volume | None, folder: Path) -> _Said:
    """The phantom as it comes back, compared with what went out."""
    assert labels is not None
    got = fetch(destination, Query(study_instance_uid=study), folder)
    if got.problems:
        return _Said(got.problems[0], fault=True)
    segs = [
        path
        for path in got.files
        if load_dataset(path, with_pixels=False, keywords=["Modality"]).get("Modality") == "SEG"
    ]
    images = [path for path in got.files if path not in segs]
    if not segs or not images:
        return _Said(f"{len(images)} images and {len(segs)} SEG came back; both are needed", fault=True)
    back = read_seg(segs[0], read_series(images))
    return _compared(labels, back, f"{got.received} objects")


def _compared(before: Volume, after: Volume, text: str) -> _Said:
    place_mm, volume_ml = errors(before, after)
    return _Said(text, place_mm > MOST_PLACE_MM or volume_ml > MOST_VOLUME_ML, round(place_mm, 6), round(volume_ml, 6))


def errors(before: Volume, after: Volume) -> tuple[float, float]:
    """How two label volumes differ in patient space, whatever their axes.

    Args:
        before: Shape (I, J, K), 0 is background.
        after: Any shape and affine.

    Returns:
        Largest distance in mm of a voxel labelled in the one from the nearest voxel of the same label in the other, both
        ways, infinite where a label is in one only; and the largest difference of a label's volume in mL.
    """
    from scipy.spatial import KDTree

    place_mm, volume_ml = 0.0, 0.0
    for label in sorted(set(np.unique(before.array)) | set(np.unique(after.array))):
        if label == 0:
            continue
        first, second = (_places(volume, label) for volume in (before, after))
        volume_ml = max(volume_ml, abs(len(first) * before.voxel_ml - len(second) * after.voxel_ml))
        if not len(first) or not len(second):
            return np.inf, volume_ml
        for one, other in ((first, second), (second, first)):
            place_mm = max(place_mm, float(KDTree(other).query(one)[0].max()))
    return place_mm, volume_ml


def _places(volume: Volume, label: int) -> NDArray[np.float64]:
    """Shape (N, 3): centres of a label's voxels in LPS mm."""
    indices = np.argwhere(volume.array == label)
    return indices @ volume.affine_lps[:3, :3].T + volume.affine_lps[:3, 3]


def phantom(orientation: str) -> Volume:
    """A lopsided body with a gradient, in one of ORIENTATIONS; its place follows from `_affine` alone."""
    i, j, k = np.meshgrid(*(np.arange(n) for n in _SHAPE), indexing="ij")
    inside = _labels(orientation).array > 0
    array = np.rint(100 + 3 * i + 2 * j + 5 * k + 300 * inside).astype(np.float32)
    return Volume(array, _affine(orientation), Provenance("nifti"))


_SHAPE = (22, 26, 18)
_STEPS_MM = (1.5, 1.25, 2.0)
_AXES = {
    "axial": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "feet first": ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1), (-1, 0, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
}


def _affine(orientation: str) -> NDArray[np.float64]:
    found = np.eye(4)
    if orientation == "oblique":
        a, b = np.deg2rad([30.0, 17.0])
        first = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        second = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        axes = first @ second
    else:
        axes = np.array(_AXES[orientation], dtype=float).T
    found[:3, :3] = axes @ np.diag(_STEPS_MM)
    found[:3, 3] = (-31.5, 12.25, 40.0)
    return found


def _labels(orientation: str) -> Volume:
    i, j, k = np.meshgrid(*(np.arange(n) for n in _SHAPE), indexing="ij")
    body = ((i - 8) / 6) ** 2 + ((j - 15) / 9) ** 2 + ((k - 7) / 5) ** 2 < 1
    nose = (abs(i - 15) < 3) & (abs(j - 6) < 2) & (abs(k - 12) < 3)  # so that no axis can be turned round unnoticed
    return Volume((body + 2 * (nose & ~body)).astype(np.uint8), _affine(orientation), Provenance("nifti"))


_SEGMENTS: tuple[Segment, ...] = load_segments(shipped("bundles") / "hippocampus_mri_unet3d/configs/segments.json")
"""Two coded segments; what they are called does not matter here."""


def _try_node(site: Site, rule: Rule, scratch: Path) -> Iterator[Check]:
    """An example case through the live node to the first destination of a rule, and back."""
    node = Destination(
        "node",
        Dimse(_reachable(site.node.host), site.node.port, site.node.ae_title, tls=site.node.tls),
        answer_s=site.node.idle_s,
    )
    where = f"node, rule {rule.name}"
    answers = _tried("answers", where, lambda: _told(f"{echo(node).seconds:.2f} s"))
    yield answers
    if not answers.passed or not rule.destinations:
        return
    destination = site.destinations[rule.destinations[0]]
    for axes in ((0, 1, 2), (2, 0, 1)):
        image = _example(axes)
        name = "x".join("IJK"[axis] for axis in axes)
        case = dicomize(image, scratch / "node" / rule.name / name, case_id=f"COMMISSION NODE {name}")
        yield _tried(
            f"segments an example, slices along {'IJK'[axes[2]]}",
            where,
            partial(_through, node, destination, rule, case.series_folder, scratch / "node" / rule.name),
        )


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host


def _example(axes: tuple[int, int, int]) -> Volume:
    """The first example case, its axes in another order: the same anatomy as another acquisition."""
    from monai_unet_app.data.read import read_volume

    image = read_volume(sorted((shipped("examples") / "msd_hippocampus" / "images").iterdir())[0])
    affine = image.affine_lps.copy()
    affine[:, :3] = affine[:, :3][:, list(axes)]
    return Volume(np.ascontiguousarray(image.array.transpose(axes)), affine, Provenance("nifti"))


def _through(node: Destination, destination: Destination, rule: Rule, series: Path, scratch: Path) -> _Said:
    """What the node made of a series, compared with what this program makes of it."""
    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.config import PredictConfig
    from monai_unet_app.pipeline import segment_case

    files = sorted(series.glob("*.dcm"))
    study = str(load_dataset(files[0], with_pixels=False).StudyInstanceUID)
    outcomes = send(node, files)
    if any(not one.is_delivered for one in outcomes):
        return _Said(f"the node did not take it: {outcomes[0].meaning}", fault=True)
    begin = time.perf_counter()
    volume, back = read_series(files), None
    with _folder(scratch) as folder:
        while back is None and time.perf_counter() - begin < RESULT_S:
            time.sleep(0.5)
            back = _seg_of_all(destination, study, volume, folder)
    if back is None:
        return _Said(
            f"no SEG of all {len(files)} images came to {destination.name}, or back from it, within {RESULT_S:g} s; see the "
            "node's status page",
            fault=True,
        )
    waited = time.perf_counter() - begin
    expected = segment_case(volume, load_bundle(rule.bundle), PredictConfig(tta=rule.tta)).labels_volume
    return _compared(expected, back, f"delivered {waited:.1f} s after the last instance was sent")


def _seg_of_all(destination: Destination, study: str, volume: Volume, folder: Path) -> Volume | None:
    """The labels of a SEG of a whole study; a node that waited too little has made one of a part of it before."""
    for series in find(destination, Query("series", study_instance_uid=study, modality="SEG")):
        got = fetch(destination, Query("series", study, str(series.SeriesInstanceUID)), folder)
        for file in got.files:
            (source,) = load_dataset(file, with_pixels=False).ReferencedSeriesSequence
            if len(source.ReferencedInstanceSequence) == len(set(volume.provenance.sop_instance_uids)):
                return read_seg(file, volume)
    return None


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=parent) as name:
        yield Path(name)
