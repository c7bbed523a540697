"""What a rule is, what it is shown of a step, and what is remembered of the steps before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from math import hypot, isfinite
from statistics import median

from torch_featviz.training.account import Account
from torch_featviz.training.history import LayerFigures, ParameterFigures, Sample

from .curve import Curve

ARRIVED = 1e-3  # ours: share of the largest, from which on what began at 0 is judged as all others
KEPT = 31  # gradient norms of each weight, for their median
KNOWN = 5  # of them, before one can be called unusual
CURVE = 64  # means of the loss that are kept
SPENT = 1e-4  # ours: of the highest learning rate
BEGINNING = 20  # ours: steps that count as the beginning when means are joined

Judged = Iterable[tuple[str, str, bool]]  # a name, its figure as a person reads it, whether that is beyond the limit


@dataclass
class Memory:
    """What is known of the samples before: plain numbers, a bounded number of them for each name."""

    std: dict[str, float] = field(default_factory=dict)  # of the first that a layer returned
    saturated: dict[str, float] = field(default_factory=dict)  # at first
    norms: dict[str, list[float]] = field(default_factory=dict)  # of the last gradients of a weight
    usual: dict[str, float] = field(default_factory=dict)  # the highest that their median ever was
    totals: list[float] = field(default_factory=list)  # norms of the last gradients as a whole
    late: list[str] = field(default_factory=list)  # what began at exactly 0, as after zero-initialised layers
    since: dict[str, int] = field(default_factory=dict)  # the step at which a weight was first moved,
    begun: dict[str, float] = field(default_factory=dict)  # its norm then,
    share: dict[str, float] = field(default_factory=dict)  # its gradient's part of the largest then,
    peak: dict[str, float] = field(default_factory=dict)  # and the most that a step has ever changed of it
    rates: dict[str, list[float]] = field(default_factory=dict)  # the highest so far, and the last
    spent: int | None = None  # the look since which all of them are spent
    weights: dict[str, float] = field(default_factory=dict)  # norms of all parameters at the last look
    curve: list[list[float]] = field(default_factory=list)  # of the loss: last step, mean, and number of steps
    good: int | None = None  # the last step at which all was finite
    ranges: dict[str, list[float]] = field(default_factory=dict)  # of what the layers returned then

    def take(self, seen: Seen) -> None:
        """Remember a sample in which all is finite."""
        sample, weights = seen.sample, seen.weights
        self.good = sample.step
        layers = {name: layer for name, layer in sample.layers.items() if values_of(layer)}
        self.ranges |= {name: [layer.min, layer.max] for name, layer in layers.items()}
        self.late += [name for name, layer in layers.items() if name not in self.std and layer.std == 0]
        self.late += [name for name, each in weights.items() if name not in self.since and not each.grad_norm]
        self.std = {name: layer.std for name, layer in layers.items()} | self.std
        self.saturated = {
            name: layer.saturated for name, layer in layers.items() if layer.saturated is not None
        } | self.saturated
        shares = {**seen.gradient_shares, **seen.output_shares}
        self.since = dict.fromkeys(weights, sample.step) | self.since
        self.begun = {name: norm for name in weights if (norm := seen.norm_before(name)) is not None} | self.begun
        self.late = [name for name in self.late if shares.get(name, 0.0) <= ARRIVED]
        self.share = {name: share for name, share in shares.items() if name not in self.late} | self.share
        for name, each in weights.items():
            self.peak[name] = max(self.peak.get(name, 0.0), each.update_ratio or 0.0)
            if name not in self.late:
                self.norms[name] = [*self.norms.get(name, ()), each.grad_norm or 0.0][-KEPT:]
                usual = median(self.norms[name]) if len(self.norms[name]) >= KNOWN else 0.0
                self.usual[name] = max(usual, self.usual.get(name, 0.0))
        if weights:
            self.totals = [*self.totals, seen.total][-KEPT:]
        for name, rate in seen.account.rates.items():
            self.rates[name] = [max(rate, self.rates.get(name, [rate])[0]), rate]
        self.spent = seen.spent
        self.weights = {name: each.norm for name, each in sample.parameters.items()}
        self._add_to_curve(seen)

    def _add_to_curve(self, seen: Seen) -> None:
        self.curve = [list(each) for each in seen.curve.means]
        if len(self.curve) > CURVE:  # two neighbours become one; the first stays what the loss began with
            kept = 0 if self.curve[0][2] + self.curve[1][2] <= BEGINNING else 1
            self.curve[kept:] = [_joined(*self.curve[i : i + 2]) for i in range(kept, len(self.curve), 2)]


class Seen:
    """One step, as rules are shown it.

    Args:
        sample: its figures.
        account: what is known beside them.
        memory: of the steps before.
    """

    def __init__(self, sample: Sample, account: Account, memory: Memory) -> None:
        self.sample, self.account, self.memory = sample, account, memory
        self.judged: dict[Callable[[Seen], Judged], list[tuple[str, str, bool]]] = {}  # what several rules ask

    @cached_property
    def answer(self) -> str | None:
        """The layer that ran last."""
        return next(reversed(self.sample.layers), None)

    @cached_property
    def own(self) -> Mapping[str, list[str]]:
        """The names of each layer's own parameters."""
        found = defaultdict[str, list[str]](list)
        for name in self.sample.parameters:
            found[layer_of(name)].append(name)
        return found

    @cached_property
    def weights(self) -> dict[str, ParameterFigures]:
        """The matrices and kernels that an optimizer moved."""
        about = self.account.about
        found = {
            name: each
            for name, each in self.sample.parameters.items()
            if each.size and (about[name].axes > 1 if name in about else each.outputs)
        }
        return {name: each for name, each in found.items() if each.grad_norm is not None and isfinite(each.grad_norm)}

    @cached_property
    def total(self) -> float:
        """The norm of the gradients of all weights together."""
        return hypot(*(each.grad_norm or 0.0 for each in self.weights.values()))

    @cached_property
    def gradient_shares(self) -> dict[str, float]:
        """The RMS of each weight's gradient, over the largest; those without any are left out: they are dead."""
        rms = {name: (each.grad_norm or 0.0) / each.size**0.5 for name, each in self.weights.items()}
        return {name: each / max(rms.values()) for name, each in rms.items() if each > 0}

    @cached_property
    def output_shares(self) -> dict[str, float]:
        """The std of each layer, over the largest so far, at most 1: after thousands, ordinary is not small."""
        shares, largest = {}, 0.0
        for name, layer in self.sample.layers.items():
            if layer.min < layer.max and (largest := max(largest, layer.std)):
                shares[name] = layer.std / min(largest, 1.0)
        return shares

    @cached_property
    def curve(self) -> Curve:
        """The means of the loss between looks, up to this one."""
        losses = [record.loss for record in self.account.records if record.loss is not None]
        now = [[float(self.sample.step), sum(losses) / len(losses), float(len(losses))]] if losses else []
        return Curve([*self.memory.curve, *now])

    @property
    def warms_up(self) -> bool:
        """Whether a learning rate is higher than at the last look."""
        return any(map(self.rises, self.account.rates))

    @cached_property
    def highest_rates(self) -> tuple[float, float]:
        """The highest learning rate, and the highest that there was before."""
        rates, memory = self.account.rates, self.memory.rates
        return max(rates.values(), default=0.0), max((memory.get(name, [0.0])[0] for name in rates), default=0.0)

    @cached_property
    def spent(self) -> int | None:
        """The look since which all learning rates are spent; None where they are not."""
        now, highest = self.highest_rates
        if not now < SPENT * highest:
            return None
        return self.sample.step if self.memory.spent is None else self.memory.spent

    @cached_property
    def hardly_learns(self) -> bool:
        """Whether the loss has hardly fallen; of several optimizers the sum of their losses need not."""
        return self.account.optimizers < 2 and self.curve.hardly_falls and not self.warms_up

    @cached_property
    def is_stuck(self) -> bool:
        """Whether the loss has come to rest far above 0."""
        return self.account.optimizers < 2 and self.curve.rests and not self.warms_up

    def norm_before(self, name: str) -> float | None:
        """Of a parameter, before the first step or at the last look."""
        return self.memory.weights.get(name, self.account.before.get(name))

    def moved(self, name: str) -> bool:
        """Whether a parameter is not what it was, as far as its norm tells."""
        before, now = self.norm_before(name), self.sample.parameters.get(name)
        return before is not None and now is not None and before != now.norm

    def rises(self, name: str) -> bool:
        """Whether the learning rate of a parameter is higher than at the last look, as it warms up."""
        highest = self.memory.rates.get(name)
        return highest is not None and self.account.rates.get(name, 0.0) > highest[1]


@dataclass(frozen=True)
class Rule:
    """A kind of finding, how it is seen, and what is said of it."""

    kind: str
    judge: Callable[[Seen], Judged]
    samples: int  # in a row
    text: str
    advice: str
    unless: tuple[str, ...] = ()  # these kinds were told of the same name, and explain it
    after: tuple[str, ...] = ()  # these kinds were told of anything, and explain it
    from_the_first: str = ""  # advice where it has been so since the first look
    patient: bool = False  # with what began at 0 and has not come far yet


def once(judge: Callable[[Seen], Judged]) -> Callable[[Seen], Judged]:
    """Judge each step once, also where several rules ask."""

    @wraps(judge)
    def judged(seen: Seen) -> Judged:
        if judge not in seen.judged:
            seen.judged[judge] = list(judge(seen))
        return seen.judged[judge]

    return judged


def percent(share: float) -> str:
    """A share as a person reads it: `80 %`."""
    return f"{100 * share:.0f} %"


def values_of(layer: LayerFigures) -> int:
    """How many finite values it returned."""
    return sum(layer.histogram.counts)


def layer_of(parameter: str) -> str:
    """The layer that holds a parameter."""
    return parameter.rpartition(".")[0].partition(".parametrizations")[0]


def _joined(first: list[float], second: list[float] | None = None) -> list[float]:
    if second is None:
        return first
    count = first[2] + second[2]
    return [second[0], (first[1] * first[2] + second[1] * second[2]) / count, count]
