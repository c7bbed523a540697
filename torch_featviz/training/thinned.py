"""A list that covers the whole of a run in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

from torch_featviz.errors import OptionError

T = TypeVar("T")


class Thinned(Sequence[T]):
    """Items in order, so many at most.

    When `keep` are held, every second of them goes, and from there on only every second one is taken: what is left
    covers the whole run evenly, never only its end. The latest item is always held.

    Args:
        keep: how many are held at most, 2 or more.
    Raises:
        OptionError: `keep` is less.
    Example:
        >>> held = Thinned(keep=4)
        >>> for item in range(12):
        ...     held.append(item)
        >>> list(held)
        [0, 4, 8, 11]
    """

    def __init__(self, keep: int) -> None:
        if not isinstance(keep, int) or keep < 2:
            raise OptionError(f"keep must be an integer of at least 2, got {keep!r}.")
        self.keep = keep
        self._items: list[T] = []
        self._latest: T | None = None  # where it is not among the items
        self._stride = 1
        self._seen = 0

    def append(self, item: T) -> None:
        """Take one more."""
        self._latest = item
        if self._seen % self._stride == 0:
            if len(self._items) == self.keep - 1:  # one place is for the latest
                self._items = self._items[::2]
                self._stride *= 2
            if self._seen % self._stride == 0:
                self._items.append(item)
                self._latest = None
        self._seen += 1

    def thinning(self) -> dict[str, int]:
        """How it was thinned so far, for `go_on_from`."""
        return {"stride": self._stride, "seen": self._seen}

    def go_on_from(self, items: Sequence[T], stride: int, seen: int) -> None:
        """Take up what another one held, thinned as it was."""
        self._stride, self._seen = stride, seen
        regular = -(-seen // stride)  # the others came between
        self._items, self._latest = list(items[:regular]), items[regular] if len(items) > regular else None
        while len(self._items) >= self.keep:  # that one could hold more
            self._items, self._stride = self._items[::2], 2 * self._stride

    def cut(self, n: int) -> None:
        """Only the first `n` are left, as if no other had come yet."""
        if n < len(self):
            self._items, self._latest = self._items[:n], None
            self._seen = len(self._items) * self._stride

    def __len__(self) -> int:
        return len(self._items) + (self._latest is not None)

    @overload
    def __getitem__(self, i: int) -> T: ...

    @overload
    def __getitem__(self, i: slice) -> list[T]: ...

    def __getitem__(self, i: Any) -> Any:
        return (self._items if self._latest is None else [*self._items, self._latest])[i]

    def __iter__(self) -> Iterator[T]:
        yield from self._items
        if self._latest is not None:
            yield self._latest
