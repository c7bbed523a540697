"""What a user asks for: layers, and functional calls, of which it is known once they run what they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from torch_featviz.errors import LayerError
from torch_featviz.model.layers import Layer, Layers, canonical, choose, listed


class Scope(NamedTuple):
    """What of which model is captured."""

    model: nn.Module
    layers: dict[str, nn.Module]
    names: dict[nn.Module, str]  # of all modules
    channels_last: bool  # the memory layout of maps in compiled graphs


@dataclass(frozen=True)
class Asked:
    """The calls asked for: by name, and by globs, of which `alone` are those that no layer matched."""

    names: tuple[str, ...] = ()
    globs: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()

    def includes(self, name: str) -> bool:
        """Whether the call of that name is asked for."""
        return name in self.names or any(fnmatchcase(name, glob) for glob in self.globs)

    def patterns_of(self, name: str) -> list[str]:
        """Those of `alone` that match `name`."""
        return [glob for glob in self.alone if fnmatchcase(name, glob)]


class FunctionCalls:
    """The functional calls of the forwards of one block."""

    def __init__(self) -> None:
        self.captured = False  # whether any is asked for
        self.only_eager = False  # whether those in compiled code may be missed
        self.seen: dict[str, None] = {}  # in the latest forward
        self.unmatched: list[str] = []  # globs for calls that no call has matched

    def ask(self, globs: Iterable[str]) -> None:
        """Calls are captured; `globs` are to match some."""
        self.captured = True
        self.unmatched = list(globs)

    def match(self, globs: Iterable[str]) -> None:
        """A call matches these."""
        self.unmatched = [glob for glob in self.unmatched if glob not in globs]

    def new_forward(self) -> None:
        """Calls of another forward follow."""
        self.seen = {}

    def see(self, name: str) -> None:
        """There is a call of that name."""
        self.seen[name] = None


def choose_with_calls(
    model: nn.Module, names: dict[nn.Module, str], leaves: dict[str, nn.Module], layers: Layers
) -> tuple[dict[str, nn.Module], Asked]:
    """`choose`, where an entry may also stand for functional calls.

    Raises:
        LayerError, OptionError, DtypeError: as of `resolve`; a name `<layer>.<op>` passes where there is that layer.
    """
    entries = listed(layers)
    if not entries:
        return choose(model, names, leaves, layers), Asked(globs=("*",))
    chosen: set[str] = set()
    asked, globs, alone = [], [], []
    for entry in entries:
        found = _layers_of(model, names, entry)
        chosen.update(found)
        if not isinstance(entry, str):
            continue
        if _is_glob(entry):
            globs.append(entry)
            alone += [] if found else [entry]
        elif not found:
            asked.append(call_name(model, entry))
    modules = {name: module for module, name in names.items() if name in chosen}
    return modules, Asked(tuple(dict.fromkeys(asked)), tuple(globs), tuple(alone))


def call_name(model: nn.Module, name: str) -> str:
    """A call's name with that of its layer as `names_of` spells it."""
    layer, _, op = name.rpartition(".")
    layer = canonical(model, layer)
    return f"{layer}.{op}" if layer else op


def _layers_of(model: nn.Module, names: dict[nn.Module, str], entry: Layer) -> Iterable[str]:
    try:
        return choose(model, names, {}, entry)
    except LayerError:
        if not isinstance(entry, str):
            raise
        layer, _, op = entry.rpartition(".")
        known = names.values()
        if _is_glob(entry):
            possible = any(fnmatchcase(name, layer) for name in known)
        else:
            possible = op.removesuffix("()").isidentifier() and canonical(model, layer) in known
        if not possible:
            raise
        return []


def _is_glob(entry: str) -> bool:
    return any(mark in entry for mark in "*?[")
