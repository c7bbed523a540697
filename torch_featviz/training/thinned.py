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
        # The items, and the latest where it is not among them. They are replaced at once: other threads may read.
        self._held: tuple[list[T], T | None] = [], None
        self._stride = 1
        self._seen = 0

    def append(self, item: T) -> None:
        """Take one more."""
        items = self._held[0]
        if self._seen % self._stride == 0 and len(items) == self.keep - 1:  # one place is for the latest
            items = items[::2]
            self._stride *= 2
        self._held = ([*items, item], None) if self._seen % self._stride == 0 else (items, item)
        self._seen += 1

    def thinning(self) -> dict[str, int]:
        """How it was thinned so far, for `go_on_from`."""
        return {"stride": self._stride, "seen": self._seen}

    def go_on_from(self, items: Sequence[T], stride: int, seen: int) -> None:
        """Take up what another one held, thinned as it was."""
        self._stride, self._seen = stride, seen
        regular = -(-seen // stride)  # the others came between
        kept, latest = list(items[:regular]), items[regular] if len(items) > regular else None
        while len(kept) >= self.keep:  # that one could hold more
            kept, self._stride = kept[::2], 2 * self._stride
        self._held = kept, latest

    def cut(self, n: int) -> None:
        """Only the first `n` are left, as if no other had come yet."""
        if n < len(self):
            self._held = self._held[0][:n], None
            self._seen = len(self._held[0]) * self._stride

    def __len__(self) -> int:
        items, latest = self._held
        return len(items) + (latest is not None)

    @overload
    def __getitem__(self, i: int) -> T: ...

    @overload
    def __getitem__(self, i: slice) -> list[T]: ...

    def __getitem__(self, i: Any) -> Any:
        items, latest = self._held
        return (items if latest is None else [*items, latest])[i]

    def __iter__(self) -> Iterator[T]:
        items, latest = self._held
        yield from items
        if latest is not None:
            yield latest
