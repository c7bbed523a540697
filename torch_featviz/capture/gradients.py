"""Gradients of layers' outputs, by hooks on tensors: what then works in place does no harm, and nothing is copied."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from torch_featviz.errors import DtypeError, ShapeError
from torch_featviz.model.values import tensors
from torch_featviz.torch_private import in_backward

from .asked import Scope
from .channels import ChannelAxes
from .eager import Uncompiled
from .recorder import Recorder
from .reduce import Reducer


class Gradients(Recorder):
    """Records, in the place of an output, the gradient that reaches it; in the order of the forward."""

    why_absent = "got no gradient: backward() did not reach it inside the block."
    by_version = False
    differentiates = True  # Dynamo runs no hooks on tensors inside a graph

    def __init__(self, scope: Scope, setting: Hashable, **options: Any) -> None:
        super().__init__(scope, setting, **options)
        self.run = 0  # which forward of the whole model
        self.counted = 0  # of any captured layer
        self.orders: list[int] = []  # of each record: which call it belongs to

    def begin(self, given: Any) -> AbstractContextManager[Any]:  # noqa: ARG002 - for reducers
        self.start()
        self.run += 1
        self.orders = []
        return Uncompiled()

    def record(self, name: str, output: Any) -> None:
        # A checkpointed forward that the backward runs again counts here: with reentrant checkpoints no other one makes
        # a graph, and with the others no gradient flows in it.
        if not self.open:
            return
        self.counted += 1
        alone = not self.running and not in_backward()
        parts = list(tensors(output))
        got: list[Tensor | None] = [None] * len(parts)
        call = _Call(name, self.run, self.counted, alone, isinstance(output, Tensor), got)
        for i, part in enumerate(parts):
            if part.requires_grad:
                part.register_hook(partial(self._arrived, call, i))  # type: ignore[no-untyped-call]

    def _arrived(self, call: _Call, i: int, gradient: Tensor) -> None:
        if not self.open or call.run != self.run:
            return
        call.got[i] = gradient.detach()
        self.keep_gradient(call, i)

    def keep_gradient(self, call: _Call, latest: int) -> None:  # noqa: ARG002 - for reducers
        """Record what of a call's gradients has arrived, at the call's place in the forward."""
        if call.alone:
            self._drop(call.name)
        value = self.keeper.through(call.got[0] if call.single else tuple(call.got))
        position = bisect_left(self.orders, call.order)
        known = position < len(self.orders) and self.orders[position] == call.order
        self.records.place(position, call.name, value, replaces=known)
        self.orders[position : position + known] = [call.order]

    def _drop(self, name: str) -> None:
        kept = [call[0] != name for call in self.records.calls]
        self.orders = [order for order, keep in zip(self.orders, kept, strict=True) if keep]
        self.records.drop(name)


class _Call(NamedTuple):
    name: str
    run: int
    order: int
    alone: bool  # not in a forward of the whole model
    single: bool  # one tensor, and not a structure of them
    got: list[Tensor | None]


class ReducedGradients(Gradients):
    """Gives each gradient to its layer's reducer, and keeps nothing else."""

    def __init__(self, scope: Scope, setting: Hashable, *, into: Reducer) -> None:
        super().__init__(scope, setting)
        self.reducers = {name: into.fresh() for name in scope.layers}
        self.left_out: dict[str, str] = {}
        self.axes = ChannelAxes(scope.model, needed=into.asks_for_channels)
        self._fresh = into.fresh

    @contextmanager
    def begin(self, given: Any) -> Iterator[None]:
        with super().begin(given), self.axes.begin(self.reducers, given):
            yield

    def record(self, name: str, output: Any) -> None:
        for part in tensors(output):
            self.axes.note(name, part)
        super().record(name, output)

    def end(self, unseen: Iterable[Tensor] = ()) -> None:
        super().end(unseen)
        self.axes.finish()

    def leave(self) -> None:
        super().leave()
        self.axes.leave()

    def admit(self, name: str, globs: Iterable[str] = ()) -> None:
        super().admit(name, globs)
        self.reducers[name] = self._fresh()

    def keep_gradient(self, call: _Call, latest: int) -> None:
        gradient = call.got[latest]
        assert gradient is not None, "it is the one that has just arrived"
        if call.name not in self.left_out:
            try:
                self.reducers[call.name].update(gradient, self.axes.of(call.name, gradient.dim()))
            except (DtypeError, ShapeError) as error:
                self.left_out[call.name] = str(error)
