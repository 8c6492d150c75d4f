"""A structure that ends where the image ends is told as cut off, with the side, and no interval of its size is stated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.sr.codedict import codes
from segmentations import exclusive

from dicom_io.coding import Whole
from dicom_io.segmentation import Structure
from dicom_io.volume import Provenance, Volume
from monai_unet_app.bundle_folder import CONFIDENCE, BundleFiles
from monai_unet_app.calibration.corruptions import TRUNCATED, corrupted, corruptions_of, dice_of_whole, truncated
from monai_unet_app.confidence.assessment import Assessment, assess
from monai_unet_app.confidence.border import LEAST_PART, BorderContact, BorderStatement, sides_of
from monai_unet_app.confidence.features import on_border
from monai_unet_app.confidence.statements import Confidence, SizeStatement, read_confidence
from monai_unet_app.config import ResultSettings
from monai_unet_app.errors import BundleError

SPACING = (0.8, 1.0, 3.0)
TURNED = np.array(
    [[0.0, 0.0, -3.0, 10.0], [0.0, 1.0, 0.0, -20.0], [0.8, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 1.0]]
)  # array axes: to the head, to the back, to the right
WHOLE = Whole("a and b", (1, 2), codes.SCT.AnatomicalStructure, codes.SCT.Brain)


def box(low: tuple[int, int, int], high: tuple[int, int, int], shape: tuple[int, int, int] = (12, 10, 9)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def volume(affine_lps: np.ndarray = TURNED, shape: tuple[int, int, int] = (12, 10, 9)) -> Volume:
    return Volume(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), affine_lps, Provenance("nifti"))


def structure(mask: np.ndarray, image: Volume | None = None) -> Structure:
    """The only structure of a segmentation; without an image on a grid of SPACING."""
    grid = image or Volume(np.zeros(mask.shape, np.float32), np.diag([*SPACING, 1.0]), Provenance("nifti"))
    return exclusive(grid, [mask]).structures[0]


def test_the_part_of_the_surface_on_the_border_is_that_of_the_boxs_faces() -> None:
    found = on_border(structure(box((2, 3, 0), (6, 8, 4))))  # 3.2 x 5 x 12 mm, on the first layer of the last axis
    surface = 2 * (3.2 * 5 + 3.2 * 12 + 5 * 12)
    assert found.shape == (3, 2)
    assert found[2, 0] == pytest.approx(3.2 * 5 / surface)
    assert found.sum() == pytest.approx(found[2, 0])
    assert on_border(structure(box((2, 3, 1), (6, 8, 4)))).sum() == 0
    assert on_border(structure(np.zeros((12, 10, 9), bool))).sum() == 0
    picture = Volume(np.zeros((12, 10, 1)), np.eye(4), Provenance("image"), planar=True)
    corner = on_border(structure(box((0, 3, 0), (3, 10, 1), (12, 10, 1)), picture))  # 3 x 7 pixels in its corner
    assert corner.tolist() == [[pytest.approx(7 / 20), 0], [0, pytest.approx(3 / 20)]]


def test_sides_are_named_by_the_patient_and_those_of_a_picture_by_the_picture() -> None:
    assert sides_of(volume()) == [("foot", "head"), ("front", "back"), ("left", "right")]
    picture = Volume(np.zeros((5, 4, 1)), np.eye(4), Provenance("image"), planar=True)
    assert sides_of(picture) == [("left", "right"), ("upper", "lower")]


def touching(part: float, subjects: int = 20, structure: int = 1) -> list[BorderContact]:
    return [BorderContact(f"s{n}", structure, part + 0.001 * n) for n in range(subjects)]


def test_usual_is_what_sound_images_of_most_subjects_show() -> None:
    stated = BorderStatement.fit([*touching(0.0, structure=1), *touching(0.3, structure=2)])
    assert stated.limits[2] == pytest.approx(0.319)  # of twenty subjects the largest: 20/21 stay below it
    assert stated.limits[1] == pytest.approx(0.019)
    assert BorderStatement.fit([BorderContact(f"s{n}", 1, 0.0) for n in range(9)]).limits == {1: LEAST_PART}
    assert BorderStatement.from_document(json.loads(json.dumps(stated.document()))) == stated
    with pytest.raises(ValueError, match=r"structure 1: 4 subject\(s\); 5 are needed"):
        BorderStatement.fit(touching(0.0, 4))


def assessed(masks: Sequence[np.ndarray], limits: dict[int, float]) -> Assessment:
    sizes = SizeStatement(0.9, {1: (-0.2, 0.2), 2: (-0.2, 0.2)}, 0.01, 20)
    stated = Confidence(sizes=sizes, wholes=sizes, border=BorderStatement(limits, 20))
    return assess(stated, exclusive(volume(), masks, None, WHOLE), None)


def test_a_structure_that_is_cut_off_is_reviewed_and_has_no_interval() -> None:
    found = assessed([box((0, 3, 2), (5, 8, 4)), box((7, 3, 2), (11, 8, 4))], {1: 0.02, 2: 0.02})
    assert found.verdict == "review"
    assert [one.verdict for one in found.structures] == ["review", None]
    cut, whole = found.structures
    assert cut.size_interval is None
    assert whole.size_interval is not None
    assert found.wholes[0].size_interval is None  # a part of it is cut off
    (said,) = (reason for reason in found.reasons if reason.startswith("a: "))
    assert said.startswith("a: it touches the border of the image on the foot side (")
    assert "part of it may be missing" in said
    assert "no interval of its size is stated" in said


def test_a_structure_that_usually_touches_the_border_may() -> None:
    masks = [box((0, 3, 2), (5, 8, 4)), box((7, 3, 2), (11, 8, 4))]
    part = float(on_border(structure(masks[0], volume())).sum())
    found = assessed(masks, {1: part + 0.01, 2: 0.02})
    assert found.verdict is None
    assert found.structures[0].size_interval is not None
    assert assessed(masks, {1: part - 0.01, 2: 0.02}).verdict == "review"


@pytest.mark.parametrize("kept", [slice(None, 5), slice(4, None)])
def test_what_is_left_of_a_truncated_image_stays_where_it_was(kept: slice) -> None:
    image = volume()
    left, labels = truncated(image, (image.array % 7 == 0).astype(np.uint8), 2, kept)
    assert left.shape == labels.shape == (12, 10, 5)
    for index in ((0, 0, 0), (3, 7, 4)):
        place = left.affine_lps @ [*index, 1]
        before = np.rint(np.linalg.solve(image.affine_lps, place))[:3].astype(int)
        assert image.array[tuple(before)] == left.array[index]
    assert np.array_equal(labels, left.array % 7 == 0)


def test_truncation_is_one_of_the_ways_and_the_same_for_the_same_seed() -> None:
    image = volume()
    assert TRUNCATED in corruptions_of(image)
    first, again = (corrupted(image, image.array.astype(int), TRUNCATED, seed=4)[0] for _ in range(2))
    assert first.array.size < image.array.size
    assert np.array_equal(first.array, again.array)
    picture = Volume(np.zeros((20, 16, 1, 3), np.float32), np.eye(4), Provenance("image"), planar=True)
    cut, labels = corrupted(picture, np.zeros((20, 16, 1), np.uint8), TRUNCATED, seed=1)
    assert cut.array.shape[2:] == (1, 3)
    assert labels.shape == cut.shape


def test_the_dice_of_a_truncated_result_counts_what_lies_outside() -> None:
    truth = box((2, 2, 0), (6, 6, 4))
    assert dice_of_whole(truth, truth) == 1.0
    assert dice_of_whole(truth, truth, lost=128) == pytest.approx(2 * 64 / (64 + 64 + 128))
    assert dice_of_whole(truth & False, truth & False) == 1.0
    assert dice_of_whole(truth & False, truth & False, lost=5) == 0.0


def test_statements_of_another_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    document = {"schema_version": "1.0", "structures": ["a"], "settings": {"plain": {"why_not": {}}}}
    (tmp_path / CONFIDENCE).write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"schema_version.*calibrate the bundle again"):
        read_confidence(BundleFiles(tmp_path), ResultSettings())


def test_a_volume_without_patient_space_names_its_axes() -> None:
    nowhere = replace(volume(), provenance=Provenance("image"))
    assert sides_of(nowhere)[1] == ("first (axis 1)", "last (axis 1)")
