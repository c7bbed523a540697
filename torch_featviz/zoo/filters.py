"""Hand-made filters: one convolution without any training."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from torch_featviz.errors import DtypeError, ShapeError
from torch_featviz.gate import check_tensor
from torch_featviz.model.inputs import as_batch

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
    """Convolution without bias, ReLU and 2x2 max-pool: `b 1 h w` or `b 3 h w` to all three stages.

    On a colour image each filter is applied to red, green and blue, and the three results are summed, as by a
    convolution with the same kernel for each channel.

    Args:
        filters: `k h w`, any numbers, or `k c h w` with one kernel per image channel. Default: four 4x4 edge filters,
            dark to light towards the right, left, bottom and top.
    Raises:
        ShapeError: `filters` has other axes or is empty; or images have other channels or are smaller than the filters.
        DtypeError: `filters` are not real numbers, or images not a dense tensor of floats.
    Example:
        >>> bank = FilterBank([SOBEL_X, SOBEL_Y])
        >>> bank(torch.rand(1, 1, 10, 10)).pool.shape, bank(torch.rand(3, 10, 10)).conv.shape
        (torch.Size([1, 2, 4, 4]), torch.Size([1, 2, 8, 8]))
    """

    def __init__(self, filters: ArrayLike | Tensor = FOUR_EDGES) -> None:
        super().__init__()
        weight = _weight(filters)
        if weight.ndim not in (3, 4) or not weight.numel():
            raise ShapeError(f"filters must be 'k h w' or 'k c h w' and not empty, got shape {tuple(weight.shape)}.")
        weight = weight if weight.ndim == 4 else weight[:, None]
        k, channels, height, width = weight.shape
        self.conv = nn.Conv2d(channels, k, (height, width), bias=False)
        self.conv.weight = nn.Parameter(weight.clone())

    def forward(self, images: Tensor) -> FilterMaps:
        conv = self.conv(self._taken(images))
        relu = F.relu(conv)
        return FilterMaps(conv, relu, F.max_pool2d(relu, 2))

    def _taken(self, images: Tensor) -> Tensor:
        """`b c h w` with the channels of the filters."""
        images, channels = as_batch(images), self.conv.in_channels
        _, given, height, width = images.shape
        wanted = (1, 3) if channels == 1 else (channels,)
        if given not in wanted:
            expected = " or ".join(map(str, wanted))
            raise ShapeError(
                f"images must have {expected} channels for these filters, got shape {tuple(images.shape)}."
            )
        least = tuple(side + 1 for side in self.conv.kernel_size)  # so that there is something to pool
        if height < least[0] or width < least[1]:
            raise ShapeError(
                f"images must be at least {least[0]} × {least[1]} for these filters, got {height} × {width}."
            )
        return images if given == channels else images.sum(1, keepdim=True)  # the sum of answers is the answer to it


def _weight(filters: Any) -> Tensor:
    """Any real numbers as float32."""
    if isinstance(filters, Tensor):
        check_tensor("filters", filters)
        filters = filters.detach()
    try:
        if np.iscomplexobj(filters) or (isinstance(filters, Tensor) and filters.is_complex()):
            raise TypeError  # an imaginary part would be dropped
        return torch.as_tensor(filters if isinstance(filters, Tensor) else np.asarray(filters, np.float32)).float()
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise DtypeError(f"filters must be 'k h w' real numbers, got {filters!r:.80}.") from error


CARDS = (ModelCard("filters", FilterBank, (1, 224, 224), low="conv", middle="conv", high="conv", resize=224),)
