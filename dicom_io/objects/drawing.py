"""Drawing with arrays and Pillow: enlarge a slice, paint masks on it, frame it with text. Knows nothing of files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

RESEARCH_TEXT = "RESEARCH USE ONLY - NOT FOR DIAGNOSIS"
LEAST_FONT_SIZE = 16
LEGEND_LINES = 12
OUTLINE = 1 / 256  # of the longer side: a pixel at 256, 4 at 1024
PAGE_SIDE, PAGE_EDGE, PAGE_FONT_SIZE = 768, 36, 24
RESEARCH_RGB, _TEXT_RGB = (255, 220, 0), (225, 225, 225)

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Rgb = tuple[int, int, int]
Letters = tuple[str, str, str, str]
Lines = list[tuple[str, Rgb | None]]
"""Text, with the colour of the square before it or None."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class FramedPicture:
    """A picture in its frame of text.

    Attributes:
        pixels: Shape (rows, columns, 3), the whole with its frame.
        left: Column of the picture's first pixel.
        top: Row of the picture's first pixel.
        size: (width, height) of the picture.
    """

    pixels: Pixels
    left: int
    top: int
    size: tuple[int, int]


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels that follow from the picture's size."""

    width: int
    height: int
    font: Font
    font_size: int
    total: int

    @property
    def line(self) -> int:
        """Distance of two lines of text."""
        return round(1.4 * self.font_size)

    @property
    def pad(self) -> int:
        """Distance of text from the edge."""
        return self.font_size // 2

    @property
    def left(self) -> int:
        """Column of the picture's first pixel."""
        return (self.total - self.width) // 2


def picture_size(shape: tuple[int, int], pixel: tuple[float, float], least_side: int) -> tuple[int, int]:
    """(width, height) of a picture with square pixels of the finer distance, enlarged by a whole number.

    Args:
        shape: (columns, rows) of the slice.
        pixel: Distance of neighbouring pixels in a row and in a column, any unit.
        least_side: The longer side has at least so many pixels.
    """
    finer = min(pixel)
    width, height = shape[0] * pixel[0] / finer, shape[1] * pixel[1] / finer
    factor = max(1, int(np.ceil(least_side / max(width, height))))
    return max(1, round(width * factor)), max(1, round(height * factor))


def grey_or_colour(image: NDArray[Any]) -> NDArray[Any]:
    """Shape (rows, columns, C) as it is drawn, 0 to 1: three channels are colours, of others the first is grey.

    Grey is stretched from percentile 1 to 99.5; colours are 0 to 1, or 0 to 255 in uint8.
    """
    if image.shape[-1] == 3:
        return np.asarray(np.clip(image / 255.0 if image.dtype == np.uint8 else image, 0, 1))
    plain = np.nan_to_num(image[..., 0].astype(np.float64))
    # Percentiles instead of the extremes: a few very bright voxels would make the rest of the image dark.
    low, high = np.percentile(plain, [1, 99.5])
    return np.asarray(np.clip((plain - low) / max(high - low, 1e-9), 0, 1))


def smooth(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Values (rows, columns) as float32, or RGB of 8 bits, at (width, height), linearly interpolated."""
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def enlarged(mask: Mask, size: tuple[int, int]) -> Mask:
    """The mask of shape (rows, columns) at (width, height), each pixel with the value at the nearest centre."""
    # The centre of each pixel of the picture, in pixels of the mask; its whole part is the pixel around it.
    columns, rows = (
        np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1)
        for n, m in zip(size, mask.shape[::-1], strict=True)
    )
    return mask[np.ix_(rows, columns)]


def paint(picture: NDArray[np.float64], mask: Mask, colour: Rgb, opacity: float, *, outline: float) -> None:
    """Mix `colour` into the picture, shape (rows, columns, 3), where the mask is; its edge in full colour.

    Args:
        picture: 0 to 255; painted over.
        mask: Shape (rows, columns).
        colour: 0 to 255 each.
        opacity: 0 to 1.
        outline: Width of the edge, as a part of the longer side; at least a pixel, unless it is 0.
    """
    full = np.array(colour, dtype=np.float64)
    if opacity:
        picture[mask] += opacity * (full - picture[mask])
    if outline:
        width = max(1, round(max(mask.shape) * outline))
        # Outside the picture counts as outside the mask, so a mask at the edge has an outline there.
        inner = binary_erosion(mask, structure=np.ones((3, 3), dtype=bool), iterations=width, border_value=0)
        picture[mask & ~inner] = full


def with_masks(
    picture: NDArray[np.float64], masks: Iterable[tuple[str, Rgb, Mask]], opacity: float, *, outline: float = OUTLINE
) -> tuple[Pixels, list[tuple[str, Rgb]]]:
    """The picture with masks painted on it, and a legend of the masks that are not empty.

    Args:
        picture: Shape (rows, columns, 3), 0 to 255; it is painted over.
        masks: (label, colour, mask) of each; a mask has the shape of the slice before it was enlarged to the picture.
        opacity: As of `paint`.
        outline: As of `paint`.
    """
    legend = []
    for label, colour, mask in masks:
        if mask.any():
            legend.append((label, colour))
            paint(picture, enlarged(mask, picture.shape[1::-1]), colour, opacity, outline=outline)
    return np.rint(picture).astype(np.uint8), legend


def framed(
    picture: Pixels, letters: Letters | None, captions: Sequence[str], legend: Sequence[tuple[str, Rgb]]
) -> FramedPicture:
    """The picture in a black frame: research mark above, direction letters around, captions and legend below.

    Args:
        picture: Shape (rows, columns, 3).
        letters: Directions at the left, right, upper and lower edge, or None.
        captions: Lines below the picture, wrapped where they are too long.
        legend: (text, colour) of what is painted in it.
    """
    layout = _layout(picture, letters)
    head = _wrapped(RESEARCH_TEXT, layout)
    foot = [(line, None) for text in captions for line in _wrapped(text, layout)]
    lines: Lines = [*foot, *_legend_lines(legend, layout)]
    above = layout.line * (len(head) + 1) + layout.pad
    canvas = Image.new("RGB", (layout.total, above + layout.height + layout.line * (len(lines) + 1) + layout.pad))
    canvas.paste(Image.fromarray(picture), (layout.left, above))
    draw = ImageDraw.Draw(canvas)
    for row, text in enumerate(head):
        draw.text((layout.total / 2, layout.pad // 2 + layout.line * row), text, RESEARCH_RGB, layout.font, anchor="ma")
    if letters is not None:
        _draw_letters(draw, letters, layout, above)
    _draw_lines(draw, lines, layout, above + layout.height + layout.line)
    return FramedPicture(np.asarray(canvas), layout.left, above, (layout.width, layout.height))


def page(headline: str, paragraphs: Sequence[str]) -> Pixels:
    """A black page of text: research mark, headline in large letters, paragraphs, each of them wrapped.

    Args:
        headline: Some words.
        paragraphs: No word of them is longer than a line.

    Returns:
        Shape (rows, PAGE_SIDE, 3), with PAGE_SIDE rows, or as many as the text needs.
    """
    font, width = ImageFont.load_default(PAGE_FONT_SIZE), PAGE_SIDE - 2 * PAGE_EDGE
    layout = _Layout(width, PAGE_SIDE, font, PAGE_FONT_SIZE, width)
    lines: Lines = [(line, None) for text in paragraphs for line in (*_wrapped(text, layout), "")]
    top = 7 * layout.line
    canvas = Image.new("RGB", (PAGE_SIDE, max(PAGE_SIDE, top + layout.line * len(lines) + PAGE_EDGE)))
    text = Image.new("RGB", (width, layout.line * len(lines)))
    _draw_lines(ImageDraw.Draw(text), lines, layout, 0)
    canvas.paste(text, (PAGE_EDGE, top))
    draw, middle = ImageDraw.Draw(canvas), PAGE_SIDE / 2
    draw.text((middle, layout.pad), RESEARCH_TEXT, RESEARCH_RGB, font, anchor="ma")
    draw.text((middle, 4 * layout.line), headline, _TEXT_RGB, ImageFont.load_default(3 * PAGE_FONT_SIZE), anchor="mm")
    return np.asarray(canvas)


def _layout(picture: Pixels, letters: Letters | None) -> _Layout:
    height, width = picture.shape[:2]
    font_size = max(LEAST_FONT_SIZE, max(width, height) // 36)
    total = max(width, 20 * font_size) + 2 * font_size * (3 if letters else 1)
    return _Layout(width, height, ImageFont.load_default(font_size), font_size, total)


def _draw_letters(draw: ImageDraw.ImageDraw, letters: Letters, layout: _Layout, top: int) -> None:
    left, right = layout.left, layout.left + layout.width
    gap, middle = layout.font_size // 4, top + layout.height / 2
    places = (
        (left - gap, middle, "rm"),
        (right + gap, middle, "lm"),
        ((left + right) / 2, top - gap, "mb"),
        ((left + right) / 2, top + layout.height + gap, "mt"),
    )
    for text, (x, y, anchor) in zip(letters, places, strict=True):
        draw.text((x, y), text, _TEXT_RGB, layout.font, anchor=anchor)


def _draw_lines(draw: ImageDraw.ImageDraw, lines: Lines, layout: _Layout, top: int) -> None:
    size, pad = layout.font_size, layout.pad
    for row, (text, colour) in enumerate(lines):
        y = top + row * layout.line
        if colour is not None:
            draw.rectangle((pad, y + size // 6, pad + size, y + size), colour)
        draw.text((pad if colour is None else pad + round(1.5 * size), y), text, _TEXT_RGB, layout.font)


def _legend_lines(legend: Sequence[tuple[str, Rgb]], layout: _Layout) -> Lines:
    """At most LEGEND_LINES of the legend, and how many more there are."""
    if not legend:
        return [("no label in this slice", None)]
    width = layout.total - 3 * layout.font_size
    lines: Lines = [(_shortened(text, layout.font, width), colour) for text, colour in legend[:LEGEND_LINES]]
    more = len(legend) - LEGEND_LINES
    return [*lines, (f"and {more} more", None)] if more > 0 else lines


def _wrapped(text: str, layout: _Layout) -> list[str]:
    width, lines = layout.total - layout.font_size, [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if layout.font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_shortened(line, layout.font, width) for line in lines]


def _shortened(text: str, font: Font, width: int) -> str:
    while len(text) > 4 and font.getlength(text) > width:
        # Four characters go and three dots come, so that the text gets shorter each time.
        text = text[:-4].rstrip(" .") + "..."
    return text
