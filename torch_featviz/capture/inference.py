"""A forward that is called in `torch.inference_mode()` is captured outside it, under `torch.no_grad()`.

Tensors made in inference mode have no version counter, so nothing tells that one was overwritten. Outside it the same
operators run, and their results have counters: outputs are kept by reference and checked as under `torch.no_grad()`.
What the model returns are then ordinary tensors, with which a caller may do more than with inference tensors.

PyTorch allows no write to an inference tensor outside inference mode. The caller's are replaced by ordinary tensors
over the same memory. A model that holds such tensors itself stays in inference mode, and each output is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import is_
from sys import getrefcount
from types import NoneType
from typing import Any, TypeAlias
from weakref import WeakSet, ref

import numpy as np
import torch
from torch import Tensor, nn

from torch_featviz.errors import LayerError
from torch_featviz.torch_private import is_mapped, storage_id, tensors_on

from .eager import eager

# Runs the forward; its last argument are tensors whose memory the caller may write to unseen.
Forward: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any], Iterable[Tensor]], Any]

_searched: WeakSet[nn.Module] = WeakSet()
_writing: WeakSet[nn.Module] = WeakSet()  # models known to write to inference tensors that they hold
_INERT = (NoneType, bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, slice, np.ndarray)
_REFUSAL = "Inplace update to inference tensor outside InferenceMode"


class OutsideInferenceMode:
    """Runs the forwards of one block outside inference mode, where that is possible."""

    def __init__(self, model: nn.Module, modules: Iterable[nn.Module]) -> None:
        self._model = ref(model)
        self._modules = modules
        self._stays: bool | None = None  # not known before the first forward

    @eager
    def run(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `forward` returns for these arguments."""
        if self._stays is None:
            self._stays = _holds_inference_tensors(self._live_model(), self._modules)
        if not self._stays:
            with torch.inference_mode(False):  # which puts the caller's grad mode back, too
                torch.set_grad_enabled(False)
                replaced = Replaced.of((args, kwargs))
                if replaced is not None:
                    return self._run(forward, replaced, args, kwargs)
        return forward(args, kwargs, ())

    @eager
    def _run(self, forward: Forward, replaced: Replaced, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ordinary_args, ordinary_kwargs = replaced.ordinary((args, kwargs))
        try:
            replaced.begin()
            return replaced.original(forward(ordinary_args, ordinary_kwargs, replaced))
        except RuntimeError as error:
            if _REFUSAL not in str(error):
                raise
            self._stays = True
            model = self._live_model()
            _writing.add(model)
            raise LayerError(
                f"{type(model).__name__} wrote to a tensor made in torch.inference_mode(), which capture() cannot "
                "follow; this forward was interrupted. Use torch.no_grad(), or run the forward again: from now on each "
                "output is copied."
            ) from error
        finally:
            replaced.put_back((args, kwargs))

    def _live_model(self) -> nn.Module:
        model = self._model()
        assert model is not None, "a model in whose forward we are is alive"
        return model


def _holds_inference_tensors(model: nn.Module, modules: Iterable[nn.Module]) -> bool:
    """Whether the model holds inference tensors that it may write to: buffers, and, asked once, other attributes."""
    if model not in _searched:  # at each block this would cost a tenth of a small network's forward
        _searched.add(model)
        values = (value for module in modules for value in vars(module).values())
        if any(isinstance(value, Tensor) and value.is_inference() for value in values):
            _writing.add(model)
    buffers = [buffer for module in modules if module._buffers for buffer in module._buffers.values()]
    return model in _writing or any(buffer is not None and buffer.is_inference() for buffer in buffers)


class Replaced:
    """A caller's inference tensors, and the ordinary tensors over the same memory that the model is given instead.

    Made, and used, outside inference mode.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._nested = False  # in lists or dictionaries
        self._held: list[tuple[int | None, int]] | None = None
        self._ordinary: dict[int, Tensor] = {}  # by the id of the inference tensor
        self._original: dict[int, Tensor] = {}  # by the id of the ordinary tensor

    @classmethod
    def of(cls, arguments: Any) -> Replaced | None:
        """None where that is impossible, or where arguments are of kinds that may hold tensors out of sight."""
        replaced = cls()
        try:
            return replaced if replaced._add(arguments) else None
        except (RuntimeError, RecursionError):  # a tensor without storage of its own; a list that holds itself
            return None

    def _add(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            return not value.is_inference() or id(value) in self._ordinary or self._add_tensor(value)
        if isinstance(value, (tuple, list, dict)):
            self._nested |= not isinstance(value, tuple) and bool(value)
            return all(map(self._add, value.values() if isinstance(value, dict) else value))
        return isinstance(value, _INERT)

    def _add_tensor(self, tensor: Tensor) -> bool:
        if type(tensor) is not Tensor or is_mapped(tensor) or tensor.layout is not torch.strided:
            return False
        if tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or vars(tensor) or _names(tensor):
            return False
        memory, (offset, shape, strides) = storage_id(tensor), _place(tensor)
        for other in self.tensors:
            if storage_id(other) == memory:  # they have one version counter
                if other.dtype != tensor.dtype:
                    return False
                ordinary = other.as_strided(shape, strides, offset)
                break
        else:
            ordinary = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            ordinary.set_(tensor.untyped_storage(), offset, shape, strides)
        self.tensors.append(ordinary)
        self._ordinary[id(tensor)], self._original[id(ordinary)] = ordinary, tensor
        return True

    def ordinary(self, value: Any) -> Any:
        """Arguments, with what the model is given."""
        return _exchanged(value, lambda tensor: self._ordinary.get(id(tensor), tensor)) if self.tensors else value

    def original(self, value: Any) -> Any:
        """A result, with what the caller gets: its own arguments, and, as in inference mode, no autograd graph."""

        def exchange(tensor: Tensor) -> Tensor:
            tensor = self._original.get(id(tensor), tensor)
            return tensor if tensor.grad_fn is None else tensor.detach()

        return _exchanged(value, exchange)

    def begin(self) -> None:
        """The forward begins."""
        held = self._holders()
        if not self._nested and all(tensors == 2 for tensors, _ in held):  # nobody else may let go of them meanwhile
            self._held = held

    def __iter__(self) -> Iterator[Tensor]:
        """Those whose memory something that the forward made may hold."""
        return iter(() if self._held is not None and self._holders() == self._held else self.tensors)

    def _holders(self) -> list[tuple[int | None, int]]:
        """How many tensors hold the memory of each tensor, and how many references there are to the tensor."""
        return [(tensors_on(tensor.untyped_storage()), getrefcount(tensor)) for tensor in self.tensors]

    def put_back(self, arguments: Any) -> None:
        """Lists and dictionaries of the caller hold its own tensors again, in the shape that the model left them in."""
        if self._nested:
            self.original(arguments)
        for ordinary in self.tensors:
            original = self._original[id(ordinary)]
            if _place(original) != _place(ordinary):
                with torch.inference_mode():
                    original.set_(ordinary.untyped_storage(), *_place(ordinary))


def _names(tensor: Tensor) -> bool:
    """Whether its axes have names, which later releases of PyTorch know no more."""
    return any(getattr(tensor, "names", ()))


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Where in its storage a tensor lies."""
    return int(tensor.storage_offset()), tuple(tensor.size()), tensor.stride()


def _exchanged(value: Any, exchange: Callable[[Tensor], Tensor]) -> Any:
    """`value` with other tensors in it. Lists and dictionaries stay the same objects: a model may fill its caller's."""
    if isinstance(value, Tensor):
        return exchange(value)
    try:
        if isinstance(value, tuple):
            items = [_exchanged(item, exchange) for item in value]
            if all(map(is_, items, value)):
                return value
            return value._make(items) if hasattr(value, "_make") else type(value)(items)
        if isinstance(value, (list, dict)):
            for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
                if (new := _exchanged(item, exchange)) is not item:
                    value[key] = new
    except (TypeError, RecursionError):  # a container that cannot be changed, or that holds itself
        pass
    return value
