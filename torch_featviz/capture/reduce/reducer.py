"""Figures of a layer's outputs that need constant memory: what a reducer is, and one result from many ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from itertools import chain, islice
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from torch_featviz.displayed import Displayed
from torch_featviz.errors import DtypeError, LayerError, OptionError, ShapeError
from torch_featviz.torch_private import FakeTensor, is_mapped

from .transfer import fetch, to_host

R = TypeVar("R", bound="Reducer")
BLOCK = 2**18  # values; several passes over one block stay within a core's cache


def checked_dim(dim: Any) -> int | None:
    """The axis of channels as it was given, or None for where a capture finds it.

    Raises:
        OptionError: it is neither.
    """
    if dim is not None and (not isinstance(dim, int) or isinstance(dim, bool)):
        raise OptionError(f"dim must be an integer, the channel axis, got {dim!r}.")
    return dim


class Reducer(ABC, Displayed):
    """Base of streaming statistics: takes outputs one by one and keeps statistics, never the outputs.

    The result does not depend on how the data was split into calls; `merge` adds the statistics of another reducer. All
    work runs on the device of the outputs, without waiting for it. Reading copies the result to the CPU in one
    transfer, which is cached until the next update.

    A subclass defines its `settings`, how one output becomes a state (tensors that are replaced, never written to), and
    how two states are merged.
    """

    tensors: ClassVar[int]  # in a state

    def __init__(self) -> None:
        self._state: tuple[Tensor, ...] | None = None
        self._host: list[Tensor] | None = None

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""

    @property
    def asks_for_channels(self) -> bool:
        """Whether `update` has to be told the axis of channels, unless that is 1."""
        return False

    @abstractmethod
    def _arrange(self, output: Tensor, channels: int) -> Tensor:
        """`output`, which is not empty, as the view that `_add` expects; `channels` is the axis of channels."""

    @abstractmethod
    def _add(self, values: Tensor) -> tuple[Tensor, ...]:
        """The state after `values`."""

    @abstractmethod
    def _join(self, mine: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The state after the outputs of both, `mine` first."""

    @property
    def empty(self) -> bool:
        """Whether nothing was seen yet."""
        return self._state is None

    def fresh(self: R) -> R:
        """An empty reducer of this kind with these settings."""
        return type(self)(**self.settings)

    def update(self, output: Tensor, channels: int = 1) -> None:
        """Add one output.

        Args:
            output: the output of a layer.
            channels: the channel axis, unless the constructor was given one.
        Raises:
            DtypeError: not a dense tensor of real numbers.
            ShapeError: too few axes, or another number of channels than before.
        """
        values = real(output)
        if values.numel():
            self._state = self._add(self._arrange(values, channels))
            self._host = None

    def merge(self: R, other: R) -> None:
        """Add the statistics of `other`, as if its outputs came after those seen here. `other` is unchanged.

        Raises:
            OptionError: `other` is of another kind or has other settings.
            ShapeError: another number of channels.
        """
        if type(other) is not type(self) or other.settings != self.settings:
            raise OptionError(
                f"only statistics of the same kind and settings can be merged, got {self!r} and {other!r}."
            )
        if other._state is not None:
            theirs = other._state
            if self._state is not None:
                theirs = tuple(tensor.to(self._state[0].device) for tensor in theirs)
                same_channels(self._state[0].shape[-1], theirs[0].shape[-1])
                theirs = self._join(self._state, theirs)
            self._state, self._host = theirs, None

    def cpu(self: R) -> R:
        """A copy whose state is on the CPU."""
        twin = copy(self)
        if self._state is not None:
            twin._state = tuple(tensor.to("cpu", copy=True) for tensor in self._state)  # parts of larger ones
        return twin

    def _read(self) -> list[Tensor]:
        """The state on the CPU, floats in float64."""
        if self._state is None:
            raise LayerError(f"{self!r} has seen no output yet; run the model before reading.")
        if self._host is None:
            self._host = to_host(self._state)
        return self._host

    def _summary(self) -> str:
        return "" if self._state is not None else "nothing seen yet"

    def __repr__(self) -> str:
        parts = [*(f"{name}={value!r}" for name, value in self.settings.items()), self._summary()]
        return f"{type(self).__name__}({', '.join(filter(None, parts))})"


def across_ranks(states: Mapping[str, R], group: dist.ProcessGroup | None = None) -> dict[str, R]:
    """Merge the statistics of all processes of a distributed run.

    Every rank of the group must call this.

    Args:
        states: this rank's reducers, by layer name; they are unchanged.
        group: the process group; default: all ranks.
    Returns:
        The same result on every rank, on the CPU, merged in the order of ranks. A layer that ran only on some ranks is
        included with the data of these ranks.
    Raises:
        OptionError: ranks have different kinds of reducer or settings for the same layer.
    """
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, {name: state.cpu() for name, state in states.items()}, group=group)
    merged: dict[str, R] = {}
    for rank in gathered:
        for name, state in rank.items():
            if name not in merged:
                merged[name] = state.fresh()
            try:
                merged[name].merge(state)
            except OptionError as error:
                raise OptionError(f"layer {name!r} differs between ranks: {error}") from None
    return merged


def fetch_states(
    reducers: Iterable[Reducer], tensors: Iterable[Tensor] = ()
) -> Callable[[], tuple[list[list[np.ndarray]], list[np.ndarray]]]:
    """Begin to bring the states of several reducers and some tensors to the CPU, in one transfer a device.

    Returns:
        A function that waits for it and returns the states, none where nothing was seen, and the tensors; see `fetch`.
    """
    states = [reducer._state or () for reducer in reducers]
    sizes = [len(state) for state in states]
    read = fetch([*chain.from_iterable(states), *tensors])

    def read_all() -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
        arrived = iter(read())
        return [list(islice(arrived, size)) for size in sizes], list(arrived)

    return read_all


def real(output: Any) -> Tensor:
    """`output` outside of any graph, as float32, or as float64 where that could lose digits."""
    if not isinstance(output, Tensor):
        raise DtypeError(f"statistics need a tensor, got {type(output).__name__}; capture a layer that returns one.")
    if not has_figures(output):
        kind = output.dtype if output.is_complex() or output.is_quantized else output.layout
        raise DtypeError(f"statistics need dense tensors of real numbers, got {kind}.")
    narrow = output.is_floating_point() and output.dtype != torch.float64
    return output.detach().to(torch.float32 if narrow else wide(output.device))


def is_plain(output: Tensor) -> bool:
    """Whether its values lie in memory of its own, and not behind a wrapper's."""
    return type(output) in (Tensor, nn.Parameter, FakeTensor) and not is_mapped(output)


def has_figures(output: Tensor) -> bool:
    """Whether it is a dense tensor of real numbers."""
    return not (output.is_complex() or output.layout != torch.strided or output.is_nested or output.is_quantized)


def wide(device: torch.device) -> torch.dtype:
    """The dtype sums are kept in."""
    return torch.float32 if device.type == "mps" else torch.float64


def same_channels(before: int, now: int) -> None:
    """Raise ShapeError unless the two are equal."""
    if before != now:
        raise ShapeError(f"all outputs of a layer must have the same number of channels, got {now} after {before}.")


def exponent(value: Tensor) -> Tensor:
    """The exact `floor(log2(|value|))`, int64; one below the smallest normal exponent for zero and denormals."""
    if value.dtype == torch.float32:
        return ((value.view(torch.int32) >> 23) & 255).long() - 127
    return ((value.view(torch.int64) >> 52) & 2047) - 1023


def power_of_two(exponents: Tensor, dtype: torch.dtype) -> Tensor:
    """The exact `2.0 ** exponents`, for exponents of normal numbers."""
    if dtype == torch.float32:
        return ((exponents + 127) << 23).int().view(torch.float32)
    return ((exponents + 1023) << 52).view(torch.float64)


def eager_on_cpu(values: Tensor) -> bool:
    """Whether looking at a value costs nothing: not on a device with a queue, not while a graph is being traced."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()
