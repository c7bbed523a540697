"""Effective receptive fields: which part of its receptive field a unit uses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError
from torch_featviz.gate import gate
from torch_featviz.inspect.receptive import Box, ReceptiveField
from torch_featviz.picture import Picture, Scale, Sheet, paint

_WHITE = 255


@gate("seen")
def effective_field(seen: ReceptiveField) -> Picture:
    """Draw the effective receptive field of a layer's middle unit, with the box of its receptive field.

    Args:
        seen: the result of `receptive_field(..., effective=True)`. For a volume the middle slice is drawn.
    Raises:
        DtypeError: `seen` is not such a result.
        OptionError: `seen` has no effective field.
    Example:
        >>> from torch_featviz.inspect import receptive_field
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> effective_field(receptive_field(net, "1", (9, 9), effective=True)).title
        'Effective receptive field of 1: size 3 × 3, stride 1 × 1, start (0, 0) (exact)'

    Reference: Luo et al. 2016.
    """
    if not isinstance(seen, ReceptiveField):
        raise DtypeError(f"seen must be a result of receptive_field(), got {type(seen).__name__}.")
    if seen.effective is None:
        raise OptionError("the effective field was not computed; call receptive_field(..., effective=True).")
    middle = tuple(n // 2 for n in seen.map_size)
    box, values = seen.box(*middle) if middle else tuple((0, n) for n in seen.input_size), seen.effective
    notes = [f"unit {_listed(middle)} of a map of {_by(seen.map_size)}" if middle else "the sum of all units"]
    if values.dim() == 3:
        depth = sum(box[0]) // 2
        values, box = values[depth], box[1:]
        notes.append(f"slice {depth} of {seen.input_size[0]}")
    notes.append(f"white: its box, {' × '.join(f'{low} to {high - 1}' for low, high in box)}")
    if values.dim() == 1:
        high = max(3, len(values) // 8)
        values, box = values.expand(high, -1), ((0, high), *box)
    cells, legend = paint(values[None, None], Scale(vmin=0), notes=tuple(notes))
    return Sheet(_outlined(cells, box), legend, title=_title(seen))


def _title(seen: ReceptiveField) -> str:
    parts = [f"size {_by(seen.size)}"]
    if None not in (*seen.stride, *seen.start):
        parts += [f"stride {_by(seen.stride)}", f"start {_listed(seen.start)}"]
    return f"Effective receptive field of {seen.layer}: {', '.join(parts)} ({seen.kind})"


def _outlined(cells: Tensor, box: Box) -> Tensor:
    """A white line just outside of a box in each cell; where the box ends with the cell there is none."""
    cells = cells.clone()
    (top, bottom), (left, right) = box
    height, width = cells.shape[2:]
    rows, columns = slice(max(0, top - 1), bottom + 1), slice(max(0, left - 1), right + 1)
    cells[..., [y for y in (top - 1, bottom) if 0 <= y < height], columns] = _WHITE
    cells[..., rows, [x for x in (left - 1, right) if 0 <= x < width]] = _WHITE
    return cells


def _listed(numbers: Sequence[object]) -> str:
    return f"({', '.join(map(str, numbers))})"


def _by(numbers: Sequence[object]) -> str:
    return " × ".join(map(str, numbers))
