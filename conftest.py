"""For every test: random numbers of its own, what docstring examples use, one core for each process of pytest-xdist."""

import gc
import os
import random
import zlib
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("quick", max_examples=30, deadline=None, derandomize=True)
settings.register_profile("full", max_examples=300, deadline=None)  # --hypothesis-profile full
settings.load_profile("quick")

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # its pool of processes takes longer to start than it saves
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: kernels run on the CPU
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what the tests start
    torch.set_num_threads(1)


if find_spec("triton") is None:  # where PyTorch was built for the CPU alone
    collect_ignore = ["torch_featviz/capture/reduce/kernels.py", "torch_featviz/picture/kernels.py"]


@pytest.fixture(autouse=True)
def _example_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace["torch"] = torch
    doctest_namespace["nn"] = torch.nn


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="of the random weights and images that tests draw (0)")


def draw_anew(config: pytest.Config, name: str) -> None:
    """Seed all that tests draw from, by the option and the name of what will draw, whatever ran before it."""
    seed = zlib.crc32(f"{config.getoption('seed')} {name}".encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pytest_collectstart(collector: pytest.Collector) -> None:
    draw_anew(collector.config, collector.nodeid)  # what a module draws when it is imported


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> None:
    draw_anew(request.config, f"{request.node.nodeid} {fixturedef.argname}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    draw_anew(item.config, item.nodeid)


def pytest_collection_finish() -> None:
    """What was imported stays: with it out of sight, `gc.collect()` takes a hundredth of the time."""
    gc.freeze()
