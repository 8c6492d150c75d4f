"""The worker makes of a study what its rules say, in the form that each destination wants, or says why it makes nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from exports import networks_written_once, shallow_template
from nodes import make_study
from once import made_once
from pydicom import Dataset, config, dcmread
from trained_by_nnunet import RESULTS

from dicom_io.coding import load_segments
from dicom_io.dicomize import dicomize
from dicom_io.net.instance_store import InstanceStore
from dicom_io.objects.identity import ResultInfo
from dicom_io.read import read_series
from dicom_io.seg import read_seg, write_seg
from dicom_io.volume import Provenance, Volume
from monai_unet_app import memory_planner
from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.cli import main
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import AppError, InputRefusedError, NoRoomError
from monai_unet_app.export import export_bundle
from monai_unet_app.inference import stored_channels
from monai_unet_app.machine_memory import resident_bytes
from monai_unet_app.pipeline import segment_case
from monai_unet_app.planning.nnunet_results import Import, bundle_of
from monai_unet_app.results import write_nifti
from monai_unet_app.service import work
from monai_unet_app.service.rule_checks import check_bundles, check_stated
from monai_unet_app.service.site import Rule, Site
from monai_unet_app.service.site_file import read_site
from monai_unet_app.service.trace import trace
from monai_unet_app.service.uploads import take_nifti
from monai_unet_app.service.work import Worker

SITE = """
[node]
folder = "node"
[[rules]]
name = "hippocampus"
bundle = "{bundle}"
deliver_ungated = true
match = {{Modality = "MR", SeriesDescription = "converted"}}
destinations = ["pacs", "viewer", "archive"]
[destinations.pacs]
host = "127.0.0.1"
port = 104
ae_title = "PACS"
[destinations.archive]
host = "127.0.0.1"
port = 106
ae_title = "ARCHIVE"
[destinations.viewer]
host = "127.0.0.1"
port = 105
ae_title = "VIEWER"
[destinations.viewer.profile]
objects = ["SEG"]
seg_encoding = "labelmap"
empty_frames = true
"""


@pytest.fixture
def site_file(tiny_bundle: Callable[[], Path], tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(SITE.format(bundle=tiny_bundle()))
    return path


tiny_template = pytest.fixture(scope="module")(shallow_template)
written_once = pytest.fixture(networks_written_once)


@pytest.fixture
def one_way(site_file: Path) -> Path:
    """The site, where a result is one SEG for one destination: for what does not depend on the ways in which it is wanted."""
    site_file.write_text(one_seg(site_file.read_text()))
    return site_file


def one_seg(text: str) -> str:
    assert '["pacs", "viewer", "archive"]' in text
    return text.replace('["pacs", "viewer", "archive"]', '["pacs"]\nformats = ["seg"]')


@pytest.fixture
def study(crop: Volume, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A study as the node keeps it."""

    def make(folder: Path) -> None:
        dicomize(replace(crop, provenance=Provenance("nifti")), folder, case_id="one")

    (series,) = {path.parent for path in made_once(tmp_path_factory, "crop_in_dicom", make).rglob("*.dcm")}
    return Path(shutil.copytree(series, tmp_path / "received" / "1.2.3" / "1.2.3.4"))


def task(study: Path, output: Path, **earlier: str) -> dict:
    return {"study": str(study.parent), "output": str(output), "earlier": earlier}


def without_a_slice(study: Path) -> None:
    files = sorted(study.glob("*.dcm"), key=lambda path: float(dcmread(path).ImagePositionPatient[2]))
    files[3].unlink()


def test_a_worker_takes_the_device_that_was_found_before_it(site_file: Path) -> None:
    from monai_unet_app.config import resolve_device

    site = read_site(site_file)
    assert site.node.device == "auto"
    assert Worker(site).device == str(resolve_device("auto"))
    second = Worker(site, "cpu")
    assert second.device == "cpu"
    assert all(bundle.may_leave_device for bundle in second.bundles.values())
    named = replace(site, node=replace(site.node, device="cpu"))
    assert not any(bundle.may_leave_device for bundle in Worker(named).bundles.values())
    with pytest.raises(AppError, match="cuda:7"):
        Worker(site, "cuda:7")


def test_what_is_watched_of_a_result_names_scanner_image_and_structures(one_way: Path, study: Path) -> None:
    for path in study.glob("*.dcm"):
        header = dcmread(path)
        header.Manufacturer, header.SliceThickness, header.ProtocolName = "ACME", "1.0000", "hippo of J. Doe"
        header.save_as(path)
    output = study.parents[2] / "results/1-1"
    (result,) = Worker(read_site(one_way)).work(work.Task.parse(task(study, output)))["results"]
    seen = result["observed"]
    assert seen["bundle"] == bundle_files(read_site(one_way).rules[0].bundle).sha256
    protocol = hashlib.sha256(b"hippo of J. Doe").hexdigest()[:8]
    assert (
        seen["words"] | {"Manufacturer": "ACME", "SliceThickness": "1", "ProtocolName": f"#{protocol}"} == seen["words"]
    )
    document = json.loads(next(output.rglob("*_result.json")).read_text())
    for row in document["structures"]:
        assert seen["numbers"][f"{row['label']}: size"] == pytest.approx(row["volume_ml"], rel=1e-4)
    assert seen["numbers"]["finest spacing"] == pytest.approx(min(document["source"]["spacing"]))
    assert {"brightness", "contrast", "sharpness foot to head", "evenness left to right"} <= set(seen["numbers"])
    assert "Doe" not in json.dumps(seen)


@pytest.mark.parametrize(("share", "state"), [(0.0, "sending"), (1.0, "held")])
def test_a_share_of_the_accepted_results_is_drawn_for_review(
    share: float, state: str, one_way: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_way.write_text(
        one_way.read_text().replace("deliver_ungated = true", f"deliver_ungated = true\nreview_share = {share}")
    )
    monkeypatch.setattr(work, "verdict_of", lambda case: ("accept", ""))
    (result,) = Worker(read_site(one_way)).work(work.Task.parse(task(study, study.parents[2] / "results/1-1")))[
        "results"
    ]
    assert (result["state"], result["observed"].get("drawn")) == (state, share or None)
    assert result["reason"] == ("drawn at random for review" if share else "")


def test_a_network_of_nnunet_works_in_a_node(tmp_path: Path) -> None:
    results = shutil.copytree(RESULTS / "plain3d", tmp_path / "results")
    facts = json.loads((results / "dataset.json").read_text())
    facts["labels"] = {"background": 0, "liver": 1, "spleen": 2}
    (results / "dataset.json").write_text(json.dumps(facts))
    checkpoint = torch.load(results / "fold_0/checkpoint_final.pth", weights_only=False)
    checkpoint["init_args"]["dataset_json"] = facts
    torch.save(checkpoint, results / "fold_0/checkpoint_final.pth")
    bundle = bundle_of(Import(results, tmp_path / "bundle", ("0",), mirroring=False)).root
    (tmp_path / "site.toml").write_text(one_seg(SITE.format(bundle=bundle)))
    image = replace(read_volume(RESULTS / "plain3d/images/test1_0000.nii.gz"), provenance=Provenance("nifti"))
    series = dicomize(image, tmp_path / "in", case_id="one").series_folder
    study = Path(shutil.copytree(series, tmp_path / "received" / "1.2.3" / "1.2.3.4"))
    (found,) = Worker(read_site(tmp_path / "site.toml")).answer(task(study, tmp_path / "out"))["results"]
    assert found["state"] == "sending"
    (seg,) = (tmp_path / found["folder"] / "binary").glob("*_seg.dcm")
    volume = read_series(study)
    own = segment_case(volume, load_bundle(bundle)).segmentation.labels
    assert set(np.unique(own)) == {0, 1, 2}
    np.testing.assert_array_equal(read_seg(seg, volume).array, own)


@pytest.mark.parametrize("what", ["memory", "disk"])
def test_a_study_for_which_there_is_no_room_now_waits_and_one_that_is_too_large_for_site_or_machine_does_not(
    what: str, site_file: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, message = Worker(read_site(site_file)), task(study, tmp_path / "results" / "1-1")
    with monkeypatch.context() as short:
        if what == "memory":
            short.setattr(memory_planner, "most_resident_bytes", lambda: resident_bytes() + 1e6)
        else:
            short.setattr(stored_channels, "IN_MEMORY_BYTES", 0)
            short.setattr(os, "posix_fallocate", no_space)
        answer = worker.answer(message)
    assert set(answer) == {"wait"}
    assert answer["wait"].startswith("there is no room for it: ")
    assert not (tmp_path / "results" / "1-1").exists()
    with monkeypatch.context() as short:
        short.setattr(memory_planner, "ever_resident_bytes", lambda: 1e6)
        (found,) = worker.answer(message)["results"]
    assert (found["state"], "0.00 GB are allowed" in found["reason"]) == ("not processed", True)
    worker.runs = {name: replace(run, memory_limit=1e6) for name, run in worker.runs.items()}
    (found,) = worker.answer(message)["results"]
    assert (found["state"], "0.00 GB are allowed" in found["reason"]) == ("not processed", True)


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_study_becomes_a_result_for_each_way_in_which_it_is_wanted(
    site_file: Path, study: Path, tmp_path: Path
) -> None:
    answer = Worker(read_site(site_file)).answer(task(study, tmp_path / "results" / "1-1"))
    (found,) = answer["results"]
    assert (found["rule"], found["state"], found["verdict"]) == ("hippocampus", "sending", "")
    folder = tmp_path / "results" / found["folder"]
    kinds = {path.relative_to(folder).parts[0]: set() for path in folder.rglob("*.dcm")}
    for path in folder.rglob("*.dcm"):
        kinds[path.relative_to(folder).parts[0]].add(path.stem.rpartition("_")[2])
    assert kinds == {"binary": {"seg", "sr"}, "labelmap-all-frames": {"seg", "sr"}}
    # For the review page the uncertainty is enough: the probabilities of all classes grow with their number
    assert len(list(folder.rglob("*_uncertainty.nii.gz"))) == 2
    assert not list(folder.rglob("*_prob.nii.gz"))
    (labelmap,) = folder.glob("labelmap-all-frames/*_seg.dcm")
    assert dcmread(labelmap).SegmentationType == "LABELMAP"
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["1-1"]


def test_a_worker_logs_nothing_of_a_codec_that_no_reader_of_the_node_uses(
    one_way: Path, study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.NOTSET)  # other workers of this process
    (result,) = Worker(read_site(one_way)).answer(task(study, tmp_path / "out"))["results"]
    assert result["state"] == "sending"
    assert "nvImageCodec" not in caplog.text


def test_a_reason_calls_a_broken_file_by_its_name_alone(
    site_file: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(read_site(site_file))
    file = next(study.glob("*.dcm"))

    def broken(*words: object) -> None:
        raise AppError(f"{file} is broken; fetch it again")

    monkeypatch.setattr(worker, "segment", broken)
    (found,) = worker.answer(task(study, tmp_path / "results" / "1-1"))["results"]
    assert (found["state"], found["reason"]) == ("not processed", f"{file.name} is broken; fetch it again")


def cut_off(study: Path, left: int) -> int:
    """A series whose headers count its images, and of which only the lower ones came; how many it counts."""
    files = sorted(study.glob("*.dcm"), key=lambda path: float(dcmread(path).ImagePositionPatient[2]))
    for number, path in enumerate(files):
        image = dcmread(path)
        image.ImagesInAcquisition = len(files)
        image.save_as(path)
        if number >= left:
            path.unlink()
    return len(files)


def test_a_series_that_lacks_images_is_waited_for_and_then_refused(
    site_file: Path, study: Path, tmp_path: Path
) -> None:
    count = cut_off(study, 20)
    worker, what = Worker(read_site(site_file)), task(study, tmp_path / "results" / "1-1")
    answer = worker.answer({**what, "waited": False})
    assert f"{count - 20} did not come yet, it holds 20 images, and its headers count {count}" in answer["incomplete"]
    assert not (tmp_path / "results").exists()
    (found,) = worker.answer({**what, "waited": True})["results"]
    assert found["state"] == "not processed"
    assert found["reason"].startswith(f"{count - 20} image(s) did not come: it holds 20 images")


def test_a_rule_may_take_a_series_that_lacks_images(one_way: Path, study: Path, tmp_path: Path) -> None:
    cut_off(study, 20)
    one_way.write_text(one_way.read_text().replace("[[rules]]", "[[rules]]\nallow_incomplete = true"))
    (found,) = Worker(read_site(one_way)).answer(task(study, tmp_path / "results" / "1-1"))["results"]
    assert found["state"] == "sending"
    (document,) = (tmp_path / "results" / found["folder"]).glob("binary/*_result.json")
    assert "incomplete by its own headers" in document.read_text()


def test_images_of_an_acquisition_that_are_in_another_series_are_not_missed(
    one_way: Path, study: Path, tmp_path: Path
) -> None:
    """Two echoes of one acquisition, each a series of its own, count the images of both."""
    second = study.parent / "1.2.3.5"
    shutil.copytree(study, second)
    files = [*study.glob("*.dcm"), *second.glob("*.dcm")]
    for path in files:
        image = dcmread(path)
        image.ImagesInAcquisition = len(files)
        if path.parent == second:
            image.SeriesInstanceUID, image.SeriesDescription = "1.2.3.5", "second echo"
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{image.SOPInstanceUID}.2"
        image.save_as(path)
    answer = Worker(read_site(one_way)).answer({**task(study, tmp_path / "results" / "1-1"), "waited": False})
    assert [one["state"] for one in answer["results"]] == ["sending"]


def test_the_same_study_gives_the_same_digest_and_a_changed_one_names_its_predecessor(
    site_file: Path, study: Path, tmp_path: Path
) -> None:
    worker = Worker(read_site(site_file))
    first, again = (worker.answer(task(study, tmp_path / "results" / name))["results"][0] for name in ("1-1", "1-2"))
    assert first["digest"] == again["digest"]
    sorted(study.glob("*.dcm"))[-1].unlink()
    earlier = {f"hippocampus/{first['series']}": str(tmp_path / "results" / first["folder"])}
    later = worker.answer({**task(study, tmp_path / "results" / "2-1"), "earlier": earlier})["results"][0]
    assert later["digest"] != first["digest"]
    (before,) = (tmp_path / "results" / first["folder"] / "binary").glob("*_sr.dcm")
    (after,) = (tmp_path / "results" / later["folder"] / "binary").glob("*_sr.dcm")
    (named,) = dcmread(after).PredecessorDocumentsSequence
    assert (
        named.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        == dcmread(before).SOPInstanceUID
    )


def test_a_study_that_no_rule_fits_says_what_is_in_it(site_file: Path, tmp_path: Path) -> None:
    ct = make_study(tmp_path / "received" / "1.2.5" / "1.2.5.6")
    (found,) = Worker(read_site(site_file)).answer(task(ct, tmp_path / "results" / "1-1"))["results"]
    assert found["state"] == "not processed"
    assert (
        found["reason"]
        == "no series fits a rule; found: CT image of 3 (hippocampus wants another Modality and another SeriesDescription)"
    )


def test_a_series_that_the_bundle_was_not_made_for_says_why(site_file: Path, tmp_path: Path) -> None:
    head = Volume(np.ones((64, 64, 60), np.float32), np.diag([4.0, 4.0, 4.0, 1.0]), Provenance("nifti"))
    series = dicomize(head, tmp_path / "in", case_id="head").series_folder
    folder = Path(shutil.copytree(series, tmp_path / "received" / "1.2.6" / "1.2.6.7"))
    (found,) = Worker(read_site(site_file)).answer(task(folder, tmp_path / "results" / "1-1"))["results"]
    assert (found["state"], found["folder"]) == ("not processed", "")
    assert "is not what this bundle was made for" in found["reason"]


def test_slices_that_do_not_lie_evenly_say_so(site_file: Path, study: Path, tmp_path: Path) -> None:
    without_a_slice(study)
    (found,) = Worker(read_site(site_file)).answer(task(study, tmp_path / "results" / "1-1"))["results"]
    assert found["state"] == "not processed"
    assert "gap" in found["reason"]


def test_a_uid_that_no_result_may_repeat_says_so_and_nothing_is_lost(
    site_file: Path, study: Path, tmp_path: Path
) -> None:
    kept = {path: dcmread(path) for path in study.glob("*.dcm")}
    for path, dataset in kept.items():
        dataset.FrameOfReferenceUID = "1.2." + "3" * 61
        dataset.save_as(path)
    (found,) = Worker(read_site(site_file)).answer(task(study, tmp_path / "results" / "1-1"))["results"]
    assert found["state"] == "not processed"
    assert "has a FrameOfReferenceUID of 65 characters; at most 64 are needed" in found["reason"]
    assert {path: dcmread(path) for path in study.glob("*.dcm")} == kept


@pytest.fixture
def noticing(site_file: Path) -> Path:
    """A site whose rule wants notices, and whose viewer takes none."""
    site_file.write_text(site_file.read_text().replace("[[rules]]\n", "[[rules]]\nnotice = true\n"))
    return site_file


def test_a_rule_may_want_a_notice_of_what_was_not_processed(noticing: Path, study: Path, tmp_path: Path) -> None:
    without_a_slice(study)
    worker = Worker(read_site(noticing))
    first, again = (worker.answer(task(study, tmp_path / "results" / name))["results"][0] for name in ("1-1", "1-2"))
    assert (first["state"], first["verdict"]) == ("not processed", "")
    assert "gap" in first["reason"]
    assert first["digest"] == again["digest"] != ""
    folder = tmp_path / "results" / first["folder"]
    (path,) = (path for path in folder.rglob("*") if path.is_file())
    assert path.relative_to(folder) == Path("binary", f"{folder.name}_notice.dcm")
    notice, source = dcmread(path), dcmread(next(study.glob("*.dcm")))
    assert (notice.PatientID, notice.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
    headline, said, why, what = notice.ImageComments.split("\r\n")
    assert (headline, said) == ("NOT PROCESSED", "No result was made. This is not a finding.")
    assert why == first["reason"].replace(first["series"], "...")
    (bundle,) = worker.bundles.values()
    images = len(list(study.glob("*.dcm")))
    assert what.startswith(f"{bundle.name} {bundle.version}, series ")
    assert what.endswith(f", rule hippocampus, {images} image(s) had come")
    assert trace(path)["made_by"]["sha256"] == bundle.sha256


def test_a_notice_tells_no_folder_of_the_node(noticing: Path, study: Path, tmp_path: Path) -> None:
    study = Path(shutil.copytree(study, tmp_path / "the node" / "1.2.3" / "1.2.3.4"))
    twice = dcmread(sorted(study.glob("*.dcm"))[0])
    twice.PixelData = bytes(len(twice.PixelData))
    twice.save_as(study / "again.dcm")
    (found,) = Worker(read_site(noticing)).answer(task(study, tmp_path / "results" / "1-1"))["results"]
    assert "twice with different content, in 0001.dcm and again.dcm; each" in found["reason"]
    assert str(tmp_path) not in found["reason"]
    (path,) = (tmp_path / "results" / found["folder"]).rglob("*.dcm")
    assert "twice with different content, in 0001.dcm and again.dcm; each" in dcmread(path).ImageComments


def test_half_a_result_is_not_left_beside_a_notice(
    noticing: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticing.write_text(noticing.read_text().replace("[[rules]]\n", '[[rules]]\nformats = ["seg"]\n'))
    worker = Worker(read_site(noticing))
    write, calls = work._write_case, iter(range(9))

    def failing(*args: Any, **what: Any) -> None:
        write(*args, **what)
        if next(calls) == 1:
            raise InputRefusedError("no more")

    monkeypatch.setattr(work, "_write_case", failing)
    (found,) = worker.answer(task(study, tmp_path / "results" / "1-1"))["results"]
    assert (found["state"], found["reason"]) == ("not processed", "no more")
    assert [path.name[-11:] for path in (tmp_path / "results").rglob("*.dcm")] == ["_notice.dcm"]


def test_where_nobody_can_say_whose_a_notice_is_there_is_none(noticing: Path, study: Path, tmp_path: Path) -> None:
    stray = sorted(study.glob("*.dcm"))[0]
    other = dcmread(stray)
    other.PatientID = "SOMEBODY-ELSE"
    other.save_as(stray)
    (found,) = Worker(read_site(noticing)).answer(task(study, tmp_path / "results" / "1-1"))["results"]
    assert (found["state"], found["folder"], found["digest"]) == ("not processed", "", "")
    assert "no notice could be written: the series has files of 2 different PatientID" in found["reason"]
    assert "SOMEBODY-ELSE" not in found["reason"]
    assert list((tmp_path / "results").rglob("*.dcm")) == []


def test_of_a_study_that_no_rule_fits_there_is_no_notice(noticing: Path, tmp_path: Path) -> None:
    ct = make_study(tmp_path / "received" / "1.2.5" / "1.2.5.6")
    (found,) = Worker(read_site(noticing)).answer(task(ct, tmp_path / "results" / "1-1"))["results"]
    assert (found["state"], found["folder"]) == ("not processed", "")
    assert list((tmp_path / "results").rglob("*.dcm")) == []


@pytest.mark.parametrize("kind", ["nifti", "nifti.gz", "dicom"])
def test_the_quality_gate_holds_a_result_back_whatever_way_its_image_came(
    one_way: Path, crop: Volume, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    worker = Worker(read_site(one_way))
    segment, write, said = worker.segment, work._write_case, SimpleNamespace()
    monkeypatch.setattr(worker, "segment", lambda *words: replace(segment(*words), assessment=said))
    monkeypatch.setattr(
        work, "_write_case", lambda case, *words, **what: write(replace(case, assessment=None), *words, **what)
    )
    uid = study.parent.name
    if kind != "dicom":
        image = tmp_path / ("one.nii.gz" if kind == "nifti.gz" else "one.nii")
        write_nifti(crop.array, crop, image)
        uid, _ = take_nifti(image, InstanceStore(tmp_path / "received"), "hippocampus")
    for verdict, state in (("accept", "sending"), ("review", "held"), ("reject", "rejected")):
        said.verdict, said.reasons = verdict, (f"a reason to {verdict}",)
        output = tmp_path / "results" / verdict
        (found,) = worker.answer({"study": str(tmp_path / "received" / uid), "output": str(output), "earlier": {}})[
            "results"
        ]
        assert (found["state"], found["verdict"], found["reason"]) == (state, verdict, f"a reason to {verdict}")
        names = {path.name for path in (tmp_path / "results" / found["folder"]).rglob("*") if path.is_file()}
        assert kind == "dicom" or names == {"hippocampus_seg.nii.gz", "hippocampus_result.json"}, verdict


def test_a_bundle_that_the_site_did_not_approve_is_not_used(site_file: Path) -> None:
    site_file.write_text(site_file.read_text().replace("[[rules]]\n", f'[[rules]]\nsha256 = "{"0" * 64}"\n'))
    with pytest.raises(AppError, match="names a bundle of sha256 000000000000"):
        Worker(read_site(site_file))


@pytest.mark.usefixtures("written_once")
def test_a_rule_names_the_export_that_its_worker_runs_and_records(
    tiny_bundle: Callable[[], Path], study: Path, tmp_path: Path
) -> None:
    root, path = tiny_bundle(), tmp_path / "site.toml"
    sha256 = export_bundle(load_bundle(root), "openvino")["sha256"]

    def site(more: str) -> Site:
        path.write_text(one_seg(SITE.format(bundle=root)).replace("[[rules]]\n", f"[[rules]]\n{more}\n"))
        return read_site(path)

    pinned = f'engine = "openvino"\nexport_sha256 = "{sha256}"'
    (found,) = Worker(site(pinned)).answer(task(study, tmp_path / "results/1-1"))["results"]
    record = next((tmp_path / "results" / found["folder"]).rglob("*_result.json"))
    document = json.loads(record.read_text())
    assert (document["settings"]["engine"], document["bundle"]["export_sha256"]) == ("openvino", sha256)
    for other in (pinned.replace(sha256, "0" * 64), pinned.replace("openvino", "onnxruntime")):
        for starting in (check_bundles, Worker):
            with pytest.raises(AppError, match="the export that the site has approved is needed"):
                starting(site(other))
    # Fewer bits without a certificate: a bundle without a gate for them
    bits = pinned + '\nprecision = "bfloat16"'
    path.write_text(site(bits).path.read_text().replace("deliver_ungated = true\n", ""))
    with pytest.raises(AppError, match="has no certificate for openvino in bfloat16"):
        check_bundles(read_site(path))
    (root / "models/network.bin").write_bytes(b"")
    with pytest.raises(AppError, match="is not the one that its certificate"):
        Worker(site(pinned))


@pytest.mark.parametrize(
    ("setting", "remedy"), [("", "calibrate the bundle on"), ("tta = true", "calibrate the bundle with --tta")]
)
def test_a_rule_whose_bundle_has_no_gate_for_it_does_not_start_unless_the_site_says_so(
    setting: str, remedy: str, one_way: Path, study: Path, tmp_path: Path
) -> None:
    ungated = one_way.read_text().replace("[[rules]]\n", f"[[rules]]\n{setting}\n")
    one_way.write_text(ungated.replace("deliver_ungated = true\n", ""))
    for starting in (check_bundles, Worker):
        with pytest.raises(
            AppError, match=r"rule hippocampus: .* has no quality gate .* deliver_ungated = true"
        ) as refused:
            starting(read_site(one_way))
        assert remedy in str(refused.value)
    one_way.write_text(ungated)
    check_bundles(read_site(one_way))
    (found,) = Worker(read_site(one_way)).answer(task(study, tmp_path / "results" / "1-1"))["results"]
    assert (found["state"], found["verdict"]) == ("sending", "")
    assert found["reason"].startswith("no quality gate has judged this result: ")


def test_a_rule_for_images_from_elsewhere_whose_bundle_has_no_wider_intervals_does_not_start(site_file: Path) -> None:
    site_file.write_text(site_file.read_text().replace("[[rules]]\n", "[[rules]]\nelsewhere = true\n"))
    for starting in (check_bundles, Worker):
        with pytest.raises(AppError, match=r"rule hippocampus: .* states no wider intervals for images from elsewhere"):
            starting(read_site(site_file))


def test_tta_of_a_bundle_without_mirror_axes_has_the_gate_of_plain_results() -> None:
    found = bundle_files("hippocampus_mri_unet2d")
    check_stated(Rule("averaged", found.name, {}, 1, (), (), tta=True), found)


def test_results_lead_back_to_their_bundle(
    site_file: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site_file.write_text(site_file.read_text().replace(', "viewer", "archive"]', "]"))
    worker = Worker(read_site(site_file))
    (found,) = worker.answer(task(study, tmp_path / "results" / "1-1"))["results"]
    (bundle,) = worker.bundles.values()
    monkeypatch.setenv("MONAI_UNET_BUNDLES", str(bundle.root.parent))
    for path in (tmp_path / "results" / found["folder"] / "binary").glob("*.dcm"):
        assert main(["trace", str(path), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["made_by"]["sha256"] == bundle.sha256
        assert told["bundle"]["name"] == bundle.name
        assert told["sources"] == {found["series"]: len(list(study.glob("*.dcm")))}
        assert len(told["segmentations"]) == (path.stem.endswith("_sr"))
        measured = {group["tracking_id"]: group["measurements"] for group in told["groups"]}
        if path.stem.endswith("_sr"):
            (result,) = (json.loads(one.read_text()) for one in path.parent.glob("*_result.json"))
            sizes = {f"{row['number']} {row['label']}": row["volume_ml"] for row in result["structures"]}
            assert {name: rows[0] for name, rows in measured.items() if name in sizes} == {
                name: {"name": "Volume", "value": pytest.approx(ml, rel=1e-6), "unit": "cm3"}
                for name, ml in sizes.items()
            }
            assert main(["trace", str(path)]) == 0
            assert ": Volume " in capsys.readouterr().out
        else:
            assert measured == {}
        assert (told["bundle"]["trained_by"], told["bundle"]["calibration"]) == ([], None)
    (report,) = (tmp_path / "results" / found["folder"] / "binary").glob("*_sr.dcm")
    check_trace_of_damaged_reports(report, bundle.sha256, capsys)
    assert main(["trace", str(next(study.glob("*.dcm")))]) == 3
    assert "names no bundle that made it" in capsys.readouterr().err


def check_trace_of_damaged_reports(report: Path, sha256: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A report whose measurements cannot be read still leads back to its bundle and its sources, and the trace says why."""
    whole = trace(report)
    assert (whole["groups_unread"], len(whole["groups"]) > 0) == (None, True)

    def without_template(header: Dataset) -> None:
        del header.ContentTemplateSequence
        header.ContentSequence = [item for item in header.ContentSequence if item.ValueType != "CONTAINER"]

    def with_broken_number(header: Dataset) -> None:
        number = next(item for item in header.iterall() if item.keyword == "NumericValue")
        number._value = "12a.5"

    for damage, reason in (
        (without_template, "SR without imaging measurements"),
        (with_broken_number, "NumericValue of a measurement is not a number"),
    ):
        header = dcmread(report)
        with config.disable_value_validation():
            damage(header)
            header.save_as(report.with_name("damaged.dcm"))
        traced = trace(report.with_name("damaged.dcm"))
        assert traced["made_by"]["sha256"] == sha256
        assert (traced["sources"], traced["segmentations"]) == (whole["sources"], whole["segmentations"])
        assert traced["groups"] == []
        assert reason in traced["groups_unread"]
        assert main(["trace", str(report.with_name("damaged.dcm"))]) == 0
        assert "measurements that cannot be read: " in capsys.readouterr().out


def test_the_trace_of_a_shipped_bundle_names_commit_and_calibration_report(
    crop: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = REPOSITORY / "bundles/hippocampus_mri_unet3d"
    made_by = ResultInfo(load_segments(root / "configs/segments.json"), "b", "1", bundle_files(root).sha256)
    source = read_series(dicomize(replace(crop, provenance=Provenance("nifti")), tmp_path, case_id="a").series_folder)
    labels = np.zeros(source.shape, np.uint8)
    labels[3:9, 4:9, 5:9] = 1
    write_seg(source.with_array(labels), source, tmp_path / "seg.dcm", made_by)
    assert main(["trace", str(tmp_path / "seg.dcm")]) == 0
    told = capsys.readouterr().out
    run = json.loads((root / "models/run.json").read_text())
    assert f"commit {run['sessions'][0]['git_commit']}" in told
    assert hashlib.sha256((root / "models/calibration.json").read_bytes()).hexdigest() in told


def test_a_trace_names_only_figures_that_have_the_form_of_this_program(
    crop: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(REPOSITORY / "bundles/hippocampus_mri_unet3d", tmp_path / "own/a_copy"))
    metadata = root / "configs/metadata.json"
    figures = {"dice": 0.9, "ece_whole": {"calibrated": 0.02}, "ece_band_2mm": 0.1}
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"eval_metrics": figures}))
    monkeypatch.setenv("MONAI_UNET_BUNDLES", str(root.parent))
    made_by = ResultInfo(load_segments(root / "configs/segments.json"), "b", "1", bundle_files(root).sha256)
    source = read_series(dicomize(replace(crop, provenance=Provenance("nifti")), tmp_path, case_id="a").series_folder)
    labels = np.zeros(source.shape, np.uint8)
    labels[3:9, 4:9, 5:9] = 1
    write_seg(source.with_array(labels), source, tmp_path / "seg.dcm", made_by)
    assert main(["trace", str(tmp_path / "seg.dcm")]) == 0
    assert "measured     ECE WHOLE 0.02 on ? test subjects" in capsys.readouterr().out


def test_a_node_with_another_bundle_than_the_site_approved_does_not_start(site_file: Path) -> None:
    site_file.write_text(site_file.read_text().replace("[[rules]]\n", f'[[rules]]\nsha256 = "{"0" * 64}"\n'))
    words = [sys.executable, "-m", "monai_unet_app", "node", "--config", str(site_file)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "names a bundle of sha256 000000000000" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_a_limit_of_its_own_a_run_never_leaves_a_case_out_because_of_the_machine(
    site_file: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(read_site(site_file))
    bundle = next(iter(worker.bundles.values()))
    for name in ("ever_resident_bytes", "most_resident_bytes"):
        monkeypatch.setattr(memory_planner, name, lambda: resident_bytes() + 1e6)
    with pytest.raises(NoRoomError):  # an evaluation ends at it
        segment_case(study, bundle)
