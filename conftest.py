"""For every test: the same random numbers, what docstring examples use, one core for each process of pytest-xdist."""

import gc
import os
from importlib.util import find_spec

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


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Whatever ran before it in its process, a test draws the same weights."""
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """What was imported stays: with it out of sight, `gc.collect()` takes a hundredth of the time."""
    gc.freeze()
