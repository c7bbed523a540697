"""One page out of several pictures: rows below each other, a title above and words below."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from torch_featviz.errors import ShapeError
from torch_featviz.picture import text
from torch_featviz.picture.legend import blank, stack
from torch_featviz.picture.picture import Picture
from torch_featviz.picture.text import FAINT, Pixels, put, strip

_MARGIN, _TITLE, _SUBTITLE, _HEAD, _WORDS = 16, 24, 14, 16, 13


@dataclass(frozen=True, eq=False)
class Poster(Picture):
    """Pictures in rows.

    Args:
        rows: from the top; pictures of a row stand beside each other.
        title: one line, large.
        subtitle: below it.
        head: above the words.
        words: lines below the pictures.
    Raises:
        ShapeError: there is no picture.
    Example:
        >>> from torch_featviz.picture import Sheet
        >>> small = Sheet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
        >>> height, width, _ = Poster(((small, small), (small,)), title="Three").numpy().shape
        >>> height > 2 * small.numpy().shape[0], width == 2 * small.numpy().shape[1]
        (True, True)
    """

    rows: tuple[tuple[Picture, ...], ...]
    title: str = ""
    subtitle: str = ""
    head: str = ""
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not any(self.rows):
            raise ShapeError("a poster needs a picture at least, got none.")

    @cached_property
    def _sheet(self) -> Pixels:
        rows = [_beside([picture.numpy() for picture in row]) for row in self.rows if row]
        wide = max(row.shape[1] for row in rows)
        room = wide - 2 * _MARGIN
        above = _lines((self.title,), room, _TITLE, bold=True) + _lines((self.subtitle,), room, _SUBTITLE)
        below = _lines((self.head,), room, _HEAD, bold=True) + _lines(self.words, room, _WORDS)
        blocks = [*([_inset(stack(above, 4))] if above else []), *rows, *([_inset(stack(below, 5))] if below else [])]
        page = blank(sum(block.shape[0] for block in blocks) + (_MARGIN if below else 0), wide)
        y = 0
        for block in blocks:
            put(page, block, 0, y)
            y += block.shape[0]
        return page


def _lines(words: tuple[str, ...], room: int, size: int, bold: bool = False) -> list[Pixels]:
    wrapped = [line for each in words for line in text.wrap(each, room, size, bold)]
    return [strip(line, size, bold, **({} if bold else {"ink": FAINT})) for line in wrapped]


def _inset(block: Pixels) -> Pixels:
    """With a margin above and to the left."""
    page = blank(block.shape[0] + _MARGIN, block.shape[1] + _MARGIN)
    put(page, block, _MARGIN, _MARGIN)
    return page


def _beside(pieces: list[Pixels]) -> Pixels:
    """Pieces beside each other, aligned at the top."""
    high = max(piece.shape[0] for piece in pieces)
    return np.concatenate([np.pad(p, ((0, high - p.shape[0]), (0, 0), (0, 0)), constant_values=255) for p in pieces], 1)
