"""The first pass over a data set: the highest values of each channel of some layers, of all batches and all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple
from zlib import crc32

import torch
from torch import Tensor, nn
from torch import distributed as dist
from tqdm import tqdm

from torch_featviz.capture import TopK, capture
from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.inspect.receptive import ReceptiveField, Trace, Tracer, channels_at, described
from torch_featviz.model.inputs import device_of
from torch_featviz.model.layers import module_at, split_call
from torch_featviz.model.layout import Layout, LayoutTracer
from torch_featviz.model.run import check_once, one_call
from torch_featviz.model.twin import twin
from torch_featviz.schema import SchemaError

from .resume import Checkpoint, State, check_top, checksum
from .source import Source, ranks

Size = tuple[int, int, int]


class TopValues(NamedTuple):
    """A layer's highest values `c k`, the numbers of their images, and their places in the flattened map."""

    values: Tensor
    images: Tensor
    positions: Tensor
    seen: int
    size: Size  # `c h w` of each image
    field: ReceptiveField


class FirstPass:
    """One reading of the data for all layers, which can be resumed."""

    def __init__(
        self, model: nn.Module, layers: Sequence[str], source: Source, k: int, checkpoint: Checkpoint | None
    ) -> None:
        self.model, self.source, self.checkpoint = model, source, checkpoint
        self.k = k
        self.tops = {layer: TopK(k, dim=1) for layer in layers}
        self.fields: dict[str, ReceptiveField] = {}
        self.channels: dict[str, int] = {}  # of each layer, as `fields`
        self.size: Size = (0, 0, 0)
        self.images: list[int] = []  # a checksum of each batch that is done, where there is a checkpoint

    def run(self, progress: bool) -> None:
        """Read all batches that are left."""
        device, before = device_of(self.model), dict(self.tops)
        batches = self._begun(before)
        if not self.fields and (early := _until_images(batches)):
            self._first(early[-1])
            batches = chain(early, batches)
        axes = {layer: seen.tokens or seen.channels_at for layer, seen in self.fields.items()}
        net, names = addressed(twin(self.model), list(self.tops), axes)
        bar = tqdm(batches, total=self.source.total(), initial=len(self.images), disable=not progress, unit="batch")
        with capture(net, list(names.values()), into=TopK(self.k, dim=1), stop=True) as stats:
            for images in bar:
                self._read(net, images, device)
                if self.checkpoint is not None and len(self.images) % self.checkpoint.every == 0:
                    self._add(before, stats, names)
        self._add(before, stats, names)

    def _read(self, net: nn.Module, images: Tensor, device: torch.device) -> None:
        """Run the network on a batch, and note its checksum: while a GPU computes, else before a layer can write into
        the images."""
        moved = images.to(device, non_blocking=True)
        if self.checkpoint is not None and moved is images:
            self.images.append(_checksum(images))
        if len(images):
            self._check_size(images)
            net(moved)
        if self.checkpoint is not None and moved is not images:
            self.images.append(_checksum(images))

    def _begun(self, tops: dict[str, TopK]) -> Iterator[Tensor]:
        """Go on from the checkpoint, whose values `tops` take; the batches that are left.

        Where the loader can skip batches, the first and the last of those that are done are read again, and compared;
        where it cannot, all of them pass, and are.

        Raises:
            FileError: the checkpoint is damaged.
            OptionError: it is of other images.
        """
        state = None if self.checkpoint is None else self.checkpoint.read()
        if self.checkpoint is None or state is None or not state.batches:
            return self.source.batches()
        batches, seen = self._compared(state)
        try:
            self._take(state, seen, tops)
        except SchemaError as error:
            self.checkpoint.refuse(error.under(".state"))
        self.images = list(state.images)
        self.source.left_out.update(state.left_out)
        return batches

    def _compared(self, state: State) -> tuple[Iterator[Tensor], int]:
        """The batches that are left, and the number of images before them, which are those of the checkpoint."""
        assert self.checkpoint is not None
        done, skips = state.batches, self.source.skips
        if skips and done > (self.source.total() or 0):
            self.checkpoint.refuse_images(f"{done} batches, where there are {self.source.total()} now")
        batches = self.source.batches(done if skips else 0)
        seen = number = 0
        while number < done:
            images = self.source.batch(number) if skips else next(batches, None)
            if images is None:
                self.checkpoint.refuse_images(f"{done} batches, where there are {number} now")
            if _checksum(images) != state.images[number]:
                self.checkpoint.refuse_images(f"batch {number} has other values now (files, order or transforms)")
            if not self.fields:
                self._first(images)
            seen += len(images)
            number = done - 1 if skips and self.fields and number < done - 1 else number + 1
        known = self.source.count(done)
        return batches, seen if known is None else known - len(state.left_out)

    def _first(self, images: Tensor) -> None:
        """Of the first batch, and of the first that has an image: their size, and what the units see of one."""
        self.size = (images.shape[1], images.shape[2], images.shape[3])
        if len(images):
            image = images[:1].to(device_of(self.model), copy=True)
            self.fields, self.channels = fields_of(self.model, list(self.tops), image)

    def _take(self, state: State, seen: int, tops: dict[str, TopK]) -> None:
        """Take what a checkpoint holds of images of this size.

        Raises:
            SchemaError: it does not fit the network.
        """
        if seen and not self.fields:
            raise SchemaError("all images, as none can be read", ".left_out")
        if seen and state.size != self.size:
            raise SchemaError(f"{self.size}, as the images are, got {state.size}", ".size")
        if set(state.tops) != set(tops):
            raise SchemaError(f"of the layers {', '.join(tops)}, got {', '.join(state.tops)}", ".tops")
        for layer, top in tops.items():
            try:
                if seen:
                    high, wide = self.fields[layer].map_size
                    check_top(state.tops[layer], self.k, self.channels[layer], high * wide, seen)
                    top._state = tuple(state.tops[layer])
                elif state.tops[layer]:
                    raise SchemaError(f"empty, since no image was seen, got {len(state.tops[layer])} tensors")
            except SchemaError as error:
                raise error.under(f".tops.{layer}") from None

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
            left_out = list(self.source.left_out.items())
            self.checkpoint.write(State(len(self.images), self.size, tops, self.images, left_out))

    def _check_size(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self.size:
            raise ShapeError(
                f"images must be of one size, got {tuple(images.shape[1:])} after {self.size}; resize them."
            )

    def left_out(self) -> dict[int, str]:
        """The images that no rank could read, by number, each with the reason; each rank has to call this."""
        own = self.source.left_out
        gathered = [own]
        if ranks() > 1:
            gathered = [{}] * ranks()
            dist.all_gather_object(gathered, own)
        return dict(sorted(entry for part in gathered for entry in part.items()))

    def result(self) -> dict[str, TopValues]:
        """The highest values over all ranks, each of which has to call this."""
        own = {layer: self._of_rank(layer, top) for layer, top in self.tops.items() if not top.empty}
        gathered: list[dict[str, TopValues]] = [own]
        if ranks() > 1:
            gathered = [{}] * ranks()
            dist.all_gather_object(gathered, own)
        if not any(gathered):
            told = f" ({len(left)} cannot be read: {left[min(left)]})" if (left := self.source.left_out) else ""
            raise ShapeError(
                f"loader yields no images{told}; pass one that yields some and can be iterated more than once."
            )
        return {layer: _merged([part[layer] for part in gathered if part], self.k) for layer in self.tops}

    def _of_rank(self, layer: str, top: TopK) -> TopValues:
        numbers = self.source.numbers(top.images)
        return TopValues(top.values, numbers, top.positions, top.seen, self.size, self.fields[layer])


def _until_images(batches: Iterator[Tensor]) -> list[Tensor]:
    """The batches up to the first that has an image."""
    early = []
    for images in batches:
        early.append(images)
        if len(images):
            break
    return early


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
        raise OptionError(
            "two ranks read the same image; give each rank its own part with "
            "DistributedSampler(dataset, shuffle=False)."
        )
    heights = values.masked_fill(absent, -torch.inf).gather(1, order)
    order = order.gather(1, heights.argsort(dim=1, descending=True, stable=True))[:, :k]
    values, images, positions = (column.gather(1, order) for column in (values, images, positions))
    return TopValues(values, images, positions, sum(part.seen for part in parts), parts[0].size, parts[0].field)


def addressed(
    net: nn.Module, layers: Sequence[str], channels: Mapping[str, int | Layout] | None = None
) -> tuple[nn.Module, dict[str, str]]:
    """A network in which each layer, also a numbered call (`'relu#2'`), can be captured as `b c ...`; its name there.

    Args:
        net: a copy (`twin`), which is changed where a call is named, or channels are elsewhere.
        layers: full names.
        channels: the axis of each layer's channels, or the layout of its tokens; default 1.
    """
    names = {layer: layer for layer in layers}
    for layer in layers:
        axis = (channels or {}).get(layer, 1)
        if split_call(layer)[1] is not None or axis != 1:
            net, name = one_call(net, names[layer], axis)
            names = {other: f"net.{inner}".rstrip(".") for other, inner in names.items()} | {layer: name}
    return net, names


def fields_of(
    model: nn.Module, layers: Sequence[str], image: Tensor
) -> tuple[dict[str, ReceptiveField], dict[str, int]]:
    """What the units of some layers see of an image `1 c h w`, and how many channels each layer has; each layer must
    run once and return maps.

    Raises:
        LayerError: a layer does not run exactly once.
        ShapeError: a layer returns no map.
    """
    net, names = addressed(twin(model), layers)
    tracer, layouts = Tracer(image), LayoutTracer(image)

    def look(output: object) -> tuple[tuple[int, ...], Trace, Layout | None] | None:
        if not isinstance(output, Tensor):
            return None
        layout = layouts.layout(output)
        if layout is None or layout.tokens is None or len(layout.grid) != 2 or layout.channels is None:
            return tuple(output.shape), tracer.read(output), None
        maps = layout.maps(output)
        return tuple(maps.shape), tracer.read(maps), layout

    with capture(net, list(names.values()), into=look) as calls, tracer, layouts:
        net(image)
    fields, channels = {}, {}
    for layer, name in names.items():
        seen = [call for key, call in calls.items() if key.partition("#")[0] == name]
        check_once(layer, len(seen))
        if seen[0] is None or len(seen[0][0]) != 4:
            what = "no tensor" if seen[0] is None else f"shape {seen[0][0]}"
            raise ShapeError(
                f"layer {layer!r} returns {what}, not a map 'b c h w'; choose a convolution or a layer after one."
            )
        shape, trace, tokens = seen[0]
        axis = 1 if tokens else channels_at(shape, trace, module_at(model, layer))
        fields[layer] = replace(described(layer, tuple(image.shape[2:]), shape, trace, axis), tokens=tokens)
        channels[layer] = shape[axis]
    return fields, channels


def _checksum(images: Tensor) -> int:
    """Of the values, the shape and the dtype of a batch; 0 of one without images."""
    return 0 if not len(images) else checksum(images, crc32(f"{images.dtype} {tuple(images.shape)}".encode()))
