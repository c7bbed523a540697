"""A captured output keeps its memory, and what is about to overwrite it writes elsewhere: no copy, no more traffic.

`relu_(y)` becomes `new = relu(y)`; the record keeps the memory of `y`, and the tensor `y` itself, with which the
network goes on, is given that of `new`. A view that was taken of `y` before would keep the old memory. So this is done
only where one tensor holds it, which PyTorch can be asked, and where nothing else knows it. Elsewhere the record is
given a copy, just before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch_featviz.model.values import tensors
from torch_featviz.torch_private import (
    dispatch_modes,
    function_modes,
    is_transformed,
    may_move,
    move,
    something_is_compiled,
    storage_id,
)

from .eager import eager

_METHODS = ("add", "sub", "mul", "div", "relu", "sigmoid", "tanh", "clamp", "clamp_min", "clamp_max")
_OPERATORS = {"__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div"}
_ELSEWHERE: dict[Any, Callable[..., Any]] = {  # what writes to its first argument, and what returns the same
    **{getattr(Tensor, f"{name}_"): getattr(Tensor, name) for name in _METHODS},
    **{getattr(Tensor, name): getattr(Tensor, method) for name, method in _OPERATORS.items()},
    torch.relu_: torch.relu,
}
_WITH_INPLACE = frozenset(  # these write to it with `inplace=True`
    [F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.elu, F.celu, F.selu, F.silu, F.mish, F.hardswish, F.hardsigmoid]
)

# From so many bytes overwritten, by function that the forward calls, a swap costs less than copies: a function costs
# some 2 µs more where a mode sees it, but a GPU is behind the CPU where tensors are large. On a CPU copies cost no more
# (measured): most of what they cost is the memory itself, of which a swap needs as much.
_WORTH = {"cuda": 2**20}


def may_swap() -> bool:
    """Whether memory may be swapped in a forward that begins now: nothing but the network's own code can see it.

    Of captures of one model within each other one may do it, and the others copy.
    """
    if torch.is_grad_enabled() or dispatch_modes() or something_is_compiled():
        return False
    return not any(isinstance(mode, Swapping) for mode in function_modes())


class Swapping(TorchFunctionMode):
    """Sees the functions that one forward calls, and lets records keep what they would overwrite.

    Args:
        records: of which `wait_for` tells those in question.
        known: memory that others may know by its address: of parameters, buffers and arguments.
    """

    def __init__(self, records: list[tuple[Any, Any, Any]], known: frozenset[int | None] = frozenset()) -> None:
        super().__init__()
        self.swapped: dict[int, int] = {}  # the bytes of records that kept their memory, by position
        self._records = records
        self._known = known
        self._waiting: dict[int, list[int]] = {}  # by the id of a tensor: positions of records that are that tensor
        self._nested: set[int] = set()  # ids of tensors in records that are more than that
        self._device = ""
        self._calls = 0
        self._modes = 0

    def __enter__(self) -> Swapping:
        self._modes = dispatch_modes()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    @eager
    def wait_for(self, output: Any, position: int) -> None:
        """The record at `position` is `output`, and keeps it alive."""
        if type(output) is Tensor and not output.is_inference():
            self._waiting.setdefault(id(output), []).append(position)
        else:
            self._nested.update(map(id, tensors(output)))

    @property
    def worth(self) -> bool:
        """Whether copies of what was swapped would have cost more than to look at each function."""
        return sum(self.swapped.values()) >= self._calls * _WORTH[self._device]

    @eager
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._calls += 1
        if args and id(args[0]) in self._waiting:
            if func in _ELSEWHERE:
                return self._write(args[0], _ELSEWHERE[func], func, args, kwargs)
            if func in _WITH_INPLACE and kwargs.get("inplace"):
                return self._write(args[0], _out_of_place(func), func, args, kwargs)
        return func(*args, **kwargs)

    def _write(
        self,
        written: Tensor,
        elsewhere: Callable[..., Any],
        in_place: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self._may_move(written):
            new = elsewhere(*args, **kwargs)
            if _alike(new, written):
                positions, version = self._waiting.pop(id(written)), written._version
                kept = move(written, new)
                self._replace(positions, written, version, kept)
                self.swapped.update(dict.fromkeys(positions, kept.nbytes))
                self._device = kept.device.type
                return written
        self._replace(self._waiting.pop(id(written)), written, written._version, written.clone())
        return in_place(*args, **kwargs)

    def _replace(self, positions: list[int], written: Tensor, version: int, kept: Tensor) -> None:
        """Records of `written`, unless something has changed that already."""
        for position in positions:
            if position < len(self._records):  # fewer, where a copy of a layer was dropped meanwhile
                name, value, was = self._records[position]
                if value is written and was == version:
                    self._records[position] = (name, kept, kept._version)

    def _may_move(self, tensor: Tensor) -> bool:
        return (
            tensor.device.type in _WORTH
            and id(tensor) not in self._nested
            and not is_transformed()
            and dispatch_modes() == self._modes
            and tensor.layout is torch.strided
            and tensor.is_floating_point()
            and may_move(tensor)
            and storage_id(tensor) not in self._known
        )


def _out_of_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def elsewhere(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{**kwargs, "inplace": False})

    return elsewhere


def _alike(new: Any, old: Tensor) -> bool:
    """Whether one may take the place of the other, which type promotion, broadcasting or autocast may prevent."""
    return (
        type(new) is Tensor
        and new.dtype == old.dtype
        and new.device == old.device
        and new.layout is old.layout
        and new.shape == old.shape
        and new.stride() == old.stride()
        and not new.requires_grad
    )
