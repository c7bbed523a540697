"""How much of a heatmap lies within a box or a mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def covered_by_box(boxes: Tensor, heatmaps: Tensor) -> Tensor:
    """The share of each pixel that a box covers: `n 4` and `n h w -> n h w`, float64.

    Example:
        >>> covered_by_box(torch.tensor([[0.5, 0.0, 2.0, 1.0]]), torch.zeros(1, 2, 3))[0].tolist()
        [[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    left, top, right, bottom = boxes.to(heatmaps.device, torch.float64)[..., None].unbind(1)
    along = []
    for low, high, side in zip((top, left), (bottom, right), heatmaps.shape[1:], strict=True):
        edges = torch.arange(side + 1, device=heatmaps.device, dtype=torch.float64)
        along.append((high.minimum(edges[1:]) - low.maximum(edges[:-1])).clamp(min=0))
    return along[0][:, :, None] * along[1][:, None, :]


def covered_by_mask(masks: Tensor, heatmaps: Tensor) -> Tensor:
    """Whether a mask of any size covers each pixel; the nearest of the mask counts: `... h w -> ... h w`, float64."""
    size = heatmaps.shape[-2:]
    larger = F.interpolate(masks.flatten(0, -3)[:, None].to(heatmaps.device, torch.float64), size, mode="nearest-exact")
    return larger.view(*masks.shape[:-2], *size)


def share_within(heatmaps: Tensor, covers: Tensor) -> Tensor:
    """The share of the positive values that is covered: `... h w -> ...`, float32; NaN where none is positive."""
    positive = heatmaps.clamp(min=0).double()
    return ((positive * covers).flatten(-2).sum(-1) / positive.flatten(-2).sum(-1)).float()
