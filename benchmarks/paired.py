"""Ratios that a noisy machine cannot bend: both sides alternate, and each ratio is of neighbours in time."""

import gc
from collections.abc import Callable
from statistics import median, quantiles
from time import perf_counter
from typing import NamedTuple


class Ratio(NamedTuple):
    """Time of `a` over time of `b`: the median, and the middle half around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def paired(a: Callable[[], object], b: Callable[[], object], *, rounds: int = 15) -> Ratio:
    """Time `a` against `b`: warmed up, garbage collection off, and the order turned round every time."""
    a(), b()
    ratios = []
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            if i % 2:
                tb, ta = _time(b), _time(a)
            else:
                ta, tb = _time(a), _time(b)
            ratios.append(ta / tb)
    finally:
        if was_on:
            gc.enable()
    low, _, high = quantiles(ratios, n=4)
    return Ratio(median(ratios), low, high)


def _time(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
