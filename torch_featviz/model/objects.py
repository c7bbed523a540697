"""Copies of objects: what `copy.deepcopy` does, but that tensors, modules and functions are copied as it cannot."""

from __future__ import annotations

import copy
import copyreg
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from types import (
    BuiltinFunctionType,
    CodeType,
    EllipsisType,
    FunctionType,
    MethodType,
    ModuleType,
    NoneType,
)
from typing import Any, TypeAlias

import torch
from torch import Tensor, distributed, nn

from .functions import reaches, rebuilt

IMMUTABLE = frozenset(
    {NoneType, bool, int, float, complex, str, bytes, type, range, property, EllipsisType, BuiltinFunctionType}
    | {CodeType, ModuleType, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size}
)
_GROUPS = (distributed.ProcessGroup,) if distributed.is_available() else ()
_SHARED = (type, torch.ScriptObject, torch.jit.ScriptFunction, torch.fx.Graph, *_GROUPS)


class ObjectCopier:
    """One copy of objects that refer to each other: what is one object in two places is one in the copy, too."""

    def __init__(self) -> None:
        self.memo: dict[int, Any] = {}  # the copy by the original's id, as copy.deepcopy has it
        self.alive: list[Any] = []  # the originals: the id of one that is gone could come up again
        self.parts: frozenset[int] = frozenset()  # ids of what functions and weak references are made anew for
        self._ways = dict(_WAYS)

    def tensor(self, tensor: Tensor) -> Tensor:
        """What stands for a tensor."""
        raise NotImplementedError

    def module(self, module: nn.Module) -> nn.Module:
        """What stands for a module."""
        raise NotImplementedError

    def of(self, value: Any) -> Any:
        """What stands for `value`; what cannot change stands for itself."""
        kind = type(value)
        if kind in IMMUTABLE or (kind is tuple and _immutable(value)):
            return value
        key = id(value)
        if key in self.memo:
            return self.memo[key]
        way = self._ways.get(kind)
        if way is None:
            way = self._ways[kind] = self._way(kind)
        self.alive.append(value)
        other = self.memo[key] = way(self, value)
        return other

    def _way(self, kind: type) -> _Way:
        if issubclass(kind, _SHARED):
            return _itself
        if issubclass(kind, Tensor):
            return type(self).tensor
        if issubclass(kind, nn.Module):
            return type(self).module
        return ObjectCopier.deeply if hasattr(kind, "__deepcopy__") else ObjectCopier._reduced

    def deeply(self, value: Any) -> Any:
        """By `copy.deepcopy`, which is given all that is known."""
        return copy.deepcopy(value, self.memo)

    def _dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        other: dict[Any, Any] = {}
        self.memo[id(value)] = other
        for key, item in value.items():
            other[key if type(key) is str else self.of(key)] = self.of(item)
        return other

    def _ordered(self, value: OrderedDict[Any, Any]) -> Any:
        return self._reduced(value) if value else OrderedDict()

    def _list(self, value: list[Any]) -> list[Any]:
        if _immutable(value):
            return value.copy()
        other: list[Any] = []
        self.memo[id(value)] = other
        other.extend(map(self.of, value))
        return other

    def _set(self, value: set[Any]) -> set[Any]:
        return set(map(self.of, value))

    def _tuple(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        items = tuple(map(self.of, value))
        known: tuple[Any, ...] = self.memo.get(id(value), items)  # one of its items may hold it
        return known

    def _function(self, function: FunctionType) -> FunctionType:
        return rebuilt(function, self.parts, self.of, self.memo) if reaches(function, self.parts) else function

    def _method(self, method: MethodType) -> MethodType:
        return MethodType(self.of(method.__func__), self.of(method.__self__))

    def _reference(self, reference: weakref.ref[Any]) -> weakref.ref[Any]:
        target = reference()
        return weakref.ref(self.of(target)) if id(target) in self.parts else reference

    def _generator(self, generator: torch.Generator) -> torch.Generator:
        return generator.clone_state()

    def _reduced(self, value: Any) -> Any:
        """By `__reduce_ex__`, as `copy.deepcopy` goes about it, but that what it consists of is copied in our way."""
        reduce = copyreg.dispatch_table.get(type(value))
        recipe: Any = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        if isinstance(recipe, str):  # the name of something global
            return value
        self.alive.append(recipe)
        make, arguments, state, items, pairs = (*recipe, None, None, None)[:5]
        other = self.memo[id(value)] = make(*map(self.of, arguments))
        if state is not None:
            _restore(other, self.of(state))
        for item in items or ():
            other.append(self.of(item))
        for key, item in pairs or ():
            other[self.of(key)] = self.of(item)
        return other


def _immutable(values: Iterable[Any]) -> bool:
    return IMMUTABLE.issuperset(map(type, values))


_Way: TypeAlias = Callable[[ObjectCopier, Any], Any]
_WAYS: dict[type, _Way] = {  # functions and no methods: a copier that held itself would wait for the garbage collector
    dict: ObjectCopier._dict,
    OrderedDict: ObjectCopier._ordered,
    list: ObjectCopier._list,
    tuple: ObjectCopier._tuple,
    set: ObjectCopier._set,
    FunctionType: ObjectCopier._function,
    MethodType: ObjectCopier._method,
    weakref.ReferenceType: ObjectCopier._reference,
    torch.Generator: ObjectCopier._generator,
}


def _itself(_copier: ObjectCopier, value: Any) -> Any:
    return value


def _restore(value: Any, state: Any) -> None:
    if hasattr(value, "__setstate__"):
        value.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        vars(value).update(attributes)
    for name, item in (slots or {}).items():
        object.__setattr__(value, name, item)  # a frozen dataclass refuses others
