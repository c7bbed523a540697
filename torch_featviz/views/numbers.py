"""Values written in cells: one small image, or several side by side with a name above each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.picture import Legend, Picture, Scale, Sheet, Stack, number
from torch_featviz.picture.bounds import CELLS, LABEL, widest
from torch_featviz.picture.scale import as_float
from torch_featviz.picture.text import line_height, width

LIMIT = 64  # rows and columns of one image
VALUES = 4096  # on a sheet
_DIGITS = 50  # after a point; floats have no more that mean anything
_ROW = 1500  # pixels of a row of images by default


@dataclass(frozen=True)
class Written:
    """What stands in which cell.

    Args:
        words: of each value, image by image and row by row; of three channels below each other.
        shown: so many images.
        ncols: images per row.
        zoom: pixels of a cell.
    """

    words: list[str]
    shown: int
    ncols: int
    zoom: int


def written(
    values: Tensor, decimals: int, names: Sequence[str] = (), *, ncols: int | None = None, row: int | None = None
) -> Written:
    """Write values `n c h w`, as many images as a person can read on one sheet.

    Args:
        values: one or three channels.
        decimals: digits after the point for floats.
        names: above each image.
        ncols: images per row, as asked for.
        row: as many as belong in a row, if there is room for them.
    Raises:
        OptionError: `decimals` is not from 0 to 50, or `ncols` below 1.
        DtypeError: values are not real.
        ShapeError: an image has too many values to be read.
    """
    if not 0 <= decimals <= _DIGITS:
        bound = "at least 0" if decimals < 0 else f"at most {_DIGITS}"
        raise OptionError(f"decimals must be {bound}, got {decimals}.")
    if ncols is not None and ncols < 1:
        raise OptionError(f"ncols must be at least 1, got {ncols}.")
    as_float(values)  # refuses what has no real values
    n, channels, high, wide = values.shape
    if max(high, wide) > LIMIT:
        raise ShapeError(
            f"at most {LIMIT} × {LIMIT} values can be read, got {high} × {wide}; "
            f"crop it with image[..., :{LIMIT}, :{LIMIT}]."
        )
    shown = min(n, max(1, VALUES // (high * wide)))
    cells = values[:shown].permute(0, 2, 3, 1).reshape(-1, channels).tolist()
    words = ["\n".join(_word(value, decimals) for value in cell) for cell in cells]
    longest = widest(line for cell in words for line in cell.split("\n"))
    least = 48 if n * high * wide <= 16 else 36 if n * high * wide <= 256 else 24
    zoom = max(least, longest + 4, channels * line_height(LABEL) + 4)
    step = zoom + 4
    block = max(wide * step, max((width(name, LABEL, bold=True) for name in names[:shown]), default=0) + 8) + 10
    if ncols is None:
        ncols = row if row and row * block <= CELLS else max(1, _ROW // block)
    shown = min(shown, ncols * max(1, CELLS // (high * step + 60)))
    return Written(words[: shown * high * wide], shown, min(ncols, shown), zoom)


def drawn(
    cells: Written, colors: Tensor, legend: Legend, *, total: int, what: str, title: str, names: Sequence[str] = ()
) -> Picture:
    """The images on one sheet.

    Args:
        cells: what is written.
        colors: `n 3 h w` bytes, of those that are shown.
        legend: of these colours.
        total: images that there are.
        what: they are.
        title: above everything.
        names: above each; one image alone has none.
    """
    if cells.shown < total:
        legend = replace(legend, notes=(f"{cells.shown:,} of {total:,} {what} shown", *legend.notes))
    size = colors.shape[2] * colors.shape[3]
    bands = []
    for first in range(0, cells.shown, cells.ncols):
        last = min(first + cells.ncols, cells.shown)
        inside = [cells.words[i * size : (i + 1) * size] for i in range(first, last)]
        bands.append(_band(colors[first:last], inside, cells.zoom, names[first:last] if total > 1 else ()))
    if len(bands) == 1:
        return replace(bands[0], legend=legend, title=title)
    return Stack(tuple(bands), legend, title)


def first(scale: Scale, count: int) -> Scale:
    """A fitted scale, of so many images."""
    low, high = (end[:count] if isinstance(end, Tensor) else end for end in (scale.vmin, scale.vmax))
    return replace(scale, vmin=low, vmax=high)


def _band(colors: Tensor, words: Sequence[Sequence[str]], zoom: int, names: Sequence[str]) -> Sheet:
    """Images in one row."""
    count, _, height, width = colors.shape
    return Sheet(
        colors.permute(2, 0, 3, 1).reshape(-1, 3, 1, 1),
        ncols=count * width,
        inside=tuple(word for y in range(height) for image in words for word in image[y * width : (y + 1) * width]),
        rows=tuple(str(y) for y in range(height)),
        columns=tuple(str(x) for x in range(width)),
        heads=tuple(names),
        group=width if names else 1,
        zoom=zoom,
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
