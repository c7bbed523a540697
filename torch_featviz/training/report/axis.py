"""The one axis of steps that all panels share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torch_featviz.picture import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = NDArray[np.float64]
LINE, BROKEN, GUIDE, FAINT, INK = "#1f5fa8", "#c8511b", "#999999", "0.4", "#222222"
_SHORT = 10_000  # steps from which on ticks are written as 15k, 2M


@dataclass(frozen=True)
class Steps:
    """Where each sample stands, and the cell around it, which never reaches far into steps that nobody looked at."""

    at: Values
    left: Values
    right: Values

    @classmethod
    def of(cls, steps: Sequence[int]) -> Steps:
        """A cell ends halfway to its neighbour, or where the next is far, one usual distance away."""
        at = np.array(steps, float)
        if len(at) == 1:
            return cls(at, at - 0.5, at + 0.5)
        gaps = np.diff(at)
        half = np.minimum(gaps / 2, np.median(gaps))
        return cls(at, at - np.r_[half[0], half], at + np.r_[half, half[-1]])

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the axis."""
        return float(self.left[0]), float(self.right[-1])

    def cells(self) -> tuple[Values, list[int]]:
        """Edges of cells from left to right, and the sample of each; -1 is a gap that no sample covers."""
        edges, samples = [self.left[0]], []
        for i in range(len(self.at)):
            if self.left[i] > edges[-1]:
                edges.append(self.left[i])
                samples.append(-1)
            edges.append(self.right[i])
            samples.append(i)
        return np.array(edges), samples

    def draw(self, axes: Axes, *, top: bool = False) -> None:
        """The same range and the same ticks for every panel."""
        axes.set_xlim(*self.limits)
        ticks = self._ticks()
        short = ticks[-1] >= _SHORT
        axes.set_xticks(ticks, [_short(tick) if short else f"{tick:,}" for tick in ticks])
        axes.tick_params(axis="x", labelsize=8, labeltop=top, top=top)

    def _ticks(self) -> list[int]:
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415  no matplotlib on import

        if len(self.at) == 1:
            return [int(self.at[0])]
        low, high = self.limits
        found = MaxNLocator(4, integer=True).tick_values(low, high)
        return [int(tick) for tick in found if low <= tick <= high and tick >= 0] or [int(self.at[0])]


def _short(step: int) -> str:
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if step >= unit:
            return f"{step / unit:.4g}{letter}"
    return str(step)


def power(exponent: float) -> str:
    """A power of ten in words, also one that no float holds."""
    return number(10.0**exponent) if abs(exponent) < 300 else f"1e{int(exponent)}".replace("-", "−")
