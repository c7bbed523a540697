"""Images as data sets and models hold them, brought to red, green and blue within 0 and 1."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.picture.scale import Scale, as_float

_SCALES = {"unit": Scale(vmin=0, vmax=1), "signed": Scale(vmin=-1, vmax=1), "byte": Scale(vmin=0, vmax=255)}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANGES = (*_SCALES, "imagenet")

ValueRange: TypeAlias = str | Callable[[Tensor], Tensor]  # one of RANGES, or a function to 0 and 1: card.denormalize


def unit_image(image: object, value_range: ValueRange = "unit") -> Tensor:
    """One image as `3 h w` on the unit range; what is outside stays outside, to be marked.

    Args:
        image: `h w`, `1 h w` or `3 h w` in the declared range, or a Pillow image, which is bytes by nature.
        value_range: `"unit"` 0 to 1, `"signed"` -1 to 1, `"byte"` 0 to 255, `"imagenet"` by mean and std, or a
            function that brings a batch to 0 to 1, such as a card's `denormalize`.
    Raises:
        ShapeError: it has other axes, or is empty.
        DtypeError: it is neither a tensor nor a Pillow image.
        OptionError: there is no such range.
    Example:
        >>> unit_image(torch.full((1, 2, 2), 255), "byte").shape
        torch.Size([3, 2, 2])
    """
    if isinstance(image, Image.Image):
        image, value_range = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1), "byte"
    if not isinstance(image, Tensor):
        raise DtypeError(f"an image must be a tensor or a Pillow image, got {type(image).__name__}.")
    shape = tuple(image.shape)
    if image.dim() == 2:
        image = image[None]
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ShapeError(f"an image must be 'h w', '1 h w' or '3 h w', got shape {shape}.")
    return unit_images(image[None], value_range)[0]


def unit_images(images: Tensor, value_range: ValueRange = "unit") -> Tensor:
    """A batch of images on the unit range: `b 1 h w` or `b 3 h w -> b 3 h w`; what is outside stays outside.

    Args:
        images: in the declared range.
        value_range: as for `unit_image`.
    Raises:
        ShapeError: other axes or channels, or empty.
        DtypeError: no tensor of real values.
        OptionError: there is no such range.
    """
    if not callable(value_range) and value_range not in RANGES:
        raise OptionError(
            f"value_range must be one of {', '.join(RANGES)}, or a function such as card.denormalize, got "
            f"{value_range!r}."
        )
    images = as_float(images)
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ShapeError(f"images must be 'b 1 h w' or 'b 3 h w', got shape {tuple(images.shape)}.")
    if callable(value_range):
        images = _snapped(value_range(images))
    elif value_range == "imagenet":
        images = _snapped(images * images.new_tensor(_STD)[:, None, None] + images.new_tensor(_MEAN)[:, None, None])
    elif value_range != "unit":
        images = _SCALES[value_range](images)
    return images.expand(-1, 3, -1, -1)


def _snapped(units: Tensor) -> Tensor:
    """Without the rounding errors of normalising and back, which would count as clipped."""
    near = units.clamp(0, 1)
    return torch.where((units - near).abs() < 1e-5, near, units)
