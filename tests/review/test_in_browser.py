"""The page in a real browser, opened from disk: what is seen, and what its buttons do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Tab, browser, program
from numpy.typing import NDArray
from review_cases import Delivered, deliver, result_document

from dicom_io.volume import Provenance, Volume
from monai_unet_app.data.nifti import write_nifti
from monai_unet_app.review import ReviewConfig, write_review
from monai_unet_app.review.decision import DecisionContext, ReviewDecision, Reviewer, apply_decision, read_decision

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(program() is None, reason="there is no Chromium; tests/interop/install.sh brings one"),
]

SHAPE = (256, 256, 140)
CENTRE, RADII = np.array([80.0, 150.0, 90.0]), np.array([20.0, 32.0, 12.0])  # voxels: lopsided in every axis


def head() -> tuple[Volume, NDArray[np.uint8]]:
    """A noisy bright ball as large as a head at 1 x 1 x 1.2 mm, and an ellipsoid in it, off the centre; RAS axes."""
    grid = [np.arange(n, dtype=np.float32) for n in SHAPE]
    around = sum(
        ((g - (n - 1) / 2) / (0.45 * n)).reshape([-1 if a == axis else 1 for a in range(3)]) ** 2
        for axis, (g, n) in enumerate(zip(grid, SHAPE, strict=True))
    )
    within = sum(
        ((g - CENTRE[axis]) / RADII[axis]).reshape([-1 if a == axis else 1 for a in range(3)]) ** 2
        for axis, g in enumerate(grid)
    )
    noise = np.random.default_rng(3).normal(0, 12, SHAPE).astype(np.float32)
    image = np.rint(np.where(around < 1, 420, 20) + noise - 120 * (within < 1)).astype(np.float32)
    affine_ras = np.diag([1.0, 1.0, 1.2, 1.0])
    affine_ras[:3, 3] = [-127.5, -127.5, -83.4]
    volume = Volume.from_ras(image, affine_ras, Provenance("nifti"))
    return volume, (within < 1).astype(np.uint8)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a case of 256 x 256 x 140 voxels."""
    folder = tmp_path_factory.mktemp("large")
    volume, labels = head()
    write_nifti(labels, volume, folder / "head_seg.nii.gz")
    document = result_document(volume, {"nifti": "head_seg.nii.gz"})
    voxels = int(labels.sum())
    row = {**document["structures"][0], "voxels": voxels, "volume_ml": voxels * volume.voxel_ml}
    row.pop("volume_interval_ml")
    record = folder / "head_result.json"
    record.write_text(json.dumps({**document, "case": "head", "structures": [row]}))
    return write_review(record, folder / "review", image=volume, how=ReviewConfig(pdf=False))["page"]


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with browser(tmp_path / "profile") as running:
        running.size(1500, 1000)
        yield running


def coloured(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a picture is not grey."""
    values = pixels.astype(int)
    return values.max(axis=2) - values.min(axis=2) > 40


def test_a_large_case_is_seen_at_once_and_can_be_decided_on(large: Path, tab: Tab, tmp_path: Path) -> None:
    tab.open(large.as_uri())
    tab.wait("[...document.querySelectorAll('.keys img')].some((one) => one.complete && one.naturalWidth > 0)", 2.0)
    assert coloured(tab.picture(".keys img")).sum() > 200
    tab.wait("document.documentElement.dataset.viewer === 'ready'", 10.0)

    tab.click("#toggle-view-axial")
    tab.ask("viewer.opts.crosshairColor = [0, 0, 0, 0], viewer.drawScene()")
    stage = tab.picture("#canvas")
    here = coloured(stage)
    rows, columns = np.nonzero(here)
    scale = stage.shape[0] / SHAPE[1]  # the slice is as high as the canvas, in its middle; left is right
    wanted_x = stage.shape[1] / 2 - (CENTRE[0] - 127.5) * scale
    wanted_y = stage.shape[0] / 2 - (CENTRE[1] - 127.5) * scale
    assert columns.mean() == pytest.approx(wanted_x, abs=2 * scale)
    assert rows.mean() == pytest.approx(wanted_y, abs=2 * scale)
    assert here.sum() == pytest.approx(np.pi * RADII[0] * RADII[1] * scale**2, rel=0.1)

    tab.click("#toggle-mask")
    assert coloured(tab.picture("#canvas")).sum() == 0
    tab.click("#toggle-contour")
    outline = coloured(tab.picture("#canvas"))
    assert 0 < outline.sum() < 0.5 * here.sum()
    assert not outline[round(wanted_y), round(wanted_x)]

    downloads = tmp_path / "downloads"
    tab.allow_downloads(downloads)
    tab.ask("document.getElementById('comment').value = 'beside the structure'")
    tab.click("[data-decision=rejected]")
    tab.wait("document.getElementById('told').textContent.includes('verifies nothing')", 5.0)
    draft = downloads / "head_decision_draft.json"
    tab.wait_for_file(draft, 5.0)
    verdict = read_decision(draft)
    assert (verdict.case, verdict.decision, verdict.comment, verdict.draft) == (
        "head",
        "rejected",
        "beside the structure",
        True,
    )
    assert all(url.startswith(("file:", "data:", "blob:")) for url in tab.requests)
    assert tab.console == []


def test_structures_and_uncertainty_are_switched_each_by_itself(tab: Tab, tmp_path: Path) -> None:
    small = deliver(tmp_path / "small")
    page = write_review(small.result, tmp_path / "review", image=small.volume, how=ReviewConfig(pdf=False))["page"]
    tab.open(page.as_uri())
    tab.wait("document.documentElement.dataset.viewer === 'ready'", 10.0)
    tab.ask("viewer.opts.crosshairColor = [0, 0, 0, 0], viewer.drawScene()")

    def seen() -> int:
        return int(coloured(tab.picture("#canvas")).sum())

    first = seen()  # the largest section has block 1 alone
    assert first > 0
    tab.click("#toggle-structure-1")
    assert seen() == 0
    tab.click(".keys figure:nth-of-type(2) button")  # and the most uncertain one block 2
    second = seen()
    assert second > 0
    tab.click("#toggle-structure-2")
    assert seen() == 0
    tab.click("#toggle-uncertainty")
    assert seen() > second
    tab.click("#toggle-uncertainty")
    tab.click("#toggle-structure-2")
    assert seen() == second
    tab.click(".keys figure:nth-of-type(1) button")
    tab.click("#toggle-structure-1")
    assert seen() == first
    assert tab.console == []


def test_a_name_of_script_does_not_run(tab: Tab, tmp_path: Path) -> None:
    evil = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    case = deliver(tmp_path / "evil", {"PatientName": evil[:64], "PatientID": evil[:64], "AccessionNumber": "<b>1</b>"})
    page = write_review(case.result, tmp_path / "review", image=case.volume, how=ReviewConfig(pdf=False))["page"]
    tab.open(page.as_uri())
    tab.wait("document.documentElement.dataset.viewer === 'ready'", 10.0)
    assert tab.ask("document.title") == "Review of case"
    assert tab.ask("document.querySelector('h1').textContent").startswith("<script>document.title")
    assert tab.ask("document.querySelectorAll('header script, header img, header b').length") == 0


def test_a_page_of_a_node_sends_nothing_when_it_is_opened_from_disk(tab: Tab, tmp_path: Path) -> None:
    case = deliver(tmp_path / "case")
    how = ReviewConfig(post_url="/decision", pdf=False)
    page = write_review(case.result, tmp_path / "review", image=case.volume, how=how)["page"]
    tab.open(page.as_uri())
    tab.wait("document.readyState === 'complete'", 10.0)
    tab.allow_downloads(tmp_path / "downloads")
    tab.click("[data-decision=accepted]")
    tab.wait_for_file(tmp_path / "downloads/case_decision_draft.json", 5.0)
    assert not any(url.endswith("/decision") for url in tab.requests)


class Node(BaseHTTPRequestHandler):
    """Serves one page and keeps what is posted to it."""

    page: bytes
    posted: list[dict[str, object]]

    def do_GET(self) -> None:
        if not self.path.endswith("/decision"):
            self._answer(200, self.page)
            return
        decided = [one["verdict"] for one in self.posted if "verdict" in one]
        last = (
            {"decision": decided[0]["decision"], "by": "Lang^Eva", "at": "2026-03-04T10:20:30+00:00"}
            if decided
            else None
        )
        stands = {"who": "Lang^Eva", "state": "delivered", "open": len(decided) < 2, "decided": last}
        self._answer(200, json.dumps(stands).encode())

    def do_POST(self) -> None:
        found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.posted.append({"path": self.path, "type": self.headers["Content-Type"], "verdict": found})
        self._answer(200 if found["decision"] == "accepted" else 403, b"{}")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def page_of_a_node(tab: Tab, case: Delivered, folder: Path, kind: type[Node]) -> Iterator[list[dict[str, Any]]]:
    """The review page of a case, served by such a node and open in the tab; gives what is posted to the node."""
    how = ReviewConfig(post_url="/cases/7/decision")
    page = write_review(case.result, folder, image=case.volume, how=how)["page"]
    posted: list[dict[str, Any]] = []
    handler = type("Handler", (kind,), {"page": page.read_bytes(), "posted": posted})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab.open(f"http://127.0.0.1:{server.server_port}/cases/7")
        tab.wait("document.documentElement.dataset.viewer === 'ready'", 20.0)
        yield posted
        server.shutdown()


def test_a_page_of_a_node_sends_the_decision_there_and_says_whether_it_was_taken(tab: Tab, tmp_path: Path) -> None:
    case = deliver(tmp_path / "case")
    with page_of_a_node(tab, case, tmp_path / "review", Node) as posted:
        tab.wait("document.getElementById('meaning').textContent.includes('signed in as Lang^Eva')", 5.0)
        tab.click("[data-decision=accepted]")
        tab.wait("document.getElementById('told').textContent === 'Decided: accepted by Lang^Eva, 2026-03-04.'", 5.0)
        mark = tab.ask("document.getElementById('mark').textContent")
        assert "Accepted by Lang, Eva on 2026-03-04. Not for diagnosis." in mark
        assert "nobody" not in mark
        tab.click("[data-decision=rejected]")
        tab.wait("document.getElementById('told').textContent.startsWith('Not recorded: the node answered 403')", 5.0)
        tab.ask("location.reload()")
        tab.wait("document.getElementById('told').textContent === 'Decided: accepted by Lang^Eva, 2026-03-04.'", 20.0)
        assert tab.ask("[...document.querySelectorAll('.buttons button')].every(one => one.disabled)")
        for scheme in ("light", "dark"):
            tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            ratio, _, words = tab.least_contrast("[data-decision][aria-pressed=true]")
            assert (words, ratio >= 4.5) == ("Accept", True), (scheme, ratio)
            ratio, *where = tab.least_contrast()
            assert ratio >= 4.5, (scheme, where)
    first = posted[0]
    assert (first["path"], first["type"]) == ("/cases/7/decision", "application/json")
    verdict = ReviewDecision.from_document(first["verdict"])
    assert not verdict.draft
    record = apply_decision(verdict, case.result, tmp_path / "out", DecisionContext(Reviewer("Lang^Eva", "Clinic")))
    assert record["report"] is not None


class Refusing(Node):
    """Keeps what is posted as it came, and says why it does not take it."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.posted.append({"type": self.headers["Content-Type"], "raw": raw})
        self._answer(422, b'{"detail": "the mask lies elsewhere"}')


def test_a_correction_is_sent_with_its_mask_and_the_reason_of_a_refusal_is_shown(tab: Tab, tmp_path: Path) -> None:
    case = deliver(tmp_path / "case")
    with page_of_a_node(tab, case, tmp_path / "review", Refusing) as posted:
        tab.click("[data-decision=corrected]")
        tab.wait("document.getElementById('told').textContent.startsWith('Choose the corrected mask')", 5.0)
        assert posted == []
        tab.ask(
            "(() => { const one = new DataTransfer(); one.items.add(new File(['voxels'], 'mask.nii.gz'));"
            " document.getElementById('mask').files = one.files; })()"
        )
        tab.click("[data-decision=corrected]")
        tab.wait("document.getElementById('told').textContent.includes('the mask lies elsewhere')", 5.0)
    (sent,) = posted
    assert sent["type"].startswith("multipart/form-data")
    assert b'filename="mask.nii.gz"' in sent["raw"]
    assert b"voxels" in sent["raw"]
    assert b'"decision":"corrected"' in sent["raw"]


STEPS = """
window.steps = [];
new MutationObserver(() => {
  const [step, bar] = ["step", "progress"].map((id) => document.getElementById(id));
  if (step && bar && bar.checkVisibility()) window.steps.push(`${step.textContent} ${bar.value} of ${bar.max}`);
}).observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
"""


def test_while_the_viewer_loads_the_page_says_how_far_it_is(tab: Tab, tmp_path: Path) -> None:
    small = deliver(tmp_path / "small")
    page = write_review(small.result, tmp_path / "review", image=small.volume, how=ReviewConfig(pdf=False))["page"]
    tab.call("Page.addScriptToEvaluateOnNewDocument", source=STEPS)
    tab.open(page.as_uri())
    tab.wait("document.documentElement.dataset.viewer === 'ready'", 60.0)
    said = tab.ask("steps")
    assert "Reading image (1 of 4) ... 1 of 6" in said
    assert "Reading contour (4 of 4) ... 4 of 6" in said
    assert said.index("Reading image (1 of 4) ... 1 of 6") < said.index("Reading contour (4 of 4) ... 4 of 6")
    assert not tab.ask("document.getElementById('progress').checkVisibility()")


def slice_numbers(voxel: tuple[int, ...], volume: Volume) -> str:
    """The numbers of the slices through a voxel, counted from the right, the front and the feet."""
    words = []
    for name, row in (("axial", 2), ("coronal", 1), ("sagittal", 0)):  # rows of an LPS affine
        axis = int(np.abs(volume.affine_lps[row, :3] / volume.spacing_mm).argmax())
        count = volume.shape[axis]
        number = voxel[axis] + 1 if volume.affine_lps[row, axis] > 0 else count - voxel[axis]
        words.append(f"{name} {number} of {count}")
    return ", ".join(words)


def test_slice_value_and_structure_are_those_of_the_image(tab: Tab, tmp_path: Path) -> None:
    case = deliver(tmp_path / "case")
    page = write_review(case.result, tmp_path / "review", image=case.volume, how=ReviewConfig(pdf=False))["page"]
    tab.open(page.as_uri())
    tab.wait("document.documentElement.dataset.viewer === 'ready'", 60.0)
    for number, label in ((1, "Front part"), (2, "Back part"), (0, "none")):
        voxel = tuple(int(n) for n in np.argwhere(case.labels.array == number)[-1])
        place_mm = (case.volume.affine_ras @ [*voxel, 1.0])[:3].tolist()
        tab.ask(f"viewer.scene.crosshairPos = viewer.mm2frac({place_mm}); viewer.createOnLocationChange()")
        assert tab.ask("document.getElementById('at-slice').textContent") == slice_numbers(voxel, case.volume)
        value = float(tab.ask("document.getElementById('at-value').textContent"))
        assert value == pytest.approx(float(case.volume.array[voxel]), rel=1e-3)
        assert tab.ask("document.getElementById('at-structure').textContent") == label
    tab.click(".keys figure:nth-of-type(1) button")  # the key image and the viewer give its slice one number
    caption = tab.ask("document.querySelector('.keys figcaption').textContent")
    assert caption.split(": ")[1] in tab.ask("document.getElementById('at-slice').textContent")


def test_distances_windows_and_keys(large: Path, tab: Tab) -> None:
    tab.open(large.as_uri())
    tab.wait("document.documentElement.dataset.viewer === 'ready'", 60.0)
    assert tab.ask("document.documentElement.dataset.words") == "quadrant"  # three planes leave a quarter for it
    quarter, stage = tab.box("#info"), tab.box("#canvas")
    assert quarter["right"] == pytest.approx(stage["right"], abs=2)
    assert quarter["bottom"] == pytest.approx(stage["bottom"], abs=2)
    assert quarter["left"] > stage["left"] + stage["width"] / 4

    tab.ask("document.getElementById('canvas').focus()")
    tab.press("a")
    tab.wait("viewer.opts.sliceType === niivue.SLICE_TYPE.AXIAL", 5.0)
    before = tab.ask("document.getElementById('at-slice').textContent")
    tab.press("ArrowUp", "ArrowUp")
    after = tab.ask("document.getElementById('at-slice').textContent")
    assert int(after.split()[1]) == int(before.split()[1]) + 1
    assert after.split(", ")[1:] == before.split(", ")[1:]

    tab.press("d")
    scale = stage["height"] / SHAPE[1]  # pixels for 1 mm: the slice is as high as the canvas
    x, y = stage["left"] + stage["width"] / 2, stage["top"] + stage["height"] / 2
    tab.drag((x - 60, y - 80), (x + 60, y + 80))
    tab.wait("document.getElementById('at-distance').textContent !== ''", 5.0)
    assert float(tab.ask("document.getElementById('at-distance').textContent").split()[0]) == pytest.approx(
        200 / scale, rel=0.02
    )
    tab.press("Escape", "Escape")
    assert tab.ask("document.getElementById('at-distance').textContent") == ""
    assert tab.ask("viewer.document.completedMeasurements.length") == 0
    tab.press("d")

    first = tab.ask("[viewer.volumes[0].cal_min, viewer.volumes[0].cal_max]")
    tab.click("#window-3")
    assert tab.ask("document.getElementById('window-3').textContent") == "Whole range"
    assert tab.ask("[viewer.volumes[0].cal_min, viewer.volumes[0].cal_max]") != first
    tab.ask("document.getElementById('canvas').focus()")
    tab.press("r")
    assert tab.ask("[viewer.volumes[0].cal_min, viewer.volumes[0].cal_max]") == first
    tab.press("m")
    assert tab.ask("document.getElementById('toggle-mask').getAttribute('aria-pressed')") == "false"
    tab.ask("document.getElementById('comment').focus()")
    tab.press("m")  # in a comment a letter is a letter
    assert tab.ask("document.getElementById('toggle-mask').getAttribute('aria-pressed')") == "false"
    assert tab.ask("document.getElementById('comment').value") == "m"
    assert tab.console == []
