"""An Ignite engine that is watched, beside an evaluator of the same network that is not.

Circles are told from crosses. The folder has a line of figures and a picture of each convolution's kernels for every
fourth step; the report of the whole training is drawn at its end.

    python examples/ignite_loop.py --out featviz-ignite

Offline: the drawings are made here. `--steps 20` is a first look. Needs `pip install 'torch_featviz[ignite]'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Accuracy
from torch import nn
from torch.utils.data import DataLoader

from torch_featviz.training import Monitor, attach_ignite
from torch_featviz.zoo import XO


def small() -> nn.Sequential:
    """Three convolutions, each at half the size of the one before."""
    layers: list[nn.Module] = []
    for before, after in ((1, 8), (8, 16), (16, 16)):
        layers += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 2))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160, help="of the training (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("featviz-ignite"), help="folder (%(default)s)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    trainer = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss())
    evaluator = create_supervised_evaluator(model, {"accuracy": Accuracy()})
    test = DataLoader(XO("test"), 50)

    @trainer.on(Events.ITERATION_COMPLETED(every=max(1, arguments.steps // 4)))
    def evaluate() -> None:
        accuracy = evaluator.run(test).metrics["accuracy"]
        print(f"after {trainer.state.iteration} steps {accuracy:.0%} of the test drawings are told right")

    with Monitor(model, every=4, to=arguments.out / "figures") as watch:
        attach_ignite(trainer, watch)
        trainer.run(DataLoader(XO("train"), 16, shuffle=True), max_iters=arguments.steps)
    watch.report(title="Circles and crosses").save(arguments.out / "report.png")
    print(f"Look at the figures and the report in {arguments.out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
