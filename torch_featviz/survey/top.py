"""For each channel of some layers, the images of a data set where its map is highest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor, nn
from torch import distributed as dist

from torch_featviz.displayed import Displayed
from torch_featviz.errors import OptionError
from torch_featviz.explain.deconvnet import check_projection
from torch_featviz.gate import gated
from torch_featviz.inspect.receptive import ReceptiveField
from torch_featviz.model.layers import Layer, layer_name, resolve, split_call
from torch_featviz.model.reading import unread, warn_of
from torch_featviz.model.unplaced import unplaced
from torch_featviz.model.untouched import isolated

from .likeness import mean_cosine
from .patches import Crop, Hit, Patches, padded, read_crops, sides_of
from .resume import EVERY, Checkpoint, weights_of
from .source import Source, ranks
from .stream import FirstPass, TopValues

_Several: TypeAlias = list[str] | list[nn.Module] | list[Layer] | tuple[Layer, ...]


@dataclass(frozen=True, eq=False, repr=False)
class TopPatches(Displayed):
    """Top-activating images per channel of a layer. All tensors are on the CPU.

    Args:
        values: `c k`, maximum of the map in each image, highest first, float64; NaN if there are fewer images than `k`.
        images: `c k`, index of the image in the data set; -1 if there are fewer.
        places: `c k 2`, position of the maximum in the map, in the order of the map's own axes: row and column, or
            column and row if the network swaps them; -1 if there are fewer. `receptive_field(...).box(*place)` gives
            the pixels that it sees.
        dead: channels that were not above 0 in any image.
        seen: number of images.
        layer: full name of the layer.
        size: `c h w` of each image.
        model: the model, kept for the second pass.
        source: the loader, kept for the second pass.
        left_out: images whose files could not be read, by index in the data set, each with the reason; they are not
            among those `seen`.
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
    _field: ReceptiveField = field(repr=False)
    left_out: Mapping[int, str] = field(default_factory=dict, repr=False)
    # of the channels read last, by the projection asked for
    _crops: dict[tuple[str | None, int], list[Crop]] = field(default_factory=dict, init=False, repr=False)

    @property
    def unread(self) -> str:
        """How many files could not be read, and the names of the first, in words; empty if all could."""
        return unread(self.source.loader, self.left_out)

    @gated
    def patches(self, channels: int | Sequence[int], *, projection: str | None = None) -> Patches:
        """Read the chosen images again and crop the top-activating patches of some channels (Zeiler & Fergus 2013, fig.
        2).

        The patches of the latest call are cached; the same call again costs no reading and no forward.

        Args:
            channels: one channel number, or several.
            projection: `"deconvnet"` or `"guided_backprop"`. Default, as in `deconvnet`: the deconvnet if a max pool
                lies between the layer and the image, else guided backpropagation.
        Raises:
            OptionError: there is no such channel or projection, or the data set returns other images than the first
                time.
            ShapeError, DtypeError: it returns no images.
        """
        return read_patches({self.layer: self}, {self.layer: channels}, projection=projection)[self.layer]

    def _checked(self, channels: int | Sequence[int]) -> tuple[int, ...]:
        chosen = (channels,) if isinstance(channels, int) else tuple(int(c) for c in channels)
        if not chosen or not all(0 <= c < len(self.values) for c in chosen):
            raise OptionError(
                f"channels must be one or more numbers from 0 to {len(self.values) - 1}, got {channels!r}."
            )
        return chosen

    def _hits(self, channel: int) -> list[Hit]:
        """Those above 0, highest first."""
        columns = (self.values[channel].tolist(), self.images[channel].tolist(), self.places[channel].tolist())
        hits = enumerate(zip(*columns, strict=True))
        return [Hit(i, (channel, row, column), image, value) for i, (value, image, (row, column)) in hits if value > 0]

    def _unread(self, channels: tuple[int, ...], projection: str | None) -> list[Hit]:
        """The hits of those channels whose crops are not kept."""
        return [hit for c in dict.fromkeys(channels) if (projection, c) not in self._crops for hit in self._hits(c)]

    def _assembled(self, channels: tuple[int, ...], projection: str | None) -> Patches:
        """The crops of these channels, on one size."""
        found = [self._crops[projection, channel] for channel in channels]
        crops = [(n, crop) for n, of_channel in enumerate(found) for crop in of_channel]
        sides = sides_of(self._field, self.size[1:], [crop.box for _, crop in crops])
        images = torch.zeros(len(channels), self.values.shape[1], self.size[0], *sides, device="cpu")
        projections, inside = torch.zeros_like(images), torch.zeros_like(images[:, :, 0], dtype=torch.bool)
        for n, crop in crops:
            images[n, crop.rank] = padded(crop.image, crop.box, sides)
            projections[n, crop.rank] = padded(crop.projection, crop.box, sides)
            inside[n, crop.rank] = padded(torch.ones_like(crop.image[:1]), crop.box, sides)[0] > 0
        cosines = [mean_cosine([crop.projection for crop in of], [crop.corner for crop in of]) for of in found]
        rows = list(channels)
        return Patches(
            channels, images, projections, inside,
            values=self.values[rows], numbers=self.images[rows],
            layer=self.layer, total=len(self.values), seen=self.seen,
            method=crops[0][1].method if crops else "", switches=bool(crops) and crops[0][1].switches,
            cosine=torch.tensor(cosines, dtype=torch.float64, device="cpu"),
            unplaced="" if self._field.tokens is None else unplaced(self._field.tokens, self.model),
            unread=self.unread,
        )  # fmt: skip


@overload
def top_patches(
    model: nn.Module,
    loader: Iterable[Any],
    layer: str | nn.Module,
    *,
    k: int = ...,
    resume: str | os.PathLike[str] | None = ...,
    every: int | None = ...,
    progress: bool = ...,
) -> TopPatches: ...
@overload
def top_patches(
    model: nn.Module,
    loader: Iterable[Any],
    layer: _Several,
    *,
    k: int = ...,
    resume: str | os.PathLike[str] | None = ...,
    every: int | None = ...,
    progress: bool = ...,
) -> dict[str, TopPatches]: ...
@gated
def top_patches(
    model: nn.Module,
    loader: Iterable[Any],
    layer: str | nn.Module | _Several,
    *,
    k: int = 9,
    resume: str | os.PathLike[str] | None = None,
    every: int | None = None,
    progress: bool = False,
) -> TopPatches | dict[str, TopPatches]:
    """Find the `k` images of a data set that activate each channel of a layer most, in one pass.

    Several layers share the pass. A copy that shares the weights runs in evaluation mode, up to the last of these
    layers; memory does not grow with the data set. An image counts once per channel; of equal values the lowest index
    comes first. An image of a DataLoader's data set whose file cannot be read (an OSError) is left out, with a warning.

    In a distributed run every rank calls this with its own part of the data, by `DistributedSampler(dataset,
    shuffle=False)` or by ascending numbers as the DataLoader's `sampler`. Each rank gets the result over all images.

    Args:
        model: any module that takes `b c h w`.
        loader: yields `images` or `(images, ...)`, all of one size: a DataLoader that does not shuffle, or any iterable
            of batches. `patches` iterates it a second time.
        layer: a layer that returns maps and runs once, by name or as a module, or one of its calls (`"relu#2"`); or a
            list, which may contain globs and types. Maps are `b c h w`, or have their axes in another order (`b h w c`,
            rows and columns swapped or flipped), or are tokens `b n c` of a transformer, on the grid of its patches and
            without those that have no place; the axes are found by following the image through the network.
        k: images per channel.
        resume: a file for the state of the pass. If it exists, the pass is resumed from it; its images are compared by
            checksums with those of the loader: of a DataLoader the first and the last batch that are done are read
            again, of another iterable all of them pass. Each rank of a distributed run has its own file, with the rank
            in its name.
        every: number of batches between two writes of that file; default 100.
        progress: show a bar.
    Returns:
        The `TopPatches` of one layer; for a list, a dictionary of them by layer name.
    Raises:
        OptionError: the loader's order is random or unknown, `k` or `every` is below 1, or `resume` belongs to another
            pass (other layers, k, model, loader or images).
        LayerError: no such layer, or it does not run exactly once.
        ShapeError: the layer returns no maps, there are no images, or they differ in size.
        DtypeError: the loader yields something other than images, or the model cannot be copied.
        FileError: `resume` cannot be read or written, is damaged, or another version of this package wrote it.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        >>> best = top_patches(net, torch.rand(8, 5, 1, 6, 6), "1", k=3)
        >>> best.images.shape, best.seen
        (torch.Size([4, 3]), 40)

    Reference: Zeiler & Fergus 2013, fig. 2.
    """
    if every is not None and (resume is None or every < 1):
        raise OptionError(
            f"every must be at least 1 and needs resume= (it counts batches between "
            f"writes of that file), got every={every}, {resume=}."
        )
    several = isinstance(layer, (list, tuple))
    names, source = _names(model, layer) if several else [layer_name(model, layer)], Source(loader)
    checkpoint = None
    if resume is not None:
        what = {"layers": names, "k": k, "weights": weights_of(model), **source.settings()}
        checkpoint = Checkpoint(_of_rank(Path(resume)), every or EVERY, what)
    work = FirstPass(model, names, source, k, checkpoint)
    with isolated(), torch.no_grad():
        work.run(progress)
    found, left_out = work.result(), work.left_out()
    warn_of(left_out)
    results = {name: _result(name, top, model, source, left_out) for name, top in found.items()}
    return results if several else results[names[0]]


@gated
def read_patches(
    results: Mapping[str, TopPatches],
    channels: Mapping[str, int | Sequence[int]],
    *,
    projection: str | None = None,
) -> dict[str, Patches]:
    """Crop the top-activating patches of several layers, as `TopPatches.patches` does, but read each image once for all
    layers.

    Args:
        results: what one call of `top_patches` returned for a list of layers, or a part of it.
        channels: for each of these layers, one channel number or several.
        projection: as in `TopPatches.patches`; the default is chosen per layer.
    Raises:
        OptionError: there is no such channel or projection, the layers come from different passes, or the data set
            returns other images than the first time.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        >>> best = top_patches(net, torch.rand(2, 5, 1, 6, 6), ["1", "2"], k=3)
        >>> read_patches(best, {"1": [0, 3], "2": 1})["2"].images.shape
        torch.Size([1, 3, 1, 5, 5])
    """
    passes = {(id(best.model), id(best.source)) for best in results.values()}
    if set(results) != set(channels) or len(passes) != 1:
        raise OptionError(
            f"results must come from one top_patches(model, loader, [...]) "
            f"and have the layers of channels; got results "
            f"for {list(results)} and channels for {list(channels)}."
        )
    check_projection(projection)
    chosen = {name: best._checked(channels[name]) for name, best in results.items()}
    missing = {name: (best._field, best._unread(chosen[name], projection)) for name, best in results.items()}
    first = next(iter(results.values()))
    crops = read_crops(first.model, first.source, missing, projection)
    for name, best in results.items():
        kept = {(projection, channel): best._crops.get((projection, channel), []) for channel in chosen[name]}
        for hit, crop in crops[name]:
            kept[projection, hit.unit[0]].append(crop)
        best._crops.clear()
        best._crops.update(kept)
    return {name: best._assembled(chosen[name], projection) for name, best in results.items()}


def _names(model: nn.Module, layers: Any) -> list[str]:
    """The full names of all layers meant, in model order; calls that are named by number come last."""
    calls = [entry for entry in layers if isinstance(entry, str) and split_call(entry)[1] is not None]
    others = [entry for entry in layers if entry not in calls]
    names = list(resolve(model, others)) if others or not calls else []
    return list(dict.fromkeys([*names, *(layer_name(model, call) for call in calls)]))


def _result(name: str, top: TopValues, model: nn.Module, source: Source, left_out: Mapping[int, str]) -> TopPatches:
    width = top.field.map_size[1]
    places = torch.stack([top.positions // width, top.positions % width], -1)
    places[top.images < 0] = -1
    dead = tuple((~(top.values > 0).any(1)).nonzero().flatten().tolist())
    return TopPatches(
        top.values, top.images, places, dead, top.seen, name, top.size, model, source, top.field, left_out
    )


def _of_rank(path: Path) -> Path:
    """The file of this rank."""
    return path if (n := ranks()) == 1 else path.with_name(f"{path.stem}.rank{dist.get_rank()}of{n}{path.suffix}")
