"""What went wrong in a training, in words: each finding with its figure, told once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that a person should look at."""

    step: int  # at which it was seen
    kind: str  # "nonfinite", "dead", ...
    names: tuple[str, ...]  # of layers or parameters
    text: str  # what, with its figure, and what to do about it
