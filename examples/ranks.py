"""One training in two processes (DistributedDataParallel), watched as one: figures are those of the global batch.

Each process learns from its half of every batch of drawn circles and crosses. Both have a Monitor, as figures are
merged between them; the first one alone writes, warns, and draws the report.

    torchrun --nproc-per-node 2 examples/ranks.py --out featviz-ranks

Offline, on the CPU (gloo). `--steps 20` is a first look. FSDP2 needs nothing else: give the Monitor the sharded model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from watch import small

import torch_featviz as fv
from torch_featviz.zoo import XO


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160, help="of the training (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("featviz-ranks"), help="folder (%(default)s)")
    arguments = parser.parse_args(argv)
    dist.init_process_group("gloo")
    data = XO("train")
    loader = DataLoader(data, 8, sampler=DistributedSampler(data, seed=0))
    model = DistributedDataParallel(small())
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    with fv.Monitor(model, every=4, to=arguments.out / "figures") as watch:
        for images, labels in islice(cycle(loader), arguments.steps):
            with watch.step() as step:
                loss = nn.functional.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                step.log(loss=loss)
    if dist.get_rank() == 0:
        watch.report(title="Two processes, one training").save(arguments.out / "report.png")
        values = sum(watch.history[0].layers["0"].histogram.counts)
        print(f"{values:,} values of layer 0 in step 0: those of {values // (8 * 116 * 116)} drawings.")
        print(f"Look at the figures and the report in {arguments.out}.")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
