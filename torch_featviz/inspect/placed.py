"""What one layer returns for some images, brought to the places of the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.capture.session import Capture
from torch_featviz.errors import ShapeError
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layers import Layers, layer_name, split_call
from torch_featviz.model.layout import Layout, LayoutTracer
from torch_featviz.model.run import check_call, run
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated
from torch_featviz.model.values import tensors

_TIMES = 2.0  # the median norm: after a norm layer all tokens are alike, and no small difference is an artefact
_SPREADS = 6.0  # robust standard deviations above it: where norms differ widely, a large one is nothing special
_SPREAD = 1.4826  # of the median deviation: the standard deviation of what is normally distributed


@dataclass(frozen=True, eq=False)
class Placed:
    """What one layer returned, on the CPU.

    Args:
        layer: its full name.
        maps: `b k h w`, of the places alone.
        layout: the axes of what it returned.
    """

    layer: str
    maps: Tensor
    layout: Layout


def placed(model: nn.Module, inputs: Inputs, layer: str | nn.Module, layout: Layout | None = None) -> Placed:
    """Run a copy of `model` in evaluation mode and return what `layer` made of each image, place by place.

    Args:
        model: any module; it is unchanged.
        inputs: the arguments.
        layer: a layer that runs once, or one of its calls (`"relu#2"`).
        layout: where images, channels and places are in what it returns. Default: found by following the images.
    Raises:
        LayerError: no such layer, or it does not run exactly once.
        ShapeError: it returns no map with rows and columns.
        DtypeError, DeviceError, OptionError: the model cannot be copied, or does not accept the inputs.
    """
    name = layer_name(model, layer)
    bare, call = split_call(name)
    with isolated(), torch.no_grad():
        net, inputs = twin(model), inputs.copied()
        tracer = LayoutTracer(inputs.images)

        def look(output: Any) -> tuple[Tensor | None, Layout]:
            values = next(iter(tensors(output)), None)
            return None if values is None else values.clone(), _layout(tracer, output)

        with Capture(net, bare, into=look) as found, tracer:
            run(net, inputs)
    calls = found.calls(bare)
    check_call(name, len(calls))
    values, known = calls[(call or 1) - 1]
    layout = known if layout is None else layout
    if values is None or len(layout.grid) != 2:
        shape = "no tensor" if values is None else f"shape {tuple(values.shape)}"
        raise ShapeError(
            f"layer {name!r} returns {shape}, whose places are not known; choose a convolution or a block, or pass "
            "layout=Layout(grid=(rows, columns), prefix=...)."
        )
    maps = layout.maps(values).cpu()
    return Placed(name, maps if maps.dtype == torch.float64 else maps.float(), layout)


def layouts(model: nn.Module, inputs: Inputs, layers: Layers) -> dict[str, Layout]:
    """The axes of what each of these layers returns, as `placed` finds them; without places where they are not known.

    Args:
        model: any module; it is unchanged.
        inputs: the arguments.
        layers: as for `capture`, and so are the names.
    Raises:
        LayerError: no such layer.
        DtypeError, DeviceError, OptionError, ShapeError: the model cannot be copied, or does not accept the inputs.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2))
        >>> [found.grid for found in layouts(net, Inputs(torch.rand(2, 3, 8, 12)), ["0", "1"]).values()]
        [(2, 3), (2, 3)]
    """
    with isolated(), torch.no_grad():
        net, inputs = twin(model), inputs.copied()
        tracer = LayoutTracer(inputs.images)
        with Capture(net, layers, into=lambda output: _layout(tracer, output)) as found, tracer:
            run(net, inputs)
    return dict(found)


def _layout(tracer: LayoutTracer, output: Any) -> Layout:
    """Of the first tensor; four axes whose places were lost on the way are taken for those of a map."""
    values = next(iter(tensors(output)), None)
    if values is not None and values.dim() == 4 and tracer.lost_places(values):
        return Layout(tuple(values.shape[2:]), channels=1, tokens=None, places=(2, 3))
    return tracer.layout(output) or Layout(channels=None)


def artefact_norm(norms: Tensor) -> float:
    """Return the norm above which a token is an artefact: twice the median, or 6 robust standard deviations above it.

    The larger of the two counts. Vision transformers store global information in a few tokens of empty background,
    whose norm is several times that of all others (Darcet et al. 2024). Twice the median leaves alone the tokens behind
    a norm layer, which are all about as long; the standard deviation (1.4826 × the median deviation) leaves alone those
    of early layers, whose norms follow the contrast of the image.

    Args:
        norms: of all tokens, of any shape; those that are not finite are left out.
    Example:
        >>> artefact_norm(torch.tensor([9.0, 10.0, 10.0, 11.0, 80.0]))
        20.0
    """
    values = norms[norms.isfinite()].double()
    if not values.numel():
        return 0.0
    median = values.median()
    spread = _SPREAD * (values - median).abs().median()
    return float(torch.maximum(_TIMES * median, median + _SPREADS * spread))
