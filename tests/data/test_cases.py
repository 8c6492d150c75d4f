"""Cases found in folders: each with its own label, id and partition, and never half of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from phantoms import lopsided_array, lopsided_labels, oblique_affine, write_mr_series
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage, generate_uid
from scipy.ndimage import gaussian_filter

from dicom_io.dicomize import dicomize
from dicom_io.read import ReadOptions
from dicom_io.volume import Provenance, Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.data.case_files import case_id, find_cases, find_data, find_images
from monai_unet_app.data.cases import by_partition, image_rows, plan_of, subjects_of
from monai_unet_app.data.digest import (
    dataset_sha256,
    file_sha256,
    image_fingerprint,
    mirrored_fingerprints,
    place_among,
    same_image,
)
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.shipped import shipped


def touch(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())
    return folder


def series(folder: Path, shape: tuple[int, int, int] = (5, 4, 6), **header: object) -> list[Path]:
    return write_mr_series(folder, lopsided_array(shape), oblique_affine(), header=header or None)


def test_a_cases_id_is_its_name_without_the_ending() -> None:
    names = ["a.nii.gz", "a.nii", "a.b.nii.gz", "A.PNG", "a.dcm", "folder"]
    assert [case_id(Path(name)) for name in names] == ["a", "a", "a.b", "A", "a", "folder"]


def test_images_of_a_folder_come_in_order_and_other_files_are_passed_by(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", ["b.nii.gz", "a.nii", "README.md", "c.jpg", ".DS_Store"])
    assert [case.id for case in find_images(folder)] == ["a", "b", "c"]
    assert image_rows(folder)[0] == {"image": str(folder / "a.nii"), "id": "a"}
    assert [case.id for case in find_images(folder / "b.nii.gz")] == ["b"]


@pytest.mark.parametrize("names", [[], ["README.md", "notes.txt"]])
def test_a_folder_without_an_image_is_refused(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="in/"):
        find_images(touch(tmp_path / "in", names))
    with pytest.raises(InputRefusedError, match="none does not exist"):
        find_images(tmp_path / "none")


def test_a_folder_that_has_images_in_a_folder_only_says_in_which(tmp_path: Path) -> None:
    touch(tmp_path / "in/imagesTr", ["a.nii.gz"])
    with pytest.raises(InputRefusedError, match="no image found in in/, but in its folder imagesTr/; NIfTI"):
        find_images(touch(tmp_path / "in", ["README.md"]))


def test_two_files_of_one_name_are_refused_because_one_result_would_replace_the_other(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match=r"2 cases of in/ are called a \(a\.nii, a\.nii\.gz\)"):
        find_images(touch(tmp_path / "in", ["a.nii", "a.nii.gz", "b.nii"]))


def test_labels_are_found_by_name_and_suffix(tmp_path: Path) -> None:
    images = touch(tmp_path / "images", ["a.jpg", "b.jpg"])
    labels = touch(tmp_path / "labels", ["a_1st.png", "a_2nd.png", "b_1st.png"])
    assert [case.label for case in find_cases(images, labels, "_1st")] == [labels / "a_1st.png", labels / "b_1st.png"]
    with pytest.raises(InputRefusedError, match=r"1 of 2 image\(s\) have no label: b; .* plus '_2nd'"):
        find_cases(images, labels, "_2nd")
    assert [case.label for case in find_cases(images, labels, "_2nd", need_all=False)] == [labels / "a_2nd.png", None]
    with pytest.raises(InputRefusedError, match=r"2 of 2 image\(s\) have no label"):
        find_cases(images, labels, "_3rd", need_all=False)
    with pytest.raises(
        InputRefusedError, match="none/ is not a folder; one with a label for each image is needed, a and so on"
    ):
        find_cases(images, tmp_path / "none")


def test_images_and_labels_in_one_folder_are_told_apart_by_the_suffix(tmp_path: Path) -> None:
    names = [f"Image_01{side}{tail}" for side in "LR" for tail in (".jpg", "_1stHO.png", "_2ndHO.png")]
    folder = touch(tmp_path / "in", names)
    cases = find_cases(folder, label_suffix="_1stHO")
    assert [(case.id, case.label.name if case.label else None) for case in cases] == [
        ("Image_01L", "Image_01L_1stHO.png"),
        ("Image_01R", "Image_01R_1stHO.png"),
    ]
    with pytest.raises(InputRefusedError, match="give --labels DIR, or --label-suffix"):
        find_cases(folder)


def test_an_image_whose_name_goes_on_from_anothers_is_never_dropped(tmp_path: Path) -> None:
    names = ["p1.png", "p1_seg.png", "p1_later.png", "p2.png", "p2_seg.png"]
    folder = touch(tmp_path / "in", names)
    with pytest.raises(InputRefusedError, match=r"1 of 3 image\(s\) have no label: p1_later"):
        find_cases(folder, label_suffix="_seg")
    numbers = touch(tmp_path / "numbers", ["a1.png", "a1_seg.png", "a10.png", "b1.png", "b1_seg.png", "b10.png"])
    with pytest.raises(InputRefusedError, match=r"2 of 4 image\(s\) have no label: a10, b10"):
        find_cases(numbers, label_suffix="_seg")
    touch(folder, ["p1_later_seg.png"])
    assert [case.id for case in find_cases(folder, label_suffix="_seg")] == ["p1", "p1_later", "p2"]


def test_images_of_two_kinds_in_one_folder_are_refused(tmp_path: Path) -> None:
    series(tmp_path / "in")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "in/preview.png")
    with pytest.raises(InputRefusedError, match=r"1 image file\(s\) \(preview\.png \.\.\.\) and DICOM images"):
        find_images(tmp_path / "in")
    touch(tmp_path / "above", ["a.nii.gz"])
    (tmp_path / "in").rename(tmp_path / "above/in")
    with pytest.raises(InputRefusedError, match="beside or below them"):
        find_images(tmp_path / "above")
    (tmp_path / "above/in").rename(tmp_path / "in")
    (tmp_path / "in/preview.png").unlink()
    assert len(find_images(tmp_path / "in")) == 1
    (file, *others) = sorted((tmp_path / "in").glob("*.dcm"))
    for other in others:
        other.unlink()
    file.write_bytes(file.read_bytes()[:-20])
    touch(tmp_path / "in", ["a.nii.gz"])
    assert [case.id for case in find_images(tmp_path / "in")] == ["a", case_id(file)]


def test_two_labels_of_one_name_are_refused(tmp_path: Path) -> None:
    images = touch(tmp_path / "images", ["a.png"])
    labels = touch(tmp_path / "labels", ["a.png", "a.txt"])
    assert find_cases(images, labels)[0].label == labels / "a.png"
    touch(labels, ["a.tif"])
    with pytest.raises(InputRefusedError, match=r"has a\.png and a\.tif; one label for each name is needed"):
        find_cases(images, labels)


def test_the_folder_one_stands_in_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path / "study/deep")
    monkeypatch.chdir(tmp_path / "study")
    assert [case.id for case in find_images(Path("."))] == ["study"]
    monkeypatch.chdir(tmp_path / "study/deep")
    assert [case.id for case in find_images(Path(".."))] == ["study"]


def test_a_damaged_series_is_said_to_be_that_and_not_unlabelled(tmp_path: Path) -> None:
    series(tmp_path / "in/good")
    bad = series(tmp_path / "in/bad")[2]
    bad.write_bytes(bad.read_bytes()[:-20])
    with pytest.raises(InputRefusedError, match="is broken"):
        find_cases(tmp_path / "in")


def test_of_a_study_only_the_named_series_is_taken(tmp_path: Path) -> None:
    uids = {name: generate_uid() for name in ("t1", "t2")}
    for name, uid in uids.items():
        series(tmp_path / "study" / name, SeriesInstanceUID=uid)
    assert [case.id for case in find_images(tmp_path / "study")] == ["t1", "t2"]
    assert [case.id for case in find_images(tmp_path / "study", [uids["t2"]])] == ["t2"]
    (one,) = find_images(tmp_path / "study", ["1.2.3"])
    with pytest.raises(InputRefusedError, match=r"1\.2\.3 among .*" + uids["t1"]):
        read_volume(one.image, ReadOptions("1.2.3"))


def test_a_named_series_is_found_beside_a_broken_file_of_another_folder(tmp_path: Path) -> None:
    uids = {name: generate_uid() for name in ("t1", "t2")}
    for name, uid in uids.items():
        series(tmp_path / "study" / name, SeriesInstanceUID=uid)
    broken = next((tmp_path / "study/t1").iterdir())
    broken.write_bytes(broken.read_bytes()[:-20])
    (case,) = find_images(tmp_path / "study", [uids["t2"]])
    assert read_volume(case.image, ReadOptions(uids["t2"])).shape == (5, 4, 6)


def test_channels_in_folders_of_their_own_are_one_case_of_their_study(tmp_path: Path) -> None:
    space, uids = generate_uid(), {name: generate_uid() for name in ("t1", "t2", "flair")}
    for name, uid in uids.items():
        header = {"SeriesInstanceUID": uid, "FrameOfReferenceUID": space, "StudyInstanceUID": "1.2.3"}
        series(tmp_path / "in/p1" / name, **header)
    series(tmp_path / "in/p2/t1", StudyInstanceUID="1.2.4", SeriesInstanceUID="1.2.4.1")
    wanted = (uids["t2"], uids["t1"])
    (case,) = find_images(tmp_path / "in", wanted)
    assert case.id == "p1"
    volume = read_volume(case.image, ReadOptions(channels=wanted))
    assert (volume.array.shape, volume.provenance.series_instance_uid) == ((5, 4, 6, 2), uids["t2"])
    assert [case.id for case in find_images(tmp_path / "in/p1", wanted)] == ["p1"]
    (none,) = find_images(tmp_path / "in", (uids["t1"], "1.2.9"))
    with pytest.raises(InputRefusedError, match=r"found no series 1\.2\.9"):
        read_volume(none.image, ReadOptions(channels=(uids["t1"], "1.2.9")))


def test_an_empty_dicomdir_is_said_to_list_nothing(tmp_path: Path) -> None:
    index = pydicom.Dataset()
    index.file_meta = pydicom.dataset.FileMetaDataset()
    index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    index.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    index.FileSetID, index.DirectoryRecordSequence = "CD", []
    (tmp_path / "cd").mkdir()
    index.save_as(tmp_path / "cd/DICOMDIR", enforce_file_format=True)
    with pytest.raises(InputRefusedError, match="no image found in cd/: DICOMDIR lists 0 files"):
        find_images(tmp_path / "cd")


def test_several_label_objects_matter_only_where_a_label_is_wanted(tmp_path: Path) -> None:
    labels = lopsided_labels((5, 4, 6))
    image = Volume.from_ras(lopsided_array((5, 4, 6)).astype(np.float32), oblique_affine(), Provenance("nifti"))
    segments = load_bundle("hippocampus_mri_unet3d").segments
    made = dicomize(image, tmp_path / "in", labels=image.with_array(labels), segments=segments, case_id="p1")
    assert find_cases(tmp_path / "in")[0].label == made.seg
    (tmp_path / "in/again.dcm").write_bytes((tmp_path / "in/seg.dcm").read_bytes())
    assert len(find_images(tmp_path / "in")) == 1
    with pytest.raises(InputRefusedError, match=r"2 label objects \(SEG again\.dcm, SEG seg\.dcm\); one is"):
        find_cases(tmp_path / "in")


def test_a_broken_file_beside_the_folders_of_cases_costs_none_of_them(tmp_path: Path) -> None:
    series(tmp_path / "in/good")
    touch(tmp_path / "in", ["notes.txt"])
    (tmp_path / "in/stray.dcm").write_bytes(b"DICM")
    assert {case.id for case in find_images(tmp_path / "in")} == {"good", "stray"}


def test_two_series_of_one_patient_are_one_subject(tmp_path: Path) -> None:
    for name, patient in (("a", "17"), ("b", "18"), ("c", "17"), ("d", ""), ("e", "")):
        series(tmp_path / "in" / name, SeriesInstanceUID=generate_uid(), PatientID=patient)
    cases = find_images(tmp_path / "in")
    assert subjects_of(cases) == {"a": "a", "b": "b", "c": "a", "d": "d", "e": "e"}
    plan = plan_of(cases, None)
    assert plan["a"].partition == plan["c"].partition
    assert "17" not in json.dumps([vars(place) for place in plan.values()])


def test_an_issuer_that_some_series_leave_out_is_the_one_of_the_others(tmp_path: Path) -> None:
    told = {"a": ("17", "X"), "b": ("17", ""), "c": ("18", "X"), "d": ("18", "Y"), "e": ("18", "")}
    for name, (patient, issuer) in told.items():
        more = {"PatientID": patient, "IssuerOfPatientID": issuer}
        series(tmp_path / "in" / name, SeriesInstanceUID=generate_uid(), **more)
    subjects = subjects_of(find_images(tmp_path / "in"))
    assert subjects == {"a": "a", "b": "a", "c": "c", "d": "d", "e": "e"}  # two issuers: which one is unknown


def test_names_that_differ_in_the_side_alone_are_of_one_subject(tmp_path: Path) -> None:
    pairs = [("Image_21L", "Image_21R"), ("p7_left", "p7_right"), ("RET3OD", "RET3OS")]
    alone = ["Image_22L", "p8", "p8_1", "scan_left", "scan_right"]
    cases = find_images(touch(tmp_path, [f"{name}.png" for name in [*(one for pair in pairs for one in pair), *alone]]))
    subjects = subjects_of(cases)
    assert subjects == {one: pair[0] for pair in pairs for one in pair} | {one: one for one in alone}
    plan = plan_of(cases, None)
    assert all((plan[a].partition, plan[a].fold) == (plan[b].partition, plan[b].fold) for a, b in pairs)


def test_a_case_of_the_users_does_not_part_subjects_that_the_shipped_plan_knows(tmp_path: Path) -> None:
    cases = find_images(touch(tmp_path, ["hippocampus_003.nii.gz", "hippocampus_004.nii.gz", "mine.nii.gz"]))
    subjects = subjects_of(cases)
    assert subjects["hippocampus_003"] == subjects["hippocampus_004"]
    assert subjects["mine"] == "mine"


def test_each_folder_with_a_series_is_a_case_named_by_the_highest_folder_of_its_own(tmp_path: Path) -> None:
    series(tmp_path / "in/p1/study/mr")
    series(tmp_path / "in/p2")
    found = find_images(tmp_path / "in")
    assert [(case.id, read_volume(case.image).shape) for case in found] == [("p1", (5, 4, 6)), ("p2", (5, 4, 6))]
    assert [case.id for case in find_images(tmp_path / "in/p1")] == ["p1"]


def test_cases_in_folders_of_the_same_name_keep_ids_of_their_own(tmp_path: Path) -> None:
    for place in ("A/first", "A/second", "B/first", "B/second"):
        series(tmp_path / "in" / place)
    assert [case.id for case in find_images(tmp_path / "in")] == ["A_first", "A_second", "B_first", "B_second"]


def test_a_series_beside_another_ones_folder_keeps_an_id_of_its_own(tmp_path: Path) -> None:
    series(tmp_path / "in/p1")
    series(tmp_path / "in/p1/extra")
    series(tmp_path / "in/p2")
    ids = [case.id for case in find_images(tmp_path / "in")]
    assert len(set(ids)) == 3


def test_a_series_whose_files_lie_in_several_folders_is_read_whole(tmp_path: Path) -> None:
    files = series(tmp_path / "in/all")
    for number, file in enumerate(files):
        part = tmp_path / "in" / f"part{number // 4}"
        part.mkdir(exist_ok=True)
        file.rename(part / file.name)
    (tmp_path / "in/all").rmdir()
    (case,) = find_images(tmp_path / "in")
    assert read_volume(case.image).shape == (5, 4, 6)


def test_a_broken_file_costs_its_own_case_only(tmp_path: Path) -> None:
    series(tmp_path / "in/good")
    series(tmp_path / "in/other/mr")
    bad = series(tmp_path / "in/bad/mr")[2]
    bad.write_bytes(bad.read_bytes()[:-20])
    touch(tmp_path / "in/papers", ["notes.txt"])
    broken, good, other = find_images(tmp_path / "in")
    assert (good.id, other.id) == ("good", "other")
    assert read_volume(good.image).shape == read_volume(other.image).shape == (5, 4, 6)
    with pytest.raises(InputRefusedError, match=r"broken .*; a whole DICOM file is needed"):
        read_volume(broken.image)


def test_two_series_in_one_folder_are_one_case_that_must_be_told_which(tmp_path: Path) -> None:
    uids = [generate_uid(), generate_uid()]
    for uid in uids:
        series(tmp_path / "in" / "p1" / uid, SeriesInstanceUID=uid)
    folder = tmp_path / "flat"
    folder.mkdir()
    for number, file in enumerate(sorted((tmp_path / "in").rglob("*.dcm"))):
        file.rename(folder / f"{number}.dcm")
    (case,) = find_images(folder)
    with pytest.raises(InputRefusedError, match=r"found 2 image series.*--series UID"):
        read_volume(case.image)
    assert read_volume(case.image, ReadOptions(uids[0])).provenance.series_instance_uid == uids[0]


def test_a_data_folder_gives_rows_by_partition(tmp_path: Path) -> None:
    touch(tmp_path / "images", ["a.nii.gz", "b.nii.gz"])
    touch(tmp_path / "labels", ["a.nii.gz", "b.nii.gz"])
    rows = [
        {"id": "a", "subject": "1", "partition": "train", "fold": 0},
        {"id": "b", "subject": "2", "partition": "test", "fold": 1},
        {"id": "c", "subject": "3", "partition": "test", "fold": 1},
    ]
    plan = tmp_path / "splits.json"
    plan.write_text(json.dumps({"schema_version": "1.0", "datasets": {"set": {"cases": rows}}}))
    found = by_partition(tmp_path, plan)
    assert {part: [row["id"] for row in part_rows] for part, part_rows in found.items()} == {
        "train": ["a"], "selection": [], "calibration": [], "test": ["b"],
    }  # fmt: skip
    assert found["test"][0]["label"] == str(tmp_path / "labels/b.nii.gz")
    touch(tmp_path / "images", ["d.nii.gz"])
    touch(tmp_path / "labels", ["d.nii.gz"])
    with pytest.raises(InputRefusedError, match=r"does not know 1 of 3 case\(s\): d"):
        by_partition(tmp_path, plan)


def test_the_shipped_plan_is_used_for_its_own_cases_and_a_new_one_for_others(tmp_path: Path) -> None:
    touch(tmp_path / "images", ["hippocampus_003.nii.gz", "hippocampus_004.nii.gz"])
    touch(tmp_path / "labels", ["hippocampus_003.nii.gz", "hippocampus_004.nii.gz"])
    plan = plan_of(find_data(tmp_path), None)
    assert {case.subject for case in plan.values()} == {"002"}
    names = [f"case{n}.nii.gz" for n in range(9)]
    own = plan_of(find_images(touch(tmp_path / "own", names)), None)
    assert {case.partition for case in own.values()} == {"train", "selection", "calibration", "test"}


def test_a_data_sets_digest_knows_the_content_and_not_the_folder(tmp_path: Path) -> None:
    rows = {}
    for place in ("here", "there"):
        image, label = tmp_path / place / "a.nii", tmp_path / place / "l.nii"
        image.parent.mkdir()
        image.write_bytes(b"voxels")
        label.write_bytes(b"labels")
        rows[place] = [{"id": name, "image": str(image), "label": str(label)} for name in ("a", "b")]
    assert dataset_sha256(rows["here"]) == dataset_sha256(rows["there"][::-1])
    (tmp_path / "there/l.nii").write_bytes(b"labelz")
    assert dataset_sha256(rows["here"]) != dataset_sha256(rows["there"])
    # sha256("abc"), FIPS 180-2 appendix B.1
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folders_digest_changes_when_two_files_swap_their_contents(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"one")
    (folder / "2.dcm").write_bytes(b"two")
    before = file_sha256(folder)
    (folder / "1.dcm").write_bytes(b"two")
    (folder / "2.dcm").write_bytes(b"one")
    assert file_sha256(folder) != before


def test_pictures_and_volumes_are_cases_alike(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(lopsided_array(), np.eye(4)), tmp_path / "v.nii.gz")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "p.PNG")
    assert [case.id for case in find_images(tmp_path)] == ["p", "v"]


def drawn_volume(seed: int = 0) -> Volume:
    """Smooth noise on an oblique, lopsided grid."""
    noise = np.random.default_rng(seed).normal(size=(19, 31, 23))
    affine = np.array([[0.9, 0.3, 0.1, -20], [-0.3, 0.95, 0.2, 7], [-0.05, -0.2, 2.1, 3], [0, 0, 0, 1.0]])
    return Volume.from_ras((gaussian_filter(noise, 2) * 1000).astype(np.float32), affine, Provenance("nifti"))


def known_again(volume: Volume, other: Volume) -> bool:
    return any(same_image(image_fingerprint(volume), mark) for mark in mirrored_fingerprints(other))


def turned(volume: Volume) -> Volume:
    """The same voxels in another order."""
    image = nibabel.Nifti1Image(volume.array, volume.affine_ras)
    other = image.as_reoriented(nibabel.orientations.axcodes2ornt("PIL"))
    return Volume.from_ras(np.asarray(other.dataobj), other.affine, volume.provenance)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(turned, id="turned"),
        pytest.param(lambda volume: volume.with_array(volume.array[::-1, :, ::-1]), id="mirrored"),
        pytest.param(lambda volume: volume.with_array(volume.array * 0.37 + 900), id="rescaled"),
        pytest.param(lambda volume: volume.with_array(np.rint(volume.array)), id="rounded to integers"),
        pytest.param(lambda volume: volume.with_array(np.rint((volume.array + 600) / 1200 * 255)), id="to 8 bits"),
    ],
)
def test_an_image_is_known_again_however_it_was_saved(changed: Callable[[Volume], Volume]) -> None:
    assert known_again(drawn_volume(), changed(drawn_volume()))


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(lambda volume: drawn_volume(1), id="another image"),
        pytest.param(lambda volume: volume.with_array(np.ascontiguousarray(-volume.array)), id="inverted"),
    ],
)
def test_another_image_is_told_apart(changed: Callable[[Volume], Volume]) -> None:
    assert not known_again(drawn_volume(), changed(drawn_volume()))


def test_of_images_that_look_alike_each_is_known_as_itself() -> None:
    alike = [drawn_volume().with_array(drawn_volume().array + step * drawn_volume(1).array) for step in (0, 0.004, 0.4)]
    marks = [image_fingerprint(volume) for volume in alike]
    assert marks[0] != marks[1]
    assert same_image(*marks[:2])
    assert [place_among(volume, marks) for volume in alike] == [0, 1, 2]
    assert place_among(alike[1], marks[:1]) == 0
    assert place_among(alike[2], marks[:2]) is None


def test_no_two_example_cases_look_alike() -> None:
    marks = [image_fingerprint(read_volume(case.image)) for case in find_data(shipped("examples") / "msd_hippocampus")]
    assert len(marks) == 96
    assert not [pair for pair in combinations(marks, 2) if same_image(*pair)]


def test_a_fold_tests_its_own_subjects_and_sees_none_that_the_bundle_is_tested_on() -> None:
    data = shipped("examples") / "msd_hippocampus"
    plan = plan_of(find_data(data), None)
    parts = {row["id"]: part for part, rows in by_partition(data, fold=2).items() for row in rows}
    for name, place in plan.items():
        if place.partition == "test":
            assert name not in parts
        else:
            assert parts[name] == ("test" if place.fold == 2 else "train")
    everything = {row["id"]: part for part, rows in by_partition(data, fold="all").items() for row in rows}
    assert everything == {name: "test" if place.partition == "test" else "train" for name, place in plan.items()}
    subjects = {part: {plan[case].subject for case in parts if parts[case] == part} for part in set(parts.values())}
    for one, other in combinations(subjects.values(), 2):
        assert not one & other


def test_a_picture_is_known_again_and_its_mirror_image_too() -> None:
    pixels = gaussian_filter(np.random.default_rng(3).normal(size=(61, 47, 1, 3)), (4, 4, 0, 0)).astype(np.float32)
    picture = Volume(pixels, np.eye(4), Provenance("image"), planar=True)
    assert known_again(picture, picture.with_array(np.ascontiguousarray(pixels[::-1])))
    assert not known_again(picture, picture.with_array(np.ascontiguousarray(-pixels)))


def test_channels_that_a_dataset_json_names_are_named_for_a_bundle_that_knows_one_of_them(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTs", [f"c_000{n}.nii.gz" for n in (0, 1)])
    for told, names in (({"0": "T2", "1": "T1"}, ("T2", "T1")), ({"0": "noNorm", "1": "zscore"}, ())):
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0}, "channel_names": told}))
        for source in (tmp_path / "imagesTs", tmp_path / "imagesTs/c_0000.nii.gz"):
            assert [case.channel_names for case in find_images(source, (), ("T1", "T2"))] == [names]
