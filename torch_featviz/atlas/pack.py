"""Numbers and pictures as text that a page can hold: what the page's script reads back."""

from __future__ import annotations

import base64
import io
import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_TOP = 15  # float16 ends below 2**16
_HIGHEST, _BELOW = 128 - _TOP, 32752.0  # the exponent of float32's largest, and the float16 before 2**15
_LONGEST = 16383  # pixels of a side of a WebP file


@dataclass
class Blobs:
    """The page's store of bytes, each a base64 text with a number, read when first looked at."""

    texts: list[str] = field(default_factory=list)

    def add(self, data: bytes) -> int:
        """Keep these bytes; their number."""
        self.texts.append(base64.b64encode(data).decode())
        return len(self.texts) - 1

    def letters(self, start: int = 0) -> int:
        """Of all texts from this number on."""
        return sum(map(len, self.texts[start:]))

    def cut(self, start: int) -> None:
        """Forget the texts from this number on."""
        del self.texts[start:]

    def numbers(self, values: Tensor, exponent: int) -> int:
        """Keep values as float16 times `2**exponent`: all high bytes, then all low bytes, deflated."""
        scaled = torch.ldexp(values, torch.tensor(-exponent, device="cpu")).half().contiguous()
        if exponent >= _HIGHEST:  # rounded up to 2**128, float32's largest would read as infinite
            scaled = scaled.where(torch.isinf(values), scaled.clamp(-_BELOW, _BELOW))
        words = scaled.numpy().reshape(-1).view(np.uint16)
        high, low = (words >> 8).astype(np.uint8), (words & 255).astype(np.uint8)
        return self.add(zlib.compress(high.tobytes() + low.tobytes(), 6))

    def picture(self, pixels: Tensor, alt: str, *, lossy: bool = False) -> dict[str, Any]:
        """Keep `3 h w` uint8 as a WebP file, exact unless `lossy`; as a PNG file where it is too long for that."""
        file = io.BytesIO()
        array = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
        options: dict[str, Any] = {"quality": 85} if lossy else {"lossless": True, "quality": 50}
        kind = "webp" if max(array.shape[:2]) <= _LONGEST else "png"
        Image.fromarray(array).save(file, kind, **({"method": 4, **options} if kind == "webp" else {}))
        return {
            "blob": self.add(file.getvalue()),
            "type": f"image/{kind}",
            "width": array.shape[1],
            "height": array.shape[0],
            "alt": alt,
        }


def exponent_of(*values: Tensor) -> int:
    """The power of two that brings the largest finite value just below the end of float16.

    Example:
        >>> exponent_of(torch.tensor([3.0, -5.0])), exponent_of(torch.zeros(2))
        (-12, 0)
    """
    top = max(float(each.nan_to_num(0, 0, 0).abs().max()) for each in values)
    return math.frexp(top)[1] - _TOP if top else 0


def plain(value: Any) -> Any:
    """The same as JSON can hold it: what is not finite is `"nan"`, `"inf"` or `"-inf"`; figures have 6 digits.

    Example:
        >>> plain({"std": float("nan"), "at": (1 / 3, 2)})
        {'std': 'nan', 'at': [0.333333, 2]}
    """
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def fair_shares(sizes: list[int], total: int) -> int:
    """The largest limit for each of these sizes with which all of them stay within `total`.

    Example:
        >>> fair_shares([10, 50, 90], 100)
        45
    """
    left = total
    for i, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - i)
        if size > share:
            return share
        left -= size
    return max(sizes, default=0)
