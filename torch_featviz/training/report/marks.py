"""Where a finding was seen: a flag with its number, which is that of the list below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch_featviz.training.history import Finding

from .axis import INK, Steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLAG: Any = {"size": 7, "color": INK, "bbox": {"boxstyle": "round,pad=0.15", "fc": "white", "ec": INK, "lw": 0.7}}
_ROOM = 0.045  # of the axis that a flag with one digit takes,
_LETTER = 0.025  # and each further letter
_LATE = 0.9  # of the axis, from where on flags point to the left
_OUTSIDE = ("inputs", "targets", "loss")  # names that are no part of the model
_MOST = 3  # numbers on one flag, unless they follow each other


class Mark(NamedTuple):
    """A finding of the list."""

    number: int
    step: int


class Marks:
    """The findings that are listed, by where they belong.

    Args:
        findings: in the order of the list, which begins with 1.
        layers: that have a row; a parameter belongs to the layer that holds it.
    """

    def __init__(self, findings: Sequence[Finding], layers: Sequence[str]) -> None:
        self.all = [Mark(i, finding.step) for i, finding in enumerate(findings, 1)]
        self.names: dict[str, list[Mark]] = {}
        self.rows: dict[int, list[Mark]] = {}
        for mark, finding in zip(self.all, findings, strict=True):
            for name in finding.names:
                self.names.setdefault(name, []).append(mark)
            for row in sorted({row for name in finding.names if (row := _row_of(name, layers)) is not None}):
                self.rows.setdefault(row, []).append(mark)


def _row_of(name: str, layers: Sequence[str]) -> int | None:
    """Of a layer, or of the layer to which a parameter belongs; None of what is no part of the model."""
    if name in layers:
        return layers.index(name)
    holders = [layer for layer in layers if name.startswith(f"{layer}.")]
    if not holders and "" in layers and name not in _OUTSIDE:
        return layers.index("")
    return layers.index(max(holders, key=len)) if holders else None


def draw_flags(
    axes: Axes,
    marks: Iterable[Mark],
    steps: Steps,
    *,
    row: tuple[float, float] | None = None,
    up: float = 3,
    lines: bool = True,
) -> None:
    """A thin line at each step, and its number beside it; numbers of steps that are too close share one flag.

    Args:
        axes: of any panel.
        marks: to draw.
        steps: its axis.
        row: where a row begins and ends, in which flags are drawn; None: above the panel, and lines all over it.
        up: points that flags stand above the panel.
        lines: whether to draw them, too.
    """
    marks = [mark for mark in marks if steps.limits[0] <= mark.step <= steps.limits[1]]
    if lines:
        draw_ticks(axes, marks, row=row, halo=row is not None)
    across = axes.transData if row else axes.get_xaxis_transform()
    low, high = steps.limits
    for step, words in _clumps(marks, high - low):
        late = (step - low) / (high - low) > _LATE
        axes.annotate(
            words,
            (step, row[0] if row else 1),
            (-3 if late else 3, -2 if row else up),
            xycoords=across,
            textcoords="offset points",
            ha="right" if late else "left",
            va="top" if row else "bottom",
            annotation_clip=False,
            **FLAG,
            zorder=5,
            gid="flag",
        )


def draw_ticks(
    axes: Axes, marks: Iterable[Mark], *, row: tuple[float, float] | None = None, halo: bool = False
) -> None:
    """A thin line at each step, below the others; with a halo it stands on histograms."""
    across = axes.transData if row else axes.get_xaxis_transform()
    for step in dict.fromkeys(mark.step for mark in marks):
        for color, width in (("white", 2.2), (INK, 0.9)) if halo else ((INK, 0.8),):
            line = axes.plot([step, step], row or (0, 1), color=color, linewidth=width, transform=across, gid="finding")
            line[0].set_zorder(3 if halo else 1)


def _clumps(marks: list[Mark], span: float) -> list[tuple[int, str]]:
    """Marks that would lie on each other together: the first step, and the numbers."""
    clumps: list[list[Mark]] = []
    for mark in sorted(marks, key=lambda mark: (mark.step, mark.number)):
        if clumps:
            words = _words([each.number for each in clumps[-1]])
            room = span * (_ROOM + _LETTER * (len(words) - 1))
            if mark.step - clumps[-1][0].step < room:
                clumps[-1].append(mark)
                continue
        clumps.append([mark])
    return [(clump[0].step, _words([mark.number for mark in clump])) for clump in clumps]


def _words(numbers: list[int]) -> str:
    """`3`, `3, 5`, `3–6`, and of more the first of them."""
    numbers = sorted(set(numbers))
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(map(str, numbers[:_MOST])) + (" …" if len(numbers) > _MOST else "")
