"""What is at each place of a map, in colours: principal components, norms, or the likeness to one place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_featviz.errors import OptionError
from torch_featviz.inspect.components import Components, finite, principal
from torch_featviz.inspect.placed import Placed, artefact_norm
from torch_featviz.picture import Counts, Legend, Scale, number, paint, rgb
from torch_featviz.picture.bounds import shrunk
from torch_featviz.picture.contrast import contrast, joined, signed
from torch_featviz.picture.legend import share

KINDS = {"pca": "components", "norm": "norm", "similarity": "cosine"}  # options, and the heading of a column
_COLOURS = (((255, 0, 0), "red"), ((0, 255, 0), "green"), ((0, 0, 255), "blue"))


@dataclass(frozen=True)
class Drawn:
    """Values at places, what they mean, and which of them have an outline.

    Args:
        values: `b 1 h w` on the scale of the legend, or `b 3 h w` on the unit range.
        outlined: `b h w`.
        legend: without counts of what the images hold.
    """

    values: Tensor
    outlined: Tensor
    legend: Legend

    def shrunk(self, side: int) -> Drawn:
        """At most so many places wide and high; each the mean of an area."""
        outlined = shrunk(self.outlined[:, None].float(), side, None)[:, 0] > 0
        return replace(self, values=shrunk(self.values, side, None), outlined=outlined)

    @property
    def cells(self) -> Tensor:
        """`b 3 h w`, a pixel for each place."""
        if self.legend.scale is None:
            return rgb(self.values)
        return paint(self.values, self.legend.scale, cmap=self.legend.cmap)[0]


def drawn_by(kind: str, found: Placed, query: tuple[int, int] | None = None) -> Drawn:
    """What `kind`, one of `KINDS`, makes of the places; `query` is a place for `"similarity"`.

    Raises:
        OptionError: `query` is no place of the map.
    """
    if kind == "similarity" and query is not None:
        return _by_similarity(found, query)
    artefacts = _Artefacts.of(found)
    return _by_components(found, artefacts) if kind == "pca" else _by_norm(artefacts)


def title_of(kind: str, found: Placed) -> str:
    height, width = found.maps.shape[2:]
    what = {"pca": "principal components", "norm": "norm", "similarity": "similarity"}[kind]
    return f"{what} of {height} × {width} {_what(found)}, {found.maps.shape[1]} channels"


@dataclass(frozen=True)
class _Artefacts:
    """Where norms stand out: `b h w`, and the rule in words; nowhere in maps, which are no tokens."""

    norms: Tensor
    where: Tensor
    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Placed) -> _Artefacts:
        norms = torch.linalg.vector_norm(found.maps, dim=1, dtype=torch.float64)
        if found.layout.tokens is None:
            return cls(norms, torch.zeros_like(norms, dtype=torch.bool))
        least = artefact_norm(norms)
        where = (norms > least) & finite(found.maps)
        count = int(where.sum())
        median = float(norms[norms.isfinite()].median()) if bool(norms.isfinite().any()) else 0.0
        times = f", {least / median:.1f} × the median {number(median)}" if median else ""
        n = f"{count} of {norms.numel():,}, up to {number(float(norms[where].max()))}, outlined" if count else "none"
        return cls(norms, where, (f"artefact tokens (norm above {number(least)}{times}): {n}",))


def _by_components(found: Placed, artefacts: _Artefacts) -> Drawn:
    basis = principal(found.maps, without=artefacts.where)
    values = basis.of(found.maps)
    scales = [contrast(True, per="layer").fit(component[~artefacts.where]) for component in values.unbind(1)]
    unit = torch.stack([scale(component) for scale, component in zip(scales, values.unbind(1), strict=True)], 1)
    beyond = int(((unit < 0) | (unit > 1)).any(1).sum())
    nan = ~finite(found.maps)
    swatches = tuple(
        (color, f"{name}: {share(part)} of the variance, ±{number(float(scale.vmax or 0))}")
        for (color, name), part, scale in zip(_COLOURS, basis.shares, scales, strict=True)
    )
    notes = (*_notes(basis, found, beyond, nan.numel()), *artefacts.words)
    legend = Legend(counts=Counts(nan=int(nan.sum())), swatches=swatches, notes=notes)
    return Drawn(torch.where(nan[:, None], torch.nan, unit.clamp(0, 1)), artefacts.where, legend)


def _notes(basis: Components, found: Placed, beyond: int, total: int) -> tuple[str, ...]:
    several = f"{basis.count:,} {_what(found)}"
    several += f" of {len(found.maps)} images" if len(found.maps) > 1 else ""
    return (
        f"together {share(sum(basis.shares))} of the variance of {several}",
        "mid-grey: their mean; each component on its own scale, its largest loading is positive",
        *((f"beyond a scale, drawn as its end: {share(beyond, total)}",) if beyond else ()),
    )


def _by_norm(artefacts: _Artefacts) -> Drawn:
    """On a scale that artefacts have no part in: it would show nothing but them."""
    norms = artefacts.norms[:, None]
    scale = Scale(vmin=0).fit(artefacts.norms[~artefacts.where])
    return Drawn(norms, artefacts.where, paint(norms, scale, notes=artefacts.words)[1])


def _by_similarity(found: Placed, query: tuple[int, int]) -> Drawn:
    """The cosine between each place of each image and one of the first image."""
    height, width = found.maps.shape[2:]
    if len(query) != 2:
        raise OptionError(f"query must be a place (row, column), got {query!r}.")
    row, column = query
    if not (0 <= row < height and 0 <= column < width):
        raise OptionError(f"query must be a row from 0 to {height - 1} and a column to {width - 1}, got {query}.")
    asked = found.maps[:1, :, row : row + 1, column : column + 1]
    cosine = F.cosine_similarity(found.maps.double(), asked.double(), dim=1).float().clamp(-1, 1)[:, None]
    outlined = torch.zeros_like(cosine[:, 0], dtype=torch.bool)
    outlined[0, row, column] = True
    of = "the first image" if len(cosine) > 1 else "the image"
    words = f"cosine with the outlined {_what(found)[:-1]} of {of}, at row {row}, column {column}"
    scale = contrast(bool(signed(cosine.view(1, -1))), per="layer")
    return Drawn(cosine, outlined, joined([paint(cosine, scale)[1]], (words,), told=True))


def _what(found: Placed) -> str:
    return "places" if found.layout.tokens is None else "tokens"
