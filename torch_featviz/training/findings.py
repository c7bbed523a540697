"""What went wrong in a training, in words: each finding with its figure, told once."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from torch_featviz.errors import OptionError

from .history import Sample
from .symptoms import RULES, Memory, Rule, values_of

_WRITTEN = 5  # names in a text


@dataclass(frozen=True)
class Finding:
    """One thing that a person should look at."""

    step: int  # at which it was seen
    kind: str  # "nonfinite", "dead", ...
    names: tuple[str, ...]  # of layers or parameters
    text: str  # what, with its figure, and what to do about it


class Findings:
    """Looks at the samples of a `Monitor` in their order, and says what is wrong.

    Kinds are nonfinite, dead, saturated, vanishing, exploding, stopped and large_updates; each is told once of each
    layer or parameter. From a sample with NaN or infinities nothing else is concluded. What may pass is told when three
    samples in a row show it; a sample that lacks the layer neither adds to the row nor ends it.

    Example:
        >>> from torch_featviz.training import ParameterFigures
        >>> weight = ParameterFigures(50, norm=1.0, grad_norm=2.0, update_ratio=0.4, outputs=5, unreached=0)
        >>> findings = Findings()
        >>> new = [findings.look(Sample(step, {}, {"fc.weight": weight})) for step in range(0, 500, 100)]
        >>> [len(each) for each in new]
        [0, 0, 0, 1, 0]
        >>> findings.all[0].kind, findings.all[0].names
        ('large_updates', ('fc.weight',))
    """

    def __init__(self) -> None:
        self._found: list[Finding] = []
        self._rows: list[dict[str, list[int]]] = [{} for _ in RULES]  # of a name: first step of its row, samples in it
        self._memory = Memory()
        self._broken = False  # whether the last sample was

    @property
    def all(self) -> tuple[Finding, ...]:
        """Everything found so far."""
        return tuple(self._found)

    def look(self, sample: Sample) -> list[Finding]:
        """What is new in the next sample."""
        broken, before = _first_broken(sample, self._memory), self._broken
        self._broken = broken is not None
        if broken is None:
            new = self._judge(sample)
            self._memory.take(sample)
        else:
            told = before or ("nonfinite", broken[0]) in self._told()
            new = [] if told else [Finding(sample.step, "nonfinite", broken[:1], broken[1])]
        self._found += new
        return new

    def state_dict(self) -> dict[str, Any]:
        """All that is remembered, as words, numbers, lists and dicts, which JSON can hold."""
        found = [{**asdict(each), "names": list(each.names)} for each in self._found]
        return {"found": found, "rows": deepcopy(self._rows), "memory": asdict(self._memory), "broken": self._broken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            OptionError: it is not what `state_dict` returns.
        """
        expected = self.state_dict()
        if state.keys() != expected.keys() or len(state["rows"]) != len(RULES):
            raise OptionError(f"state must be what state_dict() returned, with {', '.join(expected)}; got {state!r}.")
        self._found = [Finding(**{**each, "names": tuple(each["names"])}) for each in state["found"]]
        self._rows = deepcopy(list(state["rows"]))
        self._memory = Memory(**deepcopy(state["memory"]))
        self._broken = state["broken"]

    def _told(self) -> set[tuple[str, str]]:
        return {(each.kind, name) for each in self._found for name in each.names}

    def _judge(self, sample: Sample) -> list[Finding]:
        told = self._told()
        names: dict[str, list[str]] = {}
        texts: dict[str, list[str]] = {}
        explodes = False
        for rule, rows in zip(RULES, self._rows, strict=True):
            lasting = _lasting(rule, rows, sample, self._memory)
            explodes = explodes or (rule.kind == "exploding" and bool(lasting))
            spared = {name for kind, name in told if kind in (rule.kind, *rule.unless)}
            spared.update(self._memory.late if rule.patient else ())
            new = {name: figure for name, figure in lasting.items() if name not in spared}
            if new and not (rule.kind == "vanishing" and explodes):  # beside what explodes all is small
                told |= {(rule.kind, name) for name in new}
                first = min(rows[name][0] for name in new)
                names.setdefault(rule.kind, []).extend(new)
                texts.setdefault(rule.kind, []).append(_text(rule, new, first, sample.step))
        return [Finding(sample.step, kind, tuple(names[kind]), " ".join(texts[kind])) for kind in names]


def _lasting(rule: Rule, rows: dict[str, list[int]], sample: Sample, memory: Memory) -> dict[str, str]:
    """The figures that are beyond the rule's limit for long enough."""
    lasting = {}
    for name, figure, beyond in rule.judge(sample, memory):
        if not beyond:
            rows.pop(name, None)
            continue
        row = rows.setdefault(name, [sample.step, 0])
        row[1] += 1
        if row[1] >= rule.samples:
            lasting[name] = figure
    return lasting


def _text(rule: Rule, figures: dict[str, str], first: int, last: int) -> str:
    written = ", ".join(f"{name or 'the model'} ({figure})" for name, figure in list(figures.items())[:_WRITTEN])
    if len(figures) > _WRITTEN:
        written += f" and {len(figures) - _WRITTEN} more"
    when = f"at step {last}" if rule.samples == 1 else f"in {rule.samples} samples in a row, steps {first} to {last}"
    return f"{rule.text.format(names=written)}, {when}. {rule.advice}"


def _first_broken(sample: Sample, memory: Memory) -> tuple[str, str] | None:
    """The first layer or parameter that is not finite, and what to say of it; None where all is finite."""
    since = "" if memory.good is None else f" from step {memory.good} on"
    look = f"Look at every step{since} (every=1)"
    for name, layer in sample.layers.items():
        if layer.nan + layer.inf:
            return name, f"{_broken_layer(name, sample, memory)} {look}, or ask first_nonfinite(model, inputs)."
    for name, each in sample.parameters.items():
        skipped = each.update_ratio == 0  # as a GradScaler does
        if each.grad_norm is not None and not isfinite(each.grad_norm) and not skipped:
            text = (
                f"The gradient of {name} has NaN or infinity at step {sample.step}, though all layers returned finite"
            )
            return name, f"{text} values: look for log(0), sqrt(0) or x / 0 in the loss. {look}."
    for name, each in sample.parameters.items():
        if not isfinite(each.norm):
            text = f"{name} has NaN or infinity after step {sample.step}, though its gradient was finite"
            return name, f"{text}: lower the learning rate. {look}."
    return None


def _broken_layer(name: str, sample: Sample, memory: Memory) -> str:
    layer, names = sample.layers[name], list(sample.layers)
    count = values_of(layer) + layer.nan + layer.inf
    text = f"{f'Layer {name}' if name else 'The model'} is the first with NaN or infinity at step {sample.step}"
    text += f" ({layer.nan} NaN and {layer.inf} infinite of {count} values)"
    if memory.good is not None and name in memory.ranges:
        low, high = memory.ranges[name]
        text += f"; at step {memory.good} all was finite, and it gave {low:.3g} to {high:.3g}"
    before = [(each, sample.layers[each]) for each in names[: names.index(name)]]
    ranges = [f"{each} {figures.min:.3g} to {figures.max:.3g}" for each, figures in before[-_WRITTEN:]]
    return f"{text}; before it now: {', '.join(ranges)}." if ranges else f"{text}; it came with the inputs, or from it."
