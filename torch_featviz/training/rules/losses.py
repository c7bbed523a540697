"""Rules about the loss that was logged."""

from __future__ import annotations

from math import hypot, log

from .rule import SPENT, Judged, Rule, Seen, once

STEPS = 100  # ours: so many with a loss that does not fall, none of them while the learning rate rises
MEANS = 4  # of it at least
NEAR, BELOW = 0.02, 0.005  # ours: of ln(classes), above and below it
WORSE = 1.5  # ours: times the loss of a guess, where it began
JUMP = 100.0  # ours: times the loss at the beginning, in one step
DIVERGED = 10.0  # ours: times the loss at the beginning
SQUARED = 1e4  # ours: times the square of what the model answers, after 50 steps,
ABSOLUTE, APART = 100.0, 20.0  # or so much, and so many times what it answers, after 100
SLOW = 0.9  # ours: of the loss at the beginning
GUESSED = 0.05  # ours: of the loss of a guess, what begins there
FLOOR = 10.0  # ours: below that a loss that rises tells little, as of one that begins at 0
ENDS = 20, 0.1  # ours: steps, and share of all steps, in which a schedule may be spent: of a cosine it is 0.006
LEFT = 0.05  # ours: of the first loss, above which there is something left to learn
EARLY = 40  # ours: steps after which a loss above that of a guess is told


@once
def flat(seen: Seen) -> Judged:
    """The loss of a guess: as high as if all classes were given the same chance."""
    curve, channels = seen.curve, _classes(seen)
    if channels < 2 or curve.steps < STEPS or len(curve) < MEANS or seen.warms_up:
        return  # of one output, that of a GAN's judge ends at a guess when all is well
    before, after = curve.halves
    first, last, guess = min(before.mean, curve.first), after.mean, log(channels)  # it may have jumped in between
    near = -BELOW * guess <= last - guess <= NEAR * guess and last >= first - NEAR * guess and not after.falls
    yield "loss", f"{last:.3g}, ln({channels}) = {guess:.3g}", near


def wrong_sign(seen: Seen) -> Judged:
    """It begins where a guess is, below 0, or runs away below it."""
    curve = seen.curve
    if len(curve) < 2 or seen.answer is None:
        return
    guess, first, last = log(max(1, _classes(seen))), curve.first, curve.last
    begins = guess > 1 and abs(first + guess) <= GUESSED * guess and last < first  # of two, other losses begin there
    yield "loss", f"{first:.3g} at first, now {last:.3g}", begins or last < -JUMP * max(abs(first), 1.0)


def spent(seen: Seen) -> Judged:
    """The learning rate has come down, and steps go on; at the end of a schedule there are few of them."""
    (now, highest), step = seen.highest_rates, seen.sample.step
    begun = min(seen.memory.since.values(), default=step)
    long = seen.spent is not None and step - seen.spent >= max(ENDS[0], ENDS[1] * (step - begun))
    asks = not len(seen.curve) or seen.curve.last > LEFT * abs(seen.curve.first)
    yield "learning_rate", f"{now:.1g}, at most {highest:.1g} before", asks and long


def jumped(seen: Seen) -> Judged:
    """In any step, also of those that were not looked at."""
    losses = [(record.loss, record.step) for record in seen.account.records if record.loss is not None]
    if losses and seen.account.optimizers < 2:
        most, step = max(losses)
        first = max([value for _, value, _ in seen.memory.curve[:2]] or [losses[0][0]])
        yield "loss", f"{most:.3g} at step {step}, at first {first:.3g}", first > 0 and most > max(FLOOR, JUMP * first)


def diverging(seen: Seen) -> Judged:
    curve = seen.curve
    if len(curve) > 1 and seen.account.optimizers < 2:
        first, last = curve.begun, curve.last
        yield "loss", f"{last:.3g}, at first {first:.3g}", first > 0 and last > max(FLOOR, DIVERGED * first)


def worse_than_a_guess(seen: Seen) -> Judged:
    """It began at a guess, and has been well above it since."""
    curve, channels = seen.curve, _classes(seen)
    if channels > 2 and len(curve) >= MEANS and curve.steps >= EARLY and seen.account.optimizers < 2:
        guess, last = log(channels), min(curve.halves[1].mean, curve.last)
        beyond = abs(curve.first - guess) <= GUESSED * guess and last > WORSE * guess
        yield "loss", f"{last:.3g}, ln({channels}) = {guess:.3g}", beyond


def applied_twice(seen: Seen) -> Judged:
    yield from _of_criterion(seen, "twice")


def without_logarithm(seen: Seen) -> Judged:
    yield from _of_criterion(seen, "no_logarithm")


def broadcast(seen: Seen) -> Judged:
    yield from _of_criterion(seen, "broadcast")


def _of_criterion(seen: Seen, mistake: str) -> Judged:
    found = seen.account.criterion
    if found is not None:
        yield "loss", found.figure, found.mistake == mistake


def unscaled(seen: Seen) -> Judged:
    """Far above what any answer near 0 or 1 could make it, and it hardly falls."""
    curve = seen.curve
    if not len(curve) or seen.answer is None:
        return
    answer, first, last = seen.sample.layers[seen.answer], curve.first, curve.last
    steps, mean = curve.means[-1][0] - curve.means[0][0], max(1.0, hypot(answer.mean, answer.std))
    least = min(first, last)  # one that has risen has another cause
    far = (steps >= 50 and least > SQUARED * mean * mean) or (steps >= 100 and least > max(ABSOLUTE, APART * mean))
    yield "loss", f"{last:.3g}, outputs about {mean:.2g}", far and last > SLOW * first


def _classes(seen: Seen) -> int:
    """How many answers the model gives; 0 where no layer ran."""
    return seen.sample.layers[seen.answer].channels if seen.answer is not None else 0


_CAUSES = ("nonfinite", "untrained", "mode", "symmetric", "inputs", "dead", "vanishing", "gradients")

RULES = (
    Rule("loss", applied_twice, 1,
         "Softmax or sigmoid is applied twice, in the model and in the loss: {names}",
         "Pass the raw scores (logits) of the last layer to the loss."),
    Rule("loss", without_logarithm, 1,
         "nll_loss needs log-probabilities, but is given something else: {names}",
         "Use cross_entropy, or log_softmax before nll_loss."),
    Rule("targets", broadcast, 1,
         "Outputs and targets have different shapes and are broadcast, so each output is compared with all targets: "
         "{names}",
         "Give both the same shape, for instance with targets[:, None]."),
    Rule("targets", unscaled, 1,
         "The loss is far larger than the model's outputs and hardly falls: {names}",
         "Scale the targets to a mean of 0 and a std of 1.", after=("inputs", "exploding", "loss")),
    Rule("stopped", spent, 2,
         f"The learning rate has decayed below {SPENT:g} of its maximum, so the remaining steps learn nothing: "
         f"{{names}}",
         "Let the schedule end later; check whether it counts batches or epochs.", after=_CAUSES),
    Rule("loss", wrong_sign, 1,
         "The loss keeps falling below 0: {names}",
         "Check its sign, or bound the term that it rewards."),
    Rule("loss", jumped, 1,
         f"The loss jumped to more than {JUMP:g} times its initial value: {{names}}",
         "Lower the learning rate, clip gradients, or check the batch of that step.", after=("inputs",)),
    Rule("loss", diverging, 3,
         f"The loss diverges: it is more than {DIVERGED:g} times its initial value: {{names}}",
         "Lower the learning rate, or clip gradients.", after=("inputs",)),
    Rule("loss", worse_than_a_guess, 3,
         f"The loss began at chance level and has risen to {WORSE:g} times that or more: {{names}}",
         "Lower the learning rate.", after=("inputs", "exploding", "nonfinite")),
    Rule("loss", flat, 1,
         "The loss stays at chance level, the logarithm of the number of classes: {names}",
         "Check that labels match their images and that the learning rate is high enough.",
         after=(*_CAUSES, "stopped")),
)  # fmt: skip
