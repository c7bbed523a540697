"""Masks of a segmenter in pictures of heatmaps: their edges, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_featviz.explain import Reason, Reasons
from torch_featviz.explain.within import within_masks
from torch_featviz.picture import enlarge, rgb

EXPLAINED = "the class with the most pixels, the background last"
NOTE = "a class is explained over its mask, whose edge is the black and white line"
WITHIN = "within: share of the red that lies in the {}"


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


def within_words(share: float) -> str:
    """Which share of what speaks for an answer lies within its box or mask, in words.

    Example:
        >>> within_words(0.812), within_words(math.nan)
        ('81 % within', '– within')
    """
    return "– within" if math.isnan(share) else f"{100 * share:.0f} % within"


def captions_over(why: Reasons, reason: Reason, k: int, verdicts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Captions of the k-th class explained: the share of pixels that it has, that of red within, and the verdict there.

    Args:
        why: of all methods.
        reason: of one of them; without masks nothing is added to the verdicts.
        k: which class.
        verdicts: in words, of the images that have such pixels; empty where none was measured.
        names: of all classes.
    """
    if reason.masks is None:
        return list(verdicts)
    captions, words = [], iter(verdicts)
    within = within_masks(reason.heatmaps[:, k], reason.masks[:, k]).share.tolist()
    for image, here in enumerate(reason.explained[:, k].tolist()):
        c = int(why.classes[image, k])
        share = f"{100 * float(why.probabilities[image, c]):.1f} % of pixels, {within_words(within[image])}"
        captions.append(f"{share}\n{next(words, '')}".strip() if here else f"no pixel of {names[c]!r}")
    return captions


def bare(overlays: Tensor, units: Tensor, reason: Reason) -> Tensor:
    """Overlays `b k 3 h w`, with the image itself where there is nothing to explain."""
    here = reason.explained.to(overlays.device)[..., None, None, None]
    return torch.where(here, overlays, rgb(units).to(overlays.device)[:, None])
