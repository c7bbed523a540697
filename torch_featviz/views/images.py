"""A batch of images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import check_tensor, gate
from torch_featviz.model.labels import label_of, names_of, pair_of
from torch_featviz.picture import Legend, Picture, Sheet, enlarge, rgb
from torch_featviz.picture.bounds import drawn_at, named, room, shrunk
from torch_featviz.picture.images import ValueRange, clipped, unit_image
from torch_featviz.zoo import ModelCard

LIMIT = 64
_NARROWEST = 120  # pixels for a label, at least
_MIXED = 320  # the longer side, at most, of images of several sizes


@gate("labels")
def images(
    batch: Any,
    labels: Any = None,
    *,
    classes: Sequence[str] = (),
    card: ModelCard | None = None,
    value_range: ValueRange | None = None,
    ncols: int = 10,
    title: str = "",
) -> Picture:
    """Draw a batch of images in its order, each under its label; or draw one image.

    Args:
        batch: `b c h w` or one image `c h w`, with one or three channels; a list of such images or of Pillow images,
            which may differ in size; or a pair `(images, labels)`, as a DataLoader returns it. At most 64 are drawn;
            the legend tells the total.
        labels: one per image: class numbers, one-hot rows, or texts; for one image, its own label.
        classes: class names, by number. Default: those of the card; without names the number is written.
        card: card of the model, if the images are preprocessed for it.
        value_range: range of the values of images: `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255),
            `"imagenet"` or `{"mean": ..., "std": ...}` (normalised), or a function that maps them to 0 to 1. Default:
            the range of the card, or `"unit"`.
        ncols: images per row.
        title: heading of the picture.
    Raises:
        ShapeError: there is no image, an image has other axes, or the number of labels is wrong.
        DtypeError: an image is neither a tensor nor a Pillow image, or a label is not a class.
        OptionError: `ncols` is below 1, a class number has no name, or the range or card is invalid.
    Example:
        >>> images(torch.rand(4, 1, 8, 8), [5, 0, 4, 1]).labels
        ('5', '0', '4', '1')
    """
    if ncols < 1:
        raise OptionError(f"ncols must be at least 1, got {ncols}.")
    rows, labels = _listed(batch, labels)
    count = len(rows)
    names = names_of(classes) or (card.classes if isinstance(card, ModelCard) else ())
    words = () if labels is None else _words(labels, count, names)[:LIMIT]
    units = [unit_image(row, value_range, card) for row in rows[:LIMIT]]
    ncols = min(ncols, len(units))
    side = room(ncols, -(-len(units) // ncols))
    if len({unit.shape for unit in units}) > 1:
        side = min(side, _MIXED)
    small = [shrunk(unit[None], side) for unit in units]
    beyond = [unit.flatten(1) for unit in units if not _within(unit)] or [units[0].flatten(1)]
    counts, hints = clipped(torch.cat(beyond, 1)[None, :, None], value_range, card)
    notes = (*_notes(count, units, small), *hints)
    cells = _cells(small)
    return Sheet(
        cells,
        Legend(counts=counts, notes=notes),
        title=title,
        ncols=ncols,
        labels=tuple(named(word, min(side, max(_NARROWEST, cells.shape[3]))) for word in words),
    )


def _listed(batch: Any, labels: Any) -> tuple[Sequence[Any], Any]:
    """The images one by one, and their labels."""
    if labels is None and _is_pair(batch):
        batch, labels = pair_of(batch, "the batch")
    if isinstance(batch, Tensor):
        check_tensor("images", batch)
    if isinstance(batch, Dataset):
        raise DtypeError(
            "images() draws a batch; fv.samples(dataset) draws the first images of each class of a data set."
        )
    if isinstance(batch, Image.Image) or (isinstance(batch, Tensor) and batch.dim() in (2, 3)):
        if isinstance(batch, Tensor) and batch.dim() == 3 and batch.shape[0] not in (1, 3):
            raise ShapeError(
                f"images must be 'b c h w' or one image 'c h w' of 1 or 3 channels, got shape {tuple(batch.shape)}; "
                "for grey images 'b h w' pass images[:, None]."
            )
        alone = isinstance(labels, (str, int)) or (isinstance(labels, Tensor) and not labels.dim())
        batch, labels = [batch], [labels] if alone else labels
    elif not isinstance(batch, (Tensor, list, tuple)):
        raise DtypeError(
            f"images must be a tensor 'b c h w' or a list of images, got {type(batch).__name__}; torch.as_tensor makes "
            "a tensor of an array, PIL.Image.open an image of a file."
        )
    if isinstance(batch, Tensor) and not batch.dim():
        raise ShapeError("images must be 'b c h w' or one image 'c h w', got shape ().")
    if len(batch) == 0:
        raise ShapeError("there must be at least one image, got none.")
    return batch, labels


def _is_pair(batch: Any) -> bool:
    """Whether that is `(images, labels)`, as a DataLoader or a data set gives them."""
    if isinstance(batch, Mapping):
        return True
    several = isinstance(batch, (list, tuple)) and len(batch) == 2
    return several and not (_is_image(batch[0]) and _is_image(batch[1]))


def _is_image(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, Tensor) and value.dim() in (2, 3))


def _words(labels: Any, count: int, names: Sequence[str]) -> list[str]:
    """A text for each image."""
    if isinstance(labels, Tensor):
        check_tensor("labels", labels)
    many = hasattr(labels, "__len__") and not isinstance(labels, (str, bytes, Mapping))
    many = many and getattr(labels, "shape", None) != ()
    if not many or len(labels) != count:
        got = f"{len(labels)}" if many else repr(labels)
        raise ShapeError(f"labels must have {count} entries, one per image, got {got}.")
    words = []
    for i, label in enumerate(labels):
        known = label_of(label, f"label {i}", hint="pass a number or a text")
        if isinstance(known, int) and names and not 0 <= known < len(names):
            raise OptionError(f"class {known} has no name, there are {len(names)} names; pass one per class.")
        words.append(names[known] if isinstance(known, int) and names else str(known))
    return words


def _within(unit: Tensor) -> bool:
    """Whether all values are from 0 to 1."""
    low, high = unit.aminmax()
    return bool((low >= 0) & (high <= 1))


def _cells(units: Sequence[Tensor]) -> Tensor:
    """`n 3 h w`; those of other sizes are enlarged by a whole factor, and stand in the middle of white paper."""
    high, wide = (max(unit.shape[axis] for unit in units) for axis in (2, 3))
    cells = []
    for unit in units:
        cell = enlarge(rgb(unit), min(high // unit.shape[2], wide // unit.shape[3]))
        down, across = high - cell.shape[2], wide - cell.shape[3]
        cells.append(F.pad(cell, (across // 2, across - across // 2, down // 2, down - down // 2), value=255))
    return torch.cat([cell.to(cells[0].device) for cell in cells])


def _notes(count: int, units: Sequence[Tensor], small: Sequence[Tensor]) -> tuple[str, ...]:
    """What is left out, or drawn at another size."""
    left = (f"the first {LIMIT} of {count:,} images; images(batch[{LIMIT}:]) draws the next",) if count > LIMIT else ()
    sizes = len({tuple(unit.shape) for unit in units})
    if sizes > 1:
        return (*left, f"images of {sizes} sizes, each scaled to about the same")
    return (*left, *drawn_at(units[0], small[0]))
