"""How large a picture may become: at its defaults at most 4,000 pixels a side, whatever it is made of."""

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_featviz.picture import text

SIDE = 4000
_REST = 400  # margins, title, legend and names beside the cells
_AROUND = 22  # a cell's frame, gap and label
_LABEL = 11  # size of the letters, as on a Sheet


def room(cells: int) -> int:
    """Pixels for each of so many cells beside or below each other.

    Example:
        >>> room(10), room(1)
        (338, 3578)
    """
    return max(1, (SIDE - _REST) // cells - _AROUND)


def shrunk(units: Tensor, side: int) -> Tensor:
    """Images at most `side` pixels high and wide: `... h w`, each pixel the mean of an area.

    A value outside of 0 and 1 stays outside, so that it is still marked. Images that fit are returned as they are.

    Args:
        units: `n c h w` on the unit range.
        side: the longer side, at most.
    Example:
        >>> shrunk(torch.rand(1, 3, 40, 20), 10).shape
        torch.Size([1, 3, 10, 5])
    """
    height, width = units.shape[-2:]
    longest = max(height, width)
    if longest <= side:
        return units
    size = (max(1, height * side // longest), max(1, width * side // longest))
    mean, high, low = (
        F.adaptive_avg_pool2d(units, size),
        F.adaptive_max_pool2d(units, size),
        -F.adaptive_max_pool2d(-units, size),
    )
    return torch.where(high > 1, high, torch.where(low < 0, low, mean))


def drawn_at(before: Tensor, after: Tensor, what: str = "images") -> tuple[str, ...]:
    """In words, that images are drawn smaller than they are."""
    sizes = [f"{x.shape[-2]} × {x.shape[-1]}" for x in (before, after)]
    return () if sizes[0] == sizes[1] else (f"{what} of {sizes[0]} pixels are drawn at {sizes[1]}",)


def named(words: str, limit: int = 300) -> str:
    """A name, shortened so that it leaves room for what it names: at most `limit` pixels."""
    return text.shorten(words, limit, _LABEL)


def listed(words: list[str], limit: int = 12) -> str:
    """The first few of many names, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = f" and {len(words) - limit:,} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
