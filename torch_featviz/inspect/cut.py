"""The map that an answer depends on: the latest one through which all of it passes.

A tensor is a *cut* if every way from the answer to the image in autograd's graph leads through it. The latest cut that
is a map, and at more than one place of which the answer's gradient is not 0, is the map of Grad-CAM: of a network with
branches the one where they have come together, of a transformer that is read out at its class token the tokens that
enter its last block. Where no map is a cut alone, the fewest are taken that together are one.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import inf
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from torch_featviz.capture.noting import Note, numbered
from torch_featviz.capture.session import Capture
from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.model.build import build_of
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.kinds import call_of, moves_only
from torch_featviz.model.layout import Layout, LayoutTracer
from torch_featviz.model.run import check_call, run
from torch_featviz.model.values import tensors

Edge: TypeAlias = tuple[Any, int]  # a node of autograd's graph, and the number of its output
Choose: TypeAlias = Callable[["Graph", dict[Edge, tuple[int, ...]]], set[Edge]]


@dataclass(frozen=True)
class AnswerMap:
    """The feature map that an answer depends on, or several maps that together carry all of it.

    Args:
        layers: their names in order of execution; functional calls are named as `capture(ops=True)` names them.
        layouts: the axes (images, channels, places) of each output.
    """

    layers: tuple[str, ...]
    layouts: tuple[Layout, ...]

    def __str__(self) -> str:
        """In words.

        Example:
            >>> str(AnswerMap(("blocks.2",), (Layout((4, 4), prefix=1),)))
            'blocks.2, tokens as 4 × 4, 1 without a place'
        """
        return " and ".join(map(_in_words, self.layers, self.layouts)) + (
            ": each by its own maximum, then the larger" if len(self.layers) > 1 else ""
        )


def _in_words(layer: str, layout: Layout) -> str:
    if layout.tokens is None or not layout.grid:
        return layer
    words = f"{layer}, tokens as {' × '.join(map(str, layout.grid))}"
    without = layout.prefix + layout.suffix
    return f"{words}, {without} without a place" if without else words


_T = TypeVar("_T")
_known: WeakKeyDictionary[nn.Module, dict[Hashable, Any]] = WeakKeyDictionary()


def remembered(
    model: nn.Module, inputs: Inputs, question: Hashable, ask: Callable[[], _T], *, anew: bool = False
) -> _T:
    """`ask()`, once for each `question` about a model that is built like this and inputs of this shape, or anew.

    None is no answer, and asked for again.
    """
    given = (inputs.images, *tensors((inputs.args, dict(inputs.keywords))))
    shapes = tuple(() if tensor.is_nested else tuple(tensor.shape[1:]) for tensor in given)
    answers = _known.setdefault(model, {})
    key = (build_of(model), shapes, question)
    if anew or answers.get(key) is None:
        answers[key] = ask()
    answer: _T = answers[key]
    return answer


def map_of(net: nn.Module, inputs: Inputs, layers: Sequence[str]) -> AnswerMap:
    """The layouts of what these layers return, by one forward of one image.

    Args:
        net: a twin.
        inputs: of one image.
        layers: names of layers or of functional calls, of single calls (`"relu#2"`), too.
    Raises:
        LayerError: one of them did not run, or ran several times and no call is named.
    """
    tracer = LayoutTracer(inputs.images)
    bare = [name.partition("#")[0] for name in layers]
    calls = any(name not in dict(net.named_modules()) for name in bare)

    def look(output: Any) -> list[Layout]:
        layout = tracer.layout(output) or Layout(channels=None, tokens=None)
        if isinstance(output, Tensor) and output.dim() >= 3 and tracer.lost_places(output):
            return [Layout(tuple(output.shape[2:]), channels=1, tokens=None, places=tuple(range(2, output.dim())))]
        return [layout]

    with torch.no_grad(), Capture(net, bare, ops=calls, into=look) as found:
        with tracer:
            run(net, inputs)
        for name, layer in zip(layers, bare, strict=True):
            check_call(name, len(found.calls(layer)))
        return AnswerMap(tuple(layers), tuple(found[name][0] for name in layers))


def answer_map(
    net: nn.Module,
    inputs: Inputs,
    figure: Callable[[Any], Tensor],
    *,
    beyond: int = 1,
    choose: Choose | None = None,
) -> AnswerMap:
    """The latest map through which all that the answer knows of the image passes; one forward and one backward.

    Args:
        net: a twin.
        inputs: of one image.
        figure: makes one number of what the network returns.
        beyond: the answer has to depend on more than so many places of a map.
        choose: takes the graph and the grids of such maps, in order of execution, and chooses a cut; default the latest
            of the fewest maps.
    Raises:
        OptionError: no gradient reaches the answer, or all of it is 0.
        LayerError: there is no such map.
    """
    image = inputs.images.detach().clone().requires_grad_()
    tracer = LayoutTracer(image)
    with torch.enable_grad():
        output, maps = run_for_maps(net, inputs.at(image, slice(None)), tracer)
        answer = figure(output).sum()
    graph, live = Graph(get_gradient_edge(answer), get_gradient_edge(image)), set[Edge]()
    with ExitStack() as hooks:  # gradients are looked at as they come by, and not kept
        for edge, found in maps.items():
            note = partial(_note, live, edge, found, beyond)
            hooks.callback(edge[0].register_prehook(note).remove)
        (gradient,) = torch.autograd.grad(answer, image, allow_unused=True, retain_graph=True)
    if gradient is None or not bool(gradient.any()):
        raise OptionError(
            f"the gradient of the answer of {type(net).__name__} is 0 everywhere, so there is nothing to explain; "
            "perhaps the last layer was initialised with zeros and never trained."
        )
    order = [edge for edge in maps if edge in live]
    if choose is not None and (chosen := choose(graph, {edge: maps[edge][1].grid for edge in order})):
        return _as_result([maps[edge] for edge in order if edge in chosen])
    if choose is None and (chosen := graph.latest_cut(live)):
        return _as_result([maps[edge] for edge in _latest_within(chosen, order, maps, answer, image)])
    raise LayerError(
        f"{type(net).__name__} has no feature map that its answer depends on; choose one with layer=. "
        "layer_names(model) lists all layers."
    )


_Found: TypeAlias = tuple[str, Layout]


def _as_result(found: list[_Found]) -> AnswerMap:
    return AnswerMap(tuple(name for name, _ in found), tuple(layout for _, layout in found))


def run_for_maps(net: nn.Module, inputs: Inputs, tracer: LayoutTracer) -> tuple[Any, dict[Edge, _Found]]:
    """What `net` returns, and all maps that its layers and calls return, by where they are in autograd's graph.

    A map that several return has the name of the last. What a functional call only moves is another one's map, whose
    name says more.
    """
    seen = list[tuple[str, Edge, Layout]]()

    def look(name: str, output: Any) -> None:
        layout = tracer.layout(output) if isinstance(output, Tensor) and output.requires_grad else None
        known = layout is not None and layout.is_map and None not in (layout.images, layout.channels)
        edge = get_gradient_edge(output) if known else None
        seen.append((name, (edge.node, edge.output_nr) if edge else (None, 0), layout or Layout()))

    with Capture(net, ["*", ""], ops=True, into=Note(look)), tracer:
        output = run(net, inputs)
    modules, maps = {name for name, _ in net.named_modules()}, dict[Edge, _Found]()
    for full, (name, edge, layout) in zip(numbered([name for name, _, _ in seen]), seen, strict=True):
        if name and edge[0] is not None and (name in modules or not moves_only(call_of(name))):
            maps.pop(edge, None)
            maps[edge] = (full, layout)
    return output, maps


def _note(live: set[Edge], edge: Edge, found: _Found, beyond: int, gradients: tuple[Tensor | None, ...]) -> None:
    """Put an edge among those where the answer depends on more than so many places of the map, if it does."""
    gradient = gradients[edge[1]]
    if gradient is None:
        return
    with suppress(ShapeError):
        if int((found[1].maps(gradient) != 0).any(1).sum()) > beyond:
            live.add(edge)


def _latest_within(
    chosen: set[Edge], order: list[Edge], maps: dict[Edge, _Found], answer: Tensor, image: Tensor
) -> list[Edge]:
    """The chosen maps in their order; or a later one, past which nothing of the image comes to the answer.

    A residual goes round the norm before an attention; but of a class token that is still the same for all images, it
    brings nothing of the image.
    """
    found = [edge for edge in order if edge in chosen]
    layout = maps[found[0]][1]
    if len(found) > 1 or not layout.prefix + layout.suffix:
        return found
    later = order[order.index(found[0]) + 1 :]
    here, *there = (GradientEdge(*edge) for edge in (*found, *later))
    whole, *parts = torch.autograd.grad(answer, [here, *there], retain_graph=True)
    for edge, way, part in reversed(list(zip(later, there, parts, strict=True))):
        (by,) = _grad(way, here, part)
        past = whole if by is None else whole - by
        past = torch.where(past.abs() > 1e-5 * whole.abs().max(), past, 0)
        if layout.maps(past).any():  # in places
            continue
        (reached,) = _grad(here, image, past)
        if reached is None or not bool(reached.any()):
            return [edge]
    return found


def _grad(of: GradientEdge, to: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad([of], [to], [gradient], allow_unused=True, retain_graph=True)


class Graph:
    """What of autograd's graph lies between an answer and an image.

    Args:
        answer: where it begins.
        image: where it ends.
    """

    def __init__(self, answer: GradientEdge, image: GradientEdge) -> None:
        self.root = answer.node
        self.end = image.node
        self.order = _sorted(self.root)
        self.leads: set[Any] = {self.end}  # nodes from which there is a way to the image
        for node in reversed(self.order):
            if any(following in self.leads for following, _ in node.next_functions):
                self.leads.add(node)

    def following(self, node: Any) -> list[Edge]:
        """The edges to nodes before this one from which there is a way to the image."""
        return [(other, number) for other, number in node.next_functions if other in self.leads]

    def before(self, node: Any) -> set[Any]:
        """This node and all that it was computed from, as far as that leads to the image."""
        found, pending = {node}, [node]
        while pending:
            new = {other for other, _ in self.following(pending.pop())} - found
            found |= new
            pending += new
        return found

    def met_first(self, edges: Collection[Edge]) -> set[Edge]:
        """Of `edges` those that a way from the answer meets first; empty where a way to the image meets none."""
        met, seen, pending = set[Edge](), {self.root}, [self.root]
        while pending:
            for edge in self.following(pending.pop()):
                if edge in edges:
                    met.add(edge)
                elif edge[0] is self.end:
                    return set()
                elif edge[0] not in seen:
                    seen.add(edge[0])
                    pending.append(edge[0])
        return met

    def latest_cut(self, edges: Collection[Edge]) -> set[Edge]:
        """The fewest of `edges` that every way to the image leads through, and of such sets the one next to the answer.

        Empty where a way leads past all of them. This is a minimal cut by augmenting ways (Ford & Fulkerson 1956), of a
        network in which only `edges` are narrow: one way each.
        """
        room: dict[Any, dict[Any, float]] = defaultdict(dict)  # of nodes and edges: what is left from each to the next
        for node in self.order:
            for edge in self.following(node):
                room[node][edge], room[edge][edge[0]] = inf, 1 if edge in edges and edge[0] is not self.end else inf
                room[edge].setdefault(node, 0)
                room[edge[0]].setdefault(edge, 0)
        while True:
            came: dict[Any, Any] = {self.root: None}  # from where
            pending = deque([self.root])
            while pending and self.end not in came:
                at = pending.popleft()
                for to, left in room[at].items():
                    if left and to not in came:
                        came[to] = at
                        pending.append(to)
            if self.end not in came:
                return {edge for edge in edges if edge in came and edge[0] not in came}
            way = [self.end]
            while came[way[-1]] is not None:
                way.append(came[way[-1]])
            if all(room[at][to] == inf for to, at in pairwise(way)):
                return set()
            for to, at in pairwise(way):
                room[at][to] -= 1
                room[to][at] += 1


def _sorted(root: Any) -> list[Any]:
    """All nodes, each before those that it leads to."""
    order, seen = [], {root}
    pending = [(root, iter(root.next_functions))]
    while pending:
        node, rest = pending[-1]
        for following, _ in rest:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append((following, iter(following.next_functions)))
                break
        else:
            pending.pop()
            order.append(node)
    return order[::-1]
