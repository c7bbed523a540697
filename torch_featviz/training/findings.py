"""Report what goes wrong during training, in words: each finding with its figure, once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

from torch_featviz.errors import OptionError
from torch_featviz.schema import Count, SchemaError, checked_state

from .account import Account
from .history import Finding, Sample, as_plain, read_lines
from .rules import KINDS, RULES, Memory, Rule, Seen
from .rules.broken import first_broken

_WRITTEN = 5  # names in a text
Globs: TypeAlias = str | Sequence[str]


def read_findings(folder: str | os.PathLike[str]) -> list[Finding]:
    """What a `Monitor` found and wrote to a folder from which `History.load` reads its samples.

    Raises:
        FileError: as for `History.load`.
    """
    return [finding for line in read_lines(Path(folder)) for finding in line.findings]


@dataclass
class FindingsState:
    """What `Findings.state_dict` returns."""

    found: list[Finding]
    rows: list[dict[str, list[Count]]]  # one for each rule
    memory: Memory
    broken: bool

    def __post_init__(self) -> None:
        if len(self.rows) != len(RULES):
            raise SchemaError(f"a list of {len(RULES)}, one for each rule, got {len(self.rows)}", ".rows")
        lists: dict[str, tuple[int, Iterable[Sequence[float]]]] = {
            ".rows": (2, (row for rows in self.rows for row in rows.values())),
            ".memory.rates": (2, self.memory.rates.values()),
            ".memory.ranges": (2, self.memory.ranges.values()),
            ".memory.curve": (3, self.memory.curve),
        }
        for name, (length, several) in lists.items():
            if any(len(each) != length for each in several):
                raise SchemaError(f"made of lists of {length} numbers, got one of another length", name)


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
        known = checked_state(FindingsState, state)
        self._found, self._rows, self._memory, self._broken = known.found, known.rows, known.memory, known.broken

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
