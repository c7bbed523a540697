"""Figures of many small outputs at once: what costs there is each call of an operator, not the arithmetic.

Outputs wait until the forward ends or many wait. All values of a channel then lie in rows of one matrix. On a CPU they
are copied meanwhile; on a GPU without Triton whoever calls sees to it that they do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_featviz.errors import ShapeError
from torch_featviz.launching import gpu

from .histogram import Histogram
from .moments import Moments
from .reducer import Reducer, has_figures, is_plain, power_of_two, same_channels
from .several import parts_of

SMALL = 2**14  # values of an output that waits: from there on its own operators cost less than many passes over it
MANY = 2**16  # values that wait, which so stay within a core's cache
_WIDTHS = tuple(2**i for i in range(1, 11))  # of rows
_TABLE = 3000  # rows, for which all takes as long as for another table
_KEPT = 64  # tables
_ON_GPU = (2**20, 2**22, 4)  # the same there, where a launch costs more, and what they take is memory
_MOST_BINS = 252
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # float64 may be too large to be squared in float64
_INF = float("inf")
_CPU = torch.device("cpu")


class _Item(NamedTuple):
    """One output, as far as tables depend on it."""

    layer: int
    outer: int
    channels: int
    inner: int


@dataclass
class _Table:
    """Where the values of some outputs are, once all that wait follow each other."""

    width: int  # of a row
    places: Tensor  # row by row
    channels: Tensor  # of each row, among those of all layers
    layers: Tensor  # of each row


class _Rows(NamedTuple):
    """Values of which each row is of one channel, and what moments and histograms both ask of them."""

    values: Tensor  # `rows width`
    finite: Tensor | None  # which; None where all are
    sums: Tensor  # of the finite values of each row
    low: Tensor  # the smallest one; inf where there is none
    high: Tensor


class Few:
    """The figures that `into` keeps, of many layers.

    Args:
        into: as it is given to a capture; one that `takes`.
        device: of the outputs.
    """

    def __init__(self, into: Reducer, device: torch.device = _CPU) -> None:
        self._device = device
        self._looks = device.type == "cpu"  # at values, which waits for nothing there
        self._small, self._many, self._kept = (SMALL, MANY, _KEPT) if self._looks else _ON_GPU
        self.changes = 0  # grows with what is read
        self._into = into
        self._parts = parts_of(into)
        self._moments = next((part for part in self._parts if isinstance(part, Moments)), None)
        self._histogram = next((part for part in self._parts if isinstance(part, Histogram)), None)
        self._layers: dict[tuple[str, int], int] = {}  # by name and channels
        self._channels: dict[str, int] = {}  # of each layer that ran in this block
        self._first = [0]  # channel of each layer, and how many there are
        self._tables: dict[tuple[_Item, ...], list[_Table]] = {}
        self._waiting: list[Tensor] = []
        self._items: list[_Item] = []
        self._values = 0
        self.last: _Item | None = None  # another object after each output
        self._sums: tuple[Tensor, Tensor] | None = None
        self._bins: tuple[Tensor, Tensor, Tensor] | None = None
        self._ran: set[int] = set()

    @staticmethod
    def takes(into: Reducer) -> bool:
        """Whether these are figures that can be kept so."""
        kinds = [type(part) for part in parts_of(into)]
        few = all(part.bins <= _MOST_BINS for part in parts_of(into) if isinstance(part, Histogram))
        return few and set(kinds) <= {Moments, Histogram} and len(set(kinds)) == len(kinds)

    def takes_output(self, output: Tensor) -> bool:
        """Whether it is one of those that cost less together."""
        if output.device != self._device or output.dtype not in _FLOATS or not is_plain(output):
            return False
        return 0 < output.numel() <= self._small and has_figures(output)

    def add(self, name: str, output: Tensor, channels: int = 1) -> None:
        """An output of layer `name`, with channels on that axis.

        Raises:
            ShapeError: as `Reducer.update` does.
        """
        axis = channels if self._moments is None else self._moments.axis(output, channels)
        shape = output.shape
        if axis is None or self._moments is None:
            outer, many, inner = 1, 1, output.numel()
        else:
            outer, many, inner = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
        same_channels(self._channels.setdefault(name, many), many)
        layer = self._layers.get((name, many))
        if layer is None:
            layer = self._layers[name, many] = len(self._layers)
            self._first.append(self._first[-1] + many)
        values = output.detach().reshape(-1)
        self._waiting.append(values.to(torch.float64, copy=True) if self._looks else values)
        self.last = _Item(layer, outer, many, inner)
        self._items.append(self.last)
        self._values += output.numel()
        if self._values > self._many:
            self.flush()

    def flush(self) -> None:
        """Add all that waits to the figures."""
        waiting, items = self._waiting, tuple(self._items)
        self._waiting, self._items, self._values = [], [], 0
        if not waiting:
            return
        if items not in self._tables:
            if len(self._tables) >= self._kept:
                self._tables.clear()
            self._tables[items] = self._tables_of(items)
        self._ran.update(item.layer for item in items)
        with torch.inference_mode(False), torch.no_grad():  # what is kept is changed again, perhaps outside that mode
            given = torch.cat(waiting).double()
            self.changes += 1
            for table in self._tables[items]:
                rows = self._rows(given.index_select(0, table.places).view(-1, table.width))
                if self._moments is not None:
                    self._add_moments(table, rows)
                if self._histogram is not None:
                    self._add_counts(self._histogram, table, rows)

    read = flush

    def overtaken(self, reducers: Mapping[str, Reducer]) -> bool:  # noqa: ARG002 - what others add is merged with
        """Whether figures here can no longer be added to the reducers."""
        return False

    def settle(self, reducers: Mapping[str, Reducer], *, last: bool = False) -> dict[str, str]:  # noqa: ARG002
        """Add the figures so far to each layer's reducer, and begin anew.

        Returns:
            The layers of which that cannot be, since larger outputs had other channels, and why.
        """
        self.flush()
        sums, bins, ran, refused = self._sums, self._bins, self._ran, dict[str, str]()
        self._sums, self._bins, self._ran = None, None, set()
        for (name, _), layer in self._layers.items() if ran else ():
            if layer not in ran:
                continue
            channels, state = slice(self._first[layer], self._first[layer + 1]), list[Tensor]()
            for part in self._parts:
                if isinstance(part, Moments) and sums is not None:
                    state += [figures[:, channels].clone() for figures in sums]
                elif bins is not None:
                    extremes, place, counts = bins
                    state += [each.clone() for each in (extremes[:, layer], place[:, layer], counts[layer])]
            if reducers[name].empty:
                reducers[name]._state = tuple(state)
                continue
            seen = self._into.fresh()
            seen._state = tuple(state)
            try:
                reducers[name].merge(seen)
            except ShapeError as error:
                refused[name] = str(error)
        return refused

    def end_block(self) -> None:
        """Another block may come, in which layers have other numbers of channels."""
        self._channels.clear()

    def _add_moments(self, table: _Table, rows: _Rows) -> None:
        sums, totals = self._sums = self._with_room_for_channels()
        channels, values, finite = table.channels, rows.values, rows.finite
        zero = (values == 0).sum(1)
        if finite is None:
            number = torch.full_like(zero, table.width)
            nan = infinite = torch.zeros_like(zero)
        else:
            number, nan = finite.sum(1), values.isnan().sum(1)
            infinite = table.width - number - nan
        mean = sums.new_zeros(2, sums.shape[1])
        mean.index_add_(1, channels, torch.stack([rows.sums, number.double()]))
        sums[0] = torch.where(totals[0] > 0, sums[0], mean[0] / mean[1].clamp(min=1))
        distance = values - sums[0].index_select(0, channels)[:, None]
        if finite is not None:
            distance = torch.where(finite, distance, 0.0)
        squares = torch.linalg.vecdot(distance, distance)
        sums[1:3].index_add_(1, channels, torch.stack([distance.sum(1), squares]))
        sums[3].scatter_reduce_(0, channels, rows.low, "amin")
        sums[4].scatter_reduce_(0, channels, rows.high, "amax")
        totals.index_add_(1, channels, torch.stack([number, zero, nan, infinite]))

    def _add_counts(self, histogram: Histogram, table: _Table, rows: _Rows) -> None:
        first = self._bins is None
        extremes, place, counts = self._with_room_for_bins(histogram)
        extremes = extremes.clone()
        for row, ends in enumerate((rows.low, -rows.high)):
            extremes[row].scatter_reduce_(0, table.layers, ends, "amin")
        new_place = histogram.place_of(extremes)
        if not first:
            counts = histogram.moved(place, counts, new_place)
        of_rows = new_place.index_select(1, table.layers)[..., None]
        start = table.layers[:, None] * counts.shape[1]
        if rows.finite is None:  # no value of float32 becomes -0 in float64, and all these numbers are exact there
            number = rows.values * power_of_two(-of_rows[0], torch.float64)
            slots = number.floor_().add_((start - of_rows[1]).double()).long()
        else:
            slots = histogram.slots(rows.values, of_rows) + start
        if self._looks:
            counts += torch.bincount(slots.flatten(), minlength=counts.numel()).view(counts.shape)
        else:
            counts.view(-1).scatter_add_(0, slots.flatten(), torch.ones_like(slots).flatten())
        self._bins = extremes, new_place, counts

    def _with_room_for_channels(self) -> tuple[Tensor, Tensor]:
        """Sums and totals of all layers, also of those that came since."""
        sums, totals = self._sums or (self._empty(5, 0).double(), self._empty(4, 0))
        more = self._first[-1] - sums.shape[1]
        if not more:
            return sums, totals
        new = sums.new_zeros(5, more)
        new[3], new[4] = _INF, -_INF
        return torch.cat([sums, new], 1), torch.cat([totals, totals.new_zeros(4, more)], 1)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device=self._device)

    def _with_room_for_bins(self, histogram: Histogram) -> tuple[Tensor, Tensor, Tensor]:
        """Extremes, places and counts of all layers."""
        if self._bins is None:
            self._bins = self._empty(2, 0).double(), self._empty(2, 0), self._empty(0, histogram.bins + 3)
        extremes, place, counts = self._bins
        more = len(self._layers) - len(counts)
        if not more:
            return extremes, place, counts
        extremes = torch.cat([extremes, extremes.new_full((2, more), _INF)], 1)
        counts = torch.cat([counts, counts.new_zeros(more, counts.shape[1])])
        return extremes, torch.cat([place, place.new_zeros(2, more)], 1), counts

    def _tables_of(self, items: tuple[_Item, ...]) -> list[_Table]:
        """Rows of one width, and what does not fill a row value by value."""
        width, start = _width(items), 0
        found: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {width: [], 1: []}
        for layer, outer, many, inner in items:
            of_channel = start + np.arange(outer)[:, None] * many * inner + np.arange(inner)
            each = of_channel.reshape(1, -1) + np.arange(many)[:, None] * inner
            end = each.shape[1] // width * width
            for of_width, places in ((width, each[:, :end]), (1, each[:, end:])):
                rows = places.shape[1] // of_width
                channels = np.repeat(self._first[layer] + np.arange(many), rows)
                found[of_width].append((places.reshape(-1), channels, np.full(many * rows, layer)))
            start += outer * many * inner
        tables = []
        for of_width, several in found.items():
            parts = [np.concatenate(each) for each in zip(*several, strict=True)]
            if len(parts[0]):
                tables.append(_Table(of_width, *(self._there(part) for part in parts)))
        return tables

    def _there(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers) if self._looks else gpu.upload(numbers, self._device)

    def _rows(self, values: Tensor) -> _Rows:
        sums = values.sum(1)
        if self._looks and bool(sums.isfinite().all()):  # values of float32 cannot make it infinite
            return _Rows(values, None, sums, values.amin(1), values.amax(1))
        finite = values.abs() < _INF
        low, high = (torch.where(finite, values, end) for end in (_INF, -_INF))
        return _Rows(values, finite, torch.where(finite, values, 0.0).sum(1), low.amin(1), high.amax(1))


def _width(items: tuple[_Item, ...]) -> int:
    """The width that costs least: the fewest rows, but rather one table than two."""
    lengths = {item.outer * item.inner for item in items}

    def cost(width: int) -> int:
        rows = sum(item.channels * sum(divmod(item.outer * item.inner, width)) for item in items)
        return rows + _TABLE * any(length % width for length in lengths)

    tried: list[int] = [*_WIDTHS, *(length for length in lengths if length < _WIDTHS[-1])]
    return min(tried, key=cost)
