"""Recipes of trainings, what a Monitor said of each, and whether that was right.

A recipe is a function that trains a small network, watched, and returns its `Run`; `healthy` and `broken` register it.
Nothing is believed: a healthy recipe must lower its loss, and a broken one must fail to, or learn clearly less than its
healthy twin. Where that does not hold the suite is at fault, not the Monitor.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import random
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

import torch_featviz as fv

FIRST_LOOK = "first look"  # told before the second look is due, or with the first sample where that took longer
MISSED_SHARE = 0.1  # of the broken recipes: 3 of 30
WORSE = 1.5  # a broken recipe ends at so many times the loss of its healthy twin
SUITE_ERRORS = ("did not learn", "not broken", "failed")  # faults of a recipe, not of the Monitor
_SHOWN = 4  # names in a cell
_TEXT = 110  # letters of a text's beginning, and of its end


class Step:
    """What `Run.step` gives to the loop: `log(loss=...)`."""

    def __init__(self, run: Run, step: Any) -> None:
        self._run, self._step = run, step

    def log(self, **scalars: Any) -> None:
        """Hand scalars to the Monitor, and keep the loss as this run's curve."""
        self._step.log(**scalars)
        if "loss" in scalars:
            self._run.curve.append(float(torch.as_tensor(scalars["loss"]).detach()))


class Run:
    """One watched training: its Monitor, its curve, and each finding with the step after which it was told.

    Args:
        model: what is watched.
        every: as a user would set it for so short a run.
        options: of the Monitor.
    """

    def __init__(self, model: nn.Module, *, every: int, **options: Any) -> None:
        self.watch = fv.Monitor(model, every=every, **options)
        self.every, self.steps = every, 0
        self.curve: list[float] = []  # the loss, or what else has to fall
        self.told: list[Told] = []
        self.first_look = every  # the last step at which a finding is of the first look
        self._looked = False

    @contextmanager
    def step(self) -> Iterator[Step]:
        """Around one step of the training, as `Monitor.step`."""
        with self.watch.step() as step:
            yield Step(self, step)
        for finding in self.watch.findings[len(self.told) :]:
            self.told.append(Told(self.steps, finding.kind, tuple(finding.names), finding.text))
        if not self._looked and len(self.watch.history):
            self._looked, self.first_look = True, max(self.every, self.steps)
        self.steps += 1


@dataclass(frozen=True)
class Told:
    """A finding, and the step after which a user could read it."""

    at: int
    kind: str
    names: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Facts:
    """What one recipe gave with one seed: all that it is judged by."""

    recipe: str
    seed: int
    told: tuple[Told, ...] = ()
    first_look: int = 0
    start: float = math.nan  # mean of the first tenth of the curve
    end: float = math.nan  # mean of the last tenth
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Recipe:
    """A training, and what is right to say of it.

    Args:
        train: builds the network, trains it and returns the run; random numbers are seeded before.
        learns: of a healthy one: at the end the curve is at most so many times its start.
        allowed: of a healthy one: kinds that are no false alarm, where it may be argued about.
        kinds: of a broken one: a finding of any of these is right, if it names the right thing.
        names: globs of layers or parameters, of which one must be named; a layer stands for its parameters, too.
            None: any.
        by: the last step at which telling it is in time, `FIRST_LOOK`, or None for any time.
        nothing_trained: one of those that must be told at the first look, whatever else is missed.
        stays: broken, as at the end the curve is at least so many times its start.
        twin: broken, as its end is at least `worse` times that of this healthy recipe with the same seed.
        unchecked: why neither can be asked.
    """

    name: str
    family: str
    train: Callable[[], Run]
    broken: bool = False
    learns: float = math.nan
    allowed: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    by: int | str | None = None
    nothing_trained: bool = False
    stays: float | None = None
    twin: str | None = None
    worse: float = WORSE
    unchecked: str = ""

    @property
    def about(self) -> str:
        """The first line of its docstring."""
        return (self.train.__doc__ or "").strip().partition("\n")[0]

    def facts(self, seed: int) -> Facts:
        """Train it once, and keep what was said."""
        torch.set_num_threads(1)
        for seeded in (torch.manual_seed, np.random.seed, random.seed):
            seeded(seed)
        began = perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run = self.train()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
            return Facts(self.name, seed, error=text, seconds=perf_counter() - began)
        tenth = max(1, len(run.curve) // 10)
        start, end = (float(np.mean(part)) for part in (run.curve[:tenth], run.curve[-tenth:]))
        return Facts(self.name, seed, tuple(run.told), run.first_look, start, end, perf_counter() - began)


RECIPES: dict[str, Recipe] = {}  # all that were imported, in their order


def _register(recipe: Recipe) -> Callable[[], Run]:
    if recipe.name in RECIPES and RECIPES[recipe.name].train.__module__ != recipe.train.__module__:
        raise ValueError(f"two recipes are called {recipe.name!r}.")
    RECIPES[recipe.name] = recipe
    return recipe.train


def healthy(family: str, *, learns: float, allowed: str = "") -> Callable[[Callable[[], Run]], Callable[[], Run]]:
    """Register a recipe of which nothing should be said, or nothing but the `allowed` kinds, separated by spaces."""
    kinds = tuple(allowed.split())
    return lambda train: _register(Recipe(train.__name__, family, train, learns=learns, allowed=kinds))


def broken(
    family: str, kinds: str, names: str | None = None, **options: Any
) -> Callable[[Callable[[], Run]], Callable[[], Run]]:
    """Register a recipe that is broken on purpose; `kinds` and `names` are separated by spaces."""
    if sum(options.get(check) not in (None, "") for check in ("stays", "twin", "unchecked")) != 1:
        raise ValueError("give one of stays=, twin= and unchecked=: how is it known that this is broken?")
    globs = None if names is None else tuple(names.split())
    return lambda train: _register(
        Recipe(train.__name__, family, train, broken=True, kinds=tuple(kinds.split()), names=globs, **options)
    )


# Judging


@dataclass(frozen=True)
class Verdict:
    """What came of one recipe with one seed.

    States of a healthy one: quiet, false, did not learn. Of a broken one: told, late, wrong (something else was said
    instead), missed, not broken. Of either: failed.
    """

    recipe: Recipe
    facts: Facts
    state: str
    right: Told | None = None
    others: tuple[Told, ...] = ()
    note: str = ""


def judge(recipe: Recipe, facts: Facts, twin: Facts | None = None) -> Verdict:
    """Hold what was said against what is right to say."""
    if facts.error:
        return Verdict(recipe, facts, "failed", note=facts.error)
    curve = f"{facts.start:.3g} -> {facts.end:.3g}"
    if not recipe.broken:
        if not facts.end <= recipe.learns * facts.start:
            return Verdict(recipe, facts, "did not learn", others=facts.told, note=curve)
        alarms = [told for told in facts.told if told.kind not in recipe.allowed]
        return Verdict(recipe, facts, "false" if alarms else "quiet", others=facts.told)
    if works := _works(recipe, facts, twin):
        return Verdict(recipe, facts, "not broken", others=facts.told, note=f"{curve}, {works}")
    right = [told for told in facts.told if told.kind in recipe.kinds and _named(recipe, told)]
    if not right:
        return Verdict(recipe, facts, "wrong" if facts.told else "missed", others=facts.told)
    first = min(right, key=lambda told: told.at)
    others = tuple(told for told in facts.told if told.kind not in recipe.kinds)
    return Verdict(recipe, facts, "told" if _in_time(recipe, facts, first) else "late", first, others)


def _works(recipe: Recipe, facts: Facts, twin: Facts | None) -> str:
    """Why a recipe that should be broken is not; empty where it is."""
    if not math.isfinite(facts.end):
        return ""
    if recipe.stays is not None and facts.end < recipe.stays * facts.start:
        return f"below {recipe.stays:g} of its start"
    if recipe.twin and twin is not None and not twin.error and facts.end < recipe.worse * twin.end:
        return f"below {recipe.worse:g} times {twin.end:.3g} of {recipe.twin}"
    return ""


def _named(recipe: Recipe, told: Told) -> bool:
    if recipe.names is None:
        return True
    globs = [each for glob in recipe.names for each in (glob, f"{glob}.*")]
    return any(fnmatchcase(name, glob) for name in told.names for glob in globs)


def _in_time(recipe: Recipe, facts: Facts, told: Told) -> bool:
    return recipe.by is None or told.at <= (facts.first_look if recipe.by == FIRST_LOOK else int(recipe.by))


def verdicts(facts: Iterable[Facts], recipes: Mapping[str, Recipe]) -> list[Verdict]:
    """One for each of the facts; twins are found by recipe and seed."""
    known = {(each.recipe, each.seed): each for each in facts}
    return [
        judge(recipes[name], each, known.get((recipes[name].twin or "", seed))) for (name, seed), each in known.items()
    ]


def faults(found: Sequence[Verdict]) -> list[str]:
    """Why this table is not good enough; empty where it is."""
    lines = [f"{_title(each)}: {each.state} {each.note}".rstrip() for each in found if each.state in SUITE_ERRORS]
    lines += [f"{_title(each)}: false alarm, {_cell(each.others)}" for each in found if each.state == "false"]
    lines += [
        f"{_title(each)}: almost nothing is trained, and that was not told at the first look"
        for each in found
        if each.recipe.nothing_trained and each.state not in ("told", *SUITE_ERRORS)
    ]
    all_broken, missed = _broken_and_missed(found)
    if len(missed) > MISSED_SHARE * len(all_broken):
        lines.append(f"{len(missed)} of {len(all_broken)} broken recipes are not told: {', '.join(missed)}")
    return lines


def _broken_and_missed(found: Sequence[Verdict]) -> tuple[list[str], list[str]]:
    """Broken recipes, and those that were not told in time with each seed."""
    all_broken = list(dict.fromkeys(each.recipe.name for each in found if each.recipe.broken))
    states = {name: {each.state for each in found if each.recipe.name == name} for name in all_broken}
    return all_broken, [name for name in all_broken if states[name] & {"late", "wrong", "missed"}]


def _title(verdict: Verdict) -> str:
    return f"{verdict.recipe.name}, seed {verdict.facts.seed}"


# Running


def work(module: str, name: str, seed: int) -> Facts:
    """In a process of its own."""
    importlib.import_module(module)
    return RECIPES[name].facts(seed)


def with_twins(wanted: Iterable[Recipe]) -> list[Recipe]:
    """All of them, and the healthy twins that they are held against."""
    wanted = list(wanted)
    twins = [RECIPES[recipe.twin] for recipe in wanted if recipe.twin]
    return list({recipe.name: recipe for recipe in (*wanted, *twins)}.values())


def run_all(wanted: Sequence[Recipe], seeds: Sequence[int], jobs: int) -> list[Facts]:
    """Train each recipe with each seed, in worker processes; facts in the order of recipes and seeds."""
    known: dict[tuple[str, int], Facts] = {}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(work, each.train.__module__, each.name, seed) for each in wanted for seed in seeds]
        for done in as_completed(tasks):
            facts = done.result()
            known[facts.recipe, facts.seed] = facts
    return [known[recipe.name, seed] for recipe in wanted for seed in seeds]


# The table


def table(found: Sequence[Verdict]) -> str:
    """Broken recipes, healthy ones, and the totals, as Markdown."""
    seeds = list(dict.fromkeys(each.facts.seed for each in found))
    parts = []
    for title, is_broken in (("Broken", True), ("Healthy", False)):
        rows = [each for each in found if each.recipe.broken is is_broken]
        head = ["recipe", "family", *(f"seed {seed}" for seed in seeds), "said"]
        lines = [f"## {title}", "", _row(head), _row(["---"] * len(head))]
        for name in dict.fromkeys(each.recipe.name for each in rows):
            lines.append(_recipe_row([each for each in rows if each.recipe.name == name], seeds))
        parts += ["\n".join(lines)] if rows else []
    return "\n\n".join([*parts, totals(found)])


def totals(found: Sequence[Verdict]) -> str:
    """Counts of each state, and of the recipes."""
    states = [each.state for each in found]
    all_broken, missed = _broken_and_missed(found)
    nothing = [each for each in found if each.recipe.nothing_trained]
    early = sum(each.state == "told" for each in nothing)
    sound = {each.recipe.name for each in found if not each.recipe.broken}
    false = {each.recipe.name for each in found if each.state == "false"}
    slowest = max(found, key=lambda each: each.facts.seconds)
    lines = [
        f"- Broken: {len(all_broken) - len(missed)} of {len(all_broken)} recipes told in time with every seed; runs: "
        + ", ".join(f"{states.count(state)} {state}" for state in ("told", "late", "wrong", "missed")),
        f"- Healthy: a false alarm in {len(false)} of {len(sound)} recipes; runs: "
        + ", ".join(f"{states.count(state)} {state}" for state in ("quiet", "false")),
        f"- Almost nothing trained: {early} of {len(nothing)} runs told at the first look",
        "- Faults of the suite: " + ", ".join(f"{states.count(state)} {state}" for state in SUITE_ERRORS),
        f"- Time: {sum(each.facts.seconds for each in found):.0f} s on one core, "
        f"at most {slowest.facts.seconds:.1f} s a run ({slowest.recipe.name})",
    ]
    return "\n".join(["## Totals", "", *lines])


def _recipe_row(rows: Sequence[Verdict], seeds: Sequence[int]) -> str:
    by_seed = {each.facts.seed: each for each in rows}
    cells = [verdict_cell(by_seed[seed]) if seed in by_seed else "" for seed in seeds]
    said = [each.right or next(iter(each.others), None) for each in rows]
    text = next((shortened(told.text) for told in said if told is not None), "")
    recipe = rows[0].recipe
    return _row([f"`{recipe.name}`: {recipe.about}", recipe.family, *cells, text])


def verdict_cell(verdict: Verdict) -> str:
    """`told 30: dead 2.weight; also stopped 4.weight (30)`"""
    text = verdict.state if verdict.state in ("quiet", "told", "missed") else f"**{verdict.state}**"
    if verdict.right is not None:
        text += f" {_cell([verdict.right])}" + ("; also" if verdict.others else "")
    text += f" {_cell(verdict.others)}" if verdict.others else ""
    return text + (f" ({verdict.note})" if verdict.note else "")


def _cell(told: Iterable[Told]) -> str:
    return ", ".join(f"{each.at}: {each.kind} {_names(each.names)}".rstrip() for each in told)


def _names(names: Sequence[str]) -> str:
    more = f" +{len(names) - _SHOWN}" if len(names) > _SHOWN else ""
    return " ".join(names[:_SHOWN]) + more


def shortened(text: str) -> str:
    """The beginning and the end, where the advice is."""
    return text if len(text) <= 2 * _TEXT + 3 else f"{text[:_TEXT].rstrip()} … {text[-_TEXT:].lstrip()}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"
