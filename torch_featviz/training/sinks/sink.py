"""What a sink is: somewhere to put what a `Monitor` saw; and what every sink needs of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch_featviz.picture import Picture
from torch_featviz.training.history import Bins, Finding, Sample


@dataclass(frozen=True)
class Record:
    """Everything of one step that was looked at."""

    sample: Sample
    findings: tuple[Finding, ...] = ()
    pictures: Mapping[str, Picture] = field(default_factory=dict)  # by name, such as "kernels/features.0"

    @property
    def step(self) -> int:
        """At which it was seen."""
        return self.sample.step

    def as_dict(self) -> dict[str, Any]:
        """Figures, findings and the names of the pictures as JSON can hold them; see `Sample.as_dict`."""
        findings = [asdict(finding) for finding in self.findings]
        return {**self.sample.as_dict(), "findings": findings, "pictures": list(self.pictures)}


@runtime_checkable
class Sink(Protocol):
    """Anything with these two methods can be given as `to=`; both are called from one thread, not the training's."""

    def write(self, record: Record) -> None:
        """Put one step where it belongs; what was written stays readable whatever happens next."""

    def close(self) -> None:
        """All is written: let go of files and threads."""


def scalars(sample: Sample) -> dict[tuple[str, str], float]:
    """Every figure that is a number, by figure and by name of a layer or parameter.

    NaN stays NaN; what was not measured (None) is left out.

    Example:
        >>> from torch_featviz.training import ParameterFigures
        >>> scalars(Sample(0, {}, {"0.bias": ParameterFigures(size=4, norm=2.5)}))
        {('size', '0.bias'): 4.0, ('norm', '0.bias'): 2.5}
    """
    numbers = ((key, value) for key, value in _figures(sample) if not isinstance(value, bool))
    return {key: float(value) for key, value in numbers if isinstance(value, (int, float))}


def numbers(sample: Sample) -> dict[str, float]:
    """The scalars of the step, and every figure that is a number, by the name under which a sink puts it.

    Example:
        >>> numbers(Sample(0, {}, {}, {"loss": 0.5}))
        {'loss': 0.5}
    """
    return {**sample.scalars, **{tag(*key): value for key, value in scalars(sample).items()}}


def histograms(sample: Sample) -> dict[tuple[str, str], Bins]:
    """Every histogram of a layer or parameter, by figure and name."""
    return {key: value for key, value in _figures(sample) if isinstance(value, Bins)}


def edges(bins: Bins) -> list[float]:
    """Where bins begin, and where the last one ends: one more than there are counts."""
    return [bins.start + i * bins.width for i in range(len(bins.counts) + 1)]


def tag(figure: str, name: str) -> str:
    """What a figure is called where all is in one list: the figure first, so that its layers stand together."""
    return f"{figure}/{name or '(model)'}"


def _figures(sample: Sample) -> Iterator[tuple[tuple[str, str], object]]:
    for name, figures in (*sample.layers.items(), *sample.inputs.items(), *sample.parameters.items()):
        for figure, value in vars(figures).items():
            yield (figure, name), value
