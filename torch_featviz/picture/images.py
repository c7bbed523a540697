"""Images as data sets and models hold them, brought to red, green and blue within 0 and 1."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import check_tensor
from torch_featviz.picture.color import Counts, count
from torch_featviz.picture.scale import Scale, as_float
from torch_featviz.picture.text import number

_SCALES = {"unit": Scale(vmin=0, vmax=1), "signed": Scale(vmin=-1, vmax=1), "byte": Scale(vmin=0, vmax=255)}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
ROUNDED = 1e-5  # as far as normalising and back, or resizing, may round a value out of the range
RANGES = (*_SCALES, "imagenet")

# What the values of images mean: one of RANGES, the mean and std they were normalised by, or a function to [0, 1].
ValueRange: TypeAlias = str | Mapping[str, Sequence[float]] | Callable[[Tensor], Tensor]


class Card(Protocol):
    """What a `ModelCard` knows of images."""

    def denormalize(self, images: Tensor) -> Tensor:
        """The model's range back to 0 to 1."""


def unit_image(image: object, value_range: ValueRange | None = None, card: Card | None = None) -> Tensor:
    """One image as `3 h w` on the unit range; what is outside stays outside, to be marked.

    Args:
        image: `h w`, `1 h w` or `3 h w` in the declared range, or a Pillow image, which is bytes by nature.
        value_range: as for `unit_images`.
        card: likewise.
    Raises:
        ShapeError: it has other axes, or is empty.
        DtypeError: it is neither a tensor nor a Pillow image.
        OptionError: there is no such range or card.
    Example:
        >>> unit_image(torch.full((1, 2, 2), 255), "byte").shape
        torch.Size([3, 2, 2])
    """
    if isinstance(image, Image.Image):
        image, value_range = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1), "byte"
    if not isinstance(image, Tensor):
        raise DtypeError(f"an image must be a tensor or a Pillow image, got {type(image).__name__}.")
    check_tensor("image", image)
    shape = tuple(image.shape)
    if image.dim() == 2:
        image = image[None]
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ShapeError(f"an image must be 'h w', '1 h w' or '3 h w', got shape {shape}.")
    return unit_images(image[None], value_range, card)[0]


def unit_images(images: Tensor, value_range: ValueRange | None = None, card: Card | None = None) -> Tensor:
    """A batch of images on the unit range: `b 1 h w` or `b 3 h w -> b 3 h w`; what is outside stays outside.

    Args:
        images: in the declared range.
        value_range: `"unit"` 0 to 1, `"signed"` -1 to 1, `"byte"` 0 to 255, `"imagenet"`, `{"mean": ..., "std": ...}`
            by which they were normalised, or a function that brings a batch to 0 to 1; default the card's, without a
            card `"unit"`.
        card: of the model that takes these images.
    Raises:
        ShapeError: other axes or channels, or empty.
        DtypeError: no tensor of real values.
        OptionError: there is no such range or card.
    Example:
        >>> unit_images(torch.zeros(1, 3, 2, 2), {"mean": (0.5,), "std": (0.25,)}).unique()
        tensor([0.5000])
    """
    declared = _declared(value_range, card)
    return snapped(_brought(_checked(images), declared)).expand(-1, 3, -1, -1)


def _brought(images: Tensor, declared: ValueRange) -> Tensor:
    """Images from a range to the unit range, as far as rounding allows."""
    if isinstance(declared, str) and declared in _SCALES:
        return images if declared == "unit" else _SCALES[declared](images)
    if callable(declared):
        units = declared(images)
        if not isinstance(units, Tensor) or units.shape != images.shape:
            got = tuple(units.shape) if isinstance(units, Tensor) else type(units).__name__
            raise OptionError(f"the function value_range must return images {tuple(images.shape)}, got {got}.")
        return _checked(units)
    mean, std = _statistics(_IMAGENET if isinstance(declared, str) else declared, images)
    return images * std + mean


def unit_steps(images: Tensor, value_range: ValueRange | None = None, card: Card | None = None) -> Tensor:
    """How far a step of 1 in the images' own range is on the unit range: `1 c h w`.

    Args:
        images: `b c h w` in the declared range, one or three channels.
        value_range: as for `unit_images`.
        card: likewise.
    Raises:
        OptionError: the range is a function that does not scale and shift each value by itself.
    Example:
        >>> unit_steps(torch.zeros(1, 3, 1, 1), {"mean": (0.5,), "std": (0.25,)}).flatten()
        tensor([0.2500, 0.2500, 0.2500])
    """
    declared = _declared(value_range, card)
    images = _checked(images)
    units = _brought(images, declared)
    low = _brought(torch.zeros_like(images[:1]), declared)
    steps = _brought(torch.ones_like(images[:1]), declared) - low
    if units.shape != images.shape or not torch.allclose(units, low + images * steps, 1e-3, 1e-4, equal_nan=True):
        raise OptionError(
            "value_range= must be a function that scales and shifts each value, such as card.denormalize."
        )
    return steps


def affine_units(
    images: Tensor, value_range: ValueRange | None = None, card: Card | None = None
) -> tuple[Tensor, tuple[float, ...]]:
    """Images `b 3 h w`, and for each colour what to multiply with and then to add for the unit range.

    No value is looked at, as `unit_images` does for what rounding puts out of the range.
    """
    declared = _declared(value_range, card)
    images = _checked(images)
    if callable(declared):
        return declared(images).expand(-1, 3, -1, -1), (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    images = images.expand(-1, 3, -1, -1)
    if isinstance(declared, str) and declared in _SCALES:
        low, high = (float(end or 0) for end in (_SCALES[declared].vmin, _SCALES[declared].vmax))
        return images, (*[1 / (high - low)] * 3, *[-low / (high - low)] * 3)
    mean, std = _statistics(_IMAGENET if isinstance(declared, str) else declared, torch.empty(0, device="cpu"))
    return images, (*std.expand(3, 1, 1).flatten().tolist(), *mean.expand(3, 1, 1).flatten().tolist())


def _checked(images: Tensor) -> Tensor:
    images = as_float(images, "images")
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ShapeError(f"images must be 'b 1 h w' or 'b 3 h w', got shape {tuple(images.shape)}.")
    return images


def clipped(
    units: Tensor, value_range: ValueRange | None = None, card: Card | None = None
) -> tuple[Counts, tuple[str, ...]]:
    """How many pixels are not within 0 and 1, by reason; and in words, how to declare what images hold.

    Args:
        units: `n 3 h w` from `unit_images`, all that a picture shows.
        value_range: as it was given there.
        card: likewise.
    Example:
        >>> clipped(torch.full((1, 3, 2, 2), 1.5))[0].over
        4
    """
    counts = count(units)
    finite = units[units.isfinite()] if counts.over or counts.under else units.new_empty(0)
    if not finite.numel():
        return counts, ()
    reach = " to ".join(number(float(end)) for end in finite.aminmax())
    declared = _declared(value_range, card)
    if declared == "unit":
        return counts, (
            f"images have values from {reach}, but value_range='unit' is 0 to 1: pass card=, "
            "or value_range='signed', 'byte', 'imagenet' or {'mean': ..., 'std': ...}",
        )
    by = "the card" if value_range is None else f"value_range={'a function' if callable(declared) else declared!r}"
    return counts, (f"images are {reach} by {by}; only 0 to 1 can be shown",)


def _declared(value_range: ValueRange | None, card: Card | None) -> ValueRange:
    """The range that was declared, or the card's."""
    if card is not None and not callable(getattr(card, "denormalize", None)):
        raise OptionError(f"card must be a ModelCard, such as card('alexnet'), got {card!r}.")
    if value_range is None:
        return "unit" if card is None else card.denormalize
    named = isinstance(value_range, Mapping) and set(value_range) == {"mean", "std"}
    function = callable(value_range) and not isinstance(value_range, type)
    if not (named or function or (isinstance(value_range, str) and value_range in RANGES)):
        raise OptionError(
            f"value_range must be one of {', '.join(RANGES)}, or a function such as card.denormalize, or "
            f"{{'mean': ..., 'std': ...}}, got {value_range!r}."
        )
    return value_range


def _statistics(values: Mapping[str, Sequence[float]], images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std, to be multiplied with images."""
    try:
        mean, std = (_tensor(values[name]).detach().to(images).flatten() for name in ("mean", "std"))
    except (TypeError, ValueError, RuntimeError):
        mean = std = images.new_empty(0)
    if not {len(mean), len(std)} <= {1, 3}:
        raise OptionError(f"mean and std must be 1 or 3 numbers each, got {dict(values)}.")
    return mean[:, None, None], std[:, None, None]


def _tensor(values: Any) -> Tensor:
    """A tensor where it is; anything else on the CPU."""
    return values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")


def snapped(units: Tensor) -> Tensor:
    """Without rounding errors, which would count as clipped."""
    low, high = units.aminmax()
    if bool((low >= 0) & (high <= 1)):
        return units
    near = units.clamp(0, 1)
    return torch.where((units - near).abs() < ROUNDED, near, units)
