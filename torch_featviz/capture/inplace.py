"""Which captured outputs the network overwrites in place, learnt from one watched forward.

A captured output is the network's own tensor, so `nn.ReLU(inplace=True)` or `out += identity` after it would change
what was captured. The first forward runs under a dispatch mode that sees every operator's schema: just before an
operator writes to memory that a record holds, the record is given a copy of its own. The names of such layers are
kept, per model and circumstances, and from then on only those outputs are copied, as they are made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from operator import itemgetter
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from torch_featviz.model.use import Reading, Reads
from torch_featviz.model.values import map_tensors, tensors
from torch_featviz.torch_private import is_higher_order, schema_of, storage_id, unmapped

from .asked import Scope
from .eager import eager

Record: TypeAlias = tuple[Any, Any, Any]  # layer, what it returned, the version of each tensor in that
_value = itemgetter(1)

_learnt: WeakKeyDictionary[nn.Module, dict[Hashable, frozenset[str]]] = WeakKeyDictionary()
_INTERLEAVED = "#"  # among the layers that are overwritten, and no layer's name: see `Overwriting.interleaved`


class Everything:
    """Holds whatever is asked for."""

    def __contains__(self, name: object) -> bool:
        return True


EVERYTHING = Everything()


class Overwriting:
    """What one block knows of the outputs that the model overwrites.

    Args:
        scope: of what these are the forwards.
        setting: of the capture; what was learnt holds for one setting.
        detach: whether an output about to be overwritten is copied even in a forward that is watched.
    """

    def __init__(self, scope: Scope, setting: Hashable, *, detach: bool) -> None:
        self._model = ref(scope.model)
        self._names = scope.names
        self._setting = setting
        self._detach = detach
        self._key: Hashable = None  # what was learnt holds for it
        self._known: dict[Hashable, frozenset[str] | None] = {}  # what `_learnt` said so far
        self._watch: Watch | None = None
        self._interleaved = False
        self._modules: dict[frozenset[str], frozenset[nn.Module]] = {}
        self.copied: frozenset[str] = frozenset()  # layers whose outputs are copied as they are made
        self.known: frozenset[str] | None = None  # the same, where an eager forward may keep the others by itself

    @eager
    def begin(self, records: list[Record], names: Iterable[str], *, always_watch: bool) -> BeforeWrites | None:
        """A forward begins; what is returned is to be on for its length.

        In inference mode nothing can be learnt, since tensors have no version there, and all outputs of layers `names`
        are copied.
        """
        model = self._model()
        assert model is not None, "a model in whose forward we are is alive"
        self.known = None
        inference = torch.is_inference_mode_enabled()  # see `OutsideInferenceMode` for when
        key = self._key = (self._setting, model.training, torch.is_grad_enabled(), inference)
        if inference:
            self.copied = frozenset(names)
            return None
        copied = None if always_watch else self._known.get(key)
        if copied is None and not always_watch:
            copied = self._known[key] = _learnt.get(model, {}).get(key)
        if copied is None:
            self._watch = Watch(records, copies=self._detach)
            return BeforeWrites(self._watch.before_write, Reads(model, self._names))
        self.copied = copied
        self.known = None if _INTERLEAVED in copied else copied
        return None

    @eager
    def end(self) -> None:
        """The forward is about to return."""
        if self._watch is not None:
            self._learn(self._watch.overwritten | ({_INTERLEAVED} if self._interleaved else set()))

    @eager
    def leave(self) -> None:
        """The forward is over, also where it raised."""
        self._watch = None

    @eager
    def modules(self, layers: dict[str, nn.Module]) -> frozenset[nn.Module]:
        """Those of `layers` that are `known`."""
        assert self.known is not None, "asked where some are"
        if self.known not in self._modules:
            self._modules[self.known] = frozenset([layers[name] for name in self.known])
        return self._modules[self.known]

    @eager
    def copies(self, name: str) -> bool:
        """Whether an output of layer `name`, in a forward of the whole model, is copied as it is made."""
        return name in self.copied if self._watch is None else not self._detach

    @eager
    def interleaved(self) -> None:
        """Records and what compiled code left behind come by turns: then the order counts."""
        self._interleaved = True

    @eager
    def holds(self, output: Any, position: int) -> None:
        """The record at `position` holds the memory of `output`."""
        if self._watch is not None:
            self._watch.holds(output, position)

    @property
    def watching(self) -> bool:
        """Whether this forward is watched."""
        return self._watch is not None

    @eager
    def lost(self, inputs: Any) -> None:
        """What compiled code is given may be overwritten, and nobody sees it."""
        if self._watch is not None:
            for tensor in tensors(inputs):
                self._watch.before_write(tensor)

    def changed(self, name: str) -> None:
        """An output of layer `name` was overwritten although nothing was known of it: the next one is copied."""
        if self._model() is not None:
            self._learn(self.copied | {name})
            self._known.clear()

    def close(self) -> None:
        """Let go of modules."""
        self._modules, self._names = {}, {}

    def _learn(self, names: Iterable[str]) -> None:
        model = self._model()
        assert model is not None, "a model in whose forward we are is alive"
        self.copied = frozenset(names)
        _learnt.setdefault(model, {})[self._key] = self.copied


class BeforeWrites(Reading):
    """Calls `notice(tensor)` just before any operator writes to `tensor`, and tells `reads` of all that it is given."""

    def __init__(self, notice: Callable[[Tensor], None], reads: Reads) -> None:
        super().__init__(reads)
        self.notice = notice

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not is_higher_order(func) and (schema := schema_of(func)).is_mutable:
            for position, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written = args[position] if position < len(args) else kwargs.get(argument.name)
                    for tensor in tensors(written):
                        self.notice(tensor)
        self.reads.see((*args, *kwargs.values()))
        return func(*args, **kwargs)


class Watch:
    """The first forward under given circumstances: notes whose memory is written after it was recorded.

    With `copies`, such a record is given a copy of its own just before.
    """

    def __init__(self, records: list[Record], *, copies: bool) -> None:
        self._copies = copies
        self.overwritten: set[str] = set()
        self._records = records
        self._holders: dict[int | None, list[int]] = {}  # memory -> positions of the records that hold it
        self._alive: list[Any] = []  # a freed tensor's memory would be given to another

    def holds(self, output: Any, position: int) -> None:
        self._alive.append(output)
        for tensor in tensors(output):
            self._holders.setdefault(memory_of(tensor), []).append(position)

    def before_write(self, tensor: Tensor) -> None:
        for position in self._holders.pop(memory_of(tensor), ()):
            name, value, _ = self._records[position]
            self.overwritten.add(name)
            if self._copies:
                value = map_tensors(_unmapped_copy, value)
                self._records[position] = (name, value, versions_of(value))


def memory_of(tensor: Tensor) -> int | None:
    """An identifier of the memory behind `tensor`, shared by all its views; None where there is none."""
    try:
        tensor = unmapped(tensor)
        return storage_id(tensor)
    except (
        NotImplementedError,
        RuntimeError,
    ):  # sparse, opaque and wrapper tensors have no storage of their own
        return None


@eager
def sharing_memory(records: list[Record], held: Iterable[Tensor]) -> list[int]:
    """The positions of the records that hold memory of the tensors `held`."""
    memories = [tensor.untyped_storage() for tensor in held]
    ranges = [range(start := memory.data_ptr(), start + memory.nbytes()) for memory in memories]
    if not ranges:
        return []
    first, end = min(memory.start for memory in ranges), max(memory.stop for memory in ranges)
    try:  # mostly outputs are tensors, and none of them lies there
        if not [at for at in map(Tensor.data_ptr, map(_value, records)) if first <= at < end]:
            return []
    except (TypeError, RuntimeError):
        pass
    return [i for i, (_, value, _) in enumerate(records) if any(_starts_in(ranges, part) for part in tensors(value))]


def _starts_in(ranges: list[range], tensor: Tensor) -> bool:
    try:
        address = unmapped(tensor).data_ptr()
    except RuntimeError:  # a sparse tensor, say, which has no storage of its own
        return False
    return any(address in memory for memory in ranges)


def versions_of(value: Any) -> Any:
    """How often each tensor in `value` was written to so far; a plain int for a plain tensor."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    return [None if tensor.is_inference() else tensor._version for tensor in tensors(value)]


def _unmapped_copy(tensor: Tensor) -> Tensor:
    """Where an operator is about to write, functorch has already taken its wrappers off."""
    return unmapped(tensor).clone()
