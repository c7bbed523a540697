"""Recorders of attention weights, and of statistics of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import MethodType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from torch_featviz.errors import DtypeError, ShapeError
from torch_featviz.torch_private import in_backward

from ..asked import Scope
from ..eager import NOTHING, all_eager, uncompiled
from ..recorder import Recorder
from ..reduce import Reducer
from ..tap import Taps, function_of, put
from .asked import Attention, Look, rows_asked
from .seen import Seen

_HEADS = 1  # the axis that takes the place of channels


@all_eager
class Attentions(Recorder):
    """Records, in the place of an output, the attention weights that are computed in a layer's forward."""

    by_version = True  # in inference mode operators come whole, and linear layers round otherwise when a mode is on
    needs_eager = True  # a graph's attention is compiled together with what is around it

    def __init__(self, scope: Scope, setting: Hashable, *, of: Attention, **options: Any) -> None:
        super().__init__(scope, setting, **options)
        self.by_reference = False
        self._all = not self.names  # those in whose own forward attention is computed
        scope_of = tuple(self.names), isinstance(of, Look)
        without = of.without if isinstance(of, Look) else None
        self.seen_attention = Seen(
            scope_of, self._wanted, partial(rows_asked, of), self._take, lenient=self._all, without=without
        )

    def begin(self, given: Any) -> AbstractContextManager[Any]:
        self.start()
        model = self.model()
        assert model is not None, "a model in whose forward we are is alive"
        return self._watched("", model, given)

    @contextmanager
    def _watched(self, name: str, module: nn.Module, given: Any) -> Iterator[None]:
        with uncompiled(), self.seen_attention.forward(name, module, given):
            yield

    def _alone(self, name: str, module: nn.Module, given: Any) -> AbstractContextManager[Any]:
        """A part of the model is called by itself, or again by the backward that a checkpoint is for."""
        return NOTHING if not self.open or in_backward() else self._watched(name, module, given)

    def tap(self, names: dict[nn.Module, str], taps: Taps) -> None:
        """Put in place what tells which layer an attention is computed in."""
        tap_modules(names, self.seen_attention, self._alone, taps)

    def _wanted(self, running: Sequence[str]) -> list[str]:
        if not self.open:
            return []
        return [running[-1]] if self._all else [name for name in running if name in self.names]

    def _take(self, layers: list[str], weights: Tensor) -> None:
        for name in layers:
            if name not in self.names:
                self.admit(name)
            self.keep(name, weights, copy=False)

    def why(self, name: str) -> str:
        reasons, found = self.seen_attention.reasons, list(self.seen_attention.found)
        inner = next((why for layer, why in reasons.items() if f"{layer}.".startswith(f"{name}.")), None)
        if inner is not None:
            return f"computed no attention: {inner}."
        some = ", ".join(map(repr, found[:4])) + (", ..." if len(found) > 4 else "")
        return "computed no attention in its forward; " + (
            f"these did: {some}." if found else "nor did any other layer."
        )

    def in_use(self, uncalled: list[str]) -> set[str]:  # noqa: ARG002 - of outputs
        return set()


@all_eager
class ReducedAttentions(Attentions):
    """Gives the weights to their layer's reducer, and keeps nothing else; heads take the place of channels."""

    def __init__(self, scope: Scope, setting: Hashable, *, of: Attention, into: Reducer) -> None:
        super().__init__(scope, setting, of=of)
        self.reducers = {name: into.fresh() for name in scope.layers}
        self.left_out: dict[str, str] = {}
        self._fresh = into.fresh

    def admit(self, name: str, globs: Iterable[str] = ()) -> None:
        super().admit(name, globs)
        self.reducers[name] = self._fresh()

    def keep(self, name: str, output: Any, copy: bool) -> None:  # noqa: ARG002 - nothing is kept
        if name not in self.left_out:
            try:
                self.reducers[name].update(output, _HEADS)
            except (DtypeError, ShapeError) as error:
                self.left_out[name] = str(error)


Alone: TypeAlias = Callable[[str, nn.Module, Any], AbstractContextManager[Any]]


def tap_modules(names: dict[nn.Module, str], seen: Seen, alone: Alone, taps: Taps) -> None:
    """Tell `seen` which forwards run. The layers of torch.nn that have no parts compute no attention.

    Args:
        alone: given a layer and its arguments, what to enter where it is called without the whole model.
    """
    for module, name in names.items():
        own = not str(type(module).forward.__module__).startswith("torch.nn.")
        if name and not isinstance(module, torch.jit.ScriptModule) and (own or any(True for _ in module.children())):
            stand_in = _stand_in(function_of(module, "forward"), module, name, seen, alone)
            put(module, "forward", MethodType(stand_in, module), taps)


def _stand_in(inner: Callable[..., Any], module: nn.Module, name: str, seen: Seen, alone: Alone) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is not module or is_dynamo_compiling():
            return inner(self, *args, **kwargs)
        with seen.within(name, module) if seen.running else alone(name, module, (args, kwargs)):
            return inner(self, *args, **kwargs)

    return forward
