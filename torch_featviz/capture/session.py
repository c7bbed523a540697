"""`capture()`: what a model's layers return, recorded while it runs, and nothing about the model changed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import suppress
from functools import partial
from threading import RLock
from types import MethodType, TracebackType
from typing import Any, TypeAlias
from weakref import ref

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.fx import GraphModule

from torch_featviz.errors import LayerError, OptionError
from torch_featviz.model.layers import Layers, check_module, choose, inside, survey, wrappers_in
from torch_featviz.torch_private import GUARDS, in_backward, is_optimized

from .asked import Asked, choose_with_calls
from .compiled import entry, own_code, own_frame, put_entries
from .copies import copied_classes, keep_out, release
from .eager import eager
from .inference import OutsideInferenceMode
from .into import Into, recorder_for
from .ops import tap_calls
from .recorder import Recorder, Stopped
from .tap import Taps, function_of, has_hooks, put, refuse_another_thread, take_back, tap

_installing = RLock()


def capture(
    model: nn.Module,
    layers: Layers = None,
    *,
    into: Into = None,
    of: str = "output",
    every: int = 1,
    stop: bool = False,
    ops: bool = False,
) -> Capture:
    """Record what `layers` of `model` return, for each forward run inside the `with` block.

    Args:
        model: any `nn.Module`; compiled or not, before or inside the block; may be wrapped in
            DistributedDataParallel, FSDP2, or DataParallel on one device.
        layers: names, globs (`*` also crosses dots), module types, module objects, one or several of them;
            None for all leaves, and all convolutions and linear layers. A wrapper's prefix (`module.`, `_orig_mod.`)
            may be given or left out.
        into: what becomes of an output. None keeps those of the latest forward; `Ring(n)` those of the last n;
            `ToCPU()` copies; `Moments()`, `Histogram()` and `TopK()`, or a list of them, keep figures and no outputs; a
            function keeps what it returns, given a layer's output.
        of: `'output'`, or `'grad'` for the gradient that reaches it in the backward. A compiled model then runs
            uncompiled. Gradients are as they flow: scaled, where a GradScaler scales the loss.
        every: capture the first of every so many forwards; the others run as if nothing were captured.
        stop: end the forward once each of `layers` has run; it then returns None.
        ops: take functional calls (`F.relu`, `torch.cat`, `view`, `+`) as layers too, under the name of the layer that
            feeds them, or else of the module whose forward makes them: `'conv1.tanh'`, `'layer1.0.bn2.add_'`, `'cat'`.
            `layers` may then name and match calls as well; a call asked for by name that never happens is in
            `not_run`. A compiled model then runs uncompiled.

    Returns:
        A context manager that yields `Activations`, a read-only mapping from layer name to what the layer returned,
        in order of execution (outside a forward of the whole model, when only parts of it are called, each layer
        keeps its latest call). Tensors are the network's own (no copy, on their device), detached; only those that
        the network goes on to overwrite in place are copied, and what a compiled graph is asked for. A new forward
        replaces what the last one left. With `Ring` each value is a list; with the statistics it is the layer's own
        `Moments`, `Histogram` or `TopK`, or all that were listed, over all its calls.

    Raises:
        LayerError: a layer that `model` does not have, or cannot be captured; the model has not been touched then.
        DtypeError, OptionError: an argument of a wrong kind.

    In a compiled model what is captured is part of the compiled graph: one graph for each set of layers, made at its
    first forward; without capture the bare graph runs again. Hooks added inside the block are seen where they change
    an output only if the module had hooks before. Two threads must not capture one model at the same time.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
        >>> with capture(model, "0") as acts:
        ...     output = model(torch.zeros(1, 1, 8, 8))
        >>> acts["0"].shape
        torch.Size([1, 4, 6, 6])
    """
    return Capture(model, layers, into=into, of=of, every=every, stop=stop, ops=ops)


def check_every(every: object, counted: str) -> None:
    """Raise OptionError unless `every` counts what `counted` names, from 1."""
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise OptionError(f"every counts {counted}, 1 for each of them; got {every!r}.")


_Opened: TypeAlias = tuple[Recorder, Taps, "ref[Any]"]


class Capture:
    """The context manager that `capture` returns; it may be entered again, each time with new activations."""

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        *,
        detach: bool = True,
        into: Into = None,
        of: str = "output",
        every: int = 1,
        stop: bool = False,
        ops: bool = False,
    ) -> None:
        check_module(model)
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise LayerError("DataParallel copies its model at each call; capture model.module on one device.")
        check_every(every, "forwards")
        self._chain = list(_chain(model))
        names, leaves = survey(model)
        self._modules = list(names)
        self._model = self._modules[0]
        self._names = names
        self._asked: Asked | None = None
        if ops:
            self._layers, self._asked = choose_with_calls(model, names, leaves, layers)
            if stop and self._asked.globs:
                raise OptionError("stop=True with ops=True needs names: a glob may mean calls that are yet to come.")
        else:
            self._layers = choose(model, names, leaves, layers)
        self._every = every
        self._make = recorder_for(into, of, detach=detach, stop=stop)
        self._open: list[_Opened] = []
        self._kinds = set(map(type, self._modules))
        self._copied = copied_classes({*self._modules, *self._chain, *wrappers_in(self._modules)})
        _refuse_scripted(self._kinds, self._layers)
        _refuse_flat(self._modules, self._kinds, self._layers)

    def __enter__(self) -> Any:
        flags: Hashable = tuple([getattr(module, "training", None) for module in self._modules])
        recorder, result = self._make(self._model, self._layers, (flags, self._asked) if self._asked else flags)
        if self._asked:
            recorder.take_calls(self._asked.names, self._asked.alone)
        recorder.by_module = self._names
        recorder.channels_last = any(issubclass(kind, nn.Conv2d) for kind in self._kinds)
        recorder.sampled = self._every > 1
        taps = Taps(self._modules)
        opened = (recorder, taps, ref(result))
        try:
            self._open.append(opened)
            result.capture = self
            with _installing:
                refuse_another_thread(taps)
                self._install(recorder, taps)
                keep_out(taps, *self._copied)
            return result
        except BaseException:
            self._leave(opened)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened = self._open[-1]
        try:
            self._leave(opened)
        except BaseException:  # interrupted halfway: first finish
            self._leave(opened)
            raise

    def __del__(self) -> None:
        """Python may take an interrupt at the call of `__exit__`, before that has begun.

        What the block yields keeps this alive, lest a block end that somebody can still read.
        """
        for opened in reversed(getattr(self, "_open", ())):
            self._leave(opened)

    def _leave(self, opened: _Opened) -> None:
        """End one block; all of it may be done twice."""
        recorder, taps, result = opened
        with _installing:
            release(taps)
        take_back(taps)
        recorder.close()
        self._open[:] = [other for other in self._open if other is not opened]
        if (read_by := result()) is not None:
            read_by.capture = None

    def _install(self, recorder: Recorder, taps: Taps) -> None:
        sampled = recorder.sampled

        def around(call: Callable[..., Any], part: nn.Module | None) -> Callable[..., Any]:
            if part is not None:
                return entry(call, recorder, self._captured_in(part))
            entered = entry(own_frame(call, self._model, recorder.setting), recorder, None)
            return self._every_nth(recorder, call, entered) if sampled else entered

        compiled = put_entries(self._chain, self._modules, around, taps)
        if not sampled:
            self._tap(recorder, taps)
        elif not compiled:
            plain = function_of(self._model, "forward")
            forward = self._every_nth(recorder, plain, lambda model, *args, **kwargs: model.forward(*args, **kwargs))
            put(self._model, "forward", MethodType(forward, self._model), taps)

    def _captured_in(self, part: nn.Module) -> list[str]:
        """The captured layers that a compiled part of the model may run; itself only where its tap is inside."""
        outside = has_hooks(part) or ("forward" in part.__dict__ and not is_optimized(part))
        inner = set(part.modules()) - ({part} if outside else set())
        return [name for name, module in self._layers.items() if module in inner]

    def _tap(self, recorder: Recorder, taps: Taps) -> None:
        """Put in place all that a captured forward needs."""
        if self._asked is None:
            tap(self._layers, recorder, taps)
        else:
            tap_calls(self._names, self._layers, recorder, self._asked, taps)
        for module, switch in _fused(self._modules, self._kinds, self._layers):
            put(module, switch, float("0"), taps)  # an object of its own, so that it is taken back by the right capture
        forward = own_code(_whole_forward(self._model, recorder), self._model, recorder.setting)
        put(self._model, "forward", MethodType(forward, self._model), taps)

    def _every_nth(
        self, recorder: Recorder, plain: Callable[..., Any], captured: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Calls `plain`, and at every n-th call `captured` instead, with taps that are there for its length only."""
        calls = itertools.count()

        def forward(*args: Any, **kwargs: Any) -> Any:
            if is_dynamo_compiling():
                raise OptionError(f"every={self._every} counts calls of the model, {_UNSEEN}")
            if recorder.running or next(calls) % self._every:
                return plain(*args, **kwargs)
            taps = Taps()
            try:
                self._tap(recorder, taps)
                return captured(*args, **kwargs)
            finally:
                take_back(taps)

        return forward


_UNSEEN = "which compiled code around it hides; give capture() the compiled model, or leave this option out."


def _whole_forward(model: nn.Module, recorder: Recorder) -> Callable[..., Any]:
    """A stand-in for the model's own forward: it tells the recorder where one forward begins and ends."""
    inner = function_of(model, "forward")
    outside = OutsideInferenceMode(model, recorder.by_module)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is not model:
            return inner(self, *args, **kwargs)
        if is_dynamo_compiling():
            return _traced(recorder, inner, self, args, kwargs)
        if recorder.running:
            recorder.refuse_another_thread()
        if recorder.running or not recorder.open or in_backward():
            return inner(self, *args, **kwargs)  # within itself; or a checkpoint that the backward runs again
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
    unseen: Collection[Tensor] = (),
) -> Any:
    """Run and record the model's own forward. Nothing tells when its caller writes to the memory of `unseen`."""
    output = None
    try:
        with recorder.begin():
            with suppress(Stopped):
                output = call(*args, **kwargs)
            recorder.end(unseen)
        return output
    finally:
        recorder.leave()


def _traced(
    recorder: Recorder, inner: Callable[..., Any], model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The same inside a compiled graph; `collect()` does the rest."""
    if recorder.needs_eager or (recorder.keeps > 1 and not recorder.entered):
        raise OptionError(f"{type(recorder).__name__} looks at each call of the model, {_UNSEEN}")
    recorder.pending = []
    if not recorder.stop:
        output = inner(model, *args, **kwargs)
    else:
        recorder.to_run, recorder.catching = set(recorder.names), True
        try:
            output = inner(model, *args, **kwargs)
        except Stopped:
            output = None
        recorder.catching = False
    recorder.whole = True
    return output


def _chain(model: nn.Module) -> Iterator[nn.Module]:
    """The model and every wrapper around it, outermost first."""
    yield model
    while (inner := inside(model)) is not None:
        yield (model := inner)


def _refuse_scripted(kinds: set[type], layers: dict[str, nn.Module]) -> None:
    scripted = {kind for kind in kinds if issubclass(kind, torch.jit.ScriptModule)}
    for name, module in layers.items() if scripted else ():
        if type(module) in scripted:
            raise LayerError(f"layer {name!r} is a ScriptModule; capture the model as it was before torch.jit.")


def _refuse_flat(modules: list[nn.Module], kinds: set[type], layers: dict[str, nn.Module]) -> None:
    """A program that torch.export made has the layers as modules, for their weights, and calls none of them."""
    if not any(issubclass(kind, GraphModule) for kind in kinds):
        return
    for graph in modules:
        if isinstance(graph, GraphModule) and not any(
            node.op == "call_module" and node.target != GUARDS for node in graph.graph.nodes
        ):
            unused = set(graph.modules()) - {graph}
            for name, module in layers.items():
                if module in unused:
                    raise LayerError(
                        f"layer {name!r} is never called: torch.export made one flat graph of it. Capture the model as "
                        "it was before, or torch.export.unflatten(exported_program)."
                    )


def _fused(modules: list[nn.Module], kinds: set[type], layers: dict[str, nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    """Modules that would run captured layers in one fused operator, and the attribute that, when zero, prevents it."""
    fused = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}
    if not any(issubclass(kind, tuple(fused)) for kind in kinds):
        return
    captured = set(layers.values())
    for module in modules:
        for kind, switch in fused.items():
            if isinstance(module, kind) and any(inner in captured for inner in module.modules() if inner is not module):
                yield module, switch
