"""Figures of many small outputs at once: what costs there is each call of an operator, not the arithmetic.

Outputs wait until the forward ends or many wait. All values of a channel then lie in rows of one matrix, those of each
image apart where images count. On a CPU they are copied meanwhile; on a GPU without Triton whoever calls sees to it
that they do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_featviz.capture.eager import all_eager
from torch_featviz.errors import ShapeError
from torch_featviz.launching import gpu

from .histogram import Histogram
from .moments import Moments
from .reducer import Reducer, has_figures, is_plain, power_of_two, same_channels
from .several import parts_of
from .topk import TopK

SMALL = 2**14  # values of an output that waits: from there on its own operators cost less than many passes over it
MANY = 2**16  # values that wait, which so stay within a core's cache
_WIDTHS = tuple(2**i for i in range(1, 11))  # of rows
_TABLE = 3000  # rows, for which all takes as long as for another table
_ROW = 8  # values, that cost as much on a GPU as another row
_KEPT = 64  # tables
_MOST_BINS = 252
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # float64 may be too large to be squared in float64
_INF = float("inf")
_NO_KEY, _LAST = -(2**63), 2**31 - 1
_CPU = torch.device("cpu")
_NOTHING = torch.empty(0, device=_CPU)


class _Item(NamedTuple):
    """One output, as far as tables depend on it."""

    layer: int
    images: int  # that are told apart
    outer: int  # of each
    channels: int
    inner: int


@dataclass
class _Table:
    """Where the values of some outputs are, once all that wait follow each other."""

    width: int  # of a row
    places: Tensor  # row by row
    channels: Tensor  # of each row, among those of all layers
    layers: Tensor  # of each row
    padding: Tensor | None = None  # NaN at the end of each row that is in no output
    peaks: Tensor = _NOTHING  # of each row, its image and channel, among all that came
    keys: Tensor = _NOTHING  # `rows width`: the larger, the earlier the place in the map


class _Peaks(NamedTuple):
    """Where the highest values of some outputs are, image after image, for the channels of all layers."""

    number: int
    at: Tensor  # `images channels`; beyond the last where there is none
    images: Tensor  # how many came, of each channel


class _Tops(NamedTuple):
    """The highest values of each channel, and their images and places."""

    nan: Tensor
    keys: Tensor  # `k channels`, in the order of the values
    images: Tensor
    positions: Tensor
    seen: Tensor  # images


class _Rows(NamedTuple):
    """Values of which each row is of one channel, and what moments and histograms both ask of them."""

    values: Tensor  # `rows width`
    finite: Tensor | None  # which; None where all are
    sums: Tensor  # of the finite values of each row
    low: Tensor  # the smallest one; inf where there is none
    high: Tensor


@all_eager
class Few:
    """The figures that `into` keeps, of many layers.

    Args:
        into: as it is given to a capture; one that `takes`.
        device: of the outputs.
    """

    def __init__(self, into: Reducer, device: torch.device = _CPU) -> None:
        self._device = device
        self._looks = device.type == "cpu"  # at values, which waits for nothing there
        self._small, self._many, self._kept = SMALL, MANY, _KEPT
        if not self._looks:  # there a launch costs more, and what many take is memory
            self._small, self._many, self._kept = 2**20, gpu.budget(device) // 5, 4
        self.changes = 0  # grows with what is read
        self._into = into
        self._parts = parts_of(into)
        self._moments = next((part for part in self._parts if isinstance(part, Moments)), None)
        self._histogram = next((part for part in self._parts if isinstance(part, Histogram)), None)
        self._top = next((part for part in self._parts if isinstance(part, TopK)), None)
        self._layers: dict[tuple[str, int], int] = {}  # by name and channels
        self._channels: dict[str, int] = {}  # of each layer that ran in this block
        self._first = [0]  # channel of each layer, and how many there are
        self._tables: dict[tuple[tuple[_Item, ...], int], tuple[list[_Table], _Peaks | None]] = {}
        self._waiting: list[Tensor] = []
        self._items: list[_Item] = []
        self._values = 0
        self.last: _Item | None = None  # another object after each output
        self._sums: tuple[Tensor, Tensor] | None = None
        self._bins: tuple[Tensor, Tensor, Tensor] | None = None
        self._tops: _Tops | None = None
        self._ran: set[int] = set()

    @staticmethod
    def takes(into: Reducer, device: torch.device = _CPU) -> bool:
        """Whether these are figures that can be kept so; `TopK` is one on a GPU only."""
        parts = parts_of(into)
        kinds = [type(part) for part in parts]
        few = all(part.bins <= _MOST_BINS for part in parts if isinstance(part, Histogram))
        known = {Moments, Histogram} if device.type == "cpu" else {Moments, Histogram, TopK}
        dims = {part.dim for part in parts if isinstance(part, (Moments, TopK))}
        return few and set(kinds) <= known and len(set(kinds)) == len(kinds) and len(dims) <= 1

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
        of_channels = self._top or self._moments
        axis = channels if of_channels is None else of_channels.axis(output, channels)
        shape, images = output.shape, 1
        if axis is None or of_channels is None:
            outer, many, inner = 1, 1, output.numel()
        else:
            outer, many, inner = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
        if self._top is not None:
            images, outer = shape[0], outer // shape[0]
        same_channels(self._channels.setdefault(name, many), many)
        layer = self._layers.get((name, many))
        if layer is None:
            layer = self._layers[name, many] = len(self._layers)
            self._first.append(self._first[-1] + many)
        values = output.detach().reshape(-1)
        self._waiting.append(values.to(torch.float64, copy=True) if self._looks else values)
        self.last = _Item(layer, images, outer, many, inner)
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
        key = items, 0 if self._top is None else len(self._layers)
        if key not in self._tables:
            if len(self._tables) >= self._kept:
                self._tables.clear()
            self._tables[key] = self._tables_of(items)
        self._ran.update(item.layer for item in items)
        with torch.inference_mode(False), torch.no_grad():  # what is kept is changed again, perhaps outside that mode
            if not self._looks:  # the last value fills rows
                waiting = [*waiting, torch.full((1,), torch.nan, device=self._device)]
            given = torch.cat(waiting).double()
            self.changes += 1
            tables, peaks = self._tables[key]
            several = [self._rows(given.index_select(0, table.places).view(-1, table.width)) for table in tables]
            for table, rows in zip(tables, several, strict=True):
                if self._moments is not None:
                    self._add_moments(table, rows)
                if self._histogram is not None:
                    self._add_counts(self._histogram, table, rows)
            if self._top is not None and peaks is not None:
                self._tops = self._with_tops(self._top.k, tables, several, peaks)

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
        sums, bins, tops, ran, refused = self._sums, self._bins, self._tops, self._ran, dict[str, str]()
        self._sums, self._bins, self._tops, self._ran = None, None, None, set()
        for (name, _), layer in self._layers.items() if ran else ():
            if layer not in ran:
                continue
            channels, state = slice(self._first[layer], self._first[layer + 1]), list[Tensor]()
            for part in self._parts:
                if isinstance(part, Moments) and sums is not None:
                    state += [figures[:, channels].clone() for figures in sums]
                elif isinstance(part, TopK) and tops is not None:
                    state += _state_of(tops, channels)
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
            nan = nan if table.padding is None else nan - table.padding
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
            if table.padding is not None:
                counts[:, histogram.bins].index_add_(0, table.layers, table.padding, alpha=-1)
        self._bins = extremes, new_place, counts

    def _with_tops(self, k: int, tables: list[_Table], several: list[_Rows], peaks: _Peaks) -> _Tops:
        """The highest values so far and those of these rows, of which keys tell the higher and then the earlier."""
        nan, keys, images, positions, seen = self._with_room_for_tops(k)
        found = torch.full((peaks.number + 1,), _NO_KEY, device=self._device)
        for table, rows in zip(tables, several, strict=True):
            broken = rows.values.isnan()
            broken_here = broken.sum(1) if table.padding is None else broken.sum(1) - table.padding
            nan = nan.index_add(0, table.channels, broken_here)
            ordered = _ordered(torch.where(broken, -_INF, rows.values).float().add_(0.0), torch.int32)  # no -0
            found.scatter_reduce_(0, table.peaks, (ordered.long() << 32).bitwise_or_(table.keys).amax(1), "amax")
        new = found[peaks.at]
        absent, place = new == _NO_KEY, _LAST - (new & _LAST)
        value = _value(new.bitwise_right_shift_(32).int(), torch.float32)
        keys = torch.cat([keys, torch.where(absent, _NO_KEY, _ordered(value.double(), torch.int64))])
        images = torch.cat([images, seen + torch.arange(len(new), device=self._device)[:, None]])
        order = keys.sort(dim=0, descending=True, stable=True).indices[:k]
        positions = torch.cat([positions, place])
        keys, images, positions = (each.gather(0, order) for each in (keys, images, positions))
        return _Tops(nan, keys, images, positions, seen + peaks.images)

    def _with_room_for_tops(self, k: int) -> _Tops:
        if self._tops is None:
            keys, images, positions = (self._empty(k, 0) for _ in range(3))
            self._tops = _Tops(self._empty(0), keys, images, positions, self._empty(0))
        nan, keys, images, positions, seen = self._tops
        more = self._first[-1] - len(nan)
        if not more:
            return _Tops(nan, keys, images, positions, seen)
        none = nan.new_zeros(more)
        keys = torch.cat([keys, keys.new_full((k, more), _NO_KEY)], 1)
        images, positions = (torch.cat([each, each.new_zeros(k, more)], 1) for each in (images, positions))
        return _Tops(torch.cat([nan, none]), keys, images, positions, torch.cat([seen, none]))

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

    def _tables_of(self, items: tuple[_Item, ...]) -> tuple[list[_Table], _Peaks | None]:
        """Rows of one width, and where the peaks of images are.

        On a CPU what does not fill a row is taken value by value; on a GPU, where launches cost more, rows are filled.
        """
        padded = not self._looks
        width, start, peaks = _width(items, padded=padded), 0, 0
        size = sum(item.images * item.outer * item.channels * item.inner for item in items)
        found: dict[int, list[tuple[np.ndarray, ...]]] = {width: []} if padded else {width: [], 1: []}
        for layer, images, outer, many, inner in items:
            length = outer * inner
            each = np.arange(start, start + images * length * many).reshape(images, outer, many, inner).swapaxes(1, 2)
            each = each.reshape(images * many, length)
            keys = np.broadcast_to(_LAST - np.arange(length), each.shape)
            missing = -length % width if padded else 0
            each, keys = (np.pad(a, ((0, 0), (0, missing)), constant_values=b) for a, b in ((each, size), (keys, 0)))
            end = each.shape[1] // width * width
            channels = np.tile(self._first[layer] + np.arange(many), images)
            for of_width, part in zip(found, (slice(0, end), slice(end, None)), strict=False):
                places = each[:, part]
                rows = places.shape[1] // of_width
                of_rows = [np.repeat(numbers, rows) for numbers in (channels, peaks + np.arange(len(channels)))]
                padding = np.where(np.arange(len(of_rows[0])) % max(rows, 1) == rows - 1, missing, 0)
                layers = np.full(len(of_rows[0]), layer)
                found[of_width].append((places.ravel(), of_rows[0], layers, padding, of_rows[1], keys[:, part].ravel()))
            start, peaks = start + images * length * many, peaks + len(channels)
        tables = []
        for of_width, several in found.items():
            places, channels, layers, padding, owners, keys = map(np.concatenate, zip(*several, strict=True))
            if len(places):
                table = _Table(of_width, *(self._there(numbers) for numbers in (places, channels, layers)))
                if padded:
                    table.padding = self._there(padding)
                if self._top is not None:
                    table.peaks, table.keys = self._there(owners), self._there(keys.reshape(-1, of_width))
                tables.append(table)
        return tables, None if self._top is None else self._peaks_of(items, peaks)

    def _peaks_of(self, items: tuple[_Item, ...], number: int) -> _Peaks:
        images = np.zeros(self._first[-1], dtype=np.int64)
        at, start = np.full((sum(item.images for item in items), len(images)), number), 0
        for layer, several, _, many, _ in items:
            channels = slice(self._first[layer], self._first[layer] + many)
            before = images[channels][0]
            at[before : before + several, channels] = start + np.arange(several * many).reshape(several, many)
            images[channels] += several
            start += several * many
        return _Peaks(number, self._there(at[: images.max()]), self._there(images))

    def _there(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers) if self._looks else gpu.upload(numbers, self._device)

    def _rows(self, values: Tensor) -> _Rows:
        sums = values.sum(1)
        if self._looks and bool(sums.isfinite().all()):  # values of float32 cannot make it infinite
            return _Rows(values, None, sums, values.amin(1), values.amax(1))
        finite = values.abs() < _INF
        low, high = (torch.where(finite, values, end) for end in (_INF, -_INF))
        return _Rows(values, finite, torch.where(finite, values, 0.0).sum(1), low.amin(1), high.amax(1))


def _ordered(values: Tensor, kind: torch.dtype) -> Tensor:
    """Floats as integers of as many bits, in the same order."""
    bits = values.view(kind)
    last = torch.iinfo(kind)
    return bits ^ ((bits >> (last.bits - 1)) & last.max)


def _value(ordered: Tensor, kind: torch.dtype) -> Tensor:
    """And back."""
    last = torch.iinfo(ordered.dtype)
    return (ordered ^ ((ordered >> (last.bits - 1)) & last.max)).view(kind)


def _state_of(tops: _Tops, channels: slice) -> list[Tensor]:
    """The state of `TopK` of one layer."""
    nan, keys, *places, seen = tops
    absent = keys[:, channels] == _NO_KEY
    values = torch.where(absent, -_INF, _value(keys[:, channels], torch.float64))
    return [nan[channels], values, *(torch.where(absent, -1, each[:, channels]) for each in places), seen[channels][0]]


def _width(items: tuple[_Item, ...], *, padded: bool) -> int:
    """The width that costs least: the fewest rows, but rather one table than two; or the least padding."""
    lengths = {item.outer * item.inner for item in items}

    def cost(width: int) -> int:
        rows = [(item.images * item.channels, *divmod(item.outer * item.inner, width)) for item in items]
        if padded:
            return sum(number * (whole + (rest > 0)) * (width + _ROW) for number, whole, rest in rows)
        return sum(number * (whole + rest) for number, whole, rest in rows) + _TABLE * any(rest for *_, rest in rows)

    tried: list[int] = [*_WIDTHS, *(length for length in lengths if length < _WIDTHS[-1])]
    return min(tried, key=cost)
