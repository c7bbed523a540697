"""The names of tokens that stand before those with a place: class token, distillation token, registers."""

from __future__ import annotations

import re
from itertools import chain

from torch import nn

from .layers import unwrap

# Name of the parameter that holds them, in the order in which networks put them before the places.
_KINDS = {
    "class": re.compile(r"^(cls|class)_?(token|embed)"),
    "distillation": re.compile(r"^dist(illation)?_?token"),
    "register": re.compile(r"^(reg|register|storage)_?tokens?"),
}


def prefix_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """Names of the first `count` tokens, from the parameters that hold them: `"class"`, `"distillation"`, `"register"`.

    Where these do not make up all of them, tokens are named by number: `"token 0"`.

    Example:
        >>> net = nn.Module()
        >>> net.cls_token, net.reg_token = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 2, 8))
        >>> prefix_names(net, 3), prefix_names(net, 2)
        (('class', 'register', 'register'), ('token 0', 'token 1'))
    """
    held = dict.fromkeys(_KINDS, 0)
    inner = unwrap(model)
    for name, tensor in chain(inner.named_parameters(), inner.named_buffers()):
        last = name.rpartition(".")[2].lower()
        for kind, pattern in _KINDS.items():
            if pattern.match(last) and tensor.dim():
                held[kind] = max(held[kind], tensor.shape[-2] if tensor.dim() > 1 else 1)
    names = tuple(kind for kind, number in held.items() for _ in range(number))
    return names if len(names) == count else tuple(f"token {i}" for i in range(count))
