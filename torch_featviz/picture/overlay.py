"""Heatmaps over images, for a whole batch at once, on the device of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.gate import gated
from torch_featviz.launching import gpu
from torch_featviz.picture.color import colors, is_diverging, lut, odd, reserved, rows_of
from torch_featviz.picture.images import ROUNDED, Card, ValueRange, affine_units, clipped, snapped, unit_images
from torch_featviz.picture.legend import Legend
from torch_featviz.picture.scale import Scale, as_float
from torch_featviz.warn import warn

_PIXELS = 512  # of one program
_UNIT = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
_BLOCK = 2**18  # values; several passes over so many stay within a core's cache
_GRAY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601


@gated
def overlay(
    images: Tensor,
    heatmaps: Tensor,
    *,
    alpha: float = 0.5,
    scale: Scale | None = None,
    cmap: str | None = None,
    value_range: ValueRange | None = None,
    card: Card | None = None,
    gray: bool = True,
    contours: Sequence[float] = (),
) -> Tensor:
    """Draw heatmaps over images: `b c H W` and `b H W` to `b 3 H W` uint8.

    Heatmaps of several classes (`b k H W`) give `b k 3 H W`. All share one scale, so that images and classes can be
    compared; a brighter or redder colour is always a higher value. NaN and clipped values have reserved colours that
    cover the image. Pixels of the images outside their range have them too, and a warning counts them (not on a GPU,
    where counting would wait for the device).

    Args:
        images: `b 1 H W` or `b 3 H W` in the declared range.
        heatmaps: `b H W` or `b k H W`.
        alpha: opacity of the heatmap, 0 to 1.
        scale: how values become colours. Default: `Scale(symmetric=True)`, fitted to all heatmaps. Use `Scale(vmin=0)`
            for unsigned maps, `Scale(symmetric=True, per="kernel")` for one range per map.
        cmap: a colour map. Default: `RdBu_r` on a symmetric scale, otherwise `viridis`.
        value_range: range of the values of images: `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255),
            `"imagenet"` or `{"mean": ..., "std": ...}` (normalised), or a function that maps them to 0 to 1. Default:
            the range of the card, or `"unit"`.
        card: card of the model, if the images are preprocessed for it.
        gray: show the images in grey, so that every colour is the heatmap's.
        contours: values at which a black line surrounds higher values.
    Raises:
        ShapeError: axes or sizes of images and heatmaps do not fit.
        DtypeError: they are not tensors of real values.
        OptionError: `alpha`, `cmap`, `value_range` or `card` is invalid.
    Warns:
        FeatvizWarning: pixels of the images lie outside their range; it counts them and says how to declare another.
    Example:
        >>> overlay(torch.rand(2, 3, 8, 8), torch.randn(2, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
        >>> overlay(torch.rand(2, 1, 8, 8), torch.randn(2, 5, 8, 8), alpha=1).shape
        torch.Size([2, 5, 3, 8, 8])
    """
    if not 0 <= alpha <= 1:
        raise OptionError(f"alpha must be an opacity from 0 to 1, got {alpha}.")
    _check(images)
    shown: dict[str, Any] = {"alpha": alpha, "scale": scale, "cmap": cmap, "gray": gray, "contours": contours}
    if gpu.available(images.device):
        images, affine = affine_units(images, value_range, card)
        return laid(images, heatmaps, affine=affine, **shown)
    units = unit_images(images, value_range, card)
    counts, hints = clipped(units, value_range, card)
    marks = Legend(counts=counts).marks()
    if marks:
        counted = ", ".join(words for _, words in marks)
        warn("; ".join([f"overlay marks {counted}", *hints]) + ".")
    return laid(units, heatmaps, marked=bool(marks), **shown)


def laid(
    units: Tensor,
    heatmaps: Tensor,
    *,
    alpha: float = 0.5,
    scale: Scale | None = None,
    cmap: str | None = None,
    gray: bool = True,
    contours: Sequence[float] = (),
    marked: bool = True,
    affine: Sequence[float] = _UNIT,
) -> Tensor:
    """The same over images `b 3 H W` on the unit range, for a picture that counts what lies beyond it in its legend.

    Where nothing does, `marked=False` saves a look. `affine` is what brings each colour to that range.
    """
    heatmaps, several = _match(units, as_float(heatmaps, "heatmaps"))
    scale = (scale or Scale(symmetric=True)).fit(heatmaps if several else heatmaps[:, 0])
    if not several:
        scale = _each(scale)
    cmap = cmap or ("RdBu_r" if scale.symmetric else "viridis")
    if is_diverging(cmap) != scale.symmetric:
        kind = "a diverging" if scale.symmetric else "a sequential"
        raise OptionError(f"this scale needs {kind} map, got {cmap!r}; Scale(symmetric=True) declares signed data.")
    look = _Look(scale, cmap, alpha, gray)
    words = torch.empty(heatmaps.shape, dtype=torch.int32, device=heatmaps.device)
    if gpu.available(heatmaps.device) and heatmaps.dtype == torch.float32 and units.device == heatmaps.device:
        _fuse(words, units, heatmaps, look, affine=affine)
    else:
        units = units if affine == _UNIT else snapped(units * _column(units, affine[:3]) + _column(units, affine[3:]))
        size = len(units) if heatmaps.device.type != "cpu" else max(1, _BLOCK // heatmaps[0].numel())
        _lay(words, units, heatmaps, look, marked=marked, size=size)
    if contours:
        words.masked_fill_(_outlines(heatmaps, contours), 0)
    result = words[..., None].view(torch.uint8)[..., :3].movedim(-1, 2)
    return result if several else result[:, 0]


def _column(units: Tensor, numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers, dtype=units.dtype, device=units.device)[:, None, None]


class _Look(NamedTuple):
    """How heatmaps are laid over images."""

    scale: Scale
    cmap: str
    alpha: float
    gray: bool


def _fuse(words: Tensor, images: Tensor, heatmaps: Tensor, look: _Look, *, affine: Sequence[float]) -> None:
    """Fill `words` by one kernel, which looks at each value once."""
    scale, cmap, alpha, gray = look
    batch, classes, height, width = heatmaps.shape
    own = isinstance(scale.vmin, Tensor) or isinstance(scale.vmax, Tensor)
    most = torch.finfo(torch.float32).max
    if own:
        ends = [
            torch.as_tensor(end, device=heatmaps.device).to(heatmaps).clamp(-most, most)
            for end in (scale.vmin, scale.vmax)
        ]
        ends, low, high = [end.expand(batch, classes, 1, 1).flatten() for end in ends], 0.0, 0.0
    else:
        ends = [words] * 2
        low, high = (min(max(float(end or 0), -most), most) for end in (scale.vmin, scale.vmax))
    table = gpu.constant((cmap, alpha), lambda: _table(cmap, alpha), heatmaps.device)
    strides, ours = (images.stride(0), images.stride(1), *images.stride()[2:]), heatmaps.stride()
    sizes = (classes, height * width, width)
    rest = ((1 - alpha) * 255, _last(cmap), ROUNDED)
    flags = {"OWN": own, "SYMMETRIC": scale.symmetric, "GRAY": gray}
    programs = batch * classes * -(-height * width // _PIXELS)
    arguments = (images, heatmaps, words, table, *ends, *sizes, *strides, *ours, low, high, *rest, *affine)
    gpu.launch("picture.kernels:overlay", programs, *arguments, **flags)


def _lay(words: Tensor, units: Tensor, heatmaps: Tensor, look: _Look, *, marked: bool, size: int) -> None:
    """Fill `words`, so many images at a time."""
    scale, cmap, alpha, gray = look
    for part in (slice(start, start + size) for start in range(0, len(units), size)):
        under = _under(units[part], 1 - alpha, gray)[:, None]
        rows = rows_of(_of(scale, part)(heatmaps[part]), cmap)
        mixed = _mixed(under, rows, cmap, alpha)
        words[part] = _marked(mixed, units[part], rows, cmap) if marked else mixed


# A pixel is one word with a byte for each colour: heatmap and image are mixed by one lookup and one sum. Each share is
# rounded by itself, which is within 1 of the mix; the heatmap's leaves room for the image's, so that no byte overflows.
_BYTES = (1, 1 << 8, 1 << 16)


def _last(cmap: str) -> int:
    """The last row that stands for a value on the scale."""
    return len(lut(cmap)) - 1


@lru_cache
def _table(cmap: str, alpha: float) -> Tensor:
    """The share that each row of `colors(cmap)` has in a pixel: `n` int32; reserved ones are all of it."""
    table = torch.from_numpy(colors(cmap)).double()
    room = 255 - int(torch.ones(1, device="cpu").mul_((1 - alpha) * 255).add_(0.5))  # as `_under` computes it
    table[: _last(cmap) + 1] = (table[: _last(cmap) + 1] * alpha).clamp(max=room)
    return (table + 0.5).floor().int() @ torch.tensor(_BYTES, dtype=torch.int32, device="cpu")


def _mixed(under: Tensor, rows: Tensor, cmap: str, alpha: float) -> Tensor:
    """Pixels `b k h w` of rows of colours and what lies below them; a reserved colour hides that."""
    words = _table(cmap, alpha).to(rows.device).index_select(0, rows.flatten()).view(rows.shape)
    return words.add_(under.where(rows <= _last(cmap), 0) if int(rows.max()) > _last(cmap) else under)


def _marked(words: Tensor, units: Tensor, rows: Tensor, cmap: str) -> Tensor:
    """Pixels whose image is not within 0 and 1, in the colour reserved for it, unless their heatmap has one already."""
    paints = list(reserved(cmap).values())
    for i, hit in reversed(odd(units)):
        paint = sum(value * byte for value, byte in zip(paints[i], _BYTES, strict=True))
        words.masked_fill_(hit.any(1)[:, None] & (rows <= _last(cmap)), paint)
    return words


def _under(unit: Tensor, share: float, gray: bool) -> Tensor:
    """The share that images `b 3 h w` have in a pixel: `b h w` int32."""
    red, green, blue = unit.unbind(1)
    unit = (red * _GRAY[0]).add_(green, alpha=_GRAY[1]).add_(blue, alpha=_GRAY[2]) if gray else unit.clone()
    parts = unit.clamp_(0, 1).nan_to_num_(0).mul_(share * 255).add_(0.5).int()
    if gray:
        return parts.mul_(sum(_BYTES))
    return parts[:, 0] + parts[:, 1] * _BYTES[1] + parts[:, 2] * _BYTES[2]


def _each(scale: Scale) -> Scale:
    """A scale fitted to `b h w`, for `b 1 h w`."""
    if not isinstance(scale.vmin, Tensor) and not isinstance(scale.vmax, Tensor):
        return scale
    low, high = (end.unsqueeze(1) if isinstance(end, Tensor) and end.dim() else end for end in (scale.vmin, scale.vmax))
    return replace(scale, vmin=low, vmax=high)


def _of(scale: Scale, part: slice) -> Scale:
    """The scale of some of the images."""
    low, high = (
        end[part] if isinstance(end, Tensor) and end.dim() and len(end) > 1 else end for end in (scale.vmin, scale.vmax)
    )
    return replace(scale, vmin=low, vmax=high)


def _check(images: Tensor) -> None:
    if images.dim() != 4:
        raise ShapeError(f"images must be 'b c H W', got shape {tuple(images.shape)}; add a batch axis with [None].")


def _match(images: Tensor, heatmaps: Tensor) -> tuple[Tensor, bool]:
    """Heatmaps as `b k H W`, and whether they were."""
    several = heatmaps.dim() == 4
    stack = heatmaps[:, None] if heatmaps.dim() == 3 else heatmaps
    if heatmaps.dim() not in (3, 4) or stack.shape[0] != images.shape[0] or stack.shape[2:] != images.shape[2:]:
        raise ShapeError(
            f"heatmaps must be 'b H W' or 'b k H W' with b = {images.shape[0]} and H W = {tuple(images.shape[2:])}, "
            f"got shape {tuple(heatmaps.shape)}."
        )
    return stack, several


def _outlines(heatmaps: Tensor, levels: Sequence[float]) -> Tensor:
    """The innermost pixels of what is at least a level: `b k H W` bool."""
    lines = torch.zeros_like(heatmaps, dtype=torch.bool)
    for level in levels:
        outside = (~(heatmaps >= level)).float()
        lines |= (F.max_pool2d(outside, 3, 1, 1) > 0) & (outside == 0)
    return lines
