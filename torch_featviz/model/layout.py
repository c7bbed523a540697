"""Where images, channels and places lie in a tensor: known from where the image went, never guessed from sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.gate import check_fields, gated

from .axes import CHANNELS, IMAGES, UNKNOWN, Axes, Axis, Factor, start
from .follow import Call, Follower
from .operators import axes_of_outputs
from .values import tensors


@dataclass(frozen=True)
class Layout:
    """The axes of a layer's output: which are images, channels, places, tokens and heads.

    A map has one axis for the image's rows and one for its columns (`places`). A sequence of tokens has both on one
    axis (`tokens`), place after place, behind `prefix` tokens without a place, such as a class token.

    Args:
        grid: number of places along each axis of the image, `(rows, columns)`; empty if there are none.
        prefix: number of tokens before those with a place.
        suffix: number of tokens behind them.
        images: the axis of images; None if there is none.
        channels: the axis of channels; None if there is none.
        tokens: the axis of tokens; None if there is none.
        places: the axes of a map, in the order rows, columns of the image.
        heads: the axis of attention heads; None if there is none.
    Raises:
        OptionError: a size below 1, or a negative number of tokens.
    Example:
        >>> Layout(grid=(2, 3), prefix=1).maps(torch.arange(7.0).reshape(1, 7, 1))
        tensor([[[[1., 2., 3.],
                  [4., 5., 6.]]]])
    """

    grid: tuple[int, ...] = ()
    prefix: int = 0
    suffix: int = 0
    images: int | None = 0
    channels: int | None = -1
    tokens: int | None = 1
    places: tuple[int, ...] = ()
    heads: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if any(size < 1 for size in self.grid) or self.prefix < 0 or self.suffix < 0:
            raise OptionError(f"grid sizes must be at least 1, prefix and suffix at least 0; got {self}.")

    @property
    def known(self) -> bool:
        """Whether anything besides the axis of images is known."""
        return bool(self.grid) or self.channels is not None

    @property
    def is_map(self) -> bool:
        """Whether there is more than one place, and the places are known."""
        return prod(self.grid) > 1

    @gated
    def maps(self, values: Tensor) -> Tensor:
        """Rearrange `values` into maps `b k h w` (or `b k l`, ...), without the tokens that have no place.

        Raises:
            ShapeError: they do not fit this layout, or it has no places.
        """
        if not self.grid:
            raise ShapeError(
                f"values of shape {tuple(values.shape)} have no places; pass layout=Layout(grid=(rows, columns))."
            )
        if self.images is None:
            raise ShapeError(
                f"values of shape {tuple(values.shape)} have no batch axis; pass a layout with images=AXIS."
            )
        axes = [axis for axis in (self.images, self.channels, *(self.places or (self.tokens,))) if axis is not None]
        ndim = values.dim()
        if {axis % ndim for axis in axes if -ndim <= axis < ndim} != set(range(ndim)) or len(axes) != ndim:
            raise ShapeError(
                f"{self} does not fit values of shape {tuple(values.shape)}; pass a Layout with these axes."
            )
        values = values.permute(axes)
        if not self.places:
            count = values.shape[2]
            if count != self.prefix + prod(self.grid) + self.suffix:
                raise ShapeError(
                    f"{count} tokens are not {self.prefix} + {' × '.join(map(str, self.grid))} + {self.suffix}; "
                    "pass layout=Layout(grid=(rows, columns), prefix=...)."
                )
            values = values[:, :, self.prefix : count - self.suffix]
        elif values.shape[2:] != self.grid:
            raise ShapeError(
                f"{self} does not fit values of shape {tuple(values.shape)}; pass a Layout with these axes."
            )
        return values.reshape(*values.shape[:2], *self.grid)

    @gated
    def put_back(self, maps: Tensor, values: Tensor) -> Tensor:
        """`values` of tokens with these maps at their places: what `maps` undoes.

        Raises:
            ShapeError: this is no layout of tokens, or the maps are not those of `values`.
        Example:
            >>> layout, values = Layout(grid=(2, 3), prefix=1), torch.arange(7.0).reshape(1, 7, 1)
            >>> torch.equal(layout.put_back(layout.maps(values), values), values)
            True
        """
        if self.images is None or self.channels is None or self.tokens is None:
            raise ShapeError(f"only a layout with images, channels and tokens puts maps back, this is {self}.")
        if self.maps(values).shape != maps.shape:
            expected = tuple(self.maps(values).shape)
            raise ShapeError(f"maps must be of shape {expected}, as of these values, got {tuple(maps.shape)}.")
        ndim, tokens = values.dim(), self.tokens % values.dim()
        axes = [self.images % ndim, self.channels % ndim, tokens]
        inside = maps.flatten(2).permute([axes.index(axis) for axis in range(ndim)])
        before = values.narrow(tokens, 0, self.prefix)
        after = values.narrow(tokens, values.shape[tokens] - self.suffix, self.suffix)
        return torch.cat([before, inside, after], dim=tokens)


def layout_of(axes: Axes) -> Layout:
    """The layout of a tensor with these axes."""
    kinds = [axis.kind for axis in axes]
    images = kinds.index(IMAGES) if IMAGES in kinds else None
    made = {i: factor for i, axis in enumerate(axes) if (factor := _channels(axis)) is not None}
    newest = max((factor.source for factor in made.values()), default=0)
    digits = sorted((factor.inner, i) for i, factor in made.items() if factor.source == newest)
    channels = digits[0][1] if digits else None
    heads = digits[1][1] if len(digits) == 2 else None
    ones = [i for i, axis in enumerate(axes) if axis.size == 1 and axis.kind == UNKNOWN]
    if images is None and ones and ones[0] == 0:  # one image, or
        images = ones.pop(0)
    if channels is None and ones:  # one channel, after a view that left such axes out
        channels = ones[0]
    along = [_places(axis) for axis in axes]
    flat = [i for i, axis in enumerate(axes) if len(along[i]) > 1 or (along[i] and (axis.before or axis.after))]
    single = {along[i][0]: i for i in range(len(axes)) if len(along[i]) == 1 and i not in flat}
    lie = {kind for i in (*flat, *single.values()) for kind in along[i]}
    twice = any(_holds(axes[i], lie) for i in range(len(axes)) if i not in (*flat, *single.values(), channels))
    if twice:
        return Layout((), 0, 0, images, channels, None, (), heads)
    if len(flat) == 1 and not single:
        axis = axes[flat[0]]
        grid = tuple(factor.size for factor in axis.factors)
        return Layout(grid, axis.before, axis.after, images, channels, flat[0], (), heads)
    if not flat and single:
        order = [single[k] for k in sorted(single)]
        return Layout(tuple(axes[i].size for i in order), 0, 0, images, channels, None, tuple(order), heads)
    return Layout((), 0, 0, images, channels, None, (), heads)


def _channels(axis: Axis) -> Factor | None:
    """What of an axis is channels; beside them may be digits of places, as where patches of a map are merged."""
    own = [factor for factor in axis.factors if factor.kind == CHANNELS]
    rest = [factor for factor in axis.factors if factor.kind != CHANNELS]
    merged = all(isinstance(factor.kind, int) and not factor.outermost for factor in rest)
    return own[-1] if own and merged and not (rest and len(own) > 1) else None


def _holds(axis: Axis, kinds: set[int]) -> bool:
    """Whether some of the same axes of the image lie along this one, too."""
    return any(factor.kind in kinds for factor in axis.factors)


def _places(axis: Axis) -> tuple[int, ...]:
    """The axes of the image that lie along this one, whole or but for their last digits, and in their order."""
    kinds = tuple(factor.kind for factor in axis.factors)
    if (
        not axis.outermost
        or not all(factor.in_place for factor in axis.factors)
        or not all(isinstance(kind, int) for kind in kinds)
        or len(set(kinds)) < len(kinds)
    ):
        return ()
    return tuple(int(kind) for kind in kinds)


class LayoutTracer(Follower[Axes]):
    """While on, follows the axes of the images through all that is computed of them.

    Args:
        images: `b c ...`, what the model is about to be given; or several tensors.
    """

    def __init__(self, *images: Tensor) -> None:
        super().__init__()
        for tensor in images:
            self.put(tensor, start(tensor.shape))

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled parts of the model are not to run uncompiled because of this mode."""
        return True

    def follow(self, call: Call[Axes]) -> Sequence[Axes]:
        return axes_of_outputs(call)

    def lost_places(self, tensor: Tensor) -> bool:
        """Whether nothing is known of any axis behind the first two, rather than that it holds no places."""
        axes = self.known(tensor)
        return axes is None or all(axis.kind == UNKNOWN and len(axis.factors) < 2 for axis in axes[2:])

    def layout(self, value: Any) -> Layout | None:
        """Of the first tensor in what a layer returned; None where it has none, or does not depend on the images."""
        tensor = next(iter(tensors(value)), None)
        axes = None if tensor is None else self.known(tensor)
        return None if axes is None else layout_of(axes)
