"""Warnings that point at the line of the person's own program."""

from __future__ import annotations

import sys
import warnings

from torch_featviz.errors import FeatvizWarning
from torch_featviz.printable import LONGEST, printable

_OURS = ("torch_featviz", "contextlib", "functools")


def warn(text: str, kind: type[FeatvizWarning] = FeatvizWarning) -> None:
    """Warn at the innermost line that is not of this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(printable(text, lines=True, longest=LONGEST), kind, stacklevel=level)
