"""The tokens of a layer as maps: what differs among them in colours, or how large each is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.inspect.components import Components, finite, principal
from torch_featviz.inspect.placed import Placed, artefact_norm, placed
from torch_featviz.model.inputs import Inputs, as_batch
from torch_featviz.model.layout import Layout
from torch_featviz.model.unplaced import unplaced
from torch_featviz.picture import Counts, Legend, Picture, Scale, Sheet, enlarge, grid_columns, number, paint, rgb
from torch_featviz.picture.bounds import drawn_at, room, shrunk
from torch_featviz.picture.color import total_of
from torch_featviz.picture.contrast import contrast
from torch_featviz.picture.images import Card, ValueRange, clipped, unit_images
from torch_featviz.picture.legend import OF_IMAGES, share

LIMIT = 64
_GOAL = 224  # pixels, about, of a cell
_WHITE, _BLACK = 255, 0
_COLOURS = (((255, 0, 0), "red"), ((0, 255, 0), "green"), ((0, 0, 255), "blue"))


def tokens(
    model: nn.Module,
    images: Tensor,
    layer: str | nn.Module,
    *,
    by: Literal["pca", "norm"] = "pca",
    layout: Layout | None = None,
    value_range: ValueRange | None = None,
    card: Card | None = None,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    title: str = "",
) -> Picture:
    """Draw what a layer holds at each place of the images: its tokens, or all its feature maps in one picture.

    `by="pca"` draws the first three principal components of all tokens of all images as red, green and blue: what has
    the same colour is alike to the network. The mean token is mid-grey. Each component has its own scale, symmetric
    about 0, and a higher value is a lighter red, green or blue. Of each component the largest loading is positive. The
    legend tells how much of the variance each of them explains. `by="norm"` draws the norm of each token.

    Tokens without a place (a class token, registers) are named in the legend; they are not drawn and have no part in
    the components. Artefact tokens, whose norm is at least twice the median (Darcet et al. 2024), have a black and
    white outline. They are drawn like all others, but have no part in the components, of which they would make up most.

    Args:
        model: any module; it is unchanged.
        images: `b c h w`, or one image `c h w`, as the model takes them, with one or three channels; at most 64.
        layer: a layer that returns tokens or maps and runs once, such as a block; by name or as a module.
        by: `"pca"` or `"norm"`.
        layout: where images, channels and places are in what the layer returns. Default: found by following the images.
        value_range: range of the values of images: `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255),
            `"imagenet"` or `{"mean": ..., "std": ...}` (normalised), or a function that maps them to 0 to 1. Default:
            the range of the card, or `"unit"`.
        card: card of the model, if the images are preprocessed for it.
        additional_forward_args: further positional arguments of `forward`, as for `attribute`.
        keywords: keyword arguments of `forward`, likewise.
        title: heading of the picture. Default: names the layer.
    Raises:
        ShapeError: images have other axes, there are more than 64, or the layer returns no tokens or maps whose places
            are known.
        OptionError: `by`, the range or the card is invalid.
        LayerError: no such layer, or it does not run exactly once.
        DtypeError, DeviceError: the model cannot be copied, or does not accept the images.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU())
        >>> tokens(net, torch.rand(2, 3, 32, 32), "1").title
        '1: principal components of 8 × 8 places, 8 channels'

    Reference: Oquab et al. 2023, fig. 1; Darcet et al. 2024, section 2.1.
    """
    if by not in ("pca", "norm"):
        raise OptionError(f"by must be 'pca' or 'norm', got {by!r}.")
    images = as_batch(images)
    if len(images) > LIMIT:
        raise ShapeError(f"{len(images)} images are too many, a sheet shows {LIMIT}; pass fewer.")
    units = unit_images(images, value_range, card)
    found = placed(model, Inputs.of(images, additional_forward_args, keywords), layer, layout)
    counts, hints = clipped(units, value_range, card)
    pairs = grid_columns(len(images), images.shape[2] / (2 * images.shape[3]))
    most = room(2 * pairs, -(-len(images) // pairs))
    artefacts = _Artefacts.of(found)
    drawn = _by_components(found, artefacts, most) if by == "pca" else _by_norm(artefacts, most)
    cells, notes = _cells(units.cpu(), drawn, most)
    notes += drawn_at(found.maps, drawn.cells, "maps")
    without = unplaced(found.layout, model)
    notes = (*((f"{without}: not drawn",) if without else ()), *notes, *hints)
    legend = drawn.legend
    return Sheet(
        cells,
        replace(legend, counts=total_of([legend.counts, counts]), notes=(*legend.notes, *notes)),
        title=title or _title(found, by),
        ncols=2 * pairs,
        columns=("image", {"pca": "components", "norm": "norm"}[by]),
        group=2,
        zoom=1,
    )


@dataclass(frozen=True)
class _Artefacts:
    """Where norms stand out: `b h w`, and the rule in words; nowhere in maps, which are no tokens."""

    norms: Tensor
    where: Tensor
    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Placed) -> _Artefacts:
        norms = torch.linalg.vector_norm(found.maps, dim=1)
        if found.layout.tokens is None:
            return cls(norms, torch.zeros_like(norms, dtype=torch.bool))
        least = artefact_norm(norms)
        where = (norms > least) & finite(found.maps)
        count = int(where.sum())
        median = float(norms[norms.isfinite()].median()) if bool(norms.isfinite().any()) else 0.0
        times = f", {least / median:.1f} × the median {number(median)}" if median else ""
        n = f"{count} of {norms.numel():,}, black and white outline" if count else "none"
        return cls(norms, where, (f"artefact tokens (norm above {number(least)}{times}): {n}",))

    def drawn(self, most: int) -> Tensor:
        """The same where maps are drawn smaller than they are."""
        return shrunk(self.where[:, None].float(), most, None)[:, 0] > 0


@dataclass(frozen=True)
class _Drawn:
    """Cells `b 3 h w`, a pixel per place; which of them have an outline, `b h w`; and the legend."""

    cells: Tensor
    outlined: Tensor
    legend: Legend


def _by_components(found: Placed, artefacts: _Artefacts, most: int) -> _Drawn:
    basis = principal(found.maps, without=artefacts.where)
    values = basis.of(found.maps)
    scales = [contrast(True, per="layer").fit(component[~artefacts.where]) for component in values.unbind(1)]
    unit = torch.stack([scale(component) for scale, component in zip(scales, values.unbind(1), strict=True)], 1)
    beyond = int(((unit < 0) | (unit > 1)).any(1).sum())
    nan = ~finite(found.maps)
    unit = torch.where(nan[:, None], torch.nan, unit.clamp(0, 1))
    swatches = tuple(
        (color, f"{name}: {share(part)} of the variance, ±{number(float(scale.vmax or 0))}")
        for (color, name), part, scale in zip(_COLOURS, basis.shares, scales, strict=True)
    )
    legend = Legend(
        counts=Counts(nan=int(nan.sum())),
        swatches=swatches,
        notes=(*_notes(basis, found, beyond, nan.numel()), *artefacts.words),
        bounds=OF_IMAGES,
    )
    return _Drawn(rgb(shrunk(unit, most, None)), artefacts.drawn(most), legend)


def _notes(basis: Components, found: Placed, beyond: int, total: int) -> tuple[str, ...]:
    several = f"{basis.count:,} {_what(found)}"
    several += f" of {len(found.maps)} images" if len(found.maps) > 1 else ""
    return (
        f"together {share(sum(basis.shares))} of the variance of {several}",
        "mid-grey: their mean; each component on its own scale, its largest loading is positive",
        *((f"beyond a scale, drawn as its end: {share(beyond, total)}",) if beyond else ()),
    )


def _by_norm(artefacts: _Artefacts, most: int) -> _Drawn:
    norms = artefacts.norms[:, None]
    cells, legend = paint(shrunk(norms, most, None), Scale(vmin=0).fit(norms), notes=artefacts.words)
    return _Drawn(cells, artefacts.drawn(most), legend)


def _cells(units: Tensor, drawn: _Drawn, most: int) -> tuple[Tensor, tuple[str, ...]]:
    """Images and maps in turn, each enlarged by a whole factor to about one size, amid white paper."""
    factor = _factor(max(drawn.cells.shape[2:]), max(units.shape[2:]), most)
    maps = _outlined(enlarge(drawn.cells, factor), enlarge(drawn.outlined, factor))
    side = max(maps.shape[2:])
    small = shrunk(units, side)
    images = enlarge(rgb(small), side // max(small.shape[2:]))
    high, wide = (max(a, b) for a, b in zip(maps.shape[2:], images.shape[2:], strict=True))
    pairs = torch.stack([_framed(images, high, wide), _framed(maps, high, wide)], 1)
    return pairs.flatten(0, 1), drawn_at(units, small)


def _factor(places: int, pixels: int, most: int) -> int:
    """How many pixels wide a place is drawn: about `_GOAL` in all, and so that an enlarged image is about as wide."""
    least, largest = max(1, round(_GOAL / 1.5 / places)), max(1, round(_GOAL * 1.5 / places))
    sides = [places * factor for factor in range(least, largest + 1) if places * factor <= most] or [places]
    white = {side: side % min(side, pixels) / side for side in sides}  # what is left beside the image
    return min(sides, key=lambda side: (white[side] > 0.02, abs(side - _GOAL))) // places


def _framed(cells: Tensor, high: int, wide: int) -> Tensor:
    top, left = (high - cells.shape[2]) // 2, (wide - cells.shape[3]) // 2
    around = (left, wide - cells.shape[3] - left, top, high - cells.shape[2] - top)
    return F.pad(cells, around, value=_WHITE)


def _outlined(cells: Tensor, where: Tensor) -> Tensor:
    """A black line within and a white one around what is marked: it is seen on any colour, whoever looks."""
    if not bool(where.any()):
        return cells
    marked = where[:, None].float()
    inner = where[:, None] & (F.max_pool2d(1 - marked, 3, 1, 1) > 0)
    outer = ~where[:, None] & (F.max_pool2d(marked, 3, 1, 1) > 0)
    return cells.masked_fill(inner, _BLACK).masked_fill(outer, _WHITE)


def _what(found: Placed) -> str:
    return "places" if found.layout.tokens is None else "tokens"


def _title(found: Placed, by: str) -> str:
    height, width = found.maps.shape[2:]
    what = {"pca": "principal components", "norm": "norm"}[by]
    return f"{found.layer or 'model'}: {what} of {height} × {width} {_what(found)}, {found.maps.shape[1]} channels"
