"""Packages that only some uses need."""

from __future__ import annotations

import importlib
from typing import Any

from torch_featviz.errors import MissingError


def needs(module: str, what: str, install: str) -> Any:
    """Import `module`, or say how to get it.

    Args:
        module: its full name.
        what: the use that needs it, at the beginning of the message.
        install: what to give to pip.
    Raises:
        MissingError: it, or a package that it needs itself, is not installed.
    Example:
        >>> needs("json", "reading JSON", "json").loads("[1]")
        [1]
        >>> needs("jsonx.tools", "reading JSON", "torch_featviz[jsonx]")
        Traceback (most recent call last):
        torch_featviz.errors.MissingError: reading JSON needs `pip install 'torch_featviz[jsonx]'`: there is no 'jsonx'.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = getattr(error, "name", None) or module.partition(".")[0]
        raise MissingError(f"{what} needs `pip install '{install}'`: there is no {package!r}.") from error
