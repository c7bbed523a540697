"""Principal components of what is at each place of a map, and how much of its variance one map keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

REDUCTIONS = {  # of many channels to one map, in words
    "mean": "mean",
    "max": "maximum",
    "rms": "root mean square",
    "pc1": "first principal component",
}
_ROUNDING = 2.0**-20  # of the largest value
_AT_ONCE = 2**21  # values that are turned into float64 together
_NONE = 1e-12  # of the variance: what rounding leaves
_TIE = 1e-6  # loadings that differ by less than this share are equally large


@dataclass(frozen=True, eq=False)
class Components:
    """The principal components of many places: the directions in the space of channels along which they differ most.

    Args:
        mean: `k`, of the places; it is subtracted before they are projected.
        directions: `n k`, of length 1, the one of the largest variance first. Of each the loading of largest magnitude
            is positive; of equal ones the first decides. A direction without variance is 0.
        variances: `n`, of the places along each direction.
        total: the variance of the places over all channels.
        count: how many places the basis is made of.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    total: float
    count: int

    @property
    def shares(self) -> list[float]:
        """The part of the whole variance that each direction holds; 0 if nothing varies."""
        return [float(each) / self.total if self.total else 0.0 for each in self.variances]

    def of(self, maps: Tensor) -> Tensor:
        """Project maps: `b k h w -> b n h w`, float32; NaN where a channel is not finite."""
        parts = [
            torch.einsum("nk,bkhw->bnhw", self.directions, part - self.mean[:, None, None]).float()
            for part in _parts(maps)
        ]
        return torch.cat(parts).masked_fill(~finite(maps)[:, None], torch.nan)


def principal(maps: Tensor, n: int = 3, *, without: Tensor | None = None) -> Components:
    """Return the first `n` principal components of all places of all maps, in float64.

    Args:
        maps: `b k h w`, on the CPU. Places with a value that is not finite are left out.
        n: number of components; those beyond the number of channels or places are 0.
        without: `b h w`, places that are left out as well.
    Example:
        >>> principal(torch.tensor([[0.0, 3.0], [4.0, 0.0]]).view(2, 2, 1, 1)).shares
        [1.0, 0.0, 0.0]
    """
    kept = finite(maps) if without is None else finite(maps) & ~without
    channels, count = maps.shape[1], int(kept.sum())
    mean = sum((rows.sum(0) for rows in _rows(maps, kept)), _zeros(channels)) / max(1, count)
    if count < channels:  # the smaller of two matrices with the same eigenvalues
        rows = torch.cat([*_rows(maps, kept), _zeros(0, channels)]) - mean
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        vectors = rows.T @ vectors
        vectors /= torch.linalg.vector_norm(vectors, dim=0).clamp(min=torch.finfo(vectors.dtype).tiny)
    else:
        products = _zeros(channels, channels)
        for rows in _rows(maps, kept):
            rows = rows - mean  # noqa: PLW2901
            products.addmm_(rows.T, rows)
        values, vectors = torch.linalg.eigh(products)
    variances, directions = values.flip(0) / max(1, count), vectors.flip(1).T
    total = float(variances.clamp(min=0).sum())
    live = variances[:n] > _NONE * total
    found, first = _zeros(n), _zeros(n, channels)
    found[: len(live)] = variances[:n] * live
    first[: len(live)] = _signed(directions[:n]) * live[:, None]
    return Components(mean, first, found, total, count)


def kept_by(maps: Tensor, reduced: Tensor) -> float:
    """Return the share of the variance of all channels that one map keeps.

    Each channel is predicted from the map by a line, by least squares over all places. The share is the variance of
    these predictions, summed over channels, divided by the variance of the channels themselves. No map keeps more
    than that of the first principal component. It is 1 if no channel varies.

    Args:
        maps: `b k h w`, on the CPU.
        reduced: `b h w`, one map made of them. Places with a value that is not finite are left out.
    Example:
        >>> a = torch.rand(1, 1, 4, 4)
        >>> round(kept_by(torch.cat([a, 2 * a + 1], 1), a[:, 0]), 6)
        1.0
    """
    kept = finite(maps) & reduced.isfinite()
    count, channels = max(1, int(kept.sum())), maps.shape[1]
    mean = sum((rows.sum(0) for rows in _rows(maps, kept)), _zeros(channels)) / count
    line = reduced[kept].double()
    line = line - line.sum() / count
    along, total, squares, at = _zeros(channels), 0.0, 0.0, 0
    for rows in _rows(maps, kept):
        squares += float(rows.square().sum())
        rows = rows - mean  # noqa: PLW2901
        total += float(rows.square().sum())
        along += line[at : at + len(rows)] @ rows
        at += len(rows)
    if total <= _NONE * squares:
        return 1.0
    length = float(line.square().sum())
    return min(1.0, float(along.square().sum()) / length / total) if length else 0.0


def reduced_by(maps: Tensor, how: str) -> Tensor:
    """Make one map of all channels, `b k h w -> b h w`, in the way of that name in `REDUCTIONS`."""
    if how == "max":
        return maps.amax(1)
    if how == "rms":
        size = maps.abs().amax(1, keepdim=True)  # squares overflow
        size = size.masked_fill((size == 0) | ~size.isfinite(), 1)
        return (maps / size).square().mean(1).sqrt() * size[:, 0]
    if how == "pc1":
        return principal(maps, 1).of(maps)[:, 0]
    mean = maps.mean(1)
    return mean.masked_fill(mean.abs() < maps.abs().amax(1) * _ROUNDING, 0)  # as after a layer norm


def finite(maps: Tensor) -> Tensor:
    """At which places all channels are finite: `b k h w -> b h w`."""
    return maps.isfinite().all(1)


def _signed(directions: Tensor) -> Tensor:
    """The same directions, turned so that the largest loading is positive."""
    size = directions.abs()
    first = (size >= (1 - _TIE) * size.amax(1, keepdim=True)).int().argmax(1, keepdim=True)
    return directions * torch.where(directions.gather(1, first) < 0, -1.0, 1.0)


def _parts(maps: Tensor) -> Iterator[Tensor]:
    """So many maps at a time, in float64."""
    return (part.double() for part in torch.split(maps, max(1, _AT_ONCE // maps[0].numel())))


def _rows(maps: Tensor, kept: Tensor) -> Iterator[Tensor]:
    """The places that are kept, `n k` in float64, some maps at a time."""
    size = max(1, _AT_ONCE // maps[0].numel())
    for part, mask in zip(torch.split(maps, size), torch.split(kept, size), strict=True):
        yield part.movedim(1, -1)[mask].double()


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device="cpu")
