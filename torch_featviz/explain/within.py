"""How much of a heatmap lies within a box or a mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Within(NamedTuple):
    """Of each heatmap: the share of its positive values that lies within, and the share of the image that is within.

    The former is NaN where nothing is positive or a value is not finite. Both are float32.
    """

    share: Tensor
    area: Tensor


def within_boxes(heatmaps: Tensor, boxes: Tensor) -> Within:
    """Each heatmap `n h w` and its box `n 4`: left, top, right and bottom edge; a pixel counts as far as it is covered.

    Example:
        >>> heat = torch.tensor([[[1.0, 2.0, -5.0], [3.0, 4.0, 0.0]]])
        >>> [figures.tolist() for figures in within_boxes(heat, torch.tensor([[1.0, 0.5, 3.0, 2.0]]))]
        [[0.5], [0.5]]
    """
    left, top, right, bottom = boxes.to(heatmaps.device, torch.float64).unbind(1)
    height, width = heatmaps.shape[1:]
    down, across = _covered(top, bottom, height), _covered(left, right, width)
    shares = heatmaps.new_empty(len(heatmaps))
    for i, heat in enumerate(heatmaps):  # one at a time: images of detectors are large
        red = heat.double().clamp(min=0)
        shares[i] = down[i] @ red @ across[i] / red.sum()
    return Within(shares, (down.mean(1) * across.mean(1)).float())


def within_masks(heatmaps: Tensor, masks: Tensor) -> Within:
    """Each heatmap `n h w` and its mask `n h w` bool, of any size: at each pixel the nearest of the mask counts."""
    shares = heatmaps.new_empty(len(heatmaps))
    masks = masks.to(heatmaps.device)
    for i, heat in enumerate(heatmaps):
        red = heat.double().clamp(min=0)
        mask = F.interpolate(masks[i, None, None].double(), red.shape, mode="nearest-exact")[0, 0]
        shares[i] = (mask * red).sum() / red.sum()
    return Within(shares, masks.flatten(1).double().mean(1).float())


def _covered(low: Tensor, high: Tensor, side: int) -> Tensor:
    """The share of each pixel along one axis that lies between two edges: `n` and `n -> n side`."""
    edges = torch.arange(side + 1, device=low.device, dtype=low.dtype)
    return (high[:, None].minimum(edges[1:]) - low[:, None].maximum(edges[:-1])).clamp(min=0)
