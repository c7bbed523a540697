"""How the layers of a network fared over its training, on one page: a row a layer, a column a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from torch_featviz.errors import ShapeError
from torch_featviz.picture import Chart, Picture, number
from torch_featviz.picture.text import shorten

from .findings import Finding
from .history import Bins, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = NDArray[np.float64]
_BAND = 0.84  # of a row is drawn on
_LEAST = 1e-4  # share of a layer's values, from which on a bin is told from an empty one
_LINE_HEIGHT = 0.17  # inches
_FINDINGS, _WIDE = 12, 210  # shown at most; letters in a line
_LINE, _BROKEN, _GUIDE = "#1f5fa8", "#c8511b", "#999999"


@dataclass(frozen=True)
class _Column:
    """One figure of all layers, drawn on one scale."""

    title: str
    values: dict[str, Values]
    log: bool
    guide: float | None = None  # a value to compare with


def report(history: History, findings: Sequence[Finding] = (), *, title: str = "") -> Picture:
    """Histograms over steps, spread, dead channels, gradients and updates of every layer.

    All rows of a column share its scale, so that layers can be compared; a histogram has its layer's own range, which
    is written beside it. The number at the end of a line is the last one. A cross marks steps with NaN or infinities.

    Args:
        history: of a `Monitor`.
        findings: what it found, written below.
        title: above everything.
    Raises:
        ShapeError: there is no sample yet, or none in which a layer ran.
    Reference: histograms over steps are the "colourful dimension" of S. Gugger and fastai (2019).
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  no matplotlib on import

    layers = list(dict.fromkeys(name for sample in history for name in sample.layers))
    if not layers:
        raise ShapeError("there is nothing to report: no step was looked at in which a layer ran.")
    columns = _columns(history, layers)
    tall = 0.62 if len(layers) <= 12 else 0.36
    said = _in_lines(findings)
    foot = _LINE_HEIGHT * len(said) + 0.25 if said else 0.0
    height = 1.55 + tall * len(layers) + foot
    figure = Figure(figsize=(14.5, height), dpi=110)
    widths = [1.5, *[1.0] * len(columns)]
    grid: dict[str, Any] = {"width_ratios": widths, "wspace": 0.36}
    edges = {"left": 0.12, "right": 0.945, "top": 1 - 0.85 / height, "bottom": (0.5 + foot) / height}
    axes = figure.subplots(1, len(widths), sharey=True, gridspec_kw={**grid, **edges})
    figure.text(0.01, 1 - 0.3 / height, title or "Training", weight="bold", size=13, va="center")
    _histograms(axes[0], history, layers)
    for place, column in zip(axes[1:], columns, strict=True):
        _lines(place, column, history, layers)
    _frame(axes, history, layers)
    _key(figure, height)
    for i, line in enumerate(said):
        place = (foot - 0.12 - _LINE_HEIGHT * i) / height
        figure.text(0.01, place, line, size=9, va="top", color=_BROKEN if i == 0 else "black")
    return Chart(figure)


def _in_lines(findings: Sequence[Finding]) -> list[str]:
    """The findings, each wrapped; the first line says how many there are."""
    if not findings:
        return []
    shown = findings if len(findings) <= _FINDINGS else findings[: _FINDINGS - 1]
    lines = [f"{len(findings)} finding{'s' if len(findings) > 1 else ''}"]
    for finding in shown:
        words = f"Step {finding.step:,}: {finding.text}"
        lines += textwrap.wrap(words, _WIDE, subsequent_indent="        ", break_long_words=False)
    left = len(findings) - len(shown)
    return [*lines, f"... and {left} more in Monitor.findings"] if left else lines


def _columns(history: History, layers: list[str]) -> list[_Column]:
    weights = {layer: weight_of(history, layer) for layer in layers}
    learnt = {layer: name for layer, name in weights.items() if name}
    dead = {}
    for layer in layers:
        known = np.isfinite(history.values(layer, "mean"))  # of values that are all broken, none is known to be below 0
        share = 100 * history.values(layer, "dead") / history.values(layer, "channels")
        dead[layer] = np.where(known, share, np.nan)
    columns = [
        _Column("spread of values (std)", {layer: history.values(layer, "std") for layer in layers}, log=True),
        _Column("channels never above 0, %", dead, log=False),
    ]
    if learnt:
        grads = {layer: history.values(name, "grad_norm") for layer, name in learnt.items()}
        ratios = {layer: history.values(name, "update_ratio") for layer, name in learnt.items()}
        columns.append(_Column("norm of the weight's gradient", grads, log=True))
        columns.append(_Column("update ÷ weight", ratios, log=True, guide=1e-3))
    return columns


def weight_of(history: History, layer: str) -> str | None:
    """The parameter that is a layer's weight, also where it is computed from another (weight and spectral norm)."""
    start = f"{layer}." if layer else ""
    names = [name.removeprefix(start) for name in history[-1].parameters if name.startswith(start)]
    original = "parametrizations.weight.original"
    known = ("weight", "weight_v", "weight_orig", original, f"{original}1", f"{original}0")
    return next((start + name for name in known if name in names), None)


def _histograms(axes: Axes, history: History, layers: list[str]) -> None:
    from matplotlib.colors import LogNorm  # noqa: PLC0415

    axes.set_title("values returned", loc="left", fontsize=10)
    steps = _edges(history.steps)
    for row, layer in enumerate(layers):
        bins = [sample.layers[layer].histogram if layer in sample.layers else None for sample in history]
        shares, low, high = on_one_grid(bins)
        if not shares.size:
            continue
        top, bottom = row + (1 - _BAND) / 2, row + (1 + _BAND) / 2
        shown = np.where(shares >= _LEAST, shares, np.nan)
        across = np.linspace(bottom, top, len(shares) + 1)
        axes.pcolormesh(steps, across, shown, norm=LogNorm(_LEAST, 1), cmap="viridis", rasterized=True)
        axes.text(1.015, top, number(high), transform=axes.get_yaxis_transform(), size=7, va="top")
        axes.text(1.015, bottom, number(low), transform=axes.get_yaxis_transform(), size=7, va="bottom")
        if low < 0 < high:
            zero = bottom - (0 - low) / (high - low) * (bottom - top)
            axes.plot([steps[0], steps[-1]], [zero, zero], color="white", linewidth=0.7, linestyle=(0, (2, 3)))


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


def _lines(axes: Axes, column: _Column, history: History, layers: list[str]) -> None:
    axes.set_title(column.title, loc="left", fontsize=10)
    low, high = _range(column)
    for row, layer in enumerate(layers):
        if layer not in column.values:
            continue
        values, bottom = column.values[layer], row + (1 + _BAND) / 2

        def at(value: Any, bottom: float = bottom) -> Any:
            with np.errstate(divide="ignore", invalid="ignore"):
                scaled = np.log10(value) if column.log else np.asarray(value, float)
            return bottom - _BAND * np.clip((scaled - low) / (high - low), 0, 1)

        if column.guide is not None and low <= np.log10(column.guide) <= high:
            axes.axhline(at(column.guide), color=_GUIDE, linewidth=0.7, linestyle="--")
        fine = np.isfinite(values)
        mark = "." if fine.sum() < 3 else ""
        axes.plot(np.array(history.steps)[fine], at(values[fine]), color=_LINE, linewidth=1.2, marker=mark)
        broken = _broken(history, layer)
        axes.plot(broken, np.full(len(broken), row + 0.5), "x", color=_BROKEN, markersize=5, linestyle="none")
        if fine.any():
            last = number(float(values[fine][-1]))
            axes.text(1.02, row + 0.5, last, transform=axes.get_yaxis_transform(), size=8, va="center", color=_LINE)
    ends = (number(10**low), number(10**high)) if column.log else (number(low), number(high))
    guide = f"; dashed: {number(column.guide)}" if column.guide is not None else ""
    axes.set_xlabel(f"row: {ends[0]} (bottom) to {ends[1]}{guide}", fontsize=8)


def _range(column: _Column) -> tuple[float, float]:
    """The ends of the column's scale; of a logarithmic one, whole powers of ten and at least one apart."""
    if not column.log:
        return 0.0, 100.0
    every = np.concatenate(list(column.values.values()))
    every = every[np.isfinite(every) & (every > 0)]
    if not every.size:
        return -1.0, 1.0
    low, high = float(np.floor(np.log10(every.min()))), float(np.ceil(np.log10(every.max())))
    return (low, high) if high > low else (low, low + 1)


def _broken(history: History, layer: str) -> list[int]:
    seen = [(sample.step, sample.layers.get(layer)) for sample in history]
    return [step for step, figures in seen if figures is not None and figures.nan + figures.inf]


def _edges(steps: list[int]) -> Values:
    """Where the cell of each step begins, and where the last ends."""
    middle = np.array(steps, float)
    if len(middle) == 1:
        return np.array([middle[0] - 0.5, middle[0] + 0.5])
    between = (middle[1:] + middle[:-1]) / 2
    return np.array([2 * middle[0] - between[0], *between, 2 * middle[-1] - between[-1]])


def _frame(axes: Any, history: History, layers: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    edges = _edges(history.steps)
    axes[0].set_ylim(len(layers), 0)
    axes[0].set_yticks(np.arange(len(layers)) + 0.5, [_label(layer) for layer in layers], size=8)
    for place in axes:
        place.set_xlim(edges[0], edges[-1])
        place.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        place.tick_params(axis="x", labelsize=8)
        place.tick_params(axis="y", length=0)
        for row in range(len(layers) + 1):
            place.axhline(row, color="0.85", linewidth=0.6)
        place.spines[:].set_visible(False)
    axes[0].set_xlabel("step", fontsize=8)


def _label(layer: str) -> str:
    """A layer's name, or the end of it, which tells it from its neighbours."""
    return shorten(layer[::-1], 150, 11)[::-1] or "(model)"


def _key(figure: Figure, height: float) -> None:
    from matplotlib.cm import ScalarMappable  # noqa: PLC0415
    from matplotlib.colors import LogNorm  # noqa: PLC0415

    place = figure.add_axes((0.62, 1 - 0.3 / height, 0.2, 0.1 / height))
    bar = figure.colorbar(ScalarMappable(LogNorm(_LEAST, 1), "viridis"), cax=place, orientation="horizontal")
    bar.set_ticks([_LEAST, 1e-2, 1], labels=["0.01 %", "1 %", "100 % of a layer's values"])
    place.tick_params(labelsize=7, length=2)
    figure.text(0.83, 1 - 0.26 / height, "×  NaN or ∞", color=_BROKEN, size=8, va="center")
