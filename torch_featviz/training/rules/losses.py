"""Rules about the loss that was logged."""

from __future__ import annotations

from math import hypot, log

from .rule import Judged, Rule, Seen, once

STEPS = 100  # ours: so many with a loss that does not fall, none of them while the learning rate rises
MEANS = 4  # of it at least
FALLS = (4, 2.5)  # ours: of so many means at least, standard errors of a slope
NEAR, BELOW = 0.02, 0.005  # ours: of ln(classes), above and below it
JUMP = 100.0  # ours: times the loss at the beginning, in one step
DIVERGED = 10.0  # ours: times the loss at the beginning
SQUARED = 1e4  # ours: times the square of what the model answers, after 50 steps,
ABSOLUTE, APART = 100.0, 20.0  # or so much, and so many times what it answers, after 100
SLOW = 0.9  # ours: of the loss at the beginning
GUESSED = 0.05  # ours: of the loss of a guess
FLOOR = 10.0  # ours: below that a loss that rises tells little, as of one that begins at 0
SPENT = 1e-3  # ours: of the highest learning rate


@once
def flat(seen: Seen) -> Judged:
    """The loss of a guess: as high as if all classes were given the same chance."""
    channels, curve = (seen.sample.layers[seen.answer].channels if seen.answer is not None else 0), _curve(seen)
    waits = sum(count for _, _, count in curve) < STEPS or len(curve) < MEANS
    if channels < 2 or waits or any(map(seen.rises, seen.account.rates)):
        return  # of one output, that of a GAN's judge ends at a guess when all is well
    half = len(curve) // 2
    first, last = _mean(curve[:half]), _mean(curve[half:])
    guess = log(channels)
    near = -BELOW * guess <= last - guess <= NEAR * guess and last >= first - NEAR * guess and not _falls(curve[half:])
    yield "loss", f"{last:.3g}, ln({channels}) = {guess:.3g}", near


def wrong_sign(seen: Seen) -> Judged:
    """It begins where a guess is, below 0, or runs away below it."""
    curve = _curve(seen)
    if len(curve) < 2 or seen.answer is None:
        return
    guess, first, last = log(max(1, seen.sample.layers[seen.answer].channels)), curve[0][1], curve[-1][1]
    begins = guess > 1 and abs(first + guess) <= GUESSED * guess and last < first  # of two, other losses begin there
    yield "loss", f"{first:.3g} at first, {last:.3g}", begins or (first < 0 and last < JUMP * min(first, -1.0))


def ran_out(seen: Seen) -> Judged:
    """The learning rate has come down before the loss has."""
    rates = [seen.memory.rates.get(name, [rate])[0] for name, rate in seen.account.rates.items()]
    now = max(seen.account.rates.values(), default=0.0)
    spent = bool(rates) and now < SPENT * max(rates)
    for name, figure, beyond in flat(seen):
        yield name, f"{figure}; rate {now:.1g}, at first {max(rates, default=0.0):.1g}", beyond and spent


def jumped(seen: Seen) -> Judged:
    """In any step, also of those that were not looked at."""
    losses = [(beat.loss, beat.step) for beat in seen.account.beats if beat.loss is not None]
    if losses and seen.account.optimizers < 2:
        most, step = max(losses)
        first = max([value for _, value, _ in seen.memory.curve[:2]] or [losses[0][0]])
        yield "loss", f"{most:.3g} at step {step}, at first {first:.3g}", first > 0 and most > max(FLOOR, JUMP * first)


def diverging(seen: Seen) -> Judged:
    curve = _curve(seen)
    if len(curve) > 1 and seen.account.optimizers < 2:
        first, last = max(value for _, value, _ in curve[:2]), curve[-1][1]
        yield "loss", f"{last:.3g}, at first {first:.3g}", first > 0 and last > max(FLOOR, DIVERGED * first)


def unscaled(seen: Seen) -> Judged:
    """Far above what any answer near 0 or 1 could make it, and it hardly falls."""
    curve = _curve(seen)
    if not curve or seen.answer is None:
        return
    answer, first, last = seen.sample.layers[seen.answer], curve[0][1], curve[-1][1]
    steps, mean = curve[-1][0] - curve[0][0], max(1.0, hypot(answer.mean, answer.std))
    least = min(first, last)  # one that has risen has another cause
    far = (steps >= 50 and least > SQUARED * mean * mean) or (steps >= 100 and least > max(ABSOLUTE, APART * mean))
    yield "loss", f"{last:.3g}, answers about {mean:.2g}", far and last > SLOW * first


def _curve(seen: Seen) -> list[list[float]]:
    """The means of the loss between looks: last step, mean, number of steps; up to this one."""
    losses = [beat.loss for beat in seen.account.beats if beat.loss is not None]
    now = [[float(seen.sample.step), sum(losses) / len(losses), float(len(losses))]] if losses else []
    return [*seen.memory.curve, *now]


def _falls(curve: list[list[float]]) -> bool:
    """Whether it falls by more than noise would have it: its slope, in standard errors."""
    if len(curve) < FALLS[0]:
        return False
    values = [value for _, value, _ in curve]
    places = [i - (len(values) - 1) / 2 for i in range(len(values))]
    middle, across = sum(values) / len(values), sum(place**2 for place in places)
    slope = sum(place * value for place, value in zip(places, values, strict=True)) / across
    rests = [value - middle - slope * place for place, value in zip(places, values, strict=True)]
    left = sum(rest * rest for rest in rests)  # ** would raise where this is infinite
    error = (left / (len(values) - 2) / across) ** 0.5
    return bool(slope < -FALLS[1] * error)


def _mean(curve: list[list[float]]) -> float:
    return sum(value * count for _, value, count in curve) / sum(count for _, _, count in curve)


_CAUSES = ("nonfinite", "untrained", "mode", "symmetric", "inputs", "dead", "vanishing", "gradients")

RULES = (
    Rule("targets", unscaled, 1,
         "The loss is far above what the model answers, and hardly falls: {names}",
         "Scale the targets to a mean of 0 and a std of 1.", after=("inputs", "exploding", "loss")),
    Rule("stopped", ran_out, 1,
         "The learning rate has come down while the loss is still that of a guess: {names}",
         "Let the schedule step once an epoch, or end later.", after=_CAUSES),
    Rule("loss", wrong_sign, 1,
         "The loss is below 0 from the beginning and falls: {names}",
         "Turn its sign."),
    Rule("loss", jumped, 1,
         f"The loss rose to more than {JUMP:g} times what it was at the beginning: {{names}}",
         "Lower the learning rate, clip gradients, or look at the batch of that step.", after=("inputs",)),
    Rule("loss", diverging, 3,
         f"The loss is more than {DIVERGED:g} times what it was at the beginning: {{names}}",
         "Lower the learning rate, or clip gradients.", after=("inputs",)),
    Rule("loss", flat, 1,
         "The loss stays where a guess among all classes is, at the logarithm of their number: {names}",
         "Look whether labels belong to their images, and whether the learning rate is high enough.",
         after=(*_CAUSES, "stopped")),
)  # fmt: skip
