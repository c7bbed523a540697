"""What layers return in one forward, and nothing about the model changes."""

from __future__ import annotations

import torch
from torch import nn

from torch_featviz.capture import Activations, capture
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layers import Layers
from torch_featviz.model.run import run
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import evaluating, isolated


def activations(model: nn.Module, inputs: Inputs, layers: Layers = None) -> Activations:
    """Return the outputs of `layers` for `inputs`, in evaluation mode and without gradients. The model is unchanged.

    A copy runs that shares the weights. A sharded model (FSDP2) cannot be copied: it runs itself and is restored.

    Args:
        model: any module, wrapped or compiled or not.
        inputs: the arguments; they are copied first.
        layers: as for `capture`.
    Raises:
        LayerError: no such layer, or it cannot be captured.
        DtypeError, DeviceError, OptionError, ShapeError: the model cannot be copied, or does not accept the inputs.
    """
    sharded = is_sharded(model)
    net = model if sharded else twin(model)
    acts: Activations
    with isolated(), evaluating(net), torch.no_grad(), capture(net, layers) as acts:
        run(net, inputs.copied())
    if sharded:
        _reshard(net)
    return acts


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank holds a part of its parameters (FSDP2), so that no copy of it can run."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def _reshard(model: nn.Module) -> None:
    """Or the parameters of an FSDP2 model would be whole ones until its next step."""
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415  it takes a second

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
