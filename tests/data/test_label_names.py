"""Two sources that name label values: equal names decide, and names that contradict each other are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from conftest import BUNDLES
from phantoms import lopsided_labels, oblique_affine, write_mr_series
from pydicom.sr.coding import Code
from result_phantoms import RESULT

from dicom_io.seg import write_seg
from dicom_io.volume import Volume
from monai_unet_app.bundle_folder import BundleFiles
from monai_unet_app.confidence.results_bundle import Program
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.cases import data_row
from monai_unet_app.data.coding import named_segment
from monai_unet_app.data.inspect import Accepted, inspect_cases
from monai_unet_app.data.label_names import LabelTable, consistent, names_in_file
from monai_unet_app.data.labels import FileValues, read_labels
from monai_unet_app.data.monai_bridge import VolumeReader
from monai_unet_app.data.naming import check_side, side_in
from monai_unet_app.data.nifti import write_nifti
from monai_unet_app.data.nnunet_folder import NnunetConfig, write_nnunet_folder
from monai_unet_app.data.placed_labels import placed_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.structures import StatedStructure, stated_structures
from monai_unet_app.errors import InputRefusedError, SidesError
from monai_unet_app.evaluate import LabelFolders

GRID = Volume(np.zeros((11, 9, 7), np.float32), oblique_affine())
(HIPPOCAMPUS,) = [root for root in BUNDLES if root.name == "hippocampus_mri_unet3d"]  # 1 anterior, 2 posterior


def meant(told: dict[int, str], known: dict[int, str]) -> dict[int, int]:
    return LabelTable(told, "one").held_against(LabelTable(known, "other"))


@pytest.mark.parametrize(
    ("told", "known", "expected"),
    [
        pytest.param({1: "liver", 2: "spleen"}, {1: "Liver", 2: "Spleen"}, {1: 1, 2: 2}, id="the same"),
        pytest.param({1: "kidney", 2: "liver"}, {1: "liver", 2: "kidney"}, {1: 2, 2: 1}, id="exchanged"),
        pytest.param({5: "liver", 9: "kidney_left"}, {1: "Left kidney", 2: "liver"}, {5: 2, 9: 1}, id="other values"),
        pytest.param({1: "label_1", 2: "class 2"}, {1: "liver", 2: "kidney"}, {}, id="names that say nothing"),
        pytest.param({1: "ant", 2: "post"}, {1: "Anterior part", 2: "Posterior part"}, {1: 1, 2: 2}, id="beginnings"),
        pytest.param({1: "kidney", 7: "aorta"}, {2: "kidney", 3: "liver"}, {1: 2}, id="more names than known"),
        pytest.param(
            {2: "liver", 1: "tumour of liver"}, {1: "liver tumor", 2: "liver"}, {1: 1, 2: 2}, id="a lesion of it"
        ),
    ],
)
def test_names_say_which_value_means_the_same(
    told: dict[int, str], known: dict[int, str], expected: dict[int, int]
) -> None:
    assert meant(told, known) == expected


@pytest.mark.parametrize(
    ("told", "known"),
    [
        pytest.param({1: "posterior", 2: "anterior"}, {1: "Anterior part", 2: "Posterior part"}, id="crossed"),
        pytest.param({1: "kidney right"}, {1: "Left kidney"}, id="opposite sides"),
        pytest.param({1: "spleen"}, {1: "Liver"}, id="nothing in common"),
        pytest.param({1: "liver", 2: "vessel"}, {1: "portal vein", 2: "liver"}, id="the value of another name"),
        pytest.param({1: "liver", 2: "liver"}, {1: "liver", 2: "portal vein"}, id="one name for two values"),
    ],
)
def test_contradictions_are_refused_with_both_tables(told: dict[int, str], known: dict[int, str]) -> None:
    with pytest.raises(InputRefusedError) as refused:
        meant(told, known)
    for word in ("one has 1 ", "other has 1 ", *told.values(), *known.values()):
        assert word in str(refused.value)


def labelled(folder: Path, names: dict[str, int], array: np.ndarray) -> Path:
    """A data set of one case, whose dataset.json names its label values."""
    for what in ("imagesTr", "labelsTr"):
        (folder / what).mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(1).normal(100, 10, GRID.shape).astype(np.float32)
    write_nifti(values, GRID, folder / "imagesTr/a_0000.nii.gz")
    write_nifti(array.astype(np.uint8), GRID, folder / "labelsTr/a.nii.gz")
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "MRI"}, "labels": {"background": 0, **names}})
    )
    return folder


def test_labels_of_data_that_number_otherwise_are_read_by_their_names(tmp_path: Path) -> None:
    """For every reader: evaluation and calibration read by the row, training by MONAI's reader."""
    truth = lopsided_labels()  # 1 and 2 of different sizes
    stored = np.choose(truth, [0, 7, 1])
    data = labelled(tmp_path / "d", {"Posterior hippocampus": 1, "Anterior hippocampus": 7}, stored)
    files = BundleFiles(HIPPOCAMPUS)
    (case,) = files.named(find_data(data))
    row = data_row(case, "a")
    assert row["label_values"] == [7, 1]
    np.testing.assert_array_equal(read_labels(row["label"], GRID, FileValues().of_row(row)).array, truth)
    for reader in (VolumeReader([row]), VolumeReader([data_row(*find_data(data), "a")], label_values={"a": [7, 1]})):
        np.testing.assert_array_equal(reader.get_data(reader.read([row["label"]]))[0], truth)


def test_a_value_whose_usual_meaning_is_another_one_is_no_structure_where_it_has_no_name(tmp_path: Path) -> None:
    data = labelled(tmp_path / "d", {"Posterior hippocampus": 1}, lopsided_labels())
    (case,) = BundleFiles(HIPPOCAMPUS).named(find_data(data))
    row = data_row(case, "a")
    with pytest.raises(InputRefusedError, match=r"holds the value\(s\) \[2\]"):
        read_labels(row["label"], GRID, FileValues().of_row(row))


def test_names_that_agree_change_no_row_and_the_header_of_a_label_counts(tmp_path: Path) -> None:
    data = labelled(tmp_path / "d", {"Anterior hippocampus": 1, "Posterior hippocampus": 2}, lopsided_labels())
    files = BundleFiles(HIPPOCAMPUS)
    assert "label_values" not in data_row(*files.named(find_data(data)), "a")
    exchanged = {1: "Posterior hippocampus", 2: "Anterior hippocampus"}
    write_nifti(lopsided_labels().astype(np.uint8), GRID, data / "labelsTr/a.nii.gz", exchanged)
    assert names_in_file(data / "labelsTr/a.nii.gz") == exchanged
    with pytest.raises(InputRefusedError, match="two sources name the label values otherwise"):
        files.named(find_data(data))
    (data / "dataset.json").unlink()
    assert data_row(*files.named(find_data(data)), "a")["label_values"] == [2, 1]


def test_data_of_something_else_are_refused_before_they_are_read(tmp_path: Path) -> None:
    data = labelled(tmp_path / "d", {"liver": 1, "spleen": 2}, lopsided_labels())
    with pytest.raises(
        InputRefusedError, match=r"dataset\.json has 1 liver, 2 spleen; hippocampus_mri_unet3d has 1 Ant"
    ):
        BundleFiles(HIPPOCAMPUS).named(find_data(data))


def folders(place: Path, program: dict[str, Any], truth: dict[str, Any], **more: object) -> LabelFolders:
    for name, names in (("results", program), ("truth", truth)):
        (place / name).mkdir()
        write_nifti(lopsided_labels().astype(np.uint8), GRID, place / name / "a.nii.gz")
        (place / name / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **names}}))
    return LabelFolders(place / "results", place / "truth", None, Program("Other", "1.0"), **more)  # type: ignore[arg-type]


def test_a_structure_of_one_value_among_regions_is_named_too(tmp_path: Path) -> None:
    found = folders(tmp_path, {"cyst": 1, "lesion": 2}, {"whole": [1, 2], "cyst": 2})
    segments = tuple(named_segment(n, StatedStructure(name)) for n, name in ((1, "cyst"), (2, "lesion")))
    with pytest.raises(InputRefusedError, match="holds the value 1, of which its names say nothing"):
        found.read(found.rows[0], segments, [1, 2])


def test_results_and_truth_meet_by_their_names(tmp_path: Path) -> None:
    found = folders(tmp_path, {"liver": 1, "kidney": 2}, {"kidney": 1, "liver": 2})
    names = found.names()
    assert names == {1: "liver", 2: "kidney"}
    segments = tuple(named_segment(n, StatedStructure(name)) for n, name in names.items())
    case = found.read(found.rows[0], segments, list(names))
    for structure, (of_program, of_truth) in enumerate(((1, 2), (2, 1)), 1):
        np.testing.assert_array_equal(case.result.labels == structure, lopsided_labels() == of_program)
        np.testing.assert_array_equal(case.truth.labels == structure, lopsided_labels() == of_truth)


def test_what_the_user_says_counts_and_what_it_overrides_is_told(tmp_path: Path) -> None:
    found = folders(tmp_path, {"Leber": 1, "Niere": 2}, {"liver": 1, "kidney": 2}, named={1: "liver", 2: "kidney"})
    assert found.overridden == ["dataset.json of results has 1 Leber, 2 Niere"]
    segments = tuple(named_segment(n, StatedStructure(name)) for n, name in found.names().items())
    case = found.read(found.rows[0], segments, [1, 2])
    np.testing.assert_array_equal(case.result.labels, case.truth.labels)


def test_names_without_a_common_word_are_refused_and_the_way_out_is_told(tmp_path: Path) -> None:
    found = folders(tmp_path, {"Leber": 1, "Niere": 2}, {"liver": 1, "kidney": 2})
    segments = tuple(named_segment(n, StatedStructure(name)) for n, name in found.names().items())
    with pytest.raises(InputRefusedError, match=r"contradict each other.*--structure VALUE=NAME"):
        found.read(found.rows[0], segments, [1, 2])


def data_of(folder: Path, tables: dict[str, dict[int, str]], structures: dict[str, np.ndarray]) -> Path:
    """A data set whose label files have a table each, and the structures under the values that it says."""
    for what in ("images", "labels"):
        (folder / what).mkdir(parents=True)
    for case, names in tables.items():
        values = np.random.default_rng(1).normal(100, 10, GRID.shape).astype(np.float32)
        write_nifti(values, GRID, folder / f"images/{case}.nii.gz")
        array = sum((value * structures[name] for value, name in names.items()), np.zeros(GRID.shape, np.uint8))
        write_nifti(np.asarray(array, np.uint8), GRID, folder / f"labels/{case}.nii.gz", names)
    return folder


def test_tables_that_differ_between_cases_are_resolved_case_by_case(tmp_path: Path) -> None:
    structures = {"liver": lopsided_labels() == 1, "spleen": lopsided_labels() == 2}
    tables = {"a": {1: "liver", 2: "spleen"}, "b": {1: "spleen", 4: "liver"}, "c": {2: "liver"}}
    cases = consistent(find_data(data_of(tmp_path / "d", tables, structures)), None)
    assert [case.label_values for case in cases] == [(1, 2), (4, 1), (2, -2)]
    found = inspect_cases(cases, Accepted())
    volume = {name: int(mask.sum()) for name, mask in structures.items()}
    for seen, names in zip(found.cases, tables.values(), strict=True):
        told = {1: volume["liver"]} | ({2: volume["spleen"]} if "spleen" in names.values() else {})
        assert {value: count for value, count in seen.class_voxels.items() if value} == told
    assert {v: s.name for v, s in stated_structures(cases, found.label_values).items()} == {1: "liver", 2: "spleen"}
    config = NnunetConfig(tmp_path / "Dataset001_Named")
    written = write_nnunet_folder(cases, config)
    assert written.document["labels"] == {"background": 0, "liver": 1, "spleen": 2}
    for case, names in tables.items():
        array = np.asarray(nibabel.load(config.output / f"labelsTr/{case}.nii.gz").dataobj)
        np.testing.assert_array_equal(array == 1, structures["liver"])
        np.testing.assert_array_equal(array == 2, structures["spleen"] & ("spleen" in names.values()))


def test_a_file_without_names_beside_files_that_differ_is_refused_and_one_table_is_taken(tmp_path: Path) -> None:
    structures = {"liver": lopsided_labels() == 1, "spleen": lopsided_labels() == 2, "label": lopsided_labels() == 1}
    differ = {"a": {1: "liver", 2: "spleen"}, "b": {1: "spleen", 2: "liver"}, "c": {1: "label"}}
    with pytest.raises(InputRefusedError, match="c does not say what its values mean"):
        consistent(find_data(data_of(tmp_path / "differ", differ, structures)), None)
    alike = {"a": {1: "liver", 2: "spleen"}, "c": {1: "label"}}
    cases = consistent(find_data(data_of(tmp_path / "alike", alike, structures)), None)
    assert not any(case.label_values for case in cases)
    assert {v: s.name for v, s in stated_structures(cases, [1, 2]).items()} == {1: "liver", 2: "spleen"}
    said = LabelTable({1: "spleen", 2: "liver"}, "dataset.json")
    with pytest.raises(
        InputRefusedError, match=r"two meanings: a\.nii\.gz has 1 liver, 2 spleen; dataset\.json has 1 spleen"
    ):
        consistent(cases, said)


def slicer_file(path: Path, layers: list[np.ndarray], segments: list[tuple[str, int, int]]) -> Path:
    """A .seg.nrrd as 3D Slicer writes it: the box of voxels [2:, 1:, 3:] of the grid, with names in its header."""
    part = np.stack([layer[2:, 1:, 3:] for layer in layers]).astype(np.uint8)
    several = len(layers) > 1
    steps = " ".join(f"({','.join(f'{v:.12g}' for v in GRID.affine_lps[:3, axis])})" for axis in range(3))
    origin = GRID.affine_lps @ [2, 1, 3, 1]
    sizes = [len(layers), *part.shape[1:]] if several else part.shape[1:]
    lines = ["NRRD0004", "type: unsigned char", f"dimension: {3 + several}", "space: left-posterior-superior"]
    lines += [f"sizes: {' '.join(map(str, sizes))}", f"space directions: {'none ' * several}{steps}"]
    lines += [f"kinds: {'list ' * several}domain domain domain", "encoding: raw"]
    lines += [f"space origin: ({','.join(f'{v:.12g}' for v in origin[:3])})"]
    for number, (name, layer, value) in enumerate(segments):
        lines += [
            f"Segment{number}_Name:={name}",
            f"Segment{number}_Layer:={layer}",
            f"Segment{number}_LabelValue:={value}",
        ]
    path.write_bytes(("\n".join(lines) + "\n\n").encode() + (part if several else part[0]).tobytes(order="F"))
    return path


def test_segments_of_slicer_lie_where_their_part_of_the_image_is(tmp_path: Path) -> None:
    drawn = np.zeros(GRID.shape, np.uint8)
    drawn[3:8, 2:5, 4:6], drawn[8:10, 6:8, 3:] = 1, 2
    file = slicer_file(tmp_path / "one.seg.nrrd", [drawn], [("Liver", 0, 1), ("Spleen", 0, 2)])
    assert names_in_file(file) == {1: "Liver", 2: "Spleen"}
    np.testing.assert_array_equal(read_labels(file, GRID).array, drawn)
    found = placed_labels(file, GRID)
    np.testing.assert_array_equal(found.numbers, drawn)
    other = np.where(drawn == 2, 1, 0)
    other[3:5, 2:5, 4:6] = 1  # shares voxels with the liver
    layered = slicer_file(tmp_path / "two.seg.nrrd", [drawn == 1, other], [("Liver", 0, 1), ("Spleen", 1, 1)])
    masks = placed_labels(layered, GRID)
    assert masks.names == {1: "Liver", 2: "Spleen"}
    np.testing.assert_array_equal(masks.numbered([1, 2]), np.stack([drawn == 1, other]))
    turned = [("Spleen", 1, 2), ("Liver", 0, 1)]  # listed in another order than their values, which are their numbers
    masks = placed_labels(slicer_file(tmp_path / "turned.seg.nrrd", [drawn == 1, 2 * other], turned), GRID)
    assert masks.names == {1: "Liver", 2: "Spleen"}
    np.testing.assert_array_equal(masks.numbered([1, 2]), np.stack([drawn == 1, other]))
    smaller = Volume(np.zeros((8, 9, 7), np.float32), GRID.affine_lps)
    with pytest.raises(InputRefusedError, match="reach beyond the image"):
        placed_labels(file, smaller)


def test_a_header_that_names_layers_which_are_not_there_is_refused(tmp_path: Path) -> None:
    drawn = np.ones(GRID.shape, np.uint8)
    file = slicer_file(tmp_path / "one.seg.nrrd", [drawn], [("Liver", 0, 1), ("Spleen", 3, 1)])
    with pytest.raises(InputRefusedError, match="names the layer 3 and has 1"):
        placed_labels(file, GRID)
    file = slicer_file(tmp_path / "odd.seg.nrrd", [drawn], [("Liver", "x", 1)])  # type: ignore[list-item]
    assert names_in_file(file) == {}


@pytest.mark.parametrize(
    ("ending", "header"),
    [
        ("nrrd", "NRRD0004\ntype: uchar\ndimension: 3\nspace: 3D-right-handed\nsizes: 2 2 2\n"
                 "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: raw\n\n"),
        ("nrrd", "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nspacings: 1 1 1\nencoding: raw\n\n"),
        ("mha", "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
                "ElementDataFile = LOCAL\n"),
    ],
)  # fmt: skip
def test_a_file_that_states_no_directions_of_the_patient_is_refused(ending: str, header: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{ending}").write_bytes(header.encode() + bytes(range(8)))
    with pytest.raises(InputRefusedError, match="the patient's left and right are unknown"):
        read_volume(tmp_path / f"a.{ending}")


META = (
    "ObjectType = Image\nNDims = 3\nAnatomicalOrientation = {}\nOffset = 1 2 3\nDimSize = 2 2 2\nElementSpacing = 1 2 4\n"
    "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
)


def test_a_meta_image_with_letters_alone_is_read_only_where_they_say_what_itk_takes(tmp_path: Path) -> None:
    """ITK takes the identity in LPS; in its letters, which name where an axis comes from, this is RAI."""
    path = tmp_path / "a.mha"
    path.write_bytes(META.format("RAI").encode() + bytes(range(8)))
    np.testing.assert_array_equal(
        read_volume(path).affine_lps, [[1, 0, 0, 1], [0, 2, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]]
    )
    for letters in ("LPI", "RAS", "rai", "???"):
        path.write_bytes(META.format(letters).encode() + bytes(range(8)))
        with pytest.raises(InputRefusedError) as refused:
            read_volume(path)
        assert f"AnatomicalOrientation '{letters}' and no TransformMatrix, for which ITK takes 'RAI'" in str(
            refused.value
        )
    path.write_bytes(META.format("LPI\nTransformMatrix = -1 0 0 0 -1 0 0 0 1").encode() + bytes(range(8)))
    np.testing.assert_array_equal(np.diag(read_volume(path).affine_lps), [-1, -2, 4, 1])


@pytest.mark.parametrize("space", ["right-anterior-superior", "left-posterior-superior"])
@pytest.mark.parametrize(
    "axes", ["spacings: 1 1 1\n", "", "space directions: none none none\n", "space directions: (1,0,0) (0,1,0) none\n"]
)
def test_a_nrrd_with_a_space_needs_the_directions_of_all_axes_in_it(axes: str, space: str, tmp_path: Path) -> None:
    header = f"NRRD0004\ntype: uchar\ndimension: 3\nspace: {space}\nsizes: 2 2 2\n{axes}encoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes(range(8)))
    with pytest.raises(InputRefusedError, match=r"`space directions`.* needed; export it again with them"):
        read_volume(tmp_path / "a.nrrd")


SIDES = {"left": ("7771000", "G-A101"), "right": ("24028007", "G-A100")}


@pytest.mark.parametrize("scheme", ["SCT", "SRT"])
def test_every_code_of_a_segment_has_the_side_of_its_label(scheme: str) -> None:
    kidney = named_segment(1, StatedStructure("kidney_left"))

    def modified(side: str) -> Code:
        return Code(SIDES[side][scheme == "SRT"], scheme, side.capitalize())

    check_side(replace(kidney, type_modifier=modified("left")))
    opposite = (
        replace(kidney, type_modifier=modified("right")),
        replace(kidney, anatomic_region=kidney.type, anatomic_region_modifier=modified("right")),
        replace(kidney, type=Code("9846003", "SCT", "Right kidney structure"), type_modifier=None),
    )
    for segment in opposite:
        with pytest.raises(SidesError, match="its label and codes name both left and right"):
            check_side(segment)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Niere links", "Niere rechts"),
        ("LKidney", "RKidney"),
        ("A carotis sin", "A carotis dext"),
        ("rein gauche", "rein droit"),
    ],
)
def test_sides_are_known_in_other_languages(left: str, right: str) -> None:
    assert (side_in(left), side_in(right)) == ("left", "right")


def test_labels_of_another_patient_are_refused(tmp_path: Path) -> None:
    write_mr_series(tmp_path / "mr", np.zeros(GRID.shape, np.int16) + np.arange(7), GRID.affine_lps)
    image = read_volume(tmp_path / "mr")
    seg = write_seg(image.with_array(lopsided_labels(GRID.shape)), image, tmp_path / "seg.dcm", RESULT)
    read_labels(seg, image)
    other = pydicom.dcmread(seg)
    other.PatientID = "SOMEBODY ELSE"
    other.save_as(seg)
    with pytest.raises(InputRefusedError, match="the label file has another PatientID than the image"):
        read_labels(seg, image)
    other.PatientID = pydicom.dcmread(next((tmp_path / "mr").iterdir())).PatientID
    other.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    other.save_as(seg)
    with pytest.raises(InputRefusedError, match=r"the label file refers to the series 1\.2\.3, and the image"):
        read_labels(seg, image)
