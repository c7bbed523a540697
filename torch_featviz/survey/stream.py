"""The first pass over a dataset: for each channel of a layer the highest values, of all batches and all ranks."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from tqdm import tqdm

from torch_featviz.capture import TopK, capture
from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.model.twin import twin

from .resume import Kept
from .source import Source, ranks


class Found(NamedTuple):
    """The highest values `c k`, the dataset's numbers of their images, and where in the flattened map they are."""

    values: Tensor
    images: Tensor
    positions: Tensor
    seen: int
    size: tuple[int, int, int]  # `c h w` of each image
    width: int  # of the map


class Pass:
    """The first pass: how far it has come, and what it has found."""

    def __init__(self, model: nn.Module, layer: str, source: Source, top: TopK, kept: Kept | None) -> None:
        self.model, self.layer, self.source, self.top, self.kept = model, layer, source, top, kept
        self.batches, self.width = 0, 0
        self.size = (0, 0, 0)
        if kept is not None and (state := kept.read()) is not None:
            self.batches, self.width = state["batches"], state["width"]
            self.size = (state["size"][0], state["size"][1], state["size"][2])
            top._state = tuple(state["top"]) or None

    def run(self, progress: bool) -> None:
        """Through all batches that are left."""
        net, device = twin(self.model), device_of(self.model)
        before = self.top
        batches = self.source.batches(self.batches)
        if not self.batches and (first := next(batches, None)) is not None and len(first):
            self.size = (first.shape[1], first.shape[2], first.shape[3])
            self.width = _map_width(net, self.layer, first[:1].to(device))
            batches = chain([first], batches)
        bar = tqdm(batches, total=self.source.total(), initial=self.batches, disable=not progress, unit="batch")
        with capture(net, self.layer, into=before, stop=True) as found:
            for images in bar:
                if len(images):
                    self._check_size(images)
                    net(images.to(device, non_blocking=True))
                self.batches += 1
                if self.kept is not None and self.batches % self.kept.every == 0:
                    self._add(before, found)
        self._add(before, found)

    def _add(self, before: TopK, found: Any) -> None:
        """What was found so far, together with what there was before; written down where it is to be."""
        self.top = before.fresh()
        self.top.merge(before)
        if self.layer in list(found):
            self.top.merge(found[self.layer])
        if self.kept is not None:
            state = {"batches": self.batches, "size": list(self.size), "width": self.width}
            self.kept.write({**state, "top": list(self.top.cpu()._state or ())})

    def _check_size(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self.size:
            raise ShapeError(
                f"images must be of one size, got {tuple(images.shape[1:])} after {self.size}; resize them."
            )

    def result(self) -> Found:
        """Of all ranks, each of which has to call this."""
        mine = None
        if not self.top.empty:
            numbers = self.source.numbers(self.top.images)
            mine = Found(self.top.values, numbers, self.top.positions, self.top.seen, self.size, self.width)
        gathered: list[Found | None] = [mine]
        if ranks() > 1:
            gathered = [None] * ranks()
            dist.all_gather_object(gathered, mine)
        parts = [part for part in gathered if part is not None]
        if not parts:
            raise ShapeError("loader yields no images; give one that does, and that can be iterated again.")
        return _merged(parts, self.top.k)


def _merged(parts: list[Found], k: int) -> Found:
    """The best of all parts: highest value first, of equal ones the lowest number, what is absent last."""
    sizes = {part.size for part in parts}
    if len(sizes) > 1:
        raise ShapeError(f"images must be of one size on all ranks, got {sorted(sizes)}; resize them.")
    values, images, positions = (torch.cat(columns, 1) for columns in list(zip(*parts, strict=True))[:3])
    absent = images < 0
    order = images.masked_fill(absent, torch.iinfo(torch.int64).max).argsort(1)
    numbers = images.gather(1, order)
    if bool(((numbers[:, 1:] == numbers[:, :-1]) & (numbers[:, 1:] >= 0)).any()):
        raise OptionError("two ranks passed the same image; give each its own, by DistributedSampler(shuffle=False).")
    heights = values.masked_fill(absent, -torch.inf).gather(1, order)
    order = order.gather(1, heights.argsort(dim=1, descending=True, stable=True))[:, :k]
    values, images, positions = (column.gather(1, order) for column in (values, images, positions))
    return Found(values, images, positions, sum(part.seen for part in parts), parts[0].size, parts[0].width)


def _map_width(net: nn.Module, layer: str, image: Tensor) -> int:
    """How wide the layer's map is, once it is known to be one and to be made once."""
    with capture(net, layer, into=lambda output: tuple(output.shape) if isinstance(output, Tensor) else None) as shapes:
        net(image)
    if len(shapes) != 1:
        raise LayerError(f"layer {layer!r} ran {len(shapes)} times in one forward; name one that runs once.")
    (shape,) = shapes.values()
    if shape is None or len(shape) != 4:
        what = "no tensor" if shape is None else f"shape {shape}"
        raise ShapeError(f"layer {layer!r} returns {what}, no map 'b c h w'; give a convolution or what follows one.")
    return int(shape[3])


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is."""
    held = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if held is None else held.device
