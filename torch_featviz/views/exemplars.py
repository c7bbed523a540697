"""What excites each channel: the patches that move it most, beside what in them does (Zeiler & Fergus 2013, fig. 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_featviz.errors import ShapeError
from torch_featviz.picture import Legend, Picture, Scale, Sheet, count, grid_columns, number, rgb, tile
from torch_featviz.picture.color import total_of
from torch_featviz.picture.images import unit_images
from torch_featviz.survey import TopPatches

SHOWN, HITS = 16, 9
_NOTHING = 225  # light grey, which is told from a white image and from the mid-grey of 0
_GOAL, _WIDEST = 190, 2800  # pixels of a block, at least, and of all blocks in a row, about
_SAID = "dead:\nnever above 0"


def exemplars(
    best: TopPatches,
    channels: int | Sequence[int] | None = None,
    *,
    to_unit: Callable[[Tensor], Tensor] | None = None,
    value_range: str = "unit",
    title: str = "",
) -> Picture:
    """For each channel a block of the image patches that move it most, and to its right a block of what does it.

    Both blocks have the same order, the highest first, row by row. The right one is what the deconvnet projects from
    the one unit down to the image: mid-grey is 0, each projection reaches from minus to plus its largest value. A
    channel that was above 0 nowhere has a tile that says so.

    Args:
        best: from `top_patches`.
        channels: which ones; default the first 16.
        to_unit: from the images as the model takes them to those for the eye, such as a card's `denormalize`.
        value_range: `"unit"`, `"signed"`, `"byte"` or `"imagenet"`: what the values of images, after that, mean.
        title: above everything; default names the layer.
    Raises:
        OptionError: there is no such channel or range.
        ShapeError: images have other than one or three channels.
    Example:
        >>> from torch_featviz.survey import top_patches
        >>> best = top_patches(nn.Conv2d(1, 4, 3), torch.rand(2, 8, 1, 9, 9), "", k=4)
        >>> exemplars(best, [0, 2]).title
        'model: the patches that move each channel most, and what in them does; of 16 images'
    """
    if best.size[0] not in (1, 3):
        raise ShapeError(f"images of 1 or 3 channels can be drawn, these have {best.size[0]}.")
    everything = len(best.values)
    found = best.patches(range(min(SHOWN, everything)) if channels is None else channels)
    images = found.images[:, :HITS].flatten(0, 1)
    units = unit_images(images if to_unit is None else to_unit(images), value_range)
    signed = Scale(symmetric=True, per="filter")(found.projections[:, :HITS].flatten(0, 1)).expand(-1, 3, -1, -1)
    inside = found.inside[:, :HITS].flatten(0, 1)[:, None]
    hits = inside.shape[0] // len(found.channels)
    pairs = [_blocks(x, inside, hits) for x in (units, signed)]
    counts = total_of(count(torch.where(inside, x, 0)) for x in (units, signed))
    dead = [c in best.dead for c in found.channels]
    gone = torch.tensor(dead)
    cells = torch.stack(pairs, 1)
    cells[gone] = _NOTHING
    n, zoom = len(found.channels), max(1, math.ceil(_GOAL / max(cells.shape[-2:])))
    return Sheet(
        cells.flatten(0, 1),
        Legend(counts=counts, notes=_notes(n, everything, hits, bool(found.inside[~gone, :HITS].all()), sum(dead))),
        title=title or _title(best),
        ncols=2 * min(grid_columns(n, 0.6), max(1, _WIDEST // (2 * zoom * cells.shape[-1]))),
        labels=tuple(words for c in found.channels for words in _labels(best, c, hits)),
        inside=tuple(words for is_dead in dead for words in (_SAID if is_dead else "", "")) if any(dead) else (),
        columns=("patches", "what excites it"),
        group=2,
        zoom=zoom,
        empty=frozenset(2 * i + 1 for i, is_dead in enumerate(dead) if is_dead),
    )


def _blocks(units: Tensor, inside: Tensor, hits: int) -> Tensor:
    """`(n k) 3 h w -> n 3 H W`: the hits of a channel on one small grid; light grey where there is no image."""
    colors = torch.where(inside, rgb(torch.where(inside, units, 0)), _NOTHING).to(torch.uint8)
    return torch.stack(
        [tile(block, ncols=grid_columns(hits), fill=_NOTHING) for block in colors.view(-1, hits, *colors.shape[1:])]
    )


def _labels(best: TopPatches, channel: int, hits: int) -> tuple[str, str]:
    values = [value for value in best.values[channel, :hits].tolist() if value > 0]
    ends = " to ".join(number(value) for value in values[:: max(1, len(values) - 1)])
    return f"channel {channel}", f"value {ends}" if values else ""


def _title(best: TopPatches) -> str:
    what = "the patches that move each channel most, and what in them does"
    return f"{best.layer or 'model'}: {what}; of {best.seen:,} images"


def _notes(shown: int, everything: int, hits: int, whole: bool, dead: int) -> tuple[str, ...]:
    lines = [
        f"left: the {hits} patches with the highest values, row by row; value: of the first and of the last",
        "right: the same, projected back to the pixels from that one unit; mid-grey is 0, each on its own scale",
    ]
    if not whole:
        lines.append("light grey: beyond the image's border, or no patch")
    if dead:
        lines.append(f"dead: above 0 in no image, {dead} of {shown}")
    if shown < everything:
        lines.append(f"{shown} of {everything} channels")
    return tuple(lines)
