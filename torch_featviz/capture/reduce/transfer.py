"""From a device to the CPU: many tensors by one copy, which goes on while the CPU does something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from torch_featviz.launching import gpu

_KINDS: dict[torch.dtype, Any] = {torch.float64: np.float64, torch.int64: np.int64, torch.float32: np.float32}
_Alike: TypeAlias = tuple[torch.device, torch.dtype, torch.Size | None]  # all sizes but the last; None of one number


@torch.no_grad()
def fetch(tensors: Sequence[Tensor]) -> Callable[[], list[np.ndarray]]:
    """Begin to copy tensors to the CPU, by one transfer a device; they may change, or go, as soon as this returns.

    Returns:
        A function that waits for the copies and returns them, floats as float64 and integers as int64. They may be
        parts of larger arrays.
    """
    alike: dict[_Alike, list[int]] = {}
    for i, tensor in enumerate(tensors):
        shape = tensor.shape
        alike.setdefault((tensor.device, tensor.dtype, shape[:-1] if shape else None), []).append(i)
    joined: dict[torch.device, list[tuple[Tensor, _Parts]]] = {}
    for (device, _, _), places in alike.items():
        joined.setdefault(device, []).append(_join([tensors[i] for i in places], places))
    readers, number = [_begin(several) for several in joined.values()], len(tensors)

    def read() -> list[np.ndarray]:
        arrived = {place: array for arrays in readers for place, array in arrays()}
        return [arrived[place] for place in range(number)]

    return read


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The copies, once they are there."""
    return [torch.from_numpy(array) for array in fetch(tensors)()]


class _Parts(NamedTuple):
    """What was joined on the last axis."""

    places: list[int]  # among all that is fetched
    ends: list[int] | None  # where each part ends; None of single numbers
    dtype: torch.dtype
    shape: tuple[int, ...]  # of the whole

    def of(self, whole: np.ndarray) -> Iterator[np.ndarray]:
        if self.ends is None:
            return (whole[i, ...] for i in range(len(whole)))
        return (whole[..., start:end] for start, end in zip([0, *self.ends], self.ends, strict=False))


def _join(tensors: list[Tensor], places: list[int]) -> tuple[Tensor, _Parts]:
    """Tensors that are alike as one, by one call."""
    single = not tensors[0].ndim
    whole = torch.stack(tensors) if single else torch.cat(tensors, -1)
    if whole.dtype not in _KINDS:
        whole = whole.to(torch.float32 if whole.is_floating_point() else torch.int64)
    ends = None if single else list(accumulate([tensor.shape[-1] for tensor in tensors]))
    return whole, _Parts(places, ends, whole.dtype, tuple(whole.shape))


def _begin(joined: list[tuple[Tensor, _Parts]]) -> Callable[[], Iterator[tuple[int, np.ndarray]]]:
    """Begin the transfer from one device; what is returned gives each tensor with its place."""
    joined.sort(key=lambda each: each[0].dtype == torch.float32)  # those of 64 bits first, at multiples of 8
    wait = gpu.download(torch.cat([whole.reshape(-1).view(torch.int32) for whole, _ in joined]))
    all_parts = [parts for _, parts in joined]

    def read() -> Iterator[tuple[int, np.ndarray]]:
        data, start = wait(), 0
        for parts in all_parts:
            whole = np.ndarray(parts.shape, _KINDS[parts.dtype], data, start)
            start += whole.nbytes
            exact = whole.astype(np.float64) if parts.dtype == torch.float32 else whole
            yield from zip(parts.places, parts.of(exact), strict=True)

    return read
