"""A reviewer opens the page through the node and decides; what was held back goes out, with a verified report after it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
from nodes import pacs, started, study_of, wait_until
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_io.dicomize import dicomize
from dicom_io.net.destination import parse_destination
from dicom_io.net.exchange import send
from dicom_io.volume import Provenance, Volume
from monai_unet_app.service.http_api import serve
from monai_unet_app.service.node import WORKER, Node
from monai_unet_app.service.site import HttpConfig
from monai_unet_app.service.tokens import new_token

pytestmark = pytest.mark.slow

SITE = """
[node]
folder = "node"
stable_s = 3
organization = "General Hospital"
[[rules]]
name = "hippocampus"
bundle = "{bundle}"
deliver_ungated = true
match = {{Modality = "MR"}}
destinations = ["pacs"]
[destinations.pacs]
host = "127.0.0.1"
port = {port}
ae_title = "PACS"
"""


@dataclass
class Clinic:
    """A node with a result of one study, and a reviewer's way to it."""

    node: Node
    url: str
    reviewer: dict[str, str]
    pacs: Path
    study: str = ""
    number: int = 0

    @property
    def result(self) -> str:
        """Address of the result."""
        return f"{self.url}/results/{self.number}"

    def found(self) -> dict[Path, Dataset]:
        """What the PACS has of the study."""
        every = {path: dcmread(path) for path in self.pacs.rglob("*.dcm") if "incoming" not in str(path)}
        return {path: one for path, one in every.items() if one.StudyInstanceUID == self.study}

    def kinds(self) -> list[str]:
        """SEG, SR and how far each report is verified."""
        return sorted(f"{one.Modality} {one.get('VerificationFlag', '')}".strip() for one in self.found().values())

    def decision_on(self, page: str, decision: str) -> dict:
        """What the page would send."""
        data = json.loads(re.search(r'<script[^>]*id="review"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
        return {
            "schema_version": "1.0", "case": data["case"], "result_sha256": data["result_sha256"],
            "labels_sha256": data["labels_sha256"], "decision": decision, "comment": "as I see it",
            "decided_at": "2026-03-04T10:20:30+00:00", "draft": False,
        }  # fmt: skip


@pytest.fixture(scope="module")
def place(
    tiny_template: Callable[[str], tuple[Path, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Clinic]:
    """One node for all tests; each test has its own study."""
    folder = tmp_path_factory.mktemp("clinic")
    bundle = shutil.copytree(tiny_template("hippocampus_mri_unet3d")[0], folder / "bundle")
    token, line = new_token("Rossi^Anna Maria", ["reviewer"])
    (folder / "tokens").write_text(line + "\n")
    with pacs(folder / "pacs") as peer:
        site = folder / "site.toml"
        site.write_text(SITE.format(bundle=bundle, port=peer.port))
        with started(site, WORKER) as node, serve(node, HttpConfig(folder / "tokens", port=0)) as server:
            wait_until(lambda: node.is_ready, 240)
            headers = {"Authorization": f"Bearer {token}"}
            yield Clinic(node, f"http://127.0.0.1:{server.port}", headers, folder / "pacs")


@pytest.fixture
def clinic(place: Clinic, crop: Volume, tmp_path: Path) -> Clinic:
    series = dicomize(replace(crop, provenance=Provenance("nifti")), tmp_path, case_id=tmp_path.name).series_folder
    study, queue = study_of(series), place.node.queue
    send(parse_destination(f"MONAIUNET@127.0.0.1:{place.node.provider.port}"), sorted(series.glob("*.dcm")))
    wait_until(lambda: [one.state for one in queue.results_of_study(study)] == ["delivered"], 240)
    (result,) = queue.results_of_study(study)
    return replace(place, study=study, number=result.id)


def test_a_reviewer_accepts_and_the_pacs_gets_a_verified_report(clinic: Clinic) -> None:
    page = requests.get(f"{clinic.result}/review", headers=clinic.reviewer, timeout=300)
    assert page.status_code == 200
    stands = requests.get(f"{clinic.result}/decision", headers=clinic.reviewer, timeout=30).json()
    assert stands == {"who": "Rossi^Anna Maria", "state": "delivered", "open": True, "decided": None}
    assert "COMMISSION" not in page.text
    assert f'data-post="/results/{clinic.number}/decision"' in page.text
    said = clinic.decision_on(page.text, "accepted")
    answer = requests.post(f"{clinic.result}/decision", json=said, headers=clinic.reviewer, timeout=300)
    assert answer.status_code == 200, answer.text
    assert answer.json()["reviewer"] == {"name": "Rossi^Anna Maria", "organization": "General Hospital"}
    wait_until(lambda: clinic.kinds() == ["SEG", "SR UNVERIFIED", "SR VERIFIED"], 60)
    stands = requests.get(f"{clinic.result}/decision", headers=clinic.reviewer, timeout=30).json()
    assert (stands["who"], stands["open"], stands["decided"]["by"]) == ("Rossi^Anna Maria", False, "Rossi^Anna Maria")
    for decision in ("accepted", "rejected"):
        said = clinic.decision_on(page.text, decision)
        again = requests.post(f"{clinic.result}/decision", json=said, headers=clinic.reviewer, timeout=300)
        assert again.status_code == 409
        assert "accepted by Rossi^Anna Maria at 2" in again.json()["detail"]
    events = [json.loads(line) for line in (clinic.node.folder / "audit.jsonl").read_text().splitlines()]
    decided = [one for one in events if one["event"] == "decided" and one["study"] == clinic.study]
    assert [one["who"] for one in decided] == ["Rossi^Anna Maria"]


def test_a_correction_is_measured_and_kept_to_train_on(clinic: Clinic, tmp_path: Path) -> None:
    page = requests.get(f"{clinic.result}/review", headers=clinic.reviewer, timeout=300).text
    (seg,) = [path for path, one in clinic.found().items() if one.Modality == "SEG"]
    corrected = Path(shutil.copy(seg, tmp_path / "corrected.dcm"))
    answer = requests.post(
        f"{clinic.result}/decision",
        data={"decision": json.dumps(clinic.decision_on(page, "corrected"))},
        files={"mask": ("corrected.dcm", corrected.read_bytes())},
        headers=clinic.reviewer,
        timeout=300,
    )
    assert answer.status_code == 200, answer.text
    sizes = answer.json()["correction"]["structures"]
    assert all(one["dice"] == 1.0 for one in sizes)
    kept = {path.parent.name for path in (clinic.node.folder / "training").rglob("*") if path.is_file()}
    assert {"images", "labels", "provenance"} <= kept


def test_a_decision_about_something_else_and_one_from_another_site_change_nothing(clinic: Clinic) -> None:
    page = requests.get(f"{clinic.result}/review", headers=clinic.reviewer, timeout=300).text
    said = clinic.decision_on(page, "accepted")
    other = {**said, "result_sha256": hashlib.sha256(b"another").hexdigest()}
    url = f"{clinic.result}/decision"
    assert requests.post(url, json=other, headers=clinic.reviewer, timeout=300).status_code == 422
    elsewhere = {**clinic.reviewer, "Origin": "http://evil.example"}
    assert requests.post(url, json=said, headers=elsewhere, timeout=300).status_code == 403
    clinic.node.queue.forget(clinic.study)
    assert requests.post(url, json=said, headers=clinic.reviewer, timeout=300).status_code == 404
    assert clinic.kinds() == ["SEG", "SR UNVERIFIED"]
