"""Filters made by hand: what one convolution does to a picture, before any learning."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from torch_featviz.errors import DtypeError, ShapeError

from .card import ModelCard

SOBEL_X = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
SOBEL_Y = ((-1, -2, -1), (0, 0, 0), (1, 2, 1))
VERTICAL_EDGE = ((-1, 0, 1), (-1, 0, 1), (-1, 0, 1))
_EDGE = np.tile([-1, -1, 1, 1], (4, 1))
FOUR_EDGES = np.stack([_EDGE, -_EDGE, _EDGE.T, -_EDGE.T])


class FilterMaps(NamedTuple):
    """The three stages of a `FilterBank`, each `b k h w`."""

    conv: Tensor
    relu: Tensor
    pool: Tensor


class FilterBank(nn.Module):
    """Convolution without bias, ReLU and 2x2 max-pool: `b 1 h w` to all three stages.

    Args:
        filters: `k h w`, any numbers; the default is four 4x4 edges: dark to light towards the right, left,
            bottom and top.
    Raises:
        ShapeError: `filters` is not `k h w`, or is empty.
        DtypeError: `filters` are not real numbers.
    Example:
        >>> FilterBank([SOBEL_X, SOBEL_Y])(torch.rand(1, 1, 10, 10)).pool.shape
        torch.Size([1, 2, 4, 4])
    """

    def __init__(self, filters: ArrayLike | Tensor = FOUR_EDGES) -> None:
        super().__init__()
        try:
            weight = torch.as_tensor(np.asarray(filters, dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise DtypeError(f"filters must be 'k h w' real numbers, got {filters!r}.") from error
        if weight.ndim != 3 or not weight.numel():
            raise ShapeError(f"filters must be 'k h w' and not empty, got shape {tuple(weight.shape)}.")
        self.conv = nn.Conv2d(1, len(weight), (weight.shape[1], weight.shape[2]), bias=False)
        self.conv.weight = nn.Parameter(weight[:, None].clone())

    def forward(self, images: Tensor) -> FilterMaps:
        conv = self.conv(images)
        relu = F.relu(conv)
        return FilterMaps(conv, relu, F.max_pool2d(relu, 2))


CARDS = (ModelCard("filters", FilterBank, (1, 224, 224), low="conv", middle="conv", high="conv", resize=224),)
