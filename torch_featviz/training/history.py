"""What was seen of a network at some steps of its training: plain numbers, as many as can be kept."""

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

from torch_featviz.displayed import Displayed
from torch_featviz.errors import FileError, LayerError, OptionError

from .thinned import Thinned

FIGURES = "samples.jsonl"  # in a folder that a Monitor writes to, a line a sample


@dataclass(frozen=True, repr=False)
class Bins(Displayed):
    """A histogram of equal bins: bin `i` holds the values from `start + i * width` on, below the next."""

    start: float
    width: float
    counts: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class LayerFigures(Displayed):
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
    saturated: float | None = (
        None  # of a bounded activation, or a recurrent layer: share in the outer 1/32 of its range
    )


@dataclass(frozen=True, repr=False)
class ParameterFigures(Displayed):
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
    frozen: bool = False  # requires_grad=False


@dataclass(frozen=True, repr=False)
class Sample(Displayed):
    """Everything seen in one step, by name.

    Scalars are what `step.log` was given (`"loss"`), the learning rate (`"learning_rate"`; of several groups that
    differ `"learning_rate/0"` and so on), and the norm of all gradients together (`"gradient_norm"`). Inputs are the
    tensors of floating-point numbers that the model was given: `"inputs"` the first one, `"inputs/1"` or
    `"inputs/mask"` others.
    """

    step: int
    layers: dict[str, LayerFigures]
    parameters: dict[str, ParameterFigures]
    scalars: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, LayerFigures] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts, as JSON can hold them: what is not finite is `"nan"`, `"inf"` or `"-inf"`."""
        plain: dict[str, Any] = as_plain(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Sample:
        """What `as_dict` was made of."""
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
    """Samples in order of steps, in bounded memory: thinned, never cut off.

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
        super().__init__(keep)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], keep: int = 512) -> History:
        """What a `Monitor` wrote to a folder, also while it is still writing.

        Args:
            folder: what was given as `to=`.
            keep: samples held at most.
        Raises:
            FileError: there is nothing, or something else.
            OptionError: `keep` is below 2.
        """
        figures = Path(folder) / FIGURES
        history = cls(keep)
        try:
            for _, plain in lines(figures.read_bytes()):
                history.append(Sample.from_dict(plain))
        except OSError as error:
            raise FileError(f"{str(folder)!r} holds no {FIGURES}; give a folder that a Monitor wrote to.") from error
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{str(figures)!r} is not what a Monitor writes: {error!r}.") from error
        return history

    def cut_from(self, step: int) -> list[int]:
        """Forget samples of that step and later ones; their steps."""
        if not len(self) or self[-1].step < step:
            return []
        late = [each for each in self.steps if each >= step]
        self.cut(len(self) - len(late))
        return late

    def followed_by(self, sample: Sample) -> History:
        """These samples and one more, in a history of its own."""
        other = History(self.keep)
        other.go_on_from(list(self), **self.thinning())
        other.append(sample)
        return other

    @property
    def steps(self) -> list[int]:
        """The step of each sample."""
        return [sample.step for sample in self]

    @property
    def scalars(self) -> list[str]:
        """The names of all scalars, in the order in which they came."""
        return list(dict.fromkeys(name for sample in self for name in sample.scalars))

    def values(self, name: str, figure: str | None = None) -> NDArray[np.float64]:
        """One figure, or a scalar, at each of the steps, float64; NaN also where there was none.

        Args:
            name: of a layer, a parameter or a scalar.
            figure: a field of `LayerFigures` or `ParameterFigures` that is a number; None for a scalar.
        Raises:
            LayerError: no sample has that name.
            OptionError: it has no such figure.
        """
        return np.array([np.nan if value is None else value for value in self.line(name, figure)])

    def line(self, name: str, figure: str | None = None) -> list[float | None]:
        """The same as `curves` draws it: None where there was none, and NaN where the figure was NaN.

        Raises:
            LayerError, OptionError: as of `values`.
        """
        if figure is None:
            return self._scalar(name)
        found = [s.layers.get(name) or s.parameters.get(name) or s.inputs.get(name) for s in self]
        if not any(found):
            known = sorted({each for sample in self for each in (*sample.layers, *sample.parameters, *sample.inputs)})
            raise LayerError(f"nothing was seen of {name!r}; there are {', '.join(known) or 'no samples yet'}.")
        return [None if each is None else _number(each, figure) for each in found]

    def _scalar(self, name: str) -> list[float | None]:
        if name not in self.scalars:
            raise LayerError(f"no scalar {name!r} was seen; there are {', '.join(self.scalars) or 'none'}.")
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
        raise OptionError(f"{kind.__name__} has no number {figure!r}; it has {', '.join(numbers)}.")
    return float(value)
