"""A network that learns, and the same network broken on purpose: what does each look like while it trains?

A small CNN learns to tell circles from crosses twice. The second time the bias of its second convolution begins at -3,
so that none of its channels ever fires. Look at the third and fourth column of both reports: channels that are never
above 0 give nothing to what follows, no gradient reaches what is before them, and it stays as it was.

    python examples/watch.py --out featviz-watch

Offline: the drawings are made here. `--steps 20` is a first look.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import torch_featviz as fv
from torch_featviz.zoo import XO


def small() -> nn.Sequential:
    """Three convolutions, each at half the size of the one before."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((1, 8), (8, 16), (16, 16)):
        layers += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 2))


def broken() -> nn.Sequential:
    """The same, but no channel of the second convolution ever fires."""
    model = small()
    with torch.no_grad():
        model[3].bias.sub_(3)
    return model


def train(model: nn.Module, data: XO, steps: int) -> fv.Monitor:
    """Some steps on drawings in random order, watched at every fourth."""
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    watch = fv.Monitor(model, every=4)
    loader = DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(0))
    for images, labels in islice(cycle(loader), steps):
        with watch.step():
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return watch


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160, help="of each training (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("featviz-watch"), help="folder of the reports (%(default)s)")
    arguments = parser.parse_args(argv)
    data = XO("train")
    try:
        for name, model in (("healthy", small()), ("broken", broken())):
            watch = train(model, data, arguments.steps)
            watch.report(title=f"{name}: three convolutions and a classifier").save(arguments.out / f"{name}.png")
            last = watch.history[-1]
            print(f"{name}, channels never above 0 at step {last.step}:", end=" ")
            print(*(f"{seen.dead} of {seen.channels} in {layer}" for layer, seen in last.layers.items()), sep=", ")
    except fv.FeatvizError as error:
        print(f"watch: {error}", file=sys.stderr)
        return 1
    print(f"Look at the reports in {arguments.out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
