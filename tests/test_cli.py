"""`monai-unet` as a user meets it: exit codes, one clear line for bad input, and nothing half-written left behind."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from conftest import REPOSITORY
from false_claims import claiming
from phantoms import CT_IMAGE, write_mr_series
from PIL import Image
from pydicom.uid import RLELossless, generate_uid
from rich.console import Console
from shell import Run, every_verb, shell

from dicom_io.volume import Provenance, Volume
from monai_unet_app import bundle
from monai_unet_app.bundle_folder import BundleFiles
from monai_unet_app.cli import show
from monai_unet_app.cli.parser import build_parser
from monai_unet_app.confidence.fitted_to import fitted_to
from monai_unet_app.confidence.shift import ShiftDetector

BUNDLE = str(REPOSITORY / "bundles" / "hippocampus_mri_unet3d")
GROUPS = {
    "data": ["inspect", "convert", "dicomize", "regions"],
    "model": ["demo", "plan", "train", "calibrate", "evaluate", "compare", "subgroups", "bundle"],
    "result": ["predict", "review", "trace"],
    "DICOM": ["pacs", "deidentify"],
    "node": ["node", "registry", "doctor"],
}
VERBS = [verb for verbs in GROUPS.values() for verb in verbs]
TWO_WORDS = [
    "pacs echo",
    "pacs find",
    "pacs fetch",
    "pacs send",
    "node token",
    "node commission",
    "bundle bench",
    "registry add",
]
SECRETS = {"PatientName": "Zyxwvut^Qponmlk", "PatientID": "ID-55501234", "AccessionNumber": "ACC-998877"}


run = pytest.fixture(shell)


@pytest.fixture
def small_crop(crop: Volume) -> Volume:
    """A corner of the crop that the bundle accepts, too, in half as many slices: for what does not depend on the size."""
    return Volume(crop.array[:24, :30, :16], crop.affine_lps)


def test_directions_that_a_nifti_lacks_can_be_given(
    tmp_path: Path, small_crop: Volume, run: Run, tiny_bundle: Callable[..., Path]
) -> None:
    bare = nibabel.Nifti1Image(small_crop.array.astype(np.float32), None)
    nibabel.save(bare, tmp_path / "bare.nii.gz")
    words = ["predict", "--bundle", tiny_bundle(), "--input", tmp_path / "bare.nii.gz", "--output", tmp_path / "out"]
    refused = run(*words)
    assert (refused.code, "--directions LPS" in refused.err) == (3, True)
    answer = run(*words, "--directions", "LAS", "--deliver-rejected")
    assert answer.code == 0, answer.err
    (labels,) = (tmp_path / "out").glob("*_seg.nii.gz")
    assert nibabel.aff2axcodes(nibabel.load(labels).affine) == ("L", "A", "S")


def files_below(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def write_nifti(path: Path, array: np.ndarray, affine_ras: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine_ras), path)
    return path


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


# --- help -------------------------------------------------------------------------------------------------------------


def test_the_help_shows_every_verb_in_its_group_and_fits_one_screen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = run("--help")
    lines = answer.out.splitlines()
    assert answer.code == 0
    assert len(lines) < 40  # the fortieth is the shell's
    assert max(map(len, lines)) <= 80
    groups = re.findall(r"^(\w+):\n((?:  [a-z]+ .*\n)+)", answer.out, re.MULTILINE)
    assert {name: re.findall(r"^  ([a-z]+) ", verbs, re.MULTILINE) for name, verbs in groups} == GROUPS
    assert len(VERBS) <= 20


@pytest.mark.parametrize("verb", [*VERBS, *TWO_WORDS])
def test_help_of_every_verb_has_an_example_that_the_parser_accepts(verb: str, run: Run) -> None:
    answer = run(*verb.split(), "--help")
    example = re.search(r"example: (monai-unet .*)", answer.out, re.DOTALL)
    assert answer.code == 0
    assert example is not None
    assert max(map(len, answer.out.splitlines())) <= 80
    assert " ".join(shlex.split(example[1])).startswith(f"monai-unet {verb} ")
    assert build_parser().parse_args(shlex.split(example[1])[1:]).verb == verb.split()[0]


def test_verbs_of_two_words_stand_in_the_help_of_the_first(run: Run) -> None:
    for verb in TWO_WORDS:
        first, second = verb.split()
        assert re.search(rf"^    {second}  ", run(first, "--help").out, re.MULTILINE)
    assert run("pacs").code == run("node").code == run("trace").code == 2


def test_every_flag_has_a_help_text() -> None:
    for verb, parser in every_verb().items():
        assert [flag.dest for flag in parser._actions if flag.option_strings and not flag.help] == [], verb


def test_the_command_line_works_without_docstrings() -> None:
    words = [sys.executable, "-OO", "-m", "monai_unet_app", "doctor", "--bundles", "--json"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(BUNDLE).name in {row["name"] for row in json.loads(done.stdout)["bundles"]}


def test_with_json_nothing_but_the_result_is_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run("doctor", "--bundles", "--json")
    assert json.loads(answer.out)["bundles"]
    assert answer.err == ""
    show.line("after it, the tables are shown again")
    assert "shown again" in capsys.readouterr().out


def test_without_a_verb_or_with_an_unknown_flag_the_usage_is_shown(run: Run) -> None:
    for words in ([], ["predict", "--colour"], ["frobnicate"]):
        answer = run(*words)
        assert answer.code == 2
        sentence, usage = answer.err.split("\n", 1)
        assert sentence.startswith("error: ")
        assert usage.startswith("usage: monai-unet ")


# --- bad input --------------------------------------------------------------------------------------------------------


NO_IMAGE = "no image found in in/; NIfTI, .* or DICOM is needed; check the path"


@dataclass(frozen=True)
class Bad:
    """How to make an input, and what must be said about it."""

    make: Callable[[Path, Volume], Path]
    message: str
    code: int = 3
    flags: tuple[str, ...] = ()


def edited(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path, Volume], Path]:
    return lambda folder, crop: write_nifti(folder / "a.nii.gz", change(crop.array.copy()), crop.affine_ras)


def with_value(value: float) -> Callable[[Path, Volume], Path]:
    def change(array: np.ndarray) -> np.ndarray:
        array[3, 4, 5] = value
        return array

    return edited(change)


def good(folder: Path, crop: Volume) -> Path:
    return edited(lambda array: array)(folder, crop)


def rgb_voxels(array: np.ndarray) -> np.ndarray:
    return np.zeros(array.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


def series(folder: Path, crop: Volume, **more: Any) -> Path:
    write_mr_series(folder / "series", crop.array.astype(np.int16), crop.affine_lps, **more)
    return folder / "series"


def cut_series(folder: Path, crop: Volume) -> Path:
    cut(sorted(series(folder, crop).iterdir())[4], 0.9)
    return folder / "series"


def folder_of(folder: Path, files: dict[str, str]) -> Path:
    (folder / "in").mkdir()
    for name, text in files.items():
        (folder / "in" / name).write_text(text)
    return folder / "in"


def photograph(folder: Path, crop: Volume) -> Path:
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 50, 3)).astype(np.uint8)).save(folder / "a.png")
    return folder / "a.png"


def text(folder: Path, crop: Volume) -> Path:
    (folder / "a.txt").write_text("hello")
    return folder / "a.txt"


PREDICT = {
    "absent": Bad(lambda folder, crop: folder / "none.nii.gz", r"none\.nii\.gz does not exist; an image, .* is needed"),
    "empty folder": Bad(lambda folder, crop: folder_of(folder, {}), NO_IMAGE),
    "no image in the folder": Bad(
        lambda folder, crop: folder_of(folder, {"notes.txt": "hello"}), NO_IMAGE
    ),
    "text": Bad(text, "found no DICOM object"),
    "truncated NIfTI": Bad(
        lambda folder, crop: cut(good(folder, crop), 0.5), r"cannot be read as NIfTI .*; a whole, .* copy it again"
    ),
    "more voxels than fit": Bad(
        lambda folder, crop: claiming(folder / "a.nii.gz", (30000, 30000, 3000)),
        "claims 30000 x 30000 x 3000 voxels, 2700000000000 in all; at most 1073741824 fit; check the file, or split it",
    ),
    "truncated DICOM": Bad(cut_series, "is broken .*; a whole DICOM file is needed; fetch it again"),
    "4D volume": Bad(edited(lambda array: np.stack([array] * 3, -1)), r"it has 3 channel\(s\), 1 needed"),
    "RGB volume": Bad(edited(rgb_voxels), "holds RGB voxels; one number for each voxel is needed; convert it"),
    "RGB photograph": Bad(photograph, "it is a 2D picture, a 3D volume is needed"),
    "NaN": Bad(with_value(np.nan), "has 1 NaN or infinite voxel.*; finite values are needed; correct"),
    "infinite": Bad(with_value(np.inf), "has 1 NaN or infinite voxel.*; finite values are needed; correct"),
    "constant": Bad(edited(lambda array: array * 0 + 5), "every voxel is 5, an image is needed"),
    "whole head": Bad(
        edited(lambda array: np.pad(array, ((60, 60), (60, 60), (60, 60)), mode="reflect")),
        r"its field of view is 154 x 168 x 168 mm .*, 20 x 25 x 15 to 70 x 90 x 70 mm is needed",
    ),
    "CT": Bad(lambda folder, crop: series(folder, crop, header=CT_IMAGE), "its modality is CT, MR is needed"),
    "a slice is missing": Bad(lambda folder, crop: series(folder, crop, drop=(9,)), "lacks 1 of 33 slices"),
    "another series UID": Bad(series, "found no series 1.2.3 among", flags=("--series", "1.2.3")),
    "a DICOM source that is none": Bad(
        good,
        "--dicom-source none does not exist; the DICOM series .* is needed; check the path",
        flags=("--format", "seg", "--dicom-source", "none"),
    ),
    "no series for a DICOM result": Bad(
        good, "not DICOM; a DICOM result needs .*--dicom-source DIR, or --dicomize", 2, ("--format", "nifti,seg")
    ),
    "unknown format": Bad(good, "--format dicom: some of nifti, .*, seg, sr", 2, ("--format", "nifti,dicom")),
    "no format": Bad(good, "--format nothing: some of nifti", 2, ("--format", "")),
    "unknown device": Bad(good, "device 'abacus' cannot be used here", 2, ("--device", "abacus")),
}  # fmt: skip


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs get the same bundle each time, which is loaded once: for inputs that are refused before it is used."""
    monkeypatch.setattr(bundle, "load_bundle", loaded)


loaded = cache(bundle.load_bundle)


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize("kind", PREDICT)
def test_predict_says_what_is_wrong_in_one_line_and_leaves_no_file(
    kind: str, run: Run, crop: Volume, tmp_path: Path
) -> None:
    bad = PREDICT[kind]
    answer = run(
        "predict", "--bundle", BUNDLE, "--input", bad.make(tmp_path, crop), "--output", tmp_path / "out", *bad.flags
    )
    assert answer.code == bad.code
    lines = [line for line in answer.err.splitlines() if line.strip() and "problem(s):" not in line]
    assert len(lines) == 1
    assert re.search(bad.message, lines[0])
    assert "Traceback" not in answer.err + answer.out
    assert files_below(tmp_path / "out") == []


def labelled(folder: Path, crop: Volume, change: str = "") -> Path:
    """images/ and labels/ with two cases; the label of b has a fault."""
    labels = np.zeros(crop.shape, np.uint8)
    labels[8:20, 15:30, 10:20], labels[10:18, 30:40, 10:16] = 1, 2
    affine = np.array(crop.affine_ras)
    for name in "ab":
        write_nifti(folder / "images" / f"{name}.nii.gz", crop.array, crop.affine_ras)
        write_nifti(folder / "labels" / f"{name}.nii.gz", labels, affine)
    bad = folder / "labels" / "b.nii.gz"
    if change == "missing label":
        bad.unlink()
    elif change == "another shape":
        write_nifti(bad, labels[:-1], affine)
    elif change == "another affine":
        affine[2, 3] += 1.5
        write_nifti(bad, labels, affine)
    elif change == "unknown value":
        labels[0, 0, 0] = 5
        write_nifti(bad, labels, affine)
    elif change == "truncated label":
        cut(bad, 0.5)
    return folder


LABELS = {
    "missing label": "CASE: it has no label, but other cases have labels; add a label of the same name",
    "another shape": r"CASE: label CASE\.nii\.gz has shape \(33, 48, 33\), its image \(34, 48, 33\); the same grid is needed",
    "another affine": r"CASE: label CASE\.nii\.gz lies 1\.50 mm away from its image, 1\.36 voxels along one axis; at most",
    "unknown value": r"CASE: label CASE\.nii\.gz holds the value\(s\) \[5\]; the bundle has \[0, 1, 2\]; change them",
    "truncated label": r"CASE: CASE\.nii\.gz cannot be read as NIfTI .*; a whole, undamaged file is needed; copy it again",
}


def with_every_fault(folder: Path, crop: Volume) -> dict[str, str]:
    """images/ and labels/ of the good case a and of one case with each fault of a label; name of the case -> its fault."""
    found = {}
    for change in LABELS:
        one, name = labelled(folder / "made", crop, change), change.replace(" ", "_")
        for kind in ("images", "labels"):
            (folder / kind).mkdir(exist_ok=True)
            (one / kind / "a.nii.gz").replace(folder / kind / "a.nii.gz")
            if (one / kind / "b.nii.gz").exists():
                (one / kind / "b.nii.gz").replace(folder / kind / f"{name}.nii.gz")
        found[name] = change
    return found


def test_inspect_prints_the_good_case_and_each_problem_and_exits_3(run: Run, crop: Volume, tmp_path: Path) -> None:
    faults = with_every_fault(tmp_path / "data", crop)
    answer = run("inspect", tmp_path / "data", "--bundle", BUNDLE)
    assert answer.code == 3
    said = [name for name, change in faults.items() if re.search(LABELS[change].replace("CASE", name), answer.err)]
    assert said == list(faults)
    assert f"{len(faults)} problem(s):" in answer.err
    assert "cases: 1" in answer.out


def test_inspect_of_good_cases_prints_their_figures_and_exits_0(run: Run, crop: Volume, tmp_path: Path) -> None:
    answer = run("inspect", labelled(tmp_path, crop), "--bundle", BUNDLE)
    assert (answer.code, answer.err) == (0, "")
    assert "34 x 48 x 33" in answer.out
    assert "1 x 1 x 1.1" in answer.out
    assert "class 2, mL" in answer.out
    assert "subjects: 2" in answer.out


def test_inspect_names_a_label_without_an_image(run: Run, crop: Volume, tmp_path: Path) -> None:
    data = labelled(tmp_path, crop)
    (data / "images/b.nii.gz").unlink()
    answer = run("inspect", data)
    assert "label b has no image; add it or move the label away" in answer.err
    assert "cases: 1" in answer.out


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize("change", LABELS)
@pytest.mark.parametrize("verb", ["evaluate", "train", "calibrate"])
def test_verbs_that_need_labels_refuse_bad_ones_and_leave_no_file(
    verb: str, change: str, run: Run, crop: Volume, tmp_path: Path
) -> None:
    data = labelled(tmp_path / "data", crop, change)
    (data / "images/a.nii.gz").unlink()
    (data / "labels/a.nii.gz").unlink()
    for name in ("b2", "b3", "b4"):  # a plan needs four subjects
        for kind in ("images", "labels"):
            if (data / kind / "b.nii.gz").exists():
                (data / kind / f"{name}.nii.gz").write_bytes((data / kind / "b.nii.gz").read_bytes())
    output = [] if verb == "calibrate" else ["--output", tmp_path / "out"]
    before = (Path(BUNDLE) / "configs/inference.yaml").read_bytes()
    answer = run(verb, "--bundle", BUNDLE, "--data", data, *output)
    assert answer.code == 3
    wanted = "image(s) have no label: b" if change == "missing label" else "b.nii.gz"
    assert wanted in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "out").exists()
    assert (Path(BUNDLE) / "configs/inference.yaml").read_bytes() == before


def test_dicomize_converts_the_good_case_and_lists_the_bad_ones(run: Run, crop: Volume, tmp_path: Path) -> None:
    data = tmp_path / "data"
    faults = [name for name, change in with_every_fault(data, crop).items() if change != "missing label"]
    (data / "images/missing_label.nii.gz").unlink()  # dicomize takes images without labels
    words = ["--images", data / "images", "--labels", data / "labels", "--output", tmp_path / "out", "--json"]
    answer = run("dicomize", "--bundle", BUNDLE, *words)
    assert answer.code == 3
    document = json.loads(answer.out)
    assert [row["id"] for row in document["cases"]] == ["a"]
    assert sorted(problem.partition(": ")[0] for problem in document["problems"]) == sorted(faults)
    names = files_below(tmp_path / "out")
    assert [name for name in names if not name.startswith("a/mr/")] == ["a/seg.dcm"]
    assert len(names) == 33 + 1
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_dir() and path.name.startswith(".")]


def test_dicomize_refuses_what_is_dicom_or_a_picture_already(run: Run, crop: Volume, tmp_path: Path) -> None:
    for source, message in (
        (series(tmp_path, crop), "came from DICOM already"),
        (photograph(tmp_path, crop), "planar"),
    ):
        answer = run("dicomize", "--images", source, "--output", tmp_path / "out")
        assert answer.code == 3
        assert message in answer.err
        assert files_below(tmp_path / "out") == []


WRITERS = {
    "predict": ("--input", "images"),
    "dicomize": ("--images", "images"),
    "evaluate": ("--data", "."),
    "train": ("--data", "."),
}


@pytest.mark.parametrize("verb", WRITERS)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    verb: str, run: Run, crop: Volume, tmp_path: Path
) -> None:
    data = labelled(tmp_path / "data", crop)
    (tmp_path / "file").write_text("in the way")
    flag, place = WRITERS[verb]
    bundle = [] if verb == "dicomize" else ["--bundle", BUNDLE]
    answer = run(verb, *bundle, flag, data / place, "--output", tmp_path / "file" / "out")
    assert answer.code == 3
    assert "cannot be written (Not a directory); a folder with write permission is needed; choose another" in answer.err
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_file_in_the_place_of_a_cases_folder_is_a_problem_of_that_case(
    run: Run, crop: Volume, tmp_path: Path
) -> None:
    data = labelled(tmp_path / "data", crop)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_text("in the way")
    answer = run("dicomize", "--images", data / "images", "--output", tmp_path / "out", "--json")
    assert answer.code == 3
    document = json.loads(answer.out)
    assert [row["id"] for row in document["cases"]] == ["a"]
    assert document["problems"][0].startswith("b: its series could not be written")
    assert (tmp_path / "out" / "b").read_text() == "in the way"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["predict", "--bundle", "liver", "--input", "x", "--output", "y"],
            "no bundle 'liver'; a folder, a zip or one of",
        ),
        (["evaluate", "--bundle", BUNDLE, "--output", "y"], "give --data DIR, or --images DIR"),
        (
            ["dicomize", "--images", "x", "--labels", "y", "--output", "z"],
            "its segments.json, which names the label values, is needed; give --bundle",
        ),
        (["train", "--bundle", "liver", "--data", "x", "--output", "y"], "no bundle 'liver'"),
    ],
)
def test_a_command_that_makes_no_sense_exits_2(
    words: list[str], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = run(*words)
    assert answer.code == 2
    assert message in answer.err
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "flag", ["--epochs=0", "--seed=-1", "--learning-rate=0", "--learning-rate=nan", "--workers=-1", "--parallel=0"]
)
def test_impossible_numbers_are_wrong_usage(flag: str, run: Run, tmp_path: Path) -> None:
    answer = run("train", "--bundle", BUNDLE, "--data", tmp_path, "--output", tmp_path / "out", flag)
    assert answer.code == 2
    assert "needed" in answer.err
    assert not (tmp_path / "out").exists()


def test_only_folds_are_trained_at_the_same_time(run: Run, tmp_path: Path) -> None:
    answer = run("train", "--bundle", BUNDLE, "--data", tmp_path, "--output", tmp_path / "out", "--parallel", 2)
    assert answer.code == 2
    assert answer.err.splitlines() == [
        "error: --parallel 2 trains folds at the same time, but no fold is named; give --folds all, or leave it out"
    ]
    assert not (tmp_path / "out").exists()


def test_training_never_replaces_the_weights_of_another_bundle(
    run: Run, crop: Volume, tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    data, root = labelled(tmp_path / "data", crop), tiny_bundle()
    for number, name in enumerate("bcd", 1):  # one image in two partitions would be refused
        write_nifti(data / "images" / f"{name}.nii.gz", crop.array + number, crop.affine_ras)
        (data / "labels" / f"{name}.nii.gz").write_bytes((data / "labels/a.nii.gz").read_bytes())
    before = (root / "models/model.pt").read_bytes()
    answer = run("train", "--bundle", root, "--data", data, "--output", root, "--epochs", 1)
    assert answer.code == 2
    assert "holds trained weights without a run to resume" in answer.err
    assert (root / "models/model.pt").read_bytes() == before


def test_a_zip_or_metadata_that_is_damaged_fails_in_words(
    run: Run, crop: Volume, tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root, image = tiny_bundle(), good(tmp_path, crop)
    archive = Path(shutil.make_archive(str(tmp_path / "b"), "zip", root))
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    answer = run("predict", "--bundle", archive, "--input", image, "--output", tmp_path / "out")
    assert answer.code == 1
    assert "b.zip cannot be unpacked" in answer.err
    (root / "configs/metadata.json").write_text("{}")
    answer = run("predict", "--bundle", root, "--input", image, "--output", tmp_path / "out")
    assert answer.code == 1
    assert "metadata.json cannot be used" in answer.err


def test_flags_that_can_mean_nothing_are_wrong_usage(run: Run, small_crop: Volume, tmp_path: Path) -> None:
    image, dicom = good(tmp_path / "n", small_crop), series(tmp_path / "d", small_crop)
    for source, flags, message in (
        (image, ["--series", "1.2"], "has no series; leave --series, --channels"),
        (image, ["--resample-gaps"], "--resample-gaps, --resample-tilt and --accept-incomplete out"),
        (dicom, ["--seg-encoding", "labelmap"], "no SEG is requested; add seg to --format"),
        (dicom, ["--dicomize"], "the input is DICOM"),
        (dicom, ["--dicom-source", dicom], "the input is DICOM"),
        (image, ["--format", "seg", "--dicomize", "--dicom-source", dicom], "give one of them"),
    ):
        answer = run("predict", "--bundle", BUNDLE, "--input", source, "--output", tmp_path / "out", *flags)
        assert (answer.code, message in answer.err) == (2, True), answer.err
    answer = run("predict", "--bundle", BUNDLE, "--input", image.parent, "--output", image.parent)
    assert answer.code == 2
    assert "is the input; its results would be cases the next time" in answer.err
    for words in (["predict", "--bundle", BUNDLE, "--input", "", "--output", "x"], ["inspect", ""]):
        answer = run(*words)
        assert answer.code == 2
        assert "the value is empty" in answer.err


def test_names_with_brackets_or_bytes_that_are_no_utf8_are_names(
    run: Run, crop: Volume, tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    image = good(folder, crop)
    for name in ("[bold]m.nii.gz", os.fsdecode(b"lat\xe91.nii.gz")):
        (folder / name).write_bytes(image.read_bytes())
    image.unlink()
    answer = run("predict", "--bundle", tiny_bundle(), "--input", folder, "--output", tmp_path / "x[/b]y")
    assert answer.code == 0, answer.err
    assert "x[/b]y" in answer.out
    assert "[bold]m" in answer.out
    assert len([name for name in files_below(tmp_path / "x[/b]y") if name.endswith("_result.json")]) == 2


def test_a_plan_that_is_absent_is_refused(run: Run, crop: Volume, tmp_path: Path) -> None:
    words = [
        "--data",
        labelled(tmp_path / "data", crop),
        "--splits",
        tmp_path / "none.json",
        "--output",
        tmp_path / "out",
    ]
    answer = run("evaluate", "--bundle", BUNDLE, *words)
    assert answer.code == 3
    assert "none.json cannot be read as a plan" in answer.err


def test_a_bundle_that_is_none_or_broken_fails_in_words(
    run: Run, crop: Volume, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    image = good(tmp_path, crop)
    answer = run("predict", "--bundle", tmp_path, "--input", image, "--output", tmp_path / "out")
    assert answer.code in (1, 2)
    assert "configs/metadata.json" in answer.err
    bundle = tiny_bundle()
    (bundle / "models/model.pt").write_bytes(b"no weights")
    answer = run("predict", "--bundle", bundle, "--input", image, "--output", tmp_path / "out")
    assert answer.code == 1
    assert "models/model.pt is damaged, or holds more than weights" in answer.err
    assert files_below(tmp_path / "out") == []


def test_bundles_lists_the_good_ones_beside_a_broken_one(
    run: Run, tiny_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny_bundle()
    (root.parent / "broken/configs").mkdir(parents=True)
    (root.parent / "broken/configs/metadata.json").write_text("{")
    monkeypatch.setenv("MONAI_UNET_BUNDLES", str(root.parent))
    answer = run("doctor", "--bundles", "--json")
    document = json.loads(answer.out)
    assert answer.code == 1
    assert {row["name"] for row in document["bundles"]} >= {root.name, "retina_vessel_unet2d"}
    assert [problem.split(":")[0] for problem in document["problems"]] == ["broken"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("labels: [background, anterior, posterior]", "labels: [background, hippocampus]", "names 1 structure"),
        (
            "outputs: exclusive",
            "outputs: softmax",
            "`outputs` is 'softmax'; one of exclusive, overlapping, counted is needed",
        ),
    ],
)
def test_a_bundle_that_contradicts_itself_is_refused(
    old: str, new: str, message: str, run: Run, crop: Volume, tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root = tiny_bundle()
    config = root / "configs/inference.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    answer = run("predict", "--bundle", root, "--input", good(tmp_path, crop), "--output", tmp_path / "out")
    assert answer.code == 1
    assert message in answer.err
    assert not (tmp_path / "out").exists()


# --- what works -------------------------------------------------------------------------------------------------------


def test_in_a_folder_of_many_cases_the_good_ones_are_done_and_the_bad_ones_listed(
    run: Run, crop: Volume, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    folder = labelled(tmp_path, crop)
    cut(folder / "images/a.nii.gz", 0.5)
    answer = run(
        "predict",
        "--bundle",
        tiny_bundle(),
        "--input",
        folder / "images",
        "--output",
        tmp_path / "out",
        "--probabilities",
    )
    assert answer.code == 3
    assert re.search(r"1 problem\(s\):\n  a: a\.nii\.gz cannot be read as NIfTI", answer.err)
    assert files_below(tmp_path / "out") == ["b_prob.nii.gz", "b_result.json", "b_seg.nii.gz"]
    probabilities: Any = nibabel.load(tmp_path / "out/b_prob.nii.gz")
    np.testing.assert_allclose(probabilities.get_fdata().sum(-1), 1, atol=1e-5)
    for name in ("b_prob.nii.gz", "b_seg.nii.gz"):
        np.testing.assert_allclose(nibabel.load(tmp_path / "out" / name).affine, crop.affine_ras, atol=1e-5)  # type: ignore[attr-defined]


def sizes_off_by(log_ratio: float) -> dict[str, Any]:
    """The statement that true sizes lie within this logarithm of a ratio, of both structures."""
    ends = [-log_ratio, log_ratio]
    return {"coverage": 0.9, "log_ratios": {"1": ends, "2": ends}, "small": 0.01, "subjects": 20}


def stating(bundle: Path, **more: Any) -> Path:
    """The bundle, after statements about sizes, and more statements, were written into it as `calibrate` writes them."""
    plain = {"why_not": {}, "sizes": sizes_off_by(0.2), **more, "fitted_to": fitted_to(BundleFiles(bundle), "plain")}
    document = {"schema_version": "1.2", "structures": ["anterior", "posterior"], "settings": {"plain": plain}}
    (bundle / "configs/confidence.json").write_text(json.dumps(document))
    return bundle


def test_tta_of_a_bundle_that_was_calibrated_without_it_says_that_nothing_judged_the_result(
    run: Run, small_crop: Volume, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    bundle = stating(tiny_bundle())
    image, words = good(tmp_path, small_crop), ["--format", "nifti,sr", "--dicomize"]
    found = {}
    for name, flags in (("plain", []), ("averaged", ["--tta"])):
        answer = run("predict", "--bundle", bundle, "--input", image, "--output", tmp_path / name, *words, *flags)
        assert answer.code == 0
        (record,) = (tmp_path / name).glob("*_result.json")
        found[name] = json.loads(record.read_text())["assessment"]
    assert found["plain"]["interval_coverage"] == 0.9
    averaged = found["averaged"]
    assert (averaged["verdict"], averaged["interval_coverage"], averaged["shift_limit"]) == (None, None, None)
    assert set(averaged["not_stated"]) == {"sizes", "risk", "gate", "shift", "border"}
    assert "was calibrated without --tta" in averaged["reasons"][0]
    assert "no quality gate has judged this result" in answer.out  # of the run with --tta
    (report,) = (tmp_path / "averaged").glob("*_sr.dcm")
    assert "not judged; no quality gate has judged this result: " in str(pydicom.dcmread(report))


def test_a_result_of_a_made_series_is_reviewed_without_naming_it_whatever_letters_its_case_has(
    run: Run, small_crop: Volume, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    names = {good(tmp_path, small_crop).rename(tmp_path / f"{name}.nii.gz"): name for name in ("Müller_1", "Mäller_1")}
    patients, bundle = set(), tiny_bundle()
    for image, name in names.items():
        words = ["--input", image, "--output", tmp_path / name, "--format", "nifti,seg", "--dicomize"]
        answer = run("predict", "--bundle", bundle, *words)
        assert answer.code == 0, answer.err
        patient = str(pydicom.dcmread(next((tmp_path / name).rglob("0001.dcm"))).PatientID)
        assert f"{name}: the PatientID in its series is {patient}" in " ".join(answer.err.split())
        patients.add(patient)
        for made in ([], ["--input", tmp_path / name / f"{name}_dicom/mr"]):
            answer = run("review", "--result", tmp_path / name, "--output", tmp_path / "review", "--no-pdf", *made)
            assert answer.code == 0, answer.err
    assert len(patients) == 2
    assert all(re.fullmatch(r"DEMO-M[ua]ller_1-[0-9a-f]{8}", patient) for patient in patients)


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_elsewhere_is_refused_before_an_image_is_read_if_the_bundle_has_no_wider_intervals(
    run: Run, crop: Volume, tiny_bundle: Callable[[], Path], tmp_path: Path, verb: str
) -> None:
    folder = labelled(tmp_path, crop)
    for image in (folder / "images").iterdir():
        cut(image, 0.5)  # a file that cannot be read would be named, if it were read
    bundle = tiny_bundle()
    steps: dict[str, Callable[[], object]] = {
        "was not calibrated": lambda: None,
        "its statements were made without": lambda: stating(bundle),
        "too few of them": lambda: stating(bundle, why_not={"sizes_elsewhere": "too few of them"}),
    }
    cases = {
        "predict": ["--input", folder / "images"],
        "evaluate": ["--images", folder / "images", "--labels", folder / "labels"],
    }
    for reason, step in steps.items():
        step()
        answer = run(verb, "--bundle", bundle, *cases[verb], "--elsewhere", "--output", tmp_path / "out")
        assert answer.code == 3
        said = " ".join(answer.err.split())
        assert "states no wider intervals for images from elsewhere (" in said
        assert reason in said
        assert "cannot be read" not in said
        assert files_below(tmp_path / "out") == []


def test_elsewhere_beside_folds_is_refused_since_no_interval_is_measured_there(run: Run, tmp_path: Path) -> None:
    answer = run(
        "evaluate", "--bundle", BUNDLE, "--data", tmp_path, "--folds", "--elsewhere", "--output", tmp_path / "out"
    )
    assert answer.code == 2
    assert "with --folds no interval is measured" in " ".join(answer.err.split())


@pytest.mark.parametrize(
    ("has_wider", "flags", "unlike", "applied"),
    [
        pytest.param(True, ["--elsewhere"], False, True, id="the flag"),
        pytest.param(True, [], True, True, id="an unlike image"),
        pytest.param(False, [], True, False, id="an unlike image, nothing wider"),
        pytest.param(True, [], False, False, id="a usual image"),
    ],
)
def test_record_seg_and_sr_say_elsewhere_where_wider_intervals_were_stated_and_only_there(
    run: Run, small_crop: Volume, tiny_bundle: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    has_wider: bool, flags: list[str], unlike: bool, applied: bool,
) -> None:  # fmt: skip
    wider = {"sizes_elsewhere": sizes_off_by(0.4)} if has_wider else {}
    rng = np.random.default_rng(0)
    detector = ShiftDetector.fit(list(rng.normal(size=(30, 4))), [str(n) for n in range(30)])
    bundle = stating(tiny_bundle(), shift=detector.document(), **wider)
    monkeypatch.setattr(ShiftDetector, "score", lambda self, features: 1.5 * self.limit if unlike else 0.0)
    words = [
        "--input",
        good(tmp_path, small_crop),
        "--output",
        tmp_path / "out",
        "--format",
        "seg,sr",
        "--dicomize",
        *flags,
    ]
    assert run("predict", "--bundle", bundle, *words).code == 0
    (record,) = (tmp_path / "out").glob("*_result.json")
    document = json.loads(record.read_text())
    assert document["assessment"].get("interval_images") == ("elsewhere" if applied else None)
    low, high = document["structures"][0]["volume_interval_ml"]
    assert math.log((high + 0.01) / (low + 0.01)) == pytest.approx(0.8 if applied else 0.4, rel=1e-3)
    not_made_for_it = "the stated intervals were not fitted for such images"
    assert (not_made_for_it in " ".join(document["assessment"]["reasons"])) == (unlike and not has_wider)
    for kind in ("seg", "sr"):
        text = str(pydicom.dcmread(next((tmp_path / "out").glob(f"*_{kind}.dcm"))))
        assert ("elsewhere=true" in text) == applied, kind
        assert (not_made_for_it in text) == (unlike and not has_wider), kind


def test_a_broken_series_does_not_cost_the_good_one_beside_it(
    run: Run, small_crop: Volume, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    for name in ("good", "bad"):
        (tmp_path / "in" / name).mkdir(parents=True)
        series(tmp_path / "in" / name, small_crop, header=SECRETS)
    cut(next((tmp_path / "in/bad/series").iterdir()), 0.9)
    words = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--format", "nifti,seg,sr", "--json"]
    answer = run("predict", "--bundle", tiny_bundle(), *words)
    document = json.loads(answer.out)
    assert answer.code == 3
    assert [row["case"] for row in document["cases"]] == ["good"]
    assert len(document["problems"]) == 1
    assert "is broken" in document["problems"][0]
    assert files_below(tmp_path / "out") == [
        "good_result.json", "good_seg.dcm", "good_seg.nii.gz", "good_sr.dcm",
    ]  # fmt: skip
    said = answer.out + answer.err + (tmp_path / "out/good_result.json").read_text()
    assert not [value for value in SECRETS.values() if value in said]


SITE = """
[destinations.archive]
url = "http://127.0.0.1:8042/dicom-web"
[destinations.archive.profile]
objects = ["SEG", "RTSTRUCT"]
seg_encoding = "labelmap-rle"
empty_frames = true
[destinations.printer]
url = "http://127.0.0.1:8042/dicom-web"
[destinations.printer.profile]
objects = ["PDF"]
"""


def test_results_are_written_as_a_destination_wants_them(
    run: Run, small_crop: Volume, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "site.toml").write_text(SITE)
    words = ["--bundle", tiny_bundle(), "--input", series(tmp_path / "in", small_crop), "--output", tmp_path / "out"]
    site = ["--site", tmp_path / "site.toml"]
    answer = run("predict", *words, "--for", "archive", *site)
    assert (answer.code, answer.err) == (0, "")
    assert [name.rpartition("_")[2] for name in files_below(tmp_path / "out")] == [
        "result.json",
        "rtstruct.dcm",
        "seg.dcm",
    ]
    seg = pydicom.dcmread(next((tmp_path / "out").glob("*_seg.dcm")))
    assert (seg.SegmentationType, seg.file_meta.TransferSyntaxUID) == ("LABELMAP", RLELossless)
    assert seg.NumberOfFrames == small_crop.shape[2]
    for flags, says in (
        (["--for", "archive"], "give --site FILE"),
        (["--for", "elsewhere", *site], "site.toml has archive, printer"),
        (["--for", "archive", "--format", "seg", *site], "give one or the other"),
        (["--for", "printer", *site], "the destination takes PDF"),
    ):
        answer = run("predict", *words, *flags)
        assert answer.code == 2
        assert says in answer.err


def test_a_dicom_source_of_another_place_is_refused_and_no_file_is_left(
    run: Run, small_crop: Volume, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    image = good(tmp_path, small_crop)
    moved = np.array(small_crop.affine_lps)
    moved[0, 3] += 4.0
    other = series(tmp_path, replace(small_crop, affine_lps=moved, provenance=Provenance("array")))
    words = ["--input", image, "--output", tmp_path / "out", "--format", "nifti,seg", "--dicom-source", other]
    answer = run("predict", "--bundle", tiny_bundle(), *words)
    assert answer.code == 3
    assert re.search(r"4\.00 mm apart; the same voxels .* take the series that the image was made from", answer.err)
    assert files_below(tmp_path / "out") == []


def test_json_on_stdout_is_nothing_but_json(run: Run, crop: Volume, tmp_path: Path) -> None:
    data = labelled(tmp_path / "data", crop, "unknown value")
    commands = {
        "bundles": ["doctor", "--bundles"],
        "inspect": ["inspect", data, "--bundle", BUNDLE],
        "dicomize": ["dicomize", "--images", data / "images", "--output", tmp_path / "out"],
        "doctor": ["doctor"],
    }
    for verb, words in commands.items():
        answer = run(*words, "--json")
        document = json.loads(answer.out)
        assert isinstance(document, dict), verb
        assert answer.code == (3 if verb == "inspect" else answer.code)
    assert json.loads(run(*commands["inspect"], "--json").out)["problems"][0].startswith("b: label b.nii.gz holds")


def test_a_refusal_leaves_stdout_empty_with_and_without_json(run: Run, tmp_path: Path) -> None:
    for flags in ([], ["--json"]):
        answer = run("inspect", tmp_path / "none", *flags)
        assert (answer.code, answer.out) == (3, "")
        assert answer.err.startswith("refused: none does not exist")


def test_the_program_itself_gives_the_same_exit_code_without_a_traceback(crop: Volume, tmp_path: Path) -> None:
    image = cut(good(tmp_path, crop), 0.5)
    done = subprocess.run(
        [sys.executable, "-m", "monai_unet_app", "inspect", str(image)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 3
    assert "a: a.nii.gz cannot be read as NIfTI" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# --- extended: files that others wrote --------------------------------------------------------------------------------


def refused_or_read(run: Run, *words: object) -> str | None:
    """None if the answer is an answer: exit 0, or exit 2 or 3 with one line a problem; else what went wrong."""
    try:
        answer = run(*words)
    except Exception as error:  # what a user would see as a traceback
        return f"{words[1]}: {type(error).__name__}: {error}"
    lines = [line for line in answer.err.splitlines() if line.strip()]
    if answer.code not in (0, 2, 3):
        return f"{words[1]}: exit {answer.code}: {answer.err}"
    if answer.code != 0 and (not lines or len(lines) > 1 + int((re.findall(r"(\d+) problem", answer.err) or ["0"])[0])):
        return f"{words[1]}: exit {answer.code} with {len(lines)} lines: {answer.err}"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("source", ["hostile", "dicom_series"])
def test_files_that_others_wrote_are_read_or_refused_in_one_line_by_inspect(
    source: str, run: Run, shared_data: Path
) -> None:
    places = shared_data / source
    found = [file for file in sorted(places.rglob("*")) if file.is_file() and source == "hostile"]
    found += sorted({file.parent for file in places.rglob("*") if file.is_file()} | {places})
    wrong = [said for path in found if (said := refused_or_read(run, "inspect", path))]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("source", ["hostile", "dicom_series"])
def test_files_that_others_wrote_are_segmented_or_refused_in_one_line_by_predict(
    source: str, run: Run, shared_data: Path, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    places, bundle = shared_data / source, tiny_bundle()
    found = [file for file in sorted(places.rglob("*")) if file.is_file() and source == "hostile"]
    found += sorted({file.parent for file in places.rglob("*") if file.is_file()})
    wrong = []
    for path in found:
        words = ["--output", tmp_path / "out", "--format", "nifti,seg", "--dicomize"]
        said = refused_or_read(run, "predict", "--input", path, "--bundle", bundle, *words)
        wrong += [f"{path.relative_to(places)} {said}"] if said else []
    assert wrong == []
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_whole_head_series_is_refused_by_the_crops_bundle_and_a_crop_of_it_is_not(
    run: Run, shared_data: Path, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    study, bundle = shared_data / "dicom_series/mr_ge_oblique_t1post/Study1", tiny_bundle()
    for folder, code in (("12-T1post-05670", 3), ("13_HCropVolume", 0)):
        answer = run("predict", "--bundle", bundle, "--input", study / folder, "--output", tmp_path / folder)
        assert answer.code == code
        assert ("its field of view is" in answer.err) == (code == 3)
        assert len(files_below(tmp_path / folder)) == (2 if code == 0 else 0)


def test_inspect_gives_every_series_its_verdict(run: Run, small_crop: Volume, tmp_path: Path) -> None:
    series(tmp_path / "in" / "whole", small_crop)
    holed = series(tmp_path / "in" / "holed", small_crop)
    slices = sorted(holed.rglob("*.dcm"))
    slices[len(slices) // 2].unlink()
    answer = run("inspect", tmp_path / "in", "--json")
    assert answer.code == 3
    verdicts = {Path(row["folder"]).parent.name: row for row in json.loads(answer.out)["series"]}
    assert verdicts["whole"]["outcome"] == "readable"
    assert verdicts["whole"]["shape"] == list(small_crop.shape)
    assert verdicts["holed"]["outcome"] == "refused"
    assert "lacks 1 of" in verdicts["holed"]["reason"]
    assert verdicts["holed"]["case"] == "holed"
    shown = run("inspect", tmp_path / "in", "--resample-gaps")
    assert shown.code == 0
    assert "resampled on request" in shown.out


def test_inspect_in_a_pipe_keeps_uids_paths_and_reasons_in_one_piece_and_tells_like_ones_once(
    run: Run, small_crop: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "out", Console(width=60))
    deep, uids = tmp_path / "in" / ("d" * 60), []
    for name in ("holed", "holed_too"):
        uids.append(generate_uid())
        series(deep / name, small_crop, drop=(9,), header={"SeriesInstanceUID": uids[-1]})
    whole = series(deep / "whole", small_crop)
    for number in range(5):
        (deep / "whole" / f"bad{number}.dcm").write_bytes(b"\0" * 128 + b"DICM")
    answer = run("inspect", tmp_path / "in")
    assert answer.code == 3
    lines = answer.out.splitlines()
    assert lines[0] == "1 series readable, 2 refused, 5 broken file(s)"
    for text in (*uids, str(whole), str(deep / "holed" / "series")):
        assert f"  {text}" in lines
    reason = "lacks 1 of 16 slices"
    assert next(line for line in lines if reason in line).startswith(f"  2 series: it {reason}")
    assert sum(reason in line for line in lines) == 1
    assert sum("is broken" in line for line in lines) == 1
    assert "  and 2 more; --json names all" in lines


def test_inspect_with_a_bundle_refuses_the_series_that_the_bundle_refuses_and_names_its_case(
    run: Run, small_crop: Volume, tmp_path: Path
) -> None:
    uids = {"mr": generate_uid(), "ct": generate_uid()}
    series(tmp_path / "in" / "mr", small_crop, header={"SeriesInstanceUID": uids["mr"]})
    series(tmp_path / "in" / "ct", small_crop, header={**CT_IMAGE, "SeriesInstanceUID": uids["ct"]})
    answer = run("inspect", tmp_path / "in", "--bundle", BUNDLE)
    assert answer.code == 3
    blocks = [block.splitlines() for block in answer.out.split("\n\n") if "MR," in block or "CT," in block]
    told = {block[4].strip(): (block[0].split()[0], block[2].strip()) for block in blocks}  # block[1] is its title
    assert told == {uids["mr"]: ("readable", "case mr"), uids["ct"]: ("refused", "case ct")}
    (why,) = [line for line in answer.out.splitlines() if "its modality is CT, MR is needed" in line]
    assert why.startswith("  ")
    rows = {
        row["case"]: row
        for row in json.loads(run("inspect", tmp_path / "in", "--bundle", BUNDLE, "--json").out)["series"]
    }
    assert (rows["ct"]["outcome"], rows["mr"]["outcome"]) == ("refused", "readable")


def test_inspect_of_a_study_with_its_own_results_shows_it_and_its_json(
    run: Run, small_crop: Volume, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    study = tmp_path / "study"
    series(study, small_crop)
    words = ["--input", study, "--output", tmp_path / "out", "--format", "seg,rtstruct"]
    assert run("predict", "--bundle", tiny_bundle(), *words).code == 0
    for file in (tmp_path / "out").glob("*.dcm"):
        file.rename(study / file.name)
    answer = run("inspect", study)
    assert answer.code == 0
    assert "look at study: it has 2 label objects (RTSTRUCT study_rtstruct.dcm, SEG study_seg.dcm)" in answer.err
    document = json.loads(run("inspect", study, "--json").out)
    assert [row["outcome"] for row in document["series"]].count("readable") == 1
    assert [case["id"] for case in document["cases"]] == ["study"]


def test_inspect_gives_json_where_cases_cannot_be_told(run: Run, small_crop: Volume, tmp_path: Path) -> None:
    series(tmp_path / "in", small_crop)
    good(tmp_path / "in", small_crop)
    answer = run("inspect", tmp_path / "in", "--json")
    document = json.loads(answer.out)
    assert answer.code == 3
    assert "one kind in a folder is needed" in document["problems"][0]
    assert len(document["series"]) == 1


def test_a_series_that_is_nowhere_is_one_problem(
    run: Run, small_crop: Volume, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        series(tmp_path / "in" / name, small_crop)
    for words in (
        ["inspect", tmp_path / "in"],
        ["predict", "--bundle", tiny_bundle(), "--input", tmp_path / "in", "--output", tmp_path / "out"],
    ):
        for flags in (["--series", "1.2.3"], ["--channels", "1.2.3,1.2.4"]):
            answer = run(*words, *flags, "--json")
            (problem,) = json.loads(answer.out)["problems"]
            assert problem.startswith("in: found no series 1.2.3 among ")


def test_predict_says_what_was_repaired_and_which_sizes_are_of_which_grid(
    run: Run, small_crop: Volume, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    bundle = tiny_bundle()
    words = ["--input", series(tmp_path, small_crop, drop=(9,)), "--output", tmp_path / "out", "--resample-gaps"]
    answer = run("predict", "--bundle", bundle, *words, "--format", "nifti,seg,sr")
    assert answer.code == 0, answer.err
    notes = [line for line in answer.out.splitlines() if line.startswith("note on series: ")]
    assert "resampled on request" in notes[0]
    assert notes[1].endswith("SEG lie on the original slices, where the volume of the structures may differ")
    answer = run("predict", "--bundle", bundle, *words, "--format", "nifti")
    assert "original slices" not in answer.out


AT_ONCE = {
    "bundles": (["doctor", "--bundles"], 0),
    "a format that is none": (["predict", "--bundle", BUNDLE, "--input", ".", "--output", "o", "--format", "dicom"], 2),
    "no such input": (["predict", "--bundle", BUNDLE, "--input", "none", "--output", "o"], 3),
    "no such bundle": (["predict", "--bundle", "none", "--input", ".", "--output", "o"], 2),
    "inspect nothing": (["inspect", "none"], 3),
    "evaluate what": (["evaluate", "--bundle", BUNDLE, "--output", "o"], 2),
    "train on nothing": (["train", "--bundle", BUNDLE, "--data", "none", "--output", "o"], 3),
    "calibrate what": (["calibrate", "--bundle", BUNDLE], 2),
    "evaluate what is done": (["evaluate", "--bundle", BUNDLE, "--evaluation", "o", "--into-bundle", "--tta"], 2),
    "compare nothing": (["compare", "--first", "none", "--second", "none", "--fail-if-worse"], 2),
    "a margin for nothing": (["compare", "--first", "none", "--second", "none", "--margin", "1"], 2),
}


WATCH = """
import json, sys
from monai_unet_app.cli import main
for words, code in json.loads(sys.argv[1]).values():
    assert main(words) == code, words
    slow = {"torch", "monai", "ignite", "matplotlib"} & set(sys.modules)
    assert not slow, (words, slow)
"""


def test_what_needs_no_network_is_answered_before_torch_and_monai_are_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCH, json.dumps(AT_ONCE)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error:") + done.stderr.count("refused:") == len(AT_ONCE) - 1
