"""A forward of a model, watched operator by operator: what each place of each tensor can see of the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from torch import Tensor

from torch_featviz.model.follow import Call, Follower, Key, key_of

from .operators import follow
from .reach import EXACT, HULL, Trace, aligned, differ, join, sliding

_MOST = 32  # parts of one memory that are told apart


class Tracer(Follower[Trace]):
    """While on, follows all that depends on `image`.

    Args:
        image: `b c ...`, what the model is about to be given.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.nothing = Trace.start(image.shape[2:])
        self.parts: dict[int, dict[Key, Trace]] = {}  # of memory that held constants: what was written to which views
        self.put(image, self.nothing)

    def read(self, tensor: Tensor) -> Trace:
        """What `tensor` sees; everything, if that was lost on the way."""
        trace = self.known(tensor)
        return self.nothing.lost() if self.blind or trace is None else trace

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether nothing of the image went into `tensor`."""
        return not self.blind and key_of(tensor) is not None and self.known(tensor) is None

    def follow(self, call: Call[Trace]) -> Sequence[Trace]:
        return follow(call)

    def known(self, tensor: Tensor) -> Trace | None:
        key = key_of(tensor)
        if key is None or key in self.traces:
            return None if key is None else self.traces[key]
        if key[0] not in self.parts:
            return None
        parts = self.parts[key[0]]
        return (_around(parts, key) if len(parts) <= _MOST else None) or self.nothing.lost()

    def overwrite(self, tensor: Tensor, trace: Trace) -> None:
        """Of constants a view is written to, as where a batch is padded; of other memory nothing is known any longer
        but what was written last."""
        here = key_of(tensor)
        if here is not None and self.traces.get(here) is not trace:
            views = [key for key in self.traces if key[0] == here[0]]
            parts = self.parts.setdefault(here[0], {key: self.traces[key].lost() for key in views})
            if len(parts) <= _MOST:
                parts.pop(here, None)
                parts[here] = trace
            for key in views:
                del self.traces[key]
        self.put(tensor, trace)


class _Put(NamedTuple):
    """What a view sees of a part of its memory, and where that part lies in it, from one place of each dimension to
    behind another."""

    trace: Trace
    first: tuple[int, ...]
    end: tuple[int, ...]

    def covers(self, other: _Put) -> bool:
        """Whether nothing is left of the other, which was written before."""
        return all(a <= b for a, b in zip(self.first + other.end, other.first + self.end, strict=True))

    def differs(self, other: _Put) -> bool:
        """Whether both were written to the same places, and see different things there."""
        if any(a >= b for a, b in zip(self.first + other.first, other.end + self.end, strict=True)):
            return False
        pairs = zip(self.trace.axes, other.trace.axes, strict=True)
        tables = [np.broadcast_arrays(mine.table, own.table) for mine, own in pairs]
        both = [mine.any(1) & own.any(1) for mine, own in tables]
        return any((mine[at] != own[at]).any() for (mine, own), at in zip(tables, both, strict=True))


def _around(parts: dict[Key, Trace], key: Key) -> Trace | None:
    """What a view of memory sees that holds these parts, and constants; None where it does not hold all of each."""
    put = [_put_in(key, part, trace) for part, trace in parts.items()]
    found = [one for one in put if one is not None]
    if len(found) < len(put):
        return None
    left = [one for n, one in enumerate(found) if not any(later.covers(one) for later in found[n + 1 :])]
    known = [one.trace for one in left]
    whole, columns = join(known), zip(*(trace.axes for trace in known), strict=True)
    if not aligned(known):
        return whole
    apart = [differ(column) for column in columns]  # parts that lie beside each other are at no even distances
    axes = [replace(axis, steps=None) if uneven else axis for axis, uneven in zip(whole.axes, apart, strict=True)]
    return whole.with_axes(axes, HULL if any(one.differs(other) for one, other in combinations(left, 2)) else EXACT)


def _put_in(whole: Key, part: Key, trace: Trace) -> _Put | None:
    """What a view sees of which a part was written, for each of its places; None if that is no part of it.

    Args:
        whole: the view.
        part: a view of the same memory.
        trace: what the part sees.
    """
    (_, begin, sizes, strides), (_, offset, own_sizes, own_strides) = whole, part
    rest, first, extent = offset - begin, [0] * len(sizes), 0
    for stride, size in sorted((strides[d], size) for d, size in enumerate(sizes) if size > 1):
        if stride <= extent:  # a place of memory is at several places of the view
            return None
        extent += (size - 1) * stride
    for d in sorted(range(len(sizes)), key=lambda d: -strides[d]):
        if sizes[d] > 1:
            first[d], rest = divmod(rest, strides[d])
    moving = {axis.dim for axis in trace.axes} - {None}
    asked = [d for d, size in enumerate(own_sizes) if size > 1 or d in moving]
    dims = {d: strides.index(own_strides[d]) for d in asked if strides.count(own_strides[d]) == 1}
    if rest or len(set(dims.values())) < len(asked):
        return None
    lengths = {dims[d]: own_sizes[d] for d in asked}
    end = [at + lengths.get(d, 1) for d, at in enumerate(first)]
    if not all(at >= 0 and last <= size for at, last, size in zip(first, end, sizes, strict=True)):
        return None
    tables = [sliding(lengths.get(d, 1), size, size=1, padding=first[d]) for d, size in enumerate(sizes)]
    found = trace.moved({d: dims[d] for d in moving if d is not None}).windows(0, tables)
    if any(lengths.get(d, 1) < size for d, size in enumerate(sizes) if d not in found.dims):
        still = any(len(axis.table) == 1 for axis in found.axes)  # then other places see nothing of it, too
        found = found.partly().with_axes(found.axes, HULL if still else EXACT)
    return _Put(found, tuple(first), tuple(end))
