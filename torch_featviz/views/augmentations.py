"""Augmented images by transform, and the time that a transform takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import gate
from torch_featviz.model.untouched import isolated, seed_all
from torch_featviz.picture import Counts, Legend, Picture, Sheet, number, rgb
from torch_featviz.picture.bounds import fitted, named
from torch_featviz.picture.color import total_of
from torch_featviz.picture.images import Card, ValueRange, clipped, unit_image

LIMIT, MOST = 24, 16  # transforms, and draws of each
_CALLS = 5  # at least, of which the median time is taken
_GOAL, _NAME = 200, 240  # pixels of a cell and of a name
_NOTHING = 225  # light grey, where an image is smaller than the largest


@gate("image", "transforms")
def augmentations(
    image: Tensor | Image.Image,
    transforms: Mapping[str, Callable[[Any], Any]] | Sequence[Callable[[Any], Any]],
    *,
    n: int = 4,
    seed: int = 0,
    times: bool = True,
    value_range: ValueRange | None = None,
    card: Card | None = None,
    title: str = "",
) -> Picture:
    """Draw an image and several augmented versions of it, one transform per row, with the time of one call.

    Times depend on the machine and vary from run to run; without them the same input gives the same bytes. The state of
    all random generators is restored.

    Args:
        image: `c h w` or `1 c h w`, with one or three channels, or a Pillow image. Each transform gets a copy.
        transforms: functions by name, or a list of functions, for instance of torchvision or kornia. A transform that
            does not accept `c h w` gets `1 c h w`.
        n: augmented images per transform, from 1 to 16.
        seed: seed of the first augmented image; the next image has the next seed. All transforms have the same seeds.
        times: write the median time of a call beside each name.
        value_range: range of the values of images: `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255),
            `"imagenet"` or `{"mean": ..., "std": ...}` (normalised), or a function that maps them to 0 to 1. Default:
            the range of the card, or `"byte"` for uint8 and else `"unit"`.
        card: card of the model, if the images are preprocessed for it.
        title: heading of the picture.
    Raises:
        OptionError: there are no transforms or more than 24, `n` is not from 1 to 16, a transform fails, or the range
            or card is invalid.
        ShapeError: the image, or what a transform returns, is not one image with one or three channels.
        DtypeError: the image is neither a tensor nor a Pillow image, or a transform is not a function.
    Example:
        >>> ways = {"mirrored": lambda x: x.flip(2), "noisy": lambda x: (x + 0.1 * torch.randn_like(x)).clamp(0, 1)}
        >>> augmentations(torch.rand(3, 8, 8), ways, n=3, times=False).rows
        ('mirrored', 'noisy')
    """
    functions = _named(transforms)
    if not 1 <= n <= MOST:
        raise OptionError(f"n must be from 1 to {MOST}, got {n}.")
    if isinstance(image, Tensor) and image.dim() == 4 and len(image) == 1:
        image = image[0]
    declared = "byte" if value_range is None and card is None and _is_bytes(image) else value_range
    original = unit_image(image, declared, card)
    units, rows = [], []
    with isolated(seed), torch.no_grad():
        for name, transform in functions.items():
            images, seconds = _drawn(transform, name, image, n, seed)
            units += [original, *(_unit(each, name, value_range, card) for each in images)]
            rows.append(named(name, _NAME) + (f", {number(1000 * seconds)} ms" if times else ""))
    counts, hints = _clipped(units, value_range, card)
    cells, inside = _of_one_size(units)
    cells, zoom, notes = fitted(cells, n + 1, len(rows), goal=_GOAL)
    device = image.device if isinstance(image, Tensor) else "cpu"
    timed = f"ms: median time of {max(n, _CALLS)} calls on this machine ({device})"
    said = ("light grey: beyond the border of a smaller image",) if not inside else ()
    return Sheet(
        rgb(cells),
        Legend(counts=counts, notes=(*((timed,) if times else ()), *said, *notes, *hints)),
        title=title or f"An image after {len(rows)} transform{'s' if len(rows) > 1 else ''}",
        ncols=n + 1,
        rows=tuple(rows),
        columns=("original", *(f"draw {i + 1}" for i in range(n))),
        zoom=zoom,
    )


def _named(transforms: Any) -> dict[str, Callable[[Any], Any]]:
    """Transforms by name; of a list by what they call themselves, with numbers where that comes again."""
    if isinstance(transforms, Mapping):
        named = {str(name): transform for name, transform in transforms.items()}
    else:
        named = {}
        for transform in _several(transforms):
            name = getattr(transform, "__name__", type(transform).__name__)
            again = sum(known.partition(" #")[0] == name for known in named)
            named[f"{name} #{again + 1}" if again else name] = transform
    if not 1 <= len(named) <= LIMIT:
        raise OptionError(f"transforms must be from 1 to {LIMIT}, got {len(named)}.")
    for name, transform in named.items():
        if not callable(transform):
            raise DtypeError(f"transform {name!r} must be a function of an image, got {type(transform).__name__}.")
    return named


def _several(transforms: Any) -> list[Any]:
    if callable(transforms):
        return [transforms]
    try:
        return list(transforms)
    except TypeError:
        kind = type(transforms).__name__
        raise DtypeError(f"transforms must be functions by name, or a list of functions, got {kind}.") from None


def _drawn(transform: Callable[[Any], Any], name: str, image: Any, n: int, seed: int) -> tuple[list[Any], float]:
    """What a transform makes of an image, so many times, and the median of the seconds that a call takes."""
    seed_all(seed)
    batched = _takes_a_batch(transform, name, image)
    images, seconds = [], []
    for i in range(max(n, _CALLS)):
        given = _copy(image, batched)
        seed_all(seed + i)
        begin = _now(image)
        try:
            images.append(transform(given))
        except Exception as error:
            raise OptionError(
                f"transform {name!r} failed at draw {i + 1}: {type(error).__name__}: {str(error).rstrip('.')}; it must "
                "take this image whatever it draws."
            ) from error
        seconds.append(_now(image) - begin)
    return images[:n], statistics.median(seconds)


def _takes_a_batch(transform: Callable[[Any], Any], name: str, image: Any) -> bool:
    """Whether a transform wants `1 c h w`; its first call, which may set things up, is not timed."""
    try:
        transform(_copy(image, False))
    except Exception as first:
        what = f"a tensor {tuple(image.shape)}" if isinstance(image, Tensor) else "a Pillow image"
        if isinstance(image, Tensor):
            try:
                transform(_copy(image, True))
            except Exception:
                pass
            else:
                return True
        raise OptionError(
            f"transform {name!r} failed on {what}: {type(first).__name__}: {str(first).rstrip('.')}; pass the image as "
            "it takes it: a tensor or a Pillow image."
        ) from first
    return False


def _copy(image: Any, batched: bool) -> Any:
    if not isinstance(image, Tensor):
        return image.copy()
    return image.clone()[None] if batched else image.clone()


def _now(image: Any) -> float:
    if isinstance(image, Tensor) and image.is_cuda:
        torch.cuda.synchronize(image.device)
    return time.perf_counter()


def _is_bytes(image: object) -> bool:
    return isinstance(image, Tensor) and image.dtype == torch.uint8


def _unit(image: Any, name: str, value_range: ValueRange | None, card: Card | None) -> Tensor:
    """What a transform returned, as `3 h w` on the unit range."""
    if isinstance(image, Tensor) and image.dim() == 4 and len(image) == 1:
        image = image[0]
    declared = "byte" if value_range is None and card is None and _is_bytes(image) else value_range
    try:
        return unit_image(image, declared, card)
    except (DtypeError, ShapeError) as error:
        raise type(error)(f"transform {name!r} must return an image: {error}") from error


def _clipped(
    units: Sequence[Tensor], value_range: ValueRange | None, card: Card | None
) -> tuple[Counts, tuple[str, ...]]:
    """Counts of all images, and one hint for those that are furthest out of their range."""
    found = [clipped(unit[None], value_range, card) for unit in units]
    hints = {hint: None for _, several in found for hint in several}
    return total_of(counts for counts, _ in found), tuple(hints)[:1]


def _of_one_size(units: Sequence[Tensor]) -> tuple[Tensor, bool]:
    """Images in the middle of cells as large as the largest, `n 3 h w`, and whether all are that large."""
    height, width = (max(unit.shape[axis] for unit in units) for axis in (1, 2))
    cells = torch.full((len(units), 3, height, width), _NOTHING / 255, device=units[0].device)
    for cell, unit in zip(cells, units, strict=True):
        y, x = (height - unit.shape[1]) // 2, (width - unit.shape[2]) // 2
        cell[:, y : y + unit.shape[1], x : x + unit.shape[2]] = unit
    return cells, all(unit.shape[1:] == (height, width) for unit in units)
