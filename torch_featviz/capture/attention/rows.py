"""Attention weights computed from queries and keys, row by row, and proven by the output that the kernel returned."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch
from torch import Tensor

from .groups import Selection

_MANY = 2**14  # scores of a head: so many and more, and a CPU has the output compared along some directions only
_APART = 2**16  # so many and more, and its cache is better used head by head
_DIRECTIONS = 8


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
    heaviest = None if mask is None or mask.dtype == torch.bool else query.new_zeros(query.shape[:3])
    along = _directions(value) if _many(weights) and kept <= _unit(query) else None
    made_of, made = (value, output) if along is None else ((along @ value.mT).mT, (along @ output.mT).mT)
    far = query.new_empty(query.shape[:3])
    shared = query.shape[1] // key.shape[1]
    for at, keys in _parts(weights, shared):
        part = torch.matmul(query[at], key[keys].mT, out=weights[at])
        if mask is not None and mask.dtype == torch.bool:
            part.masked_fill_(~mask[at], -torch.inf)
        elif mask is not None:
            part += mask[at]
        if hidden is not None:
            part.masked_fill_(hidden[at], -torch.inf)
        blind = None
        if mask is not None or hidden is not None:
            blind = part.amax(dim=-1, keepdim=True) == -torch.inf
        softmaxed(part, out=part)
        if blind is not None:  # a query that sees no key: kernels return either zeros or NaN
            part.masked_fill_(blind & ~output[at].isnan().any(dim=-1, keepdim=True), 0.0)
        if heaviest is not None and mask is not None:
            heaviest[at] = torch.where(part > 0, mask[at], 0).abs().amax(dim=-1)
        product = part @ value[keys] if along is None else (made_of[keys].mT @ part.mT).mT  # a thin matrix goes first
        far[at] = distance(product, made[at])
    if dropped:
        return weights, far.new_zeros(2)
    return weights, claim(far, _bound(query, key, value, made_of, kept=kept, mask=heaviest))


def softmaxed(scores: Tensor, out: Tensor | None = None) -> Tensor:
    """The weights of keys, `... k`."""
    return torch.softmax(scores, dim=-1, out=out)


def _many(weights: Tensor) -> bool:
    """Whether the product with the values would take a good part of the time."""
    return weights.is_cpu and weights.shape[-2:].numel() >= _MANY


def _directions(value: Tensor) -> Tensor | None:
    """Orthonormal directions among the channels of values, `8 d`, always the same; None where there are few channels.

    Two outputs that differ differ along them too, unless all differences of all rows are perpendicular to all of them.
    """
    channels = value.shape[-1]
    if channels < 2 * _DIRECTIONS:
        return None
    square = torch.arange(1, channels * _DIRECTIONS + 1, dtype=torch.float64, device="cpu").square()
    basis: Tensor = torch.linalg.qr(square.mul_(2**0.5).sin_().view(channels, _DIRECTIONS))[0]
    return basis.T.to(value).contiguous()


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


def _bound(query: Tensor, key: Tensor, value: Tensor, made_of: Tensor, *, kept: float, mask: Tensor | None) -> Tensor:
    """How far rounding can take two ways of computing `softmax(q·k) v` apart, for each row.

    A sum of d products is off by `d u |q| |k|` at most, u being half the distance of 1 to the next number. Weights of
    scores that are off by e are off by a factor of `exp(2 e)`; summing and dividing n of them adds `n u`, and so does
    the sum over the values, none of which is larger than the largest. Kernels of 16 bits also round scores, weights and
    output to these. Twice, since both ways round.

    Along a direction of length 1, what the sums over values are off by is their `n u` times the longest value at most
    (Cauchy and Schwarz), and the two projections add d u of it.

    Args:
        query: scaled.
        made_of: the values, or what they are along the directions in which outputs are compared.
        kept: u of the output.
        mask: the largest number, for each row, that was added to a score that counts.
    """
    sums, shared = _unit(query), query.shape[1] // key.shape[1]
    longest, largest = _lengths(key).amax(dim=-1), made_of.abs().amax(dim=(-2, -1))
    summed = (2 * key.shape[2] + 6) * sums
    spread = largest
    if made_of is not value:
        spread = _lengths(value).amax(dim=-1)
        summed += 2 * (value.shape[-1] + 3) * sums
    if shared > 1:
        longest, largest, spread = (x.repeat_interleave(shared, dim=1) for x in (longest, largest, spread))
    rounded = kept if kept > sums else 0.0
    score = _lengths(query) * (longest * (2 * (query.shape[-1] + 3) * sums + 2 * rounded)).unsqueeze(-1)
    if mask is not None:
        score += 4 * max(kept, sums) * mask
    summed += rounded + max(kept, sums)
    off = score * score.exp()  # x exp(x) is at least exp(x) - 1
    bound: Tensor = (2 * largest).unsqueeze(-1) * off + (2 * summed * spread).unsqueeze(-1)
    return bound + torch.finfo(query.dtype).tiny


def _lengths(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return lengths


def _unit(tensor: Tensor) -> float:
    """Half the distance of 1 to the next number, as matrix products have it that may round what they are given."""
    if tensor.dtype == torch.float32:
        precision = torch.get_float32_matmul_precision()
        if precision != "highest" or (tensor.is_cuda and torch.backends.cuda.matmul.allow_tf32):
            return 2.0**-9 if precision == "medium" else 2.0**-11
    return torch.finfo(tensor.dtype).eps / 2
