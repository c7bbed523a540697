"""Stack: sheets below each other, as rows of one picture."""

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from torch_featviz.errors import ShapeError
from torch_featviz.picture import text
from torch_featviz.picture.bounds import MARGIN
from torch_featviz.picture.legend import Legend, blank, draw, stack
from torch_featviz.picture.picture import Picture
from torch_featviz.picture.sheet import NARROWEST, TITLE, Sheet, _Grid
from torch_featviz.picture.text import Pixels, put, strip

_GAP = 16


@dataclass(frozen=True, eq=False)
class Stack(Picture):
    """Sheets below each other under one title, with one legend; titles and legends of their own are left out.

    Args:
        parts: top to bottom.
        legend: of all of them.
        title: above everything.
    Raises:
        ShapeError: there is no part.
    Example:
        >>> part = Sheet(torch.zeros(4, 3, 1, 1, dtype=torch.uint8), ncols=2)
        >>> Stack((part, part)).pixels.shape
        torch.Size([3, 7, 3])
    """

    parts: tuple[Sheet, ...]
    legend: Legend = field(default_factory=Legend)
    title: str = ""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ShapeError("a stack must have at least one part, got none.")

    @property
    def pixels(self) -> Tensor:
        """The parts' cells below each other, one pixel apart; what is right of a narrower part is white."""
        drawn = [part.pixels for part in self.parts]
        height, width = sum(x.shape[1] + 1 for x in drawn) - 1, max(x.shape[2] for x in drawn)
        page, y = drawn[0].new_full((3, height, width), 255), 0
        for x in drawn:
            page[:, y : y + x.shape[1], : x.shape[2]] = x
            y += x.shape[1] + 1
        return page

    @cached_property
    def _sheet(self) -> Pixels:
        grids = [_Grid(part) for part in self.parts]
        wide = max(NARROWEST, *(grid.width for grid in grids))
        blocks = [strip(line, TITLE, bold=True) for line in text.wrap(self.title, wide, TITLE, bold=True)]
        blocks = [stack(blocks, gap=0)] if blocks else []
        for grid in grids:
            blocks.append(blank(grid.height, grid.width))
            grid.draw(blocks[-1])
        foot = draw(self.legend, wide)
        inner = stack([*blocks, *([foot] if foot.size else [])], gap=_GAP)
        page = blank(inner.shape[0] + 2 * MARGIN, wide + 2 * MARGIN)
        put(page, inner, MARGIN, MARGIN)
        return page
