"""What a training that goes wrong looks like, in the plain numbers of a sample: the rules that `Findings` asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import isfinite
from statistics import median, median_low
from typing import NamedTuple

from .history import LayerFigures, ParameterFigures, Sample

# Each threshold, and where it is from; "ours" was set well beyond what healthy trainings reach.
DEAD = 0.75  # ours: of a weight's rows; CS231n warns of 40 %, but 57 % were off in a training that went well
WIDE = 64  # ours: of fewer rows only all count; where biases decide, half of the ReLUs are off by chance
ENOUGH = 16  # ours: of fewer values for each output, many outputs may be off by chance
SATURATED = 0.8  # Glorot & Bengio 2010, section 3, saw whole layers there; a tanh MLP that learns well has 57 %
VANISHING = 1e-4  # ours: of the largest layer's; relative, as all gradients become small when a net has learnt
ARRIVED = 1e-3  # ours: well above that: from here on, what began at 0 is judged as all others
HALF_MAX = 65504.0  # the largest number of float16
EXPLODING = 1e3  # ours: times what was usual
STOPPED = 2.0**-24  # half the resolution of float32: rounding swallows what is less
LEFT_BEHIND = 1e-3  # ours: of the median weight's ratio; layer-wise learning rates differ by less
MOVING = 1e-6  # ours: where the median weight moves less, rounding makes the differences
LARGE = 0.1  # a hundred times the 1e-3 that CS231n asks for
SETTLED = 20  # ours: steps after which even a weight that began at 0 moves little, compared to where it is
KEPT = 31  # gradient norms of each weight, for their median
KNOWN = 5  # of them, before one can be called unusual

Judged = Iterable[tuple[str, str, bool]]  # a name, its figure as a person reads it, whether that is beyond the limit


@dataclass
class Memory:
    """What is known of the samples before: plain numbers, a bounded number of them for each name."""

    std: dict[str, float] = field(default_factory=dict)  # of the first that a layer returned
    norms: dict[str, list[float]] = field(default_factory=dict)  # of the last gradients of a weight
    usual: dict[str, float] = field(default_factory=dict)  # the highest that their median ever was
    late: list[str] = field(default_factory=list)  # what began at exactly 0, as after zero-initialised layers
    since: dict[str, int] = field(default_factory=dict)  # the step at which a weight was first moved
    good: int | None = None  # the last step at which all was finite
    ranges: dict[str, list[float]] = field(default_factory=dict)  # of what the layers returned then

    def take(self, sample: Sample) -> None:
        """Remember a sample in which all is finite."""
        self.good = sample.step
        layers = {name: layer for name, layer in sample.layers.items() if values_of(layer)}
        weights = {name: each.grad_norm or 0.0 for name, each in weights_of(sample).items()}
        self.ranges |= {name: [layer.min, layer.max] for name, layer in layers.items()}
        self.late += [name for name, layer in layers.items() if name not in self.std and layer.std == 0]
        self.late += [name for name, norm in weights.items() if name not in self.since and norm == 0]
        self.std = {name: layer.std for name, layer in layers.items()} | self.std
        self.since = dict.fromkeys(weights, sample.step) | self.since
        shares = {**gradient_shares(sample), **output_shares(sample)}
        self.late = [name for name in self.late if shares.get(name, 0.0) <= ARRIVED]
        for name, norm in weights.items():
            if name not in self.late:
                self.norms[name] = [*self.norms.get(name, ()), norm][-KEPT:]
                usual = median(self.norms[name]) if len(self.norms[name]) >= KNOWN else 0.0
                self.usual[name] = max(usual, self.usual.get(name, 0.0))


class Rule(NamedTuple):
    """A kind of finding, how it is seen, and what is said of it."""

    kind: str
    judge: Callable[[Sample, Memory], Judged]
    samples: int  # in a row
    text: str
    advice: str
    unless: tuple[str, ...] = ()  # these kinds were told of the same name, and explain it
    patient: bool = False  # with what began at 0 and has not come far yet


def values_of(layer: LayerFigures) -> int:
    """How many finite values it returned."""
    return sum(layer.histogram.counts)


def weights_of(sample: Sample) -> dict[str, ParameterFigures]:
    """The weights of convolutions and linear layers that an optimizer moved."""
    rows = {name: each for name, each in sample.parameters.items() if each.outputs and each.size}
    return {name: each for name, each in rows.items() if each.grad_norm is not None and isfinite(each.grad_norm)}


def layer_of(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def dead_rows(sample: Sample, _: Memory) -> Judged:
    """Rows without gradient; first those of layers that return nothing above 0, which are the cause of the others."""
    if not any(each.grad_norm for each in sample.parameters.values()):
        return  # the loss asks for nothing, as when all is learnt
    weights, answer = weights_of(sample), next(reversed(sample.layers), None)
    silent = {name for name, layer in sample.layers.items() if layer.max <= 0 and name != answer}
    for name in sorted(weights, key=lambda name: layer_of(name) not in silent):
        weight, layer = weights[name], sample.layers.get(layer_of(name))
        rows, unreached = weight.outputs or 1, weight.unreached or 0
        shown = layer is not None and values_of(layer) >= ENOUGH * layer.channels and layer_of(name) != answer
        cause = ", and the layer returns nothing above 0" if layer_of(name) in silent else ""
        most = shown and rows >= WIDE and unreached >= DEAD * rows
        yield name, f"{unreached} of {rows}{cause}", most or unreached == rows


def constant(sample: Sample, _: Memory) -> Judged:
    for name, layer in sample.layers.items():
        yield name, f"{layer.min:.3g}", layer.min == layer.max and values_of(layer) >= ENOUGH


def saturated(sample: Sample, _: Memory) -> Judged:
    for name in list(sample.layers)[:-1]:  # the last one's output may be a confident answer
        share = sample.layers[name].saturated
        if share is not None:
            yield name, f"{share:.0%}", share >= SATURATED


def gradient_shares(sample: Sample) -> dict[str, float]:
    """The RMS of each weight's gradient, over the largest; those without any are left out: they are dead."""
    rms = {name: (each.grad_norm or 0.0) / each.size**0.5 for name, each in weights_of(sample).items()}
    return {name: each / max(rms.values()) for name, each in rms.items() if each}


def output_shares(sample: Sample) -> dict[str, float]:
    """The std of each layer, over the largest so far, at most 1: after inputs of thousands, ordinary is not small."""
    shares, largest = {}, 0.0
    for name, layer in sample.layers.items():
        if layer.min < layer.max and (largest := max(largest, layer.std)):
            shares[name] = layer.std / min(largest, 1.0)
    return shares


def small_gradients(sample: Sample, _: Memory) -> Judged:
    return [(name, f"{share:.1g}", share < VANISHING) for name, share in gradient_shares(sample).items()]


def small_outputs(sample: Sample, _: Memory) -> Judged:
    return [(name, f"{share:.1g}", share < VANISHING) for name, share in output_shares(sample).items()]


def large_outputs(sample: Sample, memory: Memory) -> Judged:
    for name, layer in sample.layers.items():
        limit = min(HALF_MAX, EXPLODING * max(memory.std.get(name, HALF_MAX), 1.0))  # at least 1: one may begin at 0
        yield name, f"{layer.std:.2g}, limit {limit:.3g}", layer.std > limit


def large_gradients(sample: Sample, memory: Memory) -> Judged:
    for name, weight in weights_of(sample).items():
        norm, usual = weight.grad_norm or 0.0, memory.usual.get(name, 0.0)
        yield name, f"{norm:.2g}, usually {usual:.2g}", 0 < EXPLODING * usual < norm


def stopped(sample: Sample, _: Memory) -> Judged:
    """One that stands while others move; at the end of a schedule all stand, and none is told."""
    reached = {name: each for name, each in weights_of(sample).items() if each.unreached != each.outputs}
    ratios = {name: each.update_ratio for name, each in reached.items() if each.update_ratio is not None}
    if not ratios:
        return
    middle, largest = median_low(ratios.values()), max(ratios.values())
    for name, ratio in ratios.items():
        behind = middle > MOVING and ratio < LEFT_BEHIND * middle
        yield name, f"{ratio:.1g}", behind or ratio < STOPPED < LEFT_BEHIND * largest


def large_updates(sample: Sample, memory: Memory) -> Judged:
    for name, each in weights_of(sample).items():
        if each.update_ratio is not None and sample.step - memory.since.get(name, sample.step) >= SETTLED:
            yield name, f"{each.update_ratio:.2g}", each.update_ratio > LARGE


RULES = (
    Rule("exploding", large_outputs, 1,
         f"The values of {{names}} are spread beyond {EXPLODING:g} times their first std, or beyond float16",
         "Lower the learning rate, clip gradients, or begin with smaller weights."),
    Rule("exploding", large_gradients, 1,
         f"The gradient of {{names}} has more than {EXPLODING:g} times its usual norm",
         "Look at this batch, clip gradients, or lower the learning rate."),
    Rule("dead", dead_rows, 3,
         f"No gradient at all reaches these outputs (told from {DEAD:.0%} on, of narrow layers all): {{names}}",
         "Lower the learning rate or check the biases; a LeakyReLU or a normalisation before the activation helps."),
    Rule("dead", constant, 3,
         "One single value is all that these layers return: {names}",
         "Check their weights and what comes before them."),
    Rule("saturated", saturated, 3,
         f"Values at the ends of the activation's range (told from {SATURATED:.0%} on), where gradients end: {{names}}",
         "Begin with smaller weights, normalise before the activation, or take another one."),
    Rule("vanishing", small_gradients, 3,
         f"The gradient (RMS) is below {VANISHING:g} of the largest layer's: {{names}}",
         "Normalisation, skip connections, other initial weights or a ReLU let gradients through.", patient=True),
    Rule("vanishing", small_outputs, 3,
         f"The values (std) are below {VANISHING:g} of the largest before them: {{names}}",
         "Begin with larger weights, or normalise.", patient=True),
    Rule("stopped", stopped, 3,
         f"Others move, these hardly (update ÷ weight below {STOPPED:.1g} or {LEFT_BEHIND:g} of the median): {{names}}",
         "Check the learning rate of their group, or freeze them.", ("dead", "vanishing"), patient=True),
    Rule("large_updates", large_updates, 3,
         f"Each step changes much of the weight (update ÷ weight above {LARGE:g}; about 0.001 is usual): {{names}}",
         "Lower the learning rate."),
)  # fmt: skip
