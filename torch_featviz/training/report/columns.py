"""One figure of all layers over the steps: a line a layer, all on one scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, isinf, log10, nan
from typing import TYPE_CHECKING, Any

import numpy as np

from torch_featviz.picture import number
from torch_featviz.training.history import History

from .axis import BROKEN, GUIDE, LINE, Steps, Values, power

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = list[float | None]  # None where there was no such figure
BAND = 0.84  # of a row is drawn on
_FEW = 30  # samples at most of which each has a dot


@dataclass(frozen=True)
class Column:
    """One figure of all layers that have it.

    Args:
        title: what it is.
        lines: of each layer that has any; None where there was none, NaN or infinite where that is what it was.
        broken: whether each sample is marked, by layer.
        log: on a logarithmic scale.
        guide: a value to compare with.
    """

    title: str
    lines: dict[str, Line]
    broken: dict[str, list[bool]]
    log: bool
    guide: float | None = None

    def values(self) -> Values:
        """All that are finite."""
        return finite(self.lines.values())

    @property
    def scale(self) -> tuple[float, float] | None:
        """The ends, of a logarithmic one as powers of ten at least one apart; None where no value can be placed."""
        if not self.log:
            return (0.0, 100.0) if self.values().size else None
        every = self.values()
        every = every[every > 0]
        if not every.size:
            return None
        low, high = floor(log10(every.min())), ceil(log10(every.max()))
        return low, max(high, low + 1)

    def words(self) -> str:
        """What the height of a row means."""
        if not self.values().size:
            return "no finite value"
        if self.scale is None:
            return "all are 0"
        low, high = (power(end) if self.log else number(end) for end in self.scale)
        zero = "0, " if self.log and (self.values() == 0).any() else ""
        guide = f"; dashed {number(self.guide or 0)}" if self.guided else ""
        return f"row: {zero}{low} to {high}{', log' if self.log else ''}{guide}"

    @property
    def guided(self) -> bool:
        """Whether the guide is within the scale."""
        return self.guide is not None and self.scale is not None and self.scale[0] <= log10(self.guide) <= self.scale[1]


def finite(lines: Iterable[Line]) -> Values:
    """All values of several lines that are finite."""
    every = np.array([value for line in lines for value in line if value is not None], np.float64)
    return np.asarray(every[np.isfinite(every)])


def columns_of(history: History, layers: list[str]) -> list[Column]:
    """Those of which there is anything to draw."""
    broken = {layer: _broken(history, layer) for layer in layers}
    weights = {layer: weight_of(history, layer) for layer in layers}
    learnt = {layer: name for layer, name in weights.items() if name}
    grads = {layer: history.line(name, "grad_norm") for layer, name in learnt.items()}
    ratios = {layer: _ratios(history, name) for layer, name in learnt.items()}
    spread = {layer: history.line(layer, "std") for layer in layers}
    dead = {layer: _dead(history, layer) for layer in layers}
    columns = [
        Column("spread of values (std)", spread, broken, log=True),
        Column("channels never above 0, %", dead, broken, log=False),
        Column("norm of the weight's gradient", grads, {each: _odd(line) for each, line in grads.items()}, log=True),
        Column("update ÷ weight", ratios, {each: _odd(line) for each, line in ratios.items()}, log=True, guide=1e-3),
    ]
    return [kept for column in columns if (kept := _without_empty(column)).lines]


def _without_empty(column: Column) -> Column:
    """Only the layers that have the figure, or of which it is known that it is broken."""
    lines = {
        layer: line
        for layer, line in column.lines.items()
        if any(value is not None and isfinite(value) for value in line) or any(column.broken[layer])
    }
    return Column(column.title, lines, column.broken, column.log, column.guide)


def weight_of(history: History, layer: str) -> str | None:
    """The parameter that is a layer's weight, also where it is computed from another (weight and spectral norm)."""
    start = f"{layer}." if layer else ""
    names = [name.removeprefix(start) for name in history[-1].parameters if name.startswith(start)]
    original = "parametrizations.weight.original"
    known = ("weight", "weight_v", "weight_orig", original, f"{original}1", f"{original}0")
    return next((start + name for name in known if name in names), None)


def _broken(history: History, layer: str) -> list[bool]:
    """Where the layer returned NaN or infinities."""
    seen = [sample.layers.get(layer) for sample in history]
    return [figures is not None and figures.nan + figures.inf > 0 for figures in seen]


def _odd(line: Line) -> list[bool]:
    return [value is not None and not isfinite(value) for value in line]


def _dead(history: History, layer: str) -> Line:
    """Per cent; of values that are all broken, no channel is known to be below 0."""
    line: Line = []
    for sample in history:
        figures = sample.layers.get(layer)
        if figures is None or not figures.channels:
            line.append(None)
        else:
            line.append(100 * figures.dead / figures.channels if isfinite(figures.mean) else nan)
    return line


def _ratios(history: History, name: str) -> Line:
    """Of a weight that was 0 there is no ratio; it is infinite, and nothing is wrong."""
    line = history.line(name, "update_ratio")
    norms = history.line(name, "norm")
    return [
        None if value is not None and isinf(value) and norm is not None and isfinite(norm) else value
        for value, norm in zip(line, norms, strict=True)
    ]


def draw_column(axes: Axes, column: Column, steps: Steps, layers: list[str], *, size: float) -> None:
    """The lines, a cross at each broken step, and the last value of each line beside it."""
    across: Any = {"transform": axes.get_yaxis_transform()}
    low, high = column.scale or (0.0, 1.0)
    for row, layer in enumerate(layers):
        if layer not in column.lines:
            axes.text(0.5, row + 0.5, "–", size=8, color="0.6", ha="center", va="center", **across)
            continue
        bottom = row + (1 + BAND) / 2

        def at(values: Values, bottom: float = bottom) -> Values:
            with np.errstate(divide="ignore", invalid="ignore"):
                scaled = np.log10(values) if column.log else values
            return bottom - BAND * np.clip((scaled - low) / (high - low), 0, 1)

        if column.guided:
            y = at(np.array([column.guide]))[0]
            axes.plot([0, 1], [y, y], color=GUIDE, linewidth=0.7, linestyle="--", **across)
        draw_line(axes, steps.at, column.lines[layer], at=at)
        hits = steps.at[column.broken[layer]]
        axes.plot(hits, np.full(len(hits), row + 0.5), "x", color=BROKEN, markersize=min(5, size), linestyle="none")
        words, color = last_words(column.lines[layer])
        axes.text(1.02, row + 0.5, words, size=size, va="center", color=color, **across)


def draw_line(axes: Axes, steps: Values, line: Line, *, at: Callable[[Values], Values] | None = None) -> None:
    """One line, which ends where the figure is broken and passes over steps that have none.

    Of few samples each has a dot, so that it is seen where they were, and of many those that stand alone.
    """
    present = [(step, value) for step, value in zip(steps, line, strict=True) if value is not None]
    if not present:
        return
    x, values = np.array(present).T
    fine = np.isfinite(values)
    if not fine.any():
        return
    around = np.r_[False, fine, False]
    alone = fine & ~around[:-2] & ~around[2:]
    values = np.where(fine, values, np.nan)
    marks = np.flatnonzero(fine if len(steps) <= _FEW else alone)
    size = 5 if len(steps) <= 2 else 3.5
    y = at(values) if at else values
    axes.plot(x, y, color=LINE, linewidth=1.2, marker=".", markersize=size, markevery=marks.tolist())


def last_words(line: Sequence[float | None]) -> tuple[str, str]:
    """The last value in words, and their colour: what is not finite is said."""
    last = next((value for value in reversed(line) if value is not None), None)
    if last is None:
        return "", LINE
    if isfinite(last):
        return number(last), LINE
    return "NaN" if last != last else "∞" if last > 0 else "−∞", BROKEN  # noqa: PLR0124  NaN alone
