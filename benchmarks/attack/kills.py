"""Kill a process with SIGKILL while it writes, then read all that it reported written.

    python benchmarks/attack/kills.py --kills 200
    python benchmarks/attack/kills.py --kills 10 --what page resume

Four things are written, each in a fork of this process: a run folder of a `Monitor`, a page, the sheets of the demo,
and the resume file of a pass. The fork says through a pipe what is written whole. It is killed at a random moment, and
then everything in the folder is read:

- what was reported is there, whole, and what is new is not older than what was reported;
- nothing that has its final name is half there; what a kill leaves has a name ending in `.tmp`;
- the next process goes on in the same folder, as one would after a kill.

Then the disk is full from one of the first six writes on (ENOSPC, half of what is given is written), and the folder is
removed meanwhile. These end in a FileError or a warning, and what was there before still is. Exit code 1 if something
was lost.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import nn

import torch_featviz as fv
from torch_featviz.errors import FeatvizError, FileError
from torch_featviz.survey.resume import Checkpoint, State
from torch_featviz.training import History
from torch_featviz.training.sinks import FolderSink

Told = Callable[[Any], None]


def net() -> nn.Module:
    """A network that is drawn in milliseconds."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))


class Said:
    """A sink that says which step the sinks before it have written."""

    def __init__(self, told: Told) -> None:
        self._told = told

    def write(self, record: Any) -> None:
        """All of this step is on disk."""
        self._told([record.step, len(record.pictures)])

    def close(self) -> None:
        """Nothing is open."""


def write_run(folder: Path, told: Told) -> None:
    """Train with a monitor that writes a folder, resumed where one is."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with fv.Monitor(model, every=1, probe=torch.ones(1, 1, 6, 6), to=[folder / "run", Said(told)]) as watch:
        while True:
            with watch.step() as step:
                loss = model(torch.rand(2, 1, 6, 6)).square().mean()
                loss.backward()
                optimizer.step()
                step.log(loss=loss)


def read_run(folder: Path, told: list[Any]) -> None:
    """The history has each reported step, and each picture opens."""
    if not (folder / "run").exists():
        assert not told
        return
    steps = History.load(folder / "run").steps if (folder / "run" / "samples.jsonl").exists() else []
    lines = (folder / "run" / "samples.jsonl").read_bytes().count(b"\n") if steps else 0
    assert steps[-1:] == [lines - 1] or not steps, "each step once, none left out"
    for step, pictures in told:
        assert step < lines, f"step {step} was reported and is not there"
        kept = list((folder / "run").glob(f"*/*/step-{step:08d}.png"))
        assert len(kept) == pictures, f"pictures of step {step}"
    check_pictures(folder)


def write_page(folder: Path, told: Told) -> None:
    """Save pages of rising numbers over one another."""
    page = fv.atlas(net(), torch.rand(1, 1, 6, 6))
    head, _, rest = page.html.partition("</title>")
    before = number_of(folder / "pages" / "page.html")
    for i in range(before + 1, before + 1_000_000):
        vars(page)["html"] = f"{head} number {i}</title>{rest}{'x' * random.randrange(10**6)}<!--end-->"
        page.save(folder / "pages" / "page.html")
        told(i)


def read_page(folder: Path, told: list[Any]) -> None:
    """The page is a whole one, and none that is older than what was reported."""
    page = folder / "pages" / "page.html"
    if not page.exists():
        assert not told
        return
    assert page.read_text().endswith("<!--end-->"), "half a page"
    number = number_of(page)
    assert number >= max(told, default=0), f"page {number} is older than {max(told)}"


def number_of(page: Path) -> int:
    """The number in a page's title; -1 where there is no page."""
    text = page.read_text() if page.exists() else " number -1"
    return int(text.partition("</title>")[0].rpartition(" number ")[2])


def write_resume(folder: Path, told: Told) -> None:
    """Write a resume file over and over, each with a tensor that tells its number."""
    file = Checkpoint(folder / "passes" / "pass.pt", 1, {"images": 3})
    before = file.read()
    for i in range(_number_of(before) + 1 if before else 0, 1_000_000):
        values = torch.full((random.randrange(1, 10**5),), i, dtype=torch.int64)
        file.write(State(1, (1, 1, 1), {"layer": [values]}, [0], []))
        told(i)


def read_resume(folder: Path, told: list[Any]) -> None:
    """The file is whole and none that is older than what was reported."""
    state = Checkpoint(folder / "passes" / "pass.pt", 1, {"images": 3}).read()
    if state is None:
        assert not told
        return
    assert _number_of(state) >= max(told, default=0)
    assert bool((state.tops["layer"][0] == _number_of(state)).all()), "of two states"


def _number_of(state: State) -> int:
    return int(state.tops["layer"][0][0])


def write_demo(folder: Path, told: Told) -> None:
    """Train for one epoch and draw all sheets, trained anew about each second time."""
    from torch_featviz import demo  # noqa: PLC0415  where it is not asked for, it is not loaded

    class Lines(io.StringIO):
        def write(self, text: str) -> int:
            name = text.strip().removesuffix(" (unchanged)")
            if name.startswith(str(folder)):
                told(name)
            return len(text)

    sys.stdout = Lines()
    while True:
        demo.demo(folder / "demo", epochs=1, retrain=random.random() < 0.5)


def read_demo(folder: Path, told: list[Any]) -> None:
    """Each file that was named is there; weights, figures and pages are whole; weights go with a whole training."""
    check_pictures(folder)
    for name in told:
        assert Path(name).exists(), f"{name} was reported and is not there"
    for page in folder.rglob("*.html"):
        assert page.read_text().rstrip().endswith("</html>"), "half a page"
    for record in folder.rglob("*.json"):
        json.loads(record.read_text())
    for weights in folder.rglob("*.pt"):
        fv.zoo.card("xo_deep").load(weights)
        assert (weights.parent / "6-how-it-learnt.png").exists(), "weights of a training that did not end"
        history = History.load(weights.parent / "training")
        pictures = len(list((weights.parent / "training").glob("*/*/*.png")))
        kinds = len(list((weights.parent / "training").glob("*/*")))
        assert history.steps, "weights of a training that did not end"
        assert pictures == kinds * len(history.steps), "weights beside the pictures of another training"


def check_pictures(folder: Path) -> None:
    """Whatever is named as a picture is one."""
    for path in [*folder.rglob("*.png"), *folder.rglob("*.webp")]:
        with Image.open(path) as image:
            image.load()


WHAT = {
    "run": (write_run, read_run, 1.5),
    "page": (write_page, read_page, 0.5),
    "resume": (write_resume, read_resume, 0.3),
    "demo": (write_demo, read_demo, 40.0),
}


def killed(write: Callable[[Path, Told], None], folder: Path, seconds: float, *, first: bool) -> list[Any]:
    """What a fork reported before it was killed, after so many seconds from its first report on, or from its start."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            os.setpgrp()
            sys.stderr = io.StringIO()
            warnings.simplefilter("ignore")
            random.seed(os.getpid())
            torch.set_num_threads(1)
            write(folder, lambda item: os.write(writer, json.dumps(item).encode() + b"\n"))
        except BaseException:
            os.write(writer, json.dumps({"error": traceback.format_exc()}).encode() + b"\n")
        os._exit(1)
    os.close(writer)
    with open(reader, "rb") as said:
        start = said.readline() if first else b""
        time.sleep(seconds)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines = [start, *said.readlines()]
    told = [json.loads(line) for line in lines if line.endswith(b"\n")]
    for item in told:
        assert not isinstance(item, dict), item["error"]
    return told


def kills(name: str, count: int) -> list[str]:
    """Kill so many processes; what was lost, in words."""
    write, read, longest = WHAT[name]
    lost: list[str] = []
    told: list[Any] = []
    folder = Path(tempfile.mkdtemp(prefix=f"kills-{name}-"))
    try:
        for i in range(count):
            if i % 5 == 0:
                shutil.rmtree(folder)
                folder.mkdir()
                told = []
            try:
                # Some die before their first report; in the demo that is most of the time
                told += killed(write, folder, random.uniform(0, longest), first=name != "demo" and i % 4 != 3)
                read(folder, told)
            except Exception:
                lost.append(f"{name}, kill {i}: {traceback.format_exc()}")
                told = []
                shutil.rmtree(folder)
                folder.mkdir()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return lost


class FullDisk:
    """From the `after`-th write on, the disk is full: half of what is given is written, and then ENOSPC is raised."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __enter__(self) -> FullDisk:
        real = io.open

        def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            stream = real(file, mode, *args, **options)
            if not set(mode) & set("wax+") or isinstance(file, int):
                return stream
            return _Filling(stream, self)

        self._patches = [mock.patch.object(io, "open", opened), mock.patch.object(builtins, "open", opened)]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in self._patches:
            patch.stop()


class _Filling:
    def __init__(self, stream: Any, disk: FullDisk) -> None:
        self._stream, self._disk = stream, disk

    def write(self, data: Any) -> int:
        self._disk.left -= 1
        if self._disk.left < 0:
            self._stream.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written: int = self._stream.write(data)
        return written

    def __enter__(self) -> _Filling:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def full(name: str, after: int) -> list[str]:
    """What is written after so many writes meets a full disk; what was lost, in words."""
    folder, told = Path(tempfile.mkdtemp(prefix=f"full-{name}-")), list[Any]()
    try:
        return _broken(name, folder, told, FullDisk(after))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def removed(name: str) -> list[str]:
    """The folder goes while it is written to; the writer goes on in a new one, or ends in a FileError."""
    folder, told = Path(tempfile.mkdtemp(prefix=f"removed-{name}-")), list[Any]()

    class Gone:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    try:
        return _broken(name, folder, told, Gone(), gone=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Enough(Exception):
    """So much is written as was wanted."""


def _broken(name: str, folder: Path, told: list[Any], disk: Any, *, gone: bool = False) -> list[str]:
    write, read, _ = WHAT[name]

    written = 0

    def tell(item: Any) -> None:
        nonlocal written
        written += 1
        told.append(item)
        if gone and written == 2:
            shutil.rmtree(folder)
            told.clear()
        elif written == 6:
            raise Enough

    try:
        with disk, warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            if name == "run":
                _steps(folder, told, gone=gone)
            else:
                write(folder, tell)
    except (Enough, FileError):
        pass
    except Exception:
        return [f"{name} on a {'folder that went' if gone else 'full disk'}: {traceback.format_exc()}"]
    try:
        if gone and name == "run":
            assert History.load(folder / "run").steps, "it did not go on"
            check_pictures(folder)
        else:
            read(folder, told)
        left = [path for path in folder.rglob("*.tmp") if path.stat().st_size]
        assert not left, f"left behind: {left}"
    except (AssertionError, FeatvizError):
        return [f"{name} on a {'folder that went' if gone else 'full disk'}: {traceback.format_exc()}"]
    return []


def _steps(folder: Path, told: list[Any], *, gone: bool) -> None:
    """Eight steps into a folder, without a thread, so that it is known what was written when the disk was full."""
    model = net()
    records: list[Any] = []

    class Keep:
        def write(self, record: Any) -> None:
            records.append(record)

        def close(self) -> None: ...

    with fv.Monitor(model, every=1, probe=torch.ones(1, 1, 6, 6), to=Keep()) as watch:
        for _ in range(8):
            with watch.step():
                model(torch.rand(2, 1, 6, 6)).square().mean().backward()
    sink = FolderSink(folder / "run")
    for record in records:
        if gone and record.step == 3:
            shutil.rmtree(folder)
        try:
            sink.write(record)
        except FileError:
            continue
        told.append([record.step, len(record.pictures)])


def main() -> int:
    """Kill, fill and remove; tell what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    random.seed(asked.seed)
    lost: list[str] = []
    # a demo takes as long as a hundred of the others
    share = Counter(random.choices(asked.what, [1 if name == "demo" else 6 for name in asked.what], k=asked.kills))
    for name in asked.what:
        began = time.monotonic()
        of_kills = kills(name, share[name])
        print(
            f"{name}: {share[name]} kills, {len(of_kills)} with a loss ({time.monotonic() - began:.0f} s)", flush=True
        )
        lost += of_kills
        if name != "demo":
            broken = [text for after in range(6) for text in full(name, after)] + removed(name)
            print(f"{name}: disk full at 6 places and folder removed, {len(broken)} with a loss", flush=True)
            lost += broken
    print(*lost, sep="\n")
    return int(bool(lost))


if __name__ == "__main__":
    raise SystemExit(main())
