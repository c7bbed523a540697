"""What tests of several rooms share."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

from tests.forks import Forks


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
