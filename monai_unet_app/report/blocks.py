"""The parts of a page, without their appearance; `html` and `pdf` each write them in their own form.

All texts are plain: markup in them is shown as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from matplotlib.figure import Figure

from .case_pictures import png
from .charts import Palette

PICTURE_DPI = 150
Tone = Literal["", "good", "bad"]


@dataclass(frozen=True)
class Title:
    """The subject of the document, in small type above its conclusion."""

    text: str


@dataclass(frozen=True)
class Conclusion:
    """The most important sentence."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Heading:
    """Begins a section; with `small`, a part of a section."""

    text: str
    small: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph; `note` marks an explanation."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Lines:
    """Short lines, each with a coloured word before it: (tone, word, text)."""

    entries: tuple[tuple[Tone, str, str], ...]


@dataclass(frozen=True)
class Tiles:
    """Figures in large type: (name, figure, text below)."""

    entries: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Cell:
    """A cell of a table, with a smaller line below."""

    text: str
    below: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """A table; each row has as many cells as the head.

    Attributes:
        last_is_mean: The last row is the mean of the others and looks different.
        words: Number of columns with words, from the left; the others hold numbers and are aligned to the right.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    last_is_mean: bool = False
    words: int = 1


@dataclass(frozen=True)
class Chart:
    """A diagram in the colours of its page.

    Attributes:
        draw: Makes the figure in these colours.
        label: Description for readers who cannot see it.
        caption: Text below it.
        width: Part of the page's width, 0 to 1.
    """

    draw: Callable[[Palette], Figure]
    label: str
    caption: str
    width: float = 1.0


@dataclass(frozen=True)
class Picture:
    """A picture with colours of its own."""

    draw: Callable[[], Figure]
    label: str
    caption: str

    @cached_property
    def png(self) -> bytes:
        """The picture as a PNG; drawn once, for the page and for paper."""
        return png(self.draw(), PICTURE_DPI)


@dataclass(frozen=True)
class Legend:
    """The meaning of colours: (colour, name)."""

    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    entries: Mapping[str, str]


@dataclass(frozen=True)
class Folded:
    """A table that a reader can unfold; on paper `instead` takes its place."""

    title: str
    content: Table
    instead: str


Block = Title | Conclusion | Heading | Text | Lines | Tiles | Table | Chart | Picture | Legend | Facts | Folded
