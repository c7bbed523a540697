"""Class activation maps: a layer's maps, weighted by what the figure owes them; one forward and half a backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.capture import capture
from torch_featviz.errors import LayerError, ShapeError
from torch_featviz.model.layers import resolve

from .explained import Explained

Reshape = Callable[[Tensor], Tensor]


def cam(
    explained: Explained, images: Tensor, layer: str, kind: str, reshape_transform: Reshape | None = None
) -> Tensor:
    """Maps of one layer as evidence, signed: `b c ... -> b 1 ...` at the layer's own resolution.

    Args:
        explained: the model and its target.
        images: `b c ...`.
        layer: name of a layer that runs once.
        kind: `"gradcam"`: maps times the mean of their gradient (Selvaraju et al. 2017, eq. 1 and 2, before the
            ReLU); `"hirescam"`: times the gradient (Draelos & Carin 2020); `"layercam"`: times its positive part
            (Jiang et al. 2021); `"layer_activation"`: the maps themselves, `b k ...`.
        reshape_transform: makes maps `b k ...` of what the layer returns, such as tokens.
    Raises:
        LayerError: no such layer, or it does not run exactly once.
        ShapeError: what the layer returns is no map.
    """
    maps, gradients = _maps_and_gradients(explained, images, layer, kind != "layer_activation")
    if reshape_transform is not None:
        maps, gradients = reshape_transform(maps), reshape_transform(gradients)
    if maps.dim() != images.dim():
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


def _maps_and_gradients(explained: Explained, images: Tensor, layer: str, backward: bool) -> tuple[Tensor, Tensor]:
    """What a layer returns, and the gradient of the figures; the graph begins at the layer."""
    (module,) = resolve(explained.model, layer).values()
    leaves: list[Tensor] = []

    def begin(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise ShapeError(f"layer {layer!r} returns a {type(output).__name__}, no map; give a convolution.")
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # the network may go on in place

    hook = module.register_forward_hook(begin)
    try:
        with torch.set_grad_enabled(backward):
            figures = explained.score(images) if backward else explained.settle(images)
    finally:
        hook.remove()
    if len(leaves) != 1:
        raise LayerError(f"layer {layer!r} ran {len(leaves)} times in one forward; name one that runs once.")
    maps = leaves[0]
    if not backward or figures is None:
        return maps.detach(), maps.detach()
    (gradients,) = torch.autograd.grad(figures.sum(), maps, materialize_grads=True)
    return maps.detach(), gradients


def last_map(model: nn.Module, image: Tensor) -> str:
    """The convolution that runs last and whose output is larger than one place.

    Raises:
        LayerError: there is none.
    """
    kinds = tuple({type(m) for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))})
    if kinds:
        with torch.no_grad(), capture(model, list(kinds), into=lambda output: output.shape) as shapes:
            model(image)
        for name, shape in reversed(list(shapes.items())):
            if shape.numel() > shape[0] * shape[1]:
                return str(name).partition("#")[0]
    raise LayerError(f"{type(model).__name__} has no convolution whose output is a map; name a layer.")
