"""How a module's output is taken: by standing in for its `forward`, or, where it has hooks, for its `_call_impl`.

A stand-in costs a fraction of a hook: a module without hooks takes the short way through `nn.Module.__call__`. And
Dynamo looks at it at every call of a compiled model, as it does not at hooks. It is a bound method of the module, so
that a copy of the model made meanwhile runs its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from inspect import CO_VARARGS, CO_VARKEYWORDS
from threading import get_ident
from types import FunctionType, MethodType
from typing import Any, TypeAlias
from weakref import ref

from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from torch_featviz.errors import LayerError
from torch_featviz.model.copier import cleaners
from torch_featviz.torch_private import CALL, COMPILED_CALL, any_global_hook

from .leftovers import STRAY
from .recorder import Recorder

# The module's __dict__, the name in it, what was put there, what was before.
Tap: TypeAlias = tuple[dict[str, Any], str, Any, Any]
ABSENT = object()


class Taps(list[Tap]):
    """What one capture has put into modules, in that order."""

    def __init__(self, modules: Collection[nn.Module] = ()) -> None:
        super().__init__()
        self.thread = get_ident()
        self.modules = modules  # of the whole model
        self.kinds: frozenset[type] = frozenset()  # whose copies are kept clean, see `copies`
        self._index: dict[int, list[int]] = {}  # by the id of a module's __dict__: positions
        self._indexed = 0  # of so many taps
        for key, known in list(_open.items()):
            if known() is None:  # a block that was never left
                _open.pop(key, None)
        _open[id(self)] = ref(self)

    def of(self, slots: dict[str, Any]) -> list[Tap]:
        """What was put into the module whose `__dict__` this is."""
        if self._indexed != len(self):
            self._index = {}
            for position, (where, _, _, _) in enumerate(self):
                self._index.setdefault(id(where), []).append(position)
            self._indexed = len(self)
        return [self[position] for position in self._index.get(id(slots), ())]


_open: dict[int, ref[Taps]] = {}  # no WeakValueDictionary: an interrupt would get lost in its callbacks


def open_taps() -> list[Taps]:
    """The taps of all captures that are open now."""
    return [taps for known in list(_open.values()) if (taps := known()) is not None]


def refuse_another_thread(taps: Taps) -> None:
    """Two threads' captures of one model would take each other's outputs, and end in no order."""
    for other in open_taps():
        if other and other.thread != taps.thread and not set(taps.modules).isdisjoint(other.modules):
            raise LayerError(
                "another thread is capturing this model; capture a "
                "copy.deepcopy() of it, or capture one after the other."
            )


def tap(layers: dict[str, nn.Module], recorder: Recorder, taps: Taps) -> None:
    """Have `recorder` given each output of `layers`; what `take_back` needs goes to `taps`, module by module.

    A module with hooks is tapped around them, since they may change the output: what its caller gets is recorded.
    """
    shared: dict[Any, Callable[..., Any]] = {}  # by a module's forward, and by its type
    everywhere = any_global_hook()
    note = taps.append
    for name, module in layers.items():
        slots = module.__dict__
        if slots["_forward_hooks"] or slots["_backward_hooks"] or slots["_backward_pre_hooks"] or everywhere:
            # What module.compile() made is called instead, and never looks at it.
            call = CALL if slots.get(COMPILED_CALL) is None else COMPILED_CALL
            around = _any_arguments(function_of(module, call), recorder)
            put(module, call, MethodType(around(module, name), module), taps)
            continue
        before = slots.get("forward", ABSENT)
        stand_in = shared.get(type(module)) if before is ABSENT else None
        if stand_in is None:
            forward = function_of(module, "forward")
            stand_in = shared.get(forward) or _shared(forward, recorder)
            if stand_in is None:
                stand_in = _any_arguments(forward, recorder)(module, name)
            else:
                shared[forward] = stand_in
                if before is ABSENT and getattr(type(module), "forward", None) is forward:  # that of all of its kind
                    shared[type(module)] = stand_in
        mine = MethodType(stand_in, module)
        note((slots, "forward", mine, before))
        slots["forward"] = mine


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks may make another tensor of what `module.forward` returns."""
    everywhere: bool = any_global_hook()
    return everywhere or bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)


def put(module: nn.Module, name: str, value: Any, taps: Taps) -> None:
    """Put `value` in the place of `module.<name>`, for that one module."""
    slots = module.__dict__
    taps.append((slots, name, value, slots.get(name, ABSENT)))  # first, lest an interrupt come between
    slots[name] = value


def take_back(taps: Taps) -> None:
    """Undo and empty `taps`. Those of several captures may be taken back in any order.

    It may be interrupted anywhere, and called again: what was put back is not `mine` any more.
    """
    for slots, key, mine, before in reversed(taps):
        if slots.get(key) is not mine:  # a capture that began later goes on, or somebody else replaced it
            _hand_down(slots, key, mine, before)
        elif before is ABSENT:
            del slots[key]
        else:
            slots[key] = before
    taps.clear()
    _open.pop(id(taps), None)


def _hand_down(slots: dict[str, Any], key: str, mine: Any, before: Any) -> None:
    """Have the capture that stands upon `mine` put `before` back in its time."""
    for taps in open_taps():
        for i, (where, name, theirs, under) in enumerate(taps):
            if under is mine and where is slots and name == key:
                taps[i] = (where, name, theirs, before)


def untapped(slots: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """`state`, what of a module's `__dict__` is to be copied, as it was before all captures that are open."""
    changes = before_captures(slots, state) if _open else {}
    if not changes:
        return state
    return {key: value for key, value in {**state, **changes}.items() if value is not ABSENT}


cleaners.append(untapped)


def before_captures(slots: dict[str, Any], copied: dict[str, Any]) -> dict[str, Any]:
    """What has to change in a copy of a module's `__dict__`: entries, each as it was before any capture."""
    taps = [one for several in open_taps() for one in several.of(slots)]
    changes = {STRAY: ABSENT} if STRAY in copied else {}
    for key in {key for _, key, _, _ in taps} & copied.keys():
        value, replaced = copied[key], {_function(mine): before for _, name, mine, before in taps if name == key}
        while (function := _function(value)) in replaced:
            value = replaced[function]
        if value is not copied[key]:
            changes[key] = value
    return changes


def _function(value: Any) -> int:
    """An identifier that a stand-in shares with copies of it, which are bound to other modules."""
    return id(value.__func__ if isinstance(value, MethodType) else value)


def function_of(module: nn.Module, name: str) -> Callable[..., Any]:
    """What the method `module.<name>` is now, as a function that is given the module first."""
    own = getattr(module, name)
    if isinstance(own, MethodType) and own.__self__ is module:
        return own.__func__
    return lambda _module, *args, **kwargs: own(*args, **kwargs)


# What follows runs at every call of every captured layer, and is made anew for each block; in a network of small layers
# both count.

_Maker: TypeAlias = Callable[[nn.Module, str], Callable[..., Any]]


def _any_arguments(inner: Callable[..., Any], recorder: Recorder) -> _Maker:
    def make(module: nn.Module, name: str) -> Callable[..., Any]:
        taker = recorder.taker(name)

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            output = inner(self, *args, **kwargs)
            if self is not module:
                pass
            elif is_dynamo_compiling():  # Dynamo takes this branch and drops the other
                taker.take(self, name, output)
            elif type(output) is not Tensor or self in recorder.careful:
                recorder.record(name, output)
            else:
                try:
                    recorder.calls.append((name, output, output._version))  # as record() does, without its questions
                except RuntimeError:  # no version in inference mode
                    recorder.record(name, output)
                else:
                    recorder.came(output)
            return output

        return forward

    return make


# The same for `forward(self, x)`, which most layers have, where outputs are kept by reference, as they mostly are.
# Packing arguments is half of the cost, so the parameter is written out (its very name, which callers may use), and all
# modules that have one forward share one stand-in: a record made here tells its module, and gets its name when read.
# It closes over nothing that ends with the capture but the recorder: Dynamo of torch 2.6 would compile anew.
_BY_REFERENCE = """
def maker(inner_, recorder_):
    def forward(self, {argument}):
        output_ = inner_(self, {argument})
        if is_dynamo_compiling_():
            recorder_.take(self, None, output_)
        elif self in recorder_.careful:
            recorder_.record_of(self, output_)
        else:
            try:
                recorder_.calls.append((self, output_, output_._version))  # as record() does, without the call
            except (AttributeError, RuntimeError):  # no tensor; no version in inference mode
                recorder_.record_of(self, output_)
        return output_
    return forward
"""


@cache
def _by_reference(argument: str) -> Callable[[Callable[..., Any], Recorder], Callable[..., Any]]:
    namespace: dict[str, Any] = {"is_dynamo_compiling_": is_dynamo_compiling}
    exec(_BY_REFERENCE.format(argument=argument), namespace)
    maker: Callable[[Callable[..., Any], Recorder], Callable[..., Any]] = namespace["maker"]
    return maker


def _shared(forward: Callable[..., Any], recorder: Recorder) -> Callable[..., Any] | None:
    """The stand-in for all modules that have this `forward`; None where each needs its own."""
    if not recorder.by_reference or not isinstance(forward, FunctionType):
        return None
    code = forward.__code__
    takes_one = code.co_argcount == 2 and not (code.co_kwonlyargcount or code.co_flags & (CO_VARARGS | CO_VARKEYWORDS))
    if not takes_one or forward.__defaults__ or code.co_varnames[1].endswith(("_", "self")):
        return None
    return _by_reference(code.co_varnames[1])(forward, recorder)
