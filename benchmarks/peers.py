"""Capture beside its peers, in one run: what it costs, and whether what comes back is right.

pip install -e '.[peers]' && python benchmarks/peers.py --out benchmarks/peers.md
"""

import argparse
import copy
import os
import platform
import sys
import warnings
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if not __package__:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.traps import TRAPS, attempt, judge, leaves, once_compiled
from benchmarks.ways import FUNCTIONAL, FX_COMPILED, OURS, PEERS, Way, all_kept
from torch_featviz.bench import added, paired
from torch_featviz.zoo import card

TINY = 200
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str | None]] = {
    "AlexNet": (torchvision.models.alexnet, (1, 3, 224, 224), "features.0"),
    "CifarCNN": (card("cifar_cnn_large").build, (1, 3, 32, 32), None),
    "ResNet-18": (torchvision.models.resnet18, (1, 3, 224, 224), "layer1"),
    f"{TINY} tiny layers": (lambda: nn.Sequential(*(nn.ReLU() for _ in range(TINY))), (1, 8), None),
}


class Cell(NamedTuple):
    """One way in one column: what it cost, least to most, and whether it was right."""

    text: str
    cost: tuple[float, float, float] | None = None
    right: bool = False

    def __str__(self) -> str:
        return self.text


Table = dict[str, dict[Way, Cell]]  # column -> way -> cell


def sharing(model: nn.Module) -> nn.Module:
    """A copy of the modules on the same weights, so that no way meets another's hooks, nor colder memory."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()})


def rounds_for(seconds: float, *calls: Callable[[], object]) -> int:
    """As many as fit, warmed up; an interval wants fifteen."""
    for call in calls:
        call()
    start = perf_counter()
    for call in calls:
        call()
    return max(15, min(801, int(seconds / (perf_counter() - start))))


def measure(way: Way, bare: nn.Module, x: Tensor, layers: list[str], seconds: float, *, early: bool = False) -> Cell:
    verdict = judge(way, sharing(bare), x, layers, early=early)
    with (way.early if early and way.early else way.enter)(sharing(bare), x, layers) as run:
        rounds = rounds_for(seconds, run.call, lambda: bare(x))
        if len(layers) == TINY:
            cost = added(lambda: bare(x), run.call, rounds=rounds)[0]
            text = cost.micro(TINY).removesuffix(" us")
        else:
            cost = paired(run.call, lambda: bare(x), rounds=rounds)
            text = str(cost)
    notes = [verdict] + (["does not stop"] if early and not way.early else [])
    return Cell(f"{text}; {', '.join(notes)}", tuple(cost), verdict == "right")


def compare(ways: tuple[Way, ...], seconds: float) -> Table:
    """Every way against the bare forward, on all leaves of each net, and on one early layer."""
    table: Table = {}
    for name, (build, size, first) in NETS.items():
        torch.manual_seed(0)
        bare, x = build().eval(), torch.randn(size)
        unit = "added us a layer" if name.startswith(str(TINY)) else "to bare"
        asked = {f"{name}, all leaves, {unit}": (leaves(bare), False)}
        if first:
            asked[f"{name}, {first} only, {unit}"] = ([first], True)
        for column, (layers, early) in asked.items():
            question = partial(measure, bare=bare, x=x, layers=layers, seconds=seconds, early=early)
            table[column] = {way: answer(question, way) for way in ways}
    return table


def answer(question: Callable[[Way], Cell], way: Way) -> Cell:
    """What `question` says of `way`, or why it says nothing."""
    cells: list[Cell] = []
    problem = attempt(lambda way: cells.append(question(way)) or "", way)
    return cells[0] if cells else Cell(problem)


def not_first(table: Table) -> list[str]:
    """Where a right peer costs less than our best (set up anew: than ours set up anew), beyond both intervals."""
    lines = []
    for column, cells in table.items():
        ours = [(w, c) for w, c in cells.items() if w.package == "torch_featviz" and c.right]
        for way, peer in cells.items():
            rivals = [one for one in ours if way.kept or not one[0].kept]
            if way.package == "torch_featviz" or not peer.right or not rivals:
                continue
            our, mine = min(rivals, key=lambda one: one[1].cost)
            if peer.cost[2] < mine.cost[1]:
                lines.append(f"- {column}: {way.name} {peer}; {our.name} {mine}")
    return lines


class Functional(nn.Module):
    """The large CifarCNN's convolutions; all between them are functions."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 32, 64, 128, 128, 256, 256)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(sizes))
        self.fc1, self.fc2 = nn.Linear(4096, 1024), nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs[::2], self.convs[1::2], strict=True):
            x = F.relu(first(x))
            x = F.max_pool2d(F.relu(second(x)) + x.mean(1, keepdim=True), 2)
        return self.fc2(torch.tanh(self.fc1(x.view(x.shape[0], 4096))))


class Functions(TorchFunctionMode):
    """The oracle for functional calls: clones of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        value = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in {"relu", "max_pool2d", "tanh", "view", "add", "__add__"}:
            self.seen.append(value.clone())
        return value


def functional(seconds: float) -> Table:
    """What functional calls return: the cost, how many are found in what was kept, and how far ours is ahead."""
    torch.manual_seed(0)
    bare, x = Functional().eval(), torch.randn(1, 3, 32, 32)
    with Functions() as expected:
        bare(x)

    def ask(way: Way) -> Cell:
        with way.enter(sharing(bare), x, []) as run:
            kept = [value for value in all_kept(way, run, run.call()) if isinstance(value, Tensor)]
            found = sum(any(torch.equal(one, value) for value in kept) for one in expected.seen)
            ratio = paired(run.call, lambda: bare(x), rounds=rounds_for(seconds, run.call, lambda: bare(x)))
        return Cell(f"{ratio}; {found} of {len(expected.seen)} found", tuple(ratio), found == len(expected.seen))

    def ahead(way: Way) -> Cell:
        if way.package == "torch_featviz":
            return Cell("–")
        ours = next(one for one in FUNCTIONAL if one.kept == way.kept)  # of the same kind
        with way.enter(sharing(bare), x, []) as theirs, ours.enter(sharing(bare), x, []) as run:
            rounds = rounds_for(seconds, theirs.call, run.call)
            their_cost, our_cost = added(lambda: bare(x), theirs.call, run.call, rounds=rounds)
        return Cell(f"{their_cost.median / our_cost.median:.3g} times")

    columns = {"functional calls, to bare": ask, "what it adds, to what torch_featviz of the same kind adds": ahead}
    return {name: {way: answer(question, way) for way in FUNCTIONAL} for name, question in columns.items()}


def matrix(table: Mapping[str, Mapping[Way, object]]) -> list[str]:
    """Ways down, columns across."""
    ways = list(next(iter(table.values())))
    rows = [[way.name, *(str(cells[way]) for cells in table.values())] for way in ways]
    return lines(["", *table], rows)


def traps(ways: tuple[Way, ...]) -> list[str]:
    """Traps down, ways across."""
    rows = [[trap, *(attempt(ask, way) for way in ways)] for trap, ask in TRAPS.items()]
    return lines(["", *(way.name for way in ways)], rows)


def lines(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":", 1)[1].strip() for line in info.open() if line.startswith("model name")), cpu)
    return f"{cpu}, {os.cpu_count()} cores seen, {torch.get_num_threads()} thread used"


PAGE = """\
# Capture and its peers, in one run

{day}; {machine}; {versions}.

    python benchmarks/peers.py --out benchmarks/peers.md

Batch 1, `no_grad`, evaluation mode. Each way takes turns with the bare forward on the same weights; median of the
ratios of neighbours in time, and its 95 % interval. Right is what equals, bit for bit, a clone taken in a hook; a layer
that ran twice lacks calls where only one of them was kept. While torchlens is measured the bare forward, too, runs on
the functions that it wraps.

{costs}

What one timed call does: {inside}.

## Functional calls (`F.relu`, `F.max_pool2d`, `torch.tanh`, `view`, `+`)

{functional}

## Traps

{traps}

Each is asked for a layer by its name; hooks and captum take the module found under that name.

## A model that was compiled and run before capturing began

{compiled}

## Where we are not first

Peers that are right and cost less than ours, beyond both intervals; what is set up anew for each forward is compared
with ours set up anew, the rest with our best.

{behind}
"""


def report(seconds: float) -> str:
    ways = OURS + PEERS
    costs, calls = compare(ways, seconds), functional(seconds)
    versions = {way.package: way.version for way in ways} | {"python": platform.python_version()}
    parts = {
        "costs": matrix(costs),
        "functional": matrix(calls),
        "traps": traps(ways),
        "compiled": matrix({"what comes": {way: attempt(once_compiled, way) for way in (*ways, FX_COMPILED)}}),
        "behind": not_first(costs | calls) or ["- nowhere in this run"],
    }
    return PAGE.format(
        day=date.today(),
        machine=machine(),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        inside="; ".join(f"{way.name}: {way.inside}" for way in ways),
        **{name: "\n".join(part) for name, part in parts.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("peers.md"))
    parser.add_argument("--seconds", type=float, default=2.5, help="for each measurement, about")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with torch.no_grad():
        text = report(arguments.seconds)
    print(text)
    aside = arguments.out.with_name(arguments.out.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(arguments.out)


if __name__ == "__main__":
    main()
