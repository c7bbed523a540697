"""The recorded figures of a training: plain numbers, in bounded memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch_featviz.choices import FIGURES
from torch_featviz.displayed import Displayed
from torch_featviz.errors import FileError, LayerError, OptionError

from .thinned import Thinned


@dataclass(frozen=True, repr=False)
class Bins(Displayed):
    """A histogram with bins of equal width: bin `i` counts values from `start + i * width` up to the next bin."""

    start: float
    width: float
    counts: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class LayerFigures(Displayed):
    """Statistics of one layer's activations in one step, over all its calls.

    Mean, std (of the population), min and max are those of the finite values; NaN if there is none.
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
    saturated: float | None = (
        None  # of a bounded activation, or a recurrent layer: share in the outer 1/32 of its range
    )


@dataclass(frozen=True, repr=False)
class ParameterFigures(Displayed):
    """Figures of one parameter in one step: norms, gradient, update. Those of the update are None if no optimizer moved
    it.

    Norms are Euclidean. The gradient is the one that the optimizer got: accumulated, and unscaled if a GradScaler is
    used.
    """

    size: int  # numbers in it
    norm: float
    grad_norm: float | None = None
    update_ratio: float | None = None  # norm of what the step added, over the norm before
    grad_histogram: Bins | None = None
    outputs: int | None = None  # of a convolution's or linear layer's weight: so many rows, one for each output
    unreached: int | None = None  # rows to which no gradient came at all: each is exactly 0
    frozen: bool = False  # requires_grad=False


@dataclass(frozen=True, repr=False)
class Sample(Displayed):
    """All figures of one step, by name.

    Scalars are the values of `step.log` (`"loss"`), the learning rate (`"learning_rate"`, or `"learning_rate/0"` and so
    on if parameter groups differ), and the norm of all gradients together (`"gradient_norm"`). Inputs are the model's
    floating-point input tensors: `"inputs"` is the first, `"inputs/1"` or `"inputs/mask"` are others.
    """

    step: int
    layers: dict[str, LayerFigures]
    parameters: dict[str, ParameterFigures]
    scalars: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, LayerFigures] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; non-finite numbers become `"nan"`, `"inf"` or `"-inf"`."""
        plain: dict[str, Any] = as_plain(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Sample:
        """Restore a sample from `as_dict`."""
        layers = {name: LayerFigures(**_figures(each)) for name, each in plain["layers"].items()}
        parameters = {name: ParameterFigures(**_figures(each)) for name, each in plain["parameters"].items()}
        scalars = {name: float(value) for name, value in plain.get("scalars", {}).items()}  # older files have none
        inputs = {name: LayerFigures(**_figures(each)) for name, each in plain.get("inputs", {}).items()}
        return cls(plain["step"], layers, parameters, scalars, inputs)


def as_plain(value: Any) -> Any:
    """As JSON can hold it: a number that is not finite is `"nan"`, `"inf"` or `"-inf"`."""
    if isinstance(value, dict):
        return {name: as_plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [as_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _figures(plain: dict[str, Any]) -> dict[str, Any]:
    def figure(value: Any) -> Any:
        if isinstance(value, dict):
            return Bins(value["start"], value["width"], tuple(value["counts"]))
        return float(value) if isinstance(value, str) else value

    return {name: figure(value) for name, value in plain.items()}


class History(Displayed, Thinned[Sample]):
    """The samples of a training in order of steps, in bounded memory. When it is full, every second sample is dropped.

    Args:
        keep: maximum number of samples, 2 or more.
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
        super().__init__(keep)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], keep: int = 512) -> History:
        """Load the history that a `Monitor` wrote to a folder, also while it is still writing.

        Args:
            folder: the folder given as `to=`.
            keep: maximum number of samples.
        Raises:
            FileError: the folder has no history, or something else is there.
            OptionError: `keep` is below 2.
        """
        figures = Path(folder) / FIGURES
        history = cls(keep)
        try:
            for _, plain in lines(figures.read_bytes()):
                history.append(Sample.from_dict(plain))
        except OSError as error:
            raise FileError(f"{str(folder)!r} has no {FIGURES}; pass a folder that a Monitor wrote.") from error
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{str(figures)!r} was not written by a Monitor: {error!r}.") from error
        return history

    def cut_from(self, step: int) -> list[int]:
        """Drop the samples of that step and later ones; return their steps."""
        if not len(self) or self[-1].step < step:
            return []
        late = [each for each in self.steps if each >= step]
        self.cut(len(self) - len(late))
        return late

    def followed_by(self, sample: Sample) -> History:
        """Return a new history with one more sample."""
        other = History(self.keep)
        other.go_on_from(list(self), **self.thinning())
        other.append(sample)
        return other

    @property
    def steps(self) -> list[int]:
        """Step of each sample."""
        return [sample.step for sample in self]

    @property
    def scalars(self) -> list[str]:
        """Names of all scalars, in the order in which they first came."""
        return list(dict.fromkeys(name for sample in self for name in sample.scalars))

    def values(self, name: str, figure: str | None = None) -> NDArray[np.float64]:
        """Return one figure or scalar over the steps, float64; NaN where it was not recorded.

        Args:
            name: name of a layer, a parameter or a scalar.
            figure: a numeric field of `LayerFigures` or `ParameterFigures`; None for a scalar.
        Raises:
            LayerError: no sample has that name.
            OptionError: it has no such figure.
        """
        return np.array([np.nan if value is None else value for value in self.line(name, figure)])

    def line(self, name: str, figure: str | None = None) -> list[float | None]:
        """Return one figure or scalar as `curves` takes it: None where it was not recorded, NaN where it was NaN.

        Raises:
            LayerError, OptionError: as in `values`.
        """
        if figure is None:
            return self._scalar(name)
        found = [s.layers.get(name) or s.parameters.get(name) or s.inputs.get(name) for s in self]
        if not any(found):
            known = sorted({each for sample in self for each in (*sample.layers, *sample.parameters, *sample.inputs)})
            raise LayerError(f"no figures of {name!r} were recorded; recorded: {', '.join(known) or 'no samples yet'}.")
        return [None if each is None else _number(each, figure) for each in found]

    def _scalar(self, name: str) -> list[float | None]:
        if name not in self.scalars:
            raise LayerError(f"no scalar {name!r} was recorded; recorded: {', '.join(self.scalars) or 'none'}.")
        return [sample.scalars.get(name) for sample in self]

    def __repr__(self) -> str:
        steps = self.steps
        return f"History({len(steps)} samples, steps {steps[0]} to {steps[-1]})" if steps else "History(no samples yet)"


def lines(text: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The whole lines of a file of figures, with what each says; one that was cut short is left out."""
    for line in text.splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield line, json.loads(line)


def _number(figures: LayerFigures | ParameterFigures, figure: str) -> float | None:
    value = getattr(figures, figure, figures)
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        kind = type(figures)
        numbers = [name for name, what in kind.__annotations__.items() if "Bins" not in what]
        raise OptionError(f"{kind.__name__} has no figure {figure!r}; choose one of {', '.join(numbers)}.")
    return float(value)
