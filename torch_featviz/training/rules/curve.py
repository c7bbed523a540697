"""The curve of the loss, as rules ask about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FALLS = (4, 2.5)  # ours: of so many means at least, standard errors of a slope
SLOWS = 0.5  # ours: of the slope before
STAYS = 0.6  # ours: of the loss at the beginning, what one that came to rest too early is above
RESTS = 0.95  # ours: of the quarter before
HARDLY = 0.85  # ours: of the loss at the beginning, what a loss that has hardly fallen is above
KNOWN = 60  # ours: steps after which it is known whether it falls


@dataclass(frozen=True)
class Curve:
    """Means of the loss between looks.

    Args:
        means: of each the last step, the mean, and the number of steps.
    """

    means: Sequence[Sequence[float]]

    def __len__(self) -> int:
        return len(self.means)

    @property
    def steps(self) -> float:
        """How many steps it is made of."""
        return sum(count for _, _, count in self.means)

    @property
    def begun(self) -> float:
        """The loss at the beginning: the higher of the first two means."""
        return max(value for _, value, _ in self.means[:2])

    @property
    def first(self) -> float:
        return self.means[0][1]

    @property
    def last(self) -> float:
        return self.means[-1][1]

    @property
    def mean(self) -> float:
        return sum(value * count for _, value, count in self.means) / self.steps

    @property
    def halves(self) -> tuple[Curve, Curve]:
        half = len(self.means) // 2
        return Curve(self.means[:half]), Curve(self.means[half:])

    @property
    def falls(self) -> bool:
        """Whether it falls by more than noise would have it, and does not come to rest.

        What escapes from a plateau falls faster and faster; a penalty on the weights that wears off, slower and slower.
        """
        if len(self.means) < FALLS[0]:
            return False
        slope, error = self._slope()
        if not slope < -FALLS[1] * error:
            return False
        before, after = self.halves
        return min(len(before), len(after)) < FALLS[0] or after._slope()[0] <= SLOWS * before._slope()[0]

    @property
    def has_fallen(self) -> bool:
        """Whether it is far below where it began."""
        return bool(self.means) and self.last < STAYS * self.begun

    @property
    def rests(self) -> bool:
        """Whether it is known, and has come to rest far above 0."""
        if len(self.means) < FALLS[0] or self.steps < KNOWN:
            return False
        third, fourth = self.halves[1].halves
        return self.begun > 0 and fourth.mean > max(STAYS * self.begun, RESTS * third.mean)

    @property
    def hardly_falls(self) -> bool:
        """Whether it is known, begins above 0, and has been nearly as high as at first for half of the time."""
        if len(self.means) < FALLS[0] or self.steps < KNOWN:
            return False
        return self.first > 0 and self.halves[1].mean > HARDLY * self.first

    def _slope(self) -> tuple[float, float]:
        """The slope from one mean to the next, and its standard error."""
        values = [value for _, value, _ in self.means]
        places = [i - (len(values) - 1) / 2 for i in range(len(values))]
        middle, across = sum(values) / len(values), sum(place**2 for place in places)
        slope = sum(place * value for place, value in zip(places, values, strict=True)) / across
        rests = [value - middle - slope * place for place, value in zip(places, values, strict=True)]
        left = sum(rest * rest for rest in rests)  # ** would raise where this is infinite
        return slope, (left / (len(values) - 2) / across) ** 0.5
