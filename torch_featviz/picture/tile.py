"""Many maps on one grid, and back."""

import math

from einops import rearrange
from torch import Tensor, nn

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.gate import gated


@gated
def tile(maps: Tensor, *, ncols: int | None = None, pad: int = 1, fill: float = 0.0) -> Tensor:
    """Lay maps on one grid, row by row: `n c h w -> c (rows h) (cols w)` plus gaps.

    Args:
        maps: `n c h w`; values are moved, never rescaled.
        ncols: tiles per row; default `ceil(sqrt(n))`.
        pad: gap in pixels.
        fill: value of gaps and empty tiles, in the units of `maps`; NaN is allowed.
    Returns:
        `c H W`, `H = rows*h + (rows-1)*pad`; dtype and device of `maps`.
    Raises:
        ShapeError: `maps` is not 4-D, or is empty.
        OptionError: `ncols` is below 1, `pad` below 0, or `fill` is not a value of this dtype.
    Example:
        >>> tile(torch.zeros(6, 3, 5, 5), ncols=3).shape
        torch.Size([3, 11, 17])

    Reference: Krizhevsky et al. 2012, fig. 3.
    """
    n, c, h, w = _check(maps, "n c h w")
    ncols = grid_columns(n) if ncols is None else ncols
    _check_options(ncols, pad)
    rows = -(-n // ncols)
    try:
        sheet = maps.new_full((c, rows * (h + pad) - pad, ncols * (w + pad) - pad), fill)
    except (RuntimeError, ValueError) as e:
        raise OptionError(f"fill must be a value of {maps.dtype}, got {fill}; {e}") from e
    places, full = _places(sheet, h, w, pad), n // ncols
    places[:full] = rearrange(maps[: full * ncols], "(rows cols) c h w -> rows cols c h w", cols=ncols)
    places[-1, : n - full * ncols] = maps[full * ncols :]
    return sheet


@gated
def untile(sheet: Tensor, *, n: int, ncols: int | None = None, pad: int = 1) -> Tensor:
    """Take a grid apart, the inverse of `tile`: `c H W -> n c h w`.

    Args:
        sheet: a result of `tile`.
        n: number of maps on it.
        ncols: as for `tile`.
        pad: as for `tile`.
    Returns:
        `n c h w`; dtype and device of `sheet`.
    Raises:
        ShapeError: `sheet` is not 3-D, is empty, or its size does not fit such a grid.
        OptionError: `n` or `ncols` is below 1, or `pad` below 0.
    Example:
        >>> untile(torch.zeros(3, 11, 17), n=6, ncols=3).shape
        torch.Size([6, 3, 5, 5])
    """
    _, height, width = _check(sheet, "c H W")
    if n < 1:
        raise OptionError(f"n must be at least 1, got {n}.")
    ncols = grid_columns(n) if ncols is None else ncols
    _check_options(ncols, pad)
    rows = -(-n // ncols)
    h, spare_h = divmod(height - (rows - 1) * pad, rows)
    w, spare_w = divmod(width - (ncols - 1) * pad, ncols)
    if spare_h or spare_w or h < 1 or w < 1:
        raise ShapeError(
            f"a sheet of {tuple(sheet.shape)} does not hold {n} maps as {rows} x {ncols} tiles "
            f"with gaps of {pad}; pass the ncols and pad of tile."
        )
    maps = rearrange(_places(sheet, h, w, pad), "rows cols c h w -> (rows cols) c h w")
    return maps[:n].contiguous()


def _places(sheet: Tensor, h: int, w: int, pad: int) -> Tensor:
    """Where the tiles are, as a view: `c H W -> rows cols c h w`."""
    return rearrange(sheet.unfold(1, h, h + pad).unfold(2, w, w + pad), "c rows cols h w -> rows cols c h w")


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Enlarge every pixel to a square of `factor` by `factor` pixels: `... h w -> ... (h f) (w f)`.

    Args:
        x: at least 2-D.
        factor: a whole number, at least 1.
    Returns:
        The larger tensor; dtype and device of `x`.
    Raises:
        ShapeError: `x` has fewer than two axes.
        OptionError: `factor` is not a whole number of at least 1.
    Example:
        >>> enlarge(torch.tensor([[1, 2]]), 2)
        tensor([[1, 1, 2, 2],
                [1, 1, 2, 2]])
    """
    if x.dim() < 2:
        raise ShapeError(f"x must be '... h w', got shape {tuple(x.shape)}; add an axis with x[None].")
    if not isinstance(factor, int) or factor < 1:
        raise OptionError(f"factor must be a whole number of at least 1, got {factor!r}.")
    *lead, h, w = x.shape
    big = x[..., :, None, :, None].expand(*lead, h, factor, w, factor)
    return big.reshape(*lead, h * factor, w * factor)


def grid_columns(n: int, aspect: float = 1.0) -> int:
    """Number of columns that makes a grid of `n` tiles about square: `ceil(sqrt(n * aspect))`."""
    return min(n, max(1, math.ceil(math.sqrt(n * aspect))))


def _check(x: Tensor, axes: str) -> tuple[int, ...]:
    name = "maps" if axes == "n c h w" else "sheet"
    if x.dim() != len(axes.split()):
        hint = f"; add a batch axis with {name}[None]" if x.dim() == 3 else ""
        raise ShapeError(f"{name} must be '{axes}', got shape {tuple(x.shape)}{hint}.")
    if x.numel() == 0:
        raise ShapeError(f"{name} must hold at least one value, got shape {tuple(x.shape)}.")
    return tuple(x.shape)


def _check_options(ncols: int, pad: int) -> None:
    if ncols < 1:
        raise OptionError(f"ncols must be at least 1, got {ncols}.")
    if pad < 0:
        raise OptionError(f"pad must be at least 0, got {pad}.")


class GridTiler(nn.Module):
    """`tile` as a module.

    Raises:
        ShapeError, OptionError: as for `tile`.
    Example:
        >>> GridTiler(ncols=3)(torch.zeros(6, 1, 5, 5)).shape
        torch.Size([1, 11, 17])
    """

    @gated
    def __init__(self, *, ncols: int | None = None, pad: int = 1, fill: float = 0.0) -> None:
        super().__init__()
        self.ncols, self.pad, self.fill = ncols, pad, fill

    def extra_repr(self) -> str:
        return f"ncols={self.ncols}, pad={self.pad}, fill={self.fill}"

    @gated
    def forward(self, maps: Tensor) -> Tensor:
        return tile(maps, ncols=self.ncols, pad=self.pad, fill=self.fill)
