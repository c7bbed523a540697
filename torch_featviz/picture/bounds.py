"""How large a picture may become: at its defaults at most 4,000 pixels a side, whatever it is made of."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_featviz.picture import text
from torch_featviz.picture.tile import grid_columns

SIDE = 4000
CELLS = 3600  # of these, what cells have: the rest is for margins, title, legend and names beside them
MARGIN = 16
LABEL = 11  # size of the letters on a Sheet
_ABOVE = 240  # pixels of height for title, column names and legend, at least
_GAP = 7  # a cell's frame, and what is between two


def room(columns: int, rows: int, lines: int = 1) -> int:
    """Pixels for the longer side of each cell on a grid, with so many lines of text above and below it.

    Example:
        >>> room(10, 10), room(10, 1)
        (338, 353)
    """
    return max(1, min(CELLS // columns - _GAP, CELLS // rows - _GAP - lines * _line()))


def fitting(
    height: int, width: int, words: Iterable[str] = (), *, lines: int = 1, group: int = 1, side: int = SIDE
) -> tuple[int, int]:
    """Rows and columns of many cells that fit on a sheet of this side, one at least.

    Args:
        height: of a cell.
        width: likewise.
        words: the labels and captions, or the longest of them.
        lines: of text above and below a cell.
        group: so many cells side by side are a column.
        side: pixels of the sheet, at most.
    """
    zoom = max(1, -(-48 // max(height, width)))
    high = height * zoom + lines * _line() + _GAP
    wide = max(width * zoom + 2, widest(words) + 8) + _GAP - 2
    wide = group * wide + (10 if group > 1 else 0)
    return max(1, (side - _ABOVE) // high), max(1, (side - 2 * MARGIN) // wide)


def arranged(
    count: int,
    height: int,
    width: int,
    words: Iterable[str] = (),
    *,
    lines: int = 1,
    group: int = 1,
    side: int = SIDE,
) -> tuple[int, int]:
    """How many of so many cells, or groups of cells, a sheet holds, and in how many columns they are about a square.

    Args:
        count: of cells or groups.
        height: as for `fitting`, and so are the others.
        width: likewise.
        words: likewise.
        lines: likewise.
        group: likewise.
        side: likewise.
    Example:
        >>> arranged(9, 8, 8), arranged(10_000, 200, 200)
        ((9, 3), (304, 19))
    """
    rows, columns = fitting(height, width, words, lines=lines, group=group, side=side)
    shown = min(count, rows * columns)
    square = grid_columns(shown, height / (width * group))
    across = square if shown == count else math.ceil(math.sqrt(shown * columns / rows))
    return shown, min(columns, max(across, -(-shown // rows)))


def shrunk(images: Tensor, side: int, ends: tuple[float, float] | None = (0, 1)) -> Tensor:
    """Images at most `side` pixels high and wide: `... h w`, each pixel the mean of an area.

    Images that fit are returned as they are.

    Args:
        images: `n c h w`.
        side: the longer side, at most.
        ends: a value beyond these stays beyond them, so that it is still marked; None for the mean alone.
    Example:
        >>> shrunk(torch.rand(1, 3, 40, 20), 10).shape
        torch.Size([1, 3, 10, 5])
    """
    height, width = images.shape[-2:]
    longest = max(height, width)
    if longest <= side:
        return images
    size = (max(1, height * side // longest), max(1, width * side // longest))
    mean = F.adaptive_avg_pool2d(images, size)
    if ends is None:
        return mean
    high, low = F.adaptive_max_pool2d(images, size), -F.adaptive_max_pool2d(-images, size)
    return torch.where(high > ends[1], high, torch.where(low < ends[0], low, mean))


def fitted(
    images: Tensor, columns: int, rows: int, *, goal: int, lines: int = 2, ends: tuple[float, float] | None = (0, 1)
) -> tuple[Tensor, int, tuple[str, ...]]:
    """Images made smaller where they are large; the zoom at which they are drawn; and what was done, in words.

    Args:
        images: `n c h w`; shrunk where they are at least twice as large as `goal`, or a sheet could not hold them.
        columns: of the sheet.
        rows: likewise.
        goal: pixels, about, of a cell's longer side.
        lines: of text above and below a cell.
        ends: as for `shrunk`.
    Example:
        >>> small, zoom, notes = fitted(torch.zeros(1, 3, 3000, 4000), 3, 1, goal=200)
        >>> small.shape, zoom, notes
        (torch.Size([1, 3, 150, 200]), 1, ('images of 3000 × 4000 pixels are drawn at 150 × 200',))
    """
    longest, most = max(images.shape[2:]), room(columns, rows, lines)
    side = min(longest if longest < 2 * goal else goal, most)
    small = shrunk(images, side, ends)
    return small, max(1, min(round(goal / side), most // side)), drawn_at(images, small)


def drawn_at(before: Tensor, after: Tensor, what: str = "images") -> tuple[str, ...]:
    """In words, that images are drawn smaller than they are."""
    sizes = [f"{x.shape[-2]} × {x.shape[-1]}" for x in (before, after)]
    return () if sizes[0] == sizes[1] else (f"{what} of {sizes[0]} pixels are drawn at {sizes[1]}",)


def named(words: str, limit: int = 300) -> str:
    """A name, shortened so that it leaves room for what it names: at most `limit` pixels."""
    return text.shorten(words, limit, LABEL)


def listed(words: list[str], limit: int = 12) -> str:
    """The first few of many names, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = f" and {len(words) - limit:,} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


def widest(words: Iterable[str]) -> int:
    """Pixels of the longest of some labels."""
    return max((text.width(each, LABEL) for each in words), default=0)


def _line() -> int:
    return text.line_height(LABEL) + 1
