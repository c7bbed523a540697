"""Ways to keep outputs themselves: the last few, or copies on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_featviz.errors import OptionError
from torch_featviz.model.values import map_tensors


class Ring:
    """Keep the outputs of the last `n` forwards: `capture(model, layers, into=Ring(3))`.

    Read by layer name, each layer's outputs are a list, the oldest first.

    Args:
        n: how many forwards, 1 or more.

    Raises:
        OptionError: `n` is no such number.

    Example:
        >>> from torch_featviz import capture
        >>> model = nn.Sequential(nn.Flatten())
        >>> with capture(model, "0", into=Ring(2)) as last:
        ...     for value in range(5):
        ...         output = model(torch.full((1, 1), value))
        >>> last["0"]
        [tensor([[3]]), tensor([[4]])]
    """

    def __init__(self, n: int) -> None:
        if not isinstance(n, int) or n < 1:
            raise OptionError(f"a ring keeps 1 or more forwards, got {n!r}.")
        self.n = n

    def __repr__(self) -> str:
        return f"Ring({self.n})"


class ToCPU:
    """Keep copies on the CPU: `capture(model, layers, into=ToCPU())`.

    On CUDA each output is copied into pinned memory on a stream of its own, so that the copy runs beside the forward;
    what comes after the forward waits for it, on the device. Reading waits for the copies, once. Not yet run on a GPU.

    Example:
        >>> from torch_featviz import capture
        >>> model = nn.Sequential(nn.Flatten())
        >>> with capture(model, "0", into=ToCPU()) as acts:
        ...     output = model(torch.zeros(1, 2, 2))
        >>> acts["0"].device
        device(type='cpu')
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._busy: set[torch.device] = set()

    def __call__(self, output: Any) -> Any:
        return map_tensors(self._copy, output)

    def _copy(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor.to("cpu", copy=True)
        device = tensor.device
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            copy = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)  # its memory is not given away before the copy is done
        self._busy.add(device)
        return copy

    def fence(self) -> None:
        """Make the device's later work wait for the copies under way."""
        for device in self._busy:
            torch.cuda.current_stream(device).wait_stream(self._streams[device])

    def wait(self) -> None:
        """Wait until every copy is there."""
        while self._busy:
            self._streams[self._busy.pop()].synchronize()

    def __repr__(self) -> str:
        return "ToCPU()"
