"""What the captured calls returned, in order, and whether it still is that when it is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.model.values import map_tensors, tensors
from torch_featviz.torch_private import is_mapped, unmapped

from .eager import eager
from .inplace import Record, sharing_memory, versions_of

_RELAID = object()  # in the place of versions: a copy in the compiled graph's own layout
_CHANGED = object()  # and: not what the layer returned


class Records:
    """The calls of the latest forward, and those of the forwards before it that are to be kept.

    Args:
        names: of all modules of the model. A record may tell its module for a while, which is quicker to write down.
        keeps: forwards that are kept.
        detach: whether what is read is detached.
    """

    def __init__(self, names: dict[nn.Module, str], *, keeps: int, detach: bool) -> None:
        self.calls: list[Record] = []
        self.past: deque[list[Record]] = deque(maxlen=keeps - 1)
        self.keeps = keeps
        self.changes = 0  # grows when other calls take the place of these
        self._names = names
        self._detach = detach
        self._graphs = False  # whether any output may hold an autograd graph
        self._unnamed = False  # whether some records tell modules instead of names

    # Writing

    @eager
    def new_forward(self) -> None:
        """Calls of another forward follow."""
        self.changes += 1
        if self.keeps > 1 and self.calls:
            self._give_names()
            self.past.append(self.calls.copy())
        self.calls.clear()

    @eager
    def grad_mode(self) -> None:
        """Outputs that come now hold graphs where gradients are on."""
        self._graphs |= torch.is_grad_enabled()

    def may_tell_modules(self) -> None:
        """From now on calls may be appended that tell modules instead of names."""
        self._unnamed = True

    @eager
    def append(self, name: str, value: Any, *, relaid: bool = False) -> None:
        """One more call; `relaid` is a copy in another memory layout than its layer returned."""
        self.calls.append((name, value, _RELAID if relaid else versions_of(value)))

    @eager
    def place(self, position: int, name: str, value: Any, *, replaces: bool) -> None:
        """One more call, between the others."""
        self.calls[position : position + replaces] = [(name, value, versions_of(value))]
        self.changes += 1

    @eager
    def drop(self, name: str) -> None:
        """Forget the calls of one layer."""
        self.changes += 1
        self.grad_mode()
        if self._unnamed:
            self._give_names()
        self.calls[:] = [call for call in self.calls if call[0] != name]

    @eager
    def clear(self) -> None:
        """Let go of the latest forward before another one needs memory; not where forwards are kept."""
        if self.keeps == 1:
            self.calls.clear()

    @eager
    def copy_shared(self, held: Iterable[Tensor], copy: Callable[[Tensor], Tensor]) -> None:
        """Copy what lies in the memory of tensors that are going to be written to without anything telling."""
        for position in sharing_memory(self.calls, held):
            name, value, _ = self.calls[position]
            value = map_tensors(copy, value)
            self.calls[position] = (name, value, versions_of(value))

    # Reading

    def latest(self, *, running: bool) -> list[Record]:
        """The calls of the latest forward, by name; while it is running, more may come that tell modules."""
        if self._unnamed:
            self._give_names()
            self._unnamed = running
        return self.calls

    def read(self, calls: list[Record], position: int) -> tuple[Any, bool]:
        """What a call returned, detached, and whether it still is that."""
        name, value, versions = calls[position]
        if versions is _RELAID:
            value = value.contiguous()
            versions = versions_of(value)
            calls[position] = (name, value, versions)
        intact = versions_of(value) in (versions, [])
        if self._detach and any(tensor.requires_grad or is_mapped(tensor) for tensor in tensors(value)):
            value = map_tensors(_detached, value)
            calls[position] = (name, value, versions_of(value) if intact else _CHANGED)
        return value, intact

    def let_go_of_graphs(self, read: Callable[[list[Record], int], object]) -> None:
        """Read all that may hold an autograd graph, with `read`."""
        for calls in (*self.past, self.calls) if self._graphs else ():
            for position, (_, value, versions) in enumerate(calls):
                if versions is not _RELAID and (type(value) is not Tensor or value.requires_grad):
                    read(calls, position)

    def close(self) -> None:
        """No module is told any more."""
        self._names = {}

    def _give_names(self) -> None:
        """To calls that tell modules; those of copies of layers are dropped."""
        names = self._names
        try:
            named = [(names[module], value, versions) for module, value, versions in self.calls]
        except KeyError:
            mixed: list[Any] = [(c if isinstance(c[0], str) else (names.get(c[0]), c[1], c[2])) for c in self.calls]
            named = [call for call in mixed if call[0] is not None]
        self.calls[:] = named


def _detached(tensor: Tensor) -> Tensor:
    return (unmapped(tensor) if is_mapped(tensor) else tensor).detach()
