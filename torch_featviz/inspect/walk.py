"""All that the page tells of the layers, seen in one forward of all images and one that counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_featviz.capture import capture
from torch_featviz.errors import LayerError
from torch_featviz.inspect.receptive import ReceptiveField, Tracer, described
from torch_featviz.model.kinds import CHANNELS_FIRST, call_of, is_channelwise, is_positive, moves_only
from torch_featviz.model.twin import apart, twin
from torch_featviz.model.weights import planes_of
from torch_featviz.torch_private import PADS, Convolution

from .measure import PARAMETRIZATIONS, Measured, measured, run, works


class Figures(NamedTuple):
    """Of what a layer returned for one image; NaN and infinities are counted apart from the rest."""

    mean: float
    std: float
    min: float
    max: float
    zero: float  # share of the values that are exactly 0
    nan: int
    inf: int


@dataclass
class Layer:
    """One layer or functional call, and what it returned."""

    name: str
    module: nn.Module | None  # None for a functional call
    values: Tensor | None  # `b k h w`, `b t k` or `b k`, float32 on the CPU; None where it returned no such thing,
    why_not: str = ""  # and why
    shape: tuple[int, ...] = ()  # that it returned, whichever axis its channels are on
    channels_at: int = 1  # that axis
    rows_at: tuple[int | None, ...] = ()  # the axes along which the image's rows and columns lie, where known
    figures: list[Figures] = field(default_factory=list)
    field: ReceptiveField | None = None
    multiply_adds: int | None = None
    parameters: int = 0
    fed_by: str | None = None  # the layer whose filters made these channels, if not itself
    positive: bool = False  # by its nature, or that of the layer it takes its channels from; and nothing is below 0
    kernels: Tensor | None = None  # `k c h w`
    groups: int = 1

    @property
    def kind(self) -> str:
        """What it is, in a word."""
        return type(self.module).__name__ if self.module is not None else call_of(self.name)


@dataclass
class Walk:
    """The layers in order of execution, the input first, and what the model answered."""

    layers: list[Layer]
    output: Any
    multiply_adds: int
    idle: list[str]  # layers that compute nothing: dropout in evaluation, flatten, padding
    not_run: list[str]
    uncounted: list[str]  # layers that may multiply more than is counted
    answered_by: Layer | None  # whose output is the model's


def walk(model: nn.Module, images: Tensor) -> Walk:
    """What each layer of `model` makes of `images`, in evaluation mode, on a copy.

    Functional calls (`F.relu`, `torch.cat`, `+`) are layers of their own, but for those that only move values.

    Args:
        model: any module that takes `images` alone.
        images: `b c h w`, as the model takes them.
    Raises:
        ShapeError: the model does not take such images.
        DtypeError: it cannot be copied.
        LayerError: it has no layers, or is TorchScript, which nobody can look into.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise LayerError("a TorchScript module cannot be looked into; give the module that it was made from.")
    with apart(), torch.no_grad():
        net, images = twin(model), images.detach().clone()
        layers, output, not_run = _seen(net, images)
        found = measured(net, images[:1])
    _describe(layers, found)
    idle = [each.name for each in layers if each.name.partition("#")[0] in found.idle or isinstance(each.module, PADS)]
    kept = [each for each in layers if each.name not in idle]
    uncounted = [each.name for each in kept if each.name.partition("#")[0] in found.uncounted]
    first = _input(images, {each.name for each in kept})
    return Walk([first, *kept], output, found.total, idle, not_run, uncounted, _answering(kept, output))


def _answering(layers: list[Layer], output: Any) -> Layer | None:
    """The last layer that returned what the model did."""
    if not isinstance(output, Tensor) or output.dim() != 2:
        return None
    rows = output.float().cpu()
    same = [
        each
        for each in layers
        if each.values is not None
        and each.shape == tuple(rows.shape)
        and torch.allclose(each.values, rows, 0, 0, equal_nan=True)
    ]
    return same[-1] if same else None


def _seen(net: nn.Module, images: Tensor) -> tuple[list[Layer], Any, list[str]]:
    tracer = Tracer(images)
    sizes = tuple(images.shape[2:])

    def look(output: Any) -> Layer:
        if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
            output = output[0]
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return Layer("", None, None, f"it returns {_what(output)}")
        if output.dim() < 2 or len(output) != len(images) or not output.numel():
            return Layer("", None, None, f"it returns shape {tuple(output.shape)}, not one row for each image")
        trace, shape = tracer.read(output), tuple(output.shape)
        rows_at = tuple(axis.dim for axis in trace.axes)
        # figures later: a number read here may steer the network
        return Layer("", None, output.clone(), shape=shape, rows_at=rows_at, field=described("", sizes, shape, trace))

    with capture(net, ["*", ""], ops=True, into=look) as found, tracer:
        output = run(net, images)
    modules = dict(net.named_modules())
    layers: list[Layer] = []
    for key, layer in found.items():
        layer.name, layer.module = key, modules.get(key.partition("#")[0])
        if PARAMETRIZATIONS in key.split("."):  # they make weights, and see no image
            continue
        layer.channels_at = _channels_at(layer, layers)
        if moves_only(call_of(key)) if layer.module is None else not works(layer.module):
            continue
        if layer.module is not None and layers and _same_as_inside(layer, layers[-1]):
            if layers[-1].module is not None:
                continue
            layers.pop()
        layers.append(layer)
    if not layers:
        raise LayerError(f"{type(net).__name__} has no layer that ran.")
    for layer in layers:
        if layer.values is not None:
            moved = layer.values.movedim(layer.channels_at, -1 if layer.values.dim() == 3 else 1)
            layer.values = moved.float().cpu().contiguous()
            layer.figures = [_figures(each) for each in layer.values]
    not_run = [name for name in found.not_run if name in modules and works(modules[name])]
    not_run = [name for name in not_run if not _is_read(name, modules)]
    return layers, output, not_run


def _is_read(name: str, modules: dict[str, nn.Module]) -> bool:
    """Whether another module reads the weights of this one, which never runs itself."""
    owner = modules.get(name.rpartition(".")[0])
    return isinstance(owner, nn.MultiheadAttention) or PARAMETRIZATIONS in name.split(".")


def _channels_at(layer: Layer, before: list[Layer]) -> int:
    """The axis of a layer's channels, from where the image went, what the layer is, or the layers before it."""
    axes, rest = len(layer.shape), {1, 2, 3} - set(layer.rows_at)
    if axes == 4 and len(rest) == 1:
        return rest.pop()
    if isinstance(layer.module, (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)):
        return axes - 1
    if isinstance(layer.module, (Convolution, *CHANNELS_FIRST)):
        return 1
    same = [each.channels_at for each in before if each.shape == layer.shape]
    return same[-1] if same else axes - 1 if axes == 3 else 1


def _same_as_inside(layer: Layer, last: Layer) -> bool:
    """Whether what a layer with weights of its own returned is what the last part of it, or call in it, did."""
    if last.values is None or layer.values is None or not last.name.startswith(layer.name and f"{layer.name}."):
        return False
    return last.values.shape == layer.values.shape and torch.equal(last.values, layer.values)


def _what(output: Any) -> str:
    return f"numbers of {output.dtype}" if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _figures(values: Tensor) -> Figures:
    low, high = values.aminmax()
    nan = inf = 0
    finite = values
    if not bool(low.isfinite() & high.isfinite()):
        nan, inf = int(values.isnan().sum()), int(values.isinf().sum())
        finite = values[values.isfinite()]
        if not len(finite):
            return Figures(torch.nan, torch.nan, torch.nan, torch.nan, 0.0, nan, inf)
        low, high = finite.aminmax()
    spread, mean = torch.std_mean(finite, correction=0)
    zero = 1 - int(values.count_nonzero()) / values.numel()
    return Figures(float(mean), float(spread), float(low), float(high), zero, nan, inf)


def _describe(layers: list[Layer], found: Measured) -> None:
    """What is known of each layer besides its output."""
    done: dict[str, Layer] = {}
    for layer in layers:
        name, _, call = layer.name.partition("#")
        if layer.module is None:
            source = _source_of_call(layer.name, done)
        else:
            at = int(call or 1) - 1
            calls = found.feeding[name][at : at + 1]  # none, if one image alone takes another way than many
            given = calls[0] if calls and is_channelwise(layer.module) else None
            source = None if given is None else done.get(f"{given[0]}#{given[1]}") or done.get(given[0])
            counted = found.multiply_adds[name][at : at + 1] if name not in found.uncounted else []
            layer.multiply_adds = counted[0] if counted else None
            layer.parameters = 0 if int(call or 1) > 1 else sum(each.numel() for each in layer.module.parameters())
            layer.kernels, layer.groups = _kernels(layer.module)
        inherited = source is not None and source.positive and "norm" not in layer.kind.lower()
        by_nature = is_positive(layer.module, call_of(layer.name)) or inherited
        layer.positive = by_nature and not any(each.min < 0 for each in layer.figures)  # as log-sigmoid gives
        if source is not None and _channels(source) == _channels(layer):
            layer.fed_by = source.name if source.kernels is not None else source.fed_by
        done[layer.name] = layer


def _source_of_call(name: str, done: dict[str, Layer]) -> Layer | None:
    """The layer that `conv1.relu` is named after, if every call on the way from it keeps its channels."""
    before = name.rpartition(".")[0]
    way = [each for each in done if each.startswith(f"{before}.") and each not in (name, before)]
    own = [each for each in way if done[each].module is None and each.rpartition(".")[0] == before]
    if before not in done or not all(is_channelwise(None, call_of(each)) for each in (*own, name)):
        return None
    return done[own[-1]] if own else done[before]


def _channels(layer: Layer) -> int:
    return 0 if layer.values is None else layer.values.shape[-1 if layer.values.dim() == 3 else 1]


def _kernels(module: nn.Module) -> tuple[Tensor | None, int]:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        return None, 1
    return planes_of(module)[0].detach().float().cpu(), int(getattr(module, "groups", 1))


def _input(images: Tensor, taken: set[str]) -> Layer:
    """What the model is given, as the first layer of the walk: each place sees itself."""
    name = "input"
    while name in taken:
        name = f"({name})"
    tracer = Tracer(images)
    sees = described(name, tuple(images.shape[2:]), tuple(images.shape), tracer.read(images))
    values = images.float().cpu()
    found = [_figures(each) for each in values]
    return Layer(name, None, values, shape=tuple(images.shape), figures=found, field=sees)


def spans(seen: ReceptiveField) -> Iterator[list[tuple[int, int]]]:
    """For each axis of the map what each of its places sees; one interval where all see the same."""
    whole = [(0, n) for n in seen.input_size]
    if not seen.map_size:
        yield from ([each] for each in whole)
        return
    origin = [0] * len(seen.map_size)
    for axis, places in enumerate(seen.map_size):
        found = []
        for place in range(places):
            origin[axis] = place
            found.append((seen.box(*origin)[axis][0], seen.box(*origin)[axis][1]))
        origin[axis] = 0
        yield found[:1] if len(set(found)) == 1 else found
