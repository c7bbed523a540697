"""Top-activating patches per channel, and their projections to the pixels (Zeiler & Fergus 2013, fig. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from torch_featviz.choices import PROJECTIONS
from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import gate
from torch_featviz.picture import Legend, Picture, Scale, Sheet, count, grid_columns, number, rgb, tile
from torch_featviz.picture.bounds import drawn_at, room, shrunk
from torch_featviz.picture.color import total_of
from torch_featviz.picture.images import Card, ValueRange, clipped, unit_images
from torch_featviz.survey import Patches, TopPatches

SHOWN, HITS = 16, 9
_MOST = 64  # channels
_NOTHING = 225  # light grey, which is told from a white image and from the mid-grey of 0
_GOAL, _WIDEST = 190, 2800  # pixels of a block, at least, and of all blocks in a row, about
_SHARE = 0.999  # of a projection, within its scale
_DEAD = "dead:\nnever above 0"
_PAPERS = {
    "deconvnet": "the deconvnet (Zeiler & Fergus 2013)",
    "guided_backprop": "guided backpropagation (Springenberg et al. 2015)",
}
_WITHOUT_SWITCHES = {
    "deconvnet": "without max pools a deconvnet shows what the unit detects in any patch, not what is in this one",
    "guided_backprop": "without max pools a deconvnet would not depend on the patch",
}


@gate("best")
def exemplars(
    best: TopPatches | Patches,
    channels: int | Sequence[int] | None = None,
    *,
    projection: str | None = None,
    value_range: ValueRange | None = None,
    card: Card | None = None,
    title: str = "",
) -> Picture:
    """Draw the top-activating patches of each channel and, to their right, what in them activates it.

    Both blocks have the same order: highest activation first, row by row. The right block projects each unit back to
    the pixels: mid-grey is 0, and each projection has its own symmetric scale, which clips 0.1 % of its values. The
    legend says how much the projections depend on the patch (`Patches.cosine`). A dead channel (never above 0) is
    marked.

    The function draws `best.patches(channels, projection=projection)`, which reads the images of the patches once.

    Args:
        best: a result of `top_patches`, or the patches of some of its channels.
        channels: the channels to draw. Default: the first 16, or those of the given patches. At most 64 are drawn.
        projection: `"deconvnet"` or `"guided_backprop"`. Default: the one that suits the network, as in `deconvnet`.
        value_range: range of the values of images: `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255),
            `"imagenet"` or `{"mean": ..., "std": ...}` (normalised), or a function that maps them to 0 to 1. Default:
            the range of the card, or `"unit"`.
        card: card of the model, if the images are preprocessed for it.
        title: heading of the picture. Default: names the layer.
    Raises:
        DtypeError: `best` is neither of these.
        OptionError: no such channel, projection, range or card; or `channels` or another `projection` is given with
            patches, which are already chosen.
        ShapeError: images do not have one or three channels.
    Example:
        >>> from torch_featviz.survey import top_patches
        >>> best = top_patches(nn.Conv2d(1, 4, 3), torch.rand(2, 8, 1, 9, 9), "", k=4)
        >>> exemplars(best, [0, 2]).title
        'model: top-activating patches, and what in them activates the channel (guided backpropagation); 16 images'
    """
    if not isinstance(best, (TopPatches, Patches)):
        raise DtypeError(f"best must be a result of top_patches() or of its patches(), got {type(best).__name__}.")
    colors = best.size[0] if isinstance(best, TopPatches) else best.images.shape[2]
    if colors not in (1, 3):
        raise ShapeError(f"images must have 1 or 3 channels to be drawn, got {colors}.")
    patches = _patches(best, channels, projection)
    n, hits = len(patches.channels), min(HITS, patches.inside.shape[1], patches.seen)
    images = patches.images[:, :hits].flatten(0, 1)
    units = unit_images(images, value_range, card)
    projections = patches.projections[:, :hits].flatten(0, 1)
    signed = signed_units(projections).expand(-1, 3, -1, -1)
    inside = patches.inside[:, :hits].flatten(0, 1)[:, None]
    counts, hints = clipped(torch.where(inside, units, 0), value_range, card)
    counts = total_of([counts, count(torch.where(inside, signed, 0))])
    across, side = _layout(n, hits, max(inside.shape[2:]))
    kept = shrunk(inside.float(), side) == 1
    small = [shrunk(torch.where(inside, x, 0.5), side) for x in (units, signed)]
    cells = torch.stack([_blocks(x, kept, hits) for x in small], 1)
    gone = ~(patches.values > 0).any(1)
    dead = gone.tolist()
    cells[gone] = _NOTHING
    whole = bool(patches.inside[~gone, :hits].all())
    notes = (*_notes(patches, hits, whole, sum(dead)), *drawn_at(units, small[0], "patches"), *hints)
    return Sheet(
        cells.flatten(0, 1),
        Legend(counts=counts, notes=notes),
        title=title or _title(patches),
        ncols=2 * across,
        labels=tuple(words for i in range(n) for words in _labels(patches, i, hits)),
        inside=tuple(words for is_dead in dead for words in (_DEAD if is_dead else "", "")) if any(dead) else (),
        columns=("patches", "what activates it"),
        group=2,
        zoom=max(1, math.ceil(_GOAL / max(cells.shape[-2:]))),
        empty=frozenset(2 * i + 1 for i, is_dead in enumerate(dead) if is_dead),
    )


def _columns(hits: int) -> int:
    """Patches per row of a block; a few in one row."""
    return hits if hits <= 3 else grid_columns(hits)


def _layout(n: int, hits: int, side: int) -> tuple[int, int]:
    """How many pairs of blocks stand in a row, and how large a patch may be, at most `side`."""
    across = _columns(hits)
    block = max(_GOAL, side * across)
    pairs = min(grid_columns(n, 0.6), max(1, _WIDEST // (2 * block)))
    rows = -(-n // pairs)
    if rows * block > room(1, 1):
        pairs = grid_columns(n, 0.5)
        rows = -(-n // pairs)
    return pairs, max(1, min(side, room(2 * pairs, rows) // across - 1))


def signed_units(projections: Tensor) -> Tensor:
    """`n c h w` within 0 and 1, 0.5 for 0: each on its own scale, with the largest 0.1 % at its ends.

    Single pixels are far above the others, which would be drawn all but grey. NaN and infinities stay.
    """
    units = Scale(symmetric=True, per="filter", quantile=_SHARE)(projections)
    return torch.where(units.isfinite(), units.clamp(0, 1), units)


def _patches(best: TopPatches | Patches, channels: int | Sequence[int] | None, projection: str | None) -> Patches:
    if isinstance(best, TopPatches):
        chosen = range(min(SHOWN, len(best.values))) if channels is None else channels
        return best.patches(chosen if isinstance(chosen, int) else chosen[:_MOST], projection=projection)
    if channels is not None:
        raise OptionError(f"these patches are of channels {list(best.channels)}; choose with best.patches(channels).")
    if projection not in (None, best.method):
        raise OptionError(
            f"best is projected by {best.method!r} already; choose with "
            f"best.patches(channels, projection={projection!r})."
        )
    return best if len(best.channels) <= _MOST else _first(best)


def _first(patches: Patches) -> Patches:
    """Those of as many channels as can be drawn."""
    parts = ("channels", "images", "projections", "inside", "values", "numbers", "cosine")
    return replace(patches, **{name: getattr(patches, name)[:_MOST] for name in parts})


def _blocks(units: Tensor, inside: Tensor, hits: int) -> Tensor:
    """`(n k) 3 h w -> n 3 H W`: the hits of a channel on one small grid; light grey where there is no image."""
    colors = torch.where(inside, rgb(torch.where(inside, units, 0)), _NOTHING).to(torch.uint8)
    return torch.stack(
        [tile(block, ncols=_columns(hits), fill=_NOTHING) for block in colors.view(-1, hits, *colors.shape[1:])]
    )


def _labels(patches: Patches, n: int, hits: int) -> tuple[str, str]:
    values = [value for value in patches.values[n, :hits].tolist() if value > 0]
    ends = " to ".join(number(value) for value in values[:: max(1, len(values) - 1)])
    return f"channel {patches.channels[n]}", f"value {ends}" if values else ""


def _title(patches: Patches) -> str:
    what = "top-activating patches, and what in them activates the channel"
    by = f" ({PROJECTIONS[patches.method]})" if patches.method else ""
    return f"{patches.layer or 'model'}: {what}{by}; {patches.seen:,} images"


def _notes(patches: Patches, hits: int, whole: bool, dead: int) -> tuple[str, ...]:
    shown = len(patches.channels)
    lines = [f"left: the {hits} patches of highest activation, row by row; value: of the first to that of the last"]
    if patches.method:
        beyond = ", which clips 0.1 %" * (patches.projections[0, 0].numel() * (1 - _SHARE) >= 1)
        lines.append(
            f"right: that unit projected to the pixels by {_PAPERS[patches.method]}; "
            f"mid-grey is 0, each has its own scale{beyond}"
        )
        lines += _dependence(patches, hits)
    if not whole:
        lines.append("light grey: beyond the image's border, or no patch")
    if dead:
        lines.append(f"dead (never above 0): {dead} of {shown}")
    if patches.unplaced:
        lines.append(f"{patches.unplaced}: left out")
    if shown < patches.total:
        lines.append(f"{shown} of {patches.total} channels")
    if patches.unread:
        lines.append(patches.unread)
    return tuple(lines)


def _dependence(patches: Patches, hits: int) -> list[str]:
    """How far the projections depend on their patches."""
    known = patches.cosine[~patches.cosine.isnan()]
    lines = ["one patch per channel cannot tell how much the projection depends on it"]
    if len(known):
        low, mean, high = (f"{float(x):.2f}" for x in (known.min(), known.mean(), known.max()))
        lines = [f"cosine between projections of a channel: mean {mean} ({low} to {high}); 1: they ignore the patch"]
    if not patches.switches:
        lines.append(_WITHOUT_SWITCHES[patches.method])
    moved = patches.values[:, :hits] > 0
    blank = moved & ~patches.projections[:, :hits].flatten(2).any(2)
    if blank.any():
        lines.append(f"all mid-grey (nothing reaches the pixels): {int(blank.sum())} of {int(moved.sum())}")
    return lines
