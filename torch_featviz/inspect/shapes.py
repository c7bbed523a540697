"""The shape of every layer's output, found without computing one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.capture.session import capture
from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.gate import gated
from torch_featviz.model.inputs import Inputs, placement
from torch_featviz.model.layers import Layers
from torch_featviz.model.run import run
from torch_featviz.model.twin import twin_on_meta
from torch_featviz.model.untouched import isolated
from torch_featviz.model.values import map_tensors


@gated
def shapes(
    model: nn.Module,
    *inputs: Sequence[int] | Tensor,
    layers: Layers = None,
    keywords: Mapping[str, Sequence[int] | Tensor | float | str | None] | None = None,
) -> dict[str, Any]:
    """Return the output shape of each layer, in order of execution, without computing anything.

    A copy of the model without weights runs on the meta device in evaluation mode: no memory, no arithmetic. `model` is
    unchanged.

    Args:
        model: any module whose forward does not depend on values.
        inputs: one entry per positional argument: its size, for a tensor of the dtype of the model's first
            floating-point parameter; or a tensor, where another dtype is needed (token ids, for instance).
        layers: as for `capture`; None for all leaf modules.
        keywords: the same for keyword arguments; a number, a string or None is passed on as it is.

    Returns:
        A dict from layer name to `torch.Size`, or to tuples and dicts of sizes for layers that return tuples and dicts.

    Raises:
        ShapeError: the forward fails with inputs of these sizes.
        OptionError: `forward` takes other arguments.
        DtypeError: the model cannot be copied.
        LayerError: the model is TorchScript.

    Example:
        >>> shapes(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), (1, 3, 32, 32))
        {'0': torch.Size([1, 8, 30, 30]), '1': torch.Size([1, 7200])}
    """
    net = twin_on_meta(model)
    dtype = placement(net)["dtype"]
    arguments = [_argument(size, dtype) for size in inputs]
    plain = (int, float, str, type(None))
    named = {name: it if isinstance(it, plain) else _argument(it, dtype) for name, it in (keywords or {}).items()}
    if not arguments and not named:
        raise OptionError("shapes needs the size of each input, such as shapes(model, (1, 3, 224, 224)).")
    given = Inputs(arguments[0], tuple(arguments[1:]), named) if arguments else Inputs.of_batch(named)
    with isolated(), capture(net, layers) as acts, torch.no_grad(), torch.device("meta"):
        run(net, given)
    return {name: map_tensors(lambda tensor: tensor.shape, value) for name, value in acts.items()}


def _argument(size: Sequence[int] | Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(size, Tensor):
        return size.to("meta")
    try:
        return torch.empty(tuple(size), dtype=dtype, device="meta")
    except (TypeError, RuntimeError) as error:
        raise ShapeError(f"an input must be a size such as (1, 3, 32, 32), or a tensor; got {size!r}.") from error
