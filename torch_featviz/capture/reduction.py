"""What recorders of streaming statistics do: each output is given to its layer's reducer."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from torch_featviz.errors import DtypeError, ShapeError
from torch_featviz.launching import gpu
from torch_featviz.model.inputs import device_of
from torch_featviz.torch_private import dynamo_is_imported, in_graph_pool

from .asked import Scope
from .channels import ChannelAxes
from .eager import NOTHING, eager
from .given import inputs_of, loss_in
from .inplace import EVERYTHING, versions_of
from .recorder import Recorder
from .reduce import Reducer
from .reduce.few import Few
from .reduce.reducer import has_figures, is_plain
from .reduce.tables import Figures, Tables
from .reduce.together import Together

_known: WeakKeyDictionary[nn.Module, dict[Hashable, Any]] = WeakKeyDictionary()
_KEPT = 8  # of each model
_PLAIN = ("cuda",)  # where each launch costs more than what it computes, and float64 is to be had
_COPIED = 2**26  # bytes; to copy so much costs less than to read it apart from others


class Reduction(Recorder):
    """Gives each output to its layer's reducer, and keeps nothing else.

    On a CPU at once, or of small ones together when the forward ends. Where each launch of a kernel costs more than
    what it computes, outputs wait by reference until then; those that the network is known to overwrite do not wait,
    or as a copy.
    """

    by_version = False

    def __init__(self, scope: Scope, setting: Hashable, *, into: Reducer, stop: bool = False) -> None:
        super().__init__(scope, (setting, type(into)), stop=stop)
        self.reducers = {name: into.fresh() for name in scope.layers}
        self.left_out: dict[str, str] = {}  # layers without figures, and why
        self.axes = ChannelAxes(scope.model, needed=into.asks_for_channels)
        self._into = into
        self._together: dict[torch.device, Together | Few] = {}  # by where outputs are
        self._device: dict[str, torch.device] = {}  # of each layer's outputs
        self._kernels: dict[torch.device, bool] = {}  # whether they run there
        self._bytes = 0  # that wait
        self._waited: set[str] = set()  # layers whose outputs did
        self._settled = 0  # changes that reducers know
        device = device_of(scope.model)
        self._budget = gpu.budget(device)
        self._copied = min(_COPIED, self._budget >> 2)
        self.with_inputs = False
        self.inputs: dict[str, None] = {}  # their names
        self.losses: list[Tensor] = []  # that the model returned
        self.ran: dict[str, None] = {}  # layers in the order in which they first returned, where that is seen
        self._few = self._spare() if Few.takes(into) and device.type == "cpu" else None
        self.by_version = self._waits = self._has_kernels(device) or (device.type in _PLAIN and Few.takes(into, device))

    def admit(self, name: str, globs: Iterable[str] = ()) -> None:
        super().admit(name, globs)
        self.reducers[name] = self._into.fresh()

    def taker(self, name: str) -> _Taker:
        return _Taker(self, self.reducers[name], self.axes.by_number(name))

    @eager
    def begin(self, given: Any) -> AbstractContextManager[Any]:
        self.start()
        if self._overtaken():
            self._take_at_once()
        watch = self.overwriting.begin(self.calls, self.names, always_watch=False) if self._waits else None
        if watch is not None:
            self._reads = watch.reads
        around = [self.axes.begin(self.reducers, given), watch or self.look()]
        around = [mode for mode in around if mode is not NOTHING]
        plain = not (around or self.leftovers.entered or self.stopping.active)
        if self._waits and plain and self.overwriting.known is not None and self._waited:
            self.careful = self._overwritten_or_new()
        self.note_inputs(given)
        return around[0] if len(around) == 1 else _all(around) if around else NOTHING

    @eager
    def note_inputs(self, given: Any) -> None:
        if not self.with_inputs:
            return
        for name, tensor in inputs_of(given).items():
            name = f"{name}()" if name in self.names else name  # noqa: PLW2901 - a layer may be called so
            self.inputs.setdefault(name)
            self.reducers.setdefault(name, self._into.fresh())
            if name in self.left_out:
                continue
            if self._waits and self.running and has_figures(tensor) and self._may_wait(tensor):
                self.calls.append((name, tensor, versions_of(tensor)))
                self._device[name] = tensor.device
                self.came(tensor)
            else:
                self._update(name, tensor)

    @eager
    def note_output(self, output: Any) -> None:
        if self.with_inputs and (loss := loss_in(output)) is not None:
            self.losses.append(loss.detach().clone())

    @eager
    @contextmanager
    def passing_over(self, *, compiled: bool = False) -> Iterator[None]:
        if not compiled:
            with super().passing_over():
                yield
            return
        self._take_at_once()
        states = {name: reducer._state for name, reducer in self.reducers.items()}
        left_out = dict(self.left_out)
        with super().passing_over():
            try:
                yield
            finally:  # compiled code adds to the reducers by itself
                self.collect()
                self.left_out = left_out
                for name, reducer in self.reducers.items():
                    reducer._state, reducer._host = states.get(name), None

    @eager
    def end(self, unseen: Iterable[Tensor] = ()) -> None:
        if unseen != ():
            self._flush()
        super().end(unseen)
        self.axes.finish()

    @eager
    def leave(self) -> None:
        try:
            if self.handed_out:
                self.settle()
            self._flush()
        finally:
            super().leave()
            self.axes.leave()

    @eager
    def enter_whole(self) -> None:
        self._take_at_once()
        super().enter_whole()

    @eager
    def enter_part(self, inputs: Any) -> None:
        self._take_at_once()
        super().enter_part(inputs)

    @eager
    def record(self, name: str, output: Any) -> None:
        if (
            self.careful is EVERYTHING
            or self.leftovers.amid
            or type(output) is not Tensor
            or name not in self._waited
            or output.nbytes > self._copied
        ):
            super().record(name, output)
            return
        # it is known to be overwritten; as `keep` does, without its questions
        copy = (output.detach() if output.requires_grad else output).clone()
        self.calls.append((name, copy, copy._version))
        self.came(copy)

    @eager
    def came(self, output: Tensor) -> None:
        self._bytes += output.numel() * output.element_size()
        if self._bytes > self._budget:
            self._read()

    @eager
    def keep(self, name: str, output: Any, copy: bool) -> None:
        if name in self.left_out:
            return
        first = first_tensor(output)
        if first is None:
            self.left_out[name] = f"it returned a {type(output).__name__}"
            return
        self.axes.note(name, first)
        self.ran.setdefault(name)
        if self._waits and (self._device.setdefault(name, first.device) != first.device or not is_plain(first)):
            self._take_at_once()
        if self._waits and has_figures(first) and self._may_wait(first):
            self._wait(name, first, copy)
            return
        self._update(name, first)

    def _update(self, name: str, output: Tensor) -> None:
        """Add an output at once, or on a CPU a small one with others."""
        axis = self.axes.of(name, output.dim())
        try:
            if self._few is not None and self.running and self._few.takes_output(output):
                self._few.add(name, output, axis)
            else:
                self.reducers[name].update(output, axis)
        except (DtypeError, ShapeError) as error:  # which are no reason to stop a training
            self.left_out[name] = str(error)

    def _wait(self, name: str, output: Tensor, copy: bool) -> None:
        """Have an output wait; with `copy` it will be overwritten."""
        if copy and self.running and output.nbytes <= self._copied:
            output, copy = output.detach().clone(), False
        self._waited.add(name)
        self.overwriting.holds(output, len(self.calls))
        self.calls.append((name, output, versions_of(output)))
        self._bytes += output.nbytes
        if copy or self._bytes > self._budget:
            self._read()
        if not self.running:
            self._flush()
            if self.handed_out:
                self.settle()

    def _overwritten_or_new(self) -> frozenset[nn.Module]:
        known = self.overwriting.modules(self.layers)
        if len(self._waited) == len(self.layers):
            return known
        return known.union([module for name, module in self.layers.items() if name not in self._waited])

    def _read(self) -> None:
        """Read what waits."""
        self._bytes, calls, odd = 0, self.calls.copy(), list[tuple[str, Tensor]]()
        if not self.overwriting.watching:
            self.calls.clear()
        else:  # a record keeps its position
            self.calls[:] = [(name, None, None) for name, _, _ in calls]
        for name, output, version in calls:
            if output is None or name in self.left_out:
                continue
            self.ran.setdefault(name)
            if version is not None and output._version != version:
                self.left_out[name] = "an output was overwritten, which the first forward did not do; capture it anew."
                self.overwriting.changed(name)
                continue
            if not is_plain(output) or self._device.get(name) != output.device:
                odd.append((name, output))
                continue
            try:
                self._of(output.device).add(name, output, self.axes.of(name, output.dim()))
            except (DtypeError, ShapeError) as error:
                self.left_out[name] = str(error)
        for together in self._together.values():
            together.read()
        if odd:  # the model has gone to another device meanwhile, say
            self._take_at_once()
        for name, output in odd:
            self._update(name, output)

    def _flush(self) -> None:
        """Have all that waits in the figures."""
        if self._few is not None:
            self._few.flush()
        if self._waits:
            self._read()
            for together in self._together.values():
                together.flush()

    def settle(self, *, last: bool = False) -> None:
        if self._few is not None:
            self.left_out |= self._few.settle(self.reducers)
        self._flush()
        if not last and self._overtaken():
            self._take_at_once()
        self.handed_out |= bool(self._together)  # from now on what was handed out is made to hold each forward
        changes = sum(together.changes for together in self._together.values())
        if changes != self._settled:
            self._settled = changes
            for together in self._together.values():
                self.left_out |= together.settle(self.reducers, last=last)

    def _take_at_once(self) -> None:
        """Nothing waits from now on: compiled code adds to the reducers itself, say."""
        if self._waits:
            self.settle(last=True)
            self._waits, self.careful = False, EVERYTHING
            self._together.clear()

    def _overtaken(self) -> bool:
        """Whether compiled code around the model has added to the reducers, of which nothing here tells."""
        return dynamo_is_imported() and any(together.overtaken(self.reducers) for together in self._together.values())

    def _has_kernels(self, device: torch.device) -> bool:
        if device not in self._kernels:
            self._kernels[device] = Figures.takes(self._into) and gpu.available(device)
        return self._kernels[device]

    def _may_wait(self, output: Tensor) -> bool:
        """Whether it costs less later, together with others."""
        if self._has_kernels(output.device):
            return True
        if output.device.type not in _PLAIN or not Few.takes(self._into, output.device):
            return False
        together = self._of(output.device)
        return isinstance(together, Few) and together.takes_output(output)

    def _of(self, device: torch.device) -> Together | Few:
        if device not in self._together:
            kernels = self._has_kernels(device)
            self._together[device] = Together(self._tables(device)) if kernels else Few(self._into, device)
        return self._together[device]

    def _tables(self, device: torch.device) -> Tables:
        """As an earlier block left them, which captured the same."""
        known, key = _known_of(self.model()), (self.setting, repr(self._into), device)
        if key not in known:
            known[key] = Tables(self._into, device)
        tables: Tables = known[key]
        return tables

    def _spare(self) -> Few:
        """That of an earlier block, which captured the same, with its tables; no other block has it meanwhile."""
        spare = _known_of(self.model()).pop((self.setting, repr(self._into)), None)
        return spare or Few(self._into)

    def close(self) -> None:
        self._take_at_once()
        self.settle()
        if self._few is not None and (model := self.model()) is not None:
            self._few.end_block()
            _known_of(model)[self.setting, repr(self._into)], self._few = self._few, None
        super().close()

    def seen(self, names: Collection[str]) -> list[Any]:
        states: list[Any] = [self.reducers[name]._state for name in names]
        return states if self._few is None else [*states, self._few.last]

    def collect(self) -> None:
        super().collect()
        for reducer in self.reducers.values():
            for key, value in vars(reducer).items():
                if isinstance(value, tuple) and any(isinstance(t, Tensor) and in_graph_pool(t) for t in value):
                    setattr(reducer, key, tuple(tensor.clone() for tensor in value))


def _known_of(model: nn.Module | None) -> dict[Hashable, Any]:
    """What earlier blocks left for later ones."""
    assert model is not None, "a model in whose forward we are is alive"
    known = _known.setdefault(model, {})
    if len(known) > _KEPT:
        known.clear()
    return known


@contextmanager
def _all(modes: list[AbstractContextManager[Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield


class _Taker:
    """One layer's part in a compiled graph: the arithmetic of its reducer."""

    __slots__ = ("axes", "recorder", "reducer")

    def __init__(self, recorder: Reduction, reducer: Reducer, axes: tuple[int, ...]) -> None:
        self.recorder = recorder
        self.reducer = reducer
        self.axes = axes

    def take(self, _module: nn.Module, name: str, output: Any) -> None:
        first = first_tensor(output)
        if first is None or not has_figures(first):
            self.recorder.left_out[name] = "it returned no dense tensor of real numbers"
        else:
            self.reducer.update(first, self.axes[first.dim()] if first.dim() < len(self.axes) else 1)
        if self.recorder.leftovers.catches:
            self.recorder.stopping.ran(name)


def first_tensor(output: Any) -> Tensor | None:
    """A tensor, or the first one of several, as recurrent layers and attentions return them."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None
