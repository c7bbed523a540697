"""Run by test_ranks.py in each rank: a watched training on each rank's part of the data, by DDP and by FSDP2."""

import copy
import json
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from torch_featviz.errors import DtypeError
from torch_featviz.model.twin import twin
from torch_featviz.training import Monitor

STEPS = 3


def net():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 5, 3)
    with torch.no_grad():
        conv.bias[2] = -9  # a dead channel
    return nn.Sequential(conv, nn.ReLU(inplace=True), nn.Conv2d(5, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))


def data():
    torch.manual_seed(1)
    x = torch.randn(STEPS, 8, 1, 8, 8)
    x[1, 6, 0, 0, 0] = torch.nan  # in the last rank's part, and of one step only
    return x


def train(model, watch, part):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step, x in enumerate(data()):
        with watch.step() as seen:
            y = model(x[part])
            loss = y.nan_to_num().square().mean()
            loss.backward()
            seen.log(loss=loss)
            if step == 1:  # its gradients are broken
                optimizer.zero_grad()
            optimizer.step()
            optimizer.zero_grad()


def twin_of(model):
    """The class of a twin, or why there is none."""
    try:
        return type(twin(model)).__name__
    except DtypeError as error:
        return str(error)


def main(out):
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    part = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    plain = net()
    sharded = copy.deepcopy(plain)
    fully_shard(sharded)
    given = copy.deepcopy(plain)
    cases = {
        "ddp": (DistributedDataParallel(copy.deepcopy(plain)), {}),
        "fsdp": (sharded, {}),
        "group": (DistributedDataParallel(given).module, {"group": dist.group.WORLD}),
    }
    for name, (model, options) in cases.items():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with Monitor(model, every=1, to=out / name, probe=torch.ones(1, 1, 8, 8), **options) as watch:
                runs = DistributedDataParallel(model) if name == "group" else model
                train(runs, watch, part)
        said = {
            "samples": [sample.as_dict() for sample in watch.history],
            "found": [finding.text for finding in watch.findings],
            "told": [str(each.message) for each in told if "featviz" in type(each.message).__module__],
            "film": [watch.film("0").steps, watch.film("0", "maps").steps],
        }
        said["twin"] = twin_of(model)
        if name == "ddp":  # goes on in the folder: all ranks with the number that the first one found there
            dist.barrier()
            with Monitor(model, every=2, to=out / name) as watch:
                train(model, watch, part)
            said["again"] = watch.history.steps[-2:]
        (out / f"{name}{rank}.json").write_text(json.dumps(said))
    time.sleep(0.3)  # torch 2.6 waits for ever for threads that have not let go of their tensors yet
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
