"""Attention weights computed from queries and keys, row by row, and proven by the output that the kernel returned."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import cache
from math import isnan, sqrt
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .groups import Selection

_MANY = 2**14  # scores of a head: so many and more, and a CPU has the output compared along some directions only
_AT_ONCE = 2**19  # scores that a CPU computes at once: its cache holds them
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
) -> tuple[Tensor, Evidence | None]:
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
        `n heads rows k`, in the precision that kernels sum in, and what proves that they made the output; None where
        some were dropped.
    """
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    scale = 1 / sqrt(query.shape[-1]) if scale is None else scale
    shape = *query.shape[:3], key.shape[2]
    kept = torch.finfo(output.dtype).eps / 2
    query, output = selection.rows(query).to(exact), selection.rows(output).to(exact)
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
    product = torch.empty_like(made)
    shared = query.shape[1] // key.shape[1]
    for at, keys in _parts(weights, shared):
        part = _scores(query[at], key[keys], scale, out=weights[at])
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
        if along is None:
            torch.matmul(part, made_of[keys], out=product[at])
        else:
            torch.matmul(made_of[keys].mT, part.mT, out=product[at].mT)  # a thin matrix goes first
    if dropped:
        return weights, None
    longest, largest = _lengths(key).amax(dim=-1), made_of.abs().amax(dim=(-2, -1))
    spread = largest if along is None else _lengths(value).amax(dim=-1)
    channels = key.shape[-1], 0 if along is None else value.shape[-1] + 3
    figures = Figures(abs(scale), shared, key.shape[2], *channels, _unit(query), kept, torch.finfo(exact).tiny)
    far = distance(product, made)
    return weights, Evidence(far, _lengths(query), longest, largest, spread, heaviest, figures)


def _scores(query: Tensor, key: Tensor, scale: float, out: Tensor) -> Tensor:
    """Products of queries and keys."""
    if query.dim() == 3:
        return torch.baddbmm(out, query, key.mT, beta=0, alpha=scale, out=out)
    return torch.matmul(query * scale, key.mT, out=out)


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
    return torch.from_numpy(_orthonormal(channels)).to(value)


@cache
def _orthonormal(channels: int) -> np.ndarray[Any, Any]:
    square = np.arange(1, channels * _DIRECTIONS + 1, dtype=np.float64) ** 2
    basis = np.linalg.qr(np.sin(square * 2**0.5).reshape(channels, _DIRECTIONS))[0]
    return np.ascontiguousarray(basis.T)


_Part: TypeAlias = tuple[int | slice, ...]


def _parts(weights: Tensor, shared: int) -> Iterator[tuple[_Part, _Part]]:
    """What is computed at once, `(group, head)` of the queries and of the keys, which `shared` heads have together."""
    n, heads, rows, keys = weights.shape
    every, some = slice(None), max(1, _AT_ONCE // max(1, rows * keys))  # heads that the cache holds
    if shared == 1 and (not weights.is_cpu or (n > 1 and some >= n * heads)):
        yield (every, every), (every, every)
    elif shared == 1:
        yield from (((i, part), (i, part)) for i in range(n) for part in _slices(heads, some))
    elif weights.is_cpu and some < n:
        yield from (((i, head), (i, head // shared)) for i in range(n) for head in range(heads))
    else:
        yield from (((every, head), (every, head // shared)) for head in range(heads))


def _slices(count: int, some: int) -> Iterator[slice]:
    yield from (slice(i, i + some) for i in range(0, count, some))


def distance(made: Tensor, output: Tensor) -> Tensor:
    """The largest difference in each row. Where both are NaN there is none; where one is, it is infinite."""
    far = torch.sub(made, output).abs_().amax(dim=-1)
    if not far.is_cpu or isnan(far.max().item()):
        both = made.isnan() & output.isnan()
        far = (made - output).abs_().masked_fill_(both, 0.0).nan_to_num_(nan=torch.inf, posinf=torch.inf).amax(dim=-1)
    return far


def claim(far: Tensor, bound: Tensor) -> Tensor:
    """The largest distance of each layer, and the largest as a share of its bound, `2 l`, of `l ...`."""
    share = (far / bound).nan_to_num_(nan=0.0, posinf=torch.inf)
    return torch.stack([far.flatten(1).amax(dim=1), share.flatten(1).amax(dim=1)])


class Figures(NamedTuple):
    """What is the same for all rows of an attention.

    Args:
        scale: of the scores.
        shared: heads of queries that have the same keys.
        keys: how many; `channels` of a key.
        projected: channels of a value and 3, where outputs are compared along directions; else 0.
        unit: half the distance of 1 to the next number, as sums have it; `kept` as the output has it.
        tiny: the smallest number.
    """

    scale: float
    shared: int
    keys: int
    channels: int
    projected: int
    unit: float
    kept: float
    tiny: float


class Evidence(NamedTuple):
    """How far weights times values are from the output, and what bounds that; `n heads rows`, or of keys `n heads`.

    Args:
        far: the largest difference in each row.
        lengths: of the queries; `longest` is that of the keys.
        largest: of the values, or of what they are along the directions; `spread` is the longest value, or `largest`.
        heaviest: the largest number, for each row, that was added to a score that counts; None without a mask of such.
    """

    far: Tensor
    lengths: Tensor
    longest: Tensor
    largest: Tensor
    spread: Tensor
    heaviest: Tensor | None
    figures: Figures

    def alike(self) -> Hashable:
        """Those of which this is the same are proven at once."""
        return self.figures, self.far.shape, self.heaviest is None, self.far.device


def claims(several: Sequence[Evidence]) -> Tensor:
    """The largest distance of each, and the share of the bound that it takes up at most, `2 l`; proof at 1 or less.

    Args:
        several: alike.
    """
    columns = list(zip(*several, strict=True))[:-1]
    together = [None if column[0] is None else torch.stack(column) for column in columns]
    evidence = Evidence._make([*together, several[0].figures])
    return claim(evidence.far, _bound(evidence))


def _bound(evidence: Evidence) -> Tensor:
    """How far rounding can take two ways of computing `softmax(q·k) v` apart, for each row.

    A sum of d products is off by `d u |q| |k|` at most, u being half the distance of 1 to the next number. Weights of
    scores that are off by e are off by a factor of `exp(2 e)`; summing and dividing n of them adds `n u`, and so does
    the sum over the values, none of which is larger than the largest. Kernels of 16 bits also round scores, weights and
    output to these. Twice, since both ways round.

    Along a direction of length 1, what the sums over values are off by is their `n u` times the longest value at most
    (Cauchy and Schwarz), and the two projections add d u of it.
    """
    scale, shared, keys, channels, projected, unit, kept, tiny = evidence.figures
    of_keys = evidence.longest, evidence.largest, evidence.spread
    longest, largest, spread = (x if shared == 1 else x.repeat_interleave(shared, dim=2) for x in of_keys)
    rounded = kept if kept > unit else 0.0
    summed = (2 * keys + 6 + 2 * projected) * unit + rounded + max(kept, unit)
    score = evidence.lengths * (longest * (scale * (2 * (channels + 3) * unit + 2 * rounded))).unsqueeze(-1)
    if evidence.heaviest is not None:
        score += 4 * max(kept, unit) * evidence.heaviest
    off = score * score.exp()  # x exp(x) is at least exp(x) - 1
    bound: Tensor = (2 * largest).unsqueeze(-1) * off + (2 * summed * spread).unsqueeze(-1)
    return bound + tiny


def _lengths(rows: Tensor) -> Tensor:
    """Of `n heads k d`, which mostly lie in memory as `n k heads d`."""
    lengths: Tensor = torch.linalg.vector_norm(rows.transpose(1, 2), dim=-1)
    return lengths.transpose(1, 2)


def _unit(tensor: Tensor) -> float:
    """Half the distance of 1 to the next number, as matrix products have it that may round what they are given."""
    if tensor.dtype == torch.float32:
        precision = torch.get_float32_matmul_precision()
        if precision != "highest" or (tensor.is_cuda and torch.backends.cuda.matmul.allow_tf32):
            return 2.0**-9 if precision == "medium" else 2.0**-11
    return torch.finfo(tensor.dtype).eps / 2
