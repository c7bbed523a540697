"""What was seen of a network at some steps of its training: plain numbers, as many as can be kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from torch_featviz.errors import LayerError, OptionError


@dataclass(frozen=True)
class Bins:
    """A histogram of equal bins: bin `i` holds the values from `start + i * width` on, below the next."""

    start: float
    width: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class LayerFigures:
    """What one layer returned in one step, over all its calls in it.

    Mean, std (of the population), min and max are of the finite values, NaN where there is none.
    """

    mean: float
    std: float
    min: float
    max: float
    zero_share: float  # of all values, those that are exactly 0
    dead: int  # channels of which no value was positive
    channels: int
    nan: int  # values
    inf: int  # of either sign
    histogram: Bins
    saturated: float | None = None  # of a bounded activation: share of values in the outer 1/32 of its range


@dataclass(frozen=True)
class ParameterFigures:
    """One parameter in one step; None where no optimizer moved it.

    Norms are Euclidean. The gradient is as the optimizer got it: accumulated, and unscaled where a GradScaler is used.
    """

    size: int  # numbers in it
    norm: float
    grad_norm: float | None = None
    update_ratio: float | None = None  # norm of what the step added, over the norm before
    grad_histogram: Bins | None = None
    outputs: int | None = None  # of a convolution's or linear layer's weight: so many rows, one for each output
    unreached: int | None = None  # rows to which no gradient came at all: each is exactly 0


@dataclass(frozen=True)
class Sample:
    """Everything seen in one step, by name."""

    step: int
    layers: dict[str, LayerFigures]
    parameters: dict[str, ParameterFigures]


class History(Sequence[Sample]):
    """Samples in order of steps, in bounded memory.

    When `keep` samples are held, every second of them goes, and from there on only every second one is taken: what is
    left covers the whole run evenly, never only its end. The latest sample is always held.

    Args:
        keep: how many samples are held at most, 2 or more.
    Raises:
        OptionError: `keep` is less.
    Example:
        >>> history = History(keep=4)
        >>> for step in range(12):
        ...     history.append(Sample(step, {}, {}))
        >>> history.steps
        [0, 4, 8, 11]
    """

    def __init__(self, keep: int = 512) -> None:
        if not isinstance(keep, int) or keep < 2:
            raise OptionError(f"keep must be an integer, 2 or more, got {keep!r}.")
        self.keep = keep
        self._samples: list[Sample] = []
        self._latest: Sample | None = None  # where it is not among the samples
        self._stride = 1
        self._seen = 0

    def append(self, sample: Sample) -> None:
        """Take one more sample."""
        self._latest = sample
        if self._seen % self._stride == 0:
            if len(self._samples) == self.keep - 1:  # one place is for the latest
                self._samples = self._samples[::2]
                self._stride *= 2
            if self._seen % self._stride == 0:
                self._samples.append(sample)
                self._latest = None
        self._seen += 1

    @property
    def steps(self) -> list[int]:
        """The step of each sample."""
        return [sample.step for sample in self]

    def values(self, name: str, figure: str) -> NDArray[np.float64]:
        """One figure of a layer or parameter at each of the steps, float64; NaN where there was none.

        Args:
            name: of a layer or a parameter.
            figure: a field of `LayerFigures` or `ParameterFigures` that is a number.
        Raises:
            LayerError: no sample has that name.
            OptionError: it has no such figure.
        """
        found = [sample.layers.get(name) or sample.parameters.get(name) for sample in self]
        if not any(found):
            known = sorted({each for sample in self for each in (*sample.layers, *sample.parameters)})
            raise LayerError(f"nothing was seen of {name!r}; there are {', '.join(known) or 'no samples yet'}.")
        return np.array([np.nan if each is None else _number(each, figure) for each in found])

    def __len__(self) -> int:
        return len(self._samples) + (self._latest is not None)

    @overload
    def __getitem__(self, i: int) -> Sample: ...

    @overload
    def __getitem__(self, i: slice) -> list[Sample]: ...

    def __getitem__(self, i: Any) -> Any:
        return list(self)[i]

    def __iter__(self) -> Iterator[Sample]:
        yield from self._samples
        if self._latest is not None:
            yield self._latest

    def __repr__(self) -> str:
        steps = self.steps
        return f"History({len(steps)} samples, steps {steps[0]} to {steps[-1]})" if steps else "History(no samples yet)"


def _number(figures: LayerFigures | ParameterFigures, figure: str) -> float:
    value = getattr(figures, figure, figures)
    if value is None:
        return np.nan
    if not isinstance(value, (int, float)):
        kind = type(figures)
        numbers = [name for name, what in kind.__annotations__.items() if "Bins" not in what]
        raise OptionError(f"{kind.__name__} has no number {figure!r}; it has {', '.join(numbers)}.")
    return float(value)
