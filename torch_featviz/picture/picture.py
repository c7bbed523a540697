"""Picture: pixels, and the ways to save and show them."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torch_featviz.displayed import Displayed, shortened, within
from torch_featviz.errors import DtypeError, OptionError
from torch_featviz.files import write_whole
from torch_featviz.gate import gated
from torch_featviz.picture import png
from torch_featviz.picture.figures import make_legible
from torch_featviz.picture.text import Pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Picture(ABC, Displayed):
    """The result of every view: save it, show it in a notebook, log it, or draw on it."""

    @property
    def pixels(self) -> Tensor:
        """The coloured data without title and legend, `3 H W` uint8; the whole picture if it has several grids."""
        return torch.from_numpy(self.numpy()).permute(2, 0, 1)

    def figure(self) -> "Figure":
        """A matplotlib Figure, with axes, title and colour bar if it is one grid; no window, no pyplot.

        A picture of several parts is drawn as one image.
        """
        from matplotlib.figure import Figure  # noqa: PLC0415  no matplotlib on import

        height, width, _ = self._sheet.shape
        figure = Figure(figsize=(width / 100, height / 100), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(self._sheet, interpolation="nearest")
        axes.set_axis_off()
        return figure

    @cached_property
    @abstractmethod
    def _sheet(self) -> Pixels: ...

    def numpy(self) -> Pixels:
        """The whole picture with title and legend, `H W 3` uint8, as loggers take it; a copy."""
        return np.array(self._sheet)

    def png(self) -> bytes:
        """The whole picture as PNG bytes; the same picture gives the same bytes."""
        return png.encode(self._sheet)

    @gated
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save the picture as PNG; the file is complete or not written.

        Args:
            path: ends in `.png`; missing folders are made.
        Returns:
            The path.
        Raises:
            OptionError: `path` does not end in `.png`.
            FileError: it cannot be written; no part of it is left.
        """
        if Path(path).suffix.lower() != ".png":
            raise OptionError(f"path must end in '.png', got {str(path)!r}.")
        return write_whole(path, self.png())

    def __repr__(self) -> str:
        return within(f"{type(self).__name__}(", [repr(shortened(str(getattr(self, "title", "")), 120))], ")")

    def _repr_png_(self) -> bytes:
        return self.png()

    def _repr_html_(self) -> None:
        """Nothing: it is a picture."""


@dataclass(frozen=True, eq=False, repr=False)
class Chart(Picture):
    """A matplotlib Figure as a Picture; it is drawn once, on first use.

    Raises:
        DtypeError: `chart` is no Figure.
    """

    chart: "Figure"

    def __post_init__(self) -> None:
        if not hasattr(self.chart, "axes"):
            raise DtypeError(f"chart must be a matplotlib Figure, got {type(self.chart).__name__}.")

    def figure(self) -> "Figure":
        return make_legible(self.chart)

    @cached_property
    def _sheet(self) -> Pixels:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  no matplotlib on import

        canvas: Any = FigureCanvasAgg(make_legible(self.chart))
        canvas.draw()
        return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
