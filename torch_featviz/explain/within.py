"""How much of a heatmap lies within a box or a mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Within(NamedTuple):
    """Of each heatmap: the share of its positive values that lies within, and the share of the image that is within.

    The former is NaN where nothing is positive or a value is not finite. Both are of the heatmaps' dtype.
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
    left, top, right, bottom = boxes.to(heatmaps).unbind(1)
    height, width = heatmaps.shape[1:]
    down, across = _covered(top, bottom, height), _covered(left, right, width)
    shares = heatmaps.new_empty(len(heatmaps))
    for i, heat in enumerate(heatmaps):  # one at a time: images of detectors are large
        red = _red(heat)
        shares[i] = down[i] @ red @ across[i] / red.sum()
    return Within(shares, down.mean(1) * across.mean(1))


def within_masks(heatmaps: Tensor, masks: Tensor) -> Within:
    """Each heatmap `n h w` and its mask `n h w` bool, of any size: at each pixel the nearest of the mask counts."""
    shares, areas = (heatmaps.new_empty(len(heatmaps)) for _ in range(2))
    for i, heat in enumerate(heatmaps):
        red = _red(heat)
        mask = F.interpolate(masks[i, None, None].to(red), red.shape, mode="nearest-exact")[0, 0]
        shares[i], areas[i] = (mask * red).sum() / red.sum(), mask.mean()
    return Within(shares, areas)


def _red(heat: Tensor) -> Tensor:
    """What is positive; NaN where a value is not finite, and then so is every share."""
    return torch.where(heat.isfinite(), heat.clamp(min=0), torch.nan)


def _covered(low: Tensor, high: Tensor, side: int) -> Tensor:
    """The share of each pixel along one axis that lies between two edges: `n` and `n -> n side`."""
    edges = torch.arange(side + 1, device=low.device, dtype=low.dtype)
    return (high[:, None].minimum(edges[1:]) - low[:, None].maximum(edges[:-1])).clamp(min=0)
