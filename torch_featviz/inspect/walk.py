"""The layers of a model in order of execution, seen in one forward of all images and one that counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.capture import capture
from torch_featviz.errors import DtypeError, LayerError, ShapeError
from torch_featviz.model.answer import scores_of
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.kinds import CHANNELS_FIRST, CHANNELS_LAST, call_of, is_channelwise, is_positive, moves_only
from torch_featviz.model.layers import Layers
from torch_featviz.model.layout import Layout, LayoutTracer
from torch_featviz.model.run import run
from torch_featviz.model.twin import twin
from torch_featviz.model.unplaced import unplaced
from torch_featviz.model.untouched import isolated
from torch_featviz.model.values import tensors
from torch_featviz.model.weights import has_kernel, kernel_of
from torch_featviz.torch_private import PADS, Convolution

from .layer import Layer
from .measure import PARAMETRIZATIONS, Measured, measured, works
from .receptive import Trace, Tracer, channels_at, described


@dataclass
class Walk:
    """The result of one run of a model.

    Args:
        layers: the input, then each call of a layer that computes something, in order of execution.
        idle: layers that compute nothing: dropout in evaluation mode, flatten, padding.
        output: the model's output.
        multiply_adds: of one forward of one image.
        not_run: layers that the forward never called.
        uncounted: layers with multiply-adds that have no formula.
        answered_by: the layer whose output is the model's output.
    """

    layers: list[Layer]
    idle: list[Layer]
    output: Any
    multiply_adds: int
    not_run: list[str]
    uncounted: list[str]
    answered_by: Layer | None


def walk(model: nn.Module, inputs: Inputs, layers: Layers = None, *, values: bool = True) -> Walk:
    """Run a copy of `model` once, in evaluation mode, and return what each layer did.

    Functional calls (`F.relu`, `torch.cat`, `+`) are layers of their own, except those that only move values. A block
    that returns the output of its last layer is left out.

    Args:
        model: any module; it is unchanged.
        inputs: the arguments; `images` are `b c ...`.
        layers: as for `capture`: only these, whatever they compute. Default: all layers that compute something.
        values: keep the outputs.
    Raises:
        ShapeError, DtypeError, DeviceError, OptionError: the model cannot be copied, or does not accept the inputs.
        LayerError: the model has no such layer, none that ran, or is TorchScript.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise LayerError("a TorchScript module hides its layers; pass the original nn.Module.")
    with isolated(), torch.no_grad():
        net, inputs = twin(model), inputs.copied()
        for copied, own in zip(net.parameters(), model.parameters(), strict=True):
            copied.requires_grad = own.requires_grad  # it decides how matmul multiplies, and so the last bits
        calls, output, absent = _calls(net, inputs, layers, values)
        costs = measured(net, inputs.rows(slice(1)))
    modules = dict(net.named_modules())
    if layers is None:
        calls = _without_blocks([call for call in calls if _computes(call)])
        working = {name for name, module in modules.items() if works(module)}
        absent = [name for name in absent if name in working and PARAMETRIZATIONS not in name.split(".")]
    if not calls:
        raise LayerError(f"no layer of {type(net).__name__} ran.")
    named = cache(lambda layout: unplaced(layout, net))
    for i, call in enumerate(calls):
        call.unplaced = named(call.layout) if call.layout is not None else ""
        call.channels_at = _channels_at(call, calls[:i])
        if call.values is not None:
            moved = call.values.movedim(call.channels_at, -1 if call.values.dim() == 3 else 1)
            call.values = moved.float().cpu().contiguous()
    _describe(calls, costs)
    idle = (
        [call for call in calls if call.layer in costs.idle or isinstance(call.module, PADS)] if layers is None else []
    )
    kept = [call for call in calls if call not in idle]
    first = _input(inputs.images, {call.name for call in kept}, values)
    uncounted = [call.name for call in kept if call.layer in costs.uncounted]
    return Walk(
        [first, *kept], idle, output, costs.total, absent, uncounted, _answering(kept, output, len(inputs.images))
    )


def _answering(calls: list[Layer], output: Any, count: int) -> Layer | None:
    """The last layer that returned what the model did."""
    try:
        rows = scores_of(output, count).float().cpu()
    except (ShapeError, DtypeError):
        return None
    same = [
        call
        for call in calls
        if call.values is not None
        and call.shape == tuple(rows.shape)
        and torch.allclose(call.values, rows, 0, 0, equal_nan=True)
    ]
    return same[-1] if same else None


def _calls(net: nn.Module, inputs: Inputs, layers: Layers, values: bool) -> tuple[list[Layer], Any, list[str]]:
    """Every call of `layers` in order of execution, the model's output, and the layers that did not run."""
    images = inputs.images
    sizes = tuple(images.shape[2:])
    tracer = Tracer(images) if _is_map(images) else None
    traced: list[tuple[Layer, Trace]] = []
    layouts = LayoutTracer(images)

    def look(output: Any) -> Layer:
        if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
            output = output[0]
        shape = next((tuple(tensor.shape) for tensor in tensors(output)), ())
        quantised = isinstance(output, Tensor) and output.is_quantized
        if not isinstance(output, Tensor) or not (output.is_floating_point() or quantised):
            return Layer("", None, why_not=f"it returns {_what(output)}", shape=shape)
        if output.dim() < 2 or len(output) != len(images) or not output.numel():
            return Layer("", None, why_not=f"it returns shape {shape}, not one row for each image", shape=shape)
        call = Layer("", None, shape=shape, layout=layouts.layout(output) or Layout(channels=None, tokens=None))
        if tracer is not None:
            traced.append((call, tracer.read(output)))
            call.constant = tracer.is_constant(output)
        if values:  # figures later: a number read here may steer the network
            call.values = output.dequantize() if quantised else output.clone()
        return call

    everything = layers is None
    block = capture(net, ["*", ""] if everything else layers, ops=everything, into=look)
    with block as records, tracer or torch.no_grad(), layouts:
        output = run(net, inputs)
    modules = dict(net.named_modules())
    calls: list[Layer] = []
    for name, call in records.items():
        call.name, call.module, call.order = name, modules.get(name.partition("#")[0]), len(calls)
        calls.append(call)
    for call, trace in traced:
        call.field = described(call.name, sizes, call.shape, trace, channels_at(call.shape, trace, call.module))
    return calls, output, records.not_run


def _computes(call: Layer) -> bool:
    """Whether a call computes something of the images; parametrizations make weights, and see none."""
    if PARAMETRIZATIONS in call.name.split(".") or (call.module is None and call.constant):
        return False
    return not moves_only(call_of(call.name)) if call.module is None else works(call.module)


def _without_blocks(calls: list[Layer]) -> list[Layer]:
    """Without what a layer with weights of its own returned, if the last layer in it returned the same."""
    kept: list[Layer] = []
    for call in calls:
        if call.module is not None and kept and _same_as_inside(call, kept[-1]):
            if kept[-1].module is not None:
                continue
            kept.pop()
        kept.append(call)
    return kept


def _channels_at(layer: Layer, before: list[Layer]) -> int:
    """The axis of a layer's channels, from where the image went, what the layer is, or the layers before it."""
    axes = len(layer.shape)
    if layer.layout is not None and layer.layout.channels:
        return layer.layout.channels % axes
    if isinstance(layer.module, CHANNELS_LAST):
        return axes - 1
    if isinstance(layer.module, (Convolution, *CHANNELS_FIRST)):
        return 1
    same = [other.channels_at for other in before if other.shape == layer.shape]
    return same[-1] if same else axes - 1 if axes == 3 else 1


def _same_as_inside(layer: Layer, last: Layer) -> bool:
    """Whether what a layer with weights of its own returned is what the last part of it, or call in it, did."""
    if last.values is None or layer.values is None or not last.name.startswith(layer.name and f"{layer.name}."):
        return False
    return last.values.shape == layer.values.shape and torch.equal(last.values, layer.values)


def _what(output: Any) -> str:
    return f"numbers of {output.dtype}" if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _describe(calls: list[Layer], costs: Measured) -> None:
    """What is known of each call besides its output."""
    done: dict[str, Layer] = {}
    for call in calls:
        source: Layer | None
        if call.module is None:
            source = _source_of_call(call.name, done)
        else:
            at = call.call - 1
            feeding = costs.feeding[call.layer][at : at + 1]  # none, if one image alone takes another way than many
            fed = feeding[0] if feeding and is_channelwise(call.module) else None
            source = None if fed is None else done.get(f"{fed[0]}#{fed[1]}") or done.get(fed[0])
            counted = costs.multiply_adds[call.layer][at : at + 1] if call.layer not in costs.uncounted else []
            call.multiply_adds = counted[0] if counted else None
            call.parameters = 0 if at else sum(parameter.numel() for parameter in call.module.parameters())
            _put_kernels(call)
        inherited = source is not None and source.positive and "norm" not in call.kind.lower()
        by_nature = is_positive(call.module, call_of(call.name)) or inherited
        call.positive = by_nature and not any(figures.min < 0 for figures in call.figures)  # as log-sigmoid gives
        if source is not None and source.channels == call.channels:
            call.fed_by = source.name if source.kernels is not None else source.fed_by
        done[call.name] = call


def _source_of_call(name: str, done: dict[str, Layer]) -> Layer | None:
    """The layer that `conv1.relu` is named after, if every call on the way from it keeps its channels."""
    before = name.rpartition(".")[0]
    way = [other for other in done if other.startswith(f"{before}.") and other not in (name, before)]
    own = [call for call in way if done[call].module is None and call.rpartition(".")[0] == before]
    if before not in done or not all(is_channelwise(None, call_of(call)) for call in (*own, name)):
        return None
    return done[own[-1]] if own else done[before]


def _put_kernels(call: Layer) -> None:
    """What a layer with two-dimensional kernels computes with, where that can be known."""
    if call.module is None or not has_kernel(call.module):
        return
    try:
        found = kernel_of(call.module)
    except LayerError:  # it makes other kernels for each input, say
        return
    if found.weight.dim() == 4:
        call.kernels, call.groups, call.kernel_notes = found.weight.float().cpu(), found.groups, found.notes


def _input(images: Tensor, taken: set[str], values: bool) -> Layer:
    """What the model is given, as the first layer of the walk: each place sees itself."""
    name = "input"
    while name in taken:
        name = f"({name})"
    first = Layer(name, None, shape=tuple(images.shape))
    if _is_map(images):
        first.field = described(name, tuple(images.shape[2:]), first.shape, Tracer(images).read(images))
    if values:
        first.values = images.float().cpu()
    return first


def _is_map(images: Tensor) -> bool:
    """Whether there is anything to see: floats with at least one axis of places."""
    return images.is_floating_point() and images.dim() >= 3
