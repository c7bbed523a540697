"""The shape of every layer's output, found without computing one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from torch_featviz.errors import ShapeError

from .select import Layers, unwrap
from .session import capture, evaluating
from .values import map_tensors


def shapes(model: nn.Module, *inputs: Sequence[int] | Tensor, layers: Layers = None) -> dict[str, Any]:
    """What shape each layer returns, in order of execution, for inputs of the given sizes.

    The forward runs on the meta device, in evaluation mode: no memory, no arithmetic, nothing of `model` changed.

    Args:
        model: any module whose forward does not look at values.
        inputs: for each positional argument its size, or a tensor where the dtype matters (token ids, say).
        layers: as for `capture`; None for all leaves.

    Returns:
        Layer name to `torch.Size`; tuples and dicts of sizes where a layer returns tuples and dicts.

    Raises:
        ShapeError: the forward refused inputs of these sizes.

    Example:
        >>> shapes(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), (1, 3, 32, 32))
        {'0': torch.Size([1, 8, 30, 30]), '1': torch.Size([1, 7200])}
    """
    inner = unwrap(model)
    arguments = [
        size.to("meta") if isinstance(size, Tensor) else torch.empty(tuple(size), device="meta") for size in inputs
    ]
    tensors = {**dict(inner.named_parameters()), **dict(inner.named_buffers())}
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    with capture(inner, layers) as acts, torch.no_grad(), torch.device("meta"), evaluating(inner):
        try:
            functional_call(inner, state, tuple(arguments))
        except (RuntimeError, ValueError) as error:
            sizes = ", ".join(str(tuple(argument.shape)) for argument in arguments)
            raise ShapeError(f"{type(inner).__name__} does not take inputs of size {sizes}: {error}") from error
    return {name: map_tensors(lambda tensor: tensor.shape, value) for name, value in acts.items()}
