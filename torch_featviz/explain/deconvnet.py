"""Project a unit back to the pixels: by the deconvnet of Zeiler & Fergus, or by guided backpropagation."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_featviz.choices import PROJECTIONS
from torch_featviz.displayed import Displayed
from torch_featviz.errors import DtypeError, LayerError, OptionError, ShapeError
from torch_featviz.gate import check_tensor, gate
from torch_featviz.inspect.receptive import Tracer, channels_at
from torch_featviz.model.inputs import Inputs, as_batch
from torch_featviz.model.layers import layer_name, module_at
from torch_featviz.model.layout import Layout, LayoutTracer
from torch_featviz.model.run import one_call, run_looking_at, run_until
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated
from torch_featviz.torch_private import Convolution

from .explained import check_rows, chunks, rows_at_once
from .rectify import Rectify, graph_of, refuse_others, word_of
from .switches import switched

Unit: TypeAlias = int | tuple[int, int, int]  # a channel at its strongest place, or channel, row, column


@dataclass(frozen=True, eq=False, repr=False)
class Projections(Displayed):
    """Projections of units to the pixels, and the method that made them.

    Args:
        values: `n c h w`, signed, one projection per unit; values are never rescaled.
        method: `"deconvnet"` or `"guided_backprop"`.
        switches: whether max pools lie between the layer and the images. Without them, a deconvnet's projection depends
            on the image only through gates and the unit's value.
        units: `(channel, row, column)` of each, in the order of the map's own axes.
        activations: `n`, the value of each unit in the image.
    """

    values: Tensor
    method: str
    switches: bool
    units: tuple[tuple[int, int, int], ...]
    activations: Tensor


@gate("units")
def deconvnet(
    model: nn.Module,
    images: Tensor,
    layer: str | nn.Module,
    units: Unit | Sequence[Unit] | Tensor,
    *,
    projection: str | None = None,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    pooling: str = "sum",
    internal_batch_size: int | None = None,
) -> Tensor:
    """Project units back to the pixels: show which pattern in an image activates each unit.

    Deconvnet: on the way back, max pools put values where the maximum was; rectifiers pass positive values only,
    wherever they were active in the forward; convolutions run transposed, without bias; local response normalisation
    passes values unchanged. Batch norm, which the paper does not cover, multiplies by γ/σ, without the shift. ReLU6,
    SiLU, Hardswish and similar activations are treated as ReLU. All other operators (average pools, sums,
    concatenation, gates, other norms, and arithmetic such as `x * (x > 0)`) use their derivative. Dropout is off.

    A deconvnet depends on the image only through the switches of max pools. A network that downsamples by strides has
    none, and its projection of a unit is the same for every image. There the default is guided backpropagation, which
    was proposed for such networks: the gradient times the unit's value, where rectifiers pass positive values only, and
    only where they were active. For other activations, which its paper does not cover, positive values are multiplied
    by the activation's derivative: for ReLU6 this is 0 above its ceiling too; for SiLU, GELU and Hardswish it is about
    1 where they are active, and small or even negative where they are not.

    The model is unchanged: a copy that shares its weights runs, in evaluation mode.

    Args:
        model: any module, wrapped or compiled or not. Rectifiers may be layers or functions, also in place.
        images: `b c h w`, as the model takes them; one image `c h w` is a batch of one.
        layer: a layer that returns a map, `b k h w` or with its axes in another order such as `b h w k`, or the tokens
            of a transformer, and that runs once. For the deconvnet it makes no difference whether it is taken before or
            after its rectifier.
        units: one per image, or any number for a single image: `(channel, row, column)`, in the order of the map's own
            axes, or a channel alone for the place where it is strongest. A unit at or below 0 has a projection of
            zeros.
        projection: `"deconvnet"` or `"guided_backprop"`. Default: the deconvnet if, for the first image, a max pool
            lies between the layer and the image; else guided backpropagation. `explain.project` also returns the
            method.
        additional_forward_args: further positional arguments of `forward`, one value or a tuple. A tensor as long as
            the images has one row per image.
        keywords: keyword arguments of `forward`, likewise.
        pooling: of the deconvnet, if overlapping windows chose the same place: `"sum"` adds their values; `"overwrite"`
            keeps that of the last window, row by row, as `MaxUnpool2d` does on a CPU, but deterministic on every
            device.
        internal_batch_size: units per backward. Default: as many as fit into half of the free memory of a GPU, or 256
            MiB on a CPU, by a measurement of one.
    Returns:
        `n c h w`, signed, one projection per unit; values are never rescaled.
    Raises:
        DtypeError: images are not floats, units are not integers, or the model cannot be copied.
        ShapeError: images are not `b c h w`, the layer returns no map, or the numbers of units and images differ.
        LayerError: no such layer, it does not run exactly once, or a layer before it has no rule.
        OptionError: no such unit or option, or no gradient reaches the images.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU())
        >>> deconvnet(net, torch.rand(1, 3, 16, 16), "4", [0, 5, (5, 2, 3)]).shape
        torch.Size([3, 3, 16, 16])

    Reference: Zeiler & Fergus 2013, section 2.1; Springenberg et al. 2015, section 4.
    """
    return project(
        model,
        images,
        layer,
        units,
        projection=projection,
        additional_forward_args=additional_forward_args,
        keywords=keywords,
        pooling=pooling,
        internal_batch_size=internal_batch_size,
    ).values


@gate("units")
def project(
    model: nn.Module,
    images: Tensor,
    layer: str | nn.Module,
    units: Unit | Sequence[Unit] | Tensor,
    *,
    projection: str | None = None,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    pooling: str = "sum",
    internal_batch_size: int | None = None,
) -> Projections:
    """Do what `deconvnet` does, and also return the name of the method; arguments are the same.

    Raises:
        OptionError, ShapeError, LayerError, DtypeError: as for `deconvnet`.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU())
        >>> down = project(net, torch.rand(1, 3, 16, 16), "3", [0, 5])
        >>> down.method, down.switches, down.values.shape
        ('guided_backprop', False, torch.Size([2, 3, 16, 16]))
    """
    images = as_batch(images)
    asked = _listed(units)
    _check_options(projection, pooling, internal_batch_size)
    if not asked or len(images) not in (1, len(asked)):
        raise ShapeError(
            f"units must be one per image, or any number for a single image; got {len(asked)} units for "
            f"{len(images)} images."
        )
    name = layer_name(model, layer)
    inputs = Inputs.of(images, additional_forward_args, keywords)
    with isolated():
        inputs = inputs.copied()
        shape, channels, switches = _first_look(model, inputs.rows(slice(1)), name)
        _check_units(asked, shape, name)
        method = projection or ("deconvnet" if switches else "guided_backprop")
        guided = method == "guided_backprop"
        net, at = one_call(twin(model), name, channels)
        up = _UpTo(net, at, name, guided=guided, overwrite=pooling == "overwrite" and not guided)
        if len(images) == 1:
            inputs = inputs.rows(torch.zeros(len(asked), dtype=torch.long, device=images.device))
        rows = internal_batch_size or rows_at_once(up, inputs.rows(slice(1)), len(asked))
        parts = [_down(up, inputs.rows(part), asked[part]) for part in chunks(len(asked), rows)]
        values, places, activations = map(torch.cat, zip(*parts, strict=True))
        found = tuple((channel, row, column) for channel, row, column in places.tolist())
        return Projections(values, method, switches, found, activations)


def check_projection(projection: str | None) -> None:
    """Raise OptionError unless that is a way to project units, or None."""
    if projection is not None and projection not in PROJECTIONS:
        names = " or ".join(map(repr, PROJECTIONS))
        raise OptionError(f"projection must be {names}, or None to choose by the network; got {projection!r}.")


def _check_options(projection: str | None, pooling: str, internal_batch_size: int | None) -> None:
    check_projection(projection)
    if pooling not in ("sum", "overwrite"):
        raise OptionError(f"pooling must be 'sum' or 'overwrite', got {pooling!r}.")
    if pooling == "overwrite" and projection == "guided_backprop":
        raise OptionError(
            "pooling='overwrite' needs projection='deconvnet'; guided "
            "backpropagation always sums, as the gradient does."
        )
    check_rows(internal_batch_size)


def _down(up: _UpTo, inputs: Inputs, units: list[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """The projections, the units as `n 3`, and what these have in the images."""
    leaf = inputs.images.detach().clone().requires_grad_()
    maps: Tensor = up.maps(inputs.at(leaf, slice(None)))
    places = _places(maps.detach(), units)
    rows, (channels, ys, xs) = torch.arange(len(units), device=maps.device), places.unbind(1)
    activations = maps.detach()[rows, channels, ys, xs]
    seed = torch.zeros_like(maps)  # but for one unit in each row, which has its own value, rectified
    seed[rows, channels, ys, xs] = activations.clamp(min=0)
    projection: Tensor | None
    (projection,) = torch.autograd.grad(maps, leaf, seed, allow_unused=True)
    if projection is None:
        raise _without_gradient(up.name)
    return projection, places, activations


def _places(maps: Tensor, units: list[tuple[int, ...]]) -> Tensor:
    """Channel, row and column of one unit in each row of maps, `n 3`; a channel alone is at its strongest place."""
    rows = torch.arange(len(units), device=maps.device)
    channels = torch.tensor([unit[0] for unit in units], device=maps.device)
    planes = maps[rows, channels].flatten(1)
    width = maps.shape[3]
    asked = torch.tensor([unit[1] * width + unit[2] if unit[1:] else -1 for unit in units], device=maps.device)
    places = torch.where(asked < 0, planes.argmax(1), asked)
    return torch.stack([channels, places // width, places % width], 1)


class _UpTo(nn.Module):
    """The model up to one layer, with another way down.

    Args:
        net: a twin.
        layer: by which `net` knows the layer.
        name: by which the user knows it.
        guided: the way of guided backpropagation, else of the deconvnet.
        overwrite: as in `deconvnet`.
    """

    def __init__(self, net: nn.Module, layer: str, name: str, *, guided: bool, overwrite: bool) -> None:
        super().__init__()
        self.net = net
        self.layer, self.name = layer, name
        self.guided, self.overwrite = guided, overwrite

    def forward(self, *args: Any, **keywords: Any) -> Tensor:
        return self.maps(Inputs(args[0], args[1:], keywords))

    def maps(self, inputs: Inputs) -> Tensor:
        """What the layer returns, with its graph."""
        with _Down(guided=self.guided, overwrite=self.overwrite):
            maps: Tensor = run_until(self.net, self.layer, inputs)
        if not maps.requires_grad:
            raise _without_gradient(self.name)
        refuse_others(maps)
        if self.overwrite:
            _refuse_pools(maps)
        return maps


def _without_gradient(name: str) -> OptionError:
    return OptionError(
        f"no gradient flows from layer {name!r} to the images (perhaps argmax, round() or no_grad() lies between); "
        "choose an earlier layer."
    )


class _Down(Rectify):
    """While on, layers are given the backward of the deconvnet, or of guided backpropagation."""

    def __init__(self, *, guided: bool, overwrite: bool) -> None:
        super().__init__(guided=guided)
        self.overwrite = overwrite

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = word_of(func)
        if name == "local_response_norm" and not self.guided:
            x, *rest = args or (kwargs.pop("input"),)
            return _Straight.apply(x, lambda y: func(y, *rest, **kwargs))
        if name == "batch_norm" and (args[5] if len(args) > 5 else kwargs.get("training", False)):
            x = args[0] if args else kwargs["input"]
            if x.requires_grad:  # else of a weight, as weight standardisation does, and no images are mixed
                raise LayerError(
                    "a batch norm has no running statistics (track_running_stats=False?), so the images of a batch "
                    "would mix; choose a layer before it, or use track_running_stats=True."
                )
        if self.overwrite and name.removesuffix("_with_indices").removeprefix("adaptive_") in _POOLS:
            return _overwritten(name, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)


_POOLS = {"max_pool1d": 1, "max_pool2d": 2, "max_pool3d": 3}


def _overwritten(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A max pool, called as torch or torch.nn.functional calls it, with `_Overwrite` as its backward."""
    pooling = name.removesuffix("_with_indices")
    last = 2 if pooling.startswith("adaptive_") else 6  # where return_indices is
    both = name != pooling or (args[last] if len(args) > last else kwargs.pop("return_indices", False))
    x, *rest = args[:last] or (kwargs.pop("input"),)
    pool = getattr(F, pooling)
    kwargs["return_indices"] = True
    output = _Overwrite.apply(x, lambda y: pool(y, *rest, **kwargs), int(pooling[-2]))
    return output if both else output[0]


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x.detach())

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Overwrite(torch.autograd.Function):
    """A max pool over the last `dims` axes; of the windows that chose one place, the last gives it its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: Callable[[Tensor], tuple[Tensor, Tensor]], dims: int) -> Any:
        output, switches = pool(x.detach())
        ctx.save_for_backward(switches)
        ctx.shape, ctx.dims = x.shape, dims
        ctx.mark_non_differentiable(switches)
        return output, switches

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        switches = ctx.saved_tensors[0].flatten(-ctx.dims)
        windows = torch.arange(switches.shape[-1], device=switches.device, dtype=torch.int32).expand_as(switches)
        below = gradients[0].new_zeros(*switches.shape[:-1], math.prod(ctx.shape[-ctx.dims :]))
        # a plain scatter may write in any order; neither the largest number nor a sum of one value depends on it
        last = windows.new_zeros(below.shape).scatter_reduce_(-1, switches, windows, "amax")
        wins = last.gather(-1, switches) == windows
        below.scatter_add_(-1, switches, gradients[0].flatten(-ctx.dims).masked_fill(~wins, 0))
        return below.view(ctx.shape), None, None


def _refuse_pools(output: Tensor) -> None:
    for node in graph_of(output):
        if "MaxPool" in node.name():
            raise LayerError(
                f"pooling='overwrite' cannot reach a max pool ({node.name()}), in "
                f"scripted code perhaps; pass the original "
                "model, before torch.jit, or pooling='sum'."
            )


def _first_look(model: nn.Module, one: Inputs, name: str) -> tuple[torch.Size, int | Layout, bool]:
    """`k h w` of what the layer returns, the axis of `k` or the layout of tokens, and whether switches lie on its way
    to the image.

    The whole network runs, for a layer may run again after its first time; autograd's part ends at the layer.
    """
    module = module_at(model, name)
    net, layer = one_call(twin(model), name)
    image = one.images.detach().clone().requires_grad_()
    tracer = None if isinstance(module, Convolution) else Tracer(image)

    layouts = LayoutTracer(image)

    def look(output: Any) -> tuple[torch.Size, int | Layout, bool]:
        torch.set_grad_enabled(False)
        layout = layouts.layout(output) if isinstance(output, Tensor) and output.dim() == 3 else None
        if layout is not None and layout.tokens is not None and len(layout.grid) == 2 and layout.channels is not None:
            return layout.maps(output).shape[1:], layout, switched(output, image)
        if not isinstance(output, Tensor) or output.dim() != 4 or len(output) != 1:
            what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ShapeError(f"layer {name!r} returns {what} for one image, not a map 'b k h w'; choose a convolution.")
        axis = 1 if tracer is None else channels_at(output.shape, tracer.read(output), module)
        return output.movedim(axis, 1).shape[1:], axis, switched(output, image)

    with torch.enable_grad(), tracer or nullcontext(), layouts:
        return run_looking_at(net, layer, one.at(image, slice(None)), look)


def _listed(units: Any) -> list[tuple[int, ...]]:
    """Each unit as `(channel,)` or `(channel, row, column)`."""
    units = _plain(units)
    if isinstance(units, tuple) and len(units) == 3 and not any(isinstance(unit, Iterable) for unit in units):
        raise OptionError(
            f"units={units} may be one unit or three channels; pass [{units}] for "
            f"one unit or {list(units)} for three channels."
        )
    listed = [_plain(unit) for unit in (units if isinstance(units, Iterable) else [units])]
    try:
        return [tuple(map(operator.index, unit if isinstance(unit, Iterable) else [unit])) for unit in listed]
    except TypeError as error:
        what = "units must be integers: channels or (channel, row, column)"
        raise DtypeError(f"{what}, got {units!r:.80}.") from error


def _plain(value: Any) -> Any:
    """Numbers and lists of them, of a tensor or an array."""
    if isinstance(value, Tensor):
        check_tensor("units", value)
    return value.tolist() if hasattr(value, "tolist") else value


def _check_units(units: list[tuple[int, ...]], shape: torch.Size, name: str) -> None:
    for unit in units:
        if len(unit) not in (1, 3):
            raise OptionError(f"a unit must be a channel or (channel, row, column), got {unit}.")
        if not 0 <= unit[0] < shape[0]:
            raise OptionError(f"layer {name!r} has channels 0 to {shape[0] - 1}, got channel {unit[0]}.")
        if unit[1:] and not (0 <= unit[1] < shape[1] and 0 <= unit[2] < shape[2]):
            raise OptionError(
                f"unit {unit} is outside the map of layer {name!r}, which has rows 0 to {shape[1] - 1} and columns "
                f"0 to {shape[2] - 1}."
            )
