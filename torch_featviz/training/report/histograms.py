"""What each layer returned, as histograms over the steps: each column of a row is one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from torch_featviz.picture import number
from torch_featviz.training.history import Bins, History
from torch_featviz.training.ordinary import ordinary

from .axis import BROKEN, FAINT, INK, Steps, Values
from .columns import BAND

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST = 1e-4  # share of a layer's values, from which on a bin is told from an empty one
ROWS = 64  # of a logarithmic axis
WIDE = 10  # times the ordinary reach from which on the axis is logarithmic: less is read better on a plain one
FAR = 1e3  # times the ordinary reach a logarithmic axis has room for
_PLAIN = 1 / 8  # of the ordinary reach is linear around 0


@dataclass(frozen=True)
class Shown:
    """Histograms on one axis of values.

    Args:
        shares: of the values of each step, `rows steps`, lowest first; NaN in a step without values.
        low: end of the axis.
        high: the other.
        plain: of a logarithmic axis, up to where it is about linear around 0; None of a linear one.
        below: steps of which the axis leaves something out.
        above: likewise.
    """

    shares: Values
    low: float
    high: float
    plain: float | None = None
    below: tuple[int, ...] = ()
    above: tuple[int, ...] = ()

    def place(self, value: float) -> float:
        """Where a value stands on the axis, 0 its low end and 1 its high end."""
        if self.plain is None:
            return (value - self.low) / (self.high - self.low)
        low, at, high = np.arcsinh(np.array([self.low, value, self.high]) / self.plain)
        return float((at - low) / (high - low))


def shown(bins: list[Bins | None]) -> Shown:
    """On a linear axis, or where some steps reach much farther than is ordinary, on a logarithmic one."""
    used = {i: _used(each) for i, each in enumerate(bins) if each is not None and any(each.counts)}
    reaches = {i: max(abs(low), abs(high)) for i, (low, high) in used.items()}
    usual = ordinary(reaches.values())
    if not used or max(reaches.values()) <= WIDE * usual:
        return Shown(*on_one_grid(bins))
    return _on_a_log_grid(bins, used, usual)


def _used(bins: Bins) -> tuple[float, float]:
    """The ends of the bins that hold anything."""
    filled = np.flatnonzero(bins.counts)
    return bins.start + float(filled[0]) * bins.width, bins.start + float(filled[-1] + 1) * bins.width


def _on_a_log_grid(bins: list[Bins | None], used: dict[int, tuple[float, float]], usual: float) -> Shown:
    """A wide bin covers several rows, and its share is spread over them: where in it the values are, nobody knows."""
    plain = _PLAIN * usual
    least, most = min(low for low, _ in used.values()), max(high for _, high in used.values())
    low, high = max(least, -FAR * usual), min(most, FAR * usual)
    z_low, z_high = np.arcsinh(np.array([low, high]) / plain)
    shares = np.full((ROWS, len(bins)), np.nan)
    for i in used:
        each = bins[i]
        assert each is not None
        counts = np.array(each.counts, float)
        edges = np.arcsinh((each.start + np.arange(len(counts) + 1) * each.width) / plain)
        rows = np.clip((edges - z_low) / (z_high - z_low), 0, 1) * ROWS
        first, last = np.floor(rows[:-1] + 1e-9).astype(int), np.ceil(rows[1:] - 1e-9).astype(int)
        inside = (counts > 0) & (edges[1:] > z_low) & (edges[:-1] < z_high)
        first = np.minimum(first, ROWS - 1)[inside]
        last = np.maximum(last[inside], first + 1)
        each_row = counts[inside] / counts.sum() / (last - first)
        steps = np.zeros(ROWS + 1)
        np.add.at(steps, first, each_row)
        np.add.at(steps, last, -each_row)
        shares[:, i] = np.cumsum(steps)[:-1]
    above = tuple(i for i, (_, top) in used.items() if top > high)
    below = tuple(i for i, (bottom, _) in used.items() if bottom < low)
    return Shown(shares, low, high, plain, below, above)


def on_one_grid(bins: list[Bins | None]) -> tuple[Values, float, float]:
    """Histograms of unlike ranges as shares of their counts on one range: `bins steps`, with the ends of that range.

    Bins are put whole into wider ones, which hold them because widths are powers of two and bins begin at multiples of
    them; there are no more than each histogram had. What no step needs is left out; a step without values is NaN.
    """
    known = {i: each for i, each in enumerate(bins) if each is not None and any(each.counts)}
    if not known:
        return np.empty((0, len(bins))), 0.0, 0.0
    counts = {i: np.array(each.counts, float) for i, each in known.items()}
    starts = {i: each.start + np.arange(len(each.counts)) * each.width for i, each in known.items()}
    used = np.concatenate([starts[i][counts[i] > 0] for i in known])
    width = max(each.width for each in known.values())
    most = max(len(each) for each in counts.values())
    while np.floor(used.max() / width) - np.floor(used.min() / width) >= most:
        width *= 2
    low, high = int(np.floor(used.min() / width)), int(np.floor(used.max() / width)) + 1
    shares = np.full((high - low, len(bins)), np.nan)
    for i, each in counts.items():
        rows = np.floor(starts[i][each > 0] / width).astype(int) - low
        shares[:, i] = np.bincount(rows, each[each > 0] / each.sum(), len(shares))
    return shares, low * width, high * width


def histograms_of(history: History, layers: list[str]) -> list[Shown | None]:
    """Those of each layer; None where no value was ever finite."""
    found = []
    for layer in layers:
        figures = [sample.layers.get(layer) for sample in history]
        each = shown([each.histogram if each is not None else None for each in figures])
        found.append(each if each.shares.size else None)
    return found


def draw_histograms(
    axes: Axes, history: History, layers: list[str], found: list[Shown | None], steps: Steps, *, size: float
) -> None:
    """A row a layer, each on its own axis of values, whose ends are written beside it, and a cross at broken steps."""
    for row, (layer, histograms) in enumerate(zip(layers, found, strict=True)):
        figures = [sample.layers.get(layer) for sample in history]
        if histograms is not None:
            lows, highs = zip(*((each.min, each.max) for each in figures if each is not None), strict=True)
            _draw_row(axes, histograms, steps, row, size=size, reach=(np.nanmin(lows), np.nanmax(highs)))
        broken = steps.at[[each is not None and each.nan + each.inf > 0 for each in figures]]
        axes.plot(broken, np.full(len(broken), row + 0.5), "x", color=BROKEN, markersize=min(5, size), linestyle="none")


def words_of(found: list[Shown | None]) -> str:
    """How to read a row."""
    log = any(each is not None and each.plain is not None for each in found)
    return "a histogram a step, its range beside it" + ("; log: linear near 0" if log else "")


def _draw_row(axes: Axes, found: Shown, steps: Steps, row: int, *, size: float, reach: tuple[float, float]) -> None:
    from matplotlib.colors import LogNorm  # noqa: PLC0415  no matplotlib on import

    top, bottom = row + (1 - BAND) / 2, row + (1 + BAND) / 2
    edges, samples = steps.cells()
    cells = np.column_stack([np.full(len(found.shares), np.nan) if i < 0 else found.shares[:, i] for i in samples])
    cells = np.where(cells >= LEAST, cells, np.nan)
    across = np.linspace(bottom, top, len(cells) + 1)
    axes.pcolormesh(edges, across, cells, norm=LogNorm(LEAST, 1), cmap="viridis", rasterized=True)
    for marked, y, symbol in ((found.above, top, "^"), (found.below, bottom, "v")):
        at = steps.at[list(marked)]
        axes.plot(at, np.full(len(at), y), symbol, color=INK, markersize=min(4, size - 2), markeredgewidth=0, zorder=3)
    beside: Any = {"transform": axes.get_yaxis_transform(), "size": size}
    most = f" ▲{_rough(reach[1])}" if found.above else ""
    least = f" ▼{_rough(reach[0])}" if found.below else ""
    axes.text(1.015, top, number(found.high) + most, va="top", **beside)
    axes.text(1.015, bottom, number(found.low) + least, va="bottom", **beside)
    if found.plain is not None:
        axes.text(1.015, (top + bottom) / 2, "log", va="center", color=FAINT, style="italic", **beside)
    if found.low < 0 < found.high:
        zero = bottom - found.place(0.0) * (bottom - top)
        axes.plot(steps.limits, [zero, zero], color="white", linewidth=0.7, linestyle=(0, (2, 3)))


def _rough(value: float) -> str:
    """Two digits, where there is little room."""
    return number(float(f"{value:.1e}"))
