"""Whether two tensors are the same to the bit, and how far they are apart, in words."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their size in bytes


def same(one: Any, other: Any) -> bool:
    """Whether they are the same: tensors to the bit, where NaN is NaN and -0.0 is not 0.0; containers item by item."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or _same_bits(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (isinstance(one, float) and isnan(one) and isnan(other))


@torch.no_grad()
def _same_bits(one: Tensor, other: Tensor) -> bool:
    kind, also = ((t.shape, t.dtype, t.device, t.layout) for t in (one, other))
    if kind != also:
        return False
    if one.is_meta:
        return True
    if one.is_quantized:  # whose bytes torch may not look at
        return torch.equal(one, other)
    try:
        return torch.equal(_bits(one), _bits(other))
    except (RuntimeError, KeyError):  # sparse
        return torch.equal(one, other) if one.layout == torch.strided else _same_bits(one.to_dense(), other.to_dense())


def _bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


@torch.no_grad()
def distance(ones: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> float:
    """The largest difference between values of tensors of the same shapes; infinite where they cannot be compared."""
    if len(ones) != len(others):
        return float("inf")
    farthest = 0.0
    for one, other in zip(ones, others, strict=True):
        if one is None or other is None or same(one, other):
            farthest = farthest if same(one, other) else float("inf")
        elif one.shape != other.shape or one.is_complex() or not one.numel():
            return float("inf")
        else:
            farthest = max(farthest, float((_plain(one) - _plain(other)).abs().nan_to_num(float("inf")).max()))
    return farthest


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    return tensor.detach().to_dense().double()


def apart(ones: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> str:
    """In words, how tensors that are not the same differ."""
    if len(ones) != len(others):
        return f"{len(ones)} tensors became {len(others)}"
    differing = [pair for pair in zip(ones, others, strict=True) if not same(*pair)]
    one, other = differing[0]
    if one is None or other is None:
        return "there is a tensor where there was none" if one is None else "a tensor is gone"
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{_kind(one)} became {_kind(other)}"
    return f"values differ by up to {distance(ones, others):.3g}"


def _kind(tensor: Tensor) -> str:
    return f"{' '.join(map(str, tensor.shape)) or 'scalar'}, {str(tensor.dtype).removeprefix('torch.')}"
