"""What is claimed about pictures and captures of one model, and how each claim came out."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch_featviz.displayed import Displayed
from torch_featviz.table import html_table


@dataclass(frozen=True, repr=False)
class Claim(Displayed):
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
        return f"{self.mark:<11}  {self.words}: {self.found}"

    @property
    def mark(self) -> str:
        """In a word, whether it holds."""
        return {True: "holds", False: "FAILS", None: "not checked"}[self.holds]


@dataclass(frozen=True, repr=False)
class Proof(Displayed):
    """The claims of `prove`. `print` shows a line for each, those that fail first; a notebook shows a table.

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
        return "\n".join([self._head, *map(str, self._sorted), self.cost])

    def _repr_html_(self) -> str:
        rows = [(claim.mark, claim.words, claim.found) for claim in self._sorted]
        table = html_table(("", "claim", "found"), rows)
        return f"<p>{html.escape(self._head)}</p>{table}<p>{html.escape(self.cost)}</p>"

    @property
    def _sorted(self) -> list[Claim]:
        """Those that fail, those that hold, and the rest."""
        return sorted(self.claims, key=lambda claim: (False, True, None).index(claim.holds))

    @property
    def _head(self) -> str:
        failed, unknown = (sum(claim.holds is holds for claim in self.claims) for holds in (False, None))
        known = len(self.claims) - unknown
        head = f"{self.model}: {known - failed} of {len(self.claims)} claims hold"
        head += f", {failed} FAIL" if failed else ""
        return head + (f", {unknown} could not be checked" if unknown else "")

    @property
    def cost(self) -> str:
        """In words: forwards, backwards and seconds of all claims."""
        forwards, backwards = (sum(getattr(claim, name) for claim in self.claims) for name in ("forwards", "backwards"))
        seconds = sum(claim.seconds for claim in self.claims)
        return f"{forwards} forwards, {backwards} backwards, {seconds:.1f} s"

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"model": self.model, "holds": self.holds, "claims": [asdict(claim) for claim in self.claims]}
