"""Attention weights computed from queries and keys, row by row, and proven by the output that the kernel returned."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from .groups import Selection


@torch.no_grad()
def attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    selection: Selection,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropped: bool = False,
) -> tuple[Tensor, Tensor]:
    """The softmaxed weights of some rows of one attention, and how far they are from having made its output.

    Only those rows are computed, `O(rows · keys · channels)`. Queries may be grouped: several heads share keys then.

    Args:
        query: `n heads q d`; `key` and `value` are `n heads k d`, `output` is `n heads q d`, as the kernel returned it.
        selection: which rows of which groups.
        mask: broadcast to `n heads q k`; boolean (True takes part), or numbers added to the scores.
        causal: whether query i sees keys up to i only.
        scale: of the scores; None is `1/sqrt(d)`.
        dropped: whether the kernel dropped weights at random, so that its output proves nothing.
    Returns:
        `n heads rows k`, in the precision that kernels sum in, and two numbers: the largest difference to the output,
        and the share of the bound that the differences take up at most, which is proof at 1 or less.
    """
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    scale = 1 / sqrt(query.shape[-1]) if scale is None else scale
    shape = *query.shape[:3], key.shape[2]
    query, output = selection.rows(query).to(exact), selection.rows(output)
    key, value = selection.groups(key).to(exact), selection.groups(value).to(exact)
    scores = _grouped(query * scale, key.mT)
    if mask is not None:
        mask = selection.rows(mask.expand(shape))
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    if causal:
        places = torch.arange(shape[3], device=scores.device)
        scores = scores.masked_fill_(places > selection.positions(shape[2], scores.device), -torch.inf)
    weights = torch.softmax(scores, dim=-1)
    if mask is not None or causal:  # a query that sees no key: kernels return either zeros or NaN
        blind = scores.amax(dim=-1, keepdim=True) == -torch.inf
        weights = weights.masked_fill_(blind & ~output.isnan().any(dim=-1, keepdim=True), 0.0)
    if dropped:
        return weights, weights.new_zeros(2)
    heaviest = None if mask is None or mask.dtype == torch.bool else torch.where(weights > 0, mask, 0).abs().amax(-1)
    bound = _bound(query, key, value, output, scale, heaviest)
    return weights, difference(_grouped(weights, value), output, bound)


def difference(made: Tensor, output: Tensor, bound: Tensor) -> Tensor:
    """The largest difference, and the largest share of the bound; NaN in both is no difference, in one is infinite."""
    far = (made - output.to(made.dtype)).abs()
    far = far.masked_fill_(made.isnan() & output.isnan(), 0.0).nan_to_num_(nan=torch.inf, posinf=torch.inf)
    return torch.stack([far.max(), (far / bound).nan_to_num_(nan=0.0, posinf=torch.inf).max()])


def _bound(query: Tensor, key: Tensor, value: Tensor, output: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """How far rounding can take two ways of computing `softmax(scale q·k) v` apart, entry by entry.

    A sum of d products is off by `d u |q| |k|` at most, u being half the distance of 1 to the next number. Weights of
    scores that are off by e are off by a factor of `exp(2 e)`; summing and dividing n of them adds `n u`, and so does
    the sum over the values. Kernels of 16 bits also round scores, weights and output to these. Twice, since both ways
    round.
    """
    sums, kept = _unit(query), max(_unit(query), torch.finfo(output.dtype).eps / 2)
    share = query.shape[1] // key.shape[1]  # of heads that have the same keys
    longest = key.norm(dim=-1).amax(dim=-1).repeat_interleave(share, dim=1).unsqueeze(-1)
    length = query.norm(dim=-1) * longest * abs(scale)
    rounded = kept if kept > sums else 0.0
    score = ((query.shape[-1] + 3) * sums + rounded) * length
    if mask is not None:
        score = score + 2 * kept * mask
    weight = torch.expm1(2 * score) + (2 * key.shape[2] + 6) * sums + rounded
    largest = value.abs().amax(dim=2).repeat_interleave(share, dim=1).unsqueeze(2)
    return 2 * (weight.unsqueeze(-1) * largest + kept * output.abs().to(query.dtype)) + torch.finfo(output.dtype).tiny


def _unit(tensor: Tensor) -> float:
    """Half the distance of 1 to the next number, as matrix products have it that may round what they are given."""
    if tensor.dtype == torch.float32:
        precision = torch.get_float32_matmul_precision()
        if precision != "highest" or (tensor.is_cuda and torch.backends.cuda.matmul.allow_tf32):
            return 2.0**-9 if precision == "medium" else 2.0**-11
    return torch.finfo(tensor.dtype).eps / 2


def _grouped(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`, where several heads of `left`, one after the other, may share one of `right`."""
    groups, heads, rows = left.shape[:3]
    shared = right.shape[1]
    if shared == heads:
        return left @ right
    together = left.reshape(groups, shared, heads // shared * rows, left.shape[3])
    return (together @ right).reshape(groups, heads, rows, right.shape[3])
