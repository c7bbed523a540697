"""A forward of a model, watched operator by operator: what each place of each tensor can see of the input."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_featviz.torch_private import TorchDispatchMode, schema_of, storage_id, tree_leaves

from .operators import follow
from .reach import Trace
from .windows import Call

_CONSTANT = (
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided"),
)
_Key = tuple[int, int, tuple[int, ...], tuple[int, ...]]


class Tracer(TorchDispatchMode):
    """While on, follows all that depends on `image`.

    Args:
        image: `b c ...`, what the model is about to be given.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nothing = Trace.start(image.shape[2:])
        self.traces: dict[_Key, Trace] = {}
        self.storages: dict[int, Any] = {}  # kept, lest another tensor be given the place of a freed one
        self.written: set[int] = set()
        self.blind = False  # a value has left the tensors, and may come back by any way
        self.put(image, self.nothing)

    def read(self, tensor: Tensor) -> Trace:
        """What `tensor` sees; everything, if that was lost on the way."""
        trace = self._of(tensor)
        return self.nothing.lost() if self.blind or trace is None else trace

    def put(self, tensor: Tensor, trace: Trace) -> None:
        """`tensor` sees this from now on."""
        storage = tensor.untyped_storage()
        self.storages[storage_id(tensor)] = storage
        self.traces[_key(tensor)] = trace

    def _of(self, tensor: Tensor) -> Trace | None:
        key = _key(tensor)
        if key in self.traces:
            return self.traces[key]
        return self.nothing.lost() if key[0] in self.written else None

    def _overwrite(self, tensor: Tensor, trace: Trace) -> None:
        """Written in place: of other views of the same memory nothing is known any longer."""
        here = _key(tensor)
        if self.traces.get(here) is not trace:
            self.written.add(here[0])
            for key in self.traces:
                if key[0] == here[0]:
                    self.traces[key] = trace.lost()
        self.put(tensor, trace)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        known = {id(tensor): self._of(tensor) for tensor in tensors}
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
        for output, trace in zip(outputs, follow(call) if outputs else (), strict=True):
            if schema.is_mutable and id(output) in known:
                self._overwrite(output, trace)
            else:
                self.put(output, trace)
        return answer


def _key(tensor: Tensor) -> _Key:
    """Which elements of which memory."""
    return storage_id(tensor), int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())
