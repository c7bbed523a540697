"""Capture of compiled models: where compiled code is entered, and how often Dynamo compiles it anew.

Dynamo traces through the stand-ins, so what they take is computed by the very graph that the model runs in, and a graph
without them is used again once they are gone. Around each place where eager code calls a compiled module stands an
entry, which fetches what the graph left behind.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import CodeType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling

from .recorder import NOTHING, Recorder
from .select import wrappers_in
from .tap import Taps, put

_codes: WeakKeyDictionary[nn.Module, dict[Hashable, CodeType]] = WeakKeyDictionary()


def own_code(function: Callable[..., Any], model: nn.Module, setting: Hashable) -> Callable[..., Any]:
    """`function` with a code object of its own for each model and setting, and the same one at each call.

    Dynamo keeps compiled graphs by code object, a few for each (`recompile_limit`): one shared by all captures would
    run out.
    """
    assert isinstance(function, FunctionType)
    codes = _codes.setdefault(model, {})
    if setting not in codes:
        own = type(model).forward
        skipped = isinstance(own, FunctionType) and type(model).__module__.startswith("torch.nn.")
        # Dynamo compiles no frame out of torch.nn's files, and torch.compile() makes up for it: let it see such a one.
        file = own.__code__.co_filename if skipped else function.__code__.co_filename
        codes[setting] = function.__code__.replace(co_filename=file)
    return FunctionType(codes[setting], function.__globals__, "forward", None, function.__closure__)


def put_entries(
    chain: Iterable[nn.Module], modules: Iterable[nn.Module], around: Callable[..., Any], taps: Taps
) -> bool:
    """Put `around(call, whole)` in the place of each `call` by which eager code enters compiled code.

    Args:
        chain: the model and its wrappers: entering one of them is a forward of the `whole` model.
        modules: all modules of the model; entering one is a part of the forward.
        around: makes the entry.
        taps: what `take_back` needs.

    Returns:
        Whether the model as a whole is compiled.
    """
    if "torch._dynamo" not in sys.modules:
        return False
    outer = list(chain)
    found = False
    for module in outer:
        for name in _compiled_calls(module):
            if name == "forward" and "_orig_mod" not in module._modules:
                continue  # model.forward = torch.compile(model.forward): the stand-in for the forward is outside of it
            found = True
            put(module, name, around(getattr(module, name), True), taps)
    for module in (*modules, *wrappers_in(modules)):
        if module not in outer:
            for name in _compiled_calls(module):
                put(module, name, around(getattr(module, name), False), taps)
    return found


def entry(call: Callable[..., Any], recorder: Recorder, whole: bool) -> Callable[..., Any]:
    """Stand-in for a compiled call: what the graph captured is fetched as soon as it is over."""

    def enter(*args: Any, **kwargs: Any) -> Any:
        if is_dynamo_compiling() or not recorder.open or recorder.running == whole:
            return call(*args, **kwargs)  # a whole within a whole; or a part of the model called alone
        if not whole:
            recorder.enter_part((args, kwargs))
            output = call(*args, **kwargs)
            recorder.leave_part()
            return output
        forwards, recorder.entered = recorder.forwards, True
        try:
            with uncompiled() if recorder.needs_eager else NOTHING:
                output = call(*args, **kwargs)
        finally:
            recorder.entered = False
            recorder.latest()
        if recorder.forwards == forwards:
            warnings.warn(
                "the compiled model ran and nothing of it could be captured: its guards on modules were left out "
                "(guard_filter_fn?), or it was exported. Capture the model as it was before compiling.",
                stacklevel=2,
            )
        return output

    return enter


def uncompiled() -> AbstractContextManager[Any]:
    """Compiled code runs uncompiled for the length of the block."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        return NOTHING
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


def _compiled_calls(module: nn.Module) -> Iterator[str]:
    slots = module.__dict__
    if "_orig_mod" in module._modules or hasattr(slots.get("forward"), "_torchdynamo_orig_callable"):
        yield "forward"
    if slots.get("_compiled_call_impl") is not None:
        yield "_compiled_call_impl"
