"""Where work is handed to a device: kernels, tables sent to it, and addresses of tensors.

Each stands behind one function, so that launches can be counted where there is no device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_featviz.warn import warn

_counts: list[Callable[[], None]] = []  # called for each launch instead of launching


@contextmanager
def counting(count: Callable[[], None]) -> Iterator[None]:
    """Within the block `count()` is called instead of launching, for tensors that only say they are on a GPU."""
    _counts.append(count)
    try:
        yield
    finally:
        _counts.pop()


def available(device: torch.device) -> bool:
    """Whether kernels of this package run on `device`."""
    return device.type == "cuda" and (bool(_counts) or _runs(device))


@cache
def _runs(device: torch.device) -> bool:
    """Whether one does, which is tried once.

    Warns:
        FeatvizWarning: Triton is here and runs nothing, for want of a C compiler, say.
    """
    if find_spec("triton") is None:
        return False
    try:
        tried = torch.zeros(1, dtype=torch.int64, device=device)
        launch("probe", 1, tried)
        return bool(tried.item() == 1)
    except Exception as error:  # whatever a compiler and a driver may raise
        warn(f"figures are kept layer by layer, with many more launches, since Triton runs no kernel here: {error}")
        return False


def launch(kernel: str, programs: int, *arguments: Any, **constants: Any) -> None:
    """Run so many programs of one of `kernels`."""
    if _counts:
        _counts[-1]()
        return
    kernels = import_module(".kernels", __package__)  # Triton takes a second to import
    getattr(kernels, kernel)[(programs,)](*arguments, **constants)


def upload(table: np.ndarray, device: torch.device) -> Tensor:
    """A table in the device's memory; nothing waits for the copy."""
    if _counts:
        _counts[-1]()
        return torch.empty(table.shape, dtype=torch.int64, device=device)
    host = torch.from_numpy(table)
    return host.clone() if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def pointers(tensors: Iterable[Tensor]) -> list[int]:
    """Where each tensor begins."""
    return [0 if _counts else tensor.data_ptr() for tensor in tensors]
