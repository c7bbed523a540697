"""The feature maps of a layer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.gate import check_tensor, gate
from torch_featviz.model.layout import Layout
from torch_featviz.model.unplaced import unplaced
from torch_featviz.picture import Legend, Picture, Scale, Sheet, grid_columns, paint
from torch_featviz.picture.bounds import SIDE, arranged, fitting, widest
from torch_featviz.picture.color import is_diverging
from torch_featviz.picture.contrast import contrast, ends_of, joined, signed
from torch_featviz.picture.scale import as_float

from .reduced import reduced

_NAME = 320  # pixels of the name of an image, at most
_FAINT = 1e-3  # of the median channel


@gate("maps")
def feature_maps(
    maps: Tensor | Mapping[str, Tensor],
    *,
    layout: Layout | None = None,
    reduce: Literal["mean", "max", "rms", "pc1"] | None = None,
    top: int | None = None,
    per: Literal["kernel", "layer"] = "kernel",
    scale: Scale | None = None,
    cmap: str | None = None,
    ncols: int | None = None,
    title: str = "",
) -> Picture:
    """Draw the feature maps of one image, each with its channel number; or of a few images, side by side.

    By default each map has its own scale, whose ends stand below it: the colours show the shape, the numbers the
    strength. `per="layer"` draws all maps on one scale, so that they can be compared. Values of one sign have
    sequential colours, from lowest to highest; values of both signs have diverging colours, symmetric about 0.
    Outliers, at most 0.5 % of the values, are clipped, marked and counted.

    `reduce` draws one map instead of all channels, on one scale for all images. The legend tells how much of the
    variance is lost: each channel is predicted from the map by a line, by least squares over all places of all images;
    lost is what these predictions leave of the variance, summed over the channels. No map keeps more than `"pc1"`.

    `×` marks a channel without any value above 0: nothing passes a ReLU. `≈` marks a channel below 0.1 % of the median
    channel; it is drawn flat. A single channel has no number.

    Args:
        maps: `c h w`, a layer's output for one image; or `b c h w`, for several, or outputs of one layer by name, as in
            `{"circle": a, "cross": b}`, drawn side by side, channel by channel, on the same scale.
        layout: where the places are in tokens `n c` or `b n c`, or in maps `h w c`, as in `acts.layout(name)` or
            `Layout(grid=(14, 14), prefix=1)`. Default: maps are `c h w`. Tokens without a place are counted in the
            legend.
        reduce: draw the `"mean"` over channels, their maximum (`"max"`), their root mean square (`"rms"`), or their
            first principal component (`"pc1"`), whose largest loading is positive. Default: all channels.
        top: draw only this number of channels, those with the highest values, highest first, equal ones by
            their mean. Default: all in order, or
            as many as fit on a sheet of 4,000 pixels a side.
        per: `"kernel"`: one scale per map; `"layer"`: one scale for all maps shown.
        scale: how values become colours, instead of `per`; it is fitted to all maps, shown or not.
        cmap: a colour map, such as `"gray"`. A diverging map is symmetric about 0, any other goes from lowest to
            highest.
        ncols: channels per row. Default: about a square.
        title: heading of the picture. Default: the number and size of the maps.
    Raises:
        ShapeError: maps are not `c h w`, are empty, or differ in shape.
        OptionError: `top` or `ncols` is below 1, `cmap` is unknown or does not fit `scale`, `per` is invalid or given
            with a scale, or `reduce` is invalid or given with `top`.
    Example:
        >>> feature_maps(torch.randn(6, 5, 5), ncols=3).pixels.shape
        torch.Size([3, 11, 17])
    """
    _check(top, ncols, per, scale)
    named = _named(maps, layout)
    stack = _stack(named)
    apart = unplaced(layout) if layout is not None else ""
    left_out = (f"{apart}: not drawn",) if apart else ()
    if reduce is not None:
        if top is not None:
            raise OptionError(f"pass either top or reduce, got top={top} and reduce={reduce!r}.")
        more: Any = {"scale": scale, "cmap": cmap, "ncols": ncols, "title": title, "notes": left_out}
        return reduced(stack.movedim(1, 0), reduce, names=tuple(named), **more)
    images = len(named) if ncols else min(len(named), fitting(stack.shape[2], stack.shape[3], named)[1])
    stack = stack[:, :images]
    channels, _, height, width = stack.shape
    peak, dead = _peaks(stack)
    faint, floor = _faint(stack, by_map=scale is None and per == "kernel")
    kinds = _kinds(stack, scale, cmap, floor) if per == "kernel" else []
    ends = _words(kinds, stack.flatten(1).isfinite().any(1).tolist())
    room, columns = channels, ncols
    if ncols is None and top is None:
        side = SIDE - min(_NAME, widest(named))  # names that are wider than their images stand upright
        room, columns = arranged(channels, height, width, ends, lines=2 if ends else 1, group=images, side=side)
    top = room if room < channels else top
    order = _strongest(stack, peak)[:top] if top else torch.arange(channels, device=stack.device)
    numbers = order.tolist()
    shown = stack[order]
    if per == "layer":
        symmetric = is_diverging(cmap) if cmap else bool(signed(stack[None]))
        fitted = contrast(symmetric, per="layer").fit(shown)
        kinds = [(torch.ones(channels, dtype=torch.bool, device=stack.device), fitted)]
    cells, legends = _painted(shown, kinds, order, cmap)
    notes = (
        *(("below each map: the ends of its scale",) if ends else ()),
        *((f"{images} of {len(named)} images",) if images < len(named) else ()),
        *_notes(len(numbers), channels, dead=int(dead[order].sum()), faint=int(faint[order].sum())),
        *left_out,
    )
    legend = joined(legends, notes, told=scale is None and cmap is None)
    columns = columns or grid_columns(len(numbers), height / (width * images))
    marks = [" ×" * none + " ≈" * weak for none, weak in zip(dead.tolist(), faint.tolist(), strict=True)]
    words = [f"{i if channels > 1 else ''}{marks[i]}".strip() for i in numbers]
    return Sheet(
        cells,
        legend,
        title=title or f"{len(numbers)} feature maps of {height} × {width}",
        ncols=min(columns, len(numbers)) * images,
        labels=_first_of_each(words, images),
        captions=_first_of_each([ends[i] for i in numbers], images) if ends else (),
        columns=tuple(named)[:images] if any(named) else (),
        group=images,
    )


def _check(top: int | None, ncols: int | None, per: str, scale: Scale | None) -> None:
    for name, value in (("top", top), ("ncols", ncols)):
        if value is not None and value < 1:
            raise OptionError(f"{name} must be at least 1, got {value}.")
    if scale is not None and per != "kernel":
        raise OptionError(f"pass either per or scale, got per={per!r} and a scale; use Scale(per=...).")


def _faint(stack: Tensor, *, by_map: bool) -> tuple[Tensor, float]:
    """Which channels are not 0, but below 0.1 % of the median one, and that limit; none if they share a scale."""
    flat = stack.flatten(1)
    reach = flat.masked_fill(~flat.isfinite(), 0).abs().amax(1)
    floor = _FAINT * float(reach.median()) if by_map else 0.0
    return (reach > 0) & (reach < floor), floor


def _kinds(stack: Tensor, scale: Scale | None, cmap: str | None, floor: float) -> list[tuple[Tensor, Scale]]:
    """Fitted scales, each with the channels that are drawn on it: that which was given, or one for each kind."""
    channels, *_ = stack.shape
    symmetric = signed(stack) if cmap is None else torch.full((channels,), is_diverging(cmap), device=stack.device)
    everywhere = torch.ones_like(symmetric)
    if scale is not None:
        return [(everywhere, scale.fit(*stack.unbind(1)))]
    kinds = ((symmetric == kind, contrast(kind)) for kind in (False, True))
    return [(of, _no_narrower(chosen.fit(*stack.unbind(1)), floor)) for of, chosen in kinds if bool(of.any())]


def _no_narrower(scale: Scale, floor: float) -> Scale:
    """Where a map does not reach that far from 0, its scale does."""
    low, high = scale.vmin, scale.vmax
    assert isinstance(low, Tensor)
    assert isinstance(high, Tensor)
    reach = torch.maximum(low.abs(), high.abs())
    weak = (reach > 0) & (reach < floor)
    low = low.masked_fill(weak & ((low < 0) | scale.symmetric), -floor).masked_fill(weak & (low > 0), 0)
    return replace(scale, vmin=low, vmax=high.masked_fill(weak & (low >= 0), floor) if not scale.symmetric else -low)


def _words(kinds: list[tuple[Tensor, Scale]], finite: list[bool]) -> tuple[str, ...]:
    """The ends of each channel's scale, where it has finite values; none where all share one."""
    several = [isinstance(end, Tensor) for _, scale in kinds for end in (scale.vmin, scale.vmax)]
    if not any(several):
        return ()
    words = [""] * len(kinds[0][0])
    for of, scale in kinds:
        ends = ends_of(scale)
        for i in of.nonzero().flatten().tolist():
            words[i] = ends[i % len(ends)] if finite[i] else "not finite"
    return tuple(words)


def _painted(
    shown: Tensor, kinds: list[tuple[Tensor, Scale]], order: Tensor, cmap: str | None
) -> tuple[Tensor, list[Legend]]:
    """The cells of these maps `n i h w`, image after image of each, and the legend of each kind that is among them."""
    count, images, height, width = shown.shape
    cells = torch.empty((count, images, 3, height, width), dtype=torch.uint8, device=shown.device)
    legends = []
    for of, scale in kinds:
        here = of[order]
        if bool(here.any()):
            maps = shown[here].flatten(0, 1)[:, None]
            painted, legend = paint(maps, _picked(scale, order[here], images), cmap=cmap)
            cells[here] = painted.reshape(-1, images, 3, height, width)
            legends.append(legend)
    return cells.flatten(0, 1), legends


def _picked(scale: Scale, order: Tensor, images: int) -> Scale:
    """The ends of these channels alone, once for each image."""

    def pick(end: Any) -> Any:
        if not isinstance(end, Tensor):
            return end
        return end.expand(-1, 1, 1)[order].repeat_interleave(images, 0)[:, None]

    return replace(scale, vmin=pick(scale.vmin), vmax=pick(scale.vmax))


def _first_of_each(words: list[str], images: int) -> tuple[str, ...]:
    return tuple(word for first in words for word in (first, *[""] * (images - 1)))


def _named(maps: Any, layout: Layout | None) -> dict[str, Any]:
    """Maps `c h w` by name; of a single image without one. What is wrong with them is said later."""
    if isinstance(maps, Mapping):
        named = {name: _folded(x, layout) for name, x in maps.items()}
        return named if layout is None else {name: _alone(x) for name, x in named.items()}
    maps = _folded(maps, layout)
    if isinstance(maps, Tensor) and maps.dim() == 4 and len(maps) > 1:
        return {f"image {i}": x for i, x in enumerate(maps)}
    return {"": _alone(maps)}


def _alone(maps: Any) -> Any:
    """The maps of a batch of one image."""
    return maps[0] if isinstance(maps, Tensor) and maps.dim() == 4 and len(maps) == 1 else maps


def _folded(values: Any, layout: Layout | None) -> Any:
    """Maps `c h w` of one image's values in this layout, or `b c h w` of those of several."""
    if layout is None or not isinstance(values, Tensor):
        return values
    axes = 2 + (len(layout.places) or 1)
    return layout.maps(values) if values.dim() == axes else layout.maps(values.unsqueeze(layout.images or 0))[0]


def _stack(named: dict[str, Tensor]) -> Tensor:
    """`c i h w`: the inputs next to each other."""
    if not named:
        raise ShapeError("maps must hold at least one tensor, got an empty mapping.")
    named = {f"maps[{name!r}]" if name else "maps": x for name, x in named.items()}
    for what, x in named.items():
        check_tensor(what, x)
        if x.dim() != 3 or not x.numel():
            hint = f"; take one image with {what}[0]" if x.dim() > 3 else ""
            raise ShapeError(f"{what} must be 'c h w' and not empty, got shape {tuple(x.shape)}{hint}.")
    shapes = {what: tuple(x.shape) for what, x in named.items()}
    if len(set(shapes.values())) > 1:
        raise ShapeError(f"maps side by side must have one shape, got {shapes}.")
    return torch.stack([as_float(x, what) for what, x in named.items()], dim=1)


def _peaks(stack: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's highest value, NaN apart, and whether it has nothing above 0."""
    flat = stack.flatten(1)
    peak = flat.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(1)
    return peak, (peak <= 0) & ~flat.isnan().any(1)


def _strongest(stack: Tensor, peak: Tensor) -> Tensor:
    """The channels by their highest value; equal ones, as where ReLU6 cuts all off at 6, by their mean."""
    by_mean = stack.flatten(1).nan_to_num(0, 0, 0).mean(1).argsort(descending=True, stable=True)
    return by_mean[peak[by_mean].argsort(descending=True, stable=True)]


def _notes(shown: int, channels: int, *, dead: int, faint: int) -> tuple[str, ...]:
    return (
        *((f"{shown} of {channels} maps, highest first",) if shown < channels else ()),
        *((f"× nothing above 0: {dead} of {shown}",) if dead else ()),
        *((f"≈ below 0.1 % of the median map: {faint} of {shown}",) if faint else ()),
    )
