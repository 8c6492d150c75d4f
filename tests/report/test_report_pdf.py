"""The report on paper: A4, the same words as the page, the same bytes for the same report."""

from __future__ import annotations

import io
import re

import pypdf
import pytest
from made_up import STATEMENTS, plain_report

from monai_unet_app.report.blocks import Cell, Chart, Picture, Table, Text
from monai_unet_app.report.evaluation_report import Target
from monai_unet_app.report.evaluation_writer import pages
from monai_unet_app.report.pdf import typeset
from monai_unet_app.report.sections import sections

TARGETS = (Target("Dice, mean", ("dice", "mean"), at_least=0.99), Target("ECE", ("ece", "top_label"), at_most=0.9))


@pytest.fixture(scope="module")
def report():
    return plain_report(targets=TARGETS, statements=STATEMENTS)


@pytest.fixture(scope="module")
def files(report):
    return pages(report)


@pytest.fixture(scope="module")
def reader(files):
    return pypdf.PdfReader(io.BytesIO(files["report.pdf"]))


@pytest.fixture(scope="module")
def texts(reader):
    """Of each page."""
    return [page.extract_text() for page in reader.pages]


def words(texts):
    return " ".join(" ".join(texts).split())


def test_the_same_report_gives_the_same_bytes(report, files):
    assert pages(report) == files


def test_the_conclusion_comes_first_with_every_target(texts):
    first = words(texts[:1])
    # Boxes of 4 voxels moved by 0, 1, 2 and 1: Dice 1, 0.75, 0.5, 0.75.
    assert first.startswith(
        "lobes_mri_unet3d 1.2.0, 4 cases of 2 subjects 1 of 2 targets missed ✗ missed Dice, mean 0.7500"
    )
    assert "✓ reached ECE" in first
    assert "28 accepted, 6 for review, 2 rejected" in first


def test_it_has_every_section_and_every_cell_of_the_page(files, texts):
    page = files["report.html"].decode()
    page = re.sub(r"<details>.*?</details>|<svg.*?</svg>|<style>.*?</style>", "", page, flags=re.DOTALL)
    there = words(texts).replace(" ", "")
    pieces = re.findall(r"<(?:h[123]|th|td|small|dt|dd|b|figcaption|li|p)[^>]*>([^<]+)", page)
    assert len(pieces) > 150
    missing = [
        piece for piece in pieces if "".join(piece.replace("&#x27;", "'").replace("&gt;", ">").split()) not in there
    ]
    assert missing == []


def test_it_is_a4_with_numbered_pages_and_an_outline_of_the_sections(reader, texts):
    for number, (page, text) in enumerate(zip(reader.pages, texts, strict=True), start=1):
        assert (float(page.mediabox.width), float(page.mediabox.height)) == pytest.approx((595.28, 841.89), abs=0.01)
        assert f"page {number}" in text
    titles = [entry.title for entry in reader.outline]
    assert titles[0] == "Each class"
    assert titles[-1] == "Definitions"
    assert "What the bundle states about its own results" in titles
    assert reader.metadata.title == "Evaluation of lobes_mri_unet3d 1.2.0"


def test_charts_and_pictures_are_in_it_and_its_letters_are_embedded(reader):
    images = [image for page in reader.pages for image in page.images]
    assert len(images) == 5  # cases, outlines, reliability, risk against coverage, and the one picture
    fonts = [font.get_object() for page in reader.pages for font in page["/Resources"]["/Font"].get_object().values()]
    used = [font for font in fonts if "DejaVu" in font["/BaseFont"]]
    assert used
    assert all("/FontFile2" in font["/FontDescriptor"] for font in used)


@pytest.mark.parametrize(
    ("name", "font"),
    [
        ("山田, 太郎 (やまだ, たろう)", "HeiseiKakuGo-W5"),
        ("王, 小东", "STSong-Light"),
        ("김, 희중 & Kim", "HYGothic-Medium"),
    ],
)
def test_names_in_east_asian_scripts_are_set_in_fonts_that_have_them(name, font):
    pages = pypdf.PdfReader(io.BytesIO(typeset([Text(name)], "Review", f"Kim {name}"))).pages
    fonts = pages[0]["/Resources"]["/Font"].get_object().values()
    assert any(font in one.get_object()["/BaseFont"] for one in fonts)
    assert pages[0].extract_text().count(name) == 2


def test_everything_stands_within_the_margins(reader):
    margin = 16 / 25.4 * 72

    def check(text, matrix, at, font, size):
        if text.strip():
            assert margin - 1 <= matrix[4] + at[4] <= 595.28 - margin
            assert margin - 1 <= matrix[5] + at[5] <= 841.89 - margin

    for page in reader.pages:
        page.extract_text(visitor_text=check)


@pytest.mark.parametrize("columns", [2, 6, 9, 14])
def test_a_table_is_as_wide_as_the_page_at_most_and_its_letters_shrink_for_it(columns):
    row = ("posterior hippocampus", *(Cell("0.8938", "-0.083 to 0.010") for _ in range(columns - 1)))
    table = Table(("Class", *["Boundary IoU\n1 mm"] * (columns - 1)), (row,), last_is_mean=True)
    (page,) = pypdf.PdfReader(io.BytesIO(typeset([table], "table", ""))).pages
    assert page.extract_text().count("-0.083 to 0.010") == columns - 1  # none was broken
    ends = []
    page.extract_text(
        visitor_text=lambda text, matrix, at, font, size: ends.append(matrix[4] + at[4]) if text.strip() else 0
    )
    assert max(ends) < 595.28 - 16 / 25.4 * 72


def test_many_classes_with_hostile_names_run_over_pages_under_their_heading():
    names = ("Front", "Back", "<b>bold</b> & co", *(f"Organ {n}" for n in range(70)))
    blocks = [block for block in sections(plain_report(names)) if not isinstance(block, Chart | Picture)]
    reader = pypdf.PdfReader(io.BytesIO(typeset(blocks, "many", "")))
    texts = [page.extract_text() for page in reader.pages]
    assert "<b>bold</b>&co" in words(texts).replace(" ", "")
    of_scores = [text for text in texts if "Recall" in text]
    assert len(of_scores) >= 2
    assert all("Precision" in text for text in of_scores)
