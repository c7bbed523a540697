"""Report what goes wrong during training, in words: each finding with its figure, once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

from torch_featviz.choices import FIGURES
from torch_featviz.displayed import Displayed
from torch_featviz.errors import OptionError

from .account import Account
from .history import Sample, as_plain, lines
from .rules import KINDS, RULES, Memory, Rule, Seen
from .rules.broken import first_broken

_WRITTEN = 5  # names in a text
Globs: TypeAlias = str | Sequence[str]


@dataclass(frozen=True, repr=False)
class Finding(Displayed):
    """One problem: its step, its kind, the layers or parameters concerned, and a text with advice."""

    step: int  # at which it was seen
    kind: str  # "nonfinite", "dead", ...
    names: tuple[str, ...]  # of layers or parameters
    text: str  # what, with its figure, and what to do about it


def read_findings(folder: str | os.PathLike[str]) -> list[Finding]:
    """What a `Monitor` found and wrote to a folder from which `History.load` reads its samples."""
    told = (plain.get("findings", []) for _, plain in lines((Path(folder) / FIGURES).read_bytes()))
    return [Finding(**{**each, "names": tuple(each["names"])}) for findings in told for each in findings]


class Findings:
    """Check the samples of a `Monitor` in order, and report what is wrong.

    The kinds are nonfinite, untrained, gradients, mode, symmetric, inputs, exploding, dead, saturated, vanishing,
    stopped, large_updates, targets and loss. Each is reported once per layer or parameter. A sample with NaN or
    infinity is used for nothing else. A problem that may be temporary is reported when three samples in a row show it;
    a sample without the layer neither counts nor interrupts the row.

    Args:
        ignore: layers and parameters, as globs, that are not reported, by kind.
    Raises:
        OptionError: there is no such kind.

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

    def __init__(self, ignore: Mapping[str, Globs] | None = None) -> None:
        self._ignore = _checked(ignore)
        self._found: list[Finding] = []
        self._rows: list[dict[str, list[int]]] = [{} for _ in RULES]  # of a name: first step of its row, samples in it
        self._memory = Memory()
        self._broken = False  # whether the last sample was

    @property
    def all(self) -> tuple[Finding, ...]:
        """All findings so far."""
        return tuple(self._found)

    def look(self, sample: Sample, account: Account | None = None) -> list[Finding]:
        """Check the next sample and return the new findings.

        Args:
            sample: the figures of a step.
            account: further facts about the step.
        """
        seen = Seen(sample, account or Account(), self._memory)
        broken, before = first_broken(seen), self._broken
        self._broken = broken is not None
        if broken is None:
            new = self._judge(seen)
            self._memory.take(seen)
        else:
            told = before or ("nonfinite", broken.name) in self._told() or self._is_ignored("nonfinite", broken.name)
            new = [] if told else [Finding(broken.step, "nonfinite", (broken.name,), broken.text)]
        self._found += new
        return new

    def state_dict(self) -> dict[str, Any]:
        """Return the state as words, numbers, lists and dicts, as JSON can hold them."""
        found = [{**asdict(each), "names": list(each.names)} for each in self._found]
        memory = {name: as_plain(value) for name, value in asdict(self._memory).items()}
        return {"found": found, "rows": deepcopy(self._rows), "memory": memory, "broken": self._broken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            OptionError: `state` does not come from `state_dict`.
        """
        expected = self.state_dict()
        if state.keys() != expected.keys() or len(state["rows"]) != len(RULES):
            raise OptionError(f"state must be what state_dict() returned, with {', '.join(expected)}; got {state!r}.")
        self._found = [Finding(**{**each, "names": tuple(each["names"])}) for each in state["found"]]
        self._rows = deepcopy(list(state["rows"]))
        memory = {name: value if name == "late" else _numbers(value) for name, value in state["memory"].items()}
        self._memory = Memory(**deepcopy(memory))
        self._broken = state["broken"]

    def _told(self) -> set[tuple[str, str]]:
        return {(each.kind, name) for each in self._found for name in each.names}

    def _is_ignored(self, kind: str, name: str) -> bool:
        return any(fnmatchcase(name, glob) for glob in self._ignore.get(kind, ()))

    def _judge(self, seen: Seen) -> list[Finding]:
        told, now = self._told(), seen.sample.step
        names: dict[str, list[str]] = {}
        texts: dict[str, list[str]] = {}
        explodes = False
        for rule, rows in zip(RULES, self._rows, strict=True):
            lasting = _lasting(rule, rows, seen)
            explodes = explodes or (rule.kind == "exploding" and bool(lasting))
            spared = {name for kind, name in told if kind in (rule.kind, *rule.unless)}
            spared.update(self._memory.late if rule.patient else ())
            new = {name: figure for name, figure in lasting.items() if name not in spared}
            new = {name: figure for name, figure in new.items() if not self._is_ignored(rule.kind, name)}
            if any(kind in rule.after for kind, _ in told):
                continue
            if new and not (rule.kind == "vanishing" and explodes):  # beside what explodes all is small
                told |= {(rule.kind, name) for name in new}
                names.setdefault(rule.kind, []).extend(new)
                first = {name: rows[name][0] for name in new}
                born = all(step <= self._memory.since.get(name, -1) for name, step in first.items())
                advice = rule.from_the_first if born and rule.from_the_first else rule.advice
                texts.setdefault(rule.kind, []).append(f"{_text(rule, new, min(first.values()), now)} {advice}")
        return [Finding(now, kind, tuple(names[kind]), " ".join(texts[kind])) for kind in names]


def _lasting(rule: Rule, rows: dict[str, list[int]], seen: Seen) -> dict[str, str]:
    """The figures that are beyond the rule's limit for long enough."""
    lasting = {}
    for name, figure, beyond in rule.judge(seen):
        if not beyond:
            rows.pop(name, None)
            continue
        row = rows.setdefault(name, [seen.sample.step, 0])
        row[1] += 1
        if row[1] >= rule.samples:
            lasting[name] = figure
    return lasting


def _text(rule: Rule, figures: dict[str, str], first: int, last: int) -> str:
    shown = [(name or "the model", figure) for name, figure in list(figures.items())[:_WRITTEN]]
    written = ", ".join(f"{name} ({figure})" if figure else name for name, figure in shown)
    if len(figures) > _WRITTEN:
        written += f" and {len(figures) - _WRITTEN} more"
    when = f"at step {last}" if rule.samples == 1 else f"in {rule.samples} samples in a row, steps {first} to {last}"
    return f"{rule.text.format(names=written)}, {when}."


def _numbers(value: Any) -> Any:
    """What `as_plain` was made of."""
    if isinstance(value, dict):
        return {name: _numbers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    return float(value) if isinstance(value, str) else value


def _checked(ignore: Mapping[str, Globs] | None) -> dict[str, tuple[str, ...]]:
    if not isinstance(ignore, Mapping | None):
        raise OptionError(f'ignore must map kinds to globs, such as {{"dead": ["head*"]}}; got {ignore!r:.80}.')
    checked = {}
    for kind, globs in (ignore or {}).items():
        if kind not in KINDS:
            raise OptionError(f"a key of ignore must be a kind of finding ({', '.join(KINDS)}), got {kind!r}.")
        checked[kind] = (globs,) if isinstance(globs, str) else tuple(globs) if isinstance(globs, Sequence) else ()
        if not checked[kind] or not all(isinstance(glob, str) for glob in checked[kind]):
            raise OptionError(f"ignore[{kind!r}] must be names or globs of layers, '*' for all; got {globs!r:.80}.")
    return checked
