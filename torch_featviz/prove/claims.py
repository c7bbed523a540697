"""What is claimed about pictures and captures of one model, and how each claim came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Claim:
    """One claim, held against another way of finding the same.

    Args:
        name: one word or two, by which scripts know it: "outputs", "captured values".
        words: what is claimed, as a sentence.
        holds: None if it could not be checked.
        found: what was measured, or why nothing was.
        forwards: how often the model was run for it; `backwards` as well.
        seconds: of the whole check.
    """

    name: str
    words: str
    holds: bool | None
    found: str
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        mark = {True: "holds", False: "FAILS", None: "not checked"}[self.holds]
        return f"{mark:<11}  {self.words}: {self.found}"


@dataclass(frozen=True)
class Proof:
    """The claims of `prove`, one line each when it is printed.

    Args:
        model: name of its class.
        claims: in the order in which they were checked.
    """

    model: str
    claims: Sequence[Claim] = field(default_factory=tuple)

    @property
    def holds(self) -> bool:
        """Whether something was checked and nothing of it fails."""
        return all(claim.holds is not False for claim in self.claims) and any(claim.holds for claim in self.claims)

    def __str__(self) -> str:
        failed = sum(claim.holds is False for claim in self.claims)
        unknown = sum(claim.holds is None for claim in self.claims)
        count = len(self.claims) - failed - unknown
        head = f"{self.model}: {count} claims hold, {failed} fail, {unknown} could not be checked"
        return "\n".join([head, *map(str, self.claims), self.cost])

    @property
    def cost(self) -> str:
        """In words: forwards, backwards and seconds of all claims."""
        forwards, backwards = (sum(getattr(claim, name) for claim in self.claims) for name in ("forwards", "backwards"))
        seconds = sum(claim.seconds for claim in self.claims)
        return f"{forwards} forwards, {backwards} backwards, {seconds:.1f} s"

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"model": self.model, "holds": self.holds, "claims": [asdict(claim) for claim in self.claims]}
