"""What the kernels of a convolution look like."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from torch_featviz.errors import OptionError
from torch_featviz.model.weights import planes_of
from torch_featviz.picture import Picture, Scale, Sheet, paint


def kernels(
    model_or_weight: nn.Module | Tensor,
    layer: str | None = None,
    *,
    scale: Scale | None = None,
    cmap: str | None = None,
    limit: int = 16,
) -> Picture:
    """The kernels of one convolution on one sheet.

    Filters of three channels are drawn in colour, mid-grey being 0; filters of one channel in signed colours;
    deeper ones as a table, a filter a row and an input channel a column.

    Drawn is what the layer computes with now, in evaluation mode: weight norm, spectral norm, pruning,
    parametrizations, weight standardisation, an adapter (LoRA) and quantisation are in it, and the legend says so. A
    layer that is not plainly a convolution with its `weight` is copied, and the copy is run on made-up input; the
    network never is.

    Args:
        model_or_weight: a model, a convolution or an adapter around one, or a weight `k c h w` (`k c w` for one
            dimension).
        layer: the layer's name in the model; may be left out for a convolution or a weight.
        scale: how values become colours; default `Scale(symmetric=True)`, one for the layer.
        cmap: a colour map, such as `"gray"`; with it filters of three channels are a table too. Default `RdBu_r`, or
            `viridis` where the scale is not symmetric.
        limit: rows and columns of the table that are shown at most; the legend says what is left out.
    Raises:
        LayerError: there is no such layer, or it has no kernels that can be drawn; the error says why.
        ShapeError: the weight is not `k c h w`, or is empty.
        OptionError: `limit` is below 1, or `cmap` is not offered.
    Example:
        >>> kernels(torch.nn.Conv2d(3, 8, 5)).pixels.shape
        torch.Size([3, 17, 17])
    """
    if limit < 1:
        raise OptionError(f"limit must be at least 1, got {limit}.")
    weight, _, _, notes = planes_of(model_or_weight, layer)
    filters, channels, height, width = weight.shape
    title = f"Kernels of {layer}" if layer else "Kernels"
    title += f": {filters} filters of {channels}×{height}×{width}"
    fitted = (scale or Scale(symmetric=True)).fit(weight)
    if channels == 1 or (channels == 3 and cmap is None):
        cells, legend = paint(weight, fitted, cmap=cmap, notes=notes)
        return Sheet(cells, legend, title=title, labels=tuple(str(i) for i in range(filters)))
    return _table(weight, fitted, limit, cmap=cmap, title=title, notes=notes)


def _table(
    weight: Tensor, scale: Scale, limit: int, *, cmap: str | None, title: str, notes: tuple[str, ...]
) -> Picture:
    """Filters by rows, input channels by columns, as many as can be read."""
    filters, channels = weight.shape[:2]
    rows, columns = min(filters, limit), min(channels, limit)

    def cut(x: Any) -> Any:
        shape = (filters, channels, *x.shape[2:]) if isinstance(x, Tensor) else ()
        return x.expand(shape)[:rows, :columns].flatten(0, 1)[:, None] if shape else x

    scale = replace(scale, vmin=cut(scale.vmin), vmax=cut(scale.vmax))
    if (rows, columns) != (filters, channels):
        notes = (f"{rows} of {filters} filters × {columns} of {channels} channels shown", *notes)
    cells, legend = paint(cut(weight), scale, cmap=cmap, notes=notes)
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
