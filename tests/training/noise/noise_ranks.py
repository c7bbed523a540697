"""Run by test_noise_ranks.py in each rank: a training by DDP, with batch normalisation, and its noise scale."""

import copy
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from torch_featviz.errors import OptionError
from torch_featviz.training.noise import GradientNoise

STEPS = 3


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def data(step, rank):
    g = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(8, 1, 8, 8, generator=g), torch.randint(3, (8,), generator=g)


def gradient(plain, x, y, parts):
    """Of the mean loss over parts of a batch, each normalised on its own, by a copy that no rank knows of."""
    plain.zero_grad()
    for i, j in zip(x.split(8 // parts), y.split(8 // parts), strict=True):
        (F.cross_entropy(plain(i), j) / parts).backward()
    return torch.cat([each.grad.flatten() for each in plain.parameters()]).double()


def norms(model, noise, parts, *, sync=False):
    """What the noise scale says of three steps, and what each of its two norms should be."""
    rank, ranks, said = dist.get_rank(), dist.get_world_size(), []
    for step in range(STEPS):
        x, y = data(step, rank)
        copied = copy.deepcopy(model.module)
        grads = [gradient(copied, *data(step, each), parts) for each in range(ranks)]
        of_small = sum(float(each.square().sum()) for each in grads) / ranks
        of_big = float((sum(grads) / ranks).square().sum())
        for i, (a, b) in enumerate(zip(x.split(8 // parts), y.split(8 // parts), strict=True)):
            with noise.block(), nullcontext() if sync or i == parts - 1 else model.no_sync():
                (F.cross_entropy(model(a), b) / parts).backward()
                if i == parts - 1:
                    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        model.zero_grad()
        numbers = [float(each) for each in noise.sums()]
        noise.take(numbers)
        said.append([numbers, [8, 8 * ranks, of_small, of_big]])
    return said


def main(out):
    dist.init_process_group("gloo")
    rank, said = dist.get_rank(), {}
    for name, parts, view in (("plain", 1, False), ("view", 1, True), ("parts", 2, False), ("parts, view", 2, True)):
        model = DistributedDataParallel(net(), gradient_as_bucket_view=view)
        noise = GradientNoise(model, dist.group.WORLD)
        said[name] = norms(model, noise, parts)
        said[f"{name}: scale"] = [noise.scale.value, noise.scale.looks, noise.scale.layers, noise.scale.left_out]
    for view in (False, True):
        model = DistributedDataParallel(net(), gradient_as_bucket_view=view)
        noise = GradientNoise(model, dist.group.WORLD)
        norms(model, noise, 2, sync=True)
        said[f"averaged twice {view}"] = [noise.scale.looks, noise.scale.left_out]
    noise = GradientNoise(model, dist.group.WORLD)
    with noise.block():
        F.cross_entropy(model(data(0, rank)[0]), data(0, rank)[1]).backward()
    if rank == 1:
        noise._step._of_all.clear()
    noise.take([float(each) for each in noise.sums()])
    said["one knows nothing"] = [noise.scale.looks, noise.scale.left_out]
    noise = GradientNoise(nn.Sequential(nn.SyncBatchNorm(3)), dist.group.WORLD)
    with noise.block():
        pass
    try:
        said["sync"] = str(noise.scale)
    except OptionError as error:
        said["sync"] = str(error)
    (out / f"{rank}.json").write_text(json.dumps(said))
    time.sleep(0.3)  # torch 2.6 waits for ever for threads that have not let go of their tensors yet
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
