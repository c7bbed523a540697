"""What a model is given and returns as a whole: its inputs, and its own loss."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from torch import Tensor

from torch_featviz.model.values import tensors

from .reduce.reducer import is_plain

INPUTS = "inputs"  # the name of the first that a model is given
_MOST = 4  # of so many there are figures


def inputs_of(given: Any) -> dict[str, Tensor]:
    """The tensors of floating-point numbers that a model is given: `"inputs"` the first, the others by what they are.

    Args:
        given: positional arguments and keywords.
    """
    args, kwargs = given
    named = [(str(i), tensor) for i, tensor in enumerate(tensors(args))]
    named += [(name, tensor) for name, value in kwargs.items() for tensor in islice(tensors(value), 1)]
    found: dict[str, Tensor] = {}
    for name, tensor in named:
        if tensor.is_floating_point() and is_plain(tensor) and tensor.numel() > 1 and len(found) < _MOST:
            found[f"{INPUTS}/{name}" if found else INPUTS] = tensor
    return found


def loss_in(output: Any) -> Tensor | None:
    """The loss that a model returns by itself: one number, alone, first of several things, or called `loss`."""
    if isinstance(output, Mapping):
        output = output.get("loss")
    elif isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) and output.dim() == 0 and output.is_floating_point() else None
