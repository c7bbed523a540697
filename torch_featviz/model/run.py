"""How a model is run so that nothing about it changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode for the length of the block; afterwards each one's own flag is put back."""
    flags = {module: module.training for module in model.modules()}
    try:
        for module in flags:
            module.training = False  # and not eval(), which modules may override to change their weights
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
