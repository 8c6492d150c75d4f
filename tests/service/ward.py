"""A node whose results are real SEG and SR, with its HTTP server, people who decide, and what its destinations got."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from nodes import pacs, started, store, wait_until, write_site
from phantoms import lopsided_array, oblique_affine, write_mr_series
from pydicom import dcmread
from pydicom.dataset import Dataset

from monai_unet_app.service.http_api import serve
from monai_unet_app.service.node import Node
from monai_unet_app.service.site import HttpConfig
from monai_unet_app.service.tokens import new_token

PATIENT = {"PatientName": "Berger^Anna", "PatientID": "PID-4711", "AccessionNumber": "ACC-99", "StudyDate": "20260301"}
PEOPLE = {
    "rossi": ("Rossi^Anna", ["reviewer"]),
    "lang": ("Lang^Eva^^Dr", ["reviewer"]),
    "root": ("Nobody^Nick", ["reviewer"]),  # whose line somebody has edited
    "admin": ("admin", ["admin"]),
}


@dataclass
class Ward:
    """A node with one result."""

    node: Node
    url: str
    tokens: dict[str, str]
    pacs: Path

    def ask(self, method: str, path: str, who: str, **words: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"}
        return requests.request(method, self.url + path, headers=headers, timeout=300, **words)

    def study(self, folder: Path, wish: str = "", **header: object) -> int:
        """Sends a study; the number of its result, once that is where it is wished to be."""
        before = {one.id for one in self.node.queue.results(())}
        array = lopsided_array()
        told = {**PATIENT, "PatientComments": wish, "ImagesInAcquisition": array.shape[2], **header}  # no need to wait
        write_mr_series(folder, array, oblique_affine(), header=told)
        store(self.node, folder)
        state = {"review": "held", "reject": "rejected"}.get(wish, "delivered")
        new = lambda: [one for one in self.node.queue.results(()) if one.id not in before and one.state == state]  # noqa: E731
        wait_until(new, 120)
        return new()[0].id

    def decision(self, number: int, decision: str, **changes: Any) -> dict[str, Any]:
        """What the page sends about a result."""
        result = self.node.queue.result(number)
        folder = next(path.parent for path in sorted(self.node.result_folder(result).rglob("*_result.json")))
        digests = {
            f"{what}_sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for what, name in (("result", "case_result.json"), ("labels", "case_seg.nii.gz"))
        }
        return {
            "schema_version": "1.0", "case": "case", **digests, "decision": decision, "comment": "as I see it",
            "decided_at": "1999-01-01T00:00:00Z", "draft": False, **changes,
        }  # fmt: skip

    def decide(self, number: int, decision: str, who: str = "rossi", **changes: Any) -> requests.Response:
        return self.ask("POST", f"/results/{number}/decision", who, json=self.decision(number, decision, **changes))

    def got(self, folder: Path | None = None) -> list[Dataset]:
        """What the PACS has, or another archive in a folder."""
        return [dcmread(path) for path in sorted((folder or self.pacs).rglob("*.dcm")) if "incoming" not in str(path)]

    def records(self) -> list[dict[str, Any]]:
        """What was recorded of decisions."""
        return [json.loads(path.read_text()) for path in sorted((self.node.folder / "decisions").rglob("*.json"))]


@contextmanager
def ward(folder: Path, *, to: str = '["pacs"]', rule: str = "", more: str = "") -> Iterator[Ward]:
    """A node with the real worker whose rule has the destinations `to` and the lines `rule`; `more` ends its site file."""
    made = {who: new_token(*told) for who, told in PEOPLE.items()}
    (folder / "tokens").write_text("".join(line + "\n" for _, line in made.values()).replace("Nobody^Nick", "root"))
    tokens = {who: token for who, (token, _) in made.items()}
    with pacs(folder / "pacs") as peer:
        site = write_site(folder, peer.port, node='organization = "General Hospital"\n', rule=rule)
        text = site.read_text().replace('"CT"', '"MR"')
        site.write_text(text.replace('destinations = ["pacs"]', f"destinations = {to}") + more)
        with started(site, "real_worker") as running, serve(running, HttpConfig(folder / "tokens", port=0)) as server:
            wait_until(lambda: running.is_ready, 120)
            yield Ward(running, f"http://127.0.0.1:{server.port}", tokens, folder / "pacs")
