"""Which faults the cases of tests/dicom_io/test_orientations.py find, beside those that all kinds on all of 40 layouts find.

    python benchmarks/planted_faults.py

A fault is a flip, a swap or a shift by one voxel along the axes, planted in one reader or writer: in the affine of what a
reader gives, in the labels or values that a writer gets. It is planted everywhere, only where one condition holds, such as
frames of one object, and only where two hold. Exit code 1 if the covering design misses a fault that the product finds
everywhere or under one condition.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE), str(HERE / "tests"), str(HERE / "tests/dicom_io")]

import test_orientations as tests  # noqa: E402
from phantoms import CT_IMAGE, oblique_affine  # noqa: E402
from test_orientations import DOUBLE, FACTORS, ORIENTATIONS, Case, Layout, directed, mirrored, sheared  # noqa: E402

from dicom_io.volume import Volume  # noqa: E402

AXES = "ijk"


def product_layouts() -> Iterator[Layout]:
    """24 orientations along the axes, and 16 layouts with one property each that is not usual."""
    yield from (Layout(directed(**orientation)) for orientation in ORIENTATIONS)
    yield from (Layout(oblique_affine(degrees=degrees)) for degrees in ((7.0, 0.0, 0.0), (0.0, 30.0, 0.0)))
    yield Layout(DOUBLE)
    for degrees in (20.0, -18.5):
        shift_mm = (0.0, 2.5 * np.tan(np.radians(degrees)))
        yield Layout(sheared(directed("L", "P"), shift_mm), header=CT_IMAGE)
    yield Layout(sheared(DOUBLE, (-0.6, 0.85)))
    yield Layout(oblique_affine((0.2, 3.1, 1.1)))
    yield Layout(oblique_affine((0.5, 0.4, 9.0), degrees=(80.0, 4.0, -95.0)))
    yield from (Layout(DOUBLE, names=names) for names in ("along", "shuffled", "enhanced"))
    yield Layout(mirrored(DOUBLE), names="shuffled")
    yield Layout(DOUBLE, decimals=2)
    yield Layout(oblique_affine(origin_lps=(1234.567, -987.654, 2345.678)))
    yield Layout(DOUBLE, shape=(9, 7, 1))
    yield Layout(directed("R", "F"), names="enhanced")


def spacing_of(layout: Layout) -> Any:
    return np.linalg.norm(layout.affine_lps[:3, :2], axis=0)


CONDITIONS: dict[str, Callable[[Layout], bool]] = {
    "everywhere": lambda layout: True,
    "frames of one object": lambda layout: layout.names == "enhanced",
    "files shuffled": lambda layout: layout.names == "shuffled",
    "one slice": lambda layout: layout.shape[2] == 1,
    "sheared": lambda layout: layout.sheared,
    "oblique": lambda layout: np.count_nonzero(np.abs(layout.affine_lps[:3, :2]) > 1e-9) > 2,
    "k against the normal": lambda layout: np.linalg.det(layout.affine_lps[:3, :3]) < 0,
    "rows towards R, A or F": lambda layout: layout.affine_lps[np.abs(layout.affine_lps[:3, 0]).argmax(), 0] < 0,
    "columns towards H or F": lambda layout: np.abs(layout.affine_lps[:3, 1]).argmax() == 2,
    "two decimals": lambda layout: layout.decimals == 2,
    "long pixels": lambda layout: spacing_of(layout).max() > 5 * spacing_of(layout).min(),
    "far from the origin": lambda layout: np.linalg.norm(layout.affine_lps[:3, 3]) > 1000,
}


def shifted(axis: int, step: int) -> Callable[[Any], Any]:
    return lambda array: np.roll(array, step, axis)


def swapped(one: int, two: int) -> Callable[[Any], Any]:
    def swap(array: Any) -> Any:
        turned, found = np.swapaxes(array, one, two), np.zeros_like(array)
        part = tuple(slice(min(sizes)) for sizes in zip(turned.shape, array.shape, strict=True))
        found[part] = turned[part]
        return found

    return swap


ARRAYS: dict[str, Callable[[Any], Any]] = {
    **{f"{AXES[n]} flipped": lambda array, n=n: np.flip(array, n) for n in range(3)},
    **{f"{AXES[a]} and {AXES[b]} swapped": swapped(a, b) for a, b in combinations(range(3), 2)},
    **{f"{AXES[n]} {step:+d}": shifted(n, step) for n in range(3) for step in (1, -1)},
}


def moved(affine_lps: Any, name: str) -> Any:
    """The affine with the fault of that name in `ARRAYS`."""
    changed, axes = (
        affine_lps.copy(),
        [AXES.index(letter) for letter in name.replace("and", "").split()[: 1 + ("swapped" in name)]],
    )
    if "swapped" in name:
        changed[:, axes] = affine_lps[:, axes[::-1]]
    elif "flipped" in name:
        changed[:, axes[0]] *= -1
    else:
        changed[:3, 3] += int(name[-2:]) * affine_lps[:3, axes[0]]
    return changed


@dataclass(frozen=True)
class Fault:
    """In one function of one kind of result, of the axes, where all conditions hold.

    Attributes:
        function: Of the module of tests.
        kind: Of result; empty for a fault that concerns all kinds.
        name: Of `ARRAYS`.
        where: Of `CONDITIONS`.
    """

    function: str
    kind: str
    name: str
    where: tuple[str, ...]

    def __call__(self, *given: Any, **more: Any) -> Any:
        """The function with its fault."""
        if self.function.startswith("read"):
            volume: Volume = ORIGINAL[self.function](*given, **more)
            return replace(volume, affine_lps=moved(volume.affine_lps, self.name))
        labels, *rest = given
        return ORIGINAL[self.function](labels.with_array(ARRAYS[self.name](labels.array)), *rest, **more)


WRITERS = dict.fromkeys((*tests.LABEL_ENCODINGS, "fractional"), "write_seg") | {
    "rtstruct": "write_rtstruct",
    "sr": "write_sr",
    "gsps": "write_gsps",
    "map": "write_parametric_map",
    "capture": "write_captures",
}
READERS = {
    "": "read_series",
    "binary": "read_seg",
    "labelmap": "read_seg",
    "rtstruct": "read_rtstruct",
    "map": "read_parametric_map",
}
PLACES = [(function, kind) for names in (READERS, WRITERS) for kind, function in names.items()]
ORIGINAL = {function: getattr(tests, function) for function, _ in PLACES}


def faults() -> Iterator[Fault]:
    alone = [(name,) for name in CONDITIONS]
    for (function, kind), name, where in product(PLACES, ARRAYS, alone):
        yield Fault(function, kind, name, where)
    for (function, kind), where in product(PLACES, combinations(list(CONDITIONS)[1:], 2)):
        yield Fault(function, kind, "i flipped", where)


Design = Mapping[str, list[Layout]]
"""The layouts of each kind."""


def finds(design: Design, fault: Fault) -> bool | None:
    """Whether a case of the design fails; None if the fault concerns no case. Cases that it does not concern are not run."""
    cases = [
        (kind, layout)
        for kind, layouts in design.items()
        for layout in layouts
        if fault.kind in ("", kind) and all(CONDITIONS[name](layout) for name in fault.where)
    ]
    setattr(tests, fault.function, fault)
    try:
        return any(fails(kind, layout) for kind, layout in cases) if cases else None
    finally:
        setattr(tests, fault.function, ORIGINAL[fault.function])


def fails(kind: str, layout: Layout) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            if isinstance(tests.read_series, Fault):
                case = tests.made(layout, Path(folder))
            else:
                (Path(folder) / "source").symlink_to(source_of(layout).folder / "source")
                case = replace(source_of(layout), folder=Path(folder))
            tests.check_source(case)
            tests.CHECKS[kind](case, kind)
        except Exception:
            return True
    return False


def source_of(layout: Layout) -> Case:
    """A case that is written and read once."""
    if id(layout) not in SOURCES:
        SOURCES[id(layout)] = tests.made(layout, Path(tempfile.mkdtemp(dir=FOLDER.name)))
    return SOURCES[id(layout)]


SOURCES: dict[int, Case] = {}
FOLDER = tempfile.TemporaryDirectory()


def main() -> int:
    everything = list(product_layouts())
    designs: dict[str, Design] = {
        "product": {str(kind): everything for kind in FACTORS["kind"]},
        "covering": {
            str(kind): [tests.layout_of(case) for case in tests.CASES if case["kind"] == kind]
            for kind in FACTORS["kind"]
        },
    }
    for name, design in designs.items():
        cases = [(kind, layout) for kind, layouts in design.items() for layout in layouts]
        print(f"{name}: {len(cases)} cases", flush=True)
    found = {fault: {name: finds(design, fault) for name, design in designs.items()} for fault in faults()}
    print(f"\n{'planted in':34}{'faults':>8}{'product':>9}{'covering':>9}{'product alone':>15}")
    missed = 0
    for count, conditions in ((1, "everywhere or under one condition"), (2, "under two conditions")):
        print(conditions)
        for place in PLACES:
            here = [
                by for fault, by in found.items() if ((fault.function, fault.kind), len(fault.where)) == (place, count)
            ]
            here = [by for by in here if any(seen is not None for seen in by.values())]
            sums = Counter(name for by in here for name, seen in by.items() if seen)
            alone = sum(bool(by["product"]) and not by["covering"] for by in here)
            print(f"  {' '.join(place):32}{len(here):8}{sums['product']:9}{sums['covering']:9}{alone:15}")
            missed += alone if count == 1 else 0
    for fault, by in found.items():
        if by["product"] and not by["covering"]:
            print("found by the product alone:", fault)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
