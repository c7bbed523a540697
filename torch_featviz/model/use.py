"""Layers that no forward calls, but whose weights it computes with: a projection that an attention reads, say.

It is known from what ran: in a forward that is looked at, some operator was given a parameter of the layer while the
layer itself was not being called. Where none could be looked at, as in a compiled graph, it is told from the code of
the module around it (`held.read_in`).
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn

from torch_featviz.torch_private import CALL, TorchDispatchMode, runs_dynamo

from .held import read_in
from .layers import names_of

_OURS = ("torch_featviz.", "functools")

_read: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()  # layers that were found to be in use, uncalled
_whole: WeakSet[nn.Module] = WeakSet()  # models of which a forward was looked at from its beginning to its end


class Reads:
    """Which parameters of a model the operators of one forward are given, other than by the layer that holds them.

    Args:
        model: whose forward it is.
        names: of all its modules.
    """

    def __init__(self, model: nn.Module, names: Mapping[nn.Module, str]) -> None:
        self._model, self._names = model, names
        self._holders: dict[int, list[nn.Module]] = {}
        for module in names:
            for parameter in module._parameters.values():
                if parameter is not None:
                    self._holders.setdefault(id(parameter), []).append(module)

    def see(self, arguments: Iterable[Any]) -> None:
        """An operator is given these."""
        for argument in arguments:
            if isinstance(argument, Tensor):
                if id(argument) in self._holders:
                    self._see_parameter(argument)
            elif isinstance(argument, (list, tuple)):
                self.see(argument)

    def _see_parameter(self, parameter: Tensor) -> None:
        holders = self._holders[id(parameter)]
        called = self._is_called(holders)
        if not called:
            _read.setdefault(self._model, set()).update(self._names[module] for module in holders)
        if not called or len(holders) == 1:  # of one that layers share, each reading counts
            del self._holders[id(parameter)]

    def _is_called(self, modules: list[nn.Module]) -> bool:
        """Whether a call of one of these is under way, or may be, in compiled code that has no calls any more."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and (runs_dynamo(frame) or str(frame.f_globals.get("__name__")).startswith(_OURS)):
            frame = frame.f_back  # until the operator's own
        while frame is not None:
            if runs_dynamo(frame):
                return True
            if frame.f_code.co_name == CALL:
                caller = frame.f_locals.get("self")
                if any(caller is module for module in modules):
                    return True
                if caller is self._model:
                    return False
            frame = frame.f_back
        return False

    def end(self) -> None:
        """The forward has come to its end."""
        _whole.add(self._model)


class Reading(TorchDispatchMode):
    """Tells `reads` of all operators that run."""

    supports_higher_order_operators = True  # torch 2.6 knows no such thing, and raises

    def __init__(self, reads: Reads) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads = reads

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled parts of the model are not to run uncompiled because of this mode."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.reads.see((*args, *kwargs.values()))
        return func(*args, **kwargs)


def is_known(model: nn.Module) -> bool:
    """Whether a whole forward of `model` was looked at."""
    return model in _whole


def in_use(model: nn.Module, called: Collection[str], uncalled: Collection[str]) -> set[str]:
    """Those layers among `uncalled` whose weights `model` computes with.

    Args:
        model: the module itself, and no wrapper of it.
        called: other layers, which were called.
        uncalled: those in question.
    """
    used = set(_read.get(model, ()))
    names = names_of(model)
    for module, name in names.items():
        if name in called or not (name in uncalled or is_known(model)):
            used.update(names[child] for child in read_in(module) if child in names)
    return used.intersection(uncalled)
