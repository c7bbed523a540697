"""Legends: the meaning of colours, in words and as pixels."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from torch_featviz.picture import text
from torch_featviz.picture.color import Counts, lut, reserved
from torch_featviz.picture.scale import Scale
from torch_featviz.picture.text import FAINT, INK, PAPER, Color, Pixels, line_height, number, put, strip

SIZE = 12
BAR = (240, 12)
_SWATCH = 12
OF_IMAGES = "the images' range"
_WORDS = {"nan": "NaN", "posinf": "+∞", "neginf": "−∞", "over": "above", "under": "below"}


@dataclass(frozen=True, eq=False)
class Legend:
    """The scale of a picture, and the counts of values outside it.

    Args:
        scale: a fitted scale; None if the colours are the picture's own.
        cmap: its colour map; None if the colours are the picture's own.
        counts: pixels in a reserved colour.
        total: all pixels; with it the clipped share is written.
        notes: further lines, for instance what is left out.
        bounds: what counted values are above or below. Default: the scale, or without one the range of the images.
        swatches: colours with a meaning of their own, such as classes, and their names.
        also: the legend of cells with another colour map.
        said: the scale in words, where values were divided by ranges of their own before. Default: its own words.
    """

    scale: Scale | None = None
    cmap: str | None = None
    counts: Counts = field(default_factory=Counts)
    notes: tuple[str, ...] = ()
    bounds: str = ""
    swatches: tuple[tuple[Color, str], ...] = ()
    total: int = 0
    also: "Legend | None" = None
    said: str = ""

    def ticks(self) -> list[tuple[float, str]]:
        """Positions on the colour bar (0 to 1) and their numbers."""
        if self.scale is None or not self.scale.fitted:
            return []
        low, high, symmetric = self.scale.vmin, self.scale.vmax, self.scale.symmetric
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            ends = ("−max", "max") if symmetric else ("min", "max")
            low_word = ends[0] if isinstance(low, Tensor) else number(float(low or 0))
            high_word = ends[1] if isinstance(high, Tensor) else number(float(high or 0))
            return [(0.0, low_word), *([(0.5, "0")] if symmetric else []), (1.0, high_word)]
        low, high = float(low or 0), float(high or 0)
        if low == high:
            return [(0.5 if symmetric else 0.0, number(low))]
        middle = [(-low / (high - low), "0")] if low < 0 < high else []
        first, last = text.ends(low, high)
        return [(0.0, first), *middle, (1.0, last)]

    def lines(self) -> list[str]:
        """Lines below the colour bar."""
        scale = [self.said or self.scale.describe()] if self.scale is not None else []
        return [*scale, *self.clipped(), *self.notes]

    def clipped(self) -> list[str]:
        """The share of clipped values, if there are some or if the scale can clip."""
        beyond = self.counts.over + self.counts.under
        if self.scale is None or not self.total or not (beyond or self.scale.quantile < 1):
            return []
        return [f"clipped {share(beyond, self.total)}"]

    def marks(self) -> list[tuple[Color, str]]:
        """Colours with their names: swatches, then the reserved colours in use with their counts."""
        colors = reserved(self.cmap or "viridis")
        bounds = self.bounds or ("the scale" if self.scale is not None else OF_IMAGES)
        words = {why: f"{word} {bounds}" if why in ("over", "under") else word for why, word in _WORDS.items()}
        counted = [(reason, getattr(self.counts, reason)) for reason in colors]
        return [*self.swatches, *((colors[reason], f"{n:,} px {words[reason]}") for reason, n in counted if n)]


def share(part: float, total: float = 1) -> str:
    """A part in per cent, never rounded to none.

    Example:
        >>> share(4, 1000), share(1, 10**6), share(0, 5), share(0.998)
        ('0.4 %', '< 0.01 %', '0 %', '100 %')
    """
    percent = 100 * part / total
    if 0 < percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.2g} %"


def draw(legend: Legend, limit: int) -> Pixels:
    """The legend as pixels, at most `limit` wide; of no height if there is nothing to say."""
    blocks = [draw(legend.also, limit)] if legend.also is not None else []
    if legend.cmap is not None and legend.scale is not None:
        blocks.append(_bar(legend, limit))
    if marks := legend.marks():
        blocks.append(_swatches(marks, limit))
    for line in legend.lines():
        blocks += [strip(part, SIZE, ink=FAINT) for part in text.wrap(line, limit, SIZE)]
    return stack(blocks, gap=4)


def stack(blocks: list[Pixels], gap: int) -> Pixels:
    """Blocks below each other, left aligned."""
    height = sum(b.shape[0] for b in blocks) + gap * max(0, len(blocks) - 1)
    page = blank(height, max((b.shape[1] for b in blocks), default=0))
    y = 0
    for block in blocks:
        put(page, block, 0, y)
        y += block.shape[0] + gap
    return page


def blank(height: int, width: int) -> Pixels:
    """Empty paper."""
    return np.full((height, width, 3), PAPER[0], np.uint8)  # faster than three channels


def _bar(legend: Legend, limit: int) -> Pixels:
    """The colour map from end to end, with its numbers centred below where they belong."""
    assert legend.cmap is not None
    ticks = legend.ticks()
    side = max((text.width(word, SIZE) for _, word in ticks), default=0) // 2 + 1
    wide, high = min(BAR[0], limit - 2 * side), BAR[1]
    table = lut(legend.cmap)
    page = blank(high + 5 + line_height(SIZE), wide + 2 * side)
    page[:high, side : side + wide] = INK
    index = np.linspace(0, len(table) - 1, wide - 2).round().astype(int)
    page[1 : high - 1, side + 1 : side + wide - 1] = table[index]
    free = 0
    ends = [t for t in ticks if t[0] in (0.0, 1.0)]
    for at, word in sorted(ends + [t for t in ticks if t not in ends]):
        middle = side + round(at * (wide - 1))
        x = middle - text.width(word, SIZE) // 2
        last = page.shape[1] if at == 1.0 else side + wide - text.width(ticks[-1][1], SIZE) // 2 - 8
        page[high : high + 4, middle] = INK
        if x >= free and (at == 1.0 or x + text.width(word, SIZE) <= last):
            put(page, strip(word, SIZE), x, high + 5)
            free = x + text.width(word, SIZE) + 8
    return page


def _swatches(marks: list[tuple[Color, str]], limit: int) -> Pixels:
    """A square and its words for each reserved colour in use, in as many rows as they need."""
    rows: list[list[Pixels]] = [[]]
    used = 0
    for color, words in marks:
        item = blank(line_height(SIZE), _SWATCH + 5 + text.width(words, SIZE) + 16)
        item[1 : 1 + _SWATCH, :_SWATCH] = INK
        item[2:_SWATCH, 1 : _SWATCH - 1] = color
        put(item, strip(words, SIZE), _SWATCH + 5, 0)
        if used and used + item.shape[1] - 16 > limit:
            rows, used = [*rows, []], 0
        rows[-1].append(item)
        used += item.shape[1]
    return stack([np.concatenate(row, axis=1) for row in rows], gap=3)
