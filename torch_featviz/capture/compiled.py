"""Capture of compiled models: where compiled code is entered, and how often Dynamo compiles it anew.

Dynamo traces through the stand-ins, so what they take is computed by the very graph that the model runs in, and a graph
without them is used again once they are gone. Around each place where eager code calls a compiled module stands an
entry, which fetches what the graph left behind.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from operator import is_
from types import CodeType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.compiler import is_dynamo_compiling

from torch_featviz.errors import OptionError
from torch_featviz.model.layers import wrappers_in
from torch_featviz.torch_private import (
    COMPILED_CALL,
    dynamo_config,
    dynamo_is_imported,
    dynamo_wraps,
    is_of_dynamo,
    is_optimized,
)

from .eager import leave_to_eager_mode, uncompiled
from .recorder import Recorder
from .stopping import Stopped
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


def own_frame(call: Callable[..., Any], model: nn.Module, setting: Hashable) -> Callable[..., Any]:
    """The same compiled call; where Dynamo put a frame around it whose code all models share, with a copy of that.

    It does so around what comes out of torch.nn's files, and that frame's recompiles are counted, too.
    """
    frame = dynamo_wraps(call)
    if not isinstance(frame, FunctionType) or not frame.__code__.co_filename.endswith("external_utils.py"):
        return call
    code = frame.__code__
    cells = dict(zip(call.__code__.co_freevars, call.__closure__ or (), strict=True))
    if "self" not in cells:
        return call
    codes = _codes.setdefault(model, {})
    key = (setting, code)
    if key not in codes:
        codes[key] = code.replace()
    own = FunctionType(codes[key], frame.__globals__, frame.__name__, frame.__defaults__, frame.__closure__)
    compiled: Callable[..., Any] = cells["self"].cell_contents(own)
    return compiled


def put_entries(
    chain: Iterable[nn.Module], modules: Iterable[nn.Module], around: Callable[..., Any], taps: Taps
) -> bool:
    """Put `around(call, part)` in the place of each `call` by which eager code enters compiled code.

    Args:
        chain: the model and its wrappers: entering one of them is a forward of the whole model.
        modules: all modules of the model; entering one is a part of the forward.
        around: makes the entry; `part` is None for the whole model.
        taps: what `take_back` needs.

    Returns:
        Whether the model as a whole is compiled.
    """
    if not dynamo_is_imported():
        return False
    leave_to_eager_mode()
    outer = list(chain)
    found = False
    for module in outer:
        for name in compiled_calls(module):
            # model.forward = torch.compile(model.forward) is a part: the stand-in for the forward is outside of it
            whole = name != "forward" or is_optimized(module)
            found |= whole
            put(module, name, around(getattr(module, name), None if whole else module), taps)
    suspects = [m for m in modules if "forward" in m.__dict__ or COMPILED_CALL in m.__dict__]
    for module in (*suspects, *wrappers_in(modules)):
        if module not in outer:
            for name in compiled_calls(module):
                put(module, name, around(getattr(module, name), module), taps)
    return found


def entry(
    call: Callable[..., Any], recorder: Recorder, part: Collection[str] | None, *, sampled: bool
) -> Callable[..., Any]:
    """Stand-in for a compiled call: what the graph captured is fetched as soon as it is over.

    `part` are the captured layers that the call may run, or None for a call of the whole model; with `sampled` the taps
    are there for the length of some forwards only.
    """

    def enter(*args: Any, **kwargs: Any) -> Any:
        if is_dynamo_compiling() or not recorder.open or (part is None and recorder.running):
            return call(*args, **kwargs)
        if recorder.needs_eager:
            with uncompiled():
                return call(*args, **kwargs)
        if part is None and recorder.passes_over():
            with recorder.passing_over(compiled=True):
                return call(*args, **kwargs)
        with _checkpoints_traced():
            return (enter_whole if part is None else enter_part)(args, kwargs)

    def enter_whole(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = recorder.records.changes
        recorder.enter_whole()
        recorder.note_inputs((args, kwargs))
        try:
            output = call(*args, **kwargs)
        except Stopped:  # graph breaks let it out of the frame that would have caught it
            recorder.leftovers.stopped()
            output = None
        except Exception as error:
            if recorder.stopping.active and is_of_dynamo(error):
                raise OptionError(
                    "stop=True cannot end this compiled forward (activation checkpointing, perhaps); leave stop out."
                ) from error
            raise
        finally:
            recorder.exit_whole()
        recorder.note_output(output)
        if recorder.records.changes == before:
            _warn_of_guards("model")
        return output

    def enter_part(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if recorder.running:
            recorder.enter_part((args, kwargs))
        before = recorder.seen(part or ())
        output = call(*args, **kwargs)
        recorder.exit_part()
        tapped = recorder.running or not sampled
        if tapped and part and all(map(is_, before, recorder.seen(part))):
            _warn_of_guards("part of the model")
        return output

    return enter


def _warn_of_guards(what: str) -> None:
    warnings.warn(
        f"the compiled {what} ran and nothing of it could be captured: its guards on modules were left out "
        "(guard_filter_fn?), or it was exported. Capture the model as it was before compiling.",
        stacklevel=4,
    )


class _checkpoints_traced:
    """Dynamo refuses to take anything out of checkpointed code, since the backward, which runs that again, would not.

    It is not to be taken twice anyway.
    """

    def __enter__(self) -> None:
        self.before = getattr(dynamo_config(), _CHECKPOINTS, None)
        if self.before is False:
            setattr(dynamo_config(), _CHECKPOINTS, True)

    def __exit__(self, *error: object) -> None:
        if self.before is False:
            setattr(dynamo_config(), _CHECKPOINTS, False)


_CHECKPOINTS = "skip_fwd_side_effects_in_bwd_under_checkpoint"


def compiled_calls(module: nn.Module) -> Iterator[str]:
    """The attributes of a module by which eager code enters compiled code."""
    slots = module.__dict__
    if is_optimized(module) or dynamo_wraps(slots.get("forward")) is not None:
        yield "forward"
    if slots.get(COMPILED_CALL) is not None:
        yield COMPILED_CALL
