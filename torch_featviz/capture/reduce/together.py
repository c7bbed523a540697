"""Figures of many layers from a handful of launches, where each launch costs more than the arithmetic in it.

Outputs wait by reference; then one kernel reads all of them, one more counts their values where there are histograms,
and others add what these found to the states.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from torch_featviz.capture.eager import all_eager
from torch_featviz.launching import gpu

from .histogram import Histogram
from .moments import Moments
from .reducer import Reducer, has_figures, real, same_channels
from .tables import CHANNELS, FOLDS, KINDS, LANES, SELECTED, WIDE, Folding, Item, Items, Reading, Tables, power_of_two

_KERNELS = "capture.reduce.kernels:"
_BINNED, _TOPS = ("local", "extremes", "place", "counts"), ("values", "images", "positions")
_KEYS = {"best": -(2**63), "where": 2**62}  # and what they are while empty


@all_eager
class Together:
    """The figures of many layers.

    Args:
        tables: of these layers, also from an earlier time.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables, self._figures = tables, tables.figures
        self._waiting: list[Tensor] = []
        self._items: list[Item] = []
        self._read: list[tuple[Reading, Items]] = []  # and not folded yet
        self._read_layers: set[int] = set()
        self._channels: dict[str, int] = {}  # of each layer
        self._wide = False  # what was read
        self._states: dict[str, Tensor] = {}
        self._scratch: dict[str, Tensor] = {}
        self._seen: dict[int, int] = {}  # images of each layer that ran
        self._room = (0, 0)  # layers and channels that states have
        self._given: dict[str, tuple[Tensor, ...]] = {}  # the states that reducers were given
        self._given_images: dict[str, int] = {}  # and how many images are in each
        self.changes = 0

    def add(self, name: str, output: Tensor, channels: int = 1) -> None:
        """An output of layer `name`, with channels on that axis; it must not change before `flush`.

        Raises:
            DtypeError, ShapeError: as `Reducer.update` does.
        """
        if output.dtype not in KINDS or not has_figures(output):
            output = real(output)
        if output.numel():
            output, item = self._tables.item(name, output, channels)
            if self._figures.per_channel:
                many = item.geometry.channels
                same_channels(self._channels.setdefault(name, many), many)
            self._waiting.append(output)
            self._items.append(item)

    def read(self) -> None:
        """Read all that waits, which may then change."""
        waiting, items = self._waiting, self._items
        self._waiting, self._items = [], []
        try:
            for kind in sorted({item.kind for item in items}):
                chosen = [i for i, item in enumerate(items) if item.kind == kind]
                self._read_now([waiting[i] for i in chosen], tuple([items[i] for i in chosen]), kind)
        except BaseException:  # out of memory, say: what was not read to its end is not counted
            self._forget()
            raise

    def flush(self) -> None:
        """Add all that waits, or was read, to the figures."""
        self.read()
        try:
            self._fold()
        except BaseException:
            self._forget()
            raise

    def _forget(self) -> None:
        """Let go of what was read and not added."""
        self._read, self._read_layers, self._scratch = [], set(), {}
        if "local" in self._states:
            self._states["local"] = torch.zeros_like(self._states["local"])

    def settle(self, reducers: Mapping[str, Reducer], *, last: bool = False) -> dict[str, str]:
        """Give each layer's reducer the figures so far; with `last` nothing is added to them any more.

        A reducer to which something else has added meanwhile keeps that. What it was given before is in it; otherwise
        the figures so far are added. Nothing is to be added here after that.

        Returns:
            The layers of which that cannot be, and why.
        """
        self.flush()
        refused: dict[str, str] = {}
        states = self._states if last else {name: state.clone() for name, state in self._states.items()}
        for (name, _), layer in self._tables.layers.items():
            if layer not in self._seen:
                continue
            found: list[Tensor] = []
            channels = self._tables.span(layer)
            for part in self._figures.parts:
                if isinstance(part, Moments):
                    found += [states["sums"][:, channels], states["totals"][:, channels]]
                elif isinstance(part, Histogram):
                    found += [states[each][layer] for each in _BINNED[1:]]
                else:
                    seen = torch.full_like(states["totals"][0, 0], self._seen[layer])
                    found += [states["totals"][2, channels], *(states[each][:, channels] for each in _TOPS), seen]
            reducer, state = reducers[name], tuple(found)
            if not self._is_overtaken(name, reducer):
                self._given[name] = reducer._state = state
                self._given_images[name], reducer._host = self._seen[layer], None
            elif name not in self._given:
                mine = reducer.fresh()
                mine._state = state
                reducer.merge(mine)
            elif self._given_images[name] != self._seen[layer]:
                refused[name] = "compiled code added to its figures amid other calls of it; capture these apart."
        return refused

    def overtaken(self, reducers: Mapping[str, Reducer]) -> bool:
        """Whether something else, compiled code that is, has added to any of them."""
        layers = self._tables.layers.items()
        return any(self._is_overtaken(name, reducers[name]) for (name, _), layer in layers if layer in self._seen)

    def _is_overtaken(self, name: str, reducer: Reducer) -> bool:
        return reducer._state is not self._given.get(name)

    def _read_now(self, outputs: list[Tensor], items: Items, kind: int) -> None:
        layers, wide = {item.layer for item in items}, kind == WIDE
        if self._read and (wide is not self._wide or not layers.isdisjoint(self._read_layers)):
            self._fold()
        self._wide = wide
        reading, figures = self._tables.reading(items), self._figures
        before, rows = sum(each.number for each, _ in self._read), sum(each.best for each, _ in self._read)
        floats, counts, ends = self._of_programs(before, before + reading.number)
        tops = [self._keys(name, rows, rows + reading.best) for name in _KEYS] if figures.k else [ends] * 2
        one = len(outputs) == 1
        addresses = None if one else gpu.upload(np.array(gpu.pointers(outputs), dtype=np.int64), self._tables.device)
        tables = (outputs[0].detach() if addresses is None else addresses, reading.items, reading.programs)
        kept = {"CHANNELS": figures.per_channel, "HISTOGRAM": figures.bins > 0, "TOP": figures.k > 0}
        arguments = (*tables, floats, counts, ends, tops[0])
        gpu.launch(_KERNELS + "read", reading.number, *arguments, ONE=one, KIND=kind, num_warps=8, **kept)
        if wide and figures.k:
            gpu.launch(_KERNELS + "locate", reading.number, *tables, *tops, ONE=one)
        self._read.append((reading, items))
        self._read_layers |= layers
        if figures.bins:
            self._make_room()
            constants = {"NB": figures.padded_bins, "SYMMETRIC": figures.symmetric, "num_warps": 8}
            local = (*tables, ends, self._states["local"], figures.bins)
            gpu.launch(_KERNELS + "count", reading.number, *local, ONE=one, KIND=kind, **constants)

    def _fold(self) -> None:
        read, self._read, self._read_layers = self._read, [], set()
        if not read:
            return
        self.changes += 1
        self._make_room()
        folding, figures, states = self._tables.folding(read), self._figures, self._states
        floats, counts, ends = self._of_programs(0, sum(each.number for each, _ in read))
        for lanes, folds in folding.folds.items() if figures.per_channel else ():
            arguments = (folds, floats, counts, states["sums"], states["totals"], self._tables.width)
            gpu.launch(_KERNELS + "fold_channels", len(folds), *arguments, LANES=lanes, **FOLDS[lanes])
        if figures.bins:
            constants = {"NB": figures.padded_bins, "SYMMETRIC": figures.symmetric}
            binned = [states[name] for name in _BINNED]
            gpu.launch(
                _KERNELS + "fold_bins", len(folding.spans), folding.spans, ends, *binned, figures.bins, **constants
            )
        self._select(folding, [item for _, items in read for item in items])

    def _select(self, folding: Folding, items: list[Item]) -> None:
        before = np.empty(len(items), dtype=np.int64)  # images
        for i, item in enumerate(items):
            before[i] = self._seen.get(item.layer, 0)
            self._seen[item.layer] = int(before[i]) + item.geometry.images
        if not folding.rounds:
            return
        keys, tops = [self._scratch[name] for name in _KEYS], [self._states[name] for name in _TOPS]
        numbers = gpu.upload(before, self._tables.device)
        constants = {"KP": power_of_two(self._figures.k), "N": SELECTED, "LANES": LANES, "WIDE": self._wide}
        for table in folding.rounds:
            arguments = (table, numbers, *keys, *tops, self._figures.k, self._tables.width)
            gpu.launch(_KERNELS + "select", len(table), *arguments, **constants)

    def _make_room(self) -> None:
        """Have states of all layers, also of those that came since."""
        room = len(self._tables.layers), self._tables.width
        if room == self._room:
            return
        self._room = room
        for name, (shape, axis, _, _) in self._figures.states(len(self._tables.layers), self._tables.width).items():
            held, empty = self._states.get(name), self._tables.empty()[name]
            if held is None:
                self._states[name] = empty.clone()
            elif held.shape[axis] != shape[axis]:
                self._states[name] = torch.cat([held, empty.narrow(axis, 0, shape[axis] - held.shape[axis])], axis)

    def _of_programs(self, start: int, end: int) -> list[Tensor]:
        """Where the figures of programs from `start` are: of channels, counts of these, extremes of all."""
        floats, counts = 5 * CHANNELS * self._figures.per_channel, 4 * CHANNELS * self._figures.per_channel
        extremes = 6 * (self._figures.bins > 0)
        return [
            self._held(name, start * size, max(1, end * size), dtype, None)
            for name, size, dtype in (
                ("floats", floats, torch.float64),
                ("program counts", counts, torch.int32),
                ("ends", extremes, torch.float64),
            )
        ]

    def _keys(self, name: str, start: int, end: int) -> Tensor:
        """Keys of the largest values, or where they are, from row `start`; `select` empties them."""
        return self._held(name, start, end, torch.int64, _KEYS[name])

    def _held(self, name: str, start: int, end: int, dtype: torch.dtype, fill: int | None) -> Tensor:
        """Memory from `start` to `end` or beyond; what is before it stays."""
        held = self._scratch.get(name)
        if held is None or held.dtype != dtype or held.numel() < end:
            device = self._tables.device
            grown = torch.empty(end, dtype=dtype, device=device)
            if fill is not None:
                grown.fill_(fill)
            if start and held is not None:
                grown[:start] = held[:start]
            held = self._scratch[name] = grown
        return held[start:]
