"""A Lightning training that is watched: one callback, and figures and pictures are in the trainer's own logger.

Circles are told from crosses. Figures, histograms and kernels of every fourth step go to TensorBoard, where that is
installed, and the report of the whole training is drawn at its end.

    python examples/lightning_loop.py --out featviz-lightning
    tensorboard --logdir featviz-lightning

Offline: the drawings are made here. `--steps 20` is a first look. Needs `pip install 'torch_featviz[lightning]'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from torch_featviz.training import LightningMonitor
from torch_featviz.zoo import XO


class Classifier(LightningModule):
    """Three convolutions, each at half the size of the one before."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 8), (8, 16), (16, 16)):
            layers += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 2))

    def training_step(self, batch: tuple[Tensor, Tensor], _number: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 2e-3)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160, help="of the training (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("featviz-lightning"), help="folder (%(default)s)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    monitor = LightningMonitor(every=4)
    trainer = Trainer(max_steps=arguments.steps, default_root_dir=arguments.out, callbacks=[monitor])
    trainer.fit(Classifier(), DataLoader(XO("train"), 16, shuffle=True))
    assert monitor.watch is not None
    monitor.watch.report(title="Circles and crosses").save(arguments.out / "report.png")
    print(f"Look at the report in {arguments.out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
