"""Which image, window and head each matrix of a batched attention belongs to, and where its tokens lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .places import Places


@dataclass(frozen=True)
class Windows:
    """The tokens of each window: their places on the grid of the image, or -1 for padding.

    Args:
        queries: `images windows q`; `keys` is `images windows k`.
        sizes: how many places there are for queries, and for keys.
    """

    queries: Tensor
    keys: Tensor
    sizes: tuple[int, int]

    @cached_property
    def at(self) -> Tensor:
        """The window of each place and the row in it: `images places`, counted through all rows of all windows."""
        images, windows, rows = self.queries.shape
        flat = self.queries.reshape(images, windows * rows)
        at = flat.new_full((images, self.sizes[0] + 1), -1)  # padding goes to the last
        numbers = torch.arange(windows * rows, device=flat.device).expand(images, -1)
        return at.scatter_(1, torch.where(flat < 0, self.sizes[0], flat), numbers)[:, :-1]


@dataclass(frozen=True)
class Groups:
    """How `n` groups of heads are images, windows and heads.

    Args:
        images: number of images.
        folded: how many of the groups are heads of one attention: 1 where heads have an axis of their own.
        order: the groups sorted by image, window and head; None if they are.
        windows: where the tokens of each window lie; None if each image has one.
    """

    images: int
    folded: int = 1
    order: Tensor | None = None
    windows: Windows | None = None

    def length(self, rows: int) -> int:
        """The number of queries of an image, given that of each group."""
        return rows if self.windows is None else self.windows.sizes[0]

    def select(self, queries: Sequence[int] | None) -> Selection:
        """These queries of each image, counted from 0; None for all."""
        if self.windows is None or queries is None:
            return Selection(self, queries)
        return _InWindows(self, queries)


class Selection:
    """The same rows of every group."""

    def __init__(self, groups: Groups, queries: Sequence[int] | None) -> None:
        self._groups = groups
        self._queries = queries

    def rows(self, x: Tensor) -> Tensor:
        """Of `n heads q ...`: the rows asked for."""
        if self._queries is None:
            return x
        if len(self._queries) == 1:
            return x[:, :, self._queries[0] : self._queries[0] + 1]
        return x[:, :, torch.tensor(self._queries, device=x.device, dtype=torch.int64)]

    def groups(self, x: Tensor) -> Tensor:
        """Of `n heads k ...`: the groups in which these rows are."""
        return x

    def positions(self, rows: int, device: torch.device) -> Tensor:
        """The number of each row in its group, `... rows 1`."""
        if self._queries is None:
            return torch.arange(rows, device=device).unsqueeze(-1)
        return torch.tensor(self._queries, device=device, dtype=torch.int64).unsqueeze(-1)

    def put(self, weights: Tensor) -> Tensor:
        """`n heads rows k` as `images heads queries keys`."""
        groups = self._groups
        if groups.order is not None:
            weights = weights[groups.order]
        n, heads, rows, keys = weights.shape
        weights = weights.reshape(n // groups.folded, heads * groups.folded, rows, keys)
        return weights if groups.windows is None else _on_grid(weights, groups.windows)


class _InWindows(Selection):
    """Rows of some windows: each as a group of its own, image by image, query by query, and head by head if folded."""

    def __init__(self, groups: Groups, queries: Sequence[int]) -> None:
        super().__init__(groups, queries)
        assert groups.windows is not None, "these are windows"
        self._windows = groups.windows
        device = self._windows.at.device
        at = self._windows.at[:, torch.tensor(queries, device=device, dtype=torch.int64)]
        windows, rows = self._windows.queries.shape[1:]
        self._window, row = at // rows, at % rows
        group = torch.arange(groups.images, device=device).unsqueeze(-1) * windows + self._window
        group = (group.unsqueeze(-1) * groups.folded + torch.arange(groups.folded, device=device)).flatten()
        self._group = group if groups.order is None else groups.order[group]
        self._row = row.unsqueeze(-1).expand(*row.shape, groups.folded).flatten()

    def rows(self, x: Tensor) -> Tensor:
        return x[self._group, :, self._row].unsqueeze(2)

    def groups(self, x: Tensor) -> Tensor:
        return x[self._group]

    def positions(self, rows: int, device: torch.device) -> Tensor:  # noqa: ARG002 - of other selections
        return self._row.reshape(-1, 1, 1, 1)

    def put(self, weights: Tensor) -> Tensor:
        images, queries = self._window.shape
        keys = self._windows.keys.take_along_dim(self._window.unsqueeze(-1), dim=1)  # images queries k
        keys = torch.where(keys < 0, self._windows.sizes[1], keys)
        weights = weights.reshape(images, queries, -1, weights.shape[-1]).transpose(1, 2)
        grid = weights.new_zeros(*weights.shape[:3], self._windows.sizes[1] + 1)
        grid.scatter_(3, keys.unsqueeze(1).expand_as(weights), weights)
        return grid[..., :-1].contiguous()


def _on_grid(weights: Tensor, windows: Windows) -> Tensor:
    """`(images windows) heads q k` on the whole grid, zero between windows."""
    images, count = windows.queries.shape[:2]
    heads = weights.shape[1]
    weights = weights.reshape(images, count, *weights.shape[1:])
    device = weights.device
    grid = weights.new_zeros(images, heads, windows.sizes[0] + 1, windows.sizes[1] + 1)  # padding goes to the last
    image = torch.arange(images, device=device).reshape(-1, 1, 1, 1, 1)
    head = torch.arange(heads, device=device).reshape(1, 1, -1, 1, 1)
    grid[image, head, windows.queries[:, :, None, :, None], windows.keys[:, :, None, None, :]] = weights
    return grid[:, :, :-1, :-1].contiguous()


class Unplaced(Exception):
    """Why the places of an attention are unknown."""


def grouped(queries: Places | None, keys: Places | None, n: int, images: int | None, heads: int | None) -> Groups:
    """Read off the tokens of `n` groups what these are.

    Args:
        queries: the tokens of each group, `n q`; `keys` are `n k`. None where they could not be followed.
        images: how many the model was given; None if nobody knows.
        heads: how many of the groups are heads of one attention, if that is known.
    Raises:
        Unplaced: it cannot be told.
    """
    if keys is None or bool((keys.numbers < 0).all(dim=1).any()):
        if heads is not None and images is not None and n == images * heads:
            return Groups(images, heads)
        raise Unplaced(f"it is computed in {n} groups, and which image each of them belongs to could not be followed")
    different, which = torch.unique(keys.numbers, dim=0, return_inverse=True)
    if n % len(different):
        raise Unplaced(f"its {n} groups share keys in a way that is no grouping by heads")
    folded = n // len(different)
    image = different.amax(dim=1) // keys.count
    mixed = bool(((different >= 0) & (different // keys.count != image.unsqueeze(-1))).any())
    images = len(torch.unique(image))
    several = len(different) > images
    first = torch.full((len(different),), n, device=which.device).scatter_reduce_(
        0, which, torch.arange(n, device=which.device), "amin"
    )
    rank = image * n + first if several and not mixed else first  # by image, then as they come
    order = torch.argsort(rank[which], stable=True)
    sorted_already = bool((order == torch.arange(n, device=order.device)).all())
    order_or_none = None if sorted_already else order
    if mixed or not several:
        return Groups(len(different), folded, order_or_none)
    if queries is None:
        raise Unplaced("its keys are those of windows, and the places of its queries could not be followed")
    return Groups(len(torch.unique(image)), folded, order_or_none, _windows(queries, keys, order[::folded], image))


def _windows(queries: Places, keys: Places, first: Tensor, image: Tensor) -> Windows:
    images = len(torch.unique(image))
    if len(first) % images:
        raise Unplaced("images have different numbers of windows")
    asked, seen = queries.numbers[first], keys.numbers[first]
    if bool((asked < -1).any()) or bool((seen < -1).any()):
        raise Unplaced("its windows hold tokens that have no place on the image")
    asked = torch.where(asked < 0, -1, asked % queries.count).reshape(images, -1, asked.shape[1])
    seen = torch.where(seen < 0, -1, seen % keys.count).reshape(images, -1, seen.shape[1])
    for places, count, what in ((asked, queries.count, "queries"),):
        times = torch.stack([torch.bincount(one[one >= 0], minlength=count) for one in places.flatten(1)])
        if bool((times != 1).any()):
            raise Unplaced(f"the {what} of its windows do not cover the image exactly once")
    return Windows(asked, seen, (queries.count, keys.count))
