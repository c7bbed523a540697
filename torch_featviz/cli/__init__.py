"""The `featviz` command: one line from a model's name to a picture."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence

from torch_featviz.errors import FeatvizError
from torch_featviz.printable import printable, say

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `featviz` with these arguments.

    Returns:
        0 when all went well, 1 with one line on stderr when something could not be done, or when a claim of `prove`
        fails, 130 when interrupted.
    Raises:
        SystemExit: with 2, and the usage on stderr, for arguments that make no sense; with 0 after `--help`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be anything
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where what is wrong with it can still be met
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # lest the interpreter tries once more at exit
        if not isinstance(error, BrokenPipeError):
            say(f"featviz: cannot write to stdout: {error.strerror}.", file=sys.stderr)
        return 1


def _run(argv: Sequence[str] | None) -> int:
    usual = warnings.formatwarning
    warnings.formatwarning = lambda *told, **more: printable(usual(*told, **more), lines=True)
    try:
        from .grammar import parser  # noqa: PLC0415  it takes seconds, in which a person may press Ctrl-C

        arguments = parser().parse_args(argv)
        code: int = arguments.run(arguments)
    except BrokenPipeError:
        raise
    except (FeatvizError, OSError) as error:
        say(f"featviz: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("featviz: interrupted", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = usual
    return code
