"""Valid arguments by the name of the parameter, and odd values, for `calls.py`: each is made anew."""

# ruff: noqa: ARG005, PLW0108

from __future__ import annotations

import inspect
import random
import time
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import torch_featviz as fv

SLOW = {  # seconds each: how many are left out
    **dict.fromkeys(
        ("look", "attributions", "compare", "faithfulness", "explain.reasons", "zoo.write_image_folder"), 0.5
    ),
    **dict.fromkeys(("atlas", "prove", "bench.overhead", "bench.launches", "featviz bench"), 0.8),
    **dict.fromkeys(("featviz atlas", "featviz prove", "featviz look"), 0.8),
    "zoo.train_xo": 0.98,  # which trains; so does the demo
    "featviz demo": 0.995,
}

WORK = {"epochs", "steps", "rounds", "stages", "n"}  # how much is to be done: 2**31 is valid, and takes as long


def images() -> Tensor:
    return torch.rand(2, 3, 12, 12)


class Attentive(nn.Module):
    """Patches, one block of attention, three logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().flatten(2).mT
        return self.head((x + self.attention(x, x, x)[0]).mean(1))


def net() -> nn.Module:
    parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*parts, nn.Linear(16, 3)).eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(images(), torch.tensor([0, 2])), (images(), torch.tensor([1, 1]))]


def card() -> Any:
    return fv.ModelCard("net", net, (3, 12, 12), ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3)


def pil() -> Image.Image:
    return Image.fromarray(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3))


def file() -> str:
    pil().save("image.png")
    return "image.png"


def monitor() -> Any:
    return fv.Monitor(net(), every=1)


@cache
def best() -> Any:
    return fv.top_patches(net(), [x for x, _ in batches()], "2", k=2)


@cache
def comparison() -> Any:
    return fv.compare({"a": net(), "b": net()}, images(), rounds=1)


def activations() -> Any:
    model = net()
    with fv.capture(model) as acts:
        model(images())
    return acts


# An instance of each class, whose methods are called.
INSTANCES: dict[str, Callable[[], Any]] = {
    "Activations": activations,
    "Added": lambda: fv.bench.Added(2e-4, 1e-4, 3e-4),
    "Atlas": lambda: fv.Atlas({}, ()),
    "Attention": lambda: fv.Attention(),
    "Comparison": lambda: comparison(),
    "FeatureExtractor": lambda: fv.FeatureExtractor(net(), ["0"]),
    "FeatureTap": lambda: fv.FeatureTap(net()),
    "History": lambda: fv.training.History(),
    "GridTiler": lambda: fv.GridTiler(),
    "KernelNormalizer": lambda: fv.KernelNormalizer(),
    "Layout": lambda: fv.Layout(grid=(3, 3), channels=1, tokens=None, places=(2, 3)),
    "ModelCard": card,
    "Monitor": monitor,
    "Picture": lambda: fv.pixels(torch.eye(3)),
    "Ratio": lambda: fv.bench.Ratio(1.04, 1.03, 1.06),
    "ReceptiveField": lambda: fv.receptive_field(net(), "2", (12, 12)),
    "Scale": lambda: fv.Scale(),
    "Summary": lambda: fv.summary(net(), (3, 12, 12)),
    "TopPatches": lambda: best(),
}

# By parameter, `call.parameter` before `parameter`.
VALID: dict[str, Callable[[], Any]] = {
    "model": net,
    "models": lambda: {"a": net(), "b": net()},
    "compare.data": images,
    "module": net,
    "images": images,
    "image": lambda: images()[0],
    "look.image": lambda: random.choice((images()[0], pil())),
    "from_pil.image": pil,
    "preprocess.image": lambda: random.choice((pil(), file())),
    "batch": images,
    "tile.maps": lambda: torch.rand(5, 1, 4, 4),
    "forward.maps": lambda: torch.rand(5, 1, 4, 4),
    "__call__.maps": lambda: torch.rand(5, 1, 4, 4),
    "maps.maps": lambda: torch.rand(2, 4, 3, 3),
    "maps": lambda: torch.rand(4, 3, 3),
    "maps.values": lambda: torch.rand(2, 4, 3, 3),
    "values": lambda: torch.rand(2, 4, 3, 3),
    "sheet": lambda: torch.rand(1, 9, 9),
    "n": lambda: 4,
    "pad": lambda: 1,
    "ncols": lambda: 2,
    "fill": lambda: 0.5,
    "x": lambda: torch.rand(2, 3, 4, 4),
    "curves.x": lambda: [0.0, 1.0, 2.0],
    "heatmaps": lambda: torch.rand(2, 12, 12),
    "attributions": lambda: torch.rand(2, 3, 12, 12),
    "alpha": lambda: 0.5,
    "contours": lambda: [0.5],
    "scale": lambda: fv.Scale(),
    "cmap": lambda: "magma",
    "value_range": lambda: random.choice(("unit", "signed", "imagenet", {"mean": [0.5], "std": [0.5]})),
    "card": card,
    "card.name": lambda: "xo",
    "classes": lambda: ["a", "b", "c"],
    "confusion.counts": lambda: torch.eye(3).long(),
    "history": lambda: {"loss": {"train": [1.0, 0.5, 0.2]}},
    "title": lambda: "A title",
    "layer": lambda: "2",
    "layers": lambda: random.choice((None, ["0"], "*", nn.Conv2d)),
    "model_or_weight": lambda: random.choice((net(), torch.rand(4, 3, 3, 3))),
    "kernels.layer": lambda: "0",
    "attention.layers": lambda: None,
    "attention.model": Attentive,
    "attention_distance.model": Attentive,
    "units": lambda: [0, (1, 2, 2)],
    "unit": lambda: [0, (1, 2, 2)],
    "channels": lambda: [0, 1],
    "target": lambda: 1,
    "targets": lambda: [1, 0],
    "method": lambda: "saliency",
    "methods": lambda: ["gradcam", "saliency"],
    "projection": lambda: "deconvnet",
    "pooling": lambda: "sum",
    "logits": lambda: torch.randn(2, 3),
    "segments.logits": lambda: torch.randn(1, 3, 12, 12),
    "labels": lambda: ["p", "q"],
    "pixels.image": lambda: torch.rand(2, 1, 4, 4),
    "loader": lambda: [x for x, _ in batches()],
    "zoo.evaluate.loader": batches,
    "train_loader": batches,
    "valid_loader": batches,
    "dataset": lambda: [(image, 1) for image in images()],
    "data": lambda: [(image, 1) for image in images()],
    "transforms": lambda: {"flip": lambda x: x.flip(-1)},
    "augment": lambda: fv.augment("flip", n=2),
    "zoo.fit.augment": lambda: None,
    "ways": lambda: "flip",
    "why": lambda: fv.attribute(net(), images(), method="saliency"),
    "Monitor.why": lambda: "saliency",
    "steps": lambda: 2,
    "stages": lambda: 1,
    "epochs": lambda: 1,
    "rounds": lambda: 1,
    "bins": lambda: 8,
    "every": lambda: 1,
    "k": lambda: 2,
    "top": lambda: 2,
    "limit": lambda: 4,
    "decimals": lambda: 1,
    "seed": lambda: 0,
    "eps": lambda: 0.01,
    "lr": lambda: 0.01,
    "size": lambda: (3, 12, 12),
    "input_size": lambda: (12, 12),
    "receptive_field.channels": lambda: 3,
    "inputs": images,
    "seen": lambda: fv.receptive_field(net(), "2", (12, 12), effective=True),
    "best": best,
    "queries": lambda: [0],
    "query": lambda: (1, 1),
    "layout": lambda: None,
    "into": lambda: random.choice((None, fv.Moments(), fv.Ring(2), fv.TopK(2), fv.Histogram(8))),
    "of": lambda: random.choice(("output", "grad")),
    "film.of": lambda: "kernels",
    "film.layer": lambda: "0",
    "calls.layer": lambda: "0",
    "results": lambda: {"2": best()},
    "read_patches.channels": lambda: {"2": [0, 1]},
    **dict.fromkeys(("a", "b", "base", "measure"), lambda: lambda: sum(range(9))),
    "added.ways": lambda: lambda: sum(range(9)),
    "within": lambda: lambda result: True,
    "timer": lambda: time.perf_counter,
    "key": lambda: "0",
    "load.key": lambda: None,
    "load.path": lambda: None,
    "number": lambda: 0,
    "state": lambda: monitor().state_dict(),
    "tensors": lambda: torch.rand(2, 3, 4, 4),
    "path": lambda: "out.png",
    "read_image.path": file,
    "Atlas.save.path": lambda: "out.html",
    "root": lambda: "data",
    "folder": lambda: (file(), ".")[1],
    "place": lambda: 1,
    "to": lambda: None,
    "training": lambda: None,
    "resume": lambda: "resume.npz",
    "progress": lambda: False,
    "download": lambda: False,
    "additional_forward_args": lambda: None,
    "keywords": lambda: {},
    "options": lambda: {},
    "baselines": lambda: 0.0,
    "patch": lambda: 4,
    "by": lambda: "pca",
    "Scale.by": lambda: "mass",
    "KernelNormalizer.by": lambda: "mass",
    "per": lambda: "kernel",
    "attention.per": lambda: "head",
    "reduce": lambda: "rms",
    "answer": lambda: "logits",
    "quantile": lambda: 0.9,
    "vmin": lambda: -1.0,
    "vmax": lambda: 1.0,
    "dim": lambda: 1,
    "input_shape": lambda: (3, 12, 12),
    "build": lambda: net,
    "mean": lambda: (0.5, 0.5, 0.5),
    "std": lambda: (0.5, 0.5, 0.5),
    "name": lambda: "net",
    "ModelCard.input_size": lambda: (3, 12, 12),
    "args": images,
    "preprocess": lambda: lambda path: torch.zeros(3, 12, 12),
    "mode": lambda: "RGB",
    "internal_batch_size": lambda: 2,
    "grid": lambda: (3, 3),
    "prefix": lambda: 1,
    "default": lambda: None,
}
BY_KIND = {"int": lambda: 2, "float": lambda: 0.5, "str": lambda: "a", "bool": lambda: random.random() < 0.5}


def valid(call: str, p: inspect.Parameter, rng: random.Random) -> Any:
    """A valid value, or `p.empty` where none is known."""
    random.seed(rng.random())
    short = call.rsplit(".", 1)[-1]
    for key in (f"{call.replace('()', '')}.{p.name}", f"{short}.{p.name}", p.name):
        if key in VALID:
            return VALID[key]()
    kind = p.annotation if isinstance(p.annotation, str) else getattr(p.annotation, "__name__", "")
    return BY_KIND[kind.split(" | ")[0]]() if kind.split(" | ")[0] in BY_KIND else p.empty


def after(result: Any) -> None:
    """Use the result as a user would: what is lazy is done."""
    if isinstance(result, fv.Picture):
        result.numpy()
    elif type(result).__name__ == "Capture":
        model = next(iter(vars(result).get("model", ()) or ()), None)
        with result:
            if isinstance(model, nn.Module):
                model(images())
    elif isinstance(result, fv.Monitor):
        with result.step():
            pass
    elif hasattr(result, "__enter__") and hasattr(result, "gen"):  # a step of a monitor
        with result:
            pass


def _quantised() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.rand(2, 3, 12, 12), 0.1, 0, torch.quint8)


def _csr() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.eye(4).to_sparse_csr()


def _nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.rand(3, 4), torch.rand(2, 4)])


def _object_array() -> Any:
    array = np.empty(3, dtype=object)
    array[:] = [None, "a", 1]
    return array


ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "1": lambda: 1,
    "-1": lambda: -1,
    "-7": lambda: -7,
    "2**31": lambda: 2**31,
    "2**70": lambda: 2**70,
    "10**400": lambda: 10**400,
    "0.5": lambda: 0.5,
    "2.0": lambda: 2.0,
    "1e300": lambda: 1e300,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: -float("inf"),
    "1j": lambda: 1j,
    "Decimal": lambda: Decimal("2.5"),
    "Fraction": lambda: Fraction(1, 3),
    "''": lambda: "",
    "'x'": lambda: "x",
    "'2'": lambda: "2",
    "'NUL'": lambda: "a\0b",
    "'surrogate'": lambda: "a\udcffb",
    "'long'": lambda: "w" * 5000,
    "'lines'": lambda: "a\nb\tc",
    "bytes": lambda: b"x",
    "[]": list,
    "()": tuple,
    "{}": dict,
    "set": lambda: {1, 2},
    "[1, 2]": lambda: [1, 2],
    "[[1, 2], [3]]": lambda: [[1, 2], [3]],
    "['a', None]": lambda: ["a", None],
    "['a']": lambda: ["a"],
    "[None]": lambda: [None],
    "[nan]": lambda: [float("nan")],
    "[2**70]": lambda: [2**70],
    "[tensor]": lambda: [torch.rand(3, 12, 12)],
    "(tensor, 'a')": lambda: (torch.rand(2, 3, 12, 12), "a"),
    "{'a': 1}": lambda: {"a": 1},
    "{1: 2}": lambda: {1: 2},
    "{'a': tensor}": lambda: {"a": torch.rand(2, 3, 12, 12)},
    "{'mean': 'a'}": lambda: {"mean": "a", "std": None},
    "deep list": lambda: [[[[[1.0]]]]],
    "range": lambda: range(3),
    "slice": lambda: slice(0, 2),
    "iterator": lambda: iter([1, 2]),
    "lambda": lambda: lambda *args, **keywords: None,
    "raising": lambda: lambda *args, **keywords: 1 / 0,
    "object": object,
    "int": lambda: int,
    "Conv2d": lambda: nn.Conv2d,
    "Ellipsis": lambda: ...,
    "module": nn.ReLU,
    "conv": lambda: nn.Conv2d(3, 3, 1),
    "net": net,
    "empty net": nn.Sequential,
    "ModuleList": lambda: nn.ModuleList([nn.ReLU()]),
    "path": lambda: Path("nowhere"),
    "folder": lambda: Path("."),
    "dtype": lambda: torch.float32,
    "device": lambda: torch.device("cpu"),
    "numpy float": lambda: np.random.rand(2, 3, 12, 12).astype(np.float32),
    "numpy double": lambda: np.random.rand(3, 4, 4),
    "numpy bytes": lambda: np.zeros((12, 12, 3), np.uint8),
    "numpy uint16": lambda: np.zeros((4, 4), np.uint16),
    "numpy 0-dim": lambda: np.array(2.0),
    "numpy objects": _object_array,
    "numpy texts": lambda: np.array(["a", "b", "c"]),
    "numpy reversed": lambda: np.random.rand(4, 1, 4, 4)[::-1],
    "np.float32": lambda: np.float32(2),
    "np.int64": lambda: np.int64(2),
    "np.bool_": lambda: np.bool_(True),
    "PIL RGB": pil,
    "PIL L": lambda: pil().convert("L"),
    "PIL P": lambda: pil().convert("P"),
    "PIL F": lambda: pil().convert("F"),
    "tensor 0": lambda: torch.empty(0),
    "tensor 0 3 12 12": lambda: torch.empty(0, 3, 12, 12),
    "tensor 2 0 12 12": lambda: torch.empty(2, 0, 12, 12),
    "tensor 0-dim": lambda: torch.tensor(1.0),
    "tensor 0-dim int": lambda: torch.tensor(1),
    "tensor 1-D": lambda: torch.rand(3),
    "tensor 2-D": lambda: torch.rand(4, 4),
    "tensor 3-D": lambda: torch.rand(3, 12, 12),
    "tensor 5 channels": lambda: torch.rand(2, 5, 12, 12),
    "tensor 1 pixel": lambda: torch.rand(2, 3, 1, 1),
    "tensor 5-D": lambda: torch.rand(1, 2, 3, 4, 4),
    "tensor 8-D": lambda: torch.rand(1, 1, 1, 1, 1, 1, 2, 2),
    "tensor bool": lambda: torch.ones(2, 3, 12, 12, dtype=torch.bool),
    "tensor bytes": lambda: torch.ones(2, 3, 12, 12, dtype=torch.uint8),
    "tensor long": lambda: torch.ones(2, 3, 12, 12, dtype=torch.long),
    "tensor half": lambda: torch.rand(2, 3, 12, 12).half(),
    "tensor bfloat16": lambda: torch.rand(2, 3, 12, 12).bfloat16(),
    "tensor float8": lambda: torch.rand(2, 3, 12, 12).to(torch.float8_e4m3fn),
    "tensor uint16": lambda: torch.ones(2, 3, 12, 12, dtype=torch.uint16),
    "tensor double": lambda: torch.rand(2, 3, 12, 12).double(),
    "tensor complex": lambda: torch.rand(2, 3, 12, 12, dtype=torch.complex64),
    "tensor sparse": lambda: torch.rand(2, 3, 12, 12).to_sparse(),
    "tensor csr": _csr,
    "tensor quantised": _quantised,
    "tensor meta": lambda: torch.empty(2, 3, 12, 12, device="meta"),
    "tensor nan": lambda: torch.full((2, 3, 12, 12), float("nan")),
    "tensor inf": lambda: torch.full((2, 3, 12, 12), float("inf")),
    "tensor huge": lambda: torch.full((2, 3, 12, 12), 3e38),
    "tensor grad": lambda: torch.rand(2, 3, 12, 12, requires_grad=True) * 1,
    "tensor expanded": lambda: torch.rand(1, 1, 1, 1).expand(2, 3, 12, 12),
    "parameter": lambda: nn.Parameter(torch.rand(2, 3, 12, 12)),
    "nested tensor": _nested,
    "Scale": fv.Scale,
    "Layout": lambda: fv.Layout(),
    "class Scale": lambda: fv.Scale,
    "exception": lambda: ValueError("x"),
}
