"""The first images of each class."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from os import PathLike
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import gate
from torch_featviz.model.labels import label_of, names_of, pair_of
from torch_featviz.model.listing import Listing, listing_of
from torch_featviz.model.reading import read_items, read_numbered, unread, warn_of
from torch_featviz.picture import Legend, Picture, Sheet, rgb
from torch_featviz.picture.bounds import drawn_at, listed, named, room, shrunk
from torch_featviz.picture.images import Card, ValueRange, clipped, unit_image

Label: TypeAlias = int | str
LIMIT = 40  # classes


@gate("dataset")
def samples(
    dataset: Iterable[Any] | Dataset[Any],
    *,
    n: int = 8,
    classes: Sequence[str] | None = None,
    value_range: ValueRange | None = None,
    card: Card | None = None,
    title: str = "",
) -> Picture:
    """Draw the first images of each class, one class per row.

    Of more than 40 classes 40 are drawn, those that reach `n` images first; the legend says so. An image of a data set
    whose file cannot be read (an OSError) is left out, with a warning, and the legend names it.

    Args:
        dataset: pairs of an image (`h w`, `1 h w`, `3 h w`, or a Pillow image) and its class (a number, a one-hot
            vector, or a name); or dictionaries with `image` and `label`. It is read until each class has `n` images, or
            to its end. `dataset.targets` only says where to look: an image is drawn under the label that comes with it.
            A `Subset` or `ConcatDataset` has the classes and targets of its parts.
        n: images per class.
        classes: class names. Default: `dataset.classes`, unless a `target_transform` changes their meaning; otherwise
            the numbers or names that occur.
        value_range: range of the values of images: `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255),
            `"imagenet"` or `{"mean": ..., "std": ...}` (normalised), or a function that maps them to 0 to 1. Default:
            the range of the card, or `"unit"`.
        card: card of the model, if the images are preprocessed for it.
        title: heading of the picture.
    Raises:
        ShapeError: the data set is empty, or images differ in size.
        DtypeError: an item is not a pair, or its label is not a class (a mask, for instance); the error names it. A
            batch of images has no classes; `images` draws it.
        OptionError: `n` is below 1, a class has no name, or the range or card is invalid.
    Example:
        >>> samples([(torch.zeros(8, 8), 0), (torch.ones(8, 8), 1)], classes=["black", "white"]).pixels.shape
        torch.Size([3, 17, 8])
    """
    if n < 1:
        raise OptionError(f"n must be at least 1, got {n}.")
    _check(dataset)
    listing = listing_of(dataset)
    names = listing.names if classes is None else names_of(classes)
    left_out: dict[int, str] = {}
    found = _collect(dataset, listing, n, names, left_out)
    if not any(found.values()):
        told = f" ({unread(dataset, left_out)})" if left_out else ""
        raise ShapeError(f"the data set has no image of these classes{told}; samples() needs at least one.")
    warn_of(left_out)
    total = len(found) if names is None else len(names)
    few = names is not None and total <= LIMIT
    numbers: list[Label] = [*range(total)] if few else sorted(label for label, row in found.items() if row)
    labels = [named(str(i) if names is None else names[int(i)]) for i in numbers]
    images = {i: [unit_image(image, value_range, card) for image in found.get(i, [])] for i in numbers}
    sizes = sorted({tuple(image.shape[1:]) for row in images.values() for image in row})
    if len(sizes) > 1:
        raise ShapeError(f"images must have one size, got {sizes[0]} and {sizes[-1]}; add a Resize transform.")
    columns = max(len(row) for row in images.values())
    blank = torch.zeros(3, *sizes[0], device="cpu")
    units = torch.stack(
        [(images[i][j] if j < len(images[i]) else blank).cpu() for i in numbers for j in range(columns)]
    )
    empty = frozenset(k * columns + j for k, i in enumerate(numbers) for j in range(len(images[i]), columns))
    counts, hints = clipped(units, value_range, card)
    small = shrunk(units, room(columns, len(numbers)))
    lost = [unread(dataset, left_out)] if left_out else []
    notes = (*_left_out(labels, images, total), *lost, *drawn_at(units, small), *hints)
    legend = Legend(counts=counts, notes=notes)
    return Sheet(rgb(small), legend, title=title, ncols=columns, rows=tuple(labels), empty=empty)


def _check(dataset: Any) -> None:
    """Raise DtypeError for what is mistaken for a data set."""
    first = dataset[0] if isinstance(dataset, (tuple, list)) and dataset else dataset
    wrong = "samples() takes pairs of an image and its class"
    if isinstance(first, Tensor):
        of = "" if first.is_nested else f" of shape {tuple(first.shape)}"  # one of a list, say
        raise DtypeError(f"{wrong}, got a tensor{of}; fv.images(batch, labels) draws a batch.")
    if isinstance(dataset, DataLoader):
        raise DtypeError(f"{wrong}, got a DataLoader of batches; call samples(loader.dataset).")
    listed = (hasattr(dataset, "__iter__") or hasattr(dataset, "__getitem__")) and getattr(dataset, "shape", 1) != ()
    if isinstance(dataset, (str, PathLike)) or not listed:
        raise DtypeError(f"{wrong}, got {dataset!r:.80}; ImageFolder(folder) of torchvision reads a folder.")


def _collect(
    dataset: Any, listing: Listing, n: int, names: Sequence[str] | None, left_out: dict[int, str]
) -> dict[Label, list[Any]]:
    """The first `n` images of each class by the labels that come with them; others are not loaded, where targets that
    are listed prove right."""
    found = _by_targets(dataset, listing, n, names, left_out)
    return _in_order(dataset, n, names, left_out) if found is None else found


def _by_targets(
    dataset: Any, listing: Listing, n: int, names: Sequence[str] | None, left_out: dict[int, str]
) -> dict[Label, list[Any]] | None:
    """The images at which the listed targets point; None where there are none, or an item has another label."""
    if listing.targets is None or not hasattr(dataset, "__getitem__"):
        return None
    places: dict[Label, list[int]] = {}
    full = 0
    for i, target in enumerate(listing.targets):
        try:
            expected = _known(listing.change(target), i, names)
        except Exception:  # what an item's own label is, is read from the item
            return None
        row = places.setdefault(expected, [])
        if len(row) < n:
            row.append(i)
            full += len(row) == n
        if names is not None and full == min(len(names), LIMIT):
            break
    if len({type(label) for label in places}) > 1:
        return None
    found: dict[Label, list[Any]] = {label: [] for label in places}
    for expected in _drawn(places, n):
        for i, item in read_numbered(dataset, places[expected], left_out):
            image, label = pair_of(item, f"item {i}")
            if _known(label, i, names) != expected:
                return None
            found[expected].append(image)
    return found


def _in_order(dataset: Any, n: int, names: Sequence[str] | None, left_out: dict[int, str]) -> dict[Label, list[Any]]:
    found: dict[Label, list[Any]] = {}
    full = 0
    for i, item in read_items(dataset, left_out):
        image, label = pair_of(item, f"item {i}")
        known = _known(label, i, names)
        if any(type(known) is not type(other) for other in islice(found, 1)):
            raise OptionError(f"the label of item {i} is {known!r}, earlier ones are {[*found][:3]}; pass classes=.")
        row = found.setdefault(known, [])
        if len(row) < n:
            row.append(image)
            full += len(row) == n
        if names is not None and full == min(len(names), LIMIT):
            break
    drawn = _drawn(found, n)
    return {label: row if label in drawn else [] for label, row in found.items()}


def _drawn(found: Mapping[Label, Sequence[Any]], n: int) -> list[Label]:
    """The classes that are drawn, in order: of too many those that have all their images, if there are enough."""
    return sorted(sorted(found, key=lambda label: (len(found[label]) < n, label))[:LIMIT])


def _known(value: Any, number: int, names: Sequence[str] | None) -> Label:
    """A label, which has a name if any have."""
    label = label_of(value, f"the label of item {number}", names)
    if names is not None and not 0 <= int(label) < len(names):
        raise OptionError(f"class {label} has no name, there are {len(names)} names; pass one per class.")
    return label


def _left_out(labels: Sequence[str], images: Mapping[Label, Sequence[Tensor]], total: int) -> list[str]:
    """Classes that are not drawn, and those without an image."""
    drawn = f"{len(labels)} of {total:,} classes" + ("; a Subset shows others" if len(labels) == LIMIT else " occur")
    none = [label for label, row in zip(labels, images.values(), strict=True) if not row]
    return [
        *([drawn] if total > len(labels) else []),
        *([f"no example of: {listed(none)}"] if none else []),
    ]
