"""What transforms make of an image, and how long they take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.model.untouched import isolated, seed_all
from torch_featviz.picture import Counts, Legend, Picture, Sheet, number, rgb
from torch_featviz.picture.bounds import fitted, named
from torch_featviz.picture.color import total_of
from torch_featviz.picture.images import Card, ValueRange, clipped, unit_image

LIMIT, MOST = 24, 16  # transforms, and draws of each
_CALLS = 5  # at least, of which the median time is taken
_GOAL, _NAME = 200, 240  # pixels of a cell and of a name
_NOTHING = 225  # light grey, where an image is smaller than the largest


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
    """An image and what each transform makes of it, a transform a row, with the time that one call takes.

    Times are of this machine and differ from run to run; without them the same input gives the same bytes. All
    generators of random numbers are put back afterwards.

    Args:
        image: `c h w` or `1 c h w`, of one or three channels, or a Pillow image. Each transform is given a copy.
        transforms: functions by name, or a list of them: of torchvision, kornia, or one's own. One that does not take
            `c h w` is given `1 c h w`.
        n: draws of each, up to 16.
        seed: of the first draw; the next one has the next seed, for each transform the same.
        times: write the median time of a call beside each name.
        value_range: what the values of tensors mean: `"unit"` 0 to 1, `"signed"`, `"byte"`, `"imagenet"`,
            `{"mean": ..., "std": ...}`, or a function that brings them to 0 to 1; default the card's, or `"unit"`, and
            `"byte"` for uint8.
        card: of the model, if images are as it takes them.
        title: above everything.
    Raises:
        OptionError: there are no transforms or more than 24, `n` is not from 1 to 16, one of them fails, or there is no
            such range or card.
        ShapeError: the image, or what a transform returns, is not one image of one or three channels.
        DtypeError: it is neither a tensor nor a Pillow image, or a transform is no function.
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
    timed = f"ms: median time of {max(n, _CALLS)} calls with this image, on this machine ({device})"
    said = ("light grey: beyond the border of a smaller image",) if not inside else ()
    return Sheet(
        rgb(cells),
        Legend(counts=counts, notes=(*((timed,) if times else ()), *said, *notes, *hints)),
        title=title or f"What {len(rows)} transform{'s make' if len(rows) > 1 else ' makes'} of an image",
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
        for transform in [transforms] if callable(transforms) else list(transforms):
            name = getattr(transform, "__name__", type(transform).__name__)
            again = sum(known.partition(" #")[0] == name for known in named)
            named[f"{name} #{again + 1}" if again else name] = transform
    if not 1 <= len(named) <= LIMIT:
        raise OptionError(f"transforms must be from 1 to {LIMIT}, got {len(named)}.")
    for name, transform in named.items():
        if not callable(transform):
            raise DtypeError(f"transform {name!r} must be a function of an image, got {type(transform).__name__}.")
    return named


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
                f"transform {name!r} fails at draw {i + 1}: {type(error).__name__}: {str(error).rstrip('.')}; it must "
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
            f"transform {name!r} fails on {what}: {type(first).__name__}: {str(first).rstrip('.')}; give the image as "
            "it takes it, a tensor or a Pillow image."
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
        raise type(error)(f"transform {name!r} returns no image: {error}") from error


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
