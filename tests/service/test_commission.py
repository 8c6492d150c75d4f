"""Site acceptance before anything is sent: what cannot pass is said in seconds; and the studies that are sent."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from nodes import make_study, pacs
from ports import free_port
from pydicom import dcmread
from pydicom.uid import generate_uid

from dicom_io.net.outcome import Outcome
from dicom_io.reading.series import survey_files
from monai_unet_app.cli import main
from monai_unet_app.errors import AppError, InputRefusedError
from monai_unet_app.service import commission as commission_steps
from monai_unet_app.service.acceptance_checks import compare_labels
from monai_unet_app.service.commission import Commissioning, commission
from monai_unet_app.service.phantoms import (
    AXES,
    Example,
    Study,
    example_study,
    matching_text,
    phantom_study,
    rules_of_channels,
    shipped_example,
)
from monai_unet_app.service.site import Rule
from monai_unet_app.service.site_file import read_site
from monai_unet_app.service.work import misfits

SITE = """
[node]
folder = "node"
port = {port}
{node}
[[rules]]
name = "hippocampus"
bundle = "hippocampus_mri_unet3d"
match = {{{match}}}
destinations = ["archive"]
[destinations.archive]
host = "127.0.0.1"
port = {archive}
ae_title = "PACS"
"""
DOCUMENTED = 'Modality = "MR", SeriesDescription = "hippo|t1.*crop"'
"""The patterns of the site file in docs/how-to/node.md."""


def write_site(folder: Path, archive: int, *, node: str = "", match: str = DOCUMENTED) -> Path:
    path = folder / "site.toml"
    path.write_text(SITE.format(port=free_port(), archive=archive, node=node, match=match))
    return path


def the_rule(folder: Path, match: str) -> Rule:
    return read_site(write_site(folder, 104, match=match)).rules[0]


def test_what_cannot_pass_is_said_in_seconds_with_the_remedy_and_nothing_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = 'senders = ["ROUTER", "CT1"]\nnetworks = ["10.1.0.0/16"]'
    with pacs(tmp_path / "pacs") as peer:
        text = write_site(tmp_path, peer.port, node=node, match='Modality = "CT"').read_text()
        down = f'\n[destinations.down]\nhost = "127.0.0.1"\nport = {free_port()}\nae_title = "DOWN"\n'
        (tmp_path / "site.toml").write_text(text + down)
        words = ["--key", str(tmp_path / "site.pem"), "--output", str(tmp_path / "out")]
        begin = time.monotonic()
        assert main(["node", "commission", "--config", str(tmp_path / "site.toml"), *words]) == 1
        assert time.monotonic() - begin < 60
        said = capsys.readouterr().out
        assert list((tmp_path / "pacs").rglob("*.dcm")) == []
    flat = said.replace("\n", " ")
    assert said.count("FAILED") == 3, said
    assert "add COMMISSION to senders and start the node again, or call as one of them with --calling-ae-title" in flat
    assert "it accepts 10.1.0.0/16 (networks)" in flat
    assert "name an image with --example hippocampus=PATH" in flat
    assert re.search(r"FAILED  down \(DOWN@127\.0\.0\.1:\d+\): answers", said)
    assert re.search(r"1 of \d+ checks passed, \d+ not tried", said)
    assert len(said.splitlines()) < 25


def test_a_site_whose_node_does_not_run_fails_before_anything_is_sent(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer:
        found = commission(read_site(write_site(tmp_path, peer.port)))
        assert list((tmp_path / "pacs").rglob("*.dcm")) == []
    assert [(check.where, check.what) for check in found.of("failed")] == [("node", "answers")]
    assert {check.state for check in found.checks[4:]} == {"not tried"}
    assert not found.passed


def test_nothing_is_begun_when_the_time_is_over(tmp_path: Path) -> None:
    site = read_site(write_site(tmp_path, free_port()))
    found = commission(site, Commissioning(limit_s=1e-6))
    assert {check.state for check in found.checks} == {"not tried"}
    assert "the time limit was reached" in found.checks[0].said
    assert not found.passed


def test_the_example_fits_the_rule_of_the_documented_site_file(tmp_path: Path) -> None:
    rule = the_rule(tmp_path, DOCUMENTED)
    study = example_study([(shipped_example({}), rule)], tmp_path / "made", AXES[0])
    (series,) = survey_files(list(study.files)).series
    assert misfits(rule, series) == []


@pytest.mark.parametrize(
    ("match", "headers", "message"),
    [
        ('Modality = "CT"', {}, r"Modality contains 'CT'; the shipped example .* --example hippocampus=PATH"),
        ('Rows = "^512$"', {}, r"Rows contains .* --example hippocampus=PATH"),
        (
            'SeriesDescription = "(?!x)y"',
            {},
            r"no such value could be made .* --header hippocampus\.SeriesDescription=VAL",
        ),
        ('SeriesDescription = "T1"', {"SeriesDescription": "T2"}, "given with --header does not; correct it"),
        ('PatientID = "^TEST"', {"PatientID": "TEST-1"}, "leave it out or correct it"),
        ('Modality = "MR"', {"PatientName": "Rossi^Anna"}, r"--header gives hippocampus\.PatientName; .* leave it out"),
        ('Modality = "MR"', {"StudyInstanceUID": "1.2.3"}, r"gives hippocampus\.StudyInstanceUID; .* has new UIDs"),
        ('PatientID = "^TEST"', {}, "in everything that is sent it begins with COMMISSION"),
    ],
)
def test_a_rule_that_no_example_fits_is_told_with_the_remedy(
    tmp_path: Path, match: str, headers: dict[str, str], message: str
) -> None:
    with pytest.raises(InputRefusedError, match=message):
        example_study([(shipped_example(headers), the_rule(tmp_path, match))], tmp_path / "made", AXES[0])


@pytest.mark.parametrize("pattern", ["converted", "^Site acceptance", "^((?!convert).)*$"])
def test_the_example_fits_a_rule_that_looks_at_the_study_description(pattern: str, tmp_path: Path) -> None:
    rule = the_rule(tmp_path, f'StudyDescription = "{pattern}"')
    study = example_study([(shipped_example({}), rule)], tmp_path / "made", AXES[0])
    (series,) = survey_files(list(study.files)).series
    assert misfits(rule, series) == []


def test_a_label_that_does_not_come_back_is_a_fault_that_json_can_say(tmp_path: Path) -> None:
    before = phantom_study("oblique", tmp_path / "made").labels
    assert before is not None
    found = compare_labels(before, before.with_array(before.array * (before.array != 2)), "came back")
    assert found.fault
    assert found.text == "came back; a label is in only one of the two"
    assert (found.place_mm, found.volume_ml) == (
        None,
        pytest.approx((before.array == 2).sum() * 1.5 * 1.25 * 2.0 / 1000),
    )
    json.dumps(asdict(found), allow_nan=False)


def test_no_studies_are_sent_whose_results_nobody_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All results come from one worker of two."""
    site = read_site(write_site(tmp_path, 104, node="workers = 2"))
    site.node.folder.mkdir()
    trail = site.node.folder / "audit.jsonl"
    trail.touch()
    run = commission_steps._Run(site, Commissioning(), tmp_path, lambda text: None)
    monkeypatch.setattr(run, "_made", lambda rule, axes: Study(generate_uid(), ()))
    sent = []

    def send(studies: Sequence[Study]) -> None:
        sent.append(len(studies))
        with trail.open("a") as stream:
            for study in studies:
                stream.write(json.dumps({"event": "result", "study": study.uid, "worker": 1}) + "\n")

    monkeypatch.setattr(run, "_send_studies", send)
    found = run._all_workers()
    assert found.fault
    assert found.text.startswith("1 of 2 by the node's audit trail, 8 studies")
    assert sent == [4, 4]


def test_studies_that_the_node_does_not_take_are_not_blamed_on_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = read_site(write_site(tmp_path, 104, node="workers = 2\nstable_s = 0.1"))
    site.node.folder.mkdir()
    (site.node.folder / "audit.jsonl").touch()
    run = commission_steps._Run(site, Commissioning(result_s=0.1), tmp_path, lambda text: None)
    monkeypatch.setattr(run, "_made", lambda rule, axes: Study(generate_uid(), ()))
    lost = Outcome(tmp_path / "1.dcm", "1.2.3", "", "refused", 0xA700, "out of resources")
    monkeypatch.setattr(commission_steps, "send", lambda destination, files: (lost,))
    with pytest.raises(AppError, match=r"4 of 4 images were not taken: out of resources"):
        run._all_workers()


def test_a_header_that_somebody_gives_is_used(tmp_path: Path) -> None:
    rule = the_rule(tmp_path, 'SeriesDescription = "(?!x)y"')
    study = example_study([(shipped_example({"SeriesDescription": "my y"}), rule)], tmp_path / "made", AXES[0])
    assert dcmread(study.files[0]).SeriesDescription == "my y"


@pytest.mark.parametrize(
    "pattern",
    ["hippo|t1.*crop", "^T1w?$", r"(a|b)[x-z]+\d{3}\s", r"^\S*", "", "x{2,5}?y", r"\w\.\d+", "[^a]"],
)
def test_a_text_that_is_made_from_a_pattern_is_found_by_it(pattern: str) -> None:
    found = matching_text(re.compile(pattern, re.IGNORECASE))
    if pattern == "[^a]":
        assert found is None
    else:
        assert found is not None
        assert re.search(pattern, found, re.IGNORECASE)


def test_every_study_has_new_uids_and_names_that_begin_with_commission(tmp_path: Path) -> None:
    rule = the_rule(tmp_path, 'Modality = "MR", PatientID = "site"')
    studies = [phantom_study("oblique", tmp_path / str(n)) for n in range(2)]
    studies += [example_study([(shipped_example({}), rule)], tmp_path / f"e{n}", AXES[1]) for n in range(2)]
    headers = [dcmread(file) for study in studies for file in study.files]
    assert all(str(one.PatientName).startswith("COMMISSION") for one in headers)
    assert all(one.PatientID.startswith("COMMISSION") for one in headers)
    assert len({one.SOPInstanceUID for one in headers}) == len(headers)
    assert len({one.StudyInstanceUID for one in headers}) == len({study.uid for study in studies}) == 4
    assert len({one.PatientID for one in headers}) == 4


def test_a_dicom_example_loses_its_patient(tmp_path: Path) -> None:
    before = [dcmread(path) for path in sorted(make_study(tmp_path / "given").glob("*.dcm"))]
    rule = the_rule(tmp_path, 'Modality = "CT"')
    study = example_study([(Example(tmp_path / "given", False, {}), rule)], tmp_path / "made", AXES[0])
    assert len(study.files) == 3
    for path in study.files:
        assert dcmread(path).PatientName.family_name == "COMMISSION"
        content = path.read_bytes()
        for one in before:
            for secret in (str(one.PatientName), one.PatientID, one.AccessionNumber, one.SOPInstanceUID):
                assert secret.encode() not in content


TWO = 'match = {SeriesDescription = "T1"}\nchannels = {FLAIR = {SeriesDescription = "FLAIR"}}'


def test_the_example_of_a_further_channel_is_of_the_same_patient_study_and_space(tmp_path: Path) -> None:
    text = write_site(tmp_path, 104).read_text().replace(f"match = {{{DOCUMENTED}}}", TWO)
    (tmp_path / "site.toml").write_text(text)
    rules = rules_of_channels(read_site(tmp_path / "site.toml").rules[0])
    study = example_study([(shipped_example({}), rule) for rule in rules], tmp_path / "made", AXES[1])
    first, second = ([dcmread(file) for file in files] for files in study.series)
    assert [one[0].SeriesDescription for one in (first, second)] == ["T1", "FLAIR"]
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDescription"):
        assert len({one.get(keyword) for one in (*first, *second)}) == 1, keyword
    assert len({one.SOPInstanceUID for one in (*first, *second)}) == len(study.files) == len(first) + len(second)
    assert len({one.SeriesInstanceUID for one in (*first, *second)}) == 2
    assert study.image.array.shape[3] == 2


def test_a_channel_whose_series_the_rule_picks_as_well_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    text = write_site(tmp_path, 104).read_text()
    (tmp_path / "site.toml").write_text(
        text.replace(
            f"match = {{{DOCUMENTED}}}", 'match = {Modality = "MR"}\nchannels = {FLAIR = {SeriesDescription = "FLAIR"}}'
        )
    )
    site = read_site(tmp_path / "site.toml")
    run = commission_steps._Run(site, Commissioning(), tmp_path, lambda text: None)
    with pytest.raises(InputRefusedError, match="0 series of the study are for the channel FLAIR"):
        run._fits(site.rules[0])
