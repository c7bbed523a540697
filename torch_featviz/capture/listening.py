"""Gradients out of compiled graphs: operators that a graph calls, and that tell an object of Python.

Dynamo traces a hook on a tensor by itself since torch 2.14, but forgets attributes that a model sets afterwards. An
operator is a node of the graph like any other. `listen` is called where a layer returns; its kernel is run when the
graph is differentiated, and registers a hook on the tensor that it is given, which puts `arrived` into the backward.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from threading import RLock
from typing import Any, NamedTuple, Protocol
from weakref import ref

import torch
from torch import Tensor
from torch.fx.node import has_side_effect

from torch_featviz.torch_private import UNSAFE_IN_CUDA_GRAPHS, is_given_to_graph, take_back

from .eager import eager

_NAMESPACE = "torch_featviz"
_ABOUT = "Tensor layer, Tensor call, int[] part"
_listeners: dict[int, Any] = {}  # by number: weak references
_numbers = count()
_defining = RLock()  # two threads may begin at once
_libraries: list[Any] = []  # which last as long as they are referred to


class Part(NamedTuple):
    """One of the tensors that a layer returned."""

    position: int
    of: int  # how many those are; 0 for one tensor by itself
    alone: int  # whether the call is in no forward of the whole model


class Listens(Protocol):
    """Who is told of gradients."""

    def arrived(self, layer: int, call: int, part: Part, gradient: Tensor) -> None:
        """The gradient of one output is there; its memory may be written to as soon as this returns."""


@eager
def begin_listening(listener: Listens) -> int:
    """The number of a listener, until `end_listening(number)`."""
    with _defining:
        _define()
    number = next(_numbers)
    _listeners[number] = ref(listener)
    return number


@eager
def end_listening(number: int) -> None:
    """Tell this one nothing any more; it may be said twice."""
    _listeners.pop(number, None)


@eager
def token(*values: int) -> Tensor:
    """Numbers that a graph is given as a tensor: on numbers themselves it would be compiled for each anew."""
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def next_call(last: Tensor) -> Tensor:
    """The token of the call after this one."""
    following: Tensor = torch.ops.torch_featviz.next_call(last)
    return following


def listen(output: Tensor, layer: Tensor, call: Tensor, part: Part) -> None:
    """In a graph: have the gradient of `output` told, which requires one.

    Args:
        output: a tensor that a layer returned.
        layer: a token: the number of the listener, and that of the layer.
        call: a token.
        part: which of the layer's tensors this is.
    """
    torch.ops.torch_featviz.listen(output, layer, call, list(part))


def _define() -> None:
    """All operators, or none of them if this is interrupted: none can be defined twice."""
    if _libraries:
        return
    library: Any = torch.library.Library(_NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
    _libraries.append(library)
    try:
        library.define("next_call(Tensor last) -> Tensor")
        library.define(f"listen(Tensor output, {_ABOUT}) -> ()")
        library.define(f"listen_outside(Tensor output, {_ABOUT}) -> ()")
        library.define(f"arrived(Tensor gradient, {_ABOUT}) -> ()", tags=UNSAFE_IN_CUDA_GRAPHS)
        _implement(library, "next_call", lambda last: last + 1, fake=torch.empty_like)
        _implement(library, "listen", _hook_outside, fake=_nothing)
        _implement(library, "listen_outside", _hook_outside, fake=_nothing)
        _implement(library, "arrived", _tell, fake=_nothing)
        library.impl("listen", _hook, "Autograd")
        for name in ("listen", "listen_outside", "arrived"):  # lest they be left out: nobody uses what they return
            has_side_effect(getattr(torch.ops.torch_featviz, name).default)
    except BaseException:
        _libraries.clear()
        take_back(library)
        raise


def _implement(library: Any, name: str, kernel: Callable[..., Any], *, fake: Callable[..., Any]) -> None:
    library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=library)


def _hook(output: Tensor, *about: Any) -> None:
    """A graph is differentiated, or run in eager mode."""
    if is_given_to_graph(output):  # and code around may use it, too: the graph knows but a part of its gradient
        torch.ops.torch_featviz.listen_outside(output, *about)
    else:
        output.register_hook(lambda gradient: torch.ops.torch_featviz.arrived(gradient, *about))  # type: ignore[no-untyped-call]


@eager
def _hook_outside(output: Tensor, *about: Any) -> None:
    """A graph runs, and was given this tensor, or made it of others without being differentiated."""
    if output.requires_grad:
        output.register_hook(lambda gradient: _tell(gradient, *about))  # type: ignore[no-untyped-call]


def _nothing(*_about: Any) -> None:
    """As far as a compiler is concerned."""


@eager
def _tell(gradient: Tensor, layer: Tensor, call: Tensor, part: list[int]) -> None:
    number, place = layer.tolist()
    known = _listeners.get(number)
    listener: Listens | None = None if known is None else known()
    if listener is not None:
        listener.arrived(place, int(call), Part(*part), gradient)
