"""A room that can be called as the function of its name: `fv.capture(model)`, `fv.capture.Moments`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def callable_room(name: str, function: Callable[..., Any]) -> None:
    """Let the module `name` be called as `function`, which has its name; it stays a module.

    `import torch_featviz.capture as room` takes the attribute `capture` of the package: it has to be the module, and
    `torch_featviz.capture(model)` calls the same attribute.
    """

    class Room(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    Room.__call__.__doc__ = function.__doc__
    module = sys.modules[name]
    module.__class__ = Room
    module.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
