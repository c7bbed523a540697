"""Where the taps put what they see: one list of records, each safe from what the network does afterwards."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable
from contextlib import AbstractContextManager
from threading import get_ident
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torch_featviz.errors import LayerError
from torch_featviz.model.values import map_tensors, tensors
from torch_featviz.torch_private import in_backward, in_graph_pool, is_mapped, unmapped

from . import inplace
from .eager import NOTHING, eager
from .keep import ToCPU

Traced: TypeAlias = tuple[nn.Module, Any, bool]  # out of a compiled graph, and whether the layout was changed


class _Everything:
    def __contains__(self, name: object) -> bool:
        return True


_EVERYTHING = _Everything()
STRAY = "_featviz_stray"
_RELAID = object()  # in the place of versions: a copy in the compiled graph's own layout
_INTERLEAVED = "#"  # among the layers that are overwritten: no layer's name, see `Recorder.interleaved`
_CHANGED = object()  # and: not what the layer returned


class Stopped(BaseException):
    """Every layer asked for has run; raised out of the forward by `stop=True`, and caught where it began."""


class Recorder:
    """Keeps each output, by reference where it can, as a copy where the network is known to overwrite it.

    `records` are the calls of the latest forward, in order. `careful` are the layers whose outputs must come through
    `record()`; a tap may append those of the others by itself. Outside a forward of the whole model (when only a part
    of it is called) every output is copied, and each layer keeps its latest call.

    A compiled graph runs `take()` in the place of `record()`. What it took waits in `pending`, or where only a part of
    the model was compiled and called, with its layer, until `collect()`.
    """

    why_absent = "did not run; the forward never called it."
    by_version = True  # whether what is kept is checked by the version counters of tensors
    needs_eager = False  # whether a compiled model has to run uncompiled meanwhile
    with_calls = False  # whether functional calls are captured too

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, nn.Module],
        setting: Hashable,
        *,
        detach: bool = True,
        stop: bool = False,
        into: Callable[[Any], Any] | None = None,
        keeps: int = 1,
    ) -> None:
        self.records: list[inplace.Record] = []
        self.keeps = keeps  # forwards
        self.past: deque[list[inplace.Record]] = deque(maxlen=keeps - 1)
        self.names = list(layers)
        self.layers = layers
        self.model = weakref.ref(model)
        self.forwards = 0
        self.running = False
        self.careful: frozenset[nn.Module] | _Everything = _EVERYTHING
        self.open = True
        self.thread = 0  # that runs the model now
        self.stop = stop
        self._into = into
        self._to_cpu = into if isinstance(into, ToCPU) else None
        self._detach = detach
        self.setting = hash((tuple(self.names), setting, stop, into is None))
        self._key: Hashable = None
        self._copied: frozenset[str] = frozenset()
        self.by_reference = type(self) is Recorder and not stop and into is None
        self.by_module: dict[nn.Module, str] = {}  # all of the model; the session fills it in
        self._careful: dict[frozenset[str], frozenset[nn.Module]] = {}
        self._graphs = False  # whether any output may hold an autograd graph
        self._unnamed = False  # whether some records still tell modules instead of names
        self._learnt: dict[Hashable, frozenset[str] | None] = {}  # what `inplace` said so far
        self._watch: inplace.Watch | None = None
        self.to_run: set[str] = set()  # what `stop` waits for
        self.pending: list[Traced] | None = None
        self.whole = False  # whether `pending` is of a forward of the whole model
        self.strayed = False
        self.interleaved = False  # whether records and what compiled code left behind come by turns
        self.catching = False  # whether the compiled code that runs would catch `Stopped`
        self.sampled = False  # whether the taps are there for the length of some forwards only
        self.entered = False  # by a call that eager code makes of the whole compiled model
        self.channels_last = False  # the layout of convolutions in compiled graphs
        self.ran: dict[str, None] = {}  # all functional calls of the latest forward
        self.unmatched: list[str] = []  # globs for calls that no call has matched

    def take_calls(self, names: Iterable[str], globs: Iterable[str]) -> None:
        """Capture functional calls too: those of these names, and others that `admit` tells of."""
        self.with_calls = self.needs_eager = True
        self.unmatched = list(globs)
        for name in names:
            self.admit(name)

    def admit(self, name: str, globs: Iterable[str] = ()) -> None:
        """A call is captured from now on; `globs` are those that it was asked for by."""
        self.names.append(name)
        self.unmatched = [glob for glob in self.unmatched if glob not in globs]

    # In eager mode

    @eager
    def begin(self) -> AbstractContextManager[Any]:
        """A forward of the whole model begins; the caller enters what is returned for its length."""
        self.start()
        model = self._live_model()
        inference = torch.is_inference_mode_enabled()  # see `OutsideInferenceMode` for when
        key = self._key = (self.setting, model.training, torch.is_grad_enabled(), inference)
        if inference:
            self._copied = frozenset(self.names)
            return NOTHING
        copied = None if self.with_calls else self._learnt.get(key)
        if copied is None and not self.with_calls:
            copied = self._learnt[key] = inplace.overwritten_layers(model, key)
        if copied is None:
            self._watch = inplace.Watch(self.records, copies=self._detach)
            return inplace.BeforeWrites(self._watch.before_write)
        self._copied = copied
        if self.by_reference and not self.entered and _INTERLEAVED not in copied:
            self._unnamed = True
            if copied not in self._careful:
                self._careful[copied] = frozenset([self.layers[name] for name in copied])
            self.careful = self._careful[copied]
        return NOTHING

    @eager
    def refuse_another_thread(self) -> None:
        """Outputs of two forwards at once could not be told apart."""
        if self.thread != get_ident():
            raise LayerError("another thread runs this model now, in the same block; take turns, or capture in each.")

    @eager
    def start(self) -> None:
        self.running = True
        self.thread = get_ident()
        self._graphs |= torch.is_grad_enabled()
        self._new_forward()
        self.pending = []
        if self.stop:
            self.to_run = set(self.names)

    @eager
    def end(self, unseen: Iterable[Tensor] = ()) -> None:
        """The forward is about to return. Nothing will tell when its caller writes to the memory of `unseen`."""
        self.collect()
        for position in inplace.sharing_memory(self.records, unseen):
            name, value, _ = self.records[position]
            value = map_tensors(self._copy, value)
            self.records[position] = (name, value, inplace.versions_of(value))
        if self._watch is not None:
            self._copied = frozenset(self._watch.overwritten | ({_INTERLEAVED} if self.interleaved else set()))
            inplace.learn(self._live_model(), self._key, self._copied)

    @eager
    def leave(self) -> None:
        """The forward is over, also where it raised."""
        self.running = False
        self.pending = None
        if self._to_cpu is not None:
            self._to_cpu.fence()
        self.careful = _EVERYTHING
        self._watch = None

    def record_of(self, module: nn.Module, output: Any) -> None:
        """`record()`, unless `module` is a copy of a layer that was made meanwhile."""
        if self.open and (name := self.by_module.get(module)) is not None:
            self.record(name, output)

    def _give_names(self) -> None:
        """To records that tell modules; what copies of layers left is dropped."""
        names = self.by_module
        try:
            named = [(names[module], value, versions) for module, value, versions in self.records]
        except KeyError:
            given: list[Any] = [(r if isinstance(r[0], str) else (names.get(r[0]), r[1], r[2])) for r in self.records]
            named = [record for record in given if record[0] is not None]
        self.records[:] = named
        self._unnamed = self.running

    @eager
    def record(self, name: str, output: Any) -> None:
        """Keep `output` as the next call of layer `name`."""
        if not self.open or (not self.running and in_backward()):
            return  # closed, or a checkpointed forward that the backward runs again
        if self.pending is not None and not self.running:  # eager code amid a compiled forward: after a graph break
            self.taker(name).take(self.layers[name], name, output)
            return
        if self.pending or self.strayed:  # the eager forward has called a compiled function that calls layers
            self.interleaved |= self.running
            self.collect()
        copy = name in self._copied if self.running and self._watch is None else not (self.running and self._detach)
        self.keep(name, output, copy)
        if self.stop and self.running:
            self.stop_when_all_ran(name)

    @eager
    def keep(self, name: str, output: Any, copy: bool) -> None:
        """Record `output`, or a copy, or what `into` makes of that."""
        value = self._value(output, copy)
        if self._watch is not None:
            if self._to_cpu is not None:
                self._to_cpu.wait()  # lest a copy to the CPU be under way when its source is written to
            self._watch.holds(value if self._into and not self._to_cpu else output, len(self.records))
        self._store(name, value)

    def stop_when_all_ran(self, name: str) -> None:
        """End the forward if `name` is the last of the layers asked for."""
        self.to_run.discard(name)
        if not self.to_run:
            raise Stopped

    def _value(self, output: Any, copy: bool) -> Any:
        if copy or any(tensor.is_inference() for tensor in tensors(output)):  # these have no version
            output = map_tensors(self._copy, output)
        elif not isinstance(output, Tensor):
            output = map_tensors(_same, output)
        return output if self._into is None else self._through(self._into, output)

    def _through(self, into: Callable[[Any], Any], output: Any) -> Any:
        with torch.no_grad():
            return into(map_tensors(Tensor.detach, output))

    def _copy(self, tensor: Tensor) -> Tensor:
        return (tensor.detach() if self._detach and tensor.requires_grad else tensor).clone()

    def _store(self, name: str, value: Any) -> None:
        if not self.running:
            self._drop(name)
        self.records.append((name, value, inplace.versions_of(value)))

    def _drop(self, name: str) -> None:
        """Nothing says where a call of a mere part of the model belongs: each layer's latest one is kept."""
        self.forwards += 1
        self._graphs |= torch.is_grad_enabled()
        if self._unnamed:
            self._give_names()
        self.records[:] = [record for record in self.records if record[0] != name]

    def _new_forward(self) -> None:
        self.forwards += 1
        if self.keeps > 1 and self.records:
            self._give_names()
            self.past.append(self.records.copy())
        self.records.clear()

    # Out of compiled graphs

    def taker(self, name: str) -> Any:  # noqa: ARG002 - statistics have one for each layer
        """What `take()` of a stand-in for layer `name` is called on."""
        return self

    def take(self, module: nn.Module, name: str | None, output: Any) -> None:
        """Keep `output` of `module`, from inside a compiled graph.

        Dynamo guards on what it looks at here: never on a name, unless it has to, or modules that are alike could not
        share a graph.
        """
        kept, relaid = self.traced_copy(output)
        if self.pending is None:
            setattr(module, STRAY, (kept, relaid))
            self.strayed = True
            return
        self.pending.append((module, kept, relaid))
        if self.catching and name is not None:
            self.stop_when_all_ran(name)

    def traced_copy(self, output: Any) -> tuple[Any, bool]:
        """A copy of a layer's output, made inside a compiled graph, which leaves the copying out where it may.

        Such a graph keeps the maps of convolutions in channels-last order. A copy in another order would be one more
        pass over memory, and a slow one; so the order is put right when, and if, the record is read.
        """
        if self._into is not None and self._to_cpu is None:
            output = self._through(self._into, output)
        if self.channels_last and isinstance(output, Tensor) and output.dim() == 4 and output.is_contiguous():
            kept = output.detach() if self._detach else output
            return kept.clone(memory_format=torch.channels_last), True
        return map_tensors(self._traced_clone, output), False

    def _traced_clone(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if self._detach else tensor.clone()

    @eager
    def make_room(self) -> None:
        """A compiled forward of the whole model begins: what it leaves would be held beside what the last one left."""
        self.latest()
        if self.keeps == 1:
            self.records.clear()

    def enter_part(self, inputs: Any) -> None:
        """A compiled part of the model is called; nobody sees what it overwrites, so its inputs may be lost."""
        self.collect()
        if self._watch is not None:
            for tensor in tensors(inputs):
                self._watch.before_write(tensor)

    def seen(self, names: Collection[str]) -> list[Any]:  # noqa: ARG002 - for reducers
        """Objects of which one is another after each call of any of these layers."""
        return [self.records[-1] if self.records else None]

    def leave_part(self) -> None:
        """A compiled part of the model is over."""
        before = len(self.records)
        self.collect()
        if self.stop:
            for name, _, _ in self.records[before:]:
                self.stop_when_all_ran(name)

    @eager
    def collect(self) -> None:
        """Make records of what compiled graphs have captured since the last time."""
        pending, self.pending = self.pending, [] if self.running else None
        if self.whole:
            self._new_forward()
            self.whole = False
        if pending:
            names = self.by_module
            for module, value, relaid in pending:
                if module in names:
                    self._append(names[module], value, relaid)
        if self.strayed:
            self.strayed = False
            for name, module in self.layers.items():
                if STRAY in module.__dict__:
                    self._drop(name)
                    self._append(name, *module.__dict__.pop(STRAY))

    def _append(self, name: str, value: Any, relaid: bool) -> None:
        value = self._to_cpu(value) if self._to_cpu else map_tensors(_out_of_graph_pool, value)
        self.records.append((name, value, _RELAID if relaid else inplace.versions_of(value)))

    # Reading

    def latest(self) -> list[inplace.Record]:
        """The records of the latest forward."""
        if not self.running and (self.pending or self.whole or self.strayed):
            self.collect()
        if self._unnamed:
            self._give_names()
        return self.records

    def read(self, records: list[inplace.Record], position: int) -> tuple[Any, bool]:
        """What a record holds, detached, and whether it is still what the layer returned."""
        if self._to_cpu is not None:
            self._to_cpu.wait()
        name, value, versions = records[position]
        if versions is _RELAID:
            value = value.contiguous()
            versions = inplace.versions_of(value)
            records[position] = (name, value, versions)
        now = inplace.versions_of(value)
        intact = now in (versions, [])
        if self._detach and any(tensor.requires_grad or is_mapped(tensor) for tensor in tensors(value)):
            value = map_tensors(_plain, value)
            records[position] = (name, value, inplace.versions_of(value) if intact else _CHANGED)
        if not intact and (model := self.model()) is not None:
            inplace.learn(model, self._key, self._copied | {name})  # the next forward copies it in time
            self._learnt.clear()
        return value, intact

    def close(self) -> None:
        """The block is over: let go of the autograd graph."""
        self.latest()
        self.open = False
        self.layers, self.by_module, self._careful = {}, {}, {}
        self.careful = _EVERYTHING
        for records in (*self.past, self.records) if self._graphs else ():
            for position, (_, value, versions) in enumerate(records):
                if versions is not _RELAID and (type(value) is not Tensor or value.requires_grad):
                    self.read(records, position)

    def _live_model(self) -> nn.Module:
        model = self.model()
        assert model is not None, "a model in whose forward we are is alive"
        return model


def _plain(tensor: Tensor) -> Tensor:
    return (unmapped(tensor) if is_mapped(tensor) else tensor).detach()


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _out_of_graph_pool(tensor: Tensor) -> Tensor:
    """A copy, where `tensor` may lie in the memory of a CUDA graph, which the graph's next run overwrites."""
    return tensor.clone() if in_graph_pool(tensor) else tensor
