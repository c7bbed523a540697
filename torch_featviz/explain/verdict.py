"""Verdict on a heatmap: is it better than chance? In words, and with a mark that needs no colour."""

from __future__ import annotations

from enum import IntEnum

from torch import Tensor

MARGIN = 0.03  # of probability, or of the range of a figure
DEVIATIONS = 2  # of the other places among themselves, where that is more
PLACES = 6  # to which a heatmap is moved
LEAST = 0.05  # probability of a class that there is to explain


class Verdict(IntEnum):
    """The verdict on a heatmap; the higher, the better.

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
        """The verdict without its mark."""
        return f"{self.name.lower().replace('_', ' ')} than chance"

    def __str__(self) -> str:
        return f"{self.mark} {self.words}"


ALIKE, LITTLE = "alike with random weights", "little to explain"  # what holds back a heatmap with better figures
CHANCE = f"the same heatmap at {PLACES} other places"
MEANING = (
    f"chance: {CHANCE}; ✓ better: {100 * MARGIN:.0f} % and {DEVIATIONS} deviations above it; ✗ worse: as much below; "
    "= neither, or held back as its caption says"
)


def needed(spread: Tensor) -> Tensor:
    """`b`, the gain from which on a heatmap is better than chance, by the standard deviation of other places.

    Example:
        >>> needed(torch.tensor([0.0, 0.25]))
        tensor([0.0300, 0.5000])
    """
    return (DEVIATIONS * spread).clamp(min=MARGIN)


def lacking(gain: float, least: float) -> str:
    """Why a heatmap is neither better nor worse than chance although its gain is 3 % or more away from 0; or nothing.

    Args:
        gain: the gain over the same heatmap at other places.
        least: what is `needed`.
    Example:
        >>> lacking(0.15, 0.5), lacking(-0.15, 0.5), lacking(0.01, 0.5), lacking(-0.6, 0.5)
        ('gain 0.15, needs 0.50', 'gain −0.15, worse from −0.50', '', '')
    """
    if not MARGIN <= abs(gain) < least:
        return ""
    return f"gain {gain:.2f}, needs {least:.2f}" if gain > 0 else f"gain −{-gain:.2f}, worse from −{least:.2f}"


def judge(gain: Tensor, capped: Tensor, spread: Tensor | None = None) -> tuple[Verdict, ...]:
    """A verdict for each heatmap.

    Args:
        gain: `b`, the gain over the same heatmap at other places; NaN is no better than chance.
        capped: `b` bool; True: not better than chance, whatever the gain.
        spread: `b`, standard deviation of the gains at these places. Default: 0.
    Example:
        >>> judge(torch.tensor([0.2, 0.2, 0.0, -0.1]), torch.tensor([False, True, False, False]))
        (<Verdict.BETTER: 1>, <Verdict.NO_BETTER: 0>, <Verdict.NO_BETTER: 0>, <Verdict.WORSE: -1>)
    """
    margin = gain.new_tensor(MARGIN) if spread is None else needed(spread)
    better = (gain >= margin) & ~capped
    worse = gain <= -margin
    return tuple(Verdict(value) for value in (better.int() - worse.int()).tolist())
