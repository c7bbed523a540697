"""Tiles of attention over images, and what stands below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import isnan
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_featviz.explain.rollout import distance_table, spread
from torch_featviz.inspect.attention import Tokens
from torch_featviz.picture import Counts, Legend, Picture, Scale, Sheet, count, enlarge, grid_columns, number, rgb
from torch_featviz.picture.bounds import CELLS, drawn_at, listed, named, room, shrunk
from torch_featviz.picture.color import total_of
from torch_featviz.picture.legend import OF_IMAGES
from torch_featviz.picture.overlay import laid

ROLLOUT = "rollout"  # in place of a layer's name
ALL = "all tokens"  # in place of a token's name
_CMAP = "viridis"
_SIDE = 224  # pixels, about, of a tile
_ALPHA = 0.65
_LINES = 4  # of text above and below a tile
_AROUND = 15  # pixels between two captions


class Row(NamedTuple):
    """What one token of one image attends to in one layer.

    Args:
        image: number of the image.
        layer: name of the layer.
        query: what the token is called.
        place: where it is on the grid; None if it has no place.
        tokens: those that are attended to.
        weights: `heads keys`.
    """

    image: int
    layer: str
    query: str
    place: tuple[int, int] | None
    tokens: Tokens
    weights: Tensor

    @property
    def maps(self) -> Tensor:
        """The weights of tokens with a place: `heads h w`."""
        return self.weights[:, self.tokens.placed].reshape(-1, *self.tokens.layout.grid)


def sheet(
    rows: Sequence[Row], units: Tensor, scale: Scale, *, title: str, counts: Counts, notes: Sequence[str]
) -> Picture:
    """Draw a row of tiles for each of `rows`, after the image that they are of; a single row as a square.

    Args:
        rows: from the top.
        units: the images, `b 3 h w` on the unit range.
        scale: how weights become colours; fitted to all of them, or to each head.
        title: heading of the picture.
        counts: pixels of the images outside their range.
        notes: further lines of the legend.
    """
    heads = max(len(row.weights) for row in rows)
    square = len(rows) == 1
    ncols = grid_columns(heads + 1, units.shape[2] / units.shape[3]) if square else heads + 1
    small = _sized(units, rows, room(ncols, -(-(heads + 1) // ncols) if square else len(rows), _LINES))
    limit = max(small.shape[3], CELLS // ncols - _AROUND)
    scales = _fitted(rows, scale)
    own = isinstance(scales[0].vmax, Tensor)
    size = (units.shape[2], units.shape[3])
    cells, captions, totals = list[Tensor](), list[str](), [counts]
    for row, fitted in zip(rows, scales, strict=True):
        image = small[row.image : row.image + 1]
        maps = F.interpolate(row.maps[None].float(), image.shape[2:], mode="nearest-exact")
        totals.append(count(fitted(maps).flatten(0, 1)[:, None]))
        tiles = laid(image, maps, scale=fitted, cmap=_CMAP, alpha=_ALPHA)[0]
        bare = heads - len(tiles)
        cells.append(F.pad(_outlined(torch.cat([rgb(image, _CMAP), tiles]), row), (0, 0, 0, 0, 0, 0, 0, bare)))
        captions += ["", *(_caption(row, head, own, size, limit) for head in range(len(tiles))), *[""] * bare]
    columns = ("image", *(["rollout"] if rows[0].layer == ROLLOUT else [f"head {k}" for k in range(heads)]))
    words = (*_notes(rows, own), *notes, *drawn_at(units, small))
    return Sheet(
        torch.cat(cells),
        Legend(_common(scales), _CMAP, total_of(totals), words, _beyond(counts, totals[1:])),
        title=title,
        ncols=ncols,
        labels=columns if square else (),
        columns=() if square else columns,
        rows=() if square else tuple(map(named, _titles(rows))),
        captions=tuple(captions),
        zoom=1,
        empty=_bare(rows, heads),
    )


def without(reasons: Mapping[str, str]) -> list[str]:
    """A line for each reason, with the layers that are left out for it.

    Example:
        >>> without({"a": "its keys are unknown", "b": "its heads talk", "c": "its keys are unknown"})
        ['without a, c: its keys are unknown', 'without b: its heads talk']
    """
    layers = dict[str, list[str]]()
    for name, why in reasons.items():
        layers.setdefault(why, []).append(name or "the attention of the model itself")
    return [f"without {listed(names, 4)}: {why}" for why, names in layers.items()]


def _beyond(images: Counts, weights: Sequence[Counts]) -> str:
    """What counted pixels are above or below."""
    parts = ["the scale"] * any(total.over + total.under for total in weights)
    parts += [OF_IMAGES] * bool(images.over + images.under)
    return " or ".join(parts)


def _bare(rows: Sequence[Row], heads: int) -> frozenset[int]:
    """Places of the sheet without a tile: heads that a layer does not have, and an image that stands above already."""
    bare = set[int]()
    for i, row in enumerate(rows):
        at = i * (heads + 1)
        bare |= set(range(at + 1 + len(row.weights), at + 1 + heads))
        if i and (rows[i - 1].image, rows[i - 1].query) == (row.image, row.query):
            bare.add(at)
    return frozenset(bare)


def _sized(units: Tensor, rows: Sequence[Row], most: int) -> Tensor:
    """Images of about the side of a tile, in which places are of whole pixels where that can be."""
    side, fine = min(_SIDE, most), max(max(row.tokens.layout.grid) for row in rows)
    side = max(1, side // fine) * fine if fine <= side else side
    longest = max(units.shape[2:])
    return shrunk(units, side) if longest > side else enlarge(units, max(1, side // longest))


def _fitted(rows: Sequence[Row], scale: Scale) -> list[Scale]:
    """The scale of each row: one for all, or with ends `1 heads 1 1`, one for each head."""
    if scale.per == "layer":
        return [scale.fit(*(row.maps for row in rows))] * len(rows)
    return [scale.fit(row.maps[None]) for row in rows]


def _common(scales: Sequence[Scale]) -> Scale:
    """What the legend shows: the ends of one scale, or that there are several."""
    tops = {float(top) for scale in scales for top in torch.as_tensor(scale.vmax, device="cpu").flatten()}
    if len(tops) == 1:
        return replace(scales[0], vmax=tops.pop())
    return replace(scales[0], vmax=torch.tensor(sorted(tops), device="cpu"))


def _titles(rows: Sequence[Row]) -> list[str]:
    """What tells each row from the others: image, token, layer."""
    parts = [(f"image {row.image}", row.query, row.layer) for row in rows]
    several = [len({part[k] for part in parts}) > 1 for k in range(3)]
    return [", ".join(word for word, differs in zip(part, several, strict=True) if differs) for part in parts]


def _caption(row: Row, head: int, own: bool, size: tuple[int, int], limit: int) -> str:
    """The end of its scale; over how many places it is spread, and how far from the one that attends; the rest."""
    weights = row.weights[head].double().cpu()
    places = weights[row.tokens.placed]
    total = float(places.sum())
    words = [f"up to {number(float(places.max()))}"] if own else []
    count_of = float(spread(places)) if total else 0.0
    words.append(f"over {_whole(count_of)} place{'s' * (_whole(count_of) != '1')}")
    if row.place is not None and total:
        apart = distance_table(row.tokens.layout.grid, size)
        here = apart[row.place[0] * row.tokens.layout.grid[1] + row.place[1]]
        words.append(f"{_whole(float((places * here).sum()) / total)} px away")
    words += filter(None, (_shares(row.tokens, weights), _padding(weights)))
    return "\n".join(named(line, limit) for line in words)


def _whole(value: float) -> str:
    return "NaN" if isnan(value) else f"{value:.0f}"


def _shares(tokens: Tokens, weights: Tensor) -> str:
    """What tokens without a place have of the weights, by kind."""
    of = {}
    for name, group in groupby(range(tokens.layout.prefix), lambda i: tokens.names[i]):
        numbers = list(group)
        of[f"{name.removesuffix(' token')}{'s' * (len(numbers) > 1)}"] = weights[numbers].sum()
    if tokens.layout.suffix:
        of["last tokens"] = weights[tokens.placed.stop :].sum()
    return ", ".join(f"{name} {_percent(float(share))}" for name, share in of.items())


def _padding(weights: Tensor) -> str:
    """What lies on the padding of windows, which is no place."""
    missing = 1 - float(weights.sum())
    return f"padding {_percent(missing)}" if missing > 0.005 else ""


def _percent(share: float) -> str:
    return "< 1 %" if 0 < share < 0.005 else f"{_whole(100 * share)} %"


def _notes(rows: Sequence[Row], own: bool) -> list[str]:
    """What the colours and the words below the tiles mean."""
    tokens, placed = rows[0].tokens, any(row.place for row in rows)
    without = tokens.layout.prefix + tokens.layout.suffix
    of = f" of {tokens.places}" if len({row.tokens.places for row in rows}) == 1 else ""
    below = [
        *(["highest weight"] if own else []),
        f"over how many{of} places it spreads (exp of the entropy)",
        *(["mean distance from the outlined place"] if placed else []),
        *([f"share of the {'token' if without == 1 else f'{without} tokens'} without a place"] if without else []),
    ]
    gives = (
        "the mean of the weights that all tokens give" if rows[0].query == ALL else "the weight that the token gives"
    )
    padded = any(_padding(weights.double().cpu()) for row in rows for weights in row.weights)
    with_it = ", with those on padding," if padded else ""
    return [f"colour: {gives} to each place; a token's weights{with_it} sum to 1", f"below: {'; '.join(below)}"]


def _outlined(tiles: Tensor, row: Row) -> Tensor:
    """A white line within a black one around the place that asks."""
    if row.place is None:
        return tiles
    tiles = tiles.clone()
    (top, bottom), (left, right) = (
        (at * pixels // places, (at + 1) * pixels // places)
        for at, pixels, places in zip(row.place, tiles.shape[2:], row.tokens.layout.grid, strict=True)
    )
    for wide, ink in ((2, 0), (1, 255)):
        lines = torch.zeros(tiles.shape[2:], dtype=torch.bool, device=tiles.device)
        lines[max(0, top - wide) : bottom + wide, max(0, left - wide) : right + wide] = True
        lines[top:bottom, left:right] = False
        tiles[..., lines] = ink
    return tiles
