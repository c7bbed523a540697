"""What the axes of an operator's output are, given those of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torch_featviz.torch_private import schema_of, tree_leaves

from . import follow
from .axes import CHANNELS, IMAGES, Axes, Axis, channels, joined, unknown, viewed, whole

Call: TypeAlias = follow.Call[Axes]
Rule: TypeAlias = Callable[[Call], Axes | list[Axes]]


def axes_of_outputs(call: Call) -> list[Axes]:
    """Of each output; unknown where nothing says."""
    rest = [unknown_of(call, output) for output in call.outputs]
    rule = _pointwise if is_pointwise(call.function) else _rule(call.name)
    if rule is None or (rule not in _OTHERS and id(call.x) not in call.traces):
        return rest
    try:
        result = rule(call)
    except (LookupError, TypeError, ValueError, StopIteration):  # another operator of that name, with other arguments
        return rest
    found = result if isinstance(result, list) else [result]
    known = zip(found, call.outputs, rest, strict=False)
    return [axes if _fits(axes, output) else other for axes, output, other in known] + rest[len(found) :]


def _fits(axes: Axes, output: Tensor) -> bool:
    return [axis.size for axis in axes] == list(output.shape)


def unknown_of(call: Call, output: Tensor) -> Axes:
    """Nothing but that there may be an entry for each image."""
    first = [axes[0] for axes in call.traces.values() if axes and axes[0].kind == IMAGES and axes[0].whole]
    axes = [unknown(size) for size in output.shape]
    if first and axes and first[0].size == axes[0].size:
        axes[0] = first[0]
    return tuple(axes)


_UNTAGGED = {  # pointwise, but not tagged as such in every release
    *("_prelu_kernel", "prelu", "rrelu_with_noise", "hardswish", "hardtanh", "relu6", "mish", "log_sigmoid_forward"),
    *("floor_divide", "add", "add_relu", "add_scalar", "mul", "mul_relu", "mul_scalar", "leaky_relu", "elu", "celu"),
}


def is_pointwise(function: Any) -> bool:
    """Whether each entry of the output is made of the entries in its place."""
    if schema_of(function).name.rpartition("::")[2].rstrip("_") in _UNTAGGED:
        return True
    tags = getattr(function, "tags", ())
    name, _, overload = str(function).removeprefix("aten.").rpartition(".")
    plain = getattr(getattr(torch.ops.aten, name.rstrip("_"), None), overload, function)
    return torch.Tag.pointwise in tags or torch.Tag.pointwise in plain.tags


def _rule(name: str) -> Rule | None:
    if name in RULES:
        return RULES[name]
    return _attention if name.startswith(("_scaled_dot_product", "_flash_attention", "_efficient_attention")) else None


def _pointwise(call: Call) -> Axes:
    tensors = [value for value in tree_leaves(call.given) if isinstance(value, Tensor)]
    return joined([call.traces[id(t)] for t in tensors if id(t) in call.traces], call.outputs[0].shape)


def _same(call: Call) -> Axes:
    return call.trace


def _resized(call: Call) -> Axes:
    """The same axes, with other numbers of entries."""
    shape = call.outputs[0].shape
    return tuple(axis.resized(size) for axis, size in zip(call.trace, shape, strict=True))


def _convolved(call: Call) -> Axes:
    first, _, *places = call.trace
    shape = call.outputs[0].shape
    new = zip(places, shape[2:], strict=True)
    places = [axis.resized(size) if axis.outermost else unknown(size) for axis, size in new]
    return (first, channels(shape[1]), *places)


def _weighed(call: Call) -> Axes:
    """Rows times a matrix: `linear()` lays all axes but the last end to end for it."""
    shape = call.outputs[0].shape
    rows = call["mat1"] if "mat1" in call.given else call["self"]
    matrix = call["mat2"]
    last = call.traces[id(matrix)][-1] if id(matrix) in call.traces else channels(shape[-1])
    if id(rows) in call.traces:
        return (*call.traces[id(rows)][:-1], last)
    return (unknown(shape[0]), last)


def _multiplied(call: Call) -> Axes:
    """Batches of matrices, as in attention."""
    shape = call.outputs[0].shape
    tensors = [value for value in call.given.values() if isinstance(value, Tensor)]
    left, right = tensors[-2:]
    sides = [call.traces.get(id(left)), call.traces.get(id(right))]
    batch = next(side[0] for side in sides if side is not None)
    rows = sides[0][1] if sides[0] else unknown(shape[1])
    columns = sides[1][2] if sides[1] else channels(shape[2])
    return batch, rows, columns


def _attention(call: Call) -> Axes:
    """Rows of the queries, channels of the values."""
    value = call.given.get("value")
    last = call.traces[id(value)][-1] if id(value) in call.traces else channels(call.outputs[0].shape[-1])
    return (*call.trace[:-1], last)


def _new_channels(call: Call) -> Axes:
    """The same rows with channels of its own: recurrent layers, the quick way through an attention."""
    return (*call.trace[:-1], channels(call.outputs[0].shape[-1]))


def _recurrent(call: Call) -> Axes:
    return _new_channels(call) if call.outputs[0].dim() == len(call.trace) else unknown_of(call, call.outputs[0])


def _looked_up(call: Call) -> Axes:
    numbers = call["indices"]
    if id(numbers) not in call.traces:
        return unknown_of(call, call.outputs[0])
    return (*call.traces[id(numbers)], channels(call.outputs[0].shape[-1]))


def _reduced(call: Call) -> Axes:
    dims, ndim = call.dims(), call.x.dim()
    if call.outputs[0].dim() == ndim:
        return tuple(Axis() if d in dims else axis for d, axis in enumerate(call.trace))
    return tuple(axis for d, axis in enumerate(call.trace) if d not in dims)


def _permuted(call: Call) -> Axes:
    return tuple(call.trace[d] for d in call.order())


def _rolled(call: Call) -> Axes:
    if not call["dims"]:
        return unknown_of(call, call.outputs[0])
    dims = call.dims("dims")
    shifts = dict(zip(dims, call.numbers("shifts", len(dims)), strict=True))
    return tuple(axis.moved(by=shifts[d]) if d in shifts else axis for d, axis in enumerate(call.trace))


def _flipped(call: Call) -> Axes:
    dims = call.dims("dims")
    return tuple(axis.moved(flipped=True) if d in dims else axis for d, axis in enumerate(call.trace))


def _viewed(call: Call) -> Axes:
    return viewed(call.trace, call.outputs[0].shape)


def _unsqueezed(call: Call) -> Axes:
    at = call["dim"] % call.outputs[0].dim()  # the input has it already if this is in place
    return (*call.trace[:at], Axis(), *call.trace[at:])


def _squeezed(call: Call) -> Axes:
    gone = [d for d in call.dims() if call.x.shape[d] == 1]
    return tuple(axis for d, axis in enumerate(call.trace) if d not in gone)


def _expanded(call: Call) -> Axes:
    return joined([call.trace], call.outputs[0].shape)


def _sliced(call: Call) -> Axes:
    (dim,) = call.dims()
    axis, size = call.trace[dim], call.x.shape[dim]
    start, end, step = slice(call["start"], call["end"], call["step"]).indices(size)
    return _with(call, dim, _part(axis, start, max(start, end), step))


def _part(axis: Axis, start: int, end: int, step: int) -> Axis:
    """Some entries of an axis: tokens without those before them are places again, and the other way round."""
    size = len(range(start, end, step))
    inside = axis.size - axis.after
    if step == 1 and (axis.before or axis.after) and start <= axis.before and end >= inside:
        return Axis(axis.factors, axis.before - start, end - inside)
    return axis.resized(size)


def _with(call: Call, dim: int, axis: Axis) -> Axes:
    return (*call.trace[:dim], axis, *call.trace[dim + 1 :])


def _split(call: Call) -> list[Axes]:
    (dim,) = call.dims()
    parts, start = [], 0
    for output in call.outputs:
        end = start + output.shape[dim]
        parts.append(_with(call, dim, _part(call.trace[dim], start, end, 1)))
        start = end
    return parts


def _selected(call: Call) -> list[Axes]:
    (dim,) = call.dims()
    return [(*call.trace[:dim], *call.trace[dim + 1 :])] * len(call.outputs)


def _indexed(call: Call) -> Axes:
    """Numbers along one axis: of channels they leave channels, places are in another order then."""
    indices = [*call["indices"], *[None] * call.x.dim()][: call.x.dim()]
    asked = [d for d, index in enumerate(indices) if index is not None]
    if len(asked) != 1 or indices[asked[0]].dim() != 1:
        return unknown_of(call, call.outputs[0])
    return _chosen(call, asked[0])


def _index_selected(call: Call) -> Axes:
    return _chosen(call, call.dims()[0])


def _chosen(call: Call, dim: int) -> Axes:
    axis, size = call.trace[dim], call.outputs[0].shape[dim]
    return _with(call, dim, axis.resized(size) if axis.kind == CHANNELS else unknown(size))


def _cat(call: Call) -> Axes:
    shape = call.outputs[0].shape
    dim = call["dim"] % len(shape)
    tensors = [tensor for tensor in call["tensors"] if tensor.dim() == len(shape)]
    traces = [call.traces.get(id(tensor)) for tensor in tensors]
    rest = joined([_without(axes, dim) for axes in traces if axes], [1 if d == dim else n for d, n in enumerate(shape)])
    along = [axes[dim] if axes else unknown(tensor.shape[dim]) for axes, tensor in zip(traces, tensors, strict=True)]
    return (*rest[:dim], _beside(along), *rest[dim + 1 :])


def _without(axes: Axes, dim: int) -> Axes:
    return (*axes[:dim], Axis(), *axes[dim + 1 :])


def _beside(along: Sequence[Axis]) -> Axis:
    """Axes laid end to end: of channels, channels; tokens with others around them; parts of rows, rows again."""
    size = sum(axis.size for axis in along)
    kinds = {axis.kind for axis in along}
    if kinds == {CHANNELS}:
        return channels(size)
    placed = [i for i, axis in enumerate(along) if _has_places(axis)]
    if len(placed) == 1:
        (at,) = placed
        before = sum(axis.size for axis in along[:at])
        after = sum(axis.size for axis in along[at + 1 :])
        return Axis(along[at].factors, before + along[at].before, along[at].after + after)
    if len(placed) == len(along) and len(kinds) == 1 and all(len(axis.factors) == 1 and axis.whole for axis in along):
        return whole(along[0].kind, size)
    return channels(size) if CHANNELS in kinds and not placed else unknown(size)


def _has_places(axis: Axis) -> bool:
    return bool(axis.factors) and all(isinstance(factor.kind, int) for factor in axis.factors)


def _stacked(call: Call) -> Axes:
    shape = call.outputs[0].shape
    dim = call["dim"] % len(shape)
    rest = joined(list(call.traces.values()), [n for d, n in enumerate(shape) if d != dim])
    return (*rest[:dim], unknown(shape[dim]), *rest[dim:])


def _copied(call: Call) -> Axes:
    source = call["src"]
    given = [call.traces[id(t)] for t in (call.x, source) if id(t) in call.traces]
    return joined(given, call.outputs[0].shape)


def _unfolded(call: Call) -> Axes:
    """Patches: each a column, the places where they lie end to end."""
    first, _, *places = call.trace[-4:] if len(call.trace) == 4 else (Axis(), *call.trace)
    shape, m = call.outputs[0].shape, len(places)
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, d, p, s in zip(
            call.x.shape[-m:],
            *(call.numbers(name, m, default) for name, default in _IM2COL),
            strict=True,
        )
    ]
    grid = [axis.resized(size) for axis, size in zip(places, sizes, strict=True)]
    tokens = Axis(tuple(factor for axis in grid for factor in axis.factors))
    return (first, channels(shape[-2]), tokens)[-len(shape) :]


_IM2COL = (("kernel_size", 1), ("dilation", 1), ("padding", 0), ("stride", 1))


def _folded(call: Call) -> Axes:
    """Patches put back to where they came from."""
    shape = call.outputs[0].shape
    first = call.trace[0] if len(shape) == 4 else None
    places = [whole(i, size) for i, size in enumerate(shape[-2:])]
    return (*([first] if first else []), channels(shape[-3]), *places)


def _each(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_each(_convolved, "convolution _convolution conv1d conv2d conv3d conv1d_relu conv2d_relu conv3d_relu"),
    **_each(_weighed, "mm addmm"),
    **_each(_multiplied, "bmm baddbmm"),
    **_each(_new_channels, "_native_multi_head_attention _transformer_encoder_layer_fwd linear linear_relu"),
    **_each(_new_channels, "linear_dynamic linear_relu_dynamic _int_mm _weight_int8pack_mm _weight_int4pack_mm"),
    **_each(_recurrent, "lstm gru rnn_tanh rnn_relu mkldnn_rnn_layer _cudnn_rnn quantized_lstm quantized_gru"),
    **_each(_looked_up, "embedding"),
    **_each(_same, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training"),
    **_each(_same, "cudnn_batch_norm miopen_batch_norm _batch_norm_with_update _batch_norm_no_update batch_norm"),
    **_each(_same, "native_layer_norm _fused_rms_norm native_group_norm instance_norm layer_norm group_norm"),
    **_each(_same, "_softmax _log_softmax softmax log_softmax _safe_softmax native_dropout dropout cumsum cumprod"),
    **_each(_same, "clone contiguous alias detach lift_fresh _to_copy to copy_to _conj constant"),
    **_each(_same, "quantize_per_tensor quantize_per_channel dequantize fake_quantize_per_tensor_affine"),
    **_each(_same, "fake_quantize_per_tensor_affine_cachemask quantize_per_tensor_dynamic renorm bernoulli"),
    **_each(_same, "channel_shuffle native_channel_shuffle zero fill"),
    **_each(_resized, "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d"),
    **_each(_resized, "avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d"),
    **_each(_resized, "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d glu"),
    **_each(_resized, "adaptive_max_pool3d fractional_max_pool2d quantized_max_pool2d constant_pad_nd"),
    **_each(_resized, "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d"),
    **_each(_resized, "replication_pad3d pixel_shuffle pixel_unshuffle upsample_nearest1d upsample_nearest2d"),
    **_each(_resized, "upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d"),
    **_each(_resized, "upsample_bicubic2d _upsample_nearest_exact1d _upsample_nearest_exact2d"),
    **_each(_resized, "_upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"),
    **_each(_reduced, "mean sum amax amin var std var_mean std_mean max min prod logsumexp norm linalg_vector_norm"),
    **_each(_reduced, "argmax argmin any all median"),
    **_each(_permuted, "permute transpose t swapaxes"),
    **_each(_rolled, "roll"),
    **_each(_flipped, "flip"),
    **_each(_viewed, "view _unsafe_view reshape _reshape_alias flatten"),
    **_each(_unsqueezed, "unsqueeze"),
    **_each(_squeezed, "squeeze"),
    **_each(_expanded, "expand"),
    **_each(_sliced, "slice"),
    **_each(_split, "split split_with_sizes chunk"),
    **_each(_selected, "select unbind"),
    **_each(_indexed, "index"),
    **_each(_index_selected, "index_select"),
    **_each(_cat, "cat"),
    **_each(_stacked, "stack"),
    **_each(_copied, "copy"),
    **_each(_unfolded, "im2col"),
    **_each(_folded, "col2im"),
}
_OTHERS: tuple[Rule, ...] = (_pointwise, _weighed, _multiplied, _looked_up, _cat, _stacked, _copied)  # not of the first
