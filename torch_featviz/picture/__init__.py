"""Tensors in, pixels out: scales, grids, colours and pictures."""

from torch_featviz.picture.color import Counts, colorize, count, reserved, rgb
from torch_featviz.picture.legend import Legend
from torch_featviz.picture.overlay import overlay
from torch_featviz.picture.picture import Chart, Picture
from torch_featviz.picture.poster import Poster
from torch_featviz.picture.scale import KernelNormalizer, Scale, normalize
from torch_featviz.picture.sheet import Sheet, paint
from torch_featviz.picture.stack import Stack
from torch_featviz.picture.text import number
from torch_featviz.picture.tile import GridTiler, enlarge, grid_columns, tile, untile

__all__ = [
    "Chart",
    "Counts",
    "GridTiler",
    "KernelNormalizer",
    "Legend",
    "Picture",
    "Poster",
    "Scale",
    "Sheet",
    "Stack",
    "colorize",
    "count",
    "enlarge",
    "grid_columns",
    "normalize",
    "number",
    "overlay",
    "paint",
    "reserved",
    "rgb",
    "tile",
    "untile",
]
