"""A program of somebody else in the place of a network: judged like one, ended within its limits, and never trusted."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_segmenter import segmented
from other_program import AFFINE_RAS, PROGRAM, case, program_bundle_once
from phantoms import write_mr_series
from result_phantoms import dciodvfy_errors
from shell import Run, shell

from dicom_io.volume import LPS_FROM_RAS
from monai_unet_app.data.schemas import validate
from monai_unet_app.errors import AppError, UsageError
from monai_unet_app.external import Command, ExternalBundle, Surroundings, check_version, external_bundle
from monai_unet_app.service.rule_checks import check_bundles
from monai_unet_app.service.site import Site
from monai_unet_app.service.site_file import read_site
from monai_unet_app.service.work import Worker

run = pytest.fixture(shell)
SITE = """
[node]
folder = "node"
job_s = 100
[external]
path = "{path}"
threads = 2
environment = {{ {environment} }}
[[rules]]
name = "organs"
bundle = "{bundle}"
match = {{ Modality = "MR" }}
formats = ["seg", "sr"]
destinations = ["pacs"]
{more}
[destinations.pacs]
host = "127.0.0.1"
port = 104
ae_title = "PACS"
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the program, fitted to its results of 24 people."""
    return program_bundle_once(tmp_path_factory)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    write_mr_series(tmp_path / "series", case(500)[0] + 1000, LPS_FROM_RAS @ AFFINE_RAS)
    return tmp_path / "series"


def with_limits(bundle: Path, folder: Path, **limits: float) -> Path:
    shutil.copytree(bundle, folder)
    file = folder / "configs/external.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | limits))
    return folder


def test_a_program_segments_a_series_and_what_it_is_worth_is_stated(
    run: Run, bundle: Path, series: Path, tmp_path: Path
) -> None:
    words = ("--input", series, "--output", tmp_path / "out", "--format", "seg,sr")
    answer = run("predict", "--bundle", bundle, "--trust", *words)
    assert answer.code == 0, answer.err
    result = json.loads((tmp_path / "out/series_result.json").read_text())
    validate(result, "result")
    wanted = segmented(case(500)[0] + 1000)
    assert [row["voxels"] for row in result["structures"]] == [np.count_nonzero(wanted == value) for value in (3, 7)]
    assert result["assessment"]["verdict"] == "accept"
    assert result["seconds"]["program"] > 0
    assert result["bundle"]["sha256"] == ExternalBundle(bundle).sha256
    for name in ("seg", "sr"):
        assert not dciodvfy_errors(tmp_path / f"out/series_{name}.dcm")
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["series_result.json", "series_seg.dcm", "series_sr.dcm"]
    assert "Doe" not in answer.out + answer.err


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("code", "gave no result: exit code 4"),
        ("sleep", "it was ended after 2 s, its limit"),
        ("disk", "beyond its limit"),
        ("grid", "before the image does"),
        ("nothing", "has written no labels.nii.gz"),
        ("link", "is a link or no plain file"),
        ("garbage", "labels.nii.gz"),
    ],
)
def test_a_program_that_fails_is_refused_and_nothing_is_left(
    run: Run, bundle: Path, series: Path, tmp_path: Path, fault: str, text: str
) -> None:
    # On the command line a program has no variables of ours; a script passes this one on
    script = tmp_path / "program.py"
    started = f"os.execv(sys.executable, [sys.executable, *{PROGRAM[1:]!r}, *sys.argv[1:]])"
    script.write_text(f"import os, sys\nos.environ['FAULT'] = {fault!r}\n{started}\n")
    words = [sys.executable, str(script), "{image}", "{output}"]
    own = with_limits(bundle, tmp_path / "own", words=words, seconds=2.0 if fault == "sleep" else 60.0)
    out = tmp_path / "out"
    answer = run("predict", "--bundle", own, "--trust", "--input", series, "--output", out)
    assert (answer.code, text in answer.err) == (3, True), answer.err
    assert not list(out.iterdir())
    assert "Doe" not in answer.out + answer.err


def test_it_is_started_by_trust_alone_and_never_from_a_zip(
    run: Run, bundle: Path, series: Path, tmp_path: Path
) -> None:
    words = ("--input", series, "--output", tmp_path / "out")
    answer = run("predict", "--bundle", bundle, *words)
    assert (answer.code, "give --trust if" in answer.err) == (2, True)
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", bundle.parent, bundle.name)
    answer = run("predict", "--bundle", packed, "--trust", *words)
    assert (answer.code, "comes in a zip" in answer.err) == (2, True), answer.err
    renamed = Path(packed).rename(tmp_path / "packed.bundle")
    answer = run("predict", "--bundle", renamed, "--trust", *words)
    assert (answer.code, not (tmp_path / "out").exists()) == (2, True), answer.err
    answer = run("predict", "--bundle", bundle, "--trust", "--tta", *words)
    assert (answer.code, "--tta is about a bundle with a network" in answer.err) == (2, True)
    for verb in (
        ("bundle", "export", "--to", "openvino"),
        ("evaluate", "--data", series, "--output", tmp_path / "out"),
    ):
        answer = run(*verb, "--bundle", bundle)
        assert "has no network" in answer.err
    assert not (tmp_path / "out").exists()


def test_another_version_does_not_start(bundle: Path, tmp_path: Path) -> None:
    where = Surroundings(environment={"SEGMENTER_VERSION": "1.1"})
    with pytest.raises(AppError, match=r"is about Segmenter 1\.0.*version 1\.1"):
        check_version(ExternalBundle(bundle), where, tmp_path)
    check_version(ExternalBundle(bundle), Surroundings(environment={"SEGMENTER_VERSION": "v1.0"}), tmp_path)
    absent = ExternalBundle(with_limits(bundle, tmp_path / "absent", version_words=["no-such-program"]))
    with pytest.raises(AppError, match="the program is not there"):
        check_version(absent, Surroundings(), tmp_path)


@pytest.mark.parametrize(
    "words", [("p", "{image}"), ("p", "{image}", "{output}", "{home}"), ("{image.__class__}", "{image}", "{output}")]
)
def test_a_command_names_image_and_output_and_nothing_else(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="in braces"):
        Command(words, ("program", "--version"))
    with pytest.raises(UsageError, match="name of a label map"):
        Command(("program", "{image}", "{output}"), ("program",), output="../labels.nii.gz")


def site_of(bundle: Path, folder: Path, environment: str = "", more: str = "") -> Site:
    (folder / "site.toml").write_text(
        SITE.format(bundle=bundle, path=Path(sys.executable).parent, environment=environment, more=more)
    )
    return read_site(folder / "site.toml")


def test_a_node_gives_series_to_it_and_judges_what_comes_back(bundle: Path, series: Path, tmp_path: Path) -> None:
    site = site_of(bundle, tmp_path)
    check_bundles(site)
    worker = Worker(site)
    assert worker.loaded()["organs"]["sha256"] == ExternalBundle(bundle).sha256
    answer = worker.answer({"study": str(series), "output": str(tmp_path / "results/study"), "earlier": {}})
    (result,) = answer["results"]
    assert (result["verdict"], result["state"]) == ("accept", "sending"), result
    files = sorted(path.name.rpartition("_")[2] for path in (tmp_path / "results/study").rglob("*.*"))
    assert files == ["result.json", "seg.dcm", "sr.dcm"]


def test_in_a_node_a_failing_program_gives_no_result_and_its_text_stays_out_of_the_reason(
    bundle: Path, series: Path, tmp_path: Path
) -> None:
    worker = Worker(site_of(bundle, tmp_path, environment='FAULT = "code"'))
    answer = worker.answer({"study": str(series), "output": str(tmp_path / "results/study"), "earlier": {}})
    (result,) = answer["results"]
    assert result["state"] == "not processed"
    assert result["reason"].startswith("Segmenter 1.0 gave no result: exit code 4")
    assert not list((tmp_path / "results/study").rglob("*.dcm"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"more": 'sha256 = "' + "0" * 64 + '"'}, "names a bundle of sha256 000000000000"),
        ({"more": "probabilities = true"}, "asks for probabilities"),
        ({"more": "tta = true"}, "asks for tta"),
    ],
)
def test_a_rule_that_asks_for_what_a_program_has_not_does_not_start(
    bundle: Path, tmp_path: Path, change: dict[str, str], text: str
) -> None:
    with pytest.raises(AppError, match=text):
        check_bundles(site_of(bundle, tmp_path, **change))


def test_its_time_lies_below_that_of_its_job_and_another_version_stops_the_worker(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(AppError, match="the program must end before its job does"):
        check_bundles(site_of(with_limits(bundle, tmp_path / "slow", seconds=100.0), tmp_path))
    with pytest.raises(AppError, match="does not tell that version"):
        Worker(site_of(bundle, tmp_path, environment='SEGMENTER_VERSION = "2.0"'))


def test_a_broken_record_is_refused(bundle: Path, tmp_path: Path) -> None:
    broken = with_limits(bundle, tmp_path / "broken", seconds=-1)
    found = external_bundle(broken)
    assert found is not None
    with pytest.raises(AppError, match="at seconds: -1"):
        _ = found.command


def test_its_digest_is_the_same_at_every_door(
    run: Run, bundle: Path, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / "bundles/segmenter")
    monkeypatch.setenv("MONAI_UNET_BUNDLES", str(tmp_path / "bundles"))
    listed = {row["name"]: row["sha256"] for row in json.loads(run("doctor", "--bundles", "--json").out)["bundles"]}
    check_bundles(site_of(bundle, tmp_path, more=f'sha256 = "{listed["segmenter"]}"'))
    words = ("--bundle", "segmenter", "--trust", "--input", series, "--output", tmp_path / "out")
    assert run("predict", *words).code == 0
    traced = json.loads(run("trace", tmp_path / "out/series_seg.dcm", "--json").out)
    assert "segmenter" in json.dumps(traced)
