"""One self-contained page: offline, light and dark, fit to print.

The page loads nothing (its own policy forbids it), runs no script, and holds no path, and no identity beyond
the names of cases that it was given.
"""

from __future__ import annotations

from functools import singledispatch
from html import escape
from importlib.resources import files

from .blocks import (
    Block,
    Cell,
    Chart,
    Facts,
    Folded,
    Heading,
    Key,
    Lines,
    Picture,
    Table,
    Text,
    Tiles,
    Title,
    Tone,
    Verdict,
)
from .case_pictures import png_uri
from .charts import Palette, svg
from .evaluation_report import EvaluationReport
from .sections import sections


def render_html(report: EvaluationReport) -> str:
    """The whole report as the text of one HTML file."""
    title = f"Evaluation of {report.measured_on.bundle_name}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{escape(title)}</title>\n<style>{_style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(render(block) for block in sections(report))
        + "\n</main>\n</body>\n</html>\n"
    )


@singledispatch
def render(block: Block) -> str:
    """One block as HTML."""
    raise TypeError(f"{type(block).__name__} is no block; one of those in blocks.py is needed")


@render.register
def _(block: Title) -> str:
    return f"<h1>{escape(block.text)}</h1>"


@render.register
def _(block: Verdict) -> str:
    return f'<p class="verdict{_class(block.tone)}">{escape(block.text)}</p>'


@render.register
def _(block: Heading) -> str:
    level = "h3" if block.small else "h2"
    return f"<{level}>{escape(block.text)}</{level}>"


@render.register
def _(block: Text) -> str:
    return f'<p class="note">{escape(block.text)}</p>' if block.note else f"<p>{escape(block.text)}</p>"


@render.register
def _(block: Lines) -> str:
    lines = (
        f'<li><span class="mark{_class(tone)}">{escape(mark)}</span> {escape(text)}</li>'
        for tone, mark, text in block.entries
    )
    return f'<ul class="targets">{"".join(lines)}</ul>'


@render.register
def _(block: Tiles) -> str:
    tiles = (
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(figure)}</b><span>{escape(below)}</span></div>'
        for name, figure, below in block.entries
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


@render.register
def _(block: Table) -> str:
    words = [" class='word'" if 0 < n < block.words else "" for n in range(len(block.head))]
    head = "".join(f"<th{word}>{_lines(name)}</th>" for name, word in zip(block.head, words, strict=True))
    rows = [
        "<tr>" + "".join(f"<td{word}>{_cell(cell)}</td>" for cell, word in zip(row, words, strict=True)) + "</tr>"
        for row in block.rows
    ]
    if block.last_is_mean:
        rows[-1] = rows[-1].replace("<tr>", '<tr class="mean">', 1)
    body = "\n".join(rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


@render.register
def _(block: Chart) -> str:
    style = "" if block.width >= 1 else f' style="max-width:{100 * block.width:.0f}%"'
    return _figure(svg(block.draw(Palette()), block.label), block.caption, "chart", style)


@render.register
def _(block: Picture) -> str:
    image = f'<img src="{png_uri(block.draw())}" alt="{escape(block.label)}">'
    return _figure(image, block.caption, "case")


@render.register
def _(block: Key) -> str:
    keys = (f'<li><i style="background:{colour}"></i>{escape(name)}</li>' for colour, name in block.entries)
    return f'<ul class="key">{"".join(keys)}</ul>'


@render.register
def _(block: Facts) -> str:
    facts = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in block.entries.items())
    return f"<dl>{''.join(facts)}</dl>"


@render.register
def _(block: Folded) -> str:
    return f"<details><summary>{escape(block.title)}</summary>{render(block.content)}</details>"


def _cell(cell: str | Cell) -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    text = f'<span class="{cell.tone}">{escape(cell.text)}</span>' if cell.tone else escape(cell.text)
    return text + (f"<small>{escape(cell.below)}</small>" if cell.below else "")


def _class(tone: Tone) -> str:
    return f" {tone}" if tone else ""


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _figure(content: str, caption: str, kind: str, style: str = "") -> str:
    return f'<figure class="{kind}"{style}>{content}<figcaption class="note">{escape(caption)}</figcaption></figure>'


def _style() -> str:
    return (files(__package__) / "report.css").read_text(encoding="utf-8")
