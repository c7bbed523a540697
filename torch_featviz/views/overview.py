"""One map per layer, first to last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.gate import gated
from torch_featviz.inspect.components import reduced_by
from torch_featviz.inspect.layer import Layer
from torch_featviz.inspect.walk import walk
from torch_featviz.model.inputs import Inputs, as_batch
from torch_featviz.model.layers import Layers
from torch_featviz.picture import Picture, Scale, Sheet, enlarge, paint
from torch_featviz.picture.bounds import arranged, listed
from torch_featviz.picture.color import is_diverging
from torch_featviz.picture.contrast import contrast, ends_of, joined, signed

from .stages import stages

_WHITE = 255
_FEW, _ZOOMED = 24, 240  # so many cells may be so many pixels large
_LARGE = 448  # pixels of a cell that maps may be enlarged to, so that their sizes agree


@gated
def overview(
    model: nn.Module,
    images: Tensor,
    layers: Layers = None,
    *,
    ops: bool = True,
    limit: int | None = 24,
    scale: Scale | None = None,
    cmap: str | None = None,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    title: str = "",
) -> Picture:
    """Draw one image's way through the network: the mean over channels of each layer's output, in order of execution.

    Layers differ in range by orders of magnitude, so each map has its own scale, whose ends stand below it. Values of
    one sign have sequential colours, from lowest to highest; values of both signs have diverging colours, symmetric
    about 0. Outliers, at most 0.5 % of the values, are clipped, marked and counted. Maps are enlarged by whole factors
    to about one size. A copy of the model runs.

    Args:
        model: any module; it is unchanged.
        images: one image, `1 c h w` or `c h w`, as the model takes it (`card.preprocess`).
        layers: the layers to draw, as for `capture`. Default: all layers that compute something, without padding.
            Layers that return no maps are named in the legend.
        ops: without `layers`, also draw functional calls (`F.relu`, `+`).
        limit: without `layers`, the most layers to draw; if there are more, the ends of blocks and the last layer of
            each size are drawn. None draws all.
        scale: how values become colours. Missing ends are fitted to each map; with both ends it is the same for all
            maps.
        cmap: a colour map, such as `"gray"`. A diverging map is symmetric about 0, any other goes from lowest to
            highest.
        additional_forward_args: further positional arguments of `forward`, one value or a tuple.
        keywords: keyword arguments of `forward`.
        title: heading of the picture. Default: names the model.

    Raises:
        ShapeError: `images` is not one image, or the model does not accept it.
        DtypeError, DeviceError, OptionError: the model cannot be copied, or `forward` takes other arguments; `limit` is
            below 1; `cmap` is unknown or does not fit `scale`.
        LayerError: no such layer, or none of them returns maps.

    Example:
        >>> overview(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), torch.rand(1, 8, 8)).labels
        ('0  Conv2d', '1  ReLU')
    """
    if limit is not None and limit < 1:
        raise OptionError(f"limit must be at least 1, or None, got {limit}.")
    images = as_batch(images)
    if len(images) != 1:
        raise ShapeError(f"images must be one image '1 c h w', got shape {tuple(images.shape)}; pass images[:1].")
    seen = walk(model, Inputs.of(images, additional_forward_args, keywords), layers)
    calls = [call for call in seen.layers[1:] if ops or call.module is not None or layers is not None]
    drawn = [call for call in calls if call.maps is not None]
    without = [call.name for call in calls if call.maps is None]
    if not drawn:
        raise LayerError(f"none of {', '.join(map(repr, without))} returned maps '1 c h w'.")
    notes = _left_out(without, [call.name for call in seen.idle], seen.not_run)
    if layers is None:
        shown = stages(drawn, limit)
        left_out = f"{len(shown)} of {len(drawn)} layers: ends of blocks, last of each size; limit=None draws all"
        notes = (left_out, *notes) if len(shown) < len(drawn) else notes
        drawn = shown
    notes += tuple(f"{words}: not drawn" for words in sorted({call.unplaced for call in drawn} - {""}))
    maps = [call.maps for call in drawn if call.maps is not None]
    means = [reduced_by(each, "mean")[:, None] for each in maps]
    scales = [(scale or contrast(is_diverging(cmap) if cmap else bool(signed(mean)))).fit(mean) for mean in means]
    painted = [paint(mean, each, cmap=cmap) for mean, each in zip(means, scales, strict=True)]
    cells = _alike([cell for cell, _ in painted])
    labels = [_label(call) for call in drawn]
    _, columns = arranged(len(cells), cells.shape[2], cells.shape[3], labels, lines=2)
    return Sheet(
        cells,
        joined([legend for _, legend in painted], notes, told=scale is None and cmap is None),
        title=title or f"{type(model).__name__}, layer by layer: mean over channels",
        ncols=columns,
        zoom=_ZOOMED // cells.shape[-1] if len(cells) <= _FEW else None,
        labels=tuple(labels),
        captions=tuple(
            f"{mean.shape[2]}×{mean.shape[3]}  {' '.join(ends_of(each))}"
            for mean, each in zip(means, scales, strict=True)
        ),
    )


def _label(call: Layer) -> str:
    """A layer's name and what it is; of a functional call its function."""
    if call.module is None:
        return f"{call.name}  {call.kind}()"
    return f"{call.name or 'model'}  {call.kind}"


def _alike(cells: Sequence[Tensor]) -> Tensor:
    """`1 3 h w` each, enlarged to about one size, amid white paper: `n 3 side side`."""
    sizes = [max(cell.shape[2:]) for cell in cells]
    nominal = _nominal(sizes)
    enlarged = [enlarge(cell, _factor(size, nominal)) for cell, size in zip(cells, sizes, strict=True)]
    side = max(max(cell.shape[2:]) for cell in enlarged)
    return torch.cat([_framed(cell, side) for cell in enlarged])


def _factor(size: int, nominal: int) -> int:
    """The whole factor that brings a size nearest to another."""
    return max(1, round(nominal / size))


def _nominal(sizes: Sequence[int]) -> int:
    """The least size at which maps that are enlarged by whole factors differ by at most a tenth, or the least."""

    def unlike(nominal: int) -> float:
        large = [size * _factor(size, nominal) for size in sizes]
        return max(large) / min(large)

    largest = max(sizes)
    tried = range(largest, max(largest, min(2 * largest, _LARGE)) + 1)
    return next((nominal for nominal in tried if unlike(nominal) <= 1.1), min(tried, key=unlike))


def _framed(cell: Tensor, side: int) -> Tensor:
    """Amid white paper: `1 3 side side`."""
    left, top = (side - cell.shape[3]) // 2, (side - cell.shape[2]) // 2
    return F.pad(cell, (left, side - cell.shape[3] - left, top, side - cell.shape[2] - top), value=_WHITE)


def _left_out(without: list[str], idle: list[str], not_run: list[str]) -> tuple[str, ...]:
    lines = []
    for names, why in ((without, "return no maps"), (idle, "only pass values on"), (not_run, "did not run")):
        if names:
            lines.append(f"{why}: {listed(names, 6)}")
    return tuple(lines)
