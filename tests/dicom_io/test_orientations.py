"""Every kind of result on series in every orientation: each voxel back at its place within 0.01 mm, by other programs.

A phantom holds another value in every voxel. Labels ride on these values through our reader, as a network's do, so that
a voxel that was misplaced on the way in is as wrong as one misplaced on the way out. The truth is the affine that the
phantom was written with. Directions are LPS letters (PS3.3 C.7.6.1.1.1): towards Left, Posterior, Head.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations, product
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


def axis_layouts() -> dict[str, Layout]:
    """The 24 ways to lay rows and columns along the axes of the patient, by the letters of their directions."""
    found = {}
    for first, second in permutations(("LR", "PA", "HF"), 2):
        for row, column in product(first, second):
            found[row + column] = Layout(directed(row, column))
    return found


DOUBLE = oblique_affine()  # turned about all three axes: 12, -23 and 37 degrees
AXIS_LAYOUTS = axis_layouts()
OTHER_LAYOUTS = {
    "oblique 7": Layout(oblique_affine(degrees=(7.0, 0.0, 0.0))),
    "oblique 30": Layout(oblique_affine(degrees=(0.0, 30.0, 0.0))),
    "double oblique": Layout(DOUBLE),
    "tilt 20": Layout(sheared(directed("L", "P"), (0.0, 2.5 * np.tan(np.radians(20.0)))), header=CT_IMAGE),
    "tilt -18.5": Layout(sheared(directed("L", "P"), (0.0, -2.5 * np.tan(np.radians(18.5)))), header=CT_IMAGE),
    "double oblique, shifted both ways": Layout(sheared(DOUBLE, (-0.6, 0.85))),
    "pixels 0.2 x 3.1 mm": Layout(oblique_affine((0.2, 3.1, 1.1))),
    "slices 9 mm apart": Layout(oblique_affine((0.5, 0.4, 9.0), degrees=(80.0, 4.0, -95.0))),
    "files along k": Layout(DOUBLE, names="along"),
    "files shuffled": Layout(DOUBLE, names="shuffled"),
    "k against the normal": Layout(mirrored(DOUBLE), names="shuffled"),
    "positions of two decimals": Layout(DOUBLE, decimals=2),
    "far from the origin": Layout(oblique_affine(origin_lps=(1234.567, -987.654, 2345.678))),
    "one slice": Layout(DOUBLE, shape=(9, 7, 1)),
    "frames of one object": Layout(DOUBLE, names="enhanced"),
    "frames of one coronal object": Layout(directed("R", "F"), names="enhanced"),
}  # fmt: skip
LAYOUTS = AXIS_LAYOUTS | OTHER_LAYOUTS
QUARTER = [*list(AXIS_LAYOUTS)[::4], "double oblique", "k against the normal", "one slice", "frames of one object"]
RIGHT_ANGLED = [name for name, layout in LAYOUTS.items() if not layout.sheared]

every_layout = pytest.mark.parametrize("name", LAYOUTS)
every_right_angled_layout = pytest.mark.parametrize("name", RIGHT_ANGLED)


def some_fast(names: list[str]) -> pytest.MarkDecorator:
    """A quarter of the layouts for the fast tests, the others marked slow: for what starts another program."""
    return pytest.mark.parametrize(
        "name", [name if name in QUARTER else pytest.param(name, marks=pytest.mark.slow) for name in names]
    )


every_layout_and_encoding = pytest.mark.parametrize(
    ("name", "encoding"),
    [
        pytest.param(name, encoding, marks=() if encoding in PLAIN or name in QUARTER else pytest.mark.slow)
        for name in LAYOUTS
        for encoding in LABEL_ENCODINGS
    ],
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


@pytest.fixture(scope="module")
def case_of(tmp_path_factory) -> Callable[[str], Case]:
    """Gives the case of a name; each is written once."""
    cases: dict[str, Case] = {}

    def find(name: str) -> Case:
        if name not in cases:
            folder, layout = tmp_path_factory.mktemp("case"), LAYOUTS[name]
            uids = write_source(folder / "source", layout)
            cases[name] = Case(layout, folder, uids, read_series(folder / "source"))
        return cases[name]

    return find


# --- the phantoms and the judge themselves


def test_the_24_layouts_along_the_axes_are_all_there_is():
    """The rotations that carry the axes into each other: signed permutations of determinant 1."""
    matrices = {tuple(np.sign(layout.affine_lps[:3, :3]).ravel().astype(int)) for layout in AXIS_LAYOUTS.values()}
    wanted = {
        tuple(turn.ravel())
        for order in permutations(range(3))
        for signs in product((1, -1), repeat=3)
        if round(np.linalg.det(turn := np.eye(3, dtype=int)[list(order)] * signs)) == 1
    }
    assert len(wanted) == 24
    assert matrices == wanted


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


# --- sources


@every_layout
def test_a_series_is_read_where_its_affine_has_it(case_of, name):
    case = case_of(name)
    found = case.lay(all_points_of(case.source.array, case.source.affine_lps))
    np.testing.assert_array_equal(found, stored_values(case.layout.shape))


# --- segmentations


@every_layout_and_encoding
def test_each_voxel_of_a_seg_is_at_its_place_by_the_headers_of_its_frames(case_of, name, encoding):
    case = case_of(name)
    path = case.file(encoding)
    np.testing.assert_array_equal(case.lay(as_labels(seg_by_headers(path))), case.labels)
    dataset = pydicom.dcmread(path)
    for group, key in zip(dataset.PerFrameFunctionalGroupsSequence, named_sources(dataset), strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        assert np.linalg.norm(position - case.planes[key].origin) < 1e-6


@every_layout
def test_each_fraction_of_a_seg_is_at_its_place_within_half_a_step(case_of, name):
    case = case_of(name)
    segments = seg_by_headers(case.file("fractional"))
    by_highdicom = seg_by_highdicom_sources(case.file("fractional"), case.keys, fractions=True)
    for channel, wanted in enumerate(np.moveaxis(true_fractions(case.layout.shape), 3, 0)):
        assert np.abs(case.lay(segments[channel + 1]) - wanted).max() <= HALF_STEP
        assert np.abs(by_highdicom[..., channel] - wanted).max() <= HALF_STEP


@every_layout_and_encoding
def test_highdicom_finds_the_labels_of_each_slice_by_the_name_of_the_slice(case_of, name, encoding):
    case = case_of(name)
    np.testing.assert_array_equal(seg_by_highdicom_sources(case.file(encoding), case.keys), case.labels)


@every_right_angled_layout
def test_the_grid_that_highdicom_makes_of_a_seg_holds_each_voxel_at_its_place(case_of, name):
    case = case_of(name)
    for encoding in PLAIN:
        found = case.lay(seg_by_highdicom_volume(case.file(encoding)))
        np.testing.assert_array_equal(found, case.labels, err_msg=encoding)


@every_layout_and_encoding
def test_our_own_reader_puts_the_labels_back_on_the_series_and_on_a_turned_grid(case_of, name, encoding):
    case = case_of(name)
    for reference in (case.source, case.turned):
        found = read_seg(case.file(encoding), reference)
        np.testing.assert_array_equal(case.lay(points_of(found.array, found.affine_lps)), case.labels)


@some_fast(RIGHT_ANGLED)
def test_dcmqi_finds_each_voxel_of_a_seg_at_its_place(case_of, name, tmp_path):
    """Not for sheared stacks: an image of ITK has right angles, and dcmqi straightens the stack without a word."""
    case = case_of(name)
    (image,) = images_by_dcmqi("segimage2itkimage", case.file("binary"), tmp_path / "seg", "--mergeSegments")
    np.testing.assert_array_equal(case.lay(points_of(*image)), case.labels)


@pytest.mark.slow
@every_right_angled_layout
@pytest.mark.parametrize("encoding", ["binary-deflated", "labelmap", "labelmap-rle"])
def test_dcmqi_finds_each_voxel_of_a_seg_in_other_encodings_at_its_place(case_of, name, encoding, tmp_path):
    """All but JPEG-LS, which dcmqi cannot read."""
    case = case_of(name)
    (image,) = images_by_dcmqi("segimage2itkimage", case.file(encoding), tmp_path / "seg", "--mergeSegments")
    np.testing.assert_array_equal(case.lay(points_of(*image)), case.labels)


# --- contours and outlines


@every_layout
def test_contours_lie_in_the_slice_that_they_name_and_enclose_the_labels(case_of, name):
    case = case_of(name)
    found = case.lay(masks_as_labels(rtstruct_by_matplotlib(case.file("rtstruct"), case.planes), case.planes))
    np.testing.assert_array_equal(found, case.labels)


@every_layout
def test_our_own_reader_fills_contours_on_the_series_and_on_a_turned_grid(case_of, name):
    case = case_of(name)
    for reference in (case.source, case.turned):
        found = read_rtstruct(case.file("rtstruct"), reference)
        np.testing.assert_array_equal(case.lay(points_of(found.array, found.affine_lps)), case.labels)


@every_layout
def test_outlines_of_a_presentation_state_enclose_the_labels_of_the_image_that_they_name(case_of, name):
    case = case_of(name)
    found = case.lay(masks_as_labels(gsps_by_matplotlib(case.file("gsps"), case.planes), case.planes))
    np.testing.assert_array_equal(found, case.labels)


# --- captures


@every_layout
def test_a_capture_names_the_slice_whose_labels_it_shows(case_of, name):
    """Each labelled voxel is painted in the colour of its segment, and no other is, at the voxel's middle."""
    case, shown = case_of(name), np.zeros(case_of(name).layout.shape, dtype=int)
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
    np.testing.assert_array_equal(shown, case.labels)


@every_layout
def test_a_capture_says_where_its_right_and_lower_edge_point_to(case_of, name):
    """PatientOrientation begins with the letter of the axis that lies nearest to the direction."""
    case = case_of(name)
    for path in case.captures:
        right, lower = pydicom.dcmread(path).PatientOrientation
        for letters, step in ((right, case.layout.affine_lps[:3, 0]), (lower, case.layout.affine_lps[:3, 1])):
            nearest = max(DIRECTIONS, key=lambda letter: np.dot(DIRECTIONS[letter], step))
            assert letters == nearest if name in AXIS_LAYOUTS else letters[0] == nearest


# --- maps


@every_layout
def test_each_value_of_a_map_is_at_its_place_by_the_headers_of_its_frames(case_of, name):
    case = case_of(name)
    np.testing.assert_array_equal(case.lay(map_by_headers(case.file("map"))), true_map(case.layout.shape))
    dataset = pydicom.dcmread(case.file("map"))
    for group, key in zip(dataset.PerFrameFunctionalGroupsSequence, named_sources(dataset), strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        assert np.linalg.norm(position - case.planes[key].origin) < 1e-6


@every_right_angled_layout
def test_the_grid_that_highdicom_makes_of_a_map_holds_each_value_at_its_place(case_of, name):
    case = case_of(name)
    found = case.lay(all_points_of(*map_by_highdicom_volume(case.file("map"))))
    np.testing.assert_array_equal(found.astype(np.float32), true_map(case.layout.shape))


@every_layout
def test_our_own_reader_puts_a_map_back_on_the_series_and_on_a_turned_grid(case_of, name):
    case = case_of(name)
    for reference in (case.source, case.turned):
        found = read_parametric_map(case.file("map"), reference)
        laid = case.lay(all_points_of(found.array, found.affine_lps))
        np.testing.assert_array_equal(laid, true_map(case.layout.shape))


@some_fast(RIGHT_ANGLED)
def test_dcmqi_finds_each_value_of_a_map_at_its_place(case_of, name, tmp_path):
    case = case_of(name)
    (image,) = images_by_dcmqi("paramap2itkimage", case.file("map"), tmp_path / "map")
    np.testing.assert_allclose(case.lay(all_points_of(*image)), true_map(case.layout.shape), rtol=1e-6)


# --- reports and documents


@some_fast(list(LAYOUTS))
def test_a_report_gives_the_volume_and_length_that_the_affine_gives(case_of, name):
    """Volume: voxels times determinant. Diameter: the two points of the surface that lie furthest apart; the surface
    cuts each edge between a voxel inside and a neighbour outside in half."""
    case = case_of(name)
    groups = hd.sr.srread(case.file("sr")).content.get_volumetric_roi_measurement_groups()
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


@some_fast(list(LAYOUTS))
def test_dsrdump_reads_every_report_without_a_warning(case_of, name):
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump (dcmtk) is not installed")
    done = subprocess.run(["dsrdump", case_of(name).file("sr")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count('"Tracking Unique Identifier"') == len(SEGMENTS)


@some_fast(list(LAYOUTS))
def test_a_report_and_a_document_name_every_instance_of_the_source(case_of, name):
    case = case_of(name)
    document = pydicom.dcmread(case.file("pdf"))
    assert sorted(item.ReferencedSOPInstanceUID for item in document.SourceInstanceSequence) == sorted(case.uids)
    report = pydicom.dcmread(case.file("sr"))
    evidence = {
        item.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert evidence == {*case.uids, pydicom.dcmread(case.file("binary")).SOPInstanceUID}


# --- the files


def test_the_order_of_the_files_changes_no_byte_of_a_result(case_of, tmp_path):
    """The files of a series under other names, in another order."""
    case = case_of("files along k")
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


KINDS = (*LABEL_ENCODINGS, "fractional", "rtstruct", "sr", "gsps", "map", "pdf", "capture")


@pytest.mark.slow
@every_layout
@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_error_in_any_object(case_of, name, kind, tmp_path):
    assert dciodvfy_errors(validated(case_of(name), kind, tmp_path)) == []


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


@some_fast(list(LAYOUTS))
def test_results_bring_nothing_that_disagrees_with_their_sources(case_of, name, tmp_path):
    case = case_of(name)
    sources = sorted((case.folder / "source").iterdir())
    results = [validated(case, kind, tmp_path) for kind in KINDS if kind != "capture"]
    assert said_by_dcentvfy([*sources, *results, *case.captures]) <= said_by_dcentvfy(sources)
