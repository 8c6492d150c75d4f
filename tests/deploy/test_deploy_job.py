"""The application without the SDK: what its hosts tell it, what it then does, and its exit code."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import yaml
from once import made_once
from shell import Answer
from trained_by_nnunet import RESULTS

from dicom_io.dicomize import dicomize
from dicom_io.volume import Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.deploy import app
from monai_unet_app.deploy.job import ApplicationJob, job_from, result_of
from monai_unet_app.deploy.settings import Settings, settings_of
from monai_unet_app.errors import BundleError, InputRefusedError, UsageError
from monai_unet_app.pipeline import segment_case
from monai_unet_app.planning.nnunet_results import Import, bundle_of

NAME = "hippocampus_mri_unet3d"
RunApp = Callable[[Mapping[str, str]], Answer]


class Watched(Mapping[str, str]):
    """An environment that remembers what was asked for."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values_, self.asked = values, set[str]()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self.values_[name]

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("the whole environment was read")

    def __len__(self) -> int:
        return len(self.values_)


@pytest.fixture
def packaged(tiny_bundle: Callable[[str], Path], tmp_path: Path) -> dict[str, str]:
    """The environment of an image with a tiny bundle, an app.yaml, and folders for images and results."""
    model = tiny_bundle(NAME)
    config = {"bundle": {"name": NAME, "sha256": bundle_files(model).sha256}, "segmentation": {"format": ["seg"]}}
    (tmp_path / "app.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "input").mkdir()
    return {
        "HOLOSCAN_WORKDIR": str(tmp_path),
        "HOLOSCAN_INPUT_PATH": "input/",
        "HOLOSCAN_OUTPUT_PATH": "output/",
        "HOLOSCAN_MODEL_PATH": str(model.parent),
        "HOLOSCAN_CONFIG_PATH": str(tmp_path / "app.yaml"),
        "MONAI_INPUTPATH": "/elsewhere",
    }


@pytest.fixture
def series(crop: Volume, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The crop as a DICOM series, for a test that may change it."""

    def make(folder: Path) -> None:
        dicomize(crop, folder / "made", case_id="crop").series_folder.rename(folder / "series")

    return shutil.copytree(made_once(tmp_path_factory, "deploy_series", make) / "series", tmp_path / "made/mr")


@pytest.fixture
def run_app(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[RunApp]:
    """Runs the application in an environment. The SDK's part is to call the job; here it is called directly."""
    stand_in = SimpleNamespace(run=lambda job: job.segment())
    monkeypatch.setitem(sys.modules, "monai_unet_app.deploy.sdk", stand_in)

    def run(environment: Mapping[str, str]) -> Answer:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = app.main()
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    yield run
    logging.disable(logging.NOTSET)


def as_mercure(packaged: dict[str, str], series: Path, tmp_path: Path, settings: Any = None) -> dict[str, str]:
    """The environment that mercure gives, with its folders: images named by series and object, their tags, and the task."""
    incoming, outgoing = tmp_path / "data", tmp_path / "results"
    incoming.mkdir()
    outgoing.mkdir()
    for file in series.iterdir():
        header = pydicom.dcmread(file, stop_before_pixels=True)
        name = f"{header.SeriesInstanceUID}#{header.SOPInstanceUID}"
        (incoming / f"{name}.dcm").write_bytes(file.read_bytes())
        (incoming / f"{name}.tags").write_text(json.dumps({"Modality": header.Modality}))
    process = {"module_name": "hippocampus", "settings": settings or {}, "retain_input_images": False}
    (incoming / "task.json").write_text(json.dumps({"id": "a-task", "info": {}, "process": process}))
    return packaged | {"MERCURE_IN_DIR": str(incoming), "MERCURE_OUT_DIR": str(outgoing)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_monai_deploy_host_says_where_by_its_variables_relative_ones_below_the_working_directory(
    packaged: dict[str, str], tmp_path: Path
) -> None:
    job = job_from(packaged)
    assert (job.source, job.output) == (tmp_path / "input", tmp_path / "output")
    assert job.model == tmp_path / "bundles" / NAME
    assert job.settings == Settings(format=("seg",))
    assert not job.wants_result
    assert job_from(packaged | {"HOLOSCAN_OUTPUT_PATH": "/mnt/results"}).output == Path("/mnt/results")


def test_mercure_s_folders_and_settings_go_first(packaged: dict[str, str], series: Path, tmp_path: Path) -> None:
    settings = {"tta": True, "format": "rtstruct, sc"}
    job = job_from(as_mercure(packaged, series, tmp_path, settings))
    assert (job.source, job.output) == (tmp_path / "data", tmp_path / "results")
    assert job.settings == Settings(format=("rtstruct", "sc"), tta=True)
    assert job.wants_result


def test_nothing_else_of_the_environment_is_read(packaged: dict[str, str], series: Path, tmp_path: Path) -> None:
    environment = Watched(as_mercure(packaged, series, tmp_path))
    job_from(environment)
    assert environment.asked == {
        "HOLOSCAN_WORKDIR",
        "HOLOSCAN_INPUT_PATH",
        "HOLOSCAN_OUTPUT_PATH",
        "HOLOSCAN_MODEL_PATH",
        "HOLOSCAN_CONFIG_PATH",
        "MERCURE_IN_DIR",
        "MERCURE_OUT_DIR",
    }


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (None, r"task\.json cannot be used \(FileNotFoundError"),
        ("{", r"task\.json cannot be used \(JSONDecodeError"),
        ('{"process": [{"settings": {}}]}', r"with one step under process"),
        (
            '{"process": {"settings": {"tat": true}}}',
            r"task\.json: settings: tat is not a setting; some of format, tta,",
        ),
        ('{"process": {"settings": {"tta": "yes"}}}', r"tta is 'yes'; true or false is needed"),
        ('{"process": {"settings": {"time_point": true}}}', r"time_point is True; a whole number is needed"),
        ('{"process": {"settings": {"device": 0}}}', r"device is 0; a word is needed"),
        ('{"process": {"settings": {"format": ["seg", 1]}}}', r"a list of words is needed"),
        ('{"process": {"settings": {"format": "sge"}}}', r"--format sge: some of nifti"),
        ('{"process": {"settings": {"seg_encoding": "zip"}}}', r"seg_encoding zip: one of binary"),
        ('{"process": {"settings": {"channels": "1.2,1.3", "series": "1.2"}}}', r"channels names whole series"),
        ('{"process": {"settings": {"channels": "1.2,1.3", "time_point": 0}}}', r"leave series, time_point"),
        ('{"process": {"settings": ["seg"]}}', r"is not a mapping of settings"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_in_words(
    packaged: dict[str, str], series: Path, tmp_path: Path, task: str | None, message: str
) -> None:
    environment = as_mercure(packaged, series, tmp_path)
    path = tmp_path / "data/task.json"
    path.unlink()
    if task is not None:
        path.write_text(task)
    with pytest.raises(UsageError, match=message):
        job_from(environment)


def test_a_task_without_a_processing_step_has_no_settings(
    packaged: dict[str, str], series: Path, tmp_path: Path
) -> None:
    environment = as_mercure(packaged, series, tmp_path)
    (tmp_path / "data/task.json").write_text('{"id": "a-task", "process": {}}')
    assert job_from(environment).settings == Settings(format=("seg",))


def test_mercure_without_a_folder_for_results_is_refused(
    packaged: dict[str, str], series: Path, tmp_path: Path
) -> None:
    environment = as_mercure(packaged, series, tmp_path) | {"MERCURE_OUT_DIR": ""}
    with pytest.raises(UsageError, match="MERCURE_IN_DIR is set but MERCURE_OUT_DIR is not"):
        job_from(environment)


@pytest.mark.parametrize("text", [None, "segmentation: {}", "- a list", "a: [b"])
def test_an_app_yaml_that_does_not_name_its_bundle_is_refused(
    packaged: dict[str, str], tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "app.yaml"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UsageError, match=r"app\.yaml cannot be used"):
        job_from(packaged)


def test_an_image_has_one_model(packaged: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"holds 0 bundle\(s\); one is needed"):
        job_from(packaged | {"HOLOSCAN_MODEL_PATH": str(tmp_path / "input")})


def test_later_settings_replace_earlier_ones_by_name() -> None:
    found = settings_of(("a", {"tta": True, "series": "1.2"}), ("b", {"series": None, "time_point": 2}))
    assert found == Settings(tta=True, series=None, time_point=2)
    assert (found.run.settings.tta, found.run.reading.time_point) == (True, 2)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(
            ("nifti",), True, True, True, True, "occlusion", True, True, series="1.2", time_point=3, resample_gaps=True
        ),
        Settings(format=("seg",), match={"SeriesDescription": "t1|hippo"}, least_instances=8),
        Settings(format=("seg",), seg_encoding="fractional", channels=("1.2", "1.3"), device="cpu"),
    ],
)
def test_settings_survive_an_app_yaml(settings: Settings) -> None:
    assert settings_of(("app.yaml", yaml.safe_load(yaml.safe_dump(settings.chosen)))) == settings


def test_a_case_in_the_input_folder_becomes_the_voxels_of_segment_case(
    packaged: dict[str, str], crop: Volume, tmp_path: Path, run_app: RunApp
) -> None:
    image = nibabel.Nifti1Image(crop.array, crop.affine_ras)
    image.set_sform(crop.affine_ras, code=1)
    nibabel.save(image, tmp_path / "input/crop.nii.gz")
    config = yaml.safe_load((tmp_path / "app.yaml").read_text()) | {"segmentation": {"format": ["nifti"]}}
    (tmp_path / "app.yaml").write_text(yaml.safe_dump(config))
    answer = run_app(packaged)
    assert answer.code == 0, answer.err
    assert names(tmp_path / "output") == ["crop_result.json", "crop_seg.nii.gz"]
    wanted = segment_case(tmp_path / "input/crop.nii.gz", load_bundle(tmp_path / "bundles" / NAME)).segmentation.labels
    assert wanted.any()
    np.testing.assert_array_equal(nibabel.load(tmp_path / "output/crop_seg.nii.gz").get_fdata(), wanted)


def test_a_network_of_nnunet_gives_nnunets_labels_in_a_package(
    packaged: dict[str, str], tmp_path: Path, run_app: RunApp
) -> None:
    root = tmp_path / "nnunet" / "imported"
    bundle = bundle_of(Import(RESULTS / "plain3d", root, ("0",), mirroring=False))
    config = {"bundle": {"name": root.name, "sha256": bundle.sha256}, "segmentation": {"format": ["nifti"]}}
    (tmp_path / "app.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(RESULTS / "plain3d/images/test1_0000.nii.gz", tmp_path / "input")
    answer = run_app(packaged | {"HOLOSCAN_MODEL_PATH": str(root.parent)})
    assert answer.code == 0, answer.err
    (file,) = (tmp_path / "output").glob("*_seg.nii.gz")
    wanted = segment_case(RESULTS / "plain3d/images/test1_0000.nii.gz", load_bundle(root)).segmentation.labels
    assert set(np.unique(wanted)) == {0, 1, 2}
    np.testing.assert_array_equal(nibabel.load(file).get_fdata(), wanted)


def test_mercure_finds_dicom_objects_and_a_result_json(
    packaged: dict[str, str],
    series: Path,
    tmp_path: Path,
    run_app: RunApp,
) -> None:
    answer = run_app(as_mercure(packaged, series, tmp_path, {"format": "sr"}))
    assert answer.code == 0, answer.err
    assert names(tmp_path / "results") == ["data_result.json", "data_seg.dcm", "data_sr.dcm", "result.json"]
    kept = json.loads((tmp_path / "results/result.json").read_text())
    assert kept["cases"] == [json.loads((tmp_path / "results/data_result.json").read_text())]
    assert kept["problems"] == []
    source = pydicom.dcmread(next(series.iterdir()))
    assert pydicom.dcmread(tmp_path / "results/data_seg.dcm").StudyInstanceUID == source.StudyInstanceUID


def test_a_doubt_of_the_quality_gate_asks_mercure_to_tell_somebody() -> None:
    cases = [
        {"case": name, "assessment": {"verdict": verdict, "reasons": ["dim"]}}
        for name, verdict in [("a", "accept"), ("b", "review"), ("c", "reject")]
    ]
    assert result_of(cases, [])["__mercure_notification"] == {"text": "b: review (dim)\nc: reject (dim)"}
    assert "__mercure_notification" not in result_of(cases[:1], [])


def test_mercure_and_the_log_are_told_that_no_quality_gate_has_judged_a_result(
    packaged: dict[str, str],
    series: Path,
    tmp_path: Path,
    run_app: RunApp,
) -> None:
    """The tiny bundle has no gate."""
    answer = run_app(as_mercure(packaged, series, tmp_path))
    assert answer.code == 0, answer.err
    why = f"{NAME} was not calibrated; run monai-unet calibrate"
    told = f"data: not judged (no quality gate has judged this result: {why})"
    assert told in answer.err.splitlines()
    kept = json.loads((tmp_path / "results/result.json").read_text())
    assert kept["__mercure_notification"] == {"text": told}
    kept["cases"][0]["assessment"] = None
    text = "data: not judged (no quality gate has judged this result)"
    assert result_of(kept["cases"], [])["__mercure_notification"] == {"text": text}


def test_a_series_with_a_missing_slice_exits_3_with_the_reason(
    packaged: dict[str, str],
    series: Path,
    tmp_path: Path,
    run_app: RunApp,
) -> None:
    sorted(series.iterdir())[10].unlink()
    answer = run_app(as_mercure(packaged, series, tmp_path))
    assert answer.code == 3, answer.err
    said = answer.err
    assert said.startswith("refused: data: ")
    assert "--" not in said
    assert "the setting resample_gaps" in said
    assert "settings are under segmentation: in app.yaml" in said
    assert said.endswith("exit code 3: an input was refused\n")
    assert names(tmp_path / "results") == ["result.json"]
    assert len(json.loads((tmp_path / "results/result.json").read_text())["problems"]) == 1


def test_an_empty_input_exits_3(
    packaged: dict[str, str],
    run_app: RunApp,
) -> None:
    answer = run_app(packaged)
    assert answer.code == 3, answer.err
    said = answer.err
    assert "refused: no image found in input/" in said
    assert f"mount the images at {packaged['HOLOSCAN_WORKDIR']}/input" in said


def test_wrong_settings_exit_2(
    packaged: dict[str, str],
    tmp_path: Path,
    run_app: RunApp,
) -> None:
    (tmp_path / "app.yaml").write_text("bundle: {sha256: abc}\nsegmentation: {formats: [seg]}\n")
    answer = run_app(packaged)
    assert answer.code == 2, answer.err
    assert "error: app.yaml: segmentation: formats is not a setting" in answer.err


def test_another_model_than_the_packaged_one_is_not_run(packaged: dict[str, str], series: Path, tmp_path: Path) -> None:
    job = job_from(packaged | {"HOLOSCAN_INPUT_PATH": str(series)})
    job.segment()
    weights = job.model / "models/model.pt"
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="a bundle is code"):
        job.segment()


def test_without_the_sdk_the_application_says_so_and_fails(
    packaged: dict[str, str], run_app: RunApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "monai.deploy.core", None)  # None makes an import fail
    monkeypatch.delitem(sys.modules, "monai_unet_app.deploy.sdk", raising=False)
    answer = run_app(packaged)
    assert answer.code == 1, answer.err
    assert "the MONAI Deploy App SDK cannot be imported" in answer.err


def test_a_refused_case_is_raised_after_the_good_ones_are_written(
    packaged: dict[str, str], crop: Volume, series: Path, tmp_path: Path
) -> None:
    shutil.copytree(series, tmp_path / "studies/one/mr")
    dicomize(crop, tmp_path / "studies/two", case_id="two")
    sorted((tmp_path / "studies/two/mr").iterdir())[10].unlink()
    job: ApplicationJob = job_from(packaged | {"HOLOSCAN_INPUT_PATH": str(tmp_path / "studies")})
    with pytest.raises(InputRefusedError, match=r"^two: "):
        job.segment()
    assert names(tmp_path / "output") == ["one_result.json", "one_seg.dcm"]


@pytest.fixture
def mixed_study(
    packaged: dict[str, str], crop: Volume, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """In the input folder a study as a modality sends it, for a test that may change the files: name -> SeriesInstanceUID.

    The crop, the same as CT, and a series that is too wide.
    """

    def make(folder: Path) -> None:
        (folder / "study").mkdir()
        (folder / "uids.json").write_text(json.dumps(write_mixed_study(crop, folder / "study")))

    made = made_once(tmp_path_factory, "deploy_mixed_study", make)
    shutil.copytree(made / "study", tmp_path / packaged["HOLOSCAN_INPUT_PATH"], dirs_exist_ok=True)
    return json.loads((made / "uids.json").read_text())


def write_mixed_study(crop: Volume, folder: Path) -> dict[str, str]:
    wide = replace(crop, array=np.tile(crop.array, (4, 1, 1)))
    found = {}
    for name, volume in {"crop": crop, "ct": crop, "wide": wide}.items():
        case = dicomize(volume, folder / f".{name}", case_id=name)
        for file in sorted(case.series_folder.iterdir()):
            header = pydicom.dcmread(file)
            header.StudyInstanceUID, header.PatientID, header.PatientName = "1.2.3.4", "P", "A^B"
            header.SeriesDescription = f"{name} series"
            if name == "ct":
                header.Modality = "CT"
                header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
            header.save_as(folder / f"{name}_{file.name}")
        found[name] = str(header.SeriesInstanceUID)
        shutil.rmtree(folder / f".{name}")
    return found


def test_of_a_mixed_study_the_series_is_taken_that_the_bundle_was_made_for(
    packaged: dict[str, str],
    mixed_study: dict[str, str],
    tmp_path: Path,
    run_app: RunApp,
) -> None:
    answer = run_app(packaged)
    assert answer.code == 0, answer.err
    said = answer.err
    assert f"ignored: series {mixed_study['ct']} (CT): another Modality is wanted" in said
    assert (
        f"ignored: series {mixed_study['wide']} (MR): it is not what this bundle was made for: its field of view"
        in said
    )
    (result,) = (tmp_path / "output").glob("*_seg.dcm")
    (source,) = pydicom.dcmread(result).ReferencedSeriesSequence
    assert source.SeriesInstanceUID == mixed_study["crop"]


@pytest.mark.usefixtures("mixed_study")
def test_patterns_of_the_settings_say_which_series_is_meant_as_in_a_node_s_rule(packaged: dict[str, str]) -> None:
    settings = Settings(format=("seg",), match={"SeriesDescription": "crop"})
    assert len(replace(job_from(packaged), settings=settings).segment()) == 1
    wrong = Settings(format=("seg",), match={"SeriesDescription": "liver"})
    with pytest.raises(
        InputRefusedError, match=r"none of the 3 series .* another SeriesDescription .* correct the settings"
    ):
        replace(job_from(packaged), settings=wrong).segment()


@pytest.mark.usefixtures("mixed_study")
def test_of_a_mixed_study_nothing_that_fits_is_left_out_in_silence(packaged: dict[str, str], tmp_path: Path) -> None:
    sorted((tmp_path / "input").glob("crop_*"))[10].unlink()
    with pytest.raises(InputRefusedError, match=r"^input_\d: "):
        job_from(packaged).segment()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("one is needed; name it with --series UID", "name it with the setting series: UID"),
        ("give --dicom-source DIR, or --dicomize to write one", "put the DICOM series into the input instead"),
        (
            "leave --series, --channels and --time-point out",
            "leave the setting series, the setting channels and the set",
        ),
        ("nothing of this kind", "nothing of this kind"),
    ],
)
def test_a_message_names_settings_and_no_flags(message: str, said: str) -> None:
    found = app.in_container(message)
    assert said in found
    assert "--" not in found
    assert ("app.yaml" in found) == ("setting" in found)
