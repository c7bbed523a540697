"""What went wrong in a training, in words: each finding with its figure, told once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .history import Sample


@dataclass(frozen=True)
class Finding:
    """One thing that a person should look at."""

    step: int  # at which it was seen
    kind: str  # "nonfinite", "dead", ...
    names: tuple[str, ...]  # of layers or parameters
    text: str  # what, with its figure, and what to do about it


class Findings:
    """What was found so far."""

    def look(self, _sample: Sample) -> list[Finding]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
