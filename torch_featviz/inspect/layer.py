"""One layer of a walk: what it is, what it returned, and what that is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from torch_featviz.capture.reduce.moments import Moments, Whole
from torch_featviz.model.kinds import call_of
from torch_featviz.model.layout import Layout

from .receptive import ReceptiveField, interval


@dataclass(eq=False)
class Layer:
    """One call of a layer, or one functional call, and its output.

    Args:
        name: the name as `capture` gives it; empty for the model itself.
        order: number among all calls of the forward.
        module: the module; None for a functional call.
        values: the output, `b k h w`, `b t k` or `b k`, float32 on the CPU; None if it has no such form, or values were
            not requested.
        why_not: the reason why there are no values.
        shape: shape of the first output tensor, with channels on any axis; empty if there is none.
        channels_at: the channel axis of `shape`.
        layout: the axes (images, channels, places) of the output, if known.
        unplaced: its tokens without a place, in words; empty if there are none.
        constant: nothing of the images went into it.
        field: receptive field of its places; None if the output has no row per image.
        multiply_adds: of this call, for one image; None if unknown.
        parameters: number of parameters, counted at the layer's first call.
        fed_by: the layer whose filters made these channels, if it is another one.
        positive: no value can be below 0, because of this layer or the one it takes its channels from.
        kernels: the weight, `k c h w`.
        groups: groups of the convolution.
        kernel_notes: notes on the kernels, for instance an adapter that is added.
    """

    name: str
    module: nn.Module | None
    order: int = 0
    values: Tensor | None = None
    why_not: str = ""
    shape: tuple[int, ...] = ()
    channels_at: int = 1
    layout: Layout | None = None
    unplaced: str = ""
    constant: bool = False
    field: ReceptiveField | None = None
    multiply_adds: int | None = None
    parameters: int = 0
    fed_by: str | None = None
    positive: bool = False
    kernels: Tensor | None = None
    groups: int = 1
    kernel_notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What it is, in a word."""
        return type(self.module).__name__ if self.module is not None else call_of(self.name)

    @property
    def layer(self) -> str:
        """Its name without the number of the call."""
        return self.name.partition("#")[0]

    @property
    def call(self) -> int:
        """The number of the call, from 1."""
        return int(self.name.partition("#")[2] or 1)

    @property
    def channels(self) -> int:
        """How many there are; 0 where there are no values."""
        return 0 if self.values is None else self.values.shape[-1 if self.values.dim() == 3 else 1]

    @property
    def maps(self) -> Tensor | None:
        """Its values on the image's rows and columns, `b k h w`, tokens without a place left out; None where they do
        not lie there, or, of a functional call, where that is not known."""
        if self.values is None or self.layout is None:
            return None
        if self.layout.tokens is not None and len(self.layout.grid) == 2 and self.values.dim() == 3:
            return replace(self.layout, images=0, tokens=1, channels=2, heads=None).maps(self.values)
        known = len(self.layout.places) == 2 if self.layout.known else self.module is not None
        return self.values if self.values.dim() == 4 and known else None

    @cached_property
    def figures(self) -> list[Whole]:
        """Of its values, for each image."""
        return [] if self.values is None else [figures_of(image) for image in self.values]


def figures_of(values: Tensor) -> Whole:
    """Mean, spread, extremes and counts of a tensor of any shape; NaN and infinities are counted apart."""
    moments = Moments()
    moments.update(values.reshape(1, 1, -1))
    return moments.whole


def spans(seen: ReceptiveField) -> Iterator[list[tuple[int, int]]]:
    """For each axis of the input what is seen of it, in order of the coordinate of the map that moves along it.

    One interval where all places see the same.
    """
    if not seen.map_size:
        yield from ([(0, n)] for n in seen.input_size)
        return
    for table in seen._tables:
        intervals = [interval(row) for row in table]
        yield intervals[:1] if len(set(intervals)) == 1 else intervals
