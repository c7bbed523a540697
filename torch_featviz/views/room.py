"""How large images may be drawn, so that a sheet stays within 4,000 pixels a side."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

_SIDE, _MARGINS = 4000, 700  # pixels of a sheet, and what titles, row labels and legends take of it
_BETWEEN = 44  # pixels from one cell to the next, with a label and a caption


def fitted(images: Tensor, columns: int, rows: int, *, goal: int) -> tuple[Tensor, int, tuple[str, ...]]:
    """Images made smaller where they are large; the zoom at which they are drawn; and what was done, in words.

    Args:
        images: `n c h w` floats; averaged over squares of pixels where they are at least twice as large as `goal`, or
            a sheet could not hold them.
        columns: of the sheet.
        rows: likewise.
        goal: pixels, about, of a cell's longer side.
    Example:
        >>> small, zoom, notes = fitted(torch.zeros(1, 3, 3000, 4000), 3, 1, goal=200)
        >>> small.shape, zoom, notes
        (torch.Size([1, 3, 150, 200]), 1, ('images are drawn at 1/20 of their size',))
    """
    height, width = images.shape[2:]
    wide, high = ((_SIDE - _MARGINS) // n - _BETWEEN for n in (columns, rows))
    factor = max(1, math.ceil(width / wide), math.ceil(height / high), max(height, width) // goal)
    if factor > 1:
        images = F.avg_pool2d(images, factor, ceil_mode=True)
        return images, 1, (f"images are drawn at 1/{factor} of their size",)
    zoom = min(round(goal / max(height, width)), wide // width, high // height)
    return images, max(1, zoom), ()
