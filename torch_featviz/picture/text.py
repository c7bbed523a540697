"""Text as pixels, with the typeface that matplotlib bundles: the same bytes on every machine.

What that one lacks is taken from typefaces of the machine.
"""

import bisect
import math
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from torch_featviz.picture import direction, faces, letters
from torch_featviz.picture.faces import Face

Pixels = npt.NDArray[np.uint8]
_NO_CONTROL = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*")
Color = tuple[int, int, int]

_LABEL = 32  # letters: what is no longer stands on many sheets, as labels do; a longer line is often of one sheet
_MOST = 60  # lines of a text
_ROUNDING = 1.01 * 2.0**-17  # of a value: a range that is no wider was made of one value

PAPER: Color = (255, 255, 255)
INK: Color = (34, 34, 34)
FAINT: Color = (96, 96, 96)


@lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(faces.bundled(bold).path, size, layout_engine=ImageFont.Layout.BASIC)


def line_height(size: int) -> int:
    """Height of every strip of this size, whatever its letters."""
    return sum(font(size).getmetrics())


@lru_cache(maxsize=4096)
def width(text: str, size: int, bold: bool = False) -> int:
    """Width in pixels of one line."""
    if _is_plain(text, bold):
        return -int(-font(size, bold).getlength(text) // 1)
    return sum(_extent(run, size)[1] for run in _runs(text, bold))


def strip(text: str, size: int, bold: bool = False, ink: Color = INK, paper: Color = PAPER) -> Pixels:
    """One line of text on its paper: `height width 3`; labels are cached, as they come again on every sheet.

    Letters of all scripts stand in their own direction, in the typeface that has them; a line break becomes `↵`.
    """
    return (_label if len(text) <= _LABEL else _line)(text, size, bold, ink, paper)


def _line(text: str, size: int, bold: bool, ink: Color, paper: Color) -> Pixels:
    image = Image.new("RGB", (max(1, width(text, size, bold)), line_height(size)), paper)
    if _is_plain(text, bold):
        ImageDraw.Draw(image).text((0, 0), text, fill=ink, font=font(size, bold))
        return np.asarray(image)
    x = 0
    for run in _runs(text, bold):
        piece = _draw(run, size, ink, paper)
        image.paste(piece, (x, 0))
        x += piece.width
    return np.asarray(image)


_label = lru_cache(maxsize=1024)(_line)  # a few kB each


class _Run(NamedTuple):
    """Letters of one typeface and one direction."""

    letters: str
    face: Face
    rightward: bool
    beside: str  # all letters of the line in this typeface: they stand on one baseline

    @property
    def usual(self) -> bool:
        return self.rightward and self.face in (faces.bundled(), faces.bundled(bold=True))

    @property
    def direction(self) -> str | None:
        if self.usual or not faces.SHAPES:
            return None
        return "ltr" if self.rightward else "rtl"


def _is_plain(text: str, bold: bool) -> bool:
    """Whether the bundled typeface has all that is written, from left to right."""
    if text.isascii():
        return text.isprintable()
    return bool(_NO_CONTROL.fullmatch(text)) and direction.is_rightward(text) and faces.has(faces.bundled(bold), text)


@lru_cache(maxsize=256)
def _runs(text: str, bold: bool) -> list[_Run]:
    """Runs from left to right as they stand on paper."""
    line = faces.legible(text, bold=bold)
    language, levels, at = letters.language(line), direction.levels(line), 0
    keys: list[tuple[Face, int]] = []
    parts: list[str] = []
    for cluster in letters.clusters(line):
        face = faces.face_of(cluster, language, bold) or faces.bundled(bold)
        if keys and keys[-1] == (face, levels[at]):
            parts[-1] += cluster
        else:
            keys.append((face, levels[at]))
            parts.append(cluster)
        at += len(cluster)
    beside: dict[Face, list[str]] = {}
    for part, (face, _) in zip(parts, keys, strict=True):
        beside.setdefault(face, []).append(part)
    runs = []
    for part, (face, level) in zip(parts, keys, strict=True):
        words = part if faces.SHAPES or level % 2 == 0 else direction.mirrored(part, partial(faces.has, face))
        runs.append(_Run(words, face, level % 2 == 0, "".join(beside[face])))
    return direction.in_sight(runs, [level for _, level in keys])


@lru_cache(maxsize=256)
def _fitted(run: _Run, size: int) -> tuple[ImageFont.FreeTypeFont, int]:
    """The typeface of a run, as large as a line of this size has room for, and where its baseline stands."""
    up, down = font(size).getmetrics()
    if run.usual:
        return font(size, run.face == faces.bundled(bold=True)), up
    largest = size if run.face.family == faces.bundled().family else size + 1  # most are smaller than the bundled one
    for smaller in range(largest, size // 2, -1):
        found = faces.opened(run.face, smaller)
        box = found.getbbox(run.beside, anchor="ls", direction=run.direction)
        top, bottom = math.floor(box[1]), math.ceil(box[3])
        if bottom - top <= up + down:
            break
    if found.size > size + 1:  # a picture, which is made smaller
        return found, round(up / _shrink(found, size))
    return found, min(max(up, -top), up + down - bottom)


def _extent(run: _Run, size: int) -> tuple[int, int]:
    """How far ink reaches to the left of its place, and the width of the whole, in pixels of the typeface and here."""
    found, _ = _fitted(run, size)
    if run.usual:
        return 0, -int(-found.getlength(run.letters) // 1)
    left, _, right, _ = found.getbbox(run.letters, anchor="ls", direction=run.direction)
    left = min(0, math.floor(left))
    length = max(right, found.getlength(run.letters, direction=run.direction)) - left
    return left, math.ceil(length * _shrink(found, size))


def _shrink(found: ImageFont.FreeTypeFont, size: int) -> float:
    """Pictures of letters come in one size."""
    return 1 if found.size <= size + 1 else (line_height(size) - 1) / sum(found.getmetrics())


def _draw(run: _Run, size: int, ink: Color, paper: Color) -> Image.Image:
    """A run on its paper, as high as its line."""
    (found, baseline), (left, wide) = _fitted(run, size), _extent(run, size)
    shrink, high = _shrink(found, size), line_height(size)
    image = Image.new("RGB", (round(wide / shrink), round(high / shrink)), paper)
    ImageDraw.Draw(image).text(
        (-left, baseline),
        run.letters,
        fill=ink,
        font=found,
        anchor="ls",
        direction=run.direction,
        embedded_color=True,
    )
    return image if shrink == 1 else image.resize((wide, high), Image.Resampling.BOX)


def wrap(text: str, limit: int, size: int, bold: bool = False) -> list[str]:
    """Lines of at most `limit` pixels, broken between words, or letters where a script has no spaces; at most 60, the
    last of which is then `…`.
    """
    lines = list(islice(_wrapped(text, limit, size, bold), _MOST + 1))
    return lines if len(lines) <= _MOST else [*lines[: _MOST - 1], "…"]


def _wrapped(text: str, limit: int, size: int, bold: bool) -> Iterator[str]:
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            for i, piece in enumerate(letters.pieces(word)):
                longer = f"{line} {piece}" if line and i == 0 else line + piece
                if line and width(longer, size, bold) > limit:
                    yield line
                    longer = piece
                line = longer if len(longer) > len(piece) else shorten(piece, limit, size, bold)
        if line:
            yield line


def shorten(text: str, limit: int, size: int, bold: bool = False, *, ending: float = 0.5) -> str:
    """The beginning and the end of a text around `…`, where it is wider than `limit` pixels; in constant time.

    Args:
        text: one line.
        limit: pixels.
        size: of its letters.
        bold: as it will be drawn.
        ending: share of the letters that are kept which stand after `…`; 1 keeps the end alone.
    Example:
        >>> shorten("golden retriever", 70, 12), shorten("golden retriever", 70, 12, ending=1)
        ('gold…ever', '… retriever')
    """
    room = 64 + 4 * limit  # letters: no text that is longer can fit
    if len(text) <= room and width(text, size, bold) <= limit:
        return text
    head, tail = list(letters.clusters(text[:room])), list(letters.clusters(text[-room:]))
    head, tail = (head, tail) if len(text) <= room else (head[:-1], tail[1:])  # these may be cut

    def cut(count: int) -> str:
        end = int(count * ending)
        return "".join([*head[: count - end], "…", *tail[len(tail) - end :]])

    kept = bisect.bisect(range(1, len(head)), limit, key=lambda count: width(cut(count), size, bold))
    while kept and width(cut(kept), size, bold) > limit:  # letters that join may be narrower than fewer of them
        kept -= 1
    return cut(kept)


def number(value: float, places: int = 3) -> str:
    """Write a number with three digits, or `places` digits, and a true minus sign: `0.0123`, `−4.5`, `1.2e6`.

    Example:
        >>> number(-1234567.0), number(0.5), number(0.0)
        ('−1.23e6', '0.5', '0')
    """
    digits = f"{value:.{places}g}" if value else "0"
    if "e" in digits:
        head, _, power = digits.partition("e")
        digits = f"{head}e{int(power)}"
    return digits.replace("-", "−")


def ends(low: float, high: float) -> tuple[str, str]:
    """Both ends of a range in so many digits, three at least, that they are told apart, if more than rounding does.

    Example:
        >>> ends(100.0, 100.01), ends(0.0, 2.0), ends(5.0, 5.00001)
        (('100', '100.01'), ('0', '2'), ('5', '5'))
    """
    words = number(low), number(high)
    if words[0] == words[1] and high - low > _ROUNDING * max(abs(low), abs(high)):
        words = next(
            ((a, b) for places in range(4, 8) if (a := number(low, places)) != (b := number(high, places))), words
        )
    return words


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
