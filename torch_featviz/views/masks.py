"""Masks of a segmenter in pictures of heatmaps: their edges, and what is said of them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from torch_featviz.explain import Reasons
from torch_featviz.picture import enlarge

EXPLAINED = "the class with the most pixels, the background last"
NOTE = "a class is explained over its mask, whose edge is the black and white line"


def outlined(overlays: Tensor, masks: Tensor, zoom: int) -> Tensor:
    """Larger overlays with the edge of a mask: its outermost pixels are black, and those around it white.

    Args:
        overlays: `b k 3 h w` uint8; they are copied.
        masks: `b k h w` bool, of any size; the nearest pixel counts.
        zoom: how many times larger; lines are one pixel wide.
    Example:
        >>> mask = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
        >>> mask[..., 2, 2] = True
        >>> outlined(torch.full((1, 1, 3, 5, 5), 9, dtype=torch.uint8), mask, 1)[0, 0, 0, 2].tolist()
        [9, 255, 0, 255, 9]
    """
    larger = enlarge(overlays, zoom)
    size = larger.shape[3:]
    within = F.interpolate(masks.flatten(0, 1)[:, None].float(), size, mode="nearest-exact").to(larger.device)
    within = within.view(*larger.shape[:2], 1, *size)
    outer, inner = (sign * F.max_pool2d(sign * within[:, :, 0], 3, 1, 1)[:, :, None] for sign in (1, -1))
    return larger.masked_fill(within > inner, 0).masked_fill(outer > within, 255)


def shares_of(why: Reasons, k: int) -> list[str]:
    """The share of each image's pixels that the k-th class explained has there."""
    return [f"{100 * float(why.probabilities[i, c]):.1f} % of pixels" for i, c in enumerate(why.classes[:, k].tolist())]
