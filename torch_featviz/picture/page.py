"""Page: several pictures side by side as one."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_featviz.errors import ShapeError
from torch_featviz.picture import text
from torch_featviz.picture.legend import blank
from torch_featviz.picture.picture import Picture
from torch_featviz.picture.text import Pixels, put, strip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARGIN, _TITLE = 16, 16


@dataclass(frozen=True, eq=False)
class Page(Picture):
    """Pictures side by side, their tops on one line, under one title.

    Args:
        parts: left to right.
        title: one line or more, above all of them.
    Raises:
        ShapeError: there is no part.
    Example:
        >>> from torch_featviz.picture import Sheet
        >>> part = Sheet(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
        >>> Page((part, part)).numpy().shape[1] == 2 * part.numpy().shape[1]
        True
    """

    parts: tuple[Picture, ...]
    title: str = ""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ShapeError("a page must have at least one part, got none.")

    @property
    def pixels(self) -> Tensor:
        """The whole page, as its parts are."""
        return torch.from_numpy(self.numpy()).permute(2, 0, 1)

    def figure(self) -> "Figure":
        """The page as it is, on axes without marks."""
        from matplotlib.figure import Figure  # noqa: PLC0415  no matplotlib on import

        page = self._sheet
        figure = Figure(figsize=(page.shape[1] / 100, page.shape[0] / 100), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(page, interpolation="nearest")
        axes.set_axis_off()
        return figure

    @cached_property
    def _sheet(self) -> Pixels:
        sheets = [part.numpy() for part in self.parts]
        wide = sum(sheet.shape[1] for sheet in sheets)
        head = [strip(line, _TITLE, bold=True) for line in text.wrap(self.title, wide - 2 * _MARGIN, _TITLE, bold=True)]
        top = sum(line.shape[0] for line in head)
        top += _MARGIN if head else 0
        page = blank(top + max(sheet.shape[0] for sheet in sheets), wide)
        y = _MARGIN
        for line in head:
            put(page, line, _MARGIN, y)
            y += line.shape[0]
        x = 0
        for sheet in sheets:
            put(page, sheet, x, top)
            x += sheet.shape[1]
        return page
