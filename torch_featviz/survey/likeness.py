"""How alike the projections of one unit from several images are: 1 where they do not depend on the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_cosine(parts: Sequence[Tensor], corners: Sequence[tuple[int, int]]) -> float:
    """The mean cosine of all pairs, each over the pixels that both have; NaN where there is none.

    Parts that are 0 wherever the other is are left out, with their pairs.

    Args:
        parts: `c h w`, each of its own height and width, which may be 0.
        corners: row and column of each one's first pixel, on one grid.
    Example:
        >>> edge = torch.tensor([[[0.0, 1, -1, 0]]])
        >>> mean_cosine([edge, 3 * edge[..., 1:]], [(0, 0), (0, 1)])
        1.0
    """
    placed = [(part, *corner) for part, corner in zip(parts, corners, strict=True) if part.numel()]
    if len(placed) < 2:
        return float("nan")
    top, left = min(row for _, row, _ in placed), min(column for _, _, column in placed)
    down = max(row + part.shape[1] for part, row, _ in placed) - top
    across = max(column + part.shape[2] for part, _, column in placed) - left
    laid = torch.zeros(len(placed), len(placed[0][0]), down, across, device="cpu")
    there = torch.zeros(len(placed), down, across, device="cpu")
    for n, (part, row, column) in enumerate(placed):
        rows = slice(row - top, row - top + part.shape[1])
        columns = slice(column - left, column - left + part.shape[2])
        laid[n, :, rows, columns] = _within_one(part)
        there[n, rows, columns] = 1
    squares = laid.square().sum(1).flatten(1) @ there.flatten(1).T  # of each row's part, where each column's is
    cosines = laid.flatten(1) @ laid.flatten(1).T / (squares * squares.T).sqrt()
    first, second = torch.triu_indices(len(placed), len(placed), 1, device="cpu")
    return float(cosines[first, second].clamp(-1, 1).double().nanmean())


def _within_one(part: Tensor) -> Tensor:
    """Divided by its largest absolute value, lest its square leave float32; zeros stay zeros."""
    part = part.double()
    return (part / part.abs().max().clamp(min=torch.finfo(part.dtype).tiny)).float()
