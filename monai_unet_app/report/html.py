"""The report as a self-contained HTML page: offline, light and dark, fit to print. The markup is in `templates/`.

The page loads nothing (its own policy forbids it), runs no script, and holds no path and no identity except the names of cases.
"""

import base64
from collections.abc import Iterable
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .blocks import Block
from .charts import Palette, svg


def page(title: str, blocks: Iterable[Block]) -> str:
    """Blocks as the text of one HTML file."""
    template = environment(__package__).get_template("report.html")
    # Style and blocks are markup of this package; the templates have escaped every text in the blocks.
    return template.render(title=title, style=Markup(report_style()), content=Markup("\n".join(map(render, blocks))))


def report_style() -> str:
    """The style sheet of the report, with which that of a review begins."""
    return (files(__package__) / "report.css").read_text(encoding="utf-8")


def render(block: Block) -> str:
    """A block as HTML. Raises TypeError for a class that is not in blocks.py."""
    if not isinstance(block, Block):
        raise TypeError(f"{type(block).__name__} is not a block; a block of blocks.py is needed")
    macros = environment(__package__).get_template("blocks.html").module
    return str(getattr(macros, type(block).__name__.lower())(block))


@cache
def environment(package: str) -> Environment:
    """Jinja2 for the templates of a package: values are escaped, a name without a value is an error."""
    templates = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    templates.globals |= {
        "svg_of": lambda chart: Markup(svg(chart.draw(Palette()), chart.label)),
        "base64": lambda content: Markup(base64.b64encode(content).decode()),
    }
    return templates


def _escaped(value: Any) -> Markup:
    """The value escaped as `html.escape` does, so that pages stay the same byte for byte; Jinja2 writes &#39; for &#x27;."""
    return value if isinstance(value, Markup) else Markup(escape(str(value)))
