"""What the images of each class look like."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.model.labels import items_of, label_of, pair_of
from torch_featviz.picture import Legend, Picture, Sheet, rgb
from torch_featviz.picture.images import Card, ValueRange, clipped, unit_image

Label: TypeAlias = int | str


def samples(
    dataset: Iterable[Any] | Dataset[Any],
    *,
    n: int = 8,
    classes: Sequence[str] | None = None,
    value_range: ValueRange | None = None,
    card: Card | None = None,
    title: str = "",
) -> Picture:
    """The first images of each class, a class a row.

    Args:
        dataset: pairs of an image (`h w`, `1 h w`, `3 h w`, or a Pillow image) and its class: a number, a one-hot
            vector, or a name; or dictionaries that call them `image` and `label`. It is read until each class has
            `n`, or to its end. `dataset.targets` only says where to look: each image stands under the label that comes
            with it.
        n: images per class.
        classes: their names; default `dataset.classes`, where no `target_transform` changes what they stand for, else
            the numbers or names that occur.
        value_range: what the values of tensors mean: `"unit"` 0 to 1, `"signed"`, `"byte"`, `"imagenet"`,
            `{"mean": ..., "std": ...}`, or a function that brings them to 0 to 1; default the card's, or `"unit"`.
        card: of the model, if images are as it takes them.
        title: above everything.
    Raises:
        ShapeError: the dataset is empty, or images are not of one size.
        DtypeError: an item is no pair, or its label no class, such as a mask; it is named.
        OptionError: `n` is below 1, a class has no name, or there is no such range or card.
    Example:
        >>> samples([(torch.zeros(8, 8), 0), (torch.ones(8, 8), 1)], classes=["black", "white"]).pixels.shape
        torch.Size([3, 17, 8])
    """
    if n < 1:
        raise OptionError(f"n must be at least 1, got {n}.")
    names = classes if classes is not None else _own_names(dataset)
    found = _collect(dataset, n, names)
    if not found:
        raise ShapeError("the dataset holds no image of these classes; samples needs at least one.")
    numbers: list[Label] = [*range(len(names))] if names is not None else sorted(found)
    labels = list(names) if names is not None else [str(i) for i in numbers]
    images = {i: [unit_image(image, value_range, card) for image in found.get(i, [])] for i in numbers}
    sizes = sorted({tuple(image.shape[1:]) for row in images.values() for image in row})
    if len(sizes) > 1:
        raise ShapeError(f"images must be of one size, got {sizes[0]} and {sizes[-1]}; add a Resize transform.")
    columns = max(len(row) for row in images.values())
    blank = torch.zeros(3, *sizes[0], device="cpu")
    units = torch.stack(
        [(images[i][j] if j < len(images[i]) else blank).cpu() for i in numbers for j in range(columns)]
    )
    empty = frozenset(k * columns + j for k, i in enumerate(numbers) for j in range(len(images[i]), columns))
    counts, hints = clipped(units, value_range, card)
    legend = Legend(counts=counts, notes=(*_missing(labels, numbers, images), *hints))
    return Sheet(rgb(units), legend, title=title, ncols=columns, rows=tuple(labels), empty=empty)


def _own_names(dataset: Any) -> Sequence[str] | None:
    """The data set's names of its classes, if its labels are still numbers of these."""
    names, change = getattr(dataset, "classes", None), getattr(dataset, "target_transform", None)
    if names is None or change is None:
        return names
    try:
        same = all(_known(change(i), i, names) == i for i in range(len(names)))
    except Exception:  # a function that takes other things than numbers of classes
        return None
    return names if same else None


def _collect(dataset: Any, n: int, names: Sequence[str] | None) -> dict[Label, list[Any]]:
    """The first `n` images of each class by the labels that come with them; others are not loaded, where targets that
    are listed prove right."""
    found = _by_targets(dataset, n, names)
    return _in_order(dataset, n, names) if found is None else found


def _by_targets(dataset: Any, n: int, names: Sequence[str] | None) -> dict[Label, list[Any]] | None:
    """The images at which `dataset.targets` points; None where there are no targets, or an item has another label."""
    targets: Any = getattr(dataset, "targets", None)
    change = getattr(dataset, "target_transform", None)
    if not hasattr(targets, "__iter__") or not hasattr(dataset, "__getitem__"):
        return None
    found: dict[Label, list[Any]] = {}
    for i, target in enumerate(targets):
        try:
            expected = _known(target if change is None else change(target), i, names)
        except Exception:  # what an item's own label is, is read from the item
            return None
        row = found.setdefault(expected, [])
        if len(row) < n:
            image, label = pair_of(dataset[i], f"item {i}")
            if _known(label, i, names) != expected:
                return None
            row.append(image)
        elif _full(found, n, names):
            break
    return found


def _in_order(dataset: Any, n: int, names: Sequence[str] | None) -> dict[Label, list[Any]]:
    found: dict[Label, list[Any]] = {}
    for i, item in enumerate(items_of(dataset)):
        image, label = pair_of(item, f"item {i}")
        known = _known(label, i, names)
        if any(type(known) is not type(other) for other in found):
            raise OptionError(
                f"the label of item {i} is {known!r}, and earlier ones are {[*found][:3]}; give classes=."
            )
        row = found.setdefault(known, [])
        if len(row) < n:
            row.append(image)
        elif _full(found, n, names):
            break
    return found


def _known(value: Any, number: int, names: Sequence[str] | None) -> Label:
    """A label, which has a name if any have."""
    label = label_of(value, f"the label of item {number}", names)
    if names is not None and not 0 <= int(label) < len(names):
        raise OptionError(f"class {label} has no name: {len(names)} classes are named; give all of them.")
    return label


def _full(found: dict[Label, list[Any]], n: int, names: Sequence[str] | None) -> bool:
    return names is not None and len(found) == len(names) and all(len(row) == n for row in found.values())


def _missing(labels: Sequence[str], numbers: Sequence[Label], images: dict[Label, list[Tensor]]) -> tuple[str, ...]:
    none = [label for label, i in zip(labels, numbers, strict=True) if not images[i]]
    return (f"no example of: {', '.join(none)}",) if none else ()
