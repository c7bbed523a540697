"""The arithmetic of moments: sums per channel of values arranged as `outer c rows cols`, and how sums are added."""

from __future__ import annotations

import torch
from torch import Tensor

from .reducer import BLOCK, eager_on_cpu, exponent, power_of_two, wide

_INF = float("inf")
_NEAR = 64  # so many neighbours are summed together in the output's own precision where they fit, rows else,
_FAR = 4096  # and longer rows than this in float64
_ALL = (0, 2, 3)

# The state: floats `5 c` (a pivot, sum and sum of squares of the distances to it, min, max), counts `4 c` int64
# (finite values, zeros, NaN, infinities). The pivot is near the mean of the first values, so that a mean much larger
# than the spread costs no digits.


def blocks(values: Tensor) -> list[Tensor]:
    """Parts small enough for the cache: several passes over each cost less than one over memory."""
    channels, rows, cols = values.shape[1:]
    if channels * rows * cols <= BLOCK:
        return list(torch.split(values, max(1, BLOCK // (channels * rows * cols))))
    axis, size = (2, BLOCK // (channels * cols)) if channels * cols <= BLOCK else (3, max(1, BLOCK // channels))
    cut = values.flatten(2).unsqueeze(2) if axis == 3 else values
    return [part for image in torch.split(cut, 1) for part in torch.split(image, size, axis)]


def frame(state: tuple[Tensor, ...] | None, values: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel, the pivot and the power of two that brings distances near 1: float32 cannot square 1e-25 or 1e25."""
    looks = eager_on_cpu(values)
    if looks and state is not None:
        pivot, _, _, low, high = state[0]
        if bool((low < high).all()):  # what is far beyond that is seen in its square, and taken in float64
            return pivot, _unit_of(high - low)
    if looks and (state is None or not bool(state[1][0].all())):  # few may all be broken, or one value
        pivot, low, high = _about(values[:4, :, :4, :16])
        if not bool((low < high).all()):
            pivot, low, high = _about(values)
    else:
        pivot, low, high = _about(values if state is None else values[:4, :, :4, :16])
    if state is not None:
        before, _, _, lowest, highest = state[0]
        pivot = torch.where(lowest <= highest, before, pivot)
        low, high = torch.minimum(low, lowest), torch.maximum(high, highest)
    return pivot, _unit_of(high - low)


def _about(sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per channel, the mean of the finite values as a number of their own precision, the lowest, the highest."""
    exact = sample.to(wide(sample.device))
    finite = exact.abs() < _INF
    low, high = torch.where(finite, exact, _INF).amin(_ALL), torch.where(finite, exact, -_INF).amax(_ALL)
    total = torch.where(finite, exact, 0.0).sum(_ALL)
    return (total / finite.sum(_ALL).clamp(min=1)).to(sample.dtype).to(exact.dtype), low, high


def _unit_of(spread: Tensor) -> Tensor:
    scale = power_of_two(-exponent(spread).clamp(-40, 100), spread.dtype)
    return torch.where(spread > 0, scale, 1.0)


def _kept(figure: Tensor) -> Tensor:
    """The same. A compiler is given a reduction, which it computes once and not again at each value of the output."""
    return figure[:, None].expand(-1, 16).amax(1) if torch.compiler.is_compiling() else figure


def part(values: Tensor, pivot: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The state of `values` alone."""
    zero_point = _kept((pivot * scale).to(values.dtype))[:, None, None]
    unit = _kept(scale.to(values.dtype))[:, None, None]
    if eager_on_cpu(values):
        floats, counts = _masked_if_broken(*_finite_figures(values, zero_point, unit), values, zero_point, unit)
    elif values.device.type == "cpu" and torch.compiler.is_compiling():
        figures = _figures(values, zero_point, unit, masked=False)
        floats, counts = torch.ops.torch_featviz.masked_if_broken(*figures, values, zero_point, unit)
    else:
        floats, counts = _figures(values, zero_point, unit, masked=True)
    total, squares, low, high = floats
    return torch.stack([pivot, total / scale, squares / scale / scale, low, high]), counts


def _masked_if_broken(
    floats: Tensor, counts: Tensor, values: Tensor, zero_point: Tensor, unit: Tensor
) -> tuple[Tensor, Tensor]:
    """Figures of finite values, once more with a mask if one was broken, or so far away that its square was."""
    if bool(floats[1].isfinite().all()):
        return floats, counts
    parts = [_figures(block.to(floats.dtype), zero_point, unit, masked=True) for block in blocks(values)]
    each = torch.stack([floats for floats, _ in parts])
    joined = [each[:, :2].sum(0), each[:, 2:3].amin(0), each[:, 3:].amax(0)]
    return torch.cat(joined), torch.stack([counts for _, counts in parts]).sum(0)


def in_float64(state: tuple[Tensor, ...] | None, values: Tensor) -> tuple[Tensor, Tensor]:
    """The state of `values` alone, of up to 32 bits, about one of them: what a GPU's compiler reads them once for.

    There float64 is fast, which needs no power of two.
    """
    first = values[:1, :, :1, :_NEAR]
    pivot = torch.where(first.abs() < _INF, first, -_INF).amax(_ALL)
    pivot = torch.where(pivot > -_INF, pivot, 0.0).double()
    if state is not None:
        pivot = torch.where(state[1][0] > 0, state[0][0], pivot)
    pivot = _kept(pivot)
    finite, known = values.abs() < _INF, values.eq(values)
    distance = torch.where(finite, values.double() - pivot[:, None, None], 0.0)
    low, high = torch.where(finite, values, _INF).amin(_ALL), torch.where(finite, values, -_INF).amax(_ALL)
    count, zero, number = (mask.sum(_ALL, dtype=torch.int32) for mask in (finite, values == 0, known))
    counts = torch.stack([count, zero, values.numel() // values.shape[1] - number, number - count])
    floats = [pivot, distance.sum(_ALL), (distance * distance).sum(_ALL), low.double(), high.double()]
    return torch.stack(floats), counts.long()


# The same as an operator of its own, so that a compiled graph may decide by a value without a break: what torch.cond
# is for, which selective checkpointing does not know.
_operators = torch.library.Library("torch_featviz", "FRAGMENT")  # type: ignore[no-untyped-call]
_operators.define(  # type: ignore[no-untyped-call]
    "masked_if_broken(Tensor floats, Tensor counts, Tensor values, Tensor zero_point, Tensor unit) -> (Tensor, Tensor)",
    tags=(torch.Tag.flexible_layout,),
)


def _on_cpu(floats: Tensor, counts: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
    return _masked_if_broken(floats.clone(), counts.clone(), *values)  # an operator returns nothing it was given


def _shapes(floats: Tensor, counts: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(floats), torch.empty_like(counts)


_operators.impl("masked_if_broken", _on_cpu, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("torch_featviz::masked_if_broken", _shapes, lib=_operators)


def _figures(values: Tensor, zero_point: Tensor, unit: Tensor, masked: bool) -> tuple[Tensor, Tensor]:
    """Floats `4 c` and counts `4 c`, in one pass when compiled; nothing here looks at a value.

    Without a mask, which is what costs most, they are right if all values are finite.
    """
    size = values.numel() // values.shape[1]
    if values.shape[2] * values.shape[3] % _NEAR == 0:
        values = values.reshape(*values.shape[:2], -1, _NEAR)  # channels_last: what is read together is near in memory
    near = (2, 3) if values.shape[2] * values.shape[3] <= _NEAR else (3,)
    exact = wide(values.device)
    distance, low, high, masks = values * unit - zero_point, values, values, [values == 0]
    if masked:
        finite = values.abs() < _INF
        masks += [finite, values.eq(values)]  # Inductor's isnan() alone would cost more than all the rest
        distance = torch.where(finite, distance, 0.0)
        low, high = torch.where(finite, values, _INF), torch.where(finite, values, -_INF)
    if values.shape[3] > _FAR:
        distance = distance.to(exact)
    floats = [
        distance.sum(near, keepdim=True).to(exact).sum(_ALL),
        (distance * distance).sum(near, keepdim=True).to(exact).sum(_ALL),
        low.amin(near, keepdim=True).amin(_ALL).to(exact),
        high.amax(near, keepdim=True).amax(_ALL).to(exact),
    ]
    zero, *counts = (mask.sum(near, keepdim=True, dtype=torch.int32).sum(_ALL) for mask in masks)
    finite_count, number = counts or [torch.full_like(zero, size)] * 2
    return torch.stack(floats), torch.stack([finite_count, zero, size - number, number - finite_count])


def _finite_figures(values: Tensor, zero_point: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """The same without a mask, in several passes over values that are in the cache."""
    outer, channels, rows, cols = values.shape
    exact = wide(values.device)
    distance = (values * unit).sub_(zero_point)
    total = distance.sum((2, 3)).to(exact).sum(0)
    squares = distance.mul_(distance).sum((2, 3)).to(exact).sum(0)
    zero = torch.eq(values, 0, out=distance).sum((2, 3)).long().sum(0)
    count = torch.full((channels,), outer * rows * cols, device=values.device)
    nothing = torch.zeros_like(count)
    low, high = values.amin(_ALL).to(exact), values.amax(_ALL).to(exact)
    return torch.stack([total, squares, low, high]), torch.stack([count, zero, nothing, nothing])


def moved(state: tuple[Tensor, ...], pivot: Tensor) -> tuple[Tensor, ...]:
    """The same state about another pivot."""
    (old, total, squares, low, high), counts = state
    step = old - pivot
    shifted = total + counts[0] * step
    return torch.stack([pivot, shifted, squares + step * (total + shifted), low, high]), counts


def added(mine: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Both, which have the same pivot wherever `mine` has seen anything."""
    (_, total, squares, low, high), (pivot, more, more_squares, lower, higher) = mine[0], other[0]
    low, high = torch.minimum(low, lower), torch.maximum(high, higher)
    return torch.stack([pivot, total + more, squares + more_squares, low, high]), mine[1] + other[1]
