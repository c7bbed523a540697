"""Streaming statistics of a capture: `into=Moments()` and its like, one reducer for each layer."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch import distributed as dist

from torch_featviz.errors import DtypeError, LayerError
from torch_featviz.model.layers import canonical, near
from torch_featviz.torch_private import in_graph_pool

from .activations import unreturned
from .asked import Scope, call_name
from .recorder import Recorder
from .reduce import Reducer, across_ranks


class Reduction(Recorder):
    """Gives each output to its layer's reducer at once, and keeps nothing else."""

    by_version = False

    def __init__(self, scope: Scope, setting: Hashable, *, into: Reducer, stop: bool = False) -> None:
        super().__init__(scope, (setting, type(into)), stop=stop)
        self.reducers = {name: into.fresh() for name in scope.layers}
        self._fresh = into.fresh

    def admit(self, name: str, globs: Iterable[str] = ()) -> None:
        super().admit(name, globs)
        self.reducers[name] = self._fresh()

    def taker(self, name: str) -> _Taker:
        return _Taker(self, self.reducers[name])

    def begin(self) -> AbstractContextManager[Any]:
        self.start()
        return self.look()

    def keep(self, name: str, output: Any, copy: bool) -> None:  # noqa: ARG002 - it is looked at now
        if not isinstance(output, Tensor):
            raise DtypeError(f"statistics are of tensors; layer {name!r} returned a {type(output).__name__}.")
        self.reducers[name].update(output)

    def seen(self, names: Collection[str]) -> list[Any]:
        return [self.reducers[name]._state for name in names]

    def collect(self) -> None:
        super().collect()
        for reducer in self.reducers.values():
            for key, value in vars(reducer).items():
                if isinstance(value, tuple) and any(isinstance(t, Tensor) and in_graph_pool(t) for t in value):
                    setattr(reducer, key, tuple(tensor.clone() for tensor in value))


class _Taker:
    """One layer's part in a compiled graph: the arithmetic of its reducer."""

    __slots__ = ("recorder", "reducer")

    def __init__(self, recorder: Reduction, reducer: Reducer) -> None:
        self.recorder = recorder
        self.reducer = reducer

    def take(self, _module: nn.Module, name: str, output: Any) -> None:
        self.reducer.update(output)
        if self.recorder.leftovers.catches:
            self.recorder.stopping.ran(name)


class Statistics(Mapping[str, Any]):
    """The reducer of each layer that ran, by layer name, in model order.

    All calls of a layer, in all forwards of the block, go into one. Readable inside the block and after it.
    """

    def __init__(self, recorder: Recorder, reducers: dict[str, Reducer]) -> None:
        self._recorder = recorder
        self._reducers = reducers
        self.capture: object = None  # whose block is open

    @property
    def not_run(self) -> list[str]:
        """Captured layers that did nothing, in model order; see `Activations.not_run`."""
        empty = [name for name, reducer in self._reducers.items() if reducer.empty]
        used = self._recorder.in_use(empty)
        return [name for name in empty if name not in used] + self._recorder.functions.unmatched

    def merged(self, group: dist.ProcessGroup | None = None) -> dict[str, Any]:
        """The same of the data of all ranks of a distributed run; see `across_ranks`. Every rank has to call this."""
        return across_ranks(dict(self), group)

    def __getitem__(self, layer: str) -> Any:
        reducers = self._reducers
        if not isinstance(layer, str):
            raise LayerError(f"statistics are read by layer name, got {layer!r:.80}; list(stats) has all that ran.")
        model = self._recorder.model()
        name = layer if layer in reducers or model is None else canonical(model, layer)
        if name not in reducers and model is not None:
            name = call_name(model, layer)
        if name not in reducers:
            raise LayerError(f"layer {layer!r} was not captured; {near(layer, reducers)}list(stats) has all that ran.")
        if reducers[name].empty:
            if self._recorder.in_use([name]):
                raise unreturned(name)
            close = near(name, self._recorder.functions.seen)
            raise LayerError(f"layer {layer!r} did not run; {close}not_run lists all such layers.")
        return reducers[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, reducer in self._reducers.items() if not reducer.empty)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        lines = [f"  {name}: {reducer!r}" for name, reducer in self.items()]
        if missing := self.not_run:
            lines.append(f"  did not run: {', '.join(missing)}")
        return "\n".join([f"Statistics, {len(self)} layers", *lines])
