"""The multiply-adds of a forward, by formulas of our own: no figure depends on PyTorch's version.

One multiply-add is one product and its addition to a sum. Convolutions, matrix products, attention and recurrent
layers consist of them. Biases, norms, activations, pooling, resizing and look-ups count as 0.

Counted is what the layer is defined to compute, as papers do it: zeros of a padding and places that an attention mask
hides count like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torch_featviz.torch_private import TorchDispatchMode

Formula: TypeAlias = Callable[[Sequence[Any], Any], int]  # of an operator's positional arguments and its result


def _product(left: int) -> Formula:
    """Of a matrix product whose left factor is argument `left`: each number of the result sums over its last axis."""
    return lambda args, result: result.numel() * args[left].shape[-1]


def _sum_of_products(args: Sequence[Any], result: Any) -> int:  # addbmm
    return int(result.numel() * args[1].shape[0] * args[1].shape[-1])


def _convolution(args: Sequence[Any], result: Any, transposed: bool = False) -> int:
    """Each number of the result sums over one filter; when transposed, each number of the input is given to one."""
    weight = args[1] if isinstance(args[1], Tensor) else args[1].unpack()[0]  # quantised weights come packed
    return int((args[0] if transposed else result).numel() * math.prod(weight.shape[1:]))


def _any_convolution(args: Sequence[Any], result: Any) -> int:
    return _convolution(args, result, transposed=args[6])


def _transposed_convolution(args: Sequence[Any], result: Any) -> int:
    return _convolution(args, result, transposed=True)


def _convolution_of_sequences(args: Sequence[Any], result: Any) -> int:  # conv_tbc; weight `place, channel, filter`
    return int(result.numel() * math.prod(args[1].shape[:2]))


def _attention(args: Sequence[Any], result: Any) -> int:
    """Each query meets each key, and then sums over all values."""
    query, key, value = args[:3]
    rows = math.prod((result if isinstance(result, Tensor) else result[0]).shape[:-1])
    return int(rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _attention_layer(args: Sequence[Any], _: Any) -> int:
    """Of `nn.MultiheadAttention`'s fast path: three projections, the attention of all heads, one projection."""
    query, key, value, width = args[:4]
    queries, keys, values = (math.prod(part.shape[:-1]) for part in (query, key, value))
    return int((2 * queries + keys + values) * width * width + 2 * queries * key.shape[1] * width)


def _encoder_layer(args: Sequence[Any], _: Any) -> int:
    """Of `nn.TransformerEncoderLayer`'s fast path: attention and two linear layers."""
    source, width, wide = args[0], args[1], args[14]
    rows = math.prod(source.shape[:-1])
    return int(_attention_layer([source, source, source, width], _) + 2 * rows * width * wide.shape[0])


def _recurrent(args: Sequence[Any], _: Any) -> int:  # _cudnn_rnn: input, weights and biases of all layers
    return _steps(args[0]) * sum(int(weight.numel()) for weight in args[1] if weight.dim() == 2)


def _recurrent_layer(args: Sequence[Any], _: Any) -> int:  # mkldnn_rnn_layer: of the input, of the state
    return int(_steps(args[0]) * (args[1].numel() + args[2].numel()))


def _packed_recurrent(gates: int) -> Formula:
    """Of dynamically quantised layers, whose weights are packed: from the sizes of input and state."""

    def formula(args: Sequence[Any], _: Any) -> int:
        has_lengths = isinstance(args[1], Tensor) and not args[1].is_floating_point()  # of a PackedSequence
        rest = args[2:] if has_lengths else args[1:]
        state, layers, ways = rest[0], rest[3], 1 + rest[6]
        hidden = (state if isinstance(state, Tensor) else state[0]).shape[-1]
        given = args[0].shape[-1] + (layers - 1) * ways * hidden
        return int(_steps(args[0]) * ways * gates * hidden * (given + layers * hidden))

    return formula


def _steps(sequences: Tensor) -> int:
    return math.prod(sequences.shape[:-1])


def _bilinear(args: Sequence[Any], _: Any) -> int:
    """Of `nn.Bilinear`: weight and left input first, over the left features; then with the right input."""
    *factors, left, weight, right, summed = args[:7]
    sizes = []
    for factor, added in zip(factors, (left, weight, right), strict=True):
        shape = list(factor.shape)
        for axis in sorted(added):
            shape.insert(axis, 1)
        sizes.append(shape)
    both = list(map(max, *sizes[:2]))
    remaining = [1 if axis in summed and axis in right else size for axis, size in enumerate(both)]
    return int(math.prod(both) + math.prod(map(max, remaining, sizes[2])))


# By operator. Those that consist of others (linear, matmul, einsum, lstm) are taken apart first.
FORMULAS: dict[str, Formula] = {
    **{f"aten.{name}": _product(0) for name in ("mm", "bmm", "mv", "dot", "vdot", "mkldnn_linear", "_int_mm")},
    **{f"aten.{name}": _product(0) for name in ("_scaled_mm", "_weight_int8pack_mm")},
    **{f"aten.{name}{end}": _product(1) for name in ("addmm", "baddbmm", "addmv") for end in ("", "_")},
    **{f"aten.addbmm{end}": _sum_of_products for end in ("", "_")},
    "aten._addmm_activation": _product(1),
    "aten._trilinear": _bilinear,
    "aten.convolution": _any_convolution,
    "aten._convolution": _any_convolution,
    "aten.mkldnn_convolution": _convolution,
    "aten.conv_tbc": _convolution_of_sequences,
    "torchvision.deform_conv2d": _convolution,
    "aten.scaled_dot_product_attention": _attention,
    **{
        f"aten._scaled_dot_product_{kind}": _attention
        for kind in (
            "attention_math",
            "flash_attention",
            "flash_attention_for_cpu",
            "efficient_attention",
            "cudnn_attention",
            "fused_attention_overrideable",
        )
    },
    "aten._native_multi_head_attention": _attention_layer,
    "aten._transformer_encoder_layer_fwd": _encoder_layer,
    "aten._cudnn_rnn": _recurrent,
    "aten.miopen_rnn": _recurrent,
    "aten.mkldnn_rnn_layer": _recurrent_layer,
    "aten.quantized_lstm": _packed_recurrent(4),
    "aten.quantized_gru": _packed_recurrent(3),
    **{
        f"quantized.conv{axes}d{end}": _convolution
        for axes in (1, 2, 3)
        for end in ("", "_relu", "_add", "_add_relu", "_dynamic")
    },
    **{
        f"quantized.conv_transpose{axes}d{end}": _transposed_convolution
        for axes in (1, 2, 3)
        for end in ("", "_dynamic")
    },
    **{
        f"quantized.linear{end}": _product(0)
        for end in ("", "_relu", "_leaky_relu", "_tanh", "_dynamic", "_relu_dynamic", "_dynamic_fp16")
    },
    "quantized.linear_relu_dynamic_fp16": _product(0),
    "quantized.matmul": _product(0),
}
KNOWN = ("aten", "prim", "prims", "quantized", "torchvision")  # namespaces whose other operators have none


@dataclass
class Count:
    """What was counted so far."""

    multiply_adds: int = 0
    unknown: list[str] = field(default_factory=list)  # calls that may multiply, but have no formula here


@contextmanager
def counting() -> Iterator[Count]:
    """Count the multiply-adds of all that PyTorch runs in a `with` block.

    PyTorch's single calls for a whole attention or encoder layer are off meanwhile: the layers inside run, too.

    Example:
        >>> with counting() as count:
        ...     _ = torch.nn.Linear(10, 3)(torch.rand(5, 10))
        >>> count.multiply_adds
        150
    """
    count = Count()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _Counter(count):
            yield count
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Counter(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, count: Count) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(getattr(func, "overloadpacket", func))  # torch.cond and its like have no overloads
        formula = FORMULAS.get(name)
        nested = any(isinstance(argument, Tensor) and argument.is_nested for argument in args)  # shapes are ragged
        if formula is None and not nested and hasattr(func, "decompose"):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if nested or (formula is None and name.partition(".")[0] not in KNOWN):
            self.count.unknown.append(name)
        elif formula is not None:
            self.count.multiply_adds += formula(args, result)
        return result
