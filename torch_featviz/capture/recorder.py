"""What the taps are given becomes records, each safe from what the network does afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from torch_featviz.errors import LayerError
from torch_featviz.model.use import Reading, Reads, in_use, is_known
from torch_featviz.torch_private import in_backward

from .asked import FunctionCalls, Scope
from .eager import NOTHING, eager
from .inplace import EVERYTHING, Everything, Overwriting, Record, versions_of
from .keep import Keeper
from .layouts import without_values
from .leftovers import Leftovers
from .records import Records
from .stopping import Stopping


class Recorder:
    """Keeps each output, by reference where it can, as a copy where the network is known to overwrite it.

    `careful` are the layers whose outputs must come through `record()`; a tap may append those of the others to
    `calls` by itself. Outside a forward of the whole model (when only a part of it is called) every output is copied,
    and each layer keeps its latest call.

    A compiled graph runs `take()` in the place of `record()`; `collect()` fetches what that left behind.
    """

    why_absent = "did not run; the forward never called it."
    by_version = True  # whether what is kept is checked by the version counters of tensors
    eager_only = False  # whether nothing can be captured in a compiled graph

    def __init__(
        self,
        scope: Scope,
        setting: Hashable,
        *,
        detach: bool = True,
        stop: bool = False,
        into: Callable[[Any], Any] | None = None,
        keeps: int = 1,
    ) -> None:
        self.names = list(scope.layers)
        self.layers = scope.layers
        self.model = weakref.ref(scope.model)
        self.setting = hash((tuple(self.names), setting, stop, into is None))
        self.keeper = Keeper(into, detach=detach, channels_last=scope.channels_last)
        self.records = Records(scope.names, keeps=keeps, detach=detach)
        self.calls = self.records.calls  # within one step of the taps, which append to it
        self.overwriting = Overwriting(scope, self.setting, detach=detach)
        self.leftovers = Leftovers()
        self.stopping = Stopping(stop)
        self.functions = FunctionCalls()
        self.given: Any = None  # arguments of the latest forward; once the block is over without their values
        self.open = True
        self.only_training = False  # whether forwards in evaluation mode are passed over
        self.handed_out = False  # whether somebody may look at what changes with the next forward
        self.running = False
        self.careful: frozenset[nn.Module] | Everything = EVERYTHING
        self.by_reference = type(self) is Recorder and not stop and into is None
        self._module_names = scope.names
        self._thread = 0  # that runs the model now
        self._looked = False  # whether a forward was, for what is read of layers that are not called
        self._reads: Reads | None = None  # of the forward that is under way

    @property
    def needs_eager(self) -> bool:
        """Whether a compiled model has to run uncompiled meanwhile."""
        return self.eager_only or (self.functions.captured and not self.functions.only_eager)

    def take_calls(self, names: Iterable[str], globs: Iterable[str]) -> None:
        """Capture functional calls too: those of these names, and others that `admit` tells of."""
        self.functions.ask(globs)
        for name in names:
            self.admit(name)

    def admit(self, name: str, globs: Iterable[str] = ()) -> None:
        """A call is captured from now on; `globs` are those that it was asked for by."""
        self.names.append(name)
        self.functions.match(globs)

    @eager
    def passes_over(self) -> bool:
        """Whether the forward that comes now does not count: an evaluation amid a training."""
        model = self.model()
        return self.only_training and model is not None and not model.training

    @eager
    @contextmanager
    def passing_over(self, *, compiled: bool = False) -> Iterator[None]:  # noqa: ARG002 - for figures
        """A forward runs of which nothing is recorded."""
        self.open = False
        try:
            yield
        finally:
            self.open = True

    # The forward that is under way

    @eager
    def begin(self, given: Any) -> AbstractContextManager[Any]:
        """A forward of the whole model begins, given these arguments; the caller enters what is returned for its
        length."""
        self.given = given
        self.start()
        watch = self.overwriting.begin(self.records.calls, self.names, always_watch=self.functions.captured)
        if self.by_reference and not self.leftovers.entered and self.overwriting.known is not None:
            self.records.may_tell_modules()
            self.careful = self.overwriting.modules(self.layers)
        if watch is None:
            return self.look()
        self._reads = watch.reads
        return watch

    @eager
    def look(self) -> AbstractContextManager[Any]:
        """Of the first whole forward of a model it is noted which layers are in use without being called."""
        if self._looked or self.stopping.active:
            return NOTHING
        model = self.model()
        assert model is not None, "a model in whose forward we are is alive"
        self._looked = is_known(model)
        if self._looked:
            return NOTHING
        self._reads = Reads(model, self._module_names)
        return Reading(self._reads)

    @eager
    def refuse_another_thread(self) -> None:
        """Outputs of two forwards at once could not be told apart."""
        if self._thread != get_ident():
            raise LayerError(
                "another thread is running this model inside the same capture block; run them one after the "
                "other, or use one block per thread with a copy of the model each."
            )

    @eager
    def start(self) -> None:
        self.running = True
        self._thread = get_ident()
        self.records.grad_mode()
        self.records.new_forward()
        self.leftovers.begin()
        if self.stopping.active:
            self.stopping.begin(self.names)

    @eager
    def end(self, unseen: Iterable[Tensor] = ()) -> None:
        """The forward is about to return. Nothing will tell when its caller writes to the memory of `unseen`."""
        if self.leftovers.some:
            self.collect()
        if unseen != ():  # mostly there are none
            self.records.copy_shared(unseen, self.keeper.copy)
        self.overwriting.end()
        if self._reads is not None and not self.stopping.active:
            self._reads.end()

    @eager
    def leave(self) -> None:
        """The forward is over, also where it raised."""
        self.running = False
        self.leftovers.end()
        self.keeper.fence()
        self.careful = EVERYTHING
        self.overwriting.leave()
        self._reads = None

    @eager
    def record_of(self, module: nn.Module, output: Any) -> None:
        """`record()`, unless `module` is a copy of a layer that was made meanwhile."""
        if type(output) is Tensor and self.careful is not EVERYTHING and not self.leftovers.amid:
            copy = self.keeper.copy(output)  # it is known to be overwritten; as record() does, without eight calls
            self.calls.append((module, copy, versions_of(copy)))
            return
        if self.open and (name := self._module_names.get(module)) is not None:
            self.record(name, output)

    @eager
    def record(self, name: str, output: Any) -> None:
        """Keep `output` as the next call of layer `name`."""
        if not self.open or (not self.running and in_backward()):
            return  # closed, or a checkpointed forward that the backward runs again
        if self.leftovers.pending is not None and not self.running:  # eager code amid a compiled forward
            self.taker(name).take(self.layers[name], name, output)
            return
        if self.leftovers.amid:  # the eager forward has called a compiled function that calls layers
            if self.running:
                self.overwriting.interleaved()
            self.collect()
        self.keep(name, output, self.overwriting.copies(name) if self.running else True)
        if self.stopping.active and self.running:
            self.stopping.ran(name)

    def came(self, output: Tensor) -> None:
        """A tap has appended this output to `calls` by itself."""

    @eager
    def keep(self, name: str, output: Any, copy: bool) -> None:
        """Record `output`, or a copy, or what `into` makes of that."""
        value = self.keeper.value(output, copy=copy)
        if self.overwriting.watching:
            self.keeper.wait()  # lest a copy to the CPU be under way when its source is written to
            self.overwriting.holds(value if self.keeper.returns_views else output, len(self.records.calls))
        if not self.running:
            self.records.drop(name)  # where a call of a mere part of the model belongs nothing says
        self.records.append(name, value)

    def taker(self, name: str) -> Any:  # noqa: ARG002 - statistics have one for each layer
        """What `take()` of a stand-in for layer `name` is called on."""
        return self

    def take(self, module: nn.Module, name: str | None, output: Any) -> None:
        """Keep `output` of `module`, from inside a compiled graph.

        Dynamo guards on what it looks at here: never on a name, unless it has to, or modules that are alike could not
        share a graph.
        """
        kept, relaid = self.keeper.traced(output)
        if self.leftovers.leave(module, kept, relaid) and self.leftovers.catches and name is not None:
            self.stopping.ran(name)

    def begin_traced(self) -> None:
        """A forward of the whole model begins, inside a compiled graph."""
        self.leftovers.begin_traced(catches=self.stopping.active)
        self.stopping.begin(self.names)

    @eager
    def enter_whole(self) -> None:
        """Eager code calls the whole compiled model; what it leaves would be held beside what the last one left."""
        if self.leftovers.entered:
            self.refuse_another_thread()
        self._thread = get_ident()
        self.leftovers.enter()
        self.latest()
        self.records.clear()

    def note_inputs(self, given: Any) -> None:
        """What the model is given, where it is compiled as a whole."""

    def note_output(self, output: Any) -> None:
        """What the model returned."""

    @eager
    def exit_whole(self) -> None:
        """That call is over, also where it raised."""
        self.leftovers.exit()
        self.collect()

    @eager
    def enter_part(self, inputs: Any) -> None:
        """An eager forward calls a compiled part of the model."""
        self.collect()
        self.overwriting.lost(inputs)

    @eager
    def exit_part(self) -> None:
        """A compiled part of the model is over."""
        before = len(self.records.calls)
        self.collect()
        if self.stopping.active:
            for name, _, _ in self.records.calls[before:]:
                self.stopping.ran(name)

    def seen(self, names: Collection[str]) -> list[Any]:  # noqa: ARG002 - for reducers
        """Identity tokens that change whenever one of these layers runs."""
        return [self.records.calls[-1] if self.records.calls else None]

    @eager
    def collect(self) -> None:
        """Make records of what compiled graphs have captured since the last time."""
        whole, traced = self.leftovers.fetch(running=self.running)
        if whole:
            self.records.new_forward()
        for module, value, relaid in traced:
            if module in self._module_names:
                self.records.append(self._module_names[module], self.keeper.out_of_graph(value), relaid=relaid)
        for name, value, relaid in self.leftovers.fetch_strays(self.layers.items()):
            self.records.drop(name)
            self.records.append(name, self.keeper.out_of_graph(value), relaid=relaid)

    # Reading

    def settle(self) -> None:
        """What is still under way is done; for figures that wait."""

    def why(self, name: str) -> str:  # noqa: ARG002 - of some recorders
        """Why there is nothing of a layer."""
        return self.why_absent

    def not_called(self) -> list[str]:
        """Captured layers of which the latest forward recorded nothing, in model order."""
        ran = {record[0] for record in self.latest()}
        return [name for name in self.names if name not in ran]

    def in_use(self, uncalled: list[str]) -> set[str]:
        """Those of them whose weights another module computes with."""
        model = self.model()
        called = set(self.names).difference(uncalled)
        return in_use(model, called, uncalled) if model is not None and uncalled else set()

    def latest(self) -> list[Record]:
        """The records of the latest forward."""
        if not self.running and self.leftovers.some:
            self.collect()
        return self.records.latest(running=self.running)

    def read(self, records: list[Record], position: int) -> tuple[Any, bool]:
        """What a record holds, detached, and whether it is still what the layer returned."""
        self.keeper.wait()
        value, intact = self.records.read(records, position)
        if not intact:
            self.overwriting.changed(records[position][0])  # the next forward copies it in time
        return value, intact

    def close(self) -> None:
        """The block is over: let go of modules and of the autograd graph."""
        self.latest()
        self.open = False
        self.given = without_values(self.given)
        self.layers, self._module_names = {}, {}
        self.careful = EVERYTHING
        self.overwriting.close()
        self.records.close()
        self.records.let_go_of_graphs(self.read)
