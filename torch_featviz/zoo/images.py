"""Image files and PIL images to unit-range tensors, and the few shapes a net may ask of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from torch_featviz.errors import DtypeError, FeatvizError, FileError, OptionError, ShapeError

from .weights import why

Mode = Literal["L", "RGB"]
_STRIP = 100  # times the size wanted, before the cut: more would fill the memory to show next to nothing


def read_image(path: str | Path, mode: Mode = "RGB", *, at_least: int | None = None) -> Tensor:
    """An image file as `c h w`, float32 in [0, 1], turned as its EXIF tag says.

    Args:
        path: any file Pillow can read. Transparent parts become white paper; colours of 16 bits lose the lower 8.
        mode: `"RGB"` for 3 channels, `"L"` for 1.
        at_least: pixels that the shorter side keeps at least while a large picture is shrunk, each block of pixels to
            its mean, before it becomes floats; None never shrinks.
    Raises:
        FileError: there is no such file, or it is not an image, or it is cut short.
        OptionError: another mode.
    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Image.new("L", (900, 600)).save(f"{folder}/a.png")
        ...     read_image(f"{folder}/a.png", "L", at_least=290).shape
        torch.Size([1, 300, 450])
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # of Pillow: what it can read is shown, and what it cannot is an error
            return from_pil(_loaded(image, at_least), mode)
    except FileNotFoundError:
        raise FileError(f"no image file {str(path)!r}.") from None
    except UnidentifiedImageError:
        raise FileError(f"{str(path)!r} is not an image that Pillow can read (PNG, JPEG, ...).") from None
    except FeatvizError:
        raise
    except Exception as error:  # Pillow's decoders let many kinds through where a file is corrupt
        raise FileError(
            f"cannot read image {str(path)!r}: {getattr(error, 'strerror', None) or why(error)}."
        ) from error


def _loaded(image: Image.Image, at_least: int | None) -> Image.Image:
    """The picture upright, and shrunk where it may be."""
    if at_least is not None and min(image.size) >= 2 * at_least:
        scale = min(image.size) // at_least
        drafted = image.draft(None, (image.width // scale, image.height // scale))  # of a JPEG less is decoded
        image.load()
        box = drafted[1] if drafted else (0, 0, *image.size)  # of a JPEG the last column may be part of a pixel
        scale = int(min(box[2:])) // at_least
        image = _averaging(image).resize((round(box[2] / scale), round(box[3] / scale)), Image.Resampling.BOX, box)
    ImageOps.exif_transpose(image, in_place=True)  # and not a copy, which it would make of upright ones too
    return image


def _averaging(image: Image.Image) -> Image.Image:
    """In a mode whose values have means: palettes have none, and of 16 bits only newer Pillows make any."""
    if image.mode in ("1", "P"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.convert("I") if image.mode.startswith("I") else image


def from_pil(image: Image.Image, mode: Mode = "RGB") -> Tensor:
    """A PIL image of any mode as `c h w`, float32 in [0, 1]; transparent parts become white paper.

    Raises:
        OptionError: `mode` is neither `"L"` nor `"RGB"`.
    Example:
        >>> from_pil(Image.new("L", (4, 2), 255)).shape
        torch.Size([3, 2, 4])
    """
    if mode not in ("L", "RGB"):
        raise OptionError(f"mode must be 'L' or 'RGB', got {mode!r}.")
    if image.mode.startswith(("I", "F")):  # 16-bit greys, which convert() would clip to white
        deep = np.asarray(image, dtype=np.float32) / (1 if image.mode == "F" else 65535)
        grey = torch.from_numpy(deep).clamp(0, 1)[None]
        return grey if mode == "L" else grey.expand(3, -1, -1).clone()
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    pixels = np.array(image.convert(mode), dtype=np.float32) / 255
    return torch.from_numpy(pixels).reshape(image.height, image.width, -1).permute(2, 0, 1).contiguous()


def as_batch(image: Tensor | Image.Image) -> Tensor:
    """One image or a batch as `b c h w`, with its range checked and not guessed.

    Raises:
        DtypeError: not a PIL image or a floating tensor.
        ShapeError: not `c h w` or `b c h w`, or empty.
        OptionError: values outside [0, 1].
    """
    if isinstance(image, Image.Image):
        image = from_pil(image)
    if not isinstance(image, Tensor) or not image.is_floating_point():
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise DtypeError(f"image must be a float tensor in [0, 1] a PIL image or a file, got {kind}.")
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or not batch.numel():
        raise ShapeError(f"image must be 'c h w' or 'b c h w' and not empty, got shape {tuple(image.shape)}.")
    low, high = (float(v) for v in batch.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise OptionError(f"image must lie in [0, 1], got {low:.4g} to {high:.4g}; divide bytes by 255.")
    return batch


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Grey to colour by copying, colour to grey by luma (ITU-R 601): `b c h w -> b channels h w`.

    Raises:
        ShapeError: there is no usual way from one count to the other.
    """
    have = images.shape[1]
    if have == channels:
        return images
    if have == 1:
        return images.expand(-1, channels, -1, -1)
    if (have, channels) == (3, 1):
        return torch.einsum("bchw,c->bhw", images, images.new_tensor([0.299, 0.587, 0.114]))[:, None]
    raise ShapeError(f"the model takes {channels} channels, got an image with {have}.")


def to_size(images: Tensor, size: tuple[int, int], shorter: int | None) -> Tensor:
    """`b c h w -> b c *size`, antialiased: squeezed whole, or shorter side first and the middle cut out.

    Args:
        size: height and width wanted.
        shorter: length of the shorter side before the cut; `None` squeezes the whole picture.
    Raises:
        ShapeError: a strip so long and thin that the middle is a vanishing part of it.
    """
    height, width = images.shape[-2:]
    target = size
    if shorter is not None:
        scale = shorter / min(height, width)
        target = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
        if target[0] * target[1] > _STRIP * size[0] * size[1]:
            raise ShapeError(
                f"an image of {height}×{width} is too thin to cut {size[0]}×{size[1]} from; crop it first."
            )
    if target != (height, width):
        images = F.interpolate(images, target, mode="bilinear", antialias=True, align_corners=False)
    top, left = ((t - s) // 2 for t, s in zip(target, size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]
