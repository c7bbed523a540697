# mypy: ignore-errors
"""A Triton kernel that adds up the squares of many gradients in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from torch_featviz.capture.reduce.kernels import _pointer

BLOCK: tl.constexpr = tl.constexpr(2048)


@triton.jit
def squares(addresses, programs, out, at, KIND: tl.constexpr):
    """Add the sum of the squares of some gradients to `out[at]`, float64; NaN and infinity stay what they are.

    `programs` has rows of int64: gradient, first value, end of values.
    """
    row = programs + tl.program_id(0) * 3
    start, end = tl.load(row + 1), tl.load(row + 2)
    first = _pointer(tl.load(addresses + tl.load(row)), KIND)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    found = tl.zeros([BLOCK], tl.float64)
    for i in range(start, end, BLOCK):
        place = i + lane
        value = tl.load(first + place, mask=place < end, other=0.0).to(tl.float64)
        found += value * value
    tl.atomic_add(out + at, tl.sum(found, 0))
