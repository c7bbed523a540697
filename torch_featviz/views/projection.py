"""What in an image activates one unit: the unit projected back to the pixels, beside the image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.choices import PROJECTIONS
from torch_featviz.errors import ShapeError
from torch_featviz.explain import Projections, project
from torch_featviz.explain.deconvnet import Unit
from torch_featviz.gate import gate
from torch_featviz.inspect import ReceptiveField, receptive_field
from torch_featviz.inspect.receptive import Box
from torch_featviz.model.inputs import as_batch
from torch_featviz.picture import Legend, Picture, Scale, Sheet, enlarge, grid_columns, number, paint, rgb
from torch_featviz.picture.bounds import fitted
from torch_featviz.picture.color import total_of
from torch_featviz.picture.images import Card, ValueRange, clipped, unit_images
from torch_featviz.picture.legend import OF_IMAGES

LIMIT = 32
_GOAL = 300  # pixels of a cell
_SHARE = 0.999  # of what a unit sees, within the scale of its projection
_WHITE, _BLACK, _NOTHING = 255, 0, 225


@gate("unit")
def projection(
    model: nn.Module,
    image: Tensor,
    layer: str | nn.Module,
    unit: Unit | Sequence[Unit] | Tensor,
    *,
    projection: str | None = None,
    value_range: ValueRange | None = None,
    card: Card | None = None,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    title: str = "",
) -> Picture:
    """Draw an image with a box around a unit's receptive field, and beside it the unit projected back to the pixels.

    If the receptive field covers at most half of each side, it is enlarged together with its projection; outside of it
    the projection is 0. In a projection mid-grey is 0 (white for one channel). The scale is symmetric about 0 and clips
    0.1 % of the values in the receptive field; each of several units has its own. `deconvnet` returns the values.

    Args:
        model: any module; it is unchanged.
        image: one image, `c h w` or `1 c h w`, as the model takes it, with one or three channels.
        layer: a layer that returns a map, as for `deconvnet`.
        unit: `(channel, row, column)`, or a channel for its strongest unit; or a list of up to 32 of them.
        projection: `"deconvnet"` or `"guided_backprop"`. Default: the one that suits the network, as in `deconvnet`.
        value_range: range of the values of the image: `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255),
            `"imagenet"` or `{"mean": ..., "std": ...}` (normalised), or a function that maps them to 0 to 1. Default:
            the range of the card, or `"unit"`.
        card: card of the model, if the image is preprocessed for it.
        additional_forward_args: further positional arguments of `forward`, as for `attribute`.
        keywords: keyword arguments of `forward`, likewise.
        title: heading of the picture. Default: names the layer and the method.
    Raises:
        ShapeError: there is more than one image, it does not have one or three channels, there are no units or more
            than 32, or the layer returns no map.
        LayerError, DtypeError, OptionError, DeviceError: as for `deconvnet`.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU())
        >>> projection(net, torch.rand(3, 16, 16), "4", unit=(3, 2, 2)).title
        'Channel 3 of 4 at row 2, column 2, projected back to the pixels (deconvnet)'

    Reference: Zeiler & Fergus 2013, section 2.1; Springenberg et al. 2015, section 4.
    """
    images = as_batch(image)
    if len(images) != 1 or images.shape[1] not in (1, 3):
        raise ShapeError(f"image must be one image '1 h w' or '3 h w', got shape {tuple(image.shape)}.")
    more: dict[str, Any] = {"additional_forward_args": additional_forward_args, "keywords": keywords}
    found = project(model, images, layer, _several(unit), projection=projection, **more)
    n = len(found.units)
    if n > LIMIT:
        raise ShapeError(f"{n} units are too many, a sheet shows {LIMIT}; pass fewer.")
    seen = receptive_field(model, layer, tuple(images.shape[2:]), channels=images.shape[1], **more)
    boxes = [seen.box(row, column) for _, row, column in found.units]
    units = unit_images(images, value_range, card)
    counts, hints = clipped(units, value_range, card)
    scale = _scale(found.values, boxes)
    held = _held(found.values, scale)
    painted, legend = paint(held, scale)
    close = all(2 * side <= whole for side, whole in zip(seen.size, seen.input_size, strict=True))
    heads = ("image", "what the unit sees", "projection") if close else ("image", "projection")
    groups = grid_columns(n, images.shape[2] / (len(heads) * images.shape[3]))
    small, zoom, notes = fitted(units, len(heads) * groups, -(-n // groups), goal=_GOAL)
    shape = (small.shape[2] * zoom, small.shape[3] * zoom)
    image_cells = [_boxed(enlarge(rgb(small), zoom)[0], box, images.shape[2] / shape[0]) for box in boxes]
    pairs: list[tuple[Tensor, ...]]
    if close:
        pairs = [
            (_close_up(rgb(units)[0], seen, box, shape), _close_up(painted[i], seen, box, shape))
            for i, box in enumerate(boxes)
        ]
    else:
        values, *_ = fitted(held, 2 * groups, -(-n // groups), goal=_GOAL, ends=None)
        pairs = [(cell,) for cell in enlarge(paint(values, scale)[0], zoom)]
    cells = [torch.stack([whole, *pair]) for whole, pair in zip(image_cells, pairs, strict=True)]
    return Sheet(
        torch.cat(cells),
        Legend(
            scale if n == 1 else None,
            legend.cmap if n == 1 else None,
            total_of([counts, legend.counts]),
            (*_notes(found, seen, boxes, images.shape[1]), *notes, *hints),
            OF_IMAGES,
        ),
        title=title or _title(found, seen.layer),
        ncols=len(heads) * groups,
        columns=heads,
        group=len(heads),
        labels=tuple(words for i in range(n) for words in (*_labels(found, i), *[""] * close)),
        zoom=1,
    )


def _several(unit: Any) -> Any:
    """One unit as a list of one."""
    one = isinstance(unit, int) or (
        isinstance(unit, tuple) and len(unit) == 3 and all(isinstance(each, int) for each in unit)
    )
    return [unit] if one else unit


def _scale(values: Tensor, boxes: Sequence[Box]) -> Scale:
    """Symmetric about 0, and found among what each unit sees: beyond it all is 0."""
    ends = []
    for value, ((top, bottom), (left, right)) in zip(values, boxes, strict=True):
        inside = value[:, top:bottom, left:right]
        ends.append(float(Scale(symmetric=True, quantile=_SHARE).fit(inside).vmax or 0) if inside.numel() else 0.0)
    if len(ends) == 1:
        return Scale(symmetric=True, vmin=-ends[0], vmax=ends[0], quantile=_SHARE)
    each = torch.tensor(ends, device=values.device)[:, None, None, None]
    return Scale(symmetric=True, vmin=-each, vmax=each, per="filter", quantile=_SHARE)


def _held(values: Tensor, scale: Scale) -> Tensor:
    """Values within the scale; NaN and infinities stay."""
    low, high = (torch.as_tensor(end, device=values.device).to(values) for end in (scale.vmin, scale.vmax))
    return torch.where(values.isfinite(), values.clamp(low, high), values)


def _close_up(picture: Tensor, seen: ReceptiveField, box: Box, shape: tuple[int, int]) -> Tensor:
    """The part of a picture `3 h w` that a unit sees, enlarged by a whole factor, in the middle of a cell."""
    (top, bottom), (left, right) = box
    factor = min(side // min(size, whole) for side, size, whole in zip(shape, seen.size, seen.input_size, strict=True))
    part = enlarge(picture[:, top:bottom, left:right], max(1, factor))[:, : shape[0], : shape[1]]
    cell = picture.new_full((3, *shape), _NOTHING)
    y, x = ((side - size) // 2 for side, size in zip(shape, part.shape[1:], strict=True))
    cell[:, y : y + part.shape[1], x : x + part.shape[2]] = part
    return cell


def _boxed(picture: Tensor, box: Box, size: float) -> Tensor:
    """A picture `3 h w` with a white line just outside of a box, and a black one around that.

    Args:
        picture: bytes.
        box: in pixels of the image.
        size: of a pixel of the picture, in these.
    """
    picture = picture.clone()
    (top, bottom), (left, right) = ((round(low / size), round(high / size)) for low, high in box)
    height, width = picture.shape[1:]
    if (top, bottom, left, right) == (0, height, 0, width) or bottom <= top:
        return picture
    for out, color in ((1, _WHITE), (2, _BLACK)):
        rows = slice(max(0, top - out), bottom + out)
        columns = slice(max(0, left - out), right + out)
        picture[..., [y for y in (top - out, bottom + out - 1) if 0 <= y < height], columns] = color
        picture[..., rows, [x for x in (left - out, right + out - 1) if 0 <= x < width]] = color
    return picture


def _title(found: Projections, layer: str) -> str:
    how = f"projected back to the pixels ({PROJECTIONS[found.method]})"
    if len(found.units) == 1:
        channel, row, column = found.units[0]
        return f"Channel {channel} of {layer} at row {row}, column {column}, {how}"
    return f"{len(found.units)} units of {layer}, {how}"


def _labels(found: Projections, i: int) -> tuple[str, str]:
    channel, row, column = found.units[i]
    where = f"channel {channel} at ({row}, {column})" if len(found.units) > 1 else ""
    return where, f"activation {number(float(found.activations[i]))}"


def _notes(found: Projections, seen: ReceptiveField, boxes: Sequence[Box], channels: int) -> tuple[str, ...]:
    whole = all(box == tuple((0, size) for size in seen.input_size) for box in boxes)
    zero = "red is above 0, blue below" if channels == 1 else "mid-grey is 0"
    field = "the whole image" if whole else f"{seen.size[0]} × {seen.size[1]} pixels (the box)"
    several = "; each has its own scale, symmetric about 0" if len(found.units) > 1 else ""
    beyond = "; the scale clips 0.1 % of the receptive field"
    notes = [
        f"projection: {zero}{several}{beyond if math.prod(seen.size) * channels * (1 - _SHARE) >= 1 else ''}",
        f"a unit of {seen.layer} sees {field}",
    ]
    if still := sum(value <= 0 for value in found.activations.tolist()):
        notes.append(f"not above 0 in this image, so nothing is projected: {still} of {len(found.units)}")
    if found.method == "deconvnet" and not found.switches:
        notes.append("without max pools the deconvnet projects the same from every image")
    return tuple(notes)
