"""What a sink is: somewhere to put what a `Monitor` saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch_featviz.picture import Picture
from torch_featviz.training.findings import Finding
from torch_featviz.training.history import Sample


@dataclass(frozen=True)
class Record:
    """Everything of one step that was looked at."""

    sample: Sample
    findings: tuple[Finding, ...] = ()
    pictures: Mapping[str, Picture] = field(default_factory=dict)  # by name, such as "kernels/features.0"

    @property
    def step(self) -> int:
        return self.sample.step


@runtime_checkable
class Sink(Protocol):
    """Anything with these two methods can be given as `to=`; both are called from one thread, not the training's."""

    def write(self, record: Record) -> None:
        """Put one step where it belongs; what was written stays readable whatever happens next."""

    def close(self) -> None:
        """All is written: let go of files and threads."""
