"""Attention weights computed from queries and keys, row by row, and proven by the output that the kernel returned."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch
from torch import Tensor

from .groups import Selection

_APART = 2**14  # scores of a head: so many and more, and a CPU's cache is better used head by head


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
    kept = torch.finfo(output.dtype).eps / 2
    query, output = selection.rows(query).to(exact) * scale, selection.rows(output).to(exact)
    key, value = selection.groups(key).to(exact), selection.groups(value).to(exact)
    if mask is not None:
        mask = selection.rows(mask.expand(shape))
    hidden = None
    if causal:
        hidden = torch.arange(shape[3], device=query.device) > selection.positions(shape[2], query.device)
        hidden = hidden.expand(*query.shape[:3], shape[3])
    weights = query.new_empty(*query.shape[:3], shape[3])
    far = query.new_empty(query.shape[:3])
    heaviest = None if mask is None or mask.dtype == torch.bool else query.new_zeros(query.shape[:3])
    shared = query.shape[1] // key.shape[1]
    for at, keys in _parts(weights, shared):
        part = weights[at]
        scores = torch.matmul(query[at], key[keys].mT)
        if mask is not None and mask.dtype == torch.bool:
            scores.masked_fill_(~mask[at], -torch.inf)
        elif mask is not None:
            scores += mask[at]
        if hidden is not None:
            scores.masked_fill_(hidden[at], -torch.inf)
        softmaxed(scores, out=part)
        if mask is not None or hidden is not None:  # a query that sees no key: kernels return either zeros or NaN
            blind = scores.amax(dim=-1, keepdim=True) == -torch.inf
            part.masked_fill_(blind & ~output[at].isnan().any(dim=-1, keepdim=True), 0.0)
        if heaviest is not None and mask is not None:
            heaviest[at] = torch.where(part > 0, mask[at], 0).abs().amax(dim=-1)
        far[at] = distance(part @ value[keys], output[at])
    if dropped:
        return weights, far.new_zeros(2)
    return weights, claim(far, _bound(query, key, value, kept=kept, mask=heaviest))


def softmaxed(scores: Tensor, out: Tensor | None = None) -> Tensor:
    """The weights of keys, `... k`."""
    return torch.softmax(scores, dim=-1, out=out)


def _parts(weights: Tensor, shared: int) -> Iterator[tuple[tuple[int | slice, ...], tuple[int | slice, ...]]]:
    """What is computed at once, `(group, head)` of the queries and of the keys, which `shared` heads have together."""
    n, heads, rows, keys = weights.shape
    if weights.is_cpu and rows * keys >= _APART:
        yield from (((i, head), (i, head // shared)) for i in range(n) for head in range(heads))
    elif shared == 1:
        yield (slice(None), slice(None)), (slice(None), slice(None))
    else:
        every = slice(None)
        yield from (((every, head), (every, head // shared)) for head in range(heads))


def distance(made: Tensor, output: Tensor) -> Tensor:
    """The largest difference in each row. Where both are NaN there is none; where one is, it is infinite."""
    far = torch.sub(made, output).abs_().amax(dim=-1)
    if not far.is_cpu or bool(far.isnan().any()):
        both = made.isnan() & output.isnan()
        far = (made - output).abs_().masked_fill_(both, 0.0).nan_to_num_(nan=torch.inf, posinf=torch.inf).amax(dim=-1)
    return far


def claim(far: Tensor, bound: Tensor) -> Tensor:
    """The largest distance, and the largest as a share of its bound."""
    return torch.stack([far.max(), (far / bound).nan_to_num_(nan=0.0, posinf=torch.inf).max()])


def _bound(query: Tensor, key: Tensor, value: Tensor, *, kept: float, mask: Tensor | None) -> Tensor:
    """How far rounding can take two ways of computing `softmax(q·k) v` apart, for each row.

    A sum of d products is off by `d u |q| |k|` at most, u being half the distance of 1 to the next number. Weights of
    scores that are off by e are off by a factor of `exp(2 e)`; summing and dividing n of them adds `n u`, and so does
    the sum over the values, none of which is larger than the largest. Kernels of 16 bits also round scores, weights and
    output to these. Twice, since both ways round.

    Args:
        query: scaled.
        kept: u of the output.
        mask: the largest number, for each row, that was added to a score that counts.
    """
    sums, shared = _unit(query), query.shape[1] // key.shape[1]
    longest, largest = key.norm(dim=-1).amax(dim=-1), value.abs().amax(dim=(-2, -1))
    if shared > 1:
        longest, largest = (x.repeat_interleave(shared, dim=1) for x in (longest, largest))
    rounded = kept if kept > sums else 0.0
    score = query.norm(dim=-1) * (longest * (2 * (query.shape[-1] + 3) * sums + 2 * rounded)).unsqueeze(-1)
    if mask is not None:
        score += 4 * max(kept, sums) * mask
    summed = (2 * key.shape[2] + 6) * sums + rounded + max(kept, sums)
    weight = score * score.exp() + summed  # x exp(x) is at least exp(x) - 1
    bound: Tensor = weight * (2 * largest).unsqueeze(-1) + torch.finfo(query.dtype).tiny
    return bound


def _unit(tensor: Tensor) -> float:
    """Half the distance of 1 to the next number, as matrix products have it that may round what they are given."""
    if tensor.dtype == torch.float32:
        precision = torch.get_float32_matmul_precision()
        if precision != "highest" or (tensor.is_cuda and torch.backends.cuda.matmul.allow_tf32):
            return 2.0**-9 if precision == "medium" else 2.0**-11
    return torch.finfo(tensor.dtype).eps / 2
