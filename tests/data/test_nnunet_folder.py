"""Data sets as raw folders of nnU-Net: the same voxels at the same places, by our reader, by SimpleITK and by Pillow."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from phantoms import lopsided_array, lopsided_labels, oblique_affine, write_mr_series
from PIL import Image
from result_phantoms import RESULT
from shell import Run, shell
from small_data import drawn_eyes, numbered_discs, tilted_volumes

from dicom_io.itk_files import write_itk
from dicom_io.read import read_series
from dicom_io.seg import write_seg
from monai_unet_app.data.case_files import CaseFiles, find_data
from monai_unet_app.data.datalist import read_dataset_json
from monai_unet_app.data.labels import FileValues, read_labels
from monai_unet_app.data.nnunet_folder import NnunetConfig, NnunetFolder, write_nnunet_folder
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError, UsageError

NAME = "Dataset123_Phantom"
run = pytest.fixture(shell)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Oblique, lopsided volumes whose labels hold 2 and 5."""
    return tilted_volumes(tmp_path_factory.mktemp("data") / "volumes")


def written(source: Path | list[CaseFiles], folder: Path, **said: Any) -> tuple[Path, NnunetFolder]:
    cases = find_data(source) if isinstance(source, Path) else source
    output = folder / NAME
    return output, write_nnunet_folder(cases, NnunetConfig(output, **said))


def check_round_trip(cases: list[CaseFiles], output: Path, numbers: dict[int, int]) -> None:
    """Our reader and SimpleITK find the cases with their voxels, places and labels; `numbers`: nnU-Net's by label value."""
    again = find_data(output)
    assert [case.id for case in again] == [case.id for case in cases]
    for before, after in zip(cases, again, strict=True):
        image, found = read_volume(before.image), read_volume(after.image)
        np.testing.assert_array_equal(found.array, image.array)
        np.testing.assert_allclose(found.affine_lps, image.affine_lps, atol=1e-5)
        labels = read_labels(before.label, image).array
        expected = sum((number * (labels == value) for value, number in numbers.items()), np.zeros(labels.shape))
        np.testing.assert_array_equal(read_labels(after.label, found).array, expected)
        theirs, beside = (SimpleITK.ReadImage(str(file)) for file in (after.image, after.label))
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(beside).T, expected)
        for ask in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
            np.testing.assert_allclose(getattr(theirs, ask)(), getattr(beside, ask)(), rtol=0, atol=1e-6)
        corner = tuple(int(size) - 1 for size in image.shape)
        place = image.affine_lps @ (*corner, 1)
        np.testing.assert_allclose(theirs.TransformIndexToPhysicalPoint(corner), place[:3], atol=1e-3)


def test_values_with_gaps_become_consecutive_and_images_are_copied(volumes: Path, tmp_path: Path) -> None:
    output, made = written(volumes, tmp_path)
    cases = find_data(volumes)
    check_round_trip(cases, output, {2: 1, 5: 2})
    for case in cases:
        assert (output / f"imagesTr/{case.id}_0000.nii.gz").read_bytes() == case.image.read_bytes()
    document = json.loads((output / "dataset.json").read_text())
    assert document == {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, "label 2": 1, "label 5": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
        "name": NAME,
        "source_label_values": {"label 2": 2, "label 5": 5},
    }
    assert made.document == document
    facts = read_dataset_json(output)
    assert facts is not None
    assert facts.names == {1: "label 2", 2: "label 5"}
    assert sorted(file.name for file in tmp_path.iterdir()) == [NAME]
    assert sorted(file.name for file in output.iterdir()) == ["dataset.json", "imagesTr", "labelsTr"]


def test_labels_that_stay_are_copied_too(tmp_path: Path) -> None:
    source = tilted_volumes(tmp_path / "source", 1, (1, 2))
    output, made = written(source, tmp_path, told={1: "liver", 2: "spleen"}, modality="CT")
    assert (output / "labelsTr/case0.nii.gz").read_bytes() == (source / "labelsTr/case0.nii.gz").read_bytes()
    assert made.document["channel_names"] == {"0": "CT"}
    assert made.document["labels"] == {"background": 0, "liver": 1, "spleen": 2}
    assert "source_label_values" not in made.document
    # What was written is a source as well
    again, _ = written(output, tmp_path / "again", facts=read_dataset_json(output))
    for file in sorted(path for path in output.rglob("*") if path.is_file()):
        assert (again / file.relative_to(output)).read_bytes() == file.read_bytes(), file.name


def one_case(folder: Path, image: Path, label: Path) -> list[CaseFiles]:
    folder.mkdir(exist_ok=True)
    return [CaseFiles("one", image, label)]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]:
    source = tilted_volumes(tmp_path / "source", 1, (1, 2))
    return nibabel.load(source / "imagesTr/case0_0000.nii.gz"), nibabel.load(source / "labelsTr/case0.nii.gz")


def saved(image: nibabel.Nifti1Image, path: Path) -> Path:
    nibabel.save(image, path)
    return path


def test_an_uncompressed_nifti_is_packed_byte_by_byte(pair: Any, tmp_path: Path) -> None:
    image, label = saved(pair[0], tmp_path / "one.nii"), saved(pair[1], tmp_path / "l.nii")
    output, _ = written(one_case(tmp_path, image, label), tmp_path)
    assert gzip.decompress((output / "imagesTr/one_0000.nii.gz").read_bytes()) == image.read_bytes()
    assert gzip.decompress((output / "labelsTr/one.nii.gz").read_bytes()) == label.read_bytes()


def test_channels_become_files(pair: Any, tmp_path: Path) -> None:
    image, label = pair
    first = image.get_fdata()
    both = nibabel.Nifti1Image(np.stack([first, 2 * first + 1000], -1).astype(np.float32), image.affine)
    cases = one_case(tmp_path, saved(both, tmp_path / "one.nii.gz"), saved(label, tmp_path / "l.nii.gz"))
    output, made = written(cases, tmp_path, modality="MR")
    assert made.document["channel_names"] == {"0": "MR", "1": "MR"}
    for number in range(2):
        found = nibabel.load(output / f"imagesTr/one_{number:04}.nii.gz")
        np.testing.assert_array_equal(found.get_fdata(), both.get_fdata()[..., number])
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)


def test_a_label_a_hair_beside_its_image_is_put_on_its_very_grid(pair: Any, tmp_path: Path) -> None:
    image, label = pair
    affine = image.affine.copy()
    affine[:3, 3] += 0.005
    moved = saved(nibabel.Nifti1Image(np.asarray(label.dataobj), affine), tmp_path / "l.nii.gz")
    cases = one_case(tmp_path, saved(image, tmp_path / "one.nii.gz"), moved)
    output, _ = written(cases, tmp_path)
    check_round_trip(cases, output, {1: 1, 2: 2})


def test_an_image_that_states_two_places_keeps_the_one_that_counts_here(pair: Any, tmp_path: Path) -> None:
    """nibabel takes the sform, ITK may take the qform."""
    image, label = pair
    image.set_sform(image.affine, code=2)
    elsewhere = image.affine.copy()
    elsewhere[:3, 3] += 30
    image.set_qform(elsewhere, code=1)
    cases = one_case(tmp_path, saved(image, tmp_path / "one.nii.gz"), saved(label, tmp_path / "l.nii.gz"))
    output, _ = written(cases, tmp_path)
    check_round_trip(cases, output, {1: 1, 2: 2})


def test_directions_that_were_stated_stand_in_the_files_that_are_written(pair: Any, tmp_path: Path) -> None:
    files = []
    for one, name in zip(pair, ("one.nii.gz", "l.nii.gz"), strict=True):
        bare = nibabel.Nifti1Image(np.asarray(one.dataobj), None)
        bare.header.set_zooms((0.5, 2.0, 3.0))
        files.append(saved(bare, tmp_path / name))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {}, "directions": "PIR"}))
    output, _ = written(one_case(tmp_path, *files), tmp_path)
    for found in sorted(output.rglob("*.nii.gz")):
        assert nibabel.aff2axcodes(nibabel.load(found).affine) == ("P", "I", "R")


def test_a_sheared_grid_is_left_to_a_reader_that_knows_shear(pair: Any, tmp_path: Path) -> None:
    image, label = pair
    affine = image.affine.copy()
    affine[:3, 2] += 0.3 * affine[:3, 1]
    files = [
        saved(nibabel.Nifti1Image(np.asarray(one.dataobj), affine), tmp_path / name)
        for one, name in ((image, "one.nii.gz"), (label, "l.nii.gz"))
    ]
    output, made = written(one_case(tmp_path, files[0], files[1]), tmp_path)
    assert made.document["overwrite_image_reader_writer"] == "NibabelIO"
    np.testing.assert_array_equal(nibabel.load(output / "imagesTr/one_0000.nii.gz").affine, affine.astype(np.float32))


def test_nrrd_files_and_dicom_with_seg_keep_their_places(tmp_path: Path) -> None:
    source = tmp_path / "dicom"
    for number in range(2):
        write_mr_series(source / f"case{number}/mr", lopsided_array() + number, oblique_affine())
        image = read_series(source / f"case{number}/mr")
        write_seg(image.with_array(lopsided_labels()), image, source / f"case{number}/seg.dcm", RESULT)
    output, made = written(source, tmp_path)
    check_round_trip(find_data(source), output, {1: 1, 2: 2})
    # The SEG's labels; the first segment is the anterior one by its codes
    assert list(made.document["labels"]) == ["background", "Anterior Front part", "Back part"]
    assert made.document["channel_names"] == {"0": "MR"}
    for kind, array in (("images", image.array), ("labels", lopsided_labels())):
        (tmp_path / "nrrd" / kind).mkdir(parents=True)
        write_itk(array, image, tmp_path / "nrrd" / kind / "one.nrrd")
    again, _ = written(tmp_path / "nrrd", tmp_path / "again")
    check_round_trip(find_data(tmp_path / "nrrd"), again, {1: 1, 2: 2})


def test_pictures_that_number_their_objects_become_png_with_one_structure(tmp_path: Path, run: Run) -> None:
    source = numbered_discs(tmp_path / "source")
    with pytest.raises(InputRefusedError, match="the labels hold 40 different values"):
        written(source, tmp_path)
    output = tmp_path / NAME
    assert run("convert", source, "--to", "nnunet", "--output", output, "--objects", "nucleus").code == 0
    document = json.loads((output / "dataset.json").read_text())
    assert document["labels"] == {"background": 0, "nucleus": 1}
    assert document["source_label_values"] == {"nucleus": "above 0"}
    assert document["file_ending"] == ".png"
    again = find_data(output)
    assert [case.id for case in again] == [f"p{number}" for number in range(5)]
    for number, case in enumerate(again):
        with Image.open(case.image) as image, Image.open(case.label) as label:
            assert (image.mode, label.mode) == ("RGB", "L")  # alpha is no channel of the image
            with Image.open(source / f"images/p{number}.png") as before:
                np.testing.assert_array_equal(np.asarray(image), np.asarray(before)[..., :3])
            discs = np.asarray(Image.open(source / f"labels/p{number}.png"))
            np.testing.assert_array_equal(np.asarray(label), discs > 0)


def test_colours_stay_in_one_file_and_grey_values_in_16_bits(tmp_path: Path) -> None:
    cases = find_data(drawn_eyes(tmp_path / "eyes"), label_suffix="_1stHO")
    output, made = written(cases, tmp_path)
    assert made.document["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert sorted(file.name for file in (output / "imagesTr").iterdir()) == [f"eye_{n}_0000.png" for n in range(1, 5)]
    for case in cases:
        with Image.open(case.image) as before, Image.open(output / f"imagesTr/{case.id}_0000.png") as after:
            np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
    (tmp_path / "grey").mkdir()
    deep = np.arange(70 * 90, dtype=np.uint16).reshape(70, 90) * 9
    Image.fromarray(deep).save(tmp_path / "grey/deep.png")
    Image.fromarray((deep > 20000).astype(np.uint8)).save(tmp_path / "grey/label.png")
    grey = one_case(tmp_path, tmp_path / "grey/deep.png", tmp_path / "grey/label.png")
    output, made = written(grey, tmp_path / "16")
    assert made.document["channel_names"] == {"0": "grey"}
    np.testing.assert_array_equal(np.asarray(Image.open(output / "imagesTr/one_0000.png")), deep)
    Image.fromarray(deep.astype(np.float32) / 7).save(tmp_path / "grey/fractions.tif")
    grey = [replace(grey[0], image=tmp_path / "grey/fractions.tif")]
    with pytest.raises(InputRefusedError, match=r"one: its values go from 0 to .*whole numbers from 0 to 65535"):
        written(grey, tmp_path / "fractions")
    assert list((tmp_path / "fractions").iterdir()) == []


def test_a_bundle_names_the_values_and_voxels_without_a_class_come_last(pair: Any, tmp_path: Path) -> None:
    image, label = pair
    values = np.asarray(label.dataobj).copy() * 4  # 4 and 8
    values[0, 0, 0] = 255
    cases = one_case(tmp_path, saved(image, tmp_path / "one.nii.gz"),
                     saved(nibabel.Nifti1Image(values, label.affine), tmp_path / "l.nii.gz"))  # fmt: skip
    said = {"structures": ("Liver", "Spleen"), "values": FileValues((8, 4), ignored=255)}
    output, made = written(cases, tmp_path, **said)
    assert made.document["labels"] == {"background": 0, "Liver": 1, "Spleen": 2, "ignore": 3}
    assert made.document["source_label_values"] == {"Liver": 8, "Spleen": 4, "ignore": 255}
    found = np.asarray(nibabel.load(output / "labelsTr/one.nii.gz").dataobj)
    np.testing.assert_array_equal(found, np.select([values == 8, values == 4, values == 255], [1, 2, 3]))
    with pytest.raises(InputRefusedError, match=r"holds the value\(s\) \[8\]"):
        written(cases, tmp_path / "few", structures=("Liver",), values=FileValues((4,), ignored=255))


@pytest.fixture
def planned(volumes: Path, tmp_path: Path) -> Path:
    """A plan: cases 1 and 4 test, and folds 0 and 2 have no case that trains."""
    parts, folds = ("train", "test", "selection", "train", "test"), (1, 0, 3, 1, 2)
    rows = [
        {"id": f"case{n}", "subject": f"s{n}", "partition": part, "fold": fold}
        for n, (part, fold) in enumerate(zip(parts, folds, strict=True))
    ]
    (tmp_path / "splits.json").write_text(json.dumps({"schema_version": "1.0", "datasets": {"d": {"cases": rows}}}))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["image", "label", *rows[0]])
        table.writeheader()
        for row in rows:
            image, label = volumes / f"imagesTr/{row['id']}_0000.nii.gz", volumes / f"labelsTr/{row['id']}.nii.gz"
            table.writerow({"image": image, "label": label, **row})
    return tmp_path / "splits.json"


@pytest.mark.parametrize("by_list", [False, True])
def test_test_cases_stay_apart_and_the_folds_of_the_plan_are_nnunets(
    by_list: bool, volumes: Path, planned: Path, tmp_path: Path, run: Run
) -> None:
    output = tmp_path / "raw" / NAME
    source = [tmp_path / "list.csv"] if by_list else [volumes, "--splits", planned]
    answer = run("convert", *source, "--to", "nnunet", "--output", output, "--structure", "2=liver",
                 "--structure", "5=left kidney", "--modality", "CT", "--json")  # fmt: skip
    assert answer.code == 0, answer.err
    assert json.loads(answer.out) == {
        "output": str(output), "training": 3, "test": 2, "folds": 2, "label_values": {"liver": 2, "left kidney": 5},
    }  # fmt: skip
    files = sorted(str(path.relative_to(output)) for path in output.rglob("*.gz"))
    ends = [("Tr", n) for n in (0, 2, 3)] + [("Ts", n) for n in (1, 4)]
    assert files == sorted(
        name for end, n in ends for name in (f"images{end}/case{n}_0000.nii.gz", f"labels{end}/case{n}.nii.gz")
    )
    assert json.loads((output / "splits_final.json").read_text()) == [
        {"train": ["case2"], "val": ["case0", "case3"]},
        {"train": ["case0", "case3"], "val": ["case2"]},
    ]
    assert json.loads((output / "dataset.json").read_text())["numTraining"] == 3


def test_the_verb_says_what_became_of_the_values(volumes: Path, tmp_path: Path, run: Run) -> None:
    answer = run("convert", volumes, "--to", "nnunet", "--output", tmp_path / NAME)
    assert answer.code == 0
    assert "5 cases to train, 0 to test" in answer.out
    assert "--modality CT" in answer.err
    assert "splits_final" not in answer.out
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / NAME).rglob("*"))
    again = run("convert", volumes, "--to", "nnunet", "--output", tmp_path / NAME)
    assert again.code == 2
    assert "a conversion never replaces files" in again.err
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / NAME).rglob("*")) == before


def test_a_bundle_that_was_planned_brings_its_modality_and_names(
    volumes: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai_unet_app.planning.speed.seconds_of_a_window", lambda *of, **named: 0.02)
    bundle = tmp_path / "made"
    said = ["--structure", "2=liver", "--structure", "5=left kidney", "--modality", "CT", "--time", "1min"]
    assert run("plan", volumes, "--output", bundle, *said).code == 0
    answer = run("convert", volumes, "--to", "nnunet", "--output", tmp_path / NAME, "--bundle", bundle)
    assert answer.code == 0, answer.err
    document = json.loads((tmp_path / NAME / "dataset.json").read_text())
    assert document["labels"] == {"background": 0, "Liver": 1, "Left kidney": 2}
    assert document["source_label_values"] == {"Liver": 2, "Left kidney": 5}
    assert document["channel_names"] == {"0": "CT"}
    # The plan of the bundle has five folds of the five cases
    folds = json.loads((tmp_path / NAME / "splits_final.json").read_text())
    assert sorted(name for fold in folds for name in fold["val"]) == [f"case{n}" for n in range(5)]
    both = run(
        "convert", volumes, "--to", "nnunet", "--output", tmp_path / NAME, "--bundle", bundle, "--structure", "2=a"
    )
    assert both.code == 2


def break_an_image(data: Path) -> dict[str, Any]:
    file = data / "imagesTr/case2_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:400])
    return {}


def give_one_two_channels(data: Path) -> dict[str, Any]:
    image = nibabel.load(data / "imagesTr/case1_0000.nii.gz")
    both = np.stack([image.get_fdata()] * 2, -1).astype(np.float32)
    saved(nibabel.Nifti1Image(both, image.affine), data / "imagesTr/case1_0000.nii.gz")
    return {}


def name_too_few(data: Path) -> dict[str, Any]:
    return {"told": {2: "liver"}}


def name_one_background(data: Path) -> dict[str, Any]:
    return {"told": {2: "Background", 5: "liver"}}


def name_one_by_a_number(data: Path) -> dict[str, Any]:
    return {"told": {2: "5", 5: "liver"}}


def hold_a_negative_value(data: Path) -> dict[str, Any]:
    label = nibabel.load(data / "labelsTr/case3.nii.gz")
    saved(
        nibabel.Nifti1Image(-np.asarray(label.dataobj).astype(np.int16), label.affine), data / "labelsTr/case3.nii.gz"
    )
    return {}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (break_an_image, "1 of 5 case.*case2: "),
        (give_one_two_channels, "channels 1, 2"),
        (name_too_few, r"the value 5 \(5 in case0, case1, .*, which have no name"),
        (name_one_background, "'Background'"),
        (name_one_by_a_number, "'5'"),
        (hold_a_negative_value, r"case3: label case3\.nii\.gz holds the value -5"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_left(
    volumes: Path, tmp_path: Path, spoil: Any, words: str
) -> None:
    data = Path(shutil.copytree(volumes, tmp_path / "data"))
    said = spoil(data)
    with pytest.raises(InputRefusedError, match=f"(?s){words}"):
        written(data, tmp_path, **said)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_name_that_nnunet_does_not_find_and_an_id_that_is_no_file_name_are_refused(
    volumes: Path, tmp_path: Path
) -> None:
    cases = find_data(volumes)
    for name in ("Liver", "Dataset12_Liver", "Dataset123Liver", "Dataset123_"):
        with pytest.raises(UsageError, match="Dataset101_Liver"):
            write_nnunet_folder(cases, NnunetConfig(tmp_path / name))
    with pytest.raises(InputRefusedError, match="a/b"):
        written([replace(cases[0], id="a/b")], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> Iterator[None]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left on device"):
        written(volumes, tmp_path)
    assert list(tmp_path.iterdir()) == []
