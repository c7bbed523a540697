"""The items of a data set, without those that cannot be read: these are left out, counted and named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, Subset

from torch_featviz.displayed import shortened
from torch_featviz.printable import printable
from torch_featviz.warn import warn

_NAMED = 3  # of what is left out, in words
_DEEP = 5  # subsets of subsets
_KEPT = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "prefetch_factor"),
    *("multiprocessing_context", "generator"),
)


def read_items(data: Any, left_out: dict[int, str]) -> Iterator[tuple[int, Any]]:
    """The items of a data set or of any iterable, in order, each with its number.

    A data set is asked by number, since not all can be iterated. An item whose file cannot be read (an OSError) is left
    out.

    Args:
        data: a data set, a loader, whose items are batches, or anything to iterate over.
        left_out: takes the numbers of what is left out, with the reasons.
    Example:
        >>> class Torn(Dataset):
        ...     def __len__(self):
        ...         return 3
        ...     def __getitem__(self, i):
        ...         if i == 1:
        ...             raise OSError("truncated")
        ...         return "abc"[i]
        >>> left_out = {}
        >>> list(read_items(Torn(), left_out)), left_out
        ([(0, 'a'), (2, 'c')], {1: 'truncated'})
    """
    if not isinstance(data, Dataset) or isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        yield from enumerate(read_batches(data, left_out))
        return
    yield from read_numbered(data, range(len(data)), left_out)


def read_numbered(dataset: Any, numbers: Iterable[int], left_out: dict[int, str]) -> Iterator[tuple[int, Any]]:
    """Those of these items of a data set that can be read, each with its number; `left_out` takes the others."""
    for number in numbers:
        try:
            item = dataset[number]
        except OSError as error:
            said = next(iter(str(error).splitlines()), "") or type(error).__name__
            left_out[int(number)] = said.rstrip(".")
        else:
            yield number, item


def read_batches(loader: Iterable[Any], left_out: dict[int, str]) -> Iterator[Any]:
    """The batches of a loader; those of a DataLoader without the items of its data set that cannot be read.

    Args:
        loader: any iterable; where it is no plain DataLoader, or its data set has no numbers, an error ends it.
        left_out: takes the numbers of what is left out, with the reasons.
    """
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        yield from loader
        return
    order: Any = loader.batch_sampler
    if type(order) is not BatchSampler or type(order.sampler) is not SequentialSampler:  # drawn anew each time
        order = list(order)
        loader = with_order(loader, order)
    batches = iter(loader)
    for numbers in order:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except OSError as error:
            error.__traceback__ = None  # else a cycle holds the iterator, and its workers wait until that is collected
            batch = read_batch(loader, numbers, left_out)
        if batch is not None:
            yield batch


def read_batch(loader: Any, numbers: Sequence[int], left_out: dict[int, str]) -> Any:
    """A DataLoader's batch of those of these items that can be read, one by one; None if there is none."""
    items = [item for _, item in read_numbered(loader.dataset, numbers, left_out)]
    return loader.collate_fn(items) if items else None


def with_order(loader: DataLoader[Any], order: list[list[int]]) -> DataLoader[Any]:
    """The same loader, with the numbers of each batch."""
    kept: dict[str, Any] = {name: getattr(loader, name) for name in _KEPT}
    return DataLoader(loader.dataset, batch_sampler=order, **kept)


def unread(data: Any, left_out: Mapping[int, str]) -> str:
    """In words, how many files could not be read, and the names of the first; empty if all could.

    Args:
        data: the data set or the loader; where it lists no files, their items are named by number.
        left_out: numbers of items of the data set, and the reasons.
    Example:
        >>> unread([], {4: "truncated", 7: "truncated"})
        '2 files could not be read: item 4, item 7'
    """
    if not left_out:
        return ""
    data = data.dataset if isinstance(data, DataLoader) else data
    names = [_file(data, number) for number in sorted(left_out)[:_NAMED]]
    more = f" and {len(left_out) - _NAMED:,} more" if len(left_out) > _NAMED else ""
    files = "1 file" if len(left_out) == 1 else f"{len(left_out):,} files"
    return f"{files} could not be read: {', '.join(names)}{more}"


def warn_of(left_out: Mapping[int, str]) -> None:
    """Warn of items that could not be read, if there are any."""
    if left_out:
        few = "; ".join(f"{number}: {why}" for number, why in sorted(left_out.items())[:_NAMED])
        more = "; ..." if len(left_out) > _NAMED else ""
        warn(f"{len(left_out):,} images cannot be read and are left out: {few}{more}")


def _file(dataset: Any, number: int) -> str:
    """The name of an item's file, where the data set lists its files as torchvision's and ours do."""
    for _ in range(_DEEP):
        if isinstance(dataset, Subset):
            dataset, number = dataset.dataset, dataset.indices[number]
    for listed in ("paths", "samples"):
        try:
            entry = getattr(dataset, listed)[number]
            path = entry[0] if isinstance(entry, (tuple, list)) else entry
        except (AttributeError, LookupError, TypeError):
            continue
        if isinstance(path, (str, PathLike)):
            return shortened(printable(Path(path).name))
    return f"item {number}"
