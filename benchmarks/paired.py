"""Ratios that a noisy machine cannot bend: both sides alternate, and each ratio is of neighbours in time."""

import gc
from collections.abc import Callable
from math import ceil, floor
from statistics import median
from time import perf_counter
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Ratio(NamedTuple):
    """Time of `a` over time of `b`: the median, and where the true median lies with 95 % confidence."""

    median: float
    low: float
    high: float

    def within(self, budget: float) -> bool:
        """Whether the ratio may be at most `budget`: false once it is above with 97.5 % confidence."""
        return self.low <= budget

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


class Added(NamedTuple):
    """Seconds that one way takes longer than another: the median, and its 95 % confidence interval."""

    median: float
    low: float
    high: float

    def micro(self, parts: int) -> str:
        """In microseconds for each of so many parts."""
        return "{:.2f} ({:.2f} to {:.2f}) us".format(*(1e6 * value / parts for value in self))


def paired(a: Callable[[], object], b: Callable[[], object], *, rounds: int = 15) -> Ratio:
    """Time `a` against `b`: warmed up, garbage collection off, and the order turned round every time."""
    times = _alternate([a, b], rounds)
    return Ratio(*_median([ta / tb for ta, tb in times]))


def added(base: Callable[[], object], *ways: Callable[[], object], rounds: int = 15) -> list[Added]:
    """What each of `ways` takes longer than `base`, timed in the same manner."""
    times = _alternate([base, *ways], rounds)
    return [Added(*_median([row[i] - row[0] for row in times])) for i in range(1, len(ways) + 1)]


def settled(measure: Callable[[], T], within: Callable[[T], bool], *, tries: int = 3) -> T:
    """What `measure` says, asked again while it is not `within` its budget: a busy neighbour on the machine spoils one
    measurement, a regression spoils all of them.
    """
    result = measure()
    for _ in range(tries - 1):
        if within(result):
            break
        result = measure()
    return result


def _median(values: list[float]) -> tuple[float, float, float]:
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5  # of ranks around the middle one: the sign test's interval, whatever the distribution
    return median(values), ordered[max(0, floor(n / 2 - reach))], ordered[min(n - 1, ceil(n / 2 + reach))]


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
