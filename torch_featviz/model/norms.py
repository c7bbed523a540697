"""The gradients of batch norm and instance norm for one image, which torch computes wrongly from views of tokens.

A view such as `tokens.mT.view(1, c, h, w)` lies channels last, but its stride along the axis of images, of which there
is only one, does not say so. `native_batch_norm_backward` on a CPU (torch 2.6 and 2.14, at least) then reads the input
or the gradient in another order than it lies in. LeViT, CvT, XCiT and EfficientFormer get another gradient for one
image than for two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.torch_private import NORMS

from .layers import modules_of

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def mend_norms(net: nn.Module) -> None:
    """Give the norms of a twin inputs and gradients whose strides are clear. Values stay as they are."""
    for module in modules_of(net):
        if isinstance(module, NORMS):
            module.register_forward_pre_hook(_clear_input)
            module.register_forward_hook(_clear_gradient)


def clear(x: Tensor) -> Tensor:
    """The same values, copied where they lie channels last and the stride of the only image does not say so."""
    form = _FORMATS.get(x.dim())
    if form is None or len(x) != 1 or x.is_contiguous() or not x.is_contiguous(memory_format=form):
        return x
    return x if x.stride(0) == x.numel() else x.clone(memory_format=form)


def _clear_input(_module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(clear(x) if type(x) is Tensor else x for x in given)


def _clear_gradient(_module: nn.Module, _given: Any, output: Any) -> None:
    if isinstance(output, Tensor) and output.requires_grad and len(output) == 1:
        # In order, since instance norm loses the strides of channels last, too.
        output.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
