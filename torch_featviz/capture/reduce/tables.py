"""What kernels are told about many outputs: which rows a program reads, and what of which layer they are.

Tables depend on shapes and strides alone, and are kept: a forward like one before sends addresses only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_featviz.launching import gpu

from .histogram import Histogram
from .moments import Moments
from .reducer import Reducer
from .several import parts_of
from .topk import TopK

CHANNELS, PLACES = 32, 128  # of a row: as many values as a program adds up at once
PROGRAMS, ROWS = 1024, (4, 64)  # what a GPU is given to do at once; rows of a program: kernels count to 255
FEW = 32  # programs whose figures one more adds up by itself
FOLDS = {CHANNELS: {"G": 8, "num_warps": 1}, 4: {"G": 256, "num_warps": 8}}  # by channels: how, of few and of many
SELECTED, LANES = 64, 16  # images and channels that one program of `select` looks through
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
WIDE = 3
_KEPT = 64  # tables of each kind
_MOST_BINS, _MOST_IMAGES = 252, 128  # of each channel


class Geometry(NamedTuple):
    """An output as `images channels places`: sizes, and strides in numbers."""

    images: int
    channels: int
    places: int
    by_image: int
    by_channel: int
    by_place: int


def geometry(shape: Sequence[int], strides: Sequence[int], axis: int | None, *, images: bool) -> Geometry | None:
    """Of an output whose channels are on `axis` (None: all is one channel); None where strides do not allow it.

    Channels or places lie side by side.

    Args:
        images: whether images, on axis 0, have to be told apart.
    """
    axes = list(zip(shape, strides, strict=True))
    channels, by_channel = (1, 1) if axis is None else axes.pop(axis)
    by_channel = 1 if channels == 1 else by_channel  # there is no other, so that places may lie as they like
    count, by_image = axes.pop(0) if axes and axis not in (None, 0) else (1, 0)
    places, by_place = 1, 0
    for size, stride in reversed(axes):
        if size == 1:
            continue
        if places > 1 and stride != by_place * places:
            return None
        by_place = by_place if places > 1 else stride
        places *= size
    if places == 1 and not images:
        count, places, by_image, by_place = 1, count, 0, by_image
    seen = Geometry(count, channels, places, by_image, by_channel, by_place)
    return seen if 1 in (by_channel, by_place) else None


class Item(NamedTuple):
    """One output, as far as tables depend on it."""

    layer: int
    kind: int
    geometry: Geometry


Items = tuple[Item, ...]


class Figures:
    """Which figures are kept of each layer, and of which shapes."""

    def __init__(self, into: Reducer) -> None:
        self.parts = parts_of(into)
        found = {type(part): part for part in self.parts}
        moments, histogram, top = (found.get(kind) for kind in (Moments, Histogram, TopK))
        self._of_channels = top or moments
        self.per_channel = self._of_channels is not None
        self.bins = histogram.bins if isinstance(histogram, Histogram) else 0
        self.symmetric = isinstance(histogram, Histogram) and histogram.symmetric
        self.padded_bins = power_of_two(self.bins)
        self.k = top.k if isinstance(top, TopK) else 0

    @staticmethod
    def takes(into: Reducer) -> bool:
        """Whether kernels can keep these."""
        parts = parts_of(into)
        kinds = [type(part) for part in parts]
        dims = {part.dim for part in parts if isinstance(part, (Moments, TopK))}
        bins = [part.bins for part in parts if isinstance(part, Histogram)]
        known = set(kinds) <= {Moments, Histogram, TopK} and len(set(kinds)) == len(kinds)
        many = [part.k for part in parts if isinstance(part, TopK)]
        few = all(number <= _MOST_BINS for number in bins) and all(number <= _MOST_IMAGES for number in many)
        return known and len(dims) <= 1 and few

    def axis(self, output: Tensor, channels: int) -> int | None:
        """The axis of channels of `output`; None where all is one channel.

        Raises:
            ShapeError: it has none.
        """
        if isinstance(self._of_channels, (Moments, TopK)):
            return self._of_channels.axis(output, channels)
        return channels % output.ndim if -output.ndim <= channels < output.ndim else None

    def geometry(self, output: Tensor, axis: int | None) -> Geometry | None:
        """As `geometry`."""
        return geometry(output.shape, output.stride(), axis, images=self.k > 0)

    def states(self, layers: int, width: int) -> dict[str, tuple[tuple[int, ...], int, list[float], torch.dtype]]:
        """By name: shape for so many layers, and channels in all; the axis of these; what it is at first; dtype."""
        states: dict[str, tuple[tuple[int, ...], int, list[float], torch.dtype]] = {}
        if self.per_channel:
            states["sums"] = (5, width), 1, [0, 0, 0, torch.inf, -torch.inf], torch.float64
            states["totals"] = (4, width), 1, [0], torch.int64
        if self.bins:
            states["extremes"] = (layers, 2), 0, [torch.inf], torch.float64
            states["place"] = (layers, 2), 0, [0], torch.int64
            states["counts"] = (layers, self.bins + 3), 0, [0], torch.int64
            states["local"] = (layers, self.padded_bins), 0, [0], torch.int64
        if self.k:
            states["values"] = (self.k, width), 1, [-torch.inf], torch.float64
            states["images"] = states["positions"] = (self.k, width), 1, [-1], torch.int64
        return states


@dataclass
class Reading:
    """The tables for reading outputs of these layers and shapes."""

    items: Tensor
    programs: Tensor
    owners: np.ndarray  # layer, block of channels of each program
    best: int  # rows of `best`

    @property
    def number(self) -> int:
        """How many programs."""
        return len(self.owners)


@dataclass
class Folding:
    """The tables for adding what was read to the states."""

    folds: dict[int, Tensor]  # by how many channels one program takes
    spans: Tensor  # of each layer that was read, its first program and end
    rounds: list[Tensor]  # for `select`
    of: list[Reading]  # which live as long as this, since it is found by them


class Tables:
    """Tables for the layers of one model, on one device; the layers are numbered as they come.

    Args:
        into: as it is given to a capture; one that `Figures` takes.
        device: of the outputs.
    """

    def __init__(self, into: Reducer, device: torch.device) -> None:
        self.figures, self.device = Figures(into), device
        self.layers: dict[tuple[str, int], int] = {}  # by name and channels
        self._first: list[int] = []  # channel of each layer, of so many
        self._channels: list[int] = []
        self._items: dict[
            str, tuple[torch.Size, tuple[int, ...], torch.dtype, int, Item]
        ] = {}  # the last of each layer
        self._readings: dict[Items, Reading] = {}
        self._foldings: dict[tuple[int, ...], Folding] = {}
        self._empty: dict[str, Tensor] = {}

    @property
    def width(self) -> int:
        """Channels of all layers."""
        return self._first[-1] + self._channels[-1] if self._first else 0

    def span(self, layer: int) -> slice:
        """The channels of one layer, among those of all."""
        return slice(self._first[layer], self._first[layer] + self._channels[layer])

    def item(self, name: str, output: Tensor, channels: int) -> tuple[Tensor, Item]:
        """The output of layer `name`, or a copy where its strides are odd, and what tables are made of.

        Raises:
            ShapeError: as the reducers do.
        """
        shape, strides = output.shape, output.stride()
        last = self._items.get(name)
        if last is not None and last[:4] == (shape, strides, output.dtype, channels):
            return output, last[4]
        axis = self.figures.axis(output, channels)
        seen = self.figures.geometry(output, axis)
        if seen is None:
            output = _channels_last(output.detach(), axis)
            seen = self.figures.geometry(output, axis)
            assert seen is not None, "all places follow each other"
        key_of_layer = (name, seen.channels if self.figures.per_channel else 1)
        layer = self.layers.get(key_of_layer)
        if layer is None:
            layer, width = len(self.layers), self.width
            self.layers[key_of_layer] = layer
            self._first.append(width)
            self._channels.append(seen.channels)
        item = Item(layer, KINDS[output.dtype], seen)
        if strides == output.stride():
            self._items[name] = shape, strides, output.dtype, channels, item
        return output, item

    def empty(self) -> dict[str, Tensor]:
        """The states before anything was seen, by name; not to be written to."""
        for name, (shape, axis, fills, dtype) in self.figures.states(len(self.layers), self.width).items():
            held = self._empty.get(name)
            if held is None or held.shape[axis] != shape[axis]:
                held = self._empty[name] = torch.empty(shape, dtype=dtype, device=self.device)
                for row, fill in enumerate(fills):
                    (held if len(fills) == 1 else held[row]).fill_(fill)
                self._foldings.clear()
        return self._empty

    def reading(self, items: Items) -> Reading:
        """The tables for reading these."""
        if items not in self._readings:
            if len(self._readings) == _KEPT:
                self._readings.clear()
                self._foldings.clear()
            self._readings[items] = self._new_reading(items)
        return self._readings[items]

    def folding(self, read: list[tuple[Reading, Items]]) -> Folding:
        """The tables for adding what was read."""
        key = tuple([id(reading) for reading, _ in read])
        if key not in self._foldings:
            if len(self._foldings) == _KEPT:
                self._foldings.clear()
            self._foldings[key] = self._new_folding(read)
        return self._foldings[key]

    def _new_reading(self, items: Items) -> Reading:
        rows, programs, best = [], [], 0
        views = [_rows_of(seen, each_is_an_image=self.figures.k > 0 and seen.places == 1) for _, _, seen in items]
        blocks_of = [-(-seen.channels // CHANNELS) for seen in views]
        number = sum(_rows(seen) * blocks for seen, blocks in zip(views, blocks_of, strict=True))
        most = min(max(ROWS[0], -(-number // PROGRAMS)), ROWS[1])
        for j, ((layer, _, seen), view, blocks) in enumerate(zip(items, views, blocks_of, strict=True)):
            nearest = view.by_channel == 1 and (view.by_place != 1 or view.places < view.channels)
            rows.append([*view, best, int(nearest), int(view is not seen)])
            starts = np.arange(0, _rows(view), most)
            block, start = (each.ravel() for each in np.meshgrid(np.arange(blocks), starts, indexing="ij"))
            end = np.minimum(start + most, _rows(view))
            programs.append(np.stack([np.full_like(start, layer), block, np.full_like(start, j), start, end], 1))
            best += seen.images * seen.channels
        ordered = np.concatenate(programs)
        ordered = ordered[np.lexsort(ordered.T[::-1])]
        layers = ordered[:, 0]
        spans = [np.searchsorted(layers, layers, side) for side in ("left", "right")]
        told = np.column_stack([ordered[:, [2, 1, 3, 4, 0]], *spans])
        on_device = self._uploaded([np.array(rows), told])
        return Reading(on_device[0], on_device[1], ordered[:, :2], best + best % 2)  # an even number, see `_uploaded`

    def _new_folding(self, read: list[tuple[Reading, Items]]) -> Folding:
        owners = np.concatenate([reading.owners for reading, _ in read])
        first, channels = np.array(self._first), np.array(self._channels)
        starts = np.flatnonzero(np.any(np.diff(owners, axis=0, prepend=-1) != 0, axis=1))
        ends = np.append(starts[1:], len(owners))
        layers, blocks = owners[starts].T
        left = np.minimum(channels[layers] - blocks * CHANNELS, CHANNELS)
        folds = np.stack([starts, ends, first[layers] + blocks * CHANNELS, left, np.zeros_like(left)], 1)
        few = ends - starts <= FEW
        parted = {lanes: _parted(folds[few if lanes == CHANNELS else ~few], lanes) for lanes in FOLDS}
        parted = {lanes: rows for lanes, rows in parted.items() if len(rows)}
        first_of = np.flatnonzero(np.diff(owners[:, 0], prepend=-1) != 0)
        spans = np.stack([owners[first_of, 0], first_of, np.append(first_of[1:], len(owners))], 1)
        rounds = self._rounds(read) if self.figures.k else []
        spans_there, *others = self._uploaded([spans, *parted.values(), *rounds])
        number = len(parted)
        folds_there, others = dict(zip(parted, others[:number], strict=True)), others[number:]
        return Folding(folds_there, spans_there, others, [reading for reading, _ in read])

    def _rounds(self, read: list[tuple[Reading, Items]]) -> list[np.ndarray]:
        """Tables for `select`: what is of one layer and block of channels one after the other, the others at once."""
        rounds: list[list[list[int]]] = []
        turns: dict[tuple[int, int], int] = {}
        before, i = 0, 0
        for reading, items in read:
            best = before
            for layer, _, seen in items:
                for start, lane in itertools.product(range(0, seen.images, SELECTED), range(0, seen.channels, LANES)):
                    turn = turns.get((layer, lane), 0)
                    turns[layer, lane] = turn + 1
                    if turn == len(rounds):
                        rounds.append([])
                    row, number = best + start * seen.channels, min(SELECTED, seen.images - start)
                    rounds[turn].append([row, seen.channels, lane, self._first[layer] + lane, number, i, start])
                best += seen.images * seen.channels
                i += 1
            before += reading.best
        return [np.array(rows) for rows in rounds]

    def _uploaded(self, tables: list[np.ndarray]) -> list[Tensor]:
        """On the device, by one copy; each begins at a multiple of 16 bytes, or Triton would compile once more."""
        padded = [np.pad(table.ravel(), (0, table.size % 2)) for table in tables]
        pieces = torch.split(gpu.upload(np.concatenate(padded).astype(np.int64), self.device), [*map(len, padded)])
        return [piece[: table.size].view(table.shape) for piece, table in zip(pieces, tables, strict=True)]


def _parted(folds: np.ndarray, lanes: int) -> np.ndarray:
    """Each block of channels in parts of so many."""
    parts = []
    for lane in range(0, CHANNELS, lanes):
        part = folds[folds[:, 3] > lane] + [0, 0, lane, -lane, lane]
        part[:, 3] = np.minimum(part[:, 3], lanes)
        parts.append(part)
    return np.concatenate(parts)


def _rows(seen: Geometry) -> int:
    return seen.images * -(-seen.places // PLACES)


def _rows_of(seen: Geometry, *, each_is_an_image: bool) -> Geometry:
    """As rows are read: images of one place each side by side."""
    if not each_is_an_image:
        return seen
    return Geometry(1, seen.channels, seen.images, 0, seen.by_channel, seen.by_image)


def power_of_two(least: int) -> int:
    """The smallest that is not less."""
    return 1 << max(0, least - 1).bit_length()


def _channels_last(output: Tensor, axis: int | None) -> Tensor:
    """A copy in which the channels are nearest in memory."""
    return output.contiguous() if axis is None else output.movedim(axis, -1).contiguous().movedim(-1, axis)
