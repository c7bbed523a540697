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
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from torch_featviz.model.values import map_tensors, tensors
from torch_featviz.torch_private import TorchDispatchMode, schema_of, storage_id, unmapped

Record: TypeAlias = tuple[Any, Any, Any]  # layer, what it returned, the version of each tensor in that
_value = itemgetter(1)

_learnt: WeakKeyDictionary[nn.Module, dict[Hashable, frozenset[str]]] = WeakKeyDictionary()


def overwritten_layers(model: nn.Module, circumstances: Hashable) -> frozenset[str] | None:
    """The layers known to be overwritten in place under these circumstances; None when not yet watched."""
    return _learnt.get(model, {}).get(circumstances)


def learn(model: nn.Module, circumstances: Hashable, names: frozenset[str]) -> None:
    """Remember which layers a watched forward of `model` overwrote."""
    _learnt.setdefault(model, {})[circumstances] = names


class BeforeWrites(TorchDispatchMode):
    """Calls `notice(tensor)` just before any operator writes to `tensor`."""

    def __init__(self, notice: Callable[[Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notice = notice

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled parts of the model are not to run uncompiled because of this mode."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if (schema := schema_of(func)).is_mutable:
            for position, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written = args[position] if position < len(args) else kwargs.get(argument.name)
                    for tensor in tensors(written):
                        self.notice(tensor)
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
