"""One unit's value, sent back to the pixels: by the deconvnet of Zeiler & Fergus, or by guided backpropagation."""

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
from torch_featviz.inspect.receptive import Tracer, channels_at
from torch_featviz.model.inputs import Inputs, check_images
from torch_featviz.model.layers import layer_name, module_at
from torch_featviz.model.run import one_call, run_looking_at, run_until
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated
from torch_featviz.torch_private import Convolution

from .explained import chunks, rows_at_once
from .rectify import Rectify, graph_of, refuse_others, word_of
from .switches import switched

Unit: TypeAlias = int | tuple[int, int, int]  # a channel at its strongest place, or channel, row, column


@dataclass(frozen=True, eq=False, repr=False)
class Projections(Displayed):
    """Units projected back to the pixels, and how.

    Args:
        values: `n c h w`, signed, a projection for each unit, in the model's own units and never rescaled.
        method: `"deconvnet"` or `"guided_backprop"`.
        switches: whether max pools lie on the way from the layer to the images. Without, what a deconvnet projects
            depends on the image through nothing but gates and the unit's value.
        units: `(channel, row, column)` of each, in the order of the map's own axes.
        activations: `n`, what each had in the image.
    """

    values: Tensor
    method: str
    switches: bool
    units: tuple[tuple[int, int, int], ...]
    activations: Tensor


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
    """What in an image makes one unit active: the unit's value, projected back to the pixels.

    By the deconvnet, on the way down max pools put values back where they came from; rectifiers pass the positive part,
    wherever they were active; convolutions run transposed, without bias; local response normalisation passes what
    comes. Batch norm is not in the paper: here γ/σ scales, the shift is left out. ReLU6, SiLU, Hardswish and the like
    go as ReLU. All else (average pools, sums, concatenation, gates, other norms, and what a model writes out by
    arithmetic, such as `x * (x > 0)`) goes as its derivative does. Dropout is off.

    A deconvnet knows the image by the switches of max pools alone: where there are none, as in networks that stride,
    it projects the same from every image. Guided backpropagation was proposed for these, and is the default there. It
    is the gradient, times the unit's value, but rectifiers pass the positive part where they were active. Of other
    activations than ReLU, which its paper does not know, the positive part goes on times the activation's derivative:
    for ReLU6 that is 0 at its ceiling, too; for SiLU, GELU and Hardswish about 1 where they are active, small or even
    negative where they are not.

    The model is in evaluation mode for it and untouched: all is done on a copy that shares its weights.

    Args:
        model: any module, wrapped or compiled, too; its layers or functions may rectify, also in place.
        images: `b c h w`, as the model takes them.
        layer: its output is a map, `b k h w` or with its axes in another order, such as `b h w k`; it runs once. For
            the deconvnet, before or after its rectifier makes no difference.
        units: one for each image, or any number for a single image: `(channel, row, column)`, the place in the order
            of the map's own axes, or a channel alone for the place where it is strongest. A unit at or below 0 has a
            projection of zeros.
        projection: `"deconvnet"` or `"guided_backprop"`; default: the deconvnet where, in a run of the first image, a
            max pool lies on the way from the layer to the image, else guided backpropagation. `explain.project` says
            which it was.
        additional_forward_args: what `forward` takes after the images, one value or a tuple. A tensor as long as the
            images has a row for each of them.
        keywords: what `forward` takes by name, likewise.
        pooling: of the deconvnet: `"sum"` adds up where windows overlap and chose the same place; `"overwrite"` keeps
            the value of the last of these windows, row by row, as `MaxUnpool2d` does on a CPU; here it is deterministic
            everywhere.
        internal_batch_size: units that are run at once; default: what autograd needs for one is measured, and half of
            the free memory of a GPU, or 1 GiB, is used.
    Returns:
        `n c h w`, signed: a projection for each unit, in the model's own units and never rescaled.
    Raises:
        DtypeError: images are no floats, units no numbers, or the model cannot be copied.
        ShapeError: images are not `b c h w`, the layer returns no map, or units and images are not as many.
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
    """What `deconvnet` returns, with the name of the method; arguments and errors are the same.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU())
        >>> down = project(net, torch.rand(1, 3, 16, 16), "3", [0, 5])
        >>> down.method, down.switches, down.values.shape
        ('guided_backprop', False, torch.Size([2, 3, 16, 16]))
    """
    check_images(images)
    asked = _listed(units)
    _check_options(projection, pooling, internal_batch_size)
    if not asked or len(images) not in (1, len(asked)):
        raise ShapeError(
            f"units must be one for each image, or any number for one image; got {len(asked)} units for "
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
        raise OptionError(f"projection is {names}, or None for what suits the network; got {projection!r}.")


def _check_options(projection: str | None, pooling: str, internal_batch_size: int | None) -> None:
    check_projection(projection)
    if pooling not in ("sum", "overwrite"):
        raise OptionError(f"pooling is 'sum' or 'overwrite', got {pooling!r}.")
    if pooling == "overwrite" and projection == "guided_backprop":
        raise OptionError("pooling='overwrite' is the deconvnet's; guided backpropagation sums as the gradient does.")
    if internal_batch_size is not None and internal_batch_size < 1:
        raise OptionError(f"internal_batch_size must be at least 1, got {internal_batch_size}.")


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
        f"no gradient leads from layer {name!r} to the images (an argmax, a round() or no_grad() on the way?); name a "
        "layer before it."
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
                    "a batch norm has no running statistics (track_running_stats=False?), so that the rows of a batch "
                    "would mix; name a layer before it, or give the model running statistics."
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
                f"a max pool ({node.name()}) is called out of reach, in scripted code perhaps, and would sum; give the "
                "model as it was before torch.jit, or pooling='sum'."
            )


def _first_look(model: nn.Module, one: Inputs, name: str) -> tuple[torch.Size, int, bool]:
    """`k h w` of what the layer returns, the axis of `k`, and whether switches lie on its way to the image.

    The whole network runs, for a layer may run again after its first time; autograd's part ends at the layer.
    """
    module = module_at(model, name)
    net, layer = one_call(twin(model), name)
    image = one.images.detach().clone().requires_grad_()
    tracer = None if isinstance(module, Convolution) else Tracer(image)

    def look(output: Any) -> tuple[torch.Size, int, bool]:
        torch.set_grad_enabled(False)
        if not isinstance(output, Tensor) or output.dim() != 4 or len(output) != 1:
            what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ShapeError(f"layer {name!r} returns {what} for one image, no map 'b k h w'; give a convolution.")
        axis = 1 if tracer is None else channels_at(output.shape, tracer.read(output), module)
        return output.movedim(axis, 1).shape[1:], axis, switched(output, image)

    with torch.enable_grad(), tracer or nullcontext():
        return run_looking_at(net, layer, one.at(image, slice(None)), look)


def _listed(units: Any) -> list[tuple[int, ...]]:
    """Each unit as `(channel,)` or `(channel, row, column)`."""
    units = _plain(units)
    if isinstance(units, tuple) and len(units) == 3 and not any(isinstance(unit, Iterable) for unit in units):
        raise OptionError(f"units={units} may be one unit or three channels; say [{units}] or {list(units)}.")
    listed = [_plain(unit) for unit in (units if isinstance(units, Iterable) else [units])]
    try:
        return [tuple(map(operator.index, unit if isinstance(unit, Iterable) else [unit])) for unit in listed]
    except TypeError as error:
        what = "units are channels or (channel, row, column), whole numbers all of them"
        raise DtypeError(f"{what}, got {units!r:.80}.") from error


def _plain(value: Any) -> Any:
    """Numbers and lists of them, of a tensor or an array."""
    return value.tolist() if hasattr(value, "tolist") else value


def _check_units(units: list[tuple[int, ...]], shape: torch.Size, name: str) -> None:
    for unit in units:
        if len(unit) not in (1, 3):
            raise OptionError(f"a unit is a channel or (channel, row, column), got {unit}.")
        if not 0 <= unit[0] < shape[0]:
            raise OptionError(f"layer {name!r} has channels 0 to {shape[0] - 1}, got {unit[0]}.")
        if unit[1:] and not (0 <= unit[1] < shape[1] and 0 <= unit[2] < shape[2]):
            raise OptionError(
                f"unit {unit} is outside of the map of layer {name!r}, which has rows 0 to {shape[1] - 1} and columns "
                f"0 to {shape[2] - 1}."
            )
