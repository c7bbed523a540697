"""Words for the command `featviz`, valid and odd, for `calls.py`: its options are read from its parser."""

from __future__ import annotations

import argparse
import io
import os
import random
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from arguments import net, pil

import torch_featviz as fv
from torch_featviz.cli import main
from torch_featviz.cli.grammar import parser

MODULE = """
import sys
sys.path.insert(0, {attack!r})
from arguments import Attentive, card, net

def attentive():
    return Attentive().eval()

def fails():
    raise ValueError("of the file's own")

def number():
    return 3

def needs(x):
    return x
"""

# By the name of the option, `command.option` before `option`.
VALID: dict[str, tuple[str, ...]] = {
    "model": ("net.py:net", "net.py:net", "net.py:card", "filters"),
    "attention.model": ("net.py:attentive",),
    "weights": ("net.pt",),
    "size": ("12",),
    "image": ("image.png",),
    "data": ("data",),
    "layer": ("0", "2"),
    "attention.layer": ("attention",),
    "method": ("gradcam", "saliency", "layercam"),
    "classes": ("1", "a"),
    "channels": ("0", "1"),
    "out": ("made.png",),
    "atlas.out": ("made.html",),
    "demo.out": ("made",),
    "top": ("2",),
    "cmap": ("gray",),
    "training": ("run",),
    "folder": ("run",),
    "megabytes": ("2",),
    "batch": ("2",),
    "device": ("cpu",),
    "seed": ("0", "1"),
    "epochs": ("1",),
}

ODD = (
    *("", " ", "-", "--", "-1", "0", "00", "1.5", "1e300", "nan", "inf", "2147483648", str(2**70), "9" * 400),
    *("w" * 5000, "a\nb", "\x1b[31mred\x07", "a\udcffb", "a\0b", "кот", "٣", "1_0", "\u202egnp.x", "*", "%s%n", "{0}"),
    *(
        "@file",
        "~",
        "#2",
        ".",
        "nowhere",
        "nowhere/deep/x.png",
        "image.png",
        "image.png/x.png",
        "x.PNG",
        ".png",
        "x.jpg",
    ),
    *(
        "void",
        "void.png",
        "broken.png",
        "text.png",
        "wrong.pt",
        "list.pt",
        "net.pt",
        "net.py",
        "run",
        "data",
        "loop.png",
    ),
    *("/dev/null", "/proc/x", "net.py:", "net.py:nothing", "net.py:fails", "net.py:number", "net.py:needs"),
    *("nowhere.py:net", "text.py:net", ":net", "torchvision:", "torchvision:nothing", "torchvision:alexnet", "timm:"),
    *("timm:nothing", "alexnet", "xo_deep", "cuda", "cuda:99", "meta", "cpu:7", "mps", "jet", "lrp", "head", "2#1"),
)
WORK = {"demo.epochs"}  # how much is to be done: a large number is valid, and takes as long
MANY = {"batch", "size"}  # how much is to be held: likewise


def commands() -> dict[str, argparse.ArgumentParser]:
    """Each command of `featviz` with its parser."""
    (found,) = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found.choices)


def files() -> None:
    """The files that the words name, in this folder."""
    if Path("run").exists():
        return
    Path("net.py").write_text(MODULE.format(attack=str(Path(__file__).parent)))
    Path("text.py").write_text("this is no Python")
    Path("text.png").write_text("no image")
    for folder in ("data", "void", "void.png"):
        Path(folder).mkdir()
    for name in ("image.png", "data/a.png", "data/b.png"):
        pil().save(name)
    whole = Path("image.png").read_bytes()
    Path("broken.png").write_bytes(whole[: len(whole) // 2])
    Path("data/broken.png").write_bytes(whole[: len(whole) // 2])
    Path("loop.png").symlink_to("loop.png")
    torch.save(net().state_dict(), "net.pt")
    torch.save([1, 2], "list.pt")
    Path("wrong.pt").write_bytes(b"\x80\x02 no weights")
    model = net()
    with fv.Monitor(model, to="run", every=1) as watch:
        for _ in range(2):
            with watch.step():
                loss = model(torch.rand(2, 3, 12, 12)).sum()
                loss.backward()


def words(command: str, rng: random.Random) -> tuple[list[str], list[str]]:
    """What is typed after `featviz COMMAND`, and what of it is odd."""
    actions = [a for a in commands()[command]._actions if not isinstance(a, argparse._HelpAction)]
    strange = rng.sample(actions, min(len(actions), rng.choice((1, 1, 2))))
    typed, odd = [command], []
    for action in actions:
        key = f"{command}.{action.dest}"
        if not (action.required or action in strange or key in WORK or rng.random() < 0.3):
            continue
        some = [_word(command, action, rng, action in strange) for _ in range(_count(action, rng, action in strange))]
        if action in strange and rng.random() < 0.1:
            odd.append(f"no {action.dest}")
            continue
        if action in strange:
            odd.append(f"{key}={some!r:.60}")
        if action.option_strings:
            last = action.option_strings[-1]
            typed += [f"{last}={some[0]}"] if len(some) == 1 and rng.random() < 0.5 else [last, *some]
        else:
            typed += some
    if rng.random() < 0.02:
        typed[:1] = rng.choice(([], [rng.choice(ODD)], ["--version"], ["-h"]))
        odd.append(f"command={typed[:1]}")
    if rng.random() < 0.03:
        extra = rng.choice(("--help", "--no-such-option", "more", "--", "-h", "--version"))
        typed.append(extra)
        odd.append(extra)
    return typed, odd


def _count(action: argparse.Action, rng: random.Random, strange: bool) -> int:
    """Of how many words the value of an option is."""
    usual = action.nargs if isinstance(action.nargs, int) else 2 if action.nargs == "+" else 1
    return usual + rng.choice((0, 0, 0, 0, 0, 1, -1)) * strange if usual else int(strange and rng.random() < 0.1)


def _word(command: str, action: argparse.Action, rng: random.Random, strange: bool) -> str:
    key = f"{command}.{action.dest}"
    if strange:
        large = key in WORK or action.dest in MANY
        return rng.choice([word for word in ODD if not large or not (word.isdecimal() and len(word) > 2)])
    if key in VALID or action.dest in VALID:
        return rng.choice(VALID.get(key) or VALID[action.dest])
    return rng.choice([str(choice) for choice in action.choices or ("2" if action.type in (int, float) else "x",)])


class Told(Exception):
    """The command failed, and said why."""


class Untold(Exception):
    """The command ended in another way than it says."""


def run(typed: list[str]) -> None:
    """Run the command in this process.

    Raises:
        Told: it failed with a line that says why.
        Untold: an exit code that it does not tell of, a traceback, no such line, or control characters.
    """
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    Path("typed").mkdir(exist_ok=True)  # other calls have files of such names
    os.chdir("typed")
    try:
        files()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(typed)
    except SystemExit as end:
        code = end.code
    finally:
        os.chdir(before)
    told = err.getvalue()
    if "Traceback" in told or code not in (0, 1, 2):
        raise Untold(f"{code}: {told[-500:]}")
    if code == 1 and "prove" not in typed and "\nfeatviz: " not in f"\n{told}":
        raise Untold(f"1, and no line says why: {told[-500:]}")
    if any(not (letter.isprintable() or letter in "\n\r\t ") for letter in told + out.getvalue()):
        raise Untold(f"control characters: {(told + out.getvalue())!r:.500}")
    if code:
        raise Told(f"{code}: {told[-500:]}")


def targets() -> dict[str, Any]:
    """Each command, by the name that `calls.py` gives it."""
    return {f"featviz {name}": partial(partial, run) for name in commands()}
