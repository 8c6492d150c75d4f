"""`monai-unet regions`: label files from the structures of a SEG or RTSTRUCT, their way back, and what is refused."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from phantoms import lopsided_array, lopsided_labels, oblique_affine, tilted_affine, write_mr_series, write_picture
from pydicom.sr.codedict import codes
from shell import Run, shell

from dicom_io.coding import Segment
from dicom_io.itk_files import write_itk
from dicom_io.objects.identity import ResultInfo
from dicom_io.read import read_series
from dicom_io.rtstruct import read_rtstruct, write_rtstruct
from dicom_io.seg import read_seg, write_seg
from dicom_io.volume import Volume
from monai_unet_app.convert import label_file
from monai_unet_app.data.nifti import label_table
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError

run = pytest.fixture(shell)
NAMES = ("Liver", "Tumour")
RESULT = ResultInfo(
    tuple(Segment(n, name, codes.SCT.Organ, codes.SCT.Liver) for n, name in enumerate(NAMES, 1)),
    "network",
    "1",
    "0" * 64,
)


def drawn_on(volume: Volume) -> NDArray[np.bool_]:
    """Liver and tumour, which overlap, shape (I, J, K, 2)."""
    drawn = np.zeros((*volume.shape, 2), bool)
    drawn[1:6, 2:7, 1:5, 0], drawn[4:8, 3:9, 2:6, 1] = True, True
    return drawn


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    write_mr_series(tmp_path / "series", lopsided_array(), oblique_affine())
    return read_series(tmp_path / "series")


@pytest.fixture
def structure_set(volume: Volume, tmp_path: Path) -> Path:
    return write_rtstruct(volume.with_array(drawn_on(volume)), volume, tmp_path / "r.dcm", RESULT)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """While it is entered, this process can write no larger file: what a full disk does to a large file."""
    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))


def test_regions_become_the_label_file_that_their_names_ask_for(
    run: Run, volume: Volume, structure_set: Path, tmp_path: Path
) -> None:
    drawn = drawn_on(volume)
    words = [structure_set, "--image", tmp_path / "series", "--roi", "Tumour", "Liver"]
    answer = run("regions", *words, "--output", tmp_path / "labels" / "a.nrrd", "--json")
    assert answer.code == 0, answer.err
    both = int((drawn[..., 0] & drawn[..., 1]).sum())
    assert [row["overlapped"] for row in json.loads(answer.out)["regions"]] == [both, 0]
    labels = read_volume(tmp_path / "labels" / "a.nrrd")
    np.testing.assert_array_equal(labels.array, np.where(drawn[..., 0], 2, drawn[..., 1]))
    np.testing.assert_allclose(labels.affine_lps, volume.affine_lps, atol=1e-6)
    for more, says in (
        (["--output", tmp_path / "a.mhd"], "ends in .nii.gz, .nii, .nrrd or .mha, or a folder"),
        (["--output", tmp_path / "a.mha", "--roi", "Spleen"], "the file has Liver, Tumour"),
    ):
        refused = run("regions", *words, *more)
        assert refused.code in (2, 3)
        assert says in " ".join(refused.err.split())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rtstruct": "other.dcm"}, "has SOP class 1.2.840.10008.5.1.4.1.1.7; a SEG or an RT Structure Set is needed"),
        ({"rtstruct": "series"}, "not a regular file"),
        ({"rtstruct": "absent.dcm"}, "No such file or directory"),
        ({"image": "absent"}, "absent does not exist"),
        ({"image": "seg.dcm"}, "found no image series"),
        ({"flags": ("--channels", "1.2,1.3")}, "1.2"),
        ({"flags": ("--channels", "1.2,1.3", "--time-point", "1")}, "leave --series, --time-point"),
        ({"flags": ("--time-point", "2")}, "has 1 time point; number 2 was asked for"),
        ({"output": "below/a.nrrd"}, "cannot be written (Not a directory)"),
        ({"output": "folder.nrrd"}, "folder.nrrd could not be written (Is a directory)"),
        ({"output": "x" * 300 + ".nrrd"}, "could not be written (File name too long)"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_regions_refuses_with_a_reason_and_leaves_nothing(
    changed: dict[str, str | tuple[str, ...]], says: str, run: Run, volume: Volume, structure_set: Path, tmp_path: Path
) -> None:
    labels = np.zeros(volume.shape, np.uint8)
    labels[1:4, 2:5, 1:4], labels[5:8, 3:9, 2:6] = 1, 2
    write_seg(volume.with_array(labels), volume, tmp_path / "seg.dcm", RESULT)
    write_picture(tmp_path / "other.dcm", lopsided_array()[..., 0])
    (tmp_path / "below").write_text("a file")
    (tmp_path / "folder.nrrd").mkdir()
    before = sorted(tmp_path.rglob("*"))
    words = {"rtstruct": "r.dcm", "image": "series", "output": "a.nrrd"} | changed
    answer = run(
        "regions",
        tmp_path / str(words["rtstruct"]),
        *("--image", tmp_path / str(words["image"]), "--roi", *NAMES),
        *("--output", tmp_path / str(words["output"]), *changed.get("flags", ())),
    )
    assert answer.code in (2, 3)
    assert says in " ".join(answer.err.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_regions_of_a_tilted_series_need_a_right_angled_grid(run: Run, tmp_path: Path) -> None:
    write_mr_series(tmp_path / "tilted", lopsided_array(), tilted_affine())
    tilted = read_series(tmp_path / "tilted")
    path = write_rtstruct(tilted.with_array(drawn_on(tilted)), tilted, tmp_path / "r.dcm", RESULT)
    words = [path, "--image", tmp_path / "tilted", "--roi", *NAMES, "--output", tmp_path / "a.nrrd"]
    refused = run("regions", *words)
    assert refused.code == 3
    assert "a.nrrd: the grid is sheared (gantry tilt)" in refused.err
    assert not (tmp_path / "a.nrrd").exists()
    assert run("regions", *words, "--resample-tilt").code == 0
    upright = read_volume(tmp_path / "a.nrrd")
    steps = upright.affine_lps[:3, :3] / upright.spacing_mm
    np.testing.assert_allclose(steps.T @ steps, np.eye(3), atol=1e-6)


@pytest.fixture
def seg(volume: Volume, tmp_path: Path) -> Path:
    """Liver, 18 voxels, and tumour, 8 voxels, which share none; the second is segment 7, and empty segments are between."""
    path = write_seg(volume.with_array(lopsided_labels()), volume, tmp_path / "seg.dcm", RESULT)
    dataset = pydicom.dcmread(path)
    dataset.SegmentSequence[1].SegmentNumber = 7
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        item = frame.SegmentIdentificationSequence[0]
        item.ReferencedSegmentNumber = {1: 1, 2: 7}[item.ReferencedSegmentNumber]
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_seg_becomes_a_label_map_with_its_numbers_and_names(
    ending: str, run: Run, volume: Volume, seg: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels" / f"a{ending}"
    answer = run("regions", seg, "--image", tmp_path / "series", "--output", output, "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    rows = [(row["label"], row["name"], row["voxels"], row["overlapped"]) for row in told["regions"]]
    assert (rows, told["shared"]) == ([(1, "Liver", 18, 0), (7, "Tumour", 8, 0)], 0)
    labels = read_volume(output)
    np.testing.assert_array_equal(labels.array, np.array([0, 1, 7])[lopsided_labels()])
    assert volume.distance_mm(labels) < 1e-4
    assert label_table(output) == ({1: "Liver", 7: "Tumour"} if ".nii" in ending else {})
    assert run("regions", seg, "--image", tmp_path / "series", "--output", output, "--roi", "Tumour").code == 0
    np.testing.assert_array_equal(read_volume(output).array, lopsided_labels() == 2)


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_structures_that_overlap_become_a_mask_each_and_no_label_map_unless_named(
    kind: str, run: Run, volume: Volume, structure_set: Path, tmp_path: Path
) -> None:
    drawn = drawn_on(volume)
    both = int((drawn[..., 0] & drawn[..., 1]).sum())
    path = structure_set
    if kind == "seg":
        path = write_seg(volume.with_array(drawn), volume, tmp_path / "seg.dcm", RESULT)
    words = ("regions", path, "--image", tmp_path / "series")
    refused = run(*words, "--output", tmp_path / "a.nii.gz")
    assert (refused.code, f"{both} voxel(s) lie in several structures" in refused.err) == (3, True)
    assert "name a folder as --output" in refused.err
    assert "--roi" in refused.err
    assert not (tmp_path / "a.nii.gz").exists()
    answer = run(*words, "--output", f"{tmp_path}/masks/")
    assert (answer.code, f"{both} voxel(s) lie in several structures" in answer.err) == (0, True)
    assert sorted(file.name for file in (tmp_path / "masks").iterdir()) == ["Liver.nii.gz", "Tumour.nii.gz"]
    for channel, name in enumerate(NAMES):
        mask = read_volume(tmp_path / "masks" / f"{name}.nii.gz")
        np.testing.assert_array_equal(mask.array, drawn[..., channel])
        assert volume.distance_mm(mask) < 1e-4
    again = run(*words, "--output", tmp_path / "masks")
    assert (again.code, "is not an empty folder" in again.err) == (2, True)
    chosen = run(*words, "--output", tmp_path / "a.nii.gz", "--roi", "Tumour", "Liver")
    assert (chosen.code, f"{both} voxel(s) lie in several structures; the later one" in chosen.err) == (0, True)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array, np.where(drawn[..., 0], 2, drawn[..., 1]))


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
@pytest.mark.parametrize("output", ["labels.nii.gz", "labels"])
def test_label_files_go_back_to_dicom_with_the_same_voxels_and_names(
    output: str, kind: str, run: Run, volume: Volume, tmp_path: Path
) -> None:
    write = write_seg if kind == "seg" else write_rtstruct
    path = write(volume.with_array(lopsided_labels()), volume, tmp_path / "first.dcm", RESULT)
    made = run("regions", path, "--image", tmp_path / "series", "--output", tmp_path / output)
    assert made.code == 0, made.err
    words = ("--labels", tmp_path / output, "--source", tmp_path / "series", "--algorithm", "network 1", "--looked-at")
    back = run("dicomize", *words, "--format", kind, "--output", tmp_path / "out", "--json")
    assert back.code == 0, back.err
    result = json.loads(back.out)["result"]
    assert [row["label"] for row in result["structures"]] == list(NAMES)
    read = read_seg if kind == "seg" else read_rtstruct
    np.testing.assert_array_equal(read(tmp_path / "out" / result["files"][kind], volume).array, lopsided_labels())


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_another_series_of_the_same_frame_of_reference_is_refused(
    kind: str, run: Run, volume: Volume, tmp_path: Path
) -> None:
    write = write_seg if kind == "seg" else write_rtstruct
    path = write(volume.with_array(lopsided_labels()), volume, tmp_path / "r.dcm", RESULT)
    same = {"FrameOfReferenceUID": volume.provenance.frame_of_reference_uid}
    write_mr_series(tmp_path / "other", lopsided_array(), oblique_affine(), header=same)
    refused = run("regions", path, "--image", tmp_path / "other", "--output", tmp_path / "a.nii.gz")
    assert refused.code == 3
    assert f"refers to the series {volume.provenance.series_instance_uid}, and the image is the series" in refused.err
    assert not (tmp_path / "a.nii.gz").exists()


def test_probabilities_are_no_labels(run: Run, volume: Volume, tmp_path: Path) -> None:
    values = np.stack([lopsided_labels() == 1, lopsided_labels() == 2], axis=-1) * np.float32(0.75)
    path = write_seg(volume.with_array(values), volume, tmp_path / "p.dcm", RESULT, encoding="fractional")
    refused = run("regions", path, "--image", tmp_path / "series", "--output", tmp_path / "a.nii.gz")
    assert (refused.code, "FRACTIONAL" in refused.err) == (3, True)


def test_names_become_names_of_files_of_their_own_and_name_no_patient(run: Run, seg: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(seg)
    dataset.PatientName, dataset.PatientID = "Rossi^Ada", "LIVER-7"
    dataset.SegmentSequence[0].SegmentLabel = "Liver"
    dataset.SegmentSequence[1].SegmentLabel = "a/b: <5 mm> of Rossi"
    third = deepcopy(dataset.SegmentSequence[1])
    third.SegmentNumber, third.SegmentLabel = 9, "liver"
    dataset.SegmentSequence.append(third)
    dataset.save_as(seg)
    other = run("regions", seg, "--image", tmp_path / "series", "--output", tmp_path / "masks")
    assert (other.code, "the label file has another PatientID than the image" in other.err) == (3, True)
    for file in (tmp_path / "series").iterdir():
        image = pydicom.dcmread(file)
        image.PatientName, image.PatientID = dataset.PatientName, dataset.PatientID
        image.save_as(file)
    answer = run("regions", seg, "--image", tmp_path / "series", "--output", tmp_path / "masks", "--json")
    assert answer.code == 0, answer.err
    files = [row["file"] for row in json.loads(answer.out)["regions"]]
    assert files == ["Liver.nii.gz", "a_b_5_mm_of.nii.gz", "liver_9.nii.gz"]
    assert not read_volume(tmp_path / "masks" / files[2]).array.any()
    answer = run("regions", seg, "--image", tmp_path / "series", "--output", tmp_path / "a.nii.gz")
    assert "Rossi" not in answer.out + answer.err
    assert label_table(tmp_path / "a.nii.gz") == {1: "Liver", 7: "a/b: <5 mm> of ...", 9: "liver"}


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ""])
def test_a_label_file_that_a_full_disk_cuts_off_is_refused(
    ending: str, volume: Volume, structure_set: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels" / f"a{ending}"
    with largest_file(100), pytest.raises(InputRefusedError, match=rf"^a{ending} could not be written \(.*free space"):
        label_file(structure_set, tmp_path / "series", NAMES, output)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("channels", [(), (1,), (2,)])
def test_an_itk_file_is_written_whole_or_not_at_all(
    channels: tuple[int, ...], ending: str, volume: Volume, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).random((*volume.shape, *channels), np.float32)
    path = tmp_path / f"a{ending}"
    write_itk(values, volume, path)
    before = path.read_bytes()
    with largest_file(1000), pytest.raises(OSError, match=r"ITK did not write the whole file|does not hold the voxels"):
        write_itk(values + 1, volume, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.glob(".*")] == []
