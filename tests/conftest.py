"""What tests of several rooms share, and the seeds: what a test draws does not depend on the tests before it."""

import os
import random
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.forks import Forks

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # else each worker, and what it starts, would use all cores
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="of the random weights and images that tests draw (0)")


def draw_anew(config: pytest.Config, name: str) -> None:
    """Seed all that tests draw from, by the option and the name of what will draw."""
    seed = zlib.crc32(f"{config.getoption('seed')} {name}".encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pytest_collectstart(collector: pytest.Collector) -> None:
    draw_anew(collector.config, collector.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    draw_anew(item.config, item.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> None:
    """What several tests share is drawn alike, whichever of them comes first."""
    if fixturedef.scope != "function":
        draw_anew(request.config, fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    draw_anew(item.config, f"{item.nodeid} after its fixtures")


def instance_state(model: nn.Module) -> list[Any]:
    """All that a capture could leave behind in a model."""
    return [
        (
            sorted(module.__dict__),
            module.training,
            *(len(module.__dict__[k]) for k in module.__dict__ if "hooks" in k),
        )
        for module in model.modules()
    ]


@pytest.fixture(name="instance_state")
def instance_state_fixture() -> Any:
    return instance_state


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs code in processes that have imported PyTorch, with what compiles and shards models, and nothing else."""
    server = Forks("torch._inductor", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.nn.parallel")
    yield server
    server.close()
