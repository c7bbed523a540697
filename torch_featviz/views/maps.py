"""What the feature maps of a layer look like."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.model.layout import Layout
from torch_featviz.picture import Picture, Scale, Sheet, grid_columns, paint
from torch_featviz.picture.scale import as_float


def feature_maps(
    maps: Tensor | Mapping[str, Tensor],
    *,
    layout: Layout | None = None,
    top: int | None = None,
    scale: Scale | None = None,
    ncols: int | None = None,
    title: str = "",
) -> Picture:
    """The feature maps of one image, each with its channel's number; or of a few images, side by side.

    A lone channel has no number. A channel with nothing above 0 in any of them passes nothing on through a ReLU;
    it is marked with `×`.

    Args:
        maps: `c h w`, one image's output of a layer; or such outputs of the same layer by name, as in
            `{"circle": a, "cross": b}`, which are drawn next to each other, channel by channel.
        layout: where the places are in one image's tokens `n c`, or maps `h w c`, as in `acts.layout(name)` or
            `Layout(grid=(14, 14), prefix=1)`; default: maps are `c h w`.
        top: so many channels with the highest values, highest first; default all, in order.
        scale: how values become colours; default `Scale(symmetric=True)`; for maps after a ReLU pass
            `Scale(vmin=0)`.
        ncols: channels per row; default: about a square.
        title: above everything; default says how many maps there are.
    Raises:
        ShapeError: maps are not `c h w`, are empty, or are not of one shape.
        OptionError: `top` or `ncols` is below 1.
    Example:
        >>> feature_maps(torch.randn(6, 5, 5), ncols=3).pixels.shape
        torch.Size([3, 11, 17])
    """
    named = dict(maps) if isinstance(maps, Mapping) else {"": maps}
    if layout is not None:
        named = {name: _folded(x, layout) for name, x in named.items()}
    stack = _stack(named)
    channels, inputs, height, width = stack.shape
    for name, value in (("top", top), ("ncols", ncols)):
        if value is not None and value < 1:
            raise OptionError(f"{name} must be at least 1, got {value}.")
    fitted = (scale or Scale(symmetric=True)).fit(*stack.unbind(1))
    peak, dead = _peaks(stack)
    order = peak.argsort(descending=True, stable=True)[:top] if top else torch.arange(channels, device=stack.device)
    numbers = order.tolist()

    def pick(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.expand(channels, 1, 1)[order].repeat_interleave(inputs, 0)[:, None]

    fitted = replace(fitted, vmin=pick(fitted.vmin), vmax=pick(fitted.vmax))
    notes = _notes(len(numbers), channels, int(dead[order].sum()))
    cells, legend = paint(stack[order].flatten(0, 1)[:, None], fitted, notes=notes)
    ncols = ncols or grid_columns(len(numbers), height / (width * inputs))
    marks = dead.tolist()
    return Sheet(
        cells,
        legend,
        title=title or f"{len(numbers)} feature maps of {height} × {width}",
        ncols=min(ncols, len(numbers)) * inputs,
        labels=tuple(
            f"{i if channels > 1 else ''}{' ×' if marks[i] else ''}".strip() if first else ""
            for i in numbers
            for first in (True, *[False] * (inputs - 1))
        ),
        columns=tuple(named) if isinstance(maps, Mapping) else (),
        group=inputs,
    )


def _folded(values: Any, layout: Layout) -> Any:
    """Maps `c h w` of one image's values in this layout; what is wrong with them is said later."""
    if not isinstance(values, Tensor):
        return values
    image = layout.images or 0
    return layout.maps(values.unsqueeze(image))[0]


def _stack(named: dict[str, Tensor]) -> Tensor:
    """`c i h w`: the inputs next to each other."""
    if not named:
        raise ShapeError("maps must hold at least one tensor, got an empty mapping.")
    for name, x in named.items():
        what = f"maps[{name!r}]" if name else "maps"
        if not isinstance(x, Tensor):
            raise DtypeError(f"{what} must be a tensor 'c h w', got {type(x).__name__}.")
        if x.dim() != 3 or not x.numel():
            hint = f"; take one image with {what}[0]" if x.dim() == 4 else ""
            raise ShapeError(f"{what} must be 'c h w' and not empty, got shape {tuple(x.shape)}{hint}.")
    shapes = {name: tuple(x.shape) for name, x in named.items()}
    if len(set(shapes.values())) > 1:
        raise ShapeError(f"maps side by side must be of one shape, got {shapes}.")
    return torch.stack([as_float(x) for x in named.values()], dim=1)


def _peaks(stack: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's highest value, NaN apart, and whether it has nothing above 0."""
    flat = stack.flatten(1)
    peak = flat.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(1)
    return peak, (peak <= 0) & ~flat.isnan().any(1)


def _notes(shown: int, channels: int, dead: int) -> tuple[str, ...]:
    left_out = (f"{shown} of {channels} maps, highest first",) if shown < channels else ()
    return (*left_out, f"× nothing above 0: {dead} of {shown}") if dead else left_out
