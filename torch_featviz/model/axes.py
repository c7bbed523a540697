"""The axes of a tensor, followed through views: what each is made of, as in an einops pattern.

An axis of a tensor is a product of *factors*. A factor is a whole axis of the input (images, rows, columns), the
channels of some layer, or one digit of such an axis, after a view has split it. Views that put the digits together
again give the axis back, whatever happened in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import prod
from typing import TypeAlias

IMAGES = "images"
CHANNELS = "channels"
UNKNOWN = ""
_numbers = count()  # tells the channels of one layer from those of another

Kind: TypeAlias = str | int  # one of the above, or the number of a spatial axis of the image: 0 for rows


@dataclass(frozen=True)
class Factor:
    """A part of an axis: `index // inner % size` of an axis of `extent`.

    Args:
        kind: of which axis.
        size: how many values it takes.
        inner: the product of the digits to the right of it.
        extent: of the whole axis.
        source: which channels they are.
        shift: how far the axis was rolled.
        flipped: whether it runs the other way round.
        packed: the axis that it is as a whole, where entries before or after others were laid end to end with others.
    """

    kind: Kind
    size: int
    inner: int = 1
    extent: int = 0
    source: int = 0
    shift: int = 0
    flipped: bool = False
    packed: Axis | None = None

    @property
    def in_place(self) -> bool:
        """Whether each entry is where it was on the image."""
        return not (self.shift or self.flipped)

    @property
    def whole(self) -> bool:
        """Whether it is no mere digit."""
        return self.size == self.extent

    @property
    def outermost(self) -> bool:
        """Whether it is the whole axis, or its first digit: the same places, fewer of them."""
        return self.size * self.inner == self.extent

    def split(self, outer: int) -> tuple[Factor, Factor]:
        """Its first digit, which takes `outer` values, and the rest."""
        rest = self.size // outer
        return replace(self, size=outer, inner=self.inner * rest, packed=None), replace(self, size=rest, packed=None)

    def continues(self, other: Factor) -> bool:
        """Whether `other`, to the right of it, is its next digit."""
        same = replace(self, size=0, inner=0) == replace(other, size=0, inner=0)
        return same and self.kind != UNKNOWN and self.inner == other.inner * other.size


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor.

    Args:
        factors: from the outermost to the innermost; none for an axis of size 1 of which nothing is known.
        before: entries in front of those that the factors number, such as a class token.
        after: entries behind them.
    """

    factors: tuple[Factor, ...] = ()
    before: int = 0
    after: int = 0

    @property
    def size(self) -> int:
        return self.before + prod(factor.size for factor in self.factors) + self.after

    @property
    def kind(self) -> Kind:
        """What it is, if it is one thing."""
        kinds = {factor.kind for factor in self.factors}
        return kinds.pop() if len(kinds) == 1 else UNKNOWN

    @property
    def whole(self) -> bool:
        """Whether it is made of whole axes."""
        return bool(self.factors) and all(factor.whole for factor in self.factors)

    @property
    def outermost(self) -> bool:
        """Whether it is made of whole axes, or their first digits."""
        return bool(self.factors) and all(factor.outermost for factor in self.factors)

    def resized(self, size: int) -> Axis:
        """The same axis with another number of entries, as a pool or a slice leaves it."""
        if size == self.size:
            return self
        if len(self.factors) == 1 and not (self.before or self.after):
            (factor,) = self.factors
            if (factor.outermost and factor.in_place) or factor.kind == CHANNELS:
                return whole(factor.kind, size, factor.source)
        return unknown(size)

    def moved(self, *, by: int = 0, flipped: bool = False) -> Axis:
        """The same axis rolled by so many entries, or flipped; of channels that says nothing."""
        if self.kind == CHANNELS or self.size == 1:
            return self
        if len(self.factors) != 1 or self.before or self.after or not self.factors[0].outermost:
            return unknown(self.size)
        (factor,) = self.factors
        if flipped and factor.shift:
            return unknown(self.size)
        by = -by if factor.flipped else by
        return Axis((replace(factor, shift=(factor.shift + by) % factor.size, flipped=factor.flipped != flipped),))


Axes: TypeAlias = tuple[Axis, ...]


def whole(kind: Kind, size: int, source: int = 0) -> Axis:
    """An axis that is one whole thing."""
    return Axis((Factor(kind, size, 1, size, source),))


def channels(size: int) -> Axis:
    """The channels that a layer makes."""
    return whole(CHANNELS, size, next(_numbers))


def unknown(size: int) -> Axis:
    """An axis of which nothing is known."""
    return whole(UNKNOWN, size)


def start(shape: Sequence[int]) -> Axes:
    """Of images `b c ...`; of numbers `b n`, such as those of a text's tokens, the second axis is one of places."""
    if len(shape) < 3:
        kinds: tuple[Kind, ...] = (IMAGES, 0)
        return tuple(whole(kind, size) for kind, size in zip(kinds, shape, strict=False))
    return whole(IMAGES, shape[0]), channels(shape[1]), *(whole(i, size) for i, size in enumerate(shape[2:]))


def viewed(axes: Axes, shape: Sequence[int]) -> Axes:
    """The axes of the same entries, in the same order, under another shape."""
    if 0 in shape or prod(axis.size for axis in axes) != prod(shape):
        return tuple(map(unknown, shape))
    left = _alike([axis.size for axis in axes], shape)
    right = _alike([axis.size for axis in axes[left:]][::-1], shape[left:][::-1])
    inner, sizes = axes[left : len(axes) - right], shape[left : len(shape) - right]
    waiting = [part for axis in inner for part in _parts(axis)]
    return (*axes[:left], *(_taken(waiting, size) for size in sizes), *axes[len(axes) - right :])


def _alike(old: Sequence[int], new: Sequence[int]) -> int:
    """How many sizes are the same, from the first on."""
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


def _parts(axis: Axis) -> list[Factor | Axis]:
    """An axis with entries before or after stays in one piece."""
    return [axis] if axis.before or axis.after else [factor for factor in axis.factors if factor.size > 1]


def _taken(waiting: list[Factor | Axis], size: int) -> Axis:
    """An axis of this size, of what is first of those that wait."""
    taken: list[Factor] = []
    while size > 1:
        part = waiting.pop(0)
        if isinstance(part, Axis):
            if part.size == size and not taken:
                return part
            part = Factor(UNKNOWN, part.size, 1, part.size, packed=part)
        elif part.packed is not None and part.size == size and not taken:
            return part.packed
        if part.size > size:
            if part.size % size:
                part, size = _unequal(waiting, part, size)
            else:
                part, rest = part.split(size)
                waiting.insert(0, rest)
        elif size % part.size:
            part, size = _unequal(waiting, part, size)
        taken.append(part)
        size //= part.size
    return Axis(_merged(taken))


def _unequal(waiting: list[Factor | Axis], part: Factor, size: int) -> tuple[Factor, int]:
    """What is to be taken where no digit ends in the place asked for: from here on nothing is known."""
    left = part.size * prod(rest.size for rest in waiting)
    waiting[:] = [Factor(UNKNOWN, left // size, 1, left // size)] if left > size else []
    return Factor(UNKNOWN, size, 1, size), size


def _merged(factors: Sequence[Factor]) -> tuple[Factor, ...]:
    merged: list[Factor] = []
    for factor in factors:
        if merged and merged[-1].continues(factor):
            last = merged.pop()
            factor = replace(factor, size=last.size * factor.size)  # noqa: PLW2901
        merged.append(factor)
    return tuple(merged)


def joined(several: Sequence[Axes], shape: Sequence[int]) -> Axes:
    """Of tensors that are put together place by place, each broadcast to `shape`.

    Where they do not agree, places count more than channels, and both more than nothing.
    """
    result = []
    for at, size in enumerate(shape, -len(shape)):
        mine = [axes[at] for axes in several if len(axes) >= -at and axes[at].size == size]
        result.append(max(mine, key=_weight, default=unknown(size)))
    return tuple(result)


def _weight(axis: Axis) -> int:
    if not axis.factors or any(factor.kind == UNKNOWN for factor in axis.factors):
        return 0
    return 1 if axis.kind == CHANNELS else 2
