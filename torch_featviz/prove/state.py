"""All that a run of a model could change, as it was at one moment; what has changed since, and how it is put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_featviz.torch_private import CALL, any_global_hook

from .bits import same

_DEEP = 6  # containers in containers
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_METHODS = ("forward", "__call__", CALL)
_CLOSED = (type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, torch.dtype, torch.device, np.ndarray)


class State:
    """A model, its gradients and all random generators as they are now.

    Args:
        model: whatever belongs to it is looked at: the `__dict__` of each module, the containers and objects in it, and
            the values of all tensors in these.
    """

    def __init__(self, model: nn.Module) -> None:
        self._holders: list[tuple[str, Any, Any]] = []  # where it is, a dict, list or set, and what was in it
        self._tensors: list[tuple[str, Tensor, Tensor]] = []
        self._gradients: list[tuple[str, Tensor, Tensor | None]] = []
        self._generators: list[tuple[str, torch.Generator, Tensor]] = []
        self._seen: set[int] = set()
        self._tree = set(model.modules())
        for name, module in model.named_modules():
            self._hold(name or "the model", vars(module), _DEEP)
        self._kinds = {type(module) for module in self._tree}
        self._random, self._settings = _random_states(), _settings(self._kinds)

    def _hold(self, path: str, value: Any, depth: int) -> None:
        """Note what `value` is made of."""
        if isinstance(value, (*_PLAIN, *_CLOSED)) or id(value) in self._seen or not depth:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self._hold_tensor(path, value)
        elif isinstance(value, torch.Generator):
            self._generators.append((path, value, value.get_state()))
        elif isinstance(value, (dict, list, set)):
            self._holders.append((path, value, value.copy() if type(value) is set else _items(value)))
            for key, item in _items(value).items():
                self._hold(f"{path}.{key}", item, depth - 1)
        elif isinstance(value, tuple):
            for key, item in enumerate(value):
                self._hold(f"{path}.{key}", item, depth - 1)
        elif hasattr(value, "__dict__") and not (isinstance(value, nn.Module) and value in self._tree):
            self._hold(path, vars(value), depth - 1)

    def _hold_tensor(self, path: str, tensor: Tensor) -> None:
        if is_lazy(tensor):
            return
        self._tensors.append((path, tensor, tensor.detach().clone()))
        if tensor.is_leaf:
            self._gradients.append((path, tensor, tensor.grad))
            if tensor.grad is not None:
                self._tensors.append((f"{path}.grad", tensor.grad, tensor.grad.detach().clone()))

    def changes(self) -> dict[str, Any]:
        """What is not as it was, by where it is: what is there now."""
        found: dict[str, Any] = {}
        for path, holder, before in self._holders:
            if isinstance(holder, set):
                found.update({path: sorted(map(_told, holder), key=repr)} if holder != before else {})
            else:
                found.update({f"{path}.{key}": value for key, value in _changed(before, _items(holder))})
        for path, tensor, before in self._tensors:
            if not same(tensor, before):
                found[path] = tensor.detach().clone()
        for path, tensor, before in self._gradients:
            if tensor.grad is not before:
                found[f"{path}.grad"] = _told(tensor.grad)
        for path, generator, before in self._generators:
            if not same(generator.get_state(), before):
                found[path] = generator.get_state()
        for before, now in ((self._random, _random_states()), (self._settings, _settings(self._kinds))):
            found.update({name: _told(value) for name, value in now.items() if not same(value, before[name])})
        return found

    def restore(self) -> None:
        """Put all of it back."""
        for _, holder, before in self._holders:
            _put_back(holder, before)
        for _, tensor, gradient in self._gradients:
            if tensor.grad is not gradient:
                tensor.grad = gradient
        for _, tensor, before in self._tensors:
            if not same(tensor, before):
                with torch.inference_mode(tensor.is_inference()):
                    tensor.data.copy_(before)  # of no consequence to an earlier forward's backward
        for _, generator, before in self._generators:
            generator.set_state(before)
        _set_random_states(self._random)


def _items(holder: Any) -> dict[Any, Any]:
    return dict(holder) if isinstance(holder, dict) else dict(enumerate(holder))


def _changed(before: dict[Any, Any], now: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    for key in {**before, **now}:
        if key not in now:
            yield key, "gone"
        elif key not in before or now[key] is not before[key]:
            value = now[key]
            if not (key in before and isinstance(value, _PLAIN) and same(value, before[key])):
                yield key, _told(value)


def _put_back(holder: Any, before: Any) -> None:
    if isinstance(holder, dict):
        if list(holder) != list(before) or any(holder[key] is not value for key, value in before.items()):
            holder.clear()
            holder.update(before)
    elif isinstance(holder, list):
        holder[:] = before.values()
    elif holder != before:
        holder.clear()
        holder.update(before)


def _told(value: Any, depth: int = _DEEP) -> Any:
    """What two runs can be compared by: values, and of objects no more than their kind."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, _PLAIN):
        return value
    if depth and isinstance(value, dict):
        return {str(key) if isinstance(key, _PLAIN) else "": _told(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, (list, tuple)):
        return [_told(item, depth - 1) for item in value]
    return type(value).__qualname__


def _random_states() -> dict[str, Any]:
    """By whose random numbers they are."""
    states: dict[str, Any] = {"random numbers of torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for number, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"random numbers of cuda:{number}"] = state
    of_numpy: Any = np.random.get_state(legacy=True)
    name, keys, *rest = of_numpy
    states["random numbers of numpy"] = [name, keys.tobytes(), *rest]
    states["random numbers of Python"] = random.getstate()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["random numbers of torch"])
    for number in range(len(states) - 3):
        torch.cuda.set_rng_state(states[f"random numbers of cuda:{number}"], number)
    name, keys, *rest = states["random numbers of numpy"]
    np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))
    random.setstate(states["random numbers of Python"])


def _settings(kinds: set[type]) -> dict[str, Any]:
    """Of torch, and methods of classes of modules: for all models."""
    methods = {f"{kind.__name__}.{name}": id(getattr(kind, name, None)) for kind in kinds for name in _METHODS}
    return {
        **methods,
        "gradients are enabled": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "default dtype": str(torch.get_default_dtype()),
        "hooks on all modules": any_global_hook(),
    }
