"""Mean, spread, extremes, zeros and broken values of every channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_featviz.errors import ShapeError

from .moment_sums import added, blocks, frame, in_float64, moved, part
from .reducer import Reducer, checked_dim, eager_on_cpu, same_channels


class Whole(NamedTuple):
    """The figures of `Moments` for all channels together; NaN and infinities are counted apart from the rest."""

    finite: int  # values
    mean: float
    std: float
    min: float
    max: float
    zero_share: float
    nan: int
    inf: int


class Moments(Reducer):
    """Statistics per channel of all outputs of a layer: mean, std, min, max, zeros, NaN.

    Args:
        dim: the channel axis: 1 for `b c h w` and `b c`, -1 for `b tokens c`. Default: `capture` finds it by following
            the images through the network; elsewhere 1. An output without such an axis (a scalar, or one axis where it
            would be 1) is treated as one channel.

    Each property has one value per channel, on the CPU. NaN and infinities are counted separately and left out of the
    other statistics; a channel without finite values has NaN for mean, std, min and max.

    Outputs of up to 32 bits are summed in float32 over short blocks, relative to a value near the mean, and then in
    float64; in a capture on a GPU directly in float64. Mean and std are accurate to about 1e-6 of the std, whatever the
    mean is. If `update` is called on tensors of an accelerator, std is inf when one value is 1e18 times as far away as
    all before.

    Raises:
        OptionError: `dim` is not an integer.
        LayerError: a property is read before any output was seen.

    Example:
        >>> moments = Moments()
        >>> moments.update(torch.tensor([[1.0, 0.0], [3.0, -2.0]]))
        >>> moments.mean.tolist(), moments.std.tolist(), moments.dead.tolist()
        ([2.0, -1.0], [1.0, 1.0], [False, True])
        >>> moments.whole.mean, moments.whole.max
        (0.5, 3.0)
    """

    tensors = 2

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = checked_dim(dim)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        return {"dim": self.dim}

    @property
    def count(self) -> Tensor:
        """Number of finite values, int64."""
        return self._read()[1][0]

    @property
    def nan(self) -> Tensor:
        """Number of NaN values, int64."""
        return self._read()[1][2]

    @property
    def inf(self) -> Tensor:
        """Number of infinite values of either sign, int64."""
        return self._read()[1][3]

    @property
    def zero_share(self) -> Tensor:
        """Share of all values, NaN and infinities included, that are exactly 0."""
        finite, zero, nan, inf = self._read()[1]
        share: Tensor = zero.double() / (finite + nan + inf)
        return share

    @property
    def mean(self) -> Tensor:
        """Mean of the finite values, float64."""
        return torch.from_numpy(_spread(*self._figures())[0])

    @property
    def std(self) -> Tensor:
        """Standard deviation of the finite values, float64: of the population (divided by n, not n - 1)."""
        return torch.from_numpy(_spread(*self._figures())[1])

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
        """Channels with finite values, none of them above 0; bool."""
        return torch.from_numpy(dead_of(*self._figures()))

    @property
    def whole(self) -> Whole:
        """The same statistics over all channels together."""
        return wholes([self._figures()])[0]

    def _figures(self) -> tuple[np.ndarray, np.ndarray]:
        floats, counts = (each.numpy() for each in self._read())
        return floats, counts

    def _extreme(self, row: int) -> Tensor:
        return torch.where(self.count > 0, self._read()[0][row], torch.nan)

    def _summary(self) -> str:
        return super()._summary() if self._state is None else f"{self._state[0].shape[-1]} channels"

    @property
    def asks_for_channels(self) -> bool:
        return self.dim is None

    def axis(self, output: Tensor, channels: int) -> int | None:
        """The axis of channels of `output`, from 0; None where it is one channel.

        Raises:
            ShapeError: it has no such axis.
        """
        dim = channels if self.dim is None else self.dim
        if -output.ndim <= dim < output.ndim:
            return dim % output.ndim
        if output.ndim > 1:
            raise ShapeError(
                f"Moments(dim={dim}): an output of shape {tuple(output.shape)} has no such axis; choose another dim."
            )
        return None

    def _arrange(self, output: Tensor, channels: int) -> Tensor:
        """As `outer c rows cols`, a view wherever strides allow; the order of values within a channel is free."""
        dim = self.axis(output, channels)
        if dim is None:
            values = output.reshape(1, 1, 1, -1)
        elif dim == output.ndim - 1:
            values = output.reshape(-1, output.shape[-1]).t()[None, :, None]
        else:
            start = output.flatten(0, dim - 1) if dim else output[None]
            values = start.flatten(2, -2) if start.ndim > 3 else start[:, :, None]
        if self._state is not None:
            same_channels(self._state[0].shape[1], values.shape[1])
        return values

    def _add(self, values: Tensor) -> tuple[Tensor, ...]:
        state = self._state
        if values.is_cuda and torch.compiler.is_compiling() and values.dtype != torch.float64:
            new = in_float64(state, values)
            return new if state is None else added(state, new)
        for block in blocks(values) if eager_on_cpu(values) else [values]:
            new = part(block, *frame(state, block))
            state = new if state is None else added(state, new)
        assert state is not None
        return state

    def _join(self, mine: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pivot = torch.where(mine[1][0] > 0, mine[0][0], other[0][0])
        return added(moved(mine, pivot), moved(other, pivot))


def dead_of(floats: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of a state of `Moments`: whether finite values of a channel were seen and none was positive."""
    dead: np.ndarray = (counts[0] > 0) & (floats[4] <= 0)
    return dead


def wholes(several: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Whole]:
    """Of each of several states of `Moments`, the figures of all channels together."""
    if not several:
        return []
    floats, counts = (np.concatenate(each, axis=1) for each in zip(*several, strict=True))
    channels = np.array([each.shape[1] for _, each in several])
    starts = np.cumsum(channels) - channels
    seen, (mean, std) = counts[0] > 0, _spread(floats, counts)
    finite, zeros, nan, inf = totals = np.add.reduceat(counts, starts, axis=1)
    low = np.minimum.reduceat(np.where(seen, floats[3], np.inf), starts)
    high = np.maximum.reduceat(np.where(seen, floats[4], -np.inf), starts)
    with np.errstate(invalid="ignore", over="ignore"):
        share = np.where(seen, counts[0] / np.repeat(finite, channels), 0.0)
        of_all = np.add.reduceat(np.where(seen, mean, 0.0) * share, starts)
        square = std**2 + (mean - np.repeat(of_all, channels)) ** 2
        spread = np.sqrt(np.add.reduceat(np.where(seen, square, 0.0) * share, starts))
        zero_share = np.where(finite > 0, zeros / (totals.sum(0) - zeros), 0.0)
    figures = [np.where(finite > 0, each, np.nan) for each in (of_all, spread, low, high)]
    columns = (finite, *figures, zero_share, nan, inf)
    return [Whole(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _spread(floats: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel; NaN where no value is finite."""
    pivot, total, squares, low, high = floats
    with np.errstate(invalid="ignore"):
        mean, square, constant = total / counts[0], squares / counts[0], low == high
        std = np.sqrt(np.maximum(square - mean * mean, 0.0))
    return np.where(constant, low, pivot + mean), np.where(constant, 0.0, std)
