"""Small images with each value written in its cell."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import check_tensor, gate
from torch_featviz.picture import Legend, Picture, Scale, paint, rgb
from torch_featviz.picture.images import Card, ValueRange, clipped, unit_images
from torch_featviz.views.numbers import Written, drawn, first, written


@gate("image")
def pixels(
    image: Tensor | Sequence[Tensor],
    *,
    scale: Scale | None = None,
    value_range: ValueRange | None = None,
    card: Card | None = None,
    decimals: int = 2,
    labels: Sequence[str] | None = None,
    ncols: int | None = None,
    title: str = "",
) -> Picture:
    """Draw small images with every value written in its cell, and with row and column numbers.

    Args:
        image: `h w` or `1 h w`, or `3 h w`, whose red, green and blue values stand below each other. Several images are
            `n 1 h w` (for instance the filters of a convolution on grey images), `n 3 h w`, `n h w` with `n` other than
            3, or a list of images of one size; they are drawn side by side.
        scale: how values become colours, one scale for all images. Default: 0 to 255 for bytes, 0 to 1 for floats with
            three channels, otherwise from the lowest value to the highest.
        value_range: use the colours of an image in this range instead of `scale`; the written values do not change:
            `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255), `"imagenet"` or `{"mean": ..., "std": ...}`
            (normalised), or a function that maps them to 0 to 1. Default: the range of the card.
        card: card of the model, if the image is preprocessed for it.
        decimals: digits after the point of floats.
        labels: a text above each of several images. Default: their numbers.
        ncols: images per row. Default: as many as fit a screen. The legend says how many images are left out.
        title: heading of the picture.
    Raises:
        ShapeError: `image` has other axes, is empty, or is too large to be read; images differ in size; or the number
            of `labels` is wrong.
        DtypeError: `image` is not a tensor of real values or a list of them.
        OptionError: `decimals` is not from 0 to 50, `ncols` is below 1, the range or card is invalid, or one of them
            is given with `scale`.
    Example:
        >>> pixels(torch.eye(3)).pixels.shape
        torch.Size([3, 5, 5])
    """
    images = _images(image)
    if (value_range is not None or card is not None) and scale is not None:
        raise OptionError("scale= and value_range= or card= both set the colours; pass one of them.")
    names = tuple(map(str, range(len(images)))) if labels is None else tuple(labels)
    if len(names) != len(images):
        raise ShapeError(f"labels must have {len(images)} entries, one per image, got {len(names)}.")
    cells = written(images, decimals, names, ncols=ncols)
    colors, legend = _colors(images, cells, scale, value_range, card)
    return drawn(cells, colors, legend, total=len(images), what="images", title=title, names=names)


def _images(image: Tensor | Sequence[Tensor]) -> Tensor:
    """`n c h w`, one or three channels."""
    for x in [image] if isinstance(image, Tensor) else image if isinstance(image, (list, tuple)) else ():
        if isinstance(x, Tensor):
            check_tensor("image", x)
    if isinstance(image, (list, tuple)) and image and all(isinstance(x, Tensor) for x in image):
        shapes = sorted({tuple(x.shape) for x in image})
        if len(shapes) > 1:
            raise ShapeError(f"images side by side must have one shape, got {', '.join(map(str, shapes[:3]))}.")
        stack = torch.stack(list(image))
        images = stack[:, None] if stack.dim() == 3 else stack
    elif isinstance(image, Tensor):
        several = image.dim() == 3 and image.shape[0] not in (1, 3)
        images = image[None, None] if image.dim() == 2 else image[:, None] if several else image
        images = images[None] if images.dim() == 3 else images
    else:
        raise DtypeError(
            f"image must be a tensor, or a list of tensors, got {type(image).__name__}; use torch.as_tensor."
        )
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not images.numel():
        got = tuple(image.shape) if isinstance(image, Tensor) else f"{len(image)} of {tuple(image[0].shape)}"
        raise ShapeError(
            f"image must be 'h w', '1 h w' or '3 h w' and not empty, or several as 'n 1 h w' or 'n 3 h w', "
            f"got shape {got}."
        )
    return images


def _colors(
    images: Tensor, cells: Written, scale: Scale | None, value_range: ValueRange | None, card: Card | None
) -> tuple[Tensor, Legend]:
    """`n 3 h w` bytes of the images that are shown, and what they mean."""
    shown = images[: cells.shown]
    declared = value_range is not None or card is not None
    if declared or (scale is None and images.shape[1] == 3 and images.is_floating_point()):
        units = unit_images(shown, value_range, card)
        counts, hints = clipped(units, value_range, card)
        return rgb(units), Legend(counts=counts, notes=hints)
    scale = scale or (Scale(vmin=0, vmax=255) if images.dtype == torch.uint8 else Scale())
    return paint(shown, first(scale.fit(images), cells.shown), cmap=None if scale.symmetric else "gray")
