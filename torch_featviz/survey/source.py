"""The images of a loader, each with its number in the data set: all in order, then a few of them again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.model.reading import read_batch, with_order

_DEEP = 5  # subsets of subsets


class Source:
    """A loader, and the number in the data set of each image that it yields.

    Args:
        loader: an iterable of batches. A DataLoader reads its data set in order, or a part of it by a
            DistributedSampler that does not shuffle, or by ascending numbers as `sampler`. Another iterable, or an
            IterableDataset, has its images numbered as they come.
    Raises:
        DtypeError: it is no iterable.
        OptionError: the order is random or unknown, or in a distributed run every rank would see all images.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        if not isinstance(loader, Iterable):
            what = type(loader).__name__  # type: ignore[unreachable]
            raise DtypeError(f"loader must be an iterable of batches, got {what}; DataLoader(dataset, 64) makes one.")
        self.loader = loader
        self.ids = _ids(loader)
        self.left_out: dict[int, str] = {}  # images that could not be read, each with the reason

    @property
    def skips(self) -> bool:
        """Whether it can be read from any batch on, without those before."""
        return self.ids is not None and type(self.loader) is DataLoader

    def batches(self, done: int = 0) -> Iterator[Tensor]:
        """Batches of images `b c h w` from batch `done` on; a DataLoader does not read those before.

        An image of a DataLoader's data set whose file cannot be read is left out, with its number in `left_out`.
        """
        if self.ids is None:
            yield from map(images_of, islice(iter(self.loader), done, None))
            return
        size = getattr(self.loader, "batch_size", 0)
        batches, at = self._after(done), done * size
        while True:
            numbers = self.ids[at : at + size]  # beyond them a DistributedSampler repeats itself
            at += size
            try:
                images = images_of(next(batches))[: len(numbers)]
            except StopIteration:
                return
            except OSError:
                images = self._readable(numbers)
            yield images

    def batch(self, number: int) -> Tensor:
        """One batch of a loader that `skips`, as `batches` gives it."""
        size: int = getattr(self.loader, "batch_size", 0)
        return self._readable((self.ids or ())[number * size : (number + 1) * size])

    def _readable(self, numbers: Sequence[int]) -> Tensor:
        """Those images of a batch that can be read, one by one; without any, an empty batch."""
        loader: Any = self.loader
        batch = read_batch(loader, numbers, self.left_out)
        return torch.empty(0, 0, 0, 0, device="cpu") if batch is None else images_of(batch)

    def total(self) -> int | None:
        """The number of batches, where known."""
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:
            return None

    def settings(self) -> dict[str, Any]:
        """Plain values that tell one loader from another, as far as they are told without reading images."""
        batch_size = getattr(self.loader, "batch_size", None)
        transforms = _transforms(getattr(self.loader, "dataset", None))
        found = {"images": None, "order": None, "batch_size": batch_size, "transforms": transforms}
        return found if self.ids is None else found | {"images": len(self.ids), "order": _order(self.ids)}

    def count(self, batches: int) -> int | None:
        """The number of images in the first batches, where it is known without reading them."""
        size = getattr(self.loader, "batch_size", None)
        return min(len(self.ids), batches * size) if self.ids is not None and size else None

    def numbers(self, order: Tensor) -> Tensor:
        """The data set's numbers of images counted as they came, 0, 1, ...; -1 stays."""
        if self.ids is None:
            return order
        if isinstance(self.ids, range) and not self.left_out:
            return torch.where(order < 0, -1, self.ids.start + order * self.ids.step)
        read = [number for number in self.ids if number not in self.left_out]
        return torch.where(order < 0, -1, torch.tensor(read, device=order.device)[order.clamp(min=0)])

    def again(self, wanted: Sequence[int]) -> Iterator[Tensor]:
        """The images of these ascending numbers, `c h w`; where there is an index, no other is read.

        Raises:
            OptionError: `loader` was an iterator, which cannot be read twice, or has fewer images now.
        """
        if self.ids is not None:
            loader: Any = self.loader
            for number in wanted:
                yield images_of(loader.collate_fn([loader.dataset[number]]))[0]
            return
        if iter(self.loader) is self.loader:
            raise OptionError(
                f"{type(self.loader).__name__} can be read only once, but the chosen images are read a second time; "
                "pass top_patches a DataLoader or a list of batches."
            )
        waiting, seen = list(reversed(wanted)), 0
        for batch in self.loader if waiting else ():
            images = images_of(batch)
            while waiting and waiting[-1] < seen + len(images):
                yield images[waiting.pop() - seen]
            seen += len(images)
            if not waiting:
                return
        if waiting:
            raise OptionError(
                f"image {waiting[-1]} is missing: the loader now has {seen} "
                f"images; pass the same data as in the first pass."
            )

    def _after(self, done: int) -> Iterator[Any]:
        """The same loader from batch `done` on; the batches before are not read."""
        loader: Any = self.loader
        if done and type(self.loader) is DataLoader:
            loader, done = with_order(loader, list(loader.batch_sampler)[done:]), 0
        batches: Iterator[Any] = iter(loader)
        for _ in range(done):
            with suppress(OSError):
                next(batches, None)
        return batches


def images_of(batch: Any) -> Tensor:
    """The images `b c h w` of a batch: the batch itself, or its first entry.

    Raises:
        DtypeError: neither is a tensor of floats.
        ShapeError: they are not `b c h w`, or empty.
    """
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor) or not images.is_floating_point():
        what = f"a tensor of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise DtypeError(
            f"loader must yield float images 'b c h w', or (images, ...), as the model takes them; got {what}."
        )
    if images.dim() != 4 or not images.numel():
        raise ShapeError(f"loader must yield images 'b c h w', got shape {tuple(images.shape)}.")
    return images


def ranks() -> int:
    """Number of processes of a distributed run; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _ids(loader: Iterable[Any]) -> Sequence[int] | None:
    """The data set's numbers in the loader's order; None where images can only be counted."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return _alone(None, "a loader without a sampler")
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
        raise OptionError("a custom batch_sampler hides which image is which; use batch_size and sampler instead.")
    sampler: Any = loader.sampler
    if type(sampler) is SequentialSampler:
        return _alone(range(len(sampler)), "a DataLoader without a DistributedSampler")
    if type(sampler) is DistributedSampler and not sampler.shuffle:
        count = len(loader.dataset)  # type: ignore[arg-type]
        return range(sampler.rank, min(count, sampler.total_size), sampler.num_replicas)
    if isinstance(sampler, Sequence) and all(a < b for a, b in pairwise(sampler)):
        return sampler
    raise OptionError(
        f"the DataLoader must read images in a known order, but uses {type(sampler).__name__}; pass one with "
        "shuffle=False, DistributedSampler(..., shuffle=False), or ascending numbers as sampler."
    )


def _order(ids: Sequence[int]) -> str:
    """Which images are read, in a few letters."""
    if isinstance(ids, range):
        return f"{ids.start} to {ids.stop} by {ids.step}"
    return f"{ids[0]} to {ids[-1]}, checksum {crc32(repr(list(map(int, ids))).encode()):08x}" if ids else "none"


def _transforms(dataset: Any) -> str | None:
    """The transforms of a data set, or of the one that it is a part of, as they print themselves without addresses."""
    for _ in range(_DEEP):
        for name in ("transforms", "transform"):  # as torchvision calls them
            if (found := getattr(dataset, name, None)) is not None:
                return re.sub(r" at 0x[0-9a-fA-F]+", "", f"{found!r:.2000}")
        dataset = getattr(dataset, "dataset", None)
    return None


def _alone(ids: Sequence[int] | None, what: str) -> Sequence[int] | None:
    if ranks() > 1:
        raise OptionError(
            f"in a distributed run each rank must read its own images, and with {what} every rank would read all; pass "
            "sampler=DistributedSampler(dataset, shuffle=False)."
        )
    return ids
