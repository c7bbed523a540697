"""The stand-in for the model's own forward: where one forward begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from torch_featviz.errors import OptionError
from torch_featviz.torch_private import in_backward

from .asked import Scope
from .eager import eager
from .inference import OutsideInferenceMode
from .recorder import Recorder
from .stopping import Stopped
from .tap import function_of

UNSEEN = "which compiled code around it hides; give capture() the compiled model, or leave this option out."


def whole_forward(scope: Scope, recorder: Recorder) -> Callable[..., Any]:
    """The model's forward as it is now, recorded by `recorder`."""
    model = scope.model
    inner = function_of(model, "forward")
    outside = OutsideInferenceMode(model, scope.names)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is not model:
            return inner(self, *args, **kwargs)
        if is_dynamo_compiling():
            return _traced(recorder, inner, self, args, kwargs)
        if recorder.running:
            recorder.refuse_another_thread()
        if recorder.running or not recorder.open or in_backward():
            return inner(self, *args, **kwargs)  # within itself; or a checkpoint that the backward runs again
        if recorder.passes_over():
            with recorder.passing_over():
                return inner(self, *args, **kwargs)
        if recorder.by_version and torch.is_inference_mode_enabled():
            return outside.run(partial(_captured, recorder, partial(inner, self)), args, kwargs)
        return _captured(recorder, partial(inner, self), args, kwargs)

    return forward


@eager
def _captured(
    recorder: Recorder,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    unseen: Iterable[Tensor] = (),
) -> Any:
    """Run and record the model's own forward. Nothing tells when its caller writes to the memory of `unseen`."""
    try:
        with recorder.begin((args, kwargs)):
            try:
                output = call(*args, **kwargs)
            except Stopped:
                if not recorder.stopping.done:
                    raise
                output = None
            recorder.note_output(output)
            recorder.end(unseen)
        return output
    finally:
        recorder.leave()


def _traced(
    recorder: Recorder, inner: Callable[..., Any], model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The same inside a compiled graph; `collect()` does the rest."""
    if recorder.needs_eager or (recorder.records.keeps > 1 and not recorder.leftovers.entered):
        raise OptionError(f"{type(recorder).__name__} looks at each call of the model, {UNSEEN}")
    recorder.begin_traced()
    if not recorder.stopping.active:
        output = inner(model, *args, **kwargs)
    else:
        try:
            output = inner(model, *args, **kwargs)
        except Stopped:
            output = None
    recorder.leftovers.end_traced()
    return output
