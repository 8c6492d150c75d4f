"""What pages are made of, without saying how they look: `html` and `pdf` each know how to write these.

All texts are plain: markup in them is shown, not obeyed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from matplotlib.figure import Figure

from .charts import Palette

Tone = Literal["", "good", "bad"]


@dataclass(frozen=True)
class Title:
    """What the whole document is about, small above its verdict."""

    text: str


@dataclass(frozen=True)
class Verdict:
    """The one sentence to read."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Heading:
    """Begins a section, or with `small` a part of one."""

    text: str
    small: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph; `note` for what explains rather than tells."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Lines:
    """Short lines, each with a marked word before it: (tone, word, text)."""

    entries: tuple[tuple[Tone, str, str], ...]


@dataclass(frozen=True)
class Tiles:
    """Figures to be seen at a glance: (name, figure, what stands below)."""

    entries: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Cell:
    """A cell of a table, with a smaller line below."""

    text: str
    below: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as the head has.

    Attributes:
        last_is_mean: The last row is set off, as the mean of the others.
        words: So many columns, from the left, are words; the others are numbers, and end below one another.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    last_is_mean: bool = False
    words: int = 1


@dataclass(frozen=True)
class Chart:
    """A diagram that takes the colours of its page.

    Attributes:
        draw: Makes it in given colours.
        label: What is to be seen, for those who cannot see it.
        caption: Below it.
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


@dataclass(frozen=True)
class Key:
    """What colours mean: (colour, name)."""

    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Facts:
    """Names and what stands for them."""

    entries: Mapping[str, str]


@dataclass(frozen=True)
class Folded:
    """What only some will read; on paper it is left out and `instead` stands there."""

    title: str
    content: Table
    instead: str


Block = Title | Verdict | Heading | Text | Lines | Tiles | Table | Chart | Picture | Key | Facts | Folded
