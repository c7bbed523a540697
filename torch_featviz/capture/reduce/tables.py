"""What kernels are told about many outputs: which tiles to read, and what of which layer they are.

Tables depend on shapes and strides alone, and are kept: a forward like one before sends addresses only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_featviz.launching import gpu

from .histogram import Histogram
from .moments import Moments
from .reducer import Reducer
from .several import parts_of
from .topk import TopK

CHANNELS, PLACES = 32, 128  # of a tile
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

    @property
    def tiles(self) -> tuple[int, int, int]:
        """Images, blocks of channels, blocks of places."""
        return self.images, -(-self.channels // CHANNELS), -(-self.places // PLACES)


def geometry(shape: Sequence[int], strides: Sequence[int], axis: int | None, *, images: bool) -> Geometry | None:
    """Of an output whose channels are on `axis` (None: all is one channel); None where strides do not allow it.

    Args:
        images: whether images, on axis 0, have to be told apart.
    """
    axes = list(zip(shape, strides, strict=True))
    channels, by_channel = (1, 0) if axis is None else axes.pop(axis)
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
    return Geometry(count, channels, places, by_image, by_channel, by_place)


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
        self.padded_bins = power_of_two(self.bins + 4)
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
            states["counts"] = (layers, self.padded_bins), 0, [0], torch.int64
        if self.k:
            states["values"] = (self.k, width), 1, [-torch.inf], torch.float64
            states["images"] = states["positions"] = (self.k, width), 1, [-1], torch.int64
        return states


@dataclass
class Reading:
    """The tables for reading outputs of these layers and shapes."""

    items: Tensor
    tiles: Tensor
    owners: np.ndarray  # layer, block of channels of each tile
    best: int  # rows of `best`

    @property
    def number(self) -> int:
        """How many tiles."""
        return len(self.owners)


@dataclass
class Folding:
    """The tables for adding what was read to the states."""

    folds: Tensor
    spans: Tensor  # first tile of each layer, and end
    owners: Tensor  # the layer of each tile
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
        self._geometries: dict[Any, Geometry | None] = {}
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
        axis = self.figures.axis(output, channels)
        key = (output.shape, output.stride(), axis)
        if key not in self._geometries:
            self._geometries[key] = self.figures.geometry(output, axis)
        seen = self._geometries[key]
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
        return output, Item(layer, KINDS[output.dtype], seen)

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
        rows, tiles, best = [], [], 0
        for j, (layer, kind, seen) in enumerate(items):
            nearest = seen.by_channel < seen.by_place or seen.places == 1
            rows.append([kind, int(nearest), *seen[1:], best])
            images, blocks, parts = np.indices(seen.tiles).reshape(3, -1)
            tiles.append(np.stack([np.full_like(images, layer), blocks, np.full_like(images, j), images, parts], 1))
            best += seen.images * seen.channels
        ordered = np.concatenate(tiles)
        ordered = ordered[np.lexsort(ordered.T[::-1])]
        on_device = self._uploaded([np.array(rows), ordered[:, [2, 3, 1, 4]]])
        return Reading(on_device[0], on_device[1], ordered[:, :2], best)

    def _new_folding(self, read: list[tuple[Reading, Items]]) -> Folding:
        owners = np.concatenate([reading.owners for reading, _ in read])
        first, channels = np.array(self._first), np.array(self._channels)
        starts = np.flatnonzero(np.any(np.diff(owners, axis=0, prepend=-1) != 0, axis=1))
        ends = np.append(starts[1:], len(owners))
        layers, blocks = owners[starts].T
        left = np.minimum(channels[layers] - blocks * CHANNELS, CHANNELS)
        folds = np.stack([starts, ends, first[layers] + blocks * CHANNELS, left], 1)
        spans = np.zeros((len(self.layers), 2), dtype=np.int64)
        np.maximum.at(spans[:, 1], layers, ends)
        spans[layers[::-1], 0] = starts[::-1]  # the first of each layer is written last
        rounds = self._rounds([items for _, items in read]) if self.figures.k else []
        on_device = iter(self._uploaded([folds, spans, owners[:, :1], *rounds]))
        read_now = [reading for reading, _ in read]
        return Folding(next(on_device), next(on_device), next(on_device), list(on_device), read_now)

    def _rounds(self, read: list[Items]) -> list[np.ndarray]:
        """Tables for `select`: what is of one layer and block of channels one after the other, the others at once."""
        rounds: list[list[list[int]]] = []
        turns: dict[tuple[int, int], int] = {}
        best = 0
        for i, (layer, _, seen) in enumerate(itertools.chain(*read)):
            for start, lane in itertools.product(range(0, seen.images, SELECTED), range(0, seen.channels, LANES)):
                turn = turns.get((layer, lane), 0)
                turns[layer, lane] = turn + 1
                if turn == len(rounds):
                    rounds.append([])
                row, number = best + start * seen.channels, min(SELECTED, seen.images - start)
                rounds[turn].append([row, seen.channels, lane, self._first[layer] + lane, number, i, start])
            best += seen.images * seen.channels
        return [np.array(rows) for rows in rounds]

    def _uploaded(self, tables: list[np.ndarray]) -> list[Tensor]:
        packed = gpu.upload(np.concatenate([table.ravel() for table in tables]).astype(np.int64), self.device)
        pieces = torch.split(packed, [table.size for table in tables])
        return [piece.view(table.shape) for piece, table in zip(pieces, tables, strict=True)]


def power_of_two(least: int) -> int:
    """The smallest that is not less."""
    return 1 << max(0, least - 1).bit_length()


def _channels_last(output: Tensor, axis: int | None) -> Tensor:
    """A copy in which the channels are nearest in memory."""
    return output.contiguous() if axis is None else output.movedim(axis, -1).contiguous().movedim(-1, axis)
