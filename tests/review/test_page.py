from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest
from phantoms import lopsided_array, lopsided_labels
from PIL import Image
from pypdf import PdfReader
from result_phantoms import RESULT
from review_cases import Delivered, deliver, deliver_counted, result_document

from dicom_io.coding import NOT_STATED, Segment
from dicom_io.parametric import NO_UNIT, UNCERTAINTY, MapMeaning, write_parametric_map
from dicom_io.seg import write_seg
from dicom_io.segmentation import Segmentation
from dicom_io.volume import Provenance, Volume
from monai_unet_app.cli import main
from monai_unet_app.data.label_files import on_grid_of_image
from monai_unet_app.data.nifti import write_nifti
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.review import ReviewConfig, embedded, write_review
from monai_unet_app.review.display_window import window_presets
from monai_unet_app.review.embedded import slice_border
from monai_unet_app.review.key_images import anatomical_slices, key_sections
from monai_unet_app.review.patient import person
from monai_unet_app.review.review_sections import MARK
from monai_unet_app.review.reviewed_case import read_reviewed

HEADER = {
    "PatientName": "Berger^Anna Maria^^Dr",
    "PatientID": "PID-4711",
    "PatientBirthDate": "19550214",
    "StudyDate": "20260301",
    "AccessionNumber": "ACC-99",
    "SeriesDescription": "T1 oblique",
}

NO_PAPER = ReviewConfig(pdf=False)


class Page(HTMLParser):
    """Elements, attributes and texts of a page, as a browser takes them apart."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    @property
    def words(self) -> str:
        """What a reader sees."""
        return " ".join(text for tag, text in self.texts if tag not in ("script", "style"))

    def inside(self, tag: str) -> list[str]:
        """The whole text of each element of a kind."""
        kinds = [attributes for name, attributes in self.elements if name == tag]
        texts = [text for name, text in self.texts if name == tag]
        assert len(texts) == len(kinds)
        return texts

    @property
    def scripts(self) -> dict[str, str]:
        """Text of the scripts by id; those that run are called 0, 1."""
        kinds = [attributes for name, attributes in self.elements if name == "script"]
        names = [one.get("id") or str(n) for n, one in enumerate(k for k in kinds)]
        return dict(zip(names, self.inside("script"), strict=True))

    @property
    def policy(self) -> dict[str, str]:
        """The page's policy by directive."""
        (content,) = (a["content"] for tag, a in self.elements if a.get("http-equiv") == "Content-Security-Policy")
        return {part.split()[0]: part.split(maxsplit=1)[1] for part in str(content).split("; ")}

    def layer(self, name: str) -> nibabel.Nifti1Image:
        """A NIfTI that the page holds."""
        return nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(self.scripts[f"layer-{name}"])))


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    return deliver(tmp_path_factory.mktemp("delivered"), HEADER)


@pytest.fixture(scope="module")
def written(delivered: Delivered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("review")
    write_review(delivered.result, folder, image=delivered.series)
    return folder


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written / "index.html")


def altered(delivered: Delivered, folder: Path, **changes: object) -> Path:
    """The delivered files with another record."""
    for file in delivered.result.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    record = folder / delivered.result.name
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))
    return record


def test_the_page_names_patient_and_study_and_says_what_it_is(page: Page) -> None:
    for wanted in ("Berger, Anna Maria Dr", "1955-02-14", "PID-4711", "2026-03-01", "ACC-99", "T1 oblique", MARK):
        assert wanted in page.words


def test_the_table_ends_with_what_the_structures_are_parts_of(page: Page, delivered: Delivered) -> None:
    (whole,) = json.loads(delivered.result.read_text())["wholes"]
    low, high = whole["volume_interval_ml"]
    assert f"Lobe, whole {whole['volume_ml']:.3f} mL {low:.3f} to {high:.3f} in 90\u00a0%" in page.words


def test_the_page_says_the_gates_verdict_with_the_names_of_the_structures(page: Page) -> None:
    assert "The quality gate asks for a second look" in page.words
    assert "Back part: predicted Dice 0.81, at least 0.62" in page.words


def test_volumes_and_intervals_are_those_of_the_record(delivered: Delivered, page: Page) -> None:
    volume_ml = 18 * delivered.volume.voxel_ml
    assert f"{volume_ml:.3f} mL" in page.words
    assert f"{0.8 * volume_ml:.3f} to {1.3 * volume_ml:.3f} in 90\u00a0%" in page.words


def test_page_and_paper_say_how_a_size_outside_its_own_interval_is_probably_off(
    delivered: Delivered, tmp_path: Path
) -> None:
    first, second = json.loads(delivered.result.read_text())["structures"]
    first |= {"volume_ml": 5.1, "volume_interval_ml": [3.65, 4.39]}
    record = altered(delivered, tmp_path, structures=[first, second])
    files = write_review(record, tmp_path / "review", image=delivered.volume)
    paper = "".join(page.extract_text() for page in PdfReader(files["pdf"]).pages)
    for words in (Page(files["page"]).words, " ".join(paper.split())):
        assert "5.10 mL probably too large: 3.65 to 4.39 in" in words


def test_the_page_loads_nothing_from_elsewhere(page: Page) -> None:
    fetched = [
        value
        for tag, attributes in page.elements
        for name, value in attributes.items()
        if tag != "a" and name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert fetched
    assert [found["href"] for tag, found in page.elements if tag == "a"] == ["review.pdf"]  # beside the page
    assert all(str(value).startswith("data:image/png;base64,") for value in fetched)
    assert page.policy["default-src"] == "'none'"
    assert page.policy["connect-src"] == page.policy["form-action"] == page.policy["base-uri"] == "'none'"
    assert "unsafe" not in " ".join(page.policy.values())
    assert "url(" not in page.inside("style")[0]
    assert "@import" not in page.inside("style")[0]


def test_the_policy_lets_run_the_two_scripts_of_the_page_and_nothing_else(page: Page) -> None:
    running = [text for name, text in page.scripts.items() if name.isdigit()]
    assert page.policy["script-src"] == " ".join(_hash(text) for text in running)
    assert page.policy["style-src"] == _hash(page.inside("style")[0])
    assert len(running) == 2
    assert not any(name.startswith("on") or name == "style" for _, found in page.elements for name in found)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.mark.parametrize(
    "name",
    ["</title><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><script>alert(1)</script>"],
)
def test_a_name_of_markup_is_shown_and_not_obeyed(name: str, tmp_path: Path) -> None:
    evil = deliver(tmp_path, {**HEADER, "PatientName": name, "SeriesDescription": name[:60], "PatientID": name})
    write_review(evil.result, tmp_path / "review", image=evil.series, how=NO_PAPER)
    found = Page(tmp_path / "review/index.html")
    assert name in found.words
    assert [text for script, text in found.scripts.items() if "alert(1)" in text] == []
    assert [attributes for tag, attributes in found.elements if tag == "img" and attributes["src"] == "x"] == []


def test_a_label_or_reason_of_markup_is_not_obeyed_either(delivered: Delivered, tmp_path: Path) -> None:
    evil = "</script><img src=x>"
    rows = json.loads(delivered.result.read_text())["structures"]
    assessment = json.loads(delivered.result.read_text())["assessment"]
    record = altered(
        delivered,
        tmp_path,
        case=evil,
        structures=[{**rows[0], "label": evil}, rows[1]],
        assessment={**assessment, "reasons": [evil]},
    )
    write_review(record, tmp_path / "review", image=delivered.volume, how=NO_PAPER)
    found = Page(tmp_path / "review/index.html")
    assert json.loads(found.scripts["review"])["structures"][0]["label"] == evil
    assert found.words.count(evil) >= 2
    assert "x" not in [attributes.get("src") for tag, attributes in found.elements if tag == "img"]


def test_image_and_masks_in_the_page_are_those_of_the_result_at_their_place(delivered: Delivered, page: Page) -> None:
    image, mask = page.layer("image"), page.layer("mask-1-2")
    assert np.array_equal(np.asanyarray(image.dataobj), lopsided_array())
    assert np.array_equal(np.asanyarray(mask.dataobj), lopsided_labels())
    for layer in (image, mask, page.layer("uncertainty")):
        assert np.allclose(layer.affine, delivered.volume.affine_ras, atol=1e-4)


def test_contours_are_the_border_in_the_slices(page: Page) -> None:
    contour = np.asanyarray(page.layer("contour-1-2").dataobj)
    wanted = lopsided_labels()
    wanted[2, 2, 1:3] = 0  # the one voxel inside of a block of 3 x 3 in each of its two slices
    assert np.array_equal(contour, wanted)


def test_a_border_lies_in_slices_across_the_axis_that_is_asked_for() -> None:
    mask = np.zeros((7, 7, 7), bool)
    mask[1:6, 1:6, 1:6] = True
    for axis in range(3):
        border = slice_border(mask, axis)
        assert border.sum() == 5 * (25 - 9)
        assert border.take(3, axis=axis).sum() == 16


@pytest.mark.parametrize("across", [0, 1, 2])
def test_the_borders_of_all_structures_are_those_of_each_of_them(across: int) -> None:
    labels = np.random.default_rng(5).integers(0, 3, (4, 5, 6)).repeat(3, 0).repeat(3, 1).repeat(3, 2).astype(np.uint8)
    wanted = sum(n * slice_border(labels == n, across) for n in (1, 2))
    assert np.array_equal(slice_border(labels, across), wanted)


def test_uncertainty_is_greatest_where_all_answers_are_alike(page: Page) -> None:
    steps = np.asanyarray(page.layer("uncertainty").dataobj)
    assert (steps[:, :, 4] == 250).all()
    p = np.array([0.9, 0.05, 0.05])
    assert np.all(steps[:, :, 0] == round(250 * float(-(p * np.log(p)).sum() / np.log(3))))


def test_windows_are_the_usual_ones_of_ct_and_percentiles_else() -> None:
    values = np.arange(-1000, 1001, dtype=np.float32).reshape(3, 23, 29)
    volume = Volume.from_ras(values, np.eye(4), Provenance("nifti"))
    ct = {preset["name"]: (preset["low"], preset["high"]) for preset in window_presets(volume, "CT")}
    assert ct["Soft tissue"] == (-150, 250)  # W 400 L 50
    assert ct["Lung"] == (-1350, 150)  # W 1500 L -600
    assert ct["Bone"] == (-500, 1300)  # W 1800 L 400
    assert next(iter(ct)) == "Default"
    mr = {preset["name"]: (preset["low"], preset["high"]) for preset in window_presets(volume, "MR")}
    assert mr["10 to 90 %"] == pytest.approx((-800, 800))
    assert mr["Whole range"] == (-1000, 1000)
    assert "Lung" not in mr
    flat = volume.with_array(np.zeros_like(values))
    assert all(preset["high"] > preset["low"] for preset in window_presets(flat, "MR"))


def test_a_part_of_an_image_keeps_the_slice_numbers_of_the_whole() -> None:
    affine_ras = np.array([[0, 0, 2.0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # axes run to P, S, R
    volume = Volume.from_ras(np.zeros((10, 20, 30), np.float32), affine_ras, Provenance("nifti"))
    first, count, step = anatomical_slices(volume, (slice(2, 7), slice(5, 9), slice(11, 27)))
    assert (count, step) == ([30, 10, 20], [1, 1, 1])
    assert first == [3, 2, 5]  # the right-most of slices 11 to 26 is the fourth of 30 from the right
    first, count, step = anatomical_slices(volume, (slice(2, 7), slice(5, 9), slice(11, 27, 3)))
    assert (count, step) == ([30, 10, 20], [3, 1, 1])
    assert first == [3, 2, 5]  # of slices 11, 14, ..., 26 it is the same
    assert anatomical_slices(volume, (slice(2, 7), slice(5, 9), slice(11, 27, 4)))[0] == [6, 2, 5]  # 11, 15, 19, 23


def test_key_images_show_the_largest_and_the_most_uncertain_section(delivered: Delivered) -> None:
    case = read_reviewed(delivered.result, delivered.volume)
    largest, uncertain = key_sections(case)
    index = [np.linalg.solve(case.image.affine_ras, [*one.place_mm, 1.0])[:3] for one in (largest, uncertain)]
    assert index[0] == pytest.approx([2.0, 2.0, 1.0], abs=1e-6)  # the middle of block 1 in its first slice
    assert index[1] == pytest.approx([5.5, 4.5, 4.0], abs=1e-6)  # block 2 where all answers are alike
    for section in (largest, uncertain):
        assert max(section.pixels.shape[:2]) >= 512
        colours = section.pixels.reshape(-1, 3).astype(int)
        assert (colours.max(axis=1) - colours.min(axis=1) > 60).sum() > 100


def test_key_images_stand_before_everything_that_is_large(written: Path) -> None:
    text = (written / "index.html").read_text()
    assert text.index("data:image/png") < text.index('id="layer-image"') < text.index("niivue={}")
    assert len(text[: text.index('id="layer-image"')]) < 1_500_000


def test_the_same_review_has_the_same_bytes(delivered: Delivered, written: Path, tmp_path: Path) -> None:
    write_review(delivered.result, tmp_path, image=delivered.volume)
    for name in ("index.html", "review.pdf"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_a_folder_that_names_a_patient_says_so_and_another_does_not(delivered: Delivered, tmp_path: Path) -> None:
    files = write_review(delivered.result, tmp_path, image=delivered.volume)
    assert "name a patient" in files["identity"].read_text()
    files = write_review(delivered.result, tmp_path, image=delivered.volume, how=ReviewConfig(names_patient=False))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index.html", "review.pdf"]
    text = files["page"].read_text() + "".join(one.extract_text() for one in PdfReader(files["pdf"]).pages)
    for word in ("Berger", "PID-4711", "ACC-99", "1955-02-14"):
        assert word not in text


def test_a_source_that_is_no_dicom_names_nobody(delivered: Delivered, tmp_path: Path) -> None:
    image = tmp_path / "image.nii.gz"
    write_nifti(delivered.volume.array, delivered.volume, image)
    files = write_review(delivered.result, tmp_path / "review", image=image, how=NO_PAPER)
    assert "identity" not in files
    assert "names no patient" in Page(files["page"]).words


def test_the_paper_says_the_same(delivered: Delivered, written: Path) -> None:
    text = " ".join(" ".join(one.extract_text() for one in PdfReader(written / "review.pdf").pages).split())
    for wanted in (
        "Berger, Anna Maria Dr",
        "PID-4711",
        "ACC-99",
        MARK,
        "Front part",
        "asks for a second look",
        "signature",
    ):
        assert wanted in text
    assert f"{18 * delivered.volume.voxel_ml:.3f} mL" in text
    assert sum(len(one.images) for one in PdfReader(written / "review.pdf").pages) == 1


def test_change_is_counted_from_the_earlier_result(delivered: Delivered, tmp_path: Path) -> None:
    record = json.loads(delivered.result.read_text())
    first, second = record["structures"]
    half = [{**first, "volume_ml": first["volume_ml"] / 2, "volume_interval_ml": [0.0, first["volume_ml"] / 4]}]
    earlier = tmp_path / "earlier_result.json"
    (whole,) = record["wholes"]
    old = {"wholes": [{**whole, "volume_ml": whole["volume_ml"] * 0.8}]}
    earlier.write_text(
        json.dumps({**record, "structures": half, "bundle": {**record["bundle"], "sha256": "f" * 64}} | old)
    )
    files = write_review(delivered.result, tmp_path / "review", image=delivered.volume, prior=earlier, how=NO_PAPER)
    words = Page(files["page"]).words
    assert f"+{first['volume_ml'] / 2:.3f} mL (+100.0 %)" in words
    assert f"+{0.2 * whole['volume_ml']:.3f} mL (+25.0 %)" in words
    assert "intervals do not overlap" in words
    assert "not present before" in words
    assert "another model" in words
    assert "not checked here" in words
    earlier.write_text(json.dumps({**record, "structures": [{**second, "label": "Something else"}]}))
    with pytest.raises(InputRefusedError, match="at least one of"):
        write_review(delivered.result, tmp_path / "x", image=delivered.volume, prior=earlier, how=NO_PAPER)


def test_too_large_an_image_is_cut_around_the_structures_and_then_left_out(
    delivered: Delivered, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = read_reviewed(delivered.result, delivered.volume)
    noise = np.random.default_rng(1).integers(0, 30000, (80, 80, 40)).astype(np.float32)
    grid = np.zeros(noise.shape, bool)
    grid[38:42, 38:42, 18:22] = True
    large = replace(case.image, array=noise)
    segmentation = Segmentation(large, grid.astype(np.uint16), case.segmentation.segments)
    case = replace(case, segmentation=segmentation, uncertainty=None)
    embed = embedded.embed
    assert embed(case, 10.0).note == ""
    part = embed(case, 0.6)
    shape = nibabel.Nifti1Image.from_bytes(gzip.decompress(part.layers[0].content)).shape
    room = [int(np.ceil(20.0 / step)) for step in large.spacing_mm]
    assert shape == tuple(min(4 + 2 * more, most) for more, most in zip(room, noise.shape, strict=True))
    assert part.megabytes <= 0.6
    assert "20 mm around" in part.note
    placed = nibabel.Nifti1Image.from_bytes(gzip.decompress(part.layers[0].content))
    first = [max(0, low - more) for low, more in zip((38, 38, 18), room, strict=True)]
    assert placed.affine @ [0, 0, 0, 1] == pytest.approx(large.affine_ras @ [*first, 1], abs=1e-3)
    assert np.array_equal(
        np.asanyarray(placed.dataobj), noise[tuple(slice(a, a + n) for a, n in zip(first, shape, strict=True))]
    )
    thin = embed(case, part.megabytes / 3)  # a quarter of the voxels is left where every second row and column is shown
    placed = nibabel.Nifti1Image.from_bytes(gzip.decompress(thin.layers[0].content))
    box = tuple(slice(a, a + n) for a, n in zip(first, shape, strict=True))
    assert np.array_equal(np.asanyarray(placed.dataobj), noise[box][::2, ::2])
    last = [a + 2 * (n - 1) for a, n in zip(first[:2], placed.shape[:2], strict=True)]
    end = placed.affine @ [*(n - 1 for n in placed.shape[:2]), 0, 1]
    assert end == pytest.approx(large.affine_ras @ [*last, first[2], 1], abs=1e-3)
    assert "every second row and column" in thin.note
    monkeypatch.delattr(embedded, "slice_border")  # nothing is made after a layer that is too large by itself
    assert embed(case, 1e-3).layers == ()


def test_without_a_viewer_the_page_is_small_and_says_why(delivered: Delivered, tmp_path: Path) -> None:
    files = write_review(
        delivered.result, tmp_path, image=delivered.volume, how=ReviewConfig(most_embedded_mb=1e-4, pdf=False)
    )
    assert files["page"].stat().st_size < 1_500_000
    assert "there is no viewer here" in Page(files["page"]).words
    assert files["page"].read_text().count("data:image/png") == 2


def test_decisions_go_where_they_are_told_and_nowhere_else(delivered: Delivered, tmp_path: Path) -> None:
    for url, origin in (("/cases/1/decision", "'self'"), ("https://node.example:8443/v", "https://node.example:8443")):
        files = write_review(
            delivered.result, tmp_path, image=delivered.volume, how=ReviewConfig(post_url=url, pdf=False)
        )
        found = Page(files["page"])
        assert found.policy["connect-src"] == origin
        assert [attributes["data-post"] for tag, attributes in found.elements if tag == "body"] == [url]


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "https://a; script-src *",
        "http://me:word@node/x",
        '/x" onload="x',
        "ftp://node/x",
        "//node/x",
    ],
)
def test_a_strange_address_for_decisions_is_refused(url: str, delivered: Delivered, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not plain"):
        write_review(delivered.result, tmp_path, image=delivered.volume, how=ReviewConfig(post_url=url, pdf=False))
    assert list(tmp_path.iterdir()) == []


def test_files_that_do_not_belong_together_are_refused(delivered: Delivered, tmp_path: Path) -> None:
    rows = json.loads(delivered.result.read_text())["structures"]
    other = delivered.volume.array[:, :, :-1]
    with pytest.raises(InputRefusedError, match="the same image is needed"):
        read_reviewed(delivered.result, replace(delivered.volume, array=other))
    stranger = replace(delivered.volume.provenance, series_instance_uid="1.2.3")
    with pytest.raises(InputRefusedError, match="another series"):
        read_reviewed(delivered.result, replace(delivered.volume, provenance=stranger))
    record = altered(delivered, tmp_path, structures=[{**rows[0], "voxels": 19}, rows[1]])
    with pytest.raises(InputRefusedError, match="18 voxels in its file and 19"):
        read_reviewed(record, delivered.volume)
    record = altered(delivered, tmp_path, files={"nifti": "../elsewhere.nii.gz"})
    (tmp_path.parent / "elsewhere.nii.gz").write_bytes(b"")
    with pytest.raises(InputRefusedError, match="not in the same folder"):
        read_reviewed(record, delivered.volume)
    with pytest.raises(InputRefusedError, match=r"holds 0 result\.json"):
        read_reviewed(delivered.series, delivered.volume)


def test_masks_are_read_from_a_seg_where_there_is_nothing_else(delivered: Delivered, tmp_path: Path) -> None:
    case = read_reviewed(altered(delivered, tmp_path, files={"seg": "case_seg.dcm"}), delivered.volume)
    for structure in case.structures:
        assert np.array_equal(structure.mask_on_grid, lopsided_labels() == structure.number)
    assert case.uncertainty is None


def test_uncertainty_comes_from_its_own_file_before_all_others(delivered: Delivered, tmp_path: Path) -> None:
    values = (lopsided_array() / 1000).astype(np.float32)
    write_nifti(values, delivered.volume, tmp_path / "case_uncertainty.nii.gz")
    files = {"nifti": "case_seg.nii.gz", "probabilities": "case_prob.nii.gz", "uncertainty": "case_uncertainty.nii.gz"}
    record = altered(delivered, tmp_path, files=files)
    assert np.array_equal(read_reviewed(record, delivered.volume).uncertainty, values)
    moved = replace(delivered.volume, affine_lps=delivered.volume.affine_lps @ np.diag([1, 1, 2, 1]))
    write_nifti(values, moved, tmp_path / "case_uncertainty.nii.gz")
    with pytest.raises(InputRefusedError, match=r"case_uncertainty\.nii\.gz"):
        read_reviewed(record, delivered.volume)


def test_uncertainty_comes_from_a_parametric_map_where_there_are_no_probabilities(
    delivered: Delivered, tmp_path: Path
) -> None:
    values = (lopsided_array() / 1000).astype(np.float32)
    volume = delivered.volume
    record = altered(delivered, tmp_path, files={"nifti": "case_seg.nii.gz", "pm": "case_pm.dcm"})
    write_parametric_map(
        volume.with_array(values), volume, tmp_path / "case_pm.dcm", RESULT, MapMeaning(UNCERTAINTY, NO_UNIT, "x")
    )
    assert np.allclose(read_reviewed(record, volume).uncertainty, values)


def test_a_page_is_not_kept_under_a_name(written: Path, page: Page) -> None:
    assert page.inside("title") == ["Review of case"]
    assert PdfReader(written / "review.pdf").metadata.title == "Review of case"


def test_a_rejected_result_is_shown_without_outlines(delivered: Delivered, tmp_path: Path) -> None:
    record = altered(delivered, tmp_path, files={})
    files = write_review(record, tmp_path / "review", image=delivered.volume, how=NO_PAPER)
    found = Page(files["page"])
    assert "delivered without its labels" in found.words
    assert json.loads(found.scripts["review"])["labels_sha256"] is None
    assert [name for name in found.scripts if name.startswith("layer-")] == ["layer-image"]


def test_structures_that_overlap_have_a_layer_each(delivered: Delivered, tmp_path: Path) -> None:
    rows = json.loads(delivered.result.read_text())["structures"]
    overlapping = [{**row, "channel": row["number"] - 1} for row in rows]
    record = altered(delivered, tmp_path, structures=overlapping, files={"nifti": "case_seg.nii.gz"})
    channels = np.stack([lopsided_labels() == 1, lopsided_labels() == 2], axis=-1).astype(np.uint8)
    write_nifti(channels, delivered.volume, tmp_path / "case_seg.nii.gz")
    files = write_review(record, tmp_path / "review", image=delivered.volume, how=NO_PAPER)
    found = Page(files["page"])
    for number in (1, 2):
        assert np.array_equal(
            np.asanyarray(found.layer(f"mask-{number}").dataobj) == number, lopsided_labels() == number
        )


def test_a_fractional_seg_is_cut_at_the_thresholds_of_the_record(delivered: Delivered, tmp_path: Path) -> None:
    p = np.random.default_rng(3).random((*delivered.volume.shape, 2), np.float32)
    cuts = 102.5 / 255, 152.5 / 255  # halfway between two steps of a FRACTIONAL SEG
    masks = p >= np.array(cuts, np.float32)
    rows = json.loads(delivered.result.read_text())["structures"]
    changes = [{"channel": n, "voxels": int(masks[..., n].sum()), "threshold": cuts[n]} for n in range(len(rows))]
    overlapping = [row | change for row, change in zip(rows, changes, strict=True)]
    record = altered(delivered, tmp_path, structures=overlapping, files={"seg": "case_seg.dcm"})
    write_seg(
        delivered.volume.with_array(p), delivered.volume, tmp_path / "case_seg.dcm", RESULT, encoding="fractional"
    )
    reviewed = read_reviewed(record, delivered.volume)
    np.testing.assert_array_equal(reviewed.segmentation.labels, np.moveaxis(masks, -1, 0))


def test_a_picture_is_shown_as_it_is(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 0] = np.arange(60)
    pixels[30:, :10] = (10, 200, 30)
    Image.fromarray(pixels).save(tmp_path / "eye.png")
    volume = read_volume(tmp_path / "eye.png")
    mask = np.zeros((60, 40, 1), np.uint8)
    mask[5:25, 8:12] = 1
    write_nifti(mask, volume, tmp_path / "eye_seg.nii.gz")
    document = result_document(volume, {"nifti": "eye_seg.nii.gz"})
    row = {**document["structures"][0], "voxels": 80, "pixels": 80, "channel": 0}
    row.pop("volume_ml"), row.pop("volume_interval_ml")
    source = {**document["source"], "unit": "px"}
    record = tmp_path / "eye_result.json"
    record.write_text(json.dumps({**document, "structures": [row], "source": source}))
    files = write_review(record, tmp_path / "review", image=volume, how=NO_PAPER)
    found = Page(files["page"])
    assert "80 px" in found.words
    stored = np.asanyarray(found.layer("image").dataobj)
    assert stored[3, 35, 0].tolist() == (10, 200, 30)
    (section,) = key_sections(read_reviewed(record, volume))
    colours = section.pixels.reshape(-1, 3).tolist()
    assert [10, 200, 30] in colours  # not windowed
    assert json.loads(found.scripts["review"])["planar"] is True


def test_names_are_read_as_they_are_spoken() -> None:
    assert person("Yamada^Tarou=山田^太郎=やまだ^たろう") == "Yamada, Tarou (山田, 太郎; やまだ, たろう)"
    assert person("Berger^Anna Maria^^Dr") == "Berger, Anna Maria Dr"
    assert person("NOBODY") == "NOBODY"
    assert person("") == ""


def test_the_viewer_is_the_published_file_with_its_licence_beside_it() -> None:
    static = Path(__file__).resolve().parents[2] / "monai_unet_app/review/static"
    library = gzip.decompress((static / "niivue.umd.js.gz").read_bytes())
    assert hashlib.sha256(library).hexdigest() in (static / "README.md").read_text()
    assert "BSD 2-Clause License" in (static / "LICENSE-niivue.txt").read_text()
    assert not re.search(rb"</script|<!--|\r", library)  # as it stands in the page, nothing ends it early


def test_same_patient_without_an_earlier_result_is_a_wrong_usage(
    delivered: Delivered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "review",
        "--result",
        str(delivered.result),
        "--input",
        str(delivered.series),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--same-patient"]) == 2
    assert "--prior, which is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_whose_far_corner_lies_elsewhere_is_not_on_the_images_grid() -> None:
    image = Volume(np.zeros((512, 4, 4), np.float32), np.diag([1.0, 1.0, 1.0, 1.0]))
    stretched = Volume(image.array, np.diag([1.009, 1.0, 1.0, 1.0]))  # 4.6 mm at the last voxel
    np.testing.assert_array_equal(on_grid_of_image(image, image, "same.nii.gz").affine_lps, image.affine_lps)
    with pytest.raises(InputRefusedError, match=r"stretched\.nii\.gz lies 4\.60 mm away from its image"):
        on_grid_of_image(stretched, image, "stretched.nii.gz")


def test_objects_that_touch_are_apart_in_the_viewer_and_in_key_images(tmp_path: Path) -> None:
    one = deliver_counted(tmp_path)
    numbers = np.zeros(one.volume.shape, np.uint16)
    numbers[1:4, 1:4, 1:3], numbers[4:6, 1:5, 1:3] = 1, 2  # 18 voxels beside 16
    segmentation = Segmentation(one.volume, numbers[None], (Segment(1, "Nucleus", NOT_STATED, NOT_STATED),))
    case = replace(read_reviewed(one.result, one.volume), segmentation=segmentation)
    shown = case.segmentation.maps[0].numbers_in((slice(None),) * 3)
    apart = (numbers > 0) & ~((np.indices(numbers.shape)[0] == 3) & (numbers == 1))
    assert np.array_equal(shown, apart.astype(np.uint8))
    whole = replace(case, segmentation=segmentation.without_objects)
    pictures = [key_sections(each)[0].pixels.astype(int) for each in (case, whole)]
    assert pictures[0].shape == pictures[1].shape
    assert np.abs(pictures[0] - pictures[1]).max() > 30
