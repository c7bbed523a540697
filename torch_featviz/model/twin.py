"""A copy of a model that shares the memory of its weights and nothing else.

Methods that explain a model put hooks into it, switch its modes and differentiate through it. They are given a twin to
do that to, so that whatever happens the model itself was never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import compress

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_featviz.errors import LayerError
from torch_featviz.gate import check_module
from torch_featviz.torch_private import FakeTensor, view_as

from .copier import copied
from .norms import mend_norms
from .values import copies_of


def twin(model: nn.Module) -> nn.Module:
    """A copy of `model` to work on, in evaluation mode; it costs no memory for the weights.

    Parameters are views of the model's and want no gradient; buffers are copies. Wrappers (compiled, DDP) are taken
    off, and layers that would work in place no longer do. Hooks stay: they are part of what the model computes.

    Args:
        model: any module that can be copied.
    Raises:
        DtypeError: `model` is no module, or holds something that cannot be copied, which the error names.
        LayerError: a lazy layer has no weights yet.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True))
        >>> other = twin(net)
        >>> other[0].weight.data_ptr() == net[0].weight.data_ptr(), other[1].inplace, net[1].inplace
        (True, False, True)
    """
    check_module("model", model)
    with torch.inference_mode(False), torch.no_grad():
        net = copied(model, partial(_shared, model))
        mend_norms(net)
        return net


def twin_on_meta(model: nn.Module) -> nn.Module:
    """The same with all tensors on the meta device, also those of lazy layers: it knows shapes, and has no values."""
    check_module("model", model)
    with torch.inference_mode(False), torch.no_grad():
        return copied(model, partial(map, _on_meta))


def _shared(model: nn.Module, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of parameters, which want no gradient; copies of all other tensors."""
    plain = list(map(_is_plain, tensors))
    copies = iter(copies_of([*compress(tensors, plain)]))
    return [next(copies) if easy else _view(model, tensor) for easy, tensor in zip(plain, tensors, strict=True)]


def _view(model: nn.Module, tensor: Tensor) -> Tensor:
    """A view of a parameter, which wants no gradient; a copy of what holds more than values."""
    if type(tensor) is nn.Parameter and not tensor.is_inference():
        view = view_as(nn.Parameter, tensor, False)  # as nn.Parameter() goes about it
    elif is_lazy(tensor):
        raise _lazy(model, tensor)
    elif not isinstance(tensor, nn.Parameter):
        return tensor.clone()
    else:
        values = tensor.detach()  # autograd saves no inference tensor
        view = nn.Parameter(values.clone() if tensor.is_inference() else values, requires_grad=False)
    if type(view) is not type(tensor):
        view.__class__ = type(tensor)
    if attributes := vars(tensor):  # scales of a quantised weight, say
        vars(view).update(attributes)
    return view


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is no parameter, nor of a class that may hold more than values."""
    return type(tensor) is Tensor or (type(tensor) is FakeTensor and not isinstance(tensor, nn.Parameter))


def _lazy(model: nn.Module, tensor: Tensor) -> LayerError:
    names = (name for name, module in model.named_modules() if any(tensor is own for own in module.parameters(False)))
    name = next(names, "")
    where = f"layer {name!r} of {type(model).__name__}" if name else type(model).__name__
    return LayerError(f"{where} is lazy and has no weights yet; run the model once on an input first.")


def _on_meta(tensor: Tensor) -> Tensor:
    if is_lazy(tensor):
        return type(tensor)(device="meta")  # type: ignore[call-arg]
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
