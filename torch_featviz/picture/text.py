"""Text as pixels, with the typeface that matplotlib bundles: the same bytes on every machine."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
Color = tuple[int, int, int]

PAPER: Color = (255, 255, 255)
INK: Color = (34, 34, 34)
FAINT: Color = (96, 96, 96)


@lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # noqa: PLC0415  only when something is written

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def line_height(size: int) -> int:
    """Height of every strip of this size, whatever its letters."""
    return sum(font(size).getmetrics())


@lru_cache(maxsize=65536)
def width(text: str, size: int, bold: bool = False) -> int:
    """Width in pixels of one line."""
    return -int(-font(size, bold).getlength(text) // 1)


@lru_cache(maxsize=4096)
def strip(text: str, size: int, bold: bool = False, ink: Color = INK, paper: Color = PAPER) -> Pixels:
    """One line of text on its paper: `height width 3`; cached, as labels come again on every sheet."""
    image = Image.new("RGB", (max(1, width(text, size, bold)), line_height(size)), paper)
    ImageDraw.Draw(image).text((0, 0), text, fill=ink, font=font(size, bold))
    return np.asarray(image)


def wrap(text: str, limit: int, size: int, bold: bool = False) -> list[str]:
    """Lines that are at most `limit` pixels wide; a word that is wider by itself is cut with `…`."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width(longer, size, bold) <= limit:
            lines[-1] = longer
        else:
            lines.append(shorten(word, limit, size, bold))
    return lines


def shorten(text: str, limit: int, size: int, bold: bool = False) -> str:
    """The text itself where it fits, else its beginning and `…`."""
    if width(text, size, bold) <= limit:
        return text
    while text and width(text + "…", size, bold) > limit:
        text = text[:-1]
    return text + "…"


def number(value: float) -> str:
    """Three digits and a true minus sign: `0.0123`, `−4.5`, `1.2e6`.

    Example:
        >>> number(-1234567.0), number(0.5), number(0.0)
        ('−1.23e6', '0.5', '0')
    """
    digits = f"{value:.3g}" if value else "0"
    if "e" in digits:
        head, _, power = digits.partition("e")
        digits = f"{head}e{int(power)}"
    return digits.replace("-", "−")


def contrast(paper: Color) -> Color:
    """Black or white, whichever reads better on this colour; the worse case of the better one is 4.58 : 1."""
    return (0, 0, 0) if luminance(paper) > 0.179 else (255, 255, 255)


def luminance(color: Color) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [c / 255 for c in color]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def put(page: Pixels, piece: Pixels, x: int, y: int) -> None:
    """Lay a piece on the page; whoever composes has made room for it."""
    page[y : y + piece.shape[0], x : x + piece.shape[1]] = piece
