"""What tests of several rooms share."""

from typing import Any

import pytest
from torch import nn


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
