"""The images that move each feature map most, where they do, and what in them does it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from torch_featviz.capture import TopK, capture
from torch_featviz.errors import OptionError
from torch_featviz.explain.deconvnet import deconvnet
from torch_featviz.inspect.receptive import receptive_field
from torch_featviz.model.layers import layer_name
from torch_featviz.model.twin import apart, twin

from .resume import EVERY, Kept, weights_of
from .source import Source, ranks
from .stream import Pass, device_of

_ROWS = 32  # images of the second pass that are held at once

Span = tuple[int, int]
Box = tuple[Span, Span]


class _Hit(NamedTuple):
    at: tuple[int, int]  # which of the channels asked for, and which of its hits
    unit: tuple[int, int, int]  # channel, row, column
    image: int
    value: float


@dataclass(frozen=True, eq=False)
class Patches:
    """What `TopPatches.patches` found, for each of some channels its hits, best first.

    Args:
        channels: their numbers, `n`.
        images: `n k c h w`, the part of the image in the unit's receptive field, as the model was given it.
        projections: `n k c h w`, the same part of the unit's projection down the deconvnet, signed.
        inside: `n k h w`, where there is image: false beyond its border, and all over where there is no hit.
    """

    channels: tuple[int, ...]
    images: Tensor
    projections: Tensor
    inside: Tensor


@dataclass(frozen=True, eq=False)
class TopPatches:
    """For each channel of a layer the images where its map is highest, all on the CPU.

    Args:
        values: `c k`, the highest value of the map, highest first, float64; NaN where there are fewer images than `k`.
        images: `c k`, the image's number in the dataset; -1 where there are fewer.
        places: `c k 2`, row and column of that value; -1 where there are fewer.
        dead: channels that were above 0 in no image.
        seen: how many images there were.
        layer: its full name.
        size: `c h w` of each image.
        model: as it was given, for the second pass.
        source: the loader, likewise.
    """

    values: Tensor
    images: Tensor
    places: Tensor
    dead: tuple[int, ...]
    seen: int
    layer: str
    size: tuple[int, int, int]
    model: nn.Module = field(repr=False)
    source: Source = field(repr=False)

    def patches(self, channels: int | Sequence[int]) -> Patches:
        """The second pass: only the images chosen are read again, cut to what the unit sees (Zeiler & Fergus, fig. 2).

        Hits at or below 0 have no patch: nothing moved the unit there. Patches are of one size, that of the receptive
        field or of the image; what lies beyond the border is 0, and not `inside`.

        Args:
            channels: one or several.
        Raises:
            OptionError: there is no such channel, or the dataset gives other images than the first time.
        """
        chosen = self._checked(channels)
        hits = self._hits(chosen)
        boxes, sides = self._boxes(hits)
        images = torch.zeros(len(chosen), self.values.shape[1], self.size[0], *sides)
        projections, inside = torch.zeros_like(images), torch.zeros_like(images[:, :, 0], dtype=torch.bool)
        border = torch.ones(1, *self.size[1:])
        for start, whole in self._again([hit.image for hit in hits]):
            part = slice(start, start + len(whole))
            self._check_same(whole, hits[part])
            down = deconvnet(self.model, whole, self.layer, [hit.unit for hit in hits[part]]).cpu()
            for hit, box, image, projection in zip(hits[part], boxes[part], whole.cpu(), down, strict=True):
                images[hit.at], projections[hit.at] = _cut(image, box, sides), _cut(projection, box, sides)
                inside[hit.at] = _cut(border, box, sides)[0] > 0
        return Patches(chosen, images, projections, inside)

    def _hits(self, chosen: tuple[int, ...]) -> list[_Hit]:
        """Those above 0, in the order of the dataset."""
        hits = []
        for n, channel in enumerate(chosen):
            columns = (self.values[channel], self.images[channel], self.places[channel])
            for i, (value, image, (row, column)) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
                if value > 0:
                    hits.append(_Hit((n, i), (channel, row, column), image, value))
        return sorted(hits, key=lambda hit: hit.image)

    def _checked(self, channels: int | Sequence[int]) -> tuple[int, ...]:
        chosen = (channels,) if isinstance(channels, int) else tuple(int(c) for c in channels)
        if not chosen or not all(0 <= c < len(self.values) for c in chosen):
            raise OptionError(f"channels must be from 0 to {len(self.values) - 1}, one at least, got {channels!r}.")
        return chosen

    def _boxes(self, hits: list[_Hit]) -> tuple[list[Box], Span]:
        """What each unit sees, and the size that holds any of it."""
        seen = receptive_field(self.model, self.layer, self.size[1:], channels=self.size[0])
        boxes = []
        for hit in hits:
            down, across = seen.box(*hit.unit[1:])
            boxes.append((down, across))
        full = self.size[1:] if seen.kind == "whole" else seen.size
        sides = [[high - low for low, high in box] for box in boxes]
        high, wide = (max([min(full[a], self.size[1 + a]), *(side[a] for side in sides)]) for a in (0, 1))
        return boxes, (high, wide)

    def _again(self, numbers: list[int]) -> Iterator[tuple[int, Tensor]]:
        """The images of these ascending numbers, repeats included, in batches, each with where it starts."""
        often, start = Counter(numbers), 0
        rows: list[Tensor] = []
        device = device_of(self.model)
        for number, image in zip(often, self.source.again(list(often)), strict=True):
            for _ in range(often[number]):
                rows.append(image)
                if len(rows) == _ROWS:
                    yield start, torch.stack(rows).to(device)
                    start, rows = start + len(rows), []
        if rows:
            yield start, torch.stack(rows).to(device)

    def _check_same(self, images: Tensor, hits: list[_Hit]) -> None:
        """These images, read again, are those of the first pass, by what they do to the units."""
        with apart(), torch.no_grad():
            net = twin(self.model)
            with capture(net, self.layer, stop=True) as acts:
                net(images.clone())
            found = torch.stack([maps[hit.unit] for maps, hit in zip(acts[self.layer], hits, strict=True)])
        values = torch.tensor([hit.value for hit in hits], dtype=torch.float64)
        if not torch.allclose(found.cpu().double(), values, rtol=1e-2, atol=1e-4):
            raise OptionError(
                "the images chosen move the units otherwise than in the first pass; the dataset must give the same "
                "image each time (no random transforms), and the model must not have been trained since."
            )


def top_patches(
    model: nn.Module,
    loader: Iterable[Any],
    layer: str | nn.Module,
    *,
    k: int = 9,
    resume: str | os.PathLike[str] | None = None,
    every: int | None = None,
    progress: bool = False,
) -> TopPatches:
    """For each channel of a layer, the `k` images of a dataset where its map is highest, in one pass over it.

    The model runs in evaluation mode as far as the layer, on a copy that shares its weights; memory does not grow with
    the dataset. An image counts once for a channel; of equal ones the lowest number comes first.

    In a distributed run every rank calls this with its own part, by `DistributedSampler(dataset, shuffle=False)` or by
    ascending numbers as the DataLoader's `sampler`; each gets the result of all images.

    Args:
        model: any module that takes `b c h w` and calls the layer once.
        loader: yields `images` or `(images, ...)`, all of one size: a DataLoader that does not shuffle, or any iterable
            of batches, which has to be iterable twice for `patches`.
        layer: one that returns maps `b c h w`, by name or itself.
        k: images for each channel.
        resume: a file to keep how far the pass has come; if there is one, the pass goes on from there. Each rank of a
            distributed run has its own, with the rank in its name.
        every: batches between two writes of that file; default 100.
        progress: show a bar.
    Raises:
        OptionError: the loader's order is random or unknown, `k` or `every` is below 1, or `resume` is of another
            pass: another layer, k, model or loader.
        LayerError: no such layer, or it does not run exactly once.
        ShapeError: the layer returns no maps, there are no images, or they are not of one size.
        DtypeError: the loader yields something else than images, or the model cannot be copied.
        FileError: `resume` cannot be read or written.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        >>> best = top_patches(net, torch.rand(8, 5, 1, 6, 6), "1", k=3)
        >>> best.images.shape, best.seen
        (torch.Size([4, 3]), 40)

    Reference: Zeiler & Fergus 2013, fig. 2.
    """
    if every is not None and (resume is None or every < 1):
        raise OptionError(f"every counts batches between writes of resume, 1 or more; got every={every}, {resume=}.")
    name, source = layer_name(model, layer), Source(loader)
    kept = None
    if resume is not None:
        what = {"layer": name, "k": k, "weights": weights_of(model), **source.what()}
        kept = Kept(_of_rank(Path(resume)), every or EVERY, what)
    work = Pass(model, name, source, TopK(k), kept)
    with apart(), torch.no_grad():
        work.run(progress)
    found = work.result()
    places = torch.stack([found.positions // found.width, found.positions % found.width], -1)
    places[found.images < 0] = -1
    dead = tuple((~(found.values > 0).any(1)).nonzero().flatten().tolist())
    return TopPatches(found.values, found.images, places, dead, found.seen, name, found.size, model, source)


def _of_rank(path: Path) -> Path:
    """The file of this rank."""
    return path if (n := ranks()) == 1 else path.with_name(f"{path.stem}.rank{dist.get_rank()}of{n}{path.suffix}")


def _cut(x: Tensor, box: Box, sides: Span) -> Tensor:
    """`c H W -> c h w` by the box, which the border has cut short on one side where it is smaller than `sides`."""
    (top, bottom), (left, right) = box
    down, across = sides[0] - (bottom - top), sides[1] - (right - left)
    above, before = (down if top == 0 else 0), (across if left == 0 else 0)
    return F.pad(x[:, top:bottom, left:right], (before, across - before, above, down - above))
