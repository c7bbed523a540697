"""What compiled graphs have captured, until it is fetched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from torch import nn

from .eager import eager

Traced: TypeAlias = tuple[nn.Module, Any, bool]  # a layer, what it returned, and whether in another memory layout
STRAY = "_featviz_stray"  # in the __dict__ of a layer: what a graph left there


class Leftovers:
    """Where compiled graphs leave what they captured: in a list, or with the layer where nobody has begun a forward.

    Dynamo traces `begin_traced`, `end_traced` and `leave`, and guards on what they look at.
    """

    def __init__(self) -> None:
        self.pending: list[Traced] | None = None  # None where nobody has begun a forward
        self.entered = False  # by a call that eager code makes of the whole compiled model
        self.catches = False  # whether the compiled code that runs would catch `Stopped`
        self._whole = False  # whether `pending` is of a forward of the whole model
        self._strayed = False

    # In compiled graphs

    def begin_traced(self, *, catches: bool) -> None:
        """A compiled forward of the whole model begins."""
        self.pending = []
        if catches:
            self.catches = True

    def end_traced(self) -> None:
        """It is over."""
        if self.catches:
            self.catches = False
        self._whole = True

    def leave(self, module: nn.Module, value: Any, relaid: bool) -> bool:
        """Leave what `module` returned; False where it went astray, with the layer."""
        if self.pending is None:
            setattr(module, STRAY, (value, relaid))
            self._strayed = True
            return False
        self.pending.append((module, value, relaid))
        return True

    # In eager mode

    @eager
    def begin(self) -> None:
        """An eager forward of the whole model begins; compiled parts of it leave what they capture here.

        It takes the place of a compiled forward that nobody has fetched.
        """
        self.pending, self._whole = [], False

    @eager
    def end(self) -> None:
        """It is over."""
        self.pending = None

    @eager
    def enter(self) -> None:
        """Eager code calls the whole compiled model."""
        self.entered = True

    @eager
    def exit(self) -> None:
        """That call is over."""
        self.entered = False

    @eager
    def stopped(self) -> None:
        """`Stopped` came out of the compiled forward, which graph breaks kept from catching it."""
        self._whole, self.catches = True, False

    @property
    def amid(self) -> bool:
        """Whether something was left by code that an eager forward has called."""
        return bool(self.pending) or self._strayed

    @property
    def some(self) -> bool:
        """Whether there is anything to fetch."""
        return bool(self.pending) or self._whole or self._strayed

    @eager
    def fetch(self, *, running: bool) -> tuple[bool, list[Traced]]:
        """Whether a compiled forward of the whole model is over, and what was left in the list."""
        fetched, self.pending = self.pending, [] if running else None
        whole, self._whole = self._whole, False
        return whole, fetched or []

    @eager
    def fetch_strays(self, layers: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, Any, bool]]:
        """What was left with the layers, by name."""
        if self._strayed:
            self._strayed = False
            for name, module in layers:
                if STRAY in module.__dict__:
                    yield (name, *module.__dict__.pop(STRAY))
