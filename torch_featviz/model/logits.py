"""The class logit that a box comes from, found in autograd's graph behind the box's score."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from torch_featviz.errors import OptionError

Logit: TypeAlias = tuple[GradientEdge, Tensor]  # where it is in the graph, and the gradient to begin with there

# Nodes of autograd's graph, without "Backward0": that move and pick values, that weigh them, that make probabilities.
_MOVING = frozenset(
    (
        *("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "T", "Transpose", "Permute", "Select"),
        *("Slice", "Index", "IndexSelect", "Gather", "Clone", "ToCopy", "Alias", "Expand", "Split", "SplitWithSizes"),
        *("Unbind", "AsStrided", "Cat", "Stack", "Max", "Amax", "Topk", "Sort", "MaskedSelect"),
    )
)
_WEIGHING = frozenset(("Mul", "Div", "Sqrt", "Pow", "Clamp"))
_SQUASHING = frozenset(("Sigmoid", "Softmax", "SafeSoftmax"))
_DETACHED = (
    "no gradient reaches the scores of the boxes: the model computes them from detached features, or in no_grad(); "
    "pass target= a callable that returns a class logit of another head, one value per image."
)


def own_logit(figure: Tensor) -> Logit:
    """Where in autograd's graph the class logit of a box was computed, and the gradient to begin with there.

    A score was picked from what a sigmoid or softmax returned, perhaps weighed by another (FCOS's centerness, YOLO's
    object); suppression only picks. So its gradient there is not 0 at one number: that of the box and its class before
    suppression. Of several sigmoids the one with most columns is of classes; of as many, the first factor. Where there
    is none, the figure is a logit itself. From there it goes back to the layer that computed it, past what puts the
    logits of several scales together.

    Args:
        figure: one of `Candidates.figures`.
    Raises:
        OptionError: no gradient reaches it.
    """
    if not figure.requires_grad:
        raise OptionError(_DETACHED)
    begin, one = get_gradient_edge(figure), torch.ones_like(figure)
    squashed = _behind([begin], _MOVING | _WEIGHING, _SQUASHING)
    if squashed:
        live = [(edge, g) for edge, g in zip(squashed, _gradients(begin, one, squashed), strict=True) if g.any()]
        if not live:
            raise OptionError("the gradient of a box's score is 0, because its score is 0; raise min_score.")
        edge, gradient = max(live, key=lambda pair: pair[1].shape[-1])
        node, number = edge.node.next_functions[0]
        if node is None:
            raise OptionError(_DETACHED)
        begin, one = GradientEdge(node, number), (gradient != 0).to(gradient)
    moved = _moved(begin, one)
    return moved[0] if len(moved) == 1 else (begin, one)


def own_logits(figures: Tensor) -> list[Logit]:
    """`own_logit` of each of several boxes: of all together, by one backward, where scores were only picked.

    Args:
        figures: `n`, as `Candidates` has them.
    Raises:
        OptionError: no gradient reaches them.
    """
    one_by_one = map(own_logit, figures)
    if not figures.requires_grad or not len(figures):
        return list(one_by_one)
    begin, count = get_gradient_edge(figures), len(figures)
    numbers = torch.arange(1, count + 1, dtype=figures.dtype, device=figures.device)
    picked = _behind([begin], _MOVING)
    squashing = [edge.node for edge in picked if _kind(edge.node) in _SQUASHING]
    ends = [edge for edge in picked if _kind(edge.node) not in _SQUASHING]
    ends += _behind([edge for node in squashing for edge in _before(node)], _MOVING)
    with ExitStack() as hooks:
        for node in squashing:
            hooks.callback(node.register_hook(_unchanged).remove)
        gradients = _grad(begin, numbers, ends)
    logits = dict[float, Logit]()  # by the number of the box
    for edge, gradient in zip(ends, gradients, strict=True):
        if gradient is None:
            continue
        values = gradient.flatten()
        places = values.nonzero()
        found = values[places[:, 0]].tolist()
        if len(found) > count or (found and _kind(edge.node) in _WEIGHING):
            return list(one_by_one)
        ones = values.new_zeros(len(found), *gradient.shape)
        ones.flatten(1).scatter_(1, places, 1)
        logits.update(zip(found, ((edge, one) for one in ones), strict=True))
    if logits.keys() != set(range(1, count + 1)):  # several were picked from one
        return list(one_by_one)
    return [logits[number] for number in sorted(logits)]


def _unchanged(_given: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A hook that has a node pass on what comes to it: where a probability is rounded to 1, its slope is 0."""
    return gradients


def _moved(begin: GradientEdge, gradient: Tensor) -> list[Logit]:
    """The edges that come first behind what moves and picks values, as far as the gradient is not 0 there."""
    ends = _behind([begin], _MOVING)
    return [(edge, g) for edge, g in zip(ends, _gradients(begin, gradient, ends), strict=True) if g.any()]


def _behind(
    begin: Iterable[GradientEdge], past: frozenset[str], until: frozenset[str] | None = None
) -> list[GradientEdge]:
    """The edges that come first behind nodes of some kinds; of all others, or of these."""
    found, seen = dict[tuple[Any, int], None](), set[Any]()
    waiting: list[tuple[Any, int]] = [(edge.node, edge.output_nr) for edge in begin]
    while waiting:
        node, number = waiting.pop(0)
        if node is None or (node, number) in seen:
            continue
        seen.add((node, number))
        if _kind(node) in past:
            waiting += node.next_functions
        elif until is None or _kind(node) in until:
            found[node, number] = None
    return [GradientEdge(*edge) for edge in found]


def _before(node: Any) -> list[GradientEdge]:
    return [GradientEdge(*edge) for edge in node.next_functions if edge[0] is not None]


def _kind(node: Any) -> str:
    name: str = node.name()
    return name.rstrip("0123456789").removesuffix("Backward")


def _gradients(begin: GradientEdge, one: Tensor, edges: list[GradientEdge]) -> list[Tensor]:
    """At each of these edges; a single 0 where there is none.

    NaN is what 0 times the slope of a root at 0 gives: of other boxes, whose score is 0.
    """
    given = _grad(begin, one, edges)
    return [one.new_zeros(1) if gradient is None else gradient.nan_to_num(0.0) for gradient in given]


def _grad(begin: GradientEdge, one: Tensor, edges: list[GradientEdge]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad([begin], edges, [one], retain_graph=True, allow_unused=True)
