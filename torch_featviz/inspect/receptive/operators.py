"""What the output of each operator sees, given what its inputs see. An operator that is not here sees everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from math import prod
from operator import mul

import numpy as np
import torch
from torch import Tensor

from torch_featviz.inspect.receptive import windows
from torch_featviz.model.operators import is_pointwise
from torch_featviz.torch_private import tree_leaves

from .reach import EXACT, HULL, Axis, Steps, Trace, aligned, differ, join, join_axis
from .windows import Call, Rule, each

_LARGEST = 2**24  # entries of a table of tokens; what is larger sees everything


def follow(call: Call) -> list[Trace]:
    """What each output sees."""
    some = next(iter(call.traces.values()))
    rule = _pointwise if is_pointwise(call.function) else RULES.get(call.name)
    rest = len(call.outputs)
    if rule is None or (rule not in (_pointwise, _copied, _cat, _stack, _linear) and set(call.traces) != {id(call.x)}):
        return [some.lost()] * rest
    try:
        found = rule(call)
    except (LookupError, TypeError, ValueError, StopIteration):  # another operator of that name, with other arguments
        return [some.lost()] * rest
    return found if isinstance(found, list) else [found, *[some.lost()] * (rest - 1)]


def _pointwise(call: Call) -> Trace:
    shape = call.outputs[0].shape
    tensors = [t for t in tree_leaves(call.given) if isinstance(t, Tensor) and id(t) in call.traces]
    return join([call.traces[id(t)].spread(shape, t.dim()) for t in tensors])


def _same(call: Call) -> Trace:
    return call.trace


def _copied(call: Call) -> Trace:
    source = call["src"]
    if id(source) not in call.traces:  # nothing but a constant is left, which no trace can say
        return call.trace.lost()
    return call.traces[id(source)].spread(call.x.shape, source.dim())


def _batch_norm(call: Call) -> Trace:
    statistics = call.given.get("training", False) or call.given.get("running_mean") is None
    return call.trace.pooled(range(call.x.dim())) if statistics else call.trace


def _layer_norm(call: Call) -> Trace:
    ndim = call.x.dim()
    return call.trace.pooled(range(ndim - len(call["normalized_shape"]), ndim))


def _group_norm(call: Call) -> Trace:
    return call.trace.pooled(range(call.x.dim()))


def _along(call: Call) -> Trace:
    return call.trace.pooled(call.dims())


def _reduced(call: Call) -> Trace:
    dims, ndim = call.dims(), call.x.dim()
    trace = call.trace.pooled(dims)
    if call.outputs[0].dim() == ndim:
        return trace
    kept = [d for d in range(ndim) if d not in dims]
    return trace.moved({d: i for i, d in enumerate(kept)})


def _permuted(call: Call) -> Trace:
    return call.trace.moved({d: i for i, d in enumerate(call.order())})


def _rotated(call: Call) -> Trace:
    turns, (a, b) = call["k"] % 4, call.dims("dims")
    trace = call.trace.flipped({1: [b], 2: [a, b], 3: [a]}.get(turns, []))
    return trace.moved({d: {a: b, b: a}.get(d, d) for d in range(call.x.dim())}) if turns % 2 else trace


def _unsqueezed(call: Call) -> Trace:
    ndim = call.outputs[0].dim()  # not of the input, which has it already if this is in place
    at = call["dim"] % ndim
    return call.trace.moved({d: d + (d >= at) for d in range(ndim - 1)})


def _squeezed(call: Call) -> Trace:
    if call.x is call.outputs[0]:  # in place: the shape before is not known any longer
        return call.trace.lost()
    gone = [d for d in call.dims() if call.x.shape[d] == 1]
    kept = [d for d in range(call.x.dim()) if d not in gone]
    return call.trace.moved({d: i for i, d in enumerate(kept)})


def _viewed(call: Call) -> Trace:
    """A dimension is still there if one of its size has as many elements before it."""
    old, new, trace = tuple(call.x.shape), tuple(call.outputs[0].shape), call.trace
    if trace.folded and trace.folded[0][:-1] == new[:-1]:
        return trace.folded[1].pooled([len(new) - 1])
    before, after = (list(accumulate(shape, mul, initial=1)) for shape in (old, new))
    dims: dict[int, int] = {}
    for d, size in enumerate(old):
        fits = [e for e, other in enumerate(new) if (other, after[e]) == (size, before[d]) and e not in dims.values()]
        if fits:
            dims[d] = d if d in fits else fits[0]
    rows = len(old) > 1 and new in ((prod(old[:-1]), old[-1]), (prod(old[:-2]), *old[-2:]))
    found = _laid_out(trace, old, new, dims) or trace.moved(dims)
    return replace(found, folded=(old, trace) if rows else None)


def _laid_out(trace: Trace, old: Sequence[int], new: Sequence[int], dims: dict[int, int]) -> Trace | None:
    """Rows and columns laid end to end, as tokens are, or tokens laid out again as rows and columns; None if neither.

    Args:
        trace: before.
        old: the shape before.
        new: the shape afterwards.
        dims: where the other dimensions are.
    """
    runs = sorted({axis.dim for axis in trace.axes if axis.dim is not None and axis.dim not in dims})
    if not runs:
        return None
    first, last = runs[0], runs[-1]
    after, size = list(accumulate(new, mul, initial=1)), prod(old[first : last + 1])
    starts = [e for e in range(len(new)) if after[e] == prod(old[:first])]
    moving = [axis for axis in trace.axes if axis.dim in runs]
    count = len(moving)
    laid: list[Axis]
    if len(runs) == last - first + 1 == count > 1:
        at = next((e for e in starts if new[e] == size), None)
        if at is None or size * max(axis.table.shape[1] for axis in moving) > _LARGEST:
            return None
        laid = [axis.laid(first, old[first : last + 1], at) for axis in moving]
    elif len(runs) == 1 and count > 1:
        at = next((e for e in starts if prod(new[e : e + count]) == size), None)
        if at is None:
            return None
        laid = [axis.put_back(new[at : at + count], at) for axis in moving]
        if len({axis.dim for axis in laid} - {None}) < count:
            return None
    else:
        return None
    rest, ready = trace.moved({**dims, **{dim: dim for dim in runs}}).axes, iter(laid)
    return trace.with_axes([next(ready) if a.dim in runs else b for a, b in zip(trace.axes, rest, strict=True)])


def _linear(call: Call) -> Trace:
    """Rows times a matrix.

    `linear()` lays all dimensions but the last, or the last two, end to end for it, and undoes that afterwards.
    """
    rows = call["mat1"] if call.name == "addmm" else call["self"]
    if set(call.traces) != {id(rows)}:
        return next(iter(call.traces.values())).lost()
    trace = call.traces[id(rows)]
    return replace(trace.pooled([2]) if call.name == "bmm" else trace.lost(), folded=trace.folded)


def _expanded(call: Call) -> Trace:
    return call.trace.spread(call.outputs[0].shape, call.x.dim())


def _chosen(call: Call, dim: int, numbers: Sequence[int]) -> Trace:
    """Only these places of one dimension."""
    trace = call.trace
    if trace.of(dim) is None:
        return trace.with_axes(trace.axes, HULL if trace.uneven else EXACT)
    strides = {b - a for a, b in pairwise(numbers)} or {1}
    steps = Steps(1, strides.pop(), numbers[0]) if len(numbers) and len(strides) == 1 else None
    places = np.eye(call.x.shape[dim], dtype=bool)[list(numbers)]
    return trace.with_axes([axis.through(places, steps) if axis.dim == dim else axis for axis in trace.axes])


def _sliced(call: Call) -> Trace:
    (dim,) = call.dims()
    return _chosen(call, dim, range(call.x.shape[dim])[call["start"] : call["end"] : call["step"]])


def _selected(call: Call) -> Trace:
    (dim,) = call.dims()
    return _picked(call, dim, call["index"] % call.x.shape[dim])


def _unbound(call: Call) -> list[Trace]:
    (dim,) = call.dims()
    return [_picked(call, dim, number) for number in range(call.x.shape[dim])]


def _picked(call: Call, dim: int, number: int) -> Trace:
    """One place of one dimension, which is gone afterwards."""
    trace = _chosen(call, dim, [number])
    axes = [Axis(None, a.table, a.steps if a.whole else None) if a.dim == dim else a for a in trace.axes]
    kept = [d for d in range(call.x.dim()) if d != dim]
    return Trace(tuple(axes), trace.level).moved({d: i for i, d in enumerate(kept)})


def _split(call: Call) -> list[Trace]:
    (dim,) = call.dims()
    found, start = [], 0
    for part in call.outputs:
        end = start + part.shape[dim]
        found.append(_chosen(call, dim, range(start, end)))
        start = end
    return found


def _flipped(call: Call) -> Trace:
    return call.trace.flipped(call.dims("dims"))


def _channels_shuffled(call: Call) -> Trace:
    return call.trace.pooled([1])


def _rolled(call: Call) -> Trace:
    if not call["dims"]:
        return call.trace.lost()
    shifts = dict(zip(call.dims("dims"), call.numbers("shifts", len(call["dims"])), strict=True))
    axes = [
        axis.through(np.roll(np.eye(len(axis.table), dtype=bool), shifts[axis.dim], 0)) if axis.dim in shifts else axis
        for axis in call.trace.axes
    ]
    return call.trace.with_axes(axes)


def _indexed(call: Call) -> Trace:
    """Known numbers along one dimension, as in `x[:, [2, 0]]`."""
    indices = call["indices"]
    asked = [d for d, index in enumerate(indices) if index is not None]
    if len(asked) != 1 or indices[asked[0]].dim() != 1:
        return call.trace.lost()
    return _taken(call, asked[0], indices[asked[0]])


def _index_selected(call: Call) -> Trace:
    (dim,) = call.dims()
    return _taken(call, dim, call["index"].reshape(-1))


def _taken(call: Call, dim: int, index: Tensor) -> Trace:
    """These places of one dimension, by number or by a mask."""
    masks = index.dtype in (torch.bool, torch.uint8)
    return _chosen(call, dim, (index.nonzero().flatten() if masks else index % call.x.shape[dim]).tolist())


def _cat(call: Call) -> Trace:
    ndim = call.outputs[0].dim()
    dim = call["dim"] % ndim
    tensors = [t for t in call["tensors"] if t.dim() == ndim]
    traces = [call.traces[id(t)].spread(t.shape, ndim) for t in tensors if id(t) in call.traces]
    along = {tuple(i for i, axis in enumerate(trace.axes) if axis.dim == dim) for trace in traces} - {()}
    if not along:
        return _beside(traces, len(tensors))
    numbers = along.pop()
    if along or not aligned(traces):
        return traces[0].lost()
    columns = list(zip(*(trace.axes for trace in traces), strict=True))
    axes = []
    for number, column in enumerate(columns):
        if number not in numbers:
            axes.append(join_axis(column))
            continue
        rows, parts = [], iter(column)
        for t in tensors:  # parts that do not depend on the input see nothing of it
            table = next(parts).table if id(t) in call.traces else np.zeros_like(column[0].table[:1])
            rows.append(np.broadcast_to(table, (t.shape[dim], table.shape[1])))
        axes.append(Axis(dim, np.concatenate(rows), None))
    others = any(differ(column) for i, column in enumerate(columns) if i not in numbers)
    level = max(HULL if others else 0, *(trace.level for trace in traces))
    return Trace(tuple(axes), level, any(trace.uneven for trace in traces))


def _beside(traces: list[Trace], count: int) -> Trace:
    """Put next to each other as channels."""
    joined = join(traces)
    same = len(traces) == count and not any(map(differ, zip(*(trace.axes for trace in traces), strict=True)))
    if same:
        return joined
    level = HULL if None in joined.dims else EXACT  # they may lie beside each other along an axis that was taken apart
    return replace(joined, uneven=True, level=max(level, joined.level))


def _stack(call: Call) -> Trace:
    ndim = call.outputs[0].dim()
    at = call["dim"] % ndim
    tensors = [t for t in call["tensors"] if id(t) in call.traces]
    dims = {d: d + (d >= at) for d in range(ndim - 1)}
    return _beside([call.traces[id(t)].moved(dims) for t in tensors], len(call["tensors"]))


RULES: dict[str, Rule] = {
    **windows.RULES,
    **each(_same, "clone detach alias _to_copy lift_fresh native_dropout dropout contiguous bernoulli"),
    **each(_channels_shuffled, "channel_shuffle native_channel_shuffle"),
    **each(_copied, "copy"),
    **each(_batch_norm, "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit"),
    **each(_batch_norm, "_native_batch_norm_legit_no_training _batch_norm_no_update"),
    **each(_layer_norm, "native_layer_norm _fused_rms_norm"),
    **each(_group_norm, "native_group_norm"),
    **each(_along, "_softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp glu sort"),
    **each(_reduced, "mean sum amax amin max min linalg_vector_norm norm var std logsumexp prod all any argmax argmin"),
    **each(_permuted, "permute transpose t"),
    **each(_rotated, "rot90"),
    **each(_unsqueezed, "unsqueeze"),
    **each(_squeezed, "squeeze"),
    **each(_viewed, "view _unsafe_view _reshape_alias reshape"),
    **each(_expanded, "expand"),
    **each(_linear, "mm addmm bmm"),
    **each(_sliced, "slice"),
    **each(_selected, "select"),
    **each(_unbound, "unbind"),
    **each(_split, "split split_with_sizes"),
    **each(_flipped, "flip"),
    **each(_rolled, "roll"),
    **each(_indexed, "index"),
    **each(_index_selected, "index_select"),
    **each(_cat, "cat"),
    **each(_stack, "stack"),
}
