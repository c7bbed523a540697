"""The recorded figures of a training: plain numbers, in bounded memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from torch_featviz.choices import FIGURES
from torch_featviz.displayed import Displayed
from torch_featviz.errors import FileError, LayerError, OptionError
from torch_featviz.gate import gated
from torch_featviz.schema import Between, Count, SchemaError, decoded, restored

from .run_folder import inside, is_file
from .thinned import Thinned

_Size: TypeAlias = Annotated[float, Between(0)]
_FIRST = 2**53  # widths at most that the first bin lies from 0: floats have no more digits
_Share: TypeAlias = Annotated[float, Between(0, 1)]


@dataclass(frozen=True, repr=False)
class Bins(Displayed):
    """A histogram with bins of equal width: bin `i` counts values from `start + i * width` up to the next bin."""

    start: float
    width: _Size
    counts: tuple[Count, ...]

    def _check_read(self) -> None:
        """Raise SchemaError where bins that hold something cannot be told apart."""
        if any(self.counts) and not (0 < self.width < math.inf and abs(self.start) <= _FIRST * self.width):
            fitting = f"above 0, and at least start / 2**53 (start is {self.start:g})"
            raise SchemaError(f"{fitting}, got {self.width:g}", ".width")


@dataclass(frozen=True, repr=False)
class LayerFigures(Displayed):
    """Statistics of one layer's activations in one step, over all its calls.

    Mean, std (of the population), min and max are those of the finite values; NaN if there is none.
    """

    mean: float
    std: _Size
    min: float
    max: float
    zero_share: _Share  # of all values, those that are exactly 0
    dead: Count  # channels of which no value was positive
    channels: Count
    nan: Count  # values
    inf: Count  # of either sign
    histogram: Bins
    saturated: _Share | None = (
        None  # of a bounded activation, or a recurrent layer: share in the outer 1/32 of its range
    )


@dataclass(frozen=True, repr=False)
class ParameterFigures(Displayed):
    """Figures of one parameter in one step: norms, gradient, update. Those of the update are None if no optimizer moved
    it.

    Norms are Euclidean. The gradient is the one that the optimizer got: accumulated, and unscaled if a GradScaler is
    used.
    """

    size: Count  # numbers in it
    norm: _Size
    grad_norm: _Size | None = None
    update_ratio: _Size | None = None  # norm of what the step added, over the norm before
    grad_histogram: Bins | None = None
    outputs: Count | None = None  # of a convolution's or linear layer's weight: so many rows, one for each output
    unreached: Count | None = None  # rows to which no gradient came at all: each is exactly 0
    frozen: bool = False  # requires_grad=False


@dataclass(frozen=True, repr=False)
class Sample(Displayed):
    """All figures of one step, by name.

    Scalars are the values of `step.log` (`"loss"`), the learning rate (`"learning_rate"`, or `"learning_rate/0"` and so
    on if parameter groups differ), and the norm of all gradients together (`"gradient_norm"`). Inputs are the model's
    floating-point input tensors: `"inputs"` is the first, `"inputs/1"` or `"inputs/mask"` are others.
    """

    step: Count
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
        """Restore a sample from `as_dict`.

        Raises:
            OptionError: `plain` does not come from `as_dict`.
        """
        try:
            return restored(cls, plain)
        except SchemaError as error:
            raise OptionError(f"plain must be what as_dict() returned: {error}.") from error


@dataclass(frozen=True, repr=False)
class Finding(Displayed):
    """One problem: its step, its kind, the layers or parameters concerned, and a text with advice."""

    step: Count  # at which it was seen
    kind: str  # "nonfinite", "dead", ...
    names: tuple[str, ...]  # of layers or parameters
    text: str  # what, with its figure, and what to do about it


def as_plain(value: Any) -> Any:
    """As JSON can hold it: a number that is not finite is `"nan"`, `"inf"` or `"-inf"`."""
    if isinstance(value, dict):
        return {name: as_plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [as_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Line(NamedTuple):
    """A step in a run folder: the line as it is written, and what it says.

    Args:
        pictures: names such as `"kernels/conv1"`; None in folders from before they were written down.
    """

    text: bytes
    sample: Sample
    findings: tuple[Finding, ...]
    pictures: tuple[str, ...] | None


@dataclass(frozen=True)
class _Beside:
    """What a line holds beside its sample."""

    findings: tuple[Finding, ...] = ()
    pictures: tuple[str, ...] | None = None


def read_lines(folder: Path) -> Iterator[Line]:
    """The steps that a `Monitor` wrote to a folder. A last line that was cut short is left out.

    Raises:
        FileError: the folder has no history, or a line is not as a Monitor writes it.
    """
    file, last = inside(folder, FIGURES), -1
    if not is_file(file):
        raise FileError(f"{str(folder)!r} has no {FIGURES}; pass a folder that a Monitor wrote.")
    try:
        with file.open("rb") as texts:
            for number, text in enumerate(texts, 1):
                if text.endswith(b"\n"):
                    try:
                        line = _line(text, last)
                    except SchemaError as error:
                        raise FileError(
                            f"{str(file)!r} was not written by a Monitor of this version: line {number}: {error}; "
                            "remove the line, or choose another folder."
                        ) from error
                    last = line.sample.step
                    yield line
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot read {str(file)!r}: {error.strerror or error}.") from error


def _line(text: bytes, last: int) -> Line:
    plain = decoded(text)
    if not isinstance(plain, dict):
        raise SchemaError(f"an object, got a {type(plain).__name__}")
    beside = restored(_Beside, {name: plain.pop(name) for name in ("findings", "pictures") if name in plain})
    sample = restored(Sample, plain)
    if sample.step <= last:
        raise SchemaError(f"more than {last}, the step of the line before, got {sample.step}", ".step")
    return Line(text, sample, beside.findings, beside.pictures)


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

    @gated
    def __init__(self, keep: int = 512) -> None:
        super().__init__(keep)

    @classmethod
    @gated
    def load(cls, folder: str | os.PathLike[str], keep: int = 512) -> History:
        """Load the history that a `Monitor` wrote to a folder, also while it is still writing.

        Args:
            folder: the folder given as `to=`.
            keep: maximum number of samples.
        Raises:
            FileError: the folder has no history, or something else is there.
            OptionError: `keep` is below 2.
        """
        history = cls(keep)
        for line in read_lines(Path(folder)):
            history.append(line.sample)
        return history

    @gated
    def cut_from(self, step: int) -> list[int]:
        """Drop the samples of that step and later ones; return their steps."""
        if not len(self) or self[-1].step < step:
            return []
        late = [each for each in self.steps if each >= step]
        self.cut(len(self) - len(late))
        return late

    @gated
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

    @gated
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

    @gated
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


def _number(figures: LayerFigures | ParameterFigures, figure: str) -> float | None:
    value = getattr(figures, figure, figures)
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        kind = type(figures)
        numbers = [name for name, what in kind.__annotations__.items() if "Bins" not in what]
        raise OptionError(f"{kind.__name__} has no figure {figure!r}; choose one of {', '.join(numbers)}.")
    return float(value)
