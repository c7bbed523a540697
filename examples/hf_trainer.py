"""A training by the Trainer of Hugging Face that is watched: one callback, and a folder of figures and kernels.

Circles are told from crosses, with gradients of two batches in each step. The folder has a line of figures and a
picture of each convolution's kernels for every fourth step; the report of the whole training is drawn at its end.

    python examples/hf_trainer.py --out featviz-hf

Offline: the drawings are made here. `--steps 20` is a first look. Needs `pip install 'torch_featviz[transformers]'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from torch_featviz.training import HFMonitor
from torch_featviz.zoo import XO


class Classifier(nn.Module):
    """Three convolutions, each at half the size of the one before; with labels it returns its loss first."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 8), (8, 16), (16, 16)):
            layers += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 2))

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.net(images)
        return nn.functional.cross_entropy(scores, labels), scores


def collate(drawn: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    images, labels = zip(*drawn, strict=True)
    return {"images": torch.stack(images), "labels": torch.tensor(labels)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160, help="of the training (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("featviz-hf"), help="folder (%(default)s)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    monitor = HFMonitor(every=4, to=arguments.out / "figures")
    settings = TrainingArguments(
        output_dir=str(arguments.out),
        max_steps=arguments.steps,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=2e-3,
        save_strategy="no",
        report_to=[],
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    Trainer(Classifier(), settings, collate, XO("train"), callbacks=[monitor]).train()
    assert monitor.watch is not None
    monitor.watch.report(title="Circles and crosses").save(arguments.out / "report.png")
    print(f"Look at the figures and the report in {arguments.out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
