"""The report on paper: A4, with the sections of the page; the same report gives the same bytes.

The layout is ReportLab's. The font is DejaVu Sans, which matplotlib brings along; it is embedded, so that marks and names in
most scripts can be read everywhere. It has no Chinese, Japanese and Korean: these are set in fonts that viewers bring along.
"""

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib as mpl
from reportlab import rl_config
from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_LEFT, TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import Flowable, Image, Paragraph, SimpleDocTemplate
from reportlab.platypus import Table as Grid

from . import blocks
from .blocks import Block, Cell
from .case_pictures import png
from .charts import LIGHT

MARGIN, FOOT = 16 * mm, 8 * mm
WIDTH, HEIGHT = A4[0] - 2 * MARGIN, A4[1] - 2 * MARGIN - FOOT
_FRAME = 6.0  # what ReportLab leaves free inside its margins, points
CHART_DPI = 200
RAISED = HexColor("#f6f7f9")
TONES: dict[blocks.Tone, str] = {"": LIGHT.ink, "good": "#12703a", "bad": "#b3261e"}
_SANS, _BOLD = "DejaVuSans", "DejaVuSans-Bold"  # fonts, and the names of their files
_CHINESE, _JAPANESE, _KOREAN = "STSong-Light", "HeiseiKakuGo-W5", "HYGothic-Medium"
# Hangul Jamo; CJK radicals to unified ideographs, kana among them; Hangul syllables; compatibility ideographs;
# full-width forms.
_EAST_ASIAN = re.compile("[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]+")
_KANA, _HANGUL = re.compile("[\u3040-\u30ff]"), re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")
_PAD = 3.0  # left and right of a cell, points
_ALL = ((0, 0), (-1, -1))  # the first and the last cell of a table, for its style
rl_config.useA85 = 0  # streams of bytes instead of letters, a fifth smaller


def typeset(blocks: Iterable[Block], title: str, footer: str) -> bytes:
    """Blocks as a PDF file; viewers show `title`, and every page has `footer` beside its number."""
    _register_fonts()
    stream = io.BytesIO()
    document = _Document(
        stream,
        pagesize=A4,
        leftMargin=MARGIN - _FRAME,
        rightMargin=MARGIN - _FRAME,
        topMargin=MARGIN - _FRAME,
        bottomMargin=MARGIN + FOOT - _FRAME,
        title=title,
        author="monai-unet-app",
        lang="en",
        invariant=1,  # no time and no random id in the file
        pageCompression=1,
    )
    document.footer = footer
    document.build([flowable for block in blocks for flowable in flowables(block)])
    return stream.getvalue()


class _Document(SimpleDocTemplate):  # type: ignore[misc]  # ReportLab has no types
    """A document with an outline of its sections, which viewers show beside the pages, and a footer on each page."""

    footer = ""

    def afterPage(self) -> None:  # noqa: N802
        footer = _paragraph(self.footer, "footer")
        footer.wrap(0.85 * WIDTH, FOOT)
        footer.drawOn(self.canv, MARGIN, MARGIN - 2)
        self.canv.setFont(_SANS, _STYLES["footer"].fontSize)
        self.canv.setFillColor(HexColor(LIGHT.muted))
        self.canv.drawRightString(A4[0] - MARGIN, MARGIN, f"page {self.page}")

    def afterFlowable(self, flowable: Any) -> None:  # noqa: N802
        if getattr(flowable, "style", None) is _STYLES["heading"]:
            name = f"section {self.page} {flowable.getPlainText()}"
            self.canv.bookmarkPage(name)
            self.canv.addOutlineEntry(flowable.getPlainText(), name, 0)


def _register_fonts() -> None:
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    for name in (_SANS, _BOLD, _CHINESE, _JAPANESE, _KOREAN):
        if name not in pdfmetrics.getRegisteredFontNames():
            embedded = name in (_SANS, _BOLD)
            pdfmetrics.registerFont(TTFont(name, folder / f"{name}.ttf") if embedded else UnicodeCIDFont(name))


_PLAIN = ParagraphStyle("plain", fontName=_SANS, fontSize=8.5, leading=12, textColor=HexColor(LIGHT.ink), spaceAfter=3)
_GREY, _STRONG = HexColor(LIGHT.muted), {"fontName": _BOLD}
_STYLES = {
    "plain": _PLAIN,
    "title": ParagraphStyle("title", _PLAIN, textColor=_GREY, fontSize=9.5, **_STRONG),
    "conclusion": ParagraphStyle("conclusion", _PLAIN, fontSize=17, leading=22, spaceAfter=5, **_STRONG),
    "heading": ParagraphStyle("heading", _PLAIN, fontSize=12, leading=15, spaceBefore=18, spaceAfter=4, **_STRONG),
    "small heading": ParagraphStyle("small heading", _PLAIN, spaceBefore=7, **_STRONG),
    "note": ParagraphStyle("note", _PLAIN, textColor=_GREY, fontSize=7.5, leading=10.5),
    "footer": ParagraphStyle("footer", _PLAIN, textColor=_GREY, fontSize=7, leading=8.5, spaceAfter=0),
    "figure": ParagraphStyle("figure", _PLAIN, fontSize=15, leading=19, spaceAfter=0, **_STRONG),
    "cell": ParagraphStyle("cell", _PLAIN, fontSize=7.5, leading=9.5, spaceAfter=0),
}


def _paragraph(text: str, style: str = "plain") -> Paragraph:
    return Paragraph(_escaped(text), _STYLES[style])


def flowables(block: Block) -> list[Flowable]:
    """A block as ReportLab's flowables. Raises TypeError for a class that is not in blocks.py."""
    match block:
        case blocks.Title():
            return [_paragraph(block.text, "title")]
        case blocks.Conclusion():
            return [Paragraph(_coloured(block.text, TONES[block.tone]), _STYLES["conclusion"])]
        case blocks.Heading():
            return _with_next(_paragraph(block.text, "small heading" if block.small else "heading"))
        case blocks.Text():
            return _with_next(_paragraph(block.text, "note" if block.note else "plain"))
        case blocks.Lines():
            lines = (f"{_coloured(mark, TONES[tone])} {_escaped(text)}" for tone, mark, text in block.entries)
            return [Paragraph(line, _PLAIN) for line in lines]
        case blocks.Tiles():
            return [_tiles(block)]
        case blocks.Table():
            return [_table(block)]
        case blocks.Chart():
            return _image(png(block.draw(LIGHT), CHART_DPI), block.width, 0.8, block.caption)
        case blocks.Picture():
            return _image(block.png, 1.0, 0.4, block.caption)
        case blocks.Legend():
            entries = (
                _square(colour) + "\u00a0" + _escaped(name.replace(" ", "\u00a0")) for colour, name in block.entries
            )
            return _with_next(Paragraph(" \u00a0 ".join(entries), _PLAIN))
        case blocks.Facts():
            return [_facts(block)]
        case blocks.Folded():
            return [_paragraph(block.instead, "note")]
    raise TypeError(f"{type(block).__name__} is not a block; a block of blocks.py is needed")


def _tiles(tiles: blocks.Tiles) -> Flowable:
    cells = [
        [_paragraph(name, "note"), _paragraph(figure, "figure"), _paragraph(below, "note")]
        for name, figure, below in tiles.entries
    ]
    look = [("BACKGROUND", *_ALL, RAISED), ("INNERGRID", *_ALL, 4, HexColor(LIGHT.ground)), ("VALIGN", *_ALL, "TOP")]
    return Grid([cells], colWidths=[WIDTH / len(cells)] * len(cells), style=look, spaceBefore=8)


def _table(table: blocks.Table) -> Flowable:
    widths, size = _columns(table)
    rows = [[_head_cell(name, n >= table.words, size) for n, name in enumerate(table.head)]]
    for number, row in enumerate(table.rows):
        bold = table.last_is_mean and number == len(table.rows) - 1
        rows.append([_cell(cell, n >= table.words, size, bold) for n, cell in enumerate(row)])
    look = [
        ("LINEBELOW", *_ALL, 0.5, HexColor(LIGHT.grid)),
        ("VALIGN", (0, 0), (-1, 0), "BOTTOM"),
        ("VALIGN", (0, 1), (-1, -1), "TOP"),
        ("LEFTPADDING", *_ALL, _PAD),
        ("RIGHTPADDING", *_ALL, _PAD),
        ("TOPPADDING", *_ALL, 2.5),
        ("BOTTOMPADDING", *_ALL, 2.5),
        ("LEFTPADDING", (0, 0), (0, -1), 0),
    ]
    return Grid(rows, colWidths=widths, repeatRows=1, style=look, hAlign="LEFT", spaceAfter=6)


def _facts(facts: blocks.Facts) -> Flowable:
    rows = [[_paragraph(name, "note"), _paragraph(text, "cell")] for name, text in facts.entries.items()]
    names = max(pdfmetrics.stringWidth(name, _SANS, _STYLES["note"].fontSize) for name in facts.entries)
    first = min(names + 4 * _PAD + 1, 0.45 * WIDTH)
    edges = {"LEFTPADDING": 0, "RIGHTPADDING": 4 * _PAD, "TOPPADDING": 1, "BOTTOMPADDING": 1}
    look = [("VALIGN", *_ALL, "TOP"), *((edge, *_ALL, size) for edge, size in edges.items())]
    return Grid(rows, colWidths=[first, WIDTH - first], style=look, spaceAfter=6)


def _escaped(text: str) -> str:
    """Text for a paragraph, escaped, with each run of East Asian characters in a font of its language."""

    def in_its_font(run: re.Match[str]) -> str:
        # Ideographs alone do not tell Japanese from Chinese; kana anywhere in the text do.
        font = _KOREAN if _HANGUL.search(run[0]) else _JAPANESE if _KANA.search(text) else _CHINESE
        return f'<font name="{font}">{run[0]}</font>'

    return _EAST_ASIAN.sub(in_its_font, escape(text))


def _coloured(text: str, colour: str) -> str:
    return f'<font color="{colour}">{_escaped(text)}</font>'


def _square(colour: str) -> str:
    """A mark in a colour; white, which is invisible on paper, is drawn as an outline."""
    return "□" if colour.lower() == "#ffffff" else _coloured("■", colour)


def _with_next(flowable: Flowable) -> list[Flowable]:
    """A list of this flowable, which is never the last on a page."""
    flowable.keepWithNext = 1
    return [flowable]


def _image(content: bytes, width: float, height: float, caption: str) -> list[Flowable]:
    """A drawing with its caption, as large as it fits into these parts of the page's width and height."""
    image = Image(io.BytesIO(content), hAlign="LEFT")
    scale = min(width * WIDTH / image.imageWidth, height * HEIGHT / image.imageHeight)
    image.drawWidth, image.drawHeight = scale * image.imageWidth, scale * image.imageHeight
    image.spaceBefore, image.spaceAfter = 5, 4
    below = _paragraph(caption, "note")
    below.spaceAfter = 8
    return [*_with_next(image), below]


def _columns(table: blocks.Table) -> tuple[list[float], float]:
    """Widths of a table's columns, and the type size at which they fit side by side.

    Columns are as wide as their longest line, except the first, which may wrap.
    """
    size = _STYLES["cell"].fontSize
    natural = [_natural(table, n, size) for n in range(len(table.head))]
    natural[0] = min(natural[0], 0.3 * WIDTH)
    shrink = min(1.0, WIDTH / sum(natural))
    spare = max(0.0, WIDTH - sum(natural)) / len(natural)
    return [shrink * width + min(spare, 18.0) for width in natural], shrink * size


def _natural(table: blocks.Table, n: int, size: float) -> float:
    lines = [(line, _BOLD, size) for line in table.head[n].split("\n")]
    for row in table.rows:
        cell = _as_cell(row[n])
        # Measured in bold, since the last row will be: a column must hold its widest line.
        lines += [(cell.text, _BOLD if table.last_is_mean else _SANS, size), (cell.below, _SANS, _below(size))]
    return float(max(pdfmetrics.stringWidth(*line) for line in lines) + 2 * _PAD + 1)


def _below(size: float) -> float:
    return 0.84 * size


def _as_cell(cell: str | Cell) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def _head_cell(name: str, number: bool, size: float) -> Paragraph:
    text = _escaped(name).replace("\n", "<br/>")
    return Paragraph(text, _cell_style(number, size, bold=True, colour=LIGHT.muted))


def _cell(cell: str | Cell, number: bool, size: float, bold: bool) -> Paragraph:
    cell = _as_cell(cell)
    text = _coloured(cell.text, TONES[cell.tone])
    if cell.below:
        small = f'face="{_SANS}" size="{_below(size):.2f}" color="{LIGHT.muted}"'
        text += f"<br/><font {small}>{_escaped(cell.below)}</font>"
    return Paragraph(text, _cell_style(number, size, bold=bold, colour=LIGHT.ink))


def _cell_style(number: bool, size: float, *, bold: bool, colour: str) -> ParagraphStyle:
    return ParagraphStyle(
        "cell",
        _STYLES["cell"],
        fontName=_BOLD if bold else _SANS,
        fontSize=size,
        leading=1.28 * size,
        textColor=HexColor(colour),
        alignment=TA_RIGHT if number else TA_LEFT,
    )
