"""The kernels of a convolution."""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from torch_featviz.errors import OptionError
from torch_featviz.gate import gate
from torch_featviz.model.weights import Kernel, planes_of
from torch_featviz.picture import Legend, Picture, Scale, Sheet, paint
from torch_featviz.picture.bounds import CELLS, arranged, fitting
from torch_featviz.views import numbers
from torch_featviz.views.numbers import first

_PLANES = ("red", "green", "blue")
_WORDY = 64  # filters that have room for more than numbers


@gate("model_or_weight")
def kernels(
    model_or_weight: nn.Module | Tensor,
    layer: str | None = None,
    *,
    scale: Scale | None = None,
    cmap: str | None = None,
    limit: int | None = None,
    planes: bool = False,
    values: bool = False,
    decimals: int | None = None,
    ncols: int | None = None,
) -> Picture:
    """Draw the kernels of one convolution.

    Filters with three input channels are drawn in colour, where mid-grey is 0; filters with one channel in signed
    colours; deeper filters as a table with one filter per row and one input channel per column. Filters of a grouped
    convolution are labelled with the input channels that they read.

    The kernels are those that the layer uses now in evaluation mode: weight norm, spectral norm, pruning,
    parametrizations, weight standardisation, adapters (LoRA) and quantisation are included, and the legend says so. A
    layer that is not a plain convolution is copied, and the copy runs on a made-up input; the network does not run.

    Args:
        model_or_weight: a model, a convolution or an adapter around one, or a weight `k c h w` (`k c w` for one
            dimension).
        layer: name of the layer in the model; not needed for a weight, or if only one layer has kernels.
        scale: how values become colours. Default: `Scale(symmetric=True)`, one for the layer.
        cmap: a colour map, such as `"gray"`; filters with three channels are then drawn plane by plane. Default:
            `RdBu_r`, or `viridis` if the scale is not symmetric.
        limit: most rows and columns of the table. Default: 16, or as many as fit; the legend says what is left out.
        planes: draw red, green and blue of each filter side by side, instead of one picture in colour.
        values: write each weight in its cell, as `pixels` does, for as many filters as can be read.
        decimals: digits after the point of written values. Default: none for whole numbers, otherwise two significant
            digits of the largest weight, from two to four places.
        ncols: filters per row. Default: about a square, or with `values` as many as fit a screen.
    Raises:
        LayerError: no such layer, or it has no kernels that can be drawn; the error says why.
        ShapeError: the weight is not `k c h w` or is empty; with `values`, kernels are larger than 64 × 64.
        OptionError: `limit` or `ncols` is below 1, `cmap` is unknown, `planes` is used for filters that do not have
            three input channels, or `decimals` is not from 0 to 50.
    Example:
        >>> kernels(torch.nn.Conv2d(3, 8, 5)).pixels.shape
        torch.Size([3, 17, 17])
        >>> kernels(torch.eye(3)[None, None], values=True).inside[:4]
        ('1', '0', '0', '0')
    """
    for name, given in (("limit", limit), ("ncols", ncols)):
        if given is not None and given < 1:
            raise OptionError(f"{name} must be at least 1, got {given}.")
    kernel = planes_of(model_or_weight, layer)
    filters, channels, height, width = kernel.weight.shape
    colour = channels == 3 and kernel.groups == 1
    if planes and not colour:
        raise OptionError(
            f"planes= needs filters with three input channels, these are {channels}×{height}×{width}"
            f"{f' in {kernel.groups} groups' if kernel.groups > 1 else ''}; leave it out."
        )
    title = f"Kernels of {layer}" if layer else "Kernels"
    drawn = _Drawn(
        kernel,
        (scale or Scale(symmetric=True)).fit(kernel.weight),
        cmap,
        title=f"{title}: {filters} filters of {channels}×{height}×{width}",
        ncols=ncols,
    )
    by_plane = colour and (planes or cmap is not None)
    if values:
        return drawn.written(_places(kernel.weight) if decimals is None else decimals, limit, by_plane)
    if by_plane:
        return drawn.by_plane()
    return drawn.side_by_side() if channels == 1 or colour else drawn.table(limit)


@dataclass(frozen=True)
class _Drawn:
    """The kernels of a layer, in each way that they can be laid out."""

    kernel: Kernel
    scale: Scale
    cmap: str | None
    title: str
    ncols: int | None

    def side_by_side(self) -> Picture:
        """Filters of one channel, or of red, green and blue, each a picture."""
        weight, names = self.kernel.weight, self._names()
        shown, ncols = self._arranged(names)
        cells, legend = self._paint(weight[:shown], first(self.scale, shown), shown)
        return Sheet(cells, legend, title=self.title, labels=names[:shown], ncols=ncols)

    def by_plane(self) -> Picture:
        """Red, green and blue of each filter beside each other."""
        names = tuple(f"filter {i}" for i in range(len(self.kernel.weight)))
        shown, ncols = self._arranged(names, len(_PLANES))
        cells, legend = self._paint(*self._cut(shown, 3), shown)
        return Sheet(
            cells,
            legend,
            title=self.title,
            ncols=3 * ncols,
            group=3,
            labels=tuple(words for name in names[:shown] for words in (name, "", "")),
            columns=_PLANES,
        )

    def table(self, limit: int | None) -> Picture:
        """Filters by rows, input channels by columns, as many as can be read."""
        filters, channels, height, width = self.kernel.weight.shape
        zoom = max(1, -(-36 // max(height, width)))
        room = [min(16, max(1, CELLS // (side * zoom + 7))) for side in (height, width)]
        rows, columns = min(filters, limit or room[0]), min(channels, limit or room[1])
        notes = self.kernel.notes
        if (rows, columns) != (filters, channels):
            notes = (f"{rows} of {filters} filters × {columns} of {channels} channels shown", *notes)
        cells, legend = paint(*self._cut(rows, columns), cmap=self.cmap, notes=notes)
        return Sheet(
            cells,
            legend,
            title=self.title,
            ncols=columns,
            rows=tuple(self._row(i) for i in range(rows)),
            columns=tuple(str(i) for i in range(columns)),
            corner="in",
            zoom=zoom,
        )

    def written(self, decimals: int, limit: int | None, by_plane: bool) -> Picture:
        """Each weight in its cell."""
        weight, names = self.kernel.weight, self._names()
        filters, channels = weight.shape[:2]
        scale, row, what = self.scale, None, "filters"
        if by_plane:
            weight, scale = self._cut(filters, 3)
            names = tuple(f"filter {i}, {plane}" for i in range(filters) for plane in _PLANES)
            row, what = 3, "planes"
        elif channels > 1 and not (channels == 3 and self.kernel.groups == 1):
            rows, row = min(filters, limit or 16), min(channels, limit or 16)
            weight, scale = self._cut(rows, row)
            names = tuple(f"out {i} in {self._reads(i)[0] + j}" for i in range(rows) for j in range(row))
            what = "kernels"
        cells = numbers.written(weight, decimals, names, ncols=self.ncols, row=row)
        shown = cells.shown
        colors, legend = paint(weight[:shown], first(scale, shown), cmap=self.cmap, notes=self.kernel.notes)
        total = len(weight) if what != "kernels" else filters * channels
        return numbers.drawn(cells, colors, legend, total=total, what=what, title=self.title, names=names)

    def _arranged(self, names: tuple[str, ...], group: int = 1) -> tuple[int, int]:
        """How many filters side by side fit a sheet at its defaults, and in how many columns."""
        filters, _, height, width = self.kernel.weight.shape
        if self.ncols is None:
            return arranged(filters, height, width, names, group=group)
        rows, _ = fitting(height, width, names, group=group)
        return min(filters, rows * self.ncols), min(filters, self.ncols)

    def _paint(self, weight: Tensor, scale: Scale, shown: int) -> tuple[Tensor, Legend]:
        """The filters that there is room for."""
        filters, notes = len(self.kernel.weight), self.kernel.notes
        if self.kernel.groups > 1 and filters > _WORDY:
            notes = ("“12 in 5”: filter 12 reads input channel 5", *notes)
        if shown < filters:
            notes = (f"{shown:,} of {filters:,} filters shown", *notes)
        return paint(weight, scale, cmap=self.cmap, notes=notes)

    def _cut(self, rows: int, columns: int) -> tuple[Tensor, Scale]:
        """The first kernels of the first filters, one by one, with their scale."""
        filters, channels = self.kernel.weight.shape[:2]

        def cut(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return x.expand(filters, channels, *x.shape[2:])[:rows, :columns].flatten(0, 1)[:, None]

        scale = replace(self.scale, vmin=cut(self.scale.vmin), vmax=cut(self.scale.vmax))
        return cut(self.kernel.weight), scale

    def _names(self) -> tuple[str, ...]:
        """Of filters side by side: their numbers, and the input channel, where each reads one of several."""
        filters = len(self.kernel.weight)
        if self.kernel.groups == 1:
            return tuple(str(i) for i in range(filters))
        return tuple(self._row(i) if filters <= _WORDY else f"{i} in {self._reads(i)[0]}" for i in range(filters))

    def _row(self, i: int) -> str:
        """A filter with what it reads."""
        if self.kernel.groups == 1:
            return f"out {i}"
        low, high = self._reads(i)
        return f"out {i} reads in {low}" + (f"–{high}" if high > low else "")

    def _reads(self, i: int) -> tuple[int, int]:
        """The first and last input channel of a filter."""
        filters, channels = self.kernel.weight.shape[:2]
        low = i // max(1, filters // self.kernel.groups) * channels
        return low, low + channels - 1


def _places(weight: Tensor) -> int:
    """Digits after the point that show two digits of the largest weight."""
    finite = weight.detach()[weight.detach().isfinite()].double()
    most = float(finite.abs().max()) if finite.numel() else 1.0
    if bool((finite == finite.round()).all()):
        return 0
    return min(4, max(2, 1 - math.floor(math.log10(most))))
