"""The patches that a network cuts its images into, where it works on them as tokens."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.capture.noting import Note
from torch_featviz.capture.session import Capture
from torch_featviz.errors import LayerError
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layout import Layout, LayoutTracer
from torch_featviz.model.run import hooked, run


def patch_of(net: nn.Module, inputs: Inputs) -> tuple[int, ...]:
    """The pixels of one patch along each axis of the image, by one forward; 1 along each where there are none.

    A network has patches if the first map that it makes of the image becomes a sequence of tokens on which layers with
    weights work, as in a ViT. Convolutional networks have none, nor has a transformer behind several convolutions.

    Args:
        net: a twin.
        inputs: of one image.
    Example:
        >>> tokens = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.BatchNorm1d(8))
        >>> patch_of(tokens, Inputs(torch.zeros(1, 3, 8, 12)))
        (4, 4)
    """
    sides = tuple(inputs.images.shape[2:])
    tracer, seen = LayoutTracer(inputs.images), list[tuple[str, Layout]]()

    def look(name: str, output: Any) -> None:
        layout = tracer.layout(output) if isinstance(output, Tensor) else None
        if layout is not None and layout.is_map and layout.grid != sides:
            seen.append((name, layout))

    names = [name for name, _ in net.named_modules()]
    with suppress(LayerError), torch.no_grad(), Capture(net, names, into=Note(look)), tracer:  # scripts refuse
        run(net, inputs)
    weighed = {name for name, module in net.named_modules() if any(True for _ in module.parameters(recurse=False))}
    grid = seen[0][1].grid if seen else sides
    tokens = any(name in weighed and layout.tokens is not None and layout.grid == grid for name, layout in seen)
    if not tokens or len(grid) != len(sides) or any(side % n for side, n in zip(sides, grid, strict=True)):
        return (1,) * len(sides)
    if _leaves_a_rest(net, inputs, seen[0][0], grid):
        return (1,) * len(sides)
    return tuple(side // n for side, n in zip(sides, grid, strict=True))


def _leaves_a_rest(net: nn.Module, inputs: Inputs, name: str, grid: tuple[int, ...]) -> bool:
    """Whether the strides of a layer do not fill what it is given: 4 patches of 8 in 36 pixels, say."""
    layer = net.get_submodule(name)
    stride, given = getattr(layer, "stride", None), list[tuple[int, ...]]()
    if not (isinstance(stride, tuple) and len(stride) == len(grid)):
        return False

    def note(_module: nn.Module, args: Any) -> None:
        given.extend(tuple(x.shape[2:]) for x in args[:1])

    with torch.no_grad(), hooked([layer], before=note):
        run(net, inputs)
    return bool(given) and given[0] != tuple(n * step for n, step in zip(grid, stride, strict=True))
