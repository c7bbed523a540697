"""What a data set says of its items without reading them: the names of its classes, and a target for each item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch.utils.data import ConcatDataset, Subset

from .labels import label_of


@dataclass(frozen=True)
class Listing:
    """Names and targets of a data set.

    Args:
        names: of the classes, where labels are still numbers of these.
        targets: of each item in order, before `change`; they may be wrong.
        change: `dataset.target_transform`, or nothing.
    """

    names: Sequence[str] | None = None
    targets: Iterable[Any] | None = None
    change: Callable[[Any], Any] = lambda target: target


def listing_of(dataset: Any) -> Listing:
    """What `dataset` lists; of a Subset or ConcatDataset, what the data sets in it list.

    Example:
        >>> from torch.utils.data import Subset
        >>> class Folder(list):
        ...     classes, targets = ("cat", "dog"), (0, 0, 1)
        >>> found = listing_of(Subset(Folder("abc"), [2, 0]))
        >>> found.names, found.targets
        (('cat', 'dog'), [1, 0])
    """
    if isinstance(dataset, Subset):
        inner = listing_of(dataset.dataset)
        return Listing(inner.names, _at(inner.targets, dataset.indices), inner.change)
    if isinstance(dataset, ConcatDataset):
        return _joined([listing_of(part) for part in dataset.datasets])
    names, targets = getattr(dataset, "classes", None), getattr(dataset, "targets", None)
    change = getattr(dataset, "target_transform", None)
    listed = targets if hasattr(targets, "__iter__") else None
    if change is None:
        return Listing(names, listed)
    return Listing(names if names is not None and _keeps(change, names) else None, listed, change)


def _at(targets: Any, indices: Iterable[int]) -> Iterable[Any] | None:
    """Those of these items; None where there are not as many."""
    if targets is None:
        return None
    try:
        known = targets if hasattr(targets, "__getitem__") else list(targets)
        return [known[i] for i in indices]
    except (IndexError, KeyError, TypeError):
        return None


def _joined(parts: list[Listing]) -> Listing:
    """The names that all have in common, and all targets where nothing changes them."""
    first = parts[0].names
    same = first is not None and all(part.names is not None and [*part.names] == [*first] for part in parts)
    changed = any(part.targets is None or part.change is not Listing.change for part in parts)
    targets = None if changed else chain.from_iterable(part.targets or () for part in parts)
    return Listing(first if same else None, targets)


def _keeps(change: Callable[[Any], Any], names: Sequence[str]) -> bool:
    """Whether the numbers of classes are still those of these names after `change`."""
    try:
        return all(label_of(change(i), "a class", names) == i for i in range(len(names)))
    except Exception:  # a function that takes other things than numbers of classes
        return False
