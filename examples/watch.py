"""A network that learns, watched: is every layer alive, and what become of its kernels?

A small CNN learns to tell circles from crosses in a plain loop. Beside the training a folder fills with figures and
pictures that can be looked at any time; at the end there are the report and two films.

    python examples/watch.py --out featviz-watch

Offline: the drawings are made here. `--steps 20` is a first look. What a Monitor says of networks that are broken on
purpose is in `broken.py`; the same in Lightning, HF Trainer and Ignite in `lightning_loop.py`, `hf_trainer.py` and
`ignite_loop.py`.
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


def train(steps: int, out: Path) -> fv.Monitor:
    """Some steps on drawings in random order, watched at every fourth."""
    model, data = small(), XO("train")
    circle, cross = (next(image for image, label in data if label == k) for k in (0, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    loader = DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(0))
    with fv.Monitor(model, every=4, probe=torch.stack([circle, cross]), noise=True, to=out) as watch:
        for number, (images, labels) in enumerate(islice(cycle(loader), steps)):
            with watch.step(number) as step:
                scores = model(images)
                loss = nn.functional.cross_entropy(scores, labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                step.log(loss=loss, accuracy=(scores.argmax(1) == labels).float().mean())
    return watch


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160, help="of the training (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("featviz-watch"), help="folder of everything (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        watch = train(arguments.steps, arguments.out)
        watch.report(title="Three convolutions and a classifier learn circles and crosses").save(
            arguments.out / "report.png"
        )
        watch.film("0").save(arguments.out / "kernels.webp")
        watch.film("3", "maps").save(arguments.out / "maps.webp")
        watch.film("3", "maps").save(arguments.out / "maps.png")
    except fv.FeatvizError as error:
        print(f"watch: {error}", file=sys.stderr)
        return 1
    print(f"{watch.history}; {len(watch.findings)} findings; {watch.noise_scale}. Look at what is in {arguments.out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
