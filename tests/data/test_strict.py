"""Strict checks: each finding on data that were spoiled in one way, and none on data that are right."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import EXAMPLES
from phantoms import oblique_affine
from PIL import Image
from scipy import ndimage

from dicom_io.volume import LPS_FROM_RAS
from monai_unet_app.data.case_files import CaseFiles
from monai_unet_app.data.cases import places_of
from monai_unet_app.data.fingerprint import Fingerprint
from monai_unet_app.data.inspect import ANYTHING, Accepted, find_to_inspect, inspect_cases
from monai_unet_app.data.splits import SplitCase
from monai_unet_app.data.strict import Place

AFFINE_RAS = LPS_FROM_RAS @ oblique_affine((1.25, 0.75, 1.5), degrees=(12.0, -13.0, 17.0))
COUNT = 12
CENTRES = {1: (12, 14, 9), 2: (26, 16, 11), 3: (18, 27, 17)}
Case = tuple[np.ndarray, np.ndarray]


@cache
def person(number: int) -> Case:
    """A soft noise of this person with three ellipsoids of their own brightness at places that differ by a voxel or so."""
    random = np.random.default_rng(number)
    shape = (40, 38, 26)
    place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    label = np.zeros(shape, np.uint8)
    for value, centre in CENTRES.items():
        radii = np.array([(8, 6, 4), (5, 7, 5), (6, 4, 5)][value - 1]) * random.uniform(0.92, 1.08, 3)
        label[np.linalg.norm((place - centre - random.uniform(-1, 1, 3)) / radii, axis=-1) < 1] = value
    soft = ndimage.gaussian_filter(random.normal(0, 1, shape), 2.0)
    image = 100 + 12 * soft / soft.std() + np.array([0, 60, 110, 85])[label] + random.normal(0, 3, shape)
    image = image.astype(np.float32)
    for array in (image, label):
        array.flags.writeable = False  # other tests get them too
    return image, label


def people(count: int = COUNT) -> dict[str, Case]:
    return {f"p{number:02}": person(number) for number in range(count)}


def found(folder: Path, cases: dict[str, Case], **more: object) -> Fingerprint:
    """What strict checks say of these cases, written as NIfTI; `places` and `accepted` as in `inspect_cases`."""
    affines = more.pop("affines", {})
    files = []
    for name, (image, label) in cases.items():
        affine = affines.get(name, AFFINE_RAS) if isinstance(affines, dict) else AFFINE_RAS
        for kind, array in (("i", image), ("l", label)):
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{name}_{kind}.nii")
        files.append(CaseFiles(name, folder / f"{name}_i.nii", folder / f"{name}_l.nii"))
    places, accepted = more.get("places", {}), more.get("accepted", ANYTHING)
    assert isinstance(places, dict)
    assert isinstance(accepted, Accepted)
    return inspect_cases(files, accepted, places=places)


def test_data_that_are_right_give_no_finding(tmp_path: Path) -> None:
    places = {name: Place("test" if n % 3 else "train", name) for n, name in enumerate(people())}
    seen = found(tmp_path, people(), places=places)
    assert seen.problems == ()


def test_the_examples_give_no_finding() -> None:
    cases, lone = find_to_inspect(EXAMPLES)
    assert len(cases) > 60
    assert (inspect_cases(cases, places={}).problems, lone) == ((), [])


def test_without_strict_checks_nothing_is_compared(tmp_path: Path) -> None:
    found(tmp_path, {"a": person(1), "b": person(1)})
    files = [CaseFiles(name, tmp_path / f"{name}_i.nii", tmp_path / f"{name}_l.nii") for name in "ab"]
    assert inspect_cases(files).problems == ()


def test_one_image_under_two_names_is_a_fault_on_two_sides_of_the_plan_and_odd_on_one(tmp_path: Path) -> None:
    image, label = person(3)
    cases = {**people(), "again": (image.astype(np.float64), label), "other": (image, np.flip(label, 0))}
    seen = found(tmp_path, cases)
    (odd,) = [text for text in seen.odd if "voxel for voxel" in text and "same image" in text]
    assert odd.startswith("look at p03, again and other: ")
    assert "with different labels" in odd
    assert not seen.faults
    sides = {"again": "test", "other": "train", "p03": "train"}
    seen = found(tmp_path, cases, places={name: Place(sides.get(name, "train"), name) for name in cases})
    (fault,) = seen.faults
    assert fault.startswith("p03 (train), again (test) and other (train) have the same image")


def test_the_same_voxels_in_another_order_of_axes_are_the_same_image(tmp_path: Path) -> None:
    image, label = person(3)
    turned = AFFINE_RAS @ np.array([[0, -1, 0, 39], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    copy = tuple(np.flip(array.transpose(1, 0, 2), 1) for array in (image, label))
    seen = found(tmp_path, {"a": (image, label), "b": (copy[0], copy[1])}, affines={"b": turned})
    assert any("a and b: they have the same image" in text for text in seen.odd)


def test_a_subject_on_two_sides_is_a_fault_by_the_plan(tmp_path: Path) -> None:
    plan = [SplitCase(name, name, "train", n % 5) for n, name in enumerate(people(5))]
    assert found(tmp_path, people(5), places=places_of(plan, by_folds=True)).faults == ()
    plan[1] = SplitCase("p01", "p00", "train", 1)
    (fault,) = found(tmp_path, people(5), places=places_of(plan, by_folds=True)).faults
    assert fault.startswith("p00 (fold 0) and p01 (fold 1) are of one subject")


@pytest.mark.parametrize(
    "change",
    [
        lambda a: 3 * a + 7,
        lambda a: a + np.random.default_rng(0).normal(0, 0.2 * a.std(), a.shape).astype(np.float32),
        lambda a: ndimage.gaussian_filter(a, 1.0),
        lambda a: np.roll(a, 3, axis=0),
    ],
    ids=["scaled", "noise", "smoothed", "moved by a block"],
)
def test_an_image_that_is_nearly_another_is_pointed_out(
    change: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    image, label = person(4)
    cases = {**people(), "copy": (change(image), label)}
    (odd,) = [text for text in found(tmp_path, cases).odd if "nearly the same" in text]
    assert odd.startswith("look at p04 and copy: ")
    places = {name: Place("train", "one" if name in ("p04", "copy") else name) for name in cases}
    assert not [text for text in found(tmp_path, cases, places=places).odd if "nearly the same" in text]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: np.roll(a, 5, axis=1), "some voxels away"),
        (lambda a: np.where(a == 1, 2, np.where(a == 2, 1, a)), "classes 1 and 2 exchanged"),
        (lambda a: np.flip(a, 0), "mirrored right-left"),
        (lambda a: np.flip(a, 2), "mirrored superior-inferior"),
    ],
    ids=["moved", "exchanged", "mirrored in x", "mirrored in z"],
)
def test_a_label_that_is_not_as_the_others_is_pointed_out(
    change: Callable[[np.ndarray], np.ndarray], says: str, tmp_path: Path
) -> None:
    cases = people()
    image, label = cases["p05"]
    cases["p05"] = (image, change(label).astype(np.uint8))
    (odd,) = found(tmp_path, cases).odd
    assert odd.startswith("look at p05: ")
    assert says in odd


def test_the_label_of_another_case_is_pointed_out_where_the_same_label_stands_twice(tmp_path: Path) -> None:
    cases = people()
    cases["p05"] = (cases["p05"][0], cases["p06"][1])
    assert any(text.startswith("look at p05 and p06: they have the same label") for text in found(tmp_path, cases).odd)


def test_a_case_on_a_far_coarser_grid_is_pointed_out(tmp_path: Path) -> None:
    coarse = AFFINE_RAS @ np.diag([1, 1, 3, 1])
    said = found(tmp_path, people(), affines={"p07": coarse}).odd
    assert any(
        text.startswith("look at p07: spacing along superior-inferior is 4.5 mm, the median 1.5;") for text in said
    )


def test_values_that_no_case_has_and_classes_that_never_train_are_told(tmp_path: Path) -> None:
    cases = {
        name: (image, np.where(label == 2, 4, label).astype(np.uint8)) for name, (image, label) in people(4).items()
    }
    assert any("no case has the value 2, while values up to 4" in text for text in found(tmp_path, cases).odd)
    accepted = Accepted(known=(0, 1, 3, 4, 5))
    (odd,) = [text for text in found(tmp_path, cases, accepted=accepted).odd if "no case has" in text]
    assert "the value 5, which the bundle knows" in odd
    for name in ("p00", "p01"):
        cases[name] = (cases[name][0], np.where(cases[name][1] == 4, 0, cases[name][1]).astype(np.uint8))
    places = {name: Place("train" if name in ("p00", "p01") else "test", name) for name in cases}
    (fault,) = found(tmp_path, cases, places=places).faults
    assert fault.startswith("no case to train on has class 4, p02 and p03 have")


def test_pictures_are_compared_too(tmp_path: Path) -> None:
    cases = []
    for number in range(10):
        random = np.random.default_rng(number)
        label = np.zeros((90, 120), np.uint8)
        y, x = np.mgrid[:90, :120]
        for _ in range(9):
            label[(x - random.integers(12, 108)) ** 2 + ((y - random.integers(12, 78)) * 1.3) ** 2 < 60] = 1
        grey = np.clip(random.normal(60, 9, label.shape) + 80 * label, 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / f"{number}_i.png")
        Image.fromarray(np.roll(label, 7, 1) if number == 6 else label).save(tmp_path / f"{number}_l.png")
        cases.append(CaseFiles(f"c{number}", tmp_path / f"{number}_i.png", tmp_path / f"{number}_l.png"))
    brighter = np.asarray(Image.open(tmp_path / "2_i.png")) // 2 + 90
    Image.fromarray(brighter.astype(np.uint8)).save(tmp_path / "copy_i.png")
    cases.append(CaseFiles("copy", tmp_path / "copy_i.png", tmp_path / "3_l.png"))
    said = [text.split(":")[0] for text in inspect_cases(cases, places={}).odd]
    assert "look at c6" in said
    assert "look at c2 and copy" in said
    assert not {f"look at c{number}" for number in (0, 1, 3, 4, 5, 7, 8, 9)} & set(said)


def test_inspect_takes_lists_and_the_folders_of_nnunet(tmp_path: Path) -> None:
    found(tmp_path, {"a": person(1), "b": person(2)})
    (tmp_path / "list.csv").write_text("image,label,id\na_i.nii,a_l.nii,one\nb_i.nii,,two\n")
    cases, lone = find_to_inspect(tmp_path / "list.csv")
    assert [(case.id, case.label is None) for case in cases] == [("one", False), ("two", True)]
    assert lone == []
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "b_i.nii", "label": "b_l.nii"}]}))
    assert [case.id for case in find_to_inspect(tmp_path / "list.json")[0]] == ["b_i"]
    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / "raw" / kind).mkdir(parents=True)
    (tmp_path / "a_i.nii").rename(tmp_path / "raw/imagesTr/a_0000.nii")
    (tmp_path / "a_l.nii").rename(tmp_path / "raw/labelsTr/a.nii")
    (case,), lone = find_to_inspect(tmp_path / "raw")
    assert (case.id, case.label, lone) == ("a", tmp_path / "raw/labelsTr/a.nii", [])
