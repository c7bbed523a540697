"""What the kernels of a convolution look like."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_featviz.capture.select import resolve
from torch_featviz.capture.values import whole
from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.picture import Picture, Scale, Sheet, paint

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
_SOLID = (nn.Conv3d, nn.ConvTranspose3d)


def kernels(
    model_or_weight: nn.Module | Tensor,
    layer: str | None = None,
    *,
    scale: Scale | None = None,
    limit: int = 16,
) -> Picture:
    """The kernels of one convolution on one sheet.

    Filters of three channels are drawn in colour, mid-grey being 0; filters of one channel in signed colours;
    deeper ones as a table, a filter a row and an input channel a column.

    Args:
        model_or_weight: a model, a convolution, or a weight `k c h w` (`k c w` for one dimension).
        layer: the layer's name in the model; may be left out for a convolution or a weight.
        scale: how values become colours; default `Scale(symmetric=True)`, one for the layer.
        limit: rows and columns of the table that are shown at most; the legend says what is left out.
    Raises:
        LayerError: there is no such layer, or it has no kernels that can be drawn.
        ShapeError: the weight is not `k c h w`, or is empty.
        OptionError: `limit` is below 1.
    Example:
        >>> kernels(torch.nn.Conv2d(3, 8, 5)).pixels.shape
        torch.Size([3, 17, 17])
    """
    if limit < 1:
        raise OptionError(f"limit must be at least 1, got {limit}.")
    weight, notes = planes_of(model_or_weight, layer)
    filters, channels, height, width = weight.shape
    title = f"Kernels of {layer}" if layer else "Kernels"
    title += f": {filters} filters of {channels}×{height}×{width}"
    fitted = (scale or Scale(symmetric=True)).fit(weight)
    if channels in (1, 3):
        cells, legend = paint(weight, fitted, notes=notes)
        return Sheet(cells, legend, title=title, labels=tuple(str(i) for i in range(filters)))
    return _table(weight, fitted, limit, title, notes)


def _table(weight: Tensor, scale: Scale, limit: int, title: str, notes: tuple[str, ...]) -> Picture:
    """Filters by rows, input channels by columns, as many as can be read."""
    filters, channels = weight.shape[:2]
    rows, columns = min(filters, limit), min(channels, limit)

    def cut(x: Any) -> Any:
        shape = (filters, channels, *x.shape[2:]) if isinstance(x, Tensor) else ()
        return x.expand(shape)[:rows, :columns].flatten(0, 1)[:, None] if shape else x

    scale = replace(scale, vmin=cut(scale.vmin), vmax=cut(scale.vmax))
    if (rows, columns) != (filters, channels):
        notes = (f"{rows} of {filters} filters × {columns} of {channels} channels shown", *notes)
    cells, legend = paint(cut(weight), scale, notes=notes)
    return Sheet(
        cells,
        legend,
        title=title,
        ncols=columns,
        rows=tuple(f"out {i}" for i in range(rows)),
        columns=tuple(str(i) for i in range(columns)),
        corner="in",
        zoom=max(1, -(-36 // max(weight.shape[2:]))),
    )


def planes_of(source: nn.Module | Tensor, layer: str | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """The weight as `k c h w`, and what the legend should add.

    Raises:
        LayerError, ShapeError: as of `kernels`.
    """
    if isinstance(source, Tensor):
        if source.dim() not in (3, 4) or not source.numel():
            raise ShapeError(f"a weight must be 'k c h w' and not empty, got shape {tuple(source.shape)}.")
        return _planes(source), ()
    if not isinstance(source, nn.Module):
        raise LayerError(f"expected a model or a weight, got {type(source).__name__}.")
    module = _resolve(source, layer) if layer else source
    name = f"layer {layer!r}" if layer else "this module"
    weight = getattr(module, "weight", None)
    if isinstance(module, _SOLID):
        raise LayerError(f"{name} is a {type(module).__name__}: draw one slice, kernels(weight[:, :, 0]).")
    if isinstance(weight, Tensor) and is_lazy(weight):
        raise LayerError(f"{name} has no weights before its first call; call the model once.")
    if not isinstance(weight, Tensor) or weight.dim() not in (3, 4) or not weight.numel():
        raise LayerError(f"{name} is a {type(module).__name__} and has no kernels; {_with_kernels(source)}")
    groups = getattr(module, "groups", 1)
    weight = _planes(weight)
    if isinstance(module, _TRANSPOSED):  # stored with the input channels first, group by group
        weight = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    notes = (f"in {groups} groups: columns count from each group's first channel",) if groups > 1 else ()
    return weight, notes if weight.shape[1] > 1 else ()


def _planes(weight: Tensor) -> Tensor:
    weight = whole(weight)
    return weight if weight.dim() == 4 else weight[:, :, None]


def _resolve(model: nn.Module, layer: str) -> nn.Module:
    found = resolve(model, layer)
    if len(found) > 1:
        several = ", ".join(map(repr, found))
        raise LayerError(f"{layer!r} stands for {len(found)} layers, {several}; draw one at a time.")
    return next(iter(found.values()))


def _with_kernels(model: nn.Module) -> str:
    found = [
        name or "itself"
        for name, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor)
        and not is_lazy(weight)
        and weight.dim() in (3, 4)
    ]
    if not found:
        return f"{type(model).__name__} has no convolution."
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return f"these have: {', '.join(map(repr, found[:8]))}{more}."
