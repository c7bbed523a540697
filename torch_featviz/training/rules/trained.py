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
         "The optimizer updates other tensors of the same shapes, as if it was created for another copy of the "
         "model: {names}",
         "Create the optimizer from the parameters of the model that is trained."),
    Rule("untrained", never_stepped, 1,
         "Gradients were computed and discarded, but no optimizer of the model has stepped: {names}",
         "Call optimizer.step() after backward()."),
    Rule("nonfinite", skipped, 1,
         "The gradients had NaN or infinity for a long time, {names} in a row, and no optimizer has stepped: a "
         "GradScaler skips such steps until its scale is low enough",
         "Create the GradScaler once, before the loop, and call its update(); or look for the NaN in the forward."),
    Rule("untrained", in_no_module, 1,
         "These get a gradient, but no optimizer holds them: the model keeps them in a Python list or dict, which "
         "hides them from parameters(): {names}",
         "Keep layers in nn.ModuleList or nn.ModuleDict, and parameters in nn.ParameterList."),
    Rule("untrained", in_no_optimizer, 1,
         "No optimizer holds these trainable parameters, so they never change: {names}",
         "Pass them to the optimizer, or set requires_grad=False if that is intended.", ("untrained",)),
    Rule("untrained", none_with_gradient, 1,
         "The optimizer stepped, but none of its parameters had a gradient: {names}",
         "Call backward() before step(), and zero_grad() before backward() or after step(), never between the two."),
    Rule("untrained", cut_off, 1,
         "No gradient reaches these parameters or any layer before them: {names}",
         "Look for detach(), no_grad() or .data between them and the loss."),
    Rule("untrained", without_gradient, 3,
         "No gradient reaches these parameters, so they never change: {names}",
         "Check that their layers run and that the loss uses their output."),
    Rule("untrained", never_routed, 20,
         "No gradient has reached these parameters for a long time, although it reaches similar ones: {names}",
         "Check how inputs are routed to them."),
    Rule("untrained", begins_with_zeros, 1,
         "No weight gets a gradient, because these are all zeros: {names}",
         "Initialise one of them at random."),
    Rule("untrained", all_zero, 1,
         "All gradients are exactly 0 in the first step: {names}",
         "Check that zero_grad() is not called between backward() and step(), and that the loss is not a constant.",
         ("untrained",)),
    Rule("untrained", rate_is_zero, 2,
         "The learning rate of these parameters has been 0 since the first step: {names}",
         "Set a learning rate for their group, or requires_grad=False."),
    Rule("untrained", frozen_at_random, 1,
         "These parameters are frozen (requires_grad=False) with random weights: {names}",
         "Load trained weights before freezing them, or train them."),
    Rule("gradients", uncleared, 2,
         "Gradients are not cleared between optimizer steps: each is added to all earlier ones",
         "Call optimizer.zero_grad() once per step."),
    Rule("mode", evaluation_since, 2,
         "These modules are in evaluation mode while the optimizer steps; at the first step they were in training "
         "mode: {names}",
         "Call model.train() after each evaluation."),
    Rule("mode", without_statistics, 1,
         "These norms use running statistics that were never updated, so they do nothing: {names}",
         "Call model.train() before training, or load a trained model."),
    Rule("symmetric", rows_alike, 1,
         "All rows of these weights are equal, also after a step, so all their outputs stay equal: {names}",
         "Begin with weights that are drawn at random."),
)  # fmt: skip
