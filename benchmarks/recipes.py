"""Train healthy and broken networks, and ask what a Monitor says of each: told, missed or falsely alarmed.

    pip install -e '.[test]' && python benchmarks/recipes.py --file benchmarks/recipes.md

The seeds are drawn when it runs, and printed; `--seed 1 2 3` repeats a run. All data are made here or come with
scikit-learn. The exit code is 1 where a healthy recipe is called broken, where more than a tenth of the broken ones is
missed, where training that trains almost nothing is not told at the first look, or where a recipe is not what it says.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Sequence
from datetime import date
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

if not __package__:
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.recipes_harness import RECIPES, faults, run_all, table, verdicts, with_twins

HALVES = {
    "first": ("benchmarks.recipes_broken", "benchmarks.recipes_healthy"),
    # written after the rules of the Monitor
    "held_out": ("benchmarks.recipes_held_out_broken", "benchmarks.recipes_held_out_healthy"),
    # written after the rules had been mended by the second half
    "third": ("benchmarks.recipes_third",),
    # written when the rules stood, by somebody who had not read them
    "fourth": ("benchmarks.recipes_fourth_broken", "benchmarks.recipes_fourth_healthy"),
    # written when the rules stood, again by somebody who had not read them
    "fifth": ("benchmarks.recipes_fifth_broken", "benchmarks.recipes_fifth_healthy"),
}


def load(half: str) -> list[str]:
    """Import the recipes of a part, `"first"` to `"fifth"` as in `HALVES`, or of `"all"`; their names, in order."""
    wanted = [module for name, modules in HALVES.items() if half in (name, "all") for module in modules]
    present = [module for module in wanted if find_spec(module) is not None]
    for module in (*HALVES["first"], *present):  # the first half, too, for its twins
        importlib.import_module(module)
    return [name for name, recipe in RECIPES.items() if recipe.train.__module__ in present]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many are drawn (%(default)s)")
    parser.add_argument("--seed", type=int, nargs="+", help="these instead")
    parser.add_argument("--only", default="*", metavar="GLOB", help="recipes by name, with the twins they need")
    parser.add_argument("--half", choices=[*HALVES, "all"], default="all", help="(%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--file", type=Path, help="where the table is written as well")
    arguments = parser.parse_args(argv)
    seeds = arguments.seed or [int.from_bytes(os.urandom(3), "big") for _ in range(arguments.seeds)]
    wanted = with_twins(RECIPES[name] for name in load(arguments.half) if fnmatchcase(name, arguments.only))
    if not wanted:
        parser.error(f"no recipe is called {arguments.only!r}; there are {', '.join(RECIPES)}.")
    only = "" if arguments.only == "*" else f" --only '{arguments.only}'"
    command = f"python benchmarks/recipes.py --half {arguments.half}{only} --seed {' '.join(map(str, seeds))}"
    print(f"{len(wanted)} recipes; {command}", flush=True)
    began = perf_counter()
    found = verdicts(run_all(wanted, seeds, arguments.jobs), RECIPES)
    about = (
        f"`{command}`, {date.today()}, Python {platform.python_version()}, torch {torch.__version__}, on a CPU; "
        f"{perf_counter() - began:.0f} s with {arguments.jobs} processes."
    )
    wrong = faults(found)
    lines = ["## What is wrong", "", *(f"- {line}" for line in wrong or ["nothing"])]
    page = "\n".join(["# What a Monitor says of healthy and of broken trainings", "", about, "", LEGEND, ""])
    page += "\n".join(["", table(found), "", *lines, ""])
    print(page)
    if arguments.file:
        arguments.file.write_text(page)
    return 1 if wrong else 0


LEGEND = """\
A cell: told (right kind and layer, in time), late, wrong (only something else was said), missed; quiet, or a false \
alarm; then the step after which it was said, the kind, and what is named. "also" are findings of other kinds beside \
the right one. "did not learn" and "not broken" are faults of a recipe, not of the Monitor."""


if __name__ == "__main__":
    raise SystemExit(main())
