"""A forward watched operator by operator: what is known of the input is carried on to all that is computed of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from torch_featviz.torch_private import (
    StorageWeakRef,
    TorchDispatchMode,
    schema_of,
    storage_id,
    tree_leaves,
    uncompiled,
)

T = TypeVar("T")
_CONSTANT = (
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided"),
)
Key = tuple[int, int, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Call(Generic[T]):
    """One call of an operator.

    Args:
        function: the ATen operator.
        name: its name, without the underscore of its variant in place.
        given: its arguments by name, with defaults.
        traces: what is known of those arguments that depend on the model's input, by `id`.
        outputs: tensors it returned.
    """

    function: Any
    name: str
    given: dict[str, Any]
    traces: dict[int, T]
    outputs: list[Tensor]

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    @property
    def x(self) -> Tensor:
        """The first tensor."""
        return next(value for value in self.given.values() if isinstance(value, Tensor))

    @property
    def trace(self) -> T:
        return self.traces[id(self.x)]

    def numbers(self, name: str, count: int, default: int = 0) -> list[int]:
        """An argument of one number for each dimension; one number stands for all."""
        value = self.given.get(name, default)
        listed = list(value) if isinstance(value, (list, tuple)) else [value]
        return listed * count if len(listed) == 1 else listed

    def dims(self, name: str = "dim") -> list[int]:
        """Dimensions named by an argument, counted from the front; all where there are none."""
        value = self.given.get(name)
        value = range(self.x.dim()) if value is None or value == [] else value
        return [d % self.x.dim() for d in ([value] if isinstance(value, int) else value)]

    def order(self) -> list[int]:
        """Of permute, transpose and t: which dimension of the first tensor each one of the output is."""
        ndim = self.x.dim()
        if self.name == "permute":
            return self.dims("dims")
        order = list(range(ndim))
        if self.name == "t":
            return order[::-1]
        a, b = self["dim0"] % ndim, self["dim1"] % ndim
        order[a], order[b] = b, a
        return order


class Follower(TorchDispatchMode, Generic[T]):
    """While on, follows all that depends on the tensors that were `put`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traces: dict[Key, T] = {}
        self.storages: dict[int, Any] = {}  # weakly, lest another tensor be taken for a freed one
        self.blind = False  # a value has left the tensors, and may come back by any way

    def follow(self, call: Call[T]) -> Sequence[T]:
        """What is known of each output, by what is known of the arguments."""
        raise NotImplementedError

    def overwrite(self, tensor: Tensor, trace: T) -> None:
        """`tensor` was written to in place."""
        self.put(tensor, trace)

    @uncompiled
    def put(self, tensor: Tensor, trace: T) -> None:
        """This is known of `tensor` from now on."""
        key = key_of(tensor)
        if key is not None:
            if key[0] not in self.storages:
                self.storages[key[0]] = StorageWeakRef(tensor.untyped_storage())
            self.traces[key] = trace

    def known(self, tensor: Tensor) -> T | None:
        """What is known of `tensor`; None where it does not depend on what is followed."""
        key = key_of(tensor)
        return None if key is None else self.traces.get(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        known = {id(tensor): self.known(tensor) for tensor in tensors}
        traces = {number: trace for number, trace in known.items() if trace is not None}
        answer = func(*args, **kwargs)
        schema = schema_of(func)
        name = schema.name.rpartition("::")[2]
        if not traces or name in _CONSTANT:
            return answer
        given = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        given |= dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
        given = {a.name: given[a.name] for a in schema.arguments}
        outputs = [value for value in tree_leaves(answer) if isinstance(value, Tensor)]
        self.blind |= not outputs
        call = Call(func, name.rstrip("_") if schema.is_mutable else name, given, traces, outputs)
        for output, trace in zip(outputs, self.follow(call) if outputs else (), strict=True):
            if schema.is_mutable and id(output) in known:
                self.overwrite(output, trace)
            else:
                self.put(output, trace)
        return answer


def key_of(tensor: Tensor) -> Key | None:
    """Which elements of which memory, in bytes; None of sparse, opaque and wrapper tensors, which have none of their
    own."""
    try:
        size = tensor.element_size()
        strides = tuple(stride * size for stride in tensor.stride())
        return storage_id(tensor), int(tensor.storage_offset()) * size, tuple(tensor.shape), strides
    except (NotImplementedError, RuntimeError):
        return None
