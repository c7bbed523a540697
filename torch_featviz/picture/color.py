"""Unit values to bytes: colour maps as lookup tables, and reserved colours for values outside the scale."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from torch_featviz.choices import BRIGHT, DIVERGING, check_cmap
from torch_featviz.errors import ShapeError
from torch_featviz.picture.text import Color, Pixels


@dataclass(frozen=True)
class Counts:
    """Number of pixels in each reserved colour."""

    nan: int = 0
    posinf: int = 0
    neginf: int = 0
    over: int = 0
    under: int = 0


REASONS = tuple(field.name for field in fields(Counts))

# Found by search: at least 24 apart (CIE76) from every entry of the maps they serve, from each other and from
# white, in normal vision and in simulated deuteranopia. In the order of REASONS.
_RESERVED_DARK = ((255, 0, 255), (255, 153, 255), (0, 102, 0), (0, 0, 255), (0, 102, 255))
_RESERVED_BRIGHT = ((0, 0, 0), (153, 255, 0), (0, 0, 255), (153, 0, 102), (0, 102, 255))


def reserved(cmap: str = "viridis") -> dict[str, Color]:
    """The reserved colours for NaN, +inf, -inf, above and below the scale, when `cmap` is used.

    Example:
        >>> reserved("viridis")["nan"]
        (255, 0, 255)
    """
    bright = is_diverging(cmap) or cmap.removesuffix("_r") in BRIGHT
    colors = _RESERVED_BRIGHT if bright else _RESERVED_DARK
    return dict(zip(REASONS, colors, strict=True))


def is_diverging(cmap: str) -> bool:
    """Whether a colour map has a neutral middle; refuses the names that are not offered.

    Raises:
        OptionError: `cmap` is not one of the offered maps.
    """
    check_cmap(cmap)
    return cmap in DIVERGING


@lru_cache
def lut(cmap: str) -> Pixels:
    """The colours of a map, lowest first: `256 3`, or `255 3` where it diverges and 127 is neutral.

    Raises:
        OptionError: `cmap` is not one of the offered maps.
    """
    n = 255 if is_diverging(cmap) else 256
    import matplotlib  # noqa: PLC0415  only when something is coloured

    table: Pixels = matplotlib.colormaps[cmap].resampled(n)(np.arange(n), bytes=True)[:, :3]
    table.setflags(write=False)
    return table


@lru_cache
def _table(cmap: str, device: torch.device) -> Tensor:
    """The map's colours, then the reserved ones, as one word a colour: `n` int32."""
    rows = colors(cmap)
    rows = np.concatenate([rows, np.zeros((len(rows), 1), np.uint8)], axis=1)
    return torch.from_numpy(rows.view(np.int32)[:, 0]).to(device)


def colorize(unit: Tensor, cmap: str = "viridis") -> Tensor:
    """Map unit values to colours, on their device: `n 1 h w -> n 3 h w` uint8.

    Values outside [0, 1] get the reserved colour of their reason.

    Args:
        unit: the result of a `Scale`.
        cmap: name of an available colour map.
    Returns:
        uint8; a colour is monotonic in the value it shows.
    Raises:
        ShapeError: `unit` is not `n 1 h w`.
        OptionError: `cmap` is not one of the offered maps.
    Example:
        >>> colorize(torch.tensor([[[[0.5]]]]), "RdBu_r").flatten()
        tensor([247, 247, 247], dtype=torch.uint8)
    """
    if unit.dim() != 4 or unit.shape[1] != 1:
        raise ShapeError(f"unit must be 'n 1 h w', got shape {tuple(unit.shape)}; rgb() takes 'n 3 h w'.")
    words = _table(cmap, unit.device).index_select(0, rows_of(unit, cmap).flatten()).view(unit[:, 0].shape)
    return words[..., None].view(torch.uint8)[..., :3].permute(0, 3, 1, 2)


def colors(cmap: str) -> Pixels:
    """The rows that `rows_of` tells: the map's colours, lowest first, then those reserved, in the order of REASONS."""
    return np.concatenate([lut(cmap), np.array(list(reserved(cmap).values()), np.uint8)])


def rows_of(unit: Tensor, cmap: str) -> Tensor:
    """The row of `colors(cmap)` in which each value is drawn: int32, of the shape of `unit`."""
    last = len(lut(cmap)) - 1
    index = unit.mul(last).round_().clamp_(0, last)
    for i, hit in odd(unit):
        index.masked_fill_(hit, last + 1 + i)
    return index.int()


def rgb(unit: Tensor, cmap: str = "gray") -> Tensor:
    """Map three channels of unit values to red, green and blue: `n 3 h w -> n 3 h w` uint8.

    A pixel with a channel outside [0, 1] gets a reserved colour as a whole; the first reason wins, in the order NaN,
    +inf, -inf, above, below.

    Args:
        unit: the result of a `Scale`; 0.5 becomes the mid-grey 128.
        cmap: the colour map whose reserved colours are used.
    Returns:
        uint8.
    Raises:
        ShapeError: `unit` is not `n 3 h w`.
        OptionError: `cmap` is not one of the offered maps.
    Example:
        >>> rgb(torch.full((1, 3, 1, 1), 0.5)).flatten()
        tensor([128, 128, 128], dtype=torch.uint8)
    """
    if unit.dim() != 4 or unit.shape[1] != 3:
        raise ShapeError(f"unit must be 'n 3 h w', got shape {tuple(unit.shape)}; colorize() takes 'n 1 h w'.")
    paints = list(reserved(cmap).values())
    colors = unit.mul(255).round_().clamp_(0, 255).nan_to_num_(0).to(torch.uint8)
    for i, hit in reversed(odd(unit)):
        paint = torch.tensor(paints[i], dtype=torch.uint8, device=unit.device)
        colors = torch.where(hit.any(1, keepdim=True), paint[:, None, None], colors)
    return colors


def count(unit: Tensor) -> Counts:
    """Count the pixels of `n c h w` outside [0, 1], by reason; a pixel counts once, as it is drawn."""
    found, totals = odd(unit), [0] * len(REASONS)
    if not found:
        return Counts()
    left = torch.ones_like(unit[:, :1], dtype=torch.bool)
    for i, off in found:
        hit = off.any(1, keepdim=True) & left
        totals[i], left = int(hit.sum()), left & ~hit
    return Counts(*totals)


def odd(unit: Tensor) -> list[tuple[int, Tensor]]:
    """Where each reason of REASONS holds; empty, at the cost of one look, when all is well."""
    low, high = unit.aminmax()
    if bool((low >= 0) & (high <= 1)):
        return []
    top, bottom = unit.isposinf(), unit.isneginf()
    return list(enumerate((unit.isnan(), top, bottom, (unit > 1) & ~top, (unit < 0) & ~bottom)))


def total_of(several: Iterable[Counts]) -> Counts:
    """The sum of several counts, reason by reason."""
    return Counts(*map(sum, zip(*map(astuple, several), strict=True)))
