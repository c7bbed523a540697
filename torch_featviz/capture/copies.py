"""Copies of a model made inside a block are models without stand-ins.

`copy.copy`, `copy.deepcopy` and `pickle` ask `copyreg` how to take an object apart. While a block is open `copyreg` has
an entry for each class of modules in the model, which takes a module apart as it was before any capture. Modules with a
`__deepcopy__` of their own (parametrised layers, fx graphs) never ask; their copies are cleaned afterwards.
"""

from __future__ import annotations

import copy
import copyreg
from collections.abc import Callable, Iterable
from itertools import chain
from types import MethodType
from typing import Any, TypeAlias

import torch
from torch import nn

from .tap import ABSENT, Taps, before_captures, open_taps, put, untapped

_Reducer: TypeAlias = Callable[[Any], Any]

_earlier: dict[type, _Reducer | None] = {}  # what `copyreg` had for each class that has an entry of ours


def own_deepcopy(modules: Iterable[Iterable[nn.Module]], kinds: Iterable[type]) -> list[nn.Module]:
    """Those of `modules`, which are of classes `kinds`, that `copyreg` would not be asked about."""
    own = {kind for kind in kinds if hasattr(kind, "__deepcopy__")}
    return list(dict.fromkeys(module for module in chain(*modules) if type(module) in own)) if own else []


def keep_out(taps: Taps, kinds: Iterable[type], own: Iterable[nn.Module]) -> None:
    """Keep stand-ins out of copies of modules of these classes; the deep copies that `own` make are cleaned."""
    taps.kinds = frozenset(kind for kind in kinds if not issubclass(kind, torch.jit.ScriptModule))
    table = copyreg.dispatch_table
    for kind in taps.kinds:
        if kind not in _earlier:
            _earlier[kind] = table.get(kind)
            table[kind] = _taken_apart
    for module in own:
        deepcopy: Any = module.__deepcopy__
        put(module, "__deepcopy__", MethodType(_cleaned(deepcopy), module), taps)


def release(taps: Taps) -> None:
    """Give `copyreg` back what no other open block needs. It may be interrupted anywhere, and called again."""
    needed = {kind for other in open_taps() if other is not taps for kind in other.kinds}
    for kind in taps.kinds - needed:
        if copyreg.dispatch_table.get(kind) is _taken_apart:
            earlier = _earlier.get(kind)
            if earlier is None:
                copyreg.dispatch_table.pop(kind, None)
            else:
                copyreg.dispatch_table[kind] = earlier
        _earlier.pop(kind, None)


def _taken_apart(module: nn.Module) -> Any:
    """What `module.__reduce_ex__` returns, the captures' entries left out of it."""
    earlier = _earlier.get(type(module))
    parts = module.__reduce_ex__(4) if earlier is None else earlier(module)
    if not isinstance(parts, tuple):
        return parts
    function, arguments, *rest = parts
    return (function, tuple(_without(module, part) for part in arguments), *(_without(module, part) for part in rest))


def _without(module: nn.Module, part: Any) -> Any:
    """`part` of a module taken apart, as before any capture; its state is a dictionary, or in a tuple with one."""
    if isinstance(part, tuple):
        return tuple(_without(module, inner) for inner in part)
    return untapped(module.__dict__, part) if isinstance(part, dict) else part


def _cleaned(deepcopy: Callable[[dict[int, Any]], Any]) -> Callable[[nn.Module, dict[int, Any]], Any]:
    """A module's own `__deepcopy__`, whose result holds nothing of a capture."""

    def own(self: nn.Module, memo: dict[int, Any]) -> Any:
        copied = deepcopy(memo)
        slots = copied.__dict__
        for key, value in before_captures(self.__dict__, slots).items():
            if value is ABSENT:
                del slots[key]
            else:
                slots[key] = copy.deepcopy(value, memo)
        return copied

    return own
