"""What a person decides about a delivered result reaches every archive that has it: a rejection note, a corrected result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nodes import wait_until
from phantoms import lopsided_labels
from pydicom import dcmread
from pydicom.dataset import Dataset
from ward import Ward, ward

from dicom_io.net.scp import Listen, Provider
from dicom_io.read import read_series
from dicom_io.seg import read_seg
from monai_unet_app.results import write_nifti
from monai_unet_app.service.deliver import answer

pytestmark = pytest.mark.slow

KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"


def kinds(ward: Ward) -> list[str]:
    return sorted(f"{one.Modality} {one.get('VerificationFlag', '')}".strip() for one in ward.got())


def named(note: Dataset) -> set[str]:
    """The SOP Instance UIDs that a note references in its content."""
    items = [item for item in note.ContentSequence if item.ValueType in ("IMAGE", "COMPOSITE")]
    return {str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for item in items}


def test_a_rejection_after_delivery_sends_a_note_that_names_every_object(tmp_path: Path) -> None:
    with ward(tmp_path) as site:
        number = site.study(tmp_path / "in")
        before = {str(one.SOPInstanceUID) for one in site.got()}
        assert site.decide(number, "rejected", comment="wrong side").status_code == 200
        wait_until(lambda: kinds(site) == ["KO", "SEG", "SR UNVERIFIED"], 60)
        (note,) = [one for one in site.got() if one.Modality == "KO"]
        assert note.SOPClassUID == KEY_OBJECTS
        assert named(note) == before
        assert note.ConceptNameCodeSequence[0].CodeValue == "113001"  # Rejected for Quality Reasons
        said = {item.ConceptNameCodeSequence[0].CodeValue: item for item in note.ContentSequence if "TextValue" in item}
        assert said["113012"].TextValue == "wrong side"  # Key Object Description
        assert note.PatientID == "PID-4711"
        assert site.node.queue.result(number).state == "refused"
        events = [json.loads(line) for line in (site.node.folder / "audit.jsonl").read_text().splitlines()]
        assert [one["destinations"] for one in events if one["event"] == "rejection note"] == [["pacs"]]
        wait_until(lambda: site.node.queue.counts()["deliveries"] == {"delivered": 2}, 60)


@pytest.mark.parametrize("wish", ["", "review"], ids=["delivered", "held back"])
def test_a_rejection_names_the_earlier_versions_that_are_out(wish: str, tmp_path: Path) -> None:
    """Late images make a new version; without a rejection the first one would stand in the archive as if it were right."""
    with ward(tmp_path, rule="reject_replaced = false") as site:
        first = site.study(tmp_path / "in")
        old = {str(one.SOPInstanceUID) for one in site.got()}
        for path in (site.node.folder / "received").rglob("*.dcm"):
            header = dcmread(path)
            header.PatientComments = f"{wish or 'accept'} less"
            header.save_as(path)
        assert site.node.reprocess(site.node.queue.result(first).study, "eva")
        state = "held" if wish else "delivered"
        wait_until(lambda: any(one.id > first and one.state == state for one in site.node.queue.results(())), 60)
        second = max(one.id for one in site.node.queue.results(()))
        assert site.node.queue.result(first).digest != site.node.queue.result(second).digest
        new = {str(one.SOPInstanceUID) for one in site.got()} - old
        assert site.decide(second, "rejected", comment="wrong side").status_code == 200
        wait_until(lambda: "KO" in kinds(site), 60)
        (note,) = [one for one in site.got() if one.Modality == "KO"]
        assert named(note) == old | new
        assert bool(new) is not bool(wish)
        assert {site.node.queue.result(number).state for number in (first, second)} == {"refused"}
        assert site.decide(first, "accepted").status_code == 409
        assert sorted((one["result"], one["decision"]) for one in site.records()) == [
            (first, "rejected"), (second, "rejected"),
        ]  # fmt: skip


def test_a_version_that_was_replaced_is_decided_on_by_nobody_and_rejected_once(tmp_path: Path) -> None:
    with ward(tmp_path) as site:
        first = site.study(tmp_path / "in")
        old = {str(one.SOPInstanceUID) for one in site.got()}
        for path in (site.node.folder / "received").rglob("*.dcm"):
            header = dcmread(path)
            header.PatientComments = "accept less"
            header.save_as(path)
        assert site.node.reprocess(site.node.queue.result(first).study, "eva")
        wait_until(lambda: "KO" in kinds(site), 60)
        assert [named(one) for one in site.got() if one.Modality == "KO"] == [old]  # SEG and report
        second = max(one.id for one in site.node.queue.results(("delivered",)) if one.verdict != "rejection note")
        new = {str(one.SOPInstanceUID) for one in site.got() if one.Modality != "KO"} - old
        assert site.decide(first, "accepted").status_code == 409
        assert site.decide(second, "rejected").status_code == 200
        wait_until(lambda: kinds(site).count("KO") == 2, 60)
        assert {frozenset(named(one)) for one in site.got() if one.Modality == "KO"} == {frozenset(old), frozenset(new)}
        assert [one["result"] for one in site.records()] == [second]


def test_a_rejection_before_delivery_sends_nothing(tmp_path: Path) -> None:
    with ward(tmp_path) as site:
        number = site.study(tmp_path / "in", "review")
        assert site.decide(number, "rejected").status_code == 200
        assert site.node.queue.counts()["deliveries"] == {}
        assert kinds(site) == []


def test_an_archive_that_takes_no_key_objects_is_recorded_as_not_told(tmp_path: Path) -> None:
    profile = '[destinations.pacs.profile]\nobjects = ["SEG", "SR"]\n'
    with ward(tmp_path, more=profile) as site:
        number = site.study(tmp_path / "in")
        assert site.decide(number, "rejected").status_code == 200
        events = [json.loads(line) for line in (site.node.folder / "audit.jsonl").read_text().splitlines()]
        assert [one["destinations"] for one in events if one["event"] == "not told"] == [["pacs"]]
        assert site.node.queue.counts()["deliveries"] == {"delivered": 1}
        assert kinds(site) == ["SEG", "SR UNVERIFIED"]


def test_nobody_is_to_be_told_of_an_accept(tmp_path: Path) -> None:
    with ward(tmp_path) as site:
        number = site.study(tmp_path / "in")
        assert site.decide(number, "accepted").status_code == 200
        wait_until(lambda: kinds(site) == ["SEG", "SR UNVERIFIED", "SR VERIFIED"], 60)
        events = [json.loads(line)["event"] for line in (site.node.folder / "audit.jsonl").read_text().splitlines()]
        assert "decided" in events
        assert not {"not told", "rejection note"} & set(events)


@pytest.mark.parametrize("wish", ["", "review"], ids=["after delivery", "held back"])
def test_a_correction_sends_the_corrected_result_and_rejects_what_went_before(wish: str, tmp_path: Path) -> None:
    with ward(tmp_path) as site:
        number = site.study(tmp_path / "in", wish)
        source = read_series(tmp_path / "in")
        labels = lopsided_labels()
        labels[4, 1:4, 1:3] = 1
        write_nifti(labels, source, tmp_path / "mask.nii.gz")
        old = {str(one.SOPInstanceUID) for one in site.got()}
        answer = site.ask(
            "POST", f"/results/{number}/decision", "lang",
            data={"verdict": json.dumps(site.decision(number, "corrected", comment="one voxel longer"))},
            files={"mask": ("mask.nii.gz", (tmp_path / "mask.nii.gz").read_bytes())},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        expected = ["SEG", "SR VERIFIED"] if wish else ["KO", "SEG", "SEG", "SR UNVERIFIED", "SR VERIFIED"]
        wait_until(lambda: kinds(site) == expected, 60)
        new = [one for one in site.got() if str(one.SOPInstanceUID) not in old]
        (seg,) = [one for one in new if one.Modality == "SEG"]
        assert np.array_equal(read_seg(Path(seg.filename), source).array, labels)
        assert {item.SegmentAlgorithmType for item in seg.SegmentSequence} == {"SEMIAUTOMATIC"}
        assert seg.ContentCreatorName == "Lang^Eva^^Dr"
        (report,) = [one for one in new if one.Modality == "SR"]
        assert report.VerifyingObserverSequence[0].VerifyingObserverName == "Lang^Eva^^Dr"
        assert report.ContentSequence[-1].TextValue == "one voxel longer"
        if not wish:
            (note,) = [one for one in new if one.Modality == "KO"]
            assert named(note) == old
            (study,) = report.PredecessorDocumentsSequence
            (reference,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
            assert reference.ReferencedSOPInstanceUID in old
        assert any((site.node.folder / "training").rglob("*.nii.gz"))


def test_every_archive_gets_what_follows_in_the_way_that_it_has_the_result(tmp_path: Path) -> None:
    """Two archives have different SEGs of one result: each note names its own, and so does each verified report."""
    with Provider(tmp_path / "second", Listen("SECOND")) as second:
        more = (
            f'[destinations.second]\nhost = "127.0.0.1"\nport = {second.port}\nae_title = "SECOND"\n'
            '[destinations.second.profile]\nseg_encoding = "labelmap"\n'
        )
        with ward(tmp_path, more=more, to='["pacs", "second"]') as site:
            rejected = site.study(tmp_path / "one")
            accepted = site.study(tmp_path / "two")
            assert site.decide(rejected, "rejected").status_code == 200
            assert site.decide(accepted, "accepted").status_code == 200
            wait_until(lambda: len(site.got()) == len(site.got(tmp_path / "second")) == 6, 60)
            for folder in (site.pacs, tmp_path / "second"):
                objects = site.got(folder)
                segs = {str(one.SOPInstanceUID) for one in objects if one.Modality == "SEG"}
                (note,) = [one for one in objects if one.Modality == "KO"]
                assert len(named(note) & segs) == 1
                (report,) = [one for one in objects if one.get("VerificationFlag") == "VERIFIED"]
                study = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
                before = study.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
                assert before in {str(one.SOPInstanceUID) for one in objects}


def test_a_duplicate_that_is_another_patients_is_not_delivered(tmp_path: Path) -> None:
    """The sender, asked to deliver what the archive has under the same UIDs for somebody else."""
    with ward(tmp_path) as site:
        number = site.study(tmp_path / "in")
        folder = site.node.result_folder(site.node.queue.result(number))
        for path in site.pacs.rglob("*.dcm"):
            stored = path.read_bytes()
            path.write_bytes(stored.replace(b"PID-4711", b"PID-0815"))
        digest = site.node.queue.result(number).digest
        task = {"destination": "pacs", "folder": str(folder), "digest": digest}
        told = answer(site.node.site, task)
        assert "0x0111" in told["failed"]
        assert "PID" not in told["failed"]
        (folder / "binary/case_seg.dcm").unlink()  # the report alone is not the result
        assert answer(site.node.site, task)["lost"].endswith("some are missing, or were changed")
