"""Whether a max pool's switches lie on the way from a map back to the images, read from the graph of one forward."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_featviz.torch_private import places_after_max_pool

from .rectify import graph_of


def switched(maps: Tensor, images: Tensor) -> bool:
    """Whether max pools decide, by the image, which way a value takes from `maps` back to `images`.

    A max pool over a whole map with another way around it belongs to a gate, as in CBAM, and decides no way.

    Args:
        maps: with their graph.
        images: the leaf that the graph begins at.
    """
    nodes = list(graph_of(maps))
    start = next((node for node in nodes if getattr(node, "variable", None) is images), None)
    if start is None:
        return False
    pools = {node: places for node in _above(start, nodes) if (places := places_after_max_pool(node))}
    whole = {node for node, places in pools.items() if places == 1}
    return len(whole) < len(pools) or start not in set(graph_of(maps, without=whole))


def _above(start: Any, nodes: list[Any]) -> set[Any]:
    """Those of the nodes whose gradient reaches `start`."""
    fed_by: dict[Any, list[Any]] = {}
    for node in nodes:
        for below, _ in node.next_functions:
            fed_by.setdefault(below, []).append(node)
    waiting, seen = [start], {start}
    while waiting:
        more = [node for node in fed_by.get(waiting.pop(), ()) if node not in seen]
        seen.update(more)
        waiting += more
    return seen
