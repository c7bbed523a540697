"""What an operator is to somebody who looks for attention."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch_featviz.torch_private import is_higher_order, schema_of

from .places import is_composed

SOFTMAX = ("_softmax", "_safe_softmax", "softmax")
PRODUCTS = ("bmm", "mm", "matmul")
_HIDING = ("_flash_attention_forward", "_efficient_attention_forward", "_cudnn_attention_forward")
_HIDING_WORDS = ("flash", "attn", "attention", "fmha", "mha_")
VIEWS = (
    *("permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "slice", "select", "split", "split_with_sizes"),
    *("unbind", "chunk", "expand_as", "swapaxes", "swapdims", "movedim", "narrow", "mT"),
)
RESHAPED = ("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten")
COPIES = ("clone", "contiguous", "alias", "detach", "_to_copy", "to", "native_dropout", "dropout", "lift_fresh")
_names: dict[Any, str] = {}


def name_of(func: Any) -> str:
    """Its name, or what it is: "composed" of others, "fused" attention, or "hidden", attention without weights."""
    name = _names.get(func)
    if name is None:
        if is_higher_order(func):
            name = "hidden" if "flex_attention" in str(func) else ""
        elif is_composed(func):
            name = "composed"
        else:
            space, _, name = schema_of(func).name.rpartition("::")
            if name in _HIDING or (space != "aten" and any(word in space + name for word in _HIDING_WORDS)):
                name = "hidden"
            elif name.startswith("_scaled_dot_product"):
                name = "fused"
        _names[func] = name
    return name


def by_name(func: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Its arguments, with defaults."""
    names, defaults = _arguments_of(func)
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


@cache
def _arguments_of(func: Any) -> tuple[list[str], dict[str, Any]]:
    """Names, and defaults."""
    arguments = schema_of(func).arguments
    return [a.name for a in arguments], {a.name: a.default_value for a in arguments if a.has_default_value()}
