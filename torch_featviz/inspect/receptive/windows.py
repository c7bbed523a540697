"""Operators that look through windows: convolutions, pools, padding, resizing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch

from torch_featviz.model import follow

from .reach import Steps, Table, Trace, bins, sliding, steps_of

Window = tuple[Table, Steps | None]


Call: TypeAlias = follow.Call[Trace]
Rule = Callable[[Call], Trace | list[Trace]]


def convolved(call: Call) -> Trace:
    kernel = call["weight"].shape[2:]
    m, x, y = len(kernel), call.x, call.outputs[0]
    options = [call.numbers(name, m) for name in ("stride", "padding", "dilation")]
    tables: list[Window] = []
    for i, (k, s, p, d) in enumerate(zip(kernel, *options, strict=True)):
        n, outputs = x.shape[i + 2], y.shape[i + 2]
        if not call["transposed"]:
            tables.append(sliding(n, outputs, size=k, stride=s, padding=p, dilation=d))
        else:  # what an output is seen by, in the convolution the other way
            table, _ = sliding(outputs, n, size=k, stride=s, padding=p, dilation=d)
            even = Steps(1 + (k - 1) * d, 1, p - (k - 1) * d) if s == 1 else None
            tables.append((table.T, even))
    trace = call.trace.pooled([1]).windows(2, tables)
    return replace(trace, uneven=trace.uneven and call["groups"] > 1)


def pooled(call: Call) -> Trace:
    m = int(call.name[call.name.index("pool") + 4])
    kernel = call.numbers("kernel_size", m)
    stride = call.numbers("stride", m) if call.given.get("stride") else kernel
    padding, dilation = call.numbers("padding", m), call.numbers("dilation", m, 1)

    def table(i: int, n: int, out: int) -> Window:
        return sliding(n, out, size=kernel[i], stride=stride[i], padding=padding[i], dilation=dilation[i])

    return call.trace.windows(call.x.dim() - m, _tables(call, m, table))


def adapted(call: Call) -> Trace:
    m, ndim = int(call.name[call.name.index("pool") + 4]), call.x.dim()
    everything = [d for d in range(ndim - m, ndim) if call.outputs[0].shape[d] == 1]
    return call.trace.pooled(everything).windows(ndim - m, _tables(call, m, lambda _, n, out: bins(n, out)))


def padded(call: Call) -> Trace:
    pad = call["pad"]
    m = len(pad) // 2
    low = [pad[2 * (m - 1 - i)] for i in range(m)]
    trace = call.trace.windows(
        call.x.dim() - m, _tables(call, m, lambda i, n, out: sliding(n, out, size=1, padding=low[i]))
    )
    moving = {axis.dim for axis in trace.axes}
    channels = any(call.x.shape[d] != call.outputs[0].shape[d] for d in range(call.x.dim()) if d not in moving)
    return replace(trace, uneven=trace.uneven or channels)


def shuffled(call: Call) -> Trace:
    """Pixels to channels or back."""
    first = call.x.dim() - 2

    def table(_: int, n: int, out: int) -> Window:
        if out > n:
            return np.eye(n, dtype=bool).repeat(out // n, 0), None
        return sliding(n, out, size=n // out, stride=n // out)

    return call.trace.pooled([first - 1]).windows(first, _tables(call, 2, table))


def _tables(call: Call, m: int, make: Callable[[int, int, int], Window]) -> list[Window]:
    return [make(i, call.x.shape[i - m], call.outputs[0].shape[i - m]) for i in range(m)]


def probed(call: Call) -> Trace:
    """Resizing and padding with the border: the operator is asked itself, one position at a time."""
    sizes = call.x.shape[2:]
    first = next(name for name, value in call.given.items() if value is call.x)
    tables: list[Window] = []
    for i, n in enumerate(sizes):
        shape = [n, 1, *(n if k == i else 1 for k in range(len(sizes)))]
        probe = torch.eye(n, device=call.x.device).view(shape).expand(n, 1, *sizes)
        answer = call.function(*(probe.contiguous() if name == first else v for name, v in call.given.items()))
        for dim in reversed([d for d in range(1, answer.dim()) if d != i + 2]):
            answer = answer.select(dim, 0)
        pad = call.given.get("padding")
        table: Table = (answer != 0).T.cpu().numpy()
        tables.append((table, steps_of(table) if pad is None else Steps(1, 1, -pad[2 * (len(sizes) - 1 - i)])))
    return call.trace.windows(2, tables)


def each(rule: Rule, names: str) -> dict[str, Rule]:
    """One rule for all these operators."""
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **each(convolved, "convolution"),
    **each(pooled, "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d"),
    **each(adapted, "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d"),
    **each(adapted, "adaptive_max_pool3d"),
    **each(padded, "constant_pad_nd"),
    **each(shuffled, "pixel_shuffle pixel_unshuffle"),
    **each(probed, "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d"),
    **each(probed, "replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d"),
    **each(probed, "upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d"),
    **each(probed, "upsample_bicubic2d _upsample_nearest_exact1d _upsample_nearest_exact2d"),
    **each(probed, "_upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"),
}
