"""Rules about what layers return."""

from __future__ import annotations

from math import hypot

from .rule import Judged, Rule, Seen, percent, values_of

SATURATED = 0.8  # Glorot & Bengio 2010, section 3, saw whole layers there; a tanh MLP that learns well has 57 %
STATES = 0.6  # ours: of a recurrent layer, where below a tenth are usual; of an answer, if the loss stays
RIGHT = 0.1  # ours: a loss of answers within a range of 1 or 2, below which those at its ends are right
LEARNT = 1e-3  # ours: of the first loss
HELD_BACK = 0.1  # ours: gradient ÷ weight of what feeds it, to the largest
VANISHING = 1e-4  # ours: of the largest before it; relative, as all becomes small when a net has learnt
HALF_MAX = 65504.0  # the largest number of float16
EXPLODING = 1e3  # ours: times what was usual
WIDE = 30.0  # ours: std of the answer in the first step, to what the model is given, at least 1;
WIDENED = 5.0  # and of half of the layers: one that is trained already may answer in large units
ENOUGH = 16  # ours: of fewer values for each output, many outputs may be off by chance


def large(seen: Seen) -> Judged:
    """The answer may grow to where the targets are, unless others grow with it."""
    beyond = {}
    for name, layer in seen.sample.layers.items():
        limit = min(
            HALF_MAX, EXPLODING * max(seen.memory.std.get(name, HALF_MAX), 1.0)
        )  # at least 1: one may begin at 0
        beyond[name] = f"{layer.std:.2g}, limit {limit:.3g}", layer.std > limit
    alone = not any(far for name, (_, far) in beyond.items() if name != seen.answer)
    for name, (figure, far) in beyond.items():
        yield name, figure, far and not (name == seen.answer and alone and len(beyond) > 1)


def widened(seen: Seen) -> Judged:
    """From layer to layer, before anything has learnt."""
    layers, given = seen.sample.layers, [hypot(each.mean, each.std) for each in seen.sample.inputs.values()]
    if seen.memory.good is not None or seen.answer is None or not seen.account.stepped:
        return
    room, answer = max([1.0, *given]), layers[seen.answer]
    wide = [name for name, layer in layers.items() if layer.std > WIDENED * room]
    beyond = answer.std > WIDE * room and 2 * len(wide) > len(layers)
    yield seen.answer, f"std {answer.std:.3g}, of the first layer {next(iter(layers.values())).std:.3g}", beyond


def silent_answer(seen: Seen) -> Judged:
    """Nothing above 0, and not one gradient, while the loss is not 0: as before a ReLU at the end."""
    if seen.answer is not None:
        layer = seen.sample.layers[seen.answer]
        asks = not len(seen.curve) or abs(seen.curve.last) > LEARNT * abs(seen.curve.first)
        silent = layer.max <= 0 and bool(seen.weights) and not seen.total and asks
        yield seen.answer, f"at most {layer.max:.2g}", silent


def constant(seen: Seen) -> Judged:
    for name, layer in seen.sample.layers.items():
        own = [seen.sample.parameters[path] for path in seen.own[name]]
        waits = bool(own) and not any(each.norm for each in own)  # it begins at 0
        same = layer.min == layer.max and values_of(layer) >= ENOUGH
        yield name, f"{layer.min:.3g}", same and not waits


def saturated(seen: Seen) -> Judged:
    """Where it holds back the gradient. A gate learns to be open or shut: one counts from the beginning only."""
    feeding: str | None = None
    flow = {
        name: each.grad_norm / each.norm
        for name, each in seen.weights.items()
        if each.grad_norm is not None and each.norm
    }
    for name, layer in seen.sample.layers.items():
        own = next((each for each in seen.own[name] if each in flow), None)
        feeding = own or feeding
        if layer.saturated is None:
            continue
        if _is_recurrent(seen, name):
            yield name, percent(layer.saturated), layer.saturated >= STATES and not seen.curve.has_fallen
            continue
        if name == seen.answer:
            wrong = seen.is_stuck and seen.curve.last > RIGHT  # of rare positives nearly all answers are 0, and right
            yield name, percent(layer.saturated), layer.saturated >= STATES and wrong
            continue
        gate = layer.min >= 0 and seen.memory.saturated.get(name, 1.0) < SATURATED
        held = feeding is None or flow[feeding] < HELD_BACK * max(flow.values())
        yield name, percent(layer.saturated), layer.saturated >= SATURATED and held and not gate


def _is_recurrent(seen: Seen, name: str) -> bool:
    return any(path.rpartition(".")[2].startswith("weight_hh") for path in seen.own[name])


def small(seen: Seen) -> Judged:
    """And so are all that follow: one that begins small on purpose is added to what is not."""
    shares = seen.output_shares
    names = [name for name in seen.sample.layers if name in shares]
    tail = set[str]()
    for name in reversed(names):
        if shares[name] >= VANISHING:
            break
        tail.add(name)
    for name in names:
        yield name, f"{shares[name]:.1g}", name in tail and len(tail) > 1


RULES = (
    Rule("exploding", widened, 1,
         "Activations grow from layer to layer before the first step; the last layer: {names}",
         "Initialise with smaller weights, such as PyTorch's default, or add normalisation between the layers.",
         after=("inputs",)),
    Rule("dead", silent_answer, 3,
         "No output of the last layer is above 0 and no gradient flows through it, as with a ReLU behind it: {names}",
         "Remove the ReLU at the end of the model, or initialise its biases differently.", after=("inputs",)),
    Rule("exploding", large, 1,
         f"The std of the activations of {{names}} is above {EXPLODING:g} times its initial value, or above the "
         "range of float16",
         "Lower the learning rate, clip gradients, or initialise with smaller weights.", after=("inputs",)),
    Rule("dead", constant, 3,
         "These layers return one constant value: {names}",
         "Check their weights and the layers before them.", patient=True, after=("inputs",)),
    Rule("saturated", saturated, 3,
         f"Saturated activations, which block the gradient (reported from {percent(SATURATED)} on; from "
         f"{percent(STATES)} for recurrent layers and the model's output): {{names}}",
         "Initialise with smaller weights, normalise before the activation, or use another activation.",
         after=("inputs",)),
    Rule("vanishing", small, 3,
         f"The activations vanish: from here to the end of the model their std is below {VANISHING:g} of the largest "
         f"before: {{names}}",
         "Initialise with larger weights, or add normalisation.", patient=True, after=("inputs",)),
)  # fmt: skip
