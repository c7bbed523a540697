"""Several figures of one layer, from one look at its outputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from torch_featviz.errors import OptionError

from .reducer import Reducer, same_channels


class Several(Reducer):
    """Reducers side by side: what `into=[Moments(), Histogram()]` keeps of each layer, read by place.

    Args:
        parts: empty reducers; at least one.
    Raises:
        OptionError: there is none, or one is no reducer.
    Example:
        >>> from torch_featviz import Histogram, Moments
        >>> several = Several(Moments(), Histogram(4))
        >>> several.update(torch.tensor([[0.0], [3.0]]))
        >>> moments, histogram = several
        >>> moments.mean.item(), histogram.counts.tolist()
        (1.5, [1, 0, 0, 1])
    """

    def __init__(self, *parts: Reducer) -> None:
        super().__init__()
        if not parts or not all(isinstance(part, Reducer) for part in parts):
            raise OptionError(
                f"a list for into= must hold statistics such as Moments() and Histogram(), got {list(parts)!r}."
            )
        self._parts = [part.fresh() for part in parts]
        self._channels = 1  # of the output that is being added

    @property
    def tensors(self) -> int:  # type: ignore[override]
        """In a state."""
        return sum(part.tensors for part in self._parts)

    @property
    def settings(self) -> dict[str, Any]:
        """Each part's kind and settings, by its place."""
        return {str(i): (type(part).__name__, part.settings) for i, part in enumerate(self._parts)}

    def fresh(self) -> Several:
        """An empty one with these parts."""
        return Several(*self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Reducer]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, place: int) -> Reducer:
        part = self._parts[place].fresh()
        if self._state is not None:
            part._state, part._host = self._of(self._state)[place], list(self._of(self._read())[place])
        return part

    def __repr__(self) -> str:
        return f"Several({', '.join(map(repr, self._parts if self._state is None else self))})"

    def _of(self, tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """The tensors of each part."""
        ends = list(itertools.accumulate(part.tensors for part in self._parts))
        return [tuple(tensors[end - part.tensors : end]) for end, part in zip(ends, self._parts, strict=True)]

    @property
    def asks_for_channels(self) -> bool:
        return any(part.asks_for_channels for part in self._parts)

    def _arrange(self, output: Tensor, channels: int) -> Tensor:
        self._channels = channels
        return output

    def _add(self, values: Tensor) -> tuple[Tensor, ...]:
        before = [None] * len(self) if self._state is None else self._of(self._state)
        after: list[Tensor] = []
        for part, state in zip(self._parts, before, strict=True):
            part._state = state
            after += part._add(part._arrange(values, self._channels))
            part._state = None
        return tuple(after)

    def _join(self, mine: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        joined: list[Tensor] = []
        for part, ours, theirs in zip(self._parts, self._of(mine), self._of(other), strict=True):
            same_channels(ours[0].shape[-1], theirs[0].shape[-1])
            joined += part._join(ours, theirs)
        return tuple(joined)


def parts_of(into: Reducer) -> list[Reducer]:
    """The reducers in a list of them, or the one."""
    return list(into._parts) if isinstance(into, Several) else [into]
