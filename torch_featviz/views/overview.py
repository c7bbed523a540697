"""A walk through the network: one map for each layer, first to last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_featviz.errors import LayerError, ShapeError
from torch_featviz.inspect.walk import walk
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layers import Layers
from torch_featviz.picture import Legend, Picture, Scale, Sheet, colorize, count, enlarge, grid_columns, number
from torch_featviz.picture.color import total_of

_CMAP = "RdBu_r"
_WHITE = 255


def overview(
    model: nn.Module,
    images: Tensor,
    layers: Layers = None,
    *,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    title: str = "",
) -> Picture:
    """What each layer makes of one image: its output's mean over channels, in order of execution.

    Layers differ in range by orders of magnitude, so each map has a symmetric scale of its own, whose end stands
    above it; all maps are enlarged by whole factors to about one size. A copy of the model runs.

    Args:
        model: any module; it is untouched.
        images: `1 c h w`, ready for the model (`card.preprocess`).
        layers: as for `capture`; default all that compute something, functional calls (`F.relu`, `+`) among them. Those
            that return no maps are named in the legend.
        additional_forward_args: what `forward` takes after the image, one value or a tuple.
        keywords: what `forward` takes by name.
        title: above everything; default names the model.

    Raises:
        ShapeError: `images` is not one image, or the model does not take it.
        DtypeError, DeviceError, OptionError: the model cannot be copied, or `forward` takes other inputs.
        LayerError: no such layer, or none of them returned maps.

    Example:
        >>> overview(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), torch.rand(1, 1, 8, 8)).title
        'Sequential, layer by layer: mean over channels'
    """
    if images.dim() != 4 or images.shape[0] != 1:
        raise ShapeError(f"images must be one image '1 c h w', got shape {tuple(images.shape)}; take images[:1].")
    seen = walk(model, Inputs.of(images, additional_forward_args, keywords), layers)
    calls = seen.layers[1:]
    means = {call.name: call.maps[0].mean(0) for call in calls if call.maps is not None}
    without = [call.name for call in calls if call.name not in means]
    if not means:
        raise LayerError(f"none of {', '.join(map(repr, without))} returned maps '1 c h w'.")
    fitted = {name: Scale(symmetric=True).fit(mean) for name, mean in means.items()}
    side = max(max(mean.shape) for mean in means.values())
    units = {name: fitted[name](mean)[None, None] for name, mean in means.items()}
    cells = torch.cat([_framed(colorize(unit, _CMAP), side) for unit in units.values()])
    ends = torch.tensor([scale.vmax for scale in fitted.values()], device="cpu")[:, None, None, None]
    legend = Legend(
        Scale(symmetric=True, vmin=-ends, vmax=ends, per="kernel"),
        _CMAP,
        total_of(count(unit) for unit in units.values()),
        _left_out(without, [call.name for call in seen.idle], seen.not_run),
    )
    return Sheet(
        cells,
        legend,
        title=title or f"{type(model).__name__}, layer by layer: mean over channels",
        ncols=grid_columns(len(means)),
        labels=tuple(
            f"{name or 'model'}  {mean.shape[0]}×{mean.shape[1]}  ±{number(float(fitted[name].vmax or 0))}"
            for name, mean in means.items()
        ),
    )


def _framed(cell: Tensor, side: int) -> Tensor:
    """`1 3 h w` enlarged by the largest whole factor that fits, amid white paper: `1 3 side side`."""
    height, width = cell.shape[2:]
    cell = enlarge(cell, side // max(height, width))
    left, top = (side - cell.shape[3]) // 2, (side - cell.shape[2]) // 2
    return F.pad(cell, (left, side - cell.shape[3] - left, top, side - cell.shape[2] - top), value=_WHITE)


def _left_out(without: list[str], idle: list[str], not_run: list[str]) -> tuple[str, ...]:
    lines = []
    for names, why in ((without, "without maps"), (idle, "only pass values on"), (not_run, "not run")):
        if names:
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            lines.append(f"{why}: {', '.join(names[:6])}{more}")
    return tuple(lines)
