"""Functions that hold parts of a model: found, and made anew around the parts of a copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any


def reaches(value: Any, parts: Collection[int], seen: set[int] | None = None) -> bool:
    """Whether `value` is one of `parts` (ids), or a function, method or container that leads to one.

    Example:
        >>> part = object()
        >>> reaches({"key": [lambda: part]}, {id(part)}), reaches([print], {id(part)})
        (True, False)
    """
    seen = set() if seen is None else seen
    if id(value) in seen:
        return False
    seen.add(id(value))
    return id(value) in parts or any(reaches(item, parts, seen) for item in _held(value, parts))


def _held(value: Any, parts: Collection[int]) -> Iterator[Any]:
    if isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # the name is not bound yet
                yield cell.cell_contents
        yield from (value.__defaults__, value.__kwdefaults__, vars(value))
        yield from (part for part in globals_of(value).values() if id(part) in parts)
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, Mapping):
        yield from (*value.keys(), *value.values())
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from value


def globals_of(function: FunctionType) -> dict[str, Any]:
    """The globals that a function, or a function inside of it, names."""
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    known = function.__globals__
    return {name: known[name] for code in codes for name in code.co_names if name in known}


def rebuilt(
    function: FunctionType, parts: Collection[int], of: Callable[[Any], Any], memo: dict[int, Any]
) -> FunctionType:
    """`function` around copies: `of(value)` stands for all in its closure, defaults and globals that reaches `parts`.

    What does not reach them (a counter, a list to write to) stays the very same object.

    Args:
        memo: the copy by the original's id; the new function and its cells are added, so that cells which several
            functions share are shared by their copies.
    """

    def around(value: Any) -> Any:
        return of(value) if reaches(value, parts) else value

    changed = {name: of(part) for name, part in globals_of(function).items() if id(part) in parts}
    cells = tuple(memo.setdefault(id(cell), CellType()) for cell in function.__closure__ or ())
    other = FunctionType(
        function.__code__,
        {**function.__globals__, **changed} if changed else function.__globals__,
        function.__name__,
        around(function.__defaults__),
        cells,
    )
    memo[id(function)] = other  # before its closure, in which it may be itself
    for old, new in zip(function.__closure__ or (), cells, strict=True):
        with suppress(ValueError):
            new.cell_contents = around(old.cell_contents)
    other.__kwdefaults__ = around(function.__kwdefaults__)
    vars(other).update({name: around(value) for name, value in vars(function).items()})
    return other
