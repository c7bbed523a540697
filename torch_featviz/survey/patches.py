"""The second pass: the images chosen are read again, and cut to what each unit sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_featviz.capture import capture
from torch_featviz.displayed import Displayed
from torch_featviz.errors import OptionError
from torch_featviz.explain.deconvnet import Projections, project
from torch_featviz.explain.explained import chunks
from torch_featviz.inspect.receptive import ReceptiveField
from torch_featviz.model.inputs import device_of
from torch_featviz.model.layout import Layout
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated

from .source import Source
from .stream import addressed

_IMAGES = 16  # held at once, with the maps of all layers
_ROWS = 32  # units of a layer that are projected at once

Span = tuple[int, int]
Box = tuple[Span, Span]


@dataclass(frozen=True, eq=False, repr=False)
class Patches(Displayed):
    """Top-activating patches of some channels, best first, each cropped to the unit's receptive field.

    All patches have one size: that of the receptive field, or of the image if it is smaller. Beyond the border of the
    image they are 0 and not `inside`. A hit with a value at or below 0 has no patch.

    Args:
        channels: channel numbers, `n`.
        images: `n k c h w`, the crops of the images, as the model was given them.
        projections: `n k c h w`, the unit's projection to the pixels, cropped likewise, signed.
        inside: `n k h w`, True where the crop lies within the image; all False where there is no patch.
        values: `n k`, value of the unit, highest first, float64; NaN if there are fewer images than `k`.
        numbers: `n k`, index of the image in the data set; -1 if there are fewer.
        layer: full name of the layer.
        total: number of channels of the layer.
        seen: number of images in the data set.
        method: method of projection, `"deconvnet"` or `"guided_backprop"`; empty if there is no patch.
        switches: whether max pools lie between the layer and the image. Without them, a deconvnet's projection does not
            depend on the image.
        cosine: `n`, float64, how similar the projections of a channel are; 1 means that they do not depend on the
            image. It is the mean cosine over all pairs of projections, aligned at the unit's position, over the pixels
            that both have. Borders inside the network lower it. NaN if fewer than two projections are non-zero.
        unplaced: tokens of the layer without a place, in words, which have no part in it; empty if there are none.
        unread: files of the data set that could not be read, in words, as `TopPatches.unread`.
    """

    channels: tuple[int, ...]
    images: Tensor
    projections: Tensor
    inside: Tensor
    values: Tensor
    numbers: Tensor
    layer: str
    total: int
    seen: int
    method: str
    switches: bool
    cosine: Tensor
    unplaced: str = ""
    unread: str = field(default="", repr=False)


class Hit(NamedTuple):
    """One of a channel's highest values: which it is, the unit's channel and place, its image and its value."""

    rank: int
    unit: tuple[int, int, int]
    image: int
    value: float


class Crop(NamedTuple):
    """What a unit sees of its image, `c h w`, and its projection there.

    Args:
        rank: of its hit.
        box: in the image.
        image: `c h w`, what is in the box.
        projection: likewise.
        corner: of the box, by row and column, from where the unit looks.
        method: of projection.
        switches: whether max pools lie on the way.
    """

    rank: int
    box: Box
    image: Tensor
    projection: Tensor
    corner: Span
    method: str
    switches: bool


def read_crops(
    model: nn.Module,
    source: Source,
    layers: Mapping[str, tuple[ReceptiveField, Sequence[Hit]]],
    projection: str | None,
) -> dict[str, list[tuple[Hit, Crop]]]:
    """The crops of all hits of several layers, projected as asked for; each image is read once.

    Raises:
        OptionError: the data set gives other images than in the first pass, or the model was trained since.
    """
    wanted: dict[int, list[tuple[str, Hit]]] = {}
    for layer, (_, hits) in layers.items():
        for hit in hits:
            wanted.setdefault(hit.image, []).append((layer, hit))
    crops: dict[str, list[tuple[Hit, Crop]]] = {layer: [] for layer in layers}
    axes = {layer: seen.tokens or seen.channels_at for layer, (seen, _) in layers.items()}
    device = device_of(model)
    methods: dict[str, str] = {}  # by layer, that of its first hits
    for numbers, images in _blocks(source, sorted(wanted)):
        hits_of: dict[str, list[tuple[int, Hit]]] = {}
        for row, number in enumerate(numbers):
            for layer, hit in wanted[number]:
                hits_of.setdefault(layer, []).append((row, hit))
        on_device = images.to(device)
        _check_same(model, on_device, hits_of, axes)
        for layer, rows in hits_of.items():
            for part in chunks(len(rows), _ROWS):
                batch = on_device[[row for row, _ in rows[part]]]
                asked = methods.get(layer, projection)
                down = project(model, batch, layer, [hit.unit for _, hit in rows[part]], projection=asked)
                methods[layer] = down.method
                for (row, hit), projected in zip(rows[part], down.values.cpu(), strict=True):
                    crop = _crop(layers[layer][0], hit, images[row].cpu(), projected, down)
                    crops[layer].append((hit, crop))
    return crops


def _blocks(source: Source, numbers: list[int]) -> Iterator[tuple[list[int], Tensor]]:
    """The images of these ascending numbers, some at a time."""
    images = source.again(numbers)
    for part in chunks(len(numbers), _IMAGES):
        yield numbers[part], torch.stack(list(islice(images, part.stop - part.start)))


def _check_same(
    model: nn.Module, images: Tensor, hits: Mapping[str, list[tuple[int, Hit]]], axes: Mapping[str, int | Layout]
) -> None:
    """Raise OptionError unless the images move their units as in the first pass."""
    with isolated(), torch.no_grad():
        net, names = addressed(twin(model), list(hits), axes)
        with capture(net, list(names.values()), stop=True) as acts:
            net(images.clone())
        values = [acts[names[layer]][row][hit.unit].double().cpu() for layer, rows in hits.items() for row, hit in rows]
    before = torch.tensor([hit.value for rows in hits.values() for _, hit in rows], dtype=torch.float64, device="cpu")
    if not torch.allclose(torch.stack(values), before, rtol=1e-2, atol=1e-4):
        raise OptionError(
            "the chosen images give other activations than in the first pass; the data set must return the same "
            "image each time (no random transforms), and the model must not have been trained since."
        )


def _crop(field: ReceptiveField, hit: Hit, image: Tensor, projection: Tensor, by: Projections) -> Crop:
    place = hit.unit[1:]
    down, across = field.box(*place)
    where = (slice(None), slice(*down), slice(*across))
    corner = (down[0] - looks_at(field, place, 0), across[0] - looks_at(field, place, 1))
    return Crop(
        hit.rank, (down, across), image[where].clone(), projection[where].clone(), corner, by.method, by.switches
    )


def looks_at(field: ReceptiveField, place: Span, axis: int) -> int:
    """Where along an axis of the image a unit looks, but for a constant that all units share.

    Where fields have no one distance, or all see the whole image, units are taken to lie on an even grid.
    """
    along = field.along[axis]
    coordinate = axis if along is None else along
    step = field.stride[axis] or field.input_size[axis] / field.map_size[coordinate]
    first, last = field.box(0, 0)[axis], field.box(*(n - 1 for n in field.map_size))[axis]
    return round(place[coordinate] * (step if field.stride[axis] or first <= last else -step))


def sides_of(field: ReceptiveField, size: Span, boxes: Sequence[Box]) -> Span:
    """Height and width of a patch that holds any of these boxes, within an image of `size`."""
    full = size if field.kind == "whole" else field.size
    high, wide = (
        max([min(full[axis], size[axis]), *(box[axis][1] - box[axis][0] for box in boxes)]) for axis in (0, 1)
    )
    return high, wide


def padded(x: Tensor, box: Box, sides: Span) -> Tensor:
    """`c h w` of a box that the border has cut short on one side, with zeros there: `c H W`, as `sides` says."""
    (top, bottom), (left, right) = box
    down, across = sides[0] - (bottom - top), sides[1] - (right - left)
    above, before = (down if top == 0 else 0), (across if left == 0 else 0)
    return F.pad(x, (before, across - before, above, down - above))
