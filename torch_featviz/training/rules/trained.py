"""Rules about what is trained at all: each trainable parameter is accounted for."""

from __future__ import annotations

from .rule import Judged, Rule, Seen, layer_of


def of_another_copy(seen: Seen) -> Judged:
    account = seen.account
    if account.copies and not account.stepped:
        yield from _unmoved(seen, account.unheld, ", ".join(account.others))


def in_no_optimizer(seen: Seen) -> Judged:
    yield from _unmoved(seen, seen.account.unheld)


def never_stepped(seen: Seen) -> Judged:
    trainable = [name for name, about in seen.account.about.items() if not about.frozen]
    if seen.account.thrown_away:
        yield from _unmoved(seen, trainable)


def none_with_gradient(seen: Seen) -> Judged:
    """The optimizer stepped, and nothing that it holds had a gradient."""
    account = seen.account
    if account.unreached and set(account.rates) <= set(account.unreached):
        yield from ((name, "", True) for name in account.unreached)


def cut_off(seen: Seen) -> Judged:
    """Without gradient are these and all that ran before them: the backward never gets as far."""
    missing = set(seen.account.unreached)
    for layer in seen.sample.layers:
        own = [name for name in seen.account.rates if layer_of(name) == layer]
        if any(name not in missing for name in own):
            return
        yield from ((name, "", True) for name in own)


def without_gradient(seen: Seen) -> Judged:
    """Of one that idles in some steps, others move it."""
    missing = set(seen.account.unreached)
    for name in seen.account.rates:
        yield name, "", name in missing and not seen.moved(name)


def uncleared(seen: Seen) -> Judged:
    yield "gradient", "", seen.account.uncleared


def all_zero(seen: Seen) -> Judged:
    """In the first step: later a loss may ask for nothing, as when all is learnt."""
    moved = {name: each for name, each in seen.sample.parameters.items() if each.grad_norm is not None}
    if seen.weights and not seen.memory.since and not any(each.grad_norm for each in moved.values()):
        yield from ((name, "", True) for name in moved)


def rate_is_zero(seen: Seen) -> Judged:
    """From the beginning on: a schedule may end at 0."""
    for name, rate in seen.account.rates.items():
        yield name, "", rate == 0 and not seen.memory.rates.get(name, [0.0])[0]


def frozen_at_random(seen: Seen) -> Judged:
    return [(name, "", True) for name in seen.account.drawn]


def without_statistics(seen: Seen) -> Judged:
    return [(name, "", seen.account.stepped) for name in seen.account.idle_norms]


def rows_alike(seen: Seen) -> Judged:
    return [(name, f"{seen.account.about[name].rows} rows", seen.account.stepped) for name in seen.account.alike]


def _unmoved(seen: Seen, names: tuple[str, ...] | list[str], figure: str = "") -> Judged:
    """Those that nobody has moved by hand since the first step began."""
    before, now = seen.account.before, seen.sample.parameters
    for name in names:
        by_hand = name in before and name in now and before[name] != now[name].norm
        yield name, figure, not by_hand


RULES = (
    Rule("untrained", of_another_copy, 1,
         "The optimizer that steps holds tensors of the same shapes as these, and none of them, as one that was made "
         "for another copy of the model: {names}",
         "Make the optimizer from the parameters of the very model that is trained."),
    Rule("untrained", never_stepped, 1,
         "Gradients came and were thrown away, and no optimizer of the model has stepped: {names}",
         "Call optimizer.step() after backward()."),
    Rule("untrained", in_no_optimizer, 1,
         "No optimizer holds these trainable parameters, so that they stay as they are: {names}",
         "Give them to the optimizer, or set requires_grad=False where that is meant.", ("untrained",)),
    Rule("untrained", none_with_gradient, 1,
         "The optimizer stepped while no parameter that it holds had a gradient: {names}",
         "Call backward() before step(), and zero_grad() before backward() or after step(), never between the two."),
    Rule("untrained", cut_off, 1,
         "No gradient comes to these parameters, nor to anything before them: {names}",
         "Look for detach(), no_grad() or .data between them and the loss."),
    Rule("untrained", without_gradient, 3,
         "No gradient comes to these parameters, and nothing else moves them: {names}",
         "Look whether their layers run, and whether the loss uses what they return."),
    Rule("untrained", all_zero, 1,
         "The gradient of all parameters is exactly 0 in the first step: {names}",
         "Look whether zero_grad() comes between backward() and step(), or the loss is a constant."),
    Rule("untrained", rate_is_zero, 3,
         "The learning rate of these has been 0 from the beginning: {names}",
         "Give their group a learning rate, or set requires_grad=False."),
    Rule("untrained", frozen_at_random, 1,
         "These are frozen (requires_grad=False) and still as they were drawn at random: {names}",
         "Load their weights before they are frozen, or train them."),
    Rule("gradients", uncleared, 1,
         "The gradient is not cleared between two steps of the optimizer: each is added to all that came before",
         "Call optimizer.zero_grad() once in each step."),
    Rule("mode", without_statistics, 1,
         "These normalise by running statistics that were never gathered, so that they do nothing: {names}",
         "Call model.train() before the training, or load a model that was trained."),
    Rule("symmetric", rows_alike, 1,
         "All rows of these weights are equal after a step, so that their outputs stay the same: {names}",
         "Begin with weights that are drawn at random."),
)  # fmt: skip
