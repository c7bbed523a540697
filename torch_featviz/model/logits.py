"""The class logit that a box comes from, found in autograd's graph behind the box's score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from torch_featviz.errors import OptionError
from torch_featviz.torch_private import results_of

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
_PASSED = _MOVING | _SQUASHING
_OF_SEVERAL = frozenset(("Split", "SplitWithSizes", "Unbind"))  # whose operators return several tensors
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
    squashed = _behind(begin, _MOVING | _WEIGHING, _SQUASHING)
    if squashed:
        live = [(edge, g) for edge, g in zip(squashed, _gradients(begin, one, squashed), strict=True) if g.any()]
        if not live:
            raise OptionError("the gradient of a box's score is 0, because its score is 0; raise min_score.")
        edge, gradient = max(live, key=lambda pair: pair[1].shape[-1:].numel())
        node, number = edge.node.next_functions[0]
        if node is None:
            raise OptionError(_DETACHED)
        begin, one = GradientEdge(node, number), (gradient != 0).to(gradient)
    moved = _moved(begin, one)
    return moved[0] if len(moved) == 1 else (begin, one)


def own_logits(figures: Tensor, counts: Sequence[int] = ()) -> list[Logit]:
    """`own_logit` of each of several boxes: of all together, where scores were only picked.

    The gradients of the first boxes of several images are one tensor wherever these come from the same logits, and so
    are those of the second boxes and so on: one backward then serves all images.

    Args:
        figures: `n`, as `Candidates` has them.
        counts: how many boxes each image has; default: all are of one.
    Raises:
        OptionError: no gradient reaches them.
    """
    one_by_one, counts = map(own_logit, figures), counts or (len(figures),)
    if not figures.requires_grad or not len(figures):
        return list(one_by_one)
    boxes, device, most = len(figures), figures.device, max(counts)
    ranks = torch.cat([torch.arange(count, device=device) for count in counts])
    rank_of: dict[float, int] = dict(enumerate((rank for count in counts for rank in range(count)), 1))
    logits = dict[float, Logit]()  # by the number of the box, from 1
    for edge, gradient in _carried(figures, torch.arange(1, boxes + 1, dtype=figures.dtype, device=device)):
        values = gradient.flatten()
        places = values.nonzero()[:, 0]
        numbers = values[places]
        found = numbers.tolist()
        if len(found) > boxes or not rank_of.keys() >= set(found) or (found and _kind(edge.node) in _WEIGHING):
            return list(one_by_one)
        ones = values.new_zeros(most, len(values))
        ones[ranks[numbers.long() - 1], places] = 1
        of_rank = [one.view(gradient.shape) for one in ones]
        logits.update((number, (edge, of_rank[rank_of[number]])) for number in found)
    if logits.keys() != set(range(1, boxes + 1)):  # several were picked from one
        return list(one_by_one)
    return [logits[number] for number in sorted(logits)]


@torch.no_grad()
def _carried(figures: Tensor, numbers: Tensor) -> list[Logit]:
    """Where in the graph numbers come to, of which one stands for each figure, behind all that moves and picks values
    or makes probabilities of them. These pass them on unchanged: where a probability is rounded to 1, its slope is 0.

    Nodes are called one by one; for so few, autograd's engine takes twice as long.
    """
    begin = get_gradient_edge(figures)
    kinds, uses = {begin.node: _kind(begin.node)}, {begin.node: 0}
    between = [begin.node] if kinds[begin.node] in _PASSED else []
    for node in between:  # which grows on the way
        for following, _ in node.next_functions:
            if following is not None and following not in kinds:
                kinds[following], uses[following] = _kind(following), 0
                between += [following] if kinds[following] in _PASSED else []
            if following is not None:
                uses[following] += 1
    come, ready = {begin.node: {begin.output_nr: numbers}}, between[:1]
    while ready:
        node = ready.pop()
        passed = _passed(node, kinds[node], come.pop(node, {}))
        for (following, number), values in zip(node.next_functions, passed, strict=True):
            if following is None:
                continue
            if values is not None:
                at = come.setdefault(following, {})
                at[number] = at[number] + values if number in at else values
            uses[following] -= 1
            if not uses[following] and kinds[following] in _PASSED:
                ready.append(following)
    return [(GradientEdge(node, number), values) for node, at in come.items() for number, values in at.items()]


def _passed(node: Any, kind: str, given: dict[int, Tensor]) -> Sequence[Tensor | None]:
    """What a node makes of gradients for some of its operator's results, for each of the nodes that follow."""
    if not given:
        return [None] * len(node.next_functions)
    if kind in _SQUASHING:
        return [given[0]]
    several = map(given.get, range(results_of(node))) if kind in _OF_SEVERAL else given.values()
    passed: Tensor | tuple[Tensor | None, ...] = node(*several)
    return [passed] if isinstance(passed, Tensor) else passed


def _moved(begin: GradientEdge, gradient: Tensor) -> list[Logit]:
    """The edges that come first behind what moves and picks values, as far as the gradient is not 0 there."""
    ends = _behind(begin, _MOVING)
    return [(edge, g) for edge, g in zip(ends, _gradients(begin, gradient, ends), strict=True) if g.any()]


def _behind(begin: GradientEdge, past: frozenset[str], until: frozenset[str] | None = None) -> list[GradientEdge]:
    """The edges that come first behind nodes of some kinds; of all others, or of these."""
    found, seen = dict[tuple[Any, int], None](), set[Any]()
    waiting: list[tuple[Any, int]] = [(begin.node, begin.output_nr)]
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


def _kind(node: Any) -> str:
    name: str = node.name()
    return name.rstrip("0123456789").removesuffix("Backward")


def _gradients(begin: GradientEdge, one: Tensor, edges: list[GradientEdge]) -> list[Tensor]:
    """At each of these edges; a single 0 where there is none.

    NaN is what 0 times the slope of a root at 0 gives: of other boxes, whose score is 0.
    """
    given = torch.autograd.grad([begin], edges, [one], retain_graph=True, allow_unused=True)
    return [one.new_zeros(1) if gradient is None else gradient.nan_to_num(0.0) for gradient in given]
