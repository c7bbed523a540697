"""What meets in an attention, and whether it is one between tokens."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from .groups import Groups, Unplaced, grouped
from .places import Places, PlaceTracer, over_channels

_JOINED = "several of its groups are of the same tokens, as where views of an image are joined"
TALKING = "its heads are mixed after the softmax (talking heads), before it meets values"


class Operands(NamedTuple):
    """What meets in an attention.

    Args:
        queries: the queries, or the weights; `values` are the values, or the keys; both have tokens along `axis`.
        heads: how many of the groups are heads of one attention; None if unknown.
        weights: `... q k`, where a softmax has been seen.
        axes: how many that softmax had.
    """

    queries: Tensor
    values: Tensor
    heads: int | None = 1
    axis: int = -2
    weights: Tensor | None = None
    axes: int = 4


def group_of(met: Operands, tracer: PlaceTracer | None, images: int | None, module: nn.Module) -> Groups | str:
    """Which images, windows and heads it is of; or why it is no attention between tokens.

    Args:
        tracer: what knows the places of tokens; None where they were not followed.
        images: how many the model was given.
        module: in whose forward they meet.
    Raises:
        Unplaced: it cannot be told.
    """
    asked, seen = (None if tracer is None else tracer.known(x) for x in (met.queries, met.values))
    if over_channels(met.values, seen, met.axis):
        return "its softmax is over channels, not over tokens"
    n = met.values.shape[:1].numel()
    if met.weights is not None:
        n = met.values.shape[:-2].numel()
        total = met.weights.sum(dim=-1)
        if bool(((total - 1).abs() > 0.05).logical_and(total != 0).any()):
            talking = met.heads is not None and tuple(met.values.shape[-2:]) == (met.heads, met.heads)
            return TALKING if talking else "what meets the values is no softmax over tokens"
        if met.weights.dim() == 2 and seen is None:
            return "its softmax meets the weights of a layer"
    heads = met.heads
    if heads is None and isinstance(module, nn.MultiheadAttention):
        heads = module.num_heads
    if heads is None and asked is not None and asked.copied:  # keys are copied for heads that share them
        raise Unplaced(_JOINED)
    of_queries, of_keys = (_tokens(places, met.axis, n) for places in (asked, seen))
    groups = grouped(of_queries, of_keys, n, images, heads)
    if of_keys is not None and groups.folded not in _foldable(met, heads, groups.folded):
        raise Unplaced(_JOINED)
    return groups


def _foldable(met: Operands, heads: int | None, found: int) -> tuple[int, ...]:
    """How many groups an attention may have for each image and window: one for each head, where heads are known."""
    if met.weights is None:
        return (1,) if met.values.dim() == 3 or met.values.shape[1] > 1 else (found,)
    if heads is not None and met.axes <= 4:
        return 1, heads
    return (found,)


def _tokens(places: Places | None, axis: int, n: int) -> Places | None:
    """The places of the tokens along an axis, one of the last two, in each of the `n` groups that come first."""
    if places is None:
        return None
    numbers = places.numbers.movedim(axis, -1).select(-2, 0)  # ... tokens
    numbers = numbers.reshape(n, -1, numbers.shape[-1])
    if bool((numbers != numbers[:, :1]).any()):
        raise Unplaced("what stands in the place of its heads are different images, views or windows")
    return Places(numbers[:, 0], places.count)  # without the heads, where they have an axis
