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
    """What `layers` return for `inputs`, in evaluation mode and without gradients.

    A copy runs that shares the weights. A sharded model (FSDP2) cannot be copied: it runs itself, and is put back.

    Args:
        model: any module, wrapped or compiled, too.
        inputs: they are copied first.
        layers: as for `capture`.
    Raises:
        LayerError: no such layer, or one that cannot be captured.
        DtypeError, DeviceError, OptionError, ShapeError: the model cannot be copied, or does not take the inputs.
    """
    sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    net = model if sharded else twin(model)
    acts: Activations
    with isolated(), evaluating(net), torch.no_grad(), capture(net, layers) as acts:
        run(net, inputs.copied())
    if sharded:
        _reshard(net)
    return acts


def _reshard(model: nn.Module) -> None:
    """Or the parameters of an FSDP2 model would be whole ones until its next step."""
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415  it takes a second

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
