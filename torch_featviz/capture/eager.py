"""What Dynamo is not to compile: functions of capture, always, and all code, for the length of a block.

Where Dynamo gives a model up it tries each function that then runs. Those of capture hold nothing for it, and it would
warn.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from threading import RLock
from types import CodeType, FunctionType
from typing import Any, ClassVar, TypeVar

import torch

from torch_featviz.torch_private import (
    dynamo_is_imported,
    in_backward,
    in_graph_pool,
    schema_of,
    skip_in_dynamo,
    storage_id,
    unmapped,
)

NOTHING = nullcontext()
_T = TypeVar("_T")
_Function = TypeVar("_Function", bound=Callable[..., Any])

_codes: list[CodeType] = []
_set_stance: Callable[[str], Any] = torch.compiler.set_stance  # type: ignore[assignment]


def eager(function: _Function) -> _Function:
    """Mark `function` as one that Dynamo leaves alone."""
    _codes.append(function.__code__)
    return function


def all_eager(kind: type[_T]) -> type[_T]:
    """Mark every function of a class."""
    codes = [value.__code__ for value in vars(kind).values() if isinstance(value, FunctionType)]
    for code in codes:  # which grows: a comprehension is a function of its own
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    _codes.extend(codes)
    return kind


for _helper in (in_backward, in_graph_pool, schema_of, storage_id, unmapped):
    eager(_helper)


@cache
def leave_to_eager_mode() -> None:
    """Tell Dynamo, which has been imported, of all functions marked."""
    for code in _codes:
        skip_in_dynamo(code)


def uncompiled() -> AbstractContextManager[Any]:
    """Compiled code runs uncompiled for the length of the block."""
    return Uncompiled() if dynamo_is_imported() else NOTHING  # where nothing is compiled; importing it takes seconds


class Uncompiled:
    """`torch.compiler.set_stance("force_eager")`, which no interrupt can leave set, nor blocks of several threads.

    The stance is one for all threads: the first block to begin sets it, and the last one to end puts back what was.
    A stance is in force as soon as the object is made; Python looks for no interrupt before it is kept.
    """

    _lock = RLock()
    _blocks: ClassVar[list[Uncompiled]] = []
    _stances: ClassVar[list[Any]] = []

    def __enter__(self) -> None:
        try:
            with self._lock:
                self._blocks.append(self)
                if len(self._blocks) == 1:
                    self._stances[:] = map(_set_stance, ["force_eager"])
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        try:
            with self._lock:
                if self in self._blocks:
                    self._blocks.remove(self)
        finally:
            with self._lock:
                if not self._blocks:
                    for stance in self._stances:
                        stance.__exit__(None, None, None)
                    self._stances.clear()
