"""Three networks broken on purpose: what does a Monitor say of each, and how soon?

All are to tell circles from crosses. The first begins with weights that are far too small; the second has biases that
shut off one layer of ReLUs; the third meets a broken image after a while. A healthy network is trained in the same way:
nothing should be said of it.

    python examples/broken.py --out featviz-broken

Offline: the drawings are made here. In a program of your own each finding is a warning, told when it is seen.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import torch_featviz as fv
from torch_featviz.errors import FindingWarning
from torch_featviz.zoo import XO

Batches = Iterator[tuple[Tensor, Tensor]]


def healthy() -> nn.Sequential:
    """Four convolutions, the first three at half the size of the one before."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((1, 8), (8, 16), (16, 16), (16, 16)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 2))


def badly_begun() -> nn.Sequential:
    """The same with weights that are a thousandth of what they should be, and without biases."""
    model = healthy()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(0 if name.endswith("bias") else 1e-3)
    return model


def shut_off() -> nn.Sequential:
    """The same, but no channel of the third convolution ever fires."""
    model = healthy()
    with torch.no_grad():
        model[4].bias.sub_(10)
    return model


def whole(batches: Batches) -> Batches:
    return batches


def with_a_broken_image(batches: Batches) -> Batches:
    """One pixel of the 20th batch is no number."""
    for step, (images, labels) in enumerate(batches):
        if step == 20:
            images[0, 0, 50, 50] = torch.nan
        yield images, labels


CASES: dict[str, tuple[Callable[[], nn.Sequential], Callable[[Batches], Batches]]] = {
    "healthy": (healthy, whole),
    "badly begun": (badly_begun, whole),
    "shut off": (shut_off, whole),
    "a broken image": (healthy, with_a_broken_image),
}


def train(model: nn.Module, batches: Batches) -> fv.Monitor:
    """Learn from each batch, watched at every fourth."""
    optimizer, watch = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), fv.Monitor(model, every=4)
    for images, labels in batches:
        with watch.step() as step:
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step.log(loss=loss)
    return watch


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of each training (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("featviz-broken"), help="folder of the reports (%(default)s)")
    arguments = parser.parse_args(argv)
    data = XO("train")
    try:
        for name, (build, spoil) in CASES.items():
            loader = DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(0))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FindingWarning)  # all are printed below
                watch = train(build(), spoil(islice(cycle(loader), arguments.steps)))
            print(f"{name}: {len(watch.findings)} found")
            for found in watch.findings:
                print(f"  step {found.step}, {found.kind}: {found.text}")
            watch.report(title=name).save(arguments.out / f"{name.replace(' ', '-')}.png")
    except fv.FeatvizError as error:
        print(f"broken: {error}", file=sys.stderr)
        return 1
    print(f"Look at the reports in {arguments.out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
