"""What attention weights say: rollout over layers, how far a head looks, over how many places it spreads."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.model.layout import Layout


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Multiply the attention of all layers: how much of each token is in each token of the last layer.

    Of each layer: the mean over heads, plus the identity for the residual connection, each row divided by its sum. It
    knows neither the values that the weights multiply, nor the class.

    Args:
        weights: of each layer, first to last, `b heads n n` or their mean over heads `b n n`; rows are queries.
    Returns:
        `b n n`; each row sums to 1.
    Raises:
        OptionError: there is no layer.
        ShapeError: a layer has other axes, or its number of tokens is not that of the layer before.
    Example:
        >>> rollout([torch.full((1, 2, 3, 3), 1 / 3)] * 2)[0]
        tensor([[0.5000, 0.2500, 0.2500],
                [0.2500, 0.5000, 0.2500],
                [0.2500, 0.2500, 0.5000]])

    Reference: Abnar & Zuidema 2020.
    """
    if not weights:
        raise OptionError("rollout needs the attention of at least one layer, got none.")
    product = torch.empty(0, device="cpu")
    for i, layer in enumerate(weights):
        if layer.dim() not in (3, 4) or layer.shape[-1] != layer.shape[-2]:
            raise ShapeError(
                f"attention must be 'b heads n n', as many queries as keys; layer {i} has shape {tuple(layer.shape)}."
            )
        if i and layer.shape[-1] != product.shape[-1]:
            raise ShapeError(
                f"rollout needs the same tokens in all layers: layer {i} has {layer.shape[-1]}, those before it "
                f"{product.shape[-1]}; choose layers of one size."
            )
        mean = layer.mean(1) if layer.dim() == 4 else layer
        mixed = mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        mixed = mixed / mixed.sum(-1, keepdim=True)
        product = mixed @ product if i else mixed
    return product


def distances(weights: Tensor, layout: Layout, size: tuple[int, int]) -> Tensor:
    """The mean distance, in pixels of the image, over which each head attends: `b heads n n -> heads`.

    The distance between the centres of two places, averaged over all pairs of places and all images, weighted by
    attention. Tokens without a place are left out. NaN where a head attends to no place.

    Args:
        weights: rows are queries.
        layout: of the tokens, with a grid of rows and columns.
        size: of the image, rows and columns.
    Example:
        >>> weights = torch.tensor([[0.5, 0.5], [0.0, 1.0]])[None, None]
        >>> distances(weights, Layout(grid=(1, 2)), (16, 32))
        tensor([4.], dtype=torch.float64)

    Reference: Dosovitskiy et al. 2021, fig. 11; Raghu et al. 2021.
    """
    places = slice(layout.prefix, layout.prefix + prod(layout.grid))
    between = weights[..., places, places].sum(0, dtype=torch.float64)
    apart = distance_table(layout.grid, size).to(between.device)
    return (between * apart).sum((-1, -2)) / between.sum((-1, -2))


def distance_table(grid: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """The distance between the centres of each two places, in pixels of the image: `n n`, float64.

    Example:
        >>> distance_table((1, 3), (16, 48))[0]
        tensor([ 0., 16., 32.], dtype=torch.float64)
    """
    rows, columns = (
        torch.arange(count, dtype=torch.float64, device="cpu") * (pixels / count)
        for count, pixels in zip(grid, size, strict=True)
    )
    centres: Tensor = torch.cartesian_prod(rows, columns)
    apart: Tensor = (centres[:, None] - centres[None]).square().sum(-1).sqrt()
    return apart


def spread(weights: Tensor) -> Tensor:
    """Over how many entries of the last axis the weights are spread: the exponential of their entropy.

    1 where one entry has all, `n` where all `n` have the same. Weights are divided by their sum first; NaN if it is 0.

    Example:
        >>> spread(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.5, 0.0]]))
        tensor([4., 1.])
    """
    shares = weights / weights.sum(-1, keepdim=True)
    entropy: Tensor = -torch.special.xlogy(shares, shares).sum(-1)
    return entropy.exp()
