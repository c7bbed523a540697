"""What the places of a tensor see of the model's input: per axis a table of positions, and how tables combine.

The positions seen along one axis are kept as a boolean table, one row for each place, one column for each position of
the input. Padding has no column, so a row holds what is really there, at borders too, and joining or moving windows is
a matrix product. All channels are taken together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.bool_]
EXACT, HULL, WHOLE = range(3)


class Steps(NamedTuple):
    """Place `i` sees `[start + i * stride, start + i * stride + size)`, borders left out of account.

    Where the map runs against the input, `stride` is negative.
    """

    size: int
    stride: int
    start: int


@dataclass(frozen=True, eq=False)
class Axis:
    """One spatial axis of the input, as the places of a tensor see it.

    Args:
        dim: the dimension of the tensor along which what is seen moves; None where it does not move.
        table: `places positions`, one row where `dim` is None.
        steps: the same as an arithmetic progression; None where it is none.
    """

    dim: int | None
    table: Table
    steps: Steps | None

    def everywhere(self) -> Axis:
        """Each place sees what all of them see."""
        if len(self.table) == 1:
            return self
        return Axis(self.dim, np.asarray(self.table.any(0))[None], Steps(self.table.shape[1], 0, 0))

    def at(self, dim: int | None) -> Axis:
        """The same axis in another dimension."""
        return replace(self, dim=dim)

    def repeated(self, places: int) -> Axis:
        """What the one place sees is seen from many."""
        return Axis(self.dim, self.table.repeat(places, 0), self.steps and self.steps._replace(stride=0))

    def through(self, places: Table, steps: Steps | None = None) -> Axis:
        """Seen through an operator, whose own outputs see these places (`outputs places`)."""
        table = _any_of(self.table, places)
        if steps is None or self.steps is None:
            return Axis(self.dim, table, self.steps if self.whole else None)
        size, stride, start = self.steps
        across = (steps.size - 1) * stride  # from the first place in the window to the last
        first = start + steps.start * stride + min(0, across)
        return Axis(self.dim, table, Steps(size + abs(across), stride * steps.stride, first))

    def laid(self, first: int, sizes: Sequence[int], at: int) -> Axis:
        """Dimensions of these sizes, from `first` on, laid end to end in one: this one's places, as often as needed."""
        assert self.dim is not None
        number = np.unravel_index(np.arange(np.prod(sizes)), tuple(sizes))[self.dim - first]
        return Axis(at, self.table[number], None)

    def put_back(self, sizes: Sequence[int], at: int) -> Axis:
        """The places of one dimension laid out in several, from `at` on; along one of them what is seen moves."""
        table = self.table.reshape(*sizes, -1)
        for d in range(len(sizes)):
            others = tuple(slice(None) if i == d else slice(1) for i in range(len(sizes)))
            if (table == table[others]).all():
                rows = table[others].reshape(sizes[d], -1)
                return Axis(at + d, rows, steps_of(rows))
        return Axis(None, np.asarray(self.table.any(0))[None], None)

    @property
    def whole(self) -> bool:
        """Whether all places see the same, by pooling."""
        return self.steps == Steps(self.table.shape[1], 0, 0)


def steps_of(table: Table) -> Steps | None:
    """The steps of rows that see intervals of one size at one distance."""
    first, sizes = table.argmax(1), table.sum(1)
    strides = set(np.diff(first).tolist()) or {int(sizes[0])}
    ends = np.where(sizes, table.shape[1] - table[:, ::-1].argmax(1), 0)
    even = len(set(sizes.tolist())) == 1 and bool((ends - first == sizes).all()) and len(strides) == 1
    return Steps(int(sizes[0]), strides.pop(), int(first[0])) if even and sizes[0] else None


def _any_of(table: Table, places: Table) -> Table:
    """Each output sees what any of its places sees.

    As a product of matrices it would wake the threads of NumPy's BLAS, which then wait beside PyTorch's own.
    """
    rows, columns = places.nonzero()
    seen, first = np.unique(rows, return_index=True)
    found = np.zeros((len(places), table.shape[1]), dtype=bool)
    if len(seen):
        found[seen] = np.logical_or.reduceat(table[columns], first, axis=0)
    return found


@dataclass(frozen=True, eq=False)
class Trace:
    """What the places of one tensor see.

    Args:
        axes: one for each spatial axis of the input.
        level: EXACT, a place sees the product of its rows; HULL, all that it sees lies within; WHOLE, somewhere on
            the way everything is pooled, or an operator is not known.
        uneven: some channels see less than others, so that a choice of channels may see less.
        folded: of a tensor whose dimensions but the last were laid end to end: its shape before, and its trace.
    """

    axes: tuple[Axis, ...]
    level: int = EXACT
    uneven: bool = False
    folded: tuple[tuple[int, ...], Trace] | None = None

    @classmethod
    def start(cls, sizes: Sequence[int]) -> Trace:
        """Of the input itself, `b c ...`."""
        return cls(tuple(Axis(i + 2, np.eye(n, dtype=bool), Steps(1, 1, 0)) for i, n in enumerate(sizes)))

    def lost(self) -> Trace:
        """Nothing is known: everything may be seen from everywhere."""
        sizes = [axis.table.shape[1] for axis in self.axes]
        return Trace(tuple(Axis(None, np.ones((1, n), dtype=bool), Steps(n, 0, 0)) for n in sizes), WHOLE)

    def blurred(self) -> Trace:
        """Each axis still lies along its dimension, but everything may be seen from everywhere."""
        axes = [Axis(a.dim, np.ones_like(a.table), Steps(a.table.shape[1], 0, 0)) for a in self.axes]
        return self.with_axes(axes, WHOLE)

    def partly(self) -> Trace:
        """Beside others, some channels see nothing of it."""
        return replace(self, uneven=True)

    @property
    def dims(self) -> tuple[int | None, ...]:
        """For each axis of the input, the dimension along which it moves."""
        return tuple(axis.dim for axis in self.axes)

    @property
    def laid_out(self) -> bool:
        """Whether several axes move along one dimension, as where rows were laid end to end."""
        moving = [dim for dim in self.dims if dim is not None]
        return len(moving) > len(set(moving))

    def of(self, dim: int) -> int | None:
        """Number of the axis that moves along `dim`."""
        return next((i for i, axis in enumerate(self.axes) if axis.dim == dim), None)

    def with_axes(self, axes: Sequence[Axis], level: int = EXACT) -> Trace:
        return replace(self, axes=tuple(axes), level=max(level, self.level), folded=None)

    def moved(self, dims: dict[int, int]) -> Trace:
        """Dimensions have other numbers; an axis whose dimension is not among them is seen as one."""
        axes = []
        for axis in self.axes:
            dim = None if axis.dim is None else dims.get(axis.dim)
            axes.append(axis.at(dim) if axis.dim is None or dim is not None else axis.everywhere().at(None))
        merged = any(len(new.table) < len(old.table) for new, old in zip(axes, self.axes, strict=True))
        return self.with_axes(axes, WHOLE if merged else EXACT)

    def pooled(self, dims: Sequence[int]) -> Trace:
        """Along these dimensions each place depends on all."""
        return self.moved({axis.dim: axis.dim for axis in self.axes if axis.dim is not None and axis.dim not in dims})

    def flipped(self, dims: Sequence[int]) -> Trace:
        """These dimensions run backwards."""
        axes = list(self.axes)
        for i, axis in enumerate(axes):
            n = len(axis.table)
            if axis.dim in dims and n > 1:
                axes[i] = axis.through(np.eye(n, dtype=bool)[::-1], Steps(1, -1, n - 1))
        return self.with_axes(axes)

    def spread(self, shape: Sequence[int], ndim: int) -> Trace:
        """Broadcast from `ndim` dimensions to `shape`."""
        more = len(shape) - ndim
        if not more and all(a.dim is None or len(a.table) == shape[a.dim] for a in self.axes):
            return self
        dims = {d: d + more for d in range(ndim)}
        axes = [
            axis.repeated(shape[axis.dim]) if axis.dim is not None and len(axis.table) != shape[axis.dim] else axis
            for axis in self.moved(dims).axes
        ]
        return self.with_axes(axes)

    def windows(self, first: int, tables: Sequence[tuple[Table, Steps | None]]) -> Trace:
        """Through an operator that looks at windows: one table for each dimension from `first` on."""
        axes = list(self.axes)
        for i, axis in enumerate(axes):
            if axis.dim is not None and axis.dim >= first:
                table, steps = tables[axis.dim - first]
                axes[i] = axis.through(table, steps)
        return self.with_axes(axes, HULL if self.laid_out else EXACT)


def join(traces: Sequence[Trace]) -> Trace:
    """Tensors of one shape, put together place by place."""
    if len(traces) == 1:
        return traces[0]
    if not aligned(traces):
        places = {dim for trace in traces for dim in trace.dims} - {None}
        return next((trace.blurred() for trace in traces if set(trace.dims) == places), traces[0].lost())
    columns = list(zip(*(trace.axes for trace in traces), strict=True))
    axes = tuple(join_axis(column) for column in columns)
    uneven = any(trace.uneven for trace in traces)
    level = max(trace.level for trace in traces)
    if level == WHOLE:
        return Trace(axes, WHOLE, uneven)
    for trace in traces:  # one branch sees all that the others see
        if all((axis.table == every.table).all() for axis, every in zip(trace.axes, axes, strict=True)):
            return Trace(axes, trace.level, uneven)
    return Trace(axes, level if sum(map(differ, columns)) <= 1 else HULL, uneven)


def aligned(traces: Sequence[Trace]) -> bool:
    """Whether each axis moves along one dimension, its own, in all of them."""
    dims = [{axis.dim for axis in axes} - {None} for axes in zip(*(trace.axes for trace in traces), strict=True)]
    moving = [dim for found in dims for dim in found]
    apart = len(moving) == len(set(moving)) or any(trace.laid_out for trace in traces)
    return all(len(found) < 2 for found in dims) and apart


def differ(column: Sequence[Axis]) -> bool:
    """Whether one axis is seen differently by some of several tensors."""
    return any((axis.table != column[0].table).any() for axis in column[1:])


def join_axis(column: Sequence[Axis]) -> Axis:
    """One axis of several tensors."""
    table = np.logical_or.reduce(np.broadcast_arrays(*(axis.table for axis in column)))
    dim = next((axis.dim for axis in column if axis.dim is not None), None)
    if whole := next((axis for axis in column if axis.whole), None):
        return Axis(dim, table, whole.steps)
    known = [axis.steps for axis in column if axis.steps is not None]
    if len(known) < len(column) or len({steps.stride for steps in known}) > 1:
        return Axis(dim, table, None)
    start = min(steps.start for steps in known)
    size = max(steps.start + steps.size for steps in known) - start
    return Axis(dim, table, Steps(size, known[0].stride, start))


def sliding(
    places: int, outputs: int, *, size: int, stride: int = 1, padding: int = 0, dilation: int = 1
) -> tuple[Table, Steps]:
    """What windows see: output `i` sees `i * stride - padding + k * dilation` for each `k < size`."""
    table = np.zeros((outputs, places), dtype=bool)
    for k in range(size):
        seen = np.arange(outputs) * stride - padding + k * dilation
        inside = (seen >= 0) & (seen < places)
        table[np.flatnonzero(inside), seen[inside]] = True
    return table, Steps(1 + (size - 1) * dilation, stride, -padding)


def bins(places: int, outputs: int) -> tuple[Table, Steps | None]:
    """What adaptive pooling sees."""
    low = np.arange(outputs)[:, None] * places // outputs
    high = -(-(np.arange(1, outputs + 1)[:, None] * places) // outputs)
    at = np.arange(places)
    even = places % outputs == 0
    size = places // outputs
    return (at >= low) & (at < high), Steps(size, size, 0) if even else None


def has_holes(table: Table) -> bool:
    """Whether what some place sees is no interval."""
    padded = np.pad(table, ((0, 0), (1, 1)))
    return bool((np.diff(padded.astype(np.int8), axis=1).clip(0).sum(1) > 1).any())


def widest(table: Table) -> int:
    """The extent of what is seen from the place that sees most."""
    extents = [np.ptp(row) + 1 for row in map(np.flatnonzero, table) if len(row)]
    return int(max(extents, default=0))
