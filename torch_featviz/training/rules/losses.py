"""Rules about the loss that was logged."""

from __future__ import annotations

from math import log

from .rule import Judged, Rule, Seen

STEPS = 100  # ours: so many with a loss that does not fall, none of them while the learning rate rises
MEANS = 4  # of it at least
NEAR = 0.02  # ours: of ln(classes)
JUMP = 100.0  # ours: times the loss at the beginning, in one step
DIVERGED = 10.0  # ours: times the loss at the beginning
UNSCALED = 1e4  # ours: times the square of what the model answers
SLOW = 50  # ours: steps in which such a loss falls by a tenth, or it is told


def flat(seen: Seen) -> Judged:
    """The loss of a guess: as high as if all classes were given the same chance."""
    channels, curve = (seen.sample.layers[seen.answer].channels if seen.answer is not None else 0), _curve(seen)
    waits = sum(count for _, _, count in curve) < STEPS or len(curve) < MEANS
    if not channels or waits or seen.account.optimizers > 1 or any(map(seen.rises, seen.account.rates)):
        return  # two that play against each other end at a guess
    half = len(curve) // 2
    first, last = _mean(curve[:half]), _mean(curve[half:])
    classes = min({2, max(2, channels)}, key=lambda each: abs(last - log(each)))  # an output may also say yes or no
    guess = log(classes)
    near = abs(last - guess) <= NEAR * guess and last >= first - NEAR * guess
    yield "loss", f"{last:.3g}, ln({classes}) = {guess:.3g}", near


def jumped(seen: Seen) -> Judged:
    """In any step, also of those that were not looked at."""
    losses = [(beat.loss, beat.step) for beat in seen.account.beats if beat.loss is not None]
    if losses and seen.account.optimizers < 2:
        most, step = max(losses)
        first = max([value for _, value, _ in seen.memory.curve[:2]] or [losses[0][0]])
        yield "loss", f"{most:.3g} at step {step}, at first {first:.3g}", first > 0 and most > JUMP * first


def diverging(seen: Seen) -> Judged:
    curve = _curve(seen)
    if len(curve) > 1 and seen.account.optimizers < 2:
        first, last = max(value for _, value, _ in curve[:2]), curve[-1][1]
        yield "loss", f"{last:.3g}, at first {first:.3g}", first > 0 and last > DIVERGED * first


def unscaled(seen: Seen) -> Judged:
    """Far above what any answer near 0 or 1 could make it, and it hardly falls."""
    curve = _curve(seen)
    if not curve or seen.answer is None:
        return
    answer, first, last = seen.sample.layers[seen.answer], curve[0][1], curve[-1][1]
    size = max(1.0, answer.mean**2 + answer.std**2)
    slow = curve[-1][0] - curve[0][0] >= SLOW and last > 0.9 * first
    yield "loss", f"{last:.3g}, answers about {size**0.5:.2g}", slow and last > UNSCALED * size


def _curve(seen: Seen) -> list[list[float]]:
    """The means of the loss between looks: last step, mean, number of steps; up to this one."""
    losses = [beat.loss for beat in seen.account.beats if beat.loss is not None]
    now = [[float(seen.sample.step), sum(losses) / len(losses), float(len(losses))]] if losses else []
    return [*seen.memory.curve, *now]


def _mean(curve: list[list[float]]) -> float:
    return sum(value * count for _, value, count in curve) / sum(count for _, _, count in curve)


RULES = (
    Rule("targets", unscaled, 1,
         "The loss is far above what the model answers, and hardly falls: {names}",
         "Scale the targets to a mean of 0 and a std of 1."),
    Rule("loss", jumped, 1,
         f"The loss rose to more than {JUMP:g} times what it was at the beginning: {{names}}",
         "Lower the learning rate, clip gradients, or look at the batch of that step."),
    Rule("loss", diverging, 3,
         f"The loss is more than {DIVERGED:g} times what it was at the beginning: {{names}}",
         "Lower the learning rate, or clip gradients."),
    Rule("loss", flat, 1,
         "The loss stays where a guess among all classes is, at the logarithm of their number: {names}",
         "Look whether labels belong to their images, and whether the learning rate is high enough.",
         after=("untrained", "mode", "symmetric", "inputs", "dead", "vanishing", "stopped", "gradients")),
)  # fmt: skip
