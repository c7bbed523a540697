"""One histogram per layer whose bins do not depend on how the data came."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_featviz.errors import OptionError
from torch_featviz.gate import gate

from .reducer import BLOCK, Reducer, eager_on_cpu, exponent, power_of_two, wide

_MOST = 2**20
_DIGITS = 50  # a bin is never narrower than 2**-50 of the largest magnitude, so that its number is an exact float
_NARROWEST = -126
_INF = float("inf")

# The state: extremes (min and -max of the finite values; inf before any), place (exponent of the bins' width, number
# of the first bin: it starts at number * width), counts (the bins, then NaN, +inf, -inf). Width and place follow from
# the extremes alone; since widths are powers of two and bins start at multiples of them, wider bins hold narrower ones
# whole, and growing loses nothing.


class Histogram(Reducer):
    """Histogram of all values that a layer returned, in bins of equal width.

    The range grows with the data; no range has to be given, and the result does not depend on how the data was split
    into batches.

    Args:
        bins: number of bins; an even number.
        symmetric: put 0 in the middle, for signed values. Otherwise the first bin holds the smallest value.

    The bin width is the smallest power of two for which `bins` bins, starting at a multiple of the width, hold all
    finite values. It is at least `2**-126`, and `2**-50` of the largest magnitude. A value on an edge belongs to the
    bin on its right; the largest value is always left of the last edge. Values from `2**1000` on count as infinite.

    Raises:
        OptionError: `bins` is not an even number from 2 to 1,048,576.
        LayerError: a property is read before any output was seen.

    Example:
        >>> histogram = Histogram(bins=4)
        >>> histogram.update(torch.tensor([0.0, 0.5, 0.6, 1.9]))
        >>> histogram.counts.tolist(), histogram.edges.tolist()
        ([1, 2, 0, 1], [0.0, 0.5, 1.0, 1.5, 2.0])
    """

    tensors = 3

    @gate("bins")
    def __init__(self, bins: int = 64, symmetric: bool = False) -> None:
        super().__init__()
        if not isinstance(bins, int) or isinstance(bins, bool) or not 2 <= bins <= _MOST or bins % 2:
            raise OptionError(f"bins must be an even number from 2 to {_MOST:,}, got {bins!r:.80}.")
        self.bins, self.symmetric = bins, bool(symmetric)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        return {"bins": self.bins, "symmetric": self.symmetric}

    @property
    def counts(self) -> Tensor:
        """Number of finite values per bin, int64."""
        return self._read()[2][: self.bins]

    @property
    def edges(self) -> Tensor:
        """Edges of the bins: `bins + 1` exact float64 numbers."""
        start, width = start_and_width(self._read()[1].numpy())
        return torch.from_numpy(start + np.arange(self.bins + 1) * width)

    @property
    def nan(self) -> int:
        """Number of NaN values."""
        return int(self._read()[2][self.bins])

    @property
    def inf(self) -> int:
        """Number of +inf values."""
        return int(self._read()[2][self.bins + 1])

    @property
    def neg_inf(self) -> int:
        """Number of -inf values."""
        return int(self._read()[2][self.bins + 2])

    def _arrange(self, output: Tensor, channels: int) -> Tensor:  # noqa: ARG002 - all are counted together
        return output if _compiled_for_cpu(output) else self._flat(output)

    def _flat(self, output: Tensor) -> Tensor:
        last = output.ndim == 4 and output.is_contiguous(memory_format=torch.channels_last)
        return (output.permute(0, 2, 3, 1) if last else output).reshape(-1)  # any order will do: one without a copy

    def _add(self, values: Tensor) -> tuple[Tensor, ...]:
        state = self._state
        if _compiled_for_cpu(values):
            added: tuple[Tensor, ...] = torch.ops.torch_featviz.histogram(
                list(state or ()), values, self.bins, self.symmetric
            )
            return added
        for block in torch.split(values, BLOCK) if eager_on_cpu(values) else [values]:
            state = self._added(state, block)
        assert state is not None
        return state

    def _added(self, state: tuple[Tensor, ...] | None, values: Tensor) -> tuple[Tensor, ...]:
        extremes, finite = _finite_extremes(values) if eager_on_cpu(values) else (_extremes(values), False)
        if state is None or not finite or bool((extremes < state[0]).any()):
            extremes = extremes if state is None else torch.minimum(extremes, state[0])
            place = self.place_of(extremes)
            before = self._empty(values) if state is None else self.moved(state[1], state[2], place)
        else:
            extremes, place, before = state
        if finite:
            width_exponent, first = (int(each) for each in place)
            if abs(width_exponent) < 120 and abs(first) < 2**23:  # so that float32 does without loss
                return extremes, place, before + self._counted_finite(values, width_exponent, first)
        return extremes, place, before + self._counted(values, place)

    def _join(self, mine: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        extremes = torch.minimum(mine[0], other[0])
        place = self.place_of(extremes)
        return extremes, place, self.moved(mine[1], mine[2], place) + self.moved(other[1], other[2], place)

    def place_of(self, extremes: Tensor) -> Tensor:
        """The smallest width's exponent, and the number of the first bin, for values with these extremes: `2 ...`."""
        low, high = torch.where(extremes < _INF, extremes, 0.0)
        high = -high
        magnitude = torch.maximum(low.abs(), high.abs())
        share = magnitude / (self.bins // 2) if self.symmetric else high / self.bins - low / self.bins
        least = (exponent(magnitude) - _DIGITS).clamp(min=_NARROWEST)
        some = exponent(share)[..., None] + torch.arange(-1, 4, device=low.device)  # one of these it is
        tried = torch.maximum(some, least[..., None])
        start, end = _number(low[..., None], tried), _number(high[..., None], tried)
        half = self.bins // 2
        fits = (start >= -half) & (end < half) if self.symmetric else end - start < self.bins
        chosen = torch.where(fits, tried, tried.amax(-1, keepdim=True)).amin(-1)
        first = _number(low, chosen).long()
        return torch.stack([chosen, torch.full_like(first, -half) if self.symmetric else first])

    def slots(self, values: Tensor, place: Tensor) -> Tensor:
        """Where in the counts each value belongs, int64; `place` is `2 ...`, as `values` or to be broadcast."""
        broken = torch.where(values > 0, self.bins + 1, torch.where(values < 0, self.bins + 2, self.bins))
        exact = values.to(wide(values.device))
        number = (_number(exact, place[0]) - place[1]).nan_to_num(0.0, 0.0, 0.0).long()
        return torch.where(_finite(values), number, broken)

    def _counted(self, values: Tensor, place: Tensor) -> Tensor:
        slot = self.slots(values, place)
        return self._empty(values).scatter_add(0, slot, torch.ones_like(place[:1]).expand_as(slot))

    def _counted_finite(self, values: Tensor, width_exponent: int, first: int) -> Tensor:
        """The same for finite values, in their own precision, in which all of this is exact."""
        number = values.mul(2.0**-width_exponent).floor_()
        if width_exponent > 0:  # a tiny negative value may become -0, which belongs left of 0
            number = torch.where(values < 0, number.clamp(max=-1.0), number)
        slots = number.sub_(first).to(torch.int16 if self.bins < 2**15 else torch.int32)
        return torch.bincount(slots, minlength=self.bins + 3)

    def moved(self, place: Tensor, counts: Tensor, new: Tensor) -> Tensor:
        """The counts `... bins` of one place `2 ...`, at another, where bins are as wide or wider."""
        (width, first), (new_width, new_first) = place[..., None], new[..., None]
        bins = torch.arange(self.bins + 3, device=counts.device)
        wider = ((first + bins) >> (new_width - width).clamp(0, 63)) - new_first
        slot = torch.where(bins < self.bins, wider.clamp(0, self.bins - 1), bins)  # beyond the range are only zeros
        return torch.zeros_like(counts).scatter_add(-1, slot, counts)

    def _empty(self, like: Tensor) -> Tensor:
        return torch.zeros(self.bins + 3, dtype=torch.int64, device=like.device)


def start_and_width(place: np.ndarray) -> tuple[float, float]:
    """Where the first bin starts, and how wide each is: exact."""
    width_exponent, first = place.tolist()
    width = 2.0**width_exponent
    return first * width, width


def _compiled_for_cpu(values: Tensor) -> bool:
    return values.device.type == "cpu" and torch.compiler.is_compiling()


# The same as an operator of its own, in which a graph that is compiled for the CPU may look at values without a break.
# It is given the output as it lies in memory, which only the compiler knows.
_operators = torch.library.Library("torch_featviz", "FRAGMENT")  # type: ignore[no-untyped-call]
_operators.define(  # type: ignore[no-untyped-call]
    "histogram(Tensor[] state, Tensor values, int bins, bool symmetric) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.flexible_layout,),
)


def _on_cpu(state: list[Tensor], values: Tensor, bins: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    histogram = Histogram(bins, symmetric)
    histogram._state = tuple(state) or None
    extremes, place, counts = histogram._add(histogram._flat(values))
    return extremes.clone(), place.clone(), counts  # an operator returns nothing it was given


def _shapes(_state: list[Tensor], values: Tensor, bins: int, _symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    extremes = values.new_empty(2, dtype=wide(values.device))
    return extremes, values.new_empty(2, dtype=torch.int64), values.new_empty(bins + 3, dtype=torch.int64)


_operators.impl("histogram", _on_cpu, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("torch_featviz::histogram", _shapes, lib=_operators)


def _finite(values: Tensor) -> Tensor:
    small = 2.0**100 if values.device.type == "mps" else 2.0**1000
    return values.abs() < (small if values.dtype == wide(values.device) else _INF)


def _finite_extremes(values: Tensor) -> tuple[Tensor, bool]:
    """`_extremes`, and whether all values are finite, by one look where they are."""
    low, high = values.aminmax()
    extremes = torch.stack([low, -high])
    if bool(_finite(extremes).all()):
        return extremes.to(wide(values.device)), True
    return _extremes(values), False


def _extremes(values: Tensor) -> Tensor:
    """Smallest value and largest, this one negated, so that both are minima; inf where there is none."""
    finite = _finite(values)
    low, high = torch.where(finite, values, _INF).amin(), torch.where(finite, values, -_INF).amax()
    return torch.stack([low, -high]).to(wide(values.device))


def _number(values: Tensor, width_exponent: Tensor) -> Tensor:
    """`floor(values / 2**width_exponent)`, exact: also for a tiny negative value, whose quotient may become -0."""
    number = (values * power_of_two(-width_exponent, values.dtype)).floor()
    return torch.where(values < 0, number.clamp(max=-1.0), number)
