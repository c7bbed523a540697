"""Short reprs in a shell, rich output in a notebook: the base class of results."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

LIMIT = 190  # letters of a repr
_PART = 40  # letters of one field


class Displayed:
    """A result with a short repr, shown in a notebook as a table or a picture.

    The notebook output is made in `torch_featviz.notebook`, which is imported on first use: that module draws, the
    rooms that compute results do not.
    """

    def __repr__(self) -> str:
        fields = [f"{name}={part(value)}" for name, value in shown_fields(self)]
        unread = getattr(self, "unread", "")  # files, in words
        return within(f"{type(self).__name__}(", fields, f", {unread})" if unread else ")")

    def _repr_html_(self) -> str | None:
        html: str | None = import_module("torch_featviz.notebook").html(self)
        return html


def shown_fields(result: object) -> list[tuple[str, Any]]:
    """The fields of a dataclass that its repr shows, with their values."""
    if not is_dataclass(result):
        return []
    return [(each.name, getattr(result, each.name)) for each in fields(result) if each.repr]


def within(head: str, parts: list[str], tail: str) -> str:
    """Join `head`, as many parts as fit, and `tail`.

    Example:
        >>> within("Film(", ["24 steps", "0 to 23"], ")")
        'Film(24 steps, 0 to 23)'
    """
    text = ""
    for position, each in enumerate(parts):
        longer = f"{text}, {each}" if text else each
        if len(head) + len(longer) + len(tail) + 3 > LIMIT:
            return f"{head}{text}{', …' if position else '…'}{tail}"
        text = longer
    return head + text + tail


def part(value: Any) -> str:
    """One value in a few letters; for a tensor its shape.

    Example:
        >>> import torch
        >>> part(torch.zeros(2, 3)), part("conv1"), part(0.5), part(["a"] * 100), part({"size": (3, 3)})
        ('2×3', "'conv1'", '0.5', '100 in a list', "{'size': (3, 3)}")
    """
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return "×".join(map(str, shape)) or "one number"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (str, int, type(None))):
        return shortened(repr(value))
    if isinstance(value, (tuple, list, dict)):
        plain = len(value) <= 8 and all(map(_is_plain, value.values() if isinstance(value, dict) else value))
        text = repr(value) if plain else ""
        return text if text and len(text) <= _PART else f"{len(value)} in a {type(value).__name__}"
    return shortened(getattr(value, "__name__", type(value).__name__))


def shortened(text: str, limit: int = _PART) -> str:
    """The text; if it is longer than the limit, its two ends.

    Example:
        >>> shortened("a" * 60, 9)
        'aaaa…aaaa'
    """
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float, type(None))) or (
        isinstance(value, (tuple, list)) and len(value) <= 4 and all(map(_is_plain, value))
    )
