"""How a module's output is taken: by standing in for its `forward`, or, where that cannot serve, by a hook.

A stand-in costs a fraction of a hook: a module without hooks takes the short way through `nn.Module.__call__`.
It is a bound method of the module, so that a copy of the model made meanwhile runs its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import cache
from inspect import CO_VARARGS, CO_VARKEYWORDS
from types import FunctionType, MethodType
from typing import Any, TypeAlias

from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from .recorder import Recorder

StandIn: TypeAlias = tuple[
    dict[str, Any], MethodType, Any
]  # the module's __dict__, what was put there, what was before
Taps: TypeAlias = list[StandIn | RemovableHandle]
_ABSENT = object()
_retired: dict[MethodType, Any] = {}  # stand-ins whose capture has ended, but on which a later one still stands


def tap(layers: dict[str, nn.Module], recorder: Recorder, hook: Container[nn.Module], taps: Taps) -> None:
    """Have `recorder` given each output of `layers`; what `take_back` needs goes to `taps`, module by module.

    Modules in `hook` get a hook, and so do those that have hooks: these may change the output, and ours, registered
    last, sees what the caller will get.
    """
    makers: dict[Callable[..., Any], _Maker] = {}
    hook_all = bool(torch_module._global_forward_hooks)
    for name, module in layers.items():
        if module._forward_hooks or hook_all or (hook and module in hook):
            taps.append(module.register_forward_hook(_hook(name, recorder)))
            continue
        slots = module.__dict__
        before = slots.get("forward", _ABSENT)
        forward = forward_of(module)
        make = makers.get(forward)
        if make is None:
            make = makers[forward] = _maker(forward, recorder)
        mine = MethodType(make(module, name), module)
        taps.append((slots, mine, before))
        slots["forward"] = mine


def stand_in(module: nn.Module, forward: Callable[..., Any], taps: Taps) -> None:
    """Put `forward(self, ...)` in the place of `module.forward`."""
    slots = module.__dict__
    mine = MethodType(forward, module)
    taps.append((slots, mine, slots.get("forward", _ABSENT)))  # first, lest an interrupt come between
    slots["forward"] = mine


def take_back(taps: Taps) -> None:
    """Undo and empty `taps`. Those of several captures may be taken back in any order."""
    while taps:
        tapped = taps.pop()
        if isinstance(tapped, RemovableHandle):
            tapped.remove()
            continue
        slots, mine, before = tapped
        if slots.get("forward") is not mine:  # another capture of this module began later and goes on
            _retired[mine] = before
            continue
        while before is not _ABSENT and before in _retired:
            before = _retired.pop(before)
        if before is _ABSENT:
            del slots["forward"]
        else:
            slots["forward"] = before


def _hook(name: str, recorder: Recorder) -> Callable[..., None]:
    return lambda _module, _inputs, output: recorder.record(name, output)


def forward_of(module: nn.Module) -> Callable[..., Any]:
    """What `module.forward` is now, as a function that is given the module first."""
    own = module.forward
    if isinstance(own, MethodType) and own.__self__ is module:
        return own.__func__
    return lambda _module, *args, **kwargs: own(*args, **kwargs)


# What follows runs at every call of every captured layer. The makers are nested so that the layers of one class share
# all that can be shared: in a network of small layers, the memory touched is the cost.

_Maker: TypeAlias = Callable[[nn.Module, str], Callable[..., Any]]


def _any_arguments(inner: Callable[..., Any], recorder: Recorder) -> _Maker:
    def make(module: nn.Module, name: str) -> Callable[..., Any]:
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            output = inner(self, *args, **kwargs)
            if self is module:
                recorder.record(name, output)
            return output

        return forward

    return make


# The same for `forward(self, x)`, which most layers have: packing arguments is half of the cost. The stand-in must
# have the very parameter, since callers may name it, and so it is written out for each name.
_ONE_ARGUMENT = """
def maker(inner_, recorder_):
    append_, record_ = recorder_.records.append, recorder_.record
    def make(module_, name_):
        def forward(self, {argument}):
            output_ = inner_(self, {argument})
            if self is module_:
                if name_ in recorder_.careful:
                    record_(name_, output_)
                else:
                    try:
                        append_((name_, output_, output_._version))  # what record() would do, without the call
                    except (AttributeError, RuntimeError):  # no tensor; no version in inference mode
                        record_(name_, output_)
            return output_
        return forward
    return make
"""


@cache
def _one_argument(argument: str) -> Callable[[Callable[..., Any], Recorder], _Maker]:
    namespace: dict[str, Any] = {}
    exec(_ONE_ARGUMENT.format(argument=argument), namespace)
    maker: Callable[[Callable[..., Any], Recorder], _Maker] = namespace["maker"]
    return maker


def _maker(forward: Callable[..., Any], recorder: Recorder) -> _Maker:
    """What makes the stand-ins for all modules that have this `forward`."""
    if isinstance(forward, FunctionType):
        code = forward.__code__
        takes_one = code.co_argcount == 2 and not (
            code.co_kwonlyargcount or code.co_flags & (CO_VARARGS | CO_VARKEYWORDS)
        )
        if takes_one and not forward.__defaults__ and not code.co_varnames[1].endswith(("_", "self")):
            return _one_argument(code.co_varnames[1])(forward, recorder)
    return _any_arguments(forward, recorder)
