"""The first pass over a data set: the highest values of each channel of some layers, of all batches and all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from tqdm import tqdm

from torch_featviz.capture import TopK, capture
from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.model.layers import split_call
from torch_featviz.model.run import check_once, one_call
from torch_featviz.model.twin import twin

from .resume import Checkpoint
from .source import Source, ranks

Size = tuple[int, int, int]


class TopValues(NamedTuple):
    """A layer's highest values `c k`, the numbers of their images, and their places in the flattened map."""

    values: Tensor
    images: Tensor
    positions: Tensor
    seen: int
    size: Size  # `c h w` of each image
    width: int  # of the map


class FirstPass:
    """One reading of the data for all layers, which can be resumed."""

    def __init__(
        self, model: nn.Module, layers: Sequence[str], source: Source, k: int, checkpoint: Checkpoint | None
    ) -> None:
        self.model, self.source, self.checkpoint = model, source, checkpoint
        self.k = k
        self.tops = {layer: TopK(k) for layer in layers}
        self.widths: dict[str, int] = {}
        self.size: Size = (0, 0, 0)
        self.batches = 0  # done
        if checkpoint is not None and (state := checkpoint.read()) is not None:
            self.batches, self.widths = state["batches"], state["widths"]
            self.size = (state["size"][0], state["size"][1], state["size"][2])
            for layer, top in self.tops.items():
                top._state = tuple(state["tops"][layer]) or None

    def run(self, progress: bool) -> None:
        """Read all batches that are left."""
        (net, names), device = addressed(twin(self.model), list(self.tops)), device_of(self.model)
        before = dict(self.tops)  # what an earlier run left
        batches = self.source.batches(self.batches)
        if not self.batches and (first := next(batches, None)) is not None and len(first):
            self.size = (first.shape[1], first.shape[2], first.shape[3])
            self.widths = _map_widths(net, names, first[:1].to(device))
            batches = chain([first], batches)
        bar = tqdm(batches, total=self.source.total(), initial=self.batches, disable=not progress, unit="batch")
        with capture(net, list(names.values()), into=TopK(self.k), stop=True) as stats:
            for images in bar:
                if len(images):
                    self._check_size(images)
                    net(images.to(device, non_blocking=True))
                self.batches += 1
                if self.checkpoint is not None and self.batches % self.checkpoint.every == 0:
                    self._add(before, stats, names)
        self._add(before, stats, names)

    def _add(self, before: Mapping[str, TopK], stats: Mapping[str, TopK], names: Mapping[str, str]) -> None:
        """Join what this capture saw to what an earlier run left; write it to the checkpoint."""
        ran = set(stats)
        for layer, top in before.items():
            self.tops[layer] = joined = top.fresh()
            joined.merge(top)
            if names[layer] in ran:
                joined.merge(stats[names[layer]])
        if self.checkpoint is not None:
            tops = {layer: list(top.cpu()._state or ()) for layer, top in self.tops.items()}
            state = {"batches": self.batches, "size": list(self.size), "widths": self.widths, "tops": tops}
            self.checkpoint.write(state)

    def _check_size(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self.size:
            raise ShapeError(
                f"images must be of one size, got {tuple(images.shape[1:])} after {self.size}; resize them."
            )

    def result(self) -> dict[str, TopValues]:
        """The highest values over all ranks, each of which has to call this."""
        own = {layer: self._of_rank(layer, top) for layer, top in self.tops.items() if not top.empty}
        gathered: list[dict[str, TopValues]] = [own]
        if ranks() > 1:
            gathered = [{}] * ranks()
            dist.all_gather_object(gathered, own)
        if not any(gathered):
            raise ShapeError("loader yields no images; give one that does, and that can be iterated again.")
        return {layer: _merged([part[layer] for part in gathered if part], self.k) for layer in self.tops}

    def _of_rank(self, layer: str, top: TopK) -> TopValues:
        numbers = self.source.numbers(top.images)
        return TopValues(top.values, numbers, top.positions, top.seen, self.size, self.widths[layer])


def _merged(parts: list[TopValues], k: int) -> TopValues:
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
    return TopValues(values, images, positions, sum(part.seen for part in parts), parts[0].size, parts[0].width)


def addressed(net: nn.Module, layers: Sequence[str]) -> tuple[nn.Module, dict[str, str]]:
    """A network in which each layer, also a numbered call (`'relu#2'`), can be captured, and its name there.

    Args:
        net: a copy (`twin`), which is changed where a call is named.
        layers: full names.
    """
    names = {layer: layer for layer in layers}
    for layer in layers:
        if split_call(layer)[1] is not None:
            net, name = one_call(net, names[layer])
            names = {other: f"net.{inner}".rstrip(".") for other, inner in names.items()} | {layer: name}
    return net, names


def _map_widths(net: nn.Module, names: Mapping[str, str], image: Tensor) -> dict[str, int]:
    """The width of each layer's map; each must run once and return `b c h w`."""
    with capture(net, list(names.values()), into=_shape_of) as shapes:
        net(image)
    widths = {}
    for layer, name in names.items():
        calls = [shape for key, shape in shapes.items() if key.partition("#")[0] == name]
        check_once(layer, len(calls))
        (shape,) = calls
        if shape is None or len(shape) != 4:
            what = "no tensor" if shape is None else f"shape {shape}"
            raise ShapeError(f"layer {layer!r} returns {what}, no map 'b c h w'; give a convolution or what follows.")
        widths[layer] = shape[3]
    return widths


def _shape_of(output: object) -> tuple[int, ...] | None:
    return tuple(output.shape) if isinstance(output, Tensor) else None


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer."""
    held = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if held is None else held.device
