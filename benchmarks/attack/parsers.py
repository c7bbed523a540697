"""Fuzz every parser of what is read back or typed, guided by coverage, and keep what reached something new.

    pip install atheris                                              # needed for this alone
    python benchmarks/attack/parsers.py --list
    python benchmarks/attack/parsers.py history --minutes 5          # of a processor
    python benchmarks/attack/parsers.py --minutes 60                 # all of them, each its share
    python benchmarks/attack/parsers.py history --replay             # its corpus, without atheris
    python benchmarks/attack/parsers.py --table                      # what all runs together have tried

A parser may return a value or raise one of our errors. Any other exception, more than 10 s, more than 1 GB, or a
process that dies is a crash: it is written to `--crashes`, once for each place in the code, and the exit code is 1.

Only `torch_featviz` is instrumented (and Pillow's Python code, for images). Bytes say what is changed of a good file,
see `script.py`. The smallest inputs that reach all that was reached are kept in `corpus/PARSER.txt`, a line of base64
each, and what once went wrong in `corpus/found.txt`; the tests replay both. A run begins with these, and adds its
minutes and inputs to `corpus/figures.json`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
FIGURES, FOUND = CORPUS / "figures.json", CORPUS / "found.txt"
SECONDS, GROWTH = 10, 2**30
LONGEST = 400  # bytes of an input

Reader = Callable[[bytes], None]


class Parser(NamedTuple):
    """What is fuzzed.

    Args:
        what: is read.
        room: the file here with the function that makes the reader, which has the parser's name.
        share: of the minutes.
        reads: files of the package that it is there for; a test finds those that nobody fuzzes.
    """

    what: str
    room: str
    share: float
    reads: tuple[str, ...]


_HISTORY = ("training/history.py", "training/findings.py", "schema.py")
_STATE = ("training/state.py", "training/huggingface.py", "schema.py")
PARSERS = {
    "history": Parser("samples.jsonl of a run folder", "read_files", 5, _HISTORY),
    "run": Parser("a run folder that is gone on with", "read_files", 6, ("training/sinks/folder.py",)),
    "report": Parser("a run folder that is drawn", "read_files", 9, ("cli/commands.py", "atlas/learning.py")),
    "frame": Parser("a picture in a run folder", "read_files", 2, ("atlas/learning.py",)),
    "state": Parser("a monitor's state, as JSON", "read_files", 6, _STATE),
    "plain": Parser(
        "a monitor's state, as values", "read_files", 4, ("training/monitor.py", "training/noise/gradient.py")
    ),
    "resume": Parser("the resume file of a scan", "read_files", 6, ("survey/resume.py",)),
    "weights": Parser("a file of weights, .pt", "read_files", 5, ("zoo/weights.py", "zoo/card.py")),
    "safetensors": Parser("a file of weights, .safetensors", "read_files", 2, ("zoo/weights.py",)),
    "images": Parser("an image file", "read_files", 5, ("zoo/images.py", "zoo/data.py")),
    "demo": Parser("record and curves of a demo", "read_files", 2, ("demo/made.py", "demo/__init__.py")),
    "layers": Parser("names of layers and calls, globs", "read_words", 2, ("model/layers.py", "capture/asked.py")),
    "models": Parser("names of models", "read_words", 2, ("zoo/file_nets.py", "zoo/__init__.py")),
    "command": Parser("the words after featviz", "read_words", 4, ("cli/grammar.py", "cli/given.py")),
    "classes": Parser("labels and names of classes", "read_words", 2, ("model/labels.py", "model/names.py")),
    "text": Parser("text that is shown", "read_words", 2, ("printable.py", "picture/text.py")),
}
_PLUGINS = ("Png", "Tiff", "Jpeg", "Gif", "Bmp", "Ppm", "Tga", "Ico", "WebP")
BESIDE = ("PIL.Image", *(f"PIL.{name}ImagePlugin" for name in _PLUGINS))  # what is instrumented, too


def reader(name: str, folder: Path) -> Reader:
    """What reads bytes as this parser's input."""
    sys.path.insert(0, str(HERE))
    make: Callable[[Path], Reader] = getattr(import_module(PARSERS[name].room), name)
    return make(folder)


def place_of(error: BaseException) -> str:
    """The kind of an error, and the last line of our code that it came through."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if re.search("torch_featviz/|attack/read", f.filename)
    ]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "elsewhere"
    return f"{type(error).__name__} {where}"


class Hung(BaseException):
    """A parser has used too many seconds of a processor."""


def stop(*_: object) -> None:
    """Where a parser hangs."""
    raise Hung


def tried(read: Reader, data: bytes, ours: type[BaseException]) -> tuple[str, str]:
    """What is wrong with how a parser takes these bytes, and more about it; empty where nothing is."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(data)
    except ours as error:
        str(error).encode()
    except (Exception, Hung) as error:
        return place_of(error), "".join(traceback.format_exception(error)[-6:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return ("grown", f"{grown / 1e6:.0f} MB") if grown > GROWTH else ("", "")


def kept(name: str) -> list[bytes]:
    """The corpus of a parser, and what once went wrong."""
    file = CORPUS / f"{name}.txt"
    corpus = [base64.b64decode(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [*corpus, *(data for data in crashed(name) if data not in corpus)]


def crashed(name: str) -> list[bytes]:
    """What once went wrong with a parser."""
    lines = [line.split(" ") for line in FOUND.read_text().splitlines()] if FOUND.exists() else []
    return [base64.b64decode(data) for parser, data in lines if parser == name]


def replay(name: str) -> list[str]:
    """What is wrong with how a parser takes its corpus."""
    import torch_featviz as fv  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        read = reader(name, Path(folder))
        found = [(data, tried(read, data, fv.FeatvizError)) for data in kept(name)]
    return [f"{name} {data.hex()}: {place}\n{text}" for data, (place, text) in found if place]


class Figures(NamedTuple):
    """Of one parser."""

    minutes: float = 0.0  # of a processor
    inputs: int = 0  # that were tried
    edges: int = 0
    features: int = 0


def instrumented() -> None:
    """Import all that is fuzzed, with counters of what ran."""
    import atheris  # noqa: PLC0415

    with atheris.instrument_imports(include=list(BESIDE)):
        for module in BESIDE:
            import_module(module)
    for module in (
        "torch",
        "torchvision",
        "timm",
        "captum.attr",
        "matplotlib.pyplot",
        "torch.optim",
        "safetensors.torch",
    ):
        import_module(module)  # which are not instrumented
    import_module("torch").set_num_threads(1)
    sys.path.insert(0, str(HERE))
    with atheris.instrument_imports(include=["torch_featviz"]):
        import_module("torch_featviz")
        for room in {parser.room for parser in PARSERS.values()}:
            import_module(room)


def fuzz(name: str, crashes: Path, seconds: float, flags: list[str]) -> None:
    """Run libFuzzer in this process, which ends with it; crashes are written down and gone on from."""
    import atheris  # noqa: PLC0415

    fv = import_module("torch_featviz")
    read, seen = reader(name, Path(tempfile.mkdtemp(prefix=name))), set[str]()
    count, end = 0, time.process_time() + seconds

    def one(data: bytes) -> None:
        nonlocal count
        count += 1
        if time.process_time() > end:
            print(f"TIMES {count}", file=sys.stderr, flush=True)
            os._exit(0)
        place, text = tried(read, data, fv.FeatvizError)
        if place and place not in seen:
            seen.add(place)
            file = crashes / f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}.json"
            file.write_text(json.dumps({"place": place, "data": data.hex(), "text": text}, indent=1))

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + 4 * GROWTH,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**28, 2**28))
    atheris.Setup([name, *flags], one)
    atheris.Fuzz()


def forked(name: str, crashes: Path, work: Path, seconds: float, flags: list[str]) -> tuple[str, float]:
    """What a fuzzing process said, and the seconds of a processor that it used."""
    limits = ["-timeout=1200", "-report_slow_units=1200", "-rss_limit_mb=4096", f"-artifact_prefix={crashes}/{name}-"]
    crashes.mkdir(parents=True, exist_ok=True)
    said = work / "said"
    if not (child := os.fork()):
        with said.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            fuzz(name, crashes, seconds, [*limits, f"-max_len={LONGEST}", *flags])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    used = os.wait4(child, 0)[2]
    return said.read_text(errors="replace"), used.ru_utime + used.ru_stime


def fuzzed(name: str, minutes: float, crashes: Path) -> Figures:
    """Fuzz a parser, beginning with its corpus, and keep the smallest one that reaches as much."""
    runs = edges = features = 0
    spent, crashes = 0.0, crashes.absolute()
    with tempfile.TemporaryDirectory() as folder:
        work, corpus = Path(folder), Path(folder, "corpus")
        corpus.mkdir()
        for number, data in enumerate([b"", *kept(name)]):
            (corpus / str(number)).write_bytes(data)
        while spent < minutes:  # once, unless it dies
            said, used = forked(name, crashes, work, 60 * (minutes - spent), [str(corpus), "-len_control=20"])
            spent += used / 60
            if not (covered := re.findall(r"cov: (\d+) ft: (\d+)", said)):
                raise RuntimeError(said[-3000:])
            runs += int(re.findall(r"^(?:#|TIMES )(\d+)\s", said, re.MULTILINE)[-1])
            edges, features = map(int, covered[-1])
        inputs = smallest(name, crashes, work, corpus)
    CORPUS.mkdir(exist_ok=True)
    new = {bytes.fromhex(json.loads(file.read_text())["data"]) for file in crashes.glob(f"{name}-*.json")}
    with FOUND.open("a") as file:
        file.writelines(f"{name} {base64.b64encode(data).decode()}\n" for data in new.difference(crashed(name)))
    (CORPUS / f"{name}.txt").write_text("".join(base64.b64encode(data).decode() + "\n" for data in inputs))
    return Figures(spent, runs, edges, features)


def known() -> dict[str, Figures]:
    """What all runs together have tried, by parser."""
    plain = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    return {name: Figures(**figures) for name, figures in plain.items()}


def note(name: str, new: Figures) -> None:
    """Add a run to those before it."""
    all_ = known()
    old = all_.get(name, Figures())
    all_[name] = Figures(round(old.minutes + new.minutes, 2), old.inputs + new.inputs, new.edges, new.features)
    FIGURES.write_text(json.dumps({name: all_[name]._asdict() for name in PARSERS if name in all_}, indent=1) + "\n")


def table(names: list[str]) -> str:
    """What all runs together have tried, in Markdown."""
    lines = [
        "| parser | reads | minutes | inputs | edges | features | kept | bytes |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    figures = known()
    for name in names:
        each, size = figures.get(name, Figures()), sum(map(len, kept(name)))
        numbers = (each.inputs, each.edges, each.features, len(kept(name)), size)
        words = " | ".join(f"{number:,}" for number in numbers)
        lines.append(f"| {name} | {PARSERS[name].what} | {each.minutes:.1f} | {words} |")
    total = [figures.get(name, Figures()) for name in names]
    lines.append(
        f"| all | | {sum(each.minutes for each in total):.1f} | {sum(each.inputs for each in total):,} | | | | |"
    )
    return "\n".join(lines)


def smallest(name: str, crashes: Path, work: Path, corpus: Path) -> list[bytes]:
    """A few inputs that reach all that those in a folder reach: small ones first, each with something new."""
    files = sorted(corpus.iterdir(), key=lambda file: (file.stat().st_size, file.read_bytes()))
    control, reached = work / "control", dict[int, set[str]]()
    control.write_text("\n".join([str(len(files)), "0", *map(str, files), ""]))
    flags = ["-merge_inner=1", f"-merge_control_file={control}"]
    said, _ = forked(name, crashes, work, math.inf, flags)
    for line in control.read_text().splitlines():
        if match := re.match(r"FT (\d+)(.*)", line):
            reached[int(match[1])] = set(match[2].split())
    if len(reached) < len(files):
        raise RuntimeError(said[-3000:])
    found, known = list[bytes](), set[str]()
    for number, file in enumerate(files):
        if reached[number] - known:
            known |= reached[number]
            found.append(file.read_bytes())
    return found


def main() -> int:
    """Fuzz what is asked for, and print what all runs together have tried."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("parser", nargs="*", help="default: all")
    options.add_argument("--minutes", type=float, default=60, help="of a processor, for all parsers together")
    options.add_argument("--crashes", type=Path, default=Path("crashes"), help="folder for what went wrong")
    options.add_argument("--list", action="store_true", help="say which parsers there are")
    options.add_argument("--table", action="store_true", help="say what all runs together have tried")
    options.add_argument("--replay", action="store_true", help="only try the corpus again")
    asked = options.parse_args()
    names = asked.parser or list(PARSERS)
    if unknown := [name for name in names if name not in PARSERS]:
        options.error(f"no parser {unknown[0]!r}; there are {', '.join(PARSERS)}")
    if asked.list:
        for name in names:
            print(f"{name:12} {PARSERS[name].what:36} {', '.join(PARSERS[name].reads)}")
        return 0
    if asked.table:
        print(table(names))
        return 0
    if asked.replay:
        wrong = [text for name in names for text in replay(name)]
        print("\n".join(wrong) or "nothing went wrong")
        return int(bool(wrong))
    instrumented()
    whole = sum(PARSERS[name].share for name in names)
    for name in names:
        note(name, fuzzed(name, asked.minutes * PARSERS[name].share / whole, asked.crashes))
        print(f"{name} is done, {len([*asked.crashes.glob(f'{name}-*')])} crashes", flush=True)
    print(table(names))
    return int(any(asked.crashes.iterdir()))


if __name__ == "__main__":
    sys.exit(main())
