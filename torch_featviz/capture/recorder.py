"""Where the taps put what they see: one list of records, each safe from what the network does afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from . import inplace
from .values import map_tensors, tensors

Record: TypeAlias = tuple[str, Any, Any]  # layer, what it returned, the version of each tensor in that


class _Everything:
    def __contains__(self, name: object) -> bool:
        return True


_EVERYTHING = _Everything()
_NOTHING = nullcontext()


class Recorder:
    """Keeps each output, by reference where it can, as a copy where the network is known to overwrite it.

    `records` are the calls of the latest forward, in order. `careful` are the layers whose outputs must come through
    `record()`; a tap may append those of the others by itself. Outside a forward of the whole model (when only a part
    of it is called) every output is copied, and each layer keeps its latest call.
    """

    __slots__ = (
        "_copied",
        "_detach",
        "_key",
        "_learnt",
        "_setting",
        "_watch",
        "careful",
        "forwards",
        "model",
        "names",
        "open",
        "records",
        "running",
    )

    def __init__(self, model: nn.Module, names: list[str], setting: Hashable, *, detach: bool) -> None:
        self.records: list[Record] = []
        self.names = names
        self.model = weakref.ref(model)
        self.forwards = 0
        self.running = False
        self.careful: frozenset[str] | _Everything = _EVERYTHING
        self.open = True
        self._detach = detach
        self._setting = hash((tuple(names), setting))
        self._key: Hashable = None
        self._copied: frozenset[str] = frozenset()
        self._learnt: dict[Hashable, frozenset[str] | None] = {}  # what `inplace` said so far
        self._watch: _Watch | None = None

    def begin(self) -> AbstractContextManager[Any]:
        """A forward of the whole model begins; the caller enters what is returned for its length."""
        self.running = True
        self.forwards += 1
        self.records.clear()
        model = self._live_model()
        inference = torch.is_inference_mode_enabled()
        key = self._key = (self._setting, model.training, torch.is_grad_enabled())
        copied = None if inference else self._learnt.get(key)
        if copied is None and not inference:
            copied = self._learnt[key] = inplace.overwritten_layers(model, key)
        if copied is None:  # in inference mode always: tensors have no version there, so nothing learnt can be checked
            self._watch = _Watch(self.records, copies=self._detach)
            return inplace.BeforeWrites(self._watch.before_write)
        self._copied = self.careful = copied
        return _NOTHING

    def end(self, seen: Any) -> None:
        """The forward is about to return; `seen` is all that its caller holds: arguments and result."""
        if self._watch is None:
            return
        if torch.is_inference_mode_enabled():  # the caller may change what it holds, and no version would tell
            for tensor in tensors(seen):
                self._watch.before_write(tensor)
            return
        self._copied = frozenset(self._watch.overwritten)
        inplace.learn(self._live_model(), self._key, self._copied)

    def leave(self) -> None:
        """The forward is over, also where it raised."""
        self.running = False
        self.careful = _EVERYTHING
        self._watch = None

    def record(self, name: str, output: Any) -> None:
        """Keep `output` as the next call of layer `name`."""
        if not self.open or (not self.running and torch._C._current_graph_task_id() != -1):
            return  # closed, or a checkpointed forward that the backward runs again
        if self._watch is not None:
            self._watch.holds(output, len(self.records))
            copy = not self._detach  # now: one made below autograd, just before a write, is not in the graph
        else:
            copy = not self.running or name in self._copied
        if not self.running:  # nothing says where a call of a mere part belongs: the layer's latest one is kept
            self.forwards += 1
            self.records[:] = [record for record in self.records if record[0] != name]
        if not copy:
            value = output if isinstance(output, Tensor) else map_tensors(_same, output)
        else:
            value = map_tensors(self._copy, output)
        self.records.append((name, value, versions_of(value)))

    def _copy(self, tensor: Tensor) -> Tensor:
        return (tensor.detach() if self._detach and tensor.requires_grad else tensor).clone()

    def read(self, position: int) -> tuple[Any, bool]:
        """What record `position` holds, detached, and whether it is still what the layer returned."""
        name, value, versions = self.records[position]
        if self._detach and any(tensor.requires_grad for tensor in tensors(value)):
            value = map_tensors(Tensor.detach, value)
            self.records[position] = (name, value, versions)
        now = versions_of(value)
        intact = now in (versions, [])
        if not intact and (model := self.model()) is not None:
            inplace.learn(model, self._key, self._copied | {name})  # the next forward copies it in time
            self._learnt.clear()
        return value, intact

    def close(self) -> None:
        """The block is over: let go of the autograd graph."""
        self.open = False
        for position, (_, value, _) in enumerate(self.records):
            if type(value) is not Tensor or value.requires_grad:
                self.read(position)

    def _live_model(self) -> nn.Module:
        model = self.model()
        assert model is not None, "a model in whose forward we are is alive"
        return model


class _Watch:
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
            self._holders.setdefault(inplace.memory_of(tensor), []).append(position)

    def before_write(self, tensor: Tensor) -> None:
        for position in self._holders.pop(inplace.memory_of(tensor), ()):
            name, value, _ = self._records[position]
            self.overwritten.add(name)
            if self._copies:
                value = map_tensors(Tensor.clone, value)
                self._records[position] = (name, value, versions_of(value))


def _same(tensor: Tensor) -> Tensor:
    return tensor


def versions_of(value: Any) -> Any:
    """How often each tensor in `value` was written to so far; a plain int for a plain tensor."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    return [None if tensor.is_inference() else tensor._version for tensor in tensors(value)]
