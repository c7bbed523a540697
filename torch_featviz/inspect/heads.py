"""The maps that enter a detector's head: the latest that both a box's class and its place are computed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from torch_featviz.errors import LayerError, ShapeError
from torch_featviz.model.axes import start
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layers import modules_of
from torch_featviz.model.layout import Layout, LayoutTracer
from torch_featviz.model.logits import Logit
from torch_featviz.model.run import hooked

from .cut import AnswerMap, Edge, run_for_maps

_RESIZING = "GeneralizedRCNNTransform"  # torchvision's, which resizes and pads images within the model


class Frame(NamedTuple):
    """Where an image lies in the batch that a detector's first layer is given.

    Args:
        batch: height and width of that batch, with padding.
        inside: height and width of the image in it, at its top left.
    """

    batch: tuple[int, int]
    inside: tuple[int, int]


class Begun(NamedTuple):
    """Where autograd's graph of a run begins: what the first layer is given, and where the image lies in it."""

    image: Tensor
    frame: Frame


def resizing_in(net: nn.Module) -> list[nn.Module]:
    """The layer that resizes and pads images within a detector of torchvision; none in others."""
    modules = modules_of(net)
    kinds = {kind for kind in set(map(type, modules)) if any(base.__name__ == _RESIZING for base in kind.__mro__)}
    return [module for module in modules if type(module) in kinds][:1]


@contextmanager
def beginning(
    resizing: Sequence[nn.Module], inputs: Inputs, tracer: LayoutTracer | None = None
) -> Iterator[tuple[Inputs, list[Begun]]]:
    """Within the block, the graph of a twin begins at the images as its first layer is given them.

    Args:
        resizing: `resizing_in` the twin.
        inputs: of one image.
        tracer: is told of them.
    Returns:
        The inputs to run, and a list whose last entry says where the graph of the last run begins.
    """
    begun: list[Begun] = []

    def begin(image: Tensor, inside: Sequence[int]) -> Tensor:
        image = image.detach().clone().requires_grad_()
        if tracer is not None:
            tracer.put(image, start(image.shape))
        height, width = image.shape[2:]
        begun.append(Begun(image, Frame((height, width), (inside[0], inside[1]))))
        return image

    def resized(_module: nn.Module, _inputs: Any, output: Any) -> None:
        images = output[0]
        images.tensors = begin(images.tensors, images.image_sizes[0])

    if resizing:
        with hooked(resizing, after=resized):
            yield inputs.copied(), begun  # which a model may write to
    else:
        image = begin(inputs.images, inputs.images.shape[2:])
        yield inputs.at(image, slice(None)), begun


def head_maps(net: nn.Module, inputs: Inputs, boxes: Callable[[Any], tuple[Sequence[Logit], Tensor]]) -> AnswerMap:
    """The maps that enter the head, for the best boxes of one image together; one forward and a backward for each box.

    From the class logit of a box back, each way through autograd's graph ends at the first map that the boxes'
    places are computed from, too, and at more than one place of which the gradient is not 0: there the ways of
    classes and of places part. Where no gradient of places comes to any map, it ends at the first map. Of several maps
    of one size the one is taken that all of them were computed from, so that there is one for each scale.

    Args:
        net: a twin.
        inputs: of one image.
        boxes: finds in the network's output each box's class logit, and where the boxes are, with their graph.
    Raises:
        LayerError: a way leads past all maps.
    """
    tracer = LayoutTracer(inputs.images)
    with torch.enable_grad(), beginning(resizing_in(net), inputs, tracer) as (given, begun):
        output, found = run_for_maps(net, given, tracer)
        logits, places = boxes(output)
    axes = inputs.images.dim() - 2
    maps = {edge: (name, layout) for edge, (name, layout) in found.items() if len(layout.grid) == axes}
    image = get_gradient_edge(begun[-1].image)
    shared = set[Edge]()
    if places.requires_grad and len(places):
        shared = {*_places(get_gradient_edge(places), torch.ones_like(places), maps, image)}
    chosen = set[Edge]()
    for logit, one in logits:
        counts = _places(logit, one, maps, image)
        live = {edge for edge, count in counts.items() if count > 1}
        reached = _one_a_scale(logit, live & shared or live, maps.keys() - counts.keys(), maps, image)
        if not reached:
            raise LayerError(
                f"the boxes of {type(net).__name__} depend on no feature map that is known; choose layers with layer=."
            )
        chosen |= reached
    result = [maps[edge] for edge in maps if edge in chosen]
    return AnswerMap(tuple(name for name, _ in result), tuple(layout for _, layout in result))


def _one_a_scale(
    logit: GradientEdge,
    live: set[Edge],
    dead: Collection[Edge],
    maps: Mapping[Edge, tuple[str, Layout]],
    image: GradientEdge,
) -> set[Edge]:
    """The first live maps on each way back from a logit, one for each size; empty where a way leads past them.

    Of several of one size, such as the keys and values of a decoder's layers, the latest is left out until there is
    one: the map that all were computed from. A way also ends at a dead map, which is returned as well: that of a scale
    which this box is not pooled from, but others may be.
    """
    allowed, best = set(live), set[Edge]()
    order = list(maps)
    while True:
        reached, whole = frontier(logit, allowed.union(dead), image.node)
        if not whole or not reached & allowed:
            return best
        best = reached
        sizes = Counter(maps[edge][1].grid for edge in reached & allowed)
        twice = [edge for edge in order if edge in reached & allowed and sizes[maps[edge][1].grid] > 1]
        if not twice:
            return best
        allowed.remove(twice[-1])


def frontier(logit: GradientEdge, maps: set[Edge], image: Any) -> tuple[set[Edge], bool]:
    """The first of `maps` on each way back from a logit; and whether no way leads past them to the image."""
    reached, seen, waiting = set[Edge](), set[Any](), list[Edge]([(logit.node, logit.output_nr)])
    whole = True
    while waiting:
        edge = waiting.pop()
        if edge in maps:
            reached.add(edge)
            continue
        node = edge[0]
        if node is image:
            whole = False
        elif node not in seen:
            seen.add(node)
            waiting += [following for following in node.next_functions if following[0] is not None]
    return reached, whole


def _places(
    begin: GradientEdge, gradient: Tensor, maps: Mapping[Edge, tuple[str, Layout]], image: GradientEdge
) -> dict[Edge, int]:
    """At how many places of each map the gradient is not 0, if at any; one backward, which keeps no gradient."""
    counts: dict[Edge, int] = {}

    def note(edge: Edge, layout: Layout, gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[edge[1]]
        if gradient is not None and bool(gradient.any()):
            counts[edge] = 1  # where it is no map after all, ways lead on behind it
            with suppress(ShapeError):
                counts[edge] = int((layout.maps(gradient) != 0).any(1).sum())

    with ExitStack() as hooks:
        for edge, (_, layout) in maps.items():
            hooks.callback(edge[0].register_prehook(partial(note, edge, layout)).remove)
        torch.autograd.grad([begin], [image], [gradient], allow_unused=True, retain_graph=True)
    return counts
