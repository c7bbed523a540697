"""Loss, learning rate and the like: a small panel each, on top of the page."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from torch_featviz.picture import number
from torch_featviz.picture.text import shorten
from torch_featviz.training.history import History

from .axis import BROKEN, FAINT, Steps, Values
from .columns import Line, draw_line, finite, last_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPAN = 30  # times the least is the most, from which on positive values stand on a logarithmic axis
_RATES, _GRADIENT = "learning_rate", "gradient_norm"


@dataclass(frozen=True)
class Panel:
    """One scalar, or the learning rates of all groups."""

    name: str
    lines: dict[str, Line]

    def values(self) -> Values:
        """All that are finite."""
        return finite(self.lines.values())

    @property
    def log(self) -> bool:
        every = self.values()
        return bool(every.size) and bool(every.min() > 0) and bool(every.max() / SPAN > every.min())

    def place(self, values: Values) -> Values:
        """Where values stand between the least, 0, and the greatest, 1; a matplotlib scale cannot hold all floats."""
        ends = self.values()
        low, high = ends.min(), ends.max()
        if low == high:
            return np.where(np.isnan(values), np.nan, 0.5)
        if self.log:
            values, low, high = np.log10(values), np.log10(low), np.log10(high)
        # halves: the distance between two floats may be too large for one
        return np.asarray((values / 2 - low / 2) / (high / 2 - low / 2))

    @property
    def title(self) -> str:
        groups = f" ({len(self.lines)} groups)" if len(self.lines) > 1 else ""
        return f"{shorten(self.name, 130, 11)}{groups}{', log' if self.log else ''}"

    def last(self) -> tuple[str, str]:
        """The last value; of several groups, the least and the greatest."""
        every = [last_words(line) for line in self.lines.values()]
        broken = [each for each in every if each[1] == BROKEN]
        if broken or len(every) == 1:
            return (broken or every)[0]
        lasts = [next(value for value in reversed(line) if value is not None) for line in self.lines.values()]
        low, high = number(min(lasts)), number(max(lasts))
        return (low if low == high else f"{low}\nto {high}"), every[0][1]


def panels_of(history: History) -> list[Panel]:
    """The loss first, then learning rates, the norm of all gradients, and what else was logged, in its order."""
    names = history.scalars
    rates = [name for name in names if name == _RATES or name.startswith(f"{_RATES}/")]
    first = [name for name in ("loss", *rates[:1], _GRADIENT) if name in names]
    order = [*first, *(name for name in names if name not in first and name not in rates)]
    panels = []
    for name in order:
        group = rates if name in rates else [name]
        panels.append(Panel(_RATES if name in rates else name, {each: history.line(each) for each in group}))
    return panels


def draw_panel(axes: Axes, panel: Panel, steps: Steps, *, pad: float) -> None:
    """The line, a cross at each step at which it was not finite, its least, its greatest and its last value.

    Args:
        axes: bare.
        panel: what to draw.
        steps: their axis.
        pad: points between the panel and its title.
    """
    axes.set_label(panel.name)
    axes.set_title(panel.title, loc="left", fontsize=10, parse_math=False, pad=pad)
    axes.spines[["left", "right"]].set_visible(False)
    axes.spines[["top", "bottom"]].set_color("0.85")
    steps.draw(axes)
    beside: Any = {"transform": axes.transAxes, "parse_math": False}
    for line in panel.lines.values():
        draw_line(axes, steps.at, line, at=panel.place)
    every = panel.values()
    axes.set_ylim(-0.08, 1.08)
    hits = [
        step
        for i, step in enumerate(steps.at)
        if any(line[i] is not None and not isfinite(line[i] or 0) for line in panel.lines.values())
    ]
    axes.plot(hits, np.full(len(hits), 0.5), "x", transform=axes.get_xaxis_transform(), color=BROKEN, markersize=5)
    if every.size and every.min() < every.max():
        axes.text(1.02, 1, number(float(every.max())), size=7, va="top", color=FAINT, **beside)
        axes.text(1.02, 0, number(float(every.min())), size=7, va="bottom", color=FAINT, **beside)
    words, color = panel.last()
    axes.text(1.02, 0.5, words, size=8, va="center", color=color, **beside)
    axes.set_yticks([])
    axes.minorticks_off()
