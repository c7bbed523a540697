"""Tokens without a place, such as a class token: how many there are, and what they are called."""

from __future__ import annotations

from torch import nn

from .layout import Layout

_NAMES = {  # of the parameters that hold them, in timm, torchvision and transformers
    "class token": ("cls_token", "class_token", "class_embedding"),
    "distillation token": ("dist_token", "distillation_token"),
    "register": ("reg_token", "reg_tokens", "register_token", "register_tokens"),
}


def unplaced(layout: Layout, model: nn.Module | None = None) -> str:
    """The tokens without a place in words; empty if there are none.

    They are named if the model holds as many, as parameters with one of the usual names.

    Example:
        >>> unplaced(Layout((2, 2), prefix=5)), unplaced(Layout((2, 2)))
        ('5 tokens without a place', '')
    """
    count = layout.prefix + layout.suffix
    if not count:
        return ""
    held = _held(model) if model is not None else {}
    if sum(held.values()) != count:
        return f"{_counted(count, 'token')} without a place"
    return " and ".join(_counted(n, name) for name, n in held.items())


def names_before(model: nn.Module, count: int) -> tuple[str, ...]:
    """What the first `count` tokens are called, each by itself: by number if the model does not hold as many.

    Example:
        >>> net = nn.Module()
        >>> net.cls_token, net.reg_token = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 2, 8))
        >>> names_before(net, 3), names_before(net, 2)
        (('class token', 'register', 'register'), ('token 0', 'token 1'))
    """
    names = tuple(name for name, number in _held(model).items() for _ in range(number))
    return names if len(names) == count else tuple(f"token {i}" for i in range(count))


def _held(model: nn.Module) -> dict[str, int]:
    """How many tokens of each kind the model holds."""
    held: dict[str, int] = {}
    for full, parameter in model.named_parameters():
        for kind, names in _NAMES.items():
            if full.rpartition(".")[2] in names and parameter.dim():
                held[kind] = held.get(kind, 0) + parameter.numel() // parameter.shape[-1]
    return {kind: held[kind] for kind in _NAMES if kind in held}


def _counted(n: int, name: str) -> str:
    return f"{n} {name}" if n == 1 else f"{n} {name}s"
