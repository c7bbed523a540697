"""Sheet: a grid of cells with a title, labels and a legend, composed without a plotting library."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.picture import text
from torch_featviz.picture.bounds import LABEL, MARGIN, named, widest
from torch_featviz.picture.color import colorize, count, is_diverging, lut, rgb
from torch_featviz.picture.figures import as_written, make_legible
from torch_featviz.picture.legend import Legend, blank, draw
from torch_featviz.picture.picture import Picture
from torch_featviz.picture.scale import Scale
from torch_featviz.picture.text import FAINT, INK, Pixels, line_height, put, strip
from torch_featviz.picture.tile import enlarge, grid_columns, tile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAME = 128
TITLE = 16
NARROWEST = 320
_THIN = 20
_LONGEST = 320  # pixels of a name that is wider than its cell
_NAMES = ("labels", "captions", "rows", "columns", "heads")


@dataclass(frozen=True, eq=False, repr=False)
class Sheet(Picture):
    """Cells on a grid, and what they mean.

    Each cell stands in a thin frame, so that an empty place is seen to be none; cells are enlarged by a whole
    factor, never smoothed, until they can be made out.

    Args:
        cells: `n 3 h w` uint8, row by row.
        legend: the scale, its colours and counts, and notes.
        title: one line or more, above everything.
        ncols: cells per row; default: about a square.
        labels: a text above each cell.
        captions: a text below each cell, of one line or more.
        inside: a text within each cell, of one line or more, in black or white, whichever reads better.
        empty: places that are left bare, by number.
        rows: a text to the left of each row.
        columns: a text above each column; a shorter sequence comes again.
        corner: a text where `rows` and `columns` meet.
        group: so many columns belong together; a wider gap follows them.
        heads: a text above each group of columns.
        zoom: pixels per pixel; default: enough to make the cells out.
    Raises:
        ShapeError: `cells` is not `n 3 h w` uint8, or a sequence has another length than it should.
        OptionError: `ncols` is below 1.
    """

    cells: Tensor
    legend: Legend = field(default_factory=Legend)
    title: str = ""
    ncols: int | None = None
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    corner: str = ""
    group: int = 1
    heads: tuple[str, ...] = ()
    zoom: int | None = None
    empty: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        shape, dtype = tuple(self.cells.shape), self.cells.dtype
        if len(shape) != 4 or shape[1] != 3 or dtype != torch.uint8 or not self.cells.numel():
            raise ShapeError(f"cells must be 'n 3 h w' uint8, got {dtype} of {shape}; paint() makes them.")
        if self.ncols is not None and self.ncols < 1:
            raise OptionError(f"ncols must be at least 1, got {self.ncols}.")
        n, nrows = len(self.cells), -(-len(self.cells) // self._ncols)
        groups = -(-self._ncols // max(1, self.group))
        expectations = (("labels", n), ("captions", n), ("inside", n), ("rows", nrows), ("heads", groups))
        for name, expected in expectations:
            if getattr(self, name) and len(getattr(self, name)) != expected:
                raise ShapeError(f"{name} must have {expected} entries, got {len(getattr(self, name))}.")

    @property
    def pixels(self) -> Tensor:
        """The cells alone on one grid, `3 H W` uint8, on their device; gaps are white, or grey if signed."""
        return self._tiled(1)

    def _tiled(self, zoom: int) -> Tensor:
        signed = self.legend.cmap is not None and is_diverging(self.legend.cmap)
        cells, fill = self.cells, 128 if signed else 255
        if self.empty:
            cells = cells.index_fill(0, torch.tensor(sorted(self.empty), device=cells.device), fill)
        return tile(enlarge(cells, zoom), ncols=self._ncols, fill=fill)

    @cached_property
    def _ncols(self) -> int:
        n, _, h, w = self.cells.shape
        return min(self.ncols, n) if self.ncols else grid_columns(n, h / w)

    @cached_property
    def _zoom(self) -> int:
        """A few cells may be large; many stay as small as can be made out; what is written in them fits."""
        *_, h, w = self.cells.shape
        lines = [words.split("\n") for words in self.inside]
        wide = max((text.width(t, LABEL) for words in lines for t in words), default=0)
        high = max((len(words) * line_height(LABEL) for words in lines), default=0)
        room = max(-(-(wide + 4) // w), -(-(high + 4) // h)) if self.inside else 1
        if self.zoom is not None:
            return max(self.zoom, room)
        goal = (96 if len(self.cells) <= 16 else 48) // (1 if max(h, w) > 1 else 2)
        return max(1, -(-goal // max(h, w)), room)

    @cached_property
    def _sheet(self) -> Pixels:
        grid = _Grid(self)
        wide = max(grid.width, NARROWEST)
        head = [strip(line, TITLE, bold=True) for line in text.wrap(self.title, wide, TITLE, bold=True)]
        foot = draw(self.legend, wide)
        top = MARGIN + sum(line.shape[0] for line in head) + (10 if head else 0)
        bottom = foot.shape[0] + (14 if foot.size else 0)
        page = blank(top + grid.height + bottom + MARGIN, wide + 2 * MARGIN)
        y = MARGIN
        for line in head:
            put(page, line, MARGIN, y)
            y += line.shape[0]
        grid.draw(page[top : top + grid.height, MARGIN : MARGIN + grid.width])
        if foot.size:
            put(page, foot, MARGIN, top + grid.height + 14)
        return page

    def figure(self) -> "Figure":
        """The grid on axes, with title, row and column labels, and a colour bar on the same scale."""
        from matplotlib.figure import Figure  # noqa: PLC0415  no matplotlib on import

        zoom = max(1, -(-_THIN // min(self.cells.shape[2:])))  # gaps are one pixel wide, and thin beside any cell
        image, lefts, tops = self._spread(zoom)
        big = 7.0 / max(image.shape)
        figure = Figure(
            figsize=(max(3.5, image.shape[1] * big), max(2.5, image.shape[0] * big) + 1), layout="constrained"
        )
        axes = figure.add_subplot(title=self.title)
        axes.imshow(image, interpolation="nearest")
        h, w = (side * zoom for side in self.cells.shape[2:])
        columns = [self.columns[i % len(self.columns)] for i in range(self._ncols)] if self.columns else []
        if self.heads:
            columns = columns or [""] * self._ncols
            columns[:: self.group] = [
                f"{words}\n{head}" for words, head in zip(columns[:: self.group], self.heads, strict=True)
            ]
        axes.set_xticks([left + (w - 1) / 2 for left in lefts[: len(columns)]], columns)
        if any(len(words) > 3 for words in columns) and not self.heads:
            axes.tick_params(axis="x", rotation=90)
        axes.set_yticks([top + (h - 1) / 2 for top in tops[: len(self.rows)]], self.rows)
        places = [(left, top) for top in tops for left in lefts]
        box = {"fc": "white", "ec": "none", "pad": 0.6}
        for texts, down, side, away in ((self.labels, 0, "top", -2), (self.captions, h, "bottom", 2)):
            for words, (x, y) in zip(texts if len(texts) <= 256 else (), places, strict=False):
                corner = (x, y + down)
                axes.annotate(words, corner, (2, away), textcoords="offset points", va=side, fontsize=6, bbox=box)
        points = 0.7 * 72 * big  # of a pixel, once labels and the bar have taken their room
        size = self._size_inside(points * w, points * h)
        for i, (words, (x, y)) in enumerate(zip(self.inside, places, strict=False)):
            red, green, blue = self.cells[i, :, 0, 0].tolist()
            ink = "black" if text.contrast((red, green, blue)) == (0, 0, 0) else "white"
            at = (x + (w - 1) / 2, y + (h - 1) / 2)
            axes.text(*at, words, fontsize=size, ha="center", va="center", color=ink)
        self._swatches(axes)
        notes = [self.corner] if self.corner else []
        for legend in [self.legend] if self.legend.also is None else [self.legend, self.legend.also]:
            _bar(figure, axes, legend)
            marks = legend.marks()[len(legend.swatches) :]  # those have their colours beside the grid
            notes += [words for _, words in marks if words] + legend.lines()
        axes.set_xlabel("\n".join(notes), fontsize=8)
        return make_legible(as_written(figure))

    def _swatches(self, axes: "Axes") -> None:
        """The colours that have a meaning each, beside the grid."""
        if not self.legend.swatches:
            return
        from matplotlib.patches import Patch  # noqa: PLC0415

        patches = [
            Patch(facecolor=(color[0] / 255, color[1] / 255, color[2] / 255), edgecolor="black", label=words)
            for color, words in self.legend.swatches
        ]
        axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=7, frameon=False)

    def _spread(self, zoom: int) -> tuple[Pixels, list[int], list[int]]:
        """The cells, enlarged, with a wider gap between groups; where each column and each row begins."""
        image = self._tiled(zoom).permute(1, 2, 0).cpu().numpy()
        h, w = (side * zoom for side in self.cells.shape[2:])
        group = self.group if self.group > 1 else self._ncols
        gap = max(4, w * group // 12)
        lefts = [i * (w + 1) + i // group * gap for i in range(self._ncols)]
        page = blank(image.shape[0], lefts[-1] + w)
        for first in range(0, self._ncols, group):
            last = min(first + group, self._ncols) - 1
            page[:, lefts[first] : lefts[last] + w] = image[:, first * (w + 1) : last * (w + 1) + w]
        return page, lefts, [i * (h + 1) for i in range(-(-len(self.cells) // self._ncols))]

    def _size_inside(self, wide: float, high: float) -> float:
        """The size, in points, at which every text within fits a cell of so many points."""
        lines = [words.split("\n") for words in self.inside]
        longest = max((text.width(t, LABEL) for words in lines for t in words), default=1)
        tallest = max((len(words) for words in lines), default=1) * line_height(LABEL)
        return min(10.0, 0.85 * LABEL * min(wide / max(1, longest), high / tallest))


def _bar(figure: "Figure", axes: object, legend: Legend) -> None:
    if legend.cmap is None:
        return
    from matplotlib.cm import ScalarMappable  # noqa: PLC0415
    from matplotlib.colors import ListedColormap, Normalize  # noqa: PLC0415

    shown = ScalarMappable(Normalize(0, 1), ListedColormap(lut(legend.cmap) / 255))
    bar = figure.colorbar(shown, ax=axes, shrink=0.8)  # type: ignore[arg-type]
    ticks = legend.ticks()
    bar.set_ticks([at for at, _ in ticks], labels=[word for _, word in ticks])


class _Grid:
    """Where everything of a sheet's grid stands: measured first, drawn after."""

    def __init__(self, sheet: Sheet) -> None:
        limit = max(_LONGEST, sheet.cells.shape[3] * sheet._zoom)
        words = {name: tuple(_short(each, limit) for each in getattr(sheet, name)) for name in _NAMES}
        sheet = replace(sheet, **words, corner=_short(sheet.corner, limit))  # type: ignore[arg-type]
        self.sheet, self.ncols = sheet, sheet._ncols
        self.nrows = -(-len(sheet.cells) // self.ncols)
        h, w = (side * sheet._zoom + 2 for side in sheet.cells.shape[2:])
        line = line_height(LABEL)
        self.cell = (h, w)
        self.above = line + 1 if any(sheet.labels) else 0
        self.below = line * max((words.count("\n") + 1 for words in sheet.captions if words), default=0)
        self.below += 1 if self.below else 0
        self.gutter = widest((*sheet.rows, sheet.corner))
        self.gutter += 6 if self.gutter else 0
        heading = widest(sheet.columns)
        self.upright = heading > max(w, line)
        across, tall = (line, heading) if self.upright else (heading, line)
        self.header = 4 + max(tall if heading else 0, line if sheet.corner else 0) if heading or sheet.corner else 0
        self.header += line + 2 if sheet.heads else 0
        gap = 5
        if sheet.cells[0, 0].numel() == 1 and not sheet.labels:
            gap = 2 if sheet.inside else 1  # cells of one value each make a table, and tables are dense
        narrowest = self.ncols % sheet.group or min(self.ncols, sheet.group)  # columns of a group
        heads = max((text.width(words, LABEL, bold=True) for words in sheet.heads), default=-8) + 8
        below = widest(line for words in sheet.captions for line in words.split("\n"))
        wide = max(w, widest(sheet.labels) + 8, below + 8, across, -(-heads // narrowest))
        self.place = max(h + self.above + self.below, line if sheet.rows else 0), wide
        self.step_y, self.step_x = (side + gap for side in self.place)
        groups = (self.ncols - 1) // sheet.group if sheet.group > 1 else 0
        self.width = self.gutter + self.ncols * self.step_x - gap + groups * 10
        self.height = self.header + self.nrows * self.step_y - gap

    def x(self, column: int) -> int:
        extra = column // self.sheet.group * 10 if self.sheet.group > 1 else 0
        return self.gutter + column * self.step_x + extra

    def draw(self, page: Pixels) -> None:
        sheet = self.sheet
        self._draw_cells(page)
        if sheet.corner:
            corner = strip(sheet.corner, LABEL, ink=FAINT)
            put(page, corner, max(0, self.gutter - 6 - corner.shape[1]), self.header - 4 - corner.shape[0])
        for i, words in enumerate(sheet.rows):
            piece = strip(words, LABEL)
            down = self.above + (self.cell[0] - piece.shape[0]) // 2  # beside the middle of the cells
            down = min(max(0, down), self.place[0] - piece.shape[0])
            put(page, piece, self.gutter - 6 - piece.shape[1], self.header + i * self.step_y + down)
        for i in range(self.ncols if sheet.columns else 0):
            piece = strip(sheet.columns[i % len(sheet.columns)], LABEL)
            piece = np.rot90(piece) if self.upright else piece
            x = self.x(i) + max(0, self.cell[1] - piece.shape[1]) // 2
            put(page, piece, x, self.header - 4 - piece.shape[0])
        for i, words in enumerate(sheet.heads):
            put(page, strip(words, LABEL, bold=True), self.x(i * sheet.group), 0)

    def _draw_cells(self, page: Pixels) -> None:
        h, w = self.cell
        zoom = self.sheet._zoom
        cells = self.sheet.cells.permute(0, 2, 3, 1).cpu().numpy()
        cells = np.ascontiguousarray(cells).repeat(zoom, axis=2).repeat(zoom, axis=1)  # small pieces first
        for i, cell in enumerate(cells):
            if i in self.sheet.empty:
                continue
            x, y = self.x(i % self.ncols), self.header + i // self.ncols * self.step_y
            if self.above and self.sheet.labels[i]:
                put(page, strip(self.sheet.labels[i], LABEL), x, y)
            y += self.above
            page[y : y + h, x : x + w] = FRAME
            page[y + 1 : y + h - 1, x + 1 : x + w - 1] = cell
            lines = self.sheet.captions[i].split("\n") if self.below else []
            for n, words in enumerate(lines):
                ink = INK if n + 1 < len(lines) else FAINT  # a verdict above what it is made of
                put(page, strip(words, LABEL, ink=ink), x, y + h + 1 + n * line_height(LABEL))
            if self.sheet.inside and self.sheet.inside[i]:
                self._write(page, self.sheet.inside[i].split("\n"), x, y)

    def _write(self, page: Pixels, lines: list[str], x: int, y: int) -> None:
        """Lines in the middle of the cell at x, y, on its own colour."""
        h, w = self.cell
        red, green, blue = (int(v) for v in page[y + 1, x + 1])
        paper = (red, green, blue)
        pieces = [strip(line, LABEL, ink=text.contrast(paper), paper=paper) for line in lines if line]
        y += (h - sum(p.shape[0] for p in pieces) + 1) // 2
        for piece in pieces:
            put(page, piece, x + (w - piece.shape[1] + 1) // 2, y)
            y += piece.shape[0]


def _short(words: str, limit: int) -> str:
    return "\n".join(named(line, limit) for line in words.split("\n"))


def paint(maps: Tensor, scale: Scale, *, cmap: str | None = None, notes: tuple[str, ...] = ()) -> tuple[Tensor, Legend]:
    """Values to coloured cells, and the legend that explains them.

    Args:
        maps: `n 1 h w` (through a colour map) or `n 3 h w` (red, green, blue).
        scale: fitted to `maps` if it is not fitted yet.
        cmap: a colour map; default `RdBu_r` where the scale is symmetric, else `viridis`. A diverging one needs a
            symmetric scale, since its neutral colour is 0.
        notes: further lines for the legend.
    Returns:
        `n 3 h w` uint8 on the device of `maps`, and the legend.
    Raises:
        ShapeError: `maps` has other axes.
        OptionError: `cmap` is not offered, or diverges where the scale does not.
    """
    if maps.dim() != 4 or maps.shape[1] not in (1, 3):
        raise ShapeError(f"maps must be 'n 1 h w' or 'n 3 h w', got shape {tuple(maps.shape)}.")
    scale = scale.fit(maps)
    unit = scale(maps)
    if maps.shape[1] == 3:
        middle = ", mid-grey is 0" if scale.symmetric else ""
        notes = (f"red, green and blue each on this scale{middle}", *notes)
        return rgb(unit), Legend(scale, "gray", count(unit), notes, total=unit[:, 0].numel())
    cmap = cmap or ("RdBu_r" if scale.symmetric else "viridis")
    if is_diverging(cmap) and not scale.symmetric:
        raise OptionError(
            f"this scale needs a sequential map, got {cmap!r}; Scale(symmetric=True) declares signed data."
        )
    return colorize(unit, cmap), Legend(scale, cmap, count(unit), notes, total=unit.numel())
