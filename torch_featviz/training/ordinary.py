"""How far values ordinarily reach in a run that may have blown up: what scales are chosen by."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from statistics import median_low

BLOWN_UP = 1e3  # times as far as before, and beyond it: no healthy layer gets there from one look to the next


def ordinary(reaches: Iterable[float]) -> float:
    """The median reach of the steps that did not blow up; 0 where all are 0 or none is finite.

    The median alone holds until half of the steps have blown up. So a step that reaches a thousand times as far as the
    median of the steps before it, and beyond a thousand, does not count. What begins near 0 and grows to an ordinary
    size stays below a thousand, and counts.

    Args:
        reaches: the largest finite magnitude of each step, in order.
    Example:
        >>> ordinary([1.0, 1.1, 0.9, 1e30, 1e30, 1e30, 1e30])
        1.0
        >>> ordinary([0.0, 1e-5, 0.3, 0.5, 0.8])
        0.3
    """
    calm: list[float] = []
    for reach in reaches:
        if not isfinite(reach) or reach <= 0:
            continue
        if calm and reach > BLOWN_UP and reach > BLOWN_UP * median_low(calm):
            continue
        calm.append(reach)
    return median_low(calm) if calm else 0.0
