"""Functional calls taken as layers: `F.relu(x)`, `torch.cat([a, b])`, `x.view(...)`, `out += x`.

A call is named `<layer>.<op>`.

`<op>` is the function's own name (`relu`, `max_pool2d`, `view`, `cat`), an operator by its word (`+` add, `-` sub,
`*` mul, `/` div, `@` matmul, `[]` getitem), whichever side the number stands on. What works in place keeps its
underscore (`relu_`, `+=` is `add_`).

`<layer>` is the layer that feeds the call: the one whose output is the call's first tensor, directly or by way of
other functional calls, if the forward that makes the call also called that layer. In
`F.max_pool2d(torch.tanh(self.conv1(x)), 2)` there are `conv1.tanh` and `conv1.max_pool2d`. Parameters are passed over
when the first tensor is looked for; of a list the first tensor counts. Any other call (of the forward's own input,
say) is named after the module whose forward makes it: `block.mul`, and plain `add` in the model's own forward. Where a
layer has that very name, the call's is `add()`. A call that is made several times in one forward has a key for each,
`conv1.relu#1`, `conv1.relu#2`, as a layer has.

No calls of their own are those inside the forward of torch.nn's own layers (which are these layers) and inside other
torch functions, those that return no tensor (`size()`, `dim()`), and attributes (`x.T`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeAlias
from weakref import ref

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn.parameter import Parameter
from torch.overrides import TorchFunctionMode

from torch_featviz.errors import OptionError
from torch_featviz.model.values import tensors
from torch_featviz.torch_private import (
    CALL,
    any_global_hook,
    dynamo_is_imported,
    is_innermost,
    pop_innermost,
    push,
)

from .asked import Asked
from .compiled import compiled_calls
from .eager import uncompiled
from .recorder import Recorder
from .tap import Taps, function_of, put, tap

# The module whose forward runs, and by the id of a tensor: that tensor, and the layer that it came out of.
Frame: TypeAlias = tuple[str, dict[int, tuple["ref[Tensor]", str]]]

_WORDS = {
    **{word: word for word in ("add", "sub", "mul", "div", "pow", "matmul")},
    **{"truediv": "div", "floordiv": "floor_divide", "mod": "remainder", "invert": "bitwise_not"},
    **{"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"},
    **{"lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift"},
}
_UNLISTED = ("__get__", "__set__", "__delete__", "requires_grad_", "lift_fresh")  # the last is of from_numpy()


def op_name(function: Callable[..., Any]) -> str | None:
    """The `<op>` of a call's name; None for what is an attribute, and no call.

    Example:
        >>> [op_name(f) for f in (torch.nn.functional.relu, torch.Tensor.add_, torch.Tensor.__rsub__)]
        ['relu', 'add_', 'sub']
    """
    name: str = getattr(function, "__name__", type(function).__name__).partition(".")[0]  # not relu.default
    if name in _UNLISTED:
        return None
    if not name.startswith("__"):
        return name
    word = name.strip("_")
    if word not in _WORDS and word[1:] in _WORDS and word[0] in "ir":
        return _WORDS[word[1:]] + "_" * (word[0] == "i")
    return _WORDS.get(word, word)


class Calls(TorchFunctionMode):
    """Sees each torch function called while it is on, and gives `recorder` what the calls asked for return."""

    def __init__(self, recorder: Recorder, asked: Asked, modules: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.frame: Frame | None = None  # None where a call is not to be listed
        self.recorder = recorder
        self._asked = asked
        self._layers = frozenset(modules.values())
        self._names: dict[tuple[str, Callable[..., Any]], tuple[str | None, bool]] = {}
        self._admitted = set(recorder.names)
        self._reduces = hasattr(recorder, "reducers")
        self._on = False
        self._partly_compiled = dynamo_is_imported() and any(True for each in modules for _ in compiled_calls(each))

    @contextmanager
    def whole_forward(self, frame: Frame | None) -> Iterator[None]:
        """The model's own forward runs; a forward within it is no other one."""
        functions = self.recorder.functions
        if self._on or not self.recorder.running or (functions.only_eager and self._partly_compiled):
            yield
            return
        self.recorder.functions.new_forward()
        self._on, self.frame = True, frame
        try:
            # a compiled part calls no function that could be seen
            with uncompiled(), self:
                yield
        finally:
            self._on, self.frame = False, None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **kwargs) if kwargs else func(*args)
        if self.frame is not None and _holds_tensor(output):
            layer, origins = self.frame
            source = _source((*args, *kwargs.values()) if kwargs else args, origins)
            _mark(origins, output, source)
            key = layer if source is None else source, func
            name, wanted = self._names.get(key) or self._look_up(*key)
            if name is not None:
                self.recorder.functions.see(name)
                if wanted:
                    self._record(name, output)
        return output

    def _look_up(self, layer: str, func: Callable[..., Any]) -> tuple[str | None, bool]:
        name = op_name(func)
        if name is not None and layer:
            name = f"{layer}.{name}"
        if name in self._layers:
            name = f"{name}()"
        found = self._names[layer, func] = (name, name is not None and self._asked.includes(name))
        return found

    def _record(self, name: str, output: Any) -> None:
        if name not in self._admitted:
            if self._reduces and not (isinstance(output, Tensor) and output.is_floating_point()):
                return  # a pattern is about what figures can be made of
            self._admitted.add(name)
            self.recorder.admit(name, self._asked.patterns_of(name))
        self.recorder.record(name, output)

    def step_aside(self) -> bool:
        """Be off, if nobody else's mode is in the way: torch.nn's layers have fast paths that any mode bars."""
        if not is_innermost(self):
            return False
        pop_innermost()
        return True


def _holds_tensor(output: Any) -> bool:
    return isinstance(output, Tensor) or (
        isinstance(output, (tuple, list)) and any(isinstance(part, Tensor) for part in output)
    )


def _source(values: tuple[Any, ...], origins: dict[int, tuple[ref[Tensor], str]]) -> str | None:
    """The layer that the first tensor of `values` came out of; parameters count only if they are known."""
    for value in values:
        if isinstance(value, (list, tuple)):
            value = next((item for item in value if isinstance(item, Tensor)), None)  # noqa: PLW2901
        if isinstance(value, Tensor):
            known = origins.get(id(value))
            if known is not None and known[0]() is value:  # and not another one in the place of a freed one
                return known[1]
            if type(value) is not Parameter:
                return None
    return None


def _mark(origins: dict[int, tuple[ref[Tensor], str]], output: Any, source: str | None) -> None:
    for tensor in (output,) if isinstance(output, Tensor) else tensors(output):
        if source is None:
            origins.pop(id(tensor), None)
        else:
            origins[id(tensor)] = (ref(tensor), source)


def tap_calls(
    names: dict[nn.Module, str], layers: dict[str, nn.Module], recorder: Recorder, asked: Asked, taps: Taps
) -> None:
    """Have `recorder` given each output of `layers` and of the functional calls `asked` for; compare `tap`."""
    calls = Calls(recorder, asked, names)
    hooked = any_global_hook()
    for module, name in names.items():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if not name:
            put(module, "forward", MethodType(_whole(module, calls), module), taps)
            continue
        hooks = hooked or module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        where = CALL if hooks else "forward"
        stand_in = _stand_in(function_of(module, where), module, name, name in layers, calls)
        put(module, where, MethodType(stand_in, module), taps)
    if "" in layers:
        tap({"": layers[""]}, recorder, taps)


def _whole(model: nn.Module, calls: Calls) -> Callable[..., Any]:
    inner = function_of(model, "forward")

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is not model:
            return inner(self, *args, **kwargs)
        if is_dynamo_compiling():
            if calls.recorder.functions.only_eager:
                return inner(self, *args, **kwargs)
            raise OptionError("ops=True cannot see calls inside compiled code; pass the compiled model to capture().")
        with calls.whole_forward(("", {}) if _open(type(model)) else None):
            return inner(self, *args, **kwargs)

    return forward


def _stand_in(
    inner: Callable[..., Any], module: nn.Module, name: str, captured: bool, calls: Calls
) -> Callable[..., Any]:
    recorder = calls.recorder
    taker = recorder.taker(name) if captured else None
    opens = _open(type(module))
    sealed = not any(_open(type(part)) for part in module.modules())

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is not module:
            return inner(self, *args, **kwargs)
        if is_dynamo_compiling():
            output = inner(self, *args, **kwargs)
            if taker is not None:
                taker.take(self, name, output)
            return output
        outer, calls.frame = calls.frame, (name, {}) if opens else None
        aside = sealed and calls.step_aside()
        try:
            output = inner(self, *args, **kwargs)
            calls.frame = None  # what recording does is no call of the network
            if captured:
                recorder.record(name, output)
        finally:
            calls.frame = outer
            if aside:
                push(calls)
        if outer is not None:
            _mark(outer[1], output, name)
        return output

    return forward


def _open(kind: Any) -> bool:
    """Whether the functional calls in the forward of such modules are listed."""
    return not str(getattr(kind.forward, "__module__", None)).startswith(("torch.nn.", "torch.ao."))
