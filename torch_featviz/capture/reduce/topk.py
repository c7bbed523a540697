"""For every channel, the images that move it most, and where."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_featviz.errors import OptionError, ShapeError

from .reducer import Reducer, checked_dim, same_channels

_MOST = 2**20
_INF = float("inf")

# The state: NaN counts `c`, values `k c`, images `k c` (-1: none yet) and positions `k c`, and how many images were
# seen. Values in descending order, equal ones by image; what is not there yet has value -inf and comes last.


class TopK(Reducer):
    """Top-activating images per channel: the `k` images with the largest maximum of the channel's map, and where it is.

    Args:
        k: number of images per channel.
        dim: the channel axis, after that of images. Default: `capture` finds it; elsewhere the last one of tokens `b n
            c`, and 1 of maps.

    Takes outputs `b c ...`. An image counts once per channel, with the first of its largest values. Images are numbered
    from 0 in the order seen; of equal values the earlier image comes first. NaN counts as -inf here. Columns beyond the
    number of images seen hold NaN, image -1 and position -1.

    Raises:
        OptionError: `k` is not an integer from 1 to 1,048,576, or `dim` is not an integer.
        LayerError: a property is read before any output was seen.

    Example:
        >>> top = TopK(k=2)
        >>> top.update(torch.tensor([[[1.0, 5.0]], [[7.0, 0.0]], [[5.0, 2.0]]]))
        >>> top.values.tolist(), top.images.tolist(), top.positions.tolist()
        ([[7.0, 5.0]], [[1, 0]], [[0, 1]])
    """

    tensors = 5

    def __init__(self, k: int = 9, dim: int | None = None) -> None:
        super().__init__()
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= _MOST:
            raise OptionError(f"k must be an integer from 1 to {_MOST:,}, got {k!r:.80}.")
        self.k, self.dim = k, checked_dim(dim)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        return {"k": self.k, "dim": self.dim}

    @property
    def values(self) -> Tensor:
        """Maximum of the map in each image, `c k`, largest first, float64."""
        _, values, images, *_ = self._read()
        return torch.where(images < 0, torch.nan, values).t()

    @property
    def images(self) -> Tensor:
        """Number of the image of each value, `c k`, int64."""
        return self._read()[2].t()

    @property
    def positions(self) -> Tensor:
        """Index of the value in the flattened map, `c k`, int64."""
        return self._read()[3].t()

    @property
    def nan(self) -> Tensor:
        """Number of NaN values seen, `c`, int64."""
        return self._read()[0]

    @property
    def seen(self) -> int:
        """Number of images seen."""
        return int(self._read()[4])

    def _summary(self) -> str:
        return super()._summary() if self._state is None else f"{self._state[0].shape[-1]} channels"

    @property
    def asks_for_channels(self) -> bool:
        return self.dim is None

    def axis(self, output: Tensor, channels: int) -> int:
        """The axis of channels of `output`, from 1.

        Raises:
            ShapeError: it has no such axis, or none of images.
        """
        if output.ndim < 2:
            raise ShapeError(f"outputs must be 'b c ...', got shape {tuple(output.shape)}; capture another layer.")
        dim = channels if self.dim is None else self.dim
        if dim == 0 or not -output.ndim < dim < output.ndim:
            raise ShapeError(
                f"TopK(dim={dim}): an output of shape {tuple(output.shape)} has "
                f"no such channel axis; choose another dim."
            )
        return dim % output.ndim

    def _arrange(self, output: Tensor, channels: int) -> Tensor:
        output = output.movedim(self.axis(output, channels), 1)
        if self._state is not None:
            same_channels(self._state[0].shape[0], output.shape[1])
        return output.flatten(2) if output.ndim > 2 else output[:, :, None]

    def _add(self, values: Tensor) -> tuple[Tensor, ...]:
        nan = values.ne(values).sum((0, 2))
        values = values.nan_to_num(-_INF, _INF, -_INF)
        best, images = values.amax(2).sort(dim=0, descending=True, stable=True)
        best, images = best[: self.k], images[: self.k]
        maps = values.transpose(0, 1)[torch.arange(values.shape[1], device=values.device), images]
        part = (nan, best, images, maps.argmax(2), torch.zeros_like(nan[0]) + values.shape[0])
        if self._state is None:
            return self._join(tuple(tensor[:0] if tensor.ndim > 1 else tensor * 0 for tensor in part), part)
        return self._join(self._state, part)

    def _join(self, mine: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images = torch.where(other[2] < 0, -1, other[2] + mine[4])
        columns = [torch.cat(pair) for pair in zip(mine[1:4], (other[1], images, other[3]), strict=True)]
        columns = [_padded(column, self.k, gap) for column, gap in zip(columns, (-_INF, -1, -1), strict=True)]
        absent = (columns[1] < 0).sort(dim=0, stable=True).indices  # what is not there goes last, even behind -inf
        columns = [column.gather(0, absent) for column in columns]
        order = columns[0].sort(dim=0, descending=True, stable=True).indices[: self.k]
        values, images, positions = (column.gather(0, order) for column in columns)
        return mine[0] + other[0], values, images, positions, mine[4] + other[4]


def _padded(column: Tensor, rows: int, gap: float) -> Tensor:
    missing = rows - column.shape[0]
    return column if missing <= 0 else torch.cat([column, column.new_full((missing, column.shape[1]), gap)])
