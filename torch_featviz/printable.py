"""Text that comes from outside, such as a file's name, a layer's or a class's, made fit for a terminal and a page."""

from __future__ import annotations

import html
import re
from typing import TextIO

_BREAKS = "\t\n"
LONGEST = 20_000  # letters of a message
# control characters; marks that turn the direction of what follows; line separators; halves of surrogate pairs
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_HALVES = re.compile("[\ud800-\udfff]")


def printable(text: str, *, lines: bool = False, longest: int | None = None) -> str:
    r"""Write out what a terminal would obey, or no encoding has: control characters, overrides of direction, and bytes
    of a file's name that are no text.

    Messages of errors and warnings, tables and all that the command prints go through here.

    Args:
        text: anything.
        lines: keep line breaks and tabs.
        longest: letters kept, before anything is written out; of a longer text the two ends. Default: all.
    Example:
        >>> print(printable("\x1b[2Jcat\u202egpj.exe"), printable("caf\udce9"), printable("a" * 60, longest=9))
        \u001b[2Jcat\u202egpj.exe caf\udce9 aaaa…aaaa
    """
    if longest is not None and len(text) > longest:
        half = (longest - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text if text.isascii() and text.isprintable() else _UNFIT.sub(_kept if lines else _code, text)


def encodable(text: str, *, json: bool = False) -> str:
    r"""The same text with the halves of surrogate pairs written out, as no file can hold them.

    Args:
        text: anything.
        json: the text is JSON, in which a backslash is written as two.
    Example:
        >>> print(encodable("caf\udce9"))
        caf\udce9
    """
    return _HALVES.sub(lambda half: "\\" * json + _code(half), text)


def escaped(text: str) -> str:
    """A text for HTML: what is printable of it, with its marks escaped.

    Example:
        >>> escaped("a < b")
        'a &lt; b'
    """
    return html.escape(printable(text, lines=True))


def say(text: object, *, file: TextIO | None = None) -> None:
    """Print what is printable of a text, on stdout or to a file such as stderr: all that the command says.

    Example:
        >>> say("a\\rb")
        a\\u000db
    """
    print(printable(str(text), lines=True), file=file)


def _code(letter: re.Match[str]) -> str:
    return f"\\u{ord(letter[0]):04x}"


def _kept(letter: re.Match[str]) -> str:
    return letter[0] if letter[0] in _BREAKS else _code(letter)
