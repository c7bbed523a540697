"""What the images of each class look like."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.picture import Legend, Picture, Sheet, count, rgb
from torch_featviz.picture.images import ValueRange, unit_image


def samples(
    dataset: Iterable[tuple[Any, Any]] | Dataset[tuple[Any, Any]],
    *,
    n: int = 8,
    classes: Sequence[str] | None = None,
    value_range: ValueRange = "unit",
    title: str = "",
) -> Picture:
    """The first images of each class, a class a row.

    Args:
        dataset: pairs of an image (`h w`, `1 h w`, `3 h w`, or a Pillow image) and its class as a number.
            It is read until each class has `n`, or to its end; `dataset.targets` is used where there is one.
        n: images per class.
        classes: their names; default `dataset.classes`, else the numbers that occur.
        value_range: what the values of tensors mean: `"unit"` 0 to 1, `"signed"`, `"byte"`, `"imagenet"`, or a function
            that brings them to 0 to 1, such as a card's `denormalize`.
        title: above everything.
    Raises:
        ShapeError: the dataset is empty, or images are not of one size.
        OptionError: `n` is below 1, a class has no name, or there is no such range.
    Example:
        >>> samples([(torch.zeros(8, 8), 0), (torch.ones(8, 8), 1)], classes=["black", "white"]).pixels.shape
        torch.Size([3, 17, 8])
    """
    if n < 1:
        raise OptionError(f"n must be at least 1, got {n}.")
    names = classes if classes is not None else getattr(dataset, "classes", None)
    found = _collect(dataset, n, names)
    if not found:
        raise ShapeError("the dataset holds no image of these classes; samples needs at least one.")
    labels = list(names) if names is not None else [str(i) for i in sorted(found)]
    numbers = list(range(len(labels))) if names is not None else sorted(found)
    images = {i: [unit_image(image, value_range) for image in found.get(i, [])] for i in numbers}
    sizes = sorted({tuple(image.shape[1:]) for row in images.values() for image in row})
    if len(sizes) > 1:
        raise ShapeError(f"images must be of one size, got {sizes[0]} and {sizes[-1]}; add a Resize transform.")
    columns = max(len(row) for row in images.values())
    blank = torch.zeros(3, *sizes[0])
    units = torch.stack(
        [(images[i][j] if j < len(images[i]) else blank).cpu() for i in numbers for j in range(columns)]
    )
    empty = frozenset(k * columns + j for k, i in enumerate(numbers) for j in range(len(images[i]), columns))
    legend = Legend(counts=count(units), notes=_missing(labels, numbers, images))
    return Sheet(rgb(units), legend, title=title, ncols=columns, rows=tuple(labels), empty=empty)


def _collect(dataset: Any, n: int, names: Sequence[str] | None) -> dict[int, list[Any]]:
    """The first `n` images of each class; where the classes are listed, others are not even loaded."""
    found: dict[int, list[Any]] = {}
    targets = getattr(dataset, "targets", None)
    if targets is not None and hasattr(dataset, "__getitem__"):
        source: Iterable[tuple[Any, Any]] = ((index, target) for index, target in enumerate(targets))
    else:
        targets, source = None, dataset
    for image, target in source:
        number = int(target)
        if names is not None and not 0 <= number < len(names):
            raise OptionError(f"class {number} has no name: {len(names)} classes are named; give all of them.")
        row = found.setdefault(number, [])
        if len(row) < n:
            row.append(dataset[image][0] if targets is not None else image)
        elif names is not None and len(found) == len(names) and all(len(r) == n for r in found.values()):
            break
    return found


def _missing(labels: Sequence[str], numbers: Sequence[int], images: dict[int, list[Tensor]]) -> tuple[str, ...]:
    none = [label for label, i in zip(labels, numbers, strict=True) if not images[i]]
    return (f"no example of: {', '.join(none)}",) if none else ()
