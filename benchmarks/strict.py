"""What the strict checks find in data that were spoiled on purpose, and what they say of data that are right.

    python benchmarks/strict.py [--data DIR] [--cases N]

DIR holds the data sets (shared/data beside the repository by default). N cases of each, evenly taken, are spoiled one at a
time in each way and compared with all others, which stay right. A spoiled case counts as found if a sentence names it that
was not there before. Of the hippocampi only cases that the shipped plan does not test are read. Prints the time to read the
cases without and with the checks, all findings about the data as they are, and how many spoiled cases were found.
docs/decisions/0048 has the figures.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from dicom_io.volume import Volume
from monai_unet_app.data.case_files import CaseFiles, find_data
from monai_unet_app.data.inspect import inspect_cases, strict_case
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.splits import read_splits
from monai_unet_app.data.strict import StrictCase, compare_cases

REPOSITORY = Path(__file__).resolve().parents[1]
SETS = {"msd_hippocampus": "", "chaos_t2spir_mr": "", "dsb2018_nuclei_2d": "", "chase_db1_2d": "_1stHO"}
Spoil = Callable[[Volume, Volume], tuple[Volume, Volume]]


def main() -> int:
    """Prints a block for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--cases", type=int, default=20)
    options = parser.parse_args()
    known = read_splits(REPOSITORY / "examples/splits.json")
    for name, suffix in SETS.items():
        files = find_data(options.data / name, None, suffix)
        files = [case for case in files if suffix or case.id not in known or known[case.id].partition != "test"]
        measure(name, files, options.cases)
    return 0


def measure(name: str, files: list[CaseFiles], number: int) -> None:
    """Prints times, findings about right data, and the share found of each kind of fault."""
    times = []
    for places in (None, {}):
        start = time.perf_counter()
        found = inspect_cases(files, places=places)
        times.append(time.perf_counter() - start)
    print(f"\n{name}: {len(files)} cases, read in {times[0]:.1f} s, with the strict checks in {times[1]:.1f} s")
    volumes = [(volume := read_volume(case.image), read_labels(case.label, volume)) for case in files if case.label]
    cases = [strict_case(seen, *pair) for seen, pair in zip(found.cases, volumes, strict=True)]
    before = set(compare_cases(cases).odd)
    print(f"  findings about the data as they are: {len(before)}", *sorted(before), sep="\n    ")
    some = range(0, len(cases), max(1, len(cases) // number))
    other = [volumes[(n + 7) % len(cases)][1] for n in range(len(cases))]
    for text, spoil in ways(volumes[0][0].planar, sorted(cases[0].values)):
        hits = 0
        for n in some:
            image, label = spoil(*volumes[n]) if spoil else (volumes[n][0], fitted(other[n], volumes[n][1]))
            copied = image is not volumes[n][0]  # a copy has no label, else the same label standing twice would tell it
            changed = strict_case(found.cases[n], image, None if copied else label)
            now = [*cases, renamed(changed)] if copied else [*cases[:n], changed, *cases[n + 1 :]]
            who = "copy" if copied else changed.id
            told = compare_cases(now)
            hits += any(who in sentence for sentence in (*told.odd, *told.faults) if sentence not in before)
        print(f"  {text:<40} {hits} of {len(some)}")


def renamed(case: StrictCase) -> StrictCase:
    return replace(case, id="copy")


def fitted(label: Volume, like: Volume) -> Volume:
    """The label of another case, cut or filled with background to the shape of this one."""
    array = np.zeros_like(like.array)
    both = tuple(slice(min(a, b)) for a, b in zip(array.shape, label.array.shape, strict=True))
    array[both] = label.array[both]
    return like.with_array(array)


def ways(planar: bool, values: list[int]) -> Iterator[tuple[str, Spoil | None]]:
    """Names of faults, and what makes them; None for the label of another case."""
    yield "label of another case", None
    for axis in range(2 if planar else 3):
        yield f"label mirrored along {'IJK'[axis]}", on_label(lambda a, axis=axis: np.flip(a, axis))
    for far in (3, 5, 8):
        yield f"label moved by {far} voxels along I", on_label(lambda a, far=far: np.roll(a, far, 0))
    yield "label moved by 5 voxels along J", on_label(lambda a: np.roll(a, 5, 1))
    if 1 < len(values) <= 30:
        a, b = values[0], values[1]
        yield f"classes {a} and {b} exchanged", on_label(lambda x: np.where(x == a, b, np.where(x == b, a, x)))
    if 2 < len(values) <= 30:
        c, d = values[1], values[2]
        yield f"classes {c} and {d} exchanged", on_label(lambda x: np.where(x == c, d, np.where(x == d, c, x)))
    yield "copy: voxels as they are", on_image(lambda a: a.copy())
    yield "copy: intensities times 3, plus 7", on_image(lambda a: a * 3 + 7)
    yield "copy: noise of 5 % of the deviation", on_image(lambda a: noisy(a, 0.05))
    yield "copy: noise of 20 % of the deviation", on_image(lambda a: noisy(a, 0.2))
    yield "copy: intensities to the power of 0.7", on_image(lambda a: ((a - a.min()) / np.ptp(a)) ** 0.7)
    yield "copy: smoothed, sigma 1 voxel", on_image(lambda a: ndimage.gaussian_filter(a, [1, 1, *[0] * (a.ndim - 2)]))
    for far in (1, 2, 3, 5):
        yield f"copy: moved by {far} voxels along I and J", on_image(lambda a, far=far: np.roll(a, (far, far), (0, 1)))


def noisy(array: np.ndarray, share: float) -> np.ndarray:
    return array + np.random.default_rng(0).normal(0, share * array.std(), array.shape)


def on_label(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return lambda image, label: (image, label.with_array(np.ascontiguousarray(change(label.array))))


def on_image(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return lambda image, label: (image.with_array(change(image.array.astype(np.float32)).astype(np.float32)), label)


if __name__ == "__main__":
    raise SystemExit(main())
