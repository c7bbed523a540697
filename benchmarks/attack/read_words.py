"""What reads words: names, globs, arguments, labels and text, each as a function of bytes, for `parsers.py`."""

from __future__ import annotations

import io
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz.capture.asked import choose_with_calls
from torch_featviz.choices import FIGURES
from torch_featviz.cli.given import Given, device_given
from torch_featviz.cli.grammar import parser as grammar
from torch_featviz.cli.mistakes import check
from torch_featviz.model.labels import label_of, labels_of, names_of, pair_of
from torch_featviz.model.layers import layer_name, resolve, split_call, survey
from torch_featviz.model.names import known_names, numbered
from torch_featviz.picture import text as letters
from torch_featviz.printable import encodable, escaped, printable
from torch_featviz.training import Sample
from torch_featviz.training.findings import Findings
from torch_featviz.zoo import ModelCard, card
from torch_featviz.zoo.file_nets import file_net

sys.path.insert(0, str(Path(__file__).parent))
from script import Script

Reader = Callable[[bytes], None]
LONG = "9" * 5000  # digits: more than Python makes a number of


def listed(words: str) -> list[str]:
    """As they stand between spaces."""
    return words.split()


def said(*calls: Callable[[], object]) -> None:
    """Make each of these calls; our errors can be shown."""
    for call in calls:
        try:
            call()
        except fv.FeatvizError as error:
            str(error).encode()


def within(folder: Path, read: Reader) -> Reader:
    """Relative names are those of this folder."""

    def inside(data: bytes) -> None:
        before = Path.cwd()
        os.chdir(folder)
        try:
            read(data)
        finally:
            os.chdir(before)

    return inside


def layers(_: Path) -> Reader:
    """Names of layers and calls, and globs."""
    block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    model = nn.Sequential()
    for name, part in (
        ("features", block),
        ("relu#2", nn.ReLU()),
        ("module", nn.Sequential(block)),
        ("a b", nn.Tanh()),
    ):
        model.add_module(name, part)
    words = ["a b", LONG, "*a" * 20, "[!" * 9, *listed(r". * ? [ ] ! - # () \ ^ | (? 0 1 #1 #2 ² ٣ conv2d")]
    words += listed("features module _orig_mod relu relu#2")

    def read(data: bytes) -> None:
        script = Script(data)
        asked = script.words(words) if script.byte() % 2 else script.rest().decode("utf-8", "surrogateescape")
        said(
            lambda: split_call(asked),
            lambda: Findings({"dead": asked}).look(Sample(0, {}, {})),
            lambda: resolve(model, asked),
            lambda: layer_name(model, asked),
            lambda: choose_with_calls(model, *survey(model), [asked, "features"])[1].includes("features.0"),
        )

    return read


CODE = {
    "net.py": """from torch import nn
def build(): return nn.Conv2d(1, 2, 3)
net, kind, number = build(), nn.Conv2d, 3
def more(x): pass
def none(): pass
def fails(): 1 / 0
def leaves(): raise SystemExit
""",
    "bad.py": "def build(:",
    "odd.py": "import nothing_of_this_name",
    "null.py": "\0",
    "coded.py": "# coding: no-such",
    "deep.py": "(" * 500 + ")" * 500,
}


def models(folder: Path) -> Reader:
    """The name of a model: one of ours, of torchvision, of timm, or a function in a file."""
    for name, code in CODE.items():
        (folder / name).write_text(code)
    (folder / "folder.py").mkdir()
    words = listed("torchvision: timm: resnet18 alexnet . DEFAULT IMAGENET1K_V1 a1_in1k xo _deep : .py @ folder.py é")
    words += listed("build net more none kind number fails leaves hf_hub: hf-hub: local-dir: fcn_resnet50 vit_b_16")
    words += [*CODE, "ssd300_vgg16", "__name__", "\0"]

    def read(data: bytes) -> None:
        script = Script(data)
        name = script.words(words, 6) if script.byte() % 4 else script.rest().decode("utf-8", "surrogateescape")
        if "/" in name or ".." in name:  # no code of others is run
            return
        if ".py" in name:
            file_net(name, None if script.byte() % 2 else (4, 4))
        else:
            assert card(name).name

    return within(folder, read)


FORMS = (
    "look net.py:build --image cat.png --out out.png",
    "why net.py:build --image cat.png --class cat --method gradcam --layer 0",
    "maps net.py:build --image cat.png --image cat.png --top 4 --one-scale --cmap gray --size 4 4",
    "overview xo --image cat.png --all",
    "units xo --data run --channels 0 1 --projection deconvnet",
    "atlas xo --image cat.png --training run --megabytes 2 --out out.html",
    "layers xo --json --device cpu",
    "bench xo --batch 4 --layer 0",
    "prove xo --image cat.png",
    "attention xo --image cat.png --rollout",
    "kernels xo --random",
    "report run --out out.png",
    "demo --seed 1 --epochs 1",
)


def command(folder: Path) -> Reader:
    """What is typed after `featviz`, up to where a model would be built."""
    (folder / "net.py").write_text("")
    (folder / "cat.png").write_bytes(b"x")
    (folder / "run").mkdir()
    (folder / "run" / FIGURES).write_bytes(b"")
    top, no_options = grammar(), {"classes": None, "layer": None, "image": []}
    words = listed("net.py:build xo torchvision:resnet18 cat.png run out.png out.html gradcam jet gray deconvnet")
    words += listed("0 1 -1 4 cpu cuda:99 meta = ² ٣ cat 1e400 nan 1_0 ../run --im --c %s %(prog)s @x -- - -h --help")
    words += listed("--version --json --all --one-scale --rollout --retrain --random --weights --training --megabytes")
    words += listed("--projection --data --device --size --seed --epochs")
    words += [LONG, "a" * 300, "\0", "é\ud800", ""]
    cards = (ModelCard("a", nn.ReLU, (1, 6, 6)), ModelCard("b", nn.ReLU, (1, 6, 6), classes=("cat", "0", "cat", "²")))

    def run(typed: list[str]) -> None:
        asked = top.parse_args(typed)
        check(asked, asked.run.ending)
        if "device" in asked:
            device_given(asked)
        for each in cards:
            on = Given(Namespace(**{**no_options, **vars(asked)}), each, nn.Identity(), torch.device("cpu"), True)
            said(on.classes, on.names, partial(on.layer, each.low))

    def read(data: bytes) -> None:
        script = Script(data)
        typed = script.spoilt(script.pick(FORMS).split(), lambda _, more: more.pick(words))
        typed = [str(word) for word in typed] if isinstance(typed, list) else [str(typed)]
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            try:
                run(typed)
            except SystemExit as left:
                if left.code not in (0, 2):
                    raise RuntimeError(f"exit code {left.code}") from left
        assert printable(out.getvalue(), lines=True) == out.getvalue(), "a terminal would obey it"

    return within(folder, read)


def classes(_: Path) -> Reader:
    """Labels and names of classes, as data sets and cards give them."""
    names = ("cat", "dog", "0", "cat", "", "²", "\ud800")
    kinds: tuple[Any, ...] = (
        *(torch.tensor([0.0, 1.0]), torch.tensor(3), torch.zeros(2, 2), torch.tensor([2**62]), torch.tensor(1 + 2j)),
        *(np.array(["cat"]), np.array([1, 2]), np.float32("nan"), b"cat", {"label": 1, "image": 2}, {"0": "cat"}),
        *({1: "dog", 0: "cat"}, {float("inf"): 1}, {LONG: 1}, ("cat", "dog"), [["cat"]], [[1]], 10**400, 1j),
        *(range(3), LONG, object(), torch.tensor([]), np.array(0), [float("nan"), 1], "cat", [0, 1, "cat"], [0, 1, 0]),
    )

    def read(data: bytes) -> None:
        script = Script(data)
        some = names[: script.below(len(names) + 1)]
        value = script.spoilt(script.pick(kinds), lambda _, more: more.pick(kinds))
        said(
            lambda: names_of(value),
            lambda: known_names(value),
            lambda: pair_of(value, "item 1"),
            lambda: label_of(value, "item 1", some),
            lambda: label_of(value, "item 1"),
            lambda: labels_of(value, script.byte() % 4, names=some),
            lambda: numbered(value, some),
        )

    return read


def text(_: Path) -> Reader:
    """Names and messages on a terminal, a page and a picture."""
    words = ["\x1b[2J", "\u202e", "\u2066", "\ud800", "\udfff", "\U0001f1e9\U0001f1ea", "\u200d", "e\u0301", "\ufffe"]
    words += ["\ufeff", "\u2028", "\r\n", "\t", "\0", " ", "_", "W" * 99, *listed("שלום مرحبا ไทย 한국 日本 हिन्दी")]

    def read(data: bytes) -> None:
        script = Script(data)
        size, limit = 10 + script.byte() % 8, script.byte() * 2
        some = script.words(words) if script.byte() % 2 else script.rest().decode("utf-8", "surrogatepass")
        for shown in (printable(some), printable(some, lines=True, longest=99), escaped(some)):
            shown.encode()
            assert not any(letter in shown for letter in "\x1b\u202e\u2066\0\r")
        encodable(some).encode()
        for line in letters.wrap(some, limit, size):
            assert letters.strip(line, size).shape[0] == letters.line_height(size)
        letters.strip(letters.shorten(some, limit, size, ending=1), size, bold=True)

    def decoded(data: bytes) -> None:
        with suppress(UnicodeDecodeError):  # no text
            read(data)

    return decoded
