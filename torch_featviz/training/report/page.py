"""The page: what stands where."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch_featviz.errors import ShapeError
from torch_featviz.picture import Chart, Picture
from torch_featviz.picture.text import shorten, width
from torch_featviz.training.history import Finding, History

from .axis import BROKEN, FAINT, Steps
from .columns import BAND, columns_of, draw_column
from .histograms import LEAST, draw_histograms, histograms_of, words_of
from .marks import FLAG, Marks, draw_flags, draw_ticks
from .scalars import Panel, draw_panel, panels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# inches
_WIDTH, _LEFT, _RIGHT, _GAP, _RANGES = 14.5, 1.74, 0.8, 0.7, 1.05  # ranges stand beside the histograms
_TITLE, _FOOT, _LINE = 0.34, 0.5, 0.17
_PANEL, _BETWEEN = 0.75, 0.32  # of a scalar: its height, and the ticks below it
_FLAGS, _WORDS, _TICKS = 0.2, 0.12, 0.2  # above a panel, where there are any
_ROOMY, _USUAL, _THIN = (12, 0.62), (60, 0.36), 0.22  # up to so many layers a row is so high
_TALL = 20  # layers from which on ticks stand above them, too
_FINDINGS, _LETTERS = 12, 205  # shown at most; letters in a line
_HEAD = 560  # pixels that a title may have beside the key
_SLOTS = 5  # columns from which on one row of scalars is enough
_SCALARS = 6  # shown at most otherwise


def report(history: History, findings: Sequence[Finding] = (), *, title: str = "") -> Picture:
    """Scalars on top, then histograms, spread, dead channels, gradients and updates of every layer, over the steps.

    All panels share one axis of steps. All rows of a column share its scale, so that layers can be compared; a
    histogram has its layer's own range, which is written beside it, on a logarithmic axis where some steps reach much
    farther than others. The number at the end of a line is the last one. A cross marks steps with NaN or infinities; a
    flag marks where a finding of the list was seen. A figure that no layer has is left out; a layer that has none of
    it shows a dash.

    Args:
        history: of a `Monitor`.
        findings: what it found, written below.
        title: above everything.
    Raises:
        ShapeError: there is no sample yet, or none in which a layer ran or a scalar was seen.
    Reference: histograms over steps are the "colourful dimension" of S. Gugger and fastai (2019).
    """
    layers = list(dict.fromkeys(name for sample in history for name in sample.layers))
    panels = panels_of(history)
    if not layers and not panels:
        raise ShapeError(
            "there is nothing to report: no watched step has a layer that ran or "
            "a scalar; run steps inside watch.step() first."
        )
    page = _Page(history, layers, panels, findings, title or "Training")
    if layers:
        page.draw_rows()
    page.draw_scalars()
    page.draw_head()
    page.draw_findings()
    page.draw_frozen()
    return Chart(page.figure)


class _Page:
    """Everything is measured first, in inches from the top left, and drawn after."""

    def __init__(
        self, history: History, layers: list[str], panels: list[Panel], findings: Sequence[Finding], title: str
    ) -> None:
        from matplotlib.figure import Figure  # noqa: PLC0415  no matplotlib on import

        self.history, self.layers, self.panels, self.title = history, layers, panels, title
        self.steps = Steps.of(history.steps)
        self.columns = columns_of(history, layers) if layers else []
        self.histograms = histograms_of(history, layers)
        self.slots = _slots(1 + len(self.columns), ranges=True) if layers else []
        self.places = self.slots if len(self.slots) >= 3 else _slots(len(panels) if 0 < len(panels) <= 4 else 3)
        self.shown = panels[: len(self.places) if len(self.places) >= _SLOTS else _SCALARS]
        self.findings = findings
        self.listed = findings if len(findings) <= _FINDINGS else findings[: _FINDINGS - 1]
        self.marks, self.said = Marks(self.listed, layers), [_wrapped(finding) for finding in self.listed]

        self.key = 0.26 if width(title, 20, bold=True) < _HEAD else 0.55
        self.top = self.key + 0.34
        self.tall, many = _row_height(len(layers)), len(layers) > _TALL
        self.flags, self.ticks = (_FLAGS if self.listed else 0.0), (_TICKS if many else 0.0)
        self.above = self.ticks + (0.0 if panels else self.flags)  # of the rows: ticks, flags, then words and titles
        self.band = _TITLE + self.flags + _PANEL + _BETWEEN
        self.rest = self.top + -(-len(self.shown) // len(self.places)) * self.band
        self.begin = self.rest + (0.2 if len(panels) > len(self.shown) else 0.0) + _TITLE + _WORDS + self.above
        self.end = self.begin + self.tall * len(layers) + _FOOT if layers else self.rest + 0.4
        lines = 1 + sum(map(len, self.said)) + (len(findings) > len(self.listed)) if findings else 0
        self.foot = self.end + _LINE * lines + (0.3 if lines else 0.0)
        self.frozen = _frozen(history)
        self.height = self.foot + (0.3 if self.frozen else 0.0)
        self.figure = Figure(figsize=(_WIDTH, self.height), dpi=110)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """An empty panel."""
        place = (left / _WIDTH, 1 - (top + height) / self.height, width / _WIDTH, height / self.height)
        return self.figure.add_axes(place)

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Plain words; a dollar sign is one."""
        self.figure.text(left / _WIDTH, 1 - top / self.height, words, parse_math=False, **style)

    def draw_head(self) -> None:
        """The title, and what colours and marks mean."""
        from matplotlib.cm import ScalarMappable  # noqa: PLC0415
        from matplotlib.colors import LogNorm  # noqa: PLC0415

        self.text(0.15, 0.3, shorten(self.title, 1500, 20, bold=True), weight="bold", size=13, va="center")
        self.text(11.1, self.key, "×  NaN or ∞", color=BROKEN, size=8, va="center")
        if self.listed:
            self.text(12.15, self.key, "1", va="center", ha="center", **FLAG)
            self.text(12.3, self.key, "finding, in the list below", size=8, va="center")
        if any(each and each.above + each.below for each in self.histograms):
            self.text(5.35, self.key, "▲▼  values beyond the row", size=8, va="center")
        if any(self.histograms):
            axes = self.axes(7.6, self.key - 0.06, 2.6, 0.1)
            axes.set_label("key")
            colors = ScalarMappable(LogNorm(LEAST, 1), "viridis")
            bar = self.figure.colorbar(colors, cax=axes, orientation="horizontal")
            bar.set_ticks([LEAST, 1e-2, 1], labels=["0.01 %", "1 %", "100 % of a layer's values"])
            axes.tick_params(labelsize=7, length=2)

    def draw_rows(self) -> None:
        """A row a layer, a column a figure."""
        axes = [self.axes(left, self.begin, width, self.tall * len(self.layers)) for left, width in self.slots]
        small = self.tall <= _THIN
        draw_histograms(axes[0], self.history, self.layers, self.histograms, self.steps, size=6 if small else 7)
        for place, column in zip(axes[1:], self.columns, strict=True):
            draw_column(place, column, self.steps, self.layers, size=6 if small else 8)
        heads = [("values returned", words_of(self.histograms)), *((each.title, each.words()) for each in self.columns)]
        for place, head in zip(axes, heads, strict=True):
            self._frame(place, *head)
        _name_rows(axes[0], self.layers)
        for row, marks in self.marks.rows.items():
            ends = (row + (1 - BAND) / 2, row + (1 + BAND) / 2)
            draw_flags(axes[0], marks, self.steps, row=ends)
            for place in axes[1:]:
                draw_ticks(place, marks, row=ends)
        if not self.panels:
            draw_flags(axes[0], self.marks.all, self.steps, up=3 + 72 * self.ticks, lines=False)

    def _frame(self, axes: Axes, title: str, words: str) -> None:
        """Title, what to know of it, steps, and a line between rows."""
        axes.set_label(title)
        axes.set_title(title, loc="left", fontsize=10, pad=72 * (self.above + _WORDS) + 6)
        at: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
        axes.annotate(words, (0, 1), (0, 72 * self.above + 4), size=7, color=FAINT, va="bottom", **at)
        self.steps.draw(axes, top=self.ticks > 0)
        axes.set_xlabel("step", fontsize=8)
        axes.set_yticks([])
        axes.set_ylim(len(self.layers), 0)
        axes.hlines(range(len(self.layers) + 1), *self.steps.limits, color="0.85", linewidth=0.6, zorder=0)
        axes.spines[:].set_visible(False)
        axes.patch.set_visible(False)

    def draw_scalars(self) -> None:
        """The first panels, with all findings above the first of them; and how many there are beside."""
        for i, panel in enumerate(self.shown):
            row, column = divmod(i, len(self.places))
            left, wide = self.places[column]
            axes = self.axes(left, self.top + row * self.band + _TITLE + self.flags, wide, _PANEL)
            draw_panel(axes, panel, self.steps, pad=72 * self.flags + 4)
            if not self.layers:
                axes.set_xlabel("step", fontsize=8)
            draw_flags(axes, self.marks.all if i == 0 else self.marks.names.get(panel.name, []), self.steps)
        if hidden := [panel.name for panel in self.panels[len(self.shown) :]]:
            words = shorten(f"and {len(hidden)} more in history.scalars: {', '.join(hidden)}", 1150, 11)
            self.text(_LEFT, self.rest + (0.0 if self.layers else 0.2), words, size=8, color=FAINT, va="center")

    def draw_findings(self) -> None:
        """The list, each with its number."""
        if not self.findings:
            return
        many = "finding, at its step" if len(self.findings) == 1 else "findings, each at its step"
        top = self.end + 0.1
        self.text(0.15, top, f"{len(self.findings)} {many}", size=9, va="top", weight="bold")
        for number, lines in enumerate(self.said, 1):
            self.text(0.27, top + _LINE + 0.03, str(number), va="top", ha="center", **FLAG)
            for line in lines:
                top += _LINE
                self.text(0.42, top, line, size=9, va="top")
        if left := len(self.findings) - len(self.listed):
            self.text(0.42, top + _LINE, f"... and {left} more in Monitor.findings", size=9, va="top", color=FAINT)

    def draw_frozen(self) -> None:
        """Which parameters are not trained on purpose."""
        if self.frozen:
            self.text(0.15, self.foot + 0.1, shorten(self.frozen, 1500, 12), size=9, va="top", color=FAINT)


def _slots(n: int, *, ranges: bool = False) -> list[tuple[float, float]]:
    """Left edge and width of so many columns; the first, of histograms with their ranges beside them, is wider."""
    gaps, widths = [_RANGES if ranges else _GAP, *[_GAP] * (n - 1)], [1.5 if ranges else 1.0, *[1.0] * (n - 1)]
    unit = (_WIDTH - _LEFT - _RIGHT - sum(gaps[: n - 1])) / sum(widths)
    return [(_LEFT + sum(widths[:i]) * unit + sum(gaps[:i]), widths[i] * unit) for i in range(n)]


def _frozen(history: History) -> str:
    names = [name for name, each in history[-1].parameters.items() if each.frozen]
    return f"{len(names)} frozen (requires_grad=False): {', '.join(names)}" if names else ""


def _row_height(layers: int) -> float:
    return next((height for most, height in (_ROOMY, _USUAL) if layers <= most), _THIN)


def _wrapped(finding: Finding) -> list[str]:
    words = f"Step {finding.step:,}: {finding.text}"
    return textwrap.wrap(words, _LETTERS, break_long_words=False) or [words]


def _name_rows(axes: Axes, layers: list[str]) -> None:
    axes.set_yticks([row + 0.5 for row in range(len(layers))], [_label(layer) for layer in layers], size=8)
    axes.tick_params(axis="y", length=0)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)


def _label(layer: str) -> str:
    """A layer's name, or the end of it, which tells it from its neighbours."""
    return shorten(layer, 150, 11, ending=1) or "(model)"
