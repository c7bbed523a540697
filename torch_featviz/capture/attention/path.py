"""How one forward moves tokens about: its shifts, slices and indices, to tell whether the next one does the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .operators import VIEWS

_OTHERS = "roll flip rot90 index index_select gather take repeat constant_pad_nd pad cat"
MOVES = frozenset((*VIEWS, *_OTHERS.split()))


class Path:
    """The arguments of all operators that move tokens, in their order.

    Tensors count as arguments where they are indices or masks; what is moved does not.

    Args:
        before: that of another forward, with which this one is compared.
    """

    def __init__(self, before: Path | None = None) -> None:
        self._steps: list[tuple[Any, ...]] = [] if before is None else before._steps
        self._at = None if before is None else 0

    def step(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this call is the one that the first forward made."""
        step = name, *map(_argument, args[1:]), *map(_argument, kwargs.values())
        if self._at is None:
            self._steps.append(_copied(step))
            return True
        self._at += 1
        return self._at <= len(self._steps) and _same(step, self._steps[self._at - 1])


def _argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None if value.is_floating_point() or value.is_complex() else value
    if isinstance(value, (list, tuple)):
        return tuple(map(_argument, value))
    return value


def _copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    return value.clone() if isinstance(value, Tensor) else value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.device == b.device and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)
