"""Class activation maps: a layer's maps, weighted by what the figure owes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from torch_featviz.capture.noting import Note, numbered
from torch_featviz.capture.session import Capture
from torch_featviz.errors import LayerError, ShapeError
from torch_featviz.inspect.cut import AnswerMap
from torch_featviz.launching import gpu
from torch_featviz.model.layout import Layout
from torch_featviz.model.run import check_call, check_once, graph_from

from .explained import Explained

Reshape = Callable[[Tensor], Tensor]
CANCELS = (
    "hirescam is 0 by construction where the next layer is a norm layer: its gradient is orthogonal to its input; use "
    "gradcam or layercam"
)
_CANCELLED = 1e-3  # of the products' sizes: what rounding and the norm's eps leave
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}  # of interpolation, by axes of places


def cam(
    explained: Explained,
    where: AnswerMap,
    kind: str,
    reshape_transform: Reshape | None = None,
    *,
    at: str = "",
) -> Tensor:
    """Maps of one layer as evidence, signed: `b c ... -> b 1 ...` at the layer's own resolution.

    Of several layers each map is brought to the size of the images and divided by its own largest magnitude; of these
    the larger value counts.

    Args:
        explained: the model, its inputs and its target.
        where: the layers, each of which runs once, and their layouts.
        kind: `"gradcam"`: maps times the mean of their gradient (Selvaraju et al. 2017, eq. 1 and 2, before the
            ReLU); `"hirescam"`: times the gradient (Draelos & Carin 2020), 0 where a norm layer comes next, as
            `explained.note` then says; `"layercam"`: times its positive part (Jiang et al. 2021); `"layer_activation"`:
            the maps themselves, `b k ...`.
        reshape_transform: makes maps `b k ...` of what the layer returns, instead of its layout.
        at: the name of a single layer in `explained.model`, where the graph may begin; empty where it has none.
    Raises:
        LayerError: a layer does not run exactly once, or the maps themselves are asked for of several.
        ShapeError: what a layer returns is no map.
    """
    backward = kind != "layer_activation"
    if not backward and len(where.layers) > 1:
        raise LayerError(f"{kind} takes one layer, got {', '.join(where.layers)}; its maps cannot be joined.")
    pairs = [_from_layer(explained, at, backward)] if at else _from_image(explained, where.layers, backward)
    evidence = []
    for layer, layout, (values, gradient) in zip(where.layers, where.layouts, pairs, strict=True):
        make = reshape_transform or (lambda tensor, name=layer, known=layout: _maps(tensor, name, known))  # type: ignore[misc]
        maps = make(values)
        if maps.dim() != explained.inputs.images.dim():
            raise _no_map(layer, values)
        slopes = make(gradient) if backward else gradient
        evidence.append(weighed(maps, slopes, kind) if backward else maps)
        if kind == "hirescam" and cancels(maps, slopes):
            explained.note = CANCELS
    return evidence[0] if len(evidence) == 1 else joined(evidence, explained.inputs.images.shape[2:])


def weighed(maps: Tensor, gradients: Tensor, kind: str) -> Tensor:
    """Maps `b k ...` times what the method makes of their gradients, summed over channels: `b 1 ...`."""
    if kind == "gradcam":
        weights = gradients.flatten(2).mean(2)
        if maps.is_cuda and _multiplies_exactly():
            return torch.bmm(weights[:, None], maps.flatten(2)).view(len(maps), 1, *maps.shape[2:])
        gradients = weights.view(*weights.shape, *[1] * (maps.dim() - 2))
    elif kind == "layercam":
        gradients = gradients.clamp(min=0)
    return (gradients * maps).sum(1, keepdim=True)


def cancels(maps: Tensor, gradients: Tensor) -> bool:
    """Whether maps `b k ...` times gradients are 0 at each place, summed over channels, and not in each channel.

    It is so where nothing but a norm layer reads the map, as it reads the tokens of patches before the last block of a
    ViT with a class token: what it returns does not change with the scale of its input, so that the gradient is
    orthogonal to the input (Euler's theorem on homogeneous functions).

    Example:
        >>> tokens = torch.rand(1, 8, 2, 2, requires_grad=True)
        >>> F.layer_norm(tokens.movedim(1, -1), [8])[..., 0].sum().backward()
        >>> cancels(tokens, tokens.grad), cancels(tokens, torch.ones(1, 8, 2, 2))
        (True, False)
    """
    products = (maps.detach() * gradients).float()
    size = float(products.abs().sum(1).amax())
    return size > 0 and float(products.sum(1).abs().amax()) < _CANCELLED * size


def _multiplies_exactly() -> bool:
    """Whether a product of matrices, which is one launch, is not rounded to ten bits."""
    return not (torch.is_autocast_enabled("cuda") or torch.backends.cuda.matmul.allow_tf32)


def joined(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Several maps `b 1 ...` as one of this size: each divided by its own largest magnitude, then the larger value."""
    mode = MODES[len(size)]
    scaled = []
    for values in maps:
        largest = values.abs().flatten(1).amax(1).clamp(min=torch.finfo(values.dtype).tiny)
        values = values / largest.view(-1, *[1] * (values.dim() - 1))  # noqa: PLW2901
        scaled.append(F.interpolate(values, tuple(size), mode=mode))
    return torch.stack(scaled).amax(0)


def _maps(values: Tensor, layer: str, layout: Layout) -> Tensor:
    try:
        return layout.maps(values)
    except ShapeError as error:
        raise _no_map(layer, values) from error


def _no_map(layer: str, values: Tensor) -> ShapeError:
    return ShapeError(
        f"layer {layer!r} returns shape {tuple(values.shape)}, not a map of the images; choose a convolution, or pass "
        "reshape_transform= to turn it into maps."
    )


def _from_layer(explained: Explained, layer: str, backward: bool) -> tuple[Tensor, Tensor]:
    """What a layer returns, and the gradient of the figures; the graph begins at the layer."""
    with graph_from(explained.model, layer) as leaves, torch.set_grad_enabled(backward):
        figures = explained.score(explained.inputs.images) if backward else explained.settle()
    check_once(layer, len(leaves))
    maps = leaves[0]
    if not backward or figures is None:
        return maps.detach(), maps.detach()
    kind = figures.dtype
    one = gpu.constant(("one", kind), lambda: torch.ones((), dtype=kind, device="cpu"), figures.device)
    (gradients,) = torch.autograd.grad(figures, maps, one.expand_as(figures), materialize_grads=True)
    return maps.detach(), gradients


def _from_image(explained: Explained, layers: Sequence[str], backward: bool) -> list[tuple[Tensor, Tensor]]:
    """The same of several layers, and of functional calls: the graph begins at the images."""
    images = explained.inputs.images.detach().clone().requires_grad_(backward)
    wanted, seen = {name.partition("#")[0] for name in layers}, list[tuple[str, Tensor, GradientEdge | None]]()

    def look(name: str, output: Any) -> None:
        if name in wanted:
            if not isinstance(output, Tensor):
                raise ShapeError(f"layer {name!r} returns a {type(output).__name__}, not a map; choose a convolution.")
            edge = get_gradient_edge(output) if output.requires_grad else None
            seen.append((name, output.detach().clone(), edge))  # before the network goes on in place

    with Capture(explained.model, sorted(wanted), ops=True, into=Note(look)), torch.set_grad_enabled(backward):
        figures = explained.figures(explained.answer(images)) if backward else explained.settle()
    calls = dict(zip(numbered([name for name, _, _ in seen]), seen, strict=True))
    for name in layers:
        check_call(name, sum(call[0] == name.partition("#")[0] for call in seen))
    maps = [calls[name][1] for name in layers]
    edges = [edge for name in layers if (edge := calls[name][2]) is not None]
    if not backward or figures is None or len(edges) < len(maps):
        return [(values, values) for values in maps]
    gradients = torch.autograd.grad(figures.sum(), edges, materialize_grads=True)
    return list(zip(maps, gradients, strict=True))
