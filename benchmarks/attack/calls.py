"""Give odd arguments to every public call, and count how each call ends.

    python benchmarks/attack/calls.py --calls 20000 --seed 0
    python benchmarks/attack/calls.py --only tile --calls 500
    python benchmarks/attack/calls.py --each --calls 100000
    python benchmarks/attack/calls.py --seed 0 --first 1234 --calls 1 --trace      # one call again

The calls are read from `fv.__all__` and docs/api.rst: functions, classes and their public methods; and from the parser
of `featviz`: each command with its options. What is added later is in it. Arguments are valid by the name of the
parameter; one or two of them are then replaced by odd values. An outcome is fine, one of our errors, a TypeError of
Python for a missing or unknown argument, the model's own error (raised in the `forward` of the model that was given, or
in a function that was given), or WRONG: any other error, a command that ends in another way than it says, more than
20 s of a processor (120 s where a network is trained or much is drawn; six times as long in all), more than 1 GB, a
process that died.

Each call runs in a process with a limit of memory, which is made anew after a call that went wrong.
"""

from __future__ import annotations

import argparse
import enum
import inspect
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import resource
import socket
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from numbers import Integral, Real
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torch_featviz as fv

sys.path.insert(0, str(Path(__file__).parent))
import words
from arguments import INSTANCES, ODD, SLOW, WORK, after, valid

SECONDS, GROWTH = 20, 2**30
KINDS: dict[type | tuple[type, ...], str] = {
    (torch.Tensor, np.ndarray): "Tensor|Target|Any",
    Integral: "int|bool|Target",
    Real: "float",
    str: "str|Layers|OneOrMore|ValueRange|Path|PathLike",
    (Sequence, set): "Sequence|tuple|list|Iterable|Loader|Target|Layers|OneOrMore",
    Mapping: "Mapping|dict|ValueRange",
    torch.nn.Module: "Module|Layers|OneOrMore|Callable|Views",
    types.FunctionType: "Callable|Views|Criterion|ValueRange|Target",
}
LOGGED = ("WRONG", "model's own")
OURS = str(Path(fv.__file__).parent)
API = Path(__file__).parents[2] / "docs" / "api.rst"
PASSES = ("__torch_dispatch__", "either")  # functions of ours in which an operator of a model runs, for the model
PYTHONS = re.compile(r"missing \d+ required|unexpected keyword|positional argument|multiple values for|takes no arg")


def targets() -> dict[str, Callable[[], Callable[..., Any]]]:
    """Each public call, by name, and how to get it; of a method, with a new instance."""
    found: dict[str, Callable[[], Callable[..., Any]]] = {}
    for name, value in sorted(public().items()):
        if inspect.isclass(value):
            if issubclass(value, (BaseException, enum.Enum)):
                continue
            found[name] = lambda value=value: value
            if name.split(".")[-1] in INSTANCES:
                make = INSTANCES[name.split(".")[-1]]
                for method in (m for m in vars(value) if own(value, m) and not m.startswith("_")):
                    found[f"{name}().{method}"] = lambda make=make, method=method: getattr(make(), method)
                if own(value, "__call__") or own(value, "forward"):
                    found[f"{name}().__call__"] = lambda make=make: make().__call__
        elif callable(value):
            found[name] = lambda value=value: value
    return found | words.targets()


def public() -> dict[str, Any]:
    """All that can be called in `fv.__all__`, in its modules there, and in the documentation; each once."""
    names = [*fv.__all__, *re.findall(r"^\.\. auto(?:class|function):: torch_featviz\.(\S+)", API.read_text(), re.M)]
    for name in fv.__all__:
        module = getattr(fv, name)
        if inspect.ismodule(module) and not callable(module):
            names += [f"{name}.{key}" for key in getattr(module, "__all__", ())]
    values = {name: attrgetter(name)(fv) for name in names}
    once = {id(value): name for name, value in reversed(values.items()) if callable(value)}
    return {name: values[name] for name in once.values()}


def own(kind: type, method: str) -> bool:
    """Whether this package defines it, as a function."""
    value = getattr(kind, method, None)
    module = getattr(value, "__module__", "") or ""
    return isinstance(value, (types.FunctionType, types.MethodType)) and module.startswith("torch_featviz")


def parameters(name: str, call: Callable[..., Any]) -> list[inspect.Parameter]:
    function = (
        call.__self__.forward if name.endswith("().__call__") and isinstance(call.__self__, torch.nn.Module) else call
    )
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:
        return []


def cases(found: dict[str, Any], seed: int) -> list[str]:
    """Each odd value for each parameter of each call, as "call: parameter=value", in random order."""
    made = [
        f"{name}: {p.name}={label}"
        for name, make in found.items()
        if not name.startswith("featviz ") and SLOW.get(name, 0) < 0.9
        for p in parameters(name, make())
        if p.kind is not p.VAR_KEYWORD
        for label in ODD
        if label != "2**31" or p.name not in WORK
    ]
    random.Random(seed).shuffle(made)
    return made


def arguments(
    name: str, call: Callable[..., Any], rng: random.Random, case: str = ""
) -> tuple[list[Any], dict[str, Any], list[str]]:
    """Positional and keyword arguments, and what is odd about them: one or two, or that of a case."""
    if name.startswith("featviz "):
        typed, odd_words = words.words(name.removeprefix("featviz "), rng)
        return [typed], {}, odd_words
    args: list[Any] = []
    keywords: dict[str, Any] = {}
    chosen = [p for p in parameters(name, call) if p.kind is not p.VAR_KEYWORD]
    names = [p.name for p in chosen]
    odd = dict.fromkeys(rng.sample(names, min(len(names), 1 + (rng.random() < 0.3))), "")
    if case:
        odd = dict([case.split("=", 1)])
    for p in chosen:
        required = p.default is p.empty
        if p.kind is p.VAR_POSITIONAL:
            some = [valid(name, p, rng) for _ in range(rng.choice((0, 1, 1, 2)))]
            some = [value for value in some if value is not p.empty]
            if p.name in odd:
                some += [strange(odd, p, rng)]
            if not keywords:
                args += some
        elif p.name in odd:
            put(args, keywords, p, strange(odd, p, rng))
        elif required or p.name in WORK or rng.random() < 0.25:
            value = valid(name, p, rng)
            if value is not p.empty:
                put(args, keywords, p, value)
            elif required:
                put(args, keywords, p, strange(odd, p, rng))
    if not case and rng.random() < 0.02:
        odd["unknown argument"], keywords["no_such_argument"] = "1", 1
    return args, keywords, [f"{key}={label}" for key, label in odd.items() if label]


def put(args: list[Any], keywords: dict[str, Any], p: inspect.Parameter, value: Any) -> None:
    if p.default is p.empty and p.kind is not p.KEYWORD_ONLY and not keywords:
        args.append(value)
    else:
        keywords[p.name] = value


def strange(odd: dict[str, str], p: inspect.Parameter, rng: random.Random) -> Any:
    """An odd value; every other one of a kind that the parameter takes, which gets past the gate."""
    labels = [label for label in ODD if label != "2**31" or p.name not in WORK]
    near = [label for label in labels if any(kind.search(str(p.annotation)) for kind in kinds_of(label))]
    odd[p.name] = odd.get(p.name) or rng.choice(near if near and rng.random() < 0.5 else labels)
    return ODD[odd[p.name]]()


@cache
def kinds_of(label: str) -> list[re.Pattern[str]]:
    """What annotations of such a value look like."""
    value = ODD[label]()
    found = [words for kinds, words in KINDS.items() if isinstance(value, kinds)]
    return [re.compile(rf"\b({words})\b") for words in found]


def outcome(error: BaseException | None, command: bool = False) -> str:
    if error is None:
        return "fine"
    if command:  # which says in words what is wrong
        return "ours" if isinstance(error, words.Told) else "WRONG"
    if isinstance(error, (fv.FeatvizError, fv.errors.FeatvizWarning)):
        return "ours"
    if isinstance(error, TypeError) and PYTHONS.search(str(error)):
        return "python's"
    frames = [(frame.f_code.co_filename, frame.f_code.co_name) for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [i for i, (file, function) in enumerate(frames) if file.startswith(OURS) and function not in PASSES]
    last = max(ours, default=len(frames))
    after_ours = frames[last + 1 :]
    if any(function in ("_call_impl", "forward") or "attack" in file for file, function in after_ours):
        return "model's own"
    return "WRONG"


def chosen(names: list[str], rng: random.Random, number: int) -> str:
    """The name of a call, of slow ones more seldom; of cases that of the number."""
    if ": " in names[0]:
        return names[number % len(names)]
    name = rng.choice(names)
    return rng.choice(names) if rng.random() < SLOW.get(name, 0) else name


def one(names: list[str], found: dict[str, Any], seed: int, number: int, trace: bool = False) -> dict[str, Any]:
    """Make the call of that number and say how it ended."""
    rng = random.Random(f"{seed} {number}")
    torch.manual_seed(number)
    name, _, case = chosen(names, rng, number).partition(": ")
    error: BaseException | None = None
    odd: list[str] = []
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call = found[name]()
    args, keywords, odd = arguments(name, call, rng, case)
    called = False
    try:
        result = call(*args, **keywords)
        called = True
        after(result)
    except (Exception, SystemExit) as caught:
        error = caught
        if trace:
            traceback.print_exc()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    how = "WRONG" if grown > GROWTH else outcome(error, name.startswith("featviz "))
    how = "WRONG" if called and how == "python's" else how  # an argument that is missing is told by the call
    what = "grew" if grown > GROWTH else type(error).__name__ if error else ""
    where = place(error) if error is not None and how in LOGGED else ""
    return {
        "number": number,
        "name": name,
        "odd": odd,
        "how": how,
        "what": what,
        "where": where,
        "text": str(error)[:150] if error else "",
        "seconds": round(time.perf_counter() - start, 3),
    }


def place(error: BaseException) -> str:
    """The last line of this package that the error passed, and where it was raised, if elsewhere."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{Path(f.filename).relative_to(OURS)}:{f.lineno}" for f in frames if f.filename.startswith(OURS)]
    last = frames[-1]
    there = "" if last.filename.startswith(OURS) else f" > {Path(last.filename).name}:{last.name}"
    return (ours[-1] if ours else "") + there


def offline() -> None:
    """Nothing is downloaded, and nobody waits for a name server."""

    def refuse(*_args: object, **_keywords: object) -> None:
        raise OSError("no network here")

    socket.getaddrinfo = refuse  # type: ignore[assignment]


def worker(pipe: Any, names: list[str], seed: int, numbers: range) -> None:
    os.chdir(tempfile.mkdtemp(prefix="calls"))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + 3 * GROWTH,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**28, 2**28))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # makes a pool of threads; in a fork, those of autograd would do it at once, and fail
    offline()
    found = targets()
    for number in numbers:
        pipe.send(one(names, found, seed, number))
    pipe.send(None)


def answers(pipe: Any, process: int, seconds: float) -> bool:
    """Whether there is an answer before the process has used so many seconds, or waited six times as long."""
    begun, start = used(process), time.monotonic()
    while not pipe.poll(0.5):
        if used(process) - begun > seconds or time.monotonic() - start > 6 * seconds:
            return False
    return True


def used(process: int) -> float:
    """Seconds of a processor that a process has used."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def results(names: list[str], seed: int, numbers: range) -> Iterator[dict[str, Any]]:
    """How each call ended; a process that hangs or dies is replaced."""
    context, at = multiprocessing.get_context("fork"), numbers.start
    while at < numbers.stop:
        some = range(at, min(at + 400, numbers.stop))
        pipe, theirs = context.Pipe(duplex=False)
        process = context.Process(target=worker, args=(theirs, names, seed, some), daemon=True)
        process.start()
        theirs.close()
        while True:
            name, _, _ = chosen(names, random.Random(f"{seed} {at}"), at).partition(": ")
            try:
                done = pipe.recv() if answers(pipe, process.pid, 6 * SECONDS if name in SLOW else SECONDS) else "hung"
            except EOFError:
                done = "died"
            if done is None:
                break
            if isinstance(done, str):
                process.kill()
                done = {"number": at, "name": name, "odd": [], "how": "WRONG", "what": done, "where": "", "text": ""}
                yield done
                at += 1
                break
            yield done
            at += 1
        process.kill()
        process.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; the table says how many")
    parser.add_argument("--each", action="store_true", help="each odd value for each parameter, one at a time")
    parser.add_argument("--only", help="calls whose name is this, or begins with it and a dot, bracket or space")
    parser.add_argument("--trace", action="store_true", help="run in this process and print tracebacks")
    parser.add_argument(
        "--log", type=Path, help="write each call that went wrong, or in which the model did, a line of JSON each"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = targets()
    names = [n for n in found if not asked.only or re.match(rf"{re.escape(asked.only)}(?:$|[.( ])", n)]
    if not names:
        parser.error(f"no public call {asked.only!r}; there are {', '.join(found)}")
    if asked.each:
        names = cases({name: found[name] for name in names}, asked.seed)
        print(f"{len(names):,} cases", file=sys.stderr)
    numbers = range(asked.first, asked.first + asked.calls)
    if asked.trace:
        os.chdir(tempfile.mkdtemp(prefix="calls"))
        for number in numbers:
            print(json.dumps(one(names, found, asked.seed, number, trace=True)))
        return 0
    for name in ("captum.attr", "matplotlib.figure", "torchvision"):  # here, and not in each process
        import_module(name)
    end = time.monotonic() + 60 * asked.minutes
    done = itertools.takewhile(lambda _: time.monotonic() < end, results(names, asked.seed, numbers))
    return report(done, len(names), asked.log)


def report(done: Iterator[dict[str, Any]], calls: int, log: Path | None) -> int:
    how, by_name, wrong, took = Counter(), {}, Counter(), Counter()
    for result in done:
        how[result["how"]] += 1
        took[result["name"]] += result.get("seconds", 0)
        if how.total() % 1000 == 0:
            print(f"{how.total():,} calls, {how['WRONG']} wrong", file=sys.stderr, flush=True)
        by_name.setdefault(result["name"], Counter())[result["how"]] += 1
        if result["how"] == "WRONG":
            wrong[result["name"], result["what"], result["where"]] += 1
        if result["how"] in LOGGED and log:
            with log.open("a") as file:
                file.write(json.dumps(result) + "\n")
    kinds = ("fine", "ours", "python's", "model's own", "WRONG")
    print(f"{'call':40} " + " ".join(f"{kind:>11}" for kind in kinds) + "   seconds")
    for name, counts in sorted(by_name.items()):
        print(f"{name:40} " + " ".join(f"{counts[kind]:11}" for kind in kinds) + f"{took[name]:10.1f}")
    whole = f"all {how.total():,}, of {len(by_name)} of {calls}"
    print(f"{whole:40} " + " ".join(f"{how[kind]:11}" for kind in kinds) + f"{took.total():10.1f}")
    for (name, what, where), count in wrong.most_common():
        print(f"WRONG {count:5} {name}: {what} {where}")
    return int(how["WRONG"] > 0)


if __name__ == "__main__":
    sys.exit(main())
