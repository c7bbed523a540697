"""Which rows of an attention a user asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch_featviz.errors import DtypeError, OptionError


@dataclass(frozen=True)
class Attention:
    """Capture attention weights: `capture(model, layers, of=Attention(queries=[0]))`.

    Args:
        queries: numbers of the queries (the attending tokens) to keep, in this order. Negative numbers count from the
            end. None keeps all.
    Raises:
        DtypeError: a number is no integer.
        OptionError: `queries` is empty.
    Example:
        >>> from torch import nn
        >>> from torch_featviz import capture
        >>> layer, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.zeros(1, 5, 8)
        >>> with capture(layer, of=Attention(queries=[0])) as att:
        ...     output = layer(x, x, x)
        >>> att[""].shape  # images, heads, queries, keys
        torch.Size([1, 2, 1, 5])
    """

    queries: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.queries is None:
            return
        if not isinstance(self.queries, Sequence):
            raise DtypeError(
                f"queries must be a list of integers, or None for all; got {self.queries!r}. Use [0], say."
            )
        queries = tuple(self.queries)
        for number in queries:
            if not isinstance(number, int) or isinstance(number, bool):
                raise DtypeError(f"queries must be integers, got {number!r}.")
        if not queries:
            raise OptionError("queries is empty; name at least one query, or leave it out for all of them.")
        object.__setattr__(self, "queries", queries)


@dataclass(frozen=True)
class Look(Attention):
    """As `Attention`, for a look at all layers: what cannot be captured is passed over, and `without` says why.

    Args:
        without: the reason of each such layer, in words that follow its name.
    """

    without: dict[str, str] = field(default_factory=dict, compare=False)


def attention_asked(of: object) -> Attention | None:
    """The rows that `of=` asks for; None where it asks for something else."""
    if isinstance(of, str) and of == "attention":
        return Attention()
    return of if isinstance(of, Attention) else None


def rows_asked(of: Attention, layer: str, count: int) -> list[int] | None:
    """The queries asked for, counted from 0, where a layer has so many; None for all.

    Raises:
        OptionError: it has no such query.
    """
    if of.queries is None:
        return None
    for number in of.queries:
        if not -count <= number < count:
            raise OptionError(
                f"there is no query {number} in the attention of {layer!r}: it has {count}, numbered from 0 to "
                f"{count - 1}, or from {-count} to -1."
            )
    return [number % count for number in of.queries]
