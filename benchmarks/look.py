"""What a first look costs: forwards counted, and its time beside that of importing torch and torchvision.

    python benchmarks/look.py

Images that go through the network are counted, in its copies too. Imports are timed in a process of their own each.
"""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import import_module

import torch
from PIL import Image
from torch import nn

import torch_featviz as fv
from torch_featviz.zoo import card

MODELS = ("efficientnet_lite0", "torchvision:resnet18")
MOST = 100


class Counted(nn.Module):
    """A network that counts the images it is given."""

    images = 0

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Counted.images += len(x)
        scores: torch.Tensor = self.net(x)
        return scores


def imported(modules: str) -> float:
    """Seconds of an import in a fresh process, that of starting Python taken off."""
    times = []
    for code in ("pass", f"import {modules}"):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - start)
    return times[1] - times[0]


def main() -> int:
    cat = Image.fromarray(import_module("skimage.data").chelsea())
    most = 0
    for name in MODELS:
        info = card(name)
        random = info.weights is None or name.startswith("torchvision")
        torch.manual_seed(0)
        net = Counted(info.build().eval() if random else info.load())
        Counted.images = 0
        start = time.perf_counter()
        page = fv.look(net, cat, card=info)
        page.png()
        seconds = time.perf_counter() - start
        most = max(most, Counted.images)
        weights = "random weights" if random else "its own weights"
        print(f"{name}, {weights}: {Counted.images} forwards, {seconds:.1f} s, page and PNG")
    print(f"import torch, torchvision: {imported('torch, torchvision'):.1f} s in a fresh process")
    return int(most > MOST)


if __name__ == "__main__":
    sys.exit(main())
