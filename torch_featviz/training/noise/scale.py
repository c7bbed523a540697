"""The gradient noise scale out of squared norms of gradients of small and of big batches."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from torch_featviz.displayed import Displayed
from torch_featviz.errors import OptionError


@dataclass(frozen=True, repr=False)
class NoiseScale(Displayed):
    """The gradient noise scale: the batch size up to which a larger batch saves almost as many steps as it costs
    examples.

    Attributes:
        value: the simple noise scale `noise / gradient`, in examples; infinite if the gradient disappears in the noise,
            NaN before the first watched step.
        low, high: the 95 % confidence interval; 0 and infinity if there are fewer than three watched steps or too much
            noise.
        gradient: squared norm of the true gradient; the estimate can be negative.
        noise: trace of the covariance of the gradients of single examples.
        looks: number of steps averaged.
        batch: examples in the latest batch.
        layers: layers whose weights and biases count.
        left_out: layers with parameters that do not count, and why.
    """

    value: float
    low: float
    high: float
    gradient: float
    noise: float
    looks: int
    batch: int
    layers: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.looks:
            why = "; ".join(f"{name!r} {reason}" for name, reason in self.left_out.items())
            return f"noise scale unknown: no step was looked at{f' ({why})' if why else ''}"
        span = f"95 %: {_short(self.low)} to {_short(self.high)}"
        layers = f"{len(self.layers)} of {len(self.layers) + len(self.left_out)} layers"
        looks = f"{self.looks} look{'s' * (self.looks != 1)}"
        return f"noise scale {_short(self.value)} examples ({span}) at batches of {self.batch}, {looks}, {layers}"


_LEAST, _MOST = 1e-130, 1e130  # of squared norms: beyond these, products of them are 0 or infinite


class Norms(NamedTuple):
    """What one step tells: the expected squared norm of the gradient of a small batch, and that of a big one.

    Args:
        small: examples in the small batch, 1 where it is single examples.
        of_small: squared norm of the gradient of the mean loss over it.
        big, of_big: the same for all examples of the step.
        scaled: whether the loss was multiplied by an unknown number.
    """

    small: int
    of_small: float
    big: int
    of_big: float
    scaled: bool

    def usable(self) -> bool:
        """Whether anything can be computed of them: they are finite, and so are their products."""
        return _LEAST < self.of_small < _MOST and abs(self.of_big) < _MOST

    def gradient(self) -> float:
        """An estimate of the squared norm of the true gradient that is right on average."""
        return (self.big * self.of_big - self.small * self.of_small) / (self.big - self.small)

    def noise(self) -> float:
        """An estimate of the trace of the covariance of single examples' gradients that is right on average."""
        return (self.of_small - self.of_big) / (1 / self.small - 1 / self.big)


class Estimate:
    """Averages the noise and the gradient over steps, each on its own, and then divides.

    Of a single step the estimate of the squared gradient is often negative, and the mean of ratios would be far off. A
    loss that a `GradScaler` multiplies by a number which changes is told by its 16-bit gradients: such a step is first
    divided by the mean squared norm of its examples' gradients, which the scale multiplies as much.

    Args:
        window: of so many steps; a noise scale grows while a network learns.
    Reference: McCandlish et al. 2018, arXiv 1812.06162, appendix A.
    """

    def __init__(self, window: int) -> None:
        if window < 1:
            raise OptionError(f"window must be at least 1, got {window}.")
        self.looks: deque[Norms] = deque(maxlen=window)

    def add(self, norms: Norms) -> None:
        """Add a step; one with broken gradients, which no optimizer should use, is left out."""
        if norms.usable():
            self.looks.append(norms)

    def scale(self, layers: tuple[str, ...], left_out: dict[str, str]) -> NoiseScale:
        if not self.looks:
            return NoiseScale(math.nan, 0.0, math.inf, math.nan, math.nan, 0, 0, layers, left_out)
        scaled = any(look.scaled for look in self.looks)
        units = [look.of_small if scaled else 1.0 for look in self.looks]
        noises = [look.noise() / unit for look, unit in zip(self.looks, units, strict=True)]
        gradients = [look.gradient() / unit for look, unit in zip(self.looks, units, strict=True)]
        noise, gradient = fmean(noises), fmean(gradients)
        value = max(noise, 0.0) / gradient if gradient > 0 else math.inf
        unit = fmean(look.of_small for look in self.looks) if scaled else 1.0
        last = self.looks[-1].big
        interval = ratio_interval(noises, gradients)
        return NoiseScale(value, *interval, gradient * unit, noise * unit, len(self.looks), last, layers, left_out)

    def state_dict(self) -> list[dict[str, Any]]:
        return [look._asdict() for look in self.looks]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        self.looks.clear()
        self.looks.extend(Norms(**look) for look in state)


def ratio_interval(above: list[float], below: list[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of `above` over that of `below`, pairs of samples, of which none is below 0.

    These are the ratios `r` with which the mean of `above - r · below` may be 0, by Student's t (Fieller 1954). Where
    the mean of `below` may be 0, there is no upper end.

    Example:
        >>> low, high = ratio_interval([9.0, 10.0, 11.0, 10.0], [2.0, 2.0, 2.1, 1.9])
        >>> round(low, 2), round(high, 2)
        (4.44, 5.56)
    """
    count = len(above)
    if count < 3:
        return 0.0, math.inf
    top, bottom = fmean(above), fmean(below)
    least = _student(count - 1) ** 2 / (count * (count - 1))
    top_top = top * top - least * sum((each - top) * (each - top) for each in above)
    bottom_bottom = bottom * bottom - least * sum((each - bottom) * (each - bottom) for each in below)
    both = top * bottom - least * sum((a - top) * (b - bottom) for a, b in zip(above, below, strict=True))
    inside = both * both - top_top * bottom_bottom
    if inside < 0 or bottom_bottom == 0:  # nothing is known
        return 0.0, math.inf
    low, high = ((both + sign * math.sqrt(inside)) / bottom_bottom for sign in (-1, 1))
    low = max(0.0, low) if top_top > 0 else 0.0
    if bottom_bottom < 0:  # all but what lies between the two, which are a negative one and `low`
        return low, math.inf
    return (low, high) if high > 0 else (0.0, math.inf)


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; within 1 % from 2 degrees of freedom on (Abramowitz & Stegun 26.7.5)."""
    x = 1.959964
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))


def _short(value: float) -> str:
    return f"{value:.0f}" if 1000 <= value < 1e6 else f"{value:.3g}"
