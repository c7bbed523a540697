"""`capture()`: what a model's layers return, recorded while it runs, and nothing about the model changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn

from torch_featviz.errors import LayerError

from .activations import Activations
from .recorder import Recorder
from .select import Layers, check_module, choose, inside, names_of
from .tap import Taps, forward_of, stand_in, take_back, tap


def capture(model: nn.Module, layers: Layers = None) -> Capture:
    """Record what `layers` of `model` return, for each forward run inside the `with` block.

    Args:
        model: any eager `nn.Module`; may be wrapped in DistributedDataParallel, or DataParallel on one device. A
            compiled model runs uncompiled inside the block.
        layers: names, globs (`*` also crosses dots), module types, module objects, one or several of them;
            None for all leaves. A wrapper's prefix (`module.`, `_orig_mod.`) may be given or left out.

    Returns:
        A context manager that yields `Activations`, a read-only mapping from layer name to what the layer returned,
        in order of execution (outside a forward of the whole model, when only parts of it are called, each layer
        keeps its latest call). Tensors are the network's own (no copy, on their device), detached; only those that
        the network goes on to overwrite in place are copied. A new forward replaces what the last one left.

    Raises:
        LayerError: a layer that `model` does not have, or cannot be captured; the model has not been touched then.
        DtypeError, OptionError: `model` or `layers` of a wrong kind.

    Hooks added inside the block are not seen. Two threads must not capture one model at the same time.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
        >>> with capture(model, "0") as acts:
        ...     output = model(torch.zeros(1, 1, 8, 8))
        >>> acts["0"].shape
        torch.Size([1, 4, 6, 6])
    """
    return Capture(model, layers)


class Capture:
    """The context manager that `capture` returns; it may be entered again, each time with new activations."""

    def __init__(self, model: nn.Module, layers: Layers, *, detach: bool = True) -> None:
        check_module(model)
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise LayerError("DataParallel copies its model at each call; capture model.module on one device.")
        self._compiled = any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in _chain(model))
        names = names_of(model)
        self._modules = list(names)
        self._model = self._modules[0]
        self._layers = choose(model, names, layers)
        self._detach = detach
        self._open: list[tuple[Recorder, Taps]] = []
        _refuse_scripted(self._layers)

    def __enter__(self) -> Activations:
        flags = tuple([module.training for module in self._modules])
        recorder = Recorder(self._model, list(self._layers), flags, detach=self._detach)
        taps: Taps = []
        self._open.append((recorder, taps))
        try:
            tap(self._layers, recorder, _inside_fast_paths(self._modules), taps)
            forward = _whole_forward(self._model, recorder)
            if self._compiled:
                forward = torch.compiler.disable(forward)  # type: ignore[no-untyped-call]
            stand_in(self._model, forward, taps)
        except BaseException:
            self._leave()
            raise
        return Activations(recorder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        recorder, taps = self._open.pop()
        take_back(taps)
        recorder.close()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode for the length of the block; afterwards each one's own flag is put back."""
    flags = {module: module.training for module in model.modules()}
    try:
        for module in flags:
            module.training = False  # and not eval(), which modules may override to change their weights
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def _whole_forward(model: nn.Module, recorder: Recorder) -> Callable[..., Any]:
    """A stand-in for the model's own forward: it tells the recorder where one forward begins and ends."""
    inner = forward_of(model)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is not model or recorder.running or not recorder.open or torch.compiler.is_compiling():
            return inner(self, *args, **kwargs)
        try:
            with recorder.begin():
                output = inner(self, *args, **kwargs)
                recorder.end((args, kwargs, output))
            return output
        finally:
            recorder.leave()

    forward.__wrapped__ = inner  # type: ignore[attr-defined]  # inspect.signature() still tells the model's own
    return forward


def _chain(model: nn.Module) -> Iterator[nn.Module]:
    """The model and every wrapper around it, outermost first."""
    yield model
    while (inner := inside(model)) is not None:
        yield (model := inner)


def _refuse_scripted(layers: dict[str, nn.Module]) -> None:
    scripted = {kind for kind in set(map(type, layers.values())) if issubclass(kind, torch.jit.ScriptModule)}
    for name, module in layers.items() if scripted else ():
        if type(module) in scripted:
            raise LayerError(f"layer {name!r} is a ScriptModule; capture the model as it was before torch.jit.")


def _inside_fast_paths(modules: list[nn.Module]) -> set[nn.Module]:
    """Modules that TransformerEncoderLayer's fused eval path would skip; it steps aside for hooks, not for us."""
    fast = {kind for kind in set(map(type, modules)) if issubclass(kind, nn.TransformerEncoderLayer)}
    outer = [module for module in modules if type(module) in fast] if fast else []
    return {inner for module in outer for inner in module.modules() if inner is not module}
