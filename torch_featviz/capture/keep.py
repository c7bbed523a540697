"""Ways to keep outputs themselves: the last few, or copies on the CPU; and what of an output is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_featviz.errors import OptionError
from torch_featviz.model.values import map_tensors, tensors
from torch_featviz.torch_private import in_graph_pool


class Ring:
    """Keep the outputs of the last `n` forwards: `capture(model, layers, into=Ring(3))`.

    Each layer name gives a list of outputs, the oldest first.

    Args:
        n: number of forwards, 1 or more.

    Raises:
        OptionError: `n` is not a positive integer.

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
            raise OptionError(f"Ring(n) needs n of at least 1 forward, got {n!r}.")
        self.n = n

    def __repr__(self) -> str:
        return f"Ring({self.n})"


class ToCPU:
    """Keep copies on the CPU: `capture(model, layers, into=ToCPU())`.

    On CUDA each output is copied into pinned memory on a separate stream, so that the copy overlaps with the forward.
    Device work after the forward waits for the copies. Reading waits for them once.

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


class Keeper:
    """Makes of a layer's output what a capture keeps of it.

    Args:
        into: is given the output, and what it returns is kept; None keeps the output.
        detach: whether copies are detached.
        channels_last: the memory layout of maps in compiled graphs.
    """

    def __init__(self, into: Callable[[Any], Any] | None, *, detach: bool, channels_last: bool) -> None:
        self.into = into
        self.detach = detach
        self._to_cpu = into if isinstance(into, ToCPU) else None
        self._channels_last = channels_last

    @property
    def returns_views(self) -> bool:
        """Whether `into` may keep the output's memory."""
        return self.into is not None and self._to_cpu is None

    def value(self, output: Any, *, copy: bool) -> Any:
        """The output, or a copy, or what `into` makes of that. Inference tensors are copied: they have no version."""
        if copy or any(tensor.is_inference() for tensor in tensors(output)):
            output = map_tensors(self.copy, output)
        elif not isinstance(output, Tensor):
            output = map_tensors(_same, output)
        return self.through(output)

    def through(self, output: Any) -> Any:
        """What `into` makes of it."""
        if self.into is None:
            return output
        with torch.no_grad():
            return self.into(map_tensors(Tensor.detach, output))

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy, in memory of its own."""
        return (tensor.detach() if self.detach and tensor.requires_grad else tensor).clone()

    def traced(self, output: Any) -> tuple[Any, bool]:
        """A copy made inside a compiled graph, which leaves the copying out where it may, and whether it was relaid.

        Such a graph keeps the maps of convolutions in channels-last order. A copy in another order would be one more
        pass over memory, and a slow one; so the order is put right when, and if, the record is read.
        """
        if self.into is not None and self._to_cpu is None:
            output = self.through(output)
        if self._channels_last and isinstance(output, Tensor) and output.dim() == 4 and output.is_contiguous():
            kept = output.detach() if self.detach else output
            return kept.clone(memory_format=torch.channels_last), True
        return map_tensors(self._traced_clone, output), False

    def _traced_clone(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if self.detach else tensor.clone()

    def out_of_graph(self, value: Any) -> Any:
        """The same once the graph is over."""
        return self._to_cpu(value) if self._to_cpu else map_tensors(_out_of_graph_pool, value)

    def fence(self) -> None:
        """Make the device's later work wait for copies to the CPU."""
        if self._to_cpu is not None:
            self._to_cpu.fence()

    def wait(self) -> None:
        """Wait for copies to the CPU."""
        if self._to_cpu is not None:
            self._to_cpu.wait()


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _out_of_graph_pool(tensor: Tensor) -> Tensor:
    """A copy, where `tensor` may lie in the memory of a CUDA graph, which the graph's next run overwrites."""
    return tensor.clone() if in_graph_pool(tensor) else tensor
