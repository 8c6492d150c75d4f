"""The node between other people's programs: dcmtk sends, Orthanc keeps, and the commissioning finds everything in its place."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from nodes import wait_until
from orthanc import Orthanc, orthanc, program
from own_network import own_network
from ports import free_port
from pydicom import dcmread
from pydicom.dataset import Dataset
from pypdf import PdfReader

from dicom_io.dicomize import dicomize
from dicom_io.net.destination import Destination, Dimse
from dicom_io.net.exchange import fetch, find, send
from dicom_io.net.query import Query
from dicom_io.read import read_series
from dicom_io.reading.instances import load_dataset
from dicom_io.seg import read_seg
from monai_unet_app.bundle import load_bundle
from monai_unet_app.cli import main
from monai_unet_app.data.read import read_volume
from monai_unet_app.pipeline import segment_case
from monai_unet_app.service.commission import Commissioning, commission
from monai_unet_app.service.node import Node
from monai_unet_app.service.phantoms import AXES, ORIENTATIONS, example_study, rules_of_channels, shipped_example
from monai_unet_app.service.site_file import read_site
from monai_unet_app.shipped import shipped

pytestmark = pytest.mark.interop

SITE = """
[node]
folder = "node"
port = {port}
senders = ["ROUTER", "COMMISSION", "STORESCU"]
stable_s = 0.5
workers = 2
[[rules]]
name = "hippocampus"
bundle = "hippocampus_mri_unet3d"
match = {{Modality = "MR", SeriesDescription = "hippo|t1.*crop"}}
destinations = ["archive", "web"]
[destinations.archive]
host = "127.0.0.1"
port = {dimse}
ae_title = "ORTHANC"
[destinations.web]
url = "{web}"
"""

TWO = """
[node]
folder = "node"
port = {port}
stable_s = 0.5
[[rules]]
name = "two"
bundle = "{bundle}"
match = {{SeriesDescription = "T1"}}
channels = {{FLAIR = {{SeriesDescription = "FLAIR"}}}}
destinations = ["archive"]
deliver_ungated = true
[destinations.archive]
host = "127.0.0.1"
port = {dimse}
ae_title = "ORTHANC"
"""


@dataclass(frozen=True)
class Hospital:
    """A node and the archive that it sends to."""

    node: Node
    archive: Orthanc


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("hospital")
    with own_network() as packets_sent, orthanc(folder / "orthanc") as archive:
        port = free_port()
        (folder / "site.toml").write_text(SITE.format(port=port, dimse=archive.port, web=archive.web))
        with Node(read_site(folder / "site.toml")) as node:
            wait_until(lambda: node.is_ready, 120)
            yield Hospital(node, archive)
        assert packets_sent() == 0  # node, archive, commission and dcmtk have talked to nobody outside of this machine


def test_every_phantom_comes_back_in_its_place_and_the_node_makes_what_this_program_makes(hospital: Hospital) -> None:
    found = commission(hospital.node.site)
    assert [check for check in found.checks if not check.passed] == []
    # an answer and three steps an orientation for each of two destinations; of the node: lets in, answers, workers; of the
    # rule: an example fits, the gate accepts it, two studies are taken, two results at each of two destinations
    assert len(found.checks) == 2 * (1 + 3 * len(ORIENTATIONS)) + 3 + 3 + 2 * 2
    measured = [check for check in found.checks if check.place_mm is not None]
    assert len(measured) == 2 * len(ORIENTATIONS) + 2 * 2
    assert found.checks[-1].what == "each of 2 worker(s) has answered"
    patients = find(hospital.node.site.destinations["archive"], Query("study", patient_id="COMMISSION*"))
    everything = find(hospital.node.site.destinations["archive"], Query("study", patient_id="*"))
    assert len(patients) == len(everything) >= 2 * len(ORIENTATIONS) + 2
    assert all(str(one.PatientName).startswith("COMMISSION") for one in patients)
    assert max(check.place_mm for check in measured) < 0.01
    assert max(check.volume_ml for check in measured) < 1e-6
    assert found.passed


def test_a_rule_with_channels_gets_a_series_for_each(
    hospital: Hospital, two_channel_bundle: Path, tmp_path: Path
) -> None:
    archive = hospital.node.site.destinations["archive"].peer
    path = tmp_path / "site.toml"
    path.write_text(TWO.format(bundle=two_channel_bundle, port=free_port(), dimse=archive.port))
    with Node(read_site(path)) as node:
        wait_until(lambda: node.is_ready, 120)
        found = commission(node.site)
    assert [check for check in found.checks if not check.passed] == []
    (fits,) = [check for check in found.checks if check.what == "an example fits"]
    assert fits.said == "35 and 35 images that the rule picks"
    (result,) = [check for check in found.checks if check.what == "its result of study 1 is at archive"]
    assert result.place_mm < 0.01


def test_a_channel_that_comes_late_and_twice_gives_one_result_of_both(
    hospital: Hospital, two_channel_bundle: Path, tmp_path: Path
) -> None:
    archive = hospital.node.site.destinations["archive"]
    path = tmp_path / "site.toml"
    text = TWO.format(bundle=two_channel_bundle, port=free_port(), dimse=archive.peer.port)
    path.write_text(text.replace("stable_s = 0.5", "stable_s = 2.0"))  # no series is ever taken in its middle
    rules = rules_of_channels(read_site(path).rules[0])
    study = example_study([(shipped_example({}), rule) for rule in rules], tmp_path / "made", AXES[0])
    first, second = study.series

    def segs() -> list[Dataset]:
        return list(find(archive, Query("series", study_instance_uid=study.uid, modality="SEG")))

    with Node(read_site(path)) as node:
        wait_until(lambda: node.is_ready, 120)
        to = Destination("node", Dimse("127.0.0.1", node.site.node.port, node.site.node.ae_title, "TEST"))
        assert all(outcome.is_delivered for outcome in send(to, second))
        time.sleep(3 * node.site.node.stable_s)  # the study has been still for longer than a whole one needs
        assert segs() == []
        for files in (first, second):  # what is there already comes again
            assert all(outcome.is_delivered for outcome in send(to, files))
        wait_until(lambda: len(segs()) == 1, 90)
        time.sleep(2)
        assert len(segs()) == 1
        fetched = fetch(archive, Query("series", study.uid, str(segs()[0].SeriesInstanceUID)), tmp_path / "fetched")
        assert node.queue.counts()["jobs"].get("dead", 0) == 0
    (file,) = fetched.files
    named = {str(item.SeriesInstanceUID) for item in load_dataset(file, with_pixels=False).ReferencedSeriesSequence}
    assert named == {str(dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID) for files in study.series}
    expected = segment_case(study.image, load_bundle(two_channel_bundle, "cpu")).segmentation.labels
    assert np.array_equal(read_seg(file, read_series(first)).array, expected)


def test_a_worker_that_is_stopped_fails_the_acceptance(hospital: Hospital) -> None:
    over = threading.Event()

    def stop_workers() -> None:
        while not over.wait(0.02):
            for child in hospital.node.workers.children:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGSTOP)

    stopping = threading.Thread(target=stop_workers)
    stopping.start()
    try:
        found = commission(hospital.node.site, Commissioning(result_s=8.0, limit_s=300.0))
    finally:
        over.set()
        stopping.join()
        for child in hospital.node.workers.children:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGCONT)
    failed = [check.what for check in found.of("failed")]
    assert failed == [
        *(f"its result of study {number} is at {name}" for number in (1, 2) for name in ("archive", "web")),
        "each of 2 worker(s) has answered",
    ]
    assert "no worker has made a result of this study; check the workers" in found.of("failed")[0].said
    assert not found.passed


def test_the_verb_writes_a_signed_report_and_knows_a_changed_one(
    hospital: Hospital, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--key",
        str(tmp_path / "site.pem"),
        "--holder",
        "Radiology IT",
        "--output",
        str(tmp_path / "out"),
        "--no-node",
    ]
    assert main(["node", "commission", "--config", str(hospital.node.site.path), *words]) == 0
    assert "FAILED" not in capsys.readouterr().out
    (report,), (paper,) = (list((tmp_path / "out").glob(f"*.{kind}")) for kind in ("json", "pdf"))
    assert "All 32 checks passed" in PdfReader(paper).pages[0].extract_text()
    assert (tmp_path / "site.pem").stat().st_mode & 0o077 == 0
    assert main(["node", "commission", "--verify", str(report)]) == 0
    assert "Radiology IT signed" in capsys.readouterr().out.replace("\n", " ")
    report.write_text(report.read_text().replace("Radiology IT", "Somebody else"))
    assert main(["node", "commission", "--verify", str(report)]) == 3
    assert "was changed after it was signed" in capsys.readouterr().err


def test_a_study_that_dcmtk_sends_is_in_orthanc_as_seg_and_sr(hospital: Hospital, tmp_path: Path) -> None:
    image = read_volume(sorted((shipped("examples") / "msd_hippocampus" / "images").iterdir())[3])
    series = dicomize(image, tmp_path / "case", case_id="dcmtk").series_folder
    files = [str(path) for path in sorted(series.glob("*.dcm"))]
    for path in files:
        image_of_rule = dcmread(path)
        image_of_rule.SeriesDescription = "T1 crop"
        image_of_rule.save_as(path)
    port = str(hospital.node.provider.port)
    subprocess.run(
        [program("storescu"), "-aec", "MONAIUNET", "127.0.0.1", port, *files], check=True, capture_output=True
    )
    study = str(load_dataset(Path(files[0]), with_pixels=False).StudyInstanceUID)
    archive = replace(hospital.node.site.destinations["archive"])

    def modalities() -> set[str]:
        return {str(one.Modality) for one in find(archive, Query("series", study_instance_uid=study))}

    wait_until(lambda: modalities() == {"SEG", "SR"}, 60)
    time.sleep(1)
    assert hospital.node.queue.counts()["jobs"].get("dead", 0) == 0
