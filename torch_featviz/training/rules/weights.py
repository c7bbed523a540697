"""Rules about gradients, and about how far weights move."""

from __future__ import annotations

from statistics import median, median_low

from .rule import KNOWN, Judged, Rule, Seen, layer_of, once, percent, values_of

DEAD = 0.75  # ours: of a weight's rows; CS231n warns of 40 %, but 57 % were off in a training that went well
WIDE = 64  # ours: of fewer rows only all count; where biases decide, half of the ReLUs are off by chance
BY_CHANCE = 8  # ours: of fewer rows all are off by chance now and then, as in the squeeze of a gate
ENOUGH = 16  # ours: of fewer values for each output, many outputs may be off by chance
VANISHING = 1e-4  # ours: of the largest, both of gradients and of what they move
RISING = 3.0  # ours: times its first share, a gradient is on its way,
SMALL = 0.03  # as long as it is below this share
EXPLODING = 1e3  # ours: times what was usual
JUMP = 10.0  # ours: times what is usual of all gradients together, or it is one that begins small
LEFT_BEHIND = 1e-3  # ours: of the median weight's ratio; layer-wise learning rates differ by less
MOVING = 1e-6  # ours: where the median weight moves less, rounding makes the differences
SMALL_STEPS = 5e-5  # ours: of the median weight; a fine-tuning with 1e-5 makes steps of 5e-4
LARGE_STEPS = 0.06  # ours: of the median weight, where the loss hardly falls
OUTGROWN = 3.0  # ours: times the first norm of the median weight, where the loss hardly falls
UNSCALED = 10.0  # ours: a loss that begins above it is of large targets, to which weights have to grow
KNOWN_FLAT = 100  # ours: steps
LARGE = 0.1  # a hundred times the 1e-3 that CS231n asks for
SETTLED = 20  # ours: steps after which even a weight that began at 0 moves little, compared to where it is
GROWN = 10.0  # ours: times its first norm; what grows by drift changes by 2/k of itself in step k,
DRIFT = 10.0  # so that the ratio times k stays well below this
FLAT = 0.95  # ours: of the loss at the beginning
NEVER = 1e-6  # ours: a training of a million steps would change such a weight by as much as itself, at most
_HALF_UNIT = {"bfloat16": 2.0**-9, "float16": 2.0**-12}  # relative, of what rounding swallows
_FEW = 8.0  # of that: where so little arrives, nearly all is swallowed


@once
def dead_rows(seen: Seen) -> Judged:
    """Rows without gradient; first those of layers that return nothing above 0, which are the cause of the others."""
    sample, weights = seen.sample, {name: each for name, each in seen.weights.items() if each.outputs}
    if not any(each.grad_norm for each in sample.parameters.values()):
        return  # the loss asks for nothing, as when all is learnt
    silent = {name for name, layer in sample.layers.items() if layer.max <= 0 and name != seen.answer}
    order = {name: i for i, name in enumerate(sample.layers)}
    reached = [order[layer_of(name)] for name, each in weights.items() if each.grad_norm and layer_of(name) in order]
    for name in sorted(weights, key=lambda name: layer_of(name) not in silent):
        weight, layer = weights[name], sample.layers.get(layer_of(name))
        rows, unreached = weight.outputs or 1, weight.unreached or 0
        # of an answer that is below 0 those that were not asked for have none, and some that were have one
        code = layer is not None and DEAD * layer.channels <= layer.dead <= unreached
        asked = layer is not None and (layer_of(name) != seen.answer or code)
        shown = layer is not None and asked and values_of(layer) >= ENOUGH * layer.channels
        cause = ", and the layer returns nothing above 0" if layer_of(name) in silent else ""
        most = shown and rows >= WIDE and unreached >= DEAD * rows
        # a head whose task has nothing to ask in these steps, or a gate that is shut: what comes before it learns
        spared = not cause or rows < BY_CHANCE
        idles = unreached == rows and spared and min(reached, default=len(order)) < order.get(layer_of(name), 0)
        yield name, f"{unreached} of {rows}{cause}", (most or unreached == rows) and not idles


def behind_zeros(seen: Seen) -> Judged:
    """Without gradient, as weights of zeros that nothing moves follow."""
    order = {name: i for i, name in enumerate(seen.sample.layers)}
    zeros = [name for name, each in seen.sample.parameters.items() if not each.norm and _is_weight(seen, name)]
    for name, _, dead in dead_rows(seen):
        place = order.get(layer_of(name), len(order))
        later = [zero for zero in zeros if order.get(layer_of(zero), -1) > place and not seen.moved(zero)]
        yield name, f"{later[0]} is all zeros" if later else "", dead and bool(later)


def _is_weight(seen: Seen, name: str) -> bool:
    """A matrix, or what a normalisation multiplies by."""
    return name.endswith("weight") or (name in seen.account.about and seen.account.about[name].axes > 1)


def large_gradients(seen: Seen) -> Judged:
    totals = seen.memory.totals
    usual_total = median(totals) if len(totals) >= KNOWN else float("inf")
    for name, weight in seen.weights.items():
        norm, usual = weight.grad_norm or 0.0, seen.memory.usual.get(name, 0.0)
        beyond = 0 < EXPLODING * usual < norm and seen.total > JUMP * usual_total
        yield name, f"{norm:.2g}, usually {usual:.2g}", beyond


def small_gradients(seen: Seen) -> Judged:
    """By what they move, too: Adam makes ordinary steps of small gradients."""
    shares, ratios = seen.gradient_shares, _ratios(seen)
    largest = max((ratio for ratio in ratios.values() if ratio <= LARGE), default=0.0)
    for name, share in shares.items():
        held = ratios.get(name, 0.0) < VANISHING * largest
        yield name, f"{share:.1g}", share < VANISHING and held and not _is_rising(seen, name)


def stopped(seen: Seen) -> Judged:
    """One that stands while others move; at the end of a schedule all stand, and none is told."""
    ratios = _ratios(seen)
    if not ratios:
        return
    middle, largest = median_low(ratios.values()), max(ratios.values())
    for name, ratio in ratios.items():
        behind = middle > MOVING and ratio < LEFT_BEHIND * middle and not _is_table(seen, name)
        stands = behind or ratio < 2.0**-24 < LEFT_BEHIND * largest
        yield name, f"{ratio:.1g}", stands and not _is_rising(seen, name)


def never_moves(seen: Seen) -> Judged:
    """From the beginning on, and not while the learning rate rises: rounding swallows it, or none moves."""
    memory, about = seen.memory, seen.account.about
    peaks = {name: max(each.update_ratio or 0.0, memory.peak.get(name, 0.0)) for name, each in seen.weights.items()}
    if not peaks:
        return
    all_slow = max(peaks.values()) < NEVER
    for name, peak in peaks.items():
        dtype = about[name].dtype if name in about else "float32"
        unit, long = _HALF_UNIT.get(dtype), seen.sample.step - memory.since.get(name, seen.sample.step) >= SETTLED
        beyond = peak < unit / _FEW if unit else peak < NEVER and all_slow and long
        waits = _is_table(seen, name) or seen.rises(name) or _is_rising(seen, name)
        asked = seen.account.rates.get(name, 1.0) and seen.weights[name].grad_norm
        yield name, f"{peak:.1g}, {dtype}", bool(beyond and asked) and not waits


def large_updates(seen: Seen) -> Judged:
    memory = seen.memory
    for name, each in seen.weights.items():
        if each.update_ratio is None:
            continue
        steps = seen.sample.step - memory.since.get(name, seen.sample.step)
        grown = each.norm > GROWN * memory.begun.get(name, each.norm)
        wild = each.update_ratio * steps > DRIFT if grown else steps >= SETTLED
        yield name, f"{each.update_ratio:.2g}", each.update_ratio > LARGE and wild


def small_steps(seen: Seen) -> Judged:
    """None is large enough to get anywhere, and the loss has stayed where it was."""
    ratios, curve = _ratios(seen), seen.curve
    if ratios and seen.hardly_learns and curve.steps >= KNOWN_FLAT:
        middle = median_low(ratios.values())
        stays = curve.halves[1].mean > FLAT * curve.begun and not curve.halves[1].falls
        for name, ratio in ratios.items():
            peak = max(ratio, seen.memory.peak.get(name, 0.0))
            yield name, f"{peak:.1g}", stays and 0 < middle < SMALL_STEPS and peak < SMALL_STEPS


def large_steps(seen: Seen) -> Judged:
    ratios = _ratios(seen)
    if ratios and seen.hardly_learns:
        middle = median_low(ratios.values())
        for name, ratio in ratios.items():
            yield name, f"{ratio:.2g}", middle > LARGE_STEPS and ratio > LARGE_STEPS


def outgrown(seen: Seen) -> Judged:
    """Far from where they began, and beyond the usual size, while the loss is not; tables are as large as one likes."""
    learnt = [name for name in seen.weights if not _is_table(seen, name)]
    begun = {name: norm for name in learnt if (norm := seen.memory.begun.get(name))}
    usual = {name: ((seen.weights[name].outputs or 0) / 3) ** 0.5 for name in begun}  # of what PyTorch draws
    grown = {name: seen.weights[name].norm / max(norm, usual[name]) for name, norm in begun.items()}
    if grown and seen.hardly_learns and seen.curve.begun < UNSCALED:
        middle = median_low(grown.values())
        for name, times in grown.items():
            yield name, f"{seen.weights[name].norm / begun[name]:.2g}", middle > OUTGROWN and times > OUTGROWN


def shut_off(seen: Seen) -> Judged:
    """What learnt once, and took such a step that no gradient comes any more."""
    memory = seen.memory
    for name, _, dead in dead_rows(seen):
        peak, whole = memory.peak.get(name, 0.0), seen.weights[name].unreached == seen.weights[name].outputs
        learnt = bool(memory.share.get(name)) and bool(memory.begun.get(name))
        yield name, f"{peak:.2g}", dead and whole and learnt and peak > LARGE


def _ratios(seen: Seen) -> dict[str, float]:
    """Of those to which a gradient comes."""
    reached = {name: each for name, each in seen.weights.items() if each.unreached != each.outputs or not each.outputs}
    return {name: each.update_ratio for name, each in reached.items() if each.update_ratio is not None}


def _is_rising(seen: Seen, name: str) -> bool:
    """Whether its gradient is small beside the largest, and less so than at first."""
    share = seen.gradient_shares.get(name, 0.0)
    return RISING * seen.memory.share.get(name, share) < share < SMALL


def _is_table(seen: Seen, name: str) -> bool:
    about = seen.account.about.get(name)
    return about is not None and about.table


RULES = (
    Rule("exploding", large_gradients, 1,
         f"The gradient norm of {{names}} is more than {EXPLODING:g} times its usual value",
         "Check this batch, clip gradients, or lower the learning rate.", after=("inputs",)),
    Rule("large_updates", shut_off, 3,
         f"One step changed these weights by more than {LARGE:g} of their norm, and since then they get no gradient: "
         f"{{names}}",
         "Lower the learning rate.", after=("inputs",)),
    Rule("dead", behind_zeros, 3,
         "These get no gradient, because the weights of a later layer are all zeros: {names}",
         "Initialise the later weights differently, or train them.", ("untrained",), after=("inputs",)),
    Rule("dead", dead_rows, 3,
         f"These outputs get no gradient at all (reported from {percent(DEAD)} of a wide layer on, or all of a narrow "
         f"one): {{names}}",
         "Lower the learning rate; a LeakyReLU or normalisation before the activation helps.", ("untrained",),
         from_the_first="Check the initial biases and weights.", after=("inputs",)),
    Rule("vanishing", small_gradients, 3,
         f"The gradient (RMS) vanishes: it and the update are below {VANISHING:g} of those of the largest layer: "
         f"{{names}}",
         "Add normalisation between the layers, or initialise with larger weights.", patient=True,
         after=("inputs",)),
    Rule("stopped", never_moves, 3,
         "These get gradients but have hardly changed in any step (largest update ÷ weight): {names}",
         "Raise the learning rate; if the weights have 16 bits, keep them in float32.",
         ("dead", "vanishing", "untrained"), patient=True),
    Rule("stopped", stopped, 3,
         f"These weights hardly change while others do (update ÷ weight below 6e-08 or {LEFT_BEHIND:g} of the "
         f"median): {{names}}",
         "Check the learning rate of their group, or freeze them.", ("dead", "vanishing", "untrained"), patient=True),
    Rule("stopped", small_steps, 1,
         f"The loss stays at its initial value, and all steps are too small to change it (update ÷ weight below "
         f"{SMALL_STEPS:g}; about 0.001 is usual): {{names}}",
         "Raise the learning rate.", ("dead", "vanishing", "untrained", "stopped"), after=("inputs",)),
    Rule("large_updates", outgrown, 1,
         f"The loss has hardly fallen, and the norm of these weights is {OUTGROWN:g} times its initial value or "
         f"more: {{names}}",
         "Lower the learning rate.", after=("inputs",)),
    Rule("large_updates", large_steps, 3,
         f"The loss has hardly fallen, and each step changes a large part of the weight (update ÷ weight above "
         f"{LARGE_STEPS:g}; about 0.001 is usual): {{names}}",
         "Lower the learning rate.", after=("inputs",)),
    Rule("large_updates", large_updates, 3,
         f"Each step changes a large part of the weight (update ÷ weight above {LARGE:g}; about 0.001 is usual): "
         f"{{names}}",
         "Lower the learning rate.", after=("inputs",)),
)  # fmt: skip
