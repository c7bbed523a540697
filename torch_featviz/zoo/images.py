"""Image files and PIL images, converted to the shapes that networks take."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from torch_featviz.errors import DtypeError, FeatvizError, FileError, OptionError, ShapeError
from torch_featviz.gate import check_tensor, gate, gated

from .weights import why

Mode = Literal["L", "RGB"]
FORMATS = (  # that are read: each is decoded in this process, and none runs another program, as PostScript does
    *("PNG", "JPEG", "JPEG2000", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "PPM", "TGA", "QOI", "ICO"),
    *("HEIF", "JXL"),  # where a package has taught them to Pillow
)
_STRIP = 100  # times the size wanted, before the cut: more would fill the memory to show next to nothing


@gated
def read_image(path: str | Path, mode: Mode = "RGB") -> Tensor:
    """Read an image file as `c h w`, float32 in [0, 1], rotated by its EXIF tag.

    Args:
        path: a PNG, JPEG, GIF, WebP, TIFF, BMP or another file of pixels, with at most `PIL.Image.MAX_IMAGE_PIXELS`
            (89,478,485) of them; set that to read larger ones. Transparent parts become white; 16-bit colours lose
            their lower 8 bits. Greys: 8 and 16 bits, or floats in [0, 1].
        mode: `"RGB"` for 3 channels, `"L"` for 1.
    Raises:
        FileError: no such file, or it is not an image or truncated, or has too many pixels.
        OptionError: another mode; greys are floats outside [0, 1], or integers of which no range is known; or colours
            that Pillow does not convert.
    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Image.new("L", (9, 6)).save(f"{folder}/a.png")
        ...     read_image(f"{folder}/a.png", "L").shape
        torch.Size([1, 6, 9])
    """
    image = open_image(path)
    with named(path):
        return _pixels(image, mode)


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Whatever is wrong with an image, after the name of its file."""
    try:
        yield
    except FeatvizError as error:
        raise type(error)(f"{str(path)!r}: {error}") from error


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that Pillow can read here."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def open_image(path: str | Path) -> Image.Image:
    """An image file as Pillow has it, upright.

    Raises:
        FileError: there is no such file, or it is not an image, or it is cut short, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow: what it can read is shown, and what it cannot is an error
            with Image.open(path, formats=formats()) as opened:
                image: Image.Image = opened
                limit = Image.MAX_IMAGE_PIXELS
                if limit is not None and image.width * image.height > limit:
                    raise Image.DecompressionBombError(f"({image.height}×{image.width} pixels)")
                image.load()
                ImageOps.exif_transpose(image, in_place=True)  # and not a copy, which it would make of upright ones too
                return image
    except FileNotFoundError:
        raise FileError(f"no image file {str(path)!r}.") from None
    except UnidentifiedImageError:
        raise FileError(f"{str(path)!r} is not an image that is read here (PNG, JPEG, TIFF, ...).") from None
    except Image.DecompressionBombError as error:
        size = re.search(r"\((\S+) pixels", str(error))
        raise FileError(
            f"{str(path)!r} has {size[1] if size else 'too many'} pixels, and at most {Image.MAX_IMAGE_PIXELS:,} are "
            "read; make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS."
        ) from None
    except Exception as error:  # Pillow's decoders let many kinds through where a file is corrupt
        raise FileError(
            f"cannot read image {str(path)!r}: {getattr(error, 'strerror', None) or why(error)}."
        ) from error


@gate("image")
def from_pil(image: Image.Image, mode: Mode = "RGB") -> Tensor:
    """Convert a PIL image to `c h w`, float32 in [0, 1]; transparent parts become white.

    Greys of 16 bits are divided by 65535, and floats are taken as they are.

    Raises:
        OptionError: `mode` is neither `"L"` nor `"RGB"`; or greys are floats outside [0, 1], or integers of 32 bits, of
            which no range is known; or colours that Pillow does not convert.
        DtypeError: `image` is not a PIL image.
    Example:
        >>> from_pil(Image.new("L", (4, 2), 255)).shape
        torch.Size([3, 2, 4])
    """
    if not isinstance(image, Image.Image):
        raise DtypeError(f"image must be a PIL image, got {type(image).__name__}; read_image(path) reads a file.")
    return _pixels(image, mode)


def _pixels(image: Image.Image, mode: Mode) -> Tensor:
    if _is_deep(image):
        grey = _deep(image)[None]
        return grey if mode == "L" else grey.expand(3, -1, -1).clone()
    pixels = np.asarray(_on_paper(image, mode)).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    return torch.from_numpy(np.divide(pixels, 255, dtype=np.float32, order="C"))  # without a copy of a large image


def _is_deep(image: Image.Image) -> bool:
    """Whether these are greys of more than 8 bits, which `convert` would clip to white."""
    return image.mode.startswith(("I", "F"))


def _deep(image: Image.Image) -> Tensor:
    """Greys of more than 8 bits, `h w` in [0, 1]."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # whose greys of 16 bits an older Pillow has in 32
        low, high = image.getextrema()
        raise OptionError(
            f"an image of 32-bit integers has no known range, got {low} to {high}; divide by the largest possible "
            "value, and pass floats in [0, 1]."
        )
    values = torch.from_numpy(np.array(image, dtype=np.float32) / (1 if image.mode == "F" else 65535))
    check_unit(values)
    return values.clamp(0, 1)


def check_unit(image: Tensor) -> None:
    """Raise OptionError unless all values lie in [0, 1], but for rounding."""
    low, high = (float(v) for v in image.detach().aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise OptionError(
            f"image must lie in [0, 1], got {low:.4g} to {high:.4g}; divide bytes by 255, or pass them as uint8; "
            "pass normalised images to the model itself."
        )


def _on_paper(image: Image.Image, mode: Mode) -> Image.Image:
    """In that mode, with white where it is transparent."""
    if image.has_transparency_data:
        layer = _converted(image, "RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == mode else _converted(image, mode)  # which would copy it


def _converted(image: Image.Image, mode: str) -> Image.Image:
    try:
        return (image.convert("RGB") if image.mode == "LAB" else image).convert(mode)
    except ValueError as error:
        raise OptionError(f"Pillow does not convert {image.mode} to {mode}; save the image as RGB.") from error


def as_given(image: Tensor | Image.Image, channels: int) -> Tensor | Image.Image:
    """An image as published transforms take it, its values untouched: a PIL image, or a tensor with these channels.

    Returns:
        PIL in mode `"L"` or `"RGB"`; else `b channels h w`, uint8 or floats in [0, 1].
    Raises:
        DtypeError: no PIL image, and no tensor of bytes or floats.
        ShapeError: not `c h w` or `b c h w`, or empty, or there is no usual way to that many channels.
        OptionError: floats outside [0, 1], or a PIL image of 32-bit integers, of which no range is known, or of colours
            that Pillow does not convert.
    """
    if isinstance(image, Image.Image):
        if channels in (1, 3) and not _is_deep(image):
            return _on_paper(image, "L" if channels == 1 else "RGB")
        image = from_pil(image)
    if not isinstance(image, Tensor) or not (image.is_floating_point() or image.dtype == torch.uint8):
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise DtypeError(f"image must be a tensor of bytes or of floats in [0, 1], a PIL image or a file, got {kind}.")
    check_tensor("image", image)
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or not batch.numel():
        raise ShapeError(f"image must be 'c h w' or 'b c h w' and not empty, got shape {tuple(image.shape)}.")
    if batch.is_floating_point():
        batch = batch if batch.dtype == torch.float64 else batch.float()
        check_unit(batch)
    return to_channels(batch, channels)


def as_unit(image: Tensor | Image.Image) -> Tensor:
    """What `as_given` returned, as `b c h w` floats in [0, 1]."""
    if isinstance(image, Image.Image):
        return from_pil(image, "L" if image.mode == "L" else "RGB")[None]
    return image if image.is_floating_point() else image.float() / 255


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
        values = images if images.is_floating_point() else images.float()
        grey = torch.einsum("bchw,c->bhw", values, values.new_tensor([0.299, 0.587, 0.114]))[:, None]
        return grey if images.is_floating_point() else grey.round().to(images.dtype)
    raise ShapeError(f"the model takes {channels} channels, got an image with {have}.")


def check_strip(image: Tensor | Image.Image, size: tuple[int, int], shorter: int) -> None:
    """Raise ShapeError where an image is so long and thin that the middle is a vanishing part of it."""
    height, width = _sides(image)
    if max(height, width) / min(height, width) * shorter**2 > _STRIP * size[0] * size[1]:
        raise ShapeError(f"an image of {height}×{width} is too thin to cut {size[0]}×{size[1]} from; crop it first.")


def to_size(image: Tensor | Image.Image, size: tuple[int, int], shorter: int | None) -> Any:
    """Antialiased, by torchvision: squeezed whole, or shorter side first and the middle cut out.

    Args:
        image: what `as_given` returned.
        size: height and width wanted.
        shorter: length of the shorter side before the cut; `None` squeezes the whole picture.
    """
    from torchvision.transforms import functional as F  # type: ignore[import-untyped]  # noqa: PLC0415  slow to import

    target = list(size)
    if shorter is not None:
        sides = _sides(image)
        target = [max(want, int(shorter * side / min(sides))) for want, side in zip(size, sides, strict=True)]
    return F.center_crop(F.resize(image, target, antialias=True), list(size))


def _sides(image: Tensor | Image.Image) -> tuple[int, int]:
    height, width = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[-2:]
    return height, width
