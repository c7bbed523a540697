"""A small image with each value written in its cell."""

import math

import torch
from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.picture import Legend, Picture, Scale, Sheet, number, paint, rgb
from torch_featviz.picture.images import Card, ValueRange, clipped, unit_image

LIMIT = 64


def pixels(
    image: Tensor,
    *,
    scale: Scale | None = None,
    value_range: ValueRange | None = None,
    card: Card | None = None,
    decimals: int = 2,
    title: str = "",
) -> Picture:
    """Every value of a small image, written on its colour, with row and column numbers.

    Args:
        image: `h w` or `1 h w`, or `3 h w` for red, green and blue, which are written below each other.
        scale: how values become colours; default: bytes are 0 to 255, red, green and blue as floats are
            0 to 1, anything else goes from its lowest value to its highest.
        value_range: colours as those of an image of that range, instead of `scale`; what is written stays as it is.
            `"unit"` 0 to 1, `"signed"`, `"byte"`, `"imagenet"`, `{"mean": ..., "std": ...}`, or a function that brings
            images to 0 to 1; default the card's.
        card: of the model, if the image is as it takes it.
        decimals: digits after the point for floats.
        title: above everything.
    Raises:
        ShapeError: `image` has other axes, is empty, or is too large to be read.
        DtypeError: `image` is not a tensor of real values.
        OptionError: `decimals` is negative, there is no such range or card, or one is given beside `scale`.
    Example:
        >>> pixels(torch.eye(3)).pixels.shape
        torch.Size([3, 5, 5])
    """
    if decimals < 0:
        raise OptionError(f"decimals must be at least 0, got {decimals}.")
    if not isinstance(image, Tensor):
        raise DtypeError(f"image must be a tensor, got {type(image).__name__}; use torch.as_tensor.")
    planes = image[None] if image.dim() == 2 else image
    if planes.dim() != 3 or planes.shape[0] not in (1, 3) or not planes.numel():
        raise ShapeError(f"image must be 'h w', '1 h w' or '3 h w' and not empty, got shape {tuple(image.shape)}.")
    channels, height, width = planes.shape
    if max(height, width) > LIMIT:
        raise ShapeError(
            f"at most {LIMIT} × {LIMIT} values can be read, got {height} × {width}; "
            f"crop it with image[..., :{LIMIT}, :{LIMIT}]."
        )
    declared = value_range is not None or card is not None
    if declared and scale is not None:
        raise OptionError("scale= and value_range= or card= both say how values become colours; give one of them.")
    cells = planes.permute(1, 2, 0).reshape(height * width, channels, 1, 1)
    if declared or (scale is None and channels == 3 and planes.is_floating_point()):
        units = unit_image(planes, value_range, card).permute(1, 2, 0).reshape(-1, 3, 1, 1)
        counts, hints = clipped(units, value_range, card)
        colors, legend = rgb(units), Legend(counts=counts, notes=hints)
    else:
        scale = scale or (Scale(vmin=0, vmax=255) if planes.dtype == torch.uint8 else Scale())
        colors, legend = paint(cells, scale, cmap=None if scale.symmetric else "gray")
    values = cells.flatten(1).tolist()
    return Sheet(
        colors,
        legend,
        title=title,
        ncols=width,
        inside=tuple("\n".join(_word(v, decimals) for v in row) for row in values),
        rows=tuple(str(i) for i in range(height)),
        columns=tuple(str(i) for i in range(width)),
    )


def _word(value: float, decimals: int) -> str:
    """A value as short as it can be said: integers whole, zero as 0, floats with few digits."""
    if isinstance(value, int):
        return str(int(value)).replace("-", "−")
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0 or abs(value) >= 1000:
        return number(value)
    return f"{value:.{decimals}f}".replace("-", "−")
