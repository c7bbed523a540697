"""Image files and PIL images to unit-range tensors, and the few shapes a net may ask of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from torch_featviz.errors import DtypeError, FileError, OptionError, ShapeError

Mode = Literal["L", "RGB"]


def read_image(path: str | Path, mode: Mode = "RGB") -> Tensor:
    """An image file as `c h w`, float32 in [0, 1], turned as its EXIF tag says.

    Args:
        path: any file Pillow can read. Transparent parts become white paper.
        mode: `"RGB"` for 3 channels, `"L"` for 1.
    Raises:
        FileError: there is no such file, or it is not an image, or it is cut short.
        OptionError: another mode.
    """
    try:
        with Image.open(path) as image:
            return from_pil(ImageOps.exif_transpose(image), mode)
    except FileNotFoundError:
        raise FileError(f"no image file {str(path)!r}.") from None
    except UnidentifiedImageError:
        raise FileError(f"{str(path)!r} is not an image that Pillow can read (PNG, JPEG, ...).") from None
    except (Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise FileError(f"cannot read image {str(path)!r}: {error}.") from error


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
        raise DtypeError(f"image must be a float tensor in [0, 1] or a PIL image, got {kind}.")
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
    """
    height, width = images.shape[-2:]
    target = size
    if shorter is not None:
        scale = shorter / min(height, width)
        target = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    if target != (height, width):
        images = F.interpolate(images, target, mode="bilinear", antialias=True, align_corners=False)
    top, left = ((t - s) // 2 for t, s in zip(target, size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]
