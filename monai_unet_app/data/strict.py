"""What only a comparison of all cases shows: images that are there twice, labels of another image, structures exchanged.

Every finding is one sentence: the cases, what was found, what to do. A fault is a finding that is sure, on which nothing should
be trained; every other finding begins with "look at". The thresholds and what they find: decision 0048.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from monai_unet_app.data.sketch import ClassPlace, Sketch

MOST_CLASSES = 30  # different values; labels with more probably number objects

_SHOWN = 5
_ENOUGH = 8
"""Cases that a usual case can be told from."""

_FEW_PAIRS, _ALL_MOVES = 45, 1500
_ALIKE = (0.8, 0.9, 0.95)  # correlation of small pictures: at least, with few pairs, at most
_PAIR_DEVIATIONS = 5.5
_TELLING = 1.3  # of `Fit.ratio`: a smaller median says that edges tell nothing in these images
_CHANCE, _BETTER_ELSEWHERE, _AS_GOOD_ELSEWHERE = 1.12, 0.88, 0.97
_FIT_DEVIATIONS, _NEAREST_DEVIATIONS = 3.0, 3.5
_LEAST_DEVIATION = {"ratio": 0.05, "nearest": 0.03}  # of logarithms
_FAR = 2.0  # times the median


FOLD = "fold "
"""Begins the side of a case that a fold tests and the others train on."""


@dataclass(frozen=True)
class Place:
    """Where a plan puts a case.

    Attributes:
        side: What must not share an image or a subject with another side: a partition, or a fold.
        subject: The person.
    """

    side: str
    subject: str


@dataclass(frozen=True)
class StrictCase:
    """A case that was read.

    Attributes:
        spacing: Along right-left, anterior-posterior, superior-inferior in mm; () for pictures.
        extent: The same of the image, in mm, or in pixels along I and J.
        values: The label values above 0.
        place: None where no plan is known.
    """

    id: str
    sketch: Sketch
    spacing: tuple[float, ...]
    extent: tuple[float, ...]
    values: frozenset[int]
    place: Place | None


@dataclass(frozen=True)
class Findings:
    """One sentence each; `faults` are sure, `odd` should be looked at."""

    faults: tuple[str, ...]
    odd: tuple[str, ...]


def compare_cases(cases: Sequence[StrictCase], known: Iterable[int] | None = None) -> Findings:
    """All findings about these cases.

    Args:
        cases: Of one data set.
        known: Label values that a bundle knows; None for any.
    """
    faults, odd = _same_images(cases)
    faults += [*_subjects(cases), *_untrained(cases)]
    odd += [*_near_images(cases), *_same_labels(cases), *_gaps(cases, known), *_far_off(cases)]
    placed = _exchanged(cases) if len(_values(cases)) <= MOST_CLASSES else {}
    return Findings(tuple(faults), (*odd, *placed.values(), *_misplaced(cases, placed)))


def _same_images(cases: Sequence[StrictCase]) -> tuple[list[str], list[str]]:
    faults, odd = [], []
    for same in _groups_by(cases, lambda case: case.sketch.content):
        labels = {case.sketch.label for case in same}
        differ = ", with different labels" if len(labels) > 1 else ""
        if len(_sides(same)) > 1:
            faults.append(
                f"{_names(same)} have the same image, voxel for voxel{differ}; test and selection cases must not train; "
                "leave all but one out"
            )
        else:
            remedy = "find out which label is right, and leave the others out" if differ else "leave all but one out"
            odd.append(f"look at {_names(same)}: they have the same image, voxel for voxel{differ}; {remedy}")
    return faults, odd


def _subjects(cases: Sequence[StrictCase]) -> Iterator[str]:
    """Subjects on two sides of the plan: by the plan's own names, and by the patients whom DICOM headers name."""
    placed = [case for case in cases if case.place]
    keys: dict[str, Callable[[StrictCase], str]] = {
        "are of one subject": lambda case: case.place.subject if case.place else "",
        "name one patient in DICOM": lambda case: case.sketch.patient,
    }
    seen = []
    for how, key in keys.items():
        for group in _groups_by(placed, key):
            ids = [case.id for case in group]
            if len(_sides(group)) > 1 and ids not in seen:
                seen.append(ids)
                yield f"{_names(group)} {how}; one side of the plan is needed for one subject; correct the plan"


def _untrained(cases: Sequence[StrictCase]) -> Iterator[str]:
    """Classes that stand in cases of other partitions, or of one fold, and in none that trains."""
    folds = sorted(side for side in _sides(cases) if side.startswith(FOLD))
    # The sides that a network trains on, by the fold that tests it; without folds one network trains
    for fold, trains in {fold: set(folds) - {fold} for fold in folds}.items() or [("", {"train"})]:
        training = [case for case in cases if case.place and case.place.side in trains]
        learnt = _values(training)
        seen = sorted(_values(cases) - learnt)
        if not training or not seen or len(learnt.union(seen)) > MOST_CLASSES:
            continue
        holders = [case for case in cases if case.values & set(seen)]
        classes = f"class {', '.join(map(str, seen))}, {_names(holders)} {'have' if len(holders) > 1 else 'has'}"
        found = f"no case to train on has {classes}; a class that no training case has cannot be learnt"
        if fold:
            yield f"{fold}: {found}; add cases with it for other folds, or leave the class out of the labels"
        else:
            yield f"{found}; let some of these cases train"


def _near_images(cases: Sequence[StrictCase]) -> Iterator[str]:
    """Groups of images of different subjects that are the same but for noise, brightness or a shift of some voxels."""
    pairs: list[tuple[StrictCase, StrictCase]] = []
    for shape in {case.sketch.picture.shape for case in cases}:
        some = [case for case in cases if case.sketch.picture.shape == shape and case.sketch.picture.any()]
        for first, second in _alike(np.array([case.sketch.picture for case in some])) if len(some) > 1 else []:
            a, b = some[first], some[second]
            if a.sketch.content != b.sketch.content and not (
                a.place and b.place and a.place.subject == b.place.subject
            ):
                pairs.append((a, b))
    for group in _joined(pairs):
        apart = " and are on two sides of the plan" if len(_sides(group)) > 1 else ""
        yield (
            f"look at {_names(group)}: their images are nearly the same{apart}; if they are of one person, or one slice is "
            "next to another, give them one subject; if they are copies, leave all but one out"
        )


def _alike(pictures: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Pairs of pictures whose correlation, at the best shift, is far above that of usual pairs.

    Args:
        pictures: Shape (N, I, J, K), each of length 1.
    """
    number = len(pictures)
    rows, columns = np.triu_indices(number, 1)
    if number <= _ALL_MOVES:
        waves, shape = fft.rfftn(pictures, axes=(3, 2, 1)), pictures.shape[3:0:-1]
        best = np.concatenate([
            fft.irfftn(waves[n].conj() * waves[n + 1 :], s=shape, axes=(3, 2, 1)).reshape(number - n - 1, -1).max(axis=1)
            for n in range(number - 1)
        ])  # fmt: skip
    else:
        flat = pictures.reshape(number, -1)
        best = (flat @ flat.T)[rows, columns]
    # Fisher's transform, of which correlations of unrelated images are about normal
    spread = np.arctanh(np.clip(best, -0.999999, 0.999999))
    least, few, most = _ALIKE
    middle = float(np.median(spread))
    usual = np.tanh(middle + _PAIR_DEVIATIONS * 1.4826 * float(np.median(np.abs(spread - middle))))
    limit = few if len(best) < _FEW_PAIRS else min(max(float(usual), least), most)
    return [(int(rows[n]), int(columns[n])) for n in np.flatnonzero(best > limit)]


def _same_labels(cases: Sequence[StrictCase]) -> list[str]:
    groups = _groups_by(cases, lambda case: case.sketch.label)
    return [
        f"look at {_names(group)}: they have the same label, voxel for voxel, on different images; find out to which image "
        "it belongs"
        for group in groups
        if len({case.sketch.content for case in group}) > 1
    ]


def _gaps(cases: Sequence[StrictCase], known: Iterable[int] | None) -> Iterator[str]:
    """Label values that a bundle knows, or that lie between others, and that no case has."""
    seen = _values(cases)
    if not seen or max(seen) > MOST_CLASSES:
        return
    wanted, why = known, "which the bundle knows"
    if wanted is None:
        wanted, why = range(1, max(seen)), f"while values up to {max(seen)} are used"
    if absent := sorted({*wanted} - seen - {0}):
        yield (
            f"look at the labels: no case has the value {', '.join(map(str, absent))}, {why}; add cases with it, or number the "
            "structures without gaps"
        )


def _far_off(cases: Sequence[StrictCase]) -> Iterator[str]:
    """Spacings and extents of less than half or more than twice the median, where the others lie closer together."""
    for what in ("spacing", "extent"):
        for axis in range(3):
            rows = [(case, getattr(case, what)[axis]) for case in cases if len(getattr(case, what)) > axis]
            if len(rows) < _ENOUGH:
                continue
            logs = np.log([value for _, value in rows])
            middle = float(np.median(logs))
            limit = max(np.log(_FAR), 4 * 1.4826 * float(np.median(np.abs(logs - middle))))
            far = [row for row, log in zip(rows, logs, strict=True) if abs(log - middle) > limit]
            if not far:
                continue
            found = ", ".join(dict.fromkeys(f"{value:.3g}" for _, value in far[:_SHOWN]))
            unit, name = "mm" if far[0][0].spacing else "px", _axis_names(far[0][0])[axis]
            yield (
                f"look at {_names([case for case, _ in far])}: {what} along {name} is {found} {unit}, the median "
                f"{np.exp(middle):.3g}; check whether the header is right and the case belongs to this data set"
            )


def _exchanged(cases: Sequence[StrictCase]) -> dict[str, str]:
    """Cases whose structures lie as those of the others do only after two are exchanged, or all are mirrored; by their id."""
    values = sorted(_values(cases))
    full = [case for case in cases if set(values) == set(case.sketch.classes)]
    if len(values) < 2 or len(full) < _ENOUGH or len({bool(case.spacing) for case in full}) > 1:
        return {}
    table = np.array(
        [[_features(case.sketch.classes[value]) for value in values] for case in full]
    )  # (cases, classes, features)
    sentences = {}
    for n, case in enumerate(full):
        others = np.delete(table, n, axis=0)
        middle = np.median(others, axis=0)
        spread = np.maximum(1.4826 * np.median(np.abs(others - middle), axis=0), _SPREADS)
        own, rest = (table[n] - middle) / spread, (others - middle) / spread
        # Of each change: the case before and after it, and the others, shape (classes, features) each
        changes = []
        # A mirrored label lies on other voxels, so brightness tells nothing there; exchanged classes keep theirs
        if _far_from(own[:, :4], rest[..., :4]):
            for name, mirror in _mirrors(case):
                mirrored = ((table[n] @ mirror - middle) / spread)[:, :4]
                changes.append((f"all structures mirrored {name}", own[:, :4], mirrored, rest[..., :4]))
        odd = np.flatnonzero(_distances(own[:, None]) > np.quantile(_distances(rest[:, :, None]), 0.9, axis=0))
        for a, b in combinations(odd.tolist(), 2):
            swapped, two = (table[n][[b, a]] - middle[[a, b]]) / spread[[a, b]], [a, b]
            if _far_from(own[two], rest[:, two]):
                changes.append((f"classes {values[a]} and {values[b]} exchanged", own[two], swapped, rest[:, two]))
        good = [
            (float(_distances(after)), text)
            for text, before, after, others in changes
            if _distances(after) < _distances(before) / 2 and not _far_from(after, others)
        ]
        if good:
            sentences[case.id] = (
                f"look at {case.id}: its label fits the other cases only with {min(good)[1]}; compare its label and the "
                "directions in its header with another case"
            )
    return sentences


def _far_from(own: NDArray[np.float64], rest: NDArray[np.float64]) -> bool:
    """Whether a case lies further out than almost all others."""
    return bool(_distances(own) > 1.3 * np.quantile(_distances(rest), 0.9))


_SPREADS = np.array([0.1, 0.1, 0.1, 0.25, 0.25])  # at least: three of the centre, logarithm of the share, brightness


def _features(place: ClassPlace) -> tuple[float, ...]:
    return (*place.centre, float(np.log(place.share)), place.brightness)


def _mirrors(case: StrictCase) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Along each axis of the image: its name, and the matrix that mirrors the features."""
    for name, direction in zip(_axis_names(case), case.sketch.directions.T, strict=False):
        matrix = np.eye(5)
        matrix[:3, :3] -= 2 * np.outer(direction, direction)
        yield name, matrix


def _axis_names(case: StrictCase) -> tuple[str, ...]:
    return ("right-left", "anterior-posterior", "superior-inferior") if case.spacing else ("I", "J")


def _distances(deviations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last two axes, classes and features, of how many deviations from the median, each of 8 at most."""
    return np.asarray(np.minimum(np.abs(deviations), 8.0).mean(axis=(-2, -1)))


def _misplaced(cases: Sequence[StrictCase], said: Collection[str]) -> Iterator[str]:
    """Labels whose surface follows the edges of their image less than labels of the other cases do."""
    fits = [(case, case.sketch.fit) for case in cases if case.sketch.fit is not None]
    ratios = np.array([fit.ratio for _, fit in fits])
    if len(fits) < _ENOUGH or np.median(ratios) < _TELLING:
        return
    nearest = np.array([fit.nearest for _, fit in fits])
    for n, (case, _) in enumerate(fits):
        least = max(_CHANCE, _usually_above(np.delete(ratios, n), _FIT_DEVIATIONS, _LEAST_DEVIATION["ratio"]))
        usual = _usually_above(np.delete(nearest, n), _NEAREST_DEVIATIONS, _LEAST_DEVIATION["nearest"])
        elsewhere = nearest[n] < max(_BETTER_ELSEWHERE, min(_AS_GOOD_ELSEWHERE, usual))
        if (ratios[n] < least or elsewhere) and case.id not in said:
            found = "edges of its image agree better with its label some voxels away" if elsewhere else (
                "edges of its image agree with its label little better than with a label some voxels away"
            )  # fmt: skip
            yield (
                f"look at {case.id}: {found} ({ratios[n]:.2f} times, other cases {np.median(ratios):.2f}); see whether the "
                "label is moved, mirrored or of another image"
            )


def _usually_above(values: NDArray[np.float64], deviations: float, least: float) -> float:
    """So many deviations below the median, of logarithms; the lower tenth counts where the values are skewed."""
    logs = np.log(np.maximum(values, 1e-6))
    middle = float(np.median(logs))
    deviation = max(
        least, 1.4826 * float(np.median(np.abs(logs - middle))), (middle - float(np.quantile(logs, 0.1))) / 1.2816
    )
    return float(np.exp(middle - deviations * deviation))


def _groups_by(cases: Sequence[StrictCase], key: Callable[[StrictCase], str]) -> list[list[StrictCase]]:
    """Two or more cases that share a key which is not empty."""
    groups: dict[str, list[StrictCase]] = {}
    for case in cases:
        if name := key(case):
            groups.setdefault(name, []).append(case)
    return [group for group in groups.values() if len(group) > 1]


def _joined(pairs: Sequence[tuple[StrictCase, StrictCase]]) -> list[list[StrictCase]]:
    """The cases that pairs join, directly or through others."""
    groups: list[dict[str, StrictCase]] = []
    for pair in pairs:
        touched = [group for group in groups if any(case.id in group for case in pair)]
        merged = {case.id: case for case in pair}
        for group in touched:
            merged = {**group, **merged}
        groups = [group for group in groups if group not in touched] + [merged]
    return [list(group.values()) for group in groups]


def _values(cases: Iterable[StrictCase]) -> set[int]:
    return {value for case in cases for value in case.values}


def _sides(cases: Iterable[StrictCase]) -> set[str]:
    return {case.place.side for case in cases if case.place}


def _names(cases: Sequence[StrictCase]) -> str:
    """Their ids, with their sides where these differ."""
    tell = len(_sides(cases)) > 1
    names = [f"{case.id} ({case.place.side})" if tell and case.place else case.id for case in cases]
    if len(names) > _SHOWN:
        return ", ".join(names[:_SHOWN]) + f" and {len(names) - _SHOWN} more"
    return " and ".join(([", ".join(names[:-1])] if len(names) > 1 else []) + names[-1:])
