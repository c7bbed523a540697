"""Why convolutions? An MLP with 3.7 million parameters against CNNs with 18 thousand and 5.9 million, on CIFAR-10.

The nets are trained in the same way, with augmentation. Look at the table of parameters and accuracy, at the confusion
matrix (cats are dogs), and at the first kernels: colours and edges. `--three` keeps airplane, automobile and ship.

    python examples/cifar.py --data data --download --net cifar_cnn_large --epochs 10

CIFAR-10 (170 MB) has to be in `--data`, or be fetched with `--download`; all else works offline.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

import torch_featviz as fv
from torch_featviz.zoo import ModelCard, card, cifar10, evaluate, fit

NETS = ("cifar_mlp", "cifar_cnn", "cifar_cnn_large")
THREE = {0: 0, 1: 1, 8: 2}  # airplane, automobile, ship


def three_of(data: Dataset[Any]) -> list[tuple[Any, int]]:
    """The images of three classes, numbered anew."""
    return [(image, THREE[label]) for image, label in (data[i] for i in range(len(data))) if label in THREE]


def save_checkpoint(model: torch.nn.Module, path: Path) -> None:
    """Write beside, then rename: what has the name is whole."""
    aside = path.with_suffix(".part")
    torch.save(model.state_dict(), aside)
    os.replace(aside, path)


def run(info: ModelCard, train: Any, test: Any, out: Path, *, epochs: int, batch: int = 128) -> float:
    """Train one net on unit-range images, write its sheets, and return its accuracy."""
    out.mkdir(parents=True, exist_ok=True)
    vary = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()])

    def collate(rows: list[tuple[Any, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = zip(*rows, strict=True)
        return info.normalize(torch.stack(images)), torch.tensor(labels)

    def augment(images: torch.Tensor) -> torch.Tensor:
        return torch.stack([vary(image) for image in images])

    model = info.build()
    held_out = DataLoader(test, batch, collate_fn=collate)
    history = fit(
        model, DataLoader(train, batch, shuffle=True, collate_fn=collate), held_out, epochs=epochs, augment=augment
    )
    save_checkpoint(model, out / f"{info.name}.pt")
    model = info.load(out / f"{info.name}.pt")
    result = evaluate(model, held_out)
    loss = {"train": history.train_loss, "valid": history.valid_loss}
    accuracy = {"train": history.train_accuracy, "valid": history.valid_accuracy}
    fv.curves({"loss": loss, "accuracy": accuracy}, title=info.name).save(out / f"{info.name}-curves.png")
    fv.confusion(result.confusion, info.classes, title=info.name).save(out / f"{info.name}-confusion.png")
    images, labels = zip(*(test[i] for i in range(min(12, len(test)))), strict=True)
    answers = fv.predictions(torch.stack(images), result.logits[: len(images)], info.classes, targets=labels)
    answers.save(out / f"{info.name}-predictions.png")
    if isinstance(model.get_submodule(info.low), torch.nn.Conv2d):
        fv.kernels(model, info.low).save(out / f"{info.name}-kernels.png")
        with torch.no_grad(), fv.capture(model, info.low) as acts:
            model(info.normalize(images[0])[None])
        fv.feature_maps(acts[info.low][0], title=f"{info.low} on one image").save(out / f"{info.name}-maps.png")
    return result.accuracy


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="where CIFAR-10 is (%(default)s)")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR-10 when it is not there")
    parser.add_argument("--net", choices=NETS, action="append", help="may be given again (all of them)")
    parser.add_argument("--three", action="store_true", help="airplane, automobile and ship only, small CNN")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit", type=int, help="so many images of each set")
    parser.add_argument("--out", type=Path, default=Path("featviz-cifar"), help="folder of the sheets (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        train, test = (cifar10(arguments.data, train=part, download=arguments.download) for part in (True, False))
        if arguments.limit:
            train, test = (Subset(data, range(min(arguments.limit, len(data)))) for data in (train, test))
        mean, std = fv.channel_stats(train)
        print(f"channels: mean {mean.numpy().round(4)}, std {std.numpy().round(4)}")
        names = ["cifar_cnn_3"] if arguments.three else arguments.net or NETS
        if arguments.three:
            train, test = three_of(train), three_of(test)
        fv.samples(train, classes=card(names[0]).classes, title="CIFAR-10").save(arguments.out / "samples.png")
        print(f"{'net':<16} {'parameters':>12} {'held out':>10}")
        for name in names:
            parameters = sum(p.numel() for p in card(name).build().parameters())
            accuracy = run(card(name), train, test, arguments.out, epochs=arguments.epochs)
            print(f"{name:<16} {parameters:>12,} {accuracy:>10.1%}")
    except fv.FeatvizError as error:
        print(f"cifar: {error}", file=sys.stderr)
        return 1
    print(f"Look at the sheets in {arguments.out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
