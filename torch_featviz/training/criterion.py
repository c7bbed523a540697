"""What a loss does with a model's answers, read from its own graph of autograd."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from torch import Tensor

from torch_featviz.torch_private import shape_of

_MOST = 64  # nodes that are looked at
_TAKES_SCORES = ("LogSoftmax", "BinaryCrossEntropyWithLogits")
_TAKES_LOGARITHMS = ("NllLoss", "NllLoss2D")
_SQUASHES = {"Softmax": "a softmax", "Sigmoid": "a sigmoid"}
_LAYERS = {"Addmm": "a linear layer", "Mm": "a linear layer", "Convolution": "a convolution"}
_SAME = (  # these move values, or round them
    *("View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze", "Unsqueeze", "Transpose", "T", "Permute", "Slice"),
    *("Select", "Clone", "ToCopy", "Expand", "Alias", "AsStrided", "Index", "MaskedSelect"),
)
_ENDS = (*_LAYERS, "Bmm", "Baddbmm", "NativeBatchNorm", "CudnnBatchNorm", "NativeLayerNorm", "Embedding")
_DISTANCES = ("MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss")
_SUMS = ("Mean", "Sum")
_MINUS = ("Sub", "Rsub")
_ROUNDS = ("Pow", "Abs", "Square", "Huber", "ToCopy")  # what may stand between a difference and its mean


class Criterion(NamedTuple):
    """A mistake in how a loss is put together."""

    mistake: str  # "twice", "no_logarithm" or "broadcast"
    figure: str  # what was seen, as a person reads it


def mistake_of(loss: Tensor) -> Criterion | None:
    """The first mistake that the graph of a loss shows; None where it shows none, or there is no graph.

    Three are known: a softmax or sigmoid whose answers are given to a loss that applies one itself, `nll_loss` of what
    is no logarithm, and a difference of answers `n 1` and targets `n`, which is `n n`. The model's own layers are not
    looked at.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> scores = torch.randn(4, 3, requires_grad=True)
        >>> mistake_of(F.cross_entropy(scores.softmax(1), torch.tensor([0, 1, 2, 0])))
        Criterion(mistake='twice', figure='a softmax before LogSoftmax')
    """
    waiting, seen, broadcast = deque([loss.grad_fn]), set[Any](), None
    while waiting and len(seen) < _MOST:
        node = waiting.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (found := _mistake_at(node)) is not None and found.mistake != "broadcast":
            return found
        broadcast = broadcast or found
        if _kind(node) not in _ENDS:
            waiting.extend(each for each, _ in node.next_functions)
    return None if any(map(_is_of_pairs, seen)) else broadcast


def _mistake_at(node: Any) -> Criterion | None:
    kind, given = _kind(node), _given(node)
    before = _kind(given)
    if kind in _TAKES_SCORES and before in _SQUASHES:
        return Criterion("twice", f"{_SQUASHES[before]} before {kind}")
    if kind in _TAKES_LOGARITHMS and (before in _SQUASHES or before in _LAYERS):
        return Criterion("no_logarithm", f"what {({**_SQUASHES, **_LAYERS})[before]} returns")
    if kind not in (*_SUMS, *_DISTANCES):
        return None
    difference = _difference(node) if kind in _SUMS else node
    return _broadcast(difference) or _broadcast(_expanded(difference))


def _given(node: Any) -> Any:
    """What the first argument of a node came from; None where it is a constant, as beside targets that are learnt."""
    given = _argument(node)
    while given is not None and _kind(given) in _SAME:
        given = _argument(given)
    return given


def _difference(node: Any) -> Any:
    """The difference of answers and targets that is averaged."""
    before = _first(node)
    while before is not None and (_kind(before) in _ROUNDS or _is_product(before)):
        before = _first(before)
    return before if _kind(before) in _MINUS else None


def _expanded(node: Any) -> Any:
    """What became as large as its targets before a distance."""
    before = _first(node)
    return before if _kind(before) == "Expand" else None


def _is_product(node: Any) -> bool:
    """Whether both factors learn, as in a square; what a table of `n n` weighs is compared in pairs on purpose."""
    return _kind(node) == "Mul" and all(each is not None for each, _ in node.next_functions)


def _is_of_pairs(node: Any) -> bool:
    """Whether it compares each of `n` answers with each of them, so that to compare each with all is no slip."""
    if _kind(node) not in _MINUS or len(shape := shape_of(node)) != 2:
        return False
    given = sorted(shape_of(each) for each, _ in node.next_functions if each is not None)
    return given == [(1, shape[1]), (shape[0], 1)]


def _broadcast(node: Any) -> Criterion | None:
    """Whether a node makes `n n` of answers `n 1`, as beside targets `n`; two that learn may be compared in pairs."""
    shape, given = shape_of(node), [each for each, _ in node.next_functions if each is not None] if node else []
    if len(given) == 1 and len(shape) == 2 and shape[0] == shape[1] > 1 and shape_of(given[0]) == (shape[0], 1):
        return Criterion("broadcast", f"{shape[0]} answers and {shape[0]} targets are {shape[0]} x {shape[0]} numbers")
    return None


def _argument(node: Any) -> Any:
    return node.next_functions[0][0] if node is not None and node.next_functions else None


def _first(node: Any) -> Any:
    return next((each for each, _ in node.next_functions if each is not None), None) if node is not None else None


def _kind(node: Any) -> str:
    """`"LogSoftmax"` of a `LogSoftmaxBackward0`; its `name()` may be hidden by what a function keeps in its `ctx`."""
    return "" if node is None else type(node).__name__.partition("Backward")[0]
