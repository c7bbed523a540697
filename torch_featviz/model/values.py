"""What a layer may return: a tensor, or tensors in tuples, named tuples, lists, dicts and dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from torch_featviz.torch_private import clone_each


def copies_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Detached copies; of those on a GPU all of one dtype in a launch or two."""
    together: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_cuda and tensor.layout == torch.strided:
            together.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
    if not together:
        return [tensor.detach().clone() for tensor in tensors]
    made = {kind: iter(clone_each(several)) for kind, several in together.items()}
    return [
        next(made[tensor.dtype, tensor.device])
        if tensor.is_cuda and tensor.layout == torch.strided
        else tensor.detach().clone()
        for tensor in tensors
    ]


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Rebuild `value` with `function` applied to each tensor in it; every other leaf is kept as it is.

    Containers are made anew, so that a list which its owner goes on filling is not shared.
    """
    if isinstance(value, Tensor):
        return function(value)
    try:
        return _rebuild(function, value)
    except (TypeError, AttributeError, RecursionError):  # a container that cannot be made anew is kept itself
        return value


def _rebuild(function: Callable[[Tensor], Any], value: Any) -> Any:
    if isinstance(value, tuple):
        items = (map_tensors(function, item) for item in value)
        return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
    if isinstance(value, list):
        return [map_tensors(function, item) for item in value]
    if type(value) is dict:  # apart, for Dynamo, which traces no copy()
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, Mapping):
        changed: Any = copy(value)
        for key in value:
            changed[key] = map_tensors(function, value[key])
        return changed
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):  # Dynamo of torch 2.6 asks no class
        changed = copy(value)
        for field in dataclasses.fields(value):
            if hasattr(value, field.name):
                object.__setattr__(changed, field.name, map_tensors(function, getattr(value, field.name)))
        return changed
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """Each tensor in `value`, in order."""
    parts: list[Tensor] = []
    map_tensors(parts.append, value)
    return iter(parts)


def whole(parameter: Tensor) -> Tensor:
    """The plain tensor; of a sharded one, all of it, which every rank has to ask for."""
    parameter = parameter.detach()
    full: Tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return full
