"""A forward of a model, watched operator by operator: what each place of each tensor can see of the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from torch_featviz.model.follow import Call, Follower, Key, key_of

from .operators import follow
from .reach import Trace, aligned, differ, join, sliding


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
        return _around(self.parts[key[0]], key) or self.nothing.lost() if key[0] in self.parts else None

    def overwrite(self, tensor: Tensor, trace: Trace) -> None:
        """Of constants a view is written to, as where a batch is padded; of other memory nothing is known any longer
        but what was written last."""
        here = key_of(tensor)
        if here is not None and self.traces.get(here) is not trace:
            views = [key for key in self.traces if key[0] == here[0]]
            parts = self.parts.setdefault(here[0], {key: self.traces[key].lost() for key in views})
            parts.pop(here, None)
            parts[here] = trace
            for key in views:
                del self.traces[key]
        self.put(tensor, trace)


def _around(parts: dict[Key, Trace], key: Key) -> Trace | None:
    """What a view of memory sees that holds these parts, and constants; None where it does not hold all of each."""
    traces = [_put_in(key, part, trace) for part, trace in parts.items()]
    known = [trace for trace in traces if trace is not None]
    if len(known) < len(traces):
        return None
    whole, columns = join(known), zip(*(trace.axes for trace in known), strict=True)
    if not aligned(known):
        return whole
    apart = [differ(column) for column in columns]  # parts that lie beside each other are at no even distances
    axes = [replace(axis, steps=None) if uneven else axis for axis, uneven in zip(whole.axes, apart, strict=True)]
    return whole.with_axes(axes)


def _put_in(whole: Key, part: Key, trace: Trace) -> Trace | None:
    """What a view sees of which a part was written, for each of its places; None if that is no part of it.

    Args:
        whole: the view.
        part: a view of the same memory.
        trace: what the part sees.
    """
    (_, begin, sizes, strides), (_, offset, own_sizes, own_strides) = whole, part
    rest, first = offset - begin, [0] * len(sizes)
    for d in sorted(range(len(sizes)), key=lambda d: -strides[d]):
        if sizes[d] > 1 and strides[d] > 0:
            first[d], rest = divmod(rest, strides[d])
    dims = {d: strides.index(stride) for d, stride in enumerate(own_strides) if strides.count(stride) == 1}
    lengths = {dims.get(d): size for d, size in enumerate(own_sizes) if size > 1}
    inside = all(0 <= first[d] <= sizes[d] - lengths.get(d, 1) for d in range(len(sizes)))
    moving = {axis.dim for axis in trace.axes} - {None}
    if rest or not inside or None in lengths or not moving <= dims.keys():
        return None
    tables = [sliding(lengths.get(d, 1), size, size=1, padding=first[d]) for d, size in enumerate(sizes)]
    found = trace.moved({d: dims[d] for d in moving if d is not None}).windows(0, tables)
    still = [d for d in range(len(sizes)) if d not in found.dims]
    return found.partly() if any(lengths.get(d, 1) < sizes[d] for d in still) else found
