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


class Added(NamedTuple):
    """Seconds that one way takes longer than another: the median, and the middle half around it."""

    median: float
    low: float
    high: float

    def micro(self, parts: int) -> str:
        """In microseconds for each of so many parts."""
        return "{:.2f} ({:.2f} to {:.2f}) us".format(*(1e6 * value / parts for value in self))


def paired(a: Callable[[], object], b: Callable[[], object], *, rounds: int = 15) -> Ratio:
    """Time `a` against `b`: warmed up, garbage collection off, and the order turned round every time."""
    times = _alternate([a, b], rounds)
    return Ratio(*_middle([ta / tb for ta, tb in times]))


def added(base: Callable[[], object], *ways: Callable[[], object], rounds: int = 15) -> list[Added]:
    """What each of `ways` takes longer than `base`, timed in the same manner."""
    times = _alternate([base, *ways], rounds)
    return [Added(*_middle([row[i] - row[0] for row in times])) for i in range(1, len(ways) + 1)]


def _middle(values: list[float]) -> tuple[float, float, float]:
    low, _, high = quantiles(values, n=4)
    return median(values), low, high


def _alternate(calls: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """The times of all `calls`, a row for each round."""
    for call in calls:
        call()
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        order = list(range(len(calls)))
        rows = []
        for _ in range(rounds):
            order.append(order.pop(0)) if len(calls) > 2 else order.reverse()
            row = {i: _time(calls[i]) for i in order}
            rows.append([row[i] for i in range(len(calls))])
        return rows
    finally:
        if was_on:
            gc.enable()


def _time(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
