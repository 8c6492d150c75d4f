"""A bundle of two channels in a node: their series in any order, absent, twice, of another patient or place."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from once import made_once
from pydicom import dcmread
from pydicom.uid import generate_uid

from dicom_io.channels import read_channels
from dicom_io.dicomize import dicomize
from dicom_io.read import read_series
from dicom_io.seg import read_seg
from dicom_io.volume import Provenance, Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.data.case_files import find_images
from monai_unet_app.data.read import read_volume
from monai_unet_app.deploy.picking import pick
from monai_unet_app.deploy.settings import Settings
from monai_unet_app.errors import AppError, InputRefusedError, UsageError
from monai_unet_app.pipeline import segment_case
from monai_unet_app.service.rule_checks import check_bundles
from monai_unet_app.service.site_file import read_site
from monai_unet_app.service.work import Worker

SITE = """
[node]
folder = "node"
[[rules]]
name = "two"
bundle = "{bundle}"
deliver_ungated = true
formats = ["seg"]
match = {{SeriesDescription = "T1"}}
channels = {{FLAIR = {{SeriesDescription = "FLAIR"}}}}
"""


@pytest.fixture
def site(two_channel_bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(SITE.format(bundle=two_channel_bundle))
    return path


Series = Callable[..., Path]


@pytest.fixture
def series(crop: Volume, tmp_path_factory: pytest.TempPathFactory) -> Series:
    """Makes a series of one study and one frame of reference, whose values follow from its description."""

    def make(folder: Path, case_id: str, headers: dict[str, str]) -> None:
        noise = np.random.default_rng(len(headers["SeriesDescription"])).normal(0, 30, crop.shape).astype(np.float32)
        image = replace(crop, array=crop.array + noise, provenance=Provenance("nifti"))
        for file in dicomize(image, folder, case_id=case_id).series_folder.glob("*.dcm"):
            one = dcmread(file)
            for keyword, value in headers.items():
                setattr(one, keyword, value)
            one.save_as(file)

    def copy(folder: Path, description: str, **header: str) -> Path:
        told = {"StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4", "PatientID": "anna"}
        headers = {**told, **header, "SeriesDescription": description}
        name = hashlib.sha256(repr((folder.name, sorted(headers.items()))).encode()).hexdigest()[:16]
        made = made_once(tmp_path_factory, f"channel_{name}", lambda place: make(place, folder.name, headers))
        (found,) = {path.parent for path in made.rglob("*.dcm")}
        return Path(shutil.copytree(found, folder))

    return copy


def answer(site: Path, study: Path, output: Path, *, waited: bool = True) -> dict[str, Any]:
    return Worker(read_site(site)).answer({"study": str(study), "output": str(output), "earlier": {}, "waited": waited})


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_the_series_of_the_channels_are_found_whatever_their_order(
    names: tuple[str, str], series: Series, site: Path, two_channel_bundle: Path, tmp_path: Path
) -> None:
    study = tmp_path / "received"
    for name, description in zip(names, ("T1 sag", "FLAIR ax"), strict=True):
        series(study / name, description)
    series(study / "c", "T2")
    (found,) = answer(site, study, tmp_path / "results")["results"]
    assert (found["rule"], found["state"]) == ("two", "sending"), found["reason"]
    uids = [read_series(study / name).provenance.series_instance_uid for name in names]
    assert found["series"] == uids[0]
    image = read_channels(study, uids)
    (seg,) = (tmp_path / "results").rglob("*_seg.dcm")
    loaded = load_bundle(two_channel_bundle, "cpu")
    right, exchanged = (
        segment_case(read_channels(study, order), loaded).segmentation.labels for order in (uids, uids[::-1])
    )
    assert len(np.unique(right)) > 1
    assert np.array_equal(read_seg(seg, image.channel(0)).array, right)
    assert not np.array_equal(exchanged, right)


def test_an_absent_channel_is_waited_for_and_then_named(series: Series, site: Path, tmp_path: Path) -> None:
    series(tmp_path / "received/a", "T1")
    found = answer(site, tmp_path / "received", tmp_path / "results", waited=False)
    assert found["incomplete"] == "no series for the channel FLAIR came yet"
    (result,) = answer(site, tmp_path / "received", tmp_path / "results")["results"]
    assert result["state"] == "not processed"
    assert "0 series of the study are for the channel FLAIR" in result["reason"]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({}, "2 series of the study are for the channel FLAIR"),
        ({"FrameOfReferenceUID": "1.2.9"}, ""),
    ],
)
def test_a_second_series_for_a_channel_is_taken_by_nobody_unless_it_lies_elsewhere(
    header: dict[str, str], reason: str, series: Series, site: Path, tmp_path: Path
) -> None:
    study = tmp_path / "received"
    series(study / "a", "T1")
    series(study / "b", "FLAIR")
    series(study / "c", "FLAIR again", **header)
    (result,) = answer(site, study, tmp_path / "results")["results"]
    assert (result["state"], reason in result["reason"]) == ("not processed" if reason else "sending", True)


def test_series_of_two_patients_are_not_mixed(series: Series, site: Path, tmp_path: Path) -> None:
    study = tmp_path / "received"
    series(study / "a", "T1")
    series(study / "b", "FLAIR", PatientID="berta")
    (result,) = answer(site, study, tmp_path / "results")["results"]
    assert result["state"] == "not processed"
    assert "are of different patients" in result["reason"]
    assert "berta" not in result["reason"]


def test_every_reference_series_has_a_result_of_its_own(series: Series, site: Path, tmp_path: Path) -> None:
    study = tmp_path / "received"
    for name, description in (("a", "T1"), ("b", "FLAIR"), ("c", "T1 with contrast")):
        series(study / name, description)
    results = answer(site, study, tmp_path / "results")["results"]
    assert [one["state"] for one in results] == ["sending", "sending"]
    assert len({one["series"] for one in results}) == 2


@pytest.mark.parametrize(
    ("there", "instead", "needed"),
    [
        ("FLAIR = {", "ADC = {", "patterns for the channels ADC beside match; FLAIR, in this order"),
        (
            'channels = {FLAIR = {SeriesDescription = "FLAIR"}}',
            "",
            "patterns for the channels none beside match; FLAIR",
        ),
    ],
)
def test_a_rule_with_other_channels_than_its_bundle_does_not_start(
    there: str, instead: str, needed: str, site: Path
) -> None:
    site.write_text(site.read_text().replace(there, instead))
    with pytest.raises(AppError, match=needed):
        check_bundles(read_site(site))


def test_a_channel_needs_patterns(site: Path) -> None:
    site.write_text(site.read_text().replace('{SeriesDescription = "FLAIR"}', "{}"))
    with pytest.raises(UsageError, match="channels: FLAIR matches every series"):
        read_site(site)


def test_the_same_study_gives_the_same_uids_and_another_channel_others(
    series: Series, site: Path, tmp_path: Path
) -> None:
    study, uids = tmp_path / "received", []
    series(study / "a", "T1")
    series(study / "b", "FLAIR")
    for number in range(3):
        if number == 2:  # as it came from another scan
            for file in (study / "b").glob("*.dcm"):
                one = dcmread(file)
                one.SOPInstanceUID, one.SeriesInstanceUID = generate_uid(entropy_srcs=[file.name]), "1.2.7"
                one.save_as(file)
        answer(site, study, tmp_path / f"results_{number}")
        (seg,) = (tmp_path / f"results_{number}").rglob("*_seg.dcm")
        uids.append(str(dcmread(seg).SOPInstanceUID))
    assert uids[0] == uids[1] != uids[2]


def test_a_package_finds_the_series_of_each_channel_by_patterns(
    series: Series, two_channel_bundle: Path, tmp_path: Path
) -> None:
    study = tmp_path / "received"
    for name, description in (("a", "FLAIR"), ("b", "T1"), ("c", "T2")):
        series(study / name, description)
    rules = load_bundle(two_channel_bundle, "cpu").rules
    patterns = {"SeriesDescription": "FLAIR"}
    settings = Settings(match={"SeriesDescription": "T1"}, match_channels={"FLAIR": patterns})
    picked = pick(find_images(study), rules, settings)
    uids = {name: read_series(study / name).provenance.series_instance_uid for name in "abc"}
    ((case, run),) = picked.cases
    assert run.reading.channels == (uids["b"], uids["a"])
    assert [uids["c"] in line for line in picked.passed_by] == [True]
    expected = read_channels(study, [uids["b"], uids["a"]]).array
    assert np.array_equal(read_volume(case.files, run.reading).array, expected)

    with pytest.raises(UsageError, match="patterns for ADC; FLAIR, in this order"):
        pick(find_images(study), rules, replace(settings, match_channels={"ADC": patterns}))
    with pytest.raises(UsageError, match="give match, and leave channels out"):
        Settings(match_channels={"FLAIR": patterns})
    shutil.rmtree(study / "a")
    with pytest.raises(InputRefusedError, match="0 series of the study are for the channel FLAIR"):
        pick(find_images(study), rules, settings)
