"""Cases whose channels are a file each: found by number or name, on the grid of the first; refused where one is absent."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from phantoms import linear_field, oblique_affine
from PIL import Image

from dicom_io.volume import LPS_FROM_RAS
from monai_unet_app.data.case_files import CaseFiles, find_data, find_images
from monai_unet_app.data.cases import data_row
from monai_unet_app.data.digest import dataset_sha256
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.rules import InputRules, check_channel_names
from monai_unet_app.errors import BundleError, InputRefusedError

NAMES = ("T1", "FLAIR")


def write_field(path: Path, affine_lps: np.ndarray, shape: tuple[int, int, int], add: float = 0.0) -> Path:
    """A linear field of world space, in float32."""
    index = np.stack([*np.indices(shape), np.ones(shape)], axis=-1)
    values = linear_field((index @ affine_lps.T)[..., :3]) + add
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), LPS_FROM_RAS @ affine_lps), path)
    return path


def raw_folder(folder: Path, cases: int = 2, channels: int = 2) -> Path:
    """A raw folder of nnU-Net, each channel on a grid of its own."""
    for case in range(cases):
        for channel in range(channels):
            affine = oblique_affine((1.5, 1.0, 2.0 - channel))
            write_field(folder / f"imagesTr/brain_{case}_{channel:04}.nii.gz", affine, (8, 9, 6 + 6 * channel))
        write_field(folder / f"labelsTr/brain_{case}.nii.gz", oblique_affine((1.5, 1.0, 2.0)), (8, 9, 6))
    labels = {"background": 0, "tumour": 1}
    document = {"channel_names": dict(enumerate(NAMES[:channels])), "labels": labels}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def test_files_with_numbers_are_channels_with_the_names_of_the_data_set(tmp_path: Path) -> None:
    one, other = find_data(raw_folder(tmp_path / "set"))
    assert (one.id, other.id) == ("brain_0", "brain_1")
    assert [file.name for file in one.files] == ["brain_0_0000.nii.gz", "brain_0_0001.nii.gz"]
    assert one.channel_names == NAMES
    row = data_row(one, "anna")
    assert row["image"] == [str(file) for file in one.files]
    assert row["channels"] == list(NAMES)


def test_a_case_without_one_of_its_channels_is_refused_by_name(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path / "set", cases=3)
    (folder / "imagesTr/brain_1_0000.nii.gz").unlink()
    with pytest.raises(
        InputRefusedError, match=r"1 of 3 case\(s\) do not have 2 channel\(s\) \(brain_1 has brain_1_0001\)"
    ):
        find_data(folder)
    with pytest.raises(InputRefusedError, match=r"brain_1 has brain_1_0001"):
        find_images(folder / "imagesTr", (), NAMES)
    (one,) = find_images(folder / "imagesTr/brain_0_0001.nii.gz", (), NAMES)  # the others are not asked for
    assert [file.name for file in one.files] == ["brain_0_0000.nii.gz", "brain_0_0001.nii.gz"]
    (folder / "imagesTr/brain_2.nii.gz").write_bytes(b"")
    with pytest.raises(InputRefusedError, match=r"brain_2\.nii\.gz and brain_2_0000\.nii\.gz are the same channel"):
        find_images(folder / "imagesTr", (), NAMES)
    (folder / "imagesTr/brain_2.nii.gz").unlink()
    (folder / "imagesTr/brain_1_0001.nii.gz").rename(folder / "imagesTr/brain_1_0002.nii.gz")
    with pytest.raises(InputRefusedError, match=r"brain_1 has brain_1_0002"):
        find_data(folder)


def test_new_images_are_grouped_for_a_bundle_with_channels_alone(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path / "set") / "imagesTr"
    assert [case.id for case in find_images(folder, (), NAMES)] == ["brain_0", "brain_1"]
    assert len(find_images(folder)) == 4
    for channel in range(2):
        (case,) = find_images(folder / f"brain_1_000{channel}.nii.gz", (), NAMES)
        assert [file.name for file in case.files] == ["brain_1_0000.nii.gz", "brain_1_0001.nii.gz"]


def test_the_second_channel_is_laid_on_the_grid_of_the_first(tmp_path: Path) -> None:
    coarse = oblique_affine((2.5, 2.5, 3.0), origin_lps=(-34.5, 10.0, -49.0), degrees=(2.0, -13.0, 30.0))
    first = write_field(tmp_path / "a.nii.gz", oblique_affine((1.5, 1.0, 2.0)), (10, 9, 6))
    second = write_field(tmp_path / "b.nii.gz", coarse, (12, 11, 9), add=100.0)
    volume = read_volume([first, second])
    reference = read_volume(first)
    assert volume.array.shape == (10, 9, 6, 2)
    assert np.array_equal(volume.array[..., 0], reference.array)
    assert np.array_equal(volume.affine_lps, reference.affine_lps)
    index = np.stack([*np.indices(volume.shape), np.ones(volume.shape)], axis=-1)
    there = index @ (np.linalg.inv(coarse) @ volume.affine_lps).T
    inside = ((there[..., :3] >= 0) & (there[..., :3] <= [11, 10, 8])).all(axis=-1)
    assert inside.sum() > 100
    # Linear interpolation of a linear field is the field itself
    expected = linear_field((index @ volume.affine_lps.T)[..., :3]) + 100.0
    assert np.abs(volume.array[..., 1] - expected)[inside].max() < 1e-3
    assert volume.provenance.others[0].files == (second,)
    assert f"channel 2 is {second.name}: interpolated linearly" in volume.provenance.notes[-1]


def test_channels_that_have_no_place_together_are_refused(tmp_path: Path) -> None:
    near = write_field(tmp_path / "near.nii.gz", oblique_affine(), (8, 9, 6))
    far = write_field(tmp_path / "far.nii.gz", oblique_affine(origin_lps=(900.0, 0.0, 0.0)), (8, 9, 6))
    with pytest.raises(InputRefusedError, match=r"far\.nii\.gz lies wholly outside of the grid of near\.nii\.gz"):
        read_volume([near, far])
    for name, size in (("a", (12, 10)), ("b", (12, 11))):
        Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[::-1])).save(tmp_path / f"{name}.png")
    with pytest.raises(InputRefusedError, match=r"b\.png has 12 x 11 x 1 pixels, a\.png 12 x 10 x 1"):
        read_volume([tmp_path / "a.png", tmp_path / "b.png"])
    with pytest.raises(InputRefusedError, match=r"near\.nii\.gz has .*; pictures of one size"):
        read_volume([tmp_path / "a.png", near])
    Image.new("RGB", (12, 10)).save(tmp_path / "colour.png")
    with pytest.raises(InputRefusedError, match=r"colour\.png is a picture or has channels of its own"):
        read_volume([tmp_path / "a.png", tmp_path / "colour.png"])


def test_a_list_names_the_channels(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path / "set")
    files = [[f"imagesTr/brain_{case}_000{channel}.nii.gz" for channel in range(2)] for case in range(2)]
    with (folder / "list.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "image_T1", "image_FLAIR", "label"])
        writer.writerows([f"case{n}", *pair, f"labelsTr/brain_{n}.nii.gz"] for n, pair in enumerate(files))
    by_name = [{"image": dict(zip(NAMES, pair, strict=True)), "id": f"case{n}"} for n, pair in enumerate(files)]
    (folder / "named.json").write_text(json.dumps(by_name))
    (folder / "plain.json").write_text(json.dumps([{"image": pair, "id": f"case{n}"} for n, pair in enumerate(files)]))
    for name, names in (("list.csv", NAMES), ("named.json", NAMES), ("plain.json", ())):
        cases = find_images(folder / name)
        assert [[str(file.relative_to(folder)) for file in case.files] for case in cases] == files
        assert [case.channel_names for case in cases] == [names] * 2
    (folder / "list.csv").write_text("id,image_T1,image_FLAIR\na,imagesTr/brain_0_0000.nii.gz,\n")
    with pytest.raises(InputRefusedError, match=r"case 1 has no image FLAIR"):
        find_images(folder / "list.csv")


def test_a_bundle_knows_the_order_of_its_channels() -> None:
    rules = InputRules.parse({"channels": list(NAMES)})
    assert (rules.channels, rules.channel_names) == (2, NAMES)
    check_channel_names([("a", NAMES), ("b", ())], rules)
    check_channel_names([("a", ("other", "names"))], InputRules.parse({"channels": 2}))
    with pytest.raises(InputRefusedError, match=r"channels FLAIR, T1 \(a\); T1, FLAIR, in this order, are what"):
        check_channel_names([("a", NAMES[::-1])], rules)
    for wrong in (["T1"], ["T1", "T1"], "two"):
        with pytest.raises(BundleError, match="cannot be used"):
            InputRules.parse({"channels": wrong})


def test_the_digest_of_a_data_set_knows_every_file(tmp_path: Path) -> None:
    case = find_data(raw_folder(tmp_path / "set"))[0]
    before = dataset_sha256([data_row(case, "anna")])
    assert before != dataset_sha256([data_row(CaseFiles(case.id, case.image, case.label), "anna")])
    write_field(case.channels[0], oblique_affine(), (8, 9, 6))
    assert dataset_sha256([data_row(case, "anna")]) != before
