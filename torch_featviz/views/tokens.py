"""The tokens of a layer as maps beside the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.gate import gated
from torch_featviz.inspect.placed import placed
from torch_featviz.model.inputs import Inputs, as_batch
from torch_featviz.model.layout import Layout
from torch_featviz.model.unplaced import unplaced
from torch_featviz.picture import Counts, Legend, Picture, Sheet, enlarge, grid_columns, rgb
from torch_featviz.picture.bounds import drawn_at, room, shrunk
from torch_featviz.picture.images import Card, ValueRange, clipped, unit_images

from .token_values import KINDS, Drawn, drawn_by, title_of

LIMIT = 64
_GOAL = 224  # pixels, about, of a cell
_WHITE, _BLACK = 255, 0


@gated
def tokens(
    model: nn.Module,
    images: Tensor,
    layer: str | nn.Module,
    *,
    by: Literal["pca", "norm", "similarity"] = "pca",
    query: tuple[int, int] | None = None,
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
    legend tells how much of the variance each of them explains. `by="norm"` draws the norm of each token, and
    `by="similarity"` the cosine between each token of each image and one token of the first image.

    Tokens without a place (a class token, registers) are named in the legend; they are not drawn and have no part in
    the components. Artefact tokens (Darcet et al. 2024) have a black and white outline: their norm is at least twice
    the median, and 6 robust standard deviations above it. They have no part in the components, of which they would
    make up most, nor in a scale; what is beyond a scale is counted.

    Args:
        model: any module; it is unchanged.
        images: `b c h w`, or one image `c h w`, as the model takes them, with one or three channels; at most 64.
        layer: a layer that returns tokens or maps and runs once, such as a block; by name or as a module.
        by: `"pca"`, `"norm"` or `"similarity"`.
        query: for `by="similarity"`, the row and column of a token of the first image; it has the outline.
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
        OptionError: `by`, the range or the card is invalid, or `query` is missing, not needed or outside the map.
        LayerError: no such layer, or it does not run exactly once.
        DtypeError, DeviceError: the model cannot be copied, or does not accept the images.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU())
        >>> tokens(net, torch.rand(2, 3, 32, 32), "1").title
        '1: principal components of 8 × 8 places, 8 channels'

    Reference: Oquab et al. 2023, fig. 1; Darcet et al. 2024, section 2.1.
    """
    if (query is not None) != (by == "similarity"):
        raise OptionError(f"query=(row, column) goes with by='similarity', got {query=} and {by=}.")
    images = as_batch(images)
    if len(images) > LIMIT:
        raise ShapeError(f"{len(images)} images are too many, a sheet shows {LIMIT}; pass fewer.")
    units = unit_images(images, value_range, card)
    found = placed(model, Inputs.of(images, additional_forward_args, keywords), layer, layout)
    counts, hints = clipped(units, value_range, card)
    pairs = grid_columns(len(images), images.shape[2] / (2 * images.shape[3]))
    most = room(2 * pairs, -(-len(images) // pairs))
    drawn = drawn_by(by, found, query).shrunk(most)
    cells, notes = _cells(units.cpu(), drawn, most)
    notes += drawn_at(found.maps, drawn.values, "maps")
    without = unplaced(found.layout, model)
    notes = (*drawn.legend.notes, *((f"{without}: not drawn",) if without else ()), *notes)
    of_images = Legend(counts=counts, notes=hints) if counts != Counts() else None
    return Sheet(
        cells,
        replace(drawn.legend, notes=notes, also=of_images),
        title=title or f"{found.layer or 'model'}: {title_of(by, found)}",
        ncols=2 * pairs,
        columns=("image", KINDS[by]),
        group=2,
        zoom=1,
    )


def _cells(units: Tensor, drawn: Drawn, most: int) -> tuple[Tensor, tuple[str, ...]]:
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
