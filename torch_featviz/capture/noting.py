"""Outputs as they come, each with its autograd graph, to a function that looks at them; nothing is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from .asked import Scope
from .eager import NOTHING, eager
from .recorder import Recorder


class Note:
    """`Capture(..., into=Note(look))` calls `look(name, output)` at each call of each layer, in an eager forward.

    The output is the network's own, before anything goes on in place; `name` is the layer's, whichever call it is.
    """

    def __init__(self, look: Callable[[str, Any], None]) -> None:
        self.look = look
        self.capture: object = None  # whose block is open


class Noting(Recorder):
    """Gives each output to a function."""

    by_version = False

    def __init__(self, scope: Scope, setting: Hashable, note: Note) -> None:
        super().__init__(scope, setting)
        self.by_reference = False
        self._note = note

    @eager
    def begin(self, given: Any) -> AbstractContextManager[Any]:  # noqa: ARG002 - nothing is kept
        self.start()
        return NOTHING

    @eager
    def record(self, name: str, output: Any) -> None:
        if self.open and self.running:
            self._note.look(name, output)


def numbered(names: Sequence[str]) -> list[str]:
    """Names of calls, in order of execution: of a layer with several calls each with its number.

    Example:
        >>> numbered(["conv", "relu", "relu"])
        ['conv', 'relu#1', 'relu#2']
    """
    if len(set(names)) == len(names):
        return list(names)
    total, seen, keys = Counter(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        keys.append(name if total[name] == 1 else f"{name}#{seen[name]}")
    return keys
