"""Which of many layers are shown: the ends of blocks, and the last layer of each size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

from torch_featviz.inspect.layer import Layer
from torch_featviz.model.kinds import call_of, is_channelwise


def stages(calls: Sequence[Layer], limit: int | None) -> list[Layer]:
    """At most `limit` of these layers, in their order: as many ends of blocks as there is room for.

    Without what a norm or an activation follows; then the last layer in each block, of blocks as small as fit, and the
    last of each size; then those of sizes alone.

    Args:
        calls: layers that return maps, in order of execution.
        limit: None keeps all.
    """
    if limit is None or len(calls) <= limit:
        return list(calls)
    after = dict(zip(map(id, calls), calls[1:], strict=False))
    units = [call for call in calls if id(call) not in after or not _continued(call, after[id(call)])]
    sizes = ends_of_sizes(units)
    depth = max(call.name.count(".") for call in units)
    tried = [units, *(_ends(units, level, sizes) for level in range(depth, 0, -1)), sizes]
    fits = next((chosen for chosen in tried if len(chosen) <= limit), None)
    return fits or spread(sizes, limit)


def ends_of_sizes(calls: Sequence[Layer]) -> list[Layer]:
    """The last layer of each size, before maps become smaller or larger."""
    return [call for call, later in pairwise(calls) if _size(call) != _size(later)] + list(calls[-1:])


def spread(calls: Sequence[Layer], count: int) -> list[Layer]:
    """So many layers, the first and the last among them."""
    return [calls[i * (len(calls) - 1) // max(1, count - 1)] for i in range(count)]


def _size(call: Layer) -> tuple[int, ...]:
    return () if call.maps is None else tuple(call.maps.shape[2:])


def _continued(call: Layer, after: Layer) -> bool:
    """Whether the next layer is a norm, an activation or the like on this one."""
    kind = "" if after.module is not None else call_of(after.name)
    return after.shape == call.shape and is_channelwise(after.module, kind)


def _ends(calls: Sequence[Layer], level: int, sizes: Sequence[Layer]) -> list[Layer]:
    """The last layer in each block whose name has `level` parts, and those of `sizes`."""

    def block(call: Layer) -> str:
        return ".".join(call.layer.split(".")[:level])

    kept = {id(call) for call in (*sizes, *(list(group)[-1] for _, group in groupby(calls, block)))}
    return [call for call in calls if id(call) in kept]
