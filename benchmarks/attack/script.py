"""Bytes read as a list of changes: what a fuzzer mutates becomes a valid value that is spoilt in a few places.

A coverage-guided fuzzer knows only bytes, and random bytes seldom come behind a parser's first check. Here bytes say
what is changed of a good file, and the more a change reaches, the longer the fuzzer keeps it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
CHANGES = 8  # of one value at most
ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 100, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400),
    *(0.5, -0.5, -0.0, 1e-320, 1e-40, 1e150, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *("", "x", "nan", "inf", "-inf", "a.b", "../..", "*", "[", "\x1b[2J", "\u202e", "\ud800", "0\n1", "x" * 300),
    *([], {}, [[]], [1], [1, 2], [1.0, 2.0, 3.0], {"a": 1}, [None], [{}], {"": {}}),
)


class Script:
    """Takes bytes from the front; at the end of them each answer is 0 or empty."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        """Whether bytes are left."""
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """The next bytes, fewer at the end."""
        found = self._data[self._at : self._at + count]
        self._at += len(found)
        return found

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def byte(self) -> int:
        """From 0 to 255."""
        return int.from_bytes(self.take(1), "little")

    def below(self, limit: int) -> int:
        """A whole number below a limit, of as few bytes as it takes."""
        width = max(1, ((limit - 1).bit_length() + 7) // 8)
        return int.from_bytes(self.take(width), "little") % limit

    def whole(self) -> int:
        """Any number of 64 bits, with its sign."""
        return int.from_bytes(self.take(8), "little", signed=True)

    def real(self) -> float:
        """Any float: NaN and subnormal numbers are among them."""
        return float(struct.unpack("<d", self.take(8).ljust(8, b"\0"))[0])

    def text(self) -> str:
        """So many letters as the next byte says; surrogates stand for what is no UTF-8, as in names of files."""
        return self.take(self.byte()).decode("utf-8", "surrogateescape")

    def words(self, words: Sequence[str], most: int = 24) -> str:
        """A text put together from known words, with other letters between."""
        found = []
        while self and len(found) < most:
            number = self.byte()
            found.append(words[number] if number < len(words) else chr(number))
        return "".join(found)

    def pick(self, values: Sequence[T]) -> T:
        """One of these."""
        return values[self.below(len(values))]

    def value(self) -> Any:
        """Something that JSON could hold, or nearly."""
        kind = self.byte() % 5
        if kind == 0:
            return self.whole()
        if kind == 1:
            return self.real()
        if kind == 2:
            return self.text()
        return self.pick(ODD)

    def spoilt(self, value: Any, other: Any = None) -> Any:
        """A copy of dicts and lists that differs in a few places.

        Args:
            value: of dicts, lists, tuples and whatever is in them.
            other: called with what stands somewhere else than in a dict or list, for a change of its own kind.
        """
        for _ in range(CHANGES):
            if not self:
                break
            value = self._changed(value, self.pick(list(_places(value))), other)
        return value

    def _changed(self, value: Any, path: tuple[Any, ...], other: Any) -> Any:
        if path:
            inner = self._changed(value[path[0]], path[1:], other)
            if isinstance(value, Mapping):
                return {**value, path[0]: inner}
            return type(value)((*value[: path[0]], inner, *value[path[0] + 1 :]))
        kind = self.byte() % 4
        if kind == 0 or not isinstance(value, (dict, list, tuple)):
            return self.value() if other is None or kind < 2 else other(value, self)
        if isinstance(value, Mapping):
            return self._mapping(dict(value), kind)
        return type(value)(self._list(list(value), kind))

    def _mapping(self, value: dict[Any, Any], kind: int) -> dict[Any, Any]:
        if kind == 1 and value:
            del value[self.pick(list(value))]
        elif kind == 2 and value:  # under another name
            name = self.pick(list(value))
            value[self.text()] = value.pop(name)
        else:
            value[self.text()] = self.pick(list(value.values())) if value and self.byte() % 2 else self.value()
        return value

    def _list(self, value: list[Any], kind: int) -> list[Any]:
        if kind == 1 and value:
            del value[self.below(len(value))]
        elif kind == 2 and value:  # another order
            i, j = self.below(len(value)), self.below(len(value))
            value[i], value[j] = value[j], value[i]
        else:
            value.insert(self.below(len(value) + 1), self.pick(value) if value and self.byte() % 2 else self.value())
        return value

    def torn(self, data: bytes) -> bytes:
        """A copy of a file with other bytes in a few places, some cut out, or some put in."""
        for _ in range(CHANGES):
            if not self:
                break
            at, kind = self.below(len(data) + 1), self.byte()
            count = 1 + (kind >> 2) % 16
            if kind % 4 == 0:
                data = data[:at] + data[at + count :]
            elif kind % 4 == 1:
                data = data[:at] + self.take(count) + data[at:]
            elif kind % 4 == 2:
                new = self.take(count)
                data = data[:at] + new + data[at + len(new) :]
            elif at < len(data):
                data = data[:at] + bytes([data[at] ^ (self.byte() or 1)]) + data[at + 1 :]
        return data


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within a value."""
    yield path
    for key in value if isinstance(value, Mapping) else range(len(value)) if isinstance(value, (list, tuple)) else ():
        yield from _places(value[key], (*path, key))
