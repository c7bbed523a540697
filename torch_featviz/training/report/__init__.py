"""How a training went, on one page: scalars on top, then a row a layer, and what was found below."""

from .columns import weight_of
from .histograms import on_one_grid
from .page import report

__all__ = ["on_one_grid", "report", "weight_of"]
