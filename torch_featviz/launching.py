"""Where work is handed to a GPU: kernels, tables sent to it, and addresses of tensors.

Each stands behind one method, so that launches can be counted where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .warn import warn

_LEAST = 2**26


class Gpu:
    """All GPUs of this process, or tensors that only say they are on one."""

    def __init__(self) -> None:
        self._counts: list[Callable[[], None]] = []  # called for each launch instead of launching
        self._constants: dict[tuple[Hashable, torch.device], Tensor] = {}
        self._counted: set[tuple[Hashable, torch.device]] = set()  # constants, in the block that counts
        self._kernels: dict[str, Any] = {}  # by name
        self._runs: dict[torch.device, bool] = {}  # whether a kernel does

    def available(self, device: torch.device) -> bool:
        """Whether kernels of this package run on `device`, which is tried once.

        Warns:
            FeatvizWarning: Triton is here and runs nothing, for want of a C compiler, say.
        """
        if device.type != "cuda":
            return False
        if device not in self._runs and not self._counts:
            self._runs[device] = find_spec("triton") is not None and self._try(device)
        return bool(self._counts) or self._runs[device]

    def budget(self, device: torch.device) -> int:
        """Bytes of outputs that may wait to be read together: few, beside all that the device has."""
        if self._counts or device.type != "cuda":
            return _LEAST
        return max(_LEAST, int(torch.cuda.get_device_properties(device).total_memory) >> 8)

    def launch(self, kernel: str, programs: int, *arguments: Any, **constants: Any) -> None:
        """Run so many programs of a Triton kernel, which is told as `"capture.reduce.kernels:read"`.

        The first of its arguments is a tensor.
        """
        if self._counts:
            self._counts[-1]()
            return
        if kernel not in self._kernels:
            file, _, name = kernel.partition(":")
            self._kernels[kernel] = getattr(import_module(f"{__package__}.{file}"), name)  # Triton takes a second
        function, (first, *_) = self._kernels[kernel][programs,], arguments
        if first.is_cuda and first.get_device() != torch.cuda.current_device():
            with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
                function(*arguments, **constants)
        else:
            function(*arguments, **constants)

    def upload(self, table: np.ndarray, device: torch.device) -> Tensor:
        """A table in the device's memory; nothing waits for the copy."""
        host = torch.from_numpy(table)
        if self._counts:
            self._counts[-1]()
            return torch.empty(host.shape, dtype=host.dtype, device=device)
        return host.clone() if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)

    def download(self, tensor: Tensor) -> Callable[[], np.ndarray]:
        """Begin to copy a tensor to the CPU; what is returned waits for the copy. From a CPU it is not copied."""
        if tensor.device.type != "cuda" or self._counts:
            there = tensor.cpu().numpy()
            return lambda: there
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(tensor.device))

        def wait() -> np.ndarray:
            copied.synchronize()
            return host.numpy()

        return wait

    def constant(self, key: Hashable, make: Callable[[], Tensor], device: torch.device) -> Tensor:
        """What `make` returns, which is the same for one `key`, in the device's memory; copied there once."""
        if self._counts:
            made = make()
            if (key, device) not in self._counted:
                self._counted.add((key, device))
                self._counts[-1]()
            return torch.empty(made.shape, dtype=made.dtype, device=device)
        if (key, device) not in self._constants:
            self._constants[key, device] = make().to(device)
        return self._constants[key, device]

    def pointers(self, tensors: Iterable[Tensor]) -> list[int]:
        """Where each tensor begins."""
        return [0 if self._counts else tensor.data_ptr() for tensor in tensors]

    @contextmanager
    def counting(self, count: Callable[[], None]) -> Iterator[None]:
        """Within the block `count()` is called instead of launching, and every GPU is one that kernels run on."""
        self._counts.append(count)
        self._counted.clear()
        try:
            yield
        finally:
            self._counts.pop()

    def _try(self, device: torch.device) -> bool:
        try:
            tried = torch.zeros(1, dtype=torch.int64, device=device)
            self.launch("capture.reduce.kernels:probe", 1, tried)
            return bool(tried.item() == 1)
        except Exception as error:  # whatever a compiler and a driver may raise
            warn(f"figures take many more launches, since Triton runs no kernel here: {error}")
            return False


gpu = Gpu()
