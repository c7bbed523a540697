"""Rules about what is trained at all: each trainable parameter is accounted for."""

from __future__ import annotations

import re

from .outputs import silent_answer
from .rule import Judged, Rule, Seen, layer_of

GROWN = 2.0  # ours: times the norm of all gradients at the first look
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")  # in a name


def of_another_copy(seen: Seen) -> Judged:
    account = seen.account
    if account.copies and not account.stepped:
        yield from _unmoved(seen, account.unheld, ", ".join(account.others))


def in_no_module(seen: Seen) -> Judged:
    """The model does not know of them, as they are kept in a list or a dictionary of Python."""
    return [(name, "", True) for name in seen.account.hidden]


def in_no_optimizer(seen: Seen) -> Judged:
    yield from _unmoved(seen, seen.account.unheld)


def never_stepped(seen: Seen) -> Judged:
    trainable = [name for name, about in seen.account.about.items() if not about.frozen]
    if seen.account.thrown_away:
        yield from _unmoved(seen, trainable)


def none_with_gradient(seen: Seen) -> Judged:
    """The optimizer stepped, and nothing that it holds had a gradient."""
    account = seen.account
    if account.unreached and not account.unheld and set(account.rates) <= set(account.unreached):
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
    routed = _routed(seen)
    for name in seen.account.rates:
        yield name, "", name in seen.account.unreached and name not in routed and not seen.moved(name)


def never_routed(seen: Seen) -> Judged:
    """An expert may wait long for its turn."""
    routed = _routed(seen)
    for name in seen.account.rates:
        yield name, "", name in routed and not seen.moved(name)


def _routed(seen: Seen) -> set[str]:
    """Parameters without gradient that have siblings with one: the same name but for a number."""
    missing, kinds = set(seen.account.unreached), {name: _NUMBER.sub("*", name) for name in seen.account.rates}
    reached = {kinds[name] for name in kinds if name not in missing}
    return {name for name in missing if kinds.get(name) in reached and _NUMBER.search(name)}


def uncleared(seen: Seen) -> Judged:
    """And it has grown: one that is cleared in a way that leaves no trace does not."""
    first = seen.memory.totals[0] if seen.memory.totals else float("inf")
    yield "gradient", "", seen.account.uncleared and seen.total > GROWN * first


def all_zero(seen: Seen) -> Judged:
    """In the first step: later a loss may ask for nothing, as when all is learnt."""
    moved = {name: each for name, each in seen.sample.parameters.items() if each.grad_norm is not None}
    if any(silent for _, _, silent in silent_answer(seen)):
        return
    if seen.weights and not seen.memory.since and not any(each.grad_norm for each in moved.values()):
        yield from ((name, "", True) for name in moved)


def begins_with_zeros(seen: Seen) -> Judged:
    """Two weights of zeros, one after the other, hold back each other's gradient."""
    zeros = [name for name, each in seen.sample.parameters.items() if not each.norm and name in seen.weights]
    if len(zeros) > 1 and not seen.memory.since and not seen.total:
        yield from ((name, "", True) for name in zeros)


def rate_is_zero(seen: Seen) -> Judged:
    """From the beginning on: a schedule may end at 0."""
    for name, rate in seen.account.rates.items():
        yield name, "", rate == 0 and not seen.memory.rates.get(name, [0.0])[0]


def frozen_at_random(seen: Seen) -> Judged:
    return [(name, "", True) for name in seen.account.drawn]


def skipped(seen: Seen) -> Judged:
    yield "gradient", f"{seen.account.skipped} blocks", seen.account.skipped > 0


def evaluation_since(seen: Seen) -> Judged:
    return [(name, "", seen.account.stepped) for name in seen.account.switched]


def without_statistics(seen: Seen) -> Judged:
    return [(name, "", seen.account.stepped) for name in seen.account.idle_norms]


def rows_alike(seen: Seen) -> Judged:
    return [(name, f"{seen.account.about[name].rows} rows", seen.account.stepped) for name in seen.account.alike]


def _unmoved(seen: Seen, names: tuple[str, ...] | list[str], figure: str = "") -> Judged:
    """Those that nobody has moved by hand since the first step began, or the last look."""
    for name in names:
        yield name, figure, not seen.moved(name)


RULES = (
    Rule("untrained", of_another_copy, 1,
         "The optimizer that steps holds tensors of the same shapes as these, and none of them, as one that was made "
         "for another copy of the model: {names}",
         "Make the optimizer from the parameters of the very model that is trained."),
    Rule("untrained", never_stepped, 1,
         "Gradients came and were thrown away, and no optimizer of the model has stepped: {names}",
         "Call optimizer.step() after backward()."),
    Rule("nonfinite", skipped, 1,
         "Gradients with NaN or infinity came in each of {names} in a row, and no optimizer has ever stepped: a "
         "GradScaler skips such steps, until its scale has come down",
         "Make the GradScaler once, before the loop, and call its update(); or look for the NaN in the forward."),
    Rule("untrained", in_no_module, 1,
         "A gradient comes to these, and no optimizer holds them, as the model keeps them in a list or a dictionary of "
         "Python, which hides them from parameters(): {names}",
         "Keep layers in nn.ModuleList or nn.ModuleDict, and parameters in nn.ParameterList."),
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
    Rule("untrained", never_routed, 20,
         "No gradient has come to these parameters for long, while it does to others like them: {names}",
         "Look how inputs are given to them."),
    Rule("untrained", begins_with_zeros, 1,
         "No weight has a gradient, as these are all zeros: {names}",
         "Let one of them begin with numbers drawn at random."),
    Rule("untrained", all_zero, 1,
         "The gradient of all parameters is exactly 0 in the first step: {names}",
         "Look whether zero_grad() comes between backward() and step(), or the loss is a constant.", ("untrained",)),
    Rule("untrained", rate_is_zero, 2,
         "The learning rate of these has been 0 from the beginning: {names}",
         "Give their group a learning rate, or set requires_grad=False."),
    Rule("untrained", frozen_at_random, 1,
         "These are frozen (requires_grad=False) and still as they were drawn at random: {names}",
         "Load their weights before they are frozen, or train them."),
    Rule("gradients", uncleared, 2,
         "The gradient is not cleared between two steps of the optimizer: each is added to all that came before",
         "Call optimizer.zero_grad() once in each step."),
    Rule("mode", evaluation_since, 2,
         "What was in training mode at the first look is in evaluation mode while the optimizer steps: {names}",
         "Call model.train() after each evaluation."),
    Rule("mode", without_statistics, 1,
         "These normalise by running statistics that were never gathered, so that they do nothing: {names}",
         "Call model.train() before the training, or load a model that was trained."),
    Rule("symmetric", rows_alike, 1,
         "All rows of these weights are equal after a step, so that their outputs stay the same: {names}",
         "Begin with weights that are drawn at random."),
)  # fmt: skip
