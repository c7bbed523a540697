"""Class activation maps: a layer's maps, weighted by what the figure owes them; one forward and half a backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torch_featviz.capture import capture
from torch_featviz.errors import LayerError, ShapeError
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.run import check_once, graph_from, run

from .explained import Explained

Reshape = Callable[[Tensor], Tensor]


def cam(explained: Explained, layer: str, kind: str, reshape_transform: Reshape | None = None) -> Tensor:
    """Maps of one layer as evidence, signed: `b c ... -> b 1 ...` at the layer's own resolution.

    Args:
        explained: the model, its inputs and its target.
        layer: name of a layer that runs once.
        kind: `"gradcam"`: maps times the mean of their gradient (Selvaraju et al. 2017, eq. 1 and 2, before the
            ReLU); `"hirescam"`: times the gradient (Draelos & Carin 2020); `"layercam"`: times its positive part
            (Jiang et al. 2021); `"layer_activation"`: the maps themselves, `b k ...`.
        reshape_transform: makes maps `b k ...` of what the layer returns, such as tokens.
    Raises:
        LayerError: the layer does not run exactly once.
        ShapeError: what the layer returns is no map.
    """
    maps, gradients = _maps_and_gradients(explained, layer, kind != "layer_activation")
    if reshape_transform is not None:
        maps, gradients = reshape_transform(maps), reshape_transform(gradients)
    if maps.dim() != explained.inputs.images.dim():
        raise ShapeError(
            f"layer {layer!r} returns shape {tuple(maps.shape)}, no map like the images'; give a convolution, or "
            "reshape_transform= to make maps of it."
        )
    if kind == "layer_activation":
        return maps
    if kind == "gradcam":
        gradients = gradients.flatten(2).mean(2).view(*gradients.shape[:2], *[1] * (maps.dim() - 2))
    elif kind == "layercam":
        gradients = gradients.clamp(min=0)
    return (gradients * maps).sum(1, keepdim=True)


def _maps_and_gradients(explained: Explained, layer: str, backward: bool) -> tuple[Tensor, Tensor]:
    """What a layer returns, and the gradient of the figures; the graph begins at the layer."""
    with graph_from(explained.model, layer) as leaves, torch.set_grad_enabled(backward):
        figures = explained.score(explained.inputs.images) if backward else explained.settle()
    check_once(layer, len(leaves))
    maps = leaves[0]
    if not backward or figures is None:
        return maps.detach(), maps.detach()
    (gradients,) = torch.autograd.grad(figures.sum(), maps, materialize_grads=True)
    return maps.detach(), gradients


def last_map(net: nn.Module, inputs: Inputs) -> str:
    """The call of a convolution that ends last and whose output is larger than one place.

    Args:
        net: a twin.
        inputs: of one image.
    Raises:
        LayerError: there is none.
    """
    kinds = tuple({type(m) for m in net.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))})
    if kinds:
        with torch.no_grad(), capture(net, list(kinds), into=lambda output: output.shape) as shapes:
            run(net, inputs)
        for name, shape in reversed(list(shapes.items())):
            if shape.numel() > shape[0] * shape[1]:
                return str(name)
    raise LayerError(f"{type(net).__name__} has no convolution whose output is a map; name a layer.")
