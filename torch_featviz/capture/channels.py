"""Which axis of a layer's output its channels are on: followed through one forward, and known from then on."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from torch_featviz.model.kinds import channels_last_of
from torch_featviz.model.layout import LayoutTracer
from torch_featviz.model.values import tensors

from .eager import NOTHING, eager

_Key = tuple[str, int]  # a layer, and how many axes its output has
_known: WeakKeyDictionary[nn.Module, dict[_Key, int]] = WeakKeyDictionary()
_followed: WeakKeyDictionary[nn.Module, set[frozenset[str]]] = WeakKeyDictionary()


class ChannelAxes:
    """The axes of channels of one model's layers.

    In an eager forward they are known from where the images went. Where no forward could be followed (in a compiled
    model, in inference mode) they are what the layers' kinds say.

    Args:
        model: whose layers these are.
        needed: whether anybody asks for them.
    """

    def __init__(self, model: nn.Module, *, needed: bool) -> None:
        self._model = ref(model)
        self._needed = needed
        self._last: dict[str, bool] | None = None  # by kind
        self._tracer: LayoutTracer | None = None
        self._asked: frozenset[str] = frozenset()

    @eager
    def begin(self, names: Collection[str], given: Any) -> AbstractContextManager[Any]:
        """A forward of the whole model begins, with these arguments; what is returned is to be on for its length."""
        model, self._tracer = self._model(), None
        if not self._needed or model is None or torch.is_inference_mode_enabled():
            return NOTHING
        if len(self._asked) != len(names):  # they only grow
            self._asked = frozenset(names)
        if self._asked in _followed.get(model, ()):
            return NOTHING
        self._tracer = LayoutTracer(*tensors(given))
        return self._tracer

    @eager
    def finish(self) -> None:
        """The forward came to its end, and need not be followed again."""
        model = self._model()
        if self._tracer is not None and model is not None:
            _followed.setdefault(model, set()).add(self._asked)

    @eager
    def leave(self) -> None:
        """The forward is over, also where it raised."""
        self._tracer = None

    @eager
    def note(self, name: str, output: Tensor) -> None:
        """Layer `name` returned this."""
        model = self._model()
        if self._tracer is not None and model is not None:
            layout = self._tracer.layout(output)
            if layout is not None and layout.channels is not None:
                _known.setdefault(model, {})[name, output.dim()] = layout.channels % output.dim()

    def of(self, name: str, axes: int) -> int:
        """The axis of channels in an output of layer `name` with so many axes."""
        model = self._model()
        known = None if model is None else _known.get(model, {}).get((name, axes))
        if known is not None:
            return known
        if self._last is None:
            self._last = {} if model is None or not self._needed else channels_last_of(model)
        return axes - 1 if axes > 2 and self._last.get(name, False) else 1

    def by_number(self, name: str) -> tuple[int, ...]:
        """`of` by how many axes an output has, up to 5; for compiled graphs."""
        return (0, 0, 1, *(self.of(name, axes) if self._needed else 1 for axes in (3, 4, 5)))
