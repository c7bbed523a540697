"""Oracles for capture, written differently: hooks that clone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn


def clone(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: clone(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [clone(item) for item in value]
    return value


def hooked(model: nn.Module, call: Callable[[], Any]) -> tuple[Any, list[tuple[str, Any]]]:
    """What `call()` returns, and a clone of what every leaf call of `model` returned, in order."""
    seen: list[tuple[str, Any]] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.append((name, clone(output))))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        return call(), seen
    finally:
        for handle in handles:
            handle.remove()


def same(a: Any, b: Any) -> bool:
    """Bit for bit, NaN equal to NaN; tuples, lists and dicts item by item."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return isinstance(b, (tuple, list)) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture(name="hooked")
def hooked_fixture() -> Any:
    return hooked


@pytest.fixture(scope="session")
def oracles() -> Any:
    return hooked, same


@pytest.fixture(name="same")
def same_fixture() -> Any:
    return same


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
