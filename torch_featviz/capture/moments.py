"""Mean, spread, extremes, zeros and broken values of every channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_featviz.errors import OptionError, ShapeError

from .reduce import BLOCK, Reducer, eager_on_cpu, exponent, power_of_two, same_channels, wide

_INF = float("inf")
_NEAR = 256  # up to so many neighbours are summed in the output's own precision, more in float64
_FAR = 4096
_ALL = (0, 2, 3)

# The state: floats `5 c` (a pivot, sum and sum of squares of the distances to it, min, max), counts `4 c` int64
# (finite values, zeros, NaN, infinities). The pivot is near the mean of the first values, so that a mean much larger
# than the spread costs no digits.


class Moments(Reducer):
    """Per-channel figures of everything a layer returned.

    Args:
        dim: the axis of channels; 1 for `b c h w` and `b c`, -1 for `b tokens c`. An output that has no such axis
            (a scalar, or one axis where dim is 1) is one channel.

    Each figure has one value per channel, on the CPU. NaN and infinities are counted, and left out of the other
    figures; a channel with no finite value has NaN for mean, std, min and max.

    Raises:
        OptionError: `dim` is not an integer.
        LayerError: a figure is read before any output was seen.

    Example:
        >>> moments = Moments()
        >>> moments.update(torch.tensor([[1.0, 0.0], [3.0, -2.0]]))
        >>> moments.mean.tolist(), moments.std.tolist(), moments.dead.tolist()
        ([2.0, -1.0], [1.0, 1.0], [False, True])
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise OptionError(f"dim must be an integer, the axis of channels, got {dim!r}.")
        self.dim = dim

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        return {"dim": self.dim}

    @property
    def count(self) -> Tensor:
        """Finite values, int64."""
        return self._read()[1][0]

    @property
    def nan(self) -> Tensor:
        """NaN values, int64."""
        return self._read()[1][2]

    @property
    def inf(self) -> Tensor:
        """Infinite values of either sign, int64."""
        return self._read()[1][3]

    @property
    def zero_share(self) -> Tensor:
        """Share of all values, broken ones included, that are exactly 0."""
        finite, zero, nan, inf = self._read()[1]
        return zero / (finite + nan + inf)

    @property
    def mean(self) -> Tensor:
        """Mean of the finite values, float64."""
        pivot, total, _, low, high = self._read()[0]
        return torch.where(low == high, low, pivot + total / self.count)

    @property
    def std(self) -> Tensor:
        """Standard deviation of the finite values, float64: of the population (divided by n, not n - 1)."""
        _, total, squares, low, high = self._read()[0]
        mean = total / self.count
        spread = (squares / self.count - mean * mean).clamp(min=0).sqrt()
        return torch.where(low == high, 0.0, spread)

    @property
    def min(self) -> Tensor:
        """Smallest finite value, float64."""
        return self._extreme(3)

    @property
    def max(self) -> Tensor:
        """Largest finite value, float64."""
        return self._extreme(4)

    @property
    def dead(self) -> Tensor:
        """Whether finite values were seen and none was positive, bool."""
        return self.max <= 0

    def _extreme(self, row: int) -> Tensor:
        return torch.where(self.count > 0, self._read()[0][row], torch.nan)

    def _summary(self) -> str:
        return super()._summary() if self._state is None else f"{self._state[0].shape[-1]} channels"

    def _arrange(self, output: Tensor) -> Tensor:
        """As `outer c rows cols`, a view wherever strides allow; the order of values within a channel is free."""
        if not -output.ndim <= self.dim < output.ndim:
            if output.ndim > 1:
                raise ShapeError(f"no axis {self.dim} in an output of shape {tuple(output.shape)}; choose another dim.")
            values = output.reshape(1, 1, 1, -1)
        else:
            dim = self.dim % output.ndim
            if dim == output.ndim - 1:
                values = output.reshape(-1, output.shape[-1]).t()[None, :, None]
            else:
                start = output.flatten(0, dim - 1) if dim else output[None]
                values = start.flatten(2, -2) if start.ndim > 3 else start[:, :, None]
        if self._state is not None:
            same_channels(self._state[0].shape[1], values.shape[1])
        return values

    def _add(self, values: Tensor) -> tuple[Tensor, ...]:
        state = self._state
        for block in _blocks(values) if eager_on_cpu(values) else [values]:
            pivot, scale = _frame(state, block)
            part = _part(block, pivot, scale)
            state = part if state is None else _sum(state, part)
        assert state is not None
        return state

    def _join(self, mine: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pivot = torch.where(mine[1][0] > 0, mine[0][0], other[0][0])
        return _sum(_moved(mine, pivot), _moved(other, pivot))


def _blocks(values: Tensor) -> list[Tensor]:
    """Parts small enough for the cache: several passes over each cost less than one over memory."""
    outer, channels, rows, cols = values.shape
    if channels * rows * cols <= BLOCK:
        return list(values.split(max(1, BLOCK // (channels * rows * cols))))
    axis, size = (2, BLOCK // (channels * cols)) if channels * cols <= BLOCK else (3, max(1, BLOCK // channels))
    cut = values.flatten(2).unsqueeze(2) if axis == 3 else values
    return [part for image in cut.split(1) for part in image.split(size, axis)]


def _frame(state: tuple[Tensor, ...] | None, values: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel, the pivot and the power of two that brings distances near 1: float32 cannot square 1e-25 or 1e25."""
    sample = values[:4, :, :4, :16].to(wide(values.device))
    finite = sample.abs() < _INF
    low, high = torch.where(finite, sample, _INF).amin(_ALL), torch.where(finite, sample, -_INF).amax(_ALL)
    total = torch.where(finite, sample, 0.0).sum(_ALL)
    pivot = (total / finite.sum(_ALL).clamp(min=1)).to(values.dtype).to(total.dtype)
    if state is not None:
        before, _, _, lowest, highest = state[0]
        pivot = torch.where(lowest <= highest, before, pivot)
        low, high = torch.minimum(low, lowest), torch.maximum(high, highest)
    spread = high - low
    scale = power_of_two(-exponent(spread).clamp(-40, 100), spread.dtype)
    return pivot, torch.where(spread > 0, scale, 1.0)


def _kept(figure: Tensor) -> Tensor:
    """The same; for a compiler a reduction, so that it is computed once and not at each of the values it is used for."""
    return figure[:, None].expand(-1, 16).amax(1) if torch.compiler.is_compiling() else figure


def _part(values: Tensor, pivot: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The state of `values` alone."""
    zero_point = _kept((pivot * scale).to(values.dtype))[:, None, None]
    unit = _kept(scale.to(values.dtype))[:, None, None]
    figures = _finite_figures(values, zero_point, unit) if eager_on_cpu(values) else None
    floats, counts = figures or _figures(values, zero_point, unit)
    total, squares, low, high = floats
    return torch.stack([pivot, total / scale, squares / scale / scale, low, high]), torch.stack(counts)


def _figures(values: Tensor, zero_point: Tensor, unit: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """One pass when compiled; nothing here looks at a value."""
    outer, _, rows, cols = values.shape
    near = (2, 3) if rows * cols <= _NEAR else (3,)
    exact = wide(values.device)
    finite = values.abs() < _INF
    distance = torch.where(finite, values * unit - zero_point, 0.0)
    if cols > _FAR:
        distance = distance.to(exact)
    floats = [
        distance.sum(near, keepdim=True).to(exact).sum(_ALL),
        (distance * distance).sum(near, keepdim=True).to(exact).sum(_ALL),
        torch.where(finite, values, _INF).amin(near, keepdim=True).amin(_ALL).to(exact),
        torch.where(finite, values, -_INF).amax(near, keepdim=True).amax(_ALL).to(exact),
    ]
    finite_count, zero, number = (
        mask.sum(near, keepdim=True, dtype=torch.int32).sum(_ALL) for mask in (finite, values == 0, values == values)
    )
    return floats, [finite_count, zero, outer * rows * cols - number, number - finite_count]


def _finite_figures(
    values: Tensor, zero_point: Tensor, unit: Tensor
) -> tuple[list[Tensor], list[Tensor]] | None:
    """The same for values that are all finite, without a mask; None where they are not."""
    outer, channels, rows, cols = values.shape
    exact = wide(values.device)
    distance = (values * unit).sub_(zero_point)
    total = distance.sum((2, 3)).to(exact).sum(0)
    squares = distance.mul_(distance).sum((2, 3)).to(exact).sum(0)
    if not bool(squares.isfinite().all()):
        return None
    zero = torch.eq(values, 0, out=distance).sum((2, 3)).long().sum(0)
    count = torch.full((channels,), outer * rows * cols)
    nothing = torch.zeros_like(count)
    low, high = values.amin(_ALL).to(exact), values.amax(_ALL).to(exact)
    return [total, squares, low, high], [count, zero, nothing, nothing]


def _moved(state: tuple[Tensor, ...], pivot: Tensor) -> tuple[Tensor, ...]:
    """The same state about another pivot."""
    (old, total, squares, low, high), counts = state
    step = old - pivot
    shifted = total + counts[0] * step
    return torch.stack([pivot, shifted, squares + step * (total + shifted), low, high]), counts


def _sum(mine: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Both, which have the same pivot wherever `mine` has seen anything."""
    (_, total, squares, low, high), (pivot, more, more_squares, lower, higher) = mine[0], other[0]
    low, high = torch.minimum(low, lower), torch.maximum(high, higher)
    return torch.stack([pivot, total + more, squares + more_squares, low, high]), mine[1] + other[1]
