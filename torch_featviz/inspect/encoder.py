"""The maps that a segmenter's mask rests on: the end of its encoder, and what passes beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor, nn

from torch_featviz.errors import LayerError
from torch_featviz.model.inputs import Inputs

from .cut import AnswerMap, Edge, Graph, answer_map

_NEAR = 4  # places of a smaller map, of which bilinear resizing makes one pixel
_STRIDE = 64  # of the coarsest encoders; what is coarser was pooled for context

# Nodes of autograd's graph, without "Backward0", behind which values are sums of those before.
_LINEAR = frozenset(
    (
        *("Convolution", "Addmm", "Mm", "Bmm", "NativeBatchNorm", "CudnnBatchNorm"),
        *("UpsampleBilinear2D", "UpsampleNearest2D", "UpsampleBicubic2D", "Add", "Sub", "Div", "Mean", "Sum", "Where"),
        *("View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "Cat", "Slice", "Select", "Index", "Gather"),
        *("Permute", "Transpose", "T", "Expand", "Squeeze", "Unsqueeze", "ToCopy"),
    )
)


def encoder_map(net: nn.Module, inputs: Inputs, figure: Callable[[Any], Tensor]) -> AnswerMap:
    """The coarsest map that a segmenter's answer depends on, and all earlier maps from which it reads beside it.

    The latest map that the answer depends on is the scores of the pixels themselves, which explain nothing. So those
    maps are left out of which one pixel reads at most 4 places, and those of which scores are weighted sums. Of the
    others the latest of those with the fewest places is the end of the encoder: the bottleneck of a U-Net, the features
    under DeepLab's head; or, where a residual goes round it, what that comes from. Where a decoder reads earlier maps,
    too, these are joined with it: then all that the answer knows of the image passes through one of them.

    Args:
        net: a twin.
        inputs: of one image.
        figure: makes of what the network returns the score of one pixel.
    Raises:
        OptionError: no gradient reaches that, or all of it is 0.
        LayerError: there is no such map.
    """
    size = tuple(inputs.images.shape[2:])

    def choose(graph: Graph, grids: dict[Edge, tuple[int, ...]]) -> set[Edge]:
        known = _before_the_last_bend(graph)
        fine = {
            edge: prod(grid)
            for edge, grid in grids.items()
            if edge[0] in known and all(_STRIDE * places >= side for places, side in zip(grid, size, strict=True))
        }
        coarsest = [edge for edge in fine if fine[edge] == min(fine.values())]
        found = set[Edge]()
        while coarsest:
            encoder = graph.before(coarsest[-1][0])
            met = graph.met_first({edge for edge in grids if edge[0] in encoder})
            if found and len(met) >= len(found):
                break
            found = met
            coarsest = [edge for edge in coarsest[:-1] if edge in found]  # what goes round the last one
        return found

    try:
        return answer_map(net, inputs, figure, beyond=_NEAR, choose=choose)
    except LayerError:  # pixels are scored one by one
        return answer_map(net, inputs, figure, beyond=0)


def _before_the_last_bend(graph: Graph) -> set[Any]:
    """Nodes from which a way to the answer leads through something that is not linear."""
    found = set[Any]()
    for node in graph.order:  # each before those that it leads to
        if node in found or re.sub(r"Backward\d*$", "", node.name()) not in _LINEAR:
            found.update(following for following, _ in node.next_functions)
    return found
