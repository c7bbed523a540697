"""What a run could change besides the model's output, and how it is put back: modes, buffers, random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode for the length of the block, and put back each one's own flag."""
    flags = {module: module.training for module in model.modules()}
    try:
        set_training(model, False)
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def set_training(model: nn.Module, flag: bool) -> None:
    """Set the flag of every module; not by train() or eval(), which modules may override to change their weights."""
    for module in model.modules():
        module.training = flag


@contextmanager
def isolated(seed: int = 0) -> Iterator[None]:
    """Enable gradients and seed all generators; restore both on exit.

    Inference mode is left meanwhile: its tensors have to be cloned in the block before they are used.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices), _generators_of_the_host(), torch.inference_mode(False), torch.enable_grad():
        seed_all(seed)
        yield


@contextmanager
def _generators_of_the_host() -> Iterator[None]:
    """Put numpy's and Python's random states back at the end of the block."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def seed_all(seed: int) -> None:
    """Seed all generators; CUDA's only where it is in use, lest its own first seed be replaced."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class _Buffer(NamedTuple):
    owner: dict[str, Tensor | None]
    name: str
    tensor: Tensor
    before: Tensor


class Kept:
    """A model's buffers and the random generators of its devices as they are now.

    Args:
        model: the one that is about to run as itself, in whatever mode it is.
    """

    def __init__(self, model: nn.Module) -> None:
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        self._devices = [device for device in devices if device.type not in ("cpu", "meta")]
        self._buffers = {
            id(tensor): _Buffer(module._buffers, name, tensor, tensor.detach().clone())
            for module in model.modules()
            for name, tensor in module._buffers.items()
            if tensor is not None and not is_lazy(tensor)
        }

    def before(self, buffer: Tensor) -> Tensor:
        """What a buffer was; itself, where it was none."""
        return self._buffers[id(buffer)].before if id(buffer) in self._buffers else buffer

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put buffers and generators back at the end of the block."""
        try:
            kind = self._devices[0].type if self._devices else "cuda"
            with torch.random.fork_rng(self._devices, device_type=kind), _generators_of_the_host():
                yield
        finally:
            for buffer in self._buffers.values():
                buffer.owner[buffer.name] = buffer.tensor
                if not torch.equal(buffer.tensor, buffer.before):
                    with torch.inference_mode(buffer.tensor.is_inference()):
                        buffer.tensor.data.copy_(buffer.before)  # of no consequence to an earlier forward's backward
