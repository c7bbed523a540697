"""One rule that says whether a heatmap is better than chance, in words and with a mark that needs no colour."""

from __future__ import annotations

from enum import IntEnum

from torch import Tensor

MARGIN = 0.03  # of probability, or of the range of a figure
DEVIATIONS = 3  # of random orders among themselves, where that is more: of small images it is
LEAST = 0.05  # probability of a class that there is to explain


class Verdict(IntEnum):
    """What a heatmap is worth; the higher, the better.

    Example:
        >>> str(Verdict.BETTER), max(Verdict.WORSE, Verdict.NO_BETTER).words
        ('✓ better than chance', 'no better than chance')
    """

    WORSE = -1
    NO_BETTER = 0
    BETTER = 1

    @property
    def mark(self) -> str:
        """One sign: `✓`, `=` or `✗`."""
        return {Verdict.BETTER: "✓", Verdict.NO_BETTER: "=", Verdict.WORSE: "✗"}[self]

    @property
    def words(self) -> str:
        """Without the mark."""
        return f"{self.name.lower().replace('_', ' ')} than chance"

    def __str__(self) -> str:
        return f"{self.mark} {self.words}"


MEANING = (
    f"✓ better than chance: the first pixels of the heatmap move the answer at least {100 * MARGIN:.0f} % further than "
    f"random ones, and {DEVIATIONS} times as far as random orders differ among themselves, on average over putting "
    "them in and taking them out; ✗ worse: as much less; = no better: between, or "
    f"the answer owes little to what is seen (below {100 * LEAST:.0f} %, or as high once all pixels are in random "
    "places), or the heatmap hardly changes with random weights"
)


def judge(gain: Tensor, capped: Tensor, spread: Tensor | None = None) -> tuple[Verdict, ...]:
    """A verdict for each heatmap.

    Args:
        gain: `b`, by how much it is better than random order; NaN is no better.
        capped: `b` bool, whether it cannot be better, whatever its gain.
        spread: `b`, the standard deviation of the gains of random orders; default 0.
    Example:
        >>> judge(torch.tensor([0.2, 0.2, 0.0, -0.1]), torch.tensor([False, True, False, False]))
        (<Verdict.BETTER: 1>, <Verdict.NO_BETTER: 0>, <Verdict.NO_BETTER: 0>, <Verdict.WORSE: -1>)
    """
    margin = gain.new_tensor(MARGIN) if spread is None else (DEVIATIONS * spread).clamp(min=MARGIN)
    better = (gain >= margin) & ~capped
    worse = gain <= -margin
    return tuple(Verdict(value) for value in (better.int() - worse.int()).tolist())
