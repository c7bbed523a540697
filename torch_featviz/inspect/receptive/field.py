"""`receptive_field()`: the part of the input that a unit of a layer can see, and how much of it the unit makes use of.

The boxes are those that the operators of one forward imply, place by place, with what is cut off at borders left out.
How much is used is the effective receptive field of Luo et al. 2016.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torch_featviz.displayed import Displayed
from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.gate import gate, gated
from torch_featviz.model.inputs import Inputs, check_numel, placement
from torch_featviz.model.kinds import CHANNELS_LAST
from torch_featviz.model.layers import layer_name, module_at
from torch_featviz.model.layout import Layout, LayoutTracer
from torch_featviz.model.run import one_call, run_looking_at
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated

from .reach import EXACT, WHOLE, Table, Trace, has_holes, widest
from .trace import Tracer

Kind = Literal["exact", "hull", "whole"]
Box = tuple[tuple[int, int], ...]
_SAMPLES = 8


@dataclass(frozen=True, eq=False, repr=False)
class ReceptiveField(Displayed):
    """Receptive field of a layer's units, for an input of one size.

    Places of units and `map_size` are in the order of the map's axes, as the layer returns them. `size`, `stride`,
    `start` and the intervals of a box are in the order of the input's axes, rows before columns. In a network that
    swaps axes the two orders differ; `along` gives the correspondence.

    Away from borders, with `p = place[along[i]]`, a unit sees `[start[i] + p * stride[i], start[i] + p * stride[i] +
    size[i])` of axis `i` of the input.

    Args:
        layer: name of the layer.
        input_size: size of the input, `h w` (or `l`, or `d h w`).
        map_size: size of the layer's map, without images and channels; empty if the layer returns no map.
        size: size of the field, in pixels; if units differ, the largest.
        stride: distance between the fields of neighbouring units; negative if the map is flipped, None if it varies, 0
            if all units see the same.
        start: first pixel of the first unit's field, negative in the padding; None if the stride varies.
        kind: `"exact"`: the whole box is seen. `"hull"`: the box is the smallest one around a field with holes
            (dilation) or of several boxes (branches). `"whole"`: the layer, or an earlier one, depends on the whole
            input (linear on a flattened map, global pooling, attention, squeeze and excitation), or the field is
            unknown, and the size an upper bound. Tokens see their patches until attention mixes them.
        along: for each axis of the input, the coordinate of a place that moves along it: `(0, 1)`, or `(1, 0)` if rows
            and columns are swapped; None if there is none.
        channels_at: the channel axis of the layer's output: 1 for `b c h w`, 3 for `b h w c`.
        tokens: how the layer's tokens became the map; None if it returns a map itself.
        effective: mean absolute gradient of the middle unit, `h w`, if requested.
    """

    layer: str
    input_size: tuple[int, ...]
    map_size: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int | None, ...]
    start: tuple[int | None, ...]
    kind: Kind
    along: tuple[int | None, ...] = ()
    channels_at: int = 1
    tokens: Layout | None = None
    effective: Tensor | None = field(default=None, repr=False)
    _tables: tuple[Table, ...] = field(default=(), repr=False)

    @gated
    def box(self, *place: int) -> Box:
        """Return the receptive field of one unit: a half-open interval per axis of the input, clipped to the input.

        A unit that sees only padding has empty intervals, `(0, 0)`.

        Args:
            place: position of the unit in the layer's map, in the order of the map's axes.
        Raises:
            ShapeError: the layer returns no map, or its map has another number of axes.
            OptionError: the map has no such place.
        Example:
            >>> class Turned(nn.Module):  # columns before rows
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.conv = nn.Conv2d(3, 4, 5)
            ...     def forward(self, x):
            ...         return self.conv(x.transpose(2, 3))
            >>> seen = receptive_field(Turned(), "conv", (20, 30))
            >>> seen.map_size, seen.along, seen.box(25, 0)
            ((26, 16), (1, 0), ((0, 5), (25, 30)))
        """
        if not self.map_size:
            raise ShapeError(f"layer {self.layer!r} returns no map, so its units have no place; choose a convolution.")
        if len(place) != len(self.map_size):
            raise ShapeError(
                f"a unit of {self.layer!r} has {len(self.map_size)} coordinates, "
                f"got {place}; pass one per axis of its map."
            )
        if not all(0 <= i < n for i, n in zip(place, self.map_size, strict=True)):
            last = tuple(n - 1 for n in self.map_size)
            raise OptionError(
                f"no unit {place} in {self.layer!r}: its map is {_by(self.map_size)}, the last unit is {last}."
            )
        places = [0 if i is None else place[i] for i in self.along]
        found = tuple(interval(table[i]) for table, i in zip(self._tables, places, strict=True))
        return found if all(low < high for low, high in found) else tuple((0, 0) for _ in found)


@gate("input_size")
def receptive_field(
    model: nn.Module,
    layer: str | nn.Module,
    input_size: Sequence[int] = (224, 224),
    *,
    channels: int | None = None,
    effective: bool = False,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
) -> ReceptiveField:
    """Compute the receptive field of a layer's units. A copy of the model runs once; the model is unchanged.

    The field is computed by following every operator, so it is exact at borders and through branches too.

    Args:
        model: any module that takes `b c ...`, wrapped or compiled or not.
        layer: a name as for `capture`, or one of several calls (`"relu#2"`), or the module.
        input_size: size of the input, `h w` (or `l`, or `d h w`).
        channels: channels of the input; default: those of the first convolution, else 3.
        effective: also compute, by gradients, how much each pixel influences the middle unit.
        additional_forward_args: further positional arguments of `forward`, one value or a tuple.
        keywords: keyword arguments of `forward`.
    Raises:
        DtypeError: the model cannot be copied.
        LayerError: no such layer, or it runs several times and no call is named.
        OptionError: a size is not a positive number, or far too large, or `forward` takes other arguments.
        ShapeError: the model does not accept such an input, or the layer returns no tensor.
    Reference: Luo et al. 2016, for the effective field.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2))
        >>> seen = receptive_field(net, "2")
        >>> seen.size, seen.stride, seen.start, seen.kind
        ((19, 19), (8, 8), (-2, -2), 'exact')
        >>> seen.box(0, 5)
        ((0, 17), (38, 57))
    """
    sizes = _checked(input_size, channels)
    name = layer_name(model, layer)
    module = module_at(model, name)
    with isolated():
        net, at = one_call(twin(model), name)
        check_numel((channels or _channels(net), *sizes))
        image = torch.rand((1, channels or _channels(net), *sizes), **placement(net))
        inputs = Inputs.of(image, additional_forward_args, keywords).copied()
        try:
            shape, trace, layout = _traced(net, at, inputs, name)
            if layout is not None:
                net, at = one_call(twin(model), name, layout)
                shape, trace, _ = _traced(net, at, inputs, name)
        except ShapeError as error:
            if error.__cause__ is None:  # not of the model's own forward
                raise
            raise ShapeError(f"{error} Pass the input_size= and channels= that the model takes.") from error
        channels_axis = channels_at(shape, trace, module) if layout is None else 1
        seen = replace(described(name, sizes, shape, trace, channels_axis), tokens=layout)
        return replace(seen, effective=_effective(net, at, inputs, seen)) if effective else seen


def _traced(net: nn.Module, at: str, inputs: Inputs, name: str) -> tuple[tuple[int, ...], Trace, Layout | None]:
    """The shape of what a layer returns, what its entries see, and the layout of its tokens, if these have places."""
    tracer, layouts = Tracer(inputs.images), LayoutTracer(inputs.images)

    def look(output: Any) -> tuple[tuple[int, ...], Trace, Layout | None]:
        layout = layouts.layout(output) if _map(output, name).dim() == 3 else None
        placed = layout is not None and layout.tokens is not None and len(layout.grid) == 2
        return tuple(output.shape), tracer.read(output), layout if placed else None

    with torch.no_grad(), tracer, layouts:
        return run_looking_at(net, at, inputs, look)


def described(
    name: str, sizes: tuple[int, ...], shape: tuple[int, ...], trace: Trace, channels: int = 1
) -> ReceptiveField:
    """What a `Tracer` read of a layer's output of this shape, for an input of these sizes.

    Args:
        channels: the axis of the output's channels.
    """
    trace = trace.pooled([0, channels])  # what varies with the channel is seen by all of them together
    tables = tuple(axis.table for axis in trace.axes)
    holes = any(has_holes(table) for table in tables)
    kind: Kind = "whole" if trace.level == WHOLE else "exact" if trace.level == EXACT and not holes else "hull"
    steps = [axis.steps for axis in trace.axes]
    places = [d for d in range(1, len(shape)) if d != channels] if len(shape) == len(sizes) + 2 else []
    return ReceptiveField(
        layer=name,
        input_size=sizes,
        map_size=tuple(shape[d] for d in places),
        size=tuple(s.size if s else widest(table) for s, table in zip(steps, tables, strict=True)),
        stride=tuple(s.stride if s else None for s in steps),
        start=tuple(s.start if s else None for s in steps),
        kind=kind,
        along=tuple(places.index(d) if d in places else None for d in trace.dims),
        channels_at=channels,
        _tables=tables,
    )


def interval(seen: Table) -> tuple[int, int]:
    """From the first position that is seen to behind the last; `(0, 0)` where none is."""
    (at,) = seen.nonzero()
    return (int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0)


def channels_at(shape: Sequence[int], trace: Trace, module: nn.Module | None) -> int:
    """The axis of a layer's channels: the one along which no axis of the image lies.

    Where several are left, something on the way having looked at everything, it is told by what the layer is.
    """
    left = [d for d in range(1, len(shape)) if d not in trace.dims]
    if isinstance(module, CHANNELS_LAST) and len(shape) - 1 in left:
        return len(shape) - 1
    return 1 if 1 in left or not left else left[-1]


def _map(output: Any, name: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise ShapeError(f"layer {name!r} returns a {type(output).__name__}, not a map; choose a convolution.")
    return output


def _effective(net: nn.Module, layer: str, inputs: Inputs, seen: ReceptiveField) -> Tensor:
    """Mean |gradient| of the middle unit, summed over its channels, over a few images of noise: `...`."""
    total = torch.zeros(inputs.images.shape[2:], device="cpu")
    for _ in range(_SAMPLES):
        image = torch.randn_like(inputs.images).requires_grad_()
        copied = inputs.copied()
        unit = run_looking_at(
            net, layer, copied.at(image, slice(None)), lambda output: _map(output, seen.layer).clone()
        )  # a clone, lest the network goes on in place
        if seen.map_size:
            unit = unit.movedim(seen.channels_at, 1)
        for n in seen.map_size:
            unit = unit.select(2, n // 2)
        if not unit.requires_grad:
            raise OptionError(f"no gradient flows from layer {seen.layer!r} to the input; leave effective out.")
        (gradient,) = torch.autograd.grad(unit.sum(), image, materialize_grads=True)
        total += gradient.abs().mean((0, 1)).float().cpu()
    return total / _SAMPLES


def _checked(input_size: Sequence[int], channels: int | None) -> tuple[int, ...]:
    sizes = tuple(input_size) if isinstance(input_size, Sequence) else ()
    if not 1 <= len(sizes) <= 3 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise OptionError(f"input_size must be 1 to 3 positive numbers, such as (224, 224), got {input_size!r}.")
    if channels is not None and channels < 1:
        raise OptionError(f"channels must be at least 1, got {channels}.")
    return sizes


def _channels(model: nn.Module) -> int:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return next((module.in_channels for module in model.modules() if isinstance(module, kinds)), 3)


def _by(numbers: Sequence[object]) -> str:
    return " × ".join(map(str, numbers))
