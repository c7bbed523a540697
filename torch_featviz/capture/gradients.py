"""Gradients of layers' outputs, by hooks on tensors: what then works in place does no harm, and nothing is copied."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from math import inf
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from torch_featviz.errors import DtypeError, ShapeError
from torch_featviz.model.values import tensors
from torch_featviz.torch_private import hooks_in_graphs, in_backward

from .asked import Scope
from .channels import ChannelAxes
from .eager import NOTHING, Uncompiled, eager
from .listening import Part, begin_listening, end_listening, listen, next_call, token
from .recorder import Recorder
from .reduce import Reducer

_Order: TypeAlias = tuple[int, float]  # of calls: how many were in graphs until then, and how many in eager mode


class Gradients(Recorder):
    """Records, in the place of an output, the gradient that reaches it; in the order of the forward.

    Calls in compiled graphs are counted by the graph, in `last`, since no other code runs at each of them.
    """

    why_absent = "got no gradient: backward() did not reach it inside the block."
    by_version = False
    copies = False  # whether what is kept is never the gradient's own memory

    def __init__(self, scope: Scope, setting: Hashable, **options: Any) -> None:
        super().__init__(scope, setting, **options)
        self.counted = 0  # calls of any captured layer in eager mode
        self.orders: list[_Order] = []  # of each record: which call it belongs to
        self.last = token(0)  # the latest call in a compiled graph
        self.began = self._never = token(-1)  # that one when the latest forward of a compiled model began
        self._first: _Order = (0, 0)  # the calls after this one are of the latest eager forward
        self._in_graphs: dict[int, _Call] = {}
        self._numbers = {name: number for number, name in enumerate(scope.layers)}
        self.eager_only = not hooks_in_graphs()
        self._listener = None if self.eager_only else begin_listening(self)

    @eager
    def begin(self, given: Any) -> AbstractContextManager[Any]:  # noqa: ARG002 - for reducers
        self.start()
        self._begin_forward()
        self._first, self.began = (int(self.last), self.counted), self._never
        return Uncompiled() if self.needs_eager else NOTHING

    @eager
    def record(self, name: str, output: Any) -> None:
        # A checkpointed forward that the backward runs again counts here: with reentrant checkpoints no other one makes
        # a graph, and with the others no gradient flows in it.
        if not self.open:
            return
        self.counted += 1
        alone = not self.running and self.leftovers.pending is None and not in_backward()
        parts = list(tensors(output))
        order = (int(self.last), self.counted)
        call = _Call(name, order, alone, isinstance(output, Tensor), [None] * len(parts))
        for i, part in enumerate(parts):
            if part.requires_grad:
                part.register_hook(partial(self._arrived, call, i))  # type: ignore[no-untyped-call]

    @eager
    def _arrived(self, call: _Call, i: int, gradient: Tensor) -> None:
        if self.open and self._is_latest(call.order):
            call.got[i] = gradient.detach()
            self.keep_gradient(call, i)

    # In compiled graphs

    def taker(self, name: str) -> Any:
        return self if self._listener is None else _Taker(self, token(self._listener, self._numbers[name]))

    def begin_traced(self) -> None:
        super().begin_traced()
        self.began = self.last

    @eager
    def arrived(self, layer: int, call: int, part: Part, gradient: Tensor) -> None:
        """In the backward of a graph: the gradient of one of the tensors that a layer returned; see `listen`."""
        order = (call, 0)
        if not self.open or not self._is_latest(order):
            return
        if call not in self._in_graphs:
            got: list[Tensor | None] = [None] * (part.of or 1)
            self._in_graphs[call] = _Call(self.names[layer], order, bool(part.alone), not part.of, got)
        known = self._in_graphs[call]
        known.got[part.position] = gradient.detach() if self.copies else gradient.detach().clone()
        self.keep_gradient(known, part.position)

    @eager
    def enter_whole(self) -> None:
        super().enter_whole()
        del self.orders[len(self.records.calls) :]

    @eager
    def collect(self) -> None:
        if self.leftovers.fetch(running=self.running)[0]:
            self.records.new_forward()
            self._begin_forward()

    def seen(self, names: Collection[str]) -> list[Any]:  # noqa: ARG002 - one for all layers
        return [self.last, self.counted]

    @eager
    def close(self) -> None:
        super().close()
        if self._listener is not None:
            end_listening(self._listener)

    # Records

    @eager
    def _begin_forward(self) -> None:
        self.orders, self._in_graphs = [], {}

    @eager
    def _is_latest(self, order: _Order) -> bool:
        """Whether a call is of the latest forward."""
        if self.leftovers.some:
            self.collect()
        return order > max(self._first, (int(self.began), inf))

    @eager
    def keep_gradient(self, call: _Call, latest: int) -> None:  # noqa: ARG002 - for reducers
        """Record what of a call's gradients has arrived, at the call's place in the forward."""
        if call.alone:
            self._drop(call.name)
        value = self.keeper.through(call.got[0] if call.single else tuple(call.got))
        position = bisect_left(self.orders, call.order)
        known = position < len(self.orders) and self.orders[position] == call.order
        self.records.place(position, call.name, value, replaces=known)
        self.orders[position : position + known] = [call.order]

    @eager
    def _drop(self, name: str) -> None:
        kept = [call[0] != name for call in self.records.calls]
        self.orders = [order for order, keep in zip(self.orders, kept, strict=True) if keep]
        self.records.drop(name)


class _Taker:
    """Takes what one layer returns inside a compiled graph."""

    def __init__(self, recorder: Gradients, layer: Tensor) -> None:
        self._recorder = recorder
        self._layer = layer

    def take(self, module: nn.Module, name: str, output: Any) -> None:  # noqa: ARG002 - as `Recorder.take`
        """Have the gradients of `output` told."""
        recorder = self._recorder
        call = recorder.last = next_call(recorder.last)
        alone = int(recorder.leftovers.pending is None)
        parts = list(tensors(output))
        count = 0 if isinstance(output, Tensor) else len(parts)
        for i, part in enumerate(parts):
            if part.requires_grad:
                listen(part, self._layer, call, Part(i, count, alone))


class _Call(NamedTuple):
    name: str
    order: _Order
    alone: bool  # not in a forward of the whole model
    single: bool  # one tensor, and not a structure of them
    got: list[Tensor | None]


class ReducedGradients(Gradients):
    """Gives each gradient to its layer's reducer, and keeps nothing else."""

    copies = True

    def __init__(self, scope: Scope, setting: Hashable, *, into: Reducer) -> None:
        super().__init__(scope, setting)
        self.reducers = {name: into.fresh() for name in scope.layers}
        self.left_out: dict[str, str] = {}
        self.axes = ChannelAxes(scope.model, needed=into.asks_for_channels)
        self._fresh = into.fresh

    @eager
    @contextmanager
    def begin(self, given: Any) -> Iterator[None]:
        with super().begin(given), self.axes.begin(self.reducers, given):
            yield

    @eager
    def record(self, name: str, output: Any) -> None:
        for part in tensors(output):
            self.axes.note(name, part)
        super().record(name, output)

    @eager
    def end(self, unseen: Iterable[Tensor] = ()) -> None:
        super().end(unseen)
        self.axes.finish()

    @eager
    def leave(self) -> None:
        super().leave()
        self.axes.leave()

    @eager
    def admit(self, name: str, globs: Iterable[str] = ()) -> None:
        super().admit(name, globs)
        self.reducers[name] = self._fresh()

    @eager
    def keep_gradient(self, call: _Call, latest: int) -> None:
        gradient = call.got[latest]
        assert gradient is not None, "it is the one that has just arrived"
        if call.name not in self.left_out:
            try:
                self.reducers[call.name].update(gradient, self.axes.of(call.name, gradient.dim()))
            except (DtypeError, ShapeError) as error:
                self.left_out[call.name] = str(error)
